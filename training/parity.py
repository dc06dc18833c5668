"""Does every backend draw what the trained network draws? The same frames through each of them and through torch.

The reference is `training.export.PerFrame` in float32: the graph as it was trained, with the avatar's own numbers. All
of them go through the same `engine.renderer.Renderer`, so what is compared is the picture that leaves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from engine.avatar import Avatar
from engine.backends import Tensors
from engine.base import Base
from engine.frames import Face, Frame, Image
from engine.renderer import Renderer, constants_of
from engine.tracker import Tracker
from training.export import FRAME_INPUTS, OUTPUTS, PERSON_INPUTS, PerFrame, load_generator
from training.networks.perceptual import LPIPS

MOST_LPIPS = 0.02
MOST_MEAN_LEVELS = 2.0
MOST_DRIFT = 1.0
"""What a backend may be off by: LPIPS (VGG), mean absolute difference in levels of 255, and drift of the landmarks in
% of the distance between the outer corners of the eyes; each the mean over the frames."""

Perceptual = Callable[[Image, Image], float]


class TorchBackend:
    """The network as it was trained, float32, as a backend; slow."""

    def __init__(self, base: Base, constants: Tensors) -> None:
        self._network = PerFrame(load_generator(base.weights))
        self._constants = {name: torch.from_numpy(np.asarray(value)) for name, value in constants.items()}
        self._tuned = base.tuned
        self._held: dict[str, NDArray[np.generic]] = {}
        self.inputs: dict[str, tuple[int, ...]] = {}

    @classmethod
    def of(cls, avatar: Avatar, base: Base) -> TorchBackend:
        return cls(base, constants_of(avatar, base))

    def describe(self) -> str:
        return f"torch {torch.__version__} on CPU, f32"

    def set(self, inputs: Tensors) -> None:
        self._held.update(inputs)

    def run(self, inputs: Tensors) -> dict[str, NDArray[np.generic]]:
        self.set(inputs)
        given = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in self._held.items()}
        given |= self._constants
        names = (*FRAME_INPUTS, *PERSON_INPUTS, *self._tuned)
        with torch.inference_mode():
            drawn = self._network(*(given[name] for name in names))
        return {name: value.numpy() for name, value in zip(OUTPUTS, drawn, strict=True)}


@dataclass(frozen=True, slots=True)
class Parity:
    """How far one backend is from torch over some frames."""

    frames: int
    max_levels: float
    """Largest difference of any byte."""
    mean_levels: float
    lpips: float | None
    """Mean over the frames; None where it was not measured."""
    worst_lpips: float | None
    drift: float | None
    """Mean shift of the landmarks found in the picture, % of the distance between the outer eye corners."""

    @property
    def holds(self) -> bool:
        return (
            self.mean_levels <= MOST_MEAN_LEVELS
            and (self.lpips or 0.0) <= MOST_LPIPS
            and (self.drift or 0.0) <= MOST_DRIFT
        )


def lpips() -> Perceptual:
    """LPIPS (VGG) of two pictures `[S, S, 3]`."""
    network = LPIPS("vgg").eval()

    def apart(one: Image, other: Image) -> float:
        pair = [torch.from_numpy(image).permute(2, 0, 1)[None].float() / 127.5 - 1 for image in (one, other)]
        with torch.inference_mode():
            return float(network(*pair).mean())

    return apart


def measure(
    reference: Renderer,
    others: Mapping[str, Renderer],
    faces: Sequence[Face],
    perceptual: Perceptual | None = None,
    tracker: Tracker | None = None,
) -> dict[str, Parity]:
    """Every renderer draws the same `faces`, in order; each is compared with `reference` frame by frame.

    `tracker` is one for unrelated pictures. All renderers must be of one avatar and size, and new.
    """
    levels: dict[str, list[tuple[float, float]]] = {name: [] for name in others}
    distances: dict[str, list[float]] = {name: [] for name in others}
    drifts: dict[str, list[float]] = {name: [] for name in others}
    for face in faces:
        expected = reference.draw(face).rgb.copy()
        there = tracker.track(Frame(expected, 0.0)) if tracker is not None else None
        for name, renderer in others.items():
            drawn = renderer.draw(face).rgb
            off = np.abs(drawn.astype(np.int16) - expected)
            levels[name].append((float(off.max()), float(off.mean())))
            if perceptual is not None:
                distances[name].append(perceptual(drawn, expected))
            found = tracker.track(Frame(drawn, 0.0)) if tracker is not None else None
            if isinstance(there, Face) and isinstance(found, Face):
                unit = float(np.linalg.norm(there.points[33, :2] - there.points[263, :2]))
                apart = np.linalg.norm(found.points[:, :2] - there.points[:, :2], axis=1).mean()
                drifts[name].append(100 * float(apart) / unit)
    return {
        name: Parity(
            frames=len(faces),
            max_levels=max(most for most, _ in levels[name]),
            mean_levels=float(np.mean([mean for _, mean in levels[name]])),
            lpips=float(np.mean(distances[name])) if distances[name] else None,
            worst_lpips=max(distances[name]) if distances[name] else None,
            drift=float(np.mean(drifts[name])) if drifts[name] else None,
        )
        for name in others
    }
