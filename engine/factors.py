"""A face taken apart: pose, eyes, lips, expression; and put together again, each from its own source.

After PD-FGC (Wang et al. 2023, arXiv 2211.14506), with landmarks for its codes. All is told on one *canvas*, the
neutral face of whoever is to make the motion, so that what came from four people fits together:

    pose         turn, place and size, relative to the source's neutral
    eyes         lids, irises and the skin between lid and brow, beside the corners of the eyes
    lips         how far the mouth is open, and what mouth, chin and cheeks do *fast*
    expression   brows, upper cheeks, nose, and what mouth, chin and cheeks do *slowly*

The paper's stage 3 keeps the mean over a window as the expression, and drives what is correlated with speech out of
it. Here the window lies in the past (`Splitter`), and how far the mouth is open is the lips' alone: it says more of
speech than anything, and its mean, in an expression, would keep lips apart that should touch.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace
from importlib import resources
from typing import Self

import numpy as np
from numpy.typing import NDArray

from engine import geometry
from engine.codec import shipped_basis
from engine.frames import POINT_COUNT, Face
from engine.motion import HeadFace, NeutralFinder, to_head, transfer_shape, turned, turned_by

Floats = NDArray[np.float32]

WINDOW_S = 0.4
"""Time constant of the mean that parts slow from fast: syllables last half of it, smiles several of it."""
EYEBALL_CM = 1.2
_LIP_PAIRS = np.array(list(zip(geometry.LIPS_INNER[1:10], reversed(geometry.LIPS_INNER[11:]), strict=True)))
_OUTER_PAIRS = np.array(list(zip(geometry.LIPS_OUTER[1:10], reversed(geometry.LIPS_OUTER[11:]), strict=True)))
_MIDDLE = slice(3, 6)
_LID_PAIRS = np.array(
    [pair for eye in (geometry.EYE_RIGHT, geometry.EYE_LEFT) for pair in zip(eye[1:8], reversed(eye[9:]), strict=True)]
)
_IRISES = [*geometry.IRIS_RIGHT, *geometry.IRIS_LEFT]
_EYE_POINTS = [*geometry.EYE_RIGHT, *geometry.EYE_LEFT, *_IRISES]
_MOUTH_POINTS = [*geometry.LIPS_OUTER, *geometry.LIPS_INNER, *geometry.JAW]
_CORNERS = ((33, 133), (362, 263))
_BROWS = [*geometry.BROW_RIGHT, *geometry.BROW_LEFT]


@dataclass(frozen=True, slots=True, eq=False)
class Factors:
    """One moment of one source, on the canvas. Lengths in centimetres of the canvas' head frame, y up."""

    pose: Floats
    """`[6]`: yaw, pitch and roll (degrees, `engine.motion.turned_by`), aside and down (centimetres), ln of the size."""
    eyes: Floats
    """`[478, 3]`: how the points move; zero where the eyes have no say. The other two alike."""
    lips: Floats
    gaps: Floats
    """`[9]`: how far apart the inner lips are, of the pairs from corner to corner. Part of the lips."""
    expression: Floats

    def between(self, other: Factors, share: float) -> Factors:
        """This one at `share` 0, `other` at 1; in a straight line."""
        if share <= 0 or share >= 1:
            return other if share >= 1 else self
        pairs = (
            (self.pose, other.pose),
            (self.eyes, other.eyes),
            (self.lips, other.lips),
            (self.gaps, other.gaps),
            (self.expression, other.expression),
        )
        return Factors(*(one + np.float32(share) * (two - one) for one, two in pairs))


# --- who owns which point -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Anatomy:
    """Shares of the factors in each point, and what an opening mouth moves."""

    eyes: Floats
    """`[478, 1]`, 0 to 1."""
    mouth: Floats
    """`[478, 1]`: what lips and expression share; the rest, `1 - eyes - mouth`, is expression."""
    opening: Floats
    """`[478, 3]`: the movement for each centimetre between the lips; zero outside the mouth."""
    rows: Floats
    """`[R, 478, 3]`: how mouths move fast beside opening, learned (`training.lips`); what a voice steers."""


@functools.cache
def _beside_corners() -> tuple[NDArray[np.intp], Floats]:
    """`[478]`, which eye each point is next to, and `[478, 1]`, how far along from its one corner to the other."""
    mean = shipped_basis().mean[:, :2]
    along = []
    for one, other in _CORNERS:
        way = mean[other] - mean[one]
        along.append(np.clip((mean - mean[one]) @ way / (way @ way), 0, 1))
    eye = (mean @ (mean[263] - mean[33]) > 0).astype(np.intp)
    return eye, np.where(eye == 0, *along)[:, None].astype(np.float32)


