"""Clips of people the network never saw -> the tables: likeness, identity, landmarks, flicker, speed.

`python -m training.evaluate FOLDER --split test --out runs/evaluate` reads a folder of square head clips with an
`index.tsv` (`training.prepare`), enrols each person of the split from eight frames, drives the avatar with other
frames of the same person, and compares every picture with the frame that drove it. Simple methods (the nearest photo,
the whole head moved) are measured on the very same frames. Writes `evaluate.md`, `evaluate.json` (every person) and
strips of pictures to look at; the strips show whoever is in the clips.

The protocol
============
Photos: of each clip the first 40 %, where at least 2 s and a stretch remain after it; shorter clips go to photos and
to driving in turn. Of 40 frames spread evenly over these, those that pass enrolment's own check (`training.photos`:
alone and against each other) are thinned to eight by enrolment's own rule (`training.enrol.spread`). Clips of one
person may show different clothes and rooms, and an avatar wears one: `--clips 1` keeps to one occasion.
Driving: stretches of 30 frames in a row, spread evenly over all frames that are at least 2 s away from every photo
of the same clip. All of a stretch is tracked and drawn in order, as in a call; every fifth frame after the first ten
is measured. A person without eight photos or without a stretch is left out and counted.
Means: over a person's frames, then over people, each counting the same; intervals from 10 000 bootstrap draws of
people.
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import torch
from av.error import FFmpegError
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from engine import avatar as avatars
from engine import config as configs
from engine import geometry
from engine.avatar import MAX_REFERENCES, Avatar
from engine.base import Base, open_base
from engine.config import Config
from engine.frames import Face, Frame, Image, Points
from engine.renderer import Generator, Renderer, Stream
from engine.tracker import Tracker
from training import photos
from training.enrol import build, spread
from training.identity import ArcFace, SFace
from training.matte import Matter
from training.networks.perceptual import LPIPS
from training.photos import CheckedPhoto

logger = logging.getLogger(__name__)

Floats = NDArray[np.floating[Any]]
Mask = NDArray[np.bool_]

SIZE_PX = 256
APART_S = 2.0
PHOTO_SHARE = 0.4
CANDIDATES = 40
STRETCH = 30
MEASURED = tuple(range(9, STRETCH, 5))
"""Which frames of a stretch are measured; those before them let the choice of references settle."""

# --- the protocol ---


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
    clips: Sequence[Path], pools: Sequence[NDArray[np.int64]], tracker: photos.FaceFinder, embedder: photos.Embedder
) -> list[Taken]:
    """Up to eight photos as enrolment would choose them from 40 that were offered."""
    offered = [(clip, int(number)) for clip, pool in enumerate(pools) for number in pool]
    if not offered:
        return []
    count = min(CANDIDATES, len(offered))
    picked = [offered[int((index + 0.5) * len(offered) / count)] for index in range(count)]
    checked: list[CheckedPhoto] = []
    places: dict[str, tuple[int, int]] = {}
    for clip in sorted({clip for clip, _ in picked}):
        for number, frame in read_frames(clips[clip], [number for where, number in picked if where == clip]).items():
            name = f"clip {clip} frame {number}"
            places[name] = (clip, number)
            checked.append(photos.check(frame.rgb, tracker, name))
    usable = [photo for photo in photos.compare(checked, embedder) if photo.verdict != "refused"]
    return [Taken(*places[photo.name], photo) for photo in spread(usable, MAX_REFERENCES)] if usable else []


# --- the methods ---

Method = Callable[[Frame, Face], Image]
"""A driving frame and its face (time running on from call to call) -> a picture of its own, `[256, 256, 3]`."""


def true_frame(frame: Frame, face: Face) -> Image:
    """What the measures themselves cannot tell from perfect."""
    return frame.rgb


class NearestPhoto:
    """The photo whose landmarks lie nearest, as it is; `warped`: moved onto the driver by one similarity."""

    def __init__(self, taken: Sequence[CheckedPhoto], warped: bool) -> None:
        self._rgb = [photo.rgb for photo in taken if photo.rgb is not None]
        self._points = np.stack([photo.face.points for photo in taken if photo.face is not None])
        self._warped = warped

    def __call__(self, frame: Frame, face: Face) -> Image:
        apart = np.linalg.norm(self._points[..., :2] - face.points[:, :2], axis=-1).mean(-1)
        nearest = int(apart.argmin())
        rgb = self._rgb[nearest]
        if not self._warped:
            return rgb
        size = rgb.shape[0]
        target = geometry.to_crop_units(face.points, size)
        matrix = geometry.head_similarity(target, geometry.to_crop_units(self._points[nearest : nearest + 1], size))[0]
        # From crop units to pixel centres: u = (2 i + 1) / size - 1 on both sides.
        rim = 1 / size - 1
        matrix[:, 2] = (matrix[:, 2] + matrix[:, :2] @ np.array([rim, rim], np.float32) - rim) * (size / 2)
        way = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
        moved = cv2.warpAffine(rgb, matrix, (size, size), flags=way, borderMode=cv2.BORDER_REPLICATE)
        return np.asarray(moved, np.uint8)


class Shipped:
    """The engine as a call runs it."""

    def __init__(self, avatar: Avatar, base: Base, config: Config) -> None:
        self.renderer = Renderer(avatar, base, config)
        self.renderer.warm_up()

    def __call__(self, frame: Frame, face: Face) -> Image:
        return self.renderer.draw(face).rgb.copy()


class OwnBackground:
    """The same network and choice of references, its picture taken whole: nothing laid over the photo's background."""

    def __init__(self, generator: Generator) -> None:
        self._stream = Stream(generator)

    def __call__(self, frame: Frame, face: Face) -> Image:
        target = geometry.to_crop_units(face.points, face.size_px[0])
        return self._stream.draw(target, face.time_s)[0].copy()


