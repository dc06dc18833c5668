"""Whatever may come, into the decoder or the jitter buffer: `python -m tests.fuzz decoder 1000000`.

To the decoder: packets that were valid, with bits flipped, bytes changed, cut, doubled or spliced, and bytes drawn at
random. It answers with finite faces or with `CodecError`. To the jitter buffer: frames late, early, twice, mixed, from
other clocks and other senders, with numbers that no face has, while both clocks jump. What it shows is a finite face,
`NoFace` or nothing, and what it keeps stays bounded. Anything else ends the run and prints what was fed.

It goes by stretches of `STRETCH` with a seed each, and a line for each, so that a long run can be taken up again with
`--seed`, and what it found made again.
"""

from __future__ import annotations

import argparse
import math
import resource
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Protocol

import numpy as np

from engine.codec import (
    MAX_FRAMES,
    MAX_PACKET_BYTES,
    QUALITIES,
    SEQUENCE_WRAP,
    TIME_WRAP_S,
    CodecError,
    Coded,
    Decoder,
    Encoder,
)
from engine.frames import Face, NoFace
from plugin import jitter as buffers
from plugin.jitter import Jitter
from plugin.render import read_faces

TALKING = Path(__file__).parents[1] / "plugin" / "assets" / "demo" / "talking.npz"
STRETCH = 100_000
NASTY = (math.nan, math.inf, -math.inf, -1.0, 0.0, 1e-30, 1e30, TIME_WRAP_S, -1e-9)


class Target(Protocol):
    """What is poured into; made of a seed."""

    def feed(self) -> bool:
        """One more; whether it was of use. Raises whatever a fault raises."""
        ...

    def last(self) -> str:
        """What was fed last, to be looked at."""
        ...


# --- the decoder ---


def valid_packets(random: Random, count: int) -> tuple[list[bytes], list[bytes]]:
    """Packets of all qualities, rungs and lengths, and the headers they ask for."""
    faces: list[Face | NoFace] = list(read_faces(TALKING)[0])
    packets, headers = [], []
    for _ in range(count):
        encoder = Encoder(random.randrange(QUALITIES))
        start = random.randrange(len(faces) - MAX_FRAMES)
        chosen = faces[start : start + random.randint(1, MAX_FRAMES)]
        chosen = [NoFace(face.time_s) if random.random() < 0.1 else face for face in chosen]
        packets.append(encoder.encode(chosen, random.choice((20, 60, MAX_PACKET_BYTES))))
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


class IntoDecoder:
    """Packets, and a header in every fifty."""

    def __init__(self, seed: int) -> None:
        random = Random(seed)
        packets, headers = valid_packets(random, 40)
        self._decoder = Decoder()
        for header in headers:
            assert check_header(self._decoder, header)
        for packet in packets:
            assert check_packet(self._decoder, packet)
        self._packets, self._headers = damaged(random, packets), damaged(random, headers)
        self._fed, self._number = b"", 0

    def feed(self) -> bool:
        self._number += 1
        is_header = self._number % 50 == 0
        self._fed = next(self._headers if is_header else self._packets)
        return (check_header if is_header else check_packet)(self._decoder, self._fed)

    def last(self) -> str:
        return self._fed.hex()


# --- the jitter buffer ---


