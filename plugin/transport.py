"""One peer connection over unmodified aiortc: bytes in, bytes out; knows nothing of faces.

A face packet takes one of three routes to the other side, and arrives or does not; nothing stale is ever queued:

    audio        in the padding of the voice's own packets: no headers at all, in step with the lips (`plugin.routes`)
    rtp          the same packets without a voice in them: an RTP stream of the face alone
    datachannel  an unreliable, unordered datachannel: the one that always works, at 97 bytes a packet and 95 back

Messages (`send_message`) go over a second, reliable datachannel, in chunks, and wait for the line instead of filling
it. Everything here runs on one event loop; callbacks are called on it, in order, and may raise without harm.

aiortc's receiver hands every packet to its jitter buffer and decodes what comes out. Both are of no use here: they
hold four packets back and stop for sixteen when one is lost. So `_Tap` takes the jitter buffer's place: it sees each
packet as it arrives, and RTCP goes on as before.
"""

from __future__ import annotations

import asyncio
import logging
import re
import struct
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import aioice.ice
from aiortc import (
    MediaStreamTrack,
    RTCBundlePolicy,
    RTCConfiguration,
    RTCDataChannel,
    RTCIceServer,
    RTCIceTransport,
    RTCPeerConnection,
    RTCRtpSender,
    RTCRtpTransceiver,
    RTCSessionDescription,
)
from aiortc.exceptions import InternalError, InvalidAccessError, InvalidStateError, OperationError
from aiortc.rtcconfiguration import RTCIceTransportPolicy

from plugin.routes import MAX_RIDER_BYTES, Opus, dismount, split
from plugin.voice import Carrier, VoiceReceived

log = logging.getLogger(__name__)

Route = Literal["datachannel", "rtp", "audio", "auto"]
State = Literal["new", "connecting", "connected", "interrupted", "failed", "closed"]

CONNECT_S = 30.0
"""A handshake that has not ended by then has failed."""
INTERRUPTED_S = 3.0
"""No packet for so long, RTCP included, and the connection counts as interrupted."""
MAX_SDP_BYTES = 64 * 1024
MAX_MESSAGE_BYTES = 4 * 1024 * 1024
MAX_KIND_BYTES = 64
MAX_OPEN_MESSAGES = 8
"""Messages that the other side may have begun and not ended."""
MAX_PACKETS_PER_S = 400
"""Faces, voice and messages come in a few tens a second; ten times that is a flood."""
MAX_FOREIGN_CHANNELS = 8
FACE_CHANNEL, MESSAGE_CHANNEL = 100, 101
"""Beyond the first numbers, which browsers and SFUs give to channels of their own."""

_CHUNK = struct.Struct("!BB")
_BEGIN = struct.Struct("!IB")
_ALIVE_TYPE, _BEGIN_TYPE, _MORE_TYPE, _ACK_TYPE, _DROP_TYPE = 0, 1, 2, 3, 4


@dataclass(frozen=True, slots=True)
class _Pace:
    delay_s: float
    """How much delay of its own a message may put into the line (the idea of LEDBAT, RFC 6817)."""
    chunk_bytes: int
    first_window: float


_QUICK = _Pace(0.5, 1024, 4.0)
_BACKGROUND = _Pace(0.06, 256, 1.0)

_SDP_ERRORS = (
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    InternalError,
    InvalidAccessError,
    InvalidStateError,
    OperationError,
)


class TransportError(ConnectionError):
    """What went wrong with the connection, in one sentence."""


@dataclass(frozen=True, slots=True)
class IceServers:
    """STUN and TURN servers; none is contacted unless named here."""

    urls: tuple[str, ...] = ()
    """`stun:host:port`, `turn:host:port?transport=udp|tcp`, `turns:host:port`."""
    username: str | None = None
    credential: str | None = None
    relay_only: bool = False
    """Only through TURN: the other side never learns this machine's address."""

    def __post_init__(self) -> None:
        for url in self.urls:
            if not re.fullmatch(r"(stuns?|turns?):[^\s/?]+(\?transport=(udp|tcp))?", url):
                raise ValueError(f'write a server as "stun:host:3478" or "turn:host:3478?transport=udp", not {url!r}')
        if self.relay_only and not any(url.startswith("turn") for url in self.urls):
            raise ValueError("to connect through a relay only, name a TURN server")


