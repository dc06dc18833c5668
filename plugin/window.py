"""The preview window of `understudy camera`, its keys, and the same keys everywhere where the system allows it."""

from __future__ import annotations

import logging
import os
import platform
import sys
import time
from collections.abc import Callable
from typing import Protocol, Self

import cv2
import numpy as np

from engine.frames import Image
from plugin.camera import LiveStatus, View

log = logging.getLogger(__name__)

TITLE = "Understudy"
_WIDTH_PX = 960
_ASK_S = 6.0
"""How long the question about the real camera stands."""


class Controls(Protocol):
    """The part of `plugin.camera.Live` that keys reach."""

    def calibrate(self) -> None: ...

    def hold(self, on: bool | None = None) -> bool: ...

    def privacy(self, on: bool | None = None) -> bool: ...

    def pass_through(self, on: bool | None = None, sure: bool = False) -> bool: ...

    @property
    def pass_through_asks(self) -> bool: ...

    def switch(self, name: str | None = None) -> str: ...

    def status(self) -> LiveStatus: ...

    def latest(self, view: View) -> Image | None: ...


KEYS = {
    "c": "neutral face now",
    "h": "hold",
    "p": "privacy card",
    "n": "next avatar",
    "r": "real camera",
    "q": "quit",
}


class Keys:
    """What a key does to the loop. `press` may be called from any thread."""

    def __init__(self, live: Controls, clock: Callable[[], float] = time.monotonic) -> None:
        self._live, self._clock = live, clock
        self._asked_s = float("-inf")
        self.quit = False

    def press(self, key: str) -> str:
        """Does it and says so; "" for a key that means nothing."""
        live = self._live
        if key == "c":
            live.calibrate()
            return "your face as it is now counts as neutral"
        if key == "h":
            return "held" if live.hold() else "going on"
        if key == "p":
            return "private: a still card is shown" if live.privacy() else "the avatar is back"
        if key == "n":
            return f"next avatar: {live.switch()}"
        if key == "r":
            sure = self._clock() - self._asked_s < _ASK_S
            if live.pass_through(sure=sure):
                return "your real camera is shown"
            if live.pass_through_asks:
                self._asked_s = self._clock()
                return "this shows your real face to everybody: press r again to do it"
            return "the avatar is back"
        if key == "q":
            self.quit = True
            return "stopping"
        return ""


class GlobalKeys:
    """Ctrl+Alt with the same letters from any window, through pynput where that is installed and allowed.

    Keys come from pynput's own thread. `told` says what came of it.
    """

    def __init__(self, keys: Keys, say: Callable[[str], None]) -> None:
        self._listener = None
        if os.environ.get("XDG_SESSION_TYPE") == "wayland":
            self.told = "keys work in the preview window only: Wayland lets no program listen elsewhere"
            return
        if platform.system() == "Linux" and not os.environ.get("DISPLAY"):
            self.told = "keys work in the preview window only: there is no X display"
            return
        try:
            from pynput import keyboard
        except ImportError as error:  # pynput looks for a display as it is imported
            self.told = (
                "keys work in the preview window only; for keys everywhere: pip install 'understudy[keys]'"
                if isinstance(error, ModuleNotFoundError)
                else f"keys work in the preview window only: {' '.join(str(error).split())}"
            )
            return
        pressed = {f"<ctrl>+<alt>+{key}": lambda key=key: say(keys.press(key)) for key in KEYS}
        self._listener = keyboard.GlobalHotKeys(pressed)
        self._listener.start()
        self.told = "Ctrl+Alt+" + "/".join(KEYS) + " work in every window"

    def stop(self) -> None:
        if self._listener is not None:
            self._listener.stop()


def can_show() -> str:
    """Why no window can be opened here, in one sentence; "" when one can. Qt would end the process instead."""
    if platform.system() == "Linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return "there is no display for a preview window"
    built = cv2.getBuildInformation()
    gui = next((line for line in built.splitlines() if line.strip().startswith("GUI:")), "")
    if "NONE" in gui:
        return "this build of OpenCV has no windows: pip install --force-reinstall opencv-contrib-python==4.11.0.86"
    return ""


