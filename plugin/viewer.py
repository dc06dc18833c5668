"""A plain window that shows who is received."""

from __future__ import annotations

from typing import Self

import cv2

from engine.frames import Frame
from plugin.window import can_show


class WindowSink:
    """Shows frames in a window; all calls from one thread. Raises `OSError` without a screen, or when it is closed."""

    def __init__(self, title: str = "Understudy") -> None:
        if refusal := can_show():
            raise OSError(f"{refusal}; or use --out FILE.mp4, --camera or --null")
        self._title = title
        self._open = False

    def send(self, frame: Frame) -> None:
        try:
            if not self._open:
                cv2.namedWindow(self._title, cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO)
                cv2.resizeWindow(self._title, frame.rgb.shape[1], frame.rgb.shape[0])
            cv2.imshow(self._title, cv2.cvtColor(frame.rgb, cv2.COLOR_RGB2BGR))
            cv2.waitKey(1)
            if self._open and cv2.getWindowProperty(self._title, cv2.WND_PROP_VISIBLE) < 1:
                self._open = False
                raise OSError("the window was closed")
            self._open = True
        except cv2.error as error:
            raise OSError(f"no window can be opened ({error.err}): use --out FILE.mp4, --camera or --null") from error

    def close(self) -> None:
        if self._open:
            self._open = False
            cv2.destroyWindow(self._title)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