TRUTH, NEAREST, WHOLE_HEAD = "the true frame", "nearest photo", "whole-head similarity"
UNTUNED, TUNED, OWN = "Understudy, not tuned", "Understudy", "Understudy, network's own background"
METHODS = (TRUTH, NEAREST, WHOLE_HEAD, UNTUNED, TUNED, OWN)


def methods(taken: Sequence[CheckedPhoto], base: Base, config: Config, about: dict[str, Any]) -> dict[str, Method]:
    """Every method for one person; what enrolment measured goes into `about`."""

    def enrolled(tune_s: float) -> Avatar:
        enrol = replace(config.enrol, tune_s=tune_s)
        avatar, _, tuning = build(list(taken), "evaluated", base, replace(config, enrol=enrol), lambda *_: None)
        if tuning is not None:
            about["tuning"] = {"steps": tuning.steps, "before": asdict(tuning.before), "after": asdict(tuning.after)}
        with tempfile.TemporaryDirectory() as folder:  # as a call gets it: through JPEG and float16
            path = Path(folder) / f"evaluated{avatars.SUFFIX}"
            avatars.save(avatar, path)
            return avatars.load(path)

    tuned = Shipped(enrolled(config.enrol.tune_s), base, config)
    return {
        TRUTH: true_frame,
        NEAREST: NearestPhoto(taken, warped=False),
        WHOLE_HEAD: NearestPhoto(taken, warped=True),
        UNTUNED: Shipped(enrolled(0.0), base, config),
        TUNED: tuned,
        OWN: OwnBackground(tuned.renderer.generator),
    }


# --- the measures ---

# fmt: off
SIXTY_EIGHT = [
    162, 234, 93, 58, 172, 136, 149, 148, 152, 377, 378, 365, 397, 288, 323, 454, 389, 71, 63, 105, 66, 107, 336,
    296, 334, 293, 301, 168, 197, 5, 4, 75, 97, 2, 326, 305, 33, 160, 158, 133, 153, 144, 362, 385, 387, 263, 373,
    380, 61, 39, 37, 0, 267, 269, 291, 405, 314, 17, 84, 181, 78, 82, 13, 312, 308, 317, 14, 87,
]
# fmt: on
SUBSETS = {
    "points": list(range(478)),
    "points68": SIXTY_EIGHT,
    "lips": geometry.LIPS_OUTER + geometry.LIPS_INNER,
    "lids": geometry.EYE_RIGHT + geometry.EYE_LEFT,
}


