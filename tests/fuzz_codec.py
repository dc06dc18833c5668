"""Damaged and invented packets into the decoder: `python -m tests.fuzz_codec 1000000` (how many, and a seed).

Whatever comes, the decoder answers with finite faces or with `CodecError`; anything else ends the run and prints the
packet. Packets are valid ones with bits flipped, bytes changed, cut, doubled or spliced, and bytes drawn at random.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

import numpy as np

from engine.codec import MAX_FRAMES, QUALITIES, CodecError, Decoder, Encoder
from engine.frames import Face, NoFace
from plugin.render import read_faces

TALKING = Path(__file__).parents[1] / "plugin" / "assets" / "demo" / "talking.npz"


def valid_packets(random: Random, count: int) -> tuple[list[bytes], list[bytes]]:
    """Packets of all qualities and lengths, and the headers they ask for."""
    faces: list[Face | NoFace] = list(read_faces(TALKING)[0])
    packets, headers = [], []
    for _ in range(count):
        encoder = Encoder(random.randrange(QUALITIES))
        start = random.randrange(len(faces) - MAX_FRAMES)
        chosen = faces[start : start + random.randint(1, MAX_FRAMES)]
        chosen = [NoFace(face.time_s) if random.random() < 0.1 else face for face in chosen]
        packets.append(encoder.encode(chosen))
        if encoder.header_id:
            headers.append(encoder.header())
    return packets, headers


def damaged(random: Random, corpus: list[bytes]) -> Iterator[bytes]:
    while True:
        packet = bytearray(random.choice(corpus))
        kind = random.randrange(7)
        if kind == 0:
            packet = bytearray(random.randbytes(random.randrange(64)))
        elif kind == 1:
            packet[0] = packet[0] & 0xC7 | random.randrange(8) << 3
        elif kind == 2:
            del packet[random.randrange(len(packet) + 1) :]
        elif kind == 3:
            packet += random.randbytes(random.randrange(1, 12))
        elif kind == 4:
            packet = packet[: random.randrange(len(packet))] + random.choice(corpus)[random.randrange(12) :]
        elif kind == 5 and random.random() < 0.02:
            packet = bytearray([packet[0] if packet else 64]) + bytearray(random.randbytes(random.randrange(5000)))
        for _ in range(random.choice((0, 1, 1, 2, 8)) if packet else 0):
            packet[random.randrange(len(packet))] ^= 1 << random.randrange(8)
        yield bytes(packet)


def check_packet(decoder: Decoder, packet: bytes) -> bool:
    """Whether it was taken; raises `AssertionError` on faces that are none."""
    try:
        frames = decoder.decode(packet)
    except CodecError as error:
        assert "\n" not in str(error)
        return False
    assert 1 <= len(frames) <= MAX_FRAMES
    for frame in frames:
        assert 0 <= frame.sequence < 256
        assert 0 <= frame.time_s < 65.536
        if isinstance(frame.face, Face):
            assert np.isfinite(frame.face.points).all()
            assert np.isfinite(frame.face.rotation).all()
            assert np.isfinite(frame.face.translation).all()
            assert frame.face.scale > 0
    return True


def check_header(decoder: Decoder, header: bytes) -> bool:
    try:
        decoder.feed_header(header)
    except CodecError as error:
        assert "\n" not in str(error)
        return False
    neutral = decoder.neutral
    assert neutral is not None
    assert np.isfinite(neutral.points).all()
    return True


def fuzz(count: int, seed: int) -> tuple[int, float]:
    """How many of `count` were taken for packets, and the longest that one took, seconds."""
    random = Random(seed)
    packets, headers = valid_packets(random, 40)
    decoder = Decoder()
    for header in headers:
        assert check_header(decoder, header)
    for packet in packets:
        assert check_packet(decoder, packet)
    taken, longest_s = 0, 0.0
    packet_stream, header_stream = damaged(random, packets), damaged(random, headers)
    for number in range(count):
        is_header = number % 50 == 49
        packet = next(header_stream) if is_header else next(packet_stream)
        started_s = time.perf_counter()
        try:
            taken += check_header(decoder, packet) if is_header else check_packet(decoder, packet)
        except BaseException:
            print(f"seed {seed}, number {number}: {packet.hex()}")
            raise
        longest_s = max(longest_s, time.perf_counter() - started_s)
    return taken, longest_s


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz_codec", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("count", type=int)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    started_s = time.perf_counter()
    taken, longest_s = fuzz(options.count, options.seed)
    passed_s = time.perf_counter() - started_s
    print(
        f"{options.count} packets in {passed_s:.0f} s ({options.count / passed_s:.0f} a second), "
        f"{taken} could be read, the slowest took {1000 * longest_s:.1f} ms; no crash"
    )


if __name__ == "__main__":
    main()