class Storm:
    """A sender of sorts, and a line of sorts; `next` is the frame that comes now, and `now_s` goes on."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._faces = read_faces(TALKING)[0]
        self._recent: list[Coded] = []
        self.now_s = 1000.0
        self._offset_s = random.uniform(-1e4, 1e4)
        self._number = 0

    def next(self) -> Coded:
        random = self._random
        dice = random.random()
        self._number += 1
        self.now_s += random.choice((0.0, 0.0, 0.001, 0.02, 0.04, 0.04))
        if dice < 0.001:  # a clock jumps, or a machine slept
            self.now_s += random.choice((-3.0, -0.5, 0.7, 5.0, 70.0, 1e5))
        elif dice < 0.002:
            self._offset_s += random.choice((-100.0, -0.3, 0.3, 2.0, 33.0, 1e4))
        if dice > 0.9 and self._recent:
            return random.choice(self._recent)
        late_s = random.choice((0.0, 0.0, 0.01, 0.05, 0.3, 2.0))
        time_s = (self.now_s + self._offset_s - late_s) % TIME_WRAP_S
        face: Face | NoFace = NoFace(time_s) if dice < 0.05 else self._faces[self._number % len(self._faces)]
        coded = Coded(self._number % SEQUENCE_WRAP, min(time_s, TIME_WRAP_S - 1e-6), face, True)
        if dice > 0.7:
            coded = self._spoiled(coded)
        self._recent.append(coded)
        del self._recent[:-32]
        return coded

    def _spoiled(self, coded: Coded) -> Coded:
        random = self._random
        kind, nasty = random.randrange(8), random.choice(NASTY)
        if kind == 0:
            return replace(coded, sequence=random.randrange(-2, 2 * SEQUENCE_WRAP))
        if kind == 1:
            return replace(coded, time_s=nasty)
        if kind == 2:
            return replace(coded, time_s=random.uniform(0, TIME_WRAP_S))
        face = coded.face
        if isinstance(face, NoFace):
            return coded
        if kind == 3:
            return replace(coded, face=replace(face, scale=nasty))
        if kind == 4:
            points = face.points.copy()
            points[random.randrange(478), random.randrange(3)] = nasty
            return replace(coded, face=replace(face, points=points))
        if kind == 5:
            return replace(coded, face=replace(face, points=face.points[: random.randrange(478)]))
        if kind == 6:
            rotation = face.rotation.copy()
            rotation[random.randrange(3), random.randrange(3)] = nasty
            return replace(coded, face=replace(face, rotation=rotation))
        return replace(coded, face=replace(face, translation=np.full(3, nasty, np.float32)))


def kept(jitter: Jitter) -> int:
    """Everything that it holds, counted."""
    return sum(len(held) for held in (jitter._kept, jitter._least, jitter._lags_s, jitter._gaps_s))


def check(jitter: Jitter, now_s: float) -> None:
    shown = jitter.at(now_s)
    assert 0 <= shown.delay_ms <= 2_000, shown
    assert 0 <= shown.gap_ms < math.inf, shown
    if isinstance(shown.face, Face):
        assert np.isfinite(shown.face.points).all()
        assert np.isfinite(shown.face.rotation).all()
        assert np.isfinite(shown.face.translation).all()
        assert shown.face.scale > 0
        assert shown.face.time_s == now_s
    assert len(jitter._kept) <= buffers.MAX_FRAMES
    assert kept(jitter) <= buffers.MAX_FRAMES + 1000


class IntoJitter:
    """Frames, and a look at every fourth."""

    def __init__(self, seed: int) -> None:
        self._storm, self._jitter = Storm(Random(seed)), Jitter()
        self._fed: Coded | None = None
        self._number = 0

    def feed(self) -> bool:
        self._number += 1
        self._fed = self._storm.next()
        taken = self._jitter.put(self._fed, self._storm.now_s)
        if self._number % 4 == 1:
            check(self._jitter, self._storm.now_s)
        return taken

    def last(self) -> str:
        return f"at {self._storm.now_s}: {self._fed}"


# --- either ---

TARGETS: dict[str, type[IntoDecoder] | type[IntoJitter]] = {"decoder": IntoDecoder, "jitter": IntoJitter}


def fuzz(name: str, count: int, seed: int) -> tuple[int, float]:
    """How many of `count` were of use, and the longest that one took, seconds of CPU."""
    target: Target = TARGETS[name](seed)
    taken, longest_s = 0, 0.0
    for number in range(count):
        started_s = time.thread_time()
        try:
            taken += target.feed()
        except BaseException:
            print(f"{name}, seed {seed}, number {number}: {target.last()}", flush=True)
            raise
        longest_s = max(longest_s, time.thread_time() - started_s)
    return taken, longest_s


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("count", type=int)
    parser.add_argument("--seed", type=int, default=1, help="of the first stretch; each other has the next")
    options = parser.parse_args()
    started_s, done, taken = time.perf_counter(), 0, 0
    seed = options.seed
    while done < options.count:
        count = min(STRETCH, options.count - done)
        found, longest_s = fuzz(options.target, count, seed)
        done, taken = done + count, taken + found
        passed_s = time.perf_counter() - started_s
        most_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(
            f"{options.target}, seed {seed}: {done} in {passed_s:.0f} s ({done / passed_s:.0f} a second), {taken} were "
            f"of use, the slowest of these took {1000 * longest_s:.1f} ms, never more than {most_mb:.0f} MB; no crash",
            flush=True,
        )
        seed += 1


if __name__ == "__main__":
    main()
