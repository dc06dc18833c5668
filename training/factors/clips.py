"""Shards with sound -> what each stage learns from: pictures, disturbed drivers, sounds in and out of step, composites.

`python -m training.prepare SOURCE --out SHARDS --every 1 --sound` makes such shards. Only their names, people and
lengths are held in memory; a clip is opened when it is drawn from.
"""

from __future__ import annotations

import functools
import io
import json
import logging
import tarfile
import wave
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from engine.frames import Image, Points
from training.episodes import Shot
from training.factors.audio import Sound, StoredSound, heard
from training.factors.reader import pose_numbers, readings
from training.networks.face import alignment
from training.shards import SOUND_HZ, VERSION, NewerShardError, read_shard

logger = logging.getLogger(__name__)

LEAST_FRAMES = 24
"""A clip with fewer is left out: about a second at 25 a second."""
OUT_OF_STEP_S = 0.2
"""Sounds nearer than this are not told apart: they share most of what is heard."""


# --- clips --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Clip:
    """A clip with its frames' moments, and its sound where it has one."""

    name: str
    frames: Sequence[Shot]
    times_s: NDArray[np.float64]
    sound: Sound | None = None

    @property
    def count(self) -> int:
        return len(self.frames)

    @property
    def sounded(self) -> bool:
        return self.sound is not None

    def open(self) -> Self:
        return self


class Source(Protocol):
    """A clip that may still have to be opened."""

    @property
    def name(self) -> str: ...

    @property
    def count(self) -> int: ...

    @property
    def sounded(self) -> bool: ...

    def open(self) -> Clip: ...


@dataclass(frozen=True, slots=True)
class ShardClip:
    """A clip in its shard."""

    name: str
    path: Path
    split: str
    count: int
    sounded: bool

    def open(self) -> Clip:
        return _opened(self)


@functools.lru_cache(maxsize=64)
def _opened(clip: ShardClip) -> Clip:
    _, frames = read_shard(clip.path, clip.split, clip.name)
    sound = None
    with tarfile.open(clip.path) as tar:

        def read(name: str) -> bytes:
            content = tar.extractfile(name)
            assert content is not None  # these are files: `find_clips` saw them
            return content.read()

        times = [json.loads(read(f"{frame.number:05d}.json"))["time_s"] for frame in frames]
        if clip.sounded:
            member = tar.getmember("sound.wav")
            with wave.open(io.BytesIO(read("sound.wav"))) as stored:
                kind = (stored.getnchannels(), stored.getsampwidth(), stored.getframerate())
                if kind != (1, 2, SOUND_HZ):
                    raise ValueError(f"{clip.path} has sound of {kind}, not mono, 16 bit, {SOUND_HZ} Hz: prepare again")
                length = stored.getnframes()
            from_s = json.loads(read("clip.json"))["sound_from_s"]
            sound = StoredSound(clip.path, member.offset_data + member.size - 2 * length, length, from_s)
    return Clip(clip.name, frames, np.array(times), sound)


def find_clips(folder: Path, split: str) -> dict[str, list[ShardClip]]:
    """person -> clips of that split with enough frames that follow one another.

    Raises `ValueError` when the folder has none, or a shard is damaged or of a newer format.
    """
    people: dict[str, list[ShardClip]] = {}
    for path in sorted(folder.rglob("*.tar")):
        try:
            with tarfile.open(path) as tar:
                names = set(tar.getnames())
                content = tar.extractfile("clip.json")
                about = json.loads(content.read()) if content is not None else {}
            if about.get("version", 1) > VERSION:
                raise NewerShardError(path, about["version"])
            numbers = sorted(int(name[:-4]) for name in names if name.endswith(".jpg"))
            timed = all(f"{number:05d}.json" in names for number in numbers)
            following = len(numbers) > 1 and float(np.median(np.diff(numbers))) == 1
            if about["split"] == split and len(numbers) >= LEAST_FRAMES and timed and following:
                name = path.relative_to(folder).as_posix().removesuffix(".tar")
                clip = ShardClip(name, path, split, len(numbers), "sound.wav" in names)
                people.setdefault(about["person"], []).append(clip)
        except NewerShardError as error:
            raise ValueError(str(error)) from error
        except (tarfile.TarError, OSError, EOFError, KeyError, TypeError, ValueError) as error:
            why = " ".join(str(error).split())
            raise ValueError(
                f"{path} is damaged ({why}): delete it and run python -m training.prepare again"
            ) from error
    if not people:
        raise ValueError(
            f"{folder} holds no clip of the split {split!r} with {LEAST_FRAMES} frames that follow one another: "
            f"run python -m training.prepare SOURCE --out {folder} --every 1 --sound"
        )
    return people


