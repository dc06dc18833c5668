"""The landmark codec: what goes in comes out, alone, in few bytes, and nothing else does."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from engine import geometry
from engine.codec import (
    COUNT_BITS,
    COUNTS,
    LEVEL_LIMIT,
    MAX_FRAMES,
    MAX_PACKET_BYTES,
    MODES,
    POSE,
    QUALITIES,
    SAME,
    SEEN,
    SEQUENCE_WRAP,
    TIME_WRAP_S,
    VERSION,
    CodecError,
    Coded,
    Decoder,
    Encoder,
    Symbols,
    Unpacker,
    frame_order,
    mode_of,
    parameters,
    shipped_basis,
    shipped_coder,
    unwrap,
)
from engine.frames import POINT_COUNT, Face, NoFace
from engine.motion import to_head
from plugin.render import read_faces
from tests import fuzz

ROOT = Path(__file__).parents[1]
KEPT = [1, 13, 159, 468]
"""The points that the golden file keeps."""
GOLDEN = Path(__file__).parent / "golden" / "face_stream.json"


@cache
def talking() -> list[Face]:
    return read_faces(ROOT / "plugin" / "assets" / "demo" / "talking.npz")[0]


def error_percent(found: Face, wanted: Face, members: Sequence[int] | slice = slice(None)) -> float:
    """Mean distance in the picture, % of the distance between the outer eye corners."""
    unit = np.linalg.norm(wanted.points[33, :2] - wanted.points[263, :2])
    apart = np.linalg.norm(found.points[:, :2] - wanted.points[:, :2], axis=1)
    return float(100 * apart[members].mean() / unit)


def pair(quality: int = QUALITIES - 1, faces: Sequence[Face] = ()) -> tuple[Encoder, Decoder]:
    """Two ends that have the header."""
    encoder, decoder = Encoder(quality, neutral=(faces or talking())[0]), Decoder()
    decoder.feed_header(encoder.header())
    return encoder, decoder


def face_of(coded: Coded) -> Face:
    assert isinstance(coded.face, Face)
    return coded.face


# --- a face comes back ---


def test_a_face_comes_back() -> None:
    faces = talking()[:5]
    encoder, decoder = Encoder(), Decoder()
    packet = encoder.encode(faces)
    decoder.feed_header(encoder.header())
    coded = decoder.decode(packet)
    assert [one.sequence for one in coded] == [0, 1, 2, 3, 4]
    for face, one in zip(faces, coded, strict=True):
        found = face_of(one)
        assert error_percent(found, face) < 1.0
        assert found.size_px == face.size_px
        assert one.time_s == found.time_s == pytest.approx(face.time_s, abs=6e-4)
        assert one.header_known


@pytest.mark.parametrize("quality", range(QUALITIES))
def test_pose_and_points_belong_together(quality: int) -> None:
    encoder, decoder = pair(quality)
    for face, coded in zip(talking()[:6], decoder.decode(encoder.encode(talking()[:6])), strict=True):
        found = face_of(coded)
        assert np.allclose(found.rotation @ found.rotation.T, np.eye(3), atol=1e-5)
        turn = (np.trace(found.rotation @ face.rotation.T) - 1) / 2
        assert np.degrees(np.arccos(np.clip(turn, -1, 1))) < 0.6 * 2.43
        rigid = found.scale * shipped_basis().mean @ found.rotation.T + found.translation
        assert error_percent(replace(found, points=rigid), found) < 15


def test_better_quality_is_nearer_and_larger() -> None:
    faces = talking()[:40]
    off, size = [], []
    for quality in range(QUALITIES):
        encoder, decoder = pair(quality)
        packets = [encoder.encode(faces[start : start + 4]) for start in range(0, 40, 4)]
        coded = [one for packet in packets for one in decoder.decode(packet)]
        off.append(np.mean([error_percent(face_of(one), face) for one, face in zip(coded, faces, strict=True)]))
        size.append(sum(map(len, packets)))
    assert off == sorted(off, reverse=True)
    assert size == sorted(size)
    assert size[-1] > 2 * size[0]


def test_lips_and_lids_are_the_last_to_suffer() -> None:
    """At the worst quality lids are as near to the truth as the whole, and lips keep more of their movement."""
    faces = talking()[:160:2]
    encoder, decoder = pair(quality=0)
    coded = [one for start in range(0, 80, 2) for one in decoder.decode(encoder.encode(faces[start : start + 2]))]
    wanted = np.stack([to_head(face).shape for face in faces])
    off = np.stack([to_head(face_of(one)).shape for one in coded]) - wanted
    moved = wanted - wanted.mean(axis=0)

    def lost(members: list[int]) -> float:
        return float(np.linalg.norm(off[:, members, :2]) / np.linalg.norm(moved[:, members, :2]))

    mouth, eyes = geometry.LIPS_OUTER + geometry.LIPS_INNER, geometry.EYE_RIGHT + geometry.EYE_LEFT
    rest = sorted(set(range(POINT_COUNT - 10)) - {*mouth, *eyes, *geometry.MOUTH_ZONE, *geometry.EYES_ZONE})
    apart = np.linalg.norm(off[..., :2], axis=-1)
    assert lost(mouth) < 0.75 * lost(rest)
    assert apart[:, eyes].mean() < 1.05 * apart[:, rest].mean()


def test_25_faces_a_second_are_3_kilobits() -> None:
    faces = talking()
    encoder = Encoder()
    sent = sum(len(encoder.encode(faces[start : start + 2])) for start in range(0, len(faces) - 1, 2))
    assert sent * 8 / (len(faces) / 25) < 3500


@pytest.mark.parametrize("most_bytes", [12, 16, 20, 25, 40])
def test_a_packet_keeps_within_its_bytes(most_bytes: int) -> None:
    """By a coarser quality, and where the coarsest is too large, by fewer faces: the newest."""
    encoder, decoder = pair(QUALITIES - 1)
    faces = talking()[40:44]
    packet = encoder.encode(faces, most_bytes)
    coded = decoder.decode(packet)
    assert len(packet) <= most_bytes or (len(coded) == 1 and packet[0] >> 3 & 7 == 0)
    assert len(packet) > most_bytes - 12
    assert coded[-1].time_s == pytest.approx(faces[-1].time_s, abs=6e-4)
    (after,) = decoder.decode(encoder.encode(faces[-1:]))
    assert after.sequence == len(coded), "what was tried and not sent is not counted"


def test_nobody_costs_next_to_nothing() -> None:
    encoder, decoder = Encoder(), Decoder()
    packet = encoder.encode([NoFace(0.04 * k) for k in range(MAX_FRAMES)])
    assert len(packet) <= 8
    assert encoder.header_id == 0
    coded = decoder.decode(packet)
    assert all(isinstance(one.face, NoFace) for one in coded)
    assert coded[-1].time_s == pytest.approx(0.6)
    with pytest.raises(ValueError, match="no header yet"):
        encoder.header()


@pytest.mark.parametrize("absent", [(0,), (1,), (3,), (0, 1), (1, 2), (0, 3), (0, 1, 3)])
def test_faces_that_come_and_go(absent: tuple[int, ...]) -> None:
    faces = [NoFace(one.time_s) if k in absent else one for k, one in enumerate(talking()[:4])]
    encoder, decoder = pair()
    for wanted, coded in zip(faces, decoder.decode(encoder.encode(faces)), strict=True):
        assert type(coded.face) is type(wanted)
        if isinstance(wanted, Face) and isinstance(coded.face, Face):
            assert error_percent(coded.face, wanted) < 1.0


@pytest.mark.parametrize("visibility", [0.0, 0.3, 0.55, 1.0])
def test_visibility_is_told(visibility: float) -> None:
    encoder, decoder = pair()
    (coded,) = decoder.decode(encoder.encode([replace(talking()[0], visibility=visibility)]))
    assert face_of(coded).visibility == pytest.approx(visibility, abs=1 / 28 + 1e-6)


@given(
    st.lists(st.integers(0, 2000), min_size=0, max_size=MAX_FRAMES - 1),
    st.integers(0, 10**9),
)
@settings(max_examples=40, deadline=None)
def test_times_are_kept_to_the_millisecond(intervals_ms: list[int], start_ms: int) -> None:
    times_ms = [start_ms + sum(intervals_ms[:k]) for k in range(len(intervals_ms) + 1)]
    packet = Encoder().encode([NoFace(time_ms / 1000) for time_ms in times_ms])
    for coded, time_ms in zip(Decoder().decode(packet), times_ms, strict=True):
        near_s = time_ms / 1000 + 20
        assert unwrap(coded.time_s, near_s, TIME_WRAP_S) == pytest.approx(time_ms / 1000, abs=1e-6)


def test_unwrap() -> None:
    assert unwrap(3, 255, SEQUENCE_WRAP) == 259
    assert unwrap(250, 258, SEQUENCE_WRAP) == 250
    assert unwrap(1.0, 1000.0, TIME_WRAP_S) == pytest.approx(1.0 + 15 * TIME_WRAP_S)


def test_sequence_numbers_count_frames() -> None:
    encoder, decoder = pair()
    numbers = [one.sequence for _ in range(20) for one in decoder.decode(encoder.encode([NoFace(0.0)] * MAX_FRAMES))]
    assert numbers == [k % SEQUENCE_WRAP for k in range(20 * MAX_FRAMES)]


@pytest.mark.parametrize("turned", ["far", "behind", "small", "large", "elsewhere", "distorted"])
def test_faces_that_no_clip_showed(turned: str) -> None:
    face = talking()[0]
    points, rotation, translation, scale = face.points, face.rotation, face.translation, face.scale
    if turned in ("far", "behind"):
        angle = 1.2 if turned == "far" else np.pi - 1e-3
        about_y = np.array([[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]])
        points, rotation = (points - translation) @ about_y.T + translation, about_y @ rotation
    elif turned in ("small", "large"):
        by = 0.1 if turned == "small" else 8.0
        points, scale = (points - translation) * by + translation, scale * by
    elif turned == "elsewhere":
        points, translation = points + np.array([1700, -900, 0]), translation + np.array([1700, -900, 0])
    else:
        points = points + np.random.default_rng(1).normal(0, 40, points.shape)
    strange = replace(
        face,
        points=points.astype(np.float32),
        rotation=rotation.astype(np.float32),
        translation=translation.astype(np.float32),
        scale=scale,
    )
    encoder, decoder = pair()
    first, second = decoder.decode(encoder.encode([strange, replace(strange, time_s=face.time_s + 0.04)]))
    assert np.isfinite(face_of(first).points).all()
    if turned != "distorted":
        assert error_percent(face_of(first), strange) < 1.0
        assert error_percent(face_of(second), strange) < 1.0


# --- packets stand alone ---


def test_every_packet_is_decoded_alone() -> None:
    faces = talking()[:60]
    encoder, in_order = pair()
    packets = [encoder.encode(faces[start : start + 3]) for start in range(0, 60, 3)]
    wanted = [in_order.decode(packet) for packet in packets]
    for number in np.random.default_rng(0).permutation(len(packets))[:10]:
        late = Decoder()
        late.feed_header(encoder.header())
        for one, other in zip(late.decode(packets[number]), wanted[number], strict=True):
            assert one.sequence == other.sequence
            assert np.array_equal(face_of(one).points, face_of(other).points)


def test_without_the_header_there_is_a_face_that_says_so() -> None:
    encoder = Encoder()
    packet = encoder.encode(talking()[:2])
    decoder = Decoder()
    assert decoder.neutral is None
    first, _ = decoder.decode(packet)
    assert not first.header_known
    assert np.isfinite(face_of(first).points).all()
    decoder.feed_header(encoder.header())
    first, _ = decoder.decode(packet)
    assert first.header_known
    assert error_percent(face_of(first), talking()[0]) < 1.0


def test_the_header_is_the_neutral_face() -> None:
    encoder, decoder = pair()
    assert decoder.neutral is not None
    assert error_percent(decoder.neutral, talking()[0]) < 0.5
    assert decoder.neutral.size_px == talking()[0].size_px
    assert len(encoder.header()) < 400


def test_a_better_neutral_face_becomes_a_header_and_nothing_jumps() -> None:
    faces = talking()[80:] + [replace(face, time_s=face.time_s + 60) for face in talking()]
    encoder, decoder = Encoder(QUALITIES - 1), Decoder()
    known, numbers, used = 0, [], []
    for start in range(0, len(faces) - 1, 2):
        packet = encoder.encode(faces[start : start + 2])
        if encoder.header_id != known:
            known = encoder.header_id
            decoder.feed_header(encoder.header())
            numbers.append((known, faces[start].time_s))
        for one, face in zip(decoder.decode(packet), faces[start : start + 2], strict=True):
            assert one.header_known
            assert error_percent(face_of(one), face) < 1.0
        used.append((packet[0] & 7, faces[start].time_s))
    assert len(numbers) > 1
    assert np.diff([time_s for _, time_s in numbers]).min() >= 2.0
    for number, offered_s in numbers[1:]:
        assert min(time_s for used_number, time_s in used if used_number == number) >= offered_s + 2.0


def test_another_camera_is_another_header() -> None:
    encoder, decoder = Encoder(), Decoder()
    encoder.encode(talking()[:1])
    before = encoder.header_id
    packet = encoder.encode([replace(talking()[1], size_px=(1280, 720))])
    assert encoder.header_id != before
    decoder.feed_header(encoder.header())
    (coded,) = decoder.decode(packet)
    assert face_of(coded).size_px == (1280, 720)


def test_somebody_else_sits_down() -> None:
    wider = np.array([1.15, 0.9, 1.0], np.float32)
    other: list[Face] = []
    for face in talking()[:125]:
        head = to_head(face)
        head = replace(head, shape=head.shape * wider)
        other.append(replace(face, points=head.to_picture(), time_s=face.time_s + 10))
    encoder, decoder = Encoder(QUALITIES - 1), Decoder()
    known, errors = 0, []
    for face in talking()[:50] + other:
        packet = encoder.encode([face])
        if encoder.header_id != known:
            known = encoder.header_id
            decoder.feed_header(encoder.header())
        errors.append(error_percent(face_of(decoder.decode(packet)[0]), face))
    assert np.mean(errors[50:60]) > 1.0
    assert np.mean(errors[-10:]) < 0.6


def test_a_first_face_out_of_this_world() -> None:
    noise = np.random.default_rng(2).normal(0, 3000, (POINT_COUNT, 3)).astype(np.float32)
    encoder, decoder = Encoder(), Decoder()
    packet = encoder.encode([replace(talking()[0], points=talking()[0].points + noise)] * MAX_FRAMES)
    assert len(packet) <= MAX_PACKET_BYTES
    decoder.feed_header(encoder.header())
    assert len(decoder.decode(packet)) == MAX_FRAMES


# --- bytes ---


def golden() -> dict[str, str]:
    return json.loads(GOLDEN.read_text(encoding="utf-8"))


def test_golden_bytes_are_read_as_ever() -> None:
    """Made by `python -m tests.test_codec`, anew only with a new version of the format or another basis."""
    kept = golden()
    assert shipped_basis().sha256.hex() == kept["basis"], "a new basis needs new golden bytes"
    decoder = Decoder()
    decoder.feed_header(bytes.fromhex(kept["header"]))
    coded = decoder.decode(bytes.fromhex(kept["packet"]))
    told = json.loads(kept["told"])
    assert [[one.sequence, round(one.time_s * 1000)] for one in coded] == told["frames"]
    assert [isinstance(one.face, Face) for one in coded] == told["faces"]
    points = np.array([one.face.points[KEPT] for one in coded if isinstance(one.face, Face)])
    assert np.allclose(points, told["points"], atol=2e-3)


def test_golden_bytes_are_written_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever levels an encoder chooses, of the same levels every machine makes the same packet."""
    kept = golden()
    decoder, encoder = Decoder(), Encoder(bytes.fromhex(kept["packet"])[0] >> 3 & 7)
    decoder.feed_header(bytes.fromhex(kept["header"]))
    coded = decoder.decode(bytes.fromhex(kept["packet"]))
    encoder._now = encoder._next = decoder._headers[bytes.fromhex(kept["header"])[1]]
    encoder._pinned, encoder._sequence = decoder.neutral, coded[0].sequence
    grid = shipped_basis().steps[encoder.quality]

    def on_the_grid(seen: list[Face], quality: int) -> NDArray[np.int64]:
        return np.rint(parameters(seen, encoder._now.neutral, plain) / grid).astype(np.int64)

    plain = shipped_basis().analysis(shipped_basis().expression, shipped_basis().weights_xyz)
    monkeypatch.setattr(encoder, "_quantised", on_the_grid)
    assert encoder.encode([one.face for one in coded]).hex() == kept["packet"]


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_any_levels_survive(data: st.DataObject) -> None:
    coder, count = shipped_coder(), data.draw(st.integers(0, MAX_FRAMES))
    quality, spread = data.draw(st.integers(0, QUALITIES - 1)), data.draw(st.sampled_from([1, 30, 2000, LEVEL_LIMIT]))
    drawn = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    levels = drawn.integers(-spread, spread + 1, (count, shipped_basis().parameter_count))
    symbols = Symbols()
    coder.put(symbols, levels, quality)
    unpacker = Unpacker(symbols.integer(1 << 24))
    assert np.array_equal(coder.get(unpacker, count, quality), levels)
    assert unpacker.state == 1 << 24


