"""Ranges for int8: measured where they should be, kept, and used."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engine.avatar import Avatar
from engine.backends.openvino import OpenVino, bind, convolutions, core
from engine.base import Base, open_base
from engine.config import load
from engine.renderer import constants_of
from plugin.demo import photos_of
from training import quantise
from training.export import FRAME_INPUTS, PERSON_INPUTS
from training.quantise import frames_of, ranges, widest, write_ranges

OUTPUTS = ("rgb", "matte")


@pytest.fixture(scope="module")
def measured(tiny_avatar: Avatar, tiny_base: Base, tmp_path_factory: pytest.TempPathFactory) -> Base:
    """The tiny base with ranges, which its own folder does not get."""
    folder = tmp_path_factory.mktemp("measured") / "base"
    shutil.copytree(tiny_base.folder, folder)
    base = open_base(folder)
    config = load()
    exact = replace(config, engine=replace(config.engine, device="cpu", precision="f32", threads=1))
    frames = frames_of(tiny_avatar, base, exact)
    assert len(frames) == 2 * len(tiny_avatar.references)
    assert set(frames[0]) == {*FRAME_INPUTS, *PERSON_INPUTS} - {"modulation"}
    assert not np.array_equal(frames[0]["grids"], frames[1]["grids"])
    return write_ranges(base, widest([ranges(base, constants_of(tiny_avatar, base), frames)]))


def test_all_convolutions_after_the_warps_and_none_of_the_motion(measured: Base) -> None:
    assert len(measured.ranges) == 15
    assert {"/enter/Conv", "/ups.3/ConvTranspose", "/blocks.2/second/Conv"} <= set(measured.ranges)
    assert not any("/enter/enter" in name or "/down1" in name or "/ups.0" in name for name in measured.ranges)
    graph = core().read_model(str(measured.processor))
    assert set(measured.ranges) < set(convolutions(graph))
    assert measured.ranges["/blocks.0/first/Conv"][0] == 0, "after a ReLU nothing is negative"


def test_ranges_live_in_base_json(measured: Base, tiny_base: Base) -> None:
    assert open_base(measured.folder).ranges == measured.ranges
    assert tiny_base.ranges == {}
    told = json.loads((measured.folder / "base.json").read_text())
    assert told.pop("ranges")
    assert told == json.loads((tiny_base.folder / "base.json").read_text())


def test_int8_draws_nearly_the_same(measured: Base, tiny_avatar: Avatar) -> None:
    config = load()
    exact = replace(config, engine=replace(config.engine, device="cpu", precision="f32", threads=1))
    frame = frames_of(tiny_avatar, measured, exact)[1]
    known = constants_of(tiny_avatar, measured)
    drawn = {}
    for precision, told in (("f32", measured.ranges), ("int8", measured.ranges), ("auto", {})):
        backend = OpenVino(measured.processor, known, OUTPUTS, "CPU", precision, 1, told)
        drawn[precision] = backend.run({name: frame[name] for name in backend.inputs})["rgb"].astype(int)
        assert ("int8" in backend.precision) == (precision == "int8")
    off = np.abs(drawn["int8"] - drawn["f32"])
    assert off.any(), "so it is not f32 by another name"
    assert off.mean() < 1


def test_int8_computes_in_int8(measured: Base, tiny_avatar: Avatar) -> None:
    backend = OpenVino(
        measured.processor, constants_of(tiny_avatar, measured), OUTPUTS, "CPU", "auto", 1, measured.ranges
    )
    kinds = ("Convolution", "Deconvolution")
    info = [node.get_rt_info() for node in backend.running().get_ops()]
    narrow = [
        one for one in info if one["layerType"].astype(str) in kinds and "8" in one["runtimePrecision"].astype(str)
    ]
    assert len(narrow) >= 12


def test_int8_without_ranges_is_refused(tiny_base: Base, tiny_avatar: Avatar) -> None:
    with pytest.raises(ValueError, match="was not measured for int8: ask for bf16"):
        OpenVino(tiny_base.processor, constants_of(tiny_avatar, tiny_base), OUTPUTS, "CPU", "int8", 1, {})


def test_ranges_of_another_base_are_refused(tiny_base: Base, tiny_avatar: Avatar) -> None:
    with pytest.raises(ValueError, match="no convolution '/nose/Conv': install the program again"):
        OpenVino(
            tiny_base.processor, constants_of(tiny_avatar, tiny_base), OUTPUTS, "CPU", "auto", 1, {"/nose/Conv": (0, 1)}
        )


def test_the_widest_of_several_people_and_a_margin() -> None:
    assert widest([{"a": (0.0, 2.0)}, {"a": (-1.0, 1.0)}]) == {"a": (-1.15, 2.3)}


@pytest.mark.parametrize("told", ["[]", '{"a": 1}', '{"a": [1]}', '{"a": ["low", "high"]}'])
def test_damaged_ranges_are_told(tiny_base: Base, tmp_path: Path, told: str) -> None:
    shutil.copytree(tiny_base.folder, tmp_path / "base")
    path = tmp_path / "base" / "base.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"ranges": json.loads(told)}))
    with pytest.raises(ValueError, match="is damaged"):
        open_base(tmp_path / "base")


def test_bind_names_what_it_does_not_know(tiny_base: Base) -> None:
    graph = core().read_model(str(tiny_base.processor))
    with pytest.raises(ValueError, match="no input 'colour'"):
        bind(graph, {"colour": np.zeros(3, np.float32)})


def test_the_command_writes_what_it_measured(tiny_base: Base, tmp_path: Path) -> None:
    shutil.copytree(tiny_base.folder, tmp_path / "base")
    people = [tmp_path / "one", tmp_path / "nobody"]
    for folder in people:
        folder.mkdir()
    shutil.copy(photos_of("jun")[0], people[0])
    with pytest.raises(SystemExit):
        quantise.main([*map(str, people), "--base", str(tmp_path / "base")])
    assert open_base(tmp_path / "base").ranges == {}, "somebody without photos: nothing is written"
    quantise.main([str(people[0]), "--base", str(tmp_path / "base")])
    assert len(open_base(tmp_path / "base").ranges) == 15
