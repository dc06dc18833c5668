"""An NVIDIA card, as little of it as drawing needs: memory, one stream, copies, a recorded sequence of work.

Reached through NVIDIA's own binding (`cuda-bindings`). Every failure is an `UnavailableError` with one sentence.
"""

from __future__ import annotations

import ctypes
import importlib
import sys
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from engine.backends import UnavailableError

INSTALL = "pip install 'understudy[gpu]'"


class Card(Protocol):
    """Addresses are plain numbers; a stream and a recording are whatever the card takes them for."""

    name: str
    capability: tuple[int, int]

    def allocate(self, byte_count: int) -> int:
        """Memory on the card."""
        ...

    def free(self, address: int) -> None: ...

    def pin(self, byte_count: int) -> int:
        """Memory of this machine that the card reads and writes by itself."""
        ...

    def unpin(self, address: int) -> None: ...

    def stream(self) -> int: ...

    def end_stream(self, stream: int) -> None: ...

    def copy_up(self, device: int, host: int, byte_count: int, stream: int) -> None:
        """Order a copy to the card; it is done when the stream is."""
        ...

    def copy_down(self, host: int, device: int, byte_count: int, stream: int) -> None: ...

    def wait(self, stream: int) -> None: ...

    def record(self, stream: int, work: Callable[[], None]) -> Any:
        """What `work` orders on the stream, as one CUDA graph; nothing of it runs now."""
        ...

    def replay(self, recording: Any, stream: int) -> None: ...

    def forget(self, recording: Any) -> None: ...


def has_driver() -> bool:
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    return True


def _binding() -> Any:
    try:
        return importlib.import_module("cuda.bindings.runtime")
    except ImportError as error:
        raise UnavailableError(f"the package cuda-bindings is not installed; to use it: {INSTALL}") from error


def open_card() -> Card:
    """The first card (`CUDA_VISIBLE_DEVICES` says which that is). Raises `UnavailableError`."""
    if not has_driver():
        raise UnavailableError(
            f"no NVIDIA driver found; to use it: an RTX card, NVIDIA's driver for it (580 or newer), and {INSTALL}"
        )
    return CudaCard(_binding())


class CudaCard:
    """`Card` through CUDA's runtime; `runtime` is the module `cuda.bindings.runtime`."""

    def __init__(self, runtime: Any) -> None:
        self._runtime = runtime
        self._code: Any = runtime.cudaError_t
        driver, wanted = self._version(runtime.cudaDriverGetVersion), self._version(runtime.cudaRuntimeGetVersion)
        # Any driver of the same major version will do: "minor version compatibility" in NVIDIA's words.
        if driver // 1000 < wanted // 1000:
            raise UnavailableError(
                f"the NVIDIA driver is too old (it knows CUDA {driver // 1000}.{driver % 1000 // 10}, and "
                f"{wanted // 1000}.0 is needed); to use it: install a newer driver"
            )
        if not self._do("look for a card", runtime.cudaGetDeviceCount()):
            raise UnavailableError("the NVIDIA driver finds no card; to use it: check that the card is seated and on")
        told = self._do("look at the card", runtime.cudaGetDeviceProperties(0))
        name = told.name.decode(errors="replace") if isinstance(told.name, bytes) else str(told.name)
        self.name = name.rstrip("\0")
        self.capability = (int(told.major), int(told.minor))
        self._do("start", runtime.cudaSetDevice(0))

    def _version(self, asked: Callable[[], tuple[Any, int]]) -> int:
        return int(self._do("tell its version", asked()))

    def _do(self, what: str, answer: tuple[Any, ...]) -> Any:
        """The value of a CUDA call that was to `what`, or the sentence for its error."""
        error, *values = answer
        if error == self._code.cudaSuccess:
            return values[0] if values else None
        if error == self._code.cudaErrorMemoryAllocation:
            raise UnavailableError(
                "the graphics card's memory is full; to use it: close other programs that use the card"
            )
        if error in (self._code.cudaErrorInsufficientDriver, self._code.cudaErrorSystemDriverMismatch):
            raise UnavailableError("the NVIDIA driver is too old; to use it: install a newer driver")
        if error == self._code.cudaErrorNoDevice:
            raise UnavailableError("the NVIDIA driver finds no card; to use it: check that the card is seated and on")
        _, words = self._runtime.cudaGetErrorString(error)
        said = words.decode(errors="replace") if isinstance(words, bytes) else str(words)
        raise UnavailableError(f"the graphics card could not {what} ({said}); to use it: restart the program")

    def allocate(self, byte_count: int) -> int:
        return int(self._do("set memory aside", self._runtime.cudaMalloc(byte_count)))

    def free(self, address: int) -> None:
        self._runtime.cudaFree(address)

    def pin(self, byte_count: int) -> int:
        return int(self._do("reach this machine's memory", self._runtime.cudaHostAlloc(byte_count, 0)))

    def unpin(self, address: int) -> None:
        self._runtime.cudaFreeHost(address)

    def stream(self) -> int:
        # Non-blocking: the legacy default stream would make other users of the card in this process wait.
        flag = self._runtime.cudaStreamNonBlocking
        return int(self._do("open a stream", self._runtime.cudaStreamCreateWithFlags(flag)))

    def end_stream(self, stream: int) -> None:
        self._runtime.cudaStreamDestroy(stream)

    def copy_up(self, device: int, host: int, byte_count: int, stream: int) -> None:
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._do("take what is to be drawn", self._runtime.cudaMemcpyAsync(device, host, byte_count, kind, stream))

    def copy_down(self, host: int, device: int, byte_count: int, stream: int) -> None:
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._do("give the picture back", self._runtime.cudaMemcpyAsync(host, device, byte_count, kind, stream))

    def wait(self, stream: int) -> None:
        self._do("finish the picture", self._runtime.cudaStreamSynchronize(stream))

    def record(self, stream: int, work: Callable[[], None]) -> Any:
        # Thread-local: other threads of the program may go on using the card meanwhile.
        mode = self._runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._do("record its work", self._runtime.cudaStreamBeginCapture(stream, mode))
        try:
            work()
        finally:
            # Also after a failure: a stream that is left recording takes no more orders.
            ended = self._runtime.cudaStreamEndCapture(stream)
        graph = self._do("record its work", ended)
        try:
            return self._do("prepare its work", self._runtime.cudaGraphInstantiate(graph, 0))
        finally:
            self._runtime.cudaGraphDestroy(graph)

    def replay(self, recording: Any, stream: int) -> None:
        self._do("draw", self._runtime.cudaGraphLaunch(recording, stream))

    def forget(self, recording: Any) -> None:
        self._runtime.cudaGraphExecDestroy(recording)


class Pinned:
    """Pinned memory as one array of bytes that lives as long as any view of it does."""

    def __init__(self, card: Card, byte_count: int) -> None:
        self._card = card
        self.byte_count = byte_count
        self.address = card.pin(byte_count)
        self.__array_interface__ = {
            "version": 3,
            "shape": (byte_count,),
            "typestr": "|u1",
            "data": (self.address, False),
        }

    def __del__(self) -> None:
        if hasattr(self, "address"):
            self._card.unpin(self.address)

    def view(self, offset: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[np.generic]:
        length = int(np.prod(shape)) * dtype.itemsize
        return np.asarray(self)[offset : offset + length].view(dtype).reshape(shape)