def test_tables_are_distributions() -> None:
    basis = shipped_basis()
    for row, reach in zip(basis.counts.astype(int), basis.reach, strict=True):
        used = row[: 2 * int(reach) + 3]
        assert used[0] == 0
        assert used[-1] == 1 << COUNT_BITS
        assert (np.diff(used) > 0).all()
    for counts, symbols in ((COUNTS, MAX_FRAMES), (SEEN, 16), (SAME, 2)):
        assert len(counts) == symbols + 1
        assert counts[0] == 0
        assert counts[-1] == 1 << COUNT_BITS
        assert (np.diff(counts) > 0).all()
    assert basis.models.shape == (QUALITIES, MODES, basis.parameter_count)
    assert basis.models.max() < len(basis.counts)
    assert basis.parameter_count == POSE + len(basis.expression)


@pytest.mark.parametrize("count", range(1, MAX_FRAMES + 1))
def test_the_order_of_frames_is_whole_and_causal(count: int) -> None:
    known: set[int] = set()
    for frame, a, b in frame_order(count):
        assert {a, b} - {-1} <= known
        assert 0 <= mode_of((frame, a, b)) < MODES
        assert a < frame
        assert b == -1 or frame < b
        known.add(frame)
    assert known == set(range(count))


# --- what is refused ---


