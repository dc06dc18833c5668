"""The avatar file: what belongs to one person, over the base model that ships with the program.

`save(avatar, path)`, `load(path)`, `header(path)`; `find` and `listing` know the folder they are kept in.
Reading one needs numpy and Pillow, runs nothing that is in the file, and believes no number unchecked.

The format, version 1
=====================
All integers are little-endian and unsigned. A file takes at most 3 000 000 bytes: preamble, header, payload,
digest.

    offset   bytes  what
    0        8      magic: 89 41 56 54 52 0D 0A 1A  ("AVTR" in bytes that no text transfer leaves alone)
    8        1      format version: 1. A reader refuses what is newer than itself
    9        3      zero
    12       4      H, the length of the header, at most 1 048 576
    16       4      P, the length of the payload
    20       4      CRC-32 of the header, so that a listing can trust it without reading the rest
    24       H      header: JSON, UTF-8, no key twice, no NaN
    24+H     P      payload: the entries, one after another without gaps, in the order of the header
    24+H+P   32     SHA-256 of everything before it. The file ends here

Header, all keys present, no others:

    name      what the person calls it: 1 to 64 printable characters, fit for a file name
    created   "2026-01-31T12:34:56Z", UTC
    program   version of the program that wrote it
    base      sha256 of the base model it was made over, 64 hex digits
    size_px   S, the side of the references: 16 to 1024, a multiple of 4
    checks    an object: what enrolment measured (free; scalars, lists and objects)
    entries   [{"name", "kind", "dtype", "shape", "offset", "length", "sha256"}, ...]
              offset and length in bytes, from the start of the payload; sha256 of those bytes

An entry of kind "array" is the bare values, C order, little-endian, `dtype` one of uint8, int16, float16,
float32; of kind "jpeg" or "png" a picture file of exactly the `shape` said (`[H, W, 3]` or `[H, W]`), uint8.

    reference/<i>/rgb     jpeg  uint8   [S, S, 3]     i = 0 ... 11 without a gap, at least one
    reference/<i>/matte   png   uint8   [S/4, S/4]    255 is the person; made larger bilinearly
    reference/<i>/points  array int16   [478, 3]      in 1/16384 of S
    reference/<i>/pose    array float32 [13]          rotation by rows, translation, scale: `engine.frames`
    reference/<i>/borrowed array uint8 [1]            1 eyes, 2 mouth: only where not their own. These come last
    embedding             array float32 [n]           1 <= n <= 4096
    neutral               array float32 [478, 3]      the neutral face
    tuned/<name>          array float16 any           sorted by name; what fine-tuning changed
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import math
import os
import re
import struct
import sys
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pictures

from engine.frames import POINT_COUNT, Image

SUFFIX = ".avatar"
MAGIC = b"\x89AVTR\r\n\x1a"
VERSION = 1
MAX_FILE_BYTES = 3_000_000
MAX_HEADER_BYTES = 1 << 20
MAX_REFERENCES = 12
BORROWED = ("", "eyes", "mouth")
MAX_ENTRIES = 4096
SIZES_PX = range(16, 1025, 4)
MATTE_SHRINK = 4
POINT_STEPS = 16384
"""Points are stored in this fraction of the side: an error of at most 0.016 px in a crop of 512 px."""
JPEG_QUALITY = 95
"""With full colour resolution. On invented faces LPIPS 0.001 to 0.003 from the original, 80 kB at 512 px; a
WebP of about that size is two to three times as far away."""
PICTURE_BYTES = 220_000
"""A picture that would take more, by its grain, is stored in a lower quality, so that every avatar can be saved."""
_LEAST_QUALITY = 50

_PREAMBLE = struct.Struct("<8sB3xIII")
_DIGEST_BYTES = 32
_DTYPES = {name: np.dtype(name).newbyteorder("<") for name in ("uint8", "int16", "float16", "float32")}
_PICTURES = {"jpeg": ("JPEG", 3), "png": ("PNG", 2)}
_HEADER_KEYS = {"name", "created", "program", "base", "size_px", "checks", "entries"}
_ENTRY_KEYS = {"name", "kind", "dtype", "shape", "offset", "length", "sha256"}
_UNDECODABLE = (
    *(OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, struct.error, zlib.error),
    *(Pictures.DecompressionBombError, Pictures.DecompressionBombWarning),
)
"""All that Pillow raises over a picture file that is damaged or forged."""
_RESERVED = {"CON", "PRN", "AUX", "NUL", *(f"{port}{i}" for port in ("COM", "LPT") for i in range(1, 10))}


class AvatarError(ValueError):
    """An avatar that cannot be read, written or found; the message is one sentence."""


# --- what an avatar is ---


def _program() -> str:
    try:
        return metadata.version("understudy")
    except metadata.PackageNotFoundError:  # run from a checkout
        return "0"


@dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """One picture of the person, cropped to a square of S x S pixels, with what the tracker saw in it."""

    rgb: Image
    """`[S, S, 3]` uint8."""
    matte: NDArray[np.uint8]
    """`[S, S]` uint8, 255 where the person is."""
    points: NDArray[np.float32]
    """`[478, 3]` pixels of the crop (`engine.frames.Points`)."""
    rotation: NDArray[np.float32]
    """`[3, 3]`, `[3]` and pixels per centimetre: the pose as in `engine.frames.Face`, for the crop."""
    translation: NDArray[np.float32]
    scale: float
    borrowed: str = ""
    """"eyes" or "mouth" where these are somebody else's: the reference serves nothing but them."""
    encoded: tuple[bytes, bytes] = field(default=(b"", b""), repr=False)
    """The files `rgb` and `matte` were read from. Saving uses them again while they still say the same, so an
    avatar that is renamed or copied through the program loses nothing."""

    def __post_init__(self) -> None:
        side = self.rgb.shape[0] if self.rgb.ndim == 3 else 0
        if side not in SIZES_PX:
            _refuse(f"a reference has shape {list(self.rgb.shape)}, not a square of 16 to 1024 px in steps of 4")
        _expect("a reference", self.rgb, "uint8", (side, side, 3))
        _expect("a matte", self.matte, "uint8", (side, side))
        _expect("the points of a reference", self.points, "float32", (POINT_COUNT, 3))
        _expect("the rotation of a reference", self.rotation, "float32", (3, 3))
        _expect("the translation of a reference", self.translation, "float32", (3,))
        if self.borrowed not in BORROWED:
            _refuse(f"a reference may borrow eyes or mouth, not {self.borrowed!r}")
        if np.abs(self.points).max() > 1.99 * side:
            _refuse(f"a point of a reference lies {np.abs(self.points).max():.0f} px out, over twice the side")
        if not (math.isfinite(self.scale) and self.scale > 0):
            _refuse(f"the scale of a reference is {self.scale}, not above zero")


