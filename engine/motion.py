"""Whose motion, on whose face: the driver's `Face` -> the avatar's landmarks in its own crop.

`Retarget` expresses every face in the head's own frame (`to_head`), so that pose and shape part, and moves the
avatar's neutral face by what the driver's face differs from the driver's *own* neutral: the shape of the driver's face
never reaches the avatar. `NeutralFinder` finds that neutral frame; `Rest` carries the avatar through the moments in
which there is no face.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from engine import geometry
from engine.frames import Face, NoFace
from engine.tracker import euler_deg

Floats = NDArray[np.float32]

_LIP_PAIRS = list(zip(geometry.LIPS_INNER[1:10], reversed(geometry.LIPS_INNER[11:]), strict=True))
_LIDS = (
    list(zip(geometry.EYE_RIGHT[1:8], reversed(geometry.EYE_RIGHT[9:]), strict=True)),
    list(zip(geometry.EYE_LEFT[1:8], reversed(geometry.EYE_LEFT[9:]), strict=True)),
)
_EYE_CORNERS = ((33, 133), (362, 263))
_OUTER_OF_UPPER = dict(zip(geometry.LIPS_INNER[1:10], geometry.LIPS_OUTER[1:10], strict=True))
_OUTER_OF_LOWER = dict(zip(geometry.LIPS_INNER[11:], geometry.LIPS_OUTER[11:], strict=True))


@dataclass(frozen=True, slots=True, eq=False)
class HeadFace:
    """A face in its head's own frame: `shape [478, 3]` centimetres, and the pose that puts it into a picture."""

    shape: Floats
    rotation: Floats
    translation: Floats
    scale: float

    def to_picture(self) -> Floats:
        """`[478, 3]` in the units of `translation`."""
        return (self.scale * self.shape @ self.rotation.T + self.translation).astype(np.float32)


def to_head(face: Face) -> HeadFace:
    shape = (face.points - face.translation) @ face.rotation / face.scale
    return HeadFace(shape.astype(np.float32), face.rotation, face.translation, face.scale)


def between(first: HeadFace, second: HeadFace, share: float) -> HeadFace:
    """`share` of the way from one face to the other; beyond 1, the motion goes on."""
    turn = cv2.Rodrigues((second.rotation @ first.rotation.T).astype(np.float64))[0]
    part = cv2.Rodrigues(turn * share)[0]
    return HeadFace(
        (first.shape + share * (second.shape - first.shape)).astype(np.float32),
        (part @ first.rotation).astype(np.float32),
        (first.translation + share * (second.translation - first.translation)).astype(np.float32),
        float(first.scale * (second.scale / first.scale) ** share),
    )


def head_rotation(yaw_deg: float, pitch_deg: float, roll_deg: float) -> Floats:
    """The `Face.rotation` that `engine.tracker.euler_deg` reads as these angles."""
    yaw, pitch, roll = np.radians([-yaw_deg, -pitch_deg, roll_deg])
    (cy, cp, cr), (sy, sp, sr) = np.cos([yaw, pitch, roll]), np.sin([yaw, pitch, roll])
    about_x = np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]])
    return (about_z @ about_y @ about_x @ np.diag([1.0, -1.0, -1.0])).astype(np.float32)


def turned_by(now: HeadFace, neutral: HeadFace) -> Floats:
    """`[3]` degrees: how far yaw, pitch and roll are from the neutral's.

    Angle by angle, not one rotation after another: with a driver whose neutral is tilted, or seen from below, a
    rotation about the picture's axes would come out on the avatar's upright head as another mixture of angles.
    """
    apart = np.subtract(euler_deg(now.rotation), euler_deg(neutral.rotation))
    return ((apart + 180) % 360 - 180).astype(np.float32)


def turned(neutral: HeadFace, angles_deg: Floats) -> Floats:
    """The rotation of a head that is turned so from its neutral; undoes `turned_by`."""
    yaw_deg, pitch_deg, roll_deg = np.add(euler_deg(neutral.rotation), angles_deg)
    return head_rotation(float(yaw_deg), float(pitch_deg), float(roll_deg))


def span(shape: Floats) -> Floats:
    """Width and height of the face in its own frame (centimetres), depth taken as the width: `[3]`."""
    width = float(np.linalg.norm(shape[454] - shape[234])) + 1e-6
    height = float(np.linalg.norm(shape[152] - shape[10])) + 1e-6
    return np.array([width, height, width], np.float32)


