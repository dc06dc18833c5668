"""Does each factor follow its own source, and leave the others alone? `python -m training.evaluate CLIPS --factors`

Everybody of the split is enrolled as for the other tables (`training.protocol`). Then, for each factor, somebody
else's clip drives that factor alone, and the rest is held at the avatar's neutral face (a mix); and the same clip
drives all of them (a full transfer). The tracker looks at the pictures; our own codes have no say.

    of what the factor owns         the correlation with the clip that drove it, over the frames
    of what it does not own         how far the mix moves it from the neutral face, % of how far the full transfer does

Drivers: of each person's clips the stretch in which the factor moves most, that is, in which the one of its measures
that moves least moves most; of the people whose stretch moves enough (`LEAST_SPREAD`) the liveliest, in turn, so that
not everybody is driven by the same. Nothing but the drivers' clips decides it.

Everything is told in the head's own frame (`engine.motion.to_head`), so that lids do not close because a head turns
away; in millimetres of a head of the size of MediaPipe's. The gaze is the iris between the corners of its eye, aside,
told only where the lids are open; the smile is the lift of the mouth's corners towards the nose. Beside what was seen
stands what was *asked for*, the same numbers of the landmarks that were drawn, which no network has touched; the
*reach*, the share of the movement asked for that is seen; and the *floor*, what the tracker alone would make of it:
for the pose, how far its reading of a photo moves that is turned like the mix as one rigid piece (`training.rigid`);
for the other factors, how far its reading of the very same pictures moves when they are put half a pixel aside.

Identity: the cosine to the person's photos (`training.measures`), of each mix and of landmark driving with its pose:
the driver's clip through the product's relative motion, or the neutral face. Self-reconstruction: LPIPS of the person's
own frames, away from the photos, from landmarks and from factors.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from av.error import FFmpegError
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import ImageDraw, ImageFont

from engine import avatar as avatars
from engine import geometry
from engine.avatar import Avatar
from engine.base import Base
from engine.config import Config
from engine.factors import Factors, Mixer, Sources, Splitter, still
from engine.frames import Face, Frame, Image
from engine.motion import NeutralFinder, to_head
from engine.renderer import Renderer, avatar_face
from engine.tracker import Tracker, canonical_face, euler_deg, fit_pose
from training.basis import load_track, save_track
from training.basis import track as track_clip
from training.enrol import MAX_PHOTOS, build
from training.identity import SFace
from training.measures import Judge
from training.photos import CheckedPhoto
from training.protocol import (
    MEASURED,
    SIZE_PX,
    STRETCH,
    Relative,
    Stretch,
    drivable,
    frame_times,
    photo_pools,
    read_index,
    stretches,
    take_photos,
    track,
)
from training.rigid import rigid_picture
from training.tables import interval

logger = logging.getLogger(__name__)

Array = NDArray[np.float64]
Readings = dict[str, Array]
"""Measure -> its values over the frames."""

OWNED = {
    "pose": ("yaw", "pitch", "roll"),
    "eyes": ("lids", "gaze"),
    "lips": ("mouth",),
    "expression": ("brows", "smile"),
}
MEASURES = tuple(one for owned in OWNED.values() for one in owned)
LEAST_SPREAD = {
    "yaw": 2.0,
    "pitch": 2.0,
    "roll": 1.5,
    "lids": 0.6,
    "gaze": 0.6,
    "mouth": 0.9,
    "brows": 0.5,
    "smile": 0.5,
}
"""A correlation means something where the source moved at least so much (standard deviation)."""
WANTED = {"yaw": 0.9, "pitch": 0.9, "roll": 0.9, "lids": 0.9, "gaze": 0.8, "mouth": 0.8, "brows": 0.8, "smile": 0.8}
MOST_LEAK = 0.1
_SMILE_FRAMES = 25
_SHUT_MM = 2.4
_TRACKED = 250
"""Frames of a clip in which a driver's stretch is looked for."""
_TOGETHER = 4
"""So many people drive each factor, in turn."""
_LOOKED_AT = 15
"""Every so many frames the identity is measured."""
_LIDS = [
    np.array(list(zip(eye[1:8], reversed(eye[9:]), strict=True))) for eye in (geometry.EYE_RIGHT, geometry.EYE_LEFT)
]
_IRISES = ((geometry.IRIS_RIGHT[0], (33, 133)), (geometry.IRIS_LEFT[0], (362, 263)))
_LIPS = np.array(list(zip(geometry.LIPS_INNER[1:10], reversed(geometry.LIPS_INNER[11:]), strict=True)))