# --- pictures -----------------------------------------------------------------------------------------------


def sized(rgb: Image, size_px: int) -> Image:
    if rgb.shape[0] == size_px:
        return rgb
    way = cv2.INTER_AREA if rgb.shape[0] > size_px else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(rgb, (size_px, size_px), interpolation=way), np.uint8)


def picture(rgb: Image) -> Tensor:
    """`[S, S, 3]` uint8 -> `[3, S, S]` in -1..1."""
    return torch.from_numpy(np.ascontiguousarray(rgb.transpose(2, 0, 1)).astype(np.float32) / 127.5 - 1)


@dataclass(frozen=True, slots=True)
class Disturbance:
    """How a driver's picture is made to look like somebody else who does the same (section 3.2).

    Colour, blur and sharpness, size and place, and a smooth warp that stretches the head: what is left is the motion.
    Drawn once, put on as many frames as one likes.
    """

    gain: NDArray[np.float32]
    offset: float
    sharpness: float
    """Below 0 blur, above it unsharp masking; in -1..1."""
    zoom: tuple[float, float]
    """Of width and height, one by one: faces get longer or rounder."""
    shift: tuple[float, float]
    warp: NDArray[np.float32]
    """`[4, 4, 2]`: places moved by, in shares of the side, at a coarse grid and smoothly between."""

    @classmethod
    def drawn(cls, rng: np.random.Generator) -> Self:
        size = float(np.exp(rng.uniform(-0.15, 0.15)))
        stretch = float(np.exp(rng.uniform(-0.12, 0.12)))
        return cls(
            gain=(np.exp(rng.uniform(-0.25, 0.25)) * np.exp(rng.uniform(-0.15, 0.15, 3))).astype(np.float32),
            offset=float(rng.uniform(-20, 20)),
            sharpness=float(rng.uniform(-1, 1)),
            zoom=(size * stretch, size / stretch),
            shift=(float(rng.uniform(-0.04, 0.04)), float(rng.uniform(-0.04, 0.04))),
            warp=rng.uniform(-0.025, 0.025, (4, 4, 2)).astype(np.float32),
        )

    def __call__(self, rgb: Image) -> Image:
        side = rgb.shape[0]
        line = (np.arange(side, dtype=np.float32) + 0.5) / side - 0.5
        x, y = np.meshgrid(line / self.zoom[0] - self.shift[0], line / self.zoom[1] - self.shift[1])
        bent = cv2.resize(self.warp, (side, side), interpolation=cv2.INTER_CUBIC)
        columns, rows = ((one + 0.5) * side - 0.5 for one in (x + bent[..., 0], y + bent[..., 1]))
        seen = cv2.remap(
            rgb,
            columns.astype(np.float32),
            rows.astype(np.float32),
            cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REFLECT_101,
        ).astype(np.float32)
        blurred = cv2.GaussianBlur(seen, (0, 0), 0.3 + 1.2 * abs(self.sharpness) * side / 256)
        seen = blurred if self.sharpness < 0 else seen + self.sharpness * (seen - blurred)
        return np.clip(seen * self.gain + self.offset, 0, 255).astype(np.uint8)


_EYE_SKIN = (
    [226, 31, 230, 232, 244, 243, 56, 28, 27, 247],
    [446, 261, 450, 452, 464, 463, 286, 258, 257, 467],
)
"""Rings of skin around each eye, inside of the brow."""


