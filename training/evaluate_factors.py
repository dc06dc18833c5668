"""Does each factor follow its own source, and leave the others alone? `python -m training.evaluate_factors HEADS`

For pairs of people of the test split, one holds and one drives: an avatar is drawn with all factors of the first, with
all of the second, and with one factor of the second and the rest of the first. The tracker looks at the pictures; our
own codes have no say. A matrix (JSON and PNG) tells for each driven factor

    of what it owns           the correlation with the second person's clip
    of what it does not own   how far it moved what the first held, % of what all factors together move it
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import ImageDraw, ImageFont

from engine import avatar as avatars
from engine import config as configs
from engine import geometry
from engine.base import open_base
from engine.factors import Factors, Mixer, Sources, Splitter
from engine.frames import Face, Frame
from engine.motion import NeutralFinder, to_head
from engine.renderer import Renderer, avatar_face
from engine.tracker import Tracker, euler_deg
from training.basis import load_track, save_track, track
from training.evaluate import read_index
from training.measures import gaze, lid_openings, mouth_opening

logger = logging.getLogger(__name__)

Array = NDArray[np.float64]

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
    "lids": 2.0,
    "gaze": 1.0,
    "mouth": 1.0,
    "brows": 0.6,
    "smile": 0.6,
}
"""A correlation means something where the source moved at least so much (standard deviation)."""
_SMILE_FRAMES = 25


def measured(face: Face) -> dict[str, float]:
    """Degrees, and % of the face's own measures (`training.measures`)."""
    yaw, pitch, roll = euler_deg(face.rotation)
    shape = to_head(face).shape
    unit = float(np.linalg.norm(shape[33] - shape[263]))
    brows = shape[[*geometry.BROW_RIGHT, *geometry.BROW_LEFT], 1].mean() - shape[[33, 133, 362, 263], 1].mean()
    return {
        "yaw": yaw,
        "pitch": pitch,
        "roll": roll,
        "lids": float(np.mean(lid_openings(face.points))),
        "gaze": float(gaze(face.points)[:, 0].mean()),
        "mouth": mouth_opening(face.points),
        "brows": 100 * float(brows) / unit,
        "smile": 100 * float(np.linalg.norm(shape[61] - shape[291])) / unit,
    }


def columns(rows: Sequence[dict[str, float] | None]) -> dict[str, Array]:
    """Each measure over time; what the tracker missed is between its neighbours. The smile is slow: a second's mean."""
    at = np.array([k for k, row in enumerate(rows) if row is not None])
    if len(at) < len(rows) / 2:
        raise ValueError("the tracker finds no face in most of the pictures")
    told = {key: np.interp(np.arange(len(rows)), at, [row[key] for row in rows if row is not None]) for key in MEASURES}
    padded = np.pad(told["smile"], (_SMILE_FRAMES - 1, 0), mode="edge")
    told["smile"] = np.convolve(padded, np.ones(_SMILE_FRAMES) / _SMILE_FRAMES, "valid")
    return told


class Stage:
    """One avatar, and the tracker that looks at it."""

    def __init__(self, name: str, config: configs.Config, tracker: Tracker) -> None:
        base = open_base()
        self._avatar = avatars.load(avatars.find(name), base.sha256)
        self._config = replace(config, render=replace(config.render, size_px=256, background="photo"))
        self._base, self._tracker = base, tracker
        self.canvas = avatar_face(self._avatar)

    def split(self, faces: Sequence[Face]) -> list[Factors]:
        finder = NeutralFinder()
        finder.prime(list(faces[::3]))
        splitter = Splitter(to_head(self.canvas), finder)
        return [splitter(face) for face in faces]

    def show(self, sources: Sequence[Sources]) -> dict[str, Array]:
        """Draws, looks, and measures."""
        renderer = Renderer(self._avatar, self._base, self._config)
        renderer.retarget.finder.pin(self.canvas)
        mix = Mixer(self.canvas)
        self._tracker.reset()
        rows: list[dict[str, float] | None] = []
        for number, given in enumerate(sources):
            frame = renderer.draw(mix(given, number / 25))
            seen = self._tracker.track(Frame(frame.rgb, number / 25))
            rows.append(measured(seen) if isinstance(seen, Face) else None)
        return columns(rows)


