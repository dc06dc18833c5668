"""The voice at both rims: in step with its clock, without clicks, and one sentence where there is no device."""

from __future__ import annotations

import asyncio
import sys
import types
import wave
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from aiortc.mediastreams import MediaStreamError
from av.audio.stream import AudioStream
from av.video.stream import VideoStream

from plugin import audio
from plugin.audio import RATE_HZ, ClipVoice, Loudspeaker, Microphone, Recorder, Timeline, VoiceError, join, read_sound


def tone(seconds: float, hz: float = 440.0) -> audio.Samples:
    return (8000 * np.sin(2 * np.pi * hz * np.arange(int(seconds * RATE_HZ)) / RATE_HZ)).astype(np.int16)


def write_wav(path: Path, samples: audio.Samples, rate_hz: int = RATE_HZ) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate_hz)
        file.writeframes(samples.tobytes())
    return path


# --- the timeline ---


def test_sound_is_heard_at_its_moment() -> None:
    line = Timeline()
    line.take(100.0, 480)
    line.put(np.full(480, 7, np.int16), 100.05)
    assert not line.take(100.01, int(0.04 * RATE_HZ)).any()
    heard = line.take(100.05, 960)
    assert heard[300:480].tolist() == [7] * 180 and not heard[480:].any()


def test_sound_that_follows_within_a_jitter_is_joined_without_a_gap() -> None:
    line = Timeline()
    sound = tone(1.0)
    line.take(9.99, 480)
    jitter = [0.0, 0.009, -0.008, 0.015, -0.015]
    for number in range(20):
        part = sound[number * 960 : (number + 1) * 960]
        line.put(part, 10.0 + number * 0.02 + jitter[number % 5])
    heard = line.take(10.0, 20 * 960)
    assert line.moved == 0
    assert np.array_equal(heard, np.concatenate([heard[:240], sound[240 : 20 * 960]]))


def test_sound_whose_clock_moved_is_moved_once_and_softly() -> None:
    line = Timeline()
    line.take(0.9, 480)
    line.put(np.full(4800, 1000, np.int16), 1.0)
    line.put(np.full(4800, 1000, np.int16), 1.2)  # 100 ms later than it would follow
    heard = line.take(1.0, 14400)
    assert line.moved == 1
    assert not heard[4800:9600].any() and heard[9600] == 0 and heard[9600 + 239] == 1000
    assert (np.diff(heard[9600:9840].astype(int)) <= 10).all()


def test_sound_that_comes_too_late_says_how_late_and_loses_only_what_is_past() -> None:
    line = Timeline()
    line.take(5.0, RATE_HZ // 10)
    line.put(np.full(4800, 5, np.int16), 5.05)
    assert line.late_s == pytest.approx(0.05, abs=1e-3)
    assert line.take(5.1, 2400).tolist() == [5] * 2400


def test_a_timeline_is_bounded_and_forgets() -> None:
    line = Timeline(seconds=0.5)
    line.take(1.0, 480)
    line.put(tone(0.1), 90.0)  # absurdly far ahead
    assert not line.take(1.01, 48000).any()
    line.put(np.full(480, 3, np.int16), 2.5)
    assert line.take(2.01, 48000)[int(0.49 * RATE_HZ) + 240] == 3


def test_a_device_whose_clock_jitters_gets_every_sample_once() -> None:
    line = Timeline()
    line.take(0.0, 480)
    sound = np.arange(1, 4801, dtype=np.int16)
    line.put(sound, 0.01)
    heard = [line.take(0.01 + number * 0.01 + (-1) ** number * 0.004, 480) for number in range(10)]
    assert np.array_equal(np.concatenate(heard)[480:], sound[480:])


# --- in ---


def test_a_clip_speaks_in_real_time_on_the_picture_s_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sound = tone(0.2)
    path = write_wav(tmp_path / "voice.wav", sound)
    began: list[float | None] = [None]
    now = [50.0]
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        now[0] += seconds
        if len(slept) == 3:
            began[0] = now[0]

    monkeypatch.setattr(audio.asyncio, "sleep", sleep)

    async def test() -> None:
        voice = ClipVoice(path, 0.1, lambda: began[0], lambda: now[0])
        frames = [await voice.recv() for _ in range(7)]
        times = [frame.time for frame in frames]
        assert began[0] is not None
        assert times == pytest.approx([began[0] + 0.02 * number for number in range(7)], abs=1e-4)
        heard = np.concatenate([frame.to_ndarray().reshape(-1) for frame in frames])
        assert np.array_equal(heard[:4800], sound[:4800]) and np.array_equal(heard[4800:], sound[:1920])  # again
        now[0] += 5  # the machine slept
        late = await voice.recv()
        assert late.time is not None and now[0] - late.time < 0.05
        voice.stop()
        with pytest.raises(MediaStreamError):
            await voice.recv()

    asyncio.run(test())


def test_a_file_s_sound_is_read_whole_at_our_rate(tmp_path: Path) -> None:
    low = (8000 * np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)).astype(np.int16)
    sound = read_sound(write_wav(tmp_path / "low.wav", low, 16000))
    assert abs(len(sound) - RATE_HZ) <= 64
    spectrum = np.abs(np.fft.rfft(sound[:48000]))
    assert np.argmax(spectrum) == pytest.approx(440, abs=2)


