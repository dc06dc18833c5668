"""What the line bears: the ladder goes down and up, and its lowest rung keeps within its budget."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from random import Random

import numpy as np
import pytest

from engine.codec import Coded, Decoder, Encoder, unwrap
from engine.frames import Face, NoFace
from engine.ladder import RUNGS, THIN, Ladder, Pace, Rung
from engine.motion import to_head
from plugin.jitter import Jitter
from plugin.render import read_faces

TALKING = Path(__file__).parents[1] / "plugin" / "assets" / "demo" / "talking.npz"
ROOM_S = 0.06
"""How often a voice packet leaves."""


@cache
def talking() -> list[Face]:
    return read_faces(TALKING)[0]


def lively() -> list[Face]:
    """The demo's performance at twice its speed, with a head that nods as fast as heads do."""
    faces = []
    for face in talking()[::2]:
        time_s = face.time_s / 2
        head = to_head(face)
        moved = replace(head, translation=head.translation + np.array([0, 12 * np.sin(25 * time_s), 0], np.float32))
        faces.append(replace(face, points=moved.to_picture(), translation=moved.translation, time_s=time_s))
    return faces


def said(faces: Sequence[Face | NoFace], rung: Rung, room_s: float = ROOM_S) -> tuple[list[tuple[float, bytes]], bytes]:
    """(moment, packet) of all that leaves, as the sender's loop does it; and the header."""
    encoder, pace, waiting = Encoder(neutral=talking()[0]), Pace(), list(faces)
    packets, now_s = [], faces[0].time_s
    while waiting:
        now_s += room_s
        come = [face for face in waiting if face.time_s <= now_s]
        most_bytes = pace.most_bytes(rung, now_s) if come else 0
        if not most_bytes:
            continue
        del waiting[: len(come)]
        chosen = pace.chosen(rung, come[-16:])
        encoder.quality = rung.quality
        packet = encoder.encode(chosen, most_bytes)
        pace.sent(rung, len(packet), chosen[-1].time_s, now_s)
        packets.append((now_s, packet))
    return packets, encoder.header()


def decoder_of(header: bytes) -> Decoder:
    decoder = Decoder()
    decoder.feed_header(header)
    return decoder


def off_percent(found: Face, wanted: Face) -> float:
    unit = np.linalg.norm(wanted.points[33, :2] - wanted.points[263, :2])
    return float(100 * np.linalg.norm((found.points - wanted.points)[:, :2], axis=1).mean() / unit)


# --- the ladder ---


def test_a_slow_line_leads_down_to_the_thinnest_face_and_a_good_one_up_again() -> None:
    ladder = Ladder(24.0)
    begun = ladder.voice_kbps
    assert ladder.rung is RUNGS[-1]
    for _ in range(10):
        ladder.learn(40.0, 0.0)
    assert ladder.voice_kbps > begun
    met = []
    for _ in range(12):
        ladder.learn(600.0, 0.0)
        met.append(RUNGS.index(ladder.rung))
    assert ladder.voice_kbps == 6 and ladder.rung is THIN
    assert met == sorted(met, reverse=True) and set(met) == {0, 1, 2}
    met = []
    for _ in range(200):
        ladder.learn(41.0, 0.01)
        met.append(RUNGS.index(ladder.rung))
    assert ladder.voice_kbps == 24 and met == sorted(met) and set(met) == set(range(len(RUNGS)))


def test_the_voice_gives_way_before_the_face_goes_thin() -> None:
    ladder = Ladder(24.0)
    for _ in range(100):
        ladder.learn(40.0, 0.0)
    assert ladder.voice_kbps == 24
    before = 24.0
    while ladder.rung is not THIN:
        before = ladder.voice_kbps
        ladder.learn(900.0, None)
    assert before == 6


def test_a_line_that_is_too_narrow_may_show_it_by_loss_alone() -> None:
    ladder = Ladder(24.0)
    ladder.learn(74.0, 0.3)
    ladder.learn(74.0, 0.3)
    assert ladder.rung is not THIN
    ladder.learn(74.0, 0.3)
    assert ladder.voice_kbps == 6 and ladder.rung is THIN
    for _ in range(8):
        ladder.learn(74.0, 0.05)
    assert ladder.rung is RUNGS[1]


def test_a_thin_face_that_was_asked_for_stays_thin() -> None:
    ladder = Ladder(24.0, "thin")
    for _ in range(200):
        ladder.learn(40.0, 0.0)
        assert ladder.rung is THIN
    assert ladder.voice_kbps == 24


def test_the_voice_grows_at_once_when_the_preview_is_through_on_a_quick_line() -> None:
    ladder = Ladder(8.0)
    ladder.learn(40.0, 0.0)
    ladder.begin()
    assert ladder.voice_kbps == 8.0


# --- the lowest rung ---


