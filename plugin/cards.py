"""Pictures that stand in for the avatar: the test card before the first frame, the privacy card, a card that tells."""

from __future__ import annotations

import textwrap

import cv2
import numpy as np

from engine.frames import Image

_BARS = ((235, 235, 235), (235, 235, 16), (16, 235, 235), (16, 235, 16), (235, 16, 235), (235, 16, 16), (16, 16, 235))
_FONT = cv2.FONT_HERSHEY_DUPLEX


def test_card(size_px: tuple[int, int], words: str = "Understudy is starting") -> Image:
    """Seven colour bars over a strip of text, `[H, W, 3]`: wrong colours or an upside-down picture show at once."""
    width, height = size_px
    card = np.full((height, width, 3), (28, 31, 36), np.uint8)
    edges = np.linspace(0, width, len(_BARS) + 1).round().astype(int)
    for left, right, colour in zip(edges[:-1], edges[1:], _BARS, strict=True):
        card[: height * 2 // 3, left:right] = colour
    _write(card, words, height * 5 // 6)
    return card


def private_card(size_px: tuple[int, int], words: str = "Back in a moment") -> Image:
    """A calm still card, `[H, W, 3]`."""
    return telling_card(size_px, words)


def telling_card(size_px: tuple[int, int], words: str) -> Image:
    """Words on a dark ground, wrapped, `[H, W, 3]`."""
    width, height = size_px
    shade = np.linspace(58, 30, height)[:, None, None] * np.array([0.85, 0.95, 1.1])
    card = np.ascontiguousarray(np.broadcast_to(shade, (height, width, 3)).astype(np.uint8))
    _write(card, words, height // 2)
    return card


def _write(card: Image, words: str, middle_px: int) -> None:
    """White text about the middle of the card, as many lines as it takes."""
    height, width = card.shape[:2]
    scale = height / 720 * 1.4
    columns = max(int(width * 0.9 / (scale * 20)), 8)
    lines = textwrap.wrap(words, columns)
    step = round(scale * 44)
    for number, line in enumerate(lines):
        (wide, tall), _ = cv2.getTextSize(line, _FONT, scale, 1)
        y = round(middle_px + (number - (len(lines) - 1) / 2) * step + tall / 2)
        cv2.putText(card, line, ((width - wide) // 2, y), _FONT, scale, (240, 240, 240), 1, cv2.LINE_AA)
