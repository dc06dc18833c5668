"""A shard: one clip of one head as an uncompressed tar, written by `training.prepare`, read by `training.episodes`.

The format, version 1, is WebDataset's: files that share a basename are one sample and lie side by side.

    00042.jpg    frame 42 of the video, square, RGB
    00042.npy    its landmarks, `[478, 3]` float32, pixels of the frame
    00042.png    its matte, 8 bit, 0 is background
    00042.json   {"time_s": seconds into the video, "visibility": 0..1}
    ...
    sound.wav    where wanted (`training.prepare --sound`): the clip's sound, mono, 16 bit, 16 kHz
    clip.json    the last: version, person, split, source, licence, frames, where the clip was cut from, and where
                 there is a sound `sound_from_s`: seconds into the video at which it begins

Old shards lack `00042.json` and the version, and are read all the same; who wants no sound passes it by. Nothing in a
shard depends on when, where or beside what it was made.
"""

from __future__ import annotations

import io
import json
import tarfile
import wave
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import cv2
import numpy as np
from numpy.typing import NDArray

from engine.frames import Image, Points

VERSION = 1
MATTE_PX = 128
SOUND_HZ = 16_000


@dataclass(frozen=True, slots=True, eq=False)
class KeptFrame:
    """A frame of a shard: its landmarks in memory, its pictures in the file until they are asked for."""

    clip: str
    number: int
    points: Points
    shard: Path
    jpeg_at: tuple[int, int]
    """Where in the shard, in bytes, and how many."""
    matte_at: tuple[int, int]

    def rgb(self) -> Image:
        bgr = cv2.imdecode(self._read(*self.jpeg_at), cv2.IMREAD_COLOR)
        return np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8)

    def matte(self, size_px: int) -> NDArray[np.uint8]:
        matte = cv2.imdecode(self._read(*self.matte_at), cv2.IMREAD_GRAYSCALE)
        return np.asarray(cv2.resize(matte, (size_px, size_px), interpolation=cv2.INTER_LINEAR), np.uint8)

    def _read(self, offset: int, size: int) -> NDArray[np.uint8]:
        return np.fromfile(self.shard, np.uint8, size, offset=offset)


class ShardWriter:
    """Writes beside `path`; `finish` gives the shard its name, and a shard without it never was.

    As a context manager it removes what was not finished.
    """

    def __init__(self, path: Path, about: Mapping[str, Any]) -> None:
        self.path, self.about, self.kept = path, about, 0
        path.parent.mkdir(parents=True, exist_ok=True)
        self._part = path.with_name(path.name + ".part")
        self._tar = tarfile.open(self._part, "w")  # noqa: SIM115

    def add(
        self, number: int, rgb: Image, points: Points, matte: NDArray[np.uint8], time_s: float, visibility: float
    ) -> None:
        """The frame `[S, S, 3]`, its landmarks in pixels of it, and its matte `[S, S]`."""
        small = cv2.resize(matte, (MATTE_PX, MATTE_PX), interpolation=cv2.INTER_AREA)
        array = io.BytesIO()
        np.save(array, points.astype(np.float32))
        seen = {"time_s": round(time_s, 4), "visibility": round(visibility, 3)}
        stem = f"{number:05d}"
        jpeg = cv2.imencode(".jpg", rgb[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])[1]
        self._add(f"{stem}.jpg", jpeg.tobytes())
        self._add(f"{stem}.npy", array.getvalue())
        self._add(f"{stem}.png", cv2.imencode(".png", small)[1].tobytes())
        self._add(f"{stem}.json", json.dumps(seen).encode())
        self.kept += 1

    def add_sound(self, samples: NDArray[np.int16], from_s: float) -> None:
        """`[n]` at `SOUND_HZ`, beginning `from_s` into the video; once, after the frames."""
        written = io.BytesIO()
        with wave.open(written, "wb") as sound:
            sound.setnchannels(1)
            sound.setsampwidth(2)
            sound.setframerate(SOUND_HZ)
            sound.writeframes(samples.astype("<i2").tobytes())
        self._add("sound.wav", written.getvalue())
        self.about = {**self.about, "sound_from_s": round(from_s, 4)}

    def close(self) -> None:
        """The last file of the shard; it still has to be named by `finish`."""
        about = {"version": VERSION, **self.about, "frames": self.kept}
        self._add("clip.json", json.dumps(about, ensure_ascii=False).encode())
        self._tar.close()

    def finish(self) -> None:
        """From here on the shard counts. `close` comes first."""
        self._part.replace(self.path)

    def _add(self, name: str, content: bytes) -> None:
        info = tarfile.TarInfo(name)
        info.size = len(content)
        self._tar.addfile(info, io.BytesIO(content))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tar.close()
        self._part.unlink(missing_ok=True)


def read_shard(path: Path, split: str, clip: str) -> tuple[str, list[KeptFrame]]:
    """Person and frames of one shard, in order; no frames when it belongs to another split.

    Raises `ValueError` (or what tarfile, json and numpy raise) when the shard is damaged.
    """
    with tarfile.open(path) as tar:
        parts = {member.name: member for member in tar.getmembers()}

        def part(name: str) -> tarfile.TarInfo:
            if name not in parts:
                raise ValueError(f"it lacks {name}")
            return parts[name]

        def read(name: str) -> bytes:
            content = tar.extractfile(part(name))
            if content is None:
                raise ValueError(f"its {name} is no file")
            return content.read()

        about = json.loads(read("clip.json"))
        if about.get("version", 1) > VERSION:
            raise NewerShardError(path, about["version"])
        frames: list[KeptFrame] = []
        if about["split"] == split:
            for stem in sorted((name[:-4] for name in parts if name.endswith(".jpg")), key=int):
                points = np.load(io.BytesIO(read(f"{stem}.npy")), allow_pickle=False)
                jpeg, matte = ((one.offset_data, one.size) for one in map(part, (f"{stem}.jpg", f"{stem}.png")))
                frames.append(KeptFrame(clip, int(stem), points, path, jpeg, matte))
        return about["person"], frames


class NewerShardError(Exception):
    """A shard of a format that this version does not know: nothing is wrong with the shard."""

    def __init__(self, path: Path, version: int) -> None:
        super().__init__(f"{path} has format {version}, this version reads up to {VERSION}: update Understudy")
