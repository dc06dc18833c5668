"""From weights to the files that ship: the same numbers, under the right names, and damage told in one sentence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray

from engine.backends.openvino import OpenVino
from engine.base import Base, file_sha256, open_base, shipped_folder, verify
from training import export
from training.export import (
    FRAME_INPUTS,
    OUTPUTS,
    PERSON_INPUTS,
    PerFrame,
    difference_from_torch,
    example,
    load_generator,
)
from training.meta_learn import PRESETS, make_state, save_checkpoint
from training.networks.live import TUNED


@pytest.fixture
def copied(tiny_base: Base, tmp_path: Path) -> Base:
    """A copy of the tiny base, to be spoiled."""
    shutil.copytree(tiny_base.folder, tmp_path / "base")
    return open_base(tmp_path / "base")


def in_engine(base: Base, tuned: dict[str, NDArray[np.float32]] | None = None) -> dict[str, NDArray[np.generic]]:
    """One example frame through the engine's own backend, the person's numbers bound as in a call."""
    inputs = {name: value.numpy() for name, value in example(load_generator(base.weights), seed=1).items()}
    constants = {name: inputs[name] for name in ("modulation", *TUNED)} | (tuned or {})
    backend = OpenVino(base.processor, constants, OUTPUTS, "CPU", "f32", 1)
    given = {name: inputs[name] for name in (*FRAME_INPUTS, *PERSON_INPUTS) if name != "modulation"}
    return {name: value.copy() for name, value in backend.run(given).items()}


# --- the same numbers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("graph", ["generator.onnx", "processor.onnx"])
def test_openvino_draws_what_torch_draws(tiny_base: Base, graph: str) -> None:
    differences = difference_from_torch(tiny_base, tiny_base.folder / graph)
    assert differences.keys() == set(OUTPUTS)
    assert differences.pop("flow") < 1e-4
    assert max(differences.values()) <= 1, "bytes: one level, from rounding"


def test_the_engine_with_bound_constants_draws_it_too(tiny_base: Base) -> None:
    generator = load_generator(tiny_base.weights)
    with torch.no_grad():
        expected = PerFrame(generator)(*example(generator, seed=1).values())
    drawn = in_engine(tiny_base)
    for name, value in zip(OUTPUTS, expected, strict=True):
        assert drawn[name].shape == tuple(value.shape)
        limit = 1e-4 if name == "flow" else 1
        assert np.abs(drawn[name].astype(np.float64) - value.numpy()).max() <= limit, name


def test_the_encoder_is_the_references_encoder(tiny_base: Base) -> None:
    generator = load_generator(tiny_base.weights)
    picture, raster = torch.rand(1, 4, 256, 256), torch.rand(1, 3, 128, 128)
    encoder = OpenVino(tiny_base.encoder, None, None, "CPU", "f32", 1)
    drawn = encoder.run({"picture": picture.numpy(), "raster": raster.numpy()})["features"]
    with torch.no_grad():
        assert np.abs(drawn - generator.reference_encoder(picture, raster).numpy()).max() < 1e-4


def test_outputs_go_by_name_not_by_place(copied: Base) -> None:
    """The same graph, its outputs listed backwards, is the same; with two names exchanged it is caught."""
    model = onnx.load(str(copied.processor))
    listed = list(model.graph.output)
    del model.graph.output[:]
    model.graph.output.extend(reversed(listed))
    onnx.save(model, str(copied.processor))
    assert difference_from_torch(copied, copied.processor)["rgb"] <= 1
    exchange = {"rgb": "synthesised", "synthesised": "rgb"}
    for node in model.graph.node:
        node.output[:] = [exchange.get(name, name) for name in node.output]
    onnx.save(model, str(copied.processor))
    assert difference_from_torch(copied, copied.processor)["rgb"] > 10


@pytest.mark.parametrize("name", ["modulation", *TUNED])
def test_tuned_weights_change_the_picture(tiny_base: Base, name: str) -> None:
    inputs = example(load_generator(tiny_base.weights), seed=1)
    changed = {name: inputs[name].numpy() + np.float32(2)}
    difference = in_engine(tiny_base, changed)["rgb"].astype(int) - in_engine(tiny_base)["rgb"]
    assert np.abs(difference).max() > 3


def test_the_weights_are_rounded_once_and_kept(tiny_base: Base) -> None:
    torch.manual_seed(0)
    state = load_generator(tiny_base.weights).state_dict()
    assert all(torch.equal(value, value.half().float()) for value in state.values())
    assert set(state) == set(make_state(PRESETS["tiny"], 1e-3, torch.device("cpu")).generator.state_dict())


def test_a_checkpoint_becomes_a_base(tmp_path: Path) -> None:
    """The command: the running average goes out, not the weights of the moment."""
    state = make_state(PRESETS["tiny"], 1e-3, torch.device("cpu"))
    with torch.no_grad():
        state.average.head.weight.fill_(0.25)
    state.step = 12
    save_checkpoint(state, tmp_path / "checkpoint.pt")
    export.main([str(tmp_path / "checkpoint.pt"), "--out", str(tmp_path / "out"), "--record", "for a test"])
    base = open_base(tmp_path / "out")
    verify(base)
    assert (load_generator(base.weights).head.weight == 0.25).all()
    told = json.loads((base.folder / "base.json").read_text())
    assert told["record"] == {"note": "for a test", "steps": 12, "hours": 0.0}
    assert sorted(path.name for path in base.folder.iterdir()) == [
        *("base.json", "encoder.onnx", "generator.onnx", "processor.onnx", "weights.safetensors")
    ]
    assert {path.stat().st_mode & 0o777 for path in base.folder.iterdir()} == {0o644}


# --- what a base says of itself -----------------------------------------------------------------------------


def test_base_json_is_true(tiny_base: Base) -> None:
    verify(tiny_base)
    assert tiny_base.sha256 == file_sha256(tiny_base.weights)
    generator = load_generator(tiny_base.weights)
    assert tiny_base.size_px == generator.options.size_px
    assert tiny_base.feature_channels == generator.options.feature_channels
    assert tiny_base.modulation_count == sum(generator.modulation_counts)
    assert tiny_base.tuned == TUNED


def test_the_shipped_base_is_whole() -> None:
    assert (shipped_folder() / "base.json").is_file(), (
        "engine/assets/base holds no base model: write one with python -m training.export CHECKPOINT"
    )
    base = open_base()
    verify(base)
    assert (base.size_px, base.tuned) == (256, TUNED)


def told(spoil: Callable[[], object], folder: Path) -> str:
    """The sentence with which a base is refused after `spoil`."""
    spoil()
    with pytest.raises(ValueError, match=r"install the program again$") as caught:
        verify(open_base(folder))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_base_that_is_not_there(tmp_path: Path) -> None:
    assert told(lambda: None, tmp_path).startswith(f"there is no base model in {tmp_path}")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '"text"', "{}", '{"sha256": "0", "size_px": "wide"}', "\udcff"], ids=repr
)
def test_a_damaged_base_json(copied: Base, text: str) -> None:
    path = copied.folder / "base.json"
    sentence = told(lambda: path.write_bytes(text.encode(errors="surrogateescape")), copied.folder)
    assert sentence.startswith(f"{path} is damaged")


def test_a_base_json_without_hashes(copied: Base) -> None:
    path = copied.folder / "base.json"
    content = json.loads(path.read_text())
    del content["files"]
    assert told(lambda: path.write_text(json.dumps(content)), copied.folder).startswith(f"{path} is damaged")


@pytest.mark.parametrize("name", ["generator.onnx", "processor.onnx", "encoder.onnx", "weights.safetensors"])
def test_a_missing_or_changed_file_is_named(copied: Base, name: str) -> None:
    path = copied.folder / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    assert name in told(lambda: path.write_bytes(content), copied.folder)
    assert name in told(path.unlink, copied.folder)


def test_a_graph_that_is_none_is_told(copied: Base) -> None:
    copied.processor.write_bytes(b"not a network")
    with pytest.raises(ValueError, match=r"processor\.onnx cannot be read as a network: install"):
        OpenVino(copied.processor)


def test_weights_that_are_none_are_told(copied: Base) -> None:
    copied.weights.write_bytes(b"not weights")
    with pytest.raises(ValueError, match="does not hold the weights of its base: install"):
        load_generator(copied.weights)
    copied.weights.unlink()
    with pytest.raises(ValueError, match="is not whole: install"):
        load_generator(copied.weights)


def test_an_input_that_the_base_does_not_have_is_refused(tiny_base: Base) -> None:
    with pytest.raises(ValueError, match="no input 'colour', only raster"):
        OpenVino(tiny_base.processor, {"colour": np.zeros(3, np.float32)})