def preview(live: Controls, status: LiveStatus, said: str) -> Image:
    """What the window shows: the picture that leaves, the tracked camera in a corner, two lines of text."""
    output = live.latest("output")
    output = np.zeros((540, _WIDTH_PX, 3), np.uint8) if output is None else output
    height = round(output.shape[0] * _WIDTH_PX / output.shape[1])
    shown = np.asarray(cv2.resize(output, (_WIDTH_PX, height), interpolation=cv2.INTER_AREA), np.uint8)
    camera = live.latest("landmarks")
    if camera is not None:
        wide = _WIDTH_PX // 5
        tall = round(camera.shape[0] * wide / camera.shape[1])
        shown[12 : 12 + tall, -12 - wide : -12] = cv2.resize(camera, (wide, tall), interpolation=cv2.INTER_AREA)
    window = np.full((height + 64, _WIDTH_PX, 3), (24, 26, 30), np.uint8)
    window[:height] = shown
    first = (
        f"{status.state}  {status.avatar}  {status.fps:.0f} fps  glass to glass {status.glass_p50_ms:.0f} ms"
        if np.isfinite(status.glass_p50_ms)
        else f"{status.state}  {status.avatar}"
    )
    keys = "   ".join(f"{key} {does}" for key, does in KEYS.items())
    second = said or (status.problems[0] if status.problems else keys)
    loud = (255, 190, 90) if status.problems and not said else (200, 205, 210)
    for text, y, colour in ((first, 24, (235, 235, 235)), (second, 50, loud)):
        cv2.putText(window, _ascii(text), (12, height + y), cv2.FONT_HERSHEY_SIMPLEX, 0.5, colour, 1, cv2.LINE_AA)
    return window


def _ascii(text: str) -> str:
    """OpenCV's fonts know nothing else."""
    return text.encode("ascii", "replace").decode("ascii")[:130]


class Window:
    """The preview window, in the thread that made it (the main one, on macOS)."""

    def __enter__(self) -> Self:
        cv2.namedWindow(TITLE, cv2.WINDOW_AUTOSIZE | cv2.WINDOW_GUI_NORMAL)
        return self

    def __exit__(self, *_: object) -> None:
        cv2.destroyAllWindows()

    def show(self, picture: Image, wait_ms: int = 50) -> str | None:
        """Draws, waits for a key: the key, "" for none, None when the window was closed."""
        cv2.imshow(TITLE, cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
        code = cv2.waitKey(wait_ms) & 0xFF
        if cv2.getWindowProperty(TITLE, cv2.WND_PROP_VISIBLE) < 1:
            return None
        if code == 255:
            return ""
        return "q" if code == 27 else chr(code).lower()


class Ticker:
    """The meter's line, once a second: over itself in a terminal, else a line each."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._due_s = clock, clock() + 1.0
        self._terminal = sys.stdout.isatty()

    def look(self, live: Controls) -> None:
        now = self._clock()
        if now < self._due_s:
            return
        self._due_s = max(self._due_s + 1.0, now)
        line = live.status().line()
        print(f"\r\x1b[K{line}" if self._terminal else line, end="" if self._terminal else "\n", flush=True)


def attend(live: Controls, show: bool, every: Callable[[], None] | None = None) -> None:
    """Preview, keys and the meter's line until somebody quits; `every` runs about twenty times a second."""
    keys, ticker = Keys(live), Ticker()
    said, said_s = "", 0.0

    def say(words: str) -> None:
        nonlocal said, said_s
        if words:
            said, said_s = words, time.monotonic()
            log.info("%s", words)

    everywhere = GlobalKeys(keys, say)
    print(everywhere.told)
    try:
        if show:
            with Window() as window:
                while not keys.quit:
                    if time.monotonic() - said_s > _ASK_S:
                        said = ""
                    key = window.show(preview(live, live.status(), said))
                    if key is None:
                        break
                    say(keys.press(key))
                    ticker.look(live)
                    if every is not None:
                        every()
        else:
            while not keys.quit:
                time.sleep(0.05)
                ticker.look(live)
                if every is not None:
                    every()
    finally:
        everywhere.stop()
        if sys.stdout.isatty():
            print()
