"""Tracked clips -> how a whole face moves when its mouth's corners smile: `python -m training.mood HEADS`.

HEADS is a folder of head clips with an `index.tsv` (`training.prepare`). Of one clip of each person of the train split,
on the codec's mean face, every point is regressed on how far the corners go out and up, beside how wide the mouth is
open and how high the brows are, so that neither comes along. Nobody's own smile is kept, only what they share.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engine import geometry
from engine.codec import shipped_basis
from engine.factors import opening_of
from engine.frames import POINT_COUNT, Face
from engine.motion import neutrality, to_head, transfer_shape
from training.basis import tracks

logger = logging.getLogger(__name__)

Floats = NDArray[np.float32]

CORNERS = (61, 291)
LEAST_FRAMES = 20
EVERY = 5
CLEAR = 0.7
SMILE = 2.0
"""The shipped row is this many standard deviations of what people do, all expressions together."""


def measures(shape: Floats) -> Floats:
    """`[4]` centimetres: between the corners, their height over the lips' middle, opening, height of the brows."""
    right, left = shape[CORNERS[0]], shape[CORNERS[1]]
    middle = shape[[0, 13, 14, 17], 1].mean()
    brows = shape[[*geometry.BROW_RIGHT, *geometry.BROW_LEFT], 1].mean()
    width = np.linalg.norm(right - left)
    return np.array([width, (right[1] + left[1]) / 2 - middle, opening_of(shape), brows], np.float32)


def learn(people: Iterable[list[Face]]) -> Floats:
    """`[478, 3]`: the shared smile. Raises `ValueError` when nobody is seen for long enough."""
    mean = shipped_basis().mean
    shapes, seen = [], []
    for faces in people:
        clear = [face for face in faces if face.visibility > CLEAR][::EVERY]
        if len(clear) < LEAST_FRAMES:
            continue
        neutral = to_head(min(clear, key=neutrality)).shape
        on_mean = np.stack([transfer_shape(to_head(face).shape, neutral, mean) for face in clear])
        told = np.stack([measures(shape) for shape in on_mean])
        shapes.append((on_mean - on_mean.mean(0)).reshape(len(clear), -1))
        seen.append(told - told.mean(0))
    if not shapes:
        raise ValueError(f"no clip here shows a face clearly in {LEAST_FRAMES * EVERY} frames")
    told = np.concatenate(seen)
    told /= told.std(0)
    smile = told[:, 0] + told[:, 1]
    causes = np.column_stack([smile / smile.std(), told[:, 2], told[:, 3]])
    rows, *_ = np.linalg.lstsq(causes, np.concatenate(shapes), rcond=None)
    found = SMILE * rows[0].reshape(POINT_COUNT, 3)
    found[[*geometry.IRIS_RIGHT, *geometry.IRIS_LEFT]] = 0  # a mood looks nowhere
    logger.info("%d people, %d frames; corners %s", len(shapes), len(told), np.round(found[list(CORNERS)], 2).tolist())
    return found.astype(np.float32)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m training.mood", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("heads", type=Path, help="folder of head clips with index.tsv")
    parser.add_argument("--out", type=Path, default=Path("engine/assets/lips/mood.npz"))
    parser.add_argument("--tracks", type=Path, default=Path("runs/tracks"), help="where tracked clips are kept")
    parser.add_argument("--people", type=int, default=250)
    parser.add_argument("--frames", type=int, default=300, help="of each clip")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    found = tracks(options.heads, options.tracks, "train", options.people, options.frames)
    smile = learn([face for face in faces if isinstance(face, Face)] for _, faces in found)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(options.out, smile=smile.astype(np.float16))


if __name__ == "__main__":
    main()
