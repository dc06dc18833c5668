"""config.toml: the shipped file is complete, overrides are partial, and every mistake is named."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from engine import config


def written(folder: Path, text: str) -> Path:
    path = folder / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_shipped_file_holds_every_knob() -> None:
    shipped = config.load()
    assert shipped.render.size_px == 512
    assert shipped.render.image is None
    assert shipped.tracker.lips_and_lids.min_cutoff_hz > shipped.tracker.head.min_cutoff_hz
    assert shipped.enrol.max_photos == 32


def test_config_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.load().render.hold_s = 2.0  # pyright: ignore[reportAttributeAccessIssue]


def test_user_file_overrides_only_what_it_names(tmp_path: Path) -> None:
    changed = config.load(written(tmp_path, "[render]\nhold_s = 2\n[tracker.head]\nbeta = 7.5\n"))
    shipped = config.load()
    assert changed.render == dataclasses.replace(shipped.render, hold_s=2.0)
    assert isinstance(changed.render.hold_s, float)
    assert changed.tracker.head == dataclasses.replace(shipped.tracker.head, beta=7.5)
    assert changed.tracker.skin == shipped.tracker.skin
    assert changed.engine == shipped.engine


def test_empty_user_file_is_the_shipped_default(tmp_path: Path) -> None:
    assert config.load(written(tmp_path, "")) == config.load()


def test_image_path_counts_from_the_file_that_names_it(tmp_path: Path) -> None:
    path = written(tmp_path, '[render]\nbackground = "image"\nimage = "beach.jpg"\n')
    assert config.load(path).render.image == tmp_path.resolve() / "beach.jpg"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[render]\nsise_px = 256", ["render.sise_px", "render.size_px"]),
        ("[rendr]\nsize_px = 256", ["rendr", "render"]),
        ("[tracker.heads]\nbeta = 1.0", ["tracker.heads", "tracker.head"]),
        ("[render]\nsize_px = 300", ["render.size_px = 300", "256, 512, 720"]),
        ("[render]\nsize_px = 512.0", ["render.size_px = 512.0", "int", "float"]),
        ("[render]\nsize_px = true", ["render.size_px = True", "int", "bool"]),
        ('[render]\nhold_s = "long"', ["render.hold_s = 'long'", "float", "str"]),
        ("[render]\nhold_s = -1.0", ["render.hold_s = -1.0", "0.0 and 60.0"]),
        ("[render]\nhold_s = nan", ["render.hold_s = nan", "0.0 and 60.0"]),
        ('[render]\ncolor = "red"', ["render.color = 'red'", "#3c4148"]),
        ('[render]\nmotion = "both"', ["render.motion = 'both'", "'relative', 'absolute'"]),
        ("[render]\nimage = 3", ["render.image = 3", "str", "int"]),
        ('[render]\nbackground = "image"', ["render.background", "render.image"]),
        ("render = 3", ["render = 3", "section"]),
        ("[engine]\nthreads = {}", ["engine.threads", "int", "section"]),
        ("[engine\n", ["mine.toml", "TOML"]),
    ],
)
def test_mistakes_are_named_in_one_sentence(tmp_path: Path, text: str, words: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        config.load(written(tmp_path, text))
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert message.endswith(".")
    assert "\n" not in message
