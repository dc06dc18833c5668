"""The receiving loop, and both loops over a real connection of this machine; only camera and drawing are fakes."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine import avatar as avatars
from engine.avatar import Avatar
from engine.base import Base
from engine.codec import Coded
from engine.config import Config, load
from engine.frames import Face, Frame, NoFace
from plugin.avatar_transfer import Incoming
from plugin.known import Known
from plugin.meter import Rolling
from plugin.pairing import Code, NobodyError, PairingError
from plugin.receiver import Receiver, Screen
from plugin.sender import Sender, Wanted
from plugin.signaling import Line
from plugin.transport import Transport


@dataclass
class Puppet:
    """Draws a grey whose level tells who and what."""

    level: int = 100
    size_px: int = 64
    drawn: list[Face | NoFace] = field(default_factory=list)

    def warm_up(self) -> None:
        """Nothing to warm."""

    def draw(self, tracked: Face | NoFace) -> Frame:
        self.drawn.append(tracked)
        return Frame(np.full((64, 64, 3), self.level, np.uint8), tracked.time_s)


@dataclass
class Wall:
    """Keeps what is shown."""

    frames: list[Frame] = field(default_factory=list)
    broken: bool = False

    def send(self, frame: Frame) -> None:
        if self.broken:
            raise OSError("the window was closed")
        self.frames.append(Frame(frame.rgb.copy(), frame.time_s))


@dataclass
class Clock:
    now_s: float = 100.0

    def __call__(self) -> float:
        return self.now_s


MakeFace = Callable[..., Face]


# --- the screen ---


def screen_with(clock: Clock) -> tuple[Screen, Wall]:
    wall = Wall()
    return Screen(64, 30.0, wall, Rolling(clock), clock), wall


def feed(screen: Screen, make_face: MakeFace, clock: Clock, count: int = 10) -> None:
    for number in range(count):
        face = make_face(time_s=clock.now_s % 65.536)
        screen.put([Coded(number % 256, face.time_s, face, True)], clock.now_s)
        clock.now_s += 0.04
        screen._one()


def test_the_picture_says_how_things_are(make_face: MakeFace) -> None:
    clock = Clock()
    screen, wall = screen_with(clock)
    screen._one()
    assert screen.picture.words == "waiting for the sender" and wall.frames[0].rgb.shape == (64, 64, 3)
    screen.say("")
    screen._one()
    assert screen.picture.words == "the sender's avatar is on its way"
    screen.wear(Puppet())
    screen._one()
    assert screen.picture.words == "connected, waiting for a face" and screen.first_face_s is None
    feed(screen, make_face, clock)
    assert screen.picture.words == "" and screen.picture.showing == "live"
    assert (wall.frames[-1].rgb == 100).all()
    clock.now_s += 3.0
    screen._one()
    assert screen.picture.words == "no signal for 3 s"
    assert (wall.frames[-1].rgb[:40] == 100).all() and (wall.frames[-1].rgb[-12:] != 100).any()
    feed(screen, make_face, clock)
    assert screen.picture.words == ""


def test_a_better_avatar_takes_over_gently(make_face: MakeFace) -> None:
    clock = Clock()
    screen, wall = screen_with(clock)
    screen.say("")
    screen.wear(Puppet(100))
    feed(screen, make_face, clock)
    screen.wear(Puppet(200))
    feed(screen, make_face, clock, 12)
    levels = [int(frame.rgb[0, 0, 0]) for frame in wall.frames[-12:]]
    assert levels == sorted(levels) and levels[0] < 130 and levels[-1] == 200
    assert max(np.diff(levels)) <= 20


def test_a_sink_that_fails_ends_the_screen_with_its_sentence() -> None:
    assert str(ended(Screen(64, 30.0, Wall(broken=True), Rolling()))) == "the window was closed"


def test_whatever_else_ends_the_screen_is_told_in_one_sentence() -> None:
    class Torn(Puppet):
        def draw(self, tracked: Face | NoFace) -> Frame:
            raise RuntimeError("the network is gone")

    screen = Screen(64, 30.0, Wall(), Rolling())
    screen.wear(Torn())
    assert str(ended(screen)) == "drawing failed (RuntimeError: the network is gone)"


def ended(screen: Screen) -> OSError | ValueError | None:
    """Why its thread ended, by itself."""
    screen.start()
    assert screen._thread is not None
    screen._thread.join(20)
    assert not screen._thread.is_alive()
    return screen.failure


def test_sound_is_due_when_its_lips_are_shown(make_face: MakeFace) -> None:
    clock = Clock()
    screen, _ = screen_with(clock)
    assert screen.voice_due_s(1.0, clock.now_s) is None
    screen.wear(Puppet())
    feed(screen, make_face, clock, 30)
    shown_s = screen.picture.sender_s
    drawn_s = clock.now_s
    assert shown_s is not None
    clock_s = screen.voice_due_s(shown_s, drawn_s)
    assert clock_s == pytest.approx(drawn_s + screen.lag_s, abs=0.02)
    for wrapped in (shown_s - 65.536, shown_s + 655.36):  # faces count to 65.536 s, sound for ever
        assert screen.voice_due_s(wrapped, drawn_s) == pytest.approx(clock_s, abs=1e-6)


def test_faces_wait_for_a_voice_that_is_slower_and_no_longer_than_it_is(make_face: MakeFace) -> None:
    clock = Clock()
    screen, _ = screen_with(clock)
    screen.wear(Puppet())

    def speak(late_s: float, count: int) -> float:
        for _ in range(count):
            feed(screen, make_face, clock, 1)
            screen.voice_due_s((clock.now_s - late_s) % 65.536, clock.now_s)
        return screen.picture.delay_ms

    assert speak(0.3, 100) == pytest.approx(330, abs=15)  # and 30 ms ahead of the loudspeaker
    assert speak(0.1, 300) == pytest.approx(130, abs=15)
    assert speak(9.0, 300) == pytest.approx(500, abs=15)  # there is an end to waiting


# --- both loops ---


class Actor:
    """Faces from nowhere, 25 a second."""

    def __init__(self, make_face: MakeFace) -> None:
        self._make_face, self._stopping = make_face, threading.Event()
        self.began_s: float | None = None
        self.problem = ""
        self.stopped = False

    def start(self, put: Callable[[Face | NoFace], None]) -> None:
        def act() -> None:
            self.began_s = time.monotonic()
            while not self._stopping.wait(0.04):
                now = time.monotonic()
                put(self._make_face(yaw_deg=10 * np.sin(now), center_px=(128, 128), time_s=now))

        self._thread = threading.Thread(target=act, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()
        self.stopped = True


@dataclass
class Both:
    receiver: Receiver
    wall: Wall
    said: list[str]
    config: Config
    folder: Path
    worn: list[Avatar]


@pytest.fixture(scope="module")
def config() -> Config:
    shipped = load()
    return replace(shipped, link=replace(shipped.link, port=0, announce=False))


@pytest.fixture(scope="module")
def avatar_file(tiny_avatar: Avatar, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mine") / "tiny.avatar"
    avatars.save(tiny_avatar, path)
    return path


def run(test: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(90):
            await test

    asyncio.run(bounded())


async def until(true: Callable[[], object], told: Callable[[], object] = lambda: "") -> None:
    for _ in range(4000):
        if true():
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"it did not come to that within 40 s: {told()}")


@asynccontextmanager
async def receiver(config: Config, base: Base, folder: Path) -> AsyncIterator[Both]:
    said: list[str] = []
    wall, meter, worn = Wall(), Rolling(), []

    def made(avatar: Avatar) -> Puppet:
        worn.append(avatar)
        return Puppet(100 if len(avatar.references) == 1 else 200)

    incoming = Incoming(base, folder / "received")
    known = Known(folder / "receiver.json")
    one = Receiver(config, Screen(64, 30.0, wall, meter), base, meter, said.append, known, incoming, make_renderer=made)
    running = asyncio.ensure_future(one.run())
    try:
        await until(lambda: one.link or running.done(), lambda: running)
        if running.done():
            await running
        yield Both(one, wall, said, config, folder, worn)
        one.stop()
        await running
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


@asynccontextmanager
async def sender(
    both: Both, base: Base, avatar: Path, make_face: MakeFace, code: str | None = None, **link: Any
) -> AsyncIterator[tuple[Sender, asyncio.Task[str], list[str]]]:
    said: list[str] = []
    config = replace(both.config, link=replace(both.config.link, **link))
    known = Known(both.folder / "sender.json")
    assert both.receiver.link is not None
    address = both.receiver.link.address
    text = f"http://127.0.0.1:{str(address).rpartition(':')[2]}/#{code or both.receiver.code}"
    one = Sender(config, base, avatar, Actor(make_face), Rolling(), said.append, known)
    running = asyncio.ensure_future(one.run(Wanted.choose(text, known)))
    try:
        yield one, running, said
        if not running.done():
            one.stop()
            await running
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def test_two_meet_a_preview_moves_and_the_whole_avatar_follows(
    config: Config, tiny_base: Base, avatar_file: Path, make_face: MakeFace, tmp_path: Path
) -> None:
    async def test() -> None:
        async with receiver(config, tiny_base, tmp_path) as both:
            async with sender(both, tiny_base, avatar_file, make_face) as (_, _, said):
                await until(lambda: both.receiver.screen.first_face_s, lambda: (both.said, said))
                await until(lambda: len(both.worn) == 2, lambda: (both.said, said))
                assert [len(avatar.references) for avatar in both.worn] == [1, 3]
                await until(lambda: (both.wall.frames[-1].rgb == 200).all())
                puppet = both.receiver.screen.renderer
                assert isinstance(puppet, Puppet)
                await until(
                    lambda: len({float(face.points[0, 0]) for face in puppet.drawn if isinstance(face, Face)}) > 5
                )
            await until(lambda: "the sender ended the call" in both.said)
            assert len(list((tmp_path / "received").glob("*.avatar"))) == 1
            await until(lambda: sum("understudy send" in one for one in both.said) == 2)  # a new code, for the next

    run(test())


def test_a_sender_that_starts_again_needs_no_new_code(
    config: Config, tiny_base: Base, avatar_file: Path, make_face: MakeFace, tmp_path: Path
) -> None:
    async def test() -> None:
        async with receiver(config, tiny_base, tmp_path) as both:
            code = str(both.receiver.code)
            async with sender(both, tiny_base, avatar_file, make_face) as (one, _, said):
                await until(lambda: both.receiver.connections == 1, lambda: (both.said, said))
                assert one._transport is not None
                await one._transport.close()  # as when the address changes: the line dies, nobody says why
                await until(lambda: both.receiver.connections == 2, lambda: (both.said, said))
            async with sender(both, tiny_base, avatar_file, make_face, code):  # the same command once more
                await until(lambda: both.receiver.connections == 3, lambda: both.said)
                await until(lambda: both.receiver._meter.recent("packets").size > 3, lambda: both.said)
            whole = [avatar for avatar in both.worn if len(avatar.references) > 1]
            assert len(whole) <= 1  # an avatar that is worn already is not put on again

    run(test())


def test_without_the_code_there_is_no_frame_no_avatar_and_no_clue(
    config: Config, tiny_base: Base, avatar_file: Path, make_face: MakeFace, tmp_path: Path
) -> None:
    async def test() -> None:
        async with receiver(config, tiny_base, tmp_path) as both:
            room = str(both.receiver.code)[:3]
            async with sender(both, tiny_base, avatar_file, make_face, f"{room}-zoo-zebra") as (one, running, _):
                with pytest.raises(PairingError, match="refused"):
                    await running
                assert one.connections == 0
                assert isinstance(one._watches, Actor) and one._watches.stopped
            other = Code("999" if room != "999" else "998", "zoo-zebra")
            async with sender(both, tiny_base, avatar_file, make_face, str(other)) as (_, running, _):
                with pytest.raises(NobodyError, match="wrong, used or too old"):
                    await running
            assert both.receiver.connections == 0 and not both.worn
            assert both.receiver._transport is None

    run(test())


def test_a_certificate_that_the_code_does_not_vouch_for_ends_it(
    config: Config,
    tiny_base: Base,
    avatar_file: Path,
    make_face: MakeFace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Somebody in the middle answers in the receiver's name, with its own certificate, below the sealed notes."""
    accept = Transport.accept
    other: list[Transport] = []

    async def swapped(self: Transport, answer: str) -> None:
        thief = Transport(route="datachannel", receive_only=True)
        other.append(thief)
        assert self._peer.localDescription is not None
        await accept(self, await thief.answer(self._peer.localDescription.sdp))

    monkeypatch.setattr(Transport, "accept", swapped)

    async def test() -> None:
        async with receiver(config, tiny_base, tmp_path) as both:
            async with sender(both, tiny_base, avatar_file, make_face) as (one, running, _):
                with pytest.raises(PairingError, match="not the one that the code vouches for"):
                    await running
                assert one.connections == 0
            assert not both.worn
            for thief in other:
                assert thief.traffic["face"].in_bytes == thief.traffic["message"].in_bytes == 0
                await thief.close()

    run(test())


