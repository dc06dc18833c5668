"""The base model that ships with the program: where it lies, what it is called, what goes in and out.

A base is a folder with `base.json` (sizes, hashes, provenance), `generator.onnx` (what a call runs per frame on a
graphics card), `processor.onnx` (the same in operations that a processor likes), `encoder.onnx` (what runs once per
reference when an avatar is opened) and `weights.safetensors` (the same numbers, float16, for enrolment and further
training; the engine never opens it). Its name is the sha256 of the weights.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

FILES = ("generator.onnx", "processor.onnx", "encoder.onnx", "weights.safetensors")


@dataclass(frozen=True, slots=True)
class Base:
    """A base that was found whole."""

    folder: Path
    sha256: str
    size_px: int
    """S: side of the picture the network draws."""
    feature_channels: int
    modulation_count: int
    tuned: tuple[str, ...]
    """Names of the weights an avatar brings along, beside `modulation`."""
    ranges: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Between which values the inputs of some convolutions lie, by the convolution's name (`training.quantise`)."""

    @property
    def generator(self) -> Path:
        return self.folder / "generator.onnx"

    @property
    def processor(self) -> Path:
        return self.folder / "processor.onnx"

    @property
    def encoder(self) -> Path:
        return self.folder / "encoder.onnx"

    @property
    def weights(self) -> Path:
        return self.folder / "weights.safetensors"


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def shipped_folder() -> Path:
    return Path(__file__).parent / "assets" / "base"


def open_base(folder: Path | None = None) -> Base:
    """Read `base.json`. Raises `ValueError` with one sentence when the base is missing or incomplete."""
    folder = folder or shipped_folder()
    try:
        told = json.loads((folder / "base.json").read_text(encoding="utf-8"))
        base = Base(
            folder,
            told["sha256"],
            int(told["size_px"]),
            int(told["feature_channels"]),
            int(told["modulation_count"]),
            tuple(told["tuned"]),
            {name: (float(low), float(high)) for name, (low, high) in told.get("ranges", {}).items()},
        )
    except FileNotFoundError:
        raise ValueError(f"there is no base model in {folder}: install the program again") from None
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder / 'base.json'} is damaged ({error}): install the program again") from None
    for name in FILES[:3]:
        if not (folder / name).is_file():
            raise ValueError(f"the base model in {folder} has no {name}: install the program again")
    return base


def verify(base: Base) -> None:
    """Compare every file with the hash in `base.json`; raises `ValueError` naming the first that differs."""
    told = base.folder / "base.json"
    try:
        hashes = dict(json.loads(told.read_text(encoding="utf-8"))["files"])
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{told} is damaged ({error}): install the program again") from None
    for name, expected in hashes.items():
        if not (base.folder / name).is_file() or file_sha256(base.folder / name) != expected:
            raise ValueError(f"{base.folder / name} is not the file that was shipped: install the program again")
