"""Parity: backends that draw the same pass; one that swaps, turns, delays or drifts is caught."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from engine.avatar import Avatar
from engine.backends import Backend, Tensors
from engine.base import Base
from engine.config import Config, load
from engine.frames import Face
from engine.renderer import Renderer
from training.parity import Parity, TorchBackend, measure

MakeFace = Callable[..., Face]
Arrays = dict[str, NDArray[np.generic]]


def settings(size_px: int = 256, precision: str = "f32") -> Config:
    config = load()
    render = replace(config.render, size_px=size_px, background="color")
    return replace(config, render=render, engine=replace(config.engine, device="cpu", precision=precision, threads=1))


class Spoiled:
    """A backend whose outputs are right, but not where or when they belong."""

    def __init__(self, backend: Backend, spoil: Callable[[Arrays, Arrays], Arrays]) -> None:
        self._backend, self._spoil = backend, spoil
        self._last: Arrays = {}
        self.inputs = backend.inputs

    def describe(self) -> str:
        return "spoiled"

    def set(self, inputs: Tensors) -> None:
        self._backend.set(inputs)

    def run(self, inputs: Tensors) -> Arrays:
        drawn = {name: value.copy() for name, value in self._backend.run(inputs).items()}
        last, self._last = self._last or drawn, drawn
        return self._spoil(drawn, last)


@pytest.fixture(scope="module")
def faces(make_face: MakeFace) -> list[Face]:
    return [make_face(yaw_deg=9 * turn, mouth_open_cm=0.4 * turn, time_s=turn / 25) for turn in range(3)]


def parity(avatar: Avatar, base: Base, faces: list[Face], config: Config, *backends: Backend) -> list[Parity]:
    """Of the engine's own backend, then of each of `backends`."""
    reference = Renderer(avatar, base, config)
    reference.generator.draw_with(TorchBackend.of(avatar, base))
    others = {"own": Renderer(avatar, base, config)}
    for number, backend in enumerate(backends):
        others[str(number)] = Renderer(avatar, base, config)
        others[str(number)].generator.draw_with(backend)
    return list(measure(reference, others, faces).values())


@pytest.mark.parametrize("size_px", [256, 512])
def test_the_engine_draws_what_torch_draws(
    tiny_avatar: Avatar, tiny_base: Base, faces: list[Face], size_px: int
) -> None:
    (own,) = parity(tiny_avatar, tiny_base, faces, settings(size_px))
    assert own.holds
    assert own.frames == len(faces)
    assert own.mean_levels < 0.05
    assert own.lpips is None


SPOILS: dict[str, Callable[[Arrays, Arrays], Arrays]] = {
    "red for blue": lambda now, last: now | {"rgb": now["rgb"][..., ::-1].copy()},
    "mirrored": lambda now, last: now | {"rgb": now["rgb"][:, :, ::-1].copy()},
    "one frame late": lambda now, last: last,
    "matte inverted": lambda now, last: now | {"matte": 255 - now["matte"].astype(np.uint8)},
}


def test_outputs_that_are_swapped_or_late_are_caught(tiny_avatar: Avatar, tiny_base: Base, faces: list[Face]) -> None:
    spoiled = [Spoiled(TorchBackend.of(tiny_avatar, tiny_base), spoil) for spoil in SPOILS.values()]
    own, *others = parity(tiny_avatar, tiny_base, faces, settings(), *spoiled)
    assert own.holds
    for name, one in zip(SPOILS, others, strict=True):
        assert not one.holds, name


def test_shares_and_synthesis_swapped_are_caught_at_large_sizes(
    tiny_avatar: Avatar, tiny_base: Base, faces: list[Face]
) -> None:
    def shares(now: Arrays, last: Arrays) -> Arrays:
        return now | {"weight": now["weight"][:, ::-1].copy()}

    def flows(now: Arrays, last: Arrays) -> Arrays:
        return now | {"flow": now["flow"][..., ::-1].copy()}

    spoiled = [Spoiled(TorchBackend.of(tiny_avatar, tiny_base), spoil) for spoil in (shares, flows)]
    _, *others = parity(tiny_avatar, tiny_base, faces, settings(512), *spoiled)
    assert [one.holds for one in others] == [False, False]


@pytest.mark.parametrize(
    ("name", "value"), [("lpips", 0.021), ("drift", 1.1), ("mean_levels", 2.1)], ids=["lpips", "drift", "levels"]
)
def test_each_limit_counts(name: str, value: float) -> None:
    good = Parity(frames=1, max_levels=3, mean_levels=0.1, lpips=0.001, worst_lpips=0.001, drift=0.1)
    assert good.holds
    assert not replace(good, **{name: value}).holds
