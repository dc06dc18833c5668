"""Last stage: frames leave through one `send(frame)`: a virtual camera, an MP4, a folder of PNGs, or nowhere."""

from __future__ import annotations

import errno
import logging
import os
import platform
import re
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

import av
import cv2
import numpy as np
from av.audio.codeccontext import AudioCodecContext
from av.audio.resampler import AudioResampler
from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer
from av.error import FFmpegError, InvalidDataError
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace

from engine.frames import Frame, Image
from plugin import v4l2

if TYPE_CHECKING:
    import pyvirtualcam

log = logging.getLogger(__name__)

_CLOCK_HZ = 90_000  # fine enough for any camera's stamps, and what MPEG has always used
_COPIED_SOUND = {"aac", "mp3", "ac3", "eac3", "alac"}  # played by all inside MP4; Opus is not
_BT709 = 1  # ISO/IEC 23091-2


class Sink(Protocol):
    """Takes frames in order of time. `close` finishes the output; leaving `with` by an error discards it."""

    def send(self, frame: Frame) -> None: ...

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class _Closing:
    """`with` for a sink: closed when the block ends, aborted when it is left by an error or Ctrl-C."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    def close(self) -> None:
        """Finish."""

    def abort(self) -> None:
        """Give up and leave nothing half-made behind."""


class NullSink(_Closing):
    """Counts frames and forgets them: for timing, and where there is no camera device."""

    def __init__(self) -> None:
        self.count = 0

    def send(self, frame: Frame) -> None:
        self.count += 1


class FolderSink(_Closing):
    """Each frame as `frame_000001.png` and so on, for looking at and for tests that need exact pixels."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.count = 0
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"cannot make the folder {self.folder}: {error.strerror}") from error

    def send(self, frame: Frame) -> None:
        self.count += 1
        path = self.folder / f"frame_{self.count:06d}.png"
        if not cv2.imwrite(str(path), cv2.cvtColor(frame.rgb, cv2.COLOR_RGB2BGR)):
            raise OSError(f"cannot write {path}: is the disk full or the folder read-only?")


