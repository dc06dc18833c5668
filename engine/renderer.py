"""Avatar and a stream of `Face` -> a stream of `Frame`; owns everything that lasts from one frame to the next.

The network draws at its own size (256 px). For a larger picture its flow is enlarged and applied to the enrolled
photos at full resolution, so that 512 px is as sharp as the selfie and costs little more.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from engine import geometry
from engine.avatar import Avatar, Reference
from engine.backends import Backend, Tensors, UnavailableError
from engine.backends.choose import OPENVINO_DEVICES, open_backend, open_openvino
from engine.backends.openvino import OpenVino
from engine.base import Base
from engine.compositor import Compositor, clean_plate
from engine.config import Config
from engine.frames import POINT_COUNT, Face, Frame, Image, NoFace
from engine.motion import NeutralFinder, Rest, Retarget
from engine.references import (
    PAUSE_S,
    Ceiling,
    Dissolve,
    ReferenceChooser,
    continued,
    cut_edge,
    front_reference,
    side_px,
    softness_of,
    unlike,
)
from engine.tracker import canonical_face, fit_pose

logger = logging.getLogger(__name__)

Floats = NDArray[np.float32]
_NO_MAP: Any = None  # the first map of a remap holds x and y; OpenCV's stubs do not know of that form


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """One reference as the graph wants it, S = the network's size."""

    picture: Floats
    """`[4, S, S]`: RGB in -1..1 and matte in 0..1."""
    thumbnail: Floats
    """`[4, S/4, S/4]`."""
    features: Floats
    """`[C, S/4, S/4]`."""
    raster: Floats
    """`[3, S/4, S/4]` in 0..1."""
    points: Floats
    """`[478, 3]` crop units."""
    full: Image
    """`[size_px, size_px + 2 * side_px(size_px), 3]`: the photo at the size of the output, `continued`."""


def resized(picture: Image, size_px: int) -> Image:
    """A square picture or matte at another size: made smaller by area, larger by a cubic."""
    way = cv2.INTER_AREA if size_px < picture.shape[0] else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(picture, (size_px, size_px), interpolation=way), np.uint8)


def prepare_picture(rgb: Image, matte: NDArray[np.uint8], size_px: int) -> Floats:
    """`[4, size_px, size_px]`: RGB in -1..1, matte in 0..1."""
    if rgb.shape[0] != size_px:
        rgb, matte = resized(rgb, size_px), resized(matte, size_px)
    planes = np.dstack([rgb.astype(np.float32) / 127.5 - 1, matte.astype(np.float32) / 255])
    return np.ascontiguousarray(planes.transpose(2, 0, 1))