def compare(stage: Stage, holding: Sequence[Face], driving: Sequence[Face]) -> dict[str, dict[str, float]]:
    """driven factor -> measure -> correlation (owned) or share of the full transfer's change (not owned)."""
    held, driven = stage.split(holding), stage.split(driving)
    before = stage.show([Sources.all(one) for one in held])
    full = stage.show([Sources.all(one) for one in driven])
    source = columns([measured(face) for face in driving])
    told: dict[str, dict[str, float]] = {}
    for factor, owned in OWNED.items():
        mixed = [replace(Sources.all(one), **{factor: other}) for one, other in zip(held, driven, strict=True)]
        shown = stage.show(mixed)
        row = told[factor] = {}
        for key in MEASURES:
            if key in owned:
                if source[key].std() >= LEAST_SPREAD[key] and shown[key].std() > 0:
                    row[key] = float(np.corrcoef(shown[key], source[key])[0, 1])
            else:
                change = float(np.abs(full[key] - before[key]).mean())
                if change >= 0.5 * LEAST_SPREAD[key]:
                    row[key] = float(np.abs(shown[key] - before[key]).mean()) / change
    return told


def summary(told: Sequence[dict[str, dict[str, float]]]) -> dict[str, dict[str, tuple[float, int]]]:
    """Median over the pairs, and how many of them had something to say."""
    means: dict[str, dict[str, tuple[float, int]]] = {}
    for factor in OWNED:
        means[factor] = {}
        for key in MEASURES:
            values = [one[factor][key] for one in told if key in one[factor]]
            if values:
                means[factor][key] = float(np.median(values)), len(values)
    return means


def picture(means: dict[str, dict[str, tuple[float, int]]], path: Path) -> None:
    """The matrix: correlations framed, green from 0.8; changes in %, green up to 10."""
    font = ImageFont.load_default(16)
    wide, high, left, top = 92, 56, 110, 44
    sheet = Pillow.new("RGB", (left + wide * len(MEASURES) + 12, top + high * len(OWNED) + 44), "white")
    pen = ImageDraw.Draw(sheet)
    for x, key in enumerate(MEASURES):
        pen.text((left + wide * (x + 0.5), top / 2), key, "black", font, "mm")
    for y, (factor, owned) in enumerate(OWNED.items()):
        pen.text((8, top + high * (y + 0.5)), factor, "black", font, "lm")
        for x, key in enumerate(MEASURES):
            box = (left + wide * x + 2, top + high * y + 2, left + wide * (x + 1) - 2, top + high * (y + 1) - 2)
            if key not in means[factor]:
                pen.rectangle(box, "#eeeeee")
                continue
            value = means[factor][key][0]
            own = key in owned
            good = min(max((value - 0.5) / 0.4, 0), 1) if own else min(max(1 - (value - 0.05) / 0.35, 0), 1)
            pen.rectangle(box, (round(245 - 95 * good), round(150 + 75 * good), 150), "black" if own else None, 3)
            middle = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
            pen.text(middle, f"{value:.2f}" if own else f"{100 * value:.0f} %", "black", font, "mm")
    legend = "framed: correlation with the source; else: change, % of what a full transfer changes"
    pen.text((left, top + high * len(OWNED) + 22), legend, "black", font, "lm")
    sheet.save(path)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m training.evaluate_factors", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("heads", type=Path, help="folder of head clips with index.tsv")
    parser.add_argument("--avatar", action="append", required=True, help="name or file; may be given more than once")
    parser.add_argument("--pairs", type=int, default=4, help="of people of the test split, for each avatar")
    parser.add_argument("--frames", type=int, default=100)
    parser.add_argument("--tracks", type=Path, default=Path("runs/tracks"), help="where tracked clips are kept")
    parser.add_argument("--out", type=Path, default=Path("runs/factors"))
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    config = configs.load()
    tracker = Tracker.from_config(config.tracker)
    people: list[list[Face]] = []
    for person, clips in sorted(read_index(options.heads, "test").items()):
        kept = options.tracks / "test" / f"{person}_{clips[0].stem}_{options.frames}.npz"
        if not kept.exists():
            save_track(kept, track(clips[0], tracker, config.tracker, options.frames))
        faces = [face for face in load_track(kept) if isinstance(face, Face)]
        if len(faces) == options.frames:
            people.append(faces)
        if len(people) > options.pairs:
            break
    told = []
    for name in options.avatar:
        stage = Stage(name, config, tracker)
        for number in range(min(options.pairs, len(people) - 1)):
            told.append(compare(stage, people[number], people[number + 1]))
            logger.info("%s, pair %d: %s", name, number, json.dumps(told[-1]))
    tracker.close()
    options.out.mkdir(parents=True, exist_ok=True)
    means = summary(told)
    (options.out / "factors.json").write_text(json.dumps({"median": means, "pairs": told}, indent=1))
    picture(means, options.out / "factors.png")
    logger.info("%s", json.dumps(means, indent=1))


if __name__ == "__main__":
    main()