class FileSink(_Closing):
    """An MP4 (H.264, yuv420p, BT.709, playable while it downloads), with the driving clip's sound.

    `size_px` is width and height of the frames to come; odd sizes gain one repeated row or column,
    since 4:2:0 has none. Frames keep their own stamps, so a variable rate stays one. With
    `audio_from`, stamps must be on that clip's clock, as `plugin.webcam.Clip` gives them: the sound
    between the first and the last frame is copied bit for bit where MP4 allows it, else re-encoded
    to AAC; `notes` says what was done. The file appears under its name only when `close` succeeds;
    until then it lies beside it under a temporary name. Raises `ValueError` for what cannot work from
    the start, `OSError` with one sentence when the disk gives up on the way.
    """

    def __init__(
        self,
        path: str | Path,
        size_px: tuple[int, int],
        fps: float,
        audio_from: str | Path | None = None,
        crf: int = 17,
    ) -> None:
        self.path = Path(path)
        self.size_px = size_px
        self.count = 0
        self.notes: list[str] = []
        width, height = size_px
        if width < 2 or height < 2:
            raise ValueError(f"a video needs at least 2 x 2 pixels, got {width} x {height}")
        if not 0 < fps <= 1000:
            raise ValueError(f"frames per second must lie between 0 and 1000, got {fps}")
        if self.path.suffix.lower() not in {".mp4", ".m4v", ".mov"}:
            raise ValueError(f"the output is MP4: give a name ending in .mp4, not {self.path.name}")
        if not self.path.parent.is_dir():
            raise ValueError(f"there is no folder {self.path.parent} to write {self.path.name} into")
        if self.path.is_dir():
            raise ValueError(f"{self.path} is a folder, not a file name")
        self.fps = fps
        self._even = np.empty((height + height % 2, width + width % 2, 3), np.uint8)
        self._part = self.path.with_name(f".{self.path.name}.{os.getpid()}.part")
        self._first_s: float | None = None
        self._last_tick = -1
        self._sound: _Sound | None = None
        self._container: OutputContainer | None = None
        try:
            self._part.touch()  # libav opens its file late; a read-only folder shall be known now
            self._container = av.open(str(self._part), "w", format="mp4", options={"movflags": "+faststart"})
            rate = Fraction(fps).limit_denominator(1001)
            self._stream = self._container.add_stream("libx264", rate=rate, options={"crf": str(crf), "preset": "fast"})
            self._stream.width, self._stream.height = self._even.shape[1], self._even.shape[0]
            self._stream.pix_fmt = "yuv420p"
            context = self._stream.codec_context
            context.time_base = Fraction(1, _CLOCK_HZ)
            context.colorspace = context.color_primaries = context.color_trc = _BT709
            context.color_range = ColorRange.MPEG
            if audio_from is not None:
                self._sound = _Sound(Path(audio_from), self._container, self.notes)
        except OSError as error:
            self.abort()
            raise ValueError(_sentence(self.path, error)) from error
        except BaseException:
            self.abort()
            raise

    def send(self, frame: Frame) -> None:
        if self._container is None:
            raise ValueError(f"{self.path} is already closed")
        width, height = self.size_px
        if frame.rgb.shape != (height, width, 3):
            raise ValueError(f"{self.path} takes pictures of {height} x {width} x 3, got {frame.rgb.shape}")
        if self._first_s is None:
            self._first_s = frame.time_s
        tick = max(self._last_tick + 1, round((frame.time_s - self._first_s) * _CLOCK_HZ))
        picture = VideoFrame.from_ndarray(self._padded(frame.rgb), "rgb24").reformat(
            format="yuv420p", dst_colorspace=Colorspace.ITU709
        )
        picture.pts, picture.time_base = tick, Fraction(1, _CLOCK_HZ)
        picture.duration = round(_CLOCK_HZ / self.fps)
        self._last_tick = tick
        try:
            self._container.mux(self._stream.encode(picture))
            if self._sound is not None:
                self._sound.pump(self._first_s, frame.time_s)
        except OSError as error:
            self.abort()
            raise OSError(_sentence(self.path, error)) from error
        self.count += 1

    def close(self) -> None:
        """Flush, write the index, and give the file its name. Harmless when already closed."""
        if self._container is None:
            return
        if self._first_s is None:
            self.abort()
            raise ValueError(f"no frame arrived, so {self.path} was not written")
        try:
            self._container.mux(self._stream.encode(None))
            if self._sound is not None:
                last_s = self._first_s + self._last_tick / _CLOCK_HZ + 1 / self.fps
                self._sound.pump(self._first_s, last_s)
                self._sound.finish()
            self._container.close()
            self._container = None
            self._part.replace(self.path)
        except OSError as error:
            self.abort()
            raise OSError(_sentence(self.path, error)) from error
        except BaseException:
            self.abort()
            raise
        for note in self.notes:
            log.info(note)

    def abort(self) -> None:
        if self._sound is not None:
            self._sound.close()
        if self._container is not None:
            try:
                self._container.close()
            except OSError as error:
                log.debug("while giving up on %s: %s", self._part, error)
            self._container = None
        self._part.unlink(missing_ok=True)

    def _padded(self, rgb: Image) -> Image:
        if rgb.shape == self._even.shape:
            return rgb
        height, width = rgb.shape[:2]
        self._even[:height, :width] = rgb
        self._even[height:, :width] = rgb[-1:]
        self._even[:, width:] = self._even[:, width - 1 : width]
        return self._even


