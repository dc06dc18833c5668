"""First stage: a clip or a camera becomes a stream of `Frame`, upright, RGB, each stamped with when it was taken."""

from __future__ import annotations

import logging
import os
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import av
import cv2
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError, InvalidDataError
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from engine.frames import Frame
from engine.upright import upright

log = logging.getLogger(__name__)

_STILL_FORMATS = ("image2", "_pipe")  # FFmpeg's names for a lone picture
_TEXT_CODECS = {"ansi", "bintext", "xbin", "idf"}  # FFmpeg would happily render a text file as a terminal
_PLAUSIBLE_FPS = (1.0, 250.0)


class Source(Protocol):
    """Anything that yields frames in order of time: a clip ends, a camera does not."""

    @property
    def fps(self) -> float: ...

    @property
    def size_px(self) -> tuple[int, int]: ...

    def __iter__(self) -> Iterator[Frame]: ...

    def close(self) -> None: ...


class Clip:
    """A video file. Iterating decodes it from the start, each time anew; only one frame is held.

    `time_s` counts from the start of the file (the earlier of picture and sound), so that sound
    copied from the same file stays in step. `size_px` is width and height as shown: rotation,
    mirroring and non-square pixels are already undone. A damaged or cut-off file yields what can be
    decoded; afterwards `trouble` says in one sentence what was missing (`None` when nothing was).
    Raises `ValueError` with one sentence for anything that cannot be played at all.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.trouble: str | None = None
        self._open_containers: list[InputContainer] = []
        if not self.path.exists():
            raise ValueError(f"there is no file {self.path}")
        if self.path.is_dir():
            raise ValueError(f"{self.path} is a folder, not a video")
        if self.path.stat().st_size == 0:
            raise ValueError(f"{self.path} is empty (0 bytes)")
        container, stream = self._open()
        with container:
            self.has_sound = len(container.streams.audio) > 0
            self._start_s = (container.start_time or 0) / av.time_base
            first = next(self._decode(container, stream), None)
            if first is None:
                raise ValueError(f"{self.path} holds no picture that can be decoded")
            height, width = upright(first, stream.sample_aspect_ratio).shape[:2]
            self.size_px: tuple[int, int] = (width, height)
            self.trouble = None
            declared_s = _declared_duration_s(container, stream)
            rate = float(stream.average_rate or stream.guessed_rate or 0)
            self._declared_count = stream.frames
        if declared_s is None or not _PLAUSIBLE_FPS[0] <= rate <= _PLAUSIBLE_FPS[1]:
            rate, declared_s, self._declared_count = self._scan(declared_s)
        self.fps = rate
        self.duration_s = declared_s
        self.frame_count = self._declared_count or max(1, round(declared_s * rate))

    def __iter__(self) -> Iterator[Frame]:
        self.trouble = None
        container, stream = self._open()
        self._open_containers.append(container)
        count, last_s = 0, -1.0
        try:
            for picture in self._decode(container, stream):
                time_s = count / self.fps if picture.time is None else picture.time - self._start_s
                if count and time_s <= last_s:  # broken stamps: keep the order the decoder gave
                    time_s = last_s + 1e-3
                yield Frame(upright(picture, stream.sample_aspect_ratio), time_s)
                count, last_s = count + 1, time_s
        finally:
            container.close()
            if container in self._open_containers:
                self._open_containers.remove(container)
        if self.trouble is None and self.duration_s - (last_s + 1 / self.fps) > max(0.5, 2 / self.fps):
            self.trouble = f"{self.path} is cut short: {last_s:.1f} s of {self.duration_s:.1f} s could be read"
        if self.trouble:
            log.warning(self.trouble)

    def close(self) -> None:
        """Close whatever an abandoned iteration left open; the clip can be iterated again."""
        while self._open_containers:
            self._open_containers.pop().close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self) -> tuple[InputContainer, VideoStream]:
        try:
            container = av.open(str(self.path), metadata_errors="replace")
        except FFmpegError as error:
            raise ValueError(
                f"{self.path} is not a video that can be read, or its end is missing ({error.strerror})"
            ) from error
        shown = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
        try:
            if not shown:
                raise ValueError(f"{self.path} has no picture stream")
            stream = shown[0]
            if any(mark in container.format.name for mark in _STILL_FORMATS):
                raise ValueError(f"{self.path} is a picture, not a video")
            if stream.codec_context is None or stream.codec_context.name in _TEXT_CODECS:
                raise ValueError(f"{self.path} is not a video")
        except ValueError:
            container.close()
            raise
        stream.thread_type = "AUTO"
        return container, stream

    def _decode(self, container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
        """Decoded pictures; damaged packets are passed over, and `trouble` says so."""
        packets = container.demux(stream)
        damaged = 0
        while True:
            try:
                packet = next(packets, None)
                if packet is None:
                    break
                pictures = packet.decode()
            except InvalidDataError:
                damaged += 1
                if damaged > 1000:
                    break
                continue
            except FFmpegError as error:
                self.trouble = f"{self.path} stops being readable part-way ({error.strerror})"
                return
            for picture in pictures:
                if isinstance(picture, VideoFrame):
                    yield picture
        if damaged:
            self.trouble = f"{self.path} is damaged: {damaged} of its packets could not be decoded"

    def _scan(self, declared_s: float | None) -> tuple[float, float, int]:
        """Rate, duration and count read from the packets, for files that do not declare them."""
        container, stream = self._open()
        with container:
            stamps: list[float] = []
            try:
                for packet in container.demux(stream):
                    if packet.size:
                        stamp = packet.pts if packet.pts is not None else packet.dts
                        base = packet.time_base or Fraction(1, 1)
                        stamps.append(float(stamp * base) if stamp is not None else float("nan"))
            except FFmpegError:
                pass  # what was read so far still tells the rate; iterating reports the damage
        steps = np.diff(np.sort(stamps))
        steps = steps[steps > 1e-4]
        rate = float(np.clip(1 / np.median(steps), *_PLAUSIBLE_FPS)) if steps.size else 25.0
        if declared_s is None:
            span_s = float(np.nanmax(stamps) - self._start_s) if steps.size else (len(stamps) - 1) / rate
            declared_s = max(0.0, span_s) + 1 / rate
        return rate, declared_s, len(stamps)


def _declared_duration_s(container: InputContainer, stream: VideoStream) -> float | None:
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    return container.duration / av.time_base if container.duration is not None else None


# --- live ---------------------------------------------------------------------------------------------------


class CameraLostError(OSError):
    """The camera cannot be opened, or gives no more pictures; the message says what to do. Opening again may help."""


class LiveSource(Protocol):
    """A camera. `open` and `read` raise `CameraLostError`; after `close` it can be opened again.

    `read` waits for the next frame, at most a few seconds; `Frame.time_s` is when it was taken, on the loop's clock.
    """

    @property
    def name(self) -> str: ...

    def open(self) -> None: ...

    def read(self) -> Frame: ...

    def close(self) -> None: ...


class ClipCamera:
    """A recorded clip that plays as if it were a camera: in real time, over and over."""

    def __init__(self, path: str | Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._clip = Clip(path)
        self.name = self._clip.path.name
        self._clock = clock
        self._frames: Iterator[Frame] | None = None
        self._began_s = 0.0

    def open(self) -> None:
        self._frames, self._began_s = iter(self._clip), self._clock()

    def read(self) -> Frame:
        if self._frames is None:
            raise CameraLostError(f"the clip {self.name} is not open")
        try:
            frame = next(self._frames, None)
            if frame is None:
                self._began_s += self._clip.duration_s
                self._frames = iter(self._clip)
                frame = next(self._frames, None)
        except ValueError as error:
            raise CameraLostError(str(error)) from error
        if frame is None:
            raise CameraLostError(f"the clip {self.name} holds no picture any more")
        due = self._began_s + frame.time_s
        wait_s = due - self._clock()
        if wait_s > 0:
            time.sleep(wait_s)
        elif wait_s < -1.0:  # the machine slept: go on from here
            self._began_s -= wait_s
            due = self._clock()
        return Frame(frame.rgb, due)

    def close(self) -> None:
        self._frames = None
        self._clip.close()


@dataclass(frozen=True, slots=True)
class CameraInfo:
    """A camera as the system lists it."""

    index: int
    name: str
    path: str
    """The device file, where the system has such."""
    virtual: bool
    """Whether it is a virtual camera, ours or another program's: never chosen by itself."""


