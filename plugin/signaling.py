"""How two peers find each other: a small server that passes sealed notes, and both ends' way to it.

The server (`Rendezvous`, aiohttp) knows rooms, not people: a receiver opens rooms, a sender knocks at one, and what
they say to each other there (`plugin.pairing`) it can neither read nor change unnoticed. It runs inside the receiver on
a local network, or alone with TLS. `Door` is the receiver's connection to it, wherever it runs; `Line` the sender's.

    GET /send/ROOM   a WebSocket; binary messages go to the room's receiver and back. A room that nobody has open
                     is answered as a wrong code is
    GET /receive     a WebSocket. Text messages are JSON: {"token", "rooms"} once, answered by {"rooms"}; {"open": ROOM}
                     (or "" for a free number), answered by {"opened"}; {"close": ROOM}; from the server {"visitor": ID,
                     "room", "from": ADDRESS}. Binary ones are four bytes of a visitor's ID and what it says or hears;
                     nothing behind the ID means that it left or is to leave. A token keeps others out of the rooms
    GET /            a page that says what to do with the link

A sender finds the receiver by the code alone: the receiver announces its rooms over multicast DNS (RFC 6762 and 6763,
`zeroconf`), which every home router lets through; where one does not, the link says the address.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import html
import ipaddress
import json
import logging
import re
import secrets
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import ifaddr
from aiohttp import WSMsgType, web
from zeroconf import Error as ZeroconfError
from zeroconf import IPVersion, NonUniqueNameException, ServiceStateChange, Zeroconf
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

from plugin import pairing
from plugin.pairing import Caller, Code, NobodyError, PairingError, SessionKey

log = logging.getLogger(__name__)

SERVICE = "_understudy._tcp.local."
ANSWER_S = 15.0
"""How long one end waits for the other's next message: a link of 32 kbit/s and 300 ms needs about two seconds."""
VISIT_S = 60.0
"""How long the server keeps a sender's line."""
_HEARTBEAT_S = 20.0
_MAX_VISITORS = 4
_MAX_VISIT_MESSAGES = 8
_MAX_ROOMS = 4096
_MAX_ROOMS_EACH = 64
_KNOCKS_PER_MINUTE = 20.0
_MAX_KNOCKERS = 4096
_ID = 4
_PAGE = (
    "<!doctype html><meta charset=utf-8><meta name=viewport content='width=device-width'><title>Understudy</title>"
    "<body style='font:18px/1.5 sans-serif;margin:2em'><h1>Understudy</h1><p>Somebody waits to see your avatar. "
    "On the computer with your camera, type:<p><code id=c>understudy send '{address}'</code>"
    "<script>document.getElementById('c').textContent+=location.hash</script>"
)


# --- the server ---


@dataclass(slots=True, eq=False)
class _Landlord:
    """A receiver that holds rooms open."""

    socket: web.WebSocketResponse
    token: str
    rooms: set[str] = field(default_factory=set)
    visitors: dict[int, web.WebSocketResponse] = field(default_factory=dict)


class Knocks:
    """How often one address may knock: so many a minute, as many at once. Time is an argument."""

    def __init__(self, per_minute: float) -> None:
        self._per_s, self._most = per_minute / 60, per_minute
        self._left: dict[str, tuple[float, float]] = {}

    def allow(self, address: str, now_s: float) -> bool:
        left, then_s = self._left.pop(address, (self._most, now_s))
        left = min(self._most, left + (now_s - then_s) * self._per_s)
        self._left[address] = (max(left - 1, 0) if left >= 1 else left, now_s)
        while len(self._left) > _MAX_KNOCKERS:
            self._left.pop(next(iter(self._left)))
        return left >= 1


