"""Milliseconds: of a run, and of the last seconds of a loop that never ends."""

from __future__ import annotations

import threading

import numpy as np

from plugin.meter import Meter, Rolling


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_stages_in_order_of_first_use() -> None:
    meter = Meter()
    with meter.stage("tracker"):
        pass
    meter.add("draw", 2.0)
    meter.add("draw", 4.0)
    assert list(meter.summary()) == ["tracker", "draw"]
    assert meter.summary()["draw"]["median_ms"] == 3.0
    assert np.array_equal(meter.spent("draw"), [2.0, 4.0])
    assert len(meter.lines()) == 2


def test_only_the_last_seconds_count() -> None:
    clock = Clock()
    rolling = Rolling(clock, window_s=5.0)
    rolling.add("draw", 1000.0)
    clock.now += 4.0
    rolling.add("draw", 10.0)
    assert rolling.summary()["draw"][0] == 505.0
    clock.now += 2.0
    assert rolling.summary() == {"draw": (10.0, 10.0)}
    clock.now += 10.0
    assert rolling.summary() == {}


def test_percentiles() -> None:
    rolling = Rolling(Clock())
    for value in range(1, 101):
        rolling.add("glass", float(value))
    assert rolling.summary()["glass"] == (50.5, 95.05)


def test_rate_counts_a_second_and_forgets() -> None:
    clock = Clock()
    rolling = Rolling(clock)
    assert rolling.rate("news") == 0.0
    for _ in range(90):
        clock.now += 1 / 30
        rolling.add("news")
    assert abs(rolling.rate("news") - 30) < 0.01
    clock.now += 1.5
    assert rolling.rate("news") == 0.0


def test_memory_is_bounded_when_the_clock_stands() -> None:
    rolling = Rolling(Clock())
    for _ in range(10_000):
        rolling.add("draw", 1.0)
    assert rolling.recent("draw").size == 4096


def test_many_threads() -> None:
    rolling = Rolling(Clock())

    def add() -> None:
        for _ in range(200):
            rolling.add("draw", 1.0)
            rolling.summary()

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert rolling.recent("draw").size == 800
