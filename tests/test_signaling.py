"""Meeting, over real sockets of this machine: wrong codes, somebody in the middle, and all that breaks off."""

from __future__ import annotations

import asyncio
import socket
import stat
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import WSMsgType, web
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from plugin import pairing, reception, signaling
from plugin.known import Known, Meeting
from plugin.pairing import Caller, Code, Host, NobodyError, PairingError, SessionKey, WrongCodeError
from plugin.reception import Reception
from plugin.signaling import Door, Knocks, Line, Rendezvous


def run(test: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(40):
            await test

    asyncio.run(bounded())


def description(end: str) -> str:
    fingerprint = ":".join([end * 2] * 32)
    return f"v=0\r\nm=application 9 UDP/DTLS/SCTP webrtc-datachannel\r\na=fingerprint:sha-256 {fingerprint}\r\n"


@dataclass
class Caught:
    """A guest that is only remembered."""

    offer: str
    closed: bool = False

    async def close(self) -> None:
        self.closed = True


@dataclass
class FrontDesk:
    """Takes in whoever the reception lets through."""

    said: list[str] = field(default_factory=list)
    codes: list[Code] = field(default_factory=list)
    guests: list[Caught] = field(default_factory=list)
    welcomed: list[tuple[Caught, SessionKey, Code | None]] = field(default_factory=list)

    async def answer(self, offer: str) -> tuple[str, Caught]:
        self.guests.append(Caught(offer))
        return description("B"), self.guests[-1]

    async def welcome(self, guest: Caught, session: SessionKey, code: Code | None) -> None:
        self.welcomed.append((guest, session, code))

    def show(self, code: Code) -> None:
        self.codes.append(code)

    def say(self, sentence: str) -> None:
        self.said.append(sentence)


@dataclass
class Clock:
    now_s: float = 1000.0

    def __call__(self) -> float:
        return self.now_s


@dataclass
class Place:
    address: str
    desk: FrontDesk
    reception: Reception[Caught]
    clock: Clock
    rendezvous: Rendezvous

    @property
    def code(self) -> Code:
        return self.desk.codes[-1]


async def until(true: Callable[[], object]) -> None:
    for _ in range(1500):
        if true():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not come to that within 15 s")


@asynccontextmanager
async def receiver(sessions: list[SessionKey] | None = None, code_s: float = 600.0) -> AsyncIterator[Place]:
    """A rendezvous and a front desk with a code open."""
    token = "t" * 32
    rendezvous = Rendezvous(knocks_per_minute=600, only_token=token)
    await rendezvous.start("127.0.0.1", 0)
    address = f"http://127.0.0.1:{rendezvous.port}"
    desk, clock = FrontDesk(), Clock()
    front = Reception(Door(address, token), desk, sessions or [], code_s, None, clock)
    running = asyncio.ensure_future(front.run())
    try:
        await until(lambda: desk.codes or running.done())
        yield Place(address, desk, front, clock, rendezvous)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await rendezvous.stop()


async def call(address: str, secret: Code | SessionKey, room: str | None = None) -> tuple[signaling.Met, list[str]]:
    accepted: list[str] = []

    async def describe() -> str:
        return description("A")

    async def accept(answer: str) -> None:
        accepted.append(answer)

    room = room or secret.room
    line = await Line.open(address, room)
    try:
        return await signaling.call(line, room, secret, describe, accept), accepted
    finally:
        await line.close()


# --- coming together ---


def test_a_code_brings_two_together_once_and_a_key_again() -> None:
    async def test() -> None:
        async with receiver() as place:
            code = place.code
            met, accepted = await call(place.address, code)
            await until(lambda: place.desk.welcomed)
            guest, session, used = place.desk.welcomed[0]
            assert (guest.offer, accepted, used) == (description("A"), [description("B")], code)
            assert session == met.session
            with pytest.raises(NobodyError, match="wrong, used or too old"):
                await call(place.address, code)
            again, _ = await call(place.address, met.session)
            assert again.session == met.session
            await until(lambda: len(place.desk.welcomed) == 2)
            assert place.desk.welcomed[1][2] is None
            assert place.reception.code is None  # one sender is enough
            place.reception.want(True)
            await until(lambda: len(place.desk.codes) == 2)
            assert place.code != code

    run(test())


def test_a_receiver_that_starts_again_knows_whom_it_met() -> None:
    async def test() -> None:
        session = SessionKey(bytes(range(32)))
        async with receiver([session]) as place:
            met, _ = await call(place.address, session)
            assert met.session == session
        async with receiver() as place:
            with pytest.raises(NobodyError):
                await call(place.address, session)

    run(test())


# --- who does not have the code ---


def test_a_wrong_guess_is_told_and_the_third_ends_the_code() -> None:
    async def test() -> None:
        async with receiver() as place:
            code = place.code
            wrong = Code(code.room, "zoo-zoo" if code.words != "zoo-zoo" else "zone-zoo")
            for left in (2, 1):
                with pytest.raises(PairingError):
                    await call(place.address, wrong)
                await until(lambda: place.desk.said)
                assert "127.0.0.1 tried a wrong code" in place.desk.said[-1] and f"{left} tr" in place.desk.said[-1]
                with pytest.raises(NobodyError):  # and for a moment nobody may try at all
                    await call(place.address, code)
                place.clock.now_s += 10
                place.desk.said.clear()
            with pytest.raises(PairingError):
                await call(place.address, wrong)
            await until(lambda: len(place.desk.codes) == 2)
            assert "used up the code" in place.desk.said[-1]
            with pytest.raises(NobodyError):
                await call(place.address, code)
            assert not place.desk.guests  # nobody got as far as an answer
            await call(place.address, place.code)

    run(test())


def test_guessing_comes_to_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reception, "MAX_CODES", 2)
    monkeypatch.setattr(reception, "TRIES", 1)

    async def test() -> None:
        async with receiver() as place:
            for number in (1, 2):
                await until(lambda number=number: len(place.desk.codes) == number)
                with pytest.raises(PairingError):
                    await call(place.address, Code(place.code.room, "zoo-zebra"))
            await until(lambda: "no more are given" in "".join(place.desk.said))
            assert place.reception.code is None

    run(test())


