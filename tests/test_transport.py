"""Two transports on this machine: every route, messages, and what a bad peer can do."""

from __future__ import annotations

import asyncio
import fractions
import gc
import re
import socket
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from typing import Any

import aioice.ice
import numpy as np
import pytest
from aiortc import MediaStreamTrack, RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from av import AudioFrame
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from plugin import transport as module
from plugin.routes import CLOCK_HZ
from plugin.transport import IceServers, Transport, TransportError


@pytest.fixture(autouse=True)
def loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    """ICE leaves the loopback device out; a machine without a network has no other."""
    monkeypatch.setattr(aioice.ice, "get_host_addresses", lambda use_ipv4, use_ipv6: ["127.0.0.1"])


def run(coroutine: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(coroutine, 30))


class Tone(MediaStreamTrack):
    kind = "audio"

    def __init__(self) -> None:
        super().__init__()
        self._count = 0
        self._began_s = 0.0

    async def recv(self) -> AudioFrame:
        self._began_s = self._began_s or time.monotonic()
        self._count += 1
        await asyncio.sleep(max(0.0, self._began_s + self._count * 0.02 - time.monotonic()))
        wave = 8000 * np.sin(2 * np.pi * 440 * (np.arange(960) + self._count * 960) / CLOCK_HZ)
        frame = AudioFrame.from_ndarray(wave.astype(np.int16)[None], format="s16", layout="mono")
        frame.sample_rate, frame.time_base = CLOCK_HZ, fractions.Fraction(1, CLOCK_HZ)
        frame.pts = int((self._began_s + (self._count - 1) * 0.02) * CLOCK_HZ)
        return frame


class Seen:
    """What one transport told."""

    def __init__(self, transport: Transport) -> None:
        self.faces: list[bytes] = []
        self.messages: list[tuple[str, bytes]] = []
        self.states: list[tuple[str, str]] = []
        transport.on_face = self.faces.append
        transport.on_message = lambda kind, payload: self.messages.append((kind, payload))
        transport.on_state = lambda state, reason: self.states.append((state, reason))


async def until(true: Callable[[], object]) -> None:
    end_s = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end_s, "it did not happen within 20 s"
        await asyncio.sleep(0.01)


async def meet(receiver: Transport, sender: Transport) -> None:
    await receiver.accept(await sender.answer(await receiver.offer()))
    await asyncio.gather(receiver.connected(), sender.connected())


@asynccontextmanager
async def pair(**options: Any) -> AsyncIterator[tuple[Transport, Transport]]:
    """A receiver and a sender, connected."""
    receiver, sender = Transport(receive_only=True), Transport(**options)
    try:
        await meet(receiver, sender)
        yield receiver, sender
    finally:
        await asyncio.gather(receiver.close(), sender.close())


@pytest.mark.parametrize(
    ("asked", "voice", "taken"),
    [
        ("datachannel", False, "datachannel"),
        ("rtp", False, "rtp"),
        ("auto", False, "rtp"),
        ("audio", True, "audio"),
        ("auto", True, "audio"),
        ("datachannel", True, "datachannel"),
    ],
)
def test_faces_arrive_by_every_route(asked: str, voice: bool, taken: str) -> None:
    async def scene() -> None:
        async with pair(route=asked, voice=Tone() if voice else None, face_interval_ms=20) as (receiver, sender):
            seen, sent = Seen(receiver), []

            def room() -> None:
                sent.append(bytes([len(sent) % 256]) * 25)
                sender.send_face(sent[-1])

            sender.on_room = room
            await until(lambda: len(seen.faces) >= 6)
            assert sender.route == taken
            start = sent.index(seen.faces[0])
            assert seen.faces == sent[start : start + len(seen.faces)]
            assert sender.stats()["face"]["out_packets"] >= 6 and sender.stats()["dropped"]["stale"] == 0
            assert receiver.stats()["face"]["in_bytes"] == 25 * len(seen.faces)

    run(scene())


