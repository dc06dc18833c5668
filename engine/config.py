"""config.toml to frozen dataclasses: every knob a user may turn, checked once, at the edge.

The values live in `config.toml` alone (repository root; inside the wheel next to this file). The classes
below say which knobs exist, their types and their ranges.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, cast, get_args, get_origin, get_type_hints

_Section = TypeVar("_Section")


def _between(low: float, high: float) -> Any:
    return field(metadata={"between": (low, high)})


def _one_of(*values: int) -> Any:
    return field(metadata={"one_of": values})


def _matching(pattern: str, example: str) -> Any:
    return field(metadata={"matching": (pattern, example)})


@dataclass(frozen=True, slots=True)
class Smoothing:
    """One-Euro filter (`engine.tracker.OneEuro`)."""

    min_cutoff_hz: float = _between(0.01, 60.0)
    beta: float = _between(0.0, 1000.0)
    derivative_cutoff_hz: float = _between(0.01, 60.0)


@dataclass(frozen=True, slots=True)
class Tracker:
    min_detection_confidence: float = _between(0.0, 1.0)
    min_tracking_confidence: float = _between(0.0, 1.0)
    head: Smoothing
    lips_and_lids: Smoothing
    skin: Smoothing


@dataclass(frozen=True, slots=True)
class Render:
    size_px: int = _one_of(256, 512, 720)
    background: Literal["photo", "blur", "color", "image"]
    color: str = _matching(r"#[0-9a-fA-F]{6}", "#3c4148")
    image: Path | None
    """Absolute, or None where the file says ""."""
    motion: Literal["relative", "absolute"]
    hold_s: float = _between(0.0, 60.0)
    ease_s: float = _between(0.0, 60.0)


@dataclass(frozen=True, slots=True)
class Engine:
    device: Literal["auto", "cpu", "gpu", "cuda"]
    precision: Literal["auto", "bf16", "f32"]
    threads: int = _between(0, 256)
    """0: as many as there are physical cores."""


@dataclass(frozen=True, slots=True)
class Enrol:
    max_photos: int = _between(1, 1000)
    tune_s: float = _between(0.0, 86400.0)


@dataclass(frozen=True, slots=True)
class Config:
    tracker: Tracker
    render: Render
    engine: Engine
    enrol: Enrol


def shipped_path() -> Path:
    """Where the shipped `config.toml` is: beside this file in a wheel, at the root of a checkout."""
    inside_wheel = Path(__file__).with_name("config.toml")
    return inside_wheel if inside_wheel.is_file() else Path(__file__).parents[1] / "config.toml"


def load(path: Path | None = None) -> Config:
    """The shipped configuration, with what the file at `path` overrides.

    Raises `ValueError` (one sentence, ready to be shown) for a file that is not TOML, an unknown section or
    key, a wrong type or a value out of range; `OSError` where the file cannot be read.
    """
    shipped = shipped_path()
    values = _absolute_image(_read(shipped), shipped)
    if path is not None:
        values = _overlay(values, _absolute_image(_read(path), path))
    config = _section(Config, values, "")
    if config.render.background == "image" and config.render.image is None:
        raise ValueError('render.background = "image" needs a picture, but render.image = "".')
    return config


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a TOML file: {error}.") from error


def _absolute_image(values: dict[str, Any], path: Path) -> dict[str, Any]:
    """A relative `render.image` counts from the file that names it."""
    render = values.get("render")
    image = render.get("image") if isinstance(render, dict) else None
    if isinstance(render, dict) and isinstance(image, str) and image:
        absolute = path.resolve().parent / Path(image).expanduser()
        return values | {"render": render | {"image": str(absolute)}}
    return values


def _overlay(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = _overlay(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


def _section(kind: type[_Section], values: Any, prefix: str) -> _Section:
    if not isinstance(values, dict):
        raise ValueError(f"{prefix.rstrip('.')} = {values!r} must be a section, not a {_name(values)}.")
    types = get_type_hints(kind)
    known = {knob.name: knob for knob in fields(cast(Any, kind))}
    for key in values:
        if key not in known:
            nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.0)[0]
            raise ValueError(f"{prefix}{key} is not a known setting; the nearest is {prefix}{nearest}.")
    read = {}
    for key, knob in known.items():
        if key not in values:
            raise ValueError(f"{prefix}{key} is missing from the shipped config.toml.")
        if is_dataclass(types[key]):
            read[key] = _section(types[key], values[key], f"{prefix}{key}.")
        else:
            read[key] = _value(types[key], knob.metadata, values[key], f"{prefix}{key}")
    return kind(**read)


def _value(kind: Any, rules: Any, value: Any, name: str) -> Any:
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise ValueError(f"{name} = {value!r} must be one of {', '.join(map(repr, get_args(kind)))}.")
        return value
    if kind == Path | None:
        if not isinstance(value, str):
            raise ValueError(f"{name} = {value!r} must be a str, not a {_name(value)}.")
        return Path(value) if value else None
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kind) or isinstance(value, bool) is not (kind is bool):
        raise ValueError(f"{name} = {value!r} must be a {kind.__name__}, not a {_name(value)}.")
    if "between" in rules:
        low, high = rules["between"]
        if not low <= value <= high:
            raise ValueError(f"{name} = {value!r} must lie between {low} and {high}.")
    if "one_of" in rules and value not in rules["one_of"]:
        raise ValueError(f"{name} = {value!r} must be one of {', '.join(map(repr, rules['one_of']))}.")
    if "matching" in rules:
        pattern, example = rules["matching"]
        if not re.fullmatch(pattern, str(value)):
            raise ValueError(f"{name} = {value!r} must look like {example!r}.")
    return value


def _name(value: Any) -> str:
    return "section" if isinstance(value, dict) else type(value).__name__