def _eye_width(shape: Floats, side: int) -> float:
    inner, outer = _EYE_CORNERS[side]
    return float(np.linalg.norm(shape[inner] - shape[outer])) + 1e-6


def neutrality(face: Face) -> float:
    """How far a face is from frontal, mouth closed and eyes open: 0 is a perfect neutral, 1 a poor one."""
    told = geometry.describe(face.points)
    turned = float(np.linalg.norm(told["rest"]))
    shape = to_head(face).shape
    gap = float(np.mean([np.linalg.norm(shape[upper] - shape[lower]) for upper, lower in _LIP_PAIRS]))
    lids = [
        float(np.mean([np.linalg.norm(shape[upper] - shape[lower]) for upper, lower in _LIDS[side]]))
        / _eye_width(shape, side)
        for side in (0, 1)
    ]
    shut = max(0.0, 0.24 - min(lids)) / 0.24
    return 0.5 * turned + 0.5 * gap + 1.0 * shut


class NeutralFinder:
    """Keeps the most neutral face seen so far, and moves over to a better one within about half a second.

    A face that is pinned (`pin`) stays, whatever comes.
    """

    def __init__(self, ease_s: float = 0.5, margin: float = 0.05) -> None:
        self._ease_s, self._margin = ease_s, margin
        self._goal: HeadFace | None = None
        self._score = np.inf
        self._shown: HeadFace | None = None
        self._last_s = 0.0
        self._pinned = False

    def pin(self, face: Face) -> None:
        self._goal = self._shown = to_head(face)
        self._pinned = True

    def lead(self, face: Face) -> None:
        """As `pin`, but reached as smoothly as a better one that was found: somebody else found it (the sender)."""
        self._goal = to_head(face)
        self._pinned = True

    def prime(self, faces: list[Face]) -> None:
        """Start from the best of these instead of from the first face that comes."""
        if faces and not self._pinned:
            best = min(faces, key=neutrality)
            self._goal = self._shown = to_head(best)
            self._score = neutrality(best)

    def look(self, face: Face) -> HeadFace:
        """The neutral to use now."""
        if not self._pinned:
            score = neutrality(face)
            if self._goal is None or score < self._score - self._margin:
                self._goal, self._score = to_head(face), score
        assert self._goal is not None
        if self._shown is None:
            self._shown = self._goal
        elif self._shown is not self._goal:
            share = min(max((face.time_s - self._last_s) / self._ease_s, 0.0), 1.0)
            self._shown = _between(self._shown, self._goal, share)
        self._last_s = face.time_s
        return self._shown


def _between(first: HeadFace, second: HeadFace, share: float) -> HeadFace:
    if share >= 1 or (float(np.abs(first.shape - second.shape).max()) < 1e-3 and first.scale == second.scale):
        return second
    left, _, right = np.linalg.svd(first.rotation + share * (second.rotation - first.rotation))
    return HeadFace(
        (first.shape + share * (second.shape - first.shape)).astype(np.float32),
        (left @ np.diag([1, 1, np.linalg.det(left @ right)]) @ right).astype(np.float32),
        (first.translation + share * (second.translation - first.translation)).astype(np.float32),
        float(first.scale * (second.scale / first.scale) ** share),
    )


def _signed_gap(shape: Floats, upper: int, lower: int) -> float:
    """How far the upper point stands above the lower one in the head's frame (y up), centimetres."""
    return float(shape[upper, 1] - shape[lower, 1])


