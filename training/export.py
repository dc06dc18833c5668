"""Checkpoint -> the base model a call runs: `python -m training.export runs/live-256/checkpoint.pt`

The running average is rounded to float16 and stored (`weights.safetensors`, whose sha256 names the base); the
ONNX files hold exactly those numbers: `generator.onnx` for graphics cards, `processor.onnx` for everything else
(`training.lean`), and the encoder of the references. Weights that enrolment tunes are inputs of the graphs, so that an
avatar brings its own and the engine turns them into constants before it compiles. Prints the largest difference from
torch.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from engine.backends.openvino import core
from engine.base import FILES, Base, file_sha256, open_base, shipped_folder
from engine.geometry import DETAIL_COUNT, MAP_COUNT
from training.lean import Lean
from training.networks.live import PICTURE_CHANNELS, TILES, TUNED, LiveGenerator, LiveOptions

logger = logging.getLogger(__name__)

FRAME_INPUTS = ("raster", "grids", "tile", "detail")
PERSON_INPUTS = ("pictures", "thumbnails", "reference_raster", "features", "modulation")
OUTPUTS = ("rgb", "matte", "flow", "weight", "synthesised")


class PerFrame(nn.Module):
    """The generator as the engine sees it: bytes at the rim, tuned weights as inputs.

    In: `raster [1, S/2, S/2, 3]` uint8, `grids`, `tile` uint8, `detail`, the person's tensors, the tuned weights.
    Out: `rgb [1, S, S, 3]` uint8, `matte [1, S, S]` uint8, `flow [1, 2, S/4, S/4, 2]`, `weight [1, 3, S, S]`
    uint8, `synthesised [1, S, S, 3]` uint8.
    """

    def __init__(self, generator: LiveGenerator) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, raster: Tensor, grids: Tensor, tile: Tensor, detail: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        pictures, thumbnails, reference_raster, features, modulation = rest[: len(PERSON_INPUTS)]
        drawn = self.generator(
            raster.permute(0, 3, 1, 2).float() / 255,
            grids,
            tile.float(),
            detail,
            pictures,
            thumbnails,
            reference_raster,
            features,
            modulation,
            tuned=rest[len(PERSON_INPUTS) :],
        )
        matte = (drawn.matte[:, 0] * 255 + 0.5).to(torch.uint8)
        return (
            _bytes(drawn.rgb),
            matte,
            drawn.flow.permute(0, 1, 3, 4, 2),
            (drawn.weight * 255 + 0.5).to(torch.uint8),
            _bytes(drawn.synthesised),
        )


def _bytes(picture: Tensor) -> Tensor:
    return (picture.clamp(-1, 1) * 127.5 + 128.0).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def load_generator(weights: Path) -> LiveGenerator:
    """The network of a base, float32, from its `weights.safetensors` (options in `base.json` beside it).

    Raises `ValueError` with one sentence when they are missing or damaged.
    """
    try:
        told = json.loads((weights.parent / "base.json").read_text(encoding="utf-8"))
        generator = LiveGenerator(LiveOptions(**told["options"]))
        generator.load_state_dict({name: value.float() for name, value in load_file(weights).items()})
    except FileNotFoundError:
        raise ValueError(f"the base model in {weights.parent} is not whole: install the program again") from None
    except (SafetensorError, RuntimeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{weights} does not hold the weights of its base: install the program again") from error
    return generator.eval()


def example(generator: LiveGenerator, seed: int = 0) -> dict[str, Tensor]:
    """Inputs of `PerFrame`, plausible and fixed by the seed."""
    random = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=random)

    size, options = generator.options.size_px, generator.options
    h = size // 4
    line = torch.linspace(-1 + 1 / h, 1 - 1 / h, h)
    still = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1)
    wander = torch.randn(1, MAP_COUNT + DETAIL_COUNT, 1, 1, 2, generator=random) * 0.1
    inputs = {
        "raster": (uniform(1, size // 2, size // 2, 3) * 255).to(torch.uint8),
        "grids": still + wander.expand(-1, -1, h, h, -1),
        "tile": (uniform(1, h, h) * 3).to(torch.uint8) + 1,
        "detail": uniform(1, 1, h, h),
        "pictures": uniform(1, PICTURE_CHANNELS, TILES * size, size) * 2 - 1,
        "thumbnails": uniform(1, PICTURE_CHANNELS, TILES * h, h) * 2 - 1,
        "reference_raster": uniform(1, 3, h, h),
        "features": torch.randn(1, options.feature_channels, TILES * h, h, generator=random),
        "modulation": torch.randn(1, sum(generator.modulation_counts), generator=random) * 0.1,
    }
    state = generator.state_dict()
    return inputs | {name: state[name].clone() for name in TUNED}


def to_onnx(module: nn.Module, inputs: dict[str, Tensor], outputs: tuple[str, ...], path: Path) -> None:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the tracer remarks on every shape that is a constant here
        torch.onnx.export(
            module,
            tuple(inputs.values()),
            str(path),
            input_names=list(inputs),
            output_names=list(outputs),
            opset_version=17,
            dynamo=False,
        )


def _store_halves(path: Path) -> None:
    """Constants that are no less exact in float16 are stored so: half the size, the same numbers."""
    model = onnx.load(str(path))
    casts = []
    for one in model.graph.initializer:
        value = numpy_helper.to_array(one)
        if value.dtype == np.float32 and value.size > 64 and np.array_equal(value, half := value.astype(np.float16)):
            name = one.name
            one.CopyFrom(numpy_helper.from_array(half, f"{name}/half"))
            casts.append(helper.make_node("Cast", [one.name], [name], to=onnx.TensorProto.FLOAT))
    rest = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(casts + rest)
    onnx.save(model, str(path))


def write_base(generator: LiveGenerator, folder: Path, record: dict[str, Any]) -> Base:
    """Write the files of a base; `record` (data, steps, command) goes into `base.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: value.half().contiguous() for name, value in generator.state_dict().items()}
    generator.load_state_dict({name: value.float() for name, value in state.items()})
    generator = generator.eval().to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]
    with tempfile.TemporaryDirectory(dir=folder) as made:
        temporary = Path(made)
        save_file(state, temporary / "weights.safetensors")
        to_onnx(PerFrame(generator), example(generator), OUTPUTS, temporary / "generator.onnx")
        to_onnx(Lean(generator), example(generator), OUTPUTS, temporary / "processor.onnx")
        _store_halves(temporary / "processor.onnx")
        size = generator.options.size_px
        pictures = {
            "picture": torch.rand(1, PICTURE_CHANNELS, size, size),
            "raster": torch.rand(1, 3, size // 2, size // 2),
        }
        to_onnx(generator.reference_encoder, pictures, ("features",), temporary / "encoder.onnx")
        told = {
            "sha256": file_sha256(temporary / "weights.safetensors"),
            "size_px": size,
            "feature_channels": generator.options.feature_channels,
            "modulation_count": sum(generator.modulation_counts),
            "tuned": list(TUNED),
            "options": generator.options_dict(),
            "files": {name: file_sha256(temporary / name) for name in FILES},
            "record": record,
        }
        (temporary / "base.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
        for name in (*FILES, "base.json"):
            (temporary / name).chmod(0o644)  # safetensors keeps its files to their owner
            (temporary / name).replace(folder / name)
    return open_base(folder)


def difference_from_torch(base: Base, graph: Path) -> dict[str, float]:
    """Largest absolute difference of each output between torch and OpenVINO, both float32 (bytes count in levels).

    `graph` is one of the base's two.
    """
    generator = load_generator(base.weights)
    inputs = example(generator, seed=1)
    with torch.no_grad():
        expected = PerFrame(generator)(*inputs.values())
    compiled = core().compile_model(str(graph), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    got = compiled({name: value.numpy() for name, value in inputs.items()})
    return {
        name: float(np.abs(got[name].astype(np.float64) - value.numpy().astype(np.float64)).max())
        for name, value in zip(OUTPUTS, expected, strict=True)
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--out", type=Path, default=shipped_folder())
    parser.add_argument("--record", default="", help="one sentence for base.json: data and command")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    content = torch.load(options.checkpoint, map_location="cpu", weights_only=True)
    generator = LiveGenerator(LiveOptions(**content["options"]))
    generator.load_state_dict(content["average"])
    record = {"note": options.record, "steps": content["step"], "hours": round(content["seconds"] / 3600, 2)}
    base = write_base(generator, options.out, record)
    logger.info("base %s in %s", base.sha256[:12], base.folder)
    for graph in (base.generator, base.processor):
        for name, value in difference_from_torch(base, graph).items():
            logger.info("largest difference from torch, %s of %s: %.3g", name, graph.name, value)


if __name__ == "__main__":
    main()