def test_a_face_pushed_at_any_time_leaves_at_once_where_no_voice_leads() -> None:
    async def scene() -> None:
        async with pair(route="rtp") as (receiver, sender):
            seen = Seen(receiver)
            for number in range(5):
                sender.send_face(bytes([number]))
                await until(lambda number=number: seen.faces[-1:] == [bytes([number])])

    run(scene())


@pytest.mark.parametrize("route", ["datachannel", "rtp"])
def test_what_waited_for_the_connection_is_the_newest_only(route: Any) -> None:
    async def scene() -> None:
        receiver, sender = Transport(receive_only=True), Transport(route=route)
        seen = Seen(receiver)
        answer = await sender.answer(await receiver.offer())
        for number in range(50):
            sender.send_face(bytes([number]))
        await receiver.accept(answer)
        await asyncio.gather(receiver.connected(), sender.connected())
        await until(lambda: seen.faces)
        await asyncio.sleep(0.1)
        assert seen.faces == [bytes([49])]
        assert sender.stats()["dropped"]["stale"] == 49
        await asyncio.gather(receiver.close(), sender.close())

    run(scene())


def test_the_voice_arrives_in_order_on_the_senders_clock() -> None:
    async def scene() -> None:
        async with pair(voice=Tone(), packet_ms=20) as (receiver, sender):
            assert receiver.voice_received is not None
            frames = [await asyncio.wait_for(receiver.voice_received.recv(), 5) for _ in range(12)]
            times = [frame.pts or 0 for frame in frames]
            assert set(np.diff(times)) == {960} and receiver.voice_received.clock_known
            age_s = (int(time.monotonic() * CLOCK_HZ) - times[-1]) % 2**32 / CLOCK_HZ
            assert 0 < age_s < 20  # of the 24.8 hours that the clock counts
            assert np.abs(frames[-1].to_ndarray()).max() > 4000
            assert sender.stats()["voice"]["out_bytes"] > 0

    run(scene())


def test_muted_the_voice_stays_and_faces_go() -> None:
    async def scene() -> None:
        async with pair(voice=Tone(), packet_ms=20) as (receiver, sender):
            seen = Seen(receiver)
            sender.muted = True
            await asyncio.sleep(0.1)
            before = sender.stats()["voice"]["out_packets"]
            sender.on_room = lambda: sender.send_face(b"face")
            await until(lambda: len(seen.faces) > 3)
            assert sender.stats()["voice"]["out_packets"] <= before + 1
            sender.muted = False
            await until(lambda: sender.stats()["voice"]["out_packets"] > before + 3)

    run(scene())


def test_an_aiortc_that_knows_nothing_of_faces_hears_the_voice() -> None:
    """A peer with decoders of its own: the padding changes nothing for it."""

    async def scene() -> None:
        sender, peer = Transport(voice=Tone(), packet_ms=20), RTCPeerConnection(RTCConfiguration(iceServers=[]))
        sender.on_room = lambda: sender.send_face(bytes(range(60)))
        tracks: list[MediaStreamTrack] = []
        peer.on("track", tracks.append)
        peer.addTransceiver("audio", "recvonly")
        peer.createDataChannel("any")
        await peer.setLocalDescription(await peer.createOffer())
        answer = await sender.answer(peer.localDescription.sdp)
        await peer.setRemoteDescription(RTCSessionDescription(answer, "answer"))
        heard = np.concatenate([(await tracks[0].recv()).to_ndarray()[0, ::2] for _ in range(20)]).astype(float)  # type: ignore[union-attr]
        tone = np.abs(np.fft.rfft(heard[-4800:]))
        assert abs(np.argmax(tone) * 10 - 440) <= 10, "the loudest is not the tone that was sent"
        await asyncio.gather(sender.close(), peer.close())

    run(scene())