@dataclass(frozen=True, slots=True, eq=False)
class Avatar:
    """A person, ready to be drawn by the base model whose sha256 is `base`."""

    name: str
    created: str
    """"2026-01-31T12:34:56Z", see `now`."""
    base: str
    size_px: int
    references: tuple[Reference, ...]
    embedding: NDArray[np.float32]
    """`[n]`: who it is, for the base model or for a check."""
    tuned: dict[str, NDArray[np.float16] | NDArray[np.float32]]
    """The person's AdaIN constants and weight differences; float16 in the file and after `load`."""
    neutral: NDArray[np.float32]
    """`[478, 3]`, the neutral face."""
    checks: dict[str, Any]
    """What enrolment measured, such as identity and LPIPS before and after."""
    program: str = field(default_factory=_program)
    """Version of the program that made it."""

    def __post_init__(self) -> None:
        _check_origin(self.name, self.created, self.program, self.base)
        if not 1 <= len(self.references) <= MAX_REFERENCES:
            _refuse(f"it has {len(self.references)} references, not 1 to {MAX_REFERENCES}")
        if any(one.borrowed for one in self.references[: len(self.photos)]) or not self.photos:
            _refuse("a reference that borrows stands before one that does not")
        for reference in self.references:
            if reference.rgb.shape[0] != self.size_px:
                _refuse(f"a reference has {reference.rgb.shape[0]} px a side and the avatar {self.size_px} px")
        if self.embedding.ndim != 1 or not 1 <= len(self.embedding) <= 4096:
            _refuse(f"its embedding has shape {list(self.embedding.shape)}, not 1 to 4096 numbers")
        _expect("its embedding", self.embedding, "float32", self.embedding.shape)
        _expect("its neutral face", self.neutral, "float32", (POINT_COUNT, 3))
        for name, values in self.tuned.items():
            if not re.fullmatch(r"[\w./-]{1,200}", name, re.ASCII):
                _refuse(f"{name!r} is no name for tuned values (letters, digits, '.', '_', '/' and '-')")
            if values.dtype not in (np.float16, np.float32) or not np.isfinite(values).all():
                _refuse(f"the tuned values {name!r} are not all finite float16 or float32")
            if values.size and np.abs(values).max() > np.finfo(np.float16).max:
                _refuse(f"the tuned values {name!r} reach {np.abs(values).max():.3g}, too much for float16")

    @property
    def photos(self) -> tuple[Reference, ...]:
        """The references that are the person's own pictures; those that borrow come after them."""
        return tuple(one for one in self.references if not one.borrowed)


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says of itself before its payload is read."""

    name: str
    created: str
    program: str
    base: str
    size_px: int
    checks: dict[str, Any]
    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class Entry:
    name: str
    kind: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    length: int
    sha256: str


def now() -> str:
    """The time of creation of an avatar made now."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def check_name(name: str) -> str:
    """`name` if an avatar can be called that, else one sentence (`AvatarError`)."""
    unfit = next((letter for letter in name if not letter.isprintable() or letter in '/\\:*?"<>|'), None)
    if not 1 <= len(name) <= 64 or name != name.strip() or name.startswith(".") or name.endswith("."):
        _refuse(f"an avatar cannot be called {_short(name)}; take 1 to 64 characters, no space or dot at the ends")
    if unfit is not None:
        _refuse(f"an avatar cannot be called {name!r}, because {unfit!r} does not belong in a file name")
    if name.partition(".")[0].rstrip().upper() in _RESERVED:
        _refuse(f"an avatar cannot be called {name!r}, because Windows keeps that name for a device")
    return name


