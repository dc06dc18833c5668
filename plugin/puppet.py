"""One avatar, ready to be shown in a call: the driver's face in, the picture for the virtual camera out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Protocol, Self, get_args

import numpy as np

from engine import avatar as avatars
from engine.avatar import Avatar
from engine.base import Base, open_base
from engine.compositor import Background, clean_plate, parse_color, read_picture
from engine.config import Config
from engine.control import Control, Gains, TurnLimits
from engine.frames import Face, Image, NoFace
from engine.references import cut_edge, front_reference
from engine.renderer import Renderer, avatar_face
from plugin.framing import Desk, Follow
from plugin.speaking import Speaking

_RANGES = {
    "expression": (0.0, 2.0),
    "blink": (0.0, 1.5),
    "gaze": (0.0, 1.5),
    "steadiness": (0.0, 1.0),
    "contact": (0.0, 1.0),
    "wake": (0.0, 1.0),
    "mood": (-1.0, 1.0),
}


@dataclass(frozen=True, slots=True)
class Settings:
    """What can be changed while the loop runs."""

    expression: float = 1.0
    blink: float = 1.0
    gaze: float = 1.0
    steadiness: float = 0.0
    contact: float = 0.0
    wake: float = 0.0
    mood: float = 0.0
    webcam: bool = True
    voice_lips: bool = False
    mirror_preview: bool = True
    mirror_output: bool = False
    background: Background = "photo"
    color: str = "#3c4148"
    image: Path | None = None

    @classmethod
    def from_config(cls, config: Config) -> Self:
        camera, render = config.camera, config.render
        return cls(
            camera.expression,
            camera.blink,
            camera.gaze,
            camera.steadiness,
            camera.contact,
            camera.wake,
            camera.mood,
            camera.webcam,
            camera.voice_lips,
            camera.mirror_preview,
            camera.mirror_output,
            render.background,
            render.color,
            render.image,
        )

    def changed(self, **settings: object) -> Self:
        """The same with what is named. Raises `ValueError` with a sentence."""
        known = {one.name for one in fields(self)}
        for name, value in settings.items():
            if name not in known:
                raise ValueError(f"there is no setting {name!r}, only {', '.join(sorted(known))}")
            if name in _RANGES:
                low, high = _RANGES[name]
                if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
                    raise ValueError(f"{name} must be a number between {low:g} and {high:g}, not {value!r}")
                settings[name] = float(value)
            elif name in ("webcam", "voice_lips", "mirror_preview", "mirror_output"):
                if not isinstance(value, bool):
                    raise ValueError(f"{name} must be true or false, not {value!r}")
            elif name == "background":
                if value not in get_args(Background):
                    raise ValueError(f"a background is one of {', '.join(get_args(Background))}, not {value!r}")
            elif name == "color":
                parse_color(str(value))
            elif name == "image":
                settings[name] = Path(str(value)).expanduser() if value else None
        changed = replace(self, **settings)
        if changed.background == "image":
            if changed.image is None:
                raise ValueError("the background 'image' needs a picture: set image as well")
            if changed.scenery != self.scenery:
                read_picture(changed.image)
        return changed

    @property
    def scenery(self) -> tuple[object, ...]:
        """What the backdrop depends on."""
        return self.background, self.color, self.image


class Puppet(Protocol):
    """What the generator thread drives. Used by one thread at a time."""

    @property
    def name(self) -> str: ...

    def describe(self) -> str: ...

    def draw(self, tracked: Face | NoFace, settings: Settings) -> Image:
        """The picture `[H, W, 3]`; its memory is used again three calls later."""
        ...

    def calibrate(self, face: Face) -> None: ...


class Wardrobe(Protocol):
    """The avatars there are; `load` takes a second and may run in any thread."""

    @property
    def names(self) -> Sequence[str]: ...

    def load(self, name: str) -> Puppet:
        """Raises `ValueError`/`OSError` with a sentence."""
        ...


class EnrolledPuppet:
    """An enrolled avatar behind a desk."""

    def __init__(self, avatar: Avatar, base: Base, config: Config) -> None:
        self.name = avatar.name
        # The renderer's own square background is not used: `Desk` lays the avatar over a wide one.
        self._renderer = Renderer(avatar, base, replace(config, render=replace(config.render, background="color")))
        neutral = avatar_face(avatar)
        self._control = Control(TurnLimits.of([one.rotation for one in avatar.photos], neutral.rotation))
        self._renderer.retarget.finder = self._control.neutral
        self._speaking = Speaking(neutral)
        self._size_px, self._head_room = config.camera.picture_px, config.camera.head_room
        photos = avatar.photos
        front = front_reference([one.points for one in self._renderer.generator.prepared[: len(photos)]])
        order = [front, *(index for index in range(len(photos)) if index != front)]
        shots = [photos[index] for index in order]
        self._plate = clean_plate([one.rgb for one in shots], [one.matte for one in shots])
        self._cut = cut_edge(shots[0].matte) is not None
        rows = np.flatnonzero((shots[0].matte > 127).any(1))
        self._hair_top = float(rows[0]) / len(shots[0].matte) if rows.size else 0.0
        width, height = self._size_px
        self._pictures = [np.zeros((height, width, 3), np.uint8) for _ in range(3)]
        self._turn = 0
        self._renderer.warm_up()
        self._desk = self._make_desk(Settings.from_config(config))
        self._follow = Follow(self._renderer.retarget.rest(), self._desk.side_px)

    def describe(self) -> str:
        return self._renderer.describe()

    def calibrate(self, face: Face) -> None:
        self._control.calibrate(face)

    def draw(self, tracked: Face | NoFace, settings: Settings) -> Image:
        if settings.scenery != self._scenery:
            self._desk = self._make_desk(settings)
        self._control.gains = Gains(
            settings.expression,
            settings.blink,
            settings.gaze,
            settings.steadiness,
            settings.contact,
            settings.wake,
            settings.mood,
        )
        asked = self._control(tracked) if isinstance(tracked, Face) else tracked
        wanted = self._speaking(
            self._renderer.landmarks(asked), tracked, settings.expression, settings.steadiness, settings.mood
        )
        points, place = self._follow(wanted, tracked.time_s)
        rgb, matte = self._renderer.stream.draw(points, tracked.time_s)
        self._turn = (self._turn + 1) % len(self._pictures)
        return self._desk.compose(rgb, matte, place, self._pictures[self._turn])

    def _make_desk(self, settings: Settings) -> Desk:
        image = read_picture(settings.image) if settings.background == "image" and settings.image else None
        self._scenery = settings.scenery
        return Desk(
            self._size_px,
            self._renderer.size_px,
            settings.background,
            plate=self._plate,
            color=settings.color,
            image=image,
            head_room=self._head_room,
            hair_top=self._hair_top,
            cut=self._cut,
        )


class EnrolledWardrobe:
    """The avatars of this machine; `first` is shown first."""

    def __init__(self, config: Config, first: str) -> None:
        path = avatars.find(first)
        self._paths = {path.stem: path}
        self._paths |= {one.path.stem: one.path for one in avatars.listing() if one.header is not None}
        self._config = config
        self._base: Base | None = None

    @property
    def names(self) -> Sequence[str]:
        return list(self._paths)

    def load(self, name: str) -> Puppet:
        base = self._base = self._base or open_base()
        return EnrolledPuppet(avatars.load(self._paths[name], base.sha256), base, self._config)
