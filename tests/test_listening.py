"""The live loop's ear: any sound becomes codes in time, noise and silence move nothing, and faults are sentences."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from engine.voice_lips import DELAY_S, RATE_HZ, VoiceCodes
from plugin.listening import (
    DEAF_S,
    LATE_S,
    Ear,
    FileMicrophone,
    Gate,
    Heard,
    Microphone,
    MicrophoneLostError,
)
from tests.test_voice_lips import babble, write_wav

Floats = NDArray[np.float32]
STEP = 640


def listened(sound: Floats, rate_hz: int = RATE_HZ, piece_s: float = 0.01, latency_s: float = 0.0) -> list[Any]:
    """What an ear says after each piece: the clock is that of the sound, later by the device's latency."""
    ear, piece = Ear(), round(piece_s * rate_hz)
    told = []
    for end in range(piece, len(sound) + 1, piece):
        ear.hear(Heard(sound[end - piece : end], rate_hz, end / rate_hz))
        told.append(ear.at(end / rate_hz + latency_s))
    return told


def openings(told: list[Any]) -> Floats:
    return np.array([one[1][0] for one in told if one is not None], np.float32)


# --- in time ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("piece_s", [0.01, 0.02, 0.005])
def test_lips_are_at_most_120_ms_behind_the_sound(piece_s: float) -> None:
    """Counted in samples: after each piece, what is shown is what the network says of no more than 120 ms ago."""
    sound = babble(1.5)
    gate, codes = Gate(), VoiceCodes()
    said: list[tuple[float, Floats]] = []
    for k in range(0, len(sound) - STEP + 1, STEP):
        share = np.float32(gate(sound[k : k + STEP]))
        said += [(moment_s, share * one) for moment_s, one in codes.feed(sound[k : k + STEP])]
    times, wanted = np.array([at for at, _ in said]), np.stack([one for _, one in said])
    behind = []
    for number, told in enumerate(listened(sound, piece_s=piece_s), 1):
        now_s = number * piece_s
        if now_s < 0.3:
            continue
        assert told is not None
        moment_s, found = told
        behind.append(now_s - moment_s)
        expected = [np.interp(moment_s, times, wanted[:, k]) for k in range(wanted.shape[1])]
        assert np.allclose(found, expected, atol=1e-3)
    assert max(behind) <= 0.12 + 1e-6
    assert min(behind) >= LATE_S - 1e-6, "and steadily so"


def test_a_slow_device_costs_no_more_than_its_own_delay() -> None:
    told = listened(babble(1.2), latency_s=0.02)
    now = [0.01 * (k + 1) + 0.02 for k in range(len(told))]
    late = [at - one[0] for at, one in zip(now, told, strict=True) if one is not None and at > 0.4]
    assert len(late) > 60
    assert max(late) <= 0.12 + 0.02 + 1e-6
    assert min(late) > DELAY_S


def test_an_ear_that_hears_nothing_says_nothing() -> None:
    ear = Ear()
    assert ear.at(0.0) is None
    ear.hear(Heard(babble(0.5), RATE_HZ, 10.0))
    assert ear.at(10.0) is not None
    assert ear.at(10.0 + DEAF_S + 0.01) is None


def test_nothing_grows() -> None:
    ear = Ear()
    sound = babble(0.5)
    for k in range(20):
        ear.hear(Heard(sound, RATE_HZ, 0.5 * k))
    assert len(ear._said) <= 6
    assert len(ear._waiting) < STEP
    assert len(ear._gate._levels) <= 75


# --- any sound ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rate_hz", "channels"), [(8_000, 1), (44_100, 1), (48_000, 2), (96_000, 2)])
def test_any_rate_and_any_channels_say_the_same(rate_hz: int, channels: int) -> None:
    straight = openings(listened(babble(2.0)))
    other = np.repeat(babble(2.0, rate_hz)[:, None], channels, axis=1)
    found = openings(listened(other, rate_hz))
    count = min(len(straight), len(found))
    assert count > 150
    likeness = float(np.corrcoef(straight[-count:], found[-count:])[0, 1])
    assert likeness > (0.4 if rate_hz == 8_000 else 0.9)
    assert found.max() > 0.08, "and the mouth opens"


@pytest.mark.parametrize("level", [0.0, 1e-4, 1e-3, 1e-2, 0.1], ids=["nothing", "-80 dB", "-60 dB", "-40 dB", "-20 dB"])
def test_silence_and_steady_noise_shut_the_mouth(level: float) -> None:
    noise = np.random.default_rng(0).normal(0, 1, 3 * RATE_HZ).astype(np.float32)
    hum = np.sin(2 * np.pi * 100 * np.arange(3 * RATE_HZ) / RATE_HZ).astype(np.float32)
    for sound in (noise, hum):
        assert np.abs(openings(listened(level * sound))).max() < 0.03


def test_a_voice_over_noise_is_heard() -> None:
    noise = np.random.default_rng(0).normal(0, 0.01, 4 * RATE_HZ).astype(np.float32)
    sound = noise.copy()
    sound[2 * RATE_HZ :] += babble(2.0)
    found = openings(listened(sound))
    assert np.abs(found[20:180]).max() < 0.03
    assert found[200:].max() > 0.08


def test_bad_numbers_move_nothing_and_break_nothing() -> None:
    sound = babble(1.0)
    sound[5000:5100] = np.nan
    sound[6000:6010] = np.inf
    assert np.isfinite(openings(listened(sound))).all()