def _carried(moved: Floats) -> Floats:
    """`[478, 3]`: how the corners of the eyes move, and what lies between them along with them.

    That is no movement of lids and irises: it is where the head's own frame was found.
    """
    eye, share = _beside_corners()
    ends = moved[np.array(_CORNERS)]
    return (1 - share) * ends[eye, 0] + share * ends[eye, 1]


def _near(points: Floats, members: list[int], within_cm: float, until_cm: float) -> Floats:
    """`[478, 1]`: 1 for points within some distance of the members as seen from the front, falling to 0."""
    apart = np.linalg.norm(points[:, None, :2] - points[None, members, :2], axis=2).min(1)
    share = np.clip((until_cm - apart) / (until_cm - within_cm), 0, 1)
    return (share * share * (3 - 2 * share))[:, None].astype(np.float32)


@functools.cache
def shares() -> tuple[Floats, Floats]:
    """`Anatomy.eyes` and `Anatomy.mouth`, from the codec's mean face."""
    mean = shipped_basis().mean
    eyes = _near(mean, _EYE_POINTS, 0.25, 0.9)
    mouth = _near(mean, _MOUTH_POINTS, 0.4, 2.2)
    eyes[_BROWS] = 0.0
    mouth[geometry.NOSE[:8]] = 0.0
    mouth *= 1 - eyes
    return eyes, mouth


def read_anatomy(opening: Floats, rows: Floats) -> Anatomy:
    eyes, mouth = shares()
    return Anatomy(eyes, mouth, opening.astype(np.float32), rows.astype(np.float32).reshape(-1, POINT_COUNT, 3))


@functools.cache
def shipped_anatomy() -> Anatomy:
    with (
        resources.as_file(resources.files("engine") / "assets" / "lips" / "mouth.npz") as path,
        np.load(path, allow_pickle=False) as stored,
    ):
        return read_anatomy(stored["opening"], stored["rows"])


def gaps_of(shape: Floats) -> Floats:
    """`[9]`: how far the inner lips stand apart, signed."""
    return shape[_LIP_PAIRS[:, 0], 1] - shape[_LIP_PAIRS[:, 1], 1]


def opening_of(shape: Floats) -> float:
    """How far the mouth is open in its middle, centimetres."""
    return float(gaps_of(shape)[_MIDDLE].mean())


# --- apart --------------------------------------------------------------------------------------------------


def still(canvas: HeadFace) -> Factors:
    """The neutral face of the canvas."""
    nothing = np.zeros((POINT_COUNT, 3), np.float32)
    return Factors(np.zeros(6, np.float32), nothing, nothing, gaps_of(canvas.shape), nothing)


class Splitter:
    """One source's faces, in order of time, onto the canvas and apart. Not thread-safe; looks into no future.

    `finder` knows the neutral face of the source (`engine.motion`). Without one the source is the canvas' own face.
    """

    def __init__(
        self,
        canvas: HeadFace,
        finder: NeutralFinder | None = None,
        window_s: float = WINDOW_S,
        anatomy: Anatomy | None = None,
    ) -> None:
        self.finder = finder
        self._canvas, self._window_s = canvas, window_s
        self._anatomy = anatomy or shipped_anatomy()
        self._rest_opening = opening_of(canvas.shape)
        self._slow: Floats | None = None
        self._last_s = 0.0

    def __call__(self, face: Face) -> Factors:
        canvas, anatomy = self._canvas, self._anatomy
        now = to_head(face)
        if self.finder is None:
            neutral, shape = canvas, now.shape
        else:
            neutral = self.finder.look(face)
            shape = transfer_shape(now.shape, neutral.shape, canvas.shape)
        moved = shape - canvas.shape
        open_cm = np.float32(opening_of(shape) - self._rest_opening)
        opened = open_cm * anatomy.opening
        left = anatomy.mouth * moved - opened
        if self._slow is None:
            self._slow = left
        else:
            share = 1 - math.exp(-max(face.time_s - self._last_s, 0.0) / self._window_s)
            self._slow = self._slow + np.float32(share) * (left - self._slow)
        self._last_s = face.time_s
        eyes = anatomy.eyes * (moved - _carried(moved))
        lips = opened + left - self._slow
        return Factors(_pose(now, neutral), eyes, lips, gaps_of(shape), moved - eyes - lips)


def _pose(now: HeadFace, neutral: HeadFace) -> Floats:
    shift = (now.translation[:2] - neutral.translation[:2]) / neutral.scale
    return np.array([*turned_by(now, neutral), *shift, math.log(now.scale / neutral.scale)], np.float32)


