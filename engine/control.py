"""The driver's `Face` -> the `Face` that the avatar is asked to make: gains, a steadier head, limits, and confidence.

Between tracker and `engine.motion.Retarget`. All of it is told relative to the driver's own neutral face, which is
found here from what the tracker really saw; `Retarget` is handed that neutral (`Following`) and the changed face.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import resources

import numpy as np
from numpy.typing import NDArray

from engine import geometry
from engine.codec import shipped_basis
from engine.frames import Face
from engine.motion import HeadFace, NeutralFinder, span, to_head
from engine.tracker import euler_deg

Floats = NDArray[np.float32]

_EYES = np.array(sorted({*geometry.EYE_RIGHT, *geometry.EYE_LEFT}), np.intp)
_IRISES = ((geometry.IRIS_RIGHT, (33, 133)), (geometry.IRIS_LEFT, (362, 263)))
_LIDS = (
    list(zip(geometry.EYE_RIGHT[1:8], reversed(geometry.EYE_RIGHT[9:]), strict=True)),
    list(zip(geometry.EYE_LEFT[1:8], reversed(geometry.EYE_LEFT[9:]), strict=True)),
)
_UNSURE, _SURE = 0.55, 0.85
"""Visibility at which nothing and all of the driver's motion is believed."""
_EYEBALL_CM = 1.2
_NEAR_CM, _FAR_CM = 0.16, 0.36
"""Irises off the camera by so much, about 8 and 17 degrees: drawn to it in full, and not at all."""
_STRAIN_CM = 0.45
"""The furthest that irises are turned against the head for it: 22 degrees."""
_SHUT, _AWAKE = 0.35, 0.95
"""Lids open by less than the first share are about to blink; those beyond the second need no help."""
_TRUST_S = 0.25
"""How slowly that belief changes."""


@dataclass(frozen=True, slots=True)
class Gains:
    """How much of the driver's motion is wanted; 1 is as it is."""

    expression: float = 1.0
    blink: float = 1.0
    gaze: float = 1.0
    steadiness: float = 0.0
    """0: the head moves as the driver's does; 1: it keeps still."""
    contact: float = 0.0
    """How far a gaze that is near the camera is drawn towards it; one that is far from it is let go."""
    wake: float = 0.0
    """How far lids that hang are lifted; a blink still shuts them."""
    mood: float = 0.0
    """-1 (grave) to 1 (a smile): added to whatever the face does."""


@dataclass(frozen=True, slots=True)
class TurnLimits:
    """How far the head may turn from the avatar's neutral before it is eased, degrees: (least, most) of each."""

    yaw_deg: tuple[float, float]
    pitch_deg: tuple[float, float]

    @classmethod
    def of(cls, rotations: Sequence[Floats], neutral: Floats, beyond_deg: float = 15.0) -> TurnLimits:
        """From the poses of the enrolled photos: as far as those go, and `beyond_deg` more."""
        turns = np.array([euler_deg(one @ neutral.T @ np.diag([1.0, -1.0, -1.0]))[:2] for one in rotations])
        low, high = np.minimum(turns.min(0), 0) - beyond_deg, np.maximum(turns.max(0), 0) + beyond_deg
        return cls((float(low[0]), float(high[0])), (float(low[1]), float(high[1])))


class Following(NeutralFinder):
    """The neutral that `Retarget` uses: the one that `Control` found in the unchanged faces."""

    def __init__(self) -> None:
        super().__init__()
        self.now: HeadFace | None = None

    def look(self, face: Face) -> HeadFace:
        return to_head(face) if self.now is None else self.now