def composite(face: Image, face_points: Points, eyes: Image, eyes_points: Points) -> tuple[Image, NDArray[np.float32]]:
    """The eyes of one frame in the face of another (section 3.3, eye gaze and blink) -> the picture and, `[S, S]` in
    0..1, where it shows the former.

    Pictures of one size, points in pixels of them. Each eye is moved by a similarity that brings the corners of its
    lids to where the face has its own: gaze and lids go along, head pose does not.
    """
    side = face.shape[0]
    drawn = face.astype(np.float32)
    shown = np.zeros((side, side), np.float32)
    for number, corners in enumerate(((33, 133), (362, 263))):
        here, there = (points[list(corners), :2].astype(np.float64) for points in (face_points, eyes_points))
        a, b = (complex(*(one[1] - one[0])) for one in (there, here))
        turn = b / a if a else 1.0
        linear = np.array([[turn.real, -turn.imag], [turn.imag, turn.real]])
        offset = here.mean(0) - linear @ there.mean(0)
        moved = cv2.warpAffine(
            eyes,
            np.column_stack([linear, offset]),
            (side, side),
            flags=cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REFLECT_101,
        )
        # Where either of the two frames has its eye: nothing of the face's own lids may remain.
        ring = np.concatenate(
            [face_points[_EYE_SKIN[number], :2], eyes_points[_EYE_SKIN[number], :2] @ linear.T + offset]
        )
        mask = np.zeros((side, side), np.uint8)
        cv2.fillConvexPoly(mask, cv2.convexHull(np.round(ring).astype(np.int32)), [255], cv2.LINE_AA)
        soft = cv2.GaussianBlur(mask, (0, 0), side / 128).astype(np.float32)[..., None] / 255
        drawn = drawn * (1 - soft) + moved.astype(np.float32) * soft
        shown = np.maximum(shown, soft[..., 0])
    return np.clip(np.round(drawn), 0, 255).astype(np.uint8), shown


# --- episodes -----------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Sketch:
    """Stage 1 and the face reader: K pictures of a person, one more to be drawn, and its disturbed likeness."""

    pictures: Tensor
    """`[K, 3, S, S]` in -1..1."""
    target: Tensor
    """`[3, S, S]`"""
    driver: Tensor
    """`[3, S, S]`: the target, disturbed."""
    placed: Tensor
    """`[2, 3]`: where the target's face lies (`training.networks.face.alignment`)."""
    readings: Tensor
    """`[R]`: what the tracker says of the target (`training.factors.reader.readings`)."""


@dataclass(slots=True)
class Steps:
    """Stage 2: W moments of one clip, out of step with one another."""

    frames: Tensor
    """`[W, 3, S, S]`"""
    sounds: Tensor
    """`[W, 1, MEL_BANDS, COLUMNS]`: of the same moments."""
    poses: Tensor
    """`[W, 6]`: `pose_numbers`."""
    composites: Tensor
    """`[W, 3, S, S]`: frame w with the eyes of frame w + 1, the last with those of the first."""


@dataclass(slots=True)
class Moment:
    """Stage 3: a frame in its window, the sound of its moment, and pictures of the person from all of the clip."""

    pictures: Tensor
    """`[K, 3, S, S]`"""
    window: Tensor
    """`[W, 3, S, S]`: disturbed, all alike; the middle one is the target."""
    target: Tensor
    """`[3, S, S]`: as it is."""
    sound: Tensor
    """`[1, MEL_BANDS, COLUMNS]`"""
    by_sound: Tensor
    """`[]`: 1 where the lips are to come from the sound, 0 from the picture."""
    placed: Tensor
    """`[2, 3]`"""


class _Drawn:
    """Endless and numbered: episode n depends on the seed and on n alone."""

    def __init__(self, people: Mapping[str, Sequence[Source]], size_px: int, seed: int, sounded: bool) -> None:
        self.people = [
            usable
            for name in sorted(people)
            if (usable := [clip for clip in people[name] if clip.sounded or not sounded])
        ]
        if not self.people:
            raise ValueError("no clip here has sound: run python -m training.prepare with --every 1 --sound")
        self.size_px, self.seed = size_px, seed

    def rng(self, number: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, number])

    def clip(self, rng: np.random.Generator) -> Clip:
        """Everybody as often as anybody else."""
        clips = self.people[int(rng.integers(len(self.people)))]
        return clips[int(rng.integers(len(clips)))].open()

    def rgb(self, shot: Shot) -> Image:
        return sized(shot.rgb(), self.size_px)

    def points(self, shot: Shot, side: int) -> Points:
        """In pixels of what `rgb` returns."""
        return shot.points * np.float32(self.size_px / side)


