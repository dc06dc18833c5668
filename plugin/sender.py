"""`understudy send`: webcam -> tracker -> codec -> transport. One loop; the camera and the tracker have a thread each.

It meets the receiver by code, or again by the key of their first meeting, and goes on meeting it for as long as it is
not told to stop: after a lost line, a new address, a sleep. Nothing is sent before the receiver proved that it has the
code: no face, no avatar, no sound.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from engine.base import Base
from engine.codec import MAX_FRAMES, Encoder
from engine.config import Config
from engine.frames import Face, Frame, NoFace
from engine.ladder import THIN, Ladder, Pace
from plugin import signaling
from plugin.audio import ClipVoice, Gate, Microphone, VoiceError
from plugin.avatar_transfer import AvatarTransferError, Outgoing
from plugin.camera import Slot, SmoothTracker
from plugin.known import Known, Meeting
from plugin.meter import Rolling
from plugin.pairing import Code, NobodyError, PairingError, SessionKey
from plugin.routes import MAX_RIDER_BYTES
from plugin.signaling import Line, Link
from plugin.transport import IceServers, State, Transport, TransportError
from plugin.webcam import CameraLostError, Clip, ClipCamera, LiveSource

log = logging.getLogger(__name__)

Voice = Literal["microphone", "clip", "none"]

_AGAIN_S = (0.5, 1.0, 2.0, 4.0, 8.0)
_PATIENCE_S = 2.0
"""A line that is interrupted for so long is given up for a new one."""
_WAKE_S = 0.2
_RETRY_S = 1.0
_SILENCE_S = 1.5
"""A camera or tracker that gives nothing for so long: the receiver is told that there is no face, not left in doubt."""
_HOLD_S = 15.0
"""So long, at most, faces and voice leave the line to the avatar's preview: until it is there, nobody can draw them.
A line of 32 kbit/s needs a third of that."""
_STALE_S = 0.4
"""A face that waited for so long (for a line, for the tracker) is not worth its bytes."""


def ice_servers(config: Config) -> IceServers:
    """STUN and TURN as config.toml names them. Raises `ValueError`."""
    link = config.link
    urls = tuple(url for url in (link.stun, link.turn) if url)
    return IceServers(urls, link.turn_user or None, link.turn_password or None, link.relay_only)


# --- what the sender sees ---


class Watches(Protocol):
    """Where faces come from: each is handed to `put`, in order of time, on `time.monotonic`'s clock, in any thread."""

    def start(self, put: Callable[[Face | NoFace], None]) -> None: ...

    def stop(self) -> None: ...

    @property
    def began_s(self) -> float | None:
        """When the first picture was taken; None before."""
        ...

    @property
    def problem(self) -> str:
        """What is wrong now, one sentence; "" when nothing is."""
        ...


