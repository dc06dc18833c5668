"""An NVIDIA card and a TensorRT that are neither: memory of this machine, and OpenVINO behind TensorRT's names.

An engine of theirs is the ONNX graph itself, so that all that the program does around TensorRT (names, places, copies,
what is recorded, what goes wrong) is tested without a card, on the very graph that a card gets.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import openvino as ov

from engine.backends import UnavailableError
from engine.backends.openvino import core
from engine.backends.tensorrt import Flavour

GOOD = b"kernels for "


def _move(to: int, from_: int, byte_count: int) -> None:
    ctypes.memmove(to, from_, byte_count)


class FakeCard:
    """`engine.backends.cuda.Card` in this machine's memory; `seen` lists what was ordered, and what was waited for."""

    def __init__(self, name: str = "Imaginary RTX", capability: tuple[int, int] = (8, 9)) -> None:
        self.name, self.capability = name, capability
        self.memory: dict[int, np.ndarray] = {}
        self.streams: set[int] = set()
        self.recordings: list[list[Callable[[], None]]] = []
        self.seen: list[str] = []
        self.full = False
        self.records = True
        self._recorded: list[Callable[[], None]] | None = None

    def _take(self, byte_count: int) -> int:
        if self.full:
            raise UnavailableError("the graphics card's memory is full; to use it: close other programs")
        block = np.full(max(byte_count, 1), 0xCD, np.uint8)  # what is never written shall not look like a picture
        self.memory[block.ctypes.data] = block
        return block.ctypes.data

    allocate = pin = _take

    def free(self, address: int) -> None:
        del self.memory[address]

    unpin = free

    def stream(self) -> int:
        number = max(self.streams, default=0) + 1
        self.streams.add(number)
        return number

    def end_stream(self, stream: int) -> None:
        self.streams.remove(stream)

    def order(self, what: str, work: Callable[[], None]) -> None:
        if self._recorded is not None:
            self._recorded.append(work)
        else:
            work()
        self.seen.append(what if self._recorded is None else f"recorded {what}")

    def _check(self, address: int, byte_count: int) -> None:
        inside = any(start <= address and address + byte_count <= start + len(b) for start, b in self.memory.items())
        assert inside, "a copy beyond the memory that was set aside"

    def copy_up(self, device: int, host: int, byte_count: int, stream: int) -> None:
        self._check(device, byte_count)
        self.order(f"up {byte_count}", lambda: _move(device, host, byte_count))

    def copy_down(self, host: int, device: int, byte_count: int, stream: int) -> None:
        self._check(device, byte_count)
        self._check(host, byte_count)
        self.order(f"down {byte_count}", lambda: _move(host, device, byte_count))

    def wait(self, stream: int) -> None:
        assert stream in self.streams
        self.seen.append("wait")

    def record(self, stream: int, work: Callable[[], None]) -> Any:
        if not self.records:
            raise UnavailableError("the graphics card could not record its work (not permitted); to use it: restart")
        self._recorded = []
        work()
        done, self._recorded = self._recorded, None
        self.recordings.append(done)
        return done

    def replay(self, recording: Any, stream: int) -> None:
        self.seen.append("replay")
        for work in recording:
            work()

    def forget(self, recording: Any) -> None:
        self.recordings.remove(recording)


class _Engine:
    def __init__(self, graph: bytes, card: FakeCard, trt: FakeTensorRt) -> None:
        model = core().read_model(graph)
        self._compiled = core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        self._ports = {port.any_name: port for port in (*self._compiled.outputs, *self._compiled.inputs)}
        self._inputs = {port.any_name for port in self._compiled.inputs}
        self.card, self.trt = card, trt
        self.num_io_tensors = len(self._ports)

    def get_tensor_name(self, number: int) -> str:
        return list(self._ports)[number]

    def get_tensor_mode(self, name: str) -> str:
        return "in" if name in self._inputs else "out"

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._ports[name].shape)

    def get_tensor_dtype(self, name: str) -> np.dtype[Any]:
        return np.dtype(self._ports[name].get_element_type().to_dtype())

    def create_runtime_config(self) -> _Kernels:
        return _Kernels(self.card)

    def create_execution_context(self, config: _Kernels | None = None) -> _Context | None:
        if self.trt.starts:
            if config is not None:
                config.prepare()
            return _Context(self, self._compiled)
        return None


