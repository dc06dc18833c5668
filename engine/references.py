"""Which enrolled photo serves which part of the head, chosen smoothly over time.

Slot A shows one reference for the whole call. Slot B has three zones (rest, eyes, mouth), each with a reference of
its own. When another reference fits a zone clearly better, the zone is faded out (slot A shows through), changes its
reference unseen, and is faded in again: no picture ever jumps, and no frame costs more than two references.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from engine import geometry

Floats = NDArray[np.float32]


class ReferenceChooser:
    """`choose` returns the four references of a frame and how far slot B's three are faded in."""

    def __init__(
        self,
        points: list[Floats],
        slot_a: int,
        fade_s: float = 0.12,
        dwell_s: float = 0.35,
        margin: float = 0.15,
    ) -> None:
        """`points`: the landmarks of each reference, `[478, 3]`, any one unit; `slot_a`: the reference of slot A."""
        self._told = [geometry.describe(one) for one in points]
        self._slot_a = slot_a
        self._fade_s, self._dwell_s, self._margin = fade_s, dwell_s, margin
        self._shown = np.full(3, slot_a)
        self._wanted = np.full(3, slot_a)
        self._fade = np.ones(3, np.float32)
        self._since_s = np.full(3, -np.inf)
        self._last_s: float | None = None

    def choose(self, target: Floats, time_s: float) -> tuple[NDArray[np.int64], Floats]:
        """-> `[4]` indices (slot A, rest, eyes, mouth) and `[3]` fades in 0..1."""
        told = geometry.describe(target)
        misfits = np.stack([geometry.misfit(told, one) for one in self._told])
        best = misfits.argmin(0)
        if self._last_s is None:
            self._shown, self._wanted = best.copy(), best.copy()
        step = 1.0 if self._last_s is None else max(time_s - self._last_s, 0.0) / self._fade_s
        self._last_s = time_s
        for zone in range(3):
            current = self._wanted[zone]
            better = misfits[best[zone], zone] < (1 - self._margin) * misfits[current, zone] - 0.02
            if best[zone] != current and better and time_s - self._since_s[zone] >= self._dwell_s:
                self._wanted[zone], self._since_s[zone] = best[zone], time_s
            if self._wanted[zone] != self._shown[zone]:
                self._fade[zone] -= step
                if self._fade[zone] <= 0:
                    self._fade[zone] = 0.0
                    self._shown[zone] = self._wanted[zone]
            else:
                self._fade[zone] = min(self._fade[zone] + step, 1.0)
        return np.array([self._slot_a, *self._shown]), self._fade.copy()


def most_frontal(points: list[Floats]) -> int:
    """The reference for slot A: the one that looks straightest ahead."""
    return int(np.argmin([np.linalg.norm(geometry.describe(one)["rest"]) for one in points]))
