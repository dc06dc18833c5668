"""The sender's avatar on its way to the receiver: a small preview at once, the whole file behind the stream's back.

Messages of `plugin.transport`, each by its kind:

    avatar/offer     sender    JSON: sha256 and bytes of the file, base (sha256), preview_sha256 and preview_bytes
    avatar/want      receiver  JSON: sha256, preview (true: send it), from (byte to go on at; -1: nothing of the file).
                               The preview first, the file when the preview is on the screen
    avatar/preview   sender    the preview
    avatar/part      sender    u32 little-endian place in the file, then up to 32 768 bytes of it
    avatar/refused   receiver  one sentence: what came was not what was offered

The preview, version 1, little-endian and unsigned:

    0    5    magic: 89 "UPRV"
    5    1    version: 1
    6    2    S, the side of the photo: 16 to 512, a multiple of 4
    8    4    bytes of the photo, WebP, RGB, S x S
    12   4    bytes of the matte, PNG, grey, S/4 x S/4
    16   32   sha256 of the base model
    48        photo, matte, then zlib of: points int16 [478, 3] in 1/16384 of S, pose float32 [13],
              neutral int16 [478, 3] less the points, embedding float16 [n], n as the base has it

One photo and the embedding: everything else (AdaIN constants, the layers that enrolment tunes) is the base's own, so
the face is less exactly the person's until the file is there. Nothing of what comes is believed before it was checked:
sizes before a byte is kept, the hash before a byte is read, the format by `engine.avatar` before it is given a name.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pictures
from safetensors import SafetensorError, safe_open

from engine import avatar as avatars
from engine.avatar import MAX_FILE_BYTES, POINT_STEPS, Avatar, AvatarError, Reference, home
from engine.base import Base
from engine.frames import POINT_COUNT

log = logging.getLogger(__name__)

MAX_PREVIEW_BYTES = 25_000
PART_BYTES = 32_768
PREVIEW_PX = 288
KEPT = 32
"""Received avatars that are kept; the longest unused goes first."""
_PHOTO_BYTES = 4_500
_HEAD = struct.Struct("<5sBHII32s")
_MAGIC, _VERSION = b"\x89UPRV", 1
_POSE = 13
_BROKEN = (OSError, ValueError, SyntaxError, EOFError, struct.error, zlib.error, Pictures.DecompressionBombError)


class AvatarTransferError(ValueError):
    """An avatar that is not what it was said to be; the message is one sentence."""


# --- the preview ---


def pack_preview(avatar: Avatar) -> bytes:
    """The preview of an avatar, about 8 kB: a good two seconds of a line of 32 kbit/s."""
    apart = [float(np.abs(one.points - avatar.neutral).max()) for one in avatar.photos]
    reference = avatar.photos[int(np.argmin(apart))]
    side = min(PREVIEW_PX, avatar.size_px)
    rgb = Pictures.fromarray(reference.rgb).resize((side, side), Pictures.Resampling.LANCZOS)
    matte = Pictures.fromarray(reference.matte).resize((side // 4, side // 4), Pictures.Resampling.BOX)
    photo = b""
    for quality in (70, 60, 50, 40, 30, 15):
        photo = _file(rgb, "WEBP", quality=quality, method=6)
        if len(photo) <= _PHOTO_BYTES:
            break
    to_side = np.float32(side / avatar.size_px)
    points = _steps(reference.points * to_side, side)
    neutral = _steps(avatar.neutral * to_side, side)
    pose = np.concatenate(
        [reference.rotation.ravel(), reference.translation * to_side, [reference.scale * to_side]]
    ).astype("<f4")
    tail = b"".join(
        (
            points.tobytes(),
            pose.tobytes(),
            (neutral - points).astype("<i2").tobytes(),
            avatar.embedding.astype("<f2").tobytes(),
        )
    )
    mask = _file(matte, "PNG", optimize=True)
    head = _HEAD.pack(_MAGIC, _VERSION, side, len(photo), len(mask), bytes.fromhex(avatar.base))
    return head + photo + mask + zlib.compress(tail, 9)


def open_preview(blob: bytes, base: Base, name: str = "preview") -> Avatar:
    """An avatar with one reference over the base's own weights. Raises `AvatarTransferError`."""
    if len(blob) < _HEAD.size or len(blob) > MAX_PREVIEW_BYTES:
        raise AvatarTransferError(f"a preview of {len(blob)} bytes cannot be: {MAX_PREVIEW_BYTES} is the most")
    magic, version, side, photo_bytes, matte_bytes, base_sha256 = _HEAD.unpack_from(blob)
    if magic != _MAGIC or version < 1:
        raise AvatarTransferError("what came is no preview of an avatar")
    if version > _VERSION:
        raise AvatarTransferError(f"the preview has version {version} and this program reads {_VERSION}: update it")
    if base_sha256.hex() != base.sha256:
        raise AvatarTransferError(_other_base(base_sha256.hex(), base))
    pictures_end = _HEAD.size + photo_bytes + matte_bytes
    if not 16 <= side <= 512 or side % 4 or pictures_end > len(blob):
        raise AvatarTransferError("the preview's sizes make no sense")
    embedding_count, modulate, tuned = _base_numbers(base)
    room = POINT_COUNT * 3 * 2 * 2 + _POSE * 4 + embedding_count * 2
    try:
        rgb = _picture(blob[_HEAD.size : _HEAD.size + photo_bytes], "WEBP", "RGB", side)
        small = _picture(blob[_HEAD.size + photo_bytes : pictures_end], "PNG", "L", side // 4)
        unpacking = zlib.decompressobj()
        tail = unpacking.decompress(blob[pictures_end:], room + 1)
        if len(tail) != room or not unpacking.eof:
            raise ValueError("its numbers are cut short or too many")
        count = POINT_COUNT * 3
        steps = np.frombuffer(tail, "<i2", count).astype(np.int32).reshape(-1, 3)
        pose = np.frombuffer(tail, "<f4", _POSE, count * 2).astype(np.float32)
        apart = np.frombuffer(tail, "<i2", count, count * 2 + _POSE * 4).astype(np.int32).reshape(-1, 3)
        embedding = np.frombuffer(tail, "<f2", embedding_count, count * 4 + _POSE * 4).astype(np.float32)
        matte = Pictures.fromarray(small).resize((side, side), Pictures.Resampling.BILINEAR)
        to_px = np.float32(side / POINT_STEPS)
        reference = Reference(
            rgb=rgb,
            matte=np.array(matte),
            points=(steps * to_px).astype(np.float32),
            rotation=pose[:9].reshape(3, 3),
            translation=pose[9:12],
            scale=float(pose[12]),
        )
        return Avatar(
            name=name,
            created=avatars.now(),
            base=base.sha256,
            size_px=side,
            references=(reference,),
            embedding=embedding,
            tuned={"modulation": modulate(embedding), **tuned},
            neutral=((steps + apart) * to_px).astype(np.float32),
            checks={},
        )
    except _BROKEN as error:  # AvatarError among them
        raise AvatarTransferError(f"the preview cannot be used: {error}") from error


def _steps(points: NDArray[np.float32], side: int) -> NDArray[np.int16]:
    return np.clip(np.rint(points * (POINT_STEPS / side)), -32768, 32767).astype("<i2")


def _file(picture: Pictures.Image, kind: str, **options: Any) -> bytes:
    with io.BytesIO() as sink:
        picture.save(sink, kind, **options)
        return sink.getvalue()


def _picture(content: bytes, kind: str, mode: str, side: int) -> NDArray[np.uint8]:
    with Pictures.open(io.BytesIO(content), formats=[kind]) as picture:
        if picture.size != (side, side) or picture.mode != mode:
            raise ValueError(f"a picture in it is {picture.width} x {picture.height} {picture.mode}")
        return np.array(picture)


def _base_numbers(
    base: Base,
) -> tuple[int, Callable[[NDArray[np.float32]], NDArray[np.float32]], dict[str, NDArray[np.float32]]]:
    """Length of an embedding, embedding -> modulation `[1, M]` (P e), and the base's own weights that avatars tune."""
    try:
        with safe_open(str(base.weights), "numpy") as weights:
            projection = weights.get_tensor("projection.weight").astype(np.float32)
            offset = weights.get_tensor("projection.bias").astype(np.float32)
            tuned = {name: weights.get_tensor(name).astype(np.float32) for name in base.tuned}
    except (OSError, SafetensorError) as error:
        raise AvatarTransferError(f"{base.weights} is damaged or missing: install the program again") from error
    return projection.shape[1], lambda embedding: (projection @ embedding + offset)[None], tuned


def _other_base(theirs: str, base: Base) -> str:
    return (
        f"the sender's avatar was made over base model {theirs[:12]} and this program has {base.sha256[:12]}: "
        "install the same version on both sides"
    )


# --- offering ---


@dataclass(frozen=True, slots=True)
class Offer:
    """What the sender says it has."""

    sha256: str
    bytes: int
    base: str
    preview_sha256: str
    preview_bytes: int

    def packed(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def read(cls, packed: bytes) -> Offer:
        """Raises `AvatarTransferError` for anything that cannot be an offer."""
        told = _json(packed)
        if told.keys() != set(cls.__slots__):
            raise AvatarTransferError("the sender's offer of an avatar cannot be read: update the older of the two")
        for name in ("sha256", "base", "preview_sha256"):
            if type(told[name]) is not str or not re.fullmatch(r"[0-9a-f]{64}", told[name], re.ASCII):
                raise AvatarTransferError("the sender's offer of an avatar names no proper hash")
        for name, most in (("bytes", MAX_FILE_BYTES), ("preview_bytes", MAX_PREVIEW_BYTES)):
            if type(told[name]) is not int or not 0 < told[name] <= most:
                raise AvatarTransferError(
                    f"the sender offers an avatar of {str(told[name])[:20]} {name}, {most} is the most"
                )
        return cls(**told)


class Sends(Protocol):
    """What is needed of `plugin.transport.Transport`."""

    async def send_message(self, kind: str, payload: bytes, *, background: bool = False) -> None: ...


class Outgoing:
    """The sender's side: offers its avatar, and sends what is asked for."""

    def __init__(self, path: Path, base: Base) -> None:
        """Raises `AvatarError` when the file is no avatar over this base."""
        avatar = avatars.load(path, base.sha256)
        self.name = avatar.name
        self._file = path.read_bytes()
        self._preview = pack_preview(avatar)
        self.offer = Offer(
            hashlib.sha256(self._file).hexdigest(),
            len(self._file),
            avatar.base,
            hashlib.sha256(self._preview).hexdigest(),
            len(self._preview),
        )
        self.sent_bytes = 0

    def shows_already(self, want: bytes) -> bool:
        """Whether the receiver has at least the preview on its screen. Raises `AvatarTransferError`."""
        return _json(want).get("preview") is not True

    async def give(self, transport: Sends, want: bytes) -> None:
        """Answer one `avatar/want`: the preview in front of all else, the file in the background.

        Raises `AvatarTransferError`, and what the transport raises when the connection ends.
        """
        told = _json(want)
        start = told.get("from")
        if told.get("sha256") != self.offer.sha256 or type(start) is not int or not -1 <= start <= len(self._file):
            raise AvatarTransferError("the receiver asks for an avatar that was not offered")
        if told.get("preview") is True:
            await transport.send_message("avatar/preview", self._preview)
        if start < 0:
            return
        for place in range(start, len(self._file), PART_BYTES):
            part = self._file[place : place + PART_BYTES]
            await transport.send_message("avatar/part", place.to_bytes(4, "little") + part, background=True)
            self.sent_bytes = place + len(part)


def _json(packed: bytes) -> dict[str, Any]:
    try:
        told = json.loads(packed[:4096])
    except (ValueError, RecursionError):
        told = None
    if not isinstance(told, dict):
        raise AvatarTransferError("the other side says something about an avatar that cannot be read")
    return told


# --- taking ---


class Incoming:
    """The receiver's side, through reconnections: what came stays until it is whole, or was a lie."""

    def __init__(self, base: Base, folder: Path | None = None) -> None:
        self._base = base
        self._folder = folder or home() / "received"
        self._offer: Offer | None = None
        self._have = bytearray()
        self.complete = False
        self._previewed = False

    @property
    def sha256(self) -> str:
        """Of the file that was offered last; "" before."""
        return self._offer.sha256 if self._offer else ""

    @property
    def progress(self) -> float:
        """0 to 1, how much of the file is here."""
        if self.complete:
            return 1.0
        return len(self._have) / self._offer.bytes if self._offer else 0.0

    def offered(self, packed: bytes) -> tuple[bytes, Avatar | None]:
        """An offer came: what to say back (`avatar/want`), and the avatar if it is here already."""
        offer = Offer.read(packed)
        if offer.base != self._base.sha256:
            raise AvatarTransferError(_other_base(offer.base, self._base))
        if self._offer is None or offer.sha256 != self._offer.sha256:
            self._have, self.complete, self._previewed = bytearray(), False, False
        self._offer = offer
        kept = self._kept()
        self.complete = kept is not None
        if self.complete or self._previewed:
            return self.wanted(), kept
        return self._want(preview=True, start=-1), None

    def wanted(self) -> bytes:
        """What to ask for when the preview is on the screen (`avatar/want`): the rest, from where it broke off."""
        return self._want(preview=False, start=-1 if self.complete else len(self._have))

    def _want(self, preview: bool, start: int) -> bytes:
        assert self._offer is not None
        return json.dumps({"sha256": self._offer.sha256, "preview": preview, "from": start}).encode()

    def preview(self, blob: bytes) -> Avatar:
        """The preview came. Raises `AvatarTransferError`."""
        offer = self._expecting()
        if len(blob) != offer.preview_bytes or hashlib.sha256(blob).hexdigest() != offer.preview_sha256:
            raise AvatarTransferError("the sender's preview is not the one it offered; it was thrown away")
        avatar = open_preview(blob, self._base)
        self._previewed = True
        return avatar

    def part(self, message: bytes) -> Avatar | None:
        """A part came; the avatar when it was the last. Raises `AvatarTransferError`; nothing is kept then."""
        offer = self._expecting()
        place, part = int.from_bytes(message[:4], "little"), message[4:]
        if len(message) < 5 or len(part) > PART_BYTES or place != len(self._have):
            self._forget()
            raise AvatarTransferError("the parts of the sender's avatar do not fit together; they were thrown away")
        if place + len(part) > offer.bytes:
            self._forget()
            raise AvatarTransferError(f"the sender's avatar is larger than the {offer.bytes} bytes it was said to have")
        self._have += part
        if len(self._have) < offer.bytes:
            return None
        blob = bytes(self._have)
        self._forget()
        if hashlib.sha256(blob).hexdigest() != offer.sha256:
            raise AvatarTransferError(
                "the sender's avatar is not the one it offered (its hash differs); it was thrown away"
            )
        avatar = self._keep(blob, offer)
        self.complete, self._offer = True, offer
        return avatar

    def _expecting(self) -> Offer:
        if self._offer is None or self.complete:
            raise AvatarTransferError("the sender sent an avatar that was not asked for")
        return self._offer

    def _forget(self) -> None:
        self._have, self._offer = bytearray(), None

    def _kept(self) -> Avatar | None:
        assert self._offer is not None
        path = self._folder / (self._offer.sha256 + avatars.SUFFIX)
        try:
            if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != self._offer.sha256:
                return None
            path.touch()
            return avatars.load(path, self._base.sha256)
        except (OSError, AvatarError):
            return None

    def _keep(self, blob: bytes, offer: Offer) -> Avatar:
        part = self._folder / f".{offer.sha256}.part"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            part.write_bytes(blob)
            avatar = avatars.load(part, self._base.sha256)
            part.replace(self._folder / (offer.sha256 + avatars.SUFFIX))
            self._thin_out()
        except AvatarError as error:
            raise AvatarTransferError(f"what the sender sent is no avatar that can be used: {error}") from error
        except OSError as error:
            raise AvatarTransferError(f"the avatar cannot be kept in {self._folder}: {error.strerror}") from error
        finally:
            part.unlink(missing_ok=True)
        return avatar

    def _thin_out(self) -> None:
        there = sorted(self._folder.glob("*" + avatars.SUFFIX), key=lambda path: path.stat().st_mtime, reverse=True)
        for old in there[KEPT:]:
            old.unlink(missing_ok=True)
