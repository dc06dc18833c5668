"""Which enrolled photo serves which part of the head, chosen smoothly over time.

Slot A shows one reference as a whole. Slot B has three zones (rest, eyes, mouth), each with a reference of its own.
When another reference fits a zone clearly better, the zone is faded out (slot A shows through), changes its
reference unseen, and is faded in again. When another one fits the whole better, slot A changes at once, and `Dissolve`
hides the step: no picture ever jumps, and only the frame of such a change is drawn twice.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from engine import geometry
from engine.frames import Image

Floats = NDArray[np.float32]

Pictures = tuple[Image, NDArray[np.uint8]]
_URGENT = 0.3
"""The gain in misfit from which on a reference need not be kept for its whole dwell."""
_NEVER, _BORROWING = 1e6, 0.1
"""Misfit of a reference where it may not serve, and how much worse than one's own somebody else's teeth count."""
PAUSE_S = 0.5
"""After so long without a frame nobody remembers the last one: everything changes at once."""


class ReferenceChooser:
    """`choose` returns the four references of a frame and how far slot B's three are faded in."""

    def __init__(
        self,
        points: Sequence[Floats],
        fade_s: float | Sequence[float] = (0.16, 0.04, 0.08),
        dwell_s: float | Sequence[float] = (0.6, 0.5, 0.06, 0.12),
        margin: float = 0.15,
        strangeness: Floats | None = None,
        softness: Floats | None = None,
        cuts: Sequence[Floats | None] | None = None,
        borrowed: Sequence[str] | None = None,
    ) -> None:
        """`points`: the landmarks of each reference, `[478, 3]` in crop units.

        `fade_s`: how long rest, eyes and mouth (or all) take to fade out or in. `dwell_s`: how long slot A and the
        three keep a reference at least, less where it has become very wrong. A blink is over in 0.15 s; a turn takes
        longer.

        `strangeness [R]` is added to each reference's misfit for slot A and the rest of the head: how unlike the front
        reference's its clothes and light are (`unlike`); `softness [R]` to its misfit for everything (`softness_of`).
        `cuts`: where the upper edge cuts their hair (`cut_edge`). `borrowed`: "eyes" or "mouth" for a reference that
        may serve these only, "" for the others, of which there is at least one.
        """
        self._points = np.stack(points)
        self._cut = np.array([number for number, cut in enumerate(cuts or ()) if cut is not None], np.int64)
        self._cuts = np.stack([cut for cut in cuts or () if cut is not None]) if len(self._cut) else None
        self._strangeness = np.zeros(len(points), np.float32) if strangeness is None else strangeness
        self._softness = np.zeros(len(points), np.float32) if softness is None else softness
        self._told = [geometry.describe(one) for one in points]
        # A blink would shine through for as long as slot A keeps it.
        lids = np.array([one["eyes"][:2].mean() for one in self._told])
        self._blinking = (3 * np.maximum(0.6 - lids / lids.max(), 0)).astype(np.float32)
        self._barred = np.zeros((len(points), 4), np.float32)
        for number, zone in enumerate(borrowed or ()):
            if zone:
                self._barred[number] = _NEVER
                self._barred[number, 1 + geometry.ZONES.index(zone)] = _BORROWING
        self._fade_s = np.broadcast_to(np.asarray(fade_s, np.float64), 3)
        self._dwell_s = np.broadcast_to(np.asarray(dwell_s, np.float64), 4)
        self._margin = margin
        self._shown = np.zeros(4, np.int64)
        self._wanted = np.zeros(4, np.int64)
        self._fade = np.ones(3, np.float32)
        self._since_s = np.full(4, -np.inf)
        self._last_s: float | None = None

    def choose(self, target: Floats, time_s: float) -> tuple[NDArray[np.int64], Floats]:
        """`[478, 3]` crop units -> `[4]` indices (slot A, rest, eyes, mouth) and `[3]` fades in 0..1."""
        misfits = self._misfits(target)
        best = misfits.argmin(0)
        passed_s = np.inf if self._last_s is None else max(time_s - self._last_s, 0.0)
        self._last_s = time_s
        if passed_s > PAUSE_S:
            self._shown, self._wanted = best.copy(), best.copy()
            self._fade[:], self._since_s[:] = 1.0, -np.inf
            return best, self._fade.copy()
        current = misfits[self._wanted, np.arange(4)]
        gain = current - misfits.min(0)
        dwell_s = self._dwell_s * np.clip(_URGENT / np.maximum(gain, 1e-6), 0.2, 1.0)
        better = gain > self._margin * current + 0.02
        changing = better & (best != self._wanted) & (time_s - self._since_s >= dwell_s)
        self._wanted[changing], self._since_s[changing] = best[changing], time_s
        self._shown[0] = self._wanted[0]
        step = np.minimum(passed_s / self._fade_s, 1.0)
        for zone in range(3):
            if self._wanted[zone + 1] != self._shown[zone + 1]:
                self._fade[zone] -= step[zone]
                if self._fade[zone] <= 0:
                    self._fade[zone] = 0.0
                    self._shown[zone + 1] = self._wanted[zone + 1]
            else:
                self._fade[zone] = min(self._fade[zone] + step[zone], 1.0)
        return self._shown.copy(), self._fade.copy()

    def _misfits(self, target: Floats) -> Floats:
        """`[R, 4]`."""
        told = geometry.describe(target)
        misfits = np.empty((len(self._told), 4), np.float32)
        misfits[:, 0] = geometry.whole_misfit(told, self._told, target, self._points) + self._blinking
        misfits[:, 1:] = [geometry.misfit(told, one) for one in self._told]
        misfits[:, :2] += self._strangeness[:, None]
        misfits += self._softness[:, None] + self._barred
        if self._cuts is not None:
            back = geometry.head_similarity(target, self._points[self._cut])
            ends = np.linalg.solve(back[:, None, :, :2], (self._cuts - back[:, None, :, 2])[..., None])[..., 1, 0]
            misfits[self._cut, 0] += 8 * np.maximum(ends.max(1) + 1.0, 0.0)
        return misfits