def test_an_expired_code_opens_nothing_and_is_replaced() -> None:
    async def test() -> None:
        async with receiver(code_s=60) as place:
            code = place.code
            place.clock.now_s += 61
            place.reception.want(True)
            await until(lambda: len(place.desk.codes) == 2)
            assert place.desk.said == [f"the code {code} has expired"]
            with pytest.raises(NobodyError):
                await call(place.address, code)

    run(test())


def test_who_hangs_up_in_the_middle_costs_an_attempt_and_no_more() -> None:
    """After the share a caller could test its guess offline: an attempt that breaks off counts as one."""

    async def test() -> None:
        async with receiver() as place:
            line = await Line.open(place.address, place.code.room)
            await line.send(Caller(place.code.room, place.code).hello())
            await line.receive()
            await line.close()
            await until(lambda: place.desk.said)
            assert "broke off in the middle" in place.desk.said[0]
            place.clock.now_s += 10
            await call(place.address, place.code)
            await until(lambda: place.desk.welcomed)

    run(test())


def test_who_says_nothing_or_garbage_or_speaks_a_newer_tongue_costs_nothing() -> None:
    async def test() -> None:
        async with receiver() as place:
            for said, told in (
                (b"\x00" * 400, "language|refused|wrong"),
                (bytes([pairing.HELLO, 7, 0]) + bytes(33), "wrong|refused"),
                (b"", "hung up"),
            ):
                line = await Line.open(place.address, place.code.room)
                if said:
                    await line.send(said)
                    with pytest.raises(PairingError, match=told):
                        Caller(place.code.room, place.code).offer(await line.receive(), description("A"))
                await line.close()
                await until(lambda: not place.reception._busy)
            assert not place.desk.said
            await call(place.address, place.code)

    run(test())


def test_two_at_once_the_second_waits_outside() -> None:
    async def test() -> None:
        async with receiver() as place:
            first = await Line.open(place.address, place.code.room)
            await first.send(Caller(place.code.room, place.code).hello())
            await first.receive()
            with pytest.raises(NobodyError):
                await call(place.address, place.code)
            await first.close()

    run(test())


