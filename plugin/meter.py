"""Per-stage milliseconds and frames per second: what a run prints, and what the bench records."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

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


def rss_mb() -> float:
    """What this process holds in memory now (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


class Rolling:
    """The same for a loop that never ends: only the last seconds count. Any thread may call it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, window_s: float = 5.0) -> None:
        self._clock, self._window_s = clock, window_s
        self._lock = threading.Lock()
        self._marks: dict[str, deque[tuple[float, float]]] = {}
        self._most = 4096

    def add(self, name: str, value_ms: float = 0.0) -> None:
        now = self._clock()
        with self._lock:
            marks = self._marks.setdefault(name, deque(maxlen=self._most))
            marks.append((now, value_ms))
            while marks[0][0] < now - self._window_s:
                marks.popleft()

    def recent(self, name: str) -> np.ndarray:
        """What was added in the last seconds."""
        oldest = self._clock() - self._window_s
        with self._lock:
            return np.array([value for at, value in self._marks.get(name, ()) if at >= oldest], np.float64)

    def summary(self) -> dict[str, tuple[float, float]]:
        """name -> median and 95th percentile of the last seconds; names without any are left out."""
        told = {}
        for name in list(self._marks):
            recent = self.recent(name)
            if recent.size:
                told[name] = (float(np.median(recent)), float(np.percentile(recent, 95)))
        return told

    def rate(self, name: str) -> float:
        """How many were added a second, over the last second or two (from the first to the last of them)."""
        now = self._clock()
        with self._lock:
            times = [at for at, _ in self._marks.get(name, ()) if at >= now - 2.0]
        if len(times) < 2 or now - times[-1] > 1.0:
            return 0.0
        return (len(times) - 1) / max(times[-1] - times[0], 1e-6)
