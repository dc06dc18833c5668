"""The avatar framed like a person at a desk: its square placed in a wide picture, over a background that fills it.

`Follow` parts a head's movement into what stays inside the square and what moves the square itself, slowly back to the
middle; `Desk` lays the square over the background. Below, the square always reaches the lower edge of the picture;
where shoulders or hair leave it at the sides, they go on along their own outline.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from engine.compositor import GREEN, Background, Matte, Plate, parse_color
from engine.frames import Image
from engine.tracker import canonical_face, fit_pose

Floats = NDArray[np.float32]

_PAD = 0.3  # of the square's side, left and right: how far shoulders and hair are continued
_OVERSHOOT = 0.03  # of the square: how far it reaches below the picture, so that a nod uncovers nothing
_INSIDE = 0.05  # crop units of movement that stay inside the square
_SIDEWAYS, _UPRIGHT = 0.35, 0.06  # crop units that the square itself may move
_ZOOM = (0.9, 1.25)
_CENTRE_S = 5.0  # how slowly the head is brought back to the middle


@dataclass(frozen=True, slots=True)
class Place:
    """Where the square is: moved by `x`, `y` crop units (half a side each) and enlarged about its lower middle."""

    x: float = 0.0
    y: float = 0.0
    zoom: float = 1.0


class Follow:
    """Landmarks to draw -> landmarks that stay where the square shows them well, and the square's place."""

    def __init__(self, rest: Floats) -> None:
        """`rest [478, 3]` crop units: the avatar's neutral face."""
        self._canonical = canonical_face()
        _, self._rest_at, self._rest_scale = fit_pose(rest, self._canonical)
        self._slow = np.zeros(2)
        self._slow_zoom = 0.0
        self._last_s: float | None = None

    def __call__(self, points: Floats, time_s: float) -> tuple[Floats, Place]:
        _, at, scale = fit_pose(points, self._canonical)
        zoom = float(np.log(max(scale / self._rest_scale, 1e-3)))
        offset = (at - self._rest_at)[:2].astype(np.float64)
        passed_s = 0.0 if self._last_s is None else max(time_s - self._last_s, 0.0)
        share = 1.0 if self._last_s is None else 1 - float(np.exp(-passed_s / _CENTRE_S))
        self._last_s = time_s
        self._slow += share * (offset - self._slow)
        self._slow_zoom += share * (zoom - self._slow_zoom)
        moved = offset - self._slow
        inside = _INSIDE * np.tanh(moved / _INSIDE)
        outside = moved - inside
        place = Place(
            float(_SIDEWAYS * np.tanh(outside[0] / _SIDEWAYS)),
            float(_UPRIGHT * np.tanh(outside[1] / _UPRIGHT)),
            float(np.clip(np.exp(zoom - self._slow_zoom), *_ZOOM)),
        )
        drawn = (points - at) / np.float32(np.exp(zoom)) + self._rest_at
        drawn[:, :2] += inside.astype(np.float32)
        return drawn.astype(np.float32), place