class Watching:
    """A camera and the tracker. Between the two lies a slot of length one; the newest frame wins."""

    def __init__(self, source: LiveSource, config: Config, meter: Rolling) -> None:
        self._source, self._config, self._meter = source, config, meter
        self._frames: Slot[Frame] = Slot()
        self._stopping = threading.Event()
        self._put: Callable[[Face | NoFace], None] = lambda face: None
        self._threads: list[threading.Thread] = []
        self.began_s: float | None = None
        self.problem = ""

    def start(self, put: Callable[[Face | NoFace], None]) -> None:
        self._put = put
        for name, body in (("camera", self._look), ("tracker", self._track)):
            thread = threading.Thread(target=body, name=f"understudy-{name}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def stop(self) -> None:
        self._stopping.set()
        self._frames.wake()
        for thread in self._threads:
            thread.join(5.0)

    @property
    def dropped(self) -> int:
        return self._frames.drops

    def _look(self) -> None:
        while not self._stopping.is_set():
            try:
                self._source.open()
                while not self._stopping.is_set():
                    frame = self._source.read()
                    if self.began_s is None:
                        self.began_s = frame.time_s
                    self._frames.put(frame)
                    self.problem = ""
            except CameraLostError as lost:
                self.problem = str(lost)
                self._put(NoFace(time.monotonic()))
                self._stopping.wait(_RETRY_S)
            finally:
                self._source.close()

    def _track(self) -> None:
        tracker = SmoothTracker(self._config)
        try:
            while not self._stopping.is_set():
                frame = self._frames.take(_WAKE_S)
                if frame is None:
                    continue
                began = time.monotonic()
                face = tracker.track(frame)
                self._meter.add("tracker", (time.monotonic() - began) * 1e3)
                self._put(face)
        finally:
            tracker.close()


class Replaying:
    """Recorded landmarks, in real time, over and over: a camera and a tracker that cost nothing."""

    def __init__(self, faces: list[Face], fps: float) -> None:
        self._faces, self._fps = faces, fps
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self.began_s: float | None = None
        self.problem = ""

    def start(self, put: Callable[[Face | NoFace], None]) -> None:
        self.began_s = time.monotonic()
        self._thread = threading.Thread(target=self._play, args=(put,), name="understudy-replay", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(5.0)

    def _play(self, put: Callable[[Face | NoFace], None]) -> None:
        assert self.began_s is not None
        first_s, last_s = self._faces[0].time_s, self._faces[-1].time_s
        lap_s = last_s - first_s + 1 / self._fps
        lap = 0
        while True:
            for face in self._faces:
                due_s = self.began_s + lap * lap_s + face.time_s - first_s
                if self._stopping.wait(max(due_s - time.monotonic(), 0)):
                    return
                moved = Face(
                    *(face.points, face.rotation, face.translation, face.scale, face.visibility, face.size_px), due_s
                )
                put(moved)
            lap += 1


def open_drive(path: Path, config: Config, meter: Rolling) -> tuple[Watches, Clip | None]:
    """A clip or recorded landmarks (.npz) in place of the camera; the clip, if it is one. Raises `ValueError`."""
    if path.suffix.lower() == ".npz":
        from plugin.render import read_faces

        return Replaying(*read_faces(path)), None
    return Watching(ClipCamera(path), config, meter), Clip(path)


# --- meeting ---


@dataclass(frozen=True, slots=True)
class Wanted:
    """Whom to meet: by a code, or somebody met before."""

    room: str
    secret: Code | SessionKey
    address: str | None
    """Where; None: to be found."""

    @classmethod
    def choose(cls, text: str | None, known: Known) -> Wanted:
        """What `understudy send [CODE]` means. A code that was used up means the meeting it made.

        Raises `PairingError`.
        """
        met = known.all("sender")
        if text is None:
            if not met:
                raise PairingError("whom? Type the code or the link that `understudy receive` shows")
            return cls.again(met[0])
        link: Link = signaling.parse_link(text)
        for one in met:
            if one.code == str(link.code):
                return cls.again(one)
        return cls(link.code.room, link.code, link.address)

    @classmethod
    def again(cls, meeting: Meeting) -> Wanted:
        return cls(meeting.session.room, meeting.session, meeting.address or None)


async def addresses(wanted: Wanted, config: Config) -> AsyncIterator[str]:
    """Where the receiver may be, the quickest to try first; searching the network comes last."""
    tried: set[str] = set()
    if wanted.address is not None:
        tried.add(wanted.address)
        yield wanted.address
        if isinstance(wanted.secret, Code):
            return
    if config.link.rendezvous:
        if (address := config.link.rendezvous.rstrip("/")) not in tried:
            yield address
        return
    if (here := f"http://127.0.0.1:{config.link.port}") not in tried:
        tried.add(here)
        yield here
    if config.link.announce:
        for found in await signaling.find(wanted.room):
            if found not in tried:
                yield found


class Sender:
    """The loop. `run` returns a sentence that says why it ended."""

    def __init__(
        self,
        config: Config,
        base: Base,
        avatar: Path,
        watches: Watches,
        meter: Rolling,
        say: Callable[[str], None],
        known: Known,
        clip: Path | None = None,
        clip_s: float = 0.0,
        voice: Voice = "none",
    ) -> None:
        """`avatar` is the file that is offered. `say` is told, in a sentence, whatever the user should know.

        Raises `AvatarError` for a file that is no avatar, `ValueError` for settings that cannot work.
        """
        self._config, self._watches, self._meter, self._say, self._known = config, watches, meter, say, known
        self._outgoing = Outgoing(avatar, base)
        self._clip, self._clip_s, self._voice = clip, clip_s, voice
        self._ice = ice_servers(config)
        self._tls = signaling.client_tls(config.link.rendezvous_ca) if config.link.rendezvous_ca else None
        self._faces: deque[Face | NoFace] = deque(maxlen=MAX_FRAMES)
        self._encoder = Encoder()
        self._header_sent = 0
        self._sent_s = -math.inf
        self._held_until_s = 0.0
        self._transport: Transport | None = None
        self._track: Gate | None = None
        self._met: Wanted | None = None
        self._ended = asyncio.Event()
        self._why = ""
        self._giving: set[asyncio.Task[None]] = set()
        self._ladder = Ladder(config.link.voice_kbps, config.link.face)
        self._pace = Pace()
        self.connections = 0
        """How often it was connected."""

    async def run(self, wanted: Wanted) -> str:
        """Meet, send, meet again. Raises `PairingError` or `TransportError` when the first meeting fails."""
        self._watches.start(self._faces.append)
        status = asyncio.ensure_future(self._tell())
        trouble = 0
        try:
            while not self._why:
                try:
                    session, address = await self._meet(wanted)
                except (PairingError, TransportError) as error:
                    if self._met is not None:
                        wanted = self._met  # the code is used up; what it brought is not
                    if isinstance(wanted.secret, Code) or (self._met and not self.connections and trouble >= 2):
                        raise
                    if trouble == 0:
                        self._say(f"{error}; trying again until it answers")
                    await self._rest(_AGAIN_S[min(trouble, len(_AGAIN_S) - 1)])
                    trouble += 1
                    continue
                trouble = 0
                wanted = Wanted(session.room, session, address)
                reason = await self._serve()
                if not self._why:
                    self._say(f"{reason}; meeting again")
            return self._why
        finally:
            status.cancel()
            await self._leave()
            await asyncio.to_thread(self._watches.stop)

    def stop(self, why: str = "stopped") -> None:
        """Ends `run`; from the event loop."""
        self._why = self._why or why
        self._ended.set()

    async def _rest(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._ended.wait()

    # --- meeting ---

    async def _meet(self, wanted: Wanted) -> tuple[SessionKey, str]:
        """A connected transport, at the first address where the receiver answers."""
        nobody: NobodyError | None = None
        async for address in addresses(wanted, self._config):
            try:
                return await self._meet_at(address, wanted), address
            except NobodyError as error:
                log.info("%s: %s", address, error)
                nobody = error
                await self._leave()
            except (PairingError, TransportError):
                await self._leave()
                raise
        if nobody is not None and (wanted.address is not None or self._config.link.rendezvous):
            raise nobody
        raise NobodyError(
            "no receiver on this network answers to that code: it may be used or too old; if the receiver is on "
            "another network, type the whole link"
        )

    async def _meet_at(self, address: str, wanted: Wanted) -> SessionKey:
        line = await Line.open(address, wanted.room, self._tls)
        try:
            track = self._track = self._microphone()
            transport = self._transport = Transport(
                self._ice,
                self._config.link.route,
                track,
                voice_kbps=self._ladder.voice_kbps,
            )
            transport.on_state = self._state
            transport.on_message = self._message
            met = await signaling.call(line, wanted.room, wanted.secret, transport.offer, self._accept)
        finally:
            await line.close()
        if transport.remote_fingerprint.split()[-1] != met.remote_fingerprint:
            raise PairingError("the other end's certificate is not the one that the code vouches for; nothing was sent")
        self._met = Wanted(met.session.room, met.session, address)
        code = str(wanted.secret) if isinstance(wanted.secret, Code) else ""
        if self._config.link.remember_h and code:
            until_s = time.time() + 3600 * self._config.link.remember_h
            self._known.remember(Meeting(met.session.secret.hex(), "sender", until_s, address, code))
        await transport.connected()
        transport.on_room = self._send_faces
        return met.session

    async def _accept(self, answer: str) -> None:
        assert self._transport is not None
        try:
            await self._transport.accept(answer)
        except ValueError as error:
            raise PairingError(str(error)) from error

    def _microphone(self) -> Gate | None:
        try:
            if self._voice == "microphone":
                return Gate(Microphone())
            if self._voice == "clip" and self._clip is not None:
                return Gate(ClipVoice(self._clip, self._clip_s, lambda: self._watches.began_s))
        except VoiceError as error:
            self._say(f"{error}; the call goes on without a voice")
            self._voice = "none"
        return None

    # --- being connected ---

    async def _serve(self) -> str:
        """Until the line is lost, or one of the two ends it. Why."""
        transport = self._transport
        assert transport is not None
        self.connections += 1
        self._say(f"connected, faces go by {transport.route}")
        self._header_sent = 0
        self._held_until_s = time.monotonic() + _HOLD_S
        if not self._config.link.share_avatar:
            self._release()
        interrupted_s = 0.0
        try:
            if self._config.link.share_avatar:
                await transport.send_message("avatar/offer", self._outgoing.offer.packed())
            while not self._ended.is_set():
                await self._rest(_WAKE_S)
                if transport.state in ("failed", "closed"):
                    return transport.reason or "the line was lost"
                interrupted_s = interrupted_s + _WAKE_S if transport.state == "interrupted" else 0.0
                if interrupted_s > _PATIENCE_S:
                    return transport.reason or "the line was interrupted"
                if time.monotonic() > self._held_until_s:
                    self._release()
                if self._encoder.header_id != self._header_sent:
                    self._header_sent = self._encoder.header_id
                    await transport.send_message("face/header", self._encoder.header())
            with contextlib.suppress(TransportError, TimeoutError):
                async with asyncio.timeout(1.0):
                    await transport.send_message("bye", b"")
                    await asyncio.sleep(0.2)
            return self._why
        except TransportError as error:
            return str(error)
        finally:
            await self._leave()

    async def _leave(self) -> None:
        transport, self._transport = self._transport, None
        for task in list(self._giving):
            task.cancel()
        if self._track is not None:
            self._track.stop()
            self._track = None
        if transport is not None:
            await transport.close()

    def _send_faces(self) -> None:
        """The transport has room for a packet now: everything that was seen since the last."""
        now = time.monotonic()
        if self._transport is None or now < self._held_until_s:
            return
        if not self._faces and now - self._sent_s < _SILENCE_S:
            return
        rung = self._ladder.rung
        most_bytes = self._pace.most_bytes(rung, now)
        if not most_bytes:
            return
        self._sent_s = now
        seen = [self._faces.popleft() for _ in range(len(self._faces))] or [NoFace(now)]
        seen = [face for face in seen if now - face.time_s < _STALE_S] or seen[-1:]
        seen = self._pace.chosen(rung, seen)
        self._encoder.quality = rung.quality
        self._meter.add("waited", (now - seen[-1].time_s) * 1e3)
        for _ in seen:
            self._meter.add("faces")
        packet = self._encoder.encode(seen, min(most_bytes, MAX_RIDER_BYTES))
        if len(packet) <= MAX_RIDER_BYTES:
            self._transport.send_face(packet)
            self._pace.sent(rung, len(packet), seen[-1].time_s, now)

    def _state(self, state: State, sentence: str) -> None:
        if state == "interrupted":
            self._say(f"no signal: {sentence}")

    def _message(self, kind: str, payload: bytes) -> None:
        if kind == "avatar/want" and self._transport is not None:
            if self._config.link.share_avatar and len(self._giving) < 2:
                self._start(self._give(self._transport, payload))
        elif kind == "avatar/refused":
            self._say(f"the receiver refused the avatar: {_plain(payload)}")
        elif kind == "bye":
            self.stop("the receiver ended the call")

    def _start(self, giving: object) -> None:
        task = asyncio.ensure_future(giving)  # type: ignore[arg-type]
        self._giving.add(task)
        task.add_done_callback(self._giving.discard)

    async def _give(self, transport: Transport, want: bytes) -> None:
        try:
            if self._outgoing.shows_already(want):
                self._release()
            await self._outgoing.give(transport, want)
            self._release()
        except (AvatarTransferError, TransportError) as error:
            log.info("the avatar: %s", error)

    def _release(self) -> None:
        """The receiver has something to draw: faces and the voice may take the line now."""
        if self._held_until_s:
            self._held_until_s = 0.0
            self._ladder.begin()
        if self._track is not None:
            self._track.is_open = True

    async def _tell(self) -> None:
        """The status line, once a second."""
        last: dict[str, int] = {}
        while True:
            await asyncio.sleep(1.0)
            if self._transport is None:
                continue
            told = self._transport.stats()
            self._transport.voice_kbps = self._ladder.learn(told["rtt_ms"], told["loss"])
            counted = {name: told[name]["out_bytes"] for name in ("face", "voice", "wire")}
            kbps = {name: 8e-3 * (count - last.get(name, 0)) for name, count in counted.items()}
            last = counted
            tracker = self._meter.summary().get("tracker", (0.0, 0.0))[0]
            rtt = "" if told["rtt_ms"] is None else f" | rtt {told['rtt_ms']:.0f} ms"
            face = "thin face" if self._ladder.rung is THIN else "face"
            loss = "" if told["loss"] is None else f", lost {100 * told['loss']:.0f} %"
            self._say(
                f"\r{told['state']} | {self._meter.rate('faces'):4.1f} faces/s by {told['route']} | {face} "
                f"{max(kbps['face'], 0):.1f}, voice {max(kbps['voice'], 0):.1f}, all {max(kbps['wire'], 0):.1f} kbit/s"
                f"{rtt}{loss} | tracker {tracker:.0f} ms | avatar {self._outgoing.sent_bytes // 1000} kB sent"
                + (f" | {self._watches.problem}" if self._watches.problem else "")
            )


def _plain(payload: bytes) -> str:
    """Another program's sentence, fit for a terminal."""
    text = payload[:300].decode(errors="replace")
    return "".join(letter for letter in text if letter.isprintable())


__all__ = ["Replaying", "Sender", "Voice", "Wanted", "Watching", "addresses", "ice_servers", "open_drive"]
