"""`understudy receive`: transport -> jitter -> renderer -> sink. One loop; drawing has a thread of its own.

The desk opens a code, lets one sender in, and keeps its place for it: a sender that comes back (a new address, a
restart, a sleep) goes on where it was. Whatever is missing is a picture that says so, never an end.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import cv2
import numpy as np
import segno
from aiortc.mediastreams import MediaStreamError

from engine.avatar import Avatar
from engine.backends.openvino import core
from engine.base import Base
from engine.codec import TIME_WRAP_S, CodecError, Decoder, unwrap
from engine.config import Config
from engine.frames import Face, Frame, Image, NoFace
from engine.renderer import Renderer
from engine.tracker import canonical_face
from plugin import cards, signaling
from plugin.audio import RATE_HZ, Loudspeaker, Recorder, Timeline, VoiceError
from plugin.avatar_transfer import AvatarTransferError, Incoming
from plugin.jitter import Jitter, Shown
from plugin.known import Known, Meeting
from plugin.meter import Rolling
from plugin.pairing import Code, PairingError, SessionKey
from plugin.reception import Reception
from plugin.sender import ice_servers
from plugin.signaling import Announcement, Door, Link, Rendezvous
from plugin.transport import State, Transport, TransportError

log = logging.getLogger(__name__)

Hears = Literal["loudspeaker", "file", "none"]

_NEW_CODE_S = 20.0
"""A sender that is gone for so long without a word may not come back: somebody else is welcome too."""
_SIGNAL_S = 1.0
"""Faces that stay away for so long are worth a word on the picture."""
_CARD_FPS = 5.0
"""Words alone need no more pictures a second."""
_CROSSFADE_S = 0.3
_WAKE_S = 0.2
_VOICE_AHEAD_S = 0.03
"""Sound should be here so long before it is heard: a loudspeaker takes it in blocks."""
_MAX_VOICE_DELAY_S = 0.5


class Draws(Protocol):
    """What is needed of `engine.renderer.Renderer`."""

    size_px: int

    def warm_up(self) -> None: ...

    def draw(self, tracked: Face | NoFace) -> Frame: ...


class Takes(Protocol):
    """What is needed of a sink."""

    def send(self, frame: Frame) -> None: ...


# --- the screen ---


@dataclass(slots=True)
class Picture:
    """What was shown last, for the status line and for measuring."""

    words: str = "waiting"
    showing: str = "waiting"
    delay_ms: float = 0.0
    sender_s: float | None = None
    """The moment on the sender's clock that the picture shows, `plugin.jitter`'s count."""


class Screen:
    """Draws what the jitter buffer says, at even pace, in its own thread; what it is told comes from the event loop.

    A new renderer takes over within `_CROSSFADE_S`; the words that say how things are stand on the picture itself.
    """

    def __init__(
        self,
        size_px: int,
        fps: float,
        sink: Takes,
        meter: Rolling,
        clock: Callable[[], float] = time.monotonic,
        stamps: bool = False,
    ) -> None:
        """`stamps`: the sink keeps each picture's own moment, as a file does, so that drawing delays nothing."""
        self._stamps = stamps
        self.size_px, self._fps, self._sink, self._meter, self._clock = size_px, fps, sink, meter, clock
        self._lock = threading.Lock()
        self._jitter = Jitter()
        self._renderer: Draws | None = None
        self._coming: Draws | None = None
        self._old: Draws | None = None
        self._changed_s = -np.inf
        self._words = "waiting for the sender"
        self._last_face_s: float | None = None
        self._needed_s: deque[float] = deque(maxlen=150)
        self._card: tuple[str, Image] | None = None
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self.picture = Picture()
        self.first_face_s: float | None = None
        """When the first moving face was shown, on `clock`."""
        self.first_picture_s: float | None = None
        self.failure: OSError | ValueError | None = None
        """What ended the drawing, in one sentence: a sink that failed, an avatar that cannot be drawn."""

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="understudy-screen", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(10.0)

    # --- told by the event loop ---

    def say(self, words: str) -> None:
        """What stands on the picture while there is no face; "" for nothing."""
        with self._lock:
            self._words = words

    def put(self, coded: list[Any], now_s: float) -> None:
        """Decoded frames."""
        with self._lock:
            for one in coded:
                self._jitter.put(one, now_s)
            self._last_face_s = now_s

    def wear(self, renderer: Draws) -> None:
        """Draw with this one from now on."""
        with self._lock:
            self._coming = renderer

    def blank(self) -> Image:
        """What a recording that ended before its first picture holds."""
        return cards.telling_card((self.size_px, self.size_px), "nothing was received")

    @property
    def renderer(self) -> Draws | None:
        """The one that draws."""
        return self._renderer

    def voice_due_s(self, sender_s: float, now_s: float) -> float | None:
        """When sound of this moment, here now, is to be heard: when its lips are shown. None before the first face.

        Faces learn from it how long to wait for the sound: as long as all but one in twenty of its pieces took.
        """
        with self._lock:
            shown_s = self._jitter.sender_s(now_s)
            if shown_s is None:
                return None
            due_s = now_s + unwrap(sender_s, shown_s, TIME_WRAP_S) - shown_s + self.lag_s
            self._needed_s.append(self._jitter.delay_s + now_s + _VOICE_AHEAD_S - due_s)
            needed_s = float(np.quantile(np.fromiter(self._needed_s, np.float64), 0.95))
            self._jitter.floor_s = min(max(needed_s, 0.0), _MAX_VOICE_DELAY_S)
        return due_s

    @property
    def lag_s(self) -> float:
        """How long after its moment a picture is seen: drawing and sending."""
        if self._stamps:
            return 0.0
        told = self._meter.summary()
        return (told.get("draw", (0.0, 0.0))[0] + told.get("send", (0.0, 0.0))[0]) / 1e3

    # --- the thread ---

    def _run(self) -> None:
        due_s = self._clock()
        try:
            while not self._stopping.is_set():
                self._one()
                fps = self._fps if self._renderer is not None else min(self._fps, _CARD_FPS)
                due_s = max(due_s + 1 / fps, self._clock() - 1 / fps)
                self._stopping.wait(max(due_s - self._clock(), 0.0))
        except Exception as error:  # whatever ends this thread ends the call with a reason, and is no still picture
            told = isinstance(error, OSError | ValueError)
            self.failure = error if told else ValueError(f"drawing failed ({type(error).__name__}: {error})")
            log.debug("the screen failed", exc_info=True)

    def _one(self) -> None:
        now = self._clock()
        with self._lock:
            if self._coming is not None:
                before, self._renderer, self._coming = self._renderer, self._coming, None
                self._old, self._changed_s = before, now
            shown, words = self._jitter.at(now), self._words
            sender_s, last_s = self._jitter.sender_s(now), self._last_face_s
        picture = self._drawn(shown, now)
        if isinstance(shown.face, Face) and self._renderer is not None:
            if self.first_face_s is None:
                self.first_face_s = now
                log.info("the first face, at %.3f", time.time())
            words = ""
        if not words and last_s is not None and now - last_s > _SIGNAL_S:
            words = f"no signal for {now - last_s:.0f} s"
        elif not words and self._renderer is None:
            words = "the sender's avatar is on its way"
        elif not words and shown.showing == "waiting":
            words = "connected, waiting for a face"
        if words or picture is None:
            picture = self._written(picture, words)
        self.picture = Picture(words, shown.showing, shown.delay_ms, sender_s)
        drawn = self._clock()
        self._meter.add("draw", (drawn - now) * 1e3)
        self.first_picture_s = self.first_picture_s or now
        self._sink.send(Frame(picture, now))
        self._meter.add("send", (self._clock() - drawn) * 1e3)

    def _drawn(self, shown: Shown, now: float) -> Image | None:
        """The avatar; None while there is none."""
        if self._renderer is None:
            return None
        face = shown.face or NoFace(now)
        picture = self._renderer.draw(face).rgb
        if self._old is not None:
            share = (now - self._changed_s) / _CROSSFADE_S
            if share >= 1:
                self._old = None
            else:
                before = self._old.draw(face).rgb
                return np.asarray(cv2.addWeighted(before, 1 - share, picture, share, 0), np.uint8)
        return picture

    def _written(self, picture: Image | None, words: str) -> Image:
        """Words on a card, or in a strip along the lower edge of the avatar."""
        if picture is None:
            if self._card is None or self._card[0] != words:
                self._card = words, cards.telling_card((self.size_px, self.size_px), words)
            return self._card[1]
        out = picture.copy()
        scale = self.size_px / 512
        (wide, tall), _ = cv2.getTextSize(words, cv2.FONT_HERSHEY_DUPLEX, 0.6 * scale, 1)
        strip = round(tall + 18 * scale)
        out[-strip:] = out[-strip:] // 3
        place = ((self.size_px - wide) // 2, self.size_px - (strip - tall) // 2)
        cv2.putText(out, words, place, cv2.FONT_HERSHEY_DUPLEX, 0.6 * scale, (245, 245, 245), 1, cv2.LINE_AA)
        return out


# --- the loop ---


class Receiver:
    """`run` until `stop`, `seconds`, or a sink that fails (then it raises what the sink raised)."""

    def __init__(
        self,
        config: Config,
        screen: Screen,
        base: Base,
        meter: Rolling,
        say: Callable[[str], None],
        known: Known,
        incoming: Incoming,
        hears: Hears = "none",
        voice_file: Path | None = None,
        make_renderer: Callable[[Avatar], Draws] | None = None,
        qr_file: Path | None = None,
        stay: bool = True,
    ) -> None:
        """`say` is told what the user should know; a line that begins with a carriage return is the status line.

        `stay` False: end when the sender ends the call. Raises `ValueError` for settings that cannot work.
        """
        self._config, self.screen, self._base, self._meter, self._say = config, screen, base, meter, say
        self._known, self._incoming, self._stay = known, incoming, stay
        self._make_renderer = make_renderer or self._renderer_for
        self._ice = ice_servers(config)
        self._decoder = Decoder()
        self._transport: Transport | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._ended = asyncio.Event()
        self._reception: Reception[Transport] | None = None
        self._door: Door | None = None
        self._hears, self._voice_file, self._qr_file = hears, voice_file, qr_file
        self._timeline = Timeline()
        self._speaker: Loudspeaker | None = None
        self._recorder: Recorder | None = None
        self._damaged = 0
        self._said_bye = False
        self._shown = ""
        self._newest = 0
        self.code: Code | None = None
        self.link: Link | None = None
        self.connections = 0
        self.voice_s = 0.0
        """How much voice came."""
        self.skew_ms: deque[float] = deque(maxlen=1000)
        """How much later than its lips each piece of sound came: 0 for all that came in time."""

    async def run(self, seconds: float | None = None) -> None:
        """Raises `ValueError`/`OSError` with one sentence when it cannot begin, or the sink fails."""
        self._open_voice()
        rendezvous, door, announcement = await self._open_door()
        self._door = door
        sessions = [one.session for one in self._known.all("receiver")][:32]
        self._reception = Reception(door, self, sessions, 60 * self._config.link.code_minutes, announcement)
        self._start(asyncio.to_thread(_warm_up))
        running = asyncio.ensure_future(self._reception.run())
        self.screen.start()
        status = asyncio.ensure_future(self._tell())
        ending = asyncio.ensure_future(self._ended.wait())
        try:
            done, _ = await asyncio.wait([running, ending], timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if running in done:
                running.result()
            if self.screen.failure is not None:
                raise self.screen.failure
        finally:
            for task in (running, status, ending, *self._tasks):
                task.cancel()
            await asyncio.gather(running, status, ending, *self._tasks, return_exceptions=True)
            await self._hang_up()
            if rendezvous is not None:
                await rendezvous.stop()
            await asyncio.to_thread(self.screen.stop)
            self._close_voice()

    def stop(self) -> None:
        """Ends `run`; from the event loop."""
        self._ended.set()

    async def _open_door(self) -> tuple[Rendezvous | None, Door, Announcement | None]:
        link = self._config.link
        if link.rendezvous:
            tls = signaling.client_tls(link.rendezvous_ca) if link.rendezvous_ca else None
            return None, Door(link.rendezvous.rstrip("/"), tls=tls), None
        token = Door("").token
        rendezvous = Rendezvous(only_token=token)
        await rendezvous.start("0.0.0.0", link.port)
        announcement = Announcement(rendezvous.port) if link.announce else None
        return rendezvous, Door(f"http://127.0.0.1:{rendezvous.port}", token), announcement

    # --- the desk (`plugin.reception.Desk`) ---

    async def answer(self, offer: str) -> tuple[str, Transport]:
        transport = Transport(self._ice, self._config.link.route, receive_only=True)
        try:
            return await transport.answer(offer), transport
        except (ValueError, TransportError) as error:
            await transport.close()
            raise PairingError(str(error)) from error

    async def welcome(self, guest: Transport, session: SessionKey, code: Code | None) -> None:
        if code is not None and self._config.link.remember_h:
            until_s = time.time() + 3600 * self._config.link.remember_h
            try:
                self._known.remember(Meeting(session.secret.hex(), "receiver", until_s, code=str(code)))
            except ValueError as error:
                self._say(str(error))
        if self._reception is not None:
            self._reception.want(False)
        self._start(self._serve(guest))

    def show(self, code: Code) -> None:
        assert self._door is not None
        address = self._door.address
        if not self._config.link.rendezvous:
            port = address.rpartition(":")[2]
            address = f"http://{signaling.own_addresses()[0]}:{port}"
        self.code, self.link = code, Link(address, code)
        qr = segno.make(str(self.link), error="m")
        if self._qr_file is not None:
            try:
                qr.save(str(self._qr_file), scale=8, border=4)
            except OSError as error:
                self._say(f"cannot write {self._qr_file}: {error.strerror}")
        drawn = _terminal(qr)
        self._say(
            f"{drawn}\non the other computer, type:   understudy send {code}\n"
            f"or, on another network:        understudy send '{self.link}'\n"
            f"good for one sender and {self._config.link.code_minutes:g} minutes"
        )

    def say(self, sentence: str) -> None:
        self._say(sentence)

    # --- being connected ---

    async def _serve(self, transport: Transport) -> None:
        """From the moment a sender proved itself until its line is gone. A new one takes the place of the old."""
        self._newest += 1
        number = self._newest
        before, self._transport = self._transport, transport
        if before is not None:
            await before.close()
        self._decoder = Decoder()
        transport.on_face = self._face
        transport.on_message = lambda kind, payload: self._message(transport, kind, payload)
        transport.on_state = self._state
        try:
            await transport.connected()
            self.connections += 1
            self._say("connected")
            self.screen.say("")
            if transport.voice_received is not None:
                self._start(self._hear(transport))
            while transport.state not in ("failed", "closed"):
                await asyncio.sleep(_WAKE_S)
        except TransportError as error:
            log.info("%s", error)
        finally:
            await transport.close()
        if number == self._newest:
            self._transport = None
            ended = self._said_bye
            self._say("the sender ended the call" if ended else f"{transport.reason or 'the line was lost'}; waiting")
            self.screen.say("the sender ended the call" if ended else "")
            if not self._ended.is_set():
                self._start(self._welcome_another(number, 0.0 if self._said_bye else _NEW_CODE_S))
            self._said_bye = False

    async def _welcome_another(self, number: int, after_s: float) -> None:
        await asyncio.sleep(after_s)
        if number == self._newest and self._transport is None and self._reception is not None:
            self._reception.want(True)

    async def _hang_up(self) -> None:
        transport, self._transport = self._transport, None
        if transport is not None:
            with contextlib.suppress(TransportError, TimeoutError):
                async with asyncio.timeout(1.0):
                    if transport.state == "connected":
                        await transport.send_message("bye", b"")
                        await asyncio.sleep(0.2)
            await transport.close()

    def _face(self, packet: bytes) -> None:
        try:
            coded = self._decoder.decode(packet)
        except CodecError as error:
            self._damaged += 1
            log.info("%s", error)
            return
        now = time.monotonic()
        self._meter.add("packets")
        self.screen.put(coded, now)

    def _state(self, state: State, sentence: str) -> None:
        if state == "interrupted":
            self._say(f"no signal: {sentence}")

    def _message(self, transport: Transport, kind: str, payload: bytes) -> None:
        try:
            if kind == "face/header":
                self._decoder.feed_header(payload)
                self._lead()
            elif kind == "avatar/offer":
                want, avatar = self._incoming.offered(payload)
                self._start(transport.send_message("avatar/want", want))
                if avatar is not None and self._incoming.sha256 != self._shown:
                    self._shown = self._incoming.sha256
                    self._start(self._dress(avatar, "known already"))
            elif kind == "avatar/preview":
                self._start(self._preview(transport, payload))
            elif kind == "avatar/part":
                if (avatar := self._incoming.part(payload)) is not None:
                    self._shown = self._incoming.sha256
                    self._start(self._dress(avatar, "whole"))
            elif kind == "bye":
                self._said_bye = True
                if not self._stay:
                    self.stop()
        except CodecError as error:
            log.info("%s", error)
        except AvatarTransferError as error:
            self._refuse(transport, error)

    def _lead(self) -> None:
        """Both ends take the neutral face that the sender found."""
        renderer, neutral = self.screen.renderer, self._decoder.neutral
        if isinstance(renderer, Renderer) and neutral is not None:
            renderer.retarget.finder.lead(neutral)

    def _refuse(self, transport: Transport, error: AvatarTransferError) -> None:
        self._say(str(error))
        self._start(transport.send_message("avatar/refused", str(error).encode()))

    async def _preview(self, transport: Transport, payload: bytes) -> None:
        try:
            avatar = self._incoming.preview(payload)
        except AvatarTransferError as error:
            self._refuse(transport, error)
            return
        await self._dress(avatar, f"a preview of {len(payload) / 1000:.0f} kB")
        if transport.state == "connected" and not self._incoming.complete:
            await transport.send_message("avatar/want", self._incoming.wanted())

    async def _dress(self, avatar: Avatar, how: str) -> None:
        try:
            renderer = await asyncio.to_thread(self._made, avatar)
        except ValueError as error:
            self._say(f"the sender's avatar cannot be drawn: {error}")
            return
        self.screen.wear(renderer)
        self._lead()
        self._say(f"the sender's avatar is here ({how})")

    def _made(self, avatar: Avatar) -> Draws:
        renderer = self._make_renderer(avatar)
        renderer.warm_up()
        return renderer

    def _renderer_for(self, avatar: Avatar) -> Draws:
        renderer = Renderer(avatar, self._base, self._config)
        before = self.screen.renderer
        if isinstance(before, Renderer):
            renderer.retarget.finder = before.retarget.finder  # the driver's neutral face is known already
        return renderer

    def _start(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            if isinstance(error, TransportError):
                log.info("%s", error)
            else:
                self._say(f"something went wrong and was left alone: {' '.join(str(error).split())}")
                log.debug("a task failed", exc_info=error)

    # --- the voice ---

    def _open_voice(self) -> None:
        try:
            if self._hears == "loudspeaker":
                self._speaker = Loudspeaker(self._timeline)
            elif self._hears == "file" and self._voice_file is not None:
                self._recorder = Recorder(self._timeline, self._voice_file)
        except VoiceError as error:
            self._say(f"{error}; the call goes on without a voice")

    def _close_voice(self) -> None:
        if self._speaker is not None:
            self._speaker.close()
        if self._recorder is not None:
            self._recorder.finish(time.monotonic())

    async def _hear(self, transport: Transport) -> None:
        """Each piece of sound onto the timeline, to be heard when its lips are seen."""
        voice = transport.voice_received
        if voice is None or (self._speaker is None and self._recorder is None):
            return
        while transport.state not in ("failed", "closed"):
            try:
                frame = await voice.recv()
            except MediaStreamError:
                return  # the line has ended
            now = time.monotonic()
            if not voice.clock_known or frame.time is None:
                continue
            due_s = self.screen.voice_due_s(frame.time, now)
            if due_s is None:
                continue
            samples = np.asarray(frame.to_ndarray(), np.int16).reshape(-1)
            self._timeline.put(samples, due_s)
            self.skew_ms.append(1e3 * max(now - due_s, 0.0))
            self.voice_s += len(samples) / RATE_HZ

    async def _tell(self) -> None:
        """The recorder's pump, and the status line once a second."""
        last: dict[str, int] = {}
        ticks = 0
        while True:
            await asyncio.sleep(_WAKE_S)
            if self.screen.failure is not None:
                self._ended.set()
            if self._recorder is not None and self.screen.first_picture_s is not None:
                self._recorder.begin(self.screen.first_picture_s)
                self._recorder.pump(time.monotonic() - 0.2)
            ticks += 1
            if ticks % 5 or self._transport is None:
                continue
            told = self._transport.stats()
            counted = {name: told[name]["in_bytes"] for name in ("face", "voice", "wire")}
            kbps = {name: 8e-3 * (count - last.get(name, 0)) for name, count in counted.items()}
            last = counted
            picture = self.screen.picture
            draw = self._meter.summary().get("draw", (0.0, 0.0))[0]
            self._say(
                f"\r{picture.words or picture.showing} | {self._meter.rate('draw'):4.1f} pictures/s, "
                f"{self._meter.rate('packets'):4.1f} packets/s | face {max(kbps['face'], 0):.1f}, "
                f"voice {max(kbps['voice'], 0):.1f}, all {max(kbps['wire'], 0):.1f} kbit/s | delay "
                f"{picture.delay_ms:.0f} ms, draw {draw:.0f} ms | avatar {100 * self._incoming.progress:.0f} %"
                + (f" | {self._damaged} packets damaged" if self._damaged else "")
            )


def _warm_up() -> None:
    """What takes its time at the first face, loaded while nobody is there yet."""
    canonical_face()
    core()


def _terminal(qr: segno.QRCode) -> str:
    with io.StringIO() as drawn:
        qr.terminal(drawn, border=2, compact=True)
        return drawn.getvalue()


__all__ = ["Receiver", "Screen"]
