"""Clips of heads -> the codec's basis and tables: `python -m training.basis HEADS --out engine/assets/codec/basis.npz`.

HEADS is a folder of head clips with an `index.tsv` (`training.prepare`). One clip of each person of the train split is
tracked as in a call, smoothing included; the numbers are kept in `--tracks`. What the arrays mean stands at the top of
`engine.codec`; `training.measure_codec` says what they are worth.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.error import FFmpegError
from numpy.typing import NDArray

from engine import config as configs
from engine import geometry
from engine.codec import (
    COUNT_BITS,
    MAX_FRAMES,
    MODES,
    POSE,
    QUALITIES,
    Basis,
    frame_order,
    mode_of,
    nearest,
    parameters,
    predict,
    read_basis,
)
from engine.frames import POINT_COUNT, Face, Frame, NoFace
from engine.motion import HeadFace, neutrality, to_head
from engine.tracker import Smoother, Tracker
from training.protocol import read_index

logger = logging.getLogger(__name__)

Array = NDArray[np.float64]

EXPRESSIONS = 48
IDENTITIES = 48
LEAST_FRAMES = 50
FINEST_STEPS = (0.175, 0.175, 0.175, 0.0175, 0.0175, 0.07, 0.0021, *[0.35] * EXPRESSIONS)
"""Steps of the parameters at the best quality: degrees, cm, ln of size, and weights of expressions."""
COARSER = 2**0.4
"""From one quality to the next."""
EVEN = 4
"""From this quality on all steps grow alike."""
IDENTITY_STEP, REST_STEP = 0.2, 0.08
WEIGHTS = {"lips": 1.7, "lids": 3.0, "corners": 6.0, "irises": 8.0}
"""How much more an error counts there. The gaze is where the irises stand between the corners of the eyes."""
# fmt: off
BETWEEN_LIPS = [
    11, 12, 15, 16, 38, 41, 42, 62, 72, 73, 74, 76, 77, 85, 86, 89, 90, 96, 179, 180, 183, 184, 268, 271, 272, 292,
    302, 303, 304, 306, 307, 315, 316, 319, 320, 325, 403, 404, 407, 408,
]
# fmt: on
FAINTEST, PER_OCTAVE, OCTAVES = -6, 3, 14
"""Table t expects differences of mean size `2 ** (FAINTEST + t / PER_OCTAVE)`."""
REACH = 400
PACKETS = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
"""Lengths of packets to learn from, frames."""


# --- tracks -------------------------------------------------------------------------------------------------


def track(clip: Path, tracker: Tracker, config: configs.Tracker, frames: int) -> list[Face | NoFace]:
    """The first frames of a clip, tracked and smoothed as in a call. Raises `ValueError` when it cannot be decoded."""
    tracker.reset()
    smoother = Smoother.from_config(config)
    found: list[Face | NoFace] = []
    try:
        with av.open(str(clip)) as container:
            for picture in container.decode(video=0):
                if len(found) == frames:
                    break
                rgb = np.asarray(picture.to_ndarray(format="rgb24"), np.uint8)
                seen = tracker.track(Frame(rgb, float(picture.time or 0)))
                if isinstance(seen, NoFace):
                    smoother.reset()
                found.append(smoother.smooth(seen) if isinstance(seen, Face) else seen)
    except FFmpegError as error:
        raise ValueError(f"{clip} cannot be decoded: {error}") from None
    return found


def save_track(path: Path, faces: Sequence[Face | NoFace]) -> None:
    """Numbers only; where there was no face the scale is 0."""
    path.parent.mkdir(parents=True, exist_ok=True)
    blank = Face(
        np.zeros((POINT_COUNT, 3), np.float32),
        np.eye(3, dtype=np.float32),
        np.zeros(3, np.float32),
        0.0,
        0.0,
        (0, 0),
        0.0,
    )
    rows = [face if isinstance(face, Face) else blank for face in faces]
    np.savez(
        path,
        points=np.stack([row.points for row in rows]),
        rotation=np.stack([row.rotation for row in rows]).astype(np.float32),
        translation=np.stack([row.translation for row in rows]).astype(np.float32),
        scale=np.array([row.scale for row in rows]),
        visibility=np.array([row.visibility for row in rows]),
        size_px=np.array([row.size_px for row in rows]),
        time_s=np.array([face.time_s for face in faces]),
    )


def load_track(path: Path) -> list[Face | NoFace]:
    with np.load(path, allow_pickle=False) as kept:
        names = ("points", "rotation", "translation", "scale", "visibility", "size_px", "time_s")
        columns = [kept[name] for name in names]
    return [
        Face(points, rotation, translation, float(scale), float(seen), (int(size[0]), int(size[1])), float(time_s))
        if scale > 0
        else NoFace(float(time_s))
        for points, rotation, translation, scale, seen, size, time_s in zip(*columns, strict=True)
    ]


def tracks(
    heads: Path, kept: Path, split: str, people: int, frames: int, clips: int = 1
) -> Iterator[tuple[str, list[Face | NoFace]]]:
    """(person, faces) of the longest clips of each person; tracked where they are not in the folder `kept` yet."""
    tracker: Tracker | None = None
    config = configs.load().tracker
    index = read_index(heads, split)
    order = np.random.default_rng(0).permutation(sorted(index))[:people]
    for person in map(str, order):
        for clip in index[person][:clips]:
            path = kept / split / f"{person}_{clip.stem}_{frames}.npz"
            if not path.exists():
                tracker = tracker or Tracker.from_config(config)
                try:
                    save_track(path, track(clip, tracker, config, frames))
                except ValueError as error:
                    logger.warning("%s", error)
                    continue
                logger.info("tracked %s", path.stem)
            yield person, load_track(path)
    if tracker:
        tracker.close()


# --- learning -----------------------------------------------------------------------------------------------


def importance() -> NDArray[np.float32]:
    """`[478]`: how much an error of each point counts."""
    weights = np.ones(POINT_COUNT, np.float32)
    lids = geometry.EYE_RIGHT + geometry.EYE_LEFT
    weights[geometry.LIPS_OUTER + geometry.LIPS_INNER + BETWEEN_LIPS] = WEIGHTS["lips"]
    weights[lids] = WEIGHTS["lids"]
    weights[[33, 133, 362, 263]] = WEIGHTS["corners"]
    weights[468:] = WEIGHTS["irises"]
    return weights


def components(rows: Array, count: int) -> Array:
    """`[count, D]`: the directions in which the rows `[N, D]` vary most about zero."""
    _, vectors = np.linalg.eigh(rows.T @ rows / len(rows))
    return vectors[:, ::-1][:, :count].T


def windows(people: Sequence[Array], count: int) -> Array:
    """`[count, B, P]`: all that is said as packets of `count` frames, one after the other."""
    whole = [values[: len(values) // count * count].reshape(-1, count, values.shape[1]) for values in people]
    return np.concatenate(whole).transpose(1, 0, 2)


def differences(basis: Basis, values: Array, quality: int) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """(mode, `[B, P]` differences) of packets `[N, B, P]`, rounded as the encoder does before it weighs the bits."""
    wanted = values / basis.steps[quality]
    levels = np.zeros(wanted.shape, np.int64)
    for order in frame_order(len(values)):
        predicted = predict(basis, levels, quality, order)
        levels[order[0]] = nearest(wanted[order[0]], predicted)
        yield mode_of(order), levels[order[0]] - predicted


def histograms(found: NDArray[np.int64]) -> NDArray[np.int64]:
    """`[B, P]` differences -> `[P, 2 * REACH + 1]`: how often each was met."""
    width = 2 * REACH + 1
    places = np.clip(found, -REACH, REACH) + REACH + np.arange(found.shape[1]) * width
    return np.bincount(places.ravel(), minlength=found.shape[1] * width).reshape(-1, width)


def cumulative(histogram: Array) -> NDArray[np.int64]:
    """Counts that sum to `2 ** COUNT_BITS`, none of them zero, added up from 0."""
    room = (1 << COUNT_BITS) - len(histogram)
    ideal = histogram / histogram.sum() * room
    counts = np.floor(ideal).astype(np.int64)
    short = room - int(counts.sum())
    counts[np.argsort(counts - ideal, kind="stable")[:short]] += 1
    return np.concatenate([[0], np.cumsum(counts + 1)])


def table_of(sizes: Array) -> NDArray[np.int64]:
    """The table for a mean size of difference."""
    found = np.rint(PER_OCTAVE * (np.log2(np.maximum(sizes, 1e-9)) - FAINTEST))
    return np.clip(found, 0, PER_OCTAVE * OCTAVES - 1).astype(np.int64)


def learn_tables(pooled: Array) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
    """Histograms `[T, 2 * REACH + 1]` of what was coded with each table -> cumulative counts and reach.

    What was seen in the clips is eked out with a distribution of heavy tails: people move in ways that no clip shows.
    """
    places = np.arange(-REACH, REACH + 1)
    counts = np.zeros((len(pooled), 2 * REACH + 3), np.uint16)
    reach = np.zeros(len(pooled), np.uint16)
    for number, seen in enumerate(pooled):
        size = 2 ** (FAINTEST + number / PER_OCTAVE)
        spread = max(size, 0.3)
        tails = (1 + (places / spread) ** 2) ** -1.8
        tails[REACH] = tails.sum() * max(1 / size - 1, 0.5) if size < 1 else tails[REACH]
        blend = seen + seen[::-1] + max(2000.0, 0.02 * seen.sum()) * tails / tails.sum()
        blend /= blend.sum()
        outside = np.array([1 - blend[REACH - k : REACH + k + 1].sum() for k in range(1, REACH)])
        reach[number] = 1 + int(np.argmax(outside < 1e-3)) if (outside < 1e-3).any() else REACH - 1
        k = int(reach[number])
        inside = blend[REACH - k : REACH + k + 1]
        sums = cumulative(np.concatenate([[max(1 - inside.sum(), 1e-4)], inside]))
        counts[number, : len(sums)] = sums
    return counts, reach


def neutral_of(seen: Sequence[Face]) -> HeadFace:
    return to_head(min(seen[::5], key=neutrality))


def ladder(share: Array) -> Array:
    """`[QUALITIES, P]`: steps, all growing alike down to `EVEN`; below it the slower, the more of an expression's
    movement (`share` `[EXPRESSIONS]`, 0..1) is in lips, lids and irises."""
    growth = np.concatenate([np.full(POSE, 0.9), 1.4 - 0.8 * share])
    down = np.arange(QUALITIES - 1, -1, -1)[:, None].astype(float)
    kept = QUALITIES - 1 - EVEN
    return np.array(FINEST_STEPS) * COARSER ** (np.minimum(down, kept) + np.maximum(down - kept, 0) * growth)


def learn(people: Sequence[Sequence[Face]]) -> dict[str, NDArray[Any]]:
    """One clip of each person -> the arrays of the basis file."""
    neutrals = [neutral_of(seen) for seen in people]
    shapes = np.stack([one.shape for one in neutrals]).reshape(len(people), -1).astype(np.float64)
    mean = shapes.mean(axis=0).astype(np.float16)
    identity = components(shapes - mean, IDENTITIES).astype(np.float16)
    weights = importance().astype(np.float16)
    xyz = (weights[:, None] * np.array([1, 1, 0.5])).ravel()
    off = [
        np.stack([to_head(face).shape for face in seen]).reshape(len(seen), -1) - neutral.shape.reshape(-1)
        for seen, neutral in zip(people, neutrals, strict=True)
    ]
    expression = (components(np.concatenate(off) * xyz, EXPRESSIONS) / xyz).astype(np.float16)
    live = expression.astype(np.float64) * xyz
    share = (live**2).reshape(EXPRESSIONS, POINT_COUNT, 3)[:, weights > 1].sum(axis=(1, 2)) / (live**2).sum(axis=1)
    arrays: dict[str, NDArray[Any]] = {
        "mean": mean.reshape(POINT_COUNT, 3),
        "expression": expression,
        "weights": weights,
        "steps": ladder(share).astype(np.float32),
        "identity": identity,
        "identity_step": np.array(IDENTITY_STEP),
        "rest_step": np.array(REST_STEP),
    }
    return arrays | learn_statistics(arrays, people, neutrals, shapes)


def learn_statistics(
    arrays: dict[str, NDArray[Any]], people: Sequence[Sequence[Face]], neutrals: Sequence[HeadFace], shapes: Array
) -> dict[str, NDArray[Any]]:
    """Means, leaks, tables, and which table codes what."""
    draft = Basis(
        **{name: arrays[name].astype(np.float32) for name in ("mean", "expression", "weights", "steps", "identity")},
        means=np.zeros((QUALITIES, len(FINEST_STEPS)), np.int64),
        leaks=np.full((MAX_FRAMES, len(FINEST_STEPS)), 256, np.int64),
        models=np.zeros((QUALITIES, MODES, len(FINEST_STEPS)), np.uint8),
        counts=np.zeros((0, 0), np.uint16),
        reach=np.zeros(0, np.uint16),
        identity_step=IDENTITY_STEP,
        identity_models=np.zeros(0, np.uint8),
        rest_step=REST_STEP,
        rest_models=np.zeros(0, np.uint8),
        sha256=b"",
    )
    analysis = draft.analysis(draft.expression, draft.weights_xyz)
    said = [parameters(seen, neutral, analysis) for seen, neutral in zip(people, neutrals, strict=True)]
    everything = np.concatenate(said)
    mean = everything.mean(axis=0)
    mean[:POSE] = 0  # wherever the camera stands
    draft.means[:] = np.rint(mean / draft.steps)
    for apart in range(1, MAX_FRAMES):
        pairs = [(one[:-apart] - mean, one[apart:] - mean) for one in said]
        then, now = (np.concatenate(side) for side in zip(*pairs, strict=True))
        draft.leaks[apart] = np.clip(np.rint(256 * (then * now).sum(0) / (then * then).sum(0)), 0, 256)

    found = np.zeros((QUALITIES, MODES, len(FINEST_STEPS), 2 * REACH + 1), np.int32)
    for packet in (windows(said, count) for count in PACKETS):
        for quality in range(QUALITIES):
            for mode, said_now in differences(draft, packet, quality):
                found[quality, mode] += histograms(said_now)
    places = np.abs(np.arange(-REACH, REACH + 1))
    often = found.sum(axis=-1)
    sizes = (found @ places) / np.maximum(often, 1)
    for mode in range(1, MODES):
        if not often[:, mode].any():  # a length of packets that was left out: as the one before it
            sizes[:, mode] = sizes[:, mode - 1]
    models = table_of(sizes)
    pooled = np.zeros((PER_OCTAVE * OCTAVES, 2 * REACH + 1))
    np.add.at(pooled, models.ravel(), found.reshape(-1, 2 * REACH + 1))

    rows = draft.analysis(draft.identity, np.ones(POINT_COUNT * 3, np.float32))
    # People are few and the rows were learned from the same ones: their tables are a third of an octave wider.
    traits = np.rint((shapes - draft.mean.reshape(-1)) @ rows / IDENTITY_STEP)
    rest = (shapes - draft.mean.reshape(-1) - traits * IDENTITY_STEP @ draft.identity) / REST_STEP
    identity_models = table_of(np.abs(traits).mean(axis=0)) + 1
    rest_models = table_of(np.abs(np.rint(rest)).reshape(-1, POINT_COUNT, 3).mean(axis=(0, 1))) + 2
    counts, reach = learn_tables(pooled)
    return {
        "means": draft.means.astype(np.int16),
        "leaks": draft.leaks.astype(np.int16),
        "models": models.astype(np.uint8),
        "counts": counts,
        "reach": reach,
        "identity_models": identity_models.astype(np.uint8),
        "rest_models": rest_models.astype(np.uint8),
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m training.basis", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("heads", type=Path, help="folder of head clips with index.tsv")
    parser.add_argument("--out", type=Path, required=True, help="the basis file to write")
    parser.add_argument("--tracks", type=Path, default=Path("runs/tracks"), help="where tracked clips are kept")
    parser.add_argument("--people", type=int, default=250)
    parser.add_argument("--frames", type=int, default=300, help="of each clip")
    parser.add_argument("--hold-out", type=int, default=0, help="leave every N-th person out; 0 = nobody")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    found = tracks(options.heads, options.tracks, "train", options.people, options.frames)
    people = [
        seen
        for number, (_, faces) in enumerate(found)
        if not (options.hold_out and number % options.hold_out == 0)
        and len(seen := [face for face in faces if isinstance(face, Face)]) >= LEAST_FRAMES
    ]
    logger.info("%d people, %d frames", len(people), sum(map(len, people)))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(options.out, **learn(people))
    basis = read_basis(options.out.read_bytes())
    logger.info("%s: %d bytes, sha256 %s", options.out, options.out.stat().st_size, basis.sha256.hex()[:8])


if __name__ == "__main__":
    main()
