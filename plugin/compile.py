"""`understudy compile`: an avatar's engines for NVIDIA cards, made ahead of time; and what a card then reaches."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from engine.avatar import Avatar
from engine.backends import UnavailableError, choose, cuda
from engine.backends.compiled import Wanted, make
from engine.backends.tensorrt import Flavour, flavour_for, parse_target
from engine.base import Base
from engine.config import Config
from engine.frames import Image
from engine.renderer import Renderer, constants_of
from plugin import demo as demos
from plugin.render import read_faces, with_options

FRAMES = 200


def compile_avatar(avatar: Avatar, base: Base, config: Config, sizes_px: Sequence[int], target: str) -> Iterator[str]:
    """Compile for every size and keep the engines beside the avatar; gives one line for people as each is done.

    `target` as `engine.backends.tensorrt.parse_target` takes it. Needs no card, except with the full TensorRT, which
    compiles for the card at hand alone. Raises `ValueError` with one sentence.
    """
    flavour, constants = flavour_for(None), constants_of(avatar, base)
    parsed = parse_target(target, flavour) if target or flavour.for_rtx else _this(flavour)
    for size_px in sizes_px:
        precision = choose.card_precision(config.engine)
        wanted = Wanted(base, avatar.name, constants, len(avatar.references), size_px, precision)
        done = make(wanted, flavour, parsed)
        if done.path is None:
            raise UnavailableError(f"the engine was compiled and could not be kept in {wanted.folder}: make room there")
        yield (
            f"{size_px} px, {precision}, {flavour.described} for {parsed}: {done.seconds:.2f} s, "
            f"{len(done.engine) / 1e6:.1f} MB, {done.path}"
        )


def _this(flavour: Flavour) -> str:
    return flavour.target_of(cuda.open_card().capability)


def measure(avatar: Avatar, base: Base, config: Config, size_px: int) -> Iterator[str]:
    """What the card reaches at one size, and how far its picture is from OpenVINO's in float32.

    Raises `UnavailableError` where there is no card.
    """

    def opened(device: str, precision: str) -> tuple[Renderer, float]:
        began = time.perf_counter()
        engine = replace(config.engine, device=device, precision=precision)
        renderer = Renderer(avatar, base, with_options(replace(config, engine=engine), size_px=size_px))
        renderer.warm_up()
        return renderer, time.perf_counter() - began

    faces, _ = read_faces(demos.ASSETS / "talking.npz")
    faces = [faces[number % len(faces)] for number in range(FRAMES)]
    card, first_s = opened("cuda", "auto")
    yield f"{size_px} px: {card.describe()}"
    other, warm_s = opened("cuda", "auto")
    yield f"  to the first frame: {first_s:.2f} s, with everything kept from before {warm_s:.2f} s"
    frame_ms, card_ms, switch_ms = [], [], []
    for number, face in enumerate(faces):
        began = time.perf_counter()
        card.draw(face)
        drawn = time.perf_counter()
        card.generator.backend.run({})
        card_ms.append((time.perf_counter() - drawn) * 1e3)
        frame_ms.append((drawn - began) * 1e3)
        if number % 20 == 0:
            began = time.perf_counter()
            other.draw(face)
            switch_ms.append((time.perf_counter() - began) * 1e3)
    for name, spent in (("up, network, down", card_ms), ("the whole drawing of a frame", frame_ms)):
        yield f"  {name}: median {np.median(spent):.2f} ms, 95 % within {np.percentile(spent, 95):.2f} ms"
    yield f"  to the first frame of another avatar that is open too: at most {max(switch_ms):.1f} ms"
    reference, _ = opened("cpu", "f32")
    fresh, _ = opened("cuda", "auto")
    compared = faces[:50]
    differences = [_levels(fresh.draw(face).rgb, reference.draw(face).rgb) for face in compared]
    largest, mean = np.max([one[0] for one in differences]), np.mean([one[1] for one in differences])
    far = f"{largest:.0f} of 255 levels at most, {mean:.3f} on average, {len(compared)} frames"
    yield f"  against {reference.describe()}: {far}"


def _levels(one: Image, other: Image) -> tuple[float, float]:
    difference = np.abs(one.astype(np.int16) - other)
    return float(difference.max()), float(difference.mean())