class Dissolve:
    """Hides a step in a stream of pictures: what the step changed is given back, and taken away over `seconds`.

    The "inertialization" of animation (Bollo, GDC 2018) on pixels: only the frame of the step is drawn twice, and what
    differed moves along with the head while it fades.
    """

    def __init__(self, size_px: int, seconds: float = 0.14) -> None:
        self._seconds, self._size_px = seconds, size_px
        self._difference: list[NDArray[np.int16]] = []
        self._target: Floats | None = None
        self._since_s = 0.0
        self._buffers = np.empty((size_px, size_px, 3), np.uint8), np.empty((size_px, size_px), np.uint8)

    def step(self, before: Pictures, after: Pictures, target: Floats, time_s: float) -> None:
        """`before` was due, `after` is drawn from now on; `target [478, 3]` crop units."""
        self._difference = [one.astype(np.int16) - other for one, other in zip(before, after, strict=True)]
        self._target, self._since_s = target, time_s

    def forget(self) -> None:
        self._difference = []

    def __call__(self, drawn: Pictures, target: Floats, time_s: float) -> Pictures:
        """Picture `[S, S, 3]` and matte `[S, S]` -> the same with what is left of the step; valid until the next call.

        Where nothing is left `drawn` itself comes back.
        """
        share = 1 - (time_s - self._since_s) / self._seconds
        if not self._difference or self._target is None or not 0 < share <= 1:
            self.forget()
            return drawn
        share = share * share * (3 - 2 * share)
        size = self._size_px
        back = geometry.pixel_map(geometry.head_similarity(target, self._target[None])[0], size)
        way = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        for one, difference, buffer in zip(drawn, self._difference, self._buffers, strict=True):
            left = cv2.warpAffine(difference, back, (size, size), flags=way, borderMode=cv2.BORDER_REPLICATE)
            cv2.addWeighted(one, 1.0, left, share, 0.0, dst=buffer, dtype=cv2.CV_8U)
        return self._buffers


def side_px(size_px: int) -> int:
    """How far photos of that size are continued on either side."""
    return size_px // 8