class _Sound:
    """Carries a clip's sound into an MP4 alongside the picture, never further ahead than the picture."""

    def __init__(self, path: Path, output: OutputContainer, notes: list[str]) -> None:
        self.path = path
        self._output = output
        self._notes = notes
        self._input: InputContainer | None = None
        try:
            self._input = av.open(str(path), metadata_errors="replace")
        except FFmpegError as error:
            raise ValueError(f"cannot take the sound from {path}: {error.strerror}") from error
        if not self._input.streams.audio:
            notes.append(f"{path.name} has no sound, so the output has none")
            self.close()
            return
        source = self._input.streams.audio[0]
        self._start_s = (self._input.start_time or 0) / av.time_base
        codec = source.codec_context.name if source.codec_context is not None else "an unknown codec"
        self._encoder: AudioStream | None = None
        if codec in _COPIED_SOUND:
            self._copy: AudioStream | None = output.add_stream_from_template(source)
            notes.append(f"sound copied from {path.name} ({codec})")
        else:
            self._copy = None
            assert isinstance(source.codec_context, AudioCodecContext)
            rate_hz = source.codec_context.sample_rate or 48_000
            rate_hz = rate_hz if rate_hz in {16_000, 22_050, 24_000, 32_000, 44_100, 48_000} else 48_000
            layout = "mono" if source.codec_context.channels == 1 else "stereo"
            encoder = output.add_stream("aac", rate=rate_hz, layout=layout)
            encoder.bit_rate = 96_000 * (1 if layout == "mono" else 2)
            self._encoder = encoder
            self._resampler = AudioResampler(format="fltp", layout=layout, rate=rate_hz)
            notes.append(f"sound of {path.name} re-encoded from {codec} to AAC")
        self._packets = self._input.demux(source)
        self._held: Packet | None = None

    def pump(self, first_s: float, until_s: float) -> None:
        """Move the sound that belongs before `until_s`; the clip's `first_s` becomes the output's zero."""
        while self._input is not None:
            packet = self._held or self._next()
            if packet is None:
                return
            self._held = packet
            base = packet.time_base or Fraction(1, 1)
            stamp = (packet.pts if packet.pts is not None else packet.dts) or 0
            at_s = float(stamp * base) - self._start_s
            if at_s >= until_s:
                return
            self._held = None
            end_s = at_s + float((packet.duration or 0) * base)
            # The encoder's run-in before zero is kept where the picture starts with the clip: it is part of
            # the first sound's decoding, and the MP4's edit list hides it.
            if end_s <= first_s - (0.1 if first_s < 0.1 else 0.0):
                continue
            self._write(packet, first_s + self._start_s, base)

    def finish(self) -> None:
        if self._input is not None and self._encoder is not None:
            for frame in self._resampler.resample(None):
                self._output.mux(self._encoder.encode(frame))
            self._output.mux(self._encoder.encode(None))
        self.close()

    def close(self) -> None:
        if self._input is not None:
            self._input.close()
            self._input = None

    def _next(self) -> Packet | None:
        try:
            for packet in self._packets:
                if packet.size and (packet.pts is not None or packet.dts is not None):
                    return packet
        except FFmpegError as error:
            self._notes.append(f"the sound of {self.path.name} stops part-way ({error.strerror})")
        return None

    def _write(self, packet: Packet, zero_s: float, base: Fraction) -> None:
        if self._copy is not None:
            shift = round(zero_s / base)
            packet.pts = None if packet.pts is None else packet.pts - shift
            packet.dts = None if packet.dts is None else packet.dts - shift
            packet.stream = self._copy
            self._output.mux(packet)
            return
        assert self._encoder is not None
        try:
            frames = packet.decode()
        except InvalidDataError:
            return  # one damaged packet is a click, not a reason to lose the file
        for frame in frames:
            if frame.pts is not None and frame.time_base is not None:
                frame.pts -= round(zero_s / frame.time_base)
            for part in self._resampler.resample(frame):
                self._output.mux(self._encoder.encode(part))


def _sentence(path: Path, error: OSError) -> str:
    if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
        return f"no space left on the disk for {path}; nothing was kept of it"
    return f"cannot write {path}: {error.strerror or error}"


# --- live ---------------------------------------------------------------------------------------------------


class SinkLostError(OSError):
    """The virtual camera cannot be opened or takes no more pictures; the message says what to do."""


class LiveSink(Protocol):
    """Where live pictures leave. `open` and `send` raise `SinkLostError`; after `close` it can be opened again.

    `size_px` and `fps` are what it wants to be given.
    """

    @property
    def name(self) -> str: ...

    @property
    def size_px(self) -> tuple[int, int]: ...

    @property
    def fps(self) -> float: ...

    def open(self) -> None: ...

    def send(self, frame: Frame) -> None: ...

    def close(self) -> None: ...


class NoCamera:
    """Takes live pictures and drops them: for the preview alone, and for measuring."""

    name = "no virtual camera"

    def __init__(self, size_px: tuple[int, int] = (1280, 720), fps: float = 30.0) -> None:
        self.size_px, self.fps, self.count = size_px, fps, 0

    def open(self) -> None:
        """Nothing to open."""

    def send(self, frame: Frame) -> None:
        self.count += 1

    def close(self) -> None:
        """Nothing to close."""


