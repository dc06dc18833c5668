"""The live loop's ear: microphone, or a sound file in its place -> pieces of sound -> what the lips do now.

A microphone gives pieces (`Heard`) of any rate and number of channels; `Ear` makes of them codes of the lips
(`engine.voice_lips`), 100 ms after the sound and never more than 120. Nothing that is heard is kept or sent.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from numpy.typing import NDArray

from engine.voice_lips import HOP, RATE_HZ, STEP_HOPS, VoiceCodes, read_voice

if TYPE_CHECKING:
    import sounddevice

Floats = NDArray[np.float32]

LATE_S = 0.1
"""The lips are shown so long after their sound: the network's 80 ms, and half of its steps of 40."""
DEAF_S = 0.5
"""A microphone that has given nothing for so long drives nothing."""
_PIECE_S = 0.01
_LOST_S = 2.0
_STEP = STEP_HOPS * HOP


class MicrophoneLostError(OSError):
    """The microphone cannot be opened, or gives no more sound; the message says what to do. Opening again may help."""


@dataclass(frozen=True, slots=True, eq=False)
class Heard:
    """A piece of sound."""

    samples: Floats
    """`[n]` or `[n, channels]`, -1..1."""
    rate_hz: int
    time_s: float
    """When its last sample was taken, on the loop's clock."""


class LiveMicrophone(Protocol):
    """`open` and `read` raise `MicrophoneLostError`; after `close` it can be opened again. `read` waits for a piece."""

    @property
    def name(self) -> str: ...

    def open(self) -> None: ...

    def read(self) -> Heard: ...

    def close(self) -> None: ...


def portaudio(failure: type[Exception]) -> Any:
    """sounddevice; raises `failure` with one sentence where it cannot be had."""
    try:
        import sounddevice
    except ModuleNotFoundError as error:
        raise failure("sound needs one more part: pip install 'understudy[voice]'") from error
    except OSError as error:
        raise failure("sound needs the PortAudio library: sudo apt install libportaudio2") from error
    return sounddevice


class Microphone:
    """A microphone of this machine, through PortAudio, looked up by name at every opening; "" is the system's default.

    It is opened at its own rate, with two channels at most: some systems offer nothing else.
    """

    def __init__(self, wanted: str = "", clock: Callable[[], float] = time.monotonic) -> None:
        self._wanted, self._clock = wanted, clock
        self._stream: sounddevice.InputStream | None = None
        self._pieces: queue.Queue[Heard] = queue.Queue(maxsize=50)
        self._rate_hz = RATE_HZ
        self.name = wanted

    def open(self) -> None:
        self.close()
        devices = portaudio(MicrophoneLostError)
        try:
            # PortAudio lists devices once: only so is one found that was plugged in later.
            devices._terminate()
            devices._initialize()
            told = self._choose(devices)
            self._rate_hz = round(told["default_samplerate"])
            stream = devices.InputStream(
                self._rate_hz,
                round(self._rate_hz * _PIECE_S),
                told["index"],
                min(2, told["max_input_channels"]),
                "float32",
                "low",
                callback=self._hear,
            )
            stream.start()
        except (devices.PortAudioError, ValueError) as error:
            first = str(error).partition("\n")[0][:120]
            raise MicrophoneLostError(
                f"there is no microphone that can be used ({first}): plug one in, or allow it in the system's settings"
            ) from error
        self._stream, self.name = stream, str(told["name"])

    def _choose(self, devices: Any) -> dict[str, Any]:
        if not self._wanted:
            return devices.query_devices(kind="input")
        there = [one for one in devices.query_devices() if one["max_input_channels"] > 0]
        for one in there:
            if self._wanted.lower() in one["name"].lower():
                return one
        known = ", ".join(repr(one["name"]) for one in there) or "none at all"
        raise MicrophoneLostError(f"there is no microphone {self._wanted!r}; this machine has {known}")

    def _hear(self, samples: Floats, count: int, at: Any, status: Any) -> None:
        # `at` is on PortAudio's clock: only its distance from now carries over to ours.
        first_s = min(max(at.currentTime - at.inputBufferAdcTime, 0.0), 1.0)
        last_s = max(first_s - count / self._rate_hz, 0.0)
        try:
            self._pieces.put_nowait(Heard(samples.copy(), self._rate_hz, self._clock() - last_s))
        except queue.Full:
            pass  # nobody listens: what is new is as stale as what is kept

    def read(self) -> Heard:
        try:
            return self._pieces.get(timeout=_LOST_S)
        except queue.Empty:
            raise MicrophoneLostError(
                f"the microphone {self.name!r} gives no sound: it was unplugged, or another program took it"
            ) from None

    def close(self) -> None:
        if self._stream is not None:
            self._stream.abort(ignore_errors=True)
            self._stream.close(ignore_errors=True)
            self._stream = None
        while not self._pieces.empty():
            self._pieces.get_nowait()


