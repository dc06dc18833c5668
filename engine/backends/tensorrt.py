"""Drawing on an NVIDIA card through TensorRT: for RTX (`tensorrt_rtx`), or the full one where that is installed.

Two steps. `build` turns a graph of `card_graph` into an engine; for RTX this needs no card and no driver, and the
engine serves every card of its targets. `TensorRt` runs an engine: TensorRT for RTX then makes the kernels for the card
at hand, once, and keeps them in a runtime cache beside the engine.

A frame is one copy up (what `run` is given), the network, and one copy down (picture and matte), recorded as one CUDA
graph and ordered with a single call. References lie on the card from `set` until they are set again.
"""

from __future__ import annotations

import functools
import importlib
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.backends import Tensors, UnavailableError
from engine.backends.card_graph import RESIDENT_INPUTS, Precision
from engine.backends.cuda import INSTALL, Card, Pinned
from engine.backends.engine_file import EngineFileError, Key, load, save

logger = logging.getLogger(__name__)

PORTABLE = "sm80+"
"""The target of an engine of TensorRT for RTX when none is named: Ampere and everything later."""

_ALIGNED_BYTES = 256


@dataclass(frozen=True, slots=True)
class Flavour:
    """One of the two TensorRTs, imported."""

    module: Any
    for_rtx: bool

    @property
    def name(self) -> str:
        return "TensorRT for RTX" if self.for_rtx else "TensorRT"

    @property
    def version(self) -> str:
        return str(self.module.__version__)

    @property
    def described(self) -> str:
        return f"{self.name} {self.version}"

    def target_of(self, capability: tuple[int, int]) -> str:
        """What an engine for a card of that compute capability is built for when it is built here and now."""
        major, minor = capability
        # Turing needs engines of its own; what the full TensorRT builds runs on the like of the card it was built on.
        return PORTABLE if self.for_rtx and capability >= (8, 0) else f"sm{major}{minor}"

    def serves(self, target: str, capability: tuple[int, int]) -> bool:
        """Whether an engine for `target` runs on a card of that compute capability."""
        if target == PORTABLE:
            return self.for_rtx and capability >= (8, 0)
        return f"sm{capability[0]}{capability[1]}" in target.split("+")


def flavours() -> list[Flavour]:
    """What is installed, TensorRT for RTX first."""
    found = []
    for names, for_rtx in ((("tensorrt_rtx", "tensorrt_rtx_bindings"), True), (("tensorrt",), False)):
        for name in names:
            try:
                found.append(Flavour(importlib.import_module(name), for_rtx))
            except (ImportError, OSError):  # OSError: a library that it loads is missing
                continue
            break
    return found


def flavour_for(capability: tuple[int, int] | None) -> Flavour:
    """The one to use on a card of that compute capability (None: to compile for later). Raises `UnavailableError`."""
    found = flavours()
    if not found:
        raise UnavailableError(f"TensorRT is not installed; to use it: {INSTALL}")
    data_centre = capability is not None and capability[0] in (9, 10)
    return found[-1] if data_centre else found[0]


def parse_target(told: str, flavour: Flavour) -> str:
    """`--target`: "sm89,sm120" -> "sm89+sm120", "" -> what serves most cards. Raises `ValueError`."""
    if not told:
        return PORTABLE if flavour.for_rtx else "this"
    if not flavour.for_rtx:
        raise ValueError(f"{flavour.name} compiles for the card of this machine alone: leave --target out")
    names = sorted({name.strip().lower() for name in told.split(",")}, key=lambda name: (len(name), name))
    known = [name.lower() for name in dir(flavour.module.ComputeCapability) if name.startswith("SM")]
    for name in names:
        if name not in known:
            by_number = sorted(known, key=lambda one: int(one[2:]))
            raise ValueError(f"--target knows {', '.join(by_number)}, and not {name!r}")
    return "+".join(names)


@functools.cache
def _logger(flavour: Flavour) -> Any:
    """TensorRT keeps the first logger it is given for the whole process: one, that remembers the last error."""

    class Log(flavour.module.ILogger):
        def __init__(self) -> None:
            flavour.module.ILogger.__init__(self)
            self.last = ""

        def log(self, severity: Any, message: str) -> None:
            if severity in (flavour.module.ILogger.Severity.ERROR, flavour.module.ILogger.Severity.INTERNAL_ERROR):
                self.last = " ".join(message.split())
            logger.debug("%s: %s", flavour.name, message)

    return Log()


def build(flavour: Flavour, graph: bytes, target: str) -> bytes:
    """A graph of `card_graph` -> an engine. Types are those of the graph (strongly typed).

    Raises `UnavailableError` with one sentence.
    """
    trt, log = flavour.module, _logger(flavour)
    log.last = ""
    try:
        builder = trt.Builder(log)
    except TypeError as error:  # the full TensorRT without a card: "factory function returned nullptr"
        raise UnavailableError(f"{flavour.described} cannot compile here: {log.last or error}") from error
    # Says nothing new to versions that know no other kind, and is what the older ones must be told.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(graph):
        said = "; ".join(parser.get_error(number).desc() for number in range(parser.num_errors))
        raise UnavailableError(f"{flavour.described} does not take the network: {' '.join(said.split())}")
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # float32 here means that the bits matter
    if flavour.for_rtx and target != PORTABLE:
        capabilities = [getattr(trt.ComputeCapability, name.upper()) for name in target.split("+")]
        config.num_compute_capabilities = len(capabilities)
        for number, capability in enumerate(capabilities):
            config.set_compute_capability(capability, number)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise UnavailableError(
            f"{flavour.described} could not compile the network: {log.last or 'it does not say why'}"
        )
    return bytes(memoryview(engine))