class _Kernels:
    """`IRuntimeConfig` and `IRuntimeCache` in one."""

    made = 0

    def __init__(self, card: FakeCard) -> None:
        self._card, self._held = card, b""

    def create_runtime_cache(self) -> _Kernels:
        return self

    def set_runtime_cache(self, cache: _Kernels) -> bool:
        return cache is self

    def deserialize(self, blob: bytes) -> bool:
        if blob != GOOD + self._card.name.encode():
            return False
        self._held = blob
        return True

    def prepare(self) -> None:
        if not self._held:
            _Kernels.made += 1
            self._held = GOOD + self._card.name.encode()

    def serialize(self) -> bytes:
        return self._held


class _Context:
    def __init__(self, engine: _Engine, compiled: ov.CompiledModel) -> None:
        self._engine, self._request = engine, compiled.create_infer_request()
        self._names = [engine.get_tensor_name(number) for number in range(engine.num_io_tensors)]
        self._addresses: dict[str, int] = {}

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return name in self._names

    def is_stream_capturable(self, stream: int) -> bool:
        return self._engine.trt.capturable

    def _array(self, name: str) -> np.ndarray:
        shape, dtype = self._engine.get_tensor_shape(name), self._engine.get_tensor_dtype(name)
        length = int(np.prod(shape)) * dtype.itemsize
        block = (ctypes.c_uint8 * length).from_address(self._addresses[name])
        return np.ctypeslib.as_array(block).view(dtype).reshape(shape)

    def _run(self) -> None:
        if self._engine.trt.idle:
            return
        inputs = {name: self._array(name).copy() for name in self._names if self._engine.get_tensor_mode(name) == "in"}
        drawn = self._request.infer(inputs)
        for port, value in drawn.items():
            self._array(port.any_name)[...] = value

    def execute_async_v3(self, stream: int) -> bool:
        self._engine.card.order("network", self._run)
        return self._engine.trt.draws


class FakeTensorRt(SimpleNamespace):
    """The module. `invalid` names what `get_engine_validity` finds wrong, `said` what is logged when an engine is
    refused, `starts` and `draws` whether it does; `idle` draws nothing, in no time.
    """

    def __init__(self, card: FakeCard) -> None:
        super().__init__()
        self.__version__ = "1.2.3"
        self.starts = self.draws = self.capturable = True
        self.idle = False
        self.invalid = ""
        self.said = ""
        outer = self

        class Log:
            Severity = SimpleNamespace(ERROR=1, INTERNAL_ERROR=0)

            def log(self, severity: int, message: str) -> None:
                raise NotImplementedError

        class Runtime:
            def __init__(self, log: Log) -> None:
                self._log = log

            def get_engine_validity(self, engine: bytes) -> tuple[str, int]:
                if not outer.invalid:
                    return "valid", 0
                return "invalid", getattr(outer.EngineInvalidityDiagnostics, outer.invalid)

            def deserialize_cuda_engine(self, engine: bytes) -> _Engine | None:
                if outer.said:
                    self._log.log(1, outer.said)
                    return None
                return _Engine(engine, card, outer)

        self.ILogger, self.Runtime = Log, Runtime
        self.TensorIOMode = SimpleNamespace(INPUT="in")
        self.EngineValidity = SimpleNamespace(INVALID="invalid")
        self.EngineInvalidityDiagnostics = SimpleNamespace(
            VERSION_MISMATCH=1,
            UNSUPPORTED_CC=2,
            OLD_CUDA_DRIVER=4,
            OLD_CUDA_RUNTIME=8,
            INSUFFICIENT_GPU_MEMORY=16,
            MALFORMED_ENGINE=32,
            CUDA_ERROR=64,
        )
        self.nptype = np.dtype

    __hash__ = object.__hash__  # type: ignore[assignment]


def flavour(card: FakeCard, for_rtx: bool = True) -> Flavour:
    return Flavour(FakeTensorRt(card), for_rtx)