class FileMicrophone:
    """A sound file, heard as if it were spoken: in real time, over and over. Raises `ValueError` if it is none."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._voice = read_voice(path).samples
        self._clock = clock
        self._place = 0
        self._due_s: float | None = None
        self.name = path.name

    def open(self) -> None:
        self._place, self._due_s = 0, self._clock()

    def read(self) -> Heard:
        if self._due_s is None:
            raise MicrophoneLostError(f"the sound file {self.name} is not open")
        count = round(2 * _PIECE_S * RATE_HZ)
        self._due_s += count / RATE_HZ
        wait_s = self._due_s - self._clock()
        if wait_s > 0:
            time.sleep(wait_s)
        elif wait_s < -1.0:  # the machine slept: go on from here
            self._due_s = self._clock()
        samples = self._voice.take(np.arange(self._place, self._place + count), mode="wrap")
        self._place = (self._place + count) % len(self._voice)
        return Heard(samples, RATE_HZ, self._due_s)

    def close(self) -> None:
        self._due_s = None


# --- from sound to lips -------------------------------------------------------------------------------------


class Gate:
    """How surely somebody speaks, 0 to 1, step by step (40 ms): louder than the room, and than nothing at all.

    The room's noise is the quietest of the last seconds: a voice has gaps, a fan has none. Without this, noise of any
    loudness opens the mouth, for the network hears no loudness.
    """

    _ROOM_STEPS = 75
    """3 s."""
    _FAINT_DB, _ABOVE_DB, _SURE_DB = -58.0, 6.0, 8.0
    """What is fainter is nothing; so much above the room a voice begins, and is sure after so much more."""
    _MUTE_DB = -85.0
    """No room is so quiet: what a microphone gives that starts, or that shuts itself between words."""
    _RELEASE = 0.76
    """From one step to the next: 150 ms."""

    def __init__(self) -> None:
        self._levels: deque[float] = deque(maxlen=self._ROOM_STEPS)
        self._share = 0.0

    def __call__(self, step: Floats) -> float:
        """`[_STEP]` samples."""
        power = np.square(step.reshape(STEP_HOPS, HOP), dtype=np.float64).mean(1) + 1e-12
        level_db = 10 * np.log10(power)
        # The mean of a step tells of the room, its loudest part of the voice: an onset is not to be missed.
        if (mean_db := float(10 * np.log10(power.mean()))) > self._MUTE_DB:
            self._levels.append(mean_db)
        floor_db = max(min(self._levels, default=mean_db) + self._ABOVE_DB, self._FAINT_DB)
        sure = min(max((float(level_db.max()) - floor_db) / self._SURE_DB, 0.0), 1.0)
        self._share = max(sure * sure * (3 - 2 * sure), self._RELEASE * self._share)
        return self._share


class Ear:
    """Pieces of sound -> codes of the lips at a moment. One thread calls `hear`, any other `at`."""

    def __init__(self, network: Path | None = None) -> None:
        """Raises `ValueError` when the network cannot be read."""
        self._codes, self._gate = VoiceCodes(network), Gate()
        self._resampler: tuple[int, AudioResampler] | None = None
        self._waiting = np.zeros(0, np.float32)
        self._count = 0
        self._lock = threading.Lock()
        self._said: deque[tuple[float, Floats]] = deque(maxlen=6)
        self._now: tuple[float, float] | None = None
        self._clipped, self._zeros_s = 0.0, 0.0
        self.problem: str | None = None
        """What is wrong with the sound, and what to do about it."""

    def hear(self, piece: Heard) -> None:
        samples = piece.samples.mean(1) if piece.samples.ndim == 2 else piece.samples
        samples = np.nan_to_num(samples, nan=0.0, posinf=1.0, neginf=-1.0).clip(-1, 1).astype(np.float32, copy=False)
        self._judge(piece.samples, len(samples) / piece.rate_hz)
        at_16_khz = self._resampled(samples, piece.rate_hz)
        self._waiting = np.concatenate([self._waiting, at_16_khz])
        said: list[tuple[float, Floats]] = []
        while len(self._waiting) >= _STEP:
            step, self._waiting = self._waiting[:_STEP], self._waiting[_STEP:].copy()
            share = np.float32(self._gate(step))
            said += [(moment_s, share * codes) for moment_s, codes in self._codes.feed(step)]
        with self._lock:
            self._count += len(at_16_khz)
            self._now = (self._count / RATE_HZ, piece.time_s)
            self._said.extend(said)

    def at(self, now_s: float) -> tuple[float, Floats] | None:
        """(the moment whose lips these are, on the loop's clock; codes). None where nothing is heard."""
        with self._lock:
            now, said = self._now, list(self._said)
        if now is None or not said or now_s - now[1] > DEAF_S:
            return None
        heard_s, taken_s = now
        wanted_s = heard_s + (now_s - taken_s) - LATE_S
        moment_s = min(max(wanted_s, said[0][0]), said[-1][0])
        after = next(k for k, (at_s, _) in enumerate(said) if at_s >= moment_s)
        found = said[after][1]
        if after:
            (before_s, before), (after_s, then) = said[after - 1], said[after]
            found = before + np.float32((moment_s - before_s) / (after_s - before_s)) * (then - before)
        return moment_s - heard_s + taken_s, found

    def _resampled(self, samples: Floats, rate_hz: int) -> Floats:
        if rate_hz == RATE_HZ:
            return samples
        if self._resampler is None or self._resampler[0] != rate_hz:
            self._resampler = rate_hz, AudioResampler("fltp", "mono", RATE_HZ)
        frame = AudioFrame.from_ndarray(np.ascontiguousarray(samples[None]), format="fltp", layout="mono")
        frame.sample_rate = rate_hz
        made = [one.to_ndarray()[0] for one in self._resampler[1].resample(frame)]
        return np.concatenate(made) if made else np.zeros(0, np.float32)

    def _judge(self, samples: Floats, seconds: float) -> None:
        """Clipped sound of the last second or so, and silence such as no room has."""
        share = float((np.abs(samples) > 0.985).mean())
        self._clipped += min(seconds, 1.0) * (share - self._clipped)
        self._zeros_s = 0.0 if samples.any() else self._zeros_s + seconds
        if self._zeros_s > 5.0:
            self.problem = "the microphone gives nothing but silence: is it muted?"
        elif self._clipped > 0.01:
            self.problem = "the microphone is clipped: turn it down in the sound settings"
        elif self._clipped < 0.002:
            self.problem = None
