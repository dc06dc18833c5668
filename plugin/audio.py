"""The voice at both rims: microphone or clip in, loudspeaker or file out, each sample stamped with its moment.

In: tracks for `plugin.transport.Transport`, whose frames carry the very clock the faces carry. Out: `Timeline` keeps
what came until its moment, which is when the lips that made it are on the screen; a device or a file takes it from
there.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import threading
import time
import wave
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import numpy as np
from aiortc import MediaStreamTrack
from aiortc.mediastreams import MediaStreamError
from av import AudioFrame, AudioResampler
from av.audio.stream import AudioStream
from av.error import FFmpegError
from numpy.typing import NDArray

from plugin.listening import portaudio

if TYPE_CHECKING:
    import sounddevice

log = logging.getLogger(__name__)

Samples = NDArray[np.int16]
RATE_HZ = 48_000
CHUNK_S = 0.02
_CHUNK = int(RATE_HZ * CHUNK_S)
_TIME_BASE = Fraction(1, RATE_HZ)
_SLIP_S = 0.02
"""Sound that is due so little earlier or later than what stands before it simply follows it: no click for a jitter."""
_FADE = RATE_HZ // 200


class VoiceError(OSError):
    """A device that is not there or was taken away; the call goes on without. One sentence."""


def _frame(samples: Samples, time_s: float) -> AudioFrame:
    frame = AudioFrame.from_ndarray(np.ascontiguousarray(samples[None]), format="s16", layout="mono")
    frame.sample_rate, frame.pts, frame.time_base = RATE_HZ, round(time_s * RATE_HZ), _TIME_BASE
    return frame


# --- in ---


class ClipVoice(MediaStreamTrack):
    """A clip's own sound as if it came from a microphone: in real time, over and over, in step with the picture.

    `origin` tells when the clip's picture began (on `clock`), None while it has not. Raises `ValueError` for a clip
    without sound; check `Clip.has_sound` first.
    """

    kind = "audio"

    def __init__(
        self,
        path: Path,
        duration_s: float,
        origin: Callable[[], float | None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        self._sound = read_sound(path)
        whole = round(duration_s * RATE_HZ)
        self._sound = np.pad(self._sound, (0, max(whole - len(self._sound), 0)))[:whole]
        if not len(self._sound):
            raise ValueError(f"{path} has no sound")
        self._origin, self._clock = origin, clock
        self._place = 0

    async def recv(self) -> AudioFrame:
        while (began_s := self._origin()) is None:
            if self.readyState != "live":
                raise MediaStreamError
            await asyncio.sleep(CHUNK_S)
        late_s = self._clock() - began_s - self._place / RATE_HZ
        if late_s > 1.0:  # joined late, or slept: go on from now
            self._place += int(late_s * RATE_HZ)
        due_s = began_s + (self._place + _CHUNK) / RATE_HZ
        await asyncio.sleep(max(due_s - self._clock(), 0))
        if self.readyState != "live":
            raise MediaStreamError
        samples = self._sound.take(np.arange(self._place, self._place + _CHUNK), mode="wrap")
        frame = _frame(samples, began_s + self._place / RATE_HZ)
        self._place += _CHUNK
        return frame


class Gate(MediaStreamTrack):
    """Lets a track through, or holds it back: what is said meanwhile is not sent later."""

    kind = "audio"

    def __init__(self, voice: MediaStreamTrack) -> None:
        super().__init__()
        self._voice = voice
        self.is_open = False

    async def recv(self) -> AudioFrame:
        while True:
            frame = await self._voice.recv()
            if self.is_open and isinstance(frame, AudioFrame):
                return frame

    def stop(self) -> None:
        super().stop()
        self._voice.stop()


def read_sound(path: Path) -> Samples:
    """A file's sound, mono at `RATE_HZ`, beginning where the file begins. Raises `ValueError`."""
    try:
        with av.open(str(path), metadata_errors="replace") as container:
            if not container.streams.audio:
                raise ValueError(f"{path} has no sound")
            start_s = (container.start_time or 0) / av.time_base
            resampler = AudioResampler(format="s16", layout="mono", rate=RATE_HZ)
            parts: list[Samples] = []
            lead = 0
            for frame in container.decode(audio=0):
                if not parts and frame.time is not None:
                    lead = max(round((frame.time - start_s) * RATE_HZ), 0)
                parts += [np.asarray(one.to_ndarray(), np.int16).reshape(-1) for one in resampler.resample(frame)]
            parts += [np.asarray(one.to_ndarray(), np.int16).reshape(-1) for one in resampler.resample(None)]
    except FFmpegError as error:
        raise ValueError(f"the sound of {path} cannot be read: {error.strerror}") from error
    return np.concatenate([np.zeros(lead, np.int16), *parts])


