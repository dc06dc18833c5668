"""What came of every person -> the tables, with intervals over people, and the pictures to look at.

`training.evaluate` measures; here it is averaged and written: `evaluate.json` (everything), `evaluate.md`, a grid of
pictures for each table, and strips of the best, the median and the worst person.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from engine.frames import Image
from training.measures import STANCE, Floats, frechet_distance, kernel_distance

TRUTH, NEAREST, WHOLE_HEAD = "the true frame", "nearest photo", "whole-head similarity"
UNTUNED, TUNED, OWN = "Understudy, not tuned", "Understudy", "Understudy, network's own background"
DRIVER = "the driver"
GRID_ROWS = 8


@dataclass(slots=True)
class Result:
    """One person in one table."""

    frames: int
    scores: dict[str, dict[str, float]]
    """Method -> measure -> mean over the frames."""
    features: dict[str, NDArray[np.float32]] = field(repr=False)
    """Method -> Inception features of its pictures, `[frames, 2048]`."""
    real: NDArray[np.float32] = field(repr=False)
    """The same of true frames of that person."""
    strip: Image = field(repr=False)
    """Three rows of pictures (best, median, worst frame); columns: first photo, driver, methods."""
    about: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, order=True)
class Which:
    """Which table: self- or cross-reenactment, from how many photos."""

    cross: bool
    shots: int

    def __str__(self) -> str:
        return f"{'cross' if self.cross else 'self'}-{self.shots}"

    @classmethod
    def parse(cls, text: str) -> Which:
        way, _, shots = text.partition("-")
        return cls(way == "cross", int(shots))

    @property
    def title(self) -> str:
        way = "Cross-reenactment (somebody else drives)" if self.cross else "Self-reenactment"
        return f"{way}, T = {self.shots} photo{'s' if self.shots > 1 else ''}"


@dataclass(slots=True)
class Person:
    """What came of one person, by table."""

    name: str
    results: dict[Which, Result]
    skipped: dict[str, str] = field(default_factory=dict)
    """Tables this person is missing from, and why."""


@dataclass(frozen=True, slots=True)
class Column:
    key: str
    title: str
    digits: int
    factor: float = 1.0


SELF = (
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
"""The columns of the first evaluation, unchanged, so that numbers stay comparable."""
MORE = (
    Column("csim", "CSIM ↑", 3),
    Column("csim_best", "CSIM best photo ↑", 3),
    Column("gaze", "gaze % ↓", 2),
    Column("mouth_gap", "mouth opening % ↓", 2),
    Column("lid_gap", "lid opening % ↓", 2),
    Column("pose", "pose ° ↓", 2),
    Column("restless", "flicker of the real × ↓", 2),
    Column("enrol_s", "s to enrol ↓", 1),
)
FOLLOWS = tuple(Column(f"follows {key}", f"follows {key} ↑", 2) for key in STANCE)
CROSS = (MORE[0], MORE[1], SELF[4], SELF[6], SELF[7], *MORE[2:7], *FOLLOWS, SELF[8], SELF[10])

HOW = (
    "Mean over people (95 % bootstrap interval over people). LPIPS: VGG16, 256 px, the whole picture; of the person: "
    "weighted with the true frame's matte. SSIM: luma, Gaussian 11 x 11, sigma 1.5. Identity: cosine of ArcFace "
    "embeddings of the picture and the true frame. CSIM: the same to the mean of the person's eight photos, and to the "
    "best of them. Landmarks: tracked in the picture against those asked for, mean distance over 478 points, % of the "
    "distance between the outer eye corners. Gaze: irises between the eye's corners, % of the eye's width, open eyes "
    "only. Mouth and lid opening: % of the distance between the outer eye corners, % of the eye's width. Pose: the "
    "angle between the heads. Flicker: change from frame to frame beyond what the true frames change within 4 px, "
    "levels of 255; of the real: mean |x(t-1) - 2 x(t) + x(t+1)| over the person, divided by that of the real video. "
    "Seconds to enrol: crops, mattes and fine-tuning of checked photos."
)
HOW_SETS = (
    "FID (Heusel et al. 2017) and KID (Binkowski et al. 2018): Inception 2015-12-05 of the canonical implementation, "
    "resized as pytorch-fid does; all people's pictures together against their true frames; ± 95 % by a jackknife over "
    "people. So few pictures raise a FID by much: it compares rows of one table, never with a published FID. KID has "
    "no such bias."
)
HOW_CROSS = (
    "Another person's clip drives through the product's relative motion, its neutral face found beforehand among the "
    "driver's frames. Landmarks, gaze, openings and pose: against what that motion asks of the avatar. Follows: "
    "correlation over the frames with the driver's own turn and openings, where the driver moves enough. FID and KID: "
    "against the enrolled people's true frames."
)

# --- numbers ---


def interval(values: Sequence[float], draws: int = 10_000, seed: int = 0) -> tuple[float, float]:
    """Bootstrap 95 % interval of the mean (Efron 1979, percentiles)."""
    sample = np.asarray(values, np.float64)
    picked = np.random.default_rng(seed).integers(len(sample), size=(draws, len(sample)))
    low, high = np.percentile(sample[picked].mean(1), [2.5, 97.5])
    return float(low), float(high)


@dataclass(frozen=True, slots=True)
class Distance:
    """A distance between all the pictures of a method and all the true frames."""

    value: float
    half: float | None
    """Half a 95 % interval; `None` where it was not asked for, or there are fewer than three people."""


def distance(
    real: Sequence[Floats], drawn: Sequence[Floats], measure: Callable[[Floats, Floats], float], sure: bool
) -> Distance:
    """Over everybody's features; `sure`: with a jackknife over people (Efron & Stein 1981).

    Not a bootstrap: the same person drawn twice would look like a second one who is very much like the first.
    """
    value = measure(np.concatenate(real), np.concatenate(drawn))
    count = len(real)
    if not sure or count < 3:
        return Distance(value, None)
    without = []
    for left in range(count):
        kept = [index for index in range(count) if index != left]
        without.append(measure(*(np.concatenate([rows[index] for index in kept]) for rows in (real, drawn))))
    error = np.sqrt((count - 1) / count * ((np.array(without) - np.mean(without)) ** 2).sum())
    return Distance(value, 1.96 * float(error))


SETS = (("fid", "FID ↓", 1, 1.0, frechet_distance), ("kid", "KID × 1000 ↓", 2, 1000.0, kernel_distance))


def set_distances(results: Sequence[Result], sure: bool) -> dict[str, dict[str, Distance]]:
    """Method -> "fid" and "kid", over everybody of one table."""
    told: dict[str, dict[str, Distance]] = {}
    for method in [method for method in results[0].scores if method != TRUTH]:
        real, drawn = [one.real for one in results], [one.features[method] for one in results]
        if min(sum(map(len, real)), sum(map(len, drawn))) > 1:
            told[method] = {key: distance(real, drawn, measure, sure) for key, _, _, _, measure in SETS}
    return told


# --- Markdown ---


def _cell(values: Sequence[float], column: Column) -> str:
    if not values:
        return "–"
    scaled = [value * column.factor for value in values]
    low, high = interval(scaled)
    return f"{np.mean(scaled):.{column.digits}f} ({low:.{column.digits}f}…{high:.{column.digits}f})"


def _set_cell(told: Distance | None, digits: int, factor: float) -> str:
    if told is None:
        return "–"
    half = "" if told.half is None else f" ± {told.half * factor:.{digits}f}"
    return f"{told.value * factor:.{digits}f}{half}"


def _row(title: str, cells: Sequence[str]) -> str:
    return f"| {title} | {' | '.join(cells)} |"


def _title(method: str) -> str:
    return f"**{method}**" if method == TUNED else method


def table(results: Sequence[Result], columns: Sequence[Column]) -> str:
    """Every method: mean over people and its interval."""
    lines = [_row("method", [column.title for column in columns]), "|---" * (len(columns) + 1) + "|"]
    for method in results[0].scores:
        told = [one.scores[method] for one in results]
        cells = [_cell([one[column.key] for one in told if column.key in one], column) for column in columns]
        lines.append(_row(_title(method), cells))
    return "\n".join(lines)


def set_table(results: Sequence[Result], told: dict[str, dict[str, Distance]]) -> str:
    counted = f"{sum(len(one.real) for one in results)} true frames of {len(results)} people"
    lines = [_row(f"method, against {counted}", [title for _, title, *_ in SETS]), "|---" * (len(SETS) + 1) + "|"]
    for method, distances in told.items():
        cells = [_set_cell(distances.get(key), digits, factor) for key, _, digits, factor, _ in SETS]
        lines.append(_row(_title(method), cells))
    return "\n".join(lines)


def differences(results: Sequence[Result], columns: Sequence[Column]) -> str:
    """Understudy minus the others, person by person: what the intervals above cannot show."""
    columns = [column for column in columns if column.key not in ("ms", "enrol_s")]
    lines = [_row("Understudy minus", [column.title for column in columns]), "|---" * (len(columns) + 1) + "|"]
    for method in results[0].scores:
        if method in (TRUTH, TUNED, OWN):
            continue
        cells = []
        for column in columns:
            pairs = [(one.scores[TUNED].get(column.key), one.scores[method].get(column.key)) for one in results]
            apart = [ours - theirs for ours, theirs in pairs if ours is not None and theirs is not None]
            cells.append(_cell(apart, column))
        lines.append(_row(method, cells))
    return "\n".join(lines)


def _notes(which: Which, results: Sequence[Result], kept: int) -> list[str]:
    """What a reader would otherwise misread."""
    notes = []
    if not any("tuning" in one.about for one in results):
        notes.append("Nobody was fine-tuned here: there were too few photos, or no time for it.")
    if which.shots > kept:
        notes.append(f"An avatar keeps {kept} photos: enrolment chose them out of {which.shots}, and tuned on those.")
    return notes


def _section(which: Which, results: Sequence[Result], told: dict[str, dict[str, Distance]], kept: int) -> str:
    parts = [f"## {which.title}", *_notes(which, results, kept)]
    groups = (CROSS,) if which.cross else (SELF, MORE)
    parts += [table(results, columns) for columns in groups]
    parts += [set_table(results, told), *(differences(results, columns) for columns in groups)]
    return "\n\n".join(parts)


# --- the files ---


def by_table(people: Sequence[Person]) -> dict[Which, list[Result]]:
    """The tables there are, self before cross, each with the people that are in it."""
    everything = sorted({which for person in people for which in person.results})
    return {which: [one.results[which] for one in people if which in one.results] for which in everything}


def _summary(results: Sequence[Result], told: dict[str, dict[str, Distance]]) -> dict[str, dict[str, Any]]:
    summary: dict[str, dict[str, Any]] = {}
    for method in results[0].scores:
        scores = [one.scores[method] for one in results]
        summary[method] = {}
        for key in dict.fromkeys(key for one in scores for key in one):
            values = [one[key] for one in scores if key in one]
            low, high = interval(values)
            summary[method][key] = {"mean": float(np.mean(values)), "low": low, "high": high, "people": len(values)}
        for key, one in told.get(method, {}).items():
            summary[method][key] = {"value": one.value, "half": one.half}
    return summary


def write(
    people: Sequence[Person], left_out: dict[str, str], told: dict[str, Any], kept: int, out: Path, final: bool
) -> None:
    """All files; `final`: with the intervals of FID and KID, which take a while. `kept`: photos in an avatar."""
    tables = by_table(people)
    distances = {which: set_distances(results, final) for which, results in tables.items()}
    everyone: dict[str, dict[str, Any]] = {}
    for person in people:
        got = person.results.items()
        everyone[person.name] = {
            str(which): {"frames": one.frames, **one.about, "scores": one.scores} for which, one in got
        }
        if person.skipped:
            everyone[person.name]["skipped"] = person.skipped
    summary = {str(which): _summary(results, distances[which]) for which, results in tables.items()}
    content = told | {"tables": summary, "people": everyone, "left out": left_out}
    (out / "evaluate.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    about = ", ".join(f"{name} {value}" for name, value in told.items())
    first = next(iter(tables.values()))
    head = f"{len(people)} people ({len(left_out)} left out), {sum(one.frames for one in first)} frames; {about}."
    parts = [head, *(_section(which, results, distances[which], kept) for which, results in tables.items())]
    if skipped := [f"{one.name}: {why}" for one in people for why in one.skipped.values()]:
        parts.append("Missing from a table: " + "; ".join(skipped) + ".")
    parts += [HOW, HOW_SETS, *([HOW_CROSS] if any(which.cross for which in tables) else [])]
    (out / "evaluate.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    for which, results in tables.items():
        _save(grid(which, results), out / f"grid-{which}.png")
    which, results = next(iter(tables.items()))
    ranked = _ranked(results)
    for title, one in (("best", ranked[0]), ("median", ranked[len(ranked) // 2]), ("worst", ranked[-1])):
        _save(np.vstack([_caption(which, one), one.strip]), out / f"{title}.png")


def _ranked(results: Sequence[Result]) -> list[Result]:
    """The best first: by LPIPS, or by CSIM where there is no true frame."""
    return sorted(results, key=lambda one: one.scores[TUNED].get("lpips", -one.scores[TUNED].get("csim", -1.0)))


def _caption(which: Which, one: Result) -> Image:
    titles = ["first photo", DRIVER if which.cross else f"{TRUTH} (drives)"]
    titles += [method for method in one.scores if method != TRUTH]
    side = one.strip.shape[1] // len(titles)
    caption = np.full((24, one.strip.shape[1], 3), 255, np.uint8)
    for column, title in enumerate(titles):
        cv2.putText(
            caption, title, (column * side + 4, 17), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (60, 60, 60), 1, cv2.LINE_AA
        )
    return caption


def grid(which: Which, results: Sequence[Result]) -> Image:
    """A row of pictures (the median frame) for up to eight people, evenly from the best to the worst."""
    ranked = _ranked(results)
    count = min(GRID_ROWS, len(ranked))
    shown = [ranked[round(index * (len(ranked) - 1) / max(count - 1, 1))] for index in range(count)]
    rows = []
    for one in shown:
        side = one.strip.shape[0] // 3
        rows.append(one.strip[side : 2 * side])
    return np.vstack([_caption(which, shown[0]), *rows])


def _save(picture: Image, path: Path) -> None:
    cv2.imwrite(str(path), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
