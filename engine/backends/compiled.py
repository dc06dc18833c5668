"""The compiled engines of an avatar: kept beside it, found again, and made again when anything they depend on changed.

For the avatar `me` they are `me.engines/512px-f16-rtx-sm80+.engine` and the like, in the folder of avatars; what
TensorRT for RTX made of one for the card at hand lies next to it (`.kernels`). A file that is missing, damaged, older,
or of another avatar, base, size or TensorRT is replaced.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engine import avatar as avatars
from engine import geometry, references
from engine.backends import Tensors, UnavailableError, card_graph
from engine.backends.cuda import INSTALL
from engine.backends.engine_file import EngineFileError, Key, load, read_key, save
from engine.backends.tensorrt import PORTABLE, Flavour, build
from engine.base import Base, file_sha256

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Wanted:
    """What is to be drawn on a card: an avatar at a size."""

    base: Base
    name: str
    """The avatar's."""
    constants: Tensors
    """Its numbers, as inputs of the base's graph."""
    references: int
    size_px: int
    precision: card_graph.Precision

    @property
    def folder(self) -> Path:
        return avatars.place(self.name).with_suffix(".engines")

    def path(self, flavour: Flavour, target: str) -> Path:
        return self.folder / f"{self._stem(flavour)}{target}.engine"

    def _stem(self, flavour: Flavour) -> str:
        return f"{self.size_px}px-{self.precision}-{'rtx' if flavour.for_rtx else 'full'}-"

    def key(self, flavour: Flavour, target: str) -> Key:
        """Everything that the engine depends on; the code that makes its graph too, so that nobody has to remember."""
        person = hashlib.sha256()
        for name in sorted(self.constants):
            value = np.ascontiguousarray(self.constants[name], np.float32)
            person.update(f"{name} {value.shape} ".encode() + value.tobytes())
        return {
            "avatar": person.hexdigest(),
            "number of references": self.references,
            "base": self.base.sha256,
            "graph": file_sha256(self.base.generator),
            "program": _program_sha256(),
            "size": self.size_px,
            "precision": self.precision,
            "TensorRT": flavour.described,
            "target": target,
        }

    def stored_for(self, flavour: Flavour, capability: tuple[int, int]) -> list[str]:
        """Targets of the stored engines that say they serve such a card, those made for few cards first."""
        targets = []
        for path in sorted(self.folder.glob(f"{self._stem(flavour)}*.engine")):
            try:
                target = str(read_key(path).get("target"))
            except EngineFileError:
                continue
            if flavour.serves(target, capability) and path == self.path(flavour, target):
                targets.append(target)
        return sorted(targets, key=lambda target: (target == PORTABLE, len(target)))


@functools.cache
def _program_sha256() -> str:
    """Of the code that makes the graph, and of what it takes its constants from."""
    return " ".join(file_sha256(Path(str(one.__file__))) for one in (card_graph, geometry, references))


@dataclass(frozen=True, slots=True)
class Compiled:
    engine: bytes
    key: Key
    path: Path | None
    """None: it could not be kept."""
    seconds: float = 0.0
    """What compiling took; 0 for an engine that was found."""


def make(wanted: Wanted, flavour: Flavour, target: str) -> Compiled:
    """Compile and keep. Raises `UnavailableError` and `ValueError` with one sentence."""
    began = time.perf_counter()
    try:
        graph = card_graph.card_graph(
            wanted.base.generator, wanted.constants, wanted.references, wanted.size_px, wanted.precision
        )
    except ModuleNotFoundError as error:
        if error.name not in ("onnx", "google", "google.protobuf"):
            raise
        raise UnavailableError(
            f"compiling needs the package onnx, which is not installed; to use it: {INSTALL}"
        ) from error
    engine = build(flavour, graph, target)
    seconds = time.perf_counter() - began
    key, path = wanted.key(flavour, target), wanted.path(flavour, target)
    try:
        save(path, key, engine)
    except OSError as error:
        logger.warning(
            "the engine is compiled at every start: %s cannot be written (%s)", path, error.strerror or error
        )
        return Compiled(engine, key, None, seconds)
    return Compiled(engine, key, path, seconds)


def find_or_make(wanted: Wanted, flavour: Flavour, capability: tuple[int, int]) -> Compiled:
    """The engine for a card of that compute capability. Raises like `make`."""
    default = flavour.target_of(capability)
    why = ""
    for target in [*wanted.stored_for(flavour, capability), default]:
        path, key = wanted.path(flavour, target), wanted.key(flavour, target)
        try:
            return Compiled(load(path, key), key, path)
        except EngineFileError as error:
            why = why or (str(error) if path.exists() else "")
    compiled = make(wanted, flavour, default)
    if why:
        logger.warning("%s; compiled again in %.1f s", why, compiled.seconds)
    return compiled