class VirtualCamera:
    """A camera that other programs can choose: v4l2loopback on Linux, OBS or Unity Capture on Windows, OBS on macOS.

    `device` and `backend` as in pyvirtualcam; "" takes the first there is.
    """

    def __init__(
        self, size_px: tuple[int, int] = (1280, 720), fps: float = 30.0, device: str = "", backend: str = ""
    ) -> None:
        self.size_px, self.fps = size_px, fps
        self._device, self._backend = device, backend
        self._camera: pyvirtualcam.Camera | None = None
        self.name = device or "virtual camera"

    def open(self) -> None:
        """Harmless when it is open already."""
        if self._camera is not None:
            return
        try:
            import pyvirtualcam
            from pyvirtualcam.camera import BACKENDS
        except ModuleNotFoundError as error:
            raise SinkLostError("the virtual camera needs one more part: pip install 'understudy[call]'") from error
        if self._backend and self._backend not in BACKENDS:
            raise SinkLostError(
                f"there is no virtual camera backend {self._backend!r} on {platform.system()}, only "
                f"{', '.join(BACKENDS) or 'none'}: change camera.backend, or leave it empty"
            )
        width, height = self.size_px
        if platform.system() == "Linux":
            for device in [Path(self._device)] if self._device else v4l2.video_devices():
                v4l2.take_again(device)
        try:
            self._camera = pyvirtualcam.Camera(
                width, height, self.fps, device=self._device or None, backend=self._backend or None
            )
        except (RuntimeError, ValueError, OSError) as error:
            raise SinkLostError(what_to_do(str(error), platform.system())) from error
        self.name = self._camera.device

    def send(self, frame: Frame) -> None:
        if self._camera is None:
            raise SinkLostError("the virtual camera is not open")
        try:
            self._camera.send(frame.rgb)
        except (RuntimeError, OSError) as error:
            self.close()
            raise SinkLostError(what_to_do(str(error), platform.system())) from error

    def close(self) -> None:
        if self._camera is not None:
            camera, self._camera = self._camera, None
            try:
                camera.close()
            except (RuntimeError, OSError) as error:  # the device may be gone already
                log.debug("closing the virtual camera: %s", error)
            if self.name.startswith("/dev/"):
                v4l2.take_again(Path(self.name), ours=True)


_MODPROBE = (
    f"{v4l2.modprobe()} (and before that, once: sudo apt install v4l2loopback-dkms, or your system's package of that "
    "name)"
)


def what_to_do(message: str, system: str) -> str:
    """pyvirtualcam's words -> one sentence with the cause and the next step.

    `message` may hold several lines, one for each backend that was tried; `system` is `platform.system()`'s.
    """
    told = " ".join(message.split())
    device = (re.search(r"/dev/\w+", message) or [""])[0]
    for pattern, sentence in _REMEDIES.get(system, ()):
        if re.search(pattern, told, re.IGNORECASE):
            return sentence.format(device=device, modprobe=_MODPROBE, reload=v4l2.reload())
    return f"the virtual camera cannot be used ({told}); `understudy doctor` looks for the cause"


_REMEDIES: dict[str, tuple[tuple[str, str], ...]] = {
    "Linux": (
        (r"No v4l2 loopback device found", "there is no virtual camera yet: type {modprobe}"),
        (r"does not exist", "there is no device {device}: name another with --device, or type {modprobe}"),
        (
            r"could not be opened.*(permission|denied)",
            "{device} may not be opened: sudo usermod -aG video $USER, then log in again",
        ),
        (
            r"(busy|could not be opened|VIDIOC_S_FMT|already in use)",
            "the virtual camera {device} is in use, or keeps the size of the last program: close what shows it "
            "(browser, call, another Understudy), or reload it: {reload}",
        ),
        (
            r"not a (V4L2|video output) device|capabilities",
            "{device} is not a virtual camera that takes pictures: name another with --device, or type {modprobe}",
        ),
    ),
    "Windows": (
        (
            r"obs.*(not (found|installed|registered)|regist)",
            "no virtual camera is installed: install OBS Studio (obsproject.com) or Unity Capture, then start again",
        ),
        (
            r"(already|in use|started|busy)",
            "the OBS Virtual Camera is in use: stop it in OBS (Stop Virtual Camera), or install Unity Capture for a "
            "second one and set camera.backend = 'unitycapture'",
        ),
        (
            r"unity",
            "Unity Capture does not answer: run its Install.bat as administrator, then restart the calling program",
        ),
    ),
    "Darwin": (
        (
            r"(not (found|installed)|no such|unable to find)",
            "no virtual camera is installed: install OBS 30 or newer, start its virtual camera once, allow the "
            "extension in System Settings, stop it, then start again",
        ),
        (
            r"(already|in use|busy|stream)",
            "the OBS Virtual Camera is in use or not allowed yet: stop it in OBS, and allow the extension in System "
            "Settings > General > Login Items & Extensions",
        ),
    ),
}
