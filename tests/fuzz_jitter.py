"""Whatever may be decoded, into the jitter buffer: `python -m tests.fuzz_jitter 1000000` (how many, and a seed).

Frames come late, early, twice, mixed, from other clocks and other senders, with numbers that no face has, while both
clocks jump. Whatever comes, what is shown is a finite face, `NoFace` or nothing, and what is kept stays bounded.
"""

from __future__ import annotations

import argparse
import math
import resource
import time
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np

from engine.codec import SEQUENCE_WRAP, TIME_WRAP_S, Coded
from engine.frames import Face, NoFace
from plugin.jitter import MAX_FRAMES, Jitter
from plugin.render import read_faces

TALKING = Path(__file__).parents[1] / "plugin" / "assets" / "demo" / "talking.npz"
NASTY = (math.nan, math.inf, -math.inf, -1.0, 0.0, 1e-30, 1e30, TIME_WRAP_S, -1e-9)


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
    assert len(jitter._kept) <= MAX_FRAMES
    assert kept(jitter) <= MAX_FRAMES + 1000


def fuzz(count: int, seed: int) -> tuple[int, float]:
    """How many of `count` were taken, and the longest that one took with a look after it, seconds."""
    random = Random(seed)
    storm, jitter = Storm(random), Jitter()
    taken, longest_s = 0, 0.0
    for number in range(count):
        coded = storm.next()
        started_s = time.perf_counter()
        try:
            taken += jitter.put(coded, storm.now_s)
            if number % 4 == 0:
                check(jitter, storm.now_s)
        except BaseException:
            print(f"seed {seed}, number {number}, at {storm.now_s}: {coded}")
            raise
        longest_s = max(longest_s, time.perf_counter() - started_s)
    return taken, longest_s


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz_jitter", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("count", type=int)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    started_s = time.perf_counter()
    taken, longest_s = fuzz(options.count, options.seed)
    passed_s = time.perf_counter() - started_s
    most_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{options.count} frames in {passed_s:.0f} s ({options.count / passed_s:.0f} a second), {taken} were of use, "
        f"the slowest took {1000 * longest_s:.1f} ms, never more than {most_mb:.0f} MB; no crash"
    )


if __name__ == "__main__":
    main()
