"""The panel without a browser: who may talk to it, what it keeps, what it refuses, and that a cancel leaves nothing."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiohttp import ClientSession, ClientWebSocketResponse, CookieJar, WSMsgType, WSServerHandshakeError, web
from aiohttp.test_utils import unused_port
from PIL import Image as Pillow

from engine import avatar as avatars
from engine.avatar import Avatar
from engine.base import Base
from engine.config import load
from engine.frames import Face, Frame, Image, NoFace
from plugin.camera import Live
from plugin.listening import Heard
from plugin.panel import enrolment, server, worker
from plugin.panel.enrolment import Enrolment, TooLargeError
from plugin.panel.server import STATIC, Panel
from plugin.panel.studio import Gate, Studio, TappedSource
from plugin.puppet import Settings
from plugin.sinks import SinkLostError
from plugin.webcam import CameraLostError
from tests.test_voice_lips import babble
from training import photos
from training.photos import CheckedPhoto, Look

ASSETS = Path(__file__).parents[1] / "plugin" / "assets" / "demo"


class StillCamera:
    """Shows one picture, ten times a second."""

    def __init__(self, rgb: Image, name: str = "Still camera") -> None:
        self.name, self._rgb = name, rgb
        self.is_open = False

    def open(self) -> None:
        self.is_open = True

    def read(self) -> Frame:
        time.sleep(0.1)
        return Frame(self._rgb, time.monotonic())

    def close(self) -> None:
        self.is_open = False


class Recorder:
    """A virtual camera that keeps its newest pictures."""

    def __init__(self, size_px: tuple[int, int] = (640, 360), works: bool = True) -> None:
        self.name, self.size_px, self.fps = "Recorder", size_px, 10.0
        self.works, self.is_open, self.count = works, False, 0
        self.last: Image | None = None

    def open(self) -> None:
        if not self.works:
            raise SinkLostError("there is no virtual camera here: install one")
        self.is_open = True

    def send(self, frame: Frame) -> None:
        self.count, self.last = self.count + 1, frame.rgb.copy()

    def close(self) -> None:
        self.is_open = False


class Blind:
    """A tracker that sees nobody, and takes no time for it."""

    def track(self, frame: Frame) -> Face | NoFace:
        return NoFace(frame.time_s)

    def close(self) -> None:
        """Nothing to close."""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home of the program."""
    folder = tmp_path / "home"
    monkeypatch.setenv("UNDERSTUDY_HOME", str(folder))
    return folder


@pytest.fixture
def studio(home: Path, face_photo: Image) -> Studio:
    """No avatar, a camera with a still picture, a virtual camera that records."""
    base = Base(home, "0" * 64, 64, 8, 8, ())
    return make_studio(base, face_photo)


class Babbler:
    """A microphone before which somebody speaks without end."""

    name = "Babbler"

    def __init__(self) -> None:
        self.is_open, self.count = False, 0
        self._sound = babble(5.0)

    def open(self) -> None:
        self.is_open = True

    def read(self) -> Heard:
        time.sleep(0.02)
        piece = self._sound.take(np.arange(320) + 320 * self.count, mode="wrap")
        self.count += 1
        return Heard(piece, 16_000, time.monotonic())

    def close(self) -> None:
        self.is_open = False


def make_studio(
    base: Base,
    rgb: Image,
    sink: Recorder | None = None,
    config_path: Path | None = None,
    microphone: Babbler | None = None,
) -> Studio:
    config = load(config_path if config_path and config_path.exists() else None)
    small = replace(
        config, render=replace(config.render, size_px=256), camera=replace(config.camera, size_px="640x360")
    )
    return Studio(
        small,
        config_path,
        StillCamera(rgb),
        sink or Recorder(),
        cameras=lambda: ["Still camera", "Other camera"],
        open_camera=lambda name: StillCamera(rgb, name or "Still camera"),
        base=base,
        microphone=microphone or Babbler(),
        make_live=lambda *parts, **more: Live(*parts, tracker=Blind, **more),
    )


def wait_until(true: Callable[[], bool], within_s: float = 20.0) -> None:
    until = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < until, "it did not come about in time"
        time.sleep(0.02)


