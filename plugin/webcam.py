"""First stage: a clip (and later a camera) becomes a stream of `Frame`, upright, RGB, with its own clock."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import av
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