def test_what_the_encoder_refuses() -> None:
    encoder, face = Encoder(), talking()[0]
    with pytest.raises(ValueError, match="1 to 16 frames"):
        encoder.encode([])
    with pytest.raises(ValueError, match="1 to 16 frames"):
        encoder.encode([face] * 17)
    with pytest.raises(ValueError, match="must grow"):
        encoder.encode([face, replace(face, time_s=face.time_s - 1)])
    with pytest.raises(ValueError, match="must grow"):
        encoder.encode([face, replace(face, time_s=face.time_s + 40)])
    with pytest.raises(ValueError, match="no face has"):
        encoder.encode([replace(face, points=face.points * np.float32(np.nan))])
    with pytest.raises(ValueError, match="no face has"):
        encoder.encode([replace(face, translation=np.array([np.inf, 0, 0], np.float32))])
    with pytest.raises(ValueError, match="no face has"):
        encoder.encode([replace(face, scale=0.0)])
    encoder.quality = QUALITIES
    with pytest.raises(ValueError, match="quality"):
        encoder.encode([face])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda packet: b"", "0 bytes"),
        (lambda packet: packet[:1], "1 bytes"),
        (lambda packet: bytes([packet[0] ^ 0xC0]) + packet[1:], "another version"),
        (lambda packet: packet[:1] + b"\0" + packet[1:], "damaged"),
        (lambda packet: packet[:-1], "damaged"),
        (lambda packet: packet + b"\0", "damaged"),
        (lambda packet: packet[:1] + b"\xff" * MAX_PACKET_BYTES, "bytes are no packet"),
    ],
)
def test_what_the_decoder_refuses(change: Callable[[bytes], bytes], says: str) -> None:
    encoder, decoder = pair()
    packet = encoder.encode(talking()[:3])
    with pytest.raises(CodecError, match=says):
        decoder.decode(change(packet))
    assert len(decoder.decode(packet)) == 3


