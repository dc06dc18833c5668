"""Opus packets taken apart and put together, and faces that ride in them."""

from __future__ import annotations

import numpy as np
import pytest
from av import AudioFrame, CodecContext, Packet
from av.audio.codeccontext import AudioCodecContext
from hypothesis import given, settings
from hypothesis import strategies as st

from plugin.routes import MAX_RIDER_BYTES, SILENCE, Opus, Rider, dismount, frame_ms, join, mount, split
from plugin.voice import OpusEncoder

# Every code of RFC 6716, 3.2, by hand: a packet, and what is in it. SILK wide band 20 ms, mono: configuration 9.
TOC = 9 << 3
EXAMPLES = {
    "code 0, one frame": (bytes([TOC]) + b"abc", Opus(TOC, (b"abc",))),
    "code 0, no sound": (bytes([TOC]), Opus(TOC, (b"",))),
    "code 1, two of one size": (bytes([TOC | 1]) + b"abcd", Opus(TOC, (b"ab", b"cd"))),
    "code 2, two sizes": (bytes([TOC | 2, 1]) + b"abcd", Opus(TOC, (b"a", b"bcd"))),
    "code 2, a size in two bytes": (bytes([TOC | 2, 253, 1]) + bytes(300), Opus(TOC, (bytes(257), bytes(43)))),
    "code 3, three of one size": (bytes([TOC | 3, 3]) + b"abcdef", Opus(TOC, (b"ab", b"cd", b"ef"))),
    "code 3, three sizes": (bytes([TOC | 3, 0x83, 1, 2]) + b"abbccc", Opus(TOC, (b"a", b"bb", b"ccc"))),
    "code 3, padded": (bytes([TOC | 3, 0x41, 2]) + b"abcPP", Opus(TOC, (b"abc",), b"PP")),
    "code 3, padded by 254": (bytes([TOC | 3, 0x41, 254]) + b"a" + bytes(254), Opus(TOC, (b"a",), bytes(254))),
    "code 3, padded by 255": (bytes([TOC | 3, 0x41, 255, 1]) + b"a" + bytes(255), Opus(TOC, (b"a",), bytes(255))),
    "code 3, padded, sizes": (bytes([TOC | 3, 0xC2, 1, 1]) + b"abbP", Opus(TOC, (b"a", b"bb"), b"P")),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_code_is_read(name: str) -> None:
    packet, opus = EXAMPLES[name]
    assert split(packet) == opus
    assert split(join(opus)) == opus


@pytest.mark.parametrize(
    "packet",
    [
        b"",
        bytes([TOC | 1]) + b"abc",
        bytes([TOC | 2]),
        bytes([TOC | 2, 9]) + b"ab",
        bytes([TOC | 2, 255]),
        bytes([TOC | 3]),
        bytes([TOC | 3, 0]),
        bytes([TOC | 3, 63]) + bytes(63),
        bytes([TOC | 3, 0x41]),
        bytes([TOC | 3, 0x41, 255, 255]),
        bytes([TOC | 3, 0x41, 9]) + b"ab",
        bytes([TOC | 3, 2]) + b"abc",
        bytes([TOC]) + bytes(1276),
        bytes([11 << 3 | 3, 3]) + bytes(3),
    ],
)
def test_what_is_no_opus_packet_is_refused(packet: bytes) -> None:
    with pytest.raises(ValueError, match="Opus"):
        split(packet)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400))
def test_bytes_of_any_kind_are_read_or_refused(packet: bytes) -> None:
    try:
        opus = split(packet)
    except ValueError:
        return
    assert split(join(opus)) == opus
    dismount(opus)