# --- what is read in a face ---


def measured(face: Face) -> dict[str, float]:
    """Degrees, and millimetres of the head as `engine.tracker.fit_pose` scales it. The gaze of shut eyes is NaN."""
    yaw, pitch, roll = euler_deg(face.rotation)
    front = 10 * to_head(face).shape[:, :2].astype(np.float64)
    lids = [float((front[pairs[:, 0], 1] - front[pairs[:, 1], 1]).mean()) for pairs in _LIDS]
    looks = [front[iris, 0] - front[list(corners), 0].mean() for iris, corners in _IRISES]
    brows = front[[*geometry.BROW_RIGHT, *geometry.BROW_LEFT], 1].mean() - front[[33, 133, 362, 263], 1].mean()
    return {
        "yaw": yaw,
        "pitch": pitch,
        "roll": roll,
        "lids": float(np.mean(lids)),
        "gaze": float(np.mean(looks)) if min(lids) >= _SHUT_MM else float("nan"),
        "mouth": float((front[_LIPS[:, 0], 1] - front[_LIPS[:, 1], 1]).mean()),
        "brows": float(brows),
        "smile": float(front[[61, 291], 1].mean() - front[2, 1]),
    }


def columns(rows: Sequence[dict[str, float] | None]) -> Readings:
    """Each measure over time; what could not be read is between its neighbours. The smile is slow: a second's mean.

    Raises `ValueError` where nothing is seen in most frames.
    """
    told = {}
    for key in MEASURES:
        values = np.array([np.nan if row is None else row[key] for row in rows], np.float64)
        at = np.flatnonzero(np.isfinite(values))
        if len(at) < len(rows) / 2:
            raise ValueError("the tracker finds no face with open eyes in most of the pictures")
        told[key] = np.interp(np.arange(len(rows)), at, values[at])
    padded = np.pad(told["smile"], (_SMILE_FRAMES - 1, 0), mode="edge")
    told["smile"] = np.convolve(padded, np.ones(_SMILE_FRAMES) / _SMILE_FRAMES, "valid")
    return told


def liveliness(told: Readings, factor: str) -> float:
    """How much a factor moves: of its measures the one that moves least, 1 is `LEAST_SPREAD`."""
    return min(float(told[key].std()) / LEAST_SPREAD[key] for key in OWNED[factor])


# --- who drives ---


@dataclass(frozen=True, slots=True)
class Driver:
    """A stretch of somebody's clip."""

    person: str
    place: str
    faces: list[Face]
    seen: list[Face]
    """All of the clip that was tracked: its neutral face is among them."""
    told: Readings


