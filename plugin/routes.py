"""How a face rides in a voice packet: Opus packets taken apart, padded with a rider, and put together again.

An Opus packet of code 3 may end in padding, which every Opus decoder skips (RFC 6716, 3.2.5). The face travels there,
so that beside a voice it costs no headers, and arrives with the very sound it belongs to. The RFC asks encoders to
write zeros there, and decoders to accept anything.

    padding := 0x00 what [clock u32] face...
    what    0xFA: a face; 0xFB: `clock`, and then the face; anything else is not ours and is ignored
    clock   the RTP timestamp that this packet would have, were it not for RTP's random origin

The zero is for two kinds of decoder: FFmpeg's own reads a byte beyond the end of a frame, and sounds different when it
is not zero; and one that looks for extensions (draft-ietf-mlcodec-opus-extension) takes it for plain padding.
Without a voice the same packet holds 20 ms of silence, in two bytes.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

FACE, CLOCK_AND_FACE = 0xFA, 0xFB
CLOCK_HZ = 48000
"""Ticks a second of an Opus stream's RTP timestamps (RFC 7587, 4.1)."""
MAX_FRAMES = 48
"""Frames in one packet: 120 ms of 2.5 ms (RFC 6716, 3.2.5)."""
MAX_FRAME_BYTES = 1275
MAX_RIDER_BYTES = 1000
"""A packet stays below what every path carries whole: 1200 bytes and headers."""


@dataclass(frozen=True, slots=True)
class Opus:
    """An Opus packet taken apart: the table-of-contents byte without its frame count code, frames, padding."""

    config: int
    """The upper six bits of the TOC byte: coding mode, bandwidth, frame duration, stereo."""
    frames: tuple[bytes, ...]
    padding: bytes = b""

    @property
    def duration_ms(self) -> float:
        return len(self.frames) * frame_ms(self.config)

    @property
    def silent(self) -> bool:
        """No frame holds any sound: a carrier for its rider, or an encoder that saves bits."""
        return all(frame in (b"", b"\xff\xfe") for frame in self.frames)


@dataclass(frozen=True, slots=True)
class Rider:
    face: bytes
    """Empty: none in this packet."""
    clock: int | None = None
    """Ticks of the sender's own clock, modulo 2**32."""


SILENCE = Opus(0xF8, (b"\xff\xfe",))
"""20 ms of CELT, its silence flag set; a frame of no bytes would do for libopus, but FFmpeg's own decoder hisses."""


def frame_ms(config: int) -> float:
    """Duration of one frame by the upper five bits of the TOC byte (RFC 6716, table 2)."""
    number = config >> 3
    if number < 12:
        return (10.0, 20.0, 40.0, 60.0)[number % 4]
    if number < 16:
        return (10.0, 20.0)[number % 2]
    return (2.5, 5.0, 10.0, 20.0)[number % 4]


