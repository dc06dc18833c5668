"""Keys and preview: what a key does, that the real camera is asked for, that keys everywhere never break the start."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from engine.frames import Image
from plugin.camera import LiveStatus, View
from plugin.puppet import Settings
from plugin.window import KEYS, GlobalKeys, Keys, can_show, preview


class FakeLive:
    def __init__(self) -> None:
        self.done: list[object] = []
        self.held = self.private = self.passing = self.asked = False
        self.picture: Image | None = np.full((720, 1280, 3), 90, np.uint8)

    def calibrate(self) -> None:
        self.done.append("calibrate")

    def hold(self, on: bool | None = None) -> bool:
        self.held = not self.held
        return self.held

    def privacy(self, on: bool | None = None) -> bool:
        self.private = not self.private
        return self.private

    def pass_through(self, on: bool | None = None, sure: bool = False) -> bool:
        self.asked = self.asked or sure
        self.passing = not self.passing and self.asked
        return self.passing

    @property
    def pass_through_asks(self) -> bool:
        return not self.asked

    def switch(self, name: str | None = None) -> str:
        return "two"

    def latest(self, view: View) -> Image | None:
        return self.picture if view == "output" else None

    def status(self) -> LiveStatus:
        return LiveStatus(
            state="live",
            avatar="größer",
            fps=30.0,
            stages_ms={"draw": 20.0},
            drops={"frames": 0},
            queue_ms={},
            glass_p50_ms=float("nan"),
            glass_p95_ms=float("nan"),
            camera="cam",
            sink="/dev/video0",
            backend="CPU",
            settings=Settings(),
        )


def test_keys() -> None:
    live = FakeLive()
    keys = Keys(live)
    assert "neutral" in keys.press("c")
    assert live.done == ["calibrate"]
    assert keys.press("h") == "held"
    assert keys.press("h") == "going on"
    assert "still card" in keys.press("p")
    assert live.private
    assert "two" in keys.press("n")
    assert keys.press("x") == ""
    assert not keys.quit
    keys.press("q")
    assert keys.quit


def test_the_real_camera_is_shown_only_when_the_key_comes_twice() -> None:
    now = [0.0]
    live = FakeLive()
    keys = Keys(live, lambda: now[0])
    assert "press r again" in keys.press("r")
    assert not live.passing
    now[0] += 60
    assert "press r again" in keys.press("r"), "the question has lapsed"
    now[0] += 1
    assert "real camera is shown" in keys.press("r")
    assert live.passing
    assert "avatar is back" in keys.press("r")
    now[0] += 60
    assert "real camera is shown" in keys.press("r"), "asked once"


def test_preview_shows_the_picture_with_or_without_a_camera() -> None:
    live = FakeLive()
    window = preview(live, live.status(), "")
    assert window.shape == (540 + 64, 960, 3)
    assert (window[100:400, 100:400] == 90).all()
    assert window[545:].max() > 200, "text below"
    live.picture = None
    assert preview(live, live.status(), "hello").shape == (540 + 64, 960, 3)


@pytest.mark.skipif(sys.platform != "linux", reason="displays are looked for on Linux")
def test_no_display_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "XDG_SESSION_TYPE"):
        monkeypatch.delenv(name, raising=False)
    assert "no display" in can_show()
    everywhere = GlobalKeys(Keys(FakeLive()), lambda words: None)
    assert "preview window only" in everywhere.told
    everywhere.stop()
    monkeypatch.setenv("XDG_SESSION_TYPE", "wayland")
    assert "Wayland" in GlobalKeys(Keys(FakeLive()), lambda words: None).told


def test_every_key_is_told_and_does_something() -> None:
    for key in KEYS:
        assert Keys(FakeLive()).press(key)
