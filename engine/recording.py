"""A performance in a file: `Face`s, coded as on the line, with the times at which they were made.

A `.face` file, version 1, numbers big-endian: the eight bytes `FACE` CR LF 0x1A LF, a version byte, then records, each
    1 byte      kind: `H` a header, `P` a packet (both as in `engine.codec`); a header stands before what needs it
    8 bytes     signed: ms of the source's clock, for a packet the time of its first frame
    2 bytes     how many bytes follow
    ...         the header or packet
    4 bytes     CRC-32 of the record so far
The file is whole after every record, so what a crash cuts off is the last packet.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from engine.codec import MAX_FRAMES, QUALITIES, TIME_WRAP_S, CodecError, Decoder, Encoder, unwrap
from engine.frames import Face, NoFace

MAGIC = b"FACE\r\n\x1a\n"
VERSION = 1
_RECORD = struct.Struct(">cqH")
_CHECK = struct.Struct(">I")
_PACKET_SPAN_S = 2.0


class FaceWriter:
    """Writes a `.face` file as the faces come; use it as a context manager, or `close` it.

    `packet_frames` faces go into a packet: the more, the smaller the file and the more a crash loses.
    """

    def __init__(self, path: str | Path, quality: int = QUALITIES - 2, packet_frames: int = 10) -> None:
        """Raises `OSError` where no file can be written."""
        if not 1 <= packet_frames <= MAX_FRAMES:
            raise ValueError(f"packet_frames = {packet_frames} must lie between 1 and {MAX_FRAMES}")
        self.path, self.frames = Path(path), 0
        self._packet_frames = packet_frames
        self._encoder = Encoder(quality, renew_s=0.0)
        self._header_id = 0
        self._last_s = -math.inf
        self._waiting: list[Face | NoFace] = []
        self._file: BinaryIO | None = self.path.open("wb")
        self._file.write(MAGIC + bytes([VERSION]))

    def write(self, face: Face | NoFace) -> None:
        """Faces come in order of time; one that is not later than the last is refused with `ValueError`."""
        if face.time_s <= self._last_s:
            raise ValueError(f"time must grow, but {face.time_s} s came after {self._last_s} s")
        if self._waiting and face.time_s - self._waiting[0].time_s > _PACKET_SPAN_S:
            self._flush()
        self._last_s = face.time_s
        self._waiting.append(face)
        if len(self._waiting) == self._packet_frames:
            self._flush()

    def close(self) -> None:
        """Writes what is left; a second call does nothing."""
        if self._file is not None:
            self._flush()
            self._file.close()
            self._file = None

    def _flush(self) -> None:
        if not self._waiting:
            return
        packet = self._encoder.encode(self._waiting)
        time_ms = round(self._waiting[0].time_s * 1000)
        if self._encoder.header_id != self._header_id:
            self._header_id = self._encoder.header_id
            self._record(b"H", time_ms, self._encoder.header())
        self._record(b"P", time_ms, packet)
        self.frames += len(self._waiting)
        self._waiting = []

    def _record(self, kind: bytes, time_ms: int, content: bytes) -> None:
        if self._file is None:
            raise ValueError(f"{self.path} is closed")
        record = _RECORD.pack(kind, time_ms, len(content)) + content
        self._file.write(record + _CHECK.pack(zlib.crc32(record)))
        self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Recording:
    """A `.face` file. Iterating reads it from the start, each time anew.

    A damaged or cut-off file yields what comes before the damage; afterwards `trouble` says in one sentence what was
    missing (`None` when nothing was). Raises `ValueError` with one sentence for anything that is no such file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.trouble: str | None = None
        self.neutral: Face | None = None
        """The performer's neutral face, as far as the file has been read."""
        try:
            with self.path.open("rb") as file:
                start = file.read(len(MAGIC) + 1)
        except FileNotFoundError:
            raise ValueError(f"there is no file {self.path}") from None
        except OSError as error:
            raise ValueError(f"{self.path} cannot be read: {error.strerror}") from None
        if not start.startswith(MAGIC) or len(start) <= len(MAGIC):
            raise ValueError(f"{self.path} is no recorded performance (.face)")
        if start[-1] != VERSION:
            raise ValueError(f"{self.path} has format {start[-1]}, this version reads {VERSION}: update Understudy")

    def __iter__(self) -> Iterator[Face | NoFace]:
        self.trouble = None
        decoder, last_s = Decoder(), None
        with self.path.open("rb") as file:
            file.seek(len(MAGIC) + 1)
            try:
                while record := self._next(file):
                    kind, time_ms, content = record
                    if kind == b"H":
                        decoder.feed_header(content)
                        self.neutral = decoder.neutral
                        continue
                    for coded in decoder.decode(content):
                        last_s = unwrap(coded.time_s, time_ms / 1000, TIME_WRAP_S)
                        yield replace(coded.face, time_s=last_s)
            except CodecError as error:
                until = "its first face" if last_s is None else f"{last_s:.2f} s"
                self.trouble = f"{self.path} ends early, after {until}: {error}"

    def _next(self, file: BinaryIO) -> tuple[bytes, int, bytes] | None:
        """Raises `CodecError` on a record that is cut off or damaged."""
        start = file.read(_RECORD.size)
        if not start:
            return None
        if len(start) < _RECORD.size:
            raise CodecError("the last record is cut off")
        kind, time_ms, length = _RECORD.unpack(start)
        content, check = file.read(length), file.read(_CHECK.size)
        if len(check) < _CHECK.size:
            raise CodecError("the last record is cut off")
        if _CHECK.unpack(check)[0] != zlib.crc32(start + content) or kind not in (b"H", b"P"):
            raise CodecError("a record is damaged")
        return kind, time_ms, content