def test_levels_beyond_the_limit_are_refused() -> None:
    decoder = Decoder()
    symbols = Symbols()
    symbols.put(0, COUNTS)
    symbols.put(15, SEEN)
    tables = shipped_coder().rows[3][0]
    symbols.put_differences([2 * LEVEL_LIMIT, *[0] * (len(tables) - 1)], tables)
    state = symbols.integer(1 << 24)
    with pytest.raises(CodecError, match="too large"):
        decoder.decode(bytes([VERSION << 6 | 3 << 3]) + state.to_bytes((state.bit_length() + 7) // 8, "big"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda header: b"", "no header"),
        (lambda header: header[:20], "no header"),
        (lambda header: bytes([VERSION + 1]) + header[1:], "update Understudy"),
        (lambda header: header[:2] + b"\0\0\0\0" + header[6:], "another basis"),
        (lambda header: header[:1] + b"\x09" + header[2:], "damaged"),
        (lambda header: header[:6] + b"\0\0" + header[8:], "damaged"),
        (lambda header: header[:-1], "damaged"),
        (lambda header: header[:40] + bytes([header[40] ^ 4]) + header[41:], "damaged"),
        (lambda header: header + b"\0" * 9000, "no header"),
    ],
)
def test_headers_that_are_refused_change_nothing(change: Callable[[bytes], bytes], says: str) -> None:
    encoder, decoder = pair()
    packet, before = encoder.encode(talking()[:1]), decoder.neutral
    with pytest.raises(CodecError, match=says):
        decoder.feed_header(change(encoder.header()))
    assert before is not None
    assert decoder.neutral is not None
    assert np.array_equal(decoder.neutral.points, before.points)
    assert decoder.decode(packet)[0].header_known


