"""The voice as RTP sees it: sound -> Opus packets that can carry a face, and received packets -> sound in order."""

from __future__ import annotations

import asyncio
import fractions
import heapq
import time
from collections import deque
from collections.abc import Callable

import numpy as np
from aiortc import MediaStreamTrack
from aiortc.mediastreams import MediaStreamError
from av import AudioFrame, AudioResampler, CodecContext, Packet
from av.audio.codeccontext import AudioCodecContext
from av.error import FFmpegError

from plugin.routes import CLOCK_HZ, SILENCE, Opus, Rider, join, mount, split

_TIME_BASE = fractions.Fraction(1, CLOCK_HZ)
_CLOCK_EVERY = 16
"""Packets between two that tell the sender's clock."""
_MAX_HELD = 64
_FADE_SAMPLES = CLOCK_HZ // 200


class OpusEncoder:
    """Sound of any rate and layout -> Opus packets of `packet_ms` at `kbps`."""

    def __init__(self, packet_ms: int, kbps: float) -> None:
        self._packet_ms = packet_ms
        samples = CLOCK_HZ * packet_ms // 1000
        self._resampler = AudioResampler(format="s16", layout="mono", rate=CLOCK_HZ, frame_size=samples)
        self.kbps = kbps

    @property
    def kbps(self) -> float:
        return self._kbps

    @kbps.setter
    def kbps(self, kbps: float) -> None:
        """FFmpeg's libopus takes its bit rate at the start only: a change starts a new encoder."""
        if not 6 <= kbps <= 64:
            raise ValueError(f"a voice takes 6 to 64 kbit/s, not {kbps:g}")
        self._kbps = kbps
        codec = CodecContext.create("libopus", "w")
        assert isinstance(codec, AudioCodecContext)
        codec.bit_rate = round(kbps * 1000)
        codec.format, codec.layout, codec.sample_rate = "s16", "mono", CLOCK_HZ
        codec.time_base = _TIME_BASE
        codec.options = {"application": "voip", "frame_duration": str(self._packet_ms), "vbr": "constrained"}
        self._codec = codec

    def encode(self, frame: AudioFrame) -> list[tuple[Opus, int]]:
        """Packets and their times in ticks of `CLOCK_HZ`, on the clock of the frames."""
        made = []
        for whole in self._resampler.resample(frame):
            for packet in self._codec.encode(whole):
                assert packet.pts is not None and packet.time_base is not None
                made.append((split(bytes(packet)), int(packet.pts * packet.time_base * CLOCK_HZ)))
        return made


class Carrier(MediaStreamTrack):
    """What aiortc's sender reads: Opus packets, encoded already, each with the face that waits for one.

    With a voice, a packet leaves when the voice has one, and an empty one in its place if the voice falls silent;
    without, whenever a face was loaded.
    """

    kind = "audio"

    def __init__(self, voice: MediaStreamTrack | None, packet_ms: int, kbps: float) -> None:
        super().__init__()
        self._voice, self._packet_ms = voice, packet_ms
        self._encoder = OpusEncoder(packet_ms, kbps) if voice is not None else None
        self.on_room: Callable[[], None] | None = None
        """Called before a voice packet leaves."""
        self.on_sent: Callable[[int, int], None] | None = None
        """Called with the bytes of sound and of face in a packet."""
        self._face: bytes | None = None
        self._packets: deque[tuple[Opus, int]] = deque(maxlen=4)
        self._ready = asyncio.Event()
        self._pump: asyncio.Task[None] | None = None
        self._count = 0
        self._ticks = int(time.monotonic() * CLOCK_HZ)
        self.kbps = kbps
        self.muted = False
        """The voice is listened to and thrown away; faces go on."""

    def load(self, face: bytes) -> int:
        """A face for the next packet; returns 1 when it took the place of one that has not left."""
        replaced = self._face is not None
        self._face = face
        if self._voice is None:
            self._ready.set()
        return int(replaced)

    async def recv(self) -> Packet:
        while True:
            opus, ticks = await (self._next_face() if self._voice is None else self._next_sound())
            if self.on_room is not None:
                self.on_room()
            face, self._face = self._face or b"", None
            if face or not opus.silent:
                break
        told = self._voice is not None and self._count % _CLOCK_EVERY == 0
        self._count += 1
        packet = Packet(mount(opus, Rider(face, ticks if told else None)))
        packet.pts, packet.time_base = ticks, _TIME_BASE
        if self.on_sent is not None:
            self.on_sent(0 if opus.silent else sum(map(len, opus.frames)), len(face))
        return packet

    async def _next_face(self) -> tuple[Opus, int]:
        while self._face is None:
            self._check()
            self._ready.clear()
            await self._ready.wait()
        return SILENCE, int(time.monotonic() * CLOCK_HZ)

    async def _next_sound(self) -> tuple[Opus, int]:
        if self._pump is None:
            self._pump = asyncio.get_running_loop().create_task(self._hear())
        while not self._packets:
            self._check()
            self._ready.clear()
            try:
                # Not wait_for: it swallows a cancellation that comes together with the event.
                async with asyncio.timeout(1.5e-3 * self._packet_ms):
                    await self._ready.wait()
            except TimeoutError:
                self._ticks += CLOCK_HZ * self._packet_ms // 1000
                return SILENCE, self._ticks
        opus, self._ticks = self._packets.popleft()
        return opus, self._ticks

    def _check(self) -> None:
        if self.readyState != "live":
            raise MediaStreamError

    async def _hear(self) -> None:
        assert self._voice is not None and self._encoder is not None
        try:
            while True:
                frame = await self._voice.recv()
                if self._encoder.kbps != self.kbps:
                    self._encoder.kbps = self.kbps
                assert isinstance(frame, AudioFrame)
                for made in self._encoder.encode(frame):
                    if not self.muted:
                        self._packets.append(made)
                        self._ready.set()
        except MediaStreamError:
            pass  # the voice has ended; faces go on in packets without sound

    def stop(self) -> None:
        super().stop()
        self._ready.set()
        if self._pump is not None:
            self._pump.cancel()


