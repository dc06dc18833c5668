"""What the avatar does while there is a voice and no face: lips by the voice, blinks, a head that is never quite still.

The live loop hands over `Spoken` in the place of a face that has been gone for a while; `Speaking` fades to what that
asks for, and back when the face returns.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine import geometry
from engine.control import mood_shift
from engine.factors import Factors, Idle, Mixer, Sources, still
from engine.frames import Face, NoFace
from engine.voice_lips import CodedLips

Floats = NDArray[np.float32]

FADE_S = 0.3
CLEAR = 0.55
"""A face that the tracker is less sure of than this (a hand before the camera, the dark) is as good as none."""
WIDER = 2.0
"""Lips were learned as if every mouth opened 0.6 cm between its 10th and 90th percentile (`training.lips`); in a call,
where the tracker's measure drives, it is 1.2 cm (the median of 227 clips)."""
_LONGEST_STEP_S = 0.1


@dataclass(frozen=True, slots=True, eq=False)
class Spoken(NoFace):
    """Nobody to be seen, but somebody to be heard."""

    codes: Floats
    """As `engine.voice_lips.VoiceCodes` gives them."""


class Speaking:
    """Landmarks to draw -> the same, or what the voice makes of the avatar's own face. Not thread-safe.

    `canvas` is the avatar's neutral face in its crop. The same calls and `seed` give the same motion.
    """

    def __init__(self, canvas: Face, seed: int = 0) -> None:
        self._mixer, self._side_px = Mixer(canvas), float(canvas.size_px[0])
        head = self._mixer.canvas
        self._lips, self._idle, self._rest = CodedLips(head), Idle(head, seed), still(head)
        self._codes: Floats | None = None
        self._last_s: float | None = None
        self._alive_s = 0.0
        self.share = 0.0
        """0: the camera moves the face; 1: the voice does."""

    def __call__(
        self,
        points: Floats,
        tracked: Face | NoFace,
        expression: float = 1.0,
        steadiness: float = 0.0,
        mood: float = 0.0,
    ) -> Floats:
        """`points [478, 3]` crop units, as asked for without a voice; settings as in `engine.control.Gains`."""
        passed_s = 0.0 if self._last_s is None else min(max(tracked.time_s - self._last_s, 0.0), _LONGEST_STEP_S)
        self._last_s = tracked.time_s
        speaks = isinstance(tracked, Spoken)
        if isinstance(tracked, Spoken):
            self._codes = tracked.codes
        self.share = min(max(self.share + (passed_s if speaks else -passed_s) / FADE_S, 0.0), 1.0)
        if self.share <= 0 or self._codes is None:
            return points
        # Time passes only while it is seen: hours of a tracked face leave no blinks to be made up for.
        self._alive_s += passed_s
        own = self._own(self._codes, expression, steadiness, mood)
        share = np.float32(self.share * self.share * (3 - 2 * self.share))
        return (points + share * (own - points)).astype(np.float32)

    def _own(self, codes: Floats, expression: float, steadiness: float, mood: float) -> Floats:
        rest, canvas = self._rest, self._mixer.canvas
        pose = (self._idle.pose(self._alive_s) * (1 - steadiness)).astype(np.float32)
        moved = Factors(pose, self._idle.eyes(self._alive_s), rest.lips, rest.gaps, mood_shift(canvas.shape, mood))
        wide = np.float32(expression) * codes
        wide[0] *= np.float32(WIDER)
        lips = self._lips(wide)
        face = self._mixer(Sources(moved, moved, lips, moved), 0.0)
        return geometry.to_crop_units(face.points, self._side_px)
