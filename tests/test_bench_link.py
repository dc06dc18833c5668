"""The bench of the link: its performance and its clock are what it says, and a soak's growth is read off right."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

from plugin.bench_link import Clock, Performance, _soaked


def test_the_performance_has_no_seam() -> None:
    performance = Performance()
    lap_s = 2 * (len(performance._heads) - 1) / performance._fps
    for seconds in (0.0, lap_s / 2, lap_s):
        before, after = performance.at(max(seconds - 0.001, 0.0)), performance.at(seconds + 0.001)
        assert float(np.abs(before.points - after.points).max()) < 1.0
    assert np.abs(performance.at(0.5).points - performance.at(0.5 + lap_s).points).max() < 0.01
    assert np.abs(performance.at(0.5).points - performance.at(1.5).points).max() > 1.0


def test_a_fast_clock_is_known_for_what_it_is() -> None:
    clock = Clock(1000.0)
    before_s = time.monotonic()
    now_s = clock.now_s()
    assert before_s * 1.001 <= now_s <= time.monotonic() * 1.001
    assert clock.told_s(2000.0) == pytest.approx(2002.0)
    assert clock.true_s(2002.0) == pytest.approx(2000.0)


def row(minute: float, growth_mb: float) -> dict[str, Any]:
    seen = {"rss_mb": 150 + growth_mb * minute, "files": 10, "tasks": 8, "undecodable": 0, "longest_stall_ms": 40}
    seen |= {"age_ms_p50_p95_p99": [100.0, 110.0, 120.0], "delay_ms": 90.0, "way_ms_least": 12.0, "live_share": 1.0}
    seen["error_percent_of_eye_distance"] = 0.7
    return {"minute": minute, "sender": {"rss_mb": 100.0, "files": 10, "tasks": 9}, "receiver": seen}


def test_growth_is_told_per_hour_and_only_after_settling() -> None:
    rows = [row(minute / 2, 0.5) for minute in range(40)]
    rows[0]["receiver"]["rss_mb"] = 10.0
    told = _soaked(rows)
    assert told["receiver_mb"]["per_hour"] == pytest.approx(30)
    assert told["sender_mb"]["per_hour"] == 0
    assert told["age_p50_ms"] == {"first": 100.0, "last": 100.0, "per_hour": 0.0}
    assert _soaked(rows[:5]) == {"minutes": 2.0}
