"""The bench: every number it promises is there, and two threads lose no frame and mix none up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.avatar import Avatar
from engine.base import Base
from engine.config import load
from engine.frames import Face, Frame, NoFace
from engine.renderer import Renderer
from plugin import bench
from plugin.render import with_options


def frames(count: int) -> list[Frame]:
    return [Frame(np.zeros((4, 4, 3), np.uint8), float(number)) for number in range(count)]


def test_two_threads_draw_every_frame_in_order() -> None:
    drawn: list[float] = []

    def draw(face: Face | NoFace) -> None:
        drawn.append(face.time_s)

    fps, latency_ms = bench.pipelined(frames(20), lambda frame: NoFace(frame.time_s), draw)
    assert drawn == [float(number) for number in range(20)]
    assert fps > 0
    assert latency_ms >= 0


def test_a_tracker_that_fails_is_not_taken_for_a_fast_one() -> None:
    def eyes(frame: Frame) -> NoFace:
        if frame.time_s == 3:
            raise OSError("gone")
        return NoFace(frame.time_s)

    with pytest.raises(OSError, match="gone"):
        bench.pipelined(frames(9), eyes, lambda face: None)


@pytest.fixture(scope="module")
def measured(tiny_avatar: Avatar, tiny_base: Base) -> dict[str, Any]:
    return bench.measure(tiny_avatar, tiny_base, load(), sizes=(256,), blocks=1, block=3, long_run=2)


def test_every_promised_number_is_measured(measured: dict[str, Any], tiny_base: Base, tmp_path: Path) -> None:
    able = bench.precisions(tiny_base)
    assert able[-1] == "f32"
    assert "int8" not in able, "this base has no ranges"
    for precision in able:
        name = f"256 {precision}"
        assert measured["stages"][f"generator {name}"]["count"] >= 3
        assert measured["stages"][f"draw {name}"]["median_ms"] >= measured["stages"][f"generator {name}"]["median_ms"]
        assert measured["fps"][name] > 0
        assert measured["built_s"][name] > 0
        assert measured["piped"][name]["fps"] > 0
        assert precision in measured["backends"][name]
    assert measured["memory"]["after_mb"] > 10
    assert measured["switch_ms"] > 0
    row = {"gflop": 1.0, "megabytes": 2.0, "ms": 3.0, "gflop_per_s": 4.0, "share_of_ceiling": 0.5}
    equal = {"frames": 50, "max_levels": 3.0, "mean_levels": 0.01, "lpips": None, "drift": 0.01, "holds": False}
    told = {
        "machine": "a machine",
        "all cores": measured,
        "one core": None,
        "start": {"first_frame_s": 1.25},
        "roofline": {
            "ceiling": {"gflop_per_s": dict.fromkeys(able, 8.0), "gigabyte_per_s": 9.0},
            "frame": dict.fromkeys(able, row),
        },
        "parity": {"rows": {able[0]: equal}, "note": "LPIPS was not measured: no network"},
        "TensorRT": ["it is not installed"],
    }
    table = bench._table(told)
    for wanted in (
        "a machine",
        "tracker",
        "1.25 s",
        "50 % of the measured 8",
        "DOES NOT HOLD",
        "no network",
        "warmed up: 256",
        "not installed",
    ):
        assert wanted in table
    bench._picture(told, tmp_path / "bench.png")
    assert (tmp_path / "bench.png").stat().st_size > 5000


def test_nothing_of_a_frame_is_kept(tiny_avatar: Avatar, tiny_base: Base) -> None:
    renderer = Renderer(tiny_avatar, tiny_base, with_options(load(), size_px=256))
    assert bench.allocated_kb(renderer, 30) < 200, "30 kept pictures would be 6 MB"
