"""Sound -> lips: in pieces as at once, causal within its delay, and sound of every kind says what it is."""

from __future__ import annotations

import wave
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from engine.factors import opening_of, shipped_anatomy
from engine.frames import Face
from engine.motion import HeadFace, to_head
from engine.voice_lips import BANDS, DELAY_S, RATE_HZ, LogMel, VoiceLips, read_voice

Floats = NDArray[np.float32]


def babble(seconds: float, rate_hz: int = RATE_HZ, seed: int = 0) -> Floats:
    """What has the rhythm of speech: a buzz through two formants that wander, four syllables a second."""
    time_s = np.arange(round(seconds * rate_hz)) / rate_hz
    buzz = sum(np.sin(2 * np.pi * 120 * k * time_s) / k for k in range(1, 25))
    noise = np.random.default_rng(seed).normal(0, 0.01, len(time_s))
    syllables = np.clip(np.sin(2 * np.pi * 4 * time_s), 0, 1) * (np.sin(2 * np.pi * 0.4 * time_s) > -0.5)
    return (0.2 * buzz * syllables + 0.05 * noise).astype(np.float32)


def write_wav(path: Path, sound: Floats, rate_hz: int = RATE_HZ, channels: int = 1) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate_hz)
        file.writeframes((np.repeat(sound, channels).clip(-1, 1) * 32767).astype("<i2").tobytes())
    return path


@pytest.fixture(scope="module")
def canvas(make_face: Callable[..., Face]) -> HeadFace:
    return to_head(make_face())


def openings(canvas: HeadFace, sound: Floats, chunk: int = 100_000) -> tuple[Floats, Floats]:
    lips = VoiceLips(canvas)
    found = [one for k in range(0, len(sound), chunk) for one in lips.feed(sound[k : k + chunk])]
    times = np.array([time_s for time_s, _ in found], np.float32)
    return times, np.array([opening_of(canvas.shape + one.lips) for _, one in found], np.float32)


# --- what is heard ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 37, 160, 1000])
def test_mel_in_pieces_is_the_mel_of_the_whole(chunk: int) -> None:
    sound = babble(0.5)
    whole = LogMel().feed(sound)
    mel = LogMel()
    pieces = np.concatenate([mel.feed(sound[k : k + chunk]) for k in range(0, len(sound), chunk)])
    assert whole.shape == (50, BANDS)
    assert np.allclose(pieces, whole, atol=1e-5)


def test_mel_hears_pitch_and_not_loudness() -> None:
    time_s = np.arange(RATE_HZ) / RATE_HZ
    low, high = (LogMel().feed(np.sin(2 * np.pi * hz * time_s).astype(np.float32))[-1] for hz in (300, 3000))
    assert int(low.argmax()) < 12 < 20 < int(high.argmax())
    loud, quiet = LogMel().feed(babble(1)), LogMel().feed(0.1 * babble(1))
    assert np.abs(loud[50:] - quiet[50:])[loud[50:] > -1].mean() < 0.15


# --- what is said -------------------------------------------------------------------------------------------


def test_lips_in_pieces_are_the_lips_of_the_whole(canvas: HeadFace) -> None:
    sound = babble(1.0)
    times, whole = openings(canvas, sound)
    _, pieces = openings(canvas, sound, 333)
    assert np.allclose(whole, pieces, atol=1e-4)
    assert np.allclose(times, np.arange(1, 26) * 0.04 - DELAY_S, atol=1e-5)


def test_nothing_beyond_the_delay_is_known(canvas: HeadFace) -> None:
    """What comes later than 120 ms after a moment has no say in it."""
    one = babble(1.0)
    other = one.copy()
    other[RATE_HZ // 2 :] = 0
    times, first = openings(canvas, one)
    _, second = openings(canvas, other)
    settled = times <= 0.5 - 0.12
    assert np.array_equal(first[settled], second[settled])
    assert not np.allclose(first[~settled], second[~settled], atol=1e-3), "and the sound is heard at all"


def test_a_voice_opens_the_mouth_and_silence_shuts_it(canvas: HeadFace) -> None:
    _, loud = openings(canvas, babble(4.0))
    _, quiet = openings(canvas, np.zeros(4 * RATE_HZ, np.float32))
    assert loud[25:].std() > 3 * quiet[25:].std()
    assert loud[25:].max() > quiet[25:].mean() + 0.2


def test_lips_never_cross(canvas: HeadFace) -> None:
    codes = np.array([-1.0, *[-3.0] * len(shipped_anatomy().rows)], np.float32)
    assert (VoiceLips(canvas).lips(codes).gaps >= 0).all()


# --- files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rate_hz", "channels"), [(8_000, 1), (16_000, 1), (44_100, 2), (48_000, 2)])
def test_any_rate_and_any_channels_become_the_same_voice(tmp_path: Path, rate_hz: int, channels: int) -> None:
    voice = read_voice(write_wav(tmp_path / "voice.wav", babble(1.0, rate_hz), rate_hz, channels))
    assert voice.seconds == pytest.approx(1.0, abs=0.01)
    straight = babble(1.0)
    level = float(np.abs(voice.samples).mean() / np.abs(straight).mean())
    assert 0.7 < level < 1.2
    assert bool(voice.notes) == (rate_hz == 8_000)
    if voice.notes:
        assert "8 kHz" in voice.notes[0]


def test_silent_and_clipped_sound_says_so(tmp_path: Path) -> None:
    silent = read_voice(write_wav(tmp_path / "silent.wav", np.zeros(8000, np.float32)))
    assert "is silent" in silent.notes[0]
    clipped = read_voice(write_wav(tmp_path / "loud.wav", 20 * babble(1.0)))
    assert "is clipped" in clipped.notes[0]
    assert read_voice(write_wav(tmp_path / "good.wav", babble(1.0))).notes == []


def test_what_is_no_sound_is_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no file .*nowhere\.wav"):
        read_voice(tmp_path / "nowhere.wav")
    letter = tmp_path / "letter.wav"
    letter.write_text("Dear all, ...")
    with pytest.raises(ValueError, match=r"letter\.wav is no sound that can be read"):
        read_voice(letter)
    empty = write_wav(tmp_path / "empty.wav", np.zeros(0, np.float32))
    with pytest.raises(ValueError, match=r"empty\.wav"):
        read_voice(empty)