def _started(devices: Any, kind: Callable[..., Any], callback: Callable[..., None], what: str) -> Any:
    """A stream of the default device, at work. Raises `VoiceError`."""
    try:
        stream = kind(RATE_HZ, _CHUNK, channels=1, dtype="int16", latency="low", callback=callback)
        stream.start()
    except (devices.PortAudioError, ValueError) as error:
        why = str(error).partition("\n")[0][:120]
        raise VoiceError(f"there is no {what} that can be used ({why})") from error
    return stream


class Microphone(MediaStreamTrack):
    """The default microphone. Opened at once: raises `VoiceError` when there is none."""

    kind = "audio"

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        devices = portaudio(VoiceError)
        self._clock = clock
        self._feeds = asyncio.get_running_loop()
        self._heard: asyncio.Queue[AudioFrame | None] = asyncio.Queue()
        self._stream: sounddevice.InputStream = _started(devices, devices.InputStream, self._hear, "microphone")

    def _hear(self, samples: Samples, count: int, at: Any, status: Any) -> None:
        # `at` is on PortAudio's clock: only its distance from now carries over to ours.
        taken_s = self._clock() - max(at.currentTime - at.inputBufferAdcTime, 0.0)
        self._feeds.call_soon_threadsafe(self._put, _frame(samples[:, 0].copy(), taken_s))

    def _put(self, frame: AudioFrame) -> None:
        if self._heard.qsize() < 50:
            self._heard.put_nowait(frame)

    async def recv(self) -> AudioFrame:
        frame = await self._heard.get()
        if frame is None or self.readyState != "live":
            raise MediaStreamError
        return frame

    def stop(self) -> None:
        super().stop()
        self._stream.abort(ignore_errors=True)
        self._stream.close(ignore_errors=True)
        self._heard.put_nowait(None)


# --- out ---


class Timeline:
    """Sound with its moments, `seconds` of it. Any thread may put and take; takers ask in order of time."""

    def __init__(self, seconds: float = 4.0) -> None:
        self._ring = np.zeros(int(seconds * RATE_HZ), np.int16)
        self._lock = threading.Lock()
        self._end: int | None = None
        self._taken: int | None = None
        self.late_s = 0.0
        """How late the last sound came, beyond its moment; 0 when in time."""
        self.moved = 0
        """How often the sound was moved against its clock, because that had drifted."""

    def put(self, samples: Samples, due_s: float) -> None:
        """Sound that is to be heard from `due_s` on."""
        due = round(due_s * RATE_HZ)
        with self._lock:
            taken = self._taken if self._taken is not None else due
            self.late_s = max((taken - due) / RATE_HZ, 0.0)
            follows = self._end is not None and abs(due - self._end) <= _SLIP_S * RATE_HZ and self._end >= taken
            start = self._end if follows and self._end is not None else due
            sound = samples
            if not follows:
                self.moved += self._end is not None
                sound = sound.copy()
                ramp = np.linspace(0, 1, min(_FADE, len(sound)), dtype=np.float32)
                sound[: len(ramp)] = (sound[: len(ramp)] * ramp).astype(np.int16)
                if self._end is not None and due < self._end:  # what stood there is replaced
                    self._write(due, np.zeros(min(self._end - due, len(self._ring)), np.int16))
            if start < taken:
                sound, start = sound[taken - start :], taken
            if len(sound) and start + len(sound) - taken <= len(self._ring):
                self._write(start, sound)
                self._end = start + len(sound)

    def take(self, from_s: float, count: int) -> Samples:
        """`count` samples from that moment on, silence where there are none; what lies before is gone."""
        start = round(from_s * RATE_HZ)
        with self._lock:
            if self._taken is not None and abs(start - self._taken) <= _SLIP_S * RATE_HZ:
                start = self._taken  # a device's clock jitters; the sound does not
            places = np.arange(start, start + count) % len(self._ring)
            out = self._ring[places].copy()
            if self._taken is not None and start > self._taken:
                self._clear(self._taken, start)
            self._clear(start, start + count)
            self._taken = start + count
        return out

    def _write(self, start: int, sound: Samples) -> None:
        self._ring[np.arange(start, start + len(sound)) % len(self._ring)] = sound

    def _clear(self, start: int, end: int) -> None:
        count = min(end - start, len(self._ring))
        self._ring[np.arange(end - count, end) % len(self._ring)] = 0


