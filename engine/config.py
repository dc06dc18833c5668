"""config.toml to frozen dataclasses: every knob a user may turn, checked once, at the edge.

The values live in `config.toml` alone (repository root; inside the wheel next to this file). The classes
below say which knobs exist, their types and their ranges.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

_Section = TypeVar("_Section")


@dataclass(frozen=True, slots=True)
class Between:
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Matching:
    pattern: str
    example: str


@dataclass(frozen=True, slots=True)
class Smoothing:
    """One-Euro filter (`engine.tracker.OneEuro`)."""

    min_cutoff_hz: Annotated[float, Between(0.01, 60.0)]
    beta: Annotated[float, Between(0.0, 1000.0)]
    derivative_cutoff_hz: Annotated[float, Between(0.01, 60.0)]


@dataclass(frozen=True, slots=True)
class Tracker:
    min_detection_confidence: Annotated[float, Between(0.0, 1.0)]
    min_tracking_confidence: Annotated[float, Between(0.0, 1.0)]
    head: Smoothing
    lips_and_lids: Smoothing
    skin: Smoothing


@dataclass(frozen=True, slots=True)
class Render:
    size_px: Literal[256, 512, 720]
    background: Literal["photo", "blur", "color", "image", "green"]
    color: Annotated[str, Matching(r"#[0-9a-fA-F]{6}", "#3c4148")]
    image: Path | None
    """Absolute, or None where the file says ""."""
    motion: Literal["relative", "absolute"]
    hold_s: Annotated[float, Between(0.0, 60.0)]
    ease_s: Annotated[float, Between(0.0, 60.0)]


@dataclass(frozen=True, slots=True)
class Engine:
    device: Literal["auto", "cpu", "gpu", "npu", "cuda"]
    precision: Literal["auto", "int8", "bf16", "f32"]
    threads: Annotated[int, Between(0, 256)]
    """0: as many as there are physical cores."""


@dataclass(frozen=True, slots=True)
class Enrol:
    max_photos: Annotated[int, Between(1, 1000)]
    tune_s: Annotated[float, Between(0.0, 86400.0)]
    borrow: bool


@dataclass(frozen=True, slots=True)
class Camera:
    """`understudy camera`: webcam in, virtual camera out."""

    avatar: str
    webcam: bool
    name: str
    size_px: Literal["640x360", "1280x720", "1920x1080"]
    fps: Annotated[float, Between(5.0, 60.0)]
    capture_px: Annotated[str, Matching(r"[1-9][0-9]{1,3}x[1-9][0-9]{1,3}", "640x480")]
    device: str
    backend: str
    head_room: Annotated[float, Between(0.0, 0.4)]
    expression: Annotated[float, Between(0.0, 2.0)]
    blink: Annotated[float, Between(0.0, 1.5)]
    gaze: Annotated[float, Between(0.0, 1.5)]
    steadiness: Annotated[float, Between(0.0, 1.0)]
    contact: Annotated[float, Between(0.0, 1.0)]
    wake: Annotated[float, Between(0.0, 1.0)]
    mood: Annotated[float, Between(-1.0, 1.0)]
    voice_lips: bool
    microphone: str
    mirror_preview: bool
    mirror_output: bool

    @property
    def picture_px(self) -> tuple[int, int]:
        """Width and height of what leaves."""
        return _sides(self.size_px)

    @property
    def asked_px(self) -> tuple[int, int]:
        """Width and height that the webcam is asked for."""
        return _sides(self.capture_px)


@dataclass(frozen=True, slots=True)
class Panel:
    """`understudy panel`: the page in the browser."""

    port: Annotated[int, Between(0, 65535)]
    """0: any that is free."""
    browser: bool


def _sides(written: str) -> tuple[int, int]:
    width, height = written.split("x")
    return int(width), int(height)


@dataclass(frozen=True, slots=True)
class Link:
    """`understudy send` and `understudy receive`."""

    rendezvous: Annotated[str, Matching(r"(https?://[^\s/]+/?)?", "https://meet.example.org")]
    rendezvous_ca: Path | None
    port: Annotated[int, Between(0, 65535)]
    announce: bool
    code_minutes: Annotated[float, Between(0.5, 1440.0)]
    remember_h: Annotated[float, Between(0.0, 8760.0)]
    stun: str
    turn: str
    turn_user: str
    turn_password: str
    relay_only: bool
    route: Literal["auto", "audio", "rtp", "datachannel"]
    face: Literal["auto", "thin"]
    share_avatar: bool
    voice_kbps: Annotated[float, Between(6.0, 24.0)]


@dataclass(frozen=True, slots=True)
class Config:
    tracker: Tracker
    render: Render
    camera: Camera
    panel: Panel
    link: Link
    engine: Engine
    enrol: Enrol


def shipped_path() -> Path:
    """Where the shipped `config.toml` is: beside this file in a wheel, at the root of a checkout."""
    inside_wheel = Path(__file__).with_name("config.toml")
    return inside_wheel if inside_wheel.is_file() else Path(__file__).parents[1] / "config.toml"


def load(path: Path | None = None, profile: str = "") -> Config:
    """The shipped configuration, with what the file at `path` overrides, and then its `[profiles.<profile>]`.

    A profile holds sections of its own (`[profiles.work.camera]`). All of them are checked, whichever is asked for.
    Raises `ValueError` (one sentence, ready to be shown) for a file that is not TOML, an unknown section or
    key, a wrong type or a value out of range; `OSError` where the file cannot be read.
    """
    shipped = shipped_path()
    values = _absolute_image(_read(shipped), shipped)
    profiles: dict[str, Any] = {}
    if path is not None:
        over = _read(path)
        found = over.pop("profiles", {})
        if not isinstance(found, dict):
            raise ValueError(f"profiles = {found!r} must be a section, not {_name(found)}.")
        profiles = {name: _absolute_image(one, path) if isinstance(one, dict) else one for name, one in found.items()}
        values = _overlay(values, _absolute_image(over, path))
    config = _checked(values)
    told = {}
    for name, one in profiles.items():
        try:
            told[name] = _checked(_overlay(values, one) if isinstance(one, dict) else one)
        except ValueError as error:
            raise ValueError(f"In profiles.{name}: {error}") from error
    if not profile:
        return config
    if profile not in told:
        known = ", ".join(told) or "none: write a section [profiles." + profile + ".camera]"
        raise ValueError(f"There is no profile {profile!r} in {path or 'the shipped configuration'}; there is {known}.")
    return told[profile]


def _checked(values: Any) -> Config:
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
        raise ValueError(f"{prefix.rstrip('.')} = {values!r} must be a section, not {_name(values)}.")
    types = get_type_hints(kind, include_extras=True)
    for key in values:
        if key not in types:
            nearest = difflib.get_close_matches(key, types, n=1, cutoff=0.0)[0]
            raise ValueError(f"{prefix}{key} is not a known setting; the nearest is {prefix}{nearest}.")
    read = {}
    for key, expected in types.items():
        name = f"{prefix}{key}"
        if key not in values:
            raise ValueError(f"{name} is missing from the shipped config.toml.")
        if isinstance(expected, type) and is_dataclass(expected):
            read[key] = _section(expected, values[key], f"{name}.")
        else:
            read[key] = _value(expected, values[key], name)
    return kind(**read)


def _value(expected: Any, value: Any, name: str) -> Any:
    if get_origin(expected) is Annotated:
        kind, rule = get_args(expected)
        value = _value(kind, value, name)
        if isinstance(rule, Between) and not rule.low <= value <= rule.high:
            raise ValueError(f"{name} = {value!r} must lie between {rule.low} and {rule.high}.")
        if isinstance(rule, Matching) and not re.fullmatch(rule.pattern, value):
            raise ValueError(f"{name} = {value!r} must look like {rule.example!r}.")
        return value
    if get_origin(expected) is Literal:
        allowed = get_args(expected)
        _check_type(type(allowed[0]), value, name)
        if value not in allowed:
            raise ValueError(f"{name} = {value!r} must be one of {', '.join(map(repr, allowed))}.")
        return value
    if expected == Path | None:
        _check_type(str, value, name)
        return Path(value) if value else None
    if expected is float and type(value) is int:
        return float(value)
    _check_type(expected, value, name)
    return value


def _check_type(expected: type, value: Any, name: str) -> None:
    if type(value) is not expected:  # not isinstance: a bool is no int here
        raise ValueError(f"{name} = {value!r} must be of type {expected.__name__}, not {_name(value)}.")


def _name(value: Any) -> str:
    return "section" if isinstance(value, dict) else type(value).__name__
