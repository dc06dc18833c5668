"""Face <-> bytes: a performance in a few kilobits a second; every packet can be decoded alone.

First version of the interface; the entropy coding behind it follows.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engine.frames import POINT_COUNT, Face, NoFace

VERSION = 1
MAX_FRAMES = 16
"""The most frames one packet holds."""
MAX_PACKET_BYTES = 1200
SEQUENCE_WRAP = 1 << 8
"""Sequence numbers count frames and wrap here."""
TIME_WRAP_S = 65.536
"""Times are the sender's clock modulo this; `unwrap` undoes it."""
QUALITIES = 8
DEFAULT = 5
"""Quality: 0 (least) to `QUALITIES - 1` (best)."""

_HEAD = struct.Struct("<BBB")
_FRAME = struct.Struct("<HfHH9f3ff")


class CodecError(ValueError):
    """A packet that cannot be read, in one sentence."""


@dataclass(frozen=True, slots=True, eq=False)
class Coded:
    """One decoded frame."""

    sequence: int
    """0 to `SEQUENCE_WRAP - 1`; `unwrap(sequence, near, SEQUENCE_WRAP)` makes it grow."""
    time_s: float
    """The sender's clock, 0 to `TIME_WRAP_S`; `face.time_s` is the same."""
    face: Face | NoFace
    header_known: bool
    """False: the header that the packet asks for has not come; drawn from an older one or from the mean face."""


def unwrap(value: float, near: float, wrap: float) -> float:
    """The number nearest to `near` that equals `value` modulo `wrap`."""
    return value + wrap * round((near - value) / wrap)


class Encoder:
    """One stream; not thread-safe."""

    def __init__(self, quality: int = DEFAULT) -> None:
        self.quality = quality
        self._sequence = 0
        self._header_id = 0

    @property
    def header_id(self) -> int:
        """Changes when `header` should be sent again; 0 until a face was seen."""
        return self._header_id

    def header(self) -> bytes:
        """The newest header: to be sent once, reliably, and again whenever `header_id` changes."""
        return bytes([VERSION, self._header_id]) + bytes(300)

    def encode(self, faces: Sequence[Face | NoFace]) -> bytes:
        """One packet of 1 to `MAX_FRAMES` frames that follow each other."""
        if not 1 <= len(faces) <= MAX_FRAMES:
            raise ValueError(f"a packet holds 1 to {MAX_FRAMES} frames, not {len(faces)}")
        out = []
        for face in faces:
            time_s = face.time_s % TIME_WRAP_S
            if isinstance(face, NoFace):
                out.append(_FRAME.pack(0, time_s, 0, 0, *([0.0] * 13)))
                continue
            self._header_id = 1
            pose = (*face.rotation.ravel().tolist(), *face.translation.tolist(), face.scale)
            level = 1 + round(255 * face.visibility)
            out.append(_FRAME.pack(level, time_s, *face.size_px, *pose))
            out.append(np.clip(np.rint(face.points * 8), -32768, 32767).astype("<i2").tobytes())
        packet = _HEAD.pack(VERSION << 5 | self._header_id, self._sequence, len(faces)) + zlib.compress(b"".join(out))
        self._sequence = (self._sequence + len(faces)) % SEQUENCE_WRAP
        return packet


class Decoder:
    """One stream; not thread-safe."""

    def __init__(self) -> None:
        self._headers: set[int] = set()

    def feed_header(self, packet: bytes) -> None:
        """Raises `CodecError`; what was known before stays known."""
        if len(packet) < 2 or packet[0] != VERSION:
            raise CodecError("this is no header of a face stream")
        self._headers.add(packet[1])

    def decode(self, packet: bytes) -> list[Coded]:
        """The frames of one packet, in order. Raises `CodecError`."""
        try:
            head, sequence, count = _HEAD.unpack_from(packet)
            content = zlib.decompressobj().decompress(packet[_HEAD.size :], 1 << 20)
            if head >> 5 != VERSION or not 1 <= count <= MAX_FRAMES:
                raise CodecError("this is no packet of a face stream that this version can read")
            frames, place = [], 0
            for number in range(count):
                level, time_s, width, height, *pose = _FRAME.unpack_from(content, place)
                place += _FRAME.size
                face: Face | NoFace = NoFace(time_s)
                if level:
                    points = np.frombuffer(content, "<i2", POINT_COUNT * 3, place).reshape(-1, 3) / np.float32(8)
                    place += POINT_COUNT * 6
                    face = Face(
                        points.astype(np.float32),
                        np.array(pose[:9], np.float32).reshape(3, 3),
                        np.array(pose[9:12], np.float32),
                        pose[12],
                        (level - 1) / 255,
                        (width, height),
                        time_s,
                    )
                known = head & 31 in self._headers
                frames.append(Coded((sequence + number) % SEQUENCE_WRAP, time_s, face, known))
        except (struct.error, zlib.error, ValueError) as error:
            raise CodecError(f"a face packet of {len(packet)} bytes cannot be read: {error}") from None
        return frames
