"""The avatar framed like a person at a desk: its square placed in a wide picture, over a background that fills it.

`Follow` parts a head's movement into what stays inside the square and what moves the square itself, slowly back to the
middle; `Desk` lays the square over the background. Below, the square always reaches the lower edge of the picture;
where shoulders or hair leave it at the sides, they go on along their own outline.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from engine.compositor import GREEN, Background, Matte, Plate, cover, parse_color
from engine.frames import Image
from engine.tracker import canonical_face, fit_pose

Floats = NDArray[np.float32]

_PAD = 0.3  # of the square's side, left and right: how far shoulders and hair are continued
_OVERSHOOT = 0.02  # of the square: how far it reaches below the picture, so that a nod uncovers nothing
_STRETCH = 0.6  # what is continued is taken from this part of its own width, so that a face never comes into it
_RIM = 0.02  # of a plate: its outermost pixels, which compression and matte have worn, are not mirrored
_INSIDE = 0.05  # crop units of movement that stay inside the square
_SIDEWAYS, _UPRIGHT = 0.35, 0.06  # crop units that the square itself may move
_ZOOM = (0.9, 1.2)
_CENTRE_S = 5.0  # how slowly the head is brought back to the middle


@dataclass(frozen=True, slots=True)
class Place:
    """Where the square lies in the picture, in whole pixels: its side, and its move to the right and down."""

    side_px: int
    right_px: int = 0
    down_px: int = 0


class Follow:
    """Landmarks to draw -> landmarks that stay where the square shows them well, and the square's place.

    The square moves by whole pixels only (to resize a picture costs a quarter of warping it); what is left of a
    movement is given to the landmarks, so that nothing is seen to step.
    """

    def __init__(self, rest: Floats, side_px: int) -> None:
        """`rest [478, 3]` crop units: the avatar's neutral face; `side_px`: the square's usual side, even."""
        self._canonical = canonical_face()
        _, self._rest_at, self._rest_scale = fit_pose(rest, self._canonical)
        self._side_px = side_px
        self._slow = np.zeros(2)
        self._slow_zoom = 0.0
        self._first_s: float | None = None
        self._last_s = 0.0

    def __call__(self, points: Floats, time_s: float) -> tuple[Floats, Place]:
        _, at, scale = fit_pose(points, self._canonical)
        zoom = math.log(max(scale / self._rest_scale, 1e-3))
        offset = (at - self._rest_at)[:2].astype(np.float64)
        share = 1.0
        if self._first_s is None:
            self._first_s = time_s
        else:  # a plain mean at first, so that a start off the middle is soon forgotten
            passed_s = max(time_s - self._last_s, 0.0)
            share = min(1.0, passed_s / max(min(_CENTRE_S, time_s - self._first_s), 1e-3))
        self._last_s = time_s
        self._slow += share * (offset - self._slow)
        self._slow_zoom += share * (zoom - self._slow_zoom)
        grown = min(max(math.exp(zoom - self._slow_zoom), _ZOOM[0]), _ZOOM[1])
        side_px = 2 * round(grown * self._side_px / 2)
        unit_px = side_px / 2
        moved = offset - self._slow
        outside = moved - _INSIDE * np.tanh(moved / _INSIDE)
        right_px = round(_SIDEWAYS * math.tanh(outside[0] / _SIDEWAYS) * unit_px)
        down_px = round(_UPRIGHT * math.tanh(outside[1] / _UPRIGHT) * unit_px)
        # Far out the square stops; the head then goes on inside it, a little.
        inside = np.clip(moved - np.array([right_px, down_px]) / unit_px, -3 * _INSIDE, 3 * _INSIDE)
        larger = grown * self._side_px / side_px
        drawn = (points - at) * np.float32(larger / math.exp(zoom)) + self._rest_at
        drawn[:, :2] += inside.astype(np.float32)
        return drawn.astype(np.float32), Place(side_px, right_px, down_px)


class Desk:
    """`compose` lays the avatar's square over the background. Not thread-safe: its buffers are used again.

    `size_px` is width and height, both even; `square_px` the side in which the avatar is drawn. `head_room` is the
    share of the picture's height that stays free above the hair, `hair_top` where that ends in the square (0 its upper
    edge, 1 the lower). `cut`: the photos cut the hair off at the top; the picture does the same then.
    """

    def __init__(
        self,
        size_px: tuple[int, int],
        square_px: int,
        background: Background,
        *,
        plate: Plate | None = None,
        color: str = "#3c4148",
        image: Image | None = None,
        head_room: float = 0.14,
        hair_top: float = 0.03,
        cut: bool = False,
    ) -> None:
        self.size_px, self._square_px = size_px, square_px
        side = size_px[1] * (1.02 if cut else (1 - head_room)) / (1 - (0.0 if cut else hair_top) - _OVERSHOOT)
        self.side_px = 2 * round(side / 2)
        """The square's usual side in the picture."""
        self._pad_px = round(_PAD * square_px)
        wide = square_px + 2 * self._pad_px
        self._rgb = np.zeros((square_px, wide, 3), np.uint8)
        self._matte = np.zeros((square_px, wide), np.uint8)
        self._slopes = [1.0, 1.0]
        self.backdrop = self._make_backdrop(background, plate, color, image)
        # Nothing ends with a hard edge: hair that reaches the top of the square, a shoulder that never comes down.
        self._fade = np.full((square_px, wide), 255, np.uint8)
        far = _smooth((np.arange(wide) + 0.5) / (0.5 * self._pad_px))
        top = np.ones(square_px) if cut else _smooth((np.arange(square_px) + 0.5) / (0.025 * square_px))
        self._fade[:] = np.rint(255 * top[:, None] * np.minimum(far, far[::-1])[None])

    def compose(self, rgb: Image, matte: Matte, place: Place | None = None, out: Image | None = None) -> Image:
        """The picture `[H, W, 3]`, written into `out` when given."""
        place = place or Place(self.side_px)
        width, height = self.size_px
        square, pad = self._square_px, self._pad_px
        self._rgb[:, pad : pad + square], self._matte[:, pad : pad + square] = rgb, matte
        for right in (0, 1):
            self._continue(right)
        cv2.multiply(self._matte, self._fade, dst=self._matte, scale=1 / 255)
        wide = round(self._rgb.shape[1] * place.side_px / square / 2) * 2
        way = cv2.INTER_AREA if place.side_px < 0.6 * square else cv2.INTER_LINEAR
        front = np.asarray(cv2.resize(self._rgb, (wide, place.side_px), interpolation=way), np.uint8)
        weight = np.asarray(cv2.resize(self._matte, (wide, place.side_px), interpolation=way), np.uint8)
        left = (width - wide) // 2 + place.right_px
        # The lower edge of the square stays below that of the picture, wherever it moves.
        below = round(_OVERSHOOT * self.side_px) + place.down_px
        top = height - place.side_px + max(below, 0)
        rows, columns = slice(max(top, 0), height), slice(max(left, 0), min(left + wide, width))
        inner = slice(rows.start - top, height - top), slice(columns.start - left, columns.stop - left)
        picture = np.empty_like(self.backdrop) if out is None else out
        np.copyto(picture, self.backdrop)
        blend(front[inner], weight[inner], picture[rows, columns])
        return picture

    def _continue(self, right: int) -> None:
        """What leaves the square at one side goes on beyond it: mirrored in the edge, and sheared along its outline."""
        square, pad = self._square_px, self._pad_px
        inner, outer = slice(pad, pad + square), slice(pad + square, None) if right else slice(0, pad)
        matte = self._matte[:, inner]
        edge, near_edge = (-2, -2 - pad // 3) if right else (1, 1 + pad // 3)
        there = np.flatnonzero(matte[:, edge] > 127)
        if not there.size:
            self._matte[:, outer] = 0
            return
        near = np.flatnonzero(matte[:, near_edge] > 127)
        slope = (there[0] - near[0]) / (pad / 3) if near.size else 1.0
        self._slopes[right] += 0.2 * (float(np.clip(slope, 0.3, 3.0)) - self._slopes[right])
        shear = (1 + _STRETCH) * self._slopes[right]
        # Row y at d + 1/2 beyond the edge shows row y - shear * (d + 1/2) at a part of that before the edge.
        half = _STRETCH / 2
        if right:
            matrix = np.array([[-_STRETCH, 0.0, square - 0.5 - half], [-shear, 1.0, -shear / 2]])
        else:
            matrix = np.array([[-_STRETCH, 0.0, _STRETCH * pad - 0.5 - half], [shear, 1.0, -shear * (pad - 0.5)]])
        for whole, border in ((self._rgb, cv2.BORDER_REPLICATE), (self._matte, cv2.BORDER_CONSTANT)):
            flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
            whole[:, outer] = cv2.warpAffine(whole[:, inner], matrix, (pad, square), None, flags, border)
        # Above its own outline nothing of the person goes on: what stands higher up inside is the head.
        beyond = np.arange(pad) + 0.5
        outline = there[0] + self._slopes[right] * (beyond if right else beyond[::-1])
        rows = np.arange(square)[:, None] - outline[None]
        mask = np.clip(rows * (255 / 8) + 128, 0, 255).astype(np.uint8)
        self._matte[:, outer] = cv2.min(self._matte[:, outer], mask)

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
        left, top = (width - self.side_px) / 2, height - self.side_px * (1 - _OVERSHOOT)
        rim = round(_RIM * plate.picture.shape[0])
        shown = plate.picture[rim : plate.picture.shape[0] - rim, rim : plate.picture.shape[1] - rim]
        scale = self.side_px / plate.picture.shape[0]
        matrix = np.array(
            [[scale, 0, left + rim * scale + (scale - 1) / 2], [0, scale, top + rim * scale + (scale - 1) / 2]]
        )
        wide = cv2.warpAffine(shown, matrix, (width, height), None, cv2.INTER_LINEAR, cv2.BORDER_REFLECT)
        soft = cv2.GaussianBlur(wide, (0, 0), 0.05 * height, borderType=cv2.BORDER_REFLECT)
        if background == "blur":
            return np.asarray(soft, np.uint8)
        # Beyond the photo its mirror image goes out of focus, so that nobody sees that it is one.
        x, y, inset = np.arange(width)[None], np.arange(height)[:, None], 0.04 * height
        beyond = np.maximum(np.maximum(left - x, x - left - self.side_px), top - y) + inset
        share = _smooth(beyond / (0.14 * height))[..., None]
        return np.rint(wide + share * (soft.astype(np.float32) - wide)).astype(np.uint8)


def blend(front: Image, weight: Matte, onto: Image) -> None:
    """`front * weight + onto * (1 - weight)` into `onto`, within one level; all of one height and width.

    Three 8-bit multiplies, as in `engine.compositor.Compositor`: a third of the time of float weights.
    """
    weight3 = cv2.cvtColor(weight, cv2.COLOR_GRAY2RGB)
    rest = cv2.bitwise_not(weight3)
    cv2.multiply(front, weight3, dst=weight3, scale=1 / 255)
    cv2.multiply(onto, rest, dst=rest, scale=1 / 255)
    cv2.add(weight3, rest, dst=onto)


def _smooth(share: NDArray[np.float64]) -> NDArray[np.float64]:
    share = np.clip(share, 0, 1)
    return share * share * (3 - 2 * share)