_VIRTUAL_WORDS = ("virtual", "loopback", "obs", "unity", "dummy", "snap camera", "droidcam obs")
_BACKENDS = {"Linux": cv2.CAP_V4L2, "Windows": cv2.CAP_DSHOW, "Darwin": cv2.CAP_AVFOUNDATION}
_READ_S = 3
"""The longest a read waits for a picture before the camera counts as lost."""


def list_cameras() -> list[CameraInfo]:
    """Every camera that can be opened for reading, real ones first."""
    try:
        from cv2_enumerate_cameras import enumerate_cameras
    except ModuleNotFoundError as error:
        raise CameraLostError("looking up cameras needs one more part: pip install 'understudy[call]'") from error

    found = []
    for one in enumerate_cameras(_BACKENDS.get(platform.system(), cv2.CAP_ANY)):
        virtual = any(word in one.name.lower() for word in _VIRTUAL_WORDS) or _is_loopback(one.path)
        found.append(CameraInfo(one.index, one.name, one.path or "", virtual))
    return sorted(found, key=lambda one: one.virtual)


def _is_loopback(path: str | None) -> bool:
    """Whether a Linux device is v4l2loopback's, whatever its label says."""
    if not path or platform.system() != "Linux":
        return False
    return "virtual" in os.path.realpath(f"/sys/class/video4linux/{Path(path).name}")


