"""Which enrolled photo serves which part of the head, chosen smoothly over time.

Slot A shows one reference for the whole call. Slot B has three zones (rest, eyes, mouth), each with a reference of
its own. When another reference fits a zone clearly better, the zone is faded out (slot A shows through), changes its
reference unseen, and is faded in again: no picture ever jumps, and no frame costs more than two references.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from engine import geometry
from engine.frames import Image

Floats = NDArray[np.float32]


class ReferenceChooser:
    """`choose` returns the four references of a frame and how far slot B's three are faded in."""

    def __init__(
        self,
        points: list[Floats],
        slot_a: int,
        fade_s: float | Sequence[float] = (0.16, 0.04, 0.08),
        dwell_s: float | Sequence[float] = (0.5, 0.06, 0.12),
        margin: float = 0.15,
        strangeness: Floats | None = None,
    ) -> None:
        """`points`: the landmarks of each reference, `[478, 3]`, any one unit; `slot_a`: the reference of slot A.

        `fade_s` and `dwell_s` are seconds for rest, eyes and mouth (or one for all): how long a zone takes to fade out
        or in, and how long it keeps a reference at least. A blink is over in 0.15 s; a turn takes longer.

        `strangeness [R]` is added to each reference's misfit for the rest of the head: how unlike slot A's its
        clothes and light are (`unlike`).
        """
        self._strangeness = np.zeros(len(points), np.float32) if strangeness is None else strangeness
        self._told = [geometry.describe(one) for one in points]
        self._slot_a = slot_a
        self._fade_s, self._dwell_s = (np.broadcast_to(np.asarray(one, np.float64), 3) for one in (fade_s, dwell_s))
        self._margin = margin
        self._shown = np.full(3, slot_a)
        self._wanted = np.full(3, slot_a)
        self._fade = np.ones(3, np.float32)
        self._since_s = np.full(3, -np.inf)
        self._last_s: float | None = None

    def choose(self, target: Floats, time_s: float) -> tuple[NDArray[np.int64], Floats]:
        """-> `[4]` indices (slot A, rest, eyes, mouth) and `[3]` fades in 0..1."""
        told = geometry.describe(target)
        misfits = np.stack([geometry.misfit(told, one) for one in self._told])
        misfits[:, 0] += self._strangeness
        best = misfits.argmin(0)
        if self._last_s is None:
            self._shown, self._wanted = best.copy(), best.copy()
        passed_s = np.inf if self._last_s is None else max(time_s - self._last_s, 0.0)
        step = np.minimum(passed_s / self._fade_s, 1.0)
        self._last_s = time_s
        for zone in range(3):
            current = self._wanted[zone]
            better = misfits[best[zone], zone] < (1 - self._margin) * misfits[current, zone] - 0.02
            if best[zone] != current and better and time_s - self._since_s[zone] >= self._dwell_s[zone]:
                self._wanted[zone], self._since_s[zone] = best[zone], time_s
            if self._wanted[zone] != self._shown[zone]:
                self._fade[zone] -= step[zone]
                if self._fade[zone] <= 0:
                    self._fade[zone] = 0.0
                    self._shown[zone] = self._wanted[zone]
            else:
                self._fade[zone] = min(self._fade[zone] + step[zone], 1.0)
        return np.array([self._slot_a, *self._shown]), self._fade.copy()


def front_reference(points: list[Floats]) -> int:
    """The reference for slot A: the one that looks straightest ahead, among those whose eyes are open.

    Open is at least 60 % of the widest: slot A lasts for the whole call, and a blink would shine through.
    """
    told = [geometry.describe(one) for one in points]
    lids = np.array([one["eyes"][:2].mean() for one in told])
    turned = np.array([np.linalg.norm(one["rest"]) for one in told])
    return int(np.where(lids >= 0.6 * lids.max(), turned, np.inf).argmin())


def unlike(photos: list[tuple[Image, NDArray[np.uint8], Floats]], slot_a: int) -> Floats:
    """How unlike slot A's photo each one is below the chin, `[R]`: 0 for one sitting, about 0.5 for another shirt.

    `photos` are picture, matte and landmarks (pixels) of each reference. Clothes in another light or of another day
    must not flicker in and out with the turns of the head.
    """
    colours = []
    for rgb, matte, points in photos:
        below = matte.copy()
        below[: int(np.clip(points[152, 1], 0, len(below) - 1))] = 0
        worn = below > 200
        lab = cv2.cvtColor(rgb, cv2.COLOR_RGB2LAB)
        colours.append(np.median(lab[worn], axis=0) if worn.mean() > 0.005 else np.full(3, np.nan))
    distance = np.linalg.norm(np.array(colours) - colours[slot_a], axis=1)
    return (0.02 * np.nan_to_num(np.maximum(distance - 4.0, 0.0))).astype(np.float32)