def test_a_muted_and_a_clipped_microphone_are_told() -> None:
    ear = Ear()
    for k in range(60):
        ear.hear(Heard(np.zeros(1600, np.float32), RATE_HZ, 0.1 * k))
    assert ear.problem is not None and "muted" in ear.problem
    loud = (30 * babble(3.0)).clip(-1, 1)
    for k in range(0, len(loud) - 1600, 1600):
        ear.hear(Heard(loud[k : k + 1600], RATE_HZ, 7 + k / RATE_HZ))
    assert ear.problem is not None and "clipped" in ear.problem
    quiet = babble(8.0) * np.float32(0.5)
    for k in range(0, len(quiet) - 1600, 1600):
        ear.hear(Heard(quiet[k : k + 1600], RATE_HZ, 11 + k / RATE_HZ))
    assert ear.problem is None


# --- microphones --------------------------------------------------------------------------------------------


def test_a_file_is_heard_in_its_own_time_over_and_over(tmp_path: Path) -> None:
    sound = babble(0.1)
    clock = [100.0]
    microphone = FileMicrophone(write_wav(tmp_path / "hello.wav", sound), clock=lambda: clock[0])
    assert microphone.name == "hello.wav"
    with pytest.raises(MicrophoneLostError, match=r"hello\.wav is not open"):
        microphone.read()
    microphone.open()
    pieces = []
    for k in range(10):
        clock[0] = 100.0 + 0.02 * (k + 1)
        pieces.append(microphone.read())
    assert [one.time_s for one in pieces] == pytest.approx([100.0 + 0.02 * (k + 1) for k in range(10)])
    heard = np.concatenate([one.samples for one in pieces])
    assert np.allclose(heard, np.tile(sound, 2), atol=1e-3)
    clock[0] = 200.0
    assert microphone.read().time_s == pytest.approx(200.0), "after a sleep it goes on from now"
    microphone.close()
    with pytest.raises(ValueError, match="there is no file"):
        FileMicrophone(tmp_path / "nothing.wav")


class FakePortAudio:
    """As much of sounddevice as is used: devices, and a stream that is fed by hand."""

    PortAudioError = type("PortAudioError", (Exception,), {})

    def __init__(self) -> None:
        self.devices = [
            {"index": 0, "name": "Speakers", "max_input_channels": 0, "default_samplerate": 48_000.0},
            {"index": 1, "name": "Built-in Microphone", "max_input_channels": 1, "default_samplerate": 44_100.0},
            {"index": 2, "name": "USB Headset", "max_input_channels": 8, "default_samplerate": 48_000.0},
        ]
        self.asked: tuple[Any, ...] = ()
        self.callback: Any = None
        self.looked = self.closed = 0
        self.fault: Exception | None = None

    def _terminate(self) -> None:
        self.looked += 1

    def _initialize(self) -> None:
        """Looks anew."""

    def query_devices(self, kind: str = "") -> Any:
        return self.devices[1] if kind else self.devices

    def InputStream(self, *asked: Any, callback: Any) -> Any:  # noqa: N802 (sounddevice's name)
        if self.fault is not None:
            raise self.fault
        self.asked, self.callback = asked, callback

        def close(ignore_errors: bool) -> None:
            self.closed += 1

        return SimpleNamespace(start=lambda: None, abort=lambda ignore_errors: None, close=close)

    def speaks(self, samples: Floats) -> None:
        self.callback(samples, len(samples), SimpleNamespace(currentTime=5.0, inputBufferAdcTime=4.97), None)


@pytest.fixture
def portaudio(monkeypatch: pytest.MonkeyPatch) -> FakePortAudio:
    fake = FakePortAudio()
    monkeypatch.setitem(sys.modules, "sounddevice", fake)
    return fake


def test_the_default_microphone_at_its_own_rate(portaudio: FakePortAudio) -> None:
    microphone = Microphone(clock=lambda: 50.0)
    microphone.open()
    assert microphone.name == "Built-in Microphone"
    assert portaudio.asked[:4] == (44_100, 441, 1, 1)
    portaudio.speaks(np.full((441, 1), 0.5, np.float32))
    heard = microphone.read()
    assert (heard.rate_hz, heard.samples.shape) == (44_100, (441, 1))
    assert heard.time_s == pytest.approx(50.0 - 0.03 + 0.01), "its last sample, not its first"
    microphone.close()
    microphone.close()
    assert portaudio.closed == 1


def test_a_microphone_by_name_and_two_channels_at_most(portaudio: FakePortAudio) -> None:
    microphone = Microphone("headset")
    microphone.open()
    assert portaudio.asked[:4] == (48_000, 480, 2, 2)
    assert microphone.name == "USB Headset"
    with pytest.raises(MicrophoneLostError, match=r"no microphone 'Speakers'.*'Built-in Microphone', 'USB Headset'"):
        Microphone("Speakers").open()
    assert portaudio.looked == 2, "each time anew: one may have been plugged in"


def test_faults_of_a_microphone_are_sentences(portaudio: FakePortAudio, monkeypatch: pytest.MonkeyPatch) -> None:
    portaudio.fault = portaudio.PortAudioError("Error opening InputStream: Invalid device\nmore")
    with pytest.raises(MicrophoneLostError, match=r"Invalid device\): plug one in"):
        Microphone().open()
    portaudio.fault = None
    monkeypatch.setattr("plugin.listening._LOST_S", 0.01)
    microphone = Microphone()
    microphone.open()
    with pytest.raises(MicrophoneLostError, match="'Built-in Microphone' gives no sound"):
        microphone.read()
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(MicrophoneLostError, match=r"understudy\[voice\]"):
        Microphone().open()


def test_nobody_listening_fills_no_memory(portaudio: FakePortAudio) -> None:
    microphone = Microphone()
    microphone.open()
    for _ in range(200):
        portaudio.speaks(np.zeros((441, 1), np.float32))
    assert microphone._pieces.qsize() <= 50
    began = time.monotonic()
    microphone.close()
    assert microphone._pieces.empty() and time.monotonic() - began < 5
