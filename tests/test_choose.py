"""Which backend draws: what is there is taken, what is asked for is taken or is an error, and the reason is told."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from engine.avatar import Avatar
from engine.backends import UnavailableError, choose, compiled, cuda, tensorrt
from engine.backends.openvino import OpenVino, core
from engine.backends.tensorrt import TensorRt
from engine.base import Base
from engine.config import Engine, load
from engine.renderer import Generator, constants_of
from tests.cards import FakeCard, flavour

CODES = ("cudaSuccess", "cudaErrorMemoryAllocation", "cudaErrorInsufficientDriver", "cudaErrorSystemDriverMismatch")
CODES += ("cudaErrorNoDevice", "cudaErrorIllegalAddress")


class FakeCuda:
    """The module `cuda.bindings.runtime`: every call succeeds, but those that `fails` names fail with that code."""

    cudaError_t = SimpleNamespace(**{name: name for name in CODES})  # noqa: N815, its name there
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)  # noqa: N815
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)  # noqa: N815
    cudaStreamNonBlocking = 1  # noqa: N815

    def __init__(self, driver: int = 13010, cards: int = 1, **fails: str) -> None:
        self._driver, self._cards, self._fails = driver, cards, fails
        self.called: list[str] = []

    def __getattr__(self, name: str) -> Callable[..., tuple[Any, ...]]:
        values = {
            "cudaDriverGetVersion": self._driver,
            "cudaRuntimeGetVersion": 13050,
            "cudaGetDeviceCount": self._cards,
            "cudaGetDeviceProperties": SimpleNamespace(name=b"Imaginary RTX\0\0", major=8, minor=9),
            "cudaGetErrorString": b"it burns",
        }

        def call(*arguments: object) -> tuple[Any, ...]:
            self.called.append(name)
            return self._fails.get(name, "cudaSuccess"), values.get(name, 64)

        return call


def engine(device: str, precision: str = "f32") -> Engine:
    told: Any = {"device": device, "precision": precision, "threads": 1}
    return dataclasses.replace(load().engine, **told)


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> Callable[[FakeCuda], None]:
    """`found(runtime)`: there is a driver, and this is what the binding says."""

    def find(runtime: FakeCuda) -> None:
        monkeypatch.setattr(cuda, "has_driver", lambda: True)
        monkeypatch.setattr(cuda, "_binding", lambda: runtime)

    return find


def refused() -> str:
    with pytest.raises(UnavailableError) as caught:
        cuda.open_card()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- the card ---


def test_a_card_that_is_there(found: Callable[[FakeCuda], None]) -> None:
    runtime = FakeCuda()
    found(runtime)
    card = cuda.open_card()
    assert (card.name, card.capability) == ("Imaginary RTX", (8, 9))
    assert (card.allocate(16), card.pin(16), card.stream()) == (64, 64, 64)


def test_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "has_driver", lambda: False)
    assert refused() == (
        "no NVIDIA driver found; to use it: an RTX card, NVIDIA's driver for it (580 or newer), and "
        "pip install 'understudy[gpu]'"
    )


def test_no_binding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "has_driver", lambda: True)
    monkeypatch.setitem(__import__("sys").modules, "cuda.bindings.runtime", None)
    assert refused() == "the package cuda-bindings is not installed; to use it: pip install 'understudy[gpu]'"


@pytest.mark.parametrize(
    ("runtime", "sentence"),
    [
        (FakeCuda(driver=12040), "the NVIDIA driver is too old (it knows CUDA 12.4, and 13.0 is needed)"),
        (FakeCuda(cudaGetDeviceCount="cudaErrorInsufficientDriver"), "the NVIDIA driver is too old; to use it"),
        (FakeCuda(cards=0), "the NVIDIA driver finds no card"),
        (FakeCuda(cudaGetDeviceCount="cudaErrorNoDevice"), "the NVIDIA driver finds no card"),
        (FakeCuda(cudaSetDevice="cudaErrorMemoryAllocation"), "the graphics card's memory is full"),
        (FakeCuda(cudaSetDevice="cudaErrorIllegalAddress"), "the graphics card could not start (it burns)"),
    ],
)
def test_a_card_that_cannot_be_used(found: Callable[[FakeCuda], None], runtime: FakeCuda, sentence: str) -> None:
    found(runtime)
    assert refused().startswith(sentence)
    assert "; to use it: " in refused()


def test_a_full_card(found: Callable[[FakeCuda], None]) -> None:
    found(FakeCuda(cudaMalloc="cudaErrorMemoryAllocation"))
    with pytest.raises(UnavailableError, match="memory is full; to use it: close other programs"):
        cuda.open_card().allocate(1 << 40)


def test_a_recording_that_fails_is_ended(found: Callable[[FakeCuda], None]) -> None:
    """A stream that is left recording would take no more orders."""
    runtime = FakeCuda()
    found(runtime)
    card = cuda.open_card()

    def work() -> None:
        raise UnavailableError("no")

    with pytest.raises(UnavailableError, match="no"):
        card.record(1, work)
    assert runtime.called[-2:] == ["cudaStreamBeginCapture", "cudaStreamEndCapture"]
    assert card.record(1, lambda: None) == 64
    assert runtime.called[-3:] == ["cudaStreamEndCapture", "cudaGraphInstantiate", "cudaGraphDestroy"]


# --- the choice ---


@pytest.fixture
def opening(monkeypatch: pytest.MonkeyPatch, tiny_base: Base, tiny_avatar: Avatar, tmp_path: Any) -> Callable[..., Any]:
    """`opening(device, precision)` as the renderer does it."""
    monkeypatch.setenv("UNDERSTUDY_HOME", str(tmp_path))

    def open_(device: str, precision: str = "f32") -> Any:
        constants = constants_of(tiny_avatar, tiny_base)
        return choose.open_backend(engine(device, precision), tiny_base, "tiny", constants, 3, 256, ("rgb", "matte"))

    return open_


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> FakeCard:
    """There is a card, and a TensorRT for it; compiling gives the graph itself."""
    card = FakeCard()
    made = flavour(card)
    monkeypatch.setattr(cuda, "open_card", lambda: card)
    monkeypatch.setattr(tensorrt, "flavours", lambda: [made])
    monkeypatch.setattr(compiled, "build", lambda flavour, graph, target: graph)
    return card


def test_without_a_card_auto_is_the_processor_and_says_why(
    opening: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda, "has_driver", lambda: False)
    backend, why = opening("auto")
    assert isinstance(backend, OpenVino)
    assert why.startswith("TensorRT: no NVIDIA driver found; to use it: ")
    assert opening("cpu")[1] == "", "nobody asked for anything faster"
    with pytest.raises(ValueError, match=r'^device = "cuda" cannot be used: no NVIDIA driver found; to use it: '):
        opening("cuda")


def test_with_a_card_auto_is_the_card(opening: Callable[..., Any], card: FakeCard) -> None:
    for device in ("auto", "cuda"):
        backend, why = opening(device)
        assert isinstance(backend, TensorRt) and why == ""
    assert isinstance(opening("cpu")[0], OpenVino)


def test_a_full_card_leaves_the_processor(opening: Callable[..., Any], card: FakeCard) -> None:
    card.full = True
    backend, why = opening("auto")
    assert isinstance(backend, OpenVino)
    assert why == "TensorRT: the graphics card's memory is full; to use it: close other programs"
    with pytest.raises(ValueError, match=r'^device = "cuda" cannot be used: the graphics card'):
        opening("cuda")


def test_a_card_without_tensorrt_leaves_the_processor(
    opening: Callable[..., Any], card: FakeCard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorrt, "flavours", list)
    backend, why = opening("auto")
    assert isinstance(backend, OpenVino)
    assert why == "TensorRT is not installed; to use it: pip install 'understudy[gpu]'"


def test_a_precision_that_cards_are_not_given(opening: Callable[..., Any], card: FakeCard) -> None:
    with pytest.raises(ValueError, match='cannot be used: a card draws in f16 or f32, and precision is "bf16"'):
        opening("cuda", "bf16")
    assert opening("cuda", "auto")[0].precision == "f16"


def test_other_devices_that_are_not_there_are_errors(opening: Callable[..., Any]) -> None:
    for device, name in (("gpu", "GPU"), ("npu", "NPU")):
        if name not in core().available_devices:
            with pytest.raises(ValueError, match=f"OpenVINO has no device '{name}' here"):
                opening(device)


def test_the_renderer_tells_the_reason(tiny_base: Base, tiny_avatar: Avatar, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "has_driver", lambda: False)
    config = dataclasses.replace(load(), engine=engine("auto"))
    described = Generator(tiny_avatar, tiny_base, config, 256).describe()
    assert described.startswith("OpenVINO ") and ", f32 (TensorRT: no NVIDIA driver found; " in described