def test_a_few_thousand_damaged_packets() -> None:
    taken, _ = fuzz.fuzz("decoder", 3000, seed=7)
    assert 0 < taken < 600


@given(st.binary(max_size=80))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_a_packet_or_refused(content: bytes) -> None:
    fuzz.check_packet(one_decoder(), content)


@cache
def one_decoder() -> Decoder:
    return Decoder()


def main() -> None:
    """Makes the golden bytes."""
    faces: list[Face | NoFace] = [*talking()[30:34], NoFace(talking()[34].time_s), *talking()[35:37]]
    encoder, decoder = Encoder(neutral=talking()[0]), Decoder()
    decoder.feed_header(encoder.header())
    encoder.encode(talking()[:3])
    packet = encoder.encode(faces)
    coded = decoder.decode(packet)
    told = {
        "frames": [[one.sequence, round(one.time_s * 1000)] for one in coded],
        "faces": [isinstance(one.face, Face) for one in coded],
        "points": [
            face_of(one).points[[1, 13, 159, 468]].astype(float).round(3).tolist()
            for one in coded
            if isinstance(one.face, Face)
        ],
    }
    kept = {"basis": shipped_basis().sha256.hex(), "header": encoder.header().hex(), "packet": packet.hex()}
    GOLDEN.write_text(json.dumps(kept | {"told": json.dumps(told)}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