class Rendezvous:
    """The server. Lives in one event loop; `start` and `stop` it there."""

    def __init__(self, knocks_per_minute: float = _KNOCKS_PER_MINUTE, only_token: str | None = None) -> None:
        """With `only_token` nobody else opens rooms: the server inside a receiver."""
        self._knocks = Knocks(knocks_per_minute)
        self._only_token = only_token
        self._rooms: dict[str, _Landlord] = {}
        self._next_id = 1
        self._runner: web.AppRunner | None = None
        self.port = 0

    async def start(self, host: str, port: int, tls: ssl.SSLContext | None = None) -> None:
        """Listen. `host` is one address ("0.0.0.0": all of IPv4), `port` 0 any free one (see `port`).

        Raises `ValueError`.
        """
        app = web.Application()
        app.add_routes(
            [web.get("/", self._page), web.get("/send/{room}", self._send), web.get("/receive", self._receive)]
        )
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=1.0)
        await self._runner.setup()
        try:
            site = web.TCPSite(self._runner, host, port, ssl_context=tls)
            await site.start()
        except OSError as error:
            await self.stop()
            raise ValueError(_cannot_listen(host, port, error)) from error
        self.port = int(self._runner.addresses[0][1])

    async def stop(self) -> None:
        for landlord in set(self._rooms.values()):
            await _hang_up(landlord.socket)
            for visitor in list(landlord.visitors.values()):
                await _hang_up(visitor)
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _page(self, request: web.Request) -> web.Response:
        address = html.escape(f"{request.scheme}://{request.host}/", quote=True)
        return web.Response(text=_PAGE.format(address=address), content_type="text/html")

    async def _send(self, request: web.Request) -> web.StreamResponse:
        """A sender knocks."""
        address = request.remote or "?"
        if not self._knocks.allow(address, time.monotonic()):
            raise web.HTTPTooManyRequests(text="too many knocks: wait a minute\n")
        socket = web.WebSocketResponse(max_msg_size=pairing.MAX_MESSAGE_BYTES, heartbeat=_HEARTBEAT_S, timeout=1.0)
        await socket.prepare(request)
        room = request.match_info["room"]
        landlord = self._rooms.get(room)
        if landlord is None or len(landlord.visitors) >= _MAX_VISITORS:
            await _tell(socket, pairing.refusal())
            await _hang_up(socket)
            return socket
        number, self._next_id = self._next_id, self._next_id % 0xFFFFFFFF + 1
        landlord.visitors[number] = socket
        with contextlib.suppress(ConnectionError, TimeoutError):
            await landlord.socket.send_str(json.dumps({"visitor": number, "room": room, "from": address}))
            async with asyncio.timeout(VISIT_S):
                count = 0
                async for message in socket:
                    count += 1
                    if message.type is not WSMsgType.BINARY or not message.data or count > _MAX_VISIT_MESSAGES:
                        break
                    await landlord.socket.send_bytes(number.to_bytes(_ID, "big") + message.data)
        if landlord.visitors.pop(number, None) is not None:
            with contextlib.suppress(ConnectionError):
                await landlord.socket.send_bytes(number.to_bytes(_ID, "big"))
        await _hang_up(socket)
        return socket

    async def _receive(self, request: web.Request) -> web.StreamResponse:
        """A receiver opens rooms and stays."""
        socket = web.WebSocketResponse(
            max_msg_size=pairing.MAX_MESSAGE_BYTES + _ID, heartbeat=_HEARTBEAT_S, timeout=1.0
        )
        await socket.prepare(request)
        landlord: _Landlord | None = None
        try:
            async with asyncio.timeout(ANSWER_S):
                first = _said(await socket.receive())
            token, rooms = first.get("token"), first.get("rooms")
            if (
                type(token) is str
                and 32 <= len(token) <= 128
                and (self._only_token is None or secrets.compare_digest(token.encode(), self._only_token.encode()))
                and type(rooms) is list
                and len(rooms) <= _MAX_ROOMS_EACH
            ):
                landlord = _Landlord(socket, token)
                await socket.send_str(json.dumps({"rooms": [self._open(landlord, room) for room in rooms]}))
                async for message in socket:
                    if message.type is WSMsgType.BINARY:
                        await self._pass_on(landlord, message.data)
                    elif message.type is WSMsgType.TEXT:
                        told = _said(message)
                        if "open" in told:
                            await socket.send_str(json.dumps({"opened": self._open(landlord, told["open"])}))
                        if self._rooms.get(str(told.get("close"))) is landlord:
                            del self._rooms[told["close"]]
                            landlord.rooms.discard(told["close"])
        except (ConnectionError, TimeoutError):
            pass
        finally:
            if landlord is not None:
                for room in landlord.rooms:
                    if self._rooms.get(room) is landlord:
                        del self._rooms[room]
                for visitor in list(landlord.visitors.values()):
                    await _hang_up(visitor)
            await _hang_up(socket)
        return socket

    async def _pass_on(self, landlord: _Landlord, said: bytes) -> None:
        visitor = landlord.visitors.get(int.from_bytes(said[:_ID], "big"))
        if visitor is None or len(said) < _ID:
            return
        if len(said) > _ID:
            await _tell(visitor, said[_ID:])
        else:
            landlord.visitors.pop(int.from_bytes(said[:_ID], "big"))
            await _hang_up(visitor)

    def _open(self, landlord: _Landlord, room: object) -> str | None:
        """The name of the room that was opened, or None."""
        if len(self._rooms) >= _MAX_ROOMS or len(landlord.rooms) >= _MAX_ROOMS_EACH:
            return None
        if room == "":
            free = [str(number) for number in pairing.ROOMS if str(number) not in self._rooms]
            if not free:
                return None
            room = secrets.choice(free)
        if type(room) is not str or not re.fullmatch(r"[1-9][0-9]{2}|[0-9a-f]{24}", room, re.ASCII):
            return None
        holder = self._rooms.get(room)
        if holder is not None and holder.token != landlord.token:
            return None
        self._rooms[room] = landlord
        landlord.rooms.add(room)
        return room