class Caller:
    """A browser of sorts: knows the address, has a cookie jar, says where it comes from."""

    def __init__(self, panel: Panel, session: ClientSession, port: int) -> None:
        self.panel, self.session = panel, session
        self.origin = f"http://127.0.0.1:{port}"
        self.headers = {"Origin": self.origin}

    async def enter(self) -> None:
        async with self.session.post(
            self.origin + "/api/session", data=self.panel.token, headers=self.headers
        ) as answer:
            assert answer.status == 204

    async def get(self, path: str, **headers: str) -> tuple[int, bytes]:
        async with self.session.get(self.origin + path, headers=headers) as answer:
            return answer.status, await answer.read()

    async def post(self, path: str, content: Any, **headers: str) -> tuple[int, dict[str, Any]]:
        async with self.session.post(self.origin + path, data=content, headers=self.headers | headers) as answer:
            text = await answer.text()
            return answer.status, json.loads(text) if text else {}

    async def ask(self, channel: ClientWebSocketResponse, command: str, value: Any = None) -> dict[str, Any]:
        await channel.send_json({"id": 7, "do": command, "value": value})
        async for message in channel:
            assert message.type is WSMsgType.TEXT
            told = json.loads(message.data)
            if told.get("id") == 7:
                return told
        raise AssertionError("the channel was closed")