def _by_area(planes: Floats, size_px: int) -> Floats:
    small = cv2.resize(planes.transpose(1, 2, 0), (size_px, size_px), interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(small.transpose(2, 0, 1), np.float32)


def raster_planes(points: Floats) -> Floats:
    """`[3, 128, 128]` in 0..1."""
    return np.ascontiguousarray(geometry.raster(points).transpose(2, 0, 1)).astype(np.float32) / 255


def prepare(reference: Reference, encoder: OpenVino, size_px: int, output_px: int) -> Prepared:
    picture = prepare_picture(reference.rgb, reference.matte, size_px)
    points = geometry.to_crop_units(reference.points, reference.rgb.shape[0])
    raster = raster_planes(points)
    features = encoder.run({"picture": picture[None], "raster": raster[None]})["features"][0].astype(np.float32)
    full, matte = reference.rgb, reference.matte
    if full.shape[0] != output_px:
        full, matte = resized(full, output_px), resized(matte, output_px)
    small = _by_area(picture, size_px // 4), features, _by_area(raster, size_px // 4)
    return Prepared(picture, *small, points, continued(full, matte))


def constants_of(avatar: Avatar, base: Base) -> dict[str, Floats]:
    """What the avatar brings along for the base's graph. Raises `ValueError` when something is missing."""
    wanted = ("modulation", *base.tuned)
    if missing := [name for name in wanted if name not in avatar.tuned]:
        raise ValueError(f"the avatar {avatar.name} lacks the tuned values {missing[0]!r}: enrol again")
    return {name: np.asarray(avatar.tuned[name], np.float32) for name in wanted}


def _resident(prepared: Sequence[Prepared], direct: bool) -> Tensors:
    """All references as a card keeps them (`engine.backends.card_graph`)."""
    resident: dict[str, NDArray[np.generic]] = {
        "pictures": np.concatenate([one.picture for one in prepared], 1)[None],
        "thumbnails": np.concatenate([one.thumbnail for one in prepared], 1)[None],
        "features": np.concatenate([one.features for one in prepared], 1)[None],
        "reference_raster": np.stack([one.raster for one in prepared]),
        "points": np.stack([one.points[:, :2] for one in prepared]),
    }
    if not direct:
        full = np.concatenate([one.full for one in prepared])
        resident["full"] = full.transpose(2, 0, 1)[None].astype(np.float32)
    return resident


class Generator:
    """The network with one avatar's constants and the four references of the moment; draws landmarks, knows no time."""

    def __init__(self, avatar: Avatar, base: Base, config: Config, size_px: int) -> None:
        """Raises `ValueError` when the device that was asked for is not there."""
        engine = config.engine
        self.size_px, self.network_px = size_px, base.size_px
        self._direct = size_px == base.size_px
        outputs = ("rgb", "matte") if self._direct else ("matte", "flow", "weight", "synthesised")
        constants = constants_of(avatar, base)
        self.backend, self._why = open_backend(
            engine, base, avatar.name, constants, len(avatar.references), size_px, outputs
        )
        self._on_card = "chosen" in self.backend.inputs
        self._spare = partial(open_openvino, engine, base, constants, outputs) if engine.device == "auto" else None
        encoder = OpenVino(base.encoder, None, None, OPENVINO_DEVICES[engine.device], "f32", engine.threads)
        self.references = avatar.references
        self.prepared = [prepare(reference, encoder, base.size_px, size_px) for reference in avatar.references]
        self._described = [geometry.describe(one.points) for one in self.prepared]
        n, h = base.size_px, base.size_px // 4
        self._atlases = {
            "pictures": np.empty((1, 4, 4 * n, n), np.float32),
            "thumbnails": np.empty((1, 4, 4 * h, h), np.float32),
            "features": np.empty((1, base.feature_channels, 4 * h, h), np.float32),
            "reference_raster": np.empty((1, 3, h, h), np.float32),
        }
        self._points = np.empty((4, POINT_COUNT, 3), np.float32)
        self._full_b = np.empty((3 * size_px, size_px + 2 * side_px(size_px), 3), np.uint8)
        self._shown = np.full(4, -1)
        s = size_px
        self._maps = np.empty((s, s, 2), np.float32)
        self._tiles = np.empty((s, s), np.uint8)
        self._looks = [np.empty((s, s, 3), np.uint8) for _ in range(3)]
        self._weight, self._weight3, self._part = (
            np.empty((s, s), np.uint8),
            np.empty((s, s, 3), np.uint8),
            np.empty((s, s, 3), np.uint8),
        )
        self._matte = np.empty((s, s), np.uint8)
        self._rgb = np.empty((s, s, 3), np.uint8)
        self.backend.set(_resident(self.prepared, self._direct) if self._on_card else self._atlases)

    def describe(self) -> str:
        """What draws, and why nothing faster does."""
        return self.backend.describe() + (f" ({self._why})" if self._why else "")

    def draw_with(self, backend: Backend) -> None:
        """Draw with another backend that takes the four references of the moment, as OpenVINO does."""
        backend.set(self._atlases)
        self.backend, self._on_card = backend, False
        self._shown[:] = -1

    def _go_on_without_card(self, error: UnavailableError) -> None:
        """A card can go in the middle of a call: a new driver, a lid that is shut, another program's memory."""
        if self._spare is None:
            raise error
        logger.warning("the graphics card is given up, OpenVINO goes on: %s", error)
        self._why = f"TensorRT stopped: {error}"
        self.draw_with(self._spare())

    def _show(self, chosen: NDArray[np.int64]) -> None:
        """Copy the references whose place in the atlas changed."""
        n, h, s = self.network_px, self.network_px // 4, self.size_px
        for tile in np.flatnonzero(chosen != self._shown):
            one = self.prepared[chosen[tile]]
            self._points[tile] = one.points
            self._shown[tile] = chosen[tile]
            if self._on_card:  # it has all of them, and is told which
                continue
            self._atlases["pictures"][0, :, tile * n : (tile + 1) * n] = one.picture
            self._atlases["thumbnails"][0, :, tile * h : (tile + 1) * h] = one.thumbnail
            self._atlases["features"][0, :, tile * h : (tile + 1) * h] = one.features
            if tile == 0:
                self._atlases["reference_raster"][0] = one.raster
            else:
                self._full_b[(tile - 1) * s : tile * s] = one.full

    def draw(self, target: Floats, chosen: NDArray[np.int64], fade: Floats) -> tuple[Image, NDArray[np.uint8]]:
        """Landmarks `[478, 3]` in crop units -> picture `[S, S, 3]`, matte `[S, S]`; the next call overwrites both.

        `chosen [4]` and `fade [3]` as `ReferenceChooser.choose` gives them.
        """
        self._show(chosen)
        described = [self._described[index] for index in chosen]
        trust = geometry.trust(geometry.describe(target), described[0], described[1:])
        given: dict[str, NDArray[np.generic]]
        if self._on_card:
            told = geometry.brief(target, self._points, fade, trust)
            given = {"target": target[:, :2], "maps": told.maps, "weights": told.weights}
            given["chosen"] = chosen.astype(np.int32)
        else:
            told = geometry.condition(target, self._points, fade, trust)
            given = {"grids": told.grids[None]}
        given |= {"raster": told.raster[None], "tile": told.tile[None], "detail": told.detail[None, None]}
        try:
            drawn = self.backend.run(given)
        except UnavailableError as error:
            self._go_on_without_card(error)
            return self.draw(target, chosen, fade)
        if self._direct or self._on_card:
            return np.asarray(drawn["rgb"][0], np.uint8), np.asarray(drawn["matte"][0], np.uint8)
        return self._enlarge(drawn, told.tile, int(chosen[0]))

    def _enlarge(
        self, drawn: dict[str, NDArray[np.generic]], tile: NDArray[np.uint8], slot_a: int
    ) -> tuple[Image, NDArray[np.uint8]]:
        s = self.size_px
        flow = drawn["flow"][0].astype(np.float32) * (s / 2) + (s / 2 - 0.5)
        flow[..., 0] += side_px(s)
        cv2.resize(flow[0], (s, s), self._maps, interpolation=cv2.INTER_LINEAR)
        full_a = self.prepared[slot_a].full
        cv2.remap(full_a, self._maps, _NO_MAP, cv2.INTER_LINEAR, self._looks[0], cv2.BORDER_REPLICATE)
        np.clip(flow[1, ..., 1], 0, s - 1, out=flow[1, ..., 1])
        cv2.resize(flow[1], (s, s), self._maps, interpolation=cv2.INTER_LINEAR)
        cv2.resize(tile - np.uint8(1), (s, s), self._tiles, interpolation=cv2.INTER_NEAREST)
        self._maps[..., 1] += self._tiles * np.float32(s)
        cv2.remap(self._full_b, self._maps, _NO_MAP, cv2.INTER_LINEAR, self._looks[1], cv2.BORDER_REPLICATE)
        cv2.resize(drawn["synthesised"][0], (s, s), self._looks[2], interpolation=cv2.INTER_CUBIC)
        weight = drawn["weight"][0]
        self._rgb[:] = 0
        for share, look in zip(weight, self._looks, strict=True):
            cv2.resize(share, (s, s), self._weight, interpolation=cv2.INTER_LINEAR)
            cv2.cvtColor(self._weight, cv2.COLOR_GRAY2RGB, dst=self._weight3)
            cv2.multiply(look, self._weight3, dst=self._part, scale=1 / 255)
            cv2.add(self._rgb, self._part, dst=self._rgb)
        cv2.resize(drawn["matte"][0], (s, s), self._matte, interpolation=cv2.INTER_LINEAR)
        return self._rgb, self._matte


def avatar_face(avatar: Avatar) -> Face:
    """The avatar's neutral face in its crop."""
    rotation, translation, scale = fit_pose(avatar.neutral, canonical_face())
    return Face(avatar.neutral, rotation, translation, scale, 1.0, (avatar.size_px, avatar.size_px), 0.0)


class Stream:
    """A generator in time: chooses the references it draws from, and hides the steps when they change.

    Calls come in order of time.
    """

    def __init__(self, generator: Generator, strangeness: Floats | None = None) -> None:
        self.generator = generator
        prepared = generator.prepared
        cuts = [cut_edge(one.matte) for one in generator.references]
        borrowed = [one.borrowed for one in generator.references]
        soft = softness_of([(one.rgb, one.points) for one in generator.references])
        points = [one.points for one in prepared]
        self._chooser = ReferenceChooser(points, strangeness=strangeness, softness=soft, cuts=cuts, borrowed=borrowed)
        self._dissolve = Dissolve(generator.size_px)
        self.chosen = np.zeros(4, np.int64)
        """The references of the last frame: slot A, rest, eyes, mouth."""
        self.fade = np.ones(3, np.float32)
        """How far the latter three were faded in."""
        self._last_s = -np.inf

    def draw(self, target: Floats, time_s: float) -> tuple[Image, NDArray[np.uint8]]:
        """Landmarks `[478, 3]` in crop units -> picture `[S, S, 3]`, matte `[S, S]`; the next call overwrites both."""
        before = self.chosen[0]
        self.chosen, self.fade = self._chooser.choose(target, time_s)
        drawn = self.generator.draw(target, self.chosen, self.fade)
        if time_s - self._last_s > PAUSE_S:
            self._dissolve.forget()
        elif self.chosen[0] != before:
            after = drawn[0].copy(), drawn[1].copy()
            due = self.generator.draw(target, np.array([before, *self.chosen[1:]]), self.fade)
            self._dissolve.step(self._dissolve(due, target, time_s), after, target, time_s)
            drawn = after
        self._last_s = time_s
        return self._dissolve(drawn, target, time_s)


class Renderer:
    """One avatar, one stream. Not thread-safe; `draw` is called in order of time.

    `motion="relative"` moves the avatar's neutral face by the driver's movement; `"absolute"` takes the driver's
    landmarks as they are, in the square of the frame that `absolute_square` says.
    """

    def __init__(self, avatar: Avatar, base: Base, config: Config) -> None:
        render = config.render
        self.size_px = render.size_px
        self.generator = Generator(avatar, base, config, render.size_px)
        prepared = self.generator.prepared
        photos = avatar.photos
        slot_a = front_reference([one.points for one in prepared[: len(photos)]])
        strange = np.zeros(len(prepared), np.float32)
        strange[: len(photos)] = unlike([(one.rgb, one.matte, one.points) for one in photos], slot_a)
        self.stream = Stream(self.generator, strange)
        self.retarget = Retarget(avatar_face(avatar), NeutralFinder())
        self._absolute = render.motion == "absolute"
        self._ceiling = Ceiling(avatar.references[slot_a].matte, prepared[slot_a].points)
        self._rest = Rest(self._ceiling(self.retarget.rest()), render.hold_s, render.ease_s)
        self.absolute_square: tuple[float, float, float] | None = None
        order = [slot_a, *(index for index in range(len(photos)) if index != slot_a)]
        plate = None
        if render.background in ("photo", "blur"):
            plate = clean_plate([photos[i].rgb for i in order], [photos[i].matte for i in order])
        self._compositor = Compositor(
            render.background, self.size_px, plate=plate, color=render.color, image=render.image
        )
        self._picture = np.empty((self.size_px, self.size_px, 3), np.uint8)

    def describe(self) -> str:
        """Which backend, device and precision draw, in one line."""
        return self.generator.describe()

    def warm_up(self) -> None:
        """Draw once into nothing, so that the first visible frame is not a slow one."""
        rest = self.retarget.rest()
        self.generator.draw(rest, np.zeros(4, np.int64), np.ones(3, np.float32))
        self.generator.draw(rest, np.zeros(4, np.int64), np.ones(3, np.float32))

    def landmarks(self, tracked: Face | NoFace) -> Floats:
        """The landmarks to draw for what the tracker saw, `[478, 3]` crop units."""
        if isinstance(tracked, NoFace):
            return self._rest.missing(tracked)
        if not self._absolute:
            return self._rest.seen(self._ceiling(self.retarget(tracked)), tracked.time_s)
        if self.absolute_square is None:
            self.absolute_square = square_around(tracked)
        left, top, side = self.absolute_square
        points = tracked.points - np.array([left, top, 0], np.float32)
        return self._rest.seen(geometry.to_crop_units(points, side), tracked.time_s)

    def draw(self, tracked: Face | NoFace) -> Frame:
        """The picture `[S, S, 3]`; its memory is used again by the next call."""
        target = self.landmarks(tracked)
        rgb, matte = self.stream.draw(target, tracked.time_s)
        return Frame(self._compositor.compose(rgb, matte, self._picture), tracked.time_s)


def square_around(face: Face) -> tuple[float, float, float]:
    """The square of the frame that `absolute` draws: left, top, side in pixels.

    A square frame is taken whole; in any other the square holds the head with the room it has in an enrolled photo.
    """
    width, height = face.size_px
    if width == height:
        return 0.0, 0.0, float(width)
    top, bottom = face.points[10, :2], face.points[152, :2]
    side = min(2.2 * float(np.linalg.norm(bottom - top)), float(min(width, height)))
    centre = (top + bottom) / 2
    left = float(np.clip(centre[0] - side / 2, 0, width - side))
    upper = float(np.clip(centre[1] - 0.48 * side, 0, height - side))
    return left, upper, side
