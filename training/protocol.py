"""Which frames of whose clips become photos and which drive: the protocol of every evaluation of avatars.

Photos: of each clip the first 40 %, where at least 2 s and a stretch remain after it; shorter clips go to photos and
to driving in turn. Of 40 frames spread evenly over these, those that pass enrolment's own check (`training.photos`:
alone and against each other) are thinned to eight by enrolment's own rule (`training.enrol.spread`). Clips of one
person may show different clothes and rooms, and an avatar wears one: `--clips 1` keeps to one occasion.
`--shots 1,8,32` (Zakharov et al. 2019, table 1): fewer than eight are the first of the eight; more are chosen in the
same way from three times as many frames, and somebody whose clips do not give them is missing from that table only.
Driving: stretches of 30 frames in a row, spread evenly over all frames that are at least 2 s away from every photo
of the same clip. All of a stretch is tracked and drawn in order, as in a call; every fifth frame after the first ten
is measured. A person without eight photos or without a stretch is left out and counted.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from engine import geometry
from engine.avatar import Avatar
from engine.config import Config
from engine.frames import Face, Frame
from engine.motion import NeutralFinder, Retarget
from engine.references import Ceiling, front_reference
from engine.renderer import avatar_face
from engine.tracker import Tracker, canonical_face, fit_pose
from training import photos
from training.enrol import MAX_PHOTOS, spread
from training.measures import Floats
from training.photos import CheckedPhoto

Mask = NDArray[np.bool_]

SIZE_PX = 256
APART_S = 2.0
PHOTO_SHARE = 0.4
CANDIDATES = 40
STRETCH = 30
MEASURED = tuple(range(9, STRETCH, 5))
"""Which frames of a stretch are measured; those before them let the choice of references settle."""


def photo_pools(times: Sequence[Floats]) -> list[NDArray[np.int64]]:
    """For each clip (the times of its frames, seconds) the frames that may become photos."""
    pools: list[NDArray[np.int64]] = []
    short = 0
    for stamps in times:
        everything = np.arange(len(stamps))
        early = everything[stamps < stamps[0] + PHOTO_SHARE * (stamps[-1] - stamps[0])] if len(stamps) else everything
        if len(early) and (stamps >= stamps[early[-1]] + APART_S).sum() >= STRETCH:
            pools.append(early)
        else:
            pools.append(everything if short % 2 == 0 else everything[:0])
            short += 1
    return pools


def drivable(times: Sequence[Floats], taken: Sequence[tuple[int, int]]) -> list[Mask]:
    """For each clip the frames at least `APART_S` away from every photo `(clip, frame)` taken of that clip."""
    free: list[Mask] = []
    for clip, stamps in enumerate(times):
        photo_times = np.array([stamps[number] for where, number in taken if where == clip], np.float64)
        free.append((np.abs(stamps[:, None] - photo_times) >= APART_S).all(1))
    return free


def stretches(free: Sequence[Mask], frames: int) -> list[tuple[int, int]]:
    """`(clip, first frame)` of enough stretches to measure `frames` frames, evenly spread; all when there are fewer."""
    found: list[tuple[int, int]] = []
    for clip, mask in enumerate(free):
        start = 0
        for number, allowed in enumerate(mask):
            if not allowed:
                start = number + 1
            elif number - start + 1 == STRETCH:
                found.append((clip, start))
                start = number + 1
    wanted = min(-(-frames // len(MEASURED)), len(found))
    return [found[int((index + 0.5) * len(found) / wanted)] for index in range(wanted)]


def read_index(folder: Path, split: str) -> dict[str, list[Path]]:
    """person -> clips, the longest first. Raises `ValueError` where there is nobody, `OSError` without an index."""
    people: dict[str, list[tuple[int, Path]]] = defaultdict(list)
    with (folder / "index.tsv").open(newline="", encoding="utf-8") as index:
        for row in csv.DictReader(index, delimiter="\t"):
            if row["split"] == split:
                people[row["person"]].append((-int(row["frames"]), folder / row["clip"]))
    if not people:
        raise ValueError(f"{folder / 'index.tsv'} has nobody in the split {split!r}")
    return {person: [clip for _, clip in sorted(clips)] for person, clips in people.items()}


def _decode(clip: Path) -> Iterator[tuple[float, av.VideoFrame]]:
    with av.open(str(clip)) as container:
        rate = float(container.streams.video[0].average_rate or 25)
        for number, picture in enumerate(container.decode(video=0)):
            yield (number / rate if picture.time is None else float(picture.time)), picture


def frame_times(clip: Path) -> Floats:
    """`[frames]` seconds."""
    return np.array([time_s for time_s, _ in _decode(clip)], np.float64)


def read_frames(clip: Path, numbers: Sequence[int]) -> dict[int, Frame]:
    """Those frames, at `SIZE_PX`."""
    wanted = set(numbers)
    found: dict[int, Frame] = {}
    for number, (time_s, picture) in enumerate(_decode(clip)):
        if number in wanted:
            rgb = np.asarray(picture.to_ndarray(format="rgb24"), np.uint8)
            if rgb.shape[:2] != (SIZE_PX, SIZE_PX):
                rgb = np.asarray(cv2.resize(rgb, (SIZE_PX, SIZE_PX), interpolation=cv2.INTER_AREA), np.uint8)
            found[number] = Frame(rgb, time_s)
            if len(found) == len(wanted):
                break
    return found


@dataclass(frozen=True, slots=True)
class Taken:
    """A photo and where it was taken from."""

    clip: int
    number: int
    photo: CheckedPhoto


def take_photos(
    clips: Sequence[Path],
    pools: Sequence[NDArray[np.int64]],
    tracker: photos.FaceFinder,
    embedder: photos.Embedder,
    count: int = MAX_PHOTOS,
    candidates: int = CANDIDATES,
) -> list[Taken]:
    """Up to `count` photos as enrolment would choose them from `candidates` that were offered."""
    offered = [(clip, int(number)) for clip, pool in enumerate(pools) for number in pool]
    if not offered:
        return []
    candidates = min(candidates, len(offered))
    picked = [offered[int((index + 0.5) * len(offered) / candidates)] for index in range(candidates)]
    checked: list[CheckedPhoto] = []
    places: dict[str, tuple[int, int]] = {}
    for clip in sorted({clip for clip, _ in picked}):
        for number, frame in read_frames(clips[clip], [number for where, number in picked if where == clip]).items():
            name = f"clip {clip} frame {number}"
            places[name] = (clip, number)
            checked.append(photos.check(frame.rgb, tracker, name))
    usable = [photo for photo in photos.compare(checked, embedder) if photo.verdict != "refused"]
    return [Taken(*places[photo.name], photo) for photo in spread(usable, count)] if usable else []


@dataclass(frozen=True, slots=True)
class Stretch:
    """Frames in a row and the face in each; the faces' times run on from stretch to stretch, with a pause between."""

    frames: list[Frame]
    faces: list[Face]