class Desk:
    """`compose` lays the avatar's square over the background. Not thread-safe: its buffers are used again.

    `size_px` is width and height; `side_px` the square's own side; `head_room` the share of the picture's height that
    stays free above the hair, `hair_top` where that ends in the square (0 its upper edge, 1 the lower).
    """

    def __init__(
        self,
        size_px: tuple[int, int],
        side_px: int,
        background: Background,
        *,
        plate: Plate | None = None,
        color: str = "#3c4148",
        image: Image | None = None,
        head_room: float = 0.14,
        hair_top: float = 0.03,
        cut: bool = False,
    ) -> None:
        """`cut`: the photos cut the hair off at the top; the picture does the same then."""
        self.size_px, self._side_px = size_px, side_px
        width, height = size_px
        if cut:
            self._scale = height * 1.02 / side_px
            top = -0.02 * height
        else:
            self._scale = height * (1 - head_room) / (1 - hair_top - _OVERSHOOT) / side_px
            top = height - self._scale * side_px * (1 - _OVERSHOOT)
        self._left, self._top = width / 2 - self._scale * side_px / 2, top
        self._pad_px = round(_PAD * side_px)
        wide = side_px + 2 * self._pad_px
        self._rgb = np.zeros((side_px, wide, 3), np.uint8)
        self._matte = np.zeros((side_px, wide), np.uint8)
        self._slopes = [1.0, 1.0]
        self.backdrop = self._make_backdrop(background, plate, color, image)
        shape = (height, width, 3)
        self._front, self._weight3, self._rest3, self._back = (np.empty(shape, np.uint8) for _ in range(4))
        self._weight = np.empty(shape[:2], np.uint8)
        edge = np.clip((np.arange(side_px) + 0.5) / (0.025 * side_px), 0, 1)
        self._fade = np.ones((side_px, wide), np.float32)
        if not cut:
            self._fade *= (edge * edge * (3 - 2 * edge)).astype(np.float32)[:, None]
        far = np.clip((np.arange(wide) + 0.5) / (0.5 * self._pad_px), 0, 1).astype(np.float32)
        self._fade *= np.minimum(far, far[::-1])[None]
        self._fade8 = np.rint(255 * self._fade).astype(np.uint8)

    def compose(self, rgb: Image, matte: Matte, place: Place | None = None, out: Image | None = None) -> Image:
        """The picture `[H, W, 3]`, written into `out` when given."""
        place = place or Place()
        width, height = self.size_px
        side, pad = self._side_px, self._pad_px
        self._rgb[:, pad : pad + side], self._matte[:, pad : pad + side] = rgb, matte
        self._continue(0)
        self._continue(1)
        cv2.multiply(self._matte, self._fade8, dst=self._matte, scale=1 / 255)
        scale = self._scale * place.zoom
        left = width / 2 - scale * side / 2 + place.x * self._scale * side / 2
        top = self._top + self._scale * side - scale * side + place.y * self._scale * side / 2
        matrix = np.array([[scale, 0, left - pad * scale + (scale - 1) / 2], [0, scale, top + (scale - 1) / 2]])
        way = cv2.INTER_AREA if scale < 0.6 else cv2.INTER_LINEAR
        cv2.warpAffine(self._rgb, matrix, (width, height), self._front, way, cv2.BORDER_REPLICATE)
        cv2.warpAffine(self._matte, matrix, (width, height), self._weight, way, cv2.BORDER_REPLICATE)
        cv2.cvtColor(self._weight, cv2.COLOR_GRAY2RGB, dst=self._weight3)
        cv2.bitwise_not(self._weight3, dst=self._rest3)
        cv2.multiply(self._front, self._weight3, dst=self._front, scale=1 / 255)
        cv2.multiply(self.backdrop, self._rest3, dst=self._back, scale=1 / 255)
        picture = np.empty_like(self.backdrop) if out is None else out
        cv2.add(self._front, self._back, dst=picture)
        return picture

    def _continue(self, right: int) -> None:
        """What leaves the square at one side goes on beyond it: mirrored in the edge, and sheared along its outline."""
        side, pad = self._side_px, self._pad_px
        inner = slice(pad, pad + side)
        matte, rgb = self._matte[:, inner], self._rgb[:, inner]
        if not right:
            matte, rgb = matte[:, ::-1], rgb[:, ::-1]
        there = np.flatnonzero(matte[:, -2] > 127)
        outer_matte = self._matte[:, pad + side :] if right else self._matte[:, :pad][:, ::-1]
        outer_rgb = self._rgb[:, pad + side :] if right else self._rgb[:, :pad][:, ::-1]
        if not there.size:
            outer_matte[:] = 0
            return
        near = np.flatnonzero(matte[:, -2 - pad // 3] > 127)
        slope = (there[0] - near[0]) / (pad / 3) if near.size else 1.0
        self._slopes[right] += 0.2 * (float(np.clip(slope, 0.3, 3.0)) - self._slopes[right])
        shear = 2 * self._slopes[right]
        # outer (d, y) shows inner (-d, y - shear * d); d counts from the edge
        matrix = np.array([[-1.0, 0.0, side - 1.0], [-shear, 1.0, -shear / 2]])
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        outer_rgb[:] = cv2.warpAffine(np.ascontiguousarray(rgb), matrix, (pad, side), None, flags, cv2.BORDER_REPLICATE)
        outer_matte[:] = cv2.warpAffine(np.ascontiguousarray(matte), matrix, (pad, side), None, flags)

    def _make_backdrop(self, background: Background, plate: Plate | None, color: str, image: Image | None) -> Image:
        width, height = self.size_px
        if background in ("color", "green"):
            flat = parse_color(GREEN if background == "green" else color)
            return np.full((height, width, 3), flat, np.uint8)
        if background == "image":
            if image is None:
                raise ValueError("the background 'image' needs a picture")
            return cover(image, self.size_px)
        if plate is None:
            raise ValueError(f"the background {background!r} needs the avatar's own plate, and it has none")
        scale = self._scale * self._side_px / plate.picture.shape[0]
        matrix = np.array([[scale, 0, self._left + (scale - 1) / 2], [0, scale, self._top + (scale - 1) / 2]])
        wide = cv2.warpAffine(plate.picture, matrix, (width, height), None, cv2.INTER_LINEAR, cv2.BORDER_REFLECT)
        soft = cv2.GaussianBlur(wide, (0, 0), 0.05 * height, borderType=cv2.BORDER_REFLECT)
        if background == "blur":
            return np.asarray(soft, np.uint8)
        # Beyond the photo its mirror image goes out of focus, so that nobody sees that it is one.
        x, y = np.arange(width)[None], np.arange(height)[:, None]
        side = self._scale * self._side_px
        beyond = np.maximum(np.maximum(self._left - x, x - self._left - side), np.maximum(self._top - y, 0))
        share = np.clip(beyond / (0.12 * height), 0, 1)[..., None]
        share = share * share * (3 - 2 * share)
        return np.rint(wide + share * (soft.astype(np.float32) - wide)).astype(np.uint8)


def cover(rgb: Image, size_px: tuple[int, int]) -> Image:
    """The largest centred part of a picture with the shape of `size_px` (width, height), at that size."""
    width, height = size_px
    have_height, have_width = rgb.shape[:2]
    scale = max(width / have_width, height / have_height)
    part_w, part_h = min(round(width / scale), have_width), min(round(height / scale), have_height)
    left, top = (have_width - part_w) // 2, (have_height - part_h) // 2
    part = rgb[top : top + part_h, left : left + part_w]
    if part.shape[:2] == (height, width):
        return np.ascontiguousarray(part)
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(np.ascontiguousarray(part), size_px, interpolation=way), np.uint8)
