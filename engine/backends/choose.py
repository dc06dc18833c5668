"""Which machine draws: a card through TensorRT where there is one, any processor through OpenVINO, and why."""

from __future__ import annotations

from collections.abc import Sequence

from engine.backends import Backend, Tensors, UnavailableError, cuda
from engine.backends.card_graph import Precision
from engine.backends.openvino import OpenVino
from engine.base import Base
from engine.config import Engine

OPENVINO_DEVICES = {"auto": "CPU", "cpu": "CPU", "gpu": "GPU", "npu": "NPU", "cuda": "CPU"}
"""What OpenVINO calls the device of each setting; with "cuda" for what runs once, when an avatar is opened."""

_PRECISIONS: dict[str, Precision] = {"auto": "f16", "f32": "f32"}


def open_backend(
    engine: Engine,
    base: Base,
    name: str,
    constants: Tensors,
    references: int,
    size_px: int,
    outputs: Sequence[str],
) -> tuple[Backend, str]:
    """The backend that draws the avatar `name` at `size_px`, and why a faster one does not ("" when it does).

    A card gives the finished `rgb` and `matte`; OpenVINO gives `outputs`.

    `device = "auto"` takes what there is and says so; a device that is asked for by its name is taken, or is an error:
    `UnavailableError` or `ValueError`, one sentence.
    """
    why = ""
    if engine.device in ("auto", "cuda"):
        try:
            return open_tensorrt(engine, base, name, constants, references, size_px), ""
        except UnavailableError as error:
            if engine.device == "cuda":
                raise UnavailableError(f'device = "cuda" cannot be used: {error}') from error
            why = str(error) if str(error).startswith("TensorRT") else f"TensorRT: {error}"
    return open_openvino(engine, base, constants, outputs), why


def open_openvino(engine: Engine, base: Base, constants: Tensors, outputs: Sequence[str]) -> Backend:
    """An avatar on a processor, or on what Intel makes. Raises `ValueError` when the device is not there."""
    device = OPENVINO_DEVICES[engine.device]
    return OpenVino(base.processor, constants, outputs, device, engine.precision, engine.threads, base.ranges)


def open_tensorrt(engine: Engine, base: Base, name: str, constants: Tensors, references: int, size_px: int) -> Backend:
    """An avatar on the card. Raises `UnavailableError`, `ValueError`."""
    card = cuda.open_card()
    # Only now: a machine without a card starts without looking for what it could not use.
    from engine.backends.compiled import Wanted, find_or_make
    from engine.backends.tensorrt import TensorRt, flavour_for

    wanted = Wanted(base, name, constants, references, size_px, card_precision(engine))
    flavour = flavour_for(card.capability)
    compiled = find_or_make(wanted, flavour, card.capability)
    kernels = compiled.path.with_suffix(".kernels") if compiled.path else None
    return TensorRt(flavour, card, compiled.engine, wanted.precision, compiled.key, kernels)


def card_precision(engine: Engine) -> Precision:
    """Raises `UnavailableError` for one that cards are not given."""
    if engine.precision not in _PRECISIONS:
        raise UnavailableError(
            f'a card draws in f16 or f32, and precision is "{engine.precision}"; to use it: precision = "auto" (f16)'
        )
    return _PRECISIONS[engine.precision]