def continued(rgb: Image, matte: NDArray[np.uint8]) -> Image:
    """A photo `[S, S, 3]` and its matte `[S, S]` with more on the left and the right: `[S, S + 2 * side_px(S), 3]`.

    A head that turns needs what lies beyond the photo. Where the person reaches its edge, as long hair does, the photo
    goes on as in a mirror, less and less of it, as hair falls; the background goes on as its last column. (Sampled
    with the edge repeated, hair became stripes.)
    """
    beyond = side_px(rgb.shape[0])
    rows = np.arange(rgb.shape[0])
    sides = []
    for column in (slice(beyond), slice(-1, -beyond - 1, -1)):  # from the edge inwards: a mirror's order outwards
        mirrored, edge = rgb[:, column], matte[:, column.start or 0]
        free = np.flatnonzero(edge < 64)
        nearest = free[np.abs(np.subtract.outer(rows, free)).argmin(1)] if len(free) else rows
        held = cv2.blur(np.repeat(mirrored[nearest, :1], beyond, 1), (1, max(beyond // 8, 1)))
        # Each column further out, the person begins one row lower.
        person = edge[np.maximum(rows[:, None] - np.arange(beyond), 0)]
        share = cv2.GaussianBlur(person.astype(np.float32) / 255, (0, 0), beyond / 16)
        sides.append(cv2.blendLinear(np.ascontiguousarray(mirrored), held, share, 1 - share))
    return np.hstack([sides[0][:, ::-1], rgb, sides[1]])


def cut_edge(matte: NDArray[np.uint8]) -> Floats | None:
    """The ends of the stretch where a photo's upper edge cuts the person's hair, `[2, 2]` crop units, if it does."""
    edge = matte[0] > 127
    if edge.mean() <= 0.02:
        return None
    columns = np.flatnonzero(edge)[[0, -1]]
    across = (2 * columns + 1) / len(edge) - 1
    return np.array([[across[0], -1.0], [across[1], -1.0]], np.float32)


def _sunk(cut: Floats, points: Floats, target: Floats) -> float:
    """How far the cut lies below the picture's upper edge when `points` have become `target`; all in crop units."""
    head = geometry.head_similarity(points, target[None])[0]
    return float((cut @ head[:, :2].T + head[:, 2])[:, 1].max()) + 1.0


class Ceiling:
    """Keeps the upper edge of a tight photo out of the picture.

    Where hair is cut off at the top of the photo, a head that moves down or away would show the cut. The picture then
    follows the head by just as much, as a camera would.
    """

    def __init__(self, matte: NDArray[np.uint8], points: Floats) -> None:
        """Of the front reference; `points` in crop units."""
        self._cut, self._points = cut_edge(matte), points

    def __call__(self, target: Floats) -> Floats:
        """`[478, 3]` in crop units, raised where that is needed."""
        if self._cut is None:
            return target
        raised = target.copy()
        raised[:, 1] -= max(_sunk(self._cut, self._points, target), 0.0)
        return raised


def front_reference(points: list[Floats]) -> int:
    """The reference that stands for the person: the one that looks straightest ahead, among those whose eyes are open.

    Open is at least 60 % of the widest. Its background is the avatar's.
    """
    told = [geometry.describe(one) for one in points]
    lids = np.array([one["eyes"][:2].mean() for one in told])
    turned = np.array([np.linalg.norm(one["rest"]) for one in told])
    return int(np.where(lids >= 0.6 * lids.max(), turned, np.inf).argmin())


def unlike(photos: list[tuple[Image, NDArray[np.uint8], Floats]], slot_a: int) -> Floats:
    """How unlike slot A's photo each one is below the chin, `[R]`: 0 for one sitting, about 0.5 for another shirt.

    `photos` are picture, matte and landmarks (pixels) of each reference. Clothes in another light or of another day
    must not flicker in and out with the turns of the head.
    """
    colours = []
    for rgb, matte, points in photos:
        below = matte.copy()
        below[: int(np.clip(points[152, 1], 0, len(below) - 1))] = 0
        worn = below > 200
        lab = cv2.cvtColor(rgb, cv2.COLOR_RGB2LAB)
        colours.append(np.median(lab[worn], axis=0) if worn.mean() > 0.005 else np.full(3, np.nan))
    distance = np.linalg.norm(np.array(colours) - colours[slot_a], axis=1)
    return (0.02 * np.nan_to_num(np.maximum(distance - 4.0, 0.0))).astype(np.float32)


def softness_of(photos: Sequence[tuple[Image, Floats]]) -> Floats:
    """How much softer each photo's face is than the sharper ones of the same person, `[R]`: 0, or about 1 when blurred.

    `photos` are picture and landmarks (pixels). A face that moved while it was photographed is not what to draw from
    while another one will do.
    """
    finest = np.empty(len(photos))
    for number, (rgb, points) in enumerate(photos):
        top, bottom = points[10, :2], points[152, :2]
        zoom = 96 / (float(np.linalg.norm(bottom - top)) + 1e-6)
        middle = (top + bottom) / 2
        place = np.array([[zoom, 0, 48 - zoom * middle[0]], [0, zoom, 56 - zoom * middle[1]]], np.float32)
        gray = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
        if zoom < 1:  # by area, so that nothing finer than the common size counts
            gray = cv2.GaussianBlur(gray, (0, 0), 0.4 / zoom)
        face = cv2.warpAffine(gray, place, (96, 112), flags=cv2.INTER_LINEAR).astype(np.float32)
        features = face - cv2.GaussianBlur(face, (0, 0), 6.0)
        finest[number] = cv2.Laplacian(cv2.GaussianBlur(face, (0, 0), 0.7), cv2.CV_32F).var() / max(features.var(), 4.0)
    behind = np.log2(np.percentile(finest, 75) / np.maximum(finest, 1e-9))
    return np.clip(0.5 * (behind - 0.7), 0.0, 1.5).astype(np.float32)