def landmark_errors(found: Points, driving: Points) -> dict[str, float]:
    """Mean distance in the picture for each of `SUBSETS`, % of the driver's distance between outer eye corners."""
    unit = float(np.linalg.norm(driving[33, :2] - driving[263, :2]))
    apart = np.linalg.norm(found[:, :2] - driving[:, :2], axis=1) * (100 / unit)
    return {name: float(apart[members].mean()) for name, members in SUBSETS.items()}


def ssim(picture: Image, other: Image) -> float:
    """Structural similarity (Wang et al. 2004) of the luma (BT.601): Gaussian 11 x 11 of sigma 1.5, inside the rim."""
    one, two = (cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY).astype(np.float64) for rgb in (picture, other))

    def local(values: Floats) -> Floats:
        return np.asarray(cv2.GaussianBlur(values, (11, 11), 1.5)[5:-5, 5:-5], np.float64)

    mean_one, mean_two = local(one), local(two)
    both = local(one * two) - mean_one * mean_two
    spread_one, spread_two = local(one * one) - mean_one**2, local(two * two) - mean_two**2
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    alike = (2 * mean_one * mean_two + c1) * (2 * both + c2)
    return float((alike / ((mean_one**2 + mean_two**2 + c1) * (spread_one + spread_two + c2))).mean())


def flicker(before: Image, now: Image, truth_before: Image, truth_now: Image) -> float:
    """How much pixels change from one frame to the next beyond what the truth changes within 4 px, levels of 255."""
    change = np.abs(now.astype(np.int16) - before).max(-1).astype(np.uint8)
    due = np.abs(truth_now.astype(np.int16) - truth_before).max(-1).astype(np.uint8)
    return float(cv2.subtract(change, cv2.dilate(due, np.ones((9, 9), np.uint8))).mean())


def perceptual_distances(
    heads: Sequence[Tensor], features: Sequence[Tensor], person: Tensor
) -> tuple[list[float], list[float]]:
    """LPIPS (Zhang et al. 2018, eq. 1) of a batch's pictures from its first: over all, and over `person` alone.

    `features` as `LPIPS.features` gives them, `person` `[1, 1, S, S]` in 0..1. The second averages the same differences
    with the mask as weight, at each layer's own size.
    """
    count = len(features[0]) - 1
    whole, inside = torch.zeros(count), torch.zeros(count)
    for head, layer in zip(heads, features, strict=True):
        unit = F.normalize(layer, dim=1)
        apart = ((unit[1:] - unit[:1]) ** 2 * head).sum(1)
        weight = F.interpolate(person, size=apart.shape[-2:], mode="area")[0]
        whole += apart.mean((1, 2))
        inside += (apart * weight).sum((1, 2)) / weight.sum().clamp(min=1e-6)
    return whole.tolist(), inside.tolist()


class Judge:
    """The networks that measure; one thread."""

    def __init__(self) -> None:
        self._lpips = LPIPS("vgg").eval()
        self._arcface = ArcFace()
        self._tracker = Tracker(video=True)
        self._matter = Matter()

    def _track(self, rgb: Image) -> Face | None:
        """Three looks, each where the last one found the face: as steady as in a stream (1.4 % -> 0.5 %)."""
        self._tracker.reset()
        looks = [self._tracker.track(Frame(rgb, 0.0)) for _ in range(3)]
        return looks[-1] if isinstance(looks[-1], Face) else None

    def score(self, truth: Image, driving: Points, pictures: dict[str, Image]) -> dict[str, dict[str, float]]:
        """The measures of every picture of one true frame, by the pictures' names.

        Identity and landmarks are left out where no face is found in the picture.
        """
        stacked = torch.from_numpy(np.stack([truth, *pictures.values()])).permute(0, 3, 1, 2).float() / 127.5 - 1
        person = torch.from_numpy(self._matter.matte(truth))[None, None].float() / 255
        identity = self._arcface.embed(truth, driving)
        with torch.inference_mode():
            features: list[Tensor] = self._lpips.features(stacked)
            distances = perceptual_distances(list(self._lpips.heads), features, person)
        scores = {}
        for (name, picture), whole, inside in zip(pictures.items(), *distances, strict=True):
            scores[name] = {"lpips": whole, "lpips_person": inside, "ssim": ssim(picture, truth), "lost": 1.0}
            if face := self._track(picture):
                found = face.points
                scores[name] |= {"lost": 0.0, "identity": float(self._arcface.embed(picture, found) @ identity)}
                scores[name] |= landmark_errors(found, driving)
        return scores

    def close(self) -> None:
        self._tracker.close()
        self._matter.close()