@pytest.mark.parametrize("background", [False, True])
def test_messages_arrive_whole_beside_each_other(background: bool) -> None:
    async def scene() -> None:
        async with pair(route="datachannel") as (receiver, sender):
            seen, rng = Seen(receiver), np.random.default_rng(0)
            payloads = {"avatar": rng.bytes(60_000), "control": b"{}", "nothing": b""}
            await asyncio.gather(
                *(sender.send_message(kind, payload, background=background) for kind, payload in payloads.items())
            )
            await until(lambda: len(seen.messages) == 3)
            assert dict(seen.messages) == payloads
            back = Seen(sender)
            await receiver.send_message("answer", b"yes")
            await until(lambda: back.messages == [("answer", b"yes")])

    run(scene())


def test_both_ends_name_the_same_certificates() -> None:
    async def scene() -> None:
        async with pair() as (receiver, sender):
            assert sender.local_fingerprint == receiver.remote_fingerprint != receiver.local_fingerprint
            assert receiver.local_fingerprint == sender.remote_fingerprint
            assert re.fullmatch(r"sha-256 ([0-9A-F]{2}:){31}[0-9A-F]{2}", sender.local_fingerprint)

    run(scene())


def test_hanging_up_is_seen_by_the_other_side_and_stays_final() -> None:
    async def scene() -> None:
        async with pair() as (receiver, sender):
            seen = Seen(receiver)
            await sender.close()
            await until(lambda: receiver.state == "closed")
            assert seen.states[-1] == ("closed", "the other side hung up")
            with pytest.raises(TransportError, match="hung up"):
                await receiver.send_message("late", b"")
            receiver.send_face(b"too late, and no harm")

    run(scene())


def test_a_sender_that_starts_anew_meets_the_receiver_again() -> None:
    async def scene() -> None:
        async with pair() as (_, first):
            first.send_face(b"one")
        async with pair() as (receiver, second):
            seen = Seen(receiver)
            second.send_face(b"two")
            await until(lambda: seen.faces == [b"two"])

    run(scene())


# --- bad peers and bad days ------------------------------------------------------------------------------------


def test_a_flood_of_faces_ends_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PACKETS_PER_S", 20)

    async def scene() -> None:
        async with pair(route="datachannel") as (receiver, sender):
            seen = Seen(receiver)
            for _ in range(200):
                sender._faces.send(bytes(20))
            await until(lambda: receiver.state == "failed")
            assert seen.states == [("failed", "the other side was disconnected: it sent more than 20 packets a second")]
            assert len(seen.faces) <= 41

    run(scene())


BEGIN = struct.Struct("!BBIB")


@pytest.mark.parametrize(
    ("chunks", "sentence"),
    [
        ([BEGIN.pack(1, 0, 2**31, 1) + b"a"], "announced a message of 2147483648 bytes"),
        ([BEGIN.pack(1, n, 10, 1) + b"a" for n in range(9)], "more than 8 messages at once"),
        ([BEGIN.pack(1, 0, 3, 1) + b"aabcdef"], "more of a message than it had announced"),
        ([b"\x01\x00\x00"], "a message that cannot be read"),
    ],
)
def test_messages_that_lie_end_in_one_sentence(chunks: list[bytes], sentence: str) -> None:
    async def scene() -> None:
        async with pair() as (receiver, sender):
            seen = Seen(receiver)
            for chunk in chunks:
                sender._messages.send(chunk)
            await until(lambda: receiver.state == "failed")
            assert sentence in seen.states[-1][1] and len(seen.states) == 1

    run(scene())


def test_garbage_is_counted_and_the_stream_goes_on() -> None:
    async def scene() -> None:
        async with pair(route="rtp") as (receiver, sender):
            seen, rng = Seen(receiver), np.random.default_rng(0)
            sender._messages.send("text")
            for _ in range(40):
                sender._messages.send(bytes([int(rng.integers(2, 256))]) + rng.bytes(int(rng.integers(0, 60))))
                sender._faces.send(rng.bytes(int(rng.integers(0, 300))))
            await until(lambda: receiver.dropped["unread"] > 30)
            sender.send_face(b"a face after all of it")
            await until(lambda: b"a face after all of it" in seen.faces)
            assert receiver.state == "connected"

    run(scene())