class Loudspeaker:
    """Plays a timeline on the default output. Raises `VoiceError` when there is none."""

    def __init__(self, timeline: Timeline, clock: Callable[[], float] = time.monotonic) -> None:
        devices = portaudio(VoiceError)
        self._timeline, self._clock = timeline, clock
        self._stream: sounddevice.OutputStream = _started(devices, devices.OutputStream, self._play, "loudspeaker")

    def _play(self, out: Samples, count: int, at: Any, status: Any) -> None:
        heard_s = self._clock() + max(at.outputBufferDacTime - at.currentTime, 0.0)
        out[:, 0] = self._timeline.take(heard_s, count)

    def close(self) -> None:
        self._stream.abort(ignore_errors=True)
        self._stream.close(ignore_errors=True)


class Recorder:
    """Writes a timeline into a WAV file, from the moment of `begin` to that of `finish`."""

    def __init__(self, timeline: Timeline, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        """Raises `VoiceError` when the file cannot be written."""
        self._timeline, self.path, self._clock = timeline, path, clock
        self._at_s: float | None = None
        try:
            self._file = wave.open(str(path), "wb")  # noqa: SIM115 (closed in `finish`)
        except OSError as error:
            raise VoiceError(f"cannot write {path}: {error.strerror}") from error
        self._file.setnchannels(1)
        self._file.setsampwidth(2)
        self._file.setframerate(RATE_HZ)

    def begin(self, at_s: float) -> None:
        """This moment is the file's zero. Harmless when it has begun."""
        if self._at_s is None:
            self._at_s = at_s

    def pump(self, until_s: float | None = None) -> None:
        """Write what has been heard by now."""
        if self._at_s is None:
            return
        count = int(((self._clock() if until_s is None else until_s) - self._at_s) * RATE_HZ)
        while count > 0:
            some = min(count, _CHUNK * 25)
            self._file.writeframes(self._timeline.take(self._at_s, some).tobytes())
            self._at_s += some / RATE_HZ
            count -= some

    def finish(self, until_s: float) -> None:
        self.pump(until_s)
        self._file.close()


def join(video: Path, sound: Path) -> None:
    """Put the sound of a WAV file under an MP4 that has none; both begin at zero. The MP4 is replaced at the end.

    Raises `OSError` with one sentence; the MP4 is then as it was.
    """
    part = video.with_name(f".{video.name}.{os.getpid()}.joined")
    try:
        with (
            av.open(str(video)) as pictures,
            av.open(str(sound)) as heard,
            av.open(str(part), "w", format="mp4", options={"movflags": "+faststart"}) as out,
        ):
            shown = out.add_stream_from_template(pictures.streams.video[0])
            spoken = out.add_stream("aac", rate=RATE_HZ, layout="mono")
            assert isinstance(spoken, AudioStream)
            spoken.bit_rate = 96_000
            packets = (packet for packet in pictures.demux(video=0) if packet.dts is not None)
            picture = next(packets, None)
            resampler = AudioResampler(format="fltp", layout="mono", rate=RATE_HZ)
            for frame in heard.decode(audio=0):
                while picture is not None and _decoded_s(picture) <= (frame.time or 0.0):
                    picture.stream = shown
                    out.mux(picture)
                    picture = next(packets, None)
                for one in resampler.resample(frame):
                    out.mux(spoken.encode(one))
            for one in resampler.resample(None):
                out.mux(spoken.encode(one))
            out.mux(spoken.encode(None))
            while picture is not None:
                picture.stream = shown
                out.mux(picture)
                picture = next(packets, None)
        part.replace(video)
    except (FFmpegError, OSError) as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        why = "the disk is full" if full else error.strerror or error
        raise OSError(f"the voice could not be put into {video} ({why}); the picture is there") from error
    finally:
        part.unlink(missing_ok=True)


def _decoded_s(packet: av.Packet) -> float:
    return float((packet.dts or 0) * (packet.time_base or _TIME_BASE))