# --- somebody in the middle ---


@dataclass
class Meddler:
    """Stands between a sender and a rendezvous, and may change every message; `heard` is all it saw."""

    to: str
    change: Callable[[bytes, str], bytes]
    heard: list[bytes] = field(default_factory=list)

    async def handle(self, request: web.Request) -> web.WebSocketResponse:
        near = web.WebSocketResponse()
        await near.prepare(request)
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(f"{self.to}/send/{request.match_info['room']}") as far,
        ):

            async def carry(
                messages: AsyncIterator[aiohttp.WSMessage], send: Callable[[bytes], Awaitable[None]], way: str
            ) -> None:
                async for message in messages:
                    if message.type is WSMsgType.BINARY:
                        self.heard.append(message.data)
                        await send(self.change(message.data, way))

            ways = {
                asyncio.ensure_future(carry(near, far.send_bytes, "up")),
                asyncio.ensure_future(carry(far, near.send_bytes, "down")),
            }
            _, open_ = await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            for way in open_:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
        await near.close()
        return near


@asynccontextmanager
async def in_the_middle(to: str, change: Callable[[bytes, str], bytes]) -> AsyncIterator[tuple[str, Meddler]]:
    meddler = Meddler(to, change)
    app = web.Application()
    app.add_routes([web.get("/send/{room}", meddler.handle)])
    runner = web.AppRunner(app, shutdown_timeout=0.5)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}", meddler
    finally:
        await runner.cleanup()


def test_the_one_in_the_middle_sees_no_address_and_no_certificate() -> None:
    async def test() -> None:
        async with receiver() as place, in_the_middle(place.address, lambda said, way: said) as (address, meddler):
            await call(address, place.code)  # who only passes on is a wire
            await until(lambda: place.desk.welcomed)
            assert len(meddler.heard) == 5
            assert not [one for one in meddler.heard if b"fingerprint" in one or b"AA:AA" in one or b"BB:BB" in one]

    run(test())


class Swapping:
    """Runs a pairing of its own with either end, to put in its own certificate, with the code it guesses."""

    def __init__(self, guess: Code) -> None:
        self.to_sender, self.to_receiver = Host(guess.room, guess), Caller(guess.room, guess)
        self.opened: list[str] = []

    def __call__(self, said: bytes, way: str) -> bytes:
        if way == "up" and said[0] == pairing.HELLO:
            self.reply = self.to_sender.hello(said)
            return self.to_receiver.hello()
        if way == "down" and said[0] == pairing.HELLO:
            self.box = self.to_receiver.offer(said, description("E"))
            return self.reply
        if way == "up" and said[0] == pairing.SEALED:
            try:
                self.opened.append(self.to_sender.offer(said))
            except WrongCodeError:
                pass
            return self.box
        return said


@pytest.mark.parametrize("knows", [False, True])
def test_who_swaps_certificates_needs_the_code(knows: bool) -> None:
    """The very attack succeeds with the code (so it is a real one), and fails on both sides without."""

    async def test() -> None:
        async with receiver() as place:
            guess = place.code if knows else Code(place.code.room, "zebra-zone")
            swapping = Swapping(guess)
            async with in_the_middle(place.address, swapping) as (address, _):
                if knows:
                    with pytest.raises(PairingError):  # it would have to answer now; here it only listens
                        await call(address, place.code)
                    assert swapping.opened == [description("A")]
                    assert place.desk.guests[0].offer == description("E")
                    return
                with pytest.raises(PairingError):
                    await call(address, place.code)
                await until(lambda: place.desk.said)
                assert "tried a wrong code" in place.desk.said[0]
                assert not swapping.opened and not place.desk.guests

    run(test())


