"""Counting operations and bytes: a convolution that can be counted by hand, and the network's own."""

from __future__ import annotations

import numpy as np
import openvino as ov
import pytest

from engine.backends.openvino import OpenVino, core
from engine.base import Base
from plugin import roofline


def graph(transposed: bool) -> ov.Model:
    op = ov.opset13
    given = op.parameter([1, 3, 8, 10], np.float32)
    if transposed:
        weights = op.constant(np.ones([3, 5, 4, 4], np.float32))
        made = op.convolution_backprop_data(given, weights, [2, 2], None, [1, 1], [1, 1], [1, 1])
    else:
        weights = op.constant(np.ones([5, 3, 3, 3], np.float32))
        made = op.convolution(given, weights, [2, 2], [1, 1], [1, 1], [1, 1])
    made.output(0).set_names({"made"})
    return ov.Model([op.result(made)], [given])  # pyright: ignore[reportGeneralTypeIssues]


def test_operations_counted_by_hand() -> None:
    assert roofline.gflop(graph(transposed=False)) == pytest.approx(2 * 5 * 3 * 9 * 4 * 5 / 1e9)
    assert roofline.gflop(graph(transposed=True)) == pytest.approx(2 * 3 * 5 * 16 * 8 * 10 / 1e9)


def test_bytes_are_what_is_read_and_written() -> None:
    compiled = core().compile_model(graph(transposed=False), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    least = 4 * (3 * 8 * 10 + 5 * 3 * 9 + 5 * 4 * 5) / 1e6
    assert least <= roofline.megabytes(compiled.get_runtime_model()) <= 4 * least


def test_the_tiny_network_costs_less_than_it_reads(tiny_base: Base) -> None:
    encoder = OpenVino(tiny_base.encoder, None, None, "CPU", "f32", 1)
    assert 0 < roofline.gflop(core().read_model(str(tiny_base.processor))) < 1
    assert roofline.megabytes(encoder.running()) > 4 * 7 * 256 * 256 / 1e6


def test_the_ceiling_is_above_the_ground() -> None:
    found = roofline.ceiling(["f32"], threads=1, seconds=0.05)
    assert found.gflop_per_s["f32"] > 1
    assert found.gigabyte_per_s > 0.1
