"""What a compiler made, kept in a file: written whole, and refused unless it is whole and the right one.

The format, version 1; integers little-endian and unsigned:

    offset   bytes  what
    0        8      magic: 89 55 53 45 4E 0D 0A 1A  ("USEN" in bytes that no text transfer leaves alone)
    8        1      format version: 1
    9        3      zero
    12       4      H, the length of the header, at most 65 536
    16       8      P, the length of the payload
    24       H      header, JSON: {"key": {name: text or number}, "sha256": of the payload, 64 hex digits}
    24+H     P      payload; the file ends here

The key says what the payload was made from and for; a reader that wants another one refuses. A compiled engine is a
program: it is never taken from anybody else, only made here from an avatar file, which holds numbers alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MAGIC = b"\x89USEN\r\n\x1a"
VERSION = 1
_PREAMBLE = struct.Struct("<8sB3xIQ")
_MAX_HEADER_BYTES = 1 << 16

Key = Mapping[str, str | int]


class EngineFileError(ValueError):
    """A file that is not the one that is wanted; the message says in what, and ends without a full stop."""


def save(path: Path, key: Key, payload: bytes) -> None:
    """Whole or not at all: what was there stays until the new file is complete. Raises `OSError`."""
    header = json.dumps({"key": dict(key), "sha256": hashlib.sha256(payload).hexdigest()}).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    number, name = tempfile.mkstemp(prefix=".", suffix=".part", dir=path.parent)
    part = Path(name)
    try:
        with os.fdopen(number, "wb") as file:
            file.write(_PREAMBLE.pack(MAGIC, VERSION, len(header), len(payload)) + header)
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def load(path: Path, key: Key) -> bytes:
    """The payload of the file, if it is whole and was made for `key`. Raises `EngineFileError`."""
    try:
        with path.open("rb") as file:
            found, told, length = _header(file.read(_PREAMBLE.size), file, path)
            payload = file.read(length + 1)
    except FileNotFoundError:
        raise EngineFileError(f"{path.name} is not there") from None
    except OSError as error:
        raise EngineFileError(f"{path.name} cannot be read ({error.strerror or error})") from error
    for name, wanted in key.items():
        if found.get(name) != wanted:
            raise EngineFileError(f"{path.name} was made for another {name} ({_short(found.get(name))})")
    if len(payload) != length:
        raise EngineFileError(f"{path.name} is truncated or has something behind its end")
    if hashlib.sha256(payload).hexdigest() != told:
        raise EngineFileError(f"{path.name} is damaged: its content does not match its checksum")
    return payload


def read_key(path: Path) -> dict[str, str | int]:
    """What the file says it was made for, its payload unseen. Raises `EngineFileError`."""
    try:
        with path.open("rb") as file:
            return _header(file.read(_PREAMBLE.size), file, path)[0]
    except OSError as error:
        raise EngineFileError(f"{path.name} cannot be read ({error.strerror or error})") from error


def _header(preamble: bytes, file: Any, path: Path) -> tuple[dict[str, str | int], str, int]:
    if len(preamble) < _PREAMBLE.size or not preamble.startswith(MAGIC):
        raise EngineFileError(f"{path.name} is no compiled engine")
    _, version, header_bytes, length = _PREAMBLE.unpack(preamble)
    if version != VERSION:
        raise EngineFileError(f"{path.name} has format {version}, and this program reads {VERSION}")
    text = file.read(min(header_bytes, _MAX_HEADER_BYTES))
    room = os.fstat(file.fileno()).st_size
    if length > room:
        raise EngineFileError(f"{path.name} is truncated or has something behind its end")
    try:
        told = json.loads(text.decode("utf-8"))
        return dict(told["key"]), str(told["sha256"]), int(length)
    except (UnicodeDecodeError, ValueError, KeyError, TypeError, RecursionError):
        raise EngineFileError(f"{path.name} is damaged: its header makes no sense") from None


def _short(value: object) -> str:
    return text if len(text := str(value)) <= 24 else text[:12] + "..."
