"""Measures between which values the inputs of a base's convolutions lie, so that a processor may compute them in int8:
`python -m training.quantise plugin/assets/demo/jun plugin/assets/demo/mara`

Every folder of photos becomes an avatar (not fine-tuned, not written) that draws the faces of its
own photos and what lies between them; the ranges go into `base.json`. Only what comes after the warps is measured:
an error of the motion would be a shift of the picture. Write the base first, measure afterwards.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from engine.avatar import Avatar
from engine.backends import Tensors
from engine.backends.openvino import bind, convolutions, core
from engine.base import Base, open_base, shipped_folder
from engine.config import Config, load
from engine.renderer import Generator, constants_of
from training.enrol import avatar_of

logger = logging.getLogger(__name__)

_MARGIN = 1.15
"""Other people's values may lie this much further out than those that were seen."""
_SHARE = 99.99
"""The outermost values are cut: a finer step for all others is worth more."""


class _Recorder:
    """A backend that draws nothing and keeps what it was given."""

    def __init__(self, size_px: int) -> None:
        self.frames: list[dict[str, NDArray[np.generic]]] = []
        self._held: dict[str, NDArray[np.generic]] = {}
        self._drawn = {
            "rgb": np.zeros((1, size_px, size_px, 3), np.uint8),
            "matte": np.zeros((1, size_px, size_px), np.uint8),
        }
        self.inputs: dict[str, tuple[int, ...]] = {}

    def describe(self) -> str:
        return "nothing is drawn"

    def set(self, inputs: Tensors) -> None:
        self._held.update(inputs)

    def run(self, inputs: Tensors) -> dict[str, NDArray[np.generic]]:
        self.set(inputs)
        self.frames.append({name: np.array(value) for name, value in self._held.items()})
        return dict(self._drawn)


def frames_of(avatar: Avatar, base: Base, config: Config) -> list[dict[str, NDArray[np.generic]]]:
    """What the network is given when the avatar draws each of its photos' faces, and those halfway to the next one."""
    generator = Generator(avatar, base, config, base.size_px)
    recorder = _Recorder(base.size_px)
    generator.draw_with(recorder)
    points = [one.points for one in generator.prepared]
    for number, one in enumerate(points):
        following = (number + 1) % len(points)
        other = (number + len(points) // 2) % len(points)
        generator.draw(one, np.array([other, number, following, other]), np.ones(3, np.float32))
        halfway = (one + points[following]) / 2
        generator.draw(halfway, np.array([number, following, number, other]), np.ones(3, np.float32))
    return recorder.frames


def ranges(base: Base, constants: Tensors, frames: Sequence[Tensors]) -> dict[str, tuple[float, float]]:
    """Lowest and highest input of every convolution after the warps, over all frames of one person."""
    graph = core().read_model(str(base.processor))
    bind(graph, constants)
    after = _after_warps(graph)
    chosen = [name for name, node in convolutions(graph).items() if node in after]
    results = [ov.opset13.result(convolutions(graph)[name].input_value(0)) for name in chosen]
    graph.add_results(results)
    compiled = core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = dict.fromkeys(chosen, (0.0, 0.0))
    for frame in frames:
        drawn = compiled({name: frame[name] for name in (port.any_name for port in compiled.inputs)})
        for name, port in zip(chosen, list(compiled.outputs)[-len(chosen) :], strict=True):
            low, high = np.percentile(drawn[port], [100 - _SHARE, _SHARE])
            found[name] = min(found[name][0], float(low)), max(found[name][1], float(high))
    return found


def _after_warps(graph: ov.Model) -> set[ov.Node]:
    """Every node that depends on a sample of the references' features or pictures."""
    atlases = {one for one in graph.get_parameters() if one.output(0).any_name in ("features", "pictures")}
    reached: set[ov.Node] = set()
    for node in graph.get_ordered_ops():
        sources = [value.get_node() for value in node.input_values()]
        if (node.get_type_name() == "GridSample" and atlases.intersection(sources)) or reached.intersection(sources):
            reached.add(node)
    return reached


def widest(measured: Sequence[Mapping[str, tuple[float, float]]]) -> dict[str, tuple[float, float]]:
    """The ranges of several people as one, with `_MARGIN`."""
    return {
        name: (
            round(_MARGIN * min(one[name][0] for one in measured), 4),
            round(_MARGIN * max(one[name][1] for one in measured), 4),
        )
        for name in measured[0]
    }


def write_ranges(base: Base, found: Mapping[str, tuple[float, float]]) -> Base:
    path = base.folder / "base.json"
    told = json.loads(path.read_text(encoding="utf-8"))
    told["ranges"] = {name: list(ends) for name, ends in found.items()}
    made = path.with_suffix(".new")
    made.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    made.replace(path)
    return open_base(base.folder)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", help="a folder of photos for each person")
    parser.add_argument("--base", type=Path, default=shipped_folder())
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    usual = load()
    untuned = replace(usual.enrol, tune_s=0.0)
    config = replace(usual, engine=replace(usual.engine, device="cpu", precision="f32"), enrol=untuned)
    measured = []
    try:
        base = open_base(options.base)
        for folder in options.folders:
            avatar = avatar_of([folder], folder.name, base, config)
            frames = frames_of(avatar, base, config)
            measured.append(ranges(base, constants_of(avatar, base), frames))
            logger.info("%s: %d frames", avatar.name, len(frames))
    except ValueError as error:
        parser.exit(1, f"{error}\n")
    written = write_ranges(base, widest(measured))
    for name, (low, high) in written.ranges.items():
        logger.info("%-40s %8.3f to %.3f", name, low, high)


if __name__ == "__main__":
    main()