def transfer_shape(driver: Floats, driver_neutral: Floats, avatar_neutral: Floats) -> Floats:
    """The avatar's shape when the driver makes this face; all `[478, 3]` in head frames.

    Differences are scaled by the proportions of the two faces. Two openings are not differences but facts, and are
    carried over as such: lips that touch shall touch, whatever the neutral faces did, and a shut eye shall be shut.
    """
    ratio = span(avatar_neutral) / span(driver_neutral)
    shape = avatar_neutral + (driver - driver_neutral) * ratio
    for upper, lower in _LIP_PAIRS:
        wanted = max(_signed_gap(driver, upper, lower), 0.0) * float(ratio[1])
        missing = wanted - _signed_gap(shape, upper, lower)
        for index in (upper, _OUTER_OF_UPPER[upper]):
            shape[index, 1] += missing / 2
        for index in (lower, _OUTER_OF_LOWER[lower]):
            shape[index, 1] -= missing / 2
    for side, pairs in enumerate(_LIDS):
        open_driver = np.array([max(_signed_gap(driver_neutral, *pair), 1e-3) for pair in pairs])
        open_avatar = np.array([max(_signed_gap(avatar_neutral, *pair), 1e-3) for pair in pairs])
        now = np.array([_signed_gap(driver, *pair) for pair in pairs])
        # One factor for the whole eye: pairs near the corners are too small to be trusted alone.
        factor = float(np.clip(now.sum() / max(open_driver.sum(), 0.3 * _eye_width(driver_neutral, side)), 0.0, 1.6))
        for (upper, lower), avatar_gap in zip(pairs, open_avatar, strict=True):
            missing = factor * avatar_gap - _signed_gap(shape, upper, lower)
            shape[upper, 1] += 0.8 * missing
            shape[lower, 1] -= 0.2 * missing
    return shape.astype(np.float32)


class Retarget:
    """The driver's motion relative to the driver's neutral, on the avatar's neutral.

    `avatar_neutral` is a `Face` of the avatar in its crop (pixels of that crop).
    """

    def __init__(self, avatar_neutral: Face, finder: NeutralFinder | None = None) -> None:
        self._avatar = to_head(avatar_neutral)
        self._side_px = float(avatar_neutral.size_px[0])
        self.finder = finder or NeutralFinder()

    def rest(self) -> Floats:
        """The avatar's neutral face, `[478, 3]` in crop units."""
        return geometry.to_crop_units(self._avatar.to_picture(), self._side_px)

    def __call__(self, face: Face) -> Floats:
        """`[478, 3]`: the avatar's landmarks in crop units."""
        neutral = self.finder.look(face)
        now, avatar = to_head(face), self._avatar
        shape = transfer_shape(now.shape, neutral.shape, avatar.shape)
        zoom = float(np.clip(now.scale / neutral.scale, 0.7, 1.4))
        shift = (now.translation - neutral.translation) * (avatar.scale / neutral.scale)
        shift[2] = 0.0
        moved = HeadFace(
            shape,
            turned(avatar, turned_by(now, neutral)),
            avatar.translation + shift,
            avatar.scale * zoom,
        )
        return geometry.to_crop_units(moved.to_picture(), self._side_px)


class Rest:
    """What the avatar does while there is no face: hold the last pose, then ease to rest; and back when it returns."""

    def __init__(self, resting: Floats, hold_s: float, ease_s: float, back_s: float = 0.2) -> None:
        self._resting, self._hold_s, self._ease_s, self._back_s = resting, hold_s, ease_s, back_s
        self._last = self._shown = resting
        self._seen_s: float | None = None
        self._lost_from: Floats | None = None
        self._back_at_s: float | None = None
        self._away_from = resting

    def seen(self, points: Floats, time_s: float) -> Floats:
        """A face is there; `points` are the landmarks it asks for. Returns the ones to draw."""
        if self._lost_from is not None:
            self._away_from, self._back_at_s, self._lost_from = self._shown, time_s, None
        self._last, self._seen_s = points, time_s
        if self._back_at_s is not None:
            share = (time_s - self._back_at_s) / self._back_s if self._back_s > 0 else 1.0
            if share >= 1:
                self._back_at_s = None
            else:
                points = self._away_from + _smoothstep(share) * (points - self._away_from)
        self._shown = points.astype(np.float32)
        return self._shown

    def missing(self, absent: NoFace) -> Floats:
        """No face in this frame. Returns the landmarks to draw."""
        if self._lost_from is None:
            self._lost_from = self._shown
        if self._seen_s is None:
            return self._resting
        away_s = absent.time_s - self._seen_s - self._hold_s
        share = _smoothstep(away_s / self._ease_s) if self._ease_s > 0 else float(away_s > 0)
        self._shown = (self._lost_from + share * (self._resting - self._lost_from)).astype(np.float32)
        return self._shown


def _smoothstep(share: float) -> float:
    share = min(max(share, 0.0), 1.0)
    return share * share * (3 - 2 * share)