@pytest.mark.parametrize("room_s", [0.06, 0.1, 0.2])
@pytest.mark.parametrize("which", ["as recorded", "lively", "somebody comes and goes"])
def test_a_thin_face_is_at_most_1500_bits_in_every_second_of_ten(which: str, room_s: float) -> None:
    faces: list[Face | NoFace] = list(lively() if which == "lively" else talking())
    if which == "somebody comes and goes":
        faces = [NoFace(face.time_s) if number % 40 < 10 else face for number, face in enumerate(faces)]
    packets, _ = said(faces, THIN, room_s)
    times_s, bits = np.array([now_s for now_s, _ in packets]), np.array([8 * len(packet) for _, packet in packets])
    for start_s in times_s:
        window = (times_s >= start_s) & (times_s < start_s + 10)
        assert bits[window].sum() <= 15_000
    assert bits.sum() > 1000 * (faces[-1].time_s - faces[0].time_s) / 2, "a budget is there to be used"
    assert np.diff(times_s).min() > 0.1


def test_a_face_out_of_this_world_waits_for_its_bits() -> None:
    noise = np.random.default_rng(3).normal(0, 40, (100, 478, 3)).astype(np.float32)
    faces = [replace(face, points=face.points + off) for face, off in zip(talking()[:100], noise, strict=True)]
    packets, header = said(faces, THIN)
    span_s = faces[-1].time_s - faces[0].time_s
    assert 8 * sum(len(packet) for _, packet in packets) < 1500 * span_s + 1500
    decoder = decoder_of(header)
    assert all(len(decoder.decode(packet)) == 1 for _, packet in packets[1:])


def test_every_thin_packet_is_decoded_alone() -> None:
    packets, header = said(talking()[:150], THIN)
    whole = decoder_of(header)
    wanted = {packet: whole.decode(packet) for _, packet in packets}
    for number in np.random.default_rng(0).permutation(len(packets))[:12]:
        packet = packets[number][1]
        for alone, one in zip(decoder_of(header).decode(packet), wanted[packet], strict=True):
            assert isinstance(alone.face, Face) and isinstance(one.face, Face)
            assert np.array_equal(alone.face.points, one.face.points)


def shown(packets: list[tuple[float, bytes]], header: bytes, until_s: float) -> list[tuple[float, float]]:
    """(moment, error in %) of 60 pictures a second against the recording, 30 ms of line between."""
    decoder, jitter, faces = decoder_of(header), Jitter(), talking()
    times_s, off, at = [face.time_s for face in faces], [], 0
    coming: list[tuple[float, Coded]] = [(s + 0.03, one) for s, packet in packets for one in decoder.decode(packet)]
    for tick in range(int((until_s - times_s[0]) * 60)):
        now_s = times_s[0] + tick / 60
        while at < len(coming) and coming[at][0] <= now_s:
            jitter.put(coming[at][1], coming[at][0])
            at += 1
        drawn, sent_s = jitter.at(now_s), jitter.sender_s(now_s)
        if isinstance(drawn.face, Face) and sent_s is not None:
            sent_s = unwrap(sent_s, now_s, 65.536)
            off.append((now_s, off_percent(drawn.face, faces[int(np.argmin(np.abs(np.array(times_s) - sent_s)))])))
    return off


def test_what_is_shown_of_a_thin_face_moves_between_its_faces() -> None:
    packets, header = said(talking()[:200], THIN)
    assert len(packets) < 200 / 25 / 0.11
    off = np.array([error for _, error in shown(packets, header, talking()[199].time_s)[60:]])
    assert off.mean() < 2.0
    standing = [off_percent(talking()[number], talking()[number - number % 12]) for number in range(60, 200)]
    assert off.mean() < np.mean(standing) / 2


def test_a_thin_face_goes_on_when_every_fifth_packet_is_lost() -> None:
    packets, header = said(talking()[:200], THIN)
    random = Random(5)
    off = shown([one for one in packets if random.random() > 0.2], header, talking()[199].time_s)[60:]
    assert np.mean([error for _, error in off]) < 3.0
    assert max(after - before for (before, _), (after, _) in itertools.pairwise(off)) < 0.1


# --- which faces ---


@pytest.mark.parametrize("fps", [12, 15, 25, 30, 60])
def test_faces_are_chosen_evenly_and_the_newest_always(fps: int) -> None:
    pace, sent_s, waiting = Pace(), [], []
    for number in range(10 * fps):
        waiting.append(NoFace(number / fps))
        if pace.most_bytes(THIN, number / fps):
            chosen = pace.chosen(THIN, waiting)
            assert chosen[-1] is waiting[-1]
            pace.sent(THIN, 8, chosen[-1].time_s, number / fps)
            sent_s += [face.time_s for face in chosen]
            waiting = []
    gaps_s = np.diff(sent_s)
    assert gaps_s.min() > 0 and gaps_s.max() < max(0.1, 1.5 / fps)
    assert len(sent_s) / 10 < 19


def test_other_rungs_send_every_face_at_once() -> None:
    pace, faces = Pace(), [NoFace(0.0), NoFace(0.001), NoFace(0.5)]
    assert pace.chosen(RUNGS[1], faces) == faces
    pace.sent(RUNGS[1], 5000, 0.5, 0.5)
    assert pace.most_bytes(RUNGS[1], 0.5) >= 1000
    assert pace.most_bytes(THIN, 1.0) > 20, "what was sent before the line was slow is not held against it"