# --- one person ---


@dataclass(slots=True)
class Person:
    """What came of one person."""

    name: str
    frames: int
    scores: dict[str, dict[str, float]]
    """Method -> measure -> mean over the frames."""
    about: dict[str, Any]
    strip: Image = field(repr=False)


class LeftOutError(ValueError):
    """Somebody whose clips do not allow the protocol; the message says why."""


def evaluate_person(name: str, clips: Sequence[Path], base: Base, config: Config, judge: Judge, frames: int) -> Person:
    """Enrol, draw, measure. Raises `LeftOutError`."""
    times = [frame_times(clip) for clip in clips]
    with Tracker(video=False, max_faces=4) as tracker:
        taken = take_photos(clips, photo_pools(times), tracker, SFace())
    if len(taken) < MAX_REFERENCES:
        raise LeftOutError(f"{len(taken)} photos instead of {MAX_REFERENCES}")
    chosen = stretches(drivable(times, [(one.clip, one.number) for one in taken]), frames)
    if not chosen:
        raise LeftOutError("no stretch far enough from the photos")
    about: dict[str, Any] = {"photos": [f"{clips[one.clip].stem} {one.number}" for one in taken]}
    about["stretches"] = [f"{clips[clip].stem} {start}" for clip, start in chosen]
    drawers = methods([one.photo for one in taken], base, config, about)
    kept: dict[str, list[dict[str, float]]] = {method: [] for method in METHODS}
    spent_s: dict[str, list[float]] = {method: [] for method in METHODS}
    flickers: dict[str, list[float]] = {method: [] for method in METHODS}
    pictures: list[list[Image]] = []
    clock_s, faceless = 0.0, 0
    for clip, start in chosen:
        driving = [frame for _, frame in sorted(read_frames(clips[clip], range(start, start + STRETCH)).items())]
        with Tracker.from_config(config.tracker) as tracker:
            tracked = [face for frame in driving if isinstance(face := tracker.track(frame), Face)]
        if len(tracked) < STRETCH:
            faceless += 1
            continue
        clock_s += 1.0 - driving[0].time_s
        tracked = [replace(face, time_s=face.time_s + clock_s) for face in tracked]
        clock_s = tracked[-1].time_s
        drawn: dict[str, list[Image]] = {}
        for method, draw in drawers.items():
            drawn[method] = []
            for frame, face in zip(driving, tracked, strict=True):
                began = time.perf_counter()
                drawn[method].append(draw(frame, face))
                spent_s[method].append(time.perf_counter() - began)
            flickers[method] += [
                flicker(drawn[method][now - 1], drawn[method][now], driving[now - 1].rgb, driving[now].rgb)
                for now in range(MEASURED[0], STRETCH)
            ]
        for index in MEASURED:
            shown = {method: drawn[method][index] for method in METHODS}
            for method, score in judge.score(driving[index].rgb, tracked[index].points, shown).items():
                kept[method].append(score)
            pictures.append(list(shown.values()))
    if not pictures:
        raise LeftOutError("no stretch in which a face was tracked throughout")
    about["stretches without a face"] = faceless
    scores = {}
    for method in METHODS:
        scores[method] = means(kept[method])
        scores[method] |= {"flicker": float(np.mean(flickers[method])), "ms": float(np.median(spent_s[method])) * 1000}
    order = np.argsort([one["lpips"] for one in kept[TUNED]])
    photo = taken[0].photo.rgb
    assert photo is not None
    rows = [[photo, *pictures[index]] for index in (order[0], order[len(order) // 2], order[-1])]
    return Person(name, len(pictures), scores, about, np.vstack([np.hstack(row) for row in rows]))


def means(scores: Sequence[dict[str, float]]) -> dict[str, float]:
    """Each measure's mean over the frames that have it."""
    keys = dict.fromkeys(key for one in scores for key in one)
    return {key: float(np.mean([one[key] for one in scores if key in one])) for key in keys}


# --- everybody ---


@dataclass(frozen=True, slots=True)
class Column:
    key: str
    title: str
    digits: int
    factor: float = 1.0


COLUMNS = (
    Column("lpips", "LPIPS ↓", 3),
    Column("lpips_person", "LPIPS of the person ↓", 3),
    Column("ssim", "SSIM ↑", 3),
    Column("identity", "identity ↑", 3),
    Column("points", "landmarks % ↓", 2),
    Column("points68", "68 of them % ↓", 2),
    Column("lips", "lips % ↓", 2),
    Column("lids", "lids % ↓", 2),
    Column("lost", "no face % ↓", 1, 100.0),
    Column("flicker", "flicker ↓", 2),
    Column("ms", "ms a frame ↓", 1),
)
COMPARED = (NEAREST, WHOLE_HEAD, UNTUNED)


def interval(values: Sequence[float], draws: int = 10_000, seed: int = 0) -> tuple[float, float]:
    """Bootstrap 95 % interval of the mean (Efron 1979, percentiles)."""
    sample = np.asarray(values, np.float64)
    picked = np.random.default_rng(seed).integers(len(sample), size=(draws, len(sample)))
    low, high = np.percentile(sample[picked].mean(1), [2.5, 97.5])
    return float(low), float(high)


def _cell(values: Sequence[float], column: Column) -> str:
    if not values:
        return "–"
    scaled = [value * column.factor for value in values]
    low, high = interval(scaled)
    return f"{np.mean(scaled):.{column.digits}f} ({low:.{column.digits}f}…{high:.{column.digits}f})"


def _row(title: str, cells: Sequence[str]) -> str:
    return f"| {title} | {' | '.join(cells)} |"


def table(people: Sequence[Person]) -> str:
    """Every method: mean over people and its interval."""
    lines = [_row("method", [column.title for column in COLUMNS]), "|---" * (len(COLUMNS) + 1) + "|"]
    for method in METHODS:
        told = [person.scores[method] for person in people]
        cells = [_cell([one[column.key] for one in told if column.key in one], column) for column in COLUMNS]
        lines.append(_row(f"**{method}**" if method == TUNED else method, cells))
    return "\n".join(lines)


def differences(people: Sequence[Person]) -> str:
    """Understudy minus the others, person by person: what the intervals above cannot show."""
    lines = [_row("Understudy minus", [column.title for column in COLUMNS[:-1]]), "|---" * len(COLUMNS) + "|"]
    for method in COMPARED:
        cells = []
        for column in COLUMNS[:-1]:
            pairs = [(one.scores[TUNED].get(column.key), one.scores[method].get(column.key)) for one in people]
            apart = [ours - theirs for ours, theirs in pairs if ours is not None and theirs is not None]
            cells.append(_cell(apart, column))
        lines.append(_row(method, cells))
    return "\n".join(lines)


def write(people: Sequence[Person], left_out: dict[str, str], told: dict[str, Any], out: Path) -> None:
    """`evaluate.json`, `evaluate.md` and the strips of the worst, the median and the best person."""
    everyone = {one.name: {"frames": one.frames, **one.about, "scores": one.scores} for one in people}
    content = told | {"people": everyone, "left out": left_out}
    (out / "evaluate.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    about = ", ".join(f"{name} {value}" for name, value in told.items())
    counted = f"{len(people)} people ({len(left_out)} left out), {sum(one.frames for one in people)} frames; {about}."
    how = (
        "Mean over people (95 % bootstrap interval over people). LPIPS: VGG16, 256 px, the whole picture; of the "
        "person: weighted with the true frame's matte. SSIM: luma, Gaussian 11 x 11, sigma 1.5. Identity: cosine of "
        "ArcFace embeddings of the picture and the true frame. Landmarks: tracked in the picture against those that "
        "drove it, mean distance over 478 points, % of the distance between the outer eye corners. Flicker: change "
        "from frame to frame beyond what the true frames change within 4 px, levels of 255."
    )
    text = f"{counted}\n\n{table(people)}\n\n{differences(people)}\n\n{how}\n"
    (out / "evaluate.md").write_text(text, encoding="utf-8")
    ranked = sorted(people, key=lambda one: one.scores[TUNED]["lpips"])
    caption = np.full((24, ranked[0].strip.shape[1], 3), 255, np.uint8)
    for column, title in enumerate(("first photo", *METHODS)):
        place = (column * SIZE_PX + 4, 17)
        cv2.putText(caption, title, place, cv2.FONT_HERSHEY_SIMPLEX, 0.4, (60, 60, 60), 1, cv2.LINE_AA)
    for title, person in (("best", ranked[0]), ("median", ranked[len(ranked) // 2]), ("worst", ranked[-1])):
        strip = cv2.cvtColor(np.vstack([caption, person.strip]), cv2.COLOR_RGB2BGR)
        cv2.imwrite(str(out / f"{title}.png"), strip)


@dataclass(frozen=True, slots=True)
class Options:
    split: str
    people: int
    """0: everybody."""
    frames: int
    clips: int
    """How many of a person's clips, the longest first; 0: all."""
    seed: int


def evaluate(folder: Path, base: Base, config: Config, out: Path, options: Options) -> list[Person]:
    """Everybody of the split (or as many, drawn by the seed); the files are rewritten after each person."""
    index = read_index(folder, options.split)
    names = [sorted(index)[place] for place in np.random.default_rng(options.seed).permutation(len(index))]
    record = json.loads((base.folder / "base.json").read_text(encoding="utf-8")).get("record", {})
    told = {"base": base.sha256[:12], "steps": record.get("steps"), "tune_s": config.enrol.tune_s, **asdict(options)}
    out.mkdir(parents=True, exist_ok=True)
    done: list[Person] = []
    left_out: dict[str, str] = {}
    judge = Judge()
    for name in names[: options.people or len(names)]:
        began = time.monotonic()
        try:
            person = evaluate_person(name, index[name][: options.clips or None], base, config, judge, options.frames)
        except (LeftOutError, FFmpegError) as error:
            left_out[name] = str(error)
            logger.info("%s is left out: %s", name, error)
            continue
        done.append(person)
        summary = ", ".join(f"{method} {person.scores[method]['lpips']:.3f}" for method in METHODS)
        logger.info("%s, %d frames, %.0f s: LPIPS %s", name, person.frames, time.monotonic() - began, summary)
        write(done, left_out, told, out)
    judge.close()
    if not done:
        raise ValueError(f"nobody of the split {options.split!r} could be evaluated: {left_out}")
    return done


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="clips, with index.tsv")
    parser.add_argument("--split", default="test")
    parser.add_argument("--base", type=Path, help="folder of a base (training.export); the shipped one if left out")
    parser.add_argument("--out", type=Path, default=Path("runs/evaluate"))
    parser.add_argument("--people", type=int, default=0, help="how many, drawn by the seed; 0 = all")
    parser.add_argument("--frames", type=int, default=40, help="measured frames of each person")
    parser.add_argument("--clips", type=int, default=0, help="of each person, the longest first; 0 = all")
    parser.add_argument("--tune-s", type=float, help="seconds of fine-tuning; config.toml's if left out")
    parser.add_argument("--seed", type=int, default=0)
    told = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    config = configs.load()
    tune_s = config.enrol.tune_s if told.tune_s is None else told.tune_s
    render = replace(config.render, size_px=SIZE_PX, background="photo", motion="absolute")
    config = replace(config, render=render, enrol=replace(config.enrol, tune_s=tune_s))
    try:
        base = open_base(told.base)
        options = Options(told.split, told.people, told.frames, told.clips, told.seed)
        evaluate(told.folder, base, config, told.out, options)
    except (ValueError, OSError) as error:
        parser.exit(1, f"{error}\n")
    logger.info("%s", (told.out / "evaluate.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