class VoiceReceived(MediaStreamTrack):
    """The other side's voice, decoded, in order; after a packet that is missing, sound fades in.

    Frames come as soon as they can be decoded; their time (pts x time_base) is on the sender's clock, as the faces'
    `time_s` is, once `clock_known`: whoever plays them can keep lips and voice together, and sees a gap in it.
    """

    kind = "audio"

    def __init__(self) -> None:
        super().__init__()
        codec = CodecContext.create("libopus", "r")
        assert isinstance(codec, AudioCodecContext)
        codec.format, codec.layout, codec.sample_rate = "s16", "mono", CLOCK_HZ
        self._codec = codec
        self._held: list[tuple[int, int, float, Opus]] = []
        self._newest: int | None = None
        self._next: int | None = None
        self._origin: int | None = None
        self._ticks = 0
        self._last = np.zeros(_FADE_SAMPLES, np.int16)
        self._broken = True
        self._came = asyncio.Event()
        self.lost = 0
        self.hold_s = 0.08
        """How long a packet that is missing is waited for."""

    @property
    def clock_known(self) -> bool:
        return self._origin is not None

    def add(self, sequence: int, timestamp: int, opus: Opus, clock: int | None) -> None:
        """An Opus packet with its RTP sequence number and timestamp, and the sender's clock if it was told."""
        if clock is not None:
            self._origin = (timestamp - clock) % 2**32
        number = sequence if self._newest is None else self._newest + (sequence - self._newest + 2**15) % 2**16 - 2**15
        self._newest = number if self._newest is None else max(self._newest, number)
        if (self._next is not None and number < self._next) or any(number == held[0] for held in self._held):
            return
        heapq.heappush(self._held, (number, timestamp, time.monotonic(), opus))
        if len(self._held) > _MAX_HELD:
            heapq.heappop(self._held)
        self._came.set()

    async def recv(self) -> AudioFrame:
        while self.readyState == "live":
            made = self._decode()
            if made is not None:
                return made
            self._came.clear()
            try:
                async with asyncio.timeout(self.hold_s if self._held else 1.0):
                    await self._came.wait()
            except TimeoutError:
                pass
        raise MediaStreamError

    def stop(self) -> None:
        super().stop()
        self._came.set()

    def _decode(self) -> AudioFrame | None:
        while self._held:
            number, timestamp, came_s, opus = self._held[0]
            # A second packet behind the gap: the missing one is lost, not late.
            waits = len(self._held) < 2 and time.monotonic() - came_s < self.hold_s
            if self._next is not None and number > self._next and waits:
                return None
            heapq.heappop(self._held)
            if self._next is not None and number > self._next:
                self.lost += number - self._next
                self._broken = True
            self._next = number + 1
            if opus.silent:
                continue
            packet = Packet(join(opus))
            packet.pts, packet.time_base = 0, _TIME_BASE
            try:
                frames = self._codec.decode(packet)
            except FFmpegError:
                self._broken = True
                continue
            for frame in frames:
                return self._timed(frame, timestamp)
        return None

    def _timed(self, frame: AudioFrame, timestamp: int) -> AudioFrame:
        sound = frame.to_ndarray().reshape(-1).copy()
        if self._broken:
            ramp = np.linspace(0, 1, min(_FADE_SAMPLES, sound.size))
            sound[: ramp.size] = (sound[: ramp.size] * ramp).astype(np.int16)
            self._broken = False
        out = AudioFrame.from_ndarray(sound[None], format="s16", layout="mono")
        ticks = (timestamp - (self._origin or 0)) % 2**32
        # The 32-bit clock wraps every 24.8 hours: the next tick is the one nearest to the last.
        self._ticks += (ticks - self._ticks + 2**31) % 2**32 - 2**31 if self._ticks else ticks
        out.pts, out.time_base, out.sample_rate = self._ticks, _TIME_BASE, CLOCK_HZ
        return out
