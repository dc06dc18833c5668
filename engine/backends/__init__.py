"""The machines a frame can be drawn on: each backend has one `run(inputs)`; `choose` says which of them draws."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Tensors = Mapping[str, NDArray[np.generic]]


class Backend(Protocol):
    """One network, compiled; not thread-safe.

    Inputs and outputs go by name. What was `set` is read at every `run` until it is set again, what is given to `run`
    likewise; the arrays that `run` returns are written again by the next one.
    """

    inputs: dict[str, tuple[int, ...]]

    def describe(self) -> str:
        """One line for people: what runs on what, in which precision."""
        ...

    def set(self, inputs: Tensors) -> None: ...

    def run(self, inputs: Tensors) -> dict[str, NDArray[np.generic]]: ...


class UnavailableError(ValueError):
    """A backend that cannot draw on this machine; the message says why, and what to do to use it."""