def test_duration_is_that_of_the_table() -> None:
    assert [frame_ms(number << 3) for number in (0, 3, 9, 12, 13, 16, 19, 31)] == [10, 60, 20, 10, 20, 2.5, 20, 20]
    assert SILENCE.duration_ms == 20 and SILENCE.silent


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.binary(max_size=80), min_size=1, max_size=3),
    st.binary(max_size=MAX_RIDER_BYTES),
    st.none() | st.integers(0, 2**32 - 1),
)
def test_a_rider_arrives_as_it_left_and_the_sound_too(frames: list[bytes], face: bytes, clock: int | None) -> None:
    opus = Opus(TOC, tuple(frames))
    arrived = split(mount(opus, Rider(face, clock)))
    assert dismount(arrived) == Rider(face, clock)
    assert arrived.frames == opus.frames


def test_what_a_face_costs_beside_a_voice() -> None:
    """A byte for the frame count, one for the padding's size, two to tell that it is one."""
    voice = Opus(11 << 3, (bytes(range(70)),))
    assert len(mount(voice, Rider(bytes(25)))) - len(join(voice)) == 25 + 4
    assert mount(voice, Rider(b"")) == join(voice)


def test_padding_that_is_not_ours_is_no_face() -> None:
    for padding in (b"", b"\0", bytes(40), b"\xfa", b"\xfaface", b"\0\xf9face", b"\0\xfbabc", b"\xfd\0DRED"):
        assert dismount(Opus(TOC, (b"a",), padding)) == Rider(b"")


def test_too_much_for_one_packet_is_refused() -> None:
    with pytest.raises(ValueError, match="1001"):
        mount(SILENCE, Rider(bytes(MAX_RIDER_BYTES + 1)))


def sound(samples: int) -> AudioFrame:
    seconds = np.arange(samples) / 48000
    wave = (8000 * np.sin(2 * np.pi * (200 + 300 * seconds) * seconds)).astype(np.int16)
    frame = AudioFrame.from_ndarray(wave[None], format="s16", layout="mono")
    frame.sample_rate, frame.pts = 48000, 0
    return frame


def decoded(packets: list[bytes], name: str) -> np.ndarray:
    codec = CodecContext.create(name, "r")
    assert isinstance(codec, AudioCodecContext)
    codec.layout, codec.sample_rate = "mono", 48000
    out = []
    for packet in packets:
        out += [frame.to_ndarray().reshape(-1).astype(np.float64) for frame in codec.decode(Packet(packet))]
    return np.concatenate(out)


@pytest.mark.parametrize("decoder", ["libopus", "opus"])
@pytest.mark.parametrize("packet_ms", [20, 40, 60])
def test_two_decoders_hear_the_same_with_and_without_a_face(decoder: str, packet_ms: int) -> None:
    """libopus and FFmpeg's own, which share no code."""
    made = [opus for opus, _ in OpusEncoder(packet_ms, 12).encode(sound(48000))]
    assert len(made) >= 900 / packet_ms
    plain = decoded([join(opus) for opus in made], decoder)
    rng = np.random.default_rng(0)
    faces = [rng.bytes(int(size)) for size in rng.integers(1, 400, len(made))]
    ridden = decoded([mount(opus, Rider(face, 7)) for opus, face in zip(made, faces, strict=True)], decoder)
    np.testing.assert_array_equal(plain, ridden)
    assert np.abs(plain).max() > 0


@pytest.mark.parametrize("decoder", ["libopus", "opus"])
def test_a_face_without_a_voice_is_silence(decoder: str) -> None:
    heard = decoded([mount(SILENCE, Rider(bytes(range(1, 60)))) for _ in range(10)], decoder)
    assert heard.size >= 9 * 960 and np.abs(heard).max() == 0


def test_voice_packets_are_of_the_asked_length_and_rate() -> None:
    encoder = OpusEncoder(60, 10)
    made = [opus for start in range(5) for opus, _ in encoder.encode(sound(48000))]
    assert {opus.duration_ms for opus in made} == {60}
    kbps = sum(len(join(opus)) for opus in made) * 8 / (len(made) * 60)
    assert 5 < kbps < 12
    with pytest.raises(ValueError, match="6 to 64"):
        encoder.kbps = 3
