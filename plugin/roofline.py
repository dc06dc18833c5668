"""What a frame of the network costs, in operations and bytes, beside what this machine can do (Williams et al. 2009).

Operations are those of the convolutions. Bytes are what every operation reads and writes, weights included, as if
nothing stayed in a cache between two of them: an upper bound.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import openvino as ov

from engine.backends.openvino import convolutions, core, has_bf16

_FREE = {"Const", "Input", "Output", "Reshape", "Parameter", "Result"}
_CHANNELS, _SIDE, _LAYERS = 128, 64, 8
"""The convolutions by which the ceiling is measured: large, and each fed by the one before."""


@dataclass(frozen=True, slots=True)
class Ceiling:
    """What the processor reaches where nothing else holds it up."""

    gflop_per_s: dict[str, float]
    """By precision, large 3x3 convolutions."""
    gigabyte_per_s: float
    """Read and written, arrays much larger than the caches."""


def gflop(graph: ov.Model) -> float:
    """Multiplications and additions of all convolutions of one run, 1e9."""
    total = 0
    for node in convolutions(graph).values():
        weights = list(node.input_value(1).get_shape())
        transposed = node.get_type_name() == "ConvolutionBackpropData"
        places = list(node.input_value(0).get_shape() if transposed else node.output(0).get_shape())
        # Each place of the smaller side meets every weight once.
        total += 2 * math.prod(weights) * math.prod(places[2:])
    return total / 1e9


def megabytes(running: ov.Model) -> float:
    """What the operations of a compiled graph (`OpenVino.running`) read and write in one run, 1e6 bytes."""

    def size(tensors: Sequence[ov.Output]) -> int:
        return sum(math.prod(list(one.get_shape())) * one.get_element_type().size for one in tensors)

    total = 0
    for node in running.get_ops():
        if node.get_rt_info()["layerType"].astype(str) not in _FREE:
            total += size(node.input_values()) + size(node.outputs())
    return total / 1e6


def ceiling(precisions: Sequence[str], threads: int, seconds: float = 1.0) -> Ceiling:
    """Measure this machine with so many threads: each precision in turns, the best of what was seen."""
    requests = {precision: _convolving(precision, threads) for precision in precisions}
    best = dict.fromkeys(precisions, 0.0)
    work = _LAYERS * 2 * 9 * _CHANNELS**2 * _SIDE**2 / 1e9
    end = time.perf_counter() + seconds * len(precisions)
    while time.perf_counter() < end:
        for precision, request in requests.items():
            began = time.perf_counter()
            request.infer()
            best[precision] = max(best[precision], work / (time.perf_counter() - began))
    source = np.ones(32_000_000, np.float32)
    copied = np.zeros_like(source)
    bandwidth = 0.0
    for _ in range(5):
        began = time.perf_counter()
        np.copyto(copied, source)
        bandwidth = max(bandwidth, 2 * source.nbytes / 1e9 / (time.perf_counter() - began))
    return Ceiling(best, bandwidth)


def _convolving(precision: str, threads: int) -> ov.InferRequest:
    random = np.random.default_rng(0)
    op = ov.opset13
    shape = [_CHANNELS, _CHANNELS, 3, 3]
    given = op.parameter([1, _CHANNELS, _SIDE, _SIDE], np.float32)
    flowing: ov.Node = given
    for _ in range(_LAYERS):
        weights: ov.Node = op.constant((random.standard_normal(shape) / 40).astype(np.float32))
        if precision == "int8":
            low, high = op.constant(np.float32(0)), op.constant(np.float32(4))
            flowing = op.fake_quantize(flowing, low, high, low, high, 256)
            most = op.constant(np.float32(0.1)), op.constant(np.float32(-0.1))
            weights = op.fake_quantize(weights, most[1], most[0], most[1], most[0], 255)
        flowing = op.relu(op.convolution(flowing, weights, [1, 1], [1, 1], [1, 1], [1, 1]))
    # Averaged away: writing the last one out in another order is no part of the measurement.
    last = op.reduce_mean(flowing, op.constant(np.array([2, 3])), True)
    model = ov.Model([op.result(last)], [given])  # pyright: ignore[reportGeneralTypeIssues]
    floats = "bf16" if precision != "f32" and has_bf16() else "f32"
    settings = {"INFERENCE_PRECISION_HINT": floats, "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1}
    request = core().compile_model(model, "CPU", settings).create_infer_request()
    request.infer()
    return request