def test_who_does_not_share_the_avatar_sends_faces_alone(
    config: Config, tiny_base: Base, avatar_file: Path, make_face: MakeFace, tmp_path: Path
) -> None:
    async def test() -> None:
        async with (
            receiver(config, tiny_base, tmp_path) as both,
            sender(both, tiny_base, avatar_file, make_face, share_avatar=False),
        ):
            await until(lambda: both.receiver._meter.recent("packets").size > 3, lambda: both.said)
            assert not both.worn and both.receiver.screen.picture.words == "the sender's avatar is on its way"

    run(test())


def test_garbage_and_lies_in_messages_leave_the_receiver_standing(
    config: Config, tiny_base: Base, avatar_file: Path, make_face: MakeFace, tmp_path: Path
) -> None:
    async def test() -> None:
        async with receiver(config, tiny_base, tmp_path) as both:
            async with sender(both, tiny_base, avatar_file, make_face) as (one, _, said):
                await until(lambda: len(both.worn) == 2, lambda: both.said)
                line = one._transport
                assert line is not None
                for kind in (
                    "face/header",
                    "avatar/offer",
                    "avatar/preview",
                    "avatar/part",
                    "avatar/want",
                    "unheard of",
                ):
                    for payload in (b"", b"\xff" * 50, b"{}", bytes(40_000)):
                        await line.send_message(kind, payload)
                line.send_face(b"\xff" * 300)
                lie = {"sha256": "0" * 64, "bytes": 2_999_999, "base": tiny_base.sha256}
                lie |= {"preview_sha256": "0" * 64, "preview_bytes": 20}
                await line.send_message("avatar/offer", json.dumps(lie).encode())
                await line.send_message("avatar/preview", bytes(20))
                await until(lambda: any("preview is not the one" in one for one in both.said), lambda: both.said)
                await until(lambda: any("refused the avatar" in one for one in said), lambda: said)
                assert all("\n" not in one for one in both.said if "understudy send" not in one)
                shown = len(both.wall.frames)
                await until(lambda: len(both.wall.frames) > shown + 5)
                assert line.state == "connected"
            assert not any("went wrong" in one for one in both.said), both.said

    run(test())