def _cannot_listen(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} is taken: set link.port to another one, or to 0 for any that is free"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"port {port} is not for ordinary users: set link.port to one above 1023"
    return f"cannot listen at {host}, port {port}: {error.strerror or error}"


def _said(message: aiohttp.WSMessage) -> dict[str, Any]:
    """A text message's JSON object, empty when it is none."""
    if message.type is not WSMsgType.TEXT:
        return {}
    try:
        told = json.loads(message.data)
    except (ValueError, RecursionError):
        return {}
    return told if isinstance(told, dict) else {}


async def _tell(socket: web.WebSocketResponse, message: bytes) -> None:
    """Say it, or give up on a visitor that does not listen."""
    try:
        async with asyncio.timeout(ANSWER_S):
            await socket.send_bytes(message)
    except (ConnectionError, TimeoutError):
        pass


async def _hang_up(socket: web.WebSocketResponse) -> None:
    try:
        await socket.close()
    except (ConnectionError, TimeoutError):
        pass


def server_tls(certificate: Path, key: Path) -> ssl.SSLContext:
    """Raises `ValueError`."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        why = getattr(error, "reason", None) or error.strerror or error
        raise ValueError(f"{certificate} and {key} are no certificate and its key: {why}") from error
    return context


def client_tls(authority: Path | None) -> ssl.SSLContext:
    """Trusts what the system trusts, or only `authority`. Raises `ValueError`."""
    try:
        return ssl.create_default_context(cafile=None if authority is None else str(authority))
    except (OSError, ssl.SSLError) as error:
        raise ValueError(f"{authority} is no certificate in PEM form") from error


# --- the sender's way ---


@dataclass(frozen=True, slots=True)
class Link:
    """Where a rendezvous is (None: to be found) and the code, if the link has one."""

    address: str | None
    code: Code

    def __str__(self) -> str:
        return f"{self.address}/#{self.code}" if self.address else str(self.code)


def parse_link(text: str) -> Link:
    """A code, or a link such as http://192.168.1.5:8470/#372-crystal-orbit. Raises `PairingError`."""
    text = text.strip().strip("'\"")
    if "://" not in text:
        return Link(None, pairing.parse_code(text))
    place, _, code = text.partition("#")
    if not code:
        raise PairingError(f"{text[:80]!r} lacks the code behind the #: copy the whole link, in quotation marks")
    return Link(check_address(place), pairing.parse_code(code))