def with_panel(studio: Studio, body: Callable[[Caller], Awaitable[None]]) -> None:
    @asynccontextmanager
    async def running() -> AsyncIterator[Caller]:
        port = unused_port()
        panel = Panel(studio, port)
        runner = web.AppRunner(panel.app, access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        try:
            async with ClientSession(cookie_jar=CookieJar(unsafe=True)) as session:
                yield Caller(panel, session, port)
        finally:
            await runner.cleanup()

    async def all_of_it() -> None:
        async with running() as caller:
            await body(caller)

    try:
        asyncio.run(all_of_it())
    finally:
        studio.close()


# --- who may ------------------------------------------------------------------------------------------------

SECRETS = ["/api/live", "/api/preview?view=camera", "/api/avatars/mara/picture.jpg", "/api/avatars/mara/file"]


def test_without_the_cookie_nothing_is_told(studio: Studio) -> None:
    async def body(caller: Caller) -> None:
        for path in SECRETS:
            status, told = await caller.get(path, Origin=caller.origin)
            assert status == 401, path
            assert b"understudy panel" in told
        for path in ("/api/avatars", "/api/background", "/api/enrolment/photos"):
            assert (await caller.post(path, b"x"))[0] == 401, path
        for wrong in ("", "guess", caller.panel.token[:-1], caller.panel.token + "x"):
            assert (await caller.post("/api/session", wrong))[0] == 401
        assert (await caller.get("/"))[0] == 200, "the page itself holds no secret"

    with_panel(studio, body)


def test_the_token_becomes_a_cookie_that_scripts_and_other_sites_do_not_get(studio: Studio) -> None:
    async def body(caller: Caller) -> None:
        address = caller.origin + "/api/session"
        async with caller.session.post(address, data=caller.panel.token, headers=caller.headers) as answer:
            cookie = answer.headers["Set-Cookie"]
        assert "HttpOnly" in cookie and "SameSite=Strict" in cookie and "Path=/api" in cookie
        assert caller.panel.token not in cookie
        assert (await caller.post("/api/session", ""))[0] == 204, "the cookie alone is enough afterwards"
        assert (await caller.get("/api/avatars/nobody/file"))[0] == 400

    with_panel(studio, body)


def test_a_ticket_opens_once(studio: Studio) -> None:
    async def body(caller: Caller) -> None:
        ticket = caller.panel.ticket().partition("#")[2]
        assert ticket != caller.panel.token
        assert (await caller.post("/api/session", ticket))[0] == 204
        caller.session.cookie_jar.clear()
        assert (await caller.post("/api/session", ticket))[0] == 401

    with_panel(studio, body)


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1", "127.0.0.1:1", "127.0.0.1.evil.example:8737", ""])
def test_a_foreign_name_that_points_here_is_refused(studio: Studio, host: str) -> None:
    async def body(caller: Caller) -> None:
        await caller.enter()
        for path in ("/", "/static/app.js", *SECRETS):
            assert (await caller.get(path, Host=host, Origin=caller.origin))[0] == 403, path

    with_panel(studio, body)


@pytest.mark.parametrize("origin", ["http://evil.example", "http://127.0.0.1:1", "null", "https://127.0.0.1", ""])
def test_another_page_is_refused_even_with_the_cookie(studio: Studio, origin: str) -> None:
    async def body(caller: Caller) -> None:
        await caller.enter()
        for path in ("/api/avatars", "/api/background", "/api/enrolment/photos", "/api/session"):
            assert (await caller.post(path, b"x", Origin=origin))[0] == 403, path
        for path in ("/api/live", "/api/preview?view=camera"):
            with pytest.raises(WSServerHandshakeError) as refused:
                await caller.session.ws_connect(caller.origin + path, headers={"Origin": origin})
            assert refused.value.status == 403

    with_panel(studio, body)


def test_who_does_not_say_where_it_comes_from_may_change_nothing(studio: Studio) -> None:
    async def body(caller: Caller) -> None:
        await caller.enter()
        async with caller.session.post(caller.origin + "/api/avatars", data=b"x") as answer:
            assert answer.status == 403
        with pytest.raises(WSServerHandshakeError) as refused:
            await caller.session.ws_connect(caller.origin + "/api/live")
        assert refused.value.status == 403
        for site in ("cross-site", "same-site", "none"):  # a page of another port is "same-site"
            assert (await caller.get("/api/avatars/mara/picture.jpg", **{"Sec-Fetch-Site": site}))[0] == 403

    with_panel(studio, body)


@pytest.mark.parametrize(
    "path",
    [
        "/static/../server.py",
        "/static/%2e%2e/server.py",
        "/static/..%2fserver.py",
        "/static//etc/passwd",
        "/static/vendor/README.md",
        "/api/avatars/..%2f..%2fconfig/file",
        "/api/avatars/%2fetc%2fpasswd/picture.jpg",
        "/api/avatars/..%5c..%5cconfig/file",
        "/api/enrolment/thumbnail/..%2fupload-1.photo",
        "/etc/passwd",
        "/api/nothing",
    ],
)
def test_paths_lead_nowhere_else(studio: Studio, home: Path, path: str) -> None:
    home.mkdir()
    (home / "config.toml").write_text("[secret]\n")

    async def body(caller: Caller) -> None:
        await caller.enter()
        reader, writer = await asyncio.open_connection("127.0.0.1", int(caller.origin.rpartition(":")[2]))
        cookie = next(iter(caller.session.cookie_jar))
        writer.write(
            f"GET {path} HTTP/1.1\r\nHost: {caller.origin[7:]}\r\nCookie: {cookie.key}={cookie.value}\r\n"
            "Connection: close\r\n\r\n".encode()
        )  # raw: a client library would tidy the path up
        answer = await reader.read()
        writer.close()
        assert int(answer.split()[1]) in (400, 404), answer[:200]
        assert b"secret" not in answer and b"root:" not in answer and b"aiohttp import" not in answer

    with_panel(studio, body)


def test_the_page_allows_nothing_inline_and_nothing_from_elsewhere(studio: Studio) -> None:
    async def body(caller: Caller) -> None:
        async with caller.session.get(caller.origin + "/") as answer:
            policy = answer.headers["Content-Security-Policy"]
            assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
            assert answer.headers["X-Frame-Options"] == "DENY"
            assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"
            assert answer.headers["Cache-Control"] == "no-store"
            page = await answer.text()
        assert not re.search(r"<script(?![^>]*src=)|<style|\son\w+=|\sstyle=", page)
        for path in STATIC.rglob("*"):
            if path.suffix in {".js", ".css", ".html"} and "vendor" not in path.parts:
                text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
                assert not re.search(r"https?://", text), f"{path.name} names another host"
                assert "unsafeHTML" not in text and "innerHTML" not in text, path.name

    with_panel(studio, body)


def test_vendored_files_are_those_that_were_published() -> None:
    vendor = STATIC / "vendor"
    listed = re.findall(r"^([0-9a-f]{64})  (\S+)$", (vendor / "README.md").read_text(), re.MULTILINE)
    pinned = {name: digest for digest, name in listed}
    there = {path.relative_to(vendor).as_posix(): path for path in vendor.rglob("*") if path.suffix in {".js", ".css"}}
    assert pinned.keys() == there.keys()
    for name, path in there.items():
        assert hashlib.sha256(path.read_bytes()).hexdigest() == pinned[name], name


# --- what comes in --------------------------------------------------------------------------------------------


def png(size_px: tuple[int, int] = (80, 60)) -> bytes:
    with io.BytesIO() as file:
        Pillow.new("RGB", size_px, (200, 30, 30)).save(file, "PNG")
        return file.getvalue()


def test_what_is_too_large_or_no_picture_is_refused_in_a_sentence(studio: Studio, home: Path) -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield bytes(1 << 16)

    async def body(caller: Caller) -> None:
        await caller.enter()
        status, told = await caller.post("/api/avatars", io.BytesIO(bytes(4_000_000)))
        assert status == 413 and "3 MB" in told["error"]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(server, "MAX_BACKGROUND_BYTES", 1 << 20)
            async with caller.session.post(
                caller.origin + "/api/background", data=endless(), headers=caller.headers
            ) as answer:  # no length announced: it is counted while it comes
                assert answer.status == 413
        for content in (b"", b"GIF89a", b"#!/bin/sh\n", png()[:60]):
            status, told = await caller.post("/api/background", content)
            assert status == 400 and "not a picture" in told["error"], content
            status, told = await caller.post("/api/avatars", content)
            assert status == 400 and "avatar" in told["error"], content
        status, told = await caller.post("/api/enrolment/photos", png())
        assert status == 400 and "begin an enrolment" in told["error"]
        assert not (home / "avatars").exists() and not (home / "backgrounds").exists()

    with_panel(studio, body)


def test_a_background_picture_is_kept_and_taken(studio: Studio, home: Path) -> None:
    async def body(caller: Caller) -> None:
        await caller.enter()
        assert (await caller.post("/api/background", png((4000, 3000))))[0] == 200

    with_panel(studio, body)
    settings = studio.snapshot()["settings"]
    kept = Path(settings["image"])
    assert settings["background"] == "image" and kept.parent == home / "backgrounds"
    with Pillow.open(kept) as picture:
        assert picture.size == (1920, 1440)


def test_commands_that_make_no_sense_are_answered_in_a_sentence(studio: Studio) -> None:
    async def body(caller: Caller) -> None:
        await caller.enter()
        async with caller.session.ws_connect(caller.origin + "/api/live", headers=caller.headers) as channel:
            for command, value, word in [
                ("fly", None, "knows no command"),
                ("live", True, "no avatar yet"),
                ("privacy", True, "no avatar yet"),
                ("set", {"expression": 9}, "between 0 and 2"),
                ("set", {"expression": "x"}, "between 0 and 2"),
                ("set", {"wings": 1}, "no setting"),
                ("set", {"image": "/etc/passwd"}, "uploaded"),
                ("set", None, "by name"),
                ("switch", "../x", "no avatar called"),
                ("delete", "../x", "no avatar called"),
                ("camera", "Nobody's", "no camera"),
                ("enrol take", None, "begin an enrolment"),
            ]:
                told = await caller.ask(channel, command, value)
                assert word in told["error"], (command, told)
            await channel.send_str("not JSON")
            while (message := await channel.receive()).type is WSMsgType.TEXT:
                pass
            assert message.type is WSMsgType.CLOSE and message.data == 1008

    with_panel(studio, body)


def test_privacy_waits_for_no_other_command(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = threading.Event()
    monkeypatch.setattr(studio, "do", lambda command, value: slow.wait(30))
    monkeypatch.setattr(studio, "privacy", lambda on: on)

    async def body(caller: Caller) -> None:
        await caller.enter()
        async with caller.session.ws_connect(caller.origin + "/api/live", headers=caller.headers) as channel:
            for number, command in enumerate(["switch", "hold", "privacy"]):
                await channel.send_json({"id": number, "do": command, "value": True})
            answered: list[int] = []
            while len(answered) < 3:
                told = json.loads((await channel.receive()).data)
                if "id" in told:
                    answered.append(told["id"])
                    slow.set()
            assert answered == [2, 0, 1]

    with_panel(studio, body)


# --- avatars --------------------------------------------------------------------------------------------------


def test_import_export_and_delete(
    home: Path, tiny_base: Base, tiny_avatar: Avatar, tmp_path: Path, face_photo: Image
) -> None:
    studio = make_studio(tiny_base, face_photo)
    file = tmp_path / "elsewhere.avatar"
    avatars.save(replace(tiny_avatar, name="Zoë"), file)

    async def body(caller: Caller) -> None:
        await caller.enter()
        assert (await caller.post("/api/avatars", file.read_bytes()))[1] == {"name": "Zoë"}
        status, told = await caller.post("/api/avatars", file.read_bytes())
        assert status == 400 and "already an avatar" in told["error"]
        assert (await caller.post("/api/avatars?replace=1", file.read_bytes()))[0] == 200
        assert await caller.get("/api/avatars/Zo%C3%AB/file") == (200, file.read_bytes())
        status, picture = await caller.get("/api/avatars/Zo%C3%AB/picture.jpg")
        with Pillow.open(io.BytesIO(picture)) as shown:
            assert status == 200 and shown.size == (360, 360)
        avatars.place("Zoë").with_suffix(".png").write_bytes(png())
        async with caller.session.ws_connect(caller.origin + "/api/live", headers=caller.headers) as channel:
            first = json.loads((await channel.receive()).data)["state"]
            assert [one["name"] for one in first["avatars"]] == ["Zoë"] and first["chosen_avatar"] == "Zoë"
            assert "error" not in await caller.ask(channel, "delete", "Zoë")
        assert list((home / "avatars").iterdir()) == [], "the contact sheet goes as well"
        assert studio.snapshot()["state"] == "no avatar"

    with_panel(studio, body)


def test_an_avatar_over_another_base_is_listed_with_the_reason_and_not_shown(
    home: Path, tiny_avatar: Avatar, studio: Studio
) -> None:
    avatars.save(tiny_avatar, avatars.place("old"))
    studio.start()
    told = studio.snapshot()
    assert told["state"] == "no avatar" and "enrol again" in told["avatars"][0]["problem"]
    with pytest.raises(ValueError, match="enrol again"):
        studio.do("switch", "old")
    assert studio.portrait(studio.avatar_path("old")).shape == (512, 512, 3)


def test_from_preview_to_live_to_private_and_back(
    home: Path, tiny_base: Base, tiny_avatar: Avatar, face_photo: Image
) -> None:
    for name in ("ada", "bea"):
        avatars.save(replace(tiny_avatar, name=name), avatars.place(name))
    sink = Recorder()
    studio = make_studio(tiny_base, face_photo, sink)
    try:
        studio.start()
        wait_until(lambda: studio.latest("output") is not None and studio.snapshot()["avatar"] == "ada")
        assert not sink.is_open and sink.count == 0, "a preview is for oneself alone"
        assert studio.do("live", True)
        wait_until(lambda: sink.count > 2)
        assert studio.snapshot()["sending"]
        assert studio.privacy(True)
        wait_until(lambda: studio.snapshot()["state"] == "private")
        before = sink.count
        wait_until(lambda: sink.count > before + 2)
        one = sink.last
        before = sink.count
        wait_until(lambda: sink.count > before + 2)
        assert one is not None and sink.last is not None and np.array_equal(one, sink.last), "the card is still"
        studio.do("switch", "bea")
        studio.privacy(False)
        wait_until(lambda: studio.snapshot()["avatar"] == "bea")
        studio.renewed("bea")
        wait_until(lambda: studio.snapshot()["avatar"] == "bea" and sink.is_open)
        studio.do("delete", "bea")
        wait_until(lambda: studio.snapshot()["avatar"] == "ada")
        studio.do("live", False)
        wait_until(lambda: not sink.is_open)
    finally:
        studio.close()


def test_live_is_not_claimed_while_the_virtual_camera_does_not_open(
    home: Path, tiny_base: Base, tiny_avatar: Avatar, face_photo: Image
) -> None:
    avatars.save(tiny_avatar, avatars.place("ada"))
    studio = make_studio(tiny_base, face_photo, Recorder(works=False))
    try:
        studio.start()
        studio.do("live", True)
        wait_until(lambda: any("install one" in one for one in studio.snapshot()["problems"]))
        assert not studio.snapshot()["sending"]
    finally:
        studio.close()


def test_the_gate_lets_go_of_the_virtual_camera() -> None:
    sink = Recorder()
    gate = Gate(sink)
    frame = Frame(np.zeros((360, 640, 3), np.uint8), 0.0)
    gate.open()
    gate.send(frame)
    assert (sink.is_open, sink.count, gate.sending) == (False, 0, False)
    gate.wanted = True
    gate.send(frame)
    assert (sink.is_open, sink.count, gate.sending) == (True, 1, True)
    gate.wanted = False
    gate.send(frame)
    assert (sink.is_open, sink.count, gate.sending) == (False, 1, False)


def test_a_camera_is_exchanged_while_it_runs(face_photo: Image) -> None:
    first, second = StillCamera(face_photo, "first"), StillCamera(face_photo, "second")
    tapped = TappedSource(first)
    tapped.open()
    assert tapped.read() is tapped.frame
    tapped.exchange(second)
    with pytest.raises(CameraLostError):
        tapped.read()
    tapped.close()
    tapped.open()
    assert (first.is_open, second.is_open, tapped.name) == (False, True, "second")


# --- the config file ------------------------------------------------------------------------------------------


def test_saving_keeps_comments_and_order_and_writes_what_differs(tmp_path: Path, home: Path, face_photo: Image) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('# mine\n[render]\ncolor = "#112233"  # night\n\n[camera]\nexpression = 1.2 # lively\nfps = 25\n')
    studio = make_studio(Base(home, "0" * 64, 64, 8, 8, ()), face_photo, config_path=path)
    assert not studio.snapshot()["unsaved"]
    studio.do("set", {"expression": 0.5, "mirror_output": True, "background": "color"})
    studio.do("camera", "Other camera")
    assert studio.snapshot()["unsaved"]
    studio.do("save", None)
    assert path.read_text() == (
        '# mine\n[render]\ncolor = "#112233"  # night\nbackground = "color"\n\n'
        '[camera]\nexpression = 0.5 # lively\nfps = 25\nmirror_output = true\nname = "Other camera"\n'
    )
    assert not studio.snapshot()["unsaved"]
    again = load(path)
    assert Settings.from_config(again) == replace(
        Settings(), expression=0.5, mirror_output=True, background="color", color="#112233"
    )
    assert again.camera.name == "Other camera"
    assert [one.name for one in tmp_path.iterdir()] == ["mine.toml"], "nothing half-written is left"


def test_a_profile_is_saved_as_one(tmp_path: Path, home: Path, face_photo: Image) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("[camera]\nblink = 0.9\n\n[profiles.work.camera]\ngaze = 0.5  # calm\n")
    config = load(path, "work")
    base = Base(home, "0" * 64, 64, 8, 8, ())
    studio = Studio(config, path, StillCamera(face_photo), Recorder(), base=base, profile="work")
    studio.do("set", {"blink": 0.25, "background": "blur"})
    studio.do("save", None)
    assert (load(path).camera.blink, load(path).camera.gaze, load(path).render.background) == (0.9, 1.0, "photo")
    work = load(path, "work")
    assert (work.camera.blink, work.camera.gaze, work.render.background) == (0.25, 0.5, "blur")
    assert "# calm" in path.read_text()


def test_a_config_file_that_was_broken_meanwhile_is_left_alone(tmp_path: Path, home: Path, face_photo: Image) -> None:
    path = tmp_path / "mine.toml"
    studio = make_studio(Base(home, "0" * 64, 64, 8, 8, ()), face_photo, config_path=path)
    studio.do("set", {"blink": 0.5})
    for text, word in [("[camera\n", "not a TOML file"), ("[camera]\nwings = 2\n", "wings")]:
        path.write_text(text)
        with pytest.raises(ValueError, match=word):
            studio.do("save", None)
        assert path.read_text() == text


# --- enrolment ------------------------------------------------------------------------------------------------


def look_of(**changes: float) -> Look:
    usual = Look(200, 0, 0, 0, 0.1, 200, 0, 0, 0.7, 0.28, 0.02, 0.58, 0.0, 10, 0, 25)
    return replace(usual, **changes)


def checked(make_face: Callable[..., Face], **changes: float) -> CheckedPhoto:
    rgb = np.zeros((256, 256, 3), np.uint8)
    look = look_of(**changes)
    return CheckedPhoto("x", "accepted", (), rgb, make_face(), look, blink=look.lids < photos.SHUT)


def test_every_wish_is_something_to_do(make_face: Callable[..., Face]) -> None:
    dim = checked(make_face, mouth=0.2, face_px=100)
    left, right = checked(make_face, yaw_deg=-20), checked(make_face, yaw_deg=20)
    wishes = {wish for group in ([], [dim], [left], [right]) for wish in photos.advice(group)}
    assert len(wishes) >= 9
    for wish in wishes:
        assert not worker.instruction(wish).startswith("Wanted"), wish
    # "the left of the picture" is to the right of who sits before the camera
    assert worker.instruction(next(w for w in photos.advice([right]) if "nose" in w)).endswith("your right")


def test_the_hint_knows_the_moment(make_face: Callable[..., Face]) -> None:
    front, smile = checked(make_face), checked(make_face, teeth=0.3, mouth=0.2)
    assert worker.hint([], front)[1]
    assert worker.hint([], checked(make_face, yaw_deg=30)) == (
        "Look straight into the camera, eyes open, lips together",
        False,
    )
    said, fits = worker.hint([front], front)
    assert "teeth" in said and not fits
    assert worker.hint([front], smile) == ("Hold still: this one is missing", True)
    dark = smile.refused("the face is too dark: turn towards a window or a lamp")
    assert worker.hint([front], dark) == ("The face is too dark: turn towards a window or a lamp", False)


def test_a_large_photo_is_shrunk_and_its_points_with_it(make_face: Callable[..., Face]) -> None:
    face = make_face(center_px=(2000.0, 1500.0), scale=60.0, size_px=(4000, 3000))
    photo = CheckedPhoto("x", "accepted", (), np.zeros((3000, 4000, 3), np.uint8), face, look_of(face_px=1000))
    small = worker.shrunk(photo)
    assert small.rgb is not None and small.face is not None and small.rgb.shape == (1500, 2000, 3)
    np.testing.assert_allclose(small.face.points, face.points / 2, atol=0.01)
    assert small.face.size_px == (2000, 1500) and small.face.scale == pytest.approx(30.0)
    tiny = CheckedPhoto("x", "accepted", (), np.zeros((300, 400, 3), np.uint8), face, look_of())
    assert worker.shrunk(tiny) is tiny


async def enrolling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Enrolment, Path]:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(enrolment.tempfile, "mkdtemp", lambda prefix: str(scratch))
    return Enrolment(None, lambda: None, lambda: None, lambda name: None), scratch


async def parts(*content: bytes) -> AsyncIterator[bytes]:
    for one in content:
        yield one


@pytest.mark.slow
def test_a_cancel_leaves_no_trace(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the real worker: two photos judged, then everything is gone."""

    async def body() -> None:
        enrol, scratch = await enrolling(tmp_path, monkeypatch)
        await enrol.start()
        await enrol.add("Me at the sea.jpg", parts((ASSETS / "mara" / "01.jpg").read_bytes()))
        await enrol.add("../../notes.txt", parts(b"not a ", b"picture"))
        until = time.monotonic() + 120
        while [one["verdict"] for one in enrol.state()["photos"]] != ["accepted", "refused"]:
            assert time.monotonic() < until, enrol.state()
            await asyncio.sleep(0.05)
        first, second = enrol.state()["photos"]
        assert first["name"] == "Me at the sea.jpg" and enrol.thumbnail(first["thumbnail"])[:2] == b"\xff\xd8"
        assert second["name"] == "notes.txt" and second["reasons"] == ["notes.txt is not a picture that can be read"]
        assert str(scratch) not in json.dumps(enrol.state())
        assert not list(scratch.glob("upload-*")), "a photo that was read lies nowhere any more"
        with pytest.raises(ValueError, match="no such photo"):
            enrol.thumbnail("../x")
        process = enrol._worker
        await enrol.cancel()
        assert process is not None and process.returncode is not None
        assert not scratch.exists() and not home.exists()
        with pytest.raises(ValueError, match="over"):
            enrol.forget(1)

    asyncio.run(body())


def test_too_much_is_refused_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body() -> None:
        monkeypatch.setattr(Enrolment, "_must_be_open", lambda self: None)
        monkeypatch.setattr(enrolment, "MAX_PHOTO_BYTES", 100_000)
        enrol, scratch = await enrolling(tmp_path, monkeypatch)
        with pytest.raises(TooLargeError, match="larger than"):
            await enrol.add("x.jpg", parts(bytes(60_000), bytes(60_000)))
        assert list(scratch.iterdir()) == []
        monkeypatch.setattr(enrolment, "MAX_FILES", 0)
        with pytest.raises(ValueError, match="are the most"):
            await enrol.add("x.jpg", parts(b"x"))
        with pytest.raises(ValueError, match="no picture"):
            await enrol.take()
        await enrol.cancel()
        assert not scratch.exists()

    asyncio.run(body())


@pytest.mark.slow
def test_a_worker_whose_program_is_gone_cleans_up(tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    (scratch / "upload-1.photo").write_bytes(b"x")
    done = subprocess.run(
        [sys.executable, "-m", "plugin.panel.worker", str(scratch)],
        input="",
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        cwd=Path(__file__).parents[1],
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"ready": True}
    assert not scratch.exists()