@dataclass(frozen=True, slots=True)
class _Tensor:
    """Where one input or output lies: in the memory that is copied as a whole, or by itself."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    address: int
    offset: int = 0

    @property
    def byte_count(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class TensorRt:
    """One engine on one card; not thread-safe.

    `key` and `cache` say where what TensorRT for RTX made for this card is kept from one start to the next. Raises
    `UnavailableError` with one sentence, at the start and whenever the card fails.
    """

    def __init__(
        self, flavour: Flavour, card: Card, engine: bytes, precision: Precision, key: Key, cache: Path | None
    ) -> None:
        self._flavour, self._card, self.precision = flavour, card, precision
        self._key = {**key, "card": card.name}
        self._cache_path = cache
        self._owned: list[int] = []
        self._recording: Any = None
        self._closed = False
        self._runtime: Any = None
        self._engine: Any = None
        self._context: Any = None
        self._kernels: Any = None
        self._kept = b""
        self._stream = card.stream()
        try:
            self._log = _logger(flavour)
            self._log.last = ""
            self._runtime = flavour.module.Runtime(self._log)
            self._check(engine)
            self._engine = self._runtime.deserialize_cuda_engine(engine)
            if self._engine is None:
                raise UnavailableError(self._refused("does not take the compiled engine"))
            self._context = self._open_context()
            self._lay_out()
            self._begin()
            self._keep_kernels()
        except BaseException:
            self.close()
            raise

    def _refused(self, what: str) -> str:
        said = self._log.last
        if "out of memory" in said.lower() or "outofmemory" in said.lower():
            return "the graphics card's memory is full; to use it: close other programs that use the card"
        where = f"{self._card.name} (sm{self._card.capability[0]}{self._card.capability[1]})"
        return f"{self._flavour.described} {what} on {where}" + (f": {said}" if said else "")

    def _check(self, engine: bytes) -> None:
        """Ask TensorRT for RTX beforehand: it then says which of several things is wrong."""
        if not hasattr(self._runtime, "get_engine_validity"):
            return
        trt = self._flavour.module
        validity, why = self._runtime.get_engine_validity(engine)
        if validity != trt.EngineValidity.INVALID:
            return
        advice = {
            "OLD_CUDA_DRIVER": "the NVIDIA driver is too old; to use it: install a newer driver",
            "OLD_CUDA_RUNTIME": f"the CUDA runtime is too old; to use it: {INSTALL}",
            "INSUFFICIENT_GPU_MEMORY": (
                "the graphics card's memory is full; to use it: close other programs that use the card"
            ),
            "UNSUPPORTED_CC": self._refused("does not draw"),
        }
        for name, sentence in advice.items():
            if int(why) & int(getattr(trt.EngineInvalidityDiagnostics, name)):
                raise UnavailableError(sentence)
        raise UnavailableError(self._refused("does not take the compiled engine"))

    def _open_context(self) -> Any:
        """What draws. TensorRT for RTX makes kernels for this card, now and at the first frame, unless it has some."""
        if not self._flavour.for_rtx:
            context = self._engine.create_execution_context()
        else:
            config = self._engine.create_runtime_config()
            self._kernels = config.create_runtime_cache()
            self._kept = self._kept_kernels()
            if self._kept and not self._kernels.deserialize(self._kept):
                self._kept = b""  # of another driver, say
            config.set_runtime_cache(self._kernels)
            context = self._engine.create_execution_context(config)
        if context is None:
            raise UnavailableError(self._refused("cannot start"))
        return context

    def _kept_kernels(self) -> bytes:
        try:
            return load(self._cache_path, self._key) if self._cache_path else b""
        except EngineFileError as error:
            logger.info("kernels are made again: %s", error)
            return b""

    def _keep_kernels(self) -> None:
        if self._cache_path is None or self._kernels is None:
            return
        made = self._kernels.serialize()
        if made is not None and (kernels := bytes(memoryview(made))) != self._kept:
            try:
                save(self._cache_path, self._key, kernels)
            except OSError as error:
                logger.warning("the next start will be slow: %s cannot be written (%s)", self._cache_path, error)

    def _lay_out(self) -> None:
        """Give every tensor its place: residents by themselves, all else next to each other in one piece each way."""
        engine, trt = self._engine, self._flavour.module
        names = [engine.get_tensor_name(number) for number in range(engine.num_io_tensors)]
        is_input = {name: engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT for name in names}
        told = {
            name: (tuple(engine.get_tensor_shape(name)), np.dtype(trt.nptype(engine.get_tensor_dtype(name))))
            for name in names
        }
        self._resident = {
            name: _Tensor(*told[name], self._allocate(math.prod(told[name][0]) * told[name][1].itemsize))
            for name in names
            if is_input[name] and name in RESIDENT_INPUTS
        }
        self._up, self._up_host = self._in_one_piece(
            {name: told[name] for name in names if is_input[name] and name not in RESIDENT_INPUTS}
        )
        self._down, self._down_host = self._in_one_piece({name: told[name] for name in names if not is_input[name]})
        everything = self._resident | self._up | self._down
        for name, tensor in everything.items():
            if not self._context.set_tensor_address(name, tensor.address):
                raise UnavailableError(self._refused(f"has no place for {name!r}"))
        self._given = {name: self._up_host.view(one.offset, one.shape, one.dtype) for name, one in self._up.items()}
        self._results = {
            name: self._down_host.view(one.offset, one.shape, one.dtype) for name, one in self._down.items()
        }
        self.inputs = {name: everything[name].shape for name in names if is_input[name]}
        self._unset = set(self.inputs)

    def _begin(self) -> None:
        """Draw once into nothing, so that what the first frame makes is made now and what fails fails now; record."""
        self._order()
        self._card.wait(self._stream)
        capturable: Callable[[int], bool] | None = getattr(self._context, "is_stream_capturable", None)
        if capturable is not None and not capturable(self._stream):
            logger.warning("%s: its work cannot be recorded, frames will take longer", self._flavour.described)
            return
        try:
            self._recording = self._card.record(self._stream, self._order)
        except UnavailableError as error:
            logger.warning("%s: its work cannot be recorded (%s), frames will take longer", self._flavour.name, error)

    def _allocate(self, byte_count: int) -> int:
        address = self._card.allocate(byte_count)
        self._owned.append(address)
        return address

    def _in_one_piece(
        self, told: dict[str, tuple[tuple[int, ...], np.dtype[Any]]]
    ) -> tuple[dict[str, _Tensor], Pinned]:
        offsets: dict[str, int] = {}
        end = 0
        for name, (shape, dtype) in told.items():
            offsets[name] = end
            end += -(-math.prod(shape) * dtype.itemsize // _ALIGNED_BYTES) * _ALIGNED_BYTES
        base = self._allocate(end)
        laid = {name: _Tensor(*told[name], base + offset, offset) for name, offset in offsets.items()}
        pinned = Pinned(self._card, end)
        np.asarray(pinned)[:] = 0
        return laid, pinned

    def describe(self) -> str:
        """One line for people: what runs on what, in which precision."""
        major, minor = self._card.capability
        slow = ", without a CUDA graph" if self._recording is None else ""
        return f"{self._flavour.described} on {self._card.name} (sm{major}{minor}), {self.precision}{slow}"

    def set(self, inputs: Tensors) -> None:
        """Take arrays: references go to the card and stay there, what is small waits for the next `run`."""
        for name, array in inputs.items():
            shape = self.inputs.get(name)
            if shape is None or array.shape != shape:
                wanted = f"{list(shape)}" if shape else f"one of {', '.join(self.inputs)}"
                raise ValueError(f"{name!r} has shape {list(array.shape)}, and the engine wants {wanted}")
            if name in self._given:
                np.copyto(self._given[name], array, casting="same_kind")
            else:
                tensor = self._resident[name]
                whole = np.ascontiguousarray(array, tensor.dtype)
                self._card.copy_up(tensor.address, whole.ctypes.data, tensor.byte_count, self._stream)
                self._card.wait(self._stream)  # `whole` may be gone after this line
            self._unset.discard(name)

    def run(self, inputs: Tensors) -> dict[str, NDArray[np.generic]]:
        """Outputs by name, in arrays that the next `run` writes again."""
        self.set(inputs)
        if self._unset:
            raise ValueError(f"the engine was never given {', '.join(sorted(self._unset))}")
        if self._recording is not None:
            self._card.replay(self._recording, self._stream)
        else:
            self._order()
        self._card.wait(self._stream)
        return dict(self._results)

    def _order(self) -> None:
        """One frame on the stream: up, through the network, down."""
        up, down = next(iter(self._up.values())), next(iter(self._down.values()))
        self._card.copy_up(up.address, self._up_host.address, self._up_host.byte_count, self._stream)
        if not self._context.execute_async_v3(self._stream):
            raise UnavailableError(self._refused("stopped drawing"))
        self._card.copy_down(self._down_host.address, down.address, self._down_host.byte_count, self._stream)

    def close(self) -> None:
        """Give the card's memory back; arrays that `run` returned stay readable."""
        if self._closed:
            return
        self._closed = True
        if self._recording is not None:
            self._card.forget(self._recording)
        self._context = self._kernels = self._engine = self._runtime = None  # before the memory that they know
        for address in self._owned:
            self._card.free(address)
        self._card.end_stream(self._stream)
        # Pinned memory goes with the last array that looks into it.
        for held in ("_up_host", "_down_host", "_given", "_results"):
            self.__dict__.pop(held, None)

    def __del__(self) -> None:
        if hasattr(self, "_stream"):  # else there was not even a card to give anything back to
            self.close()
