"""Clips for tests, made on the spot: an invented person of the demo in front of a camera that does not exist."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction
from functools import cache
from pathlib import Path

import av
import cv2
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray
from PIL import Image as Pillow

from engine.frames import Image

DEMO = Path(__file__).parents[1] / "plugin" / "assets" / "demo"
SAMPLE_RATE = 48_000


@cache
def demo_photo(person: str, number: int = 1) -> Image:
    """Photo `number` of the demo's `person` (mara, jun), `[720, 720, 3]`, read-only."""
    with Pillow.open(DEMO / person / f"{number:02d}.jpg") as opened:
        return np.asarray(opened.convert("RGB"))


def person_frames(
    seconds: float = 2.0,
    fps: int = 25,
    size_px: tuple[int, int] = (640, 480),
    *,
    person: str = "mara",
    beside: str | None = None,
    away_s: tuple[float, float] | None = None,
    still: bool = False,
) -> Iterator[Image]:
    """Frames `[H, W, 3]` of somebody who sways, comes closer, turns and opens the mouth a little.

    `beside` puts a second person to the right; from `away_s[0]` to `away_s[1]` nobody is there; `still` keeps the
    first frame. Odd sizes are fine here; it is some encoders that refuse them (see `write_clip`).
    """
    width, height = size_px
    people = [person] if beside is None else [person, beside]
    empty = np.full((height, width, 3), demo_photo(person)[8, 8], np.uint8)
    for index in range(round(seconds * fps)):
        time_s = 0.0 if still else index / fps
        picture = empty.copy()
        if away_s is None or not away_s[0] <= index / fps < away_s[1]:
            for place, name in enumerate(people):
                left, right = width * place // len(people), width * (place + 1) // len(people)
                picture[:, left:right] = _seen(demo_photo(name), (right - left, height), time_s + place / 2)
        yield picture


def _seen(photo: Image, size_px: tuple[int, int], time_s: float) -> Image:
    """The photo as the camera sees it at `time_s`: the mouth and head warped, then swayed, tilted and scaled."""
    width, height = size_px
    phase = 2 * np.pi * time_s
    scale = min(width, height) / len(photo) * (1 + 0.06 * np.sin(phase * 0.4))
    tilt = np.radians(4 * np.sin(phase * 0.5))
    turn = 0.10 * np.sin(phase * 0.3)
    mouth = 0.5 - 0.5 * np.cos(phase * 2)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    x -= width / 2 * (1 + 0.06 * np.sin(phase * 0.35))
    y -= height / 2
    across = (x * np.cos(tilt) + y * np.sin(tilt)) / (scale * len(photo))
    down = (y * np.cos(tilt) - x * np.sin(tilt)) / (scale * len(photo))
    # The middle of the face is nearest to the camera and moves most when the head turns; the jaw drops.
    across = across - turn * np.exp(-(across**2 + (down - 0.1) ** 2) / 0.05)
    down = down - 0.04 * mouth * np.exp(-(across**2 / 0.02 + (down - 0.30) ** 2 / 0.006))
    columns, rows = (across + 0.5) * len(photo), (down + 0.5) * len(photo)
    return cv2.remap(
        photo, columns.astype(np.float32), rows.astype(np.float32), cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    ).astype(np.uint8)


def tone(seconds: float, sample_rate: int = SAMPLE_RATE) -> NDArray[np.float32]:
    """A tone that swells twice a second, as speech does, `[n]` in -0.3..0.3."""
    time_s = np.arange(round(seconds * sample_rate)) / sample_rate
    return (0.3 * np.sin(2 * np.pi * 220 * time_s) * np.sin(2 * np.pi * time_s) ** 2).astype(np.float32)


def write_clip(path: Path, frames: Iterable[Image], fps: int = 25, audio: bool = False) -> Path:
    """Encodes `frames` (all of one size) to `path`; `audio` adds `tone` for as long as the picture lasts.

    The suffix chooses the container. H.264 takes pictures of odd width or height as 4:4:4 only, so those are.
    """
    with av.open(str(path), "w") as container:
        picture: VideoStream | None = None
        sound: AudioStream | None = None
        count = 0
        for rgb in frames:
            if picture is None:
                height, width = rgb.shape[:2]
                added = container.add_stream("libx264", rate=fps, options={"preset": "ultrafast", "crf": "18"})
                assert isinstance(added, VideoStream)
                picture = added
                picture.width, picture.height = width, height
                picture.pix_fmt = "yuv444p" if width % 2 or height % 2 else "yuv420p"
                if audio:
                    added = container.add_stream("aac", rate=SAMPLE_RATE, layout="mono")
                    assert isinstance(added, AudioStream)
                    sound = added
            frame = VideoFrame.from_ndarray(np.ascontiguousarray(rgb), "rgb24")
            frame.pts, frame.time_base = count, Fraction(1, fps)
            container.mux(picture.encode(frame.reformat(format=picture.pix_fmt)))
            count += 1
        if picture is None:
            raise ValueError(f"{path} would have no frames.")
        container.mux(picture.encode(None))
        if sound is not None:
            samples = tone(count / fps)
            for start in range(0, len(samples), 1024):
                piece = AudioFrame.from_ndarray(samples[None, start : start + 1024], "fltp", "mono")
                piece.sample_rate, piece.pts, piece.time_base = SAMPLE_RATE, start, Fraction(1, SAMPLE_RATE)
                container.mux(sound.encode(piece))
            container.mux(sound.encode(None))
    return path


def person_clip(
    path: Path,
    seconds: float = 2.0,
    fps: int = 25,
    size_px: tuple[int, int] = (640, 480),
    *,
    audio: bool = False,
    person: str = "mara",
    beside: str | None = None,
    away_s: tuple[float, float] | None = None,
    still: bool = False,
) -> Path:
    """`person_frames` written by `write_clip`."""
    frames = person_frames(seconds, fps, size_px, person=person, beside=beside, away_s=away_s, still=still)
    return write_clip(path, frames, fps, audio)
