"""Drawing on any processor (and Intel GPU or NPU) through OpenVINO.

The base's graph is read, everything that belongs to the person alone (`modulation` and the tuned weights) becomes a
constant, and only then is it compiled, so that nothing of it is computed in a call. What changes with the choice of
references stays in buffers that the graph reads in place.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from engine.backends import Tensors

Ranges = Mapping[str, tuple[float, float]]
"""Between which values the input of a convolution lies, by its name."""


@functools.cache
def core() -> ov.Core:
    """OpenVINO itself, one for the whole process and never given back.

    Its CPU plug-in puts a stack for signal handlers of its own under the thread that loads it, and puts the former one
    back when it goes. Two that go in the order in which they came leave a stack that is freed, and then Ctrl-C (or any
    other signal that Python has a handler for) ends the process with a segmentation fault.
    """
    return ov.Core()


def has_bf16() -> bool:
    """Whether the processor computes in bfloat16."""
    return "BF16" in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


class OpenVino:
    """One compiled graph with one request; not thread-safe.

    `device` is OpenVINO's name ("CPU", "GPU", "NPU", "AUTO"); `precision` "auto" takes int8 for the convolutions whose
    `ranges` are known, and for the rest bf16 where the processor has it and f32 elsewhere; `threads` 0 is as many as
    this process may use. Raises `ValueError` for a device that is not there and a file that is no network.
    """

    def __init__(
        self,
        model: Path,
        constants: Tensors | None = None,
        outputs: Sequence[str] | None = None,
        device: str = "CPU",
        precision: str = "auto",
        threads: int = 0,
        ranges: Ranges | None = None,
    ) -> None:
        devices = core().available_devices
        if device not in ("AUTO", *devices):
            raise ValueError(f"OpenVINO has no device {device!r} here, only {', '.join(devices)}")
        try:
            graph = core().read_model(str(model))
        except RuntimeError as error:
            raise ValueError(f"{model} cannot be read as a network: install the program again") from error
        bind(graph, constants or {})
        if outputs is not None:
            _keep_outputs(graph, outputs)
        names = [port.any_name for port in graph.outputs]
        settings: dict[str, object] = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1}
        if device == "CPU":
            if precision == "bf16" and not has_bf16():
                raise ValueError("this processor does not compute in bf16: ask for f32 or auto")
            if precision == "int8" and not ranges:
                raise ValueError("this base model was not measured for int8: ask for bf16, f32 or auto")
            floats = "bf16" if precision != "f32" and has_bf16() else "f32"
            settings["INFERENCE_PRECISION_HINT"] = floats
            self.precision = floats
            if ranges and precision in ("auto", "int8"):
                _quantise(graph, ranges)
                self.precision = f"int8 and {floats}"
            # Pinning would fight the tracker's and the camera's threads for the same two cores.
            settings["ENABLE_CPU_PINNING"] = False
            settings["INFERENCE_NUM_THREADS"] = (
                threads or len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else threads
            )
        else:
            self.precision = precision
        _keep_coordinates(graph)
        self.device = device
        self.device_name = str(core().get_property(device, "FULL_DEVICE_NAME")) if device != "AUTO" else "AUTO"
        self._compiled = core().compile_model(graph, device, settings)
        self._request = self._compiled.create_infer_request()
        self.inputs = {port.any_name: tuple(port.shape) for port in self._compiled.inputs}
        self._held: dict[str, NDArray[np.generic]] = {}
        ports = [self._compiled.output(name) for name in names]
        self._results: dict[str, NDArray[np.generic]] = {
            name: np.empty(tuple(port.shape), port.get_element_type().to_dtype())
            for name, port in zip(names, ports, strict=True)
        }
        for name, array in self._results.items():
            # Written in place. Not a view of OpenVINO's own memory: it would outlive the request it looks into.
            self._request.set_tensor(name, ov.Tensor(array, shared_memory=True))

    def describe(self) -> str:
        """One line for people: what runs on what, in which precision."""
        return f"OpenVINO {ov.__version__.split('-')[0]} on {self.device} ({self.device_name}), {self.precision}"

    def running(self) -> ov.Model:
        """The graph as it runs: which operations were chosen, in which precision and memory order."""
        return self._compiled.get_runtime_model()

    def set(self, inputs: Tensors) -> None:
        """Bind arrays without copying: they are read at every `run` until replaced."""
        for name, array in inputs.items():
            # The request knows only an address: somebody has to keep what lies there alive.
            held = self._held[name] = np.ascontiguousarray(array)
            self._request.set_tensor(name, ov.Tensor(held, shared_memory=True))

    def run(self, inputs: Tensors) -> dict[str, NDArray[np.generic]]:
        """Outputs by name, in arrays that the next `run` writes again."""
        self.set(inputs)
        self._request.infer()
        return dict(self._results)


def bind(graph: ov.Model, constants: Tensors) -> None:
    """Inputs become constants. Raises `ValueError` for a name or a shape that the graph does not have."""
    parameters = {node.output(0).any_name: node for node in graph.get_parameters()}
    for name, value in constants.items():
        if name not in parameters:
            raise ValueError(f"the base model has no input {name!r}, only {', '.join(parameters)}")
        node = parameters[name]
        shape = tuple(node.output(0).shape)
        if shape != value.shape:
            raise ValueError(f"{name!r} has shape {list(value.shape)}, and the base model wants {list(shape)}")
        constant = ov.opset13.constant(np.ascontiguousarray(value, np.float32))
        node.output(0).replace(constant.output(0))
        graph.remove_parameter(node)
    graph.validate_nodes_and_infer_types()


def _keep_outputs(graph: ov.Model, names: Sequence[str]) -> None:
    for node in list(graph.get_results()):
        if not set(names) & set(node.output(0).names | node.input_value(0).names):
            graph.remove_result(node)


def _keep_coordinates(graph: ov.Model) -> None:
    """Makes outputs of the places that samples are taken at, because those stay float32 when the rest is bfloat16.

    With 8 bits of mantissa a place near the edge of a 256 px picture would be off by half a pixel. OpenVINO leaves
    what lies between the last convolution and an output as it is, and has no other switch for a single tensor.
    """
    samples = [node for node in graph.get_ops() if node.get_type_name() == "GridSample"]
    graph.add_results([ov.opset13.result(node.input_value(1)) for node in samples])


def convolutions(graph: ov.Model) -> dict[str, ov.Node]:
    """By their names in the file (OpenVINO's own change from run to run), in order; those that are transposed, too."""
    named = {}
    for node in graph.get_ordered_ops():
        if node.get_type_name() in ("Convolution", "ConvolutionBackpropData"):
            # Where a bias is added, it is the addition that has the name.
            added = [target.get_node() for target in node.output(0).get_target_inputs()]
            named[next(one for one in (node, *added) if one.output(0).get_names()).get_friendly_name()] = node
    return named


def _quantise(graph: ov.Model, ranges: Ranges) -> None:
    """Has the convolutions that `ranges` names computed with 8 bits: unsigned activations where nothing is negative.

    Weights are quantised per output channel, after the person's own were bound. Raises `ValueError` for a convolution
    that the graph does not have.
    """
    nodes = convolutions(graph)
    if missing := sorted(set(ranges) - set(nodes)):
        raise ValueError(f"the base model has no convolution {missing[0]!r}: install the program again")

    def quantised(tensor: ov.Output, low: NDArray[np.float32], high: NDArray[np.float32], levels: int) -> ov.Output:
        ends = [ov.opset13.constant(end) for end in (low, high)]
        return ov.opset13.fake_quantize(tensor, *ends, *ends, levels).output(0)

    for name, (low, high) in ranges.items():
        node = nodes[name]
        if low < 0:
            high = max(high, -low) * 127 / 128
            low = -high * 128 / 127
        taken = quantised(node.input_value(0), np.array(low, np.float32), np.array(high, np.float32), 256)
        transposed = node.get_type_name() == "ConvolutionBackpropData"
        weights = _folded(node.input_value(1))
        most = np.abs(weights).max((0, 2, 3) if transposed else (1, 2, 3), keepdims=True) + np.float32(1e-9)
        node.input(0).replace_source_output(taken)
        stored = ov.opset13.constant(weights).output(0)
        node.input(1).replace_source_output(quantised(stored, -most, most, 255))
    graph.validate_nodes_and_infer_types()


def _folded(tensor: ov.Output) -> NDArray[np.float32]:
    """The value of what depends on constants alone."""
    if tensor.get_node().get_type_name() == "Constant":
        return np.array(tensor.get_node().get_data(), np.float32)
    model = ov.Model([ov.opset13.result(tensor)], [])  # pyright: ignore[reportGeneralTypeIssues]
    return np.array(core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})([])[0], np.float32)