def liveliest(person: str, clips: dict[str, list[Face]], frames: int) -> dict[str, Driver]:
    """Factor -> the stretch of a person's clips in which it moves most, where it moves enough."""
    best: dict[str, tuple[float, Driver]] = {}
    for clip, faces in clips.items():
        for start in range(0, len(faces) - frames + 1, frames // 2):
            part = faces[start : start + frames]
            try:
                told = columns([measured(face) for face in part])
            except ValueError:
                continue
            for factor in OWNED:
                lively = liveliness(told, factor)
                if lively >= max(1.0, best[factor][0] if factor in best else 0.0):
                    best[factor] = lively, Driver(person, f"{clip} {start}", part, faces, told)
    return {factor: driver for factor, (_, driver) in best.items()}


def in_turn(lively: dict[str, dict[str, Driver]], holding: str, number: int) -> dict[str, Driver]:
    """Factor -> who drives it on the avatar of the `number`-th person; never the person."""
    chosen = {}
    for factor in OWNED:
        found = [one[factor] for one in lively.values() if factor in one]
        ranked = sorted(found, key=lambda driver: -liveliness(driver.told, factor))
        among = [driver for driver in ranked if driver.person != holding][:_TOGETHER]
        if among:
            chosen[factor] = among[number % len(among)]
    return chosen


def find_drivers(
    index: dict[str, list[Path]], kept: Path, config: Config, frames: int, clips: int
) -> dict[str, dict[str, Driver]]:
    """Person -> factor -> stretch, from each person's longest clips; tracks are kept in a folder."""
    found = {}
    with Tracker.from_config(config.tracker) as tracker:
        for person, paths in sorted(index.items()):
            tracked = {}
            for path in paths[:clips]:
                place = kept / f"{path.stem}_{_TRACKED}.npz"
                if not place.exists():
                    save_track(place, track_clip(path, tracker, config.tracker, _TRACKED))
                    logger.info("tracked %s", path.stem)
                tracked[path.stem] = [face for face in load_track(place) if isinstance(face, Face)]
            found[person] = liveliest(person, tracked, frames)
    return found


# --- one person ---


class Stage:
    """One avatar and the tracker that looks at it. What is drawn is drawn in order, with a pause between shows."""

    def __init__(self, avatar: Avatar, base: Base, config: Config, tracker: Tracker) -> None:
        self.avatar, self._tracker = avatar, tracker
        self._renderer = Renderer(avatar, base, config)
        self._clock_s = 0.0
        neutral = avatar_face(avatar)
        self.canvas = neutral
        """The avatar's neutral face in its crop."""
        self.relative = Relative(avatar, [], neutral)
        share = np.float32(SIZE_PX / avatar.size_px)
        pose = fit_pose(neutral.points * share, canonical_face())
        self.own = Face(neutral.points * share, *pose, 1.0, (SIZE_PX, SIZE_PX), 0.0)
        """The same in the frame of the driving pictures."""

    def split(self, driver: Driver) -> list[Factors]:
        """A driver's factors on this avatar, as in a call that has lasted a while."""
        finder = NeutralFinder()
        finder.prime(driver.seen)
        splitter = Splitter(to_head(self.canvas), finder)
        return [splitter(face) for face in driver.faces]

    def split_own(self, faces: Sequence[Face]) -> list[Factors]:
        """The person's own factors: nothing is relative, so that put together they are the same faces."""
        splitter = Splitter(to_head(self.own))
        return [splitter(face) for face in faces]

    def mix(self, sources: Sequence[Sources]) -> list[Face]:
        """What is asked of the avatar, `SIZE_PX` frames."""
        mixer = Mixer(self.canvas)
        return [self.relative(mixer(given, number / 25)) for number, given in enumerate(sources)]

    def draw(self, faces: Sequence[Face]) -> list[Image]:
        self._clock_s += 1.0
        drawn = []
        for face in faces:
            self._clock_s += 1 / 25
            drawn.append(self._renderer.draw(replace(face, time_s=self._clock_s)).rgb.copy())
        return drawn

    def rigid(self, faces: Sequence[Face]) -> list[Image]:
        """The photo most like the neutral face, turned and placed like these."""
        photo = min(self.avatar.photos, key=lambda one: float(np.abs(one.points - self.avatar.neutral).mean()))
        return [rigid_picture(photo, face, SIZE_PX) for face in faces]

    def look(self, pictures: Sequence[Image]) -> tuple[Readings, list[Face | None]]:
        self._tracker.reset()
        seen = [self._tracker.track(Frame(rgb, number / 25)) for number, rgb in enumerate(pictures)]
        faces = [face if isinstance(face, Face) else None for face in seen]
        return columns([face and measured(face) for face in faces]), faces


def half_a_pixel_aside(rgb: Image) -> Image:
    matrix = np.array([[1, 0, 0.5], [0, 1, 0.5]])
    return np.asarray(cv2.warpAffine(rgb, matrix, rgb.shape[1::-1], borderMode=cv2.BORDER_REPLICATE), np.uint8)


def settled(told: Readings) -> Readings:
    """What is read of a face that keeps still, once the tracker has come to rest: the median of the later half."""
    return {key: np.full_like(values, np.median(values[len(values) // 2 :])) for key, values in told.items()}


def changes(one: Readings, other: Readings) -> dict[str, float]:
    return {key: float(np.abs(one[key] - other[key]).mean()) for key in MEASURES}


def correlation(one: Array, other: Array) -> float:
    return float(np.corrcoef(one, other)[0, 1]) if one.std() > 0 and other.std() > 0 else 0.0


def reach(seen: Array, asked: Array) -> float:
    """How much of the movement that was asked for is seen: the slope of the line through the frames."""
    off = asked - asked.mean()
    return float(off @ seen / max(float(off @ off), 1e-9))


def measure_person(
    stage: Stage, taken: Sequence[CheckedPhoto], own: Sequence[Stretch], driven_by: dict[str, Driver], judge: Judge
) -> dict[str, Any]:
    """One avatar's numbers: by factor what moved and what was held; identity; LPIPS."""
    photos = [(photo.rgb, photo.face) for photo in taken if photo.rgb is not None and photo.face is not None]
    enrolled = np.stack([judge.identity(rgb, face.points) for rgb, face in photos]).mean(0)
    enrolled /= np.linalg.norm(enrolled)

    def csim(pictures: Sequence[Image], faces: Sequence[Face | None]) -> float:
        looks = [
            float(judge.identity(pictures[k], face.points) @ enrolled)
            for k in range(_LOOKED_AT - 1, len(pictures), _LOOKED_AT)
            if (face := faces[k]) is not None
        ]
        return float(np.mean(looks))

    def follow_landmarks(faces: Sequence[Face], known: Sequence[Face]) -> float:
        relative = Relative(stage.avatar, known)
        pictures = stage.draw([relative(face) for face in faces])
        return csim(pictures, stage.look(pictures)[1])

    frames = [frame.rgb for stretch in own for frame in stretch.frames]
    faces = [face for stretch in own for face in stretch.faces]
    held = stage.split_own(faces)
    told: dict[str, Any] = {"factors": {}, "lpips": {"landmarks": [], "factors": []}}
    again = [Mixer(stage.own)(Sources.all(one), face.time_s) for one, face in zip(held, faces, strict=True)]
    ways = {"landmarks": stage.draw(faces), "factors": stage.draw(again)}
    everywhere = np.full((SIZE_PX, SIZE_PX), 255, np.uint8)
    for k in range(_LOOKED_AT - 1, len(frames), _LOOKED_AT):
        scores = judge.likeness(frames[k], {way: pictures[k] for way, pictures in ways.items()}, everywhere)
        for way, score in scores.items():
            told["lpips"][way].append(score["lpips"])
    told["lpips"] = {way: float(np.mean(values)) for way, values in told["lpips"].items()}

    rest = still(to_head(stage.canvas))
    neutral = stage.mix([Sources.all(rest)] * len(frames))
    pictures = stage.draw(neutral)
    before, seen = stage.look(pictures)
    before = settled(before)
    asked_before = columns([measured(face) for face in neutral])
    resting = csim(pictures, seen)
    for factor, driver in driven_by.items():
        driven = stage.split(driver)
        shows = {
            "full": [Sources.all(one) for one in driven],
            "mix": [replace(Sources.all(rest), **{factor: one}) for one in driven],
        }
        row: dict[str, Any] = {"driver": driver.person, "stretch": driver.place, "follows": {}, "moves": {}}
        for name, sources in shows.items():
            faces_asked = stage.mix(sources)
            pictures = stage.draw(faces_asked)
            shown, seen = stage.look(pictures)
            asked = columns([measured(face) for face in faces_asked])
            if name == "mix":
                row["csim"] = {"mix": csim(pictures, seen)}
                if factor == "pose":
                    at_rest, _ = stage.look(stage.rigid(neutral))
                    row["floor"] = changes(stage.look(stage.rigid(faces_asked))[0], settled(at_rest))
                else:
                    aside, _ = stage.look([half_a_pixel_aside(rgb) for rgb in pictures])
                    row["floor"] = changes(aside, shown)
            row["moves"][name] = {"seen": changes(shown, before), "asked": changes(asked, asked_before)}
            row["follows"][name] = {
                key: {
                    "seen": correlation(shown[key], driver.told[key]),
                    "asked": correlation(asked[key], driver.told[key]),
                    "reach": reach(shown[key], asked[key]),
                }
                for key in OWNED[factor]
            }
        row["csim"]["landmarks"] = follow_landmarks(driver.faces, driver.seen) if factor == "pose" else resting
        told["factors"][factor] = row
    return told


def enrolled(person: str, taken: Sequence[CheckedPhoto], base: Base, config: Config, kept: Path) -> Avatar:
    """The avatar as a call gets it; made once for a base and these settings."""
    depends = json.dumps([base.sha256, repr(config.enrol)]).encode()
    path = kept / f"{person}-{hashlib.sha256(depends).hexdigest()[:12]}{avatars.SUFFIX}"
    if not path.exists():
        kept.mkdir(parents=True, exist_ok=True)
        avatars.save(build(list(taken), person, base, config, lambda *_: None)[0], path)
    return avatars.load(path, base.sha256)


def evaluate_factors(
    folder: Path, base: Base, config: Config, out: Path, split: str, people: int, frames: int, clips: int, seed: int
) -> dict[str, Any]:
    """Everybody of the split (or as many, drawn by the seed); `factors.json`, `.md` and `.png` in `out`.

    `frames` of each show, rounded up to whole stretches; `clips`: of each person, the longest; 0 is all.
    """
    index = {name: paths[: clips or None] for name, paths in read_index(folder, split).items()}
    count = -(-frames // STRETCH)
    lively = find_drivers(index, out / "tracks", config, count * STRETCH, clips or 2)
    names = [sorted(index)[place] for place in np.random.default_rng(seed).permutation(len(index))]
    judge = Judge()
    done: dict[str, dict[str, Any]] = {}
    left_out: dict[str, str] = {}
    for number, name in enumerate(names):
        if people and len(done) == people:
            break
        try:
            done[name] = _one_person(name, index[name], base, config, out, count, in_turn(lively, name, number), judge)
        except (ValueError, FFmpegError) as error:
            left_out[name] = str(error)
            logger.info("%s is left out: %s", name, error)
            continue
        logger.info("%s: %s", name, json.dumps(done[name]["factors"]))
    judge.close()
    if not done:
        raise ValueError(f"nobody of the split {split!r} could be evaluated: {left_out}")
    record = json.loads((base.folder / "base.json").read_text(encoding="utf-8")).get("record", {})
    about = {"base": base.sha256[:12], "steps": record.get("steps"), "tune_s": config.enrol.tune_s, "split": split}
    told = summary(list(done.values()))
    out.mkdir(parents=True, exist_ok=True)
    content = about | {"summary": told, "people": done, "left out": left_out}
    (out / "factors.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    head = f"{len(done)} people ({len(left_out)} left out), {count * STRETCH} frames a show; "
    head += ", ".join(f"{key} {value}" for key, value in about.items()) + "."
    (out / "factors.md").write_text(markdown(told, head), encoding="utf-8")
    picture(told, out / "factors.png")
    return told


def _one_person(
    name: str,
    clips: Sequence[Path],
    base: Base,
    config: Config,
    out: Path,
    count: int,
    driven_by: dict[str, Driver],
    judge: Judge,
) -> dict[str, Any]:
    """Raises `ValueError` where the clips do not allow it."""
    times = [frame_times(clip) for clip in clips]
    with Tracker(video=False, max_faces=4) as tracker:
        taken = take_photos(clips, photo_pools(times), tracker, SFace())
    if len(taken) < MAX_PHOTOS:
        raise ValueError(f"{len(taken)} photos instead of {MAX_PHOTOS}")
    free = drivable(times, [(one.clip, one.number) for one in taken])
    own = track(clips, stretches(free, count * len(MEASURED)), config)
    if len(own) < count:
        raise ValueError("too few stretches away from the photos in which a face was tracked throughout")
    photos = [one.photo for one in taken]
    avatar = enrolled(name, photos, base, config, out / "avatars")
    with Tracker.from_config(config.tracker) as tracker:
        return measure_person(Stage(avatar, base, config, tracker), photos, own[:count], driven_by, judge)


# --- everybody ---


@dataclass(frozen=True, slots=True)
class Cell:
    """A number over people, with its 95 % interval."""

    value: float
    low: float
    high: float
    people: int


def mean_cell(values: Sequence[float]) -> Cell:
    return Cell(float(np.mean(values)), *interval(values), len(values))


def ratio_cell(parts: Sequence[float], wholes: Sequence[float], draws: int = 10_000) -> Cell:
    """Sum over people of the parts by the sum of the wholes; people are drawn together (bootstrap)."""
    part, whole = np.asarray(parts, np.float64), np.asarray(wholes, np.float64)
    picked = np.random.default_rng(0).integers(len(part), size=(draws, len(part)))
    low, high = np.percentile(part[picked].sum(1) / np.maximum(whole[picked].sum(1), 1e-9), [2.5, 97.5])
    return Cell(float(part.sum() / max(whole.sum(), 1e-9)), float(low), float(high), len(part))


def summary(people: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """factor -> measure -> what is told of it, each `{"value", "low", "high", "people"}`; identity and LPIPS beside."""
    cells: dict[str, dict[str, dict[str, Any]]] = {}
    for factor, owned in OWNED.items():
        rows = [one["factors"][factor] for one in people if factor in one["factors"]]
        cells[factor] = {}
        for key in MEASURES if rows else ():
            if key in owned:
                ways = {"seen": ("mix", "seen"), "asked": ("mix", "asked"), "full": ("full", "seen")}
                ways["reach"] = "mix", "reach"
                told = {
                    way: mean_cell([row["follows"][show][key][kind] for row in rows])
                    for way, (show, kind) in ways.items()
                }
            else:
                told = {
                    kind: ratio_cell(
                        [row["moves"]["mix"][kind][key] for row in rows],
                        [row["moves"]["full"][kind][key] for row in rows],
                    )
                    for kind in ("seen", "asked")
                }
                whole = [row["moves"]["full"]["seen"][key] for row in rows]
                told["floor"] = ratio_cell([row["floor"][key] for row in rows], whole)
            cells[factor][key] = {kind: _as_dict(cell) for kind, cell in told.items()}
    identity = {
        way: mean_cell([float(np.mean([row["csim"][way] for row in one["factors"].values()])) for one in people])
        for way in ("landmarks", "mix")
    }
    apart = [
        float(np.mean([row["csim"]["mix"] - row["csim"]["landmarks"] for row in one["factors"].values()]))
        for one in people
    ]
    lpips = {way: mean_cell([one["lpips"][way] for one in people]) for way in ("landmarks", "factors")}
    worse = ratio_cell([one["lpips"]["factors"] for one in people], [one["lpips"]["landmarks"] for one in people])
    return {
        "matrix": cells,
        "csim": {way: _as_dict(cell) for way, cell in identity.items()} | {"apart": _as_dict(mean_cell(apart))},
        "lpips": {way: _as_dict(cell) for way, cell in lpips.items()} | {"ratio": _as_dict(worse)},
    }


def _as_dict(cell: Cell) -> dict[str, float]:
    return {"value": cell.value, "low": cell.low, "high": cell.high, "people": cell.people}


def reached(factor: str, key: str, cell: dict[str, dict[str, float]]) -> bool:
    value = cell["seen"]["value"]
    return value >= WANTED[key] if key in OWNED[factor] else value <= MOST_LEAK


# --- the files ---

HOW = (
    "Rows: the factor that another person's clip drives; the rest is held at the neutral face. Bold: correlation with "
    "that clip of what the tracker sees in the picture (wanted: 0.9 for pose and lids, else 0.8); after it, of the "
    "landmarks that were asked for, in brackets of a full transfer, and the share of the movement asked for that is "
    "seen. The others: how far the mix moves what was held, % of what a full transfer moves it (wanted: 10 %); after "
    "it the same of the landmarks asked for, and the floor, what the tracker alone makes of it: in the row of the pose "
    "from a photo turned as one rigid piece, in the others from the same pictures half a pixel aside. Means over "
    "people, for shares sums over people; 95 % bootstrap intervals over people. CSIM: cosine to the mean of the "
    "person's eight photos, of the mixes and of landmark driving with their pose. LPIPS: the person's own frames, from "
    "landmarks and from factors."
)


def markdown(told: dict[str, Any], head: str) -> str:
    def spread(cell: dict[str, float], factor: float = 1.0, digits: int = 2) -> str:
        value, low, high = (factor * cell[key] for key in ("value", "low", "high"))
        return f"{value:.{digits}f} ({low:.{digits}f}…{high:.{digits}f})"

    lines = ["| driven | " + " | ".join(MEASURES) + " |", "|---" * (len(MEASURES) + 1) + "|"]
    for factor, row in told["matrix"].items():
        cells = []
        for key in MEASURES:
            if key not in row:
                cells.append("–")
            elif key in OWNED[factor]:
                asked, full, drawn = (row[key][kind]["value"] for kind in ("asked", "full", "reach"))
                cells.append(f"**{spread(row[key]['seen'])}**, asked {asked:.2f} [{full:.2f}], reach {drawn:.2f}")
            else:
                asked, floor = 100 * row[key]["asked"]["value"], 100 * row[key]["floor"]["value"]
                cells.append(f"{spread(row[key]['seen'], 100, 0)} %, asked {asked:.0f}, floor {floor:.0f}")
        lines.append(f"| {factor} | " + " | ".join(cells) + " |")
    csim, lpips = told["csim"], told["lpips"]
    lines += [
        "",
        "| | landmarks | factors | apart |",
        "|---|---|---|---|",
        f"| CSIM ↑ | {spread(csim['landmarks'], 1, 3)} | {spread(csim['mix'], 1, 3)} | {spread(csim['apart'], 1, 3)} |",
        f"| LPIPS of own frames ↓ | {spread(lpips['landmarks'], 1, 3)} | {spread(lpips['factors'], 1, 3)} "
        f"| × {spread(lpips['ratio'], 1, 3)} |",
    ]
    return "\n\n".join([head, "\n".join(lines), HOW]) + "\n"


def picture(told: dict[str, Any], path: Path) -> None:
    """The matrix: correlations framed, green where they are reached; shares in %, green up to 10."""
    font, small = ImageFont.load_default(17), ImageFont.load_default(11)
    wide, high, left, top = 138, 66, 110, 44
    sheet = Pillow.new("RGB", (left + wide * len(MEASURES) + 12, top + high * len(OWNED) + 66), "white")
    pen = ImageDraw.Draw(sheet)
    for x, key in enumerate(MEASURES):
        pen.text((left + wide * (x + 0.5), top / 2), key, "black", font, "mm")
    for y, (factor, owned) in enumerate(OWNED.items()):
        pen.text((8, top + high * (y + 0.5)), factor, "black", font, "lm")
        for x, key in enumerate(MEASURES):
            box = (left + wide * x + 2, top + high * y + 2, left + wide * (x + 1) - 2, top + high * (y + 1) - 2)
            cell = told["matrix"][factor].get(key)
            if cell is None:
                pen.rectangle(box, "#eeeeee")
                continue
            value, own = cell["seen"]["value"], key in owned
            short = (WANTED[key] - value) / 0.4 if own else (value - MOST_LEAK) / 0.4
            good = 1.0 if reached(factor, key, cell) else 0.6 * float(np.clip(1 - short, 0, 1))
            pen.rectangle(box, (round(245 - 95 * good), round(150 + 75 * good), 150), "black" if own else None, 3)
            middle, share = (box[0] + box[2]) / 2, 1 if own else 100
            low, most, asked = (
                share * one for one in (cell["seen"]["low"], cell["seen"]["high"], cell["asked"]["value"])
            )
            shown = (
                (f"{value:.2f}", f"{low:.2f}…{most:.2f}") if own else (f"{100 * value:.0f} %", f"{low:.0f}…{most:.0f}")
            )
            beside = (
                f"asked {asked:.2f}, reach {cell['reach']['value']:.2f}"
                if own
                else f"asked {asked:.0f}, floor {100 * cell['floor']['value']:.0f}"
            )
            for text, place, which in zip((*shown, beside), (0.27, 0.58, 0.82), (font, small, small), strict=True):
                pen.text((middle, box[1] + place * (box[3] - box[1])), text, "black", which, "mm")
    foot = top + high * len(OWNED)
    pen.text((8, foot + 20), "framed: correlation with the clip that drives this factor", "black", small, "lm")
    legend = "else: how far it moves what was held, % of a full transfer; asked: of the landmarks before drawing; "
    legend += "floor: what the tracker alone makes of it"
    pen.text((8, foot + 36), legend, "black", small, "lm")
    legend = "reach: the share of the movement asked for that is seen"
    pen.text((left + 4 * wide, foot + 20), legend, "black", small, "lm")
    csim, lpips = told["csim"]["apart"], told["lpips"]["ratio"]
    identity = f"CSIM against landmarks {csim['value']:+.3f}, LPIPS of own frames x {lpips['value']:.3f}"
    pen.text((8, foot + 52), identity, "black", small, "lm")
    sheet.save(path)