def _check_origin(name: str, created: str, program: str, base: str) -> None:
    check_name(name)
    if not re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", created, re.ASCII):
        _refuse(f"its time of creation is {_short(created)}, not like 2026-01-31T12:34:56Z")
    if not re.fullmatch(r"[\w.+-]{1,64}", program, re.ASCII):
        _refuse(f"the version of its program is {_short(program)}, not like 1.2.3")
    if not re.fullmatch(r"[0-9a-f]{64}", base):
        _refuse(f"its base is {_short(base)}, not a sha256 of 64 hex digits")


def _expect(what: str, values: np.ndarray, dtype: str, shape: tuple[int, ...]) -> None:
    if values.dtype != dtype or values.shape != shape:
        _refuse(f"{what} is {values.dtype} {list(values.shape)}, not {dtype} {list(shape)}")
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        _refuse(f"{what} holds numbers that are not finite")


def _refuse(sentence: str) -> NoReturn:
    raise AvatarError(sentence)


# --- saving ---


def save(avatar: Avatar, path: Path) -> None:
    """Write `avatar` to `path`, whole or not at all: what was there stays until the new file is complete.

    The same avatar gives the same bytes. Raises `AvatarError`.
    """
    blob = _pack(avatar)
    if len(blob) > MAX_FILE_BYTES:
        _refuse(f"{path} would take {len(blob)} bytes, over the {MAX_FILE_BYTES} allowed; use fewer references")
    part: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=".", suffix=".part", dir=path.parent)
        part = Path(name)
        with os.fdopen(handle, "wb") as sink:
            sink.write(blob)
            sink.flush()
            os.fsync(sink.fileno())
        part.replace(path)
        part = None
        _sync_folder(path.parent)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        why = "there is no room on the disk; free some" if full else f"{error.strerror or error}"
        raise AvatarError(f"{path} was not saved, and what was there before is unharmed: {why}") from error
    finally:
        if part is not None:
            part.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """The new name survives a loss of power too, where the system lets a folder be synced."""
    if sys.platform == "win32":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _pack(avatar: Avatar) -> bytes:
    parts: list[tuple[str, str, str, tuple[int, ...], bytes]] = []

    def array(name: str, values: np.ndarray, dtype: str) -> None:
        parts.append((name, "array", dtype, values.shape, values.astype(_DTYPES[dtype]).tobytes()))

    side = avatar.size_px
    for index, reference in enumerate(avatar.references):
        rgb, matte = _encoded(reference)
        parts.append((f"reference/{index}/rgb", "jpeg", "uint8", (side, side, 3), rgb))
        small = (side // MATTE_SHRINK, side // MATTE_SHRINK)
        parts.append((f"reference/{index}/matte", "png", "uint8", small, matte))
        array(f"reference/{index}/points", np.rint(reference.points * (POINT_STEPS / side)), "int16")
        pose = np.concatenate([reference.rotation.ravel(), reference.translation, [reference.scale]])
        array(f"reference/{index}/pose", pose, "float32")
        if reference.borrowed:
            array(f"reference/{index}/borrowed", np.array([BORROWED.index(reference.borrowed)]), "uint8")
    array("embedding", avatar.embedding, "float32")
    array("neutral", avatar.neutral, "float32")
    for name in sorted(avatar.tuned):
        array(f"tuned/{name}", avatar.tuned[name], "float16")

    entries: list[dict[str, Any]] = []
    offset = 0
    for name, kind, dtype, shape, content in parts:
        digest = hashlib.sha256(content).hexdigest()
        values = (name, kind, dtype, shape, offset, len(content), digest)
        entries.append(dict(zip(("name", "kind", "dtype", "shape", "offset", "length", "sha256"), values, strict=True)))
        offset += len(content)
    described = {key: getattr(avatar, key) for key in ("name", "created", "program", "base", "size_px", "checks")}
    try:
        text = json.dumps(
            described | {"entries": entries},
            ensure_ascii=False,
            allow_nan=False,
            sort_keys=True,
            separators=(",", ":"),
            default=_plain,
        ).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise AvatarError(f"the checks of an avatar must be finite plain values that JSON can hold: {error}") from error
    if len(text) > MAX_HEADER_BYTES or len(entries) > MAX_ENTRIES:
        _refuse(
            f"its header takes {len(text)} bytes for {len(entries)} entries, "
            f"over the {MAX_HEADER_BYTES} and {MAX_ENTRIES} an avatar may have"
        )
    blob = _PREAMBLE.pack(MAGIC, VERSION, len(text), offset, zlib.crc32(text)) + text
    blob += b"".join(content for *_, content in parts)
    return blob + hashlib.sha256(blob).digest()


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(f"a {type(value).__name__}")


def _encoded(reference: Reference) -> tuple[bytes, bytes]:
    """The two picture files of a reference: the ones it was read from if they still give the same pixels."""
    if all(reference.encoded):
        side = len(reference.rgb)
        try:
            rgb, matte = _decoded(*reference.encoded, side)
        except AvatarError:  # of another size by now
            pass
        else:
            if np.array_equal(rgb, reference.rgb) and np.array_equal(matte, reference.matte):
                return reference.encoded
    rgb_file = b""
    for quality in range(JPEG_QUALITY, _LEAST_QUALITY - 1, -5):
        # Not Pillow: to optimise, it wants the file to fit into a buffer that grain can burst.
        how = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_OPTIMIZE, 1]
        how += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
        rgb_file = cv2.imencode(".jpg", cv2.cvtColor(reference.rgb, cv2.COLOR_RGB2BGR), how)[1].tobytes()
        if len(rgb_file) <= PICTURE_BYTES:
            break
    with io.BytesIO() as sink:
        small = Pictures.fromarray(reference.matte).reduce(MATTE_SHRINK)
        small.save(sink, "PNG", optimize=True)
        matte_file = sink.getvalue()
    return rgb_file, matte_file