def split(packet: bytes) -> Opus:
    """Raises `ValueError` for bytes that are not an Opus packet (RFC 6716, 3.4)."""
    if not packet:
        raise ValueError("an Opus packet has at least one byte")
    config, code, rest = packet[0] & 0xFC, packet[0] & 3, packet[1:]
    if code == 0:
        frames, padding = [rest], b""
    elif code == 1:
        if len(rest) % 2:
            raise ValueError(f"two Opus frames of one size in {len(rest)} bytes")
        frames, padding = [rest[: len(rest) // 2], rest[len(rest) // 2 :]], b""
    elif code == 2:
        first, rest = _size(rest)
        if first > len(rest):
            raise ValueError(f"an Opus frame of {first} bytes in {len(rest)}")
        frames, padding = [rest[:first], rest[first:]], b""
    else:
        frames, padding = _split_many(rest)
    if any(len(frame) > MAX_FRAME_BYTES for frame in frames) or len(frames) * frame_ms(config) > 120:
        raise ValueError(f"an Opus packet of {len(frames)} frames, the longest of {max(map(len, frames))} bytes")
    return Opus(config, tuple(frames), padding)


def _split_many(rest: bytes) -> tuple[list[bytes], bytes]:
    if not rest:
        raise ValueError("an Opus packet without its frame count")
    sizes_differ, padded, count, rest = rest[0] & 0x80, rest[0] & 0x40, rest[0] & 0x3F, rest[1:]
    if not 0 < count <= MAX_FRAMES:
        raise ValueError(f"an Opus packet of {count} frames")
    padding_bytes = 0
    while padded:
        if not rest:
            raise ValueError("an Opus packet that ends within the size of its padding")
        padding_bytes += min(rest[0], 254)
        padded, rest = rest[0] == 255, rest[1:]
    sizes = []
    if sizes_differ:
        for _ in range(count - 1):
            size, rest = _size(rest)
            sizes.append(size)
    room = len(rest) - padding_bytes
    if room < sum(sizes):
        raise ValueError(f"an Opus packet with {room} bytes for {sum(sizes)}")
    if sizes_differ:
        sizes.append(room - sum(sizes))
    elif room % count:
        raise ValueError(f"{count} Opus frames of one size in {room} bytes")
    else:
        sizes = [room // count] * count
    frames, at = [], 0
    for size in sizes:
        frames.append(rest[at : at + size])
        at += size
    return frames, rest[at:]


def _size(rest: bytes) -> tuple[int, bytes]:
    """A frame's size in one or two bytes (RFC 6716, 3.2.1)."""
    if rest and rest[0] < 252:
        return rest[0], rest[1:]
    if len(rest) < 2:
        raise ValueError("an Opus packet that ends within the size of a frame")
    return 4 * rest[1] + rest[0], rest[2:]


def join(opus: Opus) -> bytes:
    """The packet, in code 3 when there is padding or more than one frame, in code 0 otherwise."""
    if len(opus.frames) == 1 and not opus.padding:
        return bytes([opus.config]) + opus.frames[0]
    sizes_differ = len({len(frame) for frame in opus.frames}) > 1
    packet = bytearray([opus.config | 3, len(opus.frames) | (0x80 if sizes_differ else 0)])
    if opus.padding:
        packet[1] |= 0x40
        whole, left = divmod(len(opus.padding), 254)
        if left == 0:  # 254 bytes are one byte of 254; 255 would announce another
            whole, left = whole - 1, 254
        packet += b"\xff" * whole + bytes([left])
    if sizes_differ:
        for frame in opus.frames[:-1]:
            if len(frame) < 252:
                packet.append(len(frame))
            else:
                packet += bytes([252 + len(frame) % 4, (len(frame) - 252 - len(frame) % 4) // 4])
    return bytes(packet) + b"".join(opus.frames) + opus.padding


def mount(opus: Opus, rider: Rider) -> bytes:
    """The Opus packet with the rider in its padding. Raises `ValueError` for a rider that is too large."""
    if len(rider.face) > MAX_RIDER_BYTES:
        raise ValueError(f"a face of {len(rider.face)} bytes; at most {MAX_RIDER_BYTES} fit into a packet")
    if not rider.face and rider.clock is None:
        return join(opus)
    if rider.clock is None:
        padding = bytes([0, FACE]) + rider.face
    else:
        padding = struct.pack("!BBI", 0, CLOCK_AND_FACE, rider.clock % 2**32) + rider.face
    return join(Opus(opus.config, opus.frames, padding))


def dismount(opus: Opus) -> Rider:
    """What rides in a packet; an empty rider when it is not ours. Never raises: padding may hold anything."""
    padding = opus.padding
    if padding[:2] == bytes([0, FACE]):
        return Rider(padding[2:])
    if padding[:2] == bytes([0, CLOCK_AND_FACE]) and len(padding) >= 6:
        return Rider(padding[6:], int.from_bytes(padding[2:6], "big"))
    return Rider(b"")
