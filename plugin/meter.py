"""Per-stage milliseconds and frames per second: what a run prints, and what the bench records."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np


class Meter:
    """Collects how long each named stage took, in order of first use."""

    def __init__(self) -> None:
        self._spent_ms: dict[str, list[float]] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self._spent_ms.setdefault(name, []).append((time.perf_counter() - began) * 1e3)

    def add(self, name: str, spent_ms: float) -> None:
        self._spent_ms.setdefault(name, []).append(spent_ms)

    def spent(self, name: str) -> np.ndarray:
        """Every measurement of a stage, milliseconds."""
        return np.array(self._spent_ms.get(name, []), np.float64)

    def summary(self) -> dict[str, dict[str, float]]:
        """stage -> median, 95th percentile (ms) and number of measurements."""
        return {
            name: {
                "median_ms": float(np.median(spent)),
                "p95_ms": float(np.percentile(spent, 95)),
                "count": len(spent),
            }
            for name, spent in self._spent_ms.items()
            if spent
        }

    def lines(self) -> list[str]:
        return [
            f"{name:<12} {one['median_ms']:7.2f} ms   p95 {one['p95_ms']:7.2f} ms   {one['count']:.0f} x"
            for name, one in self.summary().items()
        ]