def _decoded(rgb: bytes, matte: bytes, side: int) -> tuple[Image, NDArray[np.uint8]]:
    small = _picture(matte, "png", (side // MATTE_SHRINK, side // MATTE_SHRINK))
    large = Pictures.fromarray(small).resize((side, side), Pictures.Resampling.BILINEAR)
    return _picture(rgb, "jpeg", (side, side, 3)), np.array(large)


# --- loading ---


def load(path: Path, expected_base: str | None = None) -> Avatar:
    """The avatar in `path`; with `expected_base`, only if it was made over that. Raises `AvatarError`."""
    with _named(path):
        blob = _read(path, MAX_FILE_BYTES + 1)
        head, header_bytes = _header(blob)
        payload = memoryview(blob)[_PREAMBLE.size + header_bytes : -_DIGEST_BYTES]
        if hashlib.sha256(memoryview(blob)[:-_DIGEST_BYTES]).digest() != blob[-_DIGEST_BYTES:]:
            _refuse("it is damaged (its digest does not match); take a fresh copy")
        if expected_base is not None and head.base != expected_base:
            _refuse(
                f"it was made over base model {head.base[:12]} and this program has {expected_base[:12]}; "
                f"enrol again, or install version {head.program}, which made it"
            )
        return _unpack(head, payload)


def header(path: Path) -> Header:
    """What the file says of itself, for a list: the payload is not even read. Raises `AvatarError`."""
    with _named(path):
        return _header(_read(path, _PREAMBLE.size + MAX_HEADER_BYTES), path.stat().st_size)[0]


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Every refusal begins with the name of the file it is about."""
    try:
        yield
    except AvatarError as error:
        raise AvatarError(f"{path.name}: {error}") from error
    except OSError as error:
        raise AvatarError(f"{path} cannot be read: {error.strerror or error}") from error


def _read(path: Path, limit: int) -> bytes:
    if path.exists() and not path.is_file():
        _refuse("it is not a file")
    with path.open("rb") as source:
        return source.read(limit)


def _header(blob: bytes, size: int | None = None) -> tuple[Header, int]:
    """The header at the start of `blob` and its length in bytes; `size` is that of the whole file."""
    size = len(blob) if size is None else size
    if not MAGIC.startswith(blob[: len(MAGIC)]) or not blob:
        _refuse("it is not an avatar")
    if size < _PREAMBLE.size:
        _refuse(f"it is cut short: it ends after {size} bytes; take a fresh copy")
    _, version, header_bytes, payload_bytes, crc = _PREAMBLE.unpack_from(blob)
    if version > VERSION:
        _refuse(f"it has format {version} and this program reads {VERSION}; update the program")
    if version < 1 or any(blob[9:12]):
        _refuse("it is damaged (its first bytes make no sense); take a fresh copy")
    if header_bytes > MAX_HEADER_BYTES:
        _refuse(f"it announces a header of {header_bytes} bytes, over the {MAX_HEADER_BYTES} an avatar may have")
    whole = _PREAMBLE.size + header_bytes + payload_bytes + _DIGEST_BYTES
    if whole > MAX_FILE_BYTES or size > MAX_FILE_BYTES:
        _refuse(f"it takes {max(whole, size)} bytes, over the {MAX_FILE_BYTES} an avatar may take")
    if size < whole:
        _refuse(f"it is cut short: {size} of {whole} bytes; take a fresh copy")
    if size > whole:
        _refuse(f"it is damaged ({size - whole} bytes too many); take a fresh copy")
    text = blob[_PREAMBLE.size : _PREAMBLE.size + header_bytes]
    if zlib.crc32(text) != crc:
        _refuse("it is damaged (its header does not match its checksum); take a fresh copy")
    try:
        told = json.loads(text.decode(), object_pairs_hook=_no_key_twice, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise AvatarError(f"its header is not JSON as it should be: {error}") from error
    return _believe(told, payload_bytes), header_bytes


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    told = dict(pairs)
    if len(told) != len(pairs):
        raise ValueError("a key stands twice")
    return told


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def _believe(told: Any, payload_bytes: int) -> Header:
    """The header's JSON, each value checked for type and reason before anything is made from it."""
    _exact_keys("its header", told, _HEADER_KEYS)
    for key in ("name", "created", "program", "base"):
        if type(told[key]) is not str:
            _refuse(f"{key} in its header is not text")
    if type(told["size_px"]) is not int or told["size_px"] not in SIZES_PX:
        _refuse(f"its references are to be {_short(told['size_px'])} px a side, not 16 to 1024 in steps of 4")
    if type(told["checks"]) is not dict or type(told["entries"]) is not list:
        _refuse("checks or entries in its header are of the wrong kind")
    if len(told["entries"]) > MAX_ENTRIES:
        _refuse(f"it has {len(told['entries'])} entries, over the {MAX_ENTRIES} an avatar may have")
    _check_origin(told["name"], told["created"], told["program"], told["base"])
    entries: list[Entry] = []
    names: set[str] = set()
    offset = 0
    for entry in told["entries"]:
        checked = _entry(entry)
        if checked.name in names:
            _refuse(f"the entry {checked.name} is there twice")
        if checked.offset != offset or offset + checked.length > payload_bytes:
            _refuse(f"the entry {checked.name} overlaps another or lies outside the file")
        names.add(checked.name)
        entries.append(checked)
        offset += checked.length
    if offset != payload_bytes:
        _refuse(f"its entries make {offset} bytes and its payload has {payload_bytes}")
    return Header(**{key: told[key] for key in _HEADER_KEYS - {"entries"}}, entries=tuple(entries))


def _entry(told: Any) -> Entry:
    _exact_keys("an entry", told, _ENTRY_KEYS)
    name, kind, dtype, shape = told["name"], told["kind"], told["dtype"], told["shape"]
    if not (type(name) is str and re.fullmatch(r"[\w./-]{1,220}", name, re.ASCII)):
        _refuse(f"{_short(name)} is no name for an entry")
    if type(kind) is not str or kind not in ("array", *_PICTURES):
        _refuse(f"the entry {name} is of an unknown kind, {_short(kind)}")
    if type(dtype) is not str or dtype not in _DTYPES:
        _refuse(f"the entry {name} has an unknown dtype, {_short(dtype)}")
    if type(shape) is not list or len(shape) > 8 or any(type(side) is not int for side in shape):
        _refuse(f"the entry {name} has no proper shape")
    if any(not 0 <= side <= MAX_FILE_BYTES for side in shape):
        _refuse(f"the entry {name} has an absurd shape, {_short(shape)}")
    if any(type(told[key]) is not int or told[key] < 0 for key in ("offset", "length")):
        _refuse(f"the entry {name} has no proper place")
    if kind == "array" and math.prod(shape) * _DTYPES[dtype].itemsize != told["length"]:
        _refuse(f"the entry {name} is {dtype} {_short(shape)} and its {_short(told['length'])} bytes do not fit")
    if kind != "array" and (dtype != "uint8" or len(shape) != _PICTURES[kind][1]):
        _refuse(f"the entry {name} is a picture of {dtype} {_short(shape)}")
    if type(told["sha256"]) is not str:
        _refuse(f"the entry {name} has no proper sha256")
    return Entry(**(told | {"shape": tuple(shape)}))


def _exact_keys(what: str, told: Any, keys: set[str]) -> None:
    if type(told) is not dict:
        _refuse(f"{what} is not an object")
    if missing := sorted(keys - told.keys()):
        _refuse(f"{what} lacks {missing[0]}")
    if unknown := sorted(told.keys() - keys):
        _refuse(f"{what} has an unknown key, {_short(unknown[0])}")


def _short(value: Any) -> str:
    return text if len(text := repr(value)) <= 60 else text[:57] + "..."


def _unpack(head: Header, payload: memoryview) -> Avatar:
    """Entry by entry, and in the end none left over."""
    left = {entry.name: entry for entry in head.entries}

    def take(name: str, kind: str, dtype: str, shape: tuple[int, ...] | None) -> tuple[Entry, bytes]:
        if name not in left:
            _refuse(f"it lacks the entry {name}")
        entry = left.pop(name)
        if (entry.kind, entry.dtype) != (kind, dtype) or (shape is not None and entry.shape != shape):
            _refuse(
                f"the entry {name} is {entry.kind} {entry.dtype} {_short(list(entry.shape))}, not "
                f"{kind} {dtype} {'' if shape is None else list(shape)}".rstrip()
            )
        content = bytes(payload[entry.offset : entry.offset + entry.length])
        if hashlib.sha256(content).hexdigest() != entry.sha256:
            _refuse(f"the entry {name} does not match its sha256")
        return entry, content

    def array(name: str, dtype: str, shape: tuple[int, ...] | None) -> np.ndarray:
        entry, content = take(name, "array", dtype, shape)
        return np.frombuffer(content, _DTYPES[dtype]).reshape(entry.shape).astype(dtype)

    side = head.size_px
    small = (side // MATTE_SHRINK, side // MATTE_SHRINK)
    references: list[Reference] = []
    while not references or (f"reference/{len(references)}/rgb" in left and len(references) < MAX_REFERENCES):
        prefix = f"reference/{len(references)}/"
        _, rgb = take(prefix + "rgb", "jpeg", "uint8", (side, side, 3))
        _, matte = take(prefix + "matte", "png", "uint8", small)
        points = array(prefix + "points", "int16", (POINT_COUNT, 3)).astype(np.float32) * (side / POINT_STEPS)
        pose = array(prefix + "pose", "float32", (13,))
        borrowed = 0
        if prefix + "borrowed" in left:
            borrowed = int(array(prefix + "borrowed", "uint8", (1,))[0])
            if not 1 <= borrowed < len(BORROWED):
                _refuse(f"the entry {prefix}borrowed is {borrowed}, neither 1 (eyes) nor 2 (mouth)")
        pixels, alpha = _decoded(rgb, matte, side)
        references.append(
            Reference(
                rgb=pixels,
                matte=alpha,
                points=points.astype(np.float32),
                rotation=pose[:9].reshape(3, 3),
                translation=pose[9:12],
                scale=float(pose[12]),
                borrowed=BORROWED[borrowed],
                encoded=(rgb, matte),
            )
        )
    embedding = array("embedding", "float32", None)
    neutral = array("neutral", "float32", (POINT_COUNT, 3))
    tuned_names = [name for name in left if name.startswith("tuned/")]
    if tuned_names != sorted(tuned_names):
        _refuse("its tuned values are not sorted by name")
    tuned = {name.removeprefix("tuned/"): array(name, "float16", None) for name in tuned_names}
    if left:
        _refuse(f"it has an unknown entry, {next(iter(left))}")
    return Avatar(
        name=head.name,
        created=head.created,
        base=head.base,
        size_px=side,
        references=tuple(references),
        embedding=embedding,
        tuned=tuned,
        neutral=neutral,
        checks=head.checks,
        program=head.program,
    )


def _picture(content: bytes, kind: str, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """A picture file decoded; its own first bytes must say the right size before any room is made for it."""
    mode = "RGB" if len(shape) == 3 else "L"
    try:
        with Pictures.open(io.BytesIO(content), formats=[_PICTURES[kind][0]]) as picture:
            if picture.size != (shape[1], shape[0]) or picture.mode != mode:
                _refuse(
                    f"a picture in it is {picture.width} x {picture.height} {picture.mode}, "
                    f"not {shape[1]} x {shape[0]} {mode}"
                )
            return np.array(picture)
    except AvatarError:
        raise
    except _UNDECODABLE as error:
        raise AvatarError(f"a picture in it cannot be decoded as {kind}") from error


# --- where avatars live ---


def home() -> Path:
    """The program's own folder: `UNDERSTUDY_HOME`, or `understudy` in the user's data folder."""
    if chosen := os.environ.get("UNDERSTUDY_HOME"):
        return Path(chosen).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "understudy"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "understudy"
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "understudy"


def own_config() -> Path | None:
    """The user's own settings, in that folder; None where there are none."""
    own = home() / "config.toml"
    return own if own.is_file() else None


def place(name: str) -> Path:
    """Where the avatar called `name` is kept."""
    return home() / "avatars" / (check_name(name) + SUFFIX)


def find(name_or_path: str | Path) -> Path:
    """The file of an avatar: a path to it, or the name of one of the user's own. Raises `AvatarError`."""
    path = Path(name_or_path).expanduser()
    if isinstance(name_or_path, Path) or path.suffix == SUFFIX or len(path.parts) > 1:
        if not path.is_file():
            _refuse(f"there is no avatar at {path}")
        return path
    if not (path := place(str(name_or_path))).is_file():
        known = ", ".join(repr(listed.path.stem) for listed in listing())
        advice = f"there are {known}" if known else "there is none yet: enrol one first"
        _refuse(f"there is no avatar called {str(name_or_path)!r}; {advice}")
    return path


@dataclass(frozen=True, slots=True)
class Listed:
    """One file in the user's folder: its header, or why it cannot be used."""

    path: Path
    header: Header | None
    problem: str = ""


def listing() -> list[Listed]:
    """The user's own avatars by name; a file that cannot be read is listed with the reason."""
    listed: list[Listed] = []
    for path in sorted((home() / "avatars").glob("*" + SUFFIX)):
        try:
            listed.append(Listed(path, header(path)))
        except AvatarError as error:
            listed.append(Listed(path, None, str(error)))
    return listed