class Control:
    """`control(face)` per frame, in order of time; not thread-safe."""

    def __init__(self, limits: TurnLimits | None = None, gains: Gains | None = None) -> None:
        self.gains = gains or Gains()
        self.finder = NeutralFinder()
        self.neutral = Following()
        self.trust = 1.0
        """0 (guessed) to 1 (sure): how far the driver's motion is followed now."""
        self._limits = limits
        self._last_s: float | None = None

    def calibrate(self, face: Face) -> None:
        """This is the driver's neutral face, whatever comes."""
        self.finder.pin(face)

    def __call__(self, face: Face) -> Face:
        """The same face with what the controls change."""
        neutral = self.finder.look(face)
        self.neutral.now = neutral
        trust = self._believe(face)
        now = to_head(face)
        turn = now.rotation @ neutral.rotation.T
        angles = np.array(euler_deg(turn @ np.diag([1.0, -1.0, -1.0])))
        wanted = angles * (1 - self.gains.steadiness) * trust
        if self._limits is not None:
            wanted[0] = _eased(wanted[0], *self._limits.yaw_deg)
            wanted[1] = _eased(wanted[1], *self._limits.pitch_deg)
        keep = (1 - self.gains.steadiness) * trust
        same = trust > 0.999 and self.gains == Gains() and np.abs(wanted - angles).max() < 1e-3
        if same:
            return face
        rotation = (_turn(wanted) @ neutral.rotation).astype(np.float32)
        moved = HeadFace(
            self._shape(now.shape, neutral.shape, trust, _to_camera(rotation) - _to_camera(neutral.rotation)),
            rotation,
            (neutral.translation + keep * (now.translation - neutral.translation)).astype(np.float32),
            float(neutral.scale * (now.scale / neutral.scale) ** keep),
        )
        return replace(
            face,
            points=moved.to_picture(),
            rotation=moved.rotation,
            translation=moved.translation,
            scale=moved.scale,
        )

    def _believe(self, face: Face) -> float:
        goal = min(max((face.visibility - _UNSURE) / (_SURE - _UNSURE), 0.0), 1.0)
        passed_s = 0.0 if self._last_s is None else max(face.time_s - self._last_s, 0.0)
        share = 1.0 if self._last_s is None else 1 - math.exp(-passed_s / _TRUST_S)
        self._last_s = face.time_s
        self.trust += share * (goal - self.trust)
        return self.trust

    def _shape(self, now: Floats, neutral: Floats, trust: float, camera: Floats) -> Floats:
        """`camera [2]`: where the irises would look into the camera, from where they stand in the neutral face."""
        gains = self.gains
        shape = neutral + trust * gains.expression * (now - neutral)
        # Lids and irises have gains of their own; a blink is a fact, so it does not shrink with the expression.
        shape[_EYES] = neutral[_EYES] + trust * (now[_EYES] - neutral[_EYES])
        for pairs in _LIDS:
            for upper, lower in pairs:
                open_now = float(now[upper, 1] - now[lower, 1])
                open_neutral = float(neutral[upper, 1] - neutral[lower, 1])
                wanted = max(open_neutral + trust * gains.blink * (open_now - open_neutral), 0.0)
                wanted += gains.wake * _droop(wanted, open_neutral)
                missing = wanted - float(shape[upper, 1] - shape[lower, 1])
                shape[upper, 1] += 0.8 * missing
                shape[lower, 1] -= 0.2 * missing
        for iris, corners in _IRISES:
            middle_now, middle_neutral = now[list(corners)].mean(0), neutral[list(corners)].mean(0)
            looks = (now[iris[0]] - middle_now) - (neutral[iris[0]] - middle_neutral)
            ring = neutral[iris] - neutral[iris[0]]
            middle = shape[list(corners)].mean(0)
            looks = trust * gains.gaze * looks
            looks[:2] += gains.contact * _drawn(looks[:2], camera)
            shape[iris] = middle + (neutral[iris[0]] - middle_neutral) + looks + ring
        return (shape + mood_shift(neutral, gains.mood)).astype(np.float32)


@functools.cache
def _smile() -> Floats:
    """`[478, 3]` centimetres of the codec's mean face (`training.mood`)."""
    with (
        resources.as_file(resources.files("engine") / "assets" / "lips" / "mood.npz") as path,
        np.load(path, allow_pickle=False) as stored,
    ):
        return stored["smile"].astype(np.float32)


def mood_shift(neutral: Floats, mood: float) -> Floats:
    """How a mood, -1 (grave) to 1 (a smile), moves the points of a face with this neutral shape; both `[478, 3]`."""
    if not mood:
        return np.zeros_like(neutral)
    return np.float32(mood) * _smile() * (span(neutral) / span(shipped_basis().mean))


def _to_camera(rotation: NDArray[np.floating]) -> Floats:
    """`[2]` centimetres in the head's frame: where the middle of an eye stands that looks into the camera."""
    return (-_EYEBALL_CM * rotation[2, :2]).astype(np.float32)


def _drawn(looks: Floats, camera: Floats) -> Floats:
    """`[2]`: the way from where the irises look to the camera, as far as it is wanted: continuous, and with limits."""
    strain = float(np.linalg.norm(camera))
    goal = camera * min(1.0, _STRAIN_CM / max(strain, 1e-6))
    off = float(np.linalg.norm(goal - looks))
    share = min(max((_FAR_CM - off) / (_FAR_CM - _NEAR_CM), 0.0), 1.0)
    return (0.9 * share * share * (3 - 2 * share) * (goal - looks)).astype(np.float32)


def _droop(opened: float, neutral: float) -> float:
    """How much is missing from lids that hang, eased out towards the blink: continuous."""
    share = opened / max(neutral, 1e-3)
    if not _SHUT < share < _AWAKE:
        return 0.0
    place = (share - _SHUT) / (_AWAKE - _SHUT)
    return neutral * (_AWAKE - share) * min(3 * place, 1.0)


def _eased(angle: float, least: float, most: float, soft: float = 0.7) -> float:
    """The angle, bent so that it never passes the limits: unchanged up to `soft` of them."""
    limit = most if angle >= 0 else -least
    size, start = abs(angle), soft * limit
    if size <= start or limit <= 0:
        return angle if limit > 0 else 0.0
    room = limit - start
    return math.copysign(start + room * math.tanh((size - start) / room), angle)


def _turn(angles_deg: NDArray[np.float64]) -> NDArray[np.float64]:
    """The turn that `euler_deg(turn @ frontal)` reads as these angles: `Rz(roll) @ Ry(-yaw) @ Rx(-pitch)`."""
    yaw, pitch, roll = np.radians(angles_deg) * np.array([-1.0, -1.0, 1.0])
    cos, sin = math.cos, math.sin
    about_x = np.array([[1.0, 0, 0], [0, cos(pitch), -sin(pitch)], [0, sin(pitch), cos(pitch)]])
    about_y = np.array([[cos(yaw), 0, sin(yaw)], [0, 1.0, 0], [-sin(yaw), 0, cos(yaw)]])
    about_z = np.array([[cos(roll), -sin(roll), 0], [sin(roll), cos(roll), 0], [0, 0, 1.0]])
    return (about_z @ about_y @ about_x).astype(np.float64)