# --- and together -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sources:
    """Where each factor comes from, at one moment."""

    pose: Factors
    eyes: Factors
    lips: Factors
    expression: Factors

    @classmethod
    def all(cls, one: Factors) -> Self:
        return cls(one, one, one, one)


class Mixer:
    """Factors of any sources -> the face of the canvas that has them all; keeps nothing from frame to frame."""

    def __init__(self, canvas: Face) -> None:
        self.face = canvas
        self.canvas = to_head(canvas)

    def __call__(self, given: Sources, time_s: float) -> Face:
        canvas, pose = self.canvas, given.pose.pose
        shape = canvas.shape + given.eyes.eyes + given.lips.lips + given.expression.expression
        # Lips that touch in their source shall touch, whatever the expression does to them.
        missing = ((given.lips.gaps - gaps_of(shape)) / 2)[:, None]
        for pairs in (_LIP_PAIRS, _OUTER_PAIRS):
            shape[pairs, 1] += missing * np.array([1, -1], np.float32)
        shift = np.array([*pose[3:5], 0], np.float32) * np.float32(canvas.scale)
        moved = HeadFace(
            shape.astype(np.float32),
            turned(canvas, pose[:3]),
            canvas.translation + shift,
            canvas.scale * math.exp(float(pose[5])),
        )
        return replace(
            self.face,
            points=moved.to_picture(),
            rotation=moved.rotation,
            translation=moved.translation,
            scale=moved.scale,
            time_s=time_s,
        )


# --- factors that come from no face -------------------------------------------------------------------------


def pose_of(yaw_deg: float = 0.0, pitch_deg: float = 0.0, roll_deg: float = 0.0) -> Floats:
    """`Factors.pose` of a head turned so, signs as `engine.tracker.euler_deg`'s."""
    return np.array([yaw_deg, pitch_deg, roll_deg, 0, 0, 0], np.float32)


def eyes_of(canvas: HeadFace, open_share: float = 1.0, aside_deg: float = 0.0, up_deg: float = 0.0) -> Floats:
    """`Factors.eyes`: lids opened to a share of the canvas' (0 is shut), eyes turned to the picture's right and up.

    The upper lid does most of the way, and follows the eye up and down, as lids do.
    """
    moved = np.zeros((POINT_COUNT, 3), np.float32)
    upper, lower = _LID_PAIRS.T
    gap = canvas.shape[upper, 1] - canvas.shape[lower, 1]
    lifted = (open_share - 1) * gap
    lifted += 0.3 * EYEBALL_CM * math.sin(math.radians(up_deg)) * gap / max(float(gap.max()), 1e-3) * min(open_share, 1)
    moved[upper, 1], moved[lower, 1] = 0.85 * lifted, -0.15 * lifted
    moved[_IRISES, 0] = EYEBALL_CM * math.sin(math.radians(aside_deg))
    moved[_IRISES, 1] = EYEBALL_CM * math.sin(math.radians(up_deg))
    return moved


class Idle:
    """What a living head does by itself: blinks every few seconds, and never keeps quite still. Times may only grow."""

    def __init__(self, canvas: HeadFace, seed: int = 0) -> None:
        self._canvas = canvas
        self._random = np.random.default_rng(seed)
        self._next_s = 1.0 + float(self._random.uniform(0, 2))
        self._waves = self._random.uniform(0, 2 * math.pi, (5, 2))

    def eyes(self, time_s: float) -> Floats:
        """Shut within 80 ms, open again within 200 more; every two to seven seconds."""
        while time_s > self._next_s + 0.3:
            self._next_s += float(np.clip(self._random.lognormal(1.25, 0.4), 2, 7))
        since_s = time_s - self._next_s
        shut = 0.0
        if 0 <= since_s < 0.08:
            shut = since_s / 0.08
        elif since_s >= 0.08:
            shut = max(1 - (since_s - 0.08) / 0.2, 0.0)
        shut = shut * shut * (3 - 2 * shut)
        return eyes_of(self._canvas, 1 - shut)

    def pose(self, time_s: float) -> Floats:
        """Slow waves of no common period: two degrees of turn, a millimetre or two aside."""
        sizes = np.array([1.4, 1.0, 0.6, 0.12, 0.08])
        rates_hz = np.array([[0.07, 0.19], [0.11, 0.27], [0.09, 0.23], [0.06, 0.17], [0.08, 0.21]])
        waves = np.sin(2 * math.pi * rates_hz * time_s + self._waves) @ np.array([0.7, 0.3])
        return np.array([*(sizes * waves), 0], np.float32)
