"""The sending loop's parts: whom it means, where it looks, what it sees, and what it is told."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from engine.codec import TIME_WRAP_S, Decoder
from engine.config import Config, load
from engine.frames import Face, Frame, NoFace
from plugin import sender as sending
from plugin import signaling
from plugin.known import Known, Meeting
from plugin.meter import Rolling
from plugin.pairing import Code, PairingError, SessionKey
from plugin.sender import Replaying, Wanted, Watching, addresses, ice_servers, open_drive
from plugin.webcam import CameraLostError
from tests.test_codec import talking

SECRET = "ab" * 32


@pytest.fixture
def config() -> Config:
    shipped = load()
    return replace(shipped, link=replace(shipped.link, port=8470, announce=True))


@pytest.fixture
def known(tmp_path: Path) -> Known:
    return Known(tmp_path / "meetings.json")


def met(known: Known, code: str = "372-crystal-orbit") -> Meeting:
    one = Meeting(SECRET, "sender", time.time() + 100, "http://10.0.0.5:8470", code)
    known.remember(one)
    return one


# --- whom ---


def test_a_code_means_a_stranger_until_it_was_used(known: Known) -> None:
    first = Wanted.choose("372-crystal-orbit", known)
    assert first == Wanted("372", Code("372", "crystal-orbit"), None)
    met(known)
    again = Wanted.choose("372 Crystal orbit", known)
    assert again.secret == SessionKey(bytes.fromhex(SECRET)) and again.address == "http://10.0.0.5:8470"
    assert Wanted.choose(None, known) == again
    other = Wanted.choose("http://10.0.0.9:1/#373-crystal-orbit", known)
    assert other.address == "http://10.0.0.9:1" and isinstance(other.secret, Code)


def test_without_a_code_and_an_acquaintance_there_is_a_sentence(known: Known) -> None:
    with pytest.raises(PairingError, match="whom"):
        Wanted.choose(None, known)
    known.remember(Meeting(SECRET, "receiver", time.time() + 100))
    with pytest.raises(PairingError, match="whom"):
        Wanted.choose(None, known)


# --- where ---


def looked(wanted: Wanted, config: Config) -> list[str]:
    async def all_of_them() -> list[str]:
        return [one async for one in addresses(wanted, config)]

    return asyncio.run(all_of_them())


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Rooms that were searched for on the local network, where a receiver answers at 192.168.1.7."""
    asked: list[str] = []

    async def find(room: str, within_s: float = 4.0) -> list[str]:
        asked.append(room)
        return ["http://192.168.1.7:8470"]

    monkeypatch.setattr(signaling, "find", find)
    return asked


def test_a_code_is_looked_for_here_and_on_the_network(config: Config, network: list[str]) -> None:
    wanted = Wanted("372", Code("372", "a-b"), None)
    assert looked(wanted, config) == ["http://127.0.0.1:8470", "http://192.168.1.7:8470"]
    assert network == ["372"]
    quiet = replace(config, link=replace(config.link, announce=False))
    assert looked(wanted, quiet) == ["http://127.0.0.1:8470"] and network == ["372"]


def test_a_link_is_taken_at_its_word_and_a_rendezvous_too(config: Config, network: list[str]) -> None:
    wanted = Wanted("372", Code("372", "a-b"), "http://10.0.0.5:1")
    assert looked(wanted, config) == ["http://10.0.0.5:1"]
    agreed = replace(config, link=replace(config.link, rendezvous="https://meet.example.org/"))
    assert looked(replace(wanted, address=None), agreed) == ["https://meet.example.org"]
    assert network == []


def test_somebody_met_is_looked_for_where_it_was_and_then_everywhere(config: Config, network: list[str]) -> None:
    session = SessionKey(bytes(32))
    wanted = Wanted(session.room, session, "http://10.0.0.5:8470")
    assert looked(wanted, config) == ["http://10.0.0.5:8470", "http://127.0.0.1:8470", "http://192.168.1.7:8470"]
    assert network == [session.room]


def test_no_server_is_asked_that_was_not_named(config: Config) -> None:
    assert ice_servers(config).urls == ()
    named = replace(config, link=replace(config.link, stun="stun:a:3478", turn="turn:b:3478?transport=tcp"))
    assert ice_servers(named).urls == ("stun:a:3478", "turn:b:3478?transport=tcp")
    with pytest.raises(ValueError, match="write a server as"):
        ice_servers(replace(config, link=replace(config.link, stun="stun.example.org")))
    with pytest.raises(ValueError, match="name a TURN server"):
        ice_servers(replace(config, link=replace(config.link, relay_only=True)))