def test_a_hundred_channels_are_too_many() -> None:
    async def scene() -> None:
        async with pair() as (receiver, sender):
            seen = Seen(receiver)
            for number in range(100):
                sender._peer.createDataChannel(f"channel {number}")
            await until(lambda: receiver.state == "failed")
            assert "more than 8 channels" in seen.states[-1][1]

    run(scene())


def test_a_peer_that_stops_in_the_handshake_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CONNECT_S", 0.6)

    async def scene() -> None:
        receiver, sender = Transport(receive_only=True), Transport()
        await receiver.accept(await sender.answer(await receiver.offer()))
        sender._peer.sctp.transport.transport._connection.send = _nothing  # type: ignore[union-attr,method-assign]
        sender._peer.sctp.transport.transport._send = _nothing  # type: ignore[union-attr]
        with pytest.raises(TransportError, match="no connection within"):
            await receiver.connected()
        await asyncio.gather(receiver.close(), sender.close())

    run(scene())


async def _nothing(data: bytes) -> None:
    pass


def test_a_line_that_falls_silent_is_told_and_so_is_its_return(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "INTERRUPTED_S", 2.0)

    async def scene() -> None:
        async with pair(route="datachannel") as (receiver, sender):
            seen = Seen(receiver)
            await asyncio.sleep(2.6)
            assert receiver.state == "connected", "nothing is sent, but the line stands"
            ice = sender._peer.sctp.transport.transport  # type: ignore[union-attr]
            send, ice._send = ice._send, _nothing
            await until(lambda: receiver.state == "interrupted")
            ice._send = send
            await until(lambda: receiver.state == "connected")
            assert [state for state, _ in seen.states] == ["interrupted", "connected"]

    run(scene())


def test_an_address_that_is_gone_is_noticed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        async with pair() as (receiver, _):
            seen = Seen(receiver)
            monkeypatch.setattr(aioice.ice, "get_host_addresses", lambda use_ipv4, use_ipv6: ["10.9.8.7"])
            await until(lambda: receiver.state == "interrupted")
            assert seen.states == [("interrupted", "this machine's address changed")]

    run(scene())


def test_an_empty_datagram_from_a_stranger_does_no_harm() -> None:
    """It would end aiortc's receiving loop, and needs no key."""

    async def scene() -> None:
        async with pair(route="datachannel") as (receiver, sender):
            seen = Seen(receiver)
            ports = re.findall(r"a=candidate:\S+ 1 udp \d+ 127\.0\.0\.1 (\d+)", receiver._local_sdp())
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
                for junk in (b"", b"\x00", b"\x16" * 20, b"\x80" * 30, bytes(1400)):
                    stranger.sendto(junk, ("127.0.0.1", int(ports[0])))
            await asyncio.sleep(0.05)
            sender.send_face(b"still here")
            await until(lambda: seen.faces == [b"still here"])

    run(scene())


def test_a_callback_that_raises_is_reported_and_the_stream_goes_on() -> None:
    async def scene() -> None:
        errors: list[str] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, told: errors.append(str(told["exception"])))
        async with pair(route="rtp") as (receiver, sender):
            seen: list[bytes] = []

            def stumble(packet: bytes) -> None:
                seen.append(packet)
                raise RuntimeError(f"stumbled over {packet!r}")

            receiver.on_face = stumble
            for number in range(3):
                sender.send_face(bytes([65 + number]))
                await until(lambda number=number: len(seen) > number)
        assert errors == ["stumbled over b'A'", "stumbled over b'B'", "stumbled over b'C'"]

    run(scene())


def test_a_face_that_cannot_be_made_does_not_stop_the_voice(caplog: pytest.LogCaptureFixture) -> None:
    async def scene() -> None:
        async with pair(voice=Tone(), packet_ms=20) as (receiver, sender):
            seen, count = Seen(receiver), 0

            def room() -> None:
                nonlocal count
                count += 1
                if count < 4:
                    raise RuntimeError("no face")
                sender.send_face(b"face")

            sender.on_room = room
            await until(lambda: len(seen.faces) > 2)
            assert receiver.stats()["voice"]["in_packets"] >= 3

    run(scene())
    assert [record.message for record in caplog.records] == ["on_room failed; no face in this packet"] * 3