class Sketches(_Drawn, Dataset[Sketch]):
    """Episodes of stage 1."""

    def __init__(self, people: Mapping[str, Sequence[Source]], shots: int, size_px: int, seed: int = 0) -> None:
        super().__init__(people, size_px, seed, sounded=False)
        self.shots = shots

    def __getitem__(self, number: int) -> Sketch:
        rng = self.rng(number)
        clip = self.clip(rng)
        target, *support = (clip.frames[index] for index in rng.permutation(clip.count)[: self.shots + 1])
        whole = target.rgb()
        points = self.points(target, whole.shape[0])
        rgb = sized(whole, self.size_px)
        return Sketch(
            pictures=torch.stack([picture(self.rgb(shot)) for shot in support]),
            target=picture(rgb),
            driver=picture(Disturbance.drawn(rng)(rgb)),
            placed=torch.from_numpy(alignment(points, self.size_px)),
            readings=torch.from_numpy(readings(points, self.size_px)),
        )


class Speech(_Drawn, Dataset[Steps]):
    """Episodes of stage 2; clips without sound are left out."""

    def __init__(self, people: Mapping[str, Sequence[Source]], moments: int, size_px: int, seed: int = 0) -> None:
        super().__init__(people, size_px, seed, sounded=True)
        self.moments = moments

    def __getitem__(self, number: int) -> Steps:
        rng = self.rng(number)
        clip = self.clip(rng)
        assert clip.sound is not None
        chosen = self.choose(clip.times_s, rng)
        shots = [clip.frames[index] for index in chosen]
        whole = [shot.rgb() for shot in shots]
        frames = [sized(rgb, self.size_px) for rgb in whole]
        points = [self.points(shot, whole[0].shape[0]) for shot in shots]
        following = [*range(1, len(shots)), 0]
        mixed = [composite(frames[a], points[a], frames[b], points[b])[0] for a, b in enumerate(following)]
        return Steps(
            frames=torch.stack([picture(rgb) for rgb in frames]),
            sounds=torch.stack([heard(clip.sound, float(clip.times_s[index])) for index in chosen]),
            poses=torch.from_numpy(np.stack([pose_numbers(one, self.size_px) for one in points])),
            composites=torch.stack([picture(rgb) for rgb in mixed]),
        )

    def choose(self, times_s: NDArray[np.float64], rng: np.random.Generator) -> list[int]:
        """W frames, every two of them out of step; in short clips as far as there is room, and then some nearer."""
        chosen: list[int] = []
        waiting = [int(index) for index in rng.permutation(len(times_s))]
        apart_s = OUT_OF_STEP_S
        while len(chosen) < self.moments:
            left: list[int] = []
            for index in waiting:
                near = any(abs(times_s[index] - times_s[other]) < apart_s for other in chosen)
                if near or len(chosen) == self.moments:
                    left.append(index)
                else:
                    chosen.append(index)
            if not left and len(chosen) < self.moments:
                raise ValueError(f"a clip of {len(times_s)} frames has no {self.moments} different ones")
            waiting, apart_s = left, apart_s / 2
        return chosen


class Moments(_Drawn, Dataset[Moment]):
    """Episodes of stage 3; clips without sound are left out."""

    def __init__(
        self, people: Mapping[str, Sequence[Source]], shots: int, window: int, size_px: int, seed: int = 0
    ) -> None:
        super().__init__(people, size_px, seed, sounded=True)
        if window % 2 == 0 or window > LEAST_FRAMES:
            raise ValueError(f"window = {window} must be odd and at most {LEAST_FRAMES}")
        self.shots, self.window = shots, window

    def __getitem__(self, number: int) -> Moment:
        rng = self.rng(number)
        clip = self.clip(rng)
        assert clip.sound is not None
        half = self.window // 2
        middle = int(rng.integers(half, clip.count - half))
        support = rng.permutation(np.delete(np.arange(clip.count), middle))[: self.shots]
        target = clip.frames[middle]
        disturbed = Disturbance.drawn(rng)
        whole = [shot.rgb() for shot in clip.frames[middle - half : middle + half + 1]]
        seen = [sized(rgb, self.size_px) for rgb in whole]
        return Moment(
            pictures=torch.stack([picture(self.rgb(clip.frames[index])) for index in support]),
            window=torch.stack([picture(disturbed(rgb)) for rgb in seen]),
            target=picture(seen[half]),
            sound=heard(clip.sound, float(clip.times_s[middle])),
            by_sound=torch.tensor(float(rng.random() < 0.5)),
            placed=torch.from_numpy(alignment(self.points(target, whole[half].shape[0]), self.size_px)),
        )
