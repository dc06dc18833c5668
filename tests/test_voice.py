"""The voice as RTP sees it: packets in any order, lost, doubled and damaged, become sound in order."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import numpy as np
import pytest
from aiortc import MediaStreamTrack
from aiortc.mediastreams import MediaStreamError
from av import AudioFrame

from plugin.routes import SILENCE, Opus, dismount, split
from plugin.voice import Carrier, OpusEncoder, VoiceReceived

TICKS = 2880


def run(coroutine: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(coroutine, 20))


def packets(count: int) -> list[Opus]:
    """So many packets of 60 ms of a tone."""
    wave = 8000 * np.sin(2 * np.pi * 300 * np.arange((count + 1) * TICKS) / 48000)
    frame = AudioFrame.from_ndarray(wave.astype(np.int16)[None], format="s16", layout="mono")
    frame.sample_rate, frame.pts = 48000, 0
    return [opus for opus, _ in OpusEncoder(60, 16).encode(frame)][:count]


async def heard(voice: VoiceReceived, count: int) -> list[int]:
    """The times of the next `count` frames, ticks."""
    frames = [await asyncio.wait_for(voice.recv(), 2) for _ in range(count)]
    assert all(frame.samples == TICKS and frame.pts is not None for frame in frames)
    return [frame.pts or 0 for frame in frames]


def test_packets_that_overtook_each_other_are_put_in_order() -> None:
    async def scene() -> None:
        voice, sent = VoiceReceived(), packets(8)
        for number in (0, 2, 1, 4, 3, 3, 6, 5, 7):
            voice.add(65533 + number & 0xFFFF, 1000 + number * TICKS, sent[number], 500 if number == 0 else None)
        assert await heard(voice, 8) == [500 + number * TICKS for number in range(8)]
        assert voice.lost == 0

    run(scene())


def test_a_packet_that_is_lost_is_a_gap_in_time_and_holds_nothing_up() -> None:
    async def scene() -> None:
        voice, sent = VoiceReceived(), packets(8)
        voice.hold_s = 5.0
        for number in (0, 1, 4, 5, 6):
            voice.add(number, number * TICKS, sent[number], 0 if number == 0 else None)
        assert await heard(voice, 5) == [number * TICKS for number in (0, 1, 4, 5, 6)]
        assert voice.lost == 2
        voice.add(2, 2 * TICKS, sent[2], None)
        voice.hold_s = 0.01
        voice.add(8, 8 * TICKS, sent[7], None)
        assert await heard(voice, 1) == [8 * TICKS]

    run(scene())


def test_the_clock_goes_on_where_its_32_bits_end() -> None:
    async def scene() -> None:
        voice, start = VoiceReceived(), 2**32 - TICKS
        for number, opus in enumerate(packets(4)):
            voice.add(number, (77 + start + number * TICKS) % 2**32, opus, start if number == 0 else None)
        assert await heard(voice, 4) == [start + number * TICKS for number in range(4)]

    run(scene())


def test_damaged_and_silent_packets_make_no_sound_and_no_error() -> None:
    async def scene() -> None:
        voice, sent, rng = VoiceReceived(), packets(3), np.random.default_rng(0)
        voice.add(0, 0, sent[0], 0)
        voice.add(1, TICKS, SILENCE, None)
        for number in range(2, 30):
            voice.add(number, number * TICKS, Opus(int(rng.integers(0, 64)) << 2, (rng.bytes(40),)), None)
        voice.add(30, 30 * TICKS, sent[1], None)
        times = []
        while not times or times[-1] < 30 * TICKS:
            frame = await asyncio.wait_for(voice.recv(), 2)
            times.append(frame.pts or 0)
        assert times[0] == 0 and times[-1] == 30 * TICKS

    run(scene())


def test_a_voice_that_nobody_plays_takes_no_room() -> None:
    async def scene() -> None:
        voice, sent = VoiceReceived(), packets(1)
        for number in range(5000):
            voice.add(number & 0xFFFF, number * TICKS, sent[0], 0)
        assert len(voice._held) <= 64
        voice.stop()
        with pytest.raises(MediaStreamError):
            await voice.recv()

    run(scene())


class Still(MediaStreamTrack):
    """A microphone that never says anything."""

    kind = "audio"

    async def recv(self) -> AudioFrame:
        await asyncio.Event().wait()
        raise AssertionError


def test_faces_leave_in_empty_packets_when_the_microphone_says_nothing() -> None:
    async def scene() -> None:
        carrier = Carrier(Still(), 20, 12)
        count = 0

        def room() -> None:
            nonlocal count
            count += 1
            if count % 3 == 0:
                carrier.load(bytes([count]))

        carrier.on_room = room
        times = []
        for number in (3, 6, 9):
            packet = await carrier.recv()
            opus = split(bytes(packet))
            assert opus.silent and dismount(opus).face == bytes([number])
            times.append(packet.pts or 0)
        assert np.diff(times).tolist() == [3 * 960] * 2, "each empty packet stands for its 20 ms"
        carrier.stop()
        with pytest.raises(MediaStreamError):
            await carrier.recv()

    run(scene())


def test_a_change_of_rate_keeps_the_time_and_every_sample() -> None:
    encoder = OpusEncoder(20, 12)
    times = []
    for number in range(20):
        if number in (7, 13):
            encoder.kbps = 6 if number == 7 else 24
        wave = np.zeros((1, 441), np.int16)  # 10 ms at 44.1 kHz: half a packet
        frame = AudioFrame.from_ndarray(wave, format="s16", layout="mono")
        frame.sample_rate, frame.pts = 44100, number * 441
        times += [ticks for _, ticks in encoder.encode(frame)]
    assert len(times) >= 8
    assert np.abs(np.diff(times) - 960).max() <= 480