def track(
    clips: Sequence[Path], chosen: Sequence[tuple[int, int]], config: Config, clock_s: float = 0.0
) -> list[Stretch]:
    """The stretches in which a face is tracked throughout."""
    tracked: list[Stretch] = []
    for clip, start in chosen:
        frames = [frame for _, frame in sorted(read_frames(clips[clip], range(start, start + STRETCH)).items())]
        with Tracker.from_config(config.tracker) as tracker:
            faces = [face for frame in frames if isinstance(face := tracker.track(frame), Face)]
        if len(faces) < STRETCH:
            continue
        shift_s = clock_s + 1.0 - frames[0].time_s
        faces = [replace(face, time_s=face.time_s + shift_s) for face in faces]
        clock_s = faces[-1].time_s
        tracked.append(Stretch(frames, faces))
    return tracked


def drivers(name: str, order: Sequence[str], count: int) -> list[str]:
    """The `count` people after `name` in `order`, which goes round; never `name`."""
    place = order.index(name)
    return [order[(place + step) % len(order)] for step in range(1, min(count, len(order) - 1) + 1)]


# --- the product's motion ---


class Relative:
    """The driver's motion on the avatar's neutral face, as `engine.renderer.Renderer` has it, as a `Face` to draw.

    The neutral face is the best among `seen`, or `neutral`, whatever was seen.
    """

    def __init__(self, avatar: Avatar, seen: Sequence[Face], neutral: Face | None = None) -> None:
        finder = NeutralFinder()
        if neutral is not None:
            finder.pin(neutral)
        finder.prime(list(seen))
        self._retarget = Retarget(avatar_face(avatar), finder)
        points = [geometry.to_crop_units(one.points, one.rgb.shape[0]) for one in avatar.photos]
        front = front_reference(points)
        self._ceiling = Ceiling(avatar.references[front].matte, points[front])
        self._canonical = canonical_face()

    def __call__(self, face: Face) -> Face:
        points = self._ceiling(self._retarget(face)).copy()
        points[:, :2] += 1
        points *= np.float32(SIZE_PX / 2)
        rotation, translation, scale = fit_pose(points, self._canonical)
        return replace(
            face, points=points, rotation=rotation, translation=translation, scale=scale, size_px=(SIZE_PX, SIZE_PX)
        )