def check_address(text: str) -> str:
    """The address of a rendezvous, without a slash at the end. Raises `PairingError`."""
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.path.strip("/"):
        raise PairingError(
            f"{text[:80]!r} is not an address such as http://192.168.1.5:8470 or https://meet.example.org"
        )
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}" + (f":{port}" if port else "")


class Line:
    """A sender's open line to a room: `send`, `receive`, `close`."""

    def __init__(self, session: aiohttp.ClientSession, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._session, self._socket = session, socket

    @classmethod
    async def open(cls, address: str, room: str, tls: ssl.SSLContext | None = None, within_s: float = 5.0) -> Line:
        """Raises `NobodyError` when nobody answers there, `PairingError` when it has no time or no certificate."""
        session = aiohttp.ClientSession()
        try:
            async with asyncio.timeout(within_s):
                socket = await session.ws_connect(
                    f"{address}/send/{room}", max_msg_size=pairing.MAX_MESSAGE_BYTES, ssl=tls or True
                )
        except aiohttp.WSServerHandshakeError as error:
            await session.close()
            if error.status == 429:
                raise PairingError(f"{address} asks to wait: too many attempts; try again in a minute") from None
            raise NobodyError(f"{address} is not a place where Understudy meets ({error.status})") from None
        except aiohttp.ClientConnectorCertificateError as error:
            await session.close()
            raise PairingError(f"{address} has no certificate that is trusted here: see link.rendezvous_ca") from error
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            await session.close()
            raise NobodyError(f"nobody answers at {address}: is the receiver running, on the same network?") from error
        except BaseException:
            await session.close()
            raise
        return cls(session, socket)

    async def send(self, message: bytes) -> None:
        try:
            await self._socket.send_bytes(message)
        except (aiohttp.ClientError, ConnectionError) as error:
            raise PairingError("the other end hung up") from error

    async def receive(self) -> bytes:
        """Raises `PairingError` when the other end hangs up or says nothing for long."""
        try:
            async with asyncio.timeout(ANSWER_S):
                message = await self._socket.receive()
        except TimeoutError:
            raise PairingError(f"the other end said nothing for {ANSWER_S:.0f} s") from None
        if message.type is not WSMsgType.BINARY:
            raise PairingError("the other end hung up")
        return message.data

    async def close(self) -> None:
        await self._socket.close()
        await self._session.close()


@dataclass(frozen=True, slots=True)
class Met:
    """What a sender has when the conversation ended well."""

    session: SessionKey
    remote_fingerprint: str


async def call(
    line: Line,
    room: str,
    secret: Code | SessionKey,
    describe: Callable[[], Awaitable[str]],
    accept: Callable[[str], Awaitable[None]],
) -> Met:
    """The sender's side of `plugin.pairing` over a line: `describe` makes the offer, `accept` takes the answer.

    Raises `PairingError`; `accept` was then not called, or what it began is to be closed.
    """
    caller = Caller(room, secret)
    await line.send(caller.hello())
    description = asyncio.ensure_future(describe())  # gathers addresses while the other end thinks
    try:
        hello = await line.receive()
        await line.send(caller.offer(hello, await description))
        await accept(caller.answer(await line.receive()))
        await line.send(caller.finish())
    finally:
        description.cancel()
    return Met(caller.session, caller.remote_fingerprint)


# --- the receiver's way ---


@dataclass(slots=True)
class Visitor:
    """A sender that knocked: what it says comes out of `receive`."""

    number: int
    room: str
    address: str
    _door: Door
    _heard: asyncio.Queue[bytes] = field(default_factory=lambda: asyncio.Queue(_MAX_VISIT_MESSAGES + 1))

    async def receive(self) -> bytes:
        """Raises `PairingError` when it left or says nothing for long."""
        try:
            async with asyncio.timeout(ANSWER_S):
                message = await self._heard.get()
        except TimeoutError:
            raise PairingError(f"{self.address} said nothing for {ANSWER_S:.0f} s") from None
        if not message:
            raise PairingError(f"{self.address} hung up")
        return message

    async def send(self, message: bytes) -> None:
        await self._door.say(self.number, message)

    async def close(self) -> None:
        await self._door.say(self.number, b"")

    def hear(self, message: bytes) -> None:
        if not self._heard.full():
            self._heard.put_nowait(message)


class Door:
    """A receiver's connection to a rendezvous: rooms it holds open, and visitors who come."""

    def __init__(self, address: str, token: str | None = None, tls: ssl.SSLContext | None = None) -> None:
        self.address, self._tls = address, tls
        self.token = token or secrets.token_hex(16)
        self._session: aiohttp.ClientSession | None = None
        self._socket: aiohttp.ClientWebSocketResponse | None = None
        self._opened: asyncio.Queue[str | None] = asyncio.Queue()
        self._visitors: dict[int, Visitor] = {}

    async def open(self, rooms: list[str]) -> list[str | None]:
        """Connect and open `rooms`; "" stands for a free number. Raises `PairingError` when the server is not there."""
        await self.close()
        self._session = aiohttp.ClientSession()
        try:
            async with asyncio.timeout(ANSWER_S):
                self._socket = await self._session.ws_connect(
                    f"{self.address}/receive",
                    max_msg_size=pairing.MAX_MESSAGE_BYTES + _ID,
                    heartbeat=_HEARTBEAT_S,
                    ssl=self._tls or True,
                )
                await self._socket.send_str(json.dumps({"token": self.token, "rooms": rooms}))
                told = _said(await self._socket.receive())
        except aiohttp.ClientConnectorCertificateError as error:
            await self.close()
            raise PairingError(f"{self.address} has no trusted certificate: see link.rendezvous_ca") from error
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            await self.close()
            raise PairingError(f"nobody answers at {self.address}: is the rendezvous running?") from error
        got = told.get("rooms")
        if not isinstance(got, list) or len(got) != len(rooms):
            await self.close()
            raise PairingError(f"{self.address} opens no rooms for this program")
        return got

    async def another(self, room: str = "") -> str | None:
        """Open one more room; only while `visitors` runs. None: not to be had."""
        if self._socket is None:
            return None
        try:
            await self._socket.send_str(json.dumps({"open": room}))
            async with asyncio.timeout(ANSWER_S):
                return await self._opened.get()
        except (aiohttp.ClientError, ConnectionError, TimeoutError):
            return None

    async def shut(self, room: str) -> None:
        if self._socket is not None:
            with contextlib.suppress(aiohttp.ClientError, ConnectionError):
                await self._socket.send_str(json.dumps({"close": room}))

    async def visitors(self) -> AsyncIterator[Visitor]:
        """Who knocks, until the connection is lost."""
        assert self._socket is not None, "open the door first"
        async for message in self._socket:
            if message.type is WSMsgType.BINARY and len(message.data) >= _ID:
                number, said = int.from_bytes(message.data[:_ID], "big"), message.data[_ID:]
                if (visitor := self._visitors.get(number)) is not None:
                    visitor.hear(said)
                    if not said:
                        del self._visitors[number]
                continue
            told = _said(message)
            if "opened" in told:
                opened = told["opened"]
                self._opened.put_nowait(opened if isinstance(opened, str) else None)
            elif type(told.get("visitor")) is int:
                visitor = Visitor(told["visitor"], str(told.get("room")), str(told.get("from"))[:64], self)
                self._visitors[visitor.number] = visitor
                yield visitor

    async def say(self, number: int, message: bytes) -> None:
        if not message:
            self._visitors.pop(number, None)
        if self._socket is not None:
            with contextlib.suppress(aiohttp.ClientError, ConnectionError):
                await self._socket.send_bytes(number.to_bytes(_ID, "big") + message)

    async def close(self) -> None:
        for visitor in self._visitors.values():
            visitor.hear(b"")
        self._visitors.clear()
        if self._socket is not None:
            await self._socket.close()
        if self._session is not None:
            await self._session.close()
        self._socket = self._session = None


# --- finding each other on a local network ---


def own_addresses() -> list[str]:
    """This machine's IPv4 addresses that others may reach, the likeliest first; without a network only 127.0.0.1."""
    found: list[str] = []
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # a datagram socket sends nothing for this: it only picks the way out
        found.append(probe.getsockname()[0])
    for adapter in ifaddr.get_adapters():
        found += [str(ip.ip) for ip in adapter.ips if ip.is_IPv4]
    usable = [one for one in dict.fromkeys(found) if not ipaddress.ip_address(one).is_loopback]
    return usable or ["127.0.0.1"]


class Announcement:
    """Says on the local network which rooms are open here; follows when rooms or addresses change."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._name = f"{secrets.token_hex(6)}.{SERVICE}"
        self._zeroconf: AsyncZeroconf | None = None
        self._told: tuple[tuple[str, ...], tuple[str, ...]] | None = None

    async def tell(self, rooms: list[str]) -> bool:
        """Announce `rooms` (again, if anything changed). False: multicast does not work here."""
        now = tuple(rooms[:8]), tuple(own_addresses())
        if now == self._told:
            return True
        info = AsyncServiceInfo(
            SERVICE,
            self._name,
            port=self._port,
            parsed_addresses=list(now[1]),
            properties={"v": str(pairing.VERSION), "rooms": ",".join(now[0])},
            server=self._name,
        )
        try:
            if self._zeroconf is None or self._told is None or self._told[1] != now[1]:
                await self.close()  # its sockets belong to addresses that may be gone
                self._zeroconf = AsyncZeroconf(ip_version=IPVersion.V4Only)
                await self._zeroconf.async_register_service(info, cooperating_responders=True)
            else:
                await self._zeroconf.async_update_service(info)
        except (OSError, ZeroconfError, NonUniqueNameException) as error:
            log.info("multicast DNS does not work here: %s", error)
            await self.close()
            return False
        self._told = now
        return True

    async def close(self) -> None:
        zeroconf, self._zeroconf, self._told = self._zeroconf, None, None
        if zeroconf is not None:
            await zeroconf.async_close()


async def find(room: str, within_s: float = 4.0) -> list[str]:
    """Addresses of receivers on the local network that hold `room` open; empty when none says so in time."""
    found: asyncio.Queue[str] = asyncio.Queue()
    asking: set[asyncio.Task[None]] = set()

    async def ask(zeroconf: Zeroconf, kind: str, name: str) -> None:
        info = AsyncServiceInfo(kind, name)
        await info.async_request(zeroconf, 1500)
        rooms = ((info.decoded_properties or {}).get("rooms") or "").split(",")
        if room in rooms and info.port:
            for address in info.parsed_addresses(IPVersion.V4Only)[:4]:
                found.put_nowait(f"http://{address}:{info.port}")

    def changed(zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange) -> None:
        if state_change is not ServiceStateChange.Removed and len(asking) < 32:
            task = asyncio.ensure_future(ask(zeroconf, service_type, name))
            asking.add(task)
            task.add_done_callback(asking.discard)

    try:
        zeroconf = AsyncZeroconf(ip_version=IPVersion.V4Only)
    except OSError as error:
        log.info("multicast DNS does not work here: %s", error)
        return []
    try:
        browser = AsyncServiceBrowser(zeroconf.zeroconf, [SERVICE], handlers=[changed])
        addresses: list[str] = []
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                addresses.append(await found.get())
        while not found.empty():
            addresses.append(found.get_nowait())
        await browser.async_cancel()
        for task in list(asking):
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
        return list(dict.fromkeys(addresses))
    finally:
        await zeroconf.async_close()