def test_who_changes_a_byte_is_noticed() -> None:
    async def test() -> None:
        for kind, way in ((pairing.SEALED, "up"), (pairing.SEALED, "down"), (pairing.FINISH, "up")):

            def change(said: bytes, going: str, kind: int = kind, way: str = way) -> bytes:
                return said[:-1] + bytes([said[-1] ^ 4]) if said[0] == kind and going == way else said

            async with receiver() as place, in_the_middle(place.address, change) as (address, _):
                if kind == pairing.FINISH:
                    await call(address, place.code)
                else:
                    with pytest.raises(PairingError):
                        await call(address, place.code)
                await until(lambda place=place: place.desk.said)
                assert not place.desk.welcomed
                assert all(guest.closed for guest in place.desk.guests)

    run(test())


# --- the server ---


def test_the_server_bears_garbage_floods_and_squatters() -> None:
    async def test() -> None:
        rendezvous = Rendezvous(knocks_per_minute=5)
        await rendezvous.start("127.0.0.1", 0)
        address = f"http://127.0.0.1:{rendezvous.port}"
        try:
            door = Door(address)
            first, free, *others = await door.open(["372", "", "f" * 24, "../x", "12"])
            assert (first, others) == ("372", ["f" * 24, None, None])
            assert free is not None and int(free) in pairing.ROOMS and free != "372"
            squatter = Door(address)
            assert await squatter.open(["372"]) == [None]
            owner = Door(address, door.token)
            assert await owner.open(["372"]) == ["372"]  # come back
            async with aiohttp.ClientSession() as session:
                for first in ("{", "[]", '{"token": 5}', '{"token": "' + "t" * 32 + '", "rooms": 3}', "x" * 100_000):
                    async with session.ws_connect(f"{address}/receive") as said:
                        await said.send_str(first)
                        assert (await said.receive()).type in (WSMsgType.CLOSE, WSMsgType.CLOSED, WSMsgType.ERROR)
                async with session.get(f"{address}/") as page:
                    assert page.status == 200 and "understudy send" in await page.text()
                async with session.get(f"{address}/send/372") as plain:
                    assert plain.status == 400
            with pytest.raises(PairingError, match="too many attempts"):
                for _ in range(8):
                    await (await Line.open(address, "999")).close()
            for one in (door, squatter, owner):
                await one.close()
        finally:
            await rendezvous.stop()

    run(test())


def test_only_the_receiver_itself_opens_rooms_in_its_own_server() -> None:
    async def test() -> None:
        async with receiver() as place:
            with pytest.raises(PairingError, match="opens no rooms"):
                await Door(place.address).open([""])

    run(test())


def test_knocks_are_counted_by_address_and_forgiven_with_time() -> None:
    knocks = Knocks(per_minute=3)
    assert [knocks.allow("a", 0.0) for _ in range(5)] == [True, True, True, False, False]
    assert knocks.allow("b", 0.0)
    assert not knocks.allow("a", 19.0) and knocks.allow("a", 41.0)
    for number in range(6000):
        knocks.allow(str(number), 50.0)
    assert len(knocks._left) <= 4096


def test_a_taken_port_and_a_missing_server_are_one_sentence() -> None:
    async def test() -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            with pytest.raises(ValueError, match=f"port {port} is taken"):
                await Rendezvous().start("127.0.0.1", port)
        with pytest.raises(NobodyError, match="nobody answers at"):
            await Line.open(f"http://127.0.0.1:{port}", "372")
        front = Reception(Door(f"http://127.0.0.1:{port}"), FrontDesk(), [], 60.0)
        with pytest.raises(PairingError, match="is the rendezvous running"):
            await front.run()

    run(test())


def test_a_desk_that_fails_ends_the_reception_with_its_reason() -> None:
    class Broken(FrontDesk):
        def show(self, code: Code) -> None:
            raise OSError("no place for a code")

    async def test() -> None:
        rendezvous = Rendezvous()
        await rendezvous.start("127.0.0.1", 0)
        try:
            with pytest.raises(OSError, match="no place for a code"):
                await Reception(Door(f"http://127.0.0.1:{rendezvous.port}"), Broken(), [], 60.0).run()
        finally:
            await rendezvous.stop()

    run(test())