@pytest.mark.parametrize("content", [b"", b"no sound at all, only words"])
def test_a_file_without_sound_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "none.wav"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"none\.wav"):
        read_sound(path)


class NoDeviceError(Exception):
    """What PortAudio raises."""


def silent_devices(problem: Exception | None) -> types.ModuleType:
    """A sounddevice without devices, or whose import fails."""
    module = types.ModuleType("sounddevice")

    def stream(*_: object, **__: object) -> None:
        raise NoDeviceError("Error querying device -1\nmore")

    module.__dict__.update(PortAudioError=NoDeviceError, InputStream=stream, OutputStream=stream)
    return module


def test_without_devices_there_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", silent_devices(None))

    async def test() -> None:
        with pytest.raises(VoiceError, match=r"no microphone that can be used \(Error querying device -1\)"):
            Microphone()
        with pytest.raises(VoiceError, match="no loudspeaker"):
            Loudspeaker(Timeline())
        monkeypatch.setitem(sys.modules, "sounddevice", None)
        with pytest.raises(VoiceError, match="pip install"):
            Microphone()

    asyncio.run(test())


# --- out ---


def test_a_recording_holds_the_voice_where_it_belongs(tmp_path: Path) -> None:
    now = [10.0]
    line = Timeline()
    recorder = Recorder(line, tmp_path / "voice.wav", lambda: now[0])
    recorder.pump()
    recorder.begin(10.0)
    line.put(np.full(4800, 900, np.int16), 10.5)
    now[0] = 11.0
    recorder.pump()
    recorder.finish(12.0)
    with wave.open(str(tmp_path / "voice.wav")) as file:
        sound = np.frombuffer(file.readframes(file.getnframes()), np.int16)
    assert len(sound) == 2 * RATE_HZ
    there = np.flatnonzero(sound)
    assert abs(there[0] - RATE_HZ // 2) <= 2 and abs(there[-1] - (RATE_HZ // 2 + 4799)) <= 1


def write_silent_video(path: Path, seconds: float) -> None:
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=10)
        assert isinstance(stream, VideoStream)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for number in range(int(seconds * 10)):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), number * 8 % 255, np.uint8), "rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 10)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))


def test_picture_and_voice_are_joined_and_in_step(tmp_path: Path) -> None:
    video = tmp_path / "out.mp4"
    write_silent_video(video, 2.0)
    with av.open(str(video)) as before:
        frames = [frame.to_ndarray() for frame in before.decode(video=0)]
    sound = np.zeros(2 * RATE_HZ, np.int16)
    sound[RATE_HZ : RATE_HZ + 4800] = tone(0.1)
    join(video, write_wav(tmp_path / "voice.wav", sound))
    with av.open(str(video)) as after:
        assert isinstance(after.streams.audio[0], AudioStream)
        kept = [frame.to_ndarray() for frame in after.decode(video=0)]
    assert len(kept) == len(frames) and all(np.array_equal(*pair) for pair in zip(kept, frames, strict=True))
    heard = np.abs(read_sound(video).astype(int))
    loud = np.flatnonzero(heard > 3000)
    assert abs(loud[0] / RATE_HZ - 1.0) < 0.03 and abs(loud[-1] / RATE_HZ - 1.1) < 0.03
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.mp4", "voice.wav"]


def test_a_join_that_fails_leaves_the_picture(tmp_path: Path) -> None:
    video = tmp_path / "out.mp4"
    write_silent_video(video, 0.3)
    before = video.read_bytes()
    with pytest.raises(OSError, match="the picture is there"):
        join(video, tmp_path / "none.wav")
    assert video.read_bytes() == before and list(tmp_path.iterdir()) == [video]
