"""The panel's flows from end to end in a real Chromium: enrol, preview, switch, live, privacy; keyboard, 360 px."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine import avatar as avatars
from engine.avatar import Avatar
from engine.base import Base, open_base
from engine.frames import Image
from plugin import cards
from plugin.panel import server
from plugin.panel.studio import Studio
from tests.test_panel import ASSETS, Babbler, Recorder, make_studio, wait_until
from training.photos import load_photo

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PATIENCE_MS = 60_000

pytestmark = [
    pytest.mark.slow,
    pytest.mark.needs_browser,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine"),
]


class Hosted:
    """A panel that serves in a thread, as `understudy panel` does."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self.panel: server.Panel
        self._ready = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._thread = threading.Thread(target=self._run, name="panel")
        self._thread.start()
        assert self._ready.wait(60)

    def _run(self) -> None:
        async def serving() -> None:
            self._loop = asyncio.get_running_loop()
            self._task = asyncio.create_task(server.serve(self.studio, 0, False, self._tell))
            await asyncio.gather(self._task, return_exceptions=True)

        asyncio.run(serving())

    def _tell(self, panel: server.Panel) -> None:
        self.panel = panel
        self._ready.set()

    @property
    def link(self) -> str:
        return self.panel.link

    def hang_up(self) -> None:
        """Closes every connection, as a machine that slept would find them."""

        async def close_all() -> None:
            for channel in list(self.panel._sockets):
                await channel.close()

        assert self._loop is not None
        asyncio.run_coroutine_threadsafe(close_all(), self._loop).result(10)

    def stop(self) -> None:
        if self._loop is not None and self._task is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._task.cancel)
            self._thread.join(30)
        assert not self._thread.is_alive()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A page that fails the test when it reports an error, a broken policy included."""
    context = browser.new_context(viewport={"width": 1280, "height": 1000}, reduced_motion="reduce")
    context.set_default_timeout(PATIENCE_MS)
    page = context.new_page()
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
    page.complaints = complaints
    yield page
    context.close()


@pytest.fixture
def host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_base: Base, tiny_avatar: Avatar, face_photo: Image
) -> Iterator[Hosted]:
    """Two avatars, a camera with a still picture, a virtual camera that records."""
    monkeypatch.setenv("UNDERSTUDY_HOME", str(tmp_path))
    for name in ("ada", "bea"):
        avatars.save(replace(tiny_avatar, name=name), avatars.place(name))
    hosted = Hosted(make_studio(tiny_base, face_photo, Recorder()))
    yield hosted
    hosted.stop()


def sink_of(host: Hosted) -> Recorder:
    sink = host.studio._gate._sink
    assert isinstance(sink, Recorder)
    return sink


def shows(page: Any, selector: str, text: str) -> None:
    page.locator(selector, has_text=text).first.wait_for()


def frames(page: Any, view: str, count: int) -> None:
    page.wait_for_function(f"() => Number(document.querySelector('canvas[data-view={view}]').dataset.frames) > {count}")


def test_preview_switch_live_privacy(host: Hosted, page: Any) -> None:
    sink = sink_of(host)
    page.goto(host.link)
    shows(page, ".badge", "Off")
    assert "#" not in page.url, "the token does not stay in the address bar"
    for view in ("output", "camera", "landmarks"):
        frames(page, view, 2)
    shows(page, ".badge", "ada")
    assert not sink.is_open

    page.click(".tile[data-avatar=bea] .face")
    shows(page, ".badge", "bea")
    page.wait_for_selector(".tile[data-avatar=bea] .face[aria-pressed=true]")
    assert host.studio.snapshot()["avatar"] == "bea"

    page.click("[data-do=live]")
    page.wait_for_selector(".screen[data-air=on][data-mode=live]")
    wait_until(lambda: sink.count > 2)
    assert page.title().startswith("● Live")

    page.keyboard.press("p")
    shows(page, ".badge", "Private")
    before = sink.count
    wait_until(lambda: sink.count > before + 1)
    assert sink.last is not None and np.array_equal(sink.last, cards.private_card(sink.size_px))
    assert page.get_attribute("[data-do=privacy]", "aria-pressed") == "true"

    page.click("[data-do=privacy]")
    shows(page, ".badge", "Live")
    page.keyboard.press("h")
    shows(page, ".badge", "Held")
    page.keyboard.press("h")
    page.keyboard.press("n")
    shows(page, ".said", "Neutral")
    page.keyboard.press("l")
    shows(page, ".badge", "Off")
    wait_until(lambda: not sink.is_open)
    assert page.complaints == []


def test_the_real_camera_asks_first(host: Hosted, page: Any) -> None:
    page.goto(host.link)
    shows(page, ".badge", "ada")
    page.keyboard.press("r")
    shows(page, "dialog.small", "Show your real camera?")
    page.keyboard.press("Enter")  # what has the focus is the way back
    page.wait_for_selector("dialog.small", state="hidden")
    assert host.studio.snapshot()["state"] != "pass-through"
    page.keyboard.press("r")
    page.click("dialog.small button.main")
    shows(page, ".badge", "real camera")
    page.keyboard.press("r")
    shows(page, ".badge", "ada")
    assert page.complaints == []


def test_keyboard_alone_is_enough(host: Hosted, page: Any, tmp_path: Path) -> None:
    page.goto(host.link)
    shows(page, ".badge", "ada")
    reached: set[str] = set()
    named: list[str] = []
    for _ in range(60):
        page.keyboard.press("Tab")
        name, what, outline = page.evaluate(
            """() => { const e = document.activeElement; const seen = e.type === "radio" || e.type === "file"
                 ? e.closest("label").querySelector("span") ?? e.closest("label") : e;
               const label = e.getAttribute("aria-label") || e.textContent || (e.labels ?? [])[0]?.textContent;
               const what = e.dataset.do || e.id || e.name || e.className;
               return [(label || "").trim(), what, getComputedStyle(seen).outlineStyle] }"""
        )
        if what and what in reached and what == "plain icon":
            continue
        reached.add(what)
        named.append(name)
        assert name, f"{what} has no name"
        assert outline != "none" or what == "", f"the focus on {what} cannot be seen"
        if what == "save":
            break
    expected = {"live", "privacy", "hold", "neutral", "real", "enrol", "expression", "blink", "gaze", "steadiness"}
    expected |= {"mood", "wake", "contact", "voice_lips", "webcam"}
    assert expected | {"mirror_preview", "mirror_output", "background"} <= reached
    page.focus("#expression")
    page.keyboard.press("ArrowRight")
    wait_until(lambda: host.studio.snapshot()["settings"]["expression"] == pytest.approx(1.05))
    page.focus("[name=mirror_output]")
    page.keyboard.press("Space")
    wait_until(lambda: host.studio.snapshot()["settings"]["mirror_output"])
    page.focus("[name=background][value=photo]")
    page.keyboard.press("ArrowRight")
    wait_until(lambda: host.studio.snapshot()["settings"]["background"] == "blur")
    page.focus("[data-do=save]")
    page.keyboard.press("Enter")
    shows(page, ".keep", "Saved in")
    assert "mirror_output = true" in (tmp_path / "config.toml").read_text()
    page.keyboard.press("?")
    shows(page, "dialog.small", "Privacy: a still card")
    page.keyboard.press("p")  # works from everywhere
    shows(page, ".badge", "Private")
    page.keyboard.press("Escape")
    assert page.complaints == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_a_voice_in_the_place_of_a_face(host: Hosted, page: Any, tmp_path: Path, scheme: str, width: int) -> None:
    """Switched on, the page says what moves the face; a mood and a webcam that is off are told, and all is saved."""
    microphone = host.studio._microphone
    assert isinstance(microphone, Babbler)
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 1000})
    page.goto(host.link)
    shows(page, ".badge", "No face in view: ada rests")
    assert not microphone.is_open, "nobody listens before it is asked for"
    page.check("[name=voice_lips]")
    shows(page, ".badge", "voice")
    shows(page, ".voice", "The voice moves the face now.")
    shows(page, ".voice", "Listening: Babbler")
    assert microphone.is_open
    page.uncheck("[name=webcam]")
    wait_until(lambda: host.studio.camera_picture() is None)
    shows(page, ".badge", "ada speaks by your voice")
    page.focus("#mood")
    for _ in range(4):
        page.keyboard.press("ArrowRight")
    wait_until(lambda: host.studio.snapshot()["settings"]["mood"] == pytest.approx(0.2))
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.click("[data-do=save]")
    shows(page, ".keep", "Saved in")
    saved = (tmp_path / "config.toml").read_text()
    assert all(line in saved for line in ("voice_lips = true", "webcam = false", "mood = 0.2"))
    page.uncheck("[name=voice_lips]")
    shows(page, ".badge", "Webcam off")
    wait_until(lambda: not microphone.is_open)
    assert page.complaints == []


def test_delete_asks_and_an_error_stands_where_it_happens(host: Hosted, page: Any, tmp_path: Path) -> None:
    page.goto(host.link)
    shows(page, ".badge", "ada")
    page.focus(".tile[data-avatar=bea] summary")
    page.keyboard.press("Enter")
    page.click(".tile[data-avatar=bea] .danger")
    page.click("dialog.small .danger")
    page.wait_for_selector(".tile[data-avatar=bea]", state="detached")
    assert not avatars.place("bea").exists()
    wrong = tmp_path / "wrong.avatar"
    wrong.write_bytes(b"no avatar at all")
    page.set_input_files(".avatars input[type=file]", str(wrong))
    shows(page, ".avatars .wrong", "not an avatar")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_360_px_wide_nothing_is_cut_off(host: Hosted, page: Any, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": 360, "height": 740})
    page.goto(host.link)
    shows(page, ".badge", "ada")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    for button in ("live", "privacy"):
        assert page.locator(f"[data-do={button}]").is_visible()
    page.keyboard.press("e")
    page.wait_for_selector("dialog.enrol[open]")
    assert page.evaluate("document.querySelector('dialog.enrol').scrollWidth") <= 360
    page.click("[data-do=cancel]")
    page.wait_for_selector("dialog.enrol[open]", state="hidden")
    assert page.complaints == []


def test_a_lost_connection_is_shown_and_made_again(host: Hosted, page: Any) -> None:
    page.goto(host.link)
    shows(page, ".badge", "ada")
    page.route("**/api/session", lambda route: route.abort())  # the program does not answer
    host.hang_up()
    page.wait_for_selector(".lost")
    assert page.evaluate("document.querySelector('main').inert"), "what cannot be done is not offered"
    page.unroute("**/api/session")
    page.wait_for_selector(".lost", state="detached")
    seen = int(page.get_attribute("canvas[data-view=output]", "data-frames"))
    frames(page, "output", seen + 1)
    host.stop()
    page.wait_for_selector(".lost")
    assert "Not connected" in page.title()


def test_without_the_link_there_is_nothing_to_see(host: Hosted, page: Any) -> None:
    page.goto(host.link.partition("#")[0])
    shows(page, "main", "Open the link again")
    assert page.locator("img, canvas").count() == 0


def test_from_photos_to_a_live_avatar(
    page: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, face_photo: Image
) -> None:
    """Enrolment with the real worker and the real base: drop photos, read verdicts, take one, make it, show it."""
    monkeypatch.setenv("UNDERSTUDY_HOME", str(tmp_path / "home"))
    config = tmp_path / "mine.toml"
    config.write_text("[enrol]\ntune_s = 0\n")
    mara = ASSETS / "mara"
    note = tmp_path / "note.jpg"
    note.write_text("this is no picture")
    host = Hosted(make_studio(open_base(), load_photo(mara / "03.jpg"), Recorder(), config))
    try:
        page.set_default_timeout(240_000)
        page.goto(host.link)
        page.click("text=Make an avatar")
        page.set_input_files("[data-do=files]", [str(mara / "01.jpg"), str(note)])
        shows(page, ".photo[data-verdict=accepted]", "01.jpg")
        shows(page, ".photo[data-verdict=refused]", "not a picture")
        shows(page, ".advice", "teeth")
        page.click("[data-do=watch]")
        frames(page, "camera", 1)
        page.wait_for_function("() => !/One moment|no picture/.test(document.querySelector('.hint').textContent)")
        page.click("[data-do=take]")
        shows(page, ".photo[data-verdict]", "Webcam")
        page.click("text=Webcam off")
        page.wait_for_selector(".photo.waiting", state="detached")
        assert page.is_disabled("[data-do=build]"), "not before a name and the consent"
        page.fill("[name=name]", "mara")
        page.check("[name=agreed]")
        page.click("[data-do=build]")
        page.wait_for_selector("progress")
        page.click("[data-do=use]")
        shows(page, ".badge", "mara")
        frames(page, "output", 1)
        assert avatars.load(avatars.place("mara"), open_base().sha256).checks["photos"] == 2
        assert page.complaints == []
    finally:
        host.stop()