@dataclass(slots=True)
class Traffic:
    """Bytes and packets of payload on one path, both ways."""

    out_bytes: int = 0
    out_packets: int = 0
    in_bytes: int = 0
    in_packets: int = 0

    def sent(self, count: int) -> None:
        self.out_bytes += count
        self.out_packets += 1

    def came(self, count: int) -> None:
        self.in_bytes += count
        self.in_packets += 1

    def told(self) -> dict[str, int]:
        return {
            "out_bytes": self.out_bytes,
            "out_packets": self.out_packets,
            "in_bytes": self.in_bytes,
            "in_packets": self.in_packets,
        }


@dataclass(slots=True)
class _Assembling:
    kind: str
    total: int
    parts: bytearray = field(default_factory=bytearray)


class Transport:
    """One connection; used once. After a change of address or a restart, make a new one: aiortc restarts no ICE."""

    def __init__(
        self,
        ice: IceServers | None = None,
        route: Route = "auto",
        voice: MediaStreamTrack | None = None,
        *,
        receive_only: bool = False,
        packet_ms: int = 60,
        face_interval_ms: int | None = None,
        voice_kbps: float = 10.0,
    ) -> None:
        """`voice` yields `AudioFrame`s whose time (pts x time_base) is on the clock of the faces' `time_s`.

        `packet_ms` (20, 40 or 60) is the sound in one packet; `face_interval_ms` is how often a face packet leaves
        on the two routes without a voice (None: what is best for the route). More of either saves headers and costs
        as much delay. `receive_only`: no face and no voice leaves this side, and no RTCP for them.
        """
        if packet_ms not in (20, 40, 60):
            raise ValueError(f"a voice packet holds 20, 40 or 60 ms, not {packet_ms}")
        if receive_only and voice is not None:
            raise ValueError("a side that only receives has no voice to send")
        ice = ice or IceServers()
        # aiortc writes the traceback of whatever a peer makes it stumble over; the sentence in on_state is enough.
        logging.getLogger("aiortc").setLevel(logging.ERROR)
        self._asked: Route = route
        self._voice = voice
        self._receive_only = receive_only
        self._face_interval_ms = face_interval_ms
        self._carrier: Carrier | None = None
        self._own_stream: Carrier | None = None
        self._packet_ms, self._voice_kbps = packet_ms, voice_kbps

        self.on_face: Callable[[bytes], None] | None = None
        """A face packet came."""
        self.on_message: Callable[[str, bytes], None] | None = None
        """A message came whole: its kind and its payload."""
        self.on_state: Callable[[State, str], None] | None = None
        """The state changed; the sentence says why, for the user to read ("" when there is nothing to say)."""
        self.on_room: Callable[[], None] | None = None
        """A packet is about to leave on this route: the moment to call `send_face` with what was gathered."""

        self.state: State = "new"
        self.reason = ""
        self.traffic = {"face": Traffic(), "voice": Traffic(), "message": Traffic(), "wire": Traffic()}
        self.dropped = {"stale": 0, "unread": 0, "flood": 0}
        self._rtt_ms: float | None = None
        self._loss: float | None = None
        self._route: Literal["datachannel", "rtp", "audio"] = "datachannel"
        self._voice_received: VoiceReceived | None = None

        self._waiting_face: bytes | None = None
        self._open_messages: dict[int, _Assembling] = {}
        self._acks: dict[int, asyncio.Queue[None]] = {}
        self._next_message = 0
        self._room = asyncio.Event()
        self._foreign_channels = 0
        self._recent: deque[float] = deque(maxlen=2 * MAX_PACKETS_PER_S)
        self._heard_s = self._spoke_s = 0.0
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closing = False
        self._hanging_up: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()

        servers = [RTCIceServer(list(ice.urls), ice.username, ice.credential)] if ice.urls else []
        self._peer = RTCPeerConnection(
            RTCConfiguration(
                iceServers=servers,
                iceTransportPolicy=RTCIceTransportPolicy.RELAY if ice.relay_only else RTCIceTransportPolicy.ALL,
                bundlePolicy=RTCBundlePolicy.MAX_BUNDLE,
            )
        )
        self._relay_only = ice.relay_only
        # Before any channel: aiortc, told to bundle, stops the transport of whatever section came first.
        self._add_audio()
        self._peer.on("connectionstatechange", self._connection_changed)
        self._peer.on("datachannel", self._foreign_channel)
        # Both ends know both channels by number: nothing is negotiated, and a peer can open no other.
        self._faces = self._peer.createDataChannel(
            "face", ordered=False, maxRetransmits=0, negotiated=True, id=FACE_CHANNEL
        )
        self._messages = self._peer.createDataChannel("message", negotiated=True, id=MESSAGE_CHANNEL)
        self._faces.on("message", self._face_message)
        self._messages.on("message", self._message_chunk)
        self._messages.on("bufferedamountlow", self._room.set)
        self._faces.on("bufferedamountlow", self._flush_face)
        self._messages.on("open", self._opened)
        self._messages.on("close", self._channel_closed)
        assert self._peer.sctp is not None
        self._ice = self._peer.sctp.transport.transport
        _refuse_empty_datagrams(self._ice)

    # --- meeting -----------------------------------------------------------------------------------------------

    async def offer(self) -> str:
        """A complete offer (SDP), candidates gathered. Raises `TransportError` where there is no network."""
        if self._asked == "rtp" and self._voice is not None:
            self._own_stream = self._new_carrier(None)
            _opus_only(self._peer.addTransceiver(self._own_stream, "sendrecv"))
        await self._peer.setLocalDescription(await self._peer.createOffer())
        self._set_state("connecting", "")
        return self._local_sdp()

    async def answer(self, offer: str) -> str:
        """The answer to an offer. Raises `ValueError` for an offer that cannot be understood."""
        offer = _checked(offer)
        try:
            await self._peer.setRemoteDescription(RTCSessionDescription(_without_extensions(offer), "offer"))
            self._adopt_audio()
            await self._peer.setLocalDescription(await self._peer.createAnswer())
        except _SDP_ERRORS as error:
            raise ValueError("the other side's offer cannot be understood; install the same version there") from error
        self._settle()
        self._set_state("connecting", "")
        return self._local_sdp()

    async def accept(self, answer: str) -> None:
        """Takes the answer to our offer. Raises `ValueError` for one that cannot be understood."""
        answer = _checked(answer)
        try:
            await self._peer.setRemoteDescription(RTCSessionDescription(_without_extensions(answer), "answer"))
        except _SDP_ERRORS as error:
            raise ValueError("the other side's answer cannot be understood; install the same version there") from error
        self._settle()

    @property
    def local_fingerprint(self) -> str:
        """Of this side's DTLS certificate, "sha-256 AB:CD:..."; known after `offer` or `answer`."""
        return _fingerprint(self._peer.localDescription.sdp)

    @property
    def remote_fingerprint(self) -> str:
        """Of the certificate that the other side must show, or DTLS fails; known after `answer` or `accept`."""
        return _fingerprint(self._peer.remoteDescription.sdp)

    @property
    def route(self) -> Literal["datachannel", "rtp", "audio"]:
        """The way faces take; settled by `answer` and `accept`."""
        return self._route

    @property
    def face_interval_s(self) -> float:
        """How often a face packet leaves, and how much time of faces it should hold."""
        if self._route == "audio":
            return self._packet_ms / 1000
        if self._face_interval_ms is not None:
            return self._face_interval_ms / 1000
        return 0.2 if self._route == "datachannel" else 0.1

    @property
    def voice_kbps(self) -> float:
        """What this side's voice may take; set it when the line gets better or worse."""
        return self._voice_kbps

    @voice_kbps.setter
    def voice_kbps(self, kbps: float) -> None:
        if not 6 <= kbps <= 64:
            raise ValueError(f"a voice takes 6 to 64 kbit/s, not {kbps:g}")
        self._voice_kbps = kbps
        if self._carrier is not None:
            self._carrier.kbps = kbps

    @property
    def muted(self) -> bool:
        """No voice leaves this side; faces go on. Also what keeps a thin line free for a message that must be quick."""
        return self._carrier is not None and self._carrier.muted

    @muted.setter
    def muted(self, muted: bool) -> None:
        if self._carrier is not None:
            self._carrier.muted = muted

    @property
    def voice_received(self) -> VoiceReceived | None:
        """The other side's voice; None until it is known that there may be one."""
        return self._voice_received

    async def connected(self) -> None:
        """Returns once faces and messages pass. Raises `TransportError` when that will not happen."""
        while self.state in ("new", "connecting"):
            await asyncio.sleep(0.02)
        if self.state in ("failed", "closed"):
            raise TransportError(self.reason or "the connection was closed")

    # --- faces -------------------------------------------------------------------------------------------------

    def send_face(self, packet: bytes) -> None:
        """Sends a packet as soon as the route has room; a newer one takes its place if there is none until then."""
        if len(packet) > MAX_RIDER_BYTES:
            raise ValueError(f"a face packet holds at most {MAX_RIDER_BYTES} bytes, not {len(packet)}")
        if self._closing or not packet:
            return
        if self._route != "datachannel" and self._carrier is not None:
            self.dropped["stale"] += self._carrier.load(packet)
            return
        if self._waiting_face is not None:
            self.dropped["stale"] += 1
        self._waiting_face = packet
        self._flush_face()

    def _flush_face(self) -> None:
        # Whatever aiortc is given, it sends, however late (aiortc#547): so it is given one packet at a time.
        if self._waiting_face is None or self._faces.readyState != "open" or self._faces.bufferedAmount:
            return
        packet, self._waiting_face = self._waiting_face, None
        self._faces.send(packet)
        self.traffic["face"].sent(len(packet))

    async def _pace(self) -> None:
        """Asks for a face at the route's own interval, where no voice packet does."""
        due_s = self._loop.time()
        while not self._closing:
            due_s = max(due_s + self.face_interval_s, self._loop.time())
            await asyncio.sleep(due_s - self._loop.time())
            if self._route != "audio" and self.state in ("connected", "interrupted"):
                self._ask()

    def _ask(self) -> None:
        if self.on_room is None or self._closing:
            return
        try:
            self.on_room()
        except Exception:  # whatever a face dies of: raised here, it would end aiortc's sender and the voice with it
            log.exception("on_room failed; no face in this packet")

    def _face_message(self, packet: bytes | str) -> None:
        if self._admitted() and isinstance(packet, bytes):
            self._face_came(packet)

    def _face_came(self, packet: bytes) -> None:
        self.traffic["face"].came(len(packet))
        self._call(self.on_face, packet)

    # --- messages ----------------------------------------------------------------------------------------------

    async def send_message(self, kind: str, payload: bytes, *, background: bool = False) -> None:
        """Sends a message reliably, in chunks, and returns when the other side has all of it.

        Chunks go out as fast as the line takes them, which shows in how long their receipts take: half a second of
        delay of its own is what a message may put into the line, and 60 ms if it is in the `background`, where faces
        and voice must not notice. Messages of several kinds may be under way at once.
        Raises `TransportError` when the connection ends before.
        """
        told = kind.encode()
        if not 0 < len(told) <= MAX_KIND_BYTES:
            raise ValueError(f"the kind of a message has 1 to {MAX_KIND_BYTES} bytes, not {len(told)}")
        if len(payload) > MAX_MESSAGE_BYTES:
            raise ValueError(f"a message holds at most {MAX_MESSAGE_BYTES} bytes, not {len(payload)}")
        await self.connected()
        if len(self._acks) >= MAX_OPEN_MESSAGES:
            raise ValueError(f"at most {MAX_OPEN_MESSAGES} messages can be under way at once")
        while (number := self._next_message % 256) in self._acks:
            self._next_message += 1
        self._next_message += 1
        head = _CHUNK.pack(_BEGIN_TYPE, number) + _BEGIN.pack(len(payload), len(told)) + told
        self._acks[number] = asyncio.Queue()
        try:
            await self._send_chunks(number, head, payload, _BACKGROUND if background else _QUICK)
        except asyncio.CancelledError:
            self._control(_DROP_TYPE, number)
            raise
        finally:
            del self._acks[number]

    async def _send_chunks(self, number: int, head: bytes, payload: bytes, pace: _Pace) -> None:
        """A window of chunks without receipt that grows while the line's delay stays low and shrinks when it rises."""
        sent_s: deque[float] = deque()
        window, least_s, at, doubling, shrunk_s = pace.first_window, float("inf"), 0, pace.first_window > 1, 0.0
        while at < len(payload) or sent_s or not at:
            while (at < len(payload) or not at) and len(sent_s) < window:
                # A window that grew large sends larger chunks: fewer receipts.
                size = pace.chunk_bytes * min(max(int(window) // 8, 1), 16)
                await self._hand_over((_CHUNK.pack(_MORE_TYPE, number) if at else head) + payload[at : at + size])
                sent_s.append(self._loop.time())
                at += size
            await self._alive(self._acks[number].get())
            chunk_s = sent_s.popleft()
            delay_s = self._loop.time() - chunk_s
            least_s = min(least_s, delay_s)
            if delay_s - least_s < pace.delay_s:
                window = min(window + (1.0 if doubling else 1 / window), 64.0)
            elif chunk_s > shrunk_s:  # once for all chunks that were under way
                window, doubling, shrunk_s = max(0.7 * window, 1.0), False, self._loop.time()

    def _control(self, what: int, number: int) -> None:
        if self._messages.readyState == "open":
            self._messages.send(_CHUNK.pack(what, number))

    async def _hand_over(self, chunk: bytes) -> None:
        while self._messages.bufferedAmount:
            self._room.clear()
            if self._messages.bufferedAmount:
                await self._alive(self._room.wait())
        if self._messages.readyState != "open":
            raise TransportError(self.reason or "the connection ended before the message was sent")
        self._messages.send(chunk)
        self.traffic["message"].sent(len(chunk))

    async def _alive(self, waited_for: Any) -> None:
        """Waits, and raises `TransportError` when the connection ends meanwhile."""
        task = asyncio.ensure_future(waited_for)
        try:
            while not task.done():
                await asyncio.wait([task], timeout=0.5)
                if self.state in ("failed", "closed"):
                    raise TransportError(self.reason or "the connection ended before the message was sent")
        finally:
            task.cancel()

    def _message_chunk(self, chunk: bytes | str) -> None:
        if not isinstance(chunk, bytes) or len(chunk) < _CHUNK.size:
            self.dropped["unread"] += self._admitted()
            return None
        self.traffic["message"].came(len(chunk))
        what, number = _CHUNK.unpack_from(chunk)
        rest = chunk[_CHUNK.size :]
        if what == _ACK_TYPE and number in self._acks:
            self._acks[number].put_nowait(None)
            return None
        if what == _ALIVE_TYPE and self._admitted():
            return None
        # A large message comes as fast as the line can; only small chunks can come too often.
        if len(chunk) < _BACKGROUND.chunk_bytes and not self._admitted():
            return None
        if what == _DROP_TYPE:
            self._open_messages.pop(number, None)
            return None
        if what == _BEGIN_TYPE:
            if len(rest) < _BEGIN.size:
                return self._refuse("it sent a message that cannot be read")
            total, kind_bytes = _BEGIN.unpack_from(rest)
            kind = rest[_BEGIN.size : _BEGIN.size + kind_bytes].decode(errors="replace")
            if total > MAX_MESSAGE_BYTES:
                return self._refuse(f"it announced a message of {total} bytes, {MAX_MESSAGE_BYTES} is the most")
            if len(self._open_messages) >= MAX_OPEN_MESSAGES:
                return self._refuse(f"it began more than {MAX_OPEN_MESSAGES} messages at once")
            self._open_messages[number] = _Assembling(kind, total)
            rest = rest[_BEGIN.size + kind_bytes :]
        message = self._open_messages.get(number)
        if message is None or what not in (_BEGIN_TYPE, _MORE_TYPE):
            self.dropped["unread"] += 1
            return None
        message.parts += rest
        if len(message.parts) > message.total:
            return self._refuse("it sent more of a message than it had announced")
        self._control(_ACK_TYPE, number)
        if len(message.parts) == message.total:
            del self._open_messages[number]
            self._call(self.on_message, message.kind, bytes(message.parts))
        return None

    # --- bounds ------------------------------------------------------------------------------------------------

    def _admitted(self) -> bool:
        """Counts one packet of whatever kind; False, and soon the end, when there are too many."""
        now_s = self._loop.time()
        if len(self._recent) == self._recent.maxlen and now_s - self._recent[0] < 2.0:
            self.dropped["flood"] += 1
            self._refuse(f"it sent more than {MAX_PACKETS_PER_S} packets a second")
            return False
        self._recent.append(now_s)
        return not self._closing

    def _foreign_channel(self, channel: RTCDataChannel) -> None:
        self._foreign_channels += 1
        channel.close()
        if self._foreign_channels > MAX_FOREIGN_CHANNELS:
            self._refuse(f"it opened more than {MAX_FOREIGN_CHANNELS} channels of its own")

    def _refuse(self, why: str) -> None:
        self._end("failed", f"the other side was disconnected: {why}")

    # --- states ------------------------------------------------------------------------------------------------

    def stats(self) -> dict[str, Any]:
        """Bytes and packets on each path (payload; `wire`: with RTP, SRTP, SCTP and DTLS, without IP and UDP), both
        ways; `rtt_ms` and `loss` (0..1, of what this side sends), None until known; `route`; `state`."""
        return {
            "state": self.state,
            "route": self._route,
            "packet_ms": self._packet_ms,
            "rtt_ms": self._rtt_ms,
            "loss": self._loss,
            "silent_s": self._loop.time() - self._heard_s if self._heard_s else None,
            "dropped": dict(self.dropped),
            **{name: traffic.told() for name, traffic in self.traffic.items()},
        }

    async def close(self) -> None:
        """Hangs up. The other side sees it at once, if the line still stands."""
        self._closing = True
        self._set_state("closed", self.reason)
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._voice_received is not None:
            self._voice_received.stop()
        await asyncio.shield(self._hang_up())

    def _end(self, state: Literal["failed", "closed"], reason: str) -> None:
        if self.state in ("failed", "closed"):
            return
        self._closing = True
        self._set_state(state, reason)
        self._hang_up()

    def _hang_up(self) -> asyncio.Task[None]:
        """Closes aiortc's connection, once: begun twice or broken off, it never ends."""
        if self._hanging_up is None:
            self._hanging_up = self._loop.create_task(self._close_peer())
        return self._hanging_up

    async def _close_peer(self) -> None:
        try:
            await asyncio.wait_for(self._peer.close(), 5.0)
        except (TimeoutError, ConnectionError, AttributeError):
            # A description that aiortc stumbled over leaves it half built, and it cannot take that down itself.
            await self._ice.stop()

    def _set_state(self, state: State, reason: str) -> None:
        if state == self.state or self.state in ("failed", "closed"):
            return
        first = self.state == "new"
        self.state, self.reason = state, reason
        if first and state == "connecting":
            self._start(self._watch())
            self._start(self._pace())
        self._call(self.on_state, state, reason)

    def _connection_changed(self) -> None:
        if self._peer.connectionState == "failed":
            self._end("failed", "no way to the other side was found; a TURN server in config.toml may help")

    def _opened(self) -> None:
        self._heard_s = self._loop.time()
        self._set_state("connected", "")
        self._flush_face()

    def _channel_closed(self) -> None:
        if not self._closing:
            self._end("closed", "the other side hung up")

    async def _watch(self) -> None:
        """Twice a second: what has been heard, whether it is time to worry."""
        began_s = self._loop.time()
        addresses = _addresses()
        while not self._closing:
            await asyncio.sleep(0.5)
            await self._look()
            now_s = self._loop.time()
            if self.state == "connecting" and now_s - began_s > CONNECT_S:
                self._end("failed", f"the other side stopped answering: no connection within {CONNECT_S:.0f} s")
            elif self.state == "connected" and now_s - self._heard_s > INTERRUPTED_S:
                self._set_state("interrupted", f"nothing was heard for {INTERRUPTED_S:.0f} s")
            elif self.state == "connected" and not addresses & _addresses():
                self._set_state("interrupted", "this machine's address changed")
            elif self.state == "interrupted" and now_s - self._heard_s < 1.0 and addresses & _addresses():
                self._set_state("connected", "")

    async def _look(self) -> None:
        report = await self._peer.getStats()
        lost: list[float] = []
        for one in report.values():
            if one.type == "transport":
                wire = self.traffic["wire"]
                if one.packetsSent != wire.out_packets:
                    self._spoke_s = self._loop.time()
                wire.out_bytes, wire.out_packets = one.bytesSent, one.packetsSent
                wire.in_bytes = one.bytesReceived
                if one.dtlsState == "closed" and not self._closing:
                    self._end("closed", "the other side hung up")
                    return
                if one.packetsReceived != wire.in_packets:
                    self._heard_s = self._loop.time()
                wire.in_packets = one.packetsReceived
            elif one.type == "remote-inbound-rtp":
                if one.roundTripTime is not None:
                    self._rtt_ms = one.roundTripTime * 1e3
                lost.append(one.fractionLost / 256)
        idle_s = self._loop.time() - self._spoke_s
        if idle_s > 0.6 * INTERRUPTED_S and self._messages.readyState == "open" and not self._messages.bufferedAmount:
            self._control(_ALIVE_TYPE, 0)  # where no RTCP does, this says that the line stands
        if lost:
            self._loss = max(lost)
        if self._peer.sctp is not None and not lost and self._peer.sctp._srtt is not None:
            self._rtt_ms = self._peer.sctp._srtt * 1e3

    def _call(self, callback: Callable[..., None] | None, *given: Any) -> None:
        if callback is not None:
            self._loop.call_soon(callback, *given)

    def _start(self, coroutine: Any) -> None:
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- sound and what rides in it ----------------------------------------------------------------------------

    def _add_audio(self) -> None:
        """One section of sound: the voice, the face's own stream, or what the other side sends."""
        sends = not self._receive_only and (self._voice is not None or self._asked != "datachannel")
        if sends:
            self._carrier = self._new_carrier(self._voice)
        _opus_only(self._peer.addTransceiver(self._carrier or "audio", "sendrecv" if sends else "recvonly"))

    def _new_carrier(self, voice: MediaStreamTrack | None) -> Carrier:
        carrier = Carrier(voice, self._packet_ms, self._voice_kbps)
        carrier.on_sent = self._carried
        return carrier

    def _adopt_audio(self) -> None:
        """The offer had more sections of sound than ours: they are received, in Opus."""
        for transceiver in self._peer.getTransceivers():
            if transceiver.kind == "audio":
                _opus_only(transceiver)

    def _settle(self) -> None:
        """Both descriptions are there: the route is known, and what is received gets its taps."""
        transceivers = [one for one in self._peer.getTransceivers() if one.kind == "audio"]
        sending = [one.sender.track for one in transceivers if one.currentDirection in ("sendonly", "sendrecv")]
        if self._own_stream is not None and self._own_stream in sending:
            self._carrier, self._route = self._own_stream, "rtp"
        elif self._asked != "datachannel" and self._carrier is not None and self._carrier in sending:
            self._route = "rtp" if self._voice is None else "audio"
            self._carrier.on_room = self._ask if self._route == "audio" else None
        else:
            self._route = "datachannel"
        for transceiver in transceivers:
            if transceiver.currentDirection in ("recvonly", "sendrecv"):
                if self._voice_received is None:
                    self._voice_received = VoiceReceived()
                _tap(transceiver, _Tap(self))

    def _carried(self, sound_bytes: int, face_bytes: int) -> None:
        if face_bytes:
            self.traffic["face"].sent(face_bytes)
        if sound_bytes:
            self.traffic["voice"].sent(sound_bytes)

    def _opus_came(self, sequence: int, timestamp: int, packet: bytes) -> None:
        if not self._admitted():
            return
        try:
            opus = split(packet)
        except ValueError:
            self.dropped["unread"] += 1
            return
        rider = dismount(opus)
        if rider.face:
            self._face_came(rider.face)
        if self._voice_received is not None:
            if not opus.silent:
                self.traffic["voice"].came(sum(map(len, opus.frames)))
            self._voice_received.add(sequence, timestamp, Opus(opus.config, opus.frames), rider.clock)

    def _local_sdp(self) -> str:
        sdp = _without_extensions(self._peer.localDescription.sdp)
        if "a=candidate:" not in sdp:
            raise TransportError(
                "the TURN server did not answer; check its address and password in config.toml"
                if self._relay_only
                else "there is no network; connect this machine and try again"
            )
        return sdp


class _Tap:
    """Stands where aiortc's receiver has its jitter buffer: sees each RTP packet at once, lets none reach a decoder."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def add(self, packet: Any) -> tuple[bool, None]:
        self._transport._opus_came(packet.sequence_number, packet.timestamp, packet.payload)
        return False, None


def _tap(transceiver: RTCRtpTransceiver, tap: _Tap) -> None:
    name = "_RTCRtpReceiver__jitter_buffer"
    if not hasattr(transceiver.receiver, name):
        raise RuntimeError("aiortc's receiver has another jitter buffer; use the version that pyproject.toml names")
    setattr(transceiver.receiver, name, tap)


def _opus_only(transceiver: RTCRtpTransceiver) -> None:
    codecs = RTCRtpSender.getCapabilities("audio").codecs
    transceiver.setCodecPreferences([codec for codec in codecs if codec.mimeType.lower() == "audio/opus"])


def _refuse_empty_datagrams(ice: RTCIceTransport) -> None:
    """An empty UDP datagram, from anybody, ends aiortc's receiving loop (it reads the first byte): let none pass."""
    receive = ice._recv

    async def receive_some() -> bytes:
        while not (datagram := await receive()):
            pass
        return datagram

    ice._recv = receive_some


def _addresses() -> frozenset[str]:
    """This machine's own addresses, as ICE sees them."""
    return frozenset(aioice.ice.get_host_addresses(use_ipv4=True, use_ipv6=True))


def _checked(sdp: str) -> str:
    if len(sdp) > MAX_SDP_BYTES:
        raise ValueError(f"a session description of {len(sdp)} bytes; {MAX_SDP_BYTES} is the most")
    _fingerprint(sdp)
    return sdp


def _without_extensions(sdp: str) -> str:
    """No RTP header extensions: eight bytes a packet that nobody here reads."""
    return re.sub(r"a=extmap:[^\r\n]*\r?\n", "", sdp)


def _fingerprint(sdp: str) -> str:
    found = {value.upper() for value in re.findall(r"a=fingerprint:sha-256 ([0-9A-Fa-f:]+)\s", sdp)}
    if len(found) != 1 or not re.fullmatch(r"([0-9A-F]{2}:){31}[0-9A-F]{2}", next(iter(found))):
        raise ValueError("a session description must name one sha-256 fingerprint; the other side's does not")
    return f"sha-256 {found.pop()}"


__all__ = ["IceServers", "Route", "State", "Traffic", "Transport", "TransportError"]
