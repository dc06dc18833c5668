"""The graph that a card gets: its types, its names, its samples, and the picture it draws in float16."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import pytest
import torch
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from torch.nn import functional as F

from engine import geometry
from engine.avatar import Avatar, Reference
from engine.backends import tensorrt
from engine.backends.card_graph import FRAME_INPUTS, KEPT_F32, OUTPUTS, Precision, card_graph
from engine.backends.compiled import Wanted
from engine.backends.openvino import OpenVino
from engine.base import Base, open_base
from engine.renderer import constants_of, prepare
from tests.conftest import landmarks, untuned

FLOAT, HALF = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16


@pytest.fixture(scope="module")
def base() -> Base:
    return open_base()


@pytest.fixture(scope="module")
def avatar(base: Base, tiny_references: tuple[Reference, ...]) -> Avatar:
    """Over the base that ships."""
    return untuned("shipped", base, tiny_references)


def made(avatar: Avatar, base: Base, size_px: int, precision: Precision) -> onnx.ModelProto:
    blob = card_graph(base.generator, constants_of(avatar, base), len(avatar.references), size_px, precision)
    return onnx.load_from_string(blob)


@pytest.fixture(scope="module")
def typed(avatar: Avatar, base: Base) -> onnx.ModelProto:
    """At 512 px, float16, with the type of every tensor."""
    return onnx.shape_inference.infer_shapes(made(avatar, base, 512, "f16"), strict_mode=True, data_prop=True)


def types_of(model: onnx.ModelProto) -> dict[str, tuple[int, list[int]]]:
    graph = model.graph
    told = {
        value.name: (value.type.tensor_type.elem_type, [one.dim_value for one in value.type.tensor_type.shape.dim])
        for value in (*graph.value_info, *graph.input, *graph.output)
    }
    return told | {one.name: (one.data_type, list(one.dims)) for one in graph.initializer}


# --- its shape ---


def test_inputs_and_outputs_go_by_these_names(typed: onnx.ModelProto, avatar: Avatar, base: Base) -> None:
    types = types_of(typed)
    inputs = {one.name: types[one.name][1] for one in typed.graph.input}
    r, c = len(avatar.references), base.feature_channels
    assert inputs == {
        "raster": [1, 128, 128, 3],
        "target": [478, 2],
        "maps": [14, 2, 3],
        "weights": [478],
        "tile": [1, 64, 64],
        "detail": [1, 1, 64, 64],
        "chosen": [4],
        "pictures": [1, 4, r * 256, 256],
        "thumbnails": [1, 4, r * 64, 64],
        "features": [1, c, r * 64, 64],
        "reference_raster": [r, 3, 64, 64],
        "points": [r, 478, 2],
        "full": [1, 3, r * 512, 640],
    }
    assert set(FRAME_INPUTS) < inputs.keys()
    outputs = {one.name: types[one.name] for one in typed.graph.output}
    assert outputs == {
        "rgb": (onnx.TensorProto.UINT8, [1, 512, 512, 3]),
        "matte": (onnx.TensorProto.UINT8, [1, 512, 512]),
    }


@pytest.mark.parametrize("size_px", [256, 512])
def test_every_sample_is_four_dimensional_and_no_operation_is_foreign(avatar: Avatar, base: Base, size_px: int) -> None:
    model = onnx.shape_inference.infer_shapes(made(avatar, base, size_px, "f16"), strict_mode=True, data_prop=True)
    types = types_of(model)
    assert {node.domain for node in model.graph.node} == {""}
    samples = [node for node in model.graph.node if node.op_type == "GridSample"]
    assert len(samples) == (3 if size_px == 256 else 4)
    for node in samples:
        assert [len(types[name][1]) for name in node.input] == [4, 4]


def test_bytes_are_only_ever_cast(typed: onnx.ModelProto) -> None:
    """TensorRT takes bytes at the rim and computes nothing with them."""
    types = types_of(typed)
    for node in typed.graph.node:
        if any(types.get(name, (FLOAT,))[0] == onnx.TensorProto.UINT8 for name in (*node.input, *node.output)):
            assert node.op_type == "Cast"


# --- its types ---


def test_convolutions_are_float16_and_places_and_statistics_float32(typed: onnx.ModelProto) -> None:
    types = types_of(typed)
    convolutions = [node for node in typed.graph.node if node.op_type == "Conv"]
    whole = [node for node in convolutions if types[node.input[0]][0] == FLOAT]
    assert {node.input[1] for node in whole} == KEPT_F32
    assert len(convolutions) > 15
    for node in convolutions:
        assert len({types[name][0] for name in (*node.input, *node.output)}) == 1
    for kind in ("GridSample", "InstanceNormalization", "Softmax", "Tanh", "Sigmoid", "Log"):
        nodes = [node for node in typed.graph.node if node.op_type == kind]
        assert nodes, kind
        assert all(types[name][0] == FLOAT for node in nodes for name in (*node.input, *node.output)), kind
    stored = sum(1 for one in typed.graph.initializer if one.data_type == HALF)
    assert stored >= 2 * (len(convolutions) - len(whole)) - 2


def test_the_graph_of_f32_has_no_float16(avatar: Avatar, base: Base) -> None:
    model = onnx.shape_inference.infer_shapes(made(avatar, base, 256, "f32"), strict_mode=True, data_prop=True)
    assert HALF not in {kind for kind, _ in types_of(model).values()}


# --- its picture ---


def _torch(values: NDArray[Any]) -> torch.Tensor:
    return torch.from_numpy(np.array(values, np.float32))


class Conv(OpRun):
    """Sums in float32, result in the type of the input: what a tensor core does."""

    op_domain = ""

    def _run(self, x, w, b=None, **how):
        assert b is not None and x.dtype == w.dtype == b.dtype
        out = F.conv2d(_torch(x), _torch(w), _torch(b), how["strides"], how["pads"][:2], how["dilations"], how["group"])
        return (out.numpy().astype(x.dtype),)


class GridSample(OpRun):
    op_domain = ""

    def _run(self, x, grid, **how):
        assert x.dtype == grid.dtype == np.float32
        out = F.grid_sample(_torch(x), _torch(grid), "bilinear", how["padding_mode"], bool(how["align_corners"]))
        return (out.numpy(),)


class Resize(OpRun):
    op_domain = ""

    def _run(self, x, roi=None, scales=None, sizes=None, **how):
        if sizes is None or not len(sizes):
            assert scales is not None
            sizes = np.round(x.shape * scales)
        size = [int(one) for one in sizes[2:]]
        mode = {"nearest": "nearest", "linear": "bilinear", "cubic": "bicubic"}[how["mode"]]
        out = F.interpolate(_torch(x), size=size, mode=mode, align_corners=None if mode == "nearest" else False)
        return (out.numpy().astype(x.dtype),)


def drawn(model: onnx.ModelProto, inputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[np.int64]]:
    """The graph run operation by operation in exactly the types it says (no optimiser takes a cast away)."""
    names = [one.name for one in model.graph.input]
    evaluator = ReferenceEvaluator(model, new_ops=[Conv, GridSample, Resize])
    results = evaluator.run(list(OUTPUTS), {name: inputs[name] for name in names})
    assert isinstance(results, list)
    return {name: np.asarray(value).astype(np.int64) for name, value in zip(OUTPUTS, results, strict=True)}


@pytest.fixture(scope="module")
def frames(avatar: Avatar, base: Base) -> list[dict[str, NDArray[Any]]]:
    """Inputs of the graph at 512 px as a call makes them, for three faces and choices of references."""
    encoder = OpenVino(base.encoder, None, None, "CPU", "f32", 1)
    prepared = [prepare(one, encoder, base.size_px, 512) for one in avatar.references]
    full = np.concatenate([one.full for one in prepared])
    resident = {
        "pictures": np.concatenate([one.picture for one in prepared], 1)[None],
        "thumbnails": np.concatenate([one.thumbnail for one in prepared], 1)[None],
        "features": np.concatenate([one.features for one in prepared], 1)[None],
        "reference_raster": np.stack([one.raster for one in prepared]),
        "points": np.stack([one.points[:, :2] for one in prepared]),
        "full": full.transpose(2, 0, 1)[None].astype(np.float32),
    }

    def told() -> Iterator[dict[str, NDArray[Any]]]:
        cases = (("man_speaking", (0, 0, 0, 1)), ("man_still", (1, 0, 0, 0)), ("woman_turned", (2, 2, 2, 2)))
        for name, chosen in cases:
            target = geometry.to_crop_units(landmarks(name).copy(), 256)
            points = np.stack([prepared[index].points for index in chosen])
            one = geometry.condition(target, points, np.ones(3, np.float32))
            told = geometry.brief(target, points, np.ones(3, np.float32))
            frame = {"raster": one.raster, "grids": one.grids, "tile": one.tile, "detail": one.detail[None]}
            frame = {key: value[None] for key, value in frame.items()}
            frame |= {"target": target[:, :2], "maps": told.maps, "weights": told.weights}
            yield frame | {"chosen": np.array(chosen, np.int32)}

    return [one | resident for one in told()]


@pytest.mark.parametrize("size_px", [256, 512])
def test_float16_draws_what_float32_draws(
    avatar: Avatar, base: Base, frames: list[dict[str, NDArray[Any]]], size_px: int
) -> None:
    half, whole = (made(avatar, base, size_px, precision) for precision in ("f16", "f32"))
    pictures = []
    for frame in frames[: 3 if size_px == 512 else 1]:
        one, other = drawn(half, frame), drawn(whole, frame)
        for name in OUTPUTS:
            difference = np.abs(one[name] - other[name])
            assert difference.max() <= 3, name
            assert difference.mean() < 0.05, name
        pictures.append(one["rgb"])
    if len(pictures) > 1:
        assert np.abs(pictures[0] - pictures[2]).mean() > 5, "and not the same for everything"


def test_it_is_the_bases_own_picture(avatar: Avatar, base: Base, frames: list[dict[str, NDArray[Any]]]) -> None:
    """Against `generator.onnx` itself: the atlas of four made by hand, every number an input."""
    frame = frames[0]
    chosen = [int(one) for one in frame["chosen"]]

    def four(name: str) -> NDArray[np.float32]:
        tiles = np.split(frame[name], len(avatar.references), 2)
        return np.concatenate([tiles[index] for index in chosen], 2)

    backend = OpenVino(base.generator, constants_of(avatar, base), OUTPUTS, "CPU", "f32", 1)
    atlases = {name: four(name) for name in ("pictures", "thumbnails", "features")}
    given = {name: frame[name] for name in ("raster", "grids", "tile", "detail")}
    front = {"reference_raster": frame["reference_raster"][chosen[:1]]}
    expected = {name: value.astype(np.int64) for name, value in backend.run(given | atlases | front).items()}
    got = drawn(made(avatar, base, 256, "f32"), frame)
    for name in OUTPUTS:
        assert np.abs(got[name] - expected[name]).max() <= 1, name
    swapped = frame | {"chosen": frame["chosen"][::-1].copy()}
    other = drawn(made(avatar, base, 256, "f32"), swapped)
    assert np.abs(other["rgb"] - expected["rgb"]).max() > 20, "exchanged references are noticed"


def test_its_maps_are_those_of_a_processor(avatar: Avatar, base: Base, frames: list[dict[str, NDArray[Any]]]) -> None:
    """The grids that the graph lays out itself, by the only operations it has, against `engine.geometry.condition`."""
    model = made(avatar, base, 256, "f32")
    constants = {one.name: onnx.numpy_helper.to_array(one) for one in model.graph.initializer}
    shaped = [node for node in model.graph.node if node.op_type == "Reshape" and node.input[1] in constants]
    (looked,) = [node.output[0] for node in shaped if constants[node.input[1]].tolist() == [1, 16, 64, 64, 2]]
    model.graph.output.append(onnx.helper.make_tensor_value_info(looked, FLOAT, [1, 16, 64, 64, 2]))
    evaluator = ReferenceEvaluator(model, new_ops=[Conv, GridSample, Resize])
    names = [one.name for one in model.graph.input]
    for frame in frames:
        (found,) = evaluator.run([looked], {name: frame[name] for name in names})
        assert np.abs(found - frame["grids"]).max() < 1e-4


# --- what it refuses ---


def test_what_does_not_fit_is_told(avatar: Avatar, base: Base, tmp_path: Path) -> None:
    constants = constants_of(avatar, base)
    with pytest.raises(ValueError, match="no input 'colour', only raster"):
        card_graph(base.generator, constants | {"colour": np.zeros(3, np.float32)}, 3, 256, "f16")
    with pytest.raises(ValueError, match=r"'modulation' has shape \[1, 3\], and the base model wants \[1, "):
        card_graph(base.generator, constants | {"modulation": np.zeros((1, 3), np.float32)}, 3, 256, "f16")
    with pytest.raises(ValueError, match=r"encoder\.onnx is no base model that a graphics card can draw"):
        card_graph(base.encoder, {}, 3, 256, "f16")
    shutil.copyfile(base.generator, tmp_path / "cut.onnx")
    (tmp_path / "cut.onnx").write_bytes(base.generator.read_bytes()[:1000])
    with pytest.raises(ValueError, match="cannot be read as a network: install the program again"):
        card_graph(tmp_path / "cut.onnx", constants, 3, 256, "f16")


# --- the real compiler ---


def real() -> tensorrt.Flavour:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        found = tensorrt.flavours()
    if not found or not found[0].for_rtx:
        pytest.skip("TensorRT for RTX is not installed (pip install 'understudy[gpu]')")
    return found[0]


def test_tensorrt_compiles_the_base_that_ships(avatar: Avatar, base: Base) -> None:
    flavour = real()
    constants, count = constants_of(avatar, base), len(avatar.references)
    graph = card_graph(base.generator, constants, count, 512, "f16")
    portable, named = (tensorrt.build(flavour, graph, target) for target in (tensorrt.PORTABLE, "sm89+sm120"))
    assert min(len(portable), len(named)) > 3_000_000 and portable != named
    wanted = Wanted(base, "shipped", constants, count, 512, "f16")
    assert wanted.key(flavour, tensorrt.PORTABLE)["TensorRT"] == f"TensorRT for RTX {flavour.module.__version__}"


def test_tensorrt_keeps_the_names_and_types(avatar: Avatar, base: Base) -> None:
    trt = real().module
    graph = card_graph(base.generator, constants_of(avatar, base), len(avatar.references), 256, "f16")
    network = trt.Builder(tensorrt._logger(real())).create_network(0)
    parser = trt.OnnxParser(network, tensorrt._logger(real()))
    assert parser.parse(graph)
    inputs = {network.get_input(number).name: network.get_input(number) for number in range(network.num_inputs)}
    assert inputs.keys() == {*FRAME_INPUTS, "pictures", "thumbnails", "features", "reference_raster", "points"}
    assert inputs["raster"].dtype == trt.uint8 and inputs["chosen"].dtype == trt.int32
    assert {network.get_output(number).name for number in range(network.num_outputs)} == set(OUTPUTS)
    kinds: dict[str, set[Any]] = {}
    for number in range(network.num_layers):
        layer = network.get_layer(number)
        kinds.setdefault(layer.type.name, set()).add(layer.get_output(0).dtype)
    assert kinds["GRID_SAMPLE"] == kinds["NORMALIZATION"] == {trt.float32}
    assert kinds["CONVOLUTION"] == {trt.float16, trt.float32}


def test_tensorrt_says_what_it_does_not_take() -> None:
    with pytest.raises(ValueError, match="does not take the network"):
        tensorrt.build(real(), b"no graph", tensorrt.PORTABLE)