def test_a_flood_is_cut_off_and_the_code_s_owner_may_come_back(
    config: Config, tiny_base: Base, avatar_file: Path, make_face: MakeFace, tmp_path: Path
) -> None:
    async def test() -> None:
        async with (
            receiver(config, tiny_base, tmp_path) as both,
            sender(both, tiny_base, avatar_file, make_face) as (one, _, told),
        ):
            await until(lambda: both.receiver.connections == one.connections == 1)
            line = both.receiver._transport
            assert line is not None and one._transport is not None
            for _ in range(2000):  # as if they had come: aiortc itself sends no faster than its window
                line._face_message(bytes(900))
            await until(lambda: any("packets a second" in one for one in both.said), lambda: both.said)
            await until(lambda: both.receiver.connections == 2, lambda: (both.said[1:], told, one._transport))

    run(test())


def test_a_taken_port_is_one_sentence(config: Config, tiny_base: Base, tmp_path: Path) -> None:
    async def test() -> None:
        async with receiver(config, tiny_base, tmp_path) as both:
            assert both.receiver._door is not None
            port = int(both.receiver._door.address.rpartition(":")[2])
            taken = replace(config, link=replace(config.link, port=port))
            one = Receiver(
                taken, Screen(64, 30, Wall(), Rolling()), tiny_base, Rolling(), print, Known(tmp_path / "k"),
                Incoming(tiny_base, tmp_path),
            )  # fmt: skip
            with pytest.raises(ValueError, match=f"port {port} is taken"):
                await one.run()

    run(test())


def test_the_code_is_shown_with_a_link_and_as_a_picture(config: Config, tiny_base: Base, tmp_path: Path) -> None:
    import cv2

    async def test() -> None:
        said: list[str] = []
        one = Receiver(
            config, Screen(64, 30, Wall(), Rolling()), tiny_base, Rolling(), said.append, Known(tmp_path / "k"),
            Incoming(tiny_base, tmp_path), qr_file=tmp_path / "qr.png",
        )  # fmt: skip
        running = asyncio.ensure_future(one.run())
        await until(lambda: one.code)
        one.stop()
        await running
        assert f"understudy send {one.code}" in said[0] and str(one.link) in said[0] and "▄" in said[0]
        read, *_ = cv2.QRCodeDetector().detectAndDecode(cv2.imread(str(tmp_path / "qr.png")))
        assert read == str(one.link)
        line = Line.open(str(one.link).partition("/#")[0], str(one.code)[:3])
        with pytest.raises(NobodyError):
            await line  # it is over

    run(test())