def test_messages_broken_off_leave_room_for_others() -> None:
    async def scene() -> None:
        async with pair(route="datachannel") as (receiver, sender):
            seen = Seen(receiver)
            for _ in range(12):
                task = asyncio.create_task(sender.send_message("large", bytes(400_000), background=True))
                await until(lambda: receiver._open_messages)
                task.cancel()
                await until(lambda: not receiver._open_messages)
            await sender.send_message("small", b"arrives")
            await until(lambda: seen.messages == [("small", b"arrives")])
            assert receiver.state == "connected"

    run(scene())


def test_no_network_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aioice.ice, "get_host_addresses", lambda use_ipv4, use_ipv6: [])

    async def scene() -> None:
        transport = Transport()
        with pytest.raises(TransportError, match="there is no network"):
            await transport.offer()
        await transport.close()

    run(scene())


def spoiled(sdp: str, how: str) -> str:
    return {
        "nothing": "",
        "no description": "hello",
        "too long": sdp + "a=x\r\n" * 20_000,
        "no fingerprint": re.sub(r"a=fingerprint:sha-256 .*\r\n", "", sdp),
        "no Opus": sdp.replace("opus/48000/2", "gsm/8000"),
    }[how]


@pytest.mark.parametrize("how", ["nothing", "no description", "too long", "no fingerprint", "no Opus"])
def test_an_offer_that_cannot_be_is_one_sentence(how: str) -> None:
    async def scene() -> None:
        receiver, sender = Transport(receive_only=True), Transport()
        offer = spoiled(await receiver.offer(), how)
        with pytest.raises(ValueError, match=r"session description|cannot be understood"):
            await sender.answer(offer)
        await asyncio.gather(receiver.close(), sender.close())

    run(scene())


@pytest.fixture
def collected() -> Iterator[None]:
    """aiortc may leave a socket open where a description broke off its work: it is collected here, in no other test."""
    yield
    gc.collect()


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_mutilated_offer_is_answered_or_refused(data: st.DataObject, collected: None) -> None:
    async def scene() -> None:
        receiver, sender = Transport(receive_only=True), Transport()
        lines = (await receiver.offer()).split("\r\n")
        for _ in range(data.draw(st.integers(1, 3))):
            at = data.draw(st.integers(0, len(lines) - 1))
            cut = data.draw(st.integers(0, 12))
            lines[at] = data.draw(st.sampled_from(["", lines[at][:cut], lines[at] + " 9" * cut, lines[at - 1]]))
        try:
            await sender.answer("\r\n".join(lines))
        except (ValueError, TransportError):
            pass
        await asyncio.gather(receiver.close(), sender.close())

    run(scene())


@pytest.mark.parametrize(
    "make",
    [
        lambda: IceServers(("http://example.org",)),
        lambda: IceServers(relay_only=True),
        lambda: IceServers(("stun:example.org",), relay_only=True),
    ],
)
def test_servers_that_cannot_be_are_refused(make: Callable[[], IceServers]) -> None:
    with pytest.raises(ValueError, match=r"stun:|TURN"):
        make()


def test_what_cannot_be_sent_is_refused() -> None:
    async def scene() -> None:
        async with pair() as (_, sender):
            with pytest.raises(ValueError, match="1001"):
                sender.send_face(bytes(1001))
            refused: list[Awaitable[None]] = [
                sender.send_message("", b""),
                sender.send_message("k" * 65, b""),
                sender.send_message("large", bytes(module.MAX_MESSAGE_BYTES + 1)),
            ]
            for one in refused:
                with pytest.raises(ValueError, match="message"):
                    await one
        with pytest.raises(ValueError, match="20, 40 or 60"):
            Transport(packet_ms=30)

    run(scene())