# --- what it sees ---


class Trackless:
    """A tracker that sees nobody, and counts."""

    def __init__(self, config: Config) -> None:
        self.closed = False

    def track(self, frame: Frame) -> NoFace:
        return NoFace(frame.time_s)

    def close(self) -> None:
        self.closed = True


class Flaky:
    """A camera that is lost after every second picture."""

    name = "flaky"

    def __init__(self) -> None:
        self.opened = self.closed = self.count = 0

    def open(self) -> None:
        self.opened += 1

    def read(self) -> Frame:
        self.count += 1
        time.sleep(0.002)
        if self.count % 3 == 0:
            raise CameraLostError("the camera was unplugged")
        return Frame(np.zeros((4, 4, 3), np.uint8), time.monotonic())

    def close(self) -> None:
        self.closed += 1


def test_a_camera_that_is_lost_is_told_and_opened_again(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "SmoothTracker", Trackless)
    monkeypatch.setattr(sending, "_RETRY_S", 0.01)
    camera, seen = Flaky(), []
    watching = Watching(camera, config, Rolling())
    watching.start(seen.append)
    for _ in range(500):
        if camera.opened > 2 and watching.problem:
            break
        time.sleep(0.002)
    assert watching.problem == "the camera was unplugged" and watching.began_s is not None
    watching.stop()
    assert camera.opened > 2 and camera.closed == camera.opened
    assert any(isinstance(one, NoFace) for one in seen)


def test_recorded_faces_play_at_their_own_pace_over_and_over(make_face: Callable[..., Face]) -> None:
    faces = [make_face(time_s=5 + 0.01 * number) for number in range(3)]
    seen: list[Face | NoFace] = []
    playing = Replaying(faces, 100.0)
    playing.start(seen.append)
    for _ in range(500):
        if len(seen) >= 7:
            break
        time.sleep(0.002)
    playing.stop()
    times = np.array([one.time_s for one in seen[:7]])
    assert np.allclose(np.diff(times), 0.01, atol=1e-6)
    assert playing.began_s == pytest.approx(times[0])
    count = len(seen)
    time.sleep(0.03)
    assert len(seen) == count


def test_a_drive_that_is_none_is_one_sentence(config: Config, tmp_path: Path) -> None:
    for name in ("none.npz", "none.mp4"):
        with pytest.raises(ValueError, match="there is no file"):
            open_drive(tmp_path / name, config, Rolling())


# --- what leaves ---


class Carried:
    """A transport that keeps the packets."""

    def __init__(self) -> None:
        self.packets: list[bytes] = []

    def send_face(self, packet: bytes) -> None:
        self.packets.append(packet)


@pytest.mark.parametrize(("face", "most_bits", "packets"), [("thin", 15_000, (70, 90)), ("auto", 60_000, (160, 167))])
def test_ten_seconds_of_faces_leave_as_the_rung_says(
    config: Config,
    known: Known,
    monkeypatch: pytest.MonkeyPatch,
    face: Literal["auto", "thin"],
    most_bits: int,
    packets: tuple[int, int],
) -> None:
    now_s, carried = [100.0], Carried()
    monkeypatch.setattr(sending, "Outgoing", lambda avatar, base: None)
    monkeypatch.setattr(sending.time, "monotonic", lambda: now_s[0])
    asked = replace(config, link=replace(config.link, face=face))
    watches: Any = None
    base: Any = None
    transport: Any = carried
    sender = sending.Sender(asked, base, Path("a.avatar"), watches, Rolling(), lambda told: None, known)
    sender._transport = transport
    recorded, fed = talking(), 0
    while now_s[0] < 110:
        now_s[0] += 0.06
        while 100 + 0.04 * fed <= now_s[0]:
            sender._faces.append(replace(recorded[fed % len(recorded)], time_s=100 + 0.04 * fed))
            fed += 1
        sender._send_faces()
    assert 8 * sum(map(len, carried.packets)) <= most_bits
    assert packets[0] <= len(carried.packets) <= packets[1]
    decoder = Decoder()
    coded = [one for packet in carried.packets for one in decoder.decode(packet)]
    assert all(after.sequence == (before.sequence + 1) % 256 for before, after in itertools.pairwise(coded))
    assert coded[-1].time_s == pytest.approx(now_s[0] % TIME_WRAP_S, abs=0.2)


# --- what it is told ---


def test_what_the_other_end_says_is_fit_for_a_terminal() -> None:
    assert sending._plain(b"\x1b[2Jno\r\nwell\xff" + b"x" * 1000).startswith("[2Jnowell")
    assert len(sending._plain(b"x" * 1000)) == 300