def choose_camera(wanted: str, remembered: str = "", cameras: list[CameraInfo] | None = None) -> CameraInfo:
    """By name (or part of it), device file or number; else the remembered one, else the first real one.

    Raises `CameraLostError` when there is none such, with those there are.
    """
    there = list_cameras() if cameras is None else cameras
    if wanted:
        for matches in (
            lambda one: wanted in (one.path, str(one.index)) or wanted.lower() == one.name.lower(),
            lambda one: wanted.lower() in one.name.lower(),
        ):
            for one in there:
                if matches(one):
                    return one
        known = ", ".join(repr(one.name) for one in there) or "none at all"
        raise CameraLostError(f"there is no camera {wanted!r}; this machine has {known}")
    real = [one for one in there if not one.virtual]
    for one in real:
        if remembered and one.name == remembered:
            return one
    if real:
        return real[0]
    if there:
        known = ", ".join(repr(one.name) for one in there)
        raise CameraLostError(
            f"the only cameras here are virtual ones ({known}): plug one in, or name one with --camera"
        )
    raise CameraLostError("no camera was found: plug one in, or switch its privacy shutter or key on")


class Webcam:
    """A camera of this machine, through OpenCV, looked up by name at every opening: numbers change when one is plugged.

    Frames are RGB, about `size_px`, whatever the camera has nearest to it; `time_s` is the driver's own stamp where it
    gives one on the monotonic clock (V4L2), else when the picture arrived.
    """

    def __init__(
        self,
        wanted: str = "",
        size_px: tuple[int, int] = (640, 480),
        fps: float = 30.0,
        remembered: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._wanted, self._size_px, self._fps = wanted, size_px, fps
        self._remembered, self._clock = remembered, clock
        self._capture: cv2.VideoCapture | None = None
        self._stamped: bool | None = None
        self.name = wanted or remembered

    def open(self) -> None:
        self.close()
        chosen = choose_camera(self._wanted, self._remembered)
        os.environ.setdefault("OPENCV_VIDEOIO_V4L_SELECT_TIMEOUT", str(_READ_S))
        width, height = self._size_px
        capture = cv2.VideoCapture(chosen.index, _BACKENDS.get(platform.system(), cv2.CAP_ANY))
        if not capture.isOpened():
            capture.release()
            raise CameraLostError(
                f"the camera {chosen.name!r} cannot be opened: another program may hold it (close it there), "
                "or this one may not be allowed to use it (see the system's privacy settings)"
            )
        # 30 pictures a second of this size fit through USB 2 only as MJPEG; a camera without it keeps its own.
        capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*"MJPG"))
        capture.set(cv2.CAP_PROP_FRAME_WIDTH, width)
        capture.set(cv2.CAP_PROP_FRAME_HEIGHT, height)
        capture.set(cv2.CAP_PROP_FPS, self._fps)
        capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
        self._capture, self._stamped = capture, None
        self.name = self._remembered = chosen.name

    def read(self) -> Frame:
        if self._capture is None:
            raise CameraLostError("the camera is not open")
        good, picture = self._capture.read()
        now = self._clock()
        if not good or picture is None or picture.size == 0:
            raise CameraLostError(
                f"the camera {self.name!r} gives no picture: it was unplugged, or another program took it; "
                "waiting for it to come back"
            )
        stamp = self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1e3
        if self._stamped is None:  # the driver's clock is ours where its first stamp lies just before now
            self._stamped = 0.0 < now - stamp < 1.0
        taken = stamp if self._stamped and 0.0 <= now - stamp < 1.0 else now
        return Frame(np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), np.uint8), taken)

    def close(self) -> None:
        if self._capture is not None:
            self._capture.release()
            self._capture = None