def test_a_rendezvous_that_starts_again_finds_the_same_code_open() -> None:
    async def test() -> None:
        rendezvous = Rendezvous()
        await rendezvous.start("127.0.0.1", 0)
        port, desk = rendezvous.port, FrontDesk()

        async def no_wait(seconds: float) -> None:
            await asyncio.sleep(0.02)

        front = Reception(Door(f"http://127.0.0.1:{port}"), desk, [], 600.0, sleep=no_wait)
        running = asyncio.ensure_future(front.run())
        await until(lambda: desk.codes)
        await rendezvous.stop()
        await until(lambda: desk.said)
        again = Rendezvous()
        await again.start("127.0.0.1", port)
        try:
            await until(lambda: again._rooms)
            await call(f"http://127.0.0.1:{port}", desk.codes[0])
            assert len(desk.codes) == 1
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            await again.stop()

    run(test())


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that vouches for itself, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, SHA256())
    )
    (folder / "cert.pem").write_bytes(made.public_bytes(Encoding.PEM))
    (folder / "key.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return folder / "cert.pem", folder / "key.pem"


def test_a_rendezvous_alone_speaks_tls_and_is_checked(certificate: tuple[Path, Path]) -> None:
    async def test() -> None:
        rendezvous = Rendezvous()
        await rendezvous.start("127.0.0.1", 0, signaling.server_tls(*certificate))
        address = f"https://127.0.0.1:{rendezvous.port}"
        try:
            trusting = signaling.client_tls(certificate[0])
            door = Door(address, tls=trusting)
            assert await door.open(["372"]) == ["372"]
            await (await Line.open(address, "372", trusting)).close()
            with pytest.raises(PairingError, match="no certificate that is trusted"):
                await Line.open(address, "372")
            with pytest.raises(PairingError, match="no trusted certificate"):
                await Door(address).open(["372"])
            await door.close()
        finally:
            await rendezvous.stop()

    run(test())


def test_files_that_are_no_certificates_are_one_sentence(certificate: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "no.pem").write_text("no")
    with pytest.raises(ValueError, match="no certificate and its key"):
        signaling.server_tls(tmp_path / "no.pem", certificate[1])
    with pytest.raises(ValueError, match="no certificate in PEM form"):
        signaling.client_tls(tmp_path / "no.pem")


# --- links, addresses, memory ---


def test_a_link_says_where_and_a_code_alone_does_not() -> None:
    link = signaling.parse_link("'http://192.168.1.5:8470/#372-Crystal-orbit'")
    assert (link.address, str(link.code)) == ("http://192.168.1.5:8470", "372-crystal-orbit")
    assert str(link) == "http://192.168.1.5:8470/#372-crystal-orbit"
    assert signaling.parse_link(str(link)) == link
    assert signaling.parse_link("372 crystal orbit").address is None
    assert signaling.check_address("https://[fd00::2]:8471/") == "https://[fd00::2]:8471"
    for text in ("http://192.168.1.5:8470/", "ftp://a/#372-crystal-orbit", "http://a:99999/#372-crystal-orbit"):
        with pytest.raises(PairingError):
            signaling.parse_link(text)


def test_no_network_leaves_the_machine_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object) -> socket.socket:
        raise OSError("Network is unreachable")

    monkeypatch.setattr(signaling.socket, "socket", unreachable)
    monkeypatch.setattr(signaling.ifaddr, "get_adapters", list)
    assert signaling.own_addresses() == ["127.0.0.1"]


def test_meetings_are_kept_for_their_owner_alone_until_they_are_old(tmp_path: Path) -> None:
    path = tmp_path / "home" / "meetings.json"
    known = Known(path)
    assert known.all("sender") == []
    later = time.time() + 100
    for number in range(20):
        known.remember(Meeting(f"{number:064x}", "sender", later, "http://a:1", f"37{number}-a-b"))
    known.remember(Meeting("ab" * 32, "receiver", later))
    known.remember(Meeting("cd" * 32, "sender", time.time() - 1))
    assert len(known.all("sender")) <= 16 and known.all("sender")[0].code == "3719-a-b"
    assert [one.secret_hex for one in known.all("receiver")] == ["ab" * 32]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for damaged in ("", "{", '[{"a": 1}]', '[{"secret_hex": "zz", "role": "sender", "until_s": 9e9}]', "[1]"):
        path.write_text(damaged)
        assert known.all("sender") == []
