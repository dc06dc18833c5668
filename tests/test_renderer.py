"""The renderer on a tiny network of random weights: state, sizes, absence, memory; never how good it looks."""

from __future__ import annotations

import gc
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from engine import geometry
from engine.avatar import Avatar, Reference
from engine.backends.openvino import OpenVino
from engine.base import Base
from engine.config import Config, load
from engine.frames import Face, Image, NoFace
from engine.references import Ceiling
from engine.renderer import Generator, Renderer, Stream, prepare, square_around

ROOT = Path(__file__).parents[1]
MakeFace = Callable[..., Face]
Maker = Callable[..., Renderer]


def settings(
    size_px: Literal[256, 512, 720] = 256,
    motion: Literal["relative", "absolute"] = "relative",
    background: Literal["photo", "blur", "color", "image"] = "photo",
    image: Path | None = None,
) -> Config:
    """The shipped configuration, computed exactly and by one thread."""
    config = load()
    render = replace(config.render, size_px=size_px, motion=motion, background=background, image=image)
    return replace(config, render=render, engine=replace(config.engine, precision="f32", threads=1))


@pytest.fixture(scope="module")
def renderer(tiny_avatar: Avatar, tiny_base: Base) -> Maker:
    def make(**options: object) -> Renderer:
        return Renderer(tiny_avatar, tiny_base, settings(**options))  # type: ignore[arg-type]

    return make


@pytest.fixture(scope="module")
def stream(make_face: MakeFace) -> list[Face | NoFace]:
    """A second: looks about, speaks, is gone for a while, is back."""
    faces: list[Face | NoFace] = []
    for frame in range(20):
        time_s = frame / 20
        if 9 <= frame < 13:
            faces.append(NoFace(time_s))
        else:
            swing = float(np.sin(frame / 4))
            faces.append(make_face(yaw_deg=25 * swing, mouth_open_cm=1 + swing, time_s=time_s))
    return faces


def drawn(renderer: Renderer, faces: Sequence[Face | NoFace]) -> list[Image]:
    return [renderer.draw(face).rgb.copy() for face in faces]


# --- state --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size_px", [256, 512])
def test_streaming_equals_offline(renderer: Maker, stream: list[Face | NoFace], size_px: int) -> None:
    """Every renderer starts anew, and warming up leaves no trace: two of them agree to the bit."""
    first = drawn(renderer(size_px=size_px), stream)
    assert any(not np.array_equal(first[0], other) for other in first[1:]), "nothing moves"
    warm = renderer(size_px=size_px)
    warm.warm_up()
    for face, expected in zip(stream, first, strict=True):
        assert np.array_equal(warm.draw(face).rgb, expected)


def test_the_past_matters_only_where_it_should(renderer: Maker, stream: list[Face | NoFace]) -> None:
    """The state is the neutral face, the rest and the references: with a pinned neutral a late frame is the same."""
    whole, tail = renderer(), renderer()
    neutral = next(face for face in stream if isinstance(face, Face))
    whole.retarget.finder.pin(neutral)
    tail.retarget.finder.pin(neutral)
    last = [replace(stream[-1], time_s=10 + frame / 20) for frame in range(12)]
    seen = drawn(whole, [*stream, *last])[-1]
    assert np.abs(drawn(tail, last)[-1].astype(int) - seen).max() <= 1


def test_a_frame_carries_the_time_of_its_face(renderer: Maker, make_face: MakeFace) -> None:
    one = renderer()
    assert one.draw(make_face(time_s=4.25)).time_s == 4.25
    assert one.draw(NoFace(4.5)).time_s == 4.5


def test_memory_stays_flat(renderer: Maker, stream: list[Face | NoFace]) -> None:
    one = renderer()
    tracemalloc.start()
    try:
        drawn(one, stream[:10])
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        for turn in range(10):
            for face in stream:
                one.draw(replace(face, time_s=10 + 2 * turn + face.time_s))
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert grown < 300_000, "200 frames: one kept picture of each would be 40 MB"


# --- sizes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size_px", [256, 512, 720])
def test_sizes(renderer: Maker, make_face: MakeFace, size_px: int) -> None:
    picture = renderer(size_px=size_px).draw(make_face()).rgb
    assert picture.shape == (size_px, size_px, 3)
    assert picture.dtype == np.uint8


@pytest.mark.parametrize("size_px", [512, 720])
def test_a_large_picture_made_small_is_the_small_picture(renderer: Maker, make_face: MakeFace, size_px: int) -> None:
    """The enlarged flow looks at the same places of the photos, and the shares are the same."""
    faces = [make_face(yaw_deg=yaw, mouth_open_cm=gap, time_s=yaw / 30) for yaw, gap in ((0, 0), (9, 1), (15, 0))]
    small, large = drawn(renderer(), faces), drawn(renderer(size_px=size_px), faces)
    for one, other in zip(small, large, strict=True):
        shrunk = cv2.resize(other, (256, 256), interpolation=cv2.INTER_AREA).astype(int)
        assert np.abs(shrunk - one).mean() < 3
        shifted = np.abs(shrunk[:, 2:] - one[:, :-2]).mean()
        assert np.abs(shrunk - one).mean() < 0.7 * shifted, "not even two pixels off"


def test_a_large_picture_is_sharper_than_an_enlarged_one(renderer: Maker, make_face: MakeFace) -> None:
    small, large = (drawn(renderer(size_px=size), [make_face()])[0] for size in (256, 512))
    enlarged = cv2.resize(small, (512, 512), interpolation=cv2.INTER_CUBIC)
    assert cv2.Laplacian(large, cv2.CV_32F).std() > 1.1 * cv2.Laplacian(enlarged, cv2.CV_32F).std()


# --- absence ------------------------------------------------------------------------------------------------


def test_nobody_there_from_the_start(renderer: Maker, tiny_avatar: Avatar) -> None:
    one = renderer()
    shown = [one.landmarks(NoFace(frame / 30)) for frame in range(3)]
    resting = geometry.to_crop_units(tiny_avatar.neutral, tiny_avatar.size_px)
    assert all(np.abs(points - resting).max() < 1e-4 for points in shown)
    assert one.draw(NoFace(1.0)).rgb.std() > 10


def test_absence_is_held_then_rested(renderer: Maker, make_face: MakeFace) -> None:
    one = renderer()
    one.landmarks(make_face(time_s=0.0))
    one.draw(make_face(yaw_deg=20, mouth_open_cm=1, time_s=0.1))
    last = one.landmarks(make_face(yaw_deg=20, mouth_open_cm=1, time_s=0.2))
    assert np.array_equal(one.landmarks(NoFace(0.6)), last)
    pictures = [one.draw(NoFace(0.7 + frame / 10)).rgb.copy() for frame in range(20)]
    steps = [float(np.abs(b.astype(int) - a).mean()) for a, b in pairwise(pictures)]
    assert max(steps) < 12
    assert steps[-1] == 0
    assert np.allclose(one.landmarks(NoFace(5.0)), one.retarget.rest(), atol=1e-5)


# --- motion -------------------------------------------------------------------------------------------------


def test_relative_draws_the_avatars_own_shape(renderer: Maker, make_face: MakeFace, tiny_avatar: Avatar) -> None:
    wide = make_face()
    wide = replace(wide, points=(wide.points - 128) * np.array([1.3, 1, 1], np.float32) + 128)
    points = renderer().landmarks(wide)
    own = geometry.to_crop_units(tiny_avatar.neutral, tiny_avatar.size_px)
    rigid = geometry.STABLE + geometry.JAW  # lips are not a shape but a fact: open in the one, closed in the other
    assert np.abs(points - own)[rigid].max() < 0.002


def test_absolute_draws_the_drivers_landmarks(renderer: Maker, make_face: MakeFace) -> None:
    face = make_face(yaw_deg=10)
    one = renderer(motion="absolute")
    assert np.allclose(one.landmarks(face), geometry.to_crop_units(face.points, 256), atol=1e-5)
    assert one.absolute_square == (0, 0, 256)


def test_absolute_keeps_the_square_of_the_first_face(renderer: Maker, make_face: MakeFace) -> None:
    one = renderer(motion="absolute")
    first = make_face(center_px=(200, 120), size_px=(640, 240))
    later = make_face(center_px=(230, 125), size_px=(640, 240), time_s=1.0)
    here, there = one.landmarks(first), one.landmarks(later)
    assert one.absolute_square == square_around(first)
    side = square_around(first)[2]
    assert np.allclose((there - here)[:, :2], [30 * 2 / side, 5 * 2 / side], atol=1e-4)


@pytest.mark.parametrize("center_px", [(60, 60), (320, 120), (600, 200)])
def test_square_lies_inside_the_frame_and_around_the_head(make_face: MakeFace, center_px: tuple[float, float]) -> None:
    face = make_face(center_px=center_px, scale=4, size_px=(640, 240))
    left, top, side = square_around(face)
    assert left >= 0
    assert top >= 0
    assert left + side <= 640
    assert top + side <= 240
    inside = face.points[:, :2] - [left, top]
    assert ((inside >= 0) & (inside <= side)).mean() > 0.95


def test_a_cut_off_head_does_not_come_down_from_the_upper_edge(
    tiny_references: tuple[Reference, ...], make_face: MakeFace
) -> None:
    """Where the photo ends above the hair, a head that goes down or away takes the picture along; otherwise nothing."""
    whole = tiny_references[0]
    points = geometry.to_crop_units(whole.points, 512)
    down, up = points + np.array([0, 0.2, 0], np.float32), points - np.array([0, 0.2, 0], np.float32)
    assert np.array_equal(Ceiling(whole.matte, points)(down), down), "there is room above this head"
    tight = replace(whole, matte=np.full_like(whole.matte, 255))
    ceiling = Ceiling(tight.matte, points)
    assert np.allclose(ceiling(points), points, atol=1e-5)
    assert np.allclose(ceiling(up), up)
    assert np.allclose(ceiling(down), points, atol=1e-4)
    smaller = (points * 0.8).astype(np.float32)
    assert np.allclose(ceiling(smaller)[:, 1], smaller[:, 1] - 0.2, atol=1e-4)
    assert np.allclose(ceiling(smaller)[:, 0], smaller[:, 0])


# --- what is drawn from -------------------------------------------------------------------------------------


def test_a_changed_reference_is_copied_into_its_own_tile(tiny_avatar: Avatar, tiny_base: Base) -> None:
    """A generator that went through many choices draws as a fresh one that knows only the last."""
    used = Generator(tiny_avatar, tiny_base, settings(512), 512)
    target = used.prepared[0].points
    fade = np.ones(3, np.float32)
    for choice in ([0, 0, 0, 0], [0, 1, 2, 0], [1, 1, 0, 2], [0, 2, 0, 1]):
        chosen = np.array(choice)
        rgb, matte = (one.copy() for one in used.draw(target, chosen, fade))
        fresh = Generator(tiny_avatar, tiny_base, settings(512), 512)
        expected = fresh.draw(target, chosen, fade)
        assert np.array_equal(rgb, expected[0]), choice
        assert np.array_equal(matte, expected[1]), choice


@pytest.mark.parametrize("size_px", [256, 512])
def test_slot_a_changes_without_a_step(tiny_avatar: Avatar, tiny_base: Base, size_px: int) -> None:
    """When another photo takes over, that frame looks as with the old one; soon after only the new one shows."""
    stream = Stream(Generator(tiny_avatar, tiny_base, settings(), size_px))
    still, turned = stream.generator.prepared[0].points, stream.generator.prepared[2].points
    stream.draw(still, 0.0)
    picture, before, taken_over = stream.draw(still, 0.04)[0], stream.chosen[0], 0.0
    assert before != 2
    for frame in range(1, 40):
        time_s = 0.04 + frame / 25
        picture = stream.draw(turned, time_s)[0].copy()
        if stream.chosen[0] == 2 and not taken_over:
            taken_over = time_s
            due = stream.generator.draw(turned, np.array([before, *stream.chosen[1:]]), stream.fade)[0]
            assert np.abs(picture.astype(int) - due).max() <= 1
    assert taken_over
    assert stream.chosen.tolist() == [2, 2, 2, 2]
    assert np.array_equal(picture, stream.generator.draw(turned, stream.chosen, stream.fade)[0])


@pytest.mark.parametrize("size_px", [256, 512])
def test_each_zone_shows_the_reference_that_was_chosen(tiny_avatar: Avatar, tiny_base: Base, size_px: int) -> None:
    """The woman for the eyes changes the eyes, the woman for the mouth the mouth, and neither the corners."""
    generator = Generator(tiny_avatar, tiny_base, settings(), size_px)
    target = generator.prepared[0].points
    index, inside = geometry.zones(target)
    fade = np.ones(3, np.float32)
    plain = generator.draw(target, np.array([0, 0, 0, 0]), fade)[0].astype(int)
    for zone in range(3):
        choice = [0, 0, 0, 0]
        choice[zone + 1] = 2
        changed = np.abs(generator.draw(target, np.array(choice), fade)[0] - plain).mean(2)
        changed = cv2.resize(changed.astype(np.float32), (64, 64), interpolation=cv2.INTER_AREA)
        there = changed[inside[zone] == 1].mean()
        elsewhere = max(changed[inside[other] == 1].mean() for other in range(3) if other != zone)
        assert there > 4 * elsewhere, geometry.ZONES[zone]
    assert index.max() == 2


def test_faded_out_references_are_not_seen(tiny_avatar: Avatar, tiny_base: Base) -> None:
    generator = Generator(tiny_avatar, tiny_base, settings(512), 512)
    target = generator.prepared[0].points
    away = np.zeros(3, np.float32)
    one = generator.draw(target, np.array([0, 0, 0, 0]), away)[0].astype(int)
    other = generator.draw(target, np.array([0, 2, 2, 2]), away)[0]
    assert np.abs(one - other).mean() < 0.5
    full = generator.draw(target, np.array([0, 2, 2, 2]), np.ones(3, np.float32))[0]
    assert np.abs(one - full).mean() > 3


def recoloured(avatar: Avatar, color: tuple[int, int, int]) -> Avatar:
    """The same avatar, all its pictures of one colour and all of it the person."""

    def painted(one: Reference) -> Reference:
        rgb = np.full_like(one.rgb, np.array(color, np.uint8))
        return replace(one, rgb=rgb, matte=np.full_like(one.matte, 255))

    return replace(avatar, references=tuple(painted(one) for one in avatar.references))


@pytest.mark.parametrize("size_px", [256, 512])
@pytest.mark.parametrize("color", [(230, 20, 20), (20, 230, 20), (20, 20, 230)], ids=["red", "green", "blue"])
def test_colours_are_not_swapped(
    tiny_avatar: Avatar, tiny_base: Base, size_px: Literal[256, 512], color: tuple[int, int, int]
) -> None:
    one = Renderer(recoloured(tiny_avatar, color), tiny_base, settings(size_px))
    middle = one.draw(NoFace(0.0)).rgb[size_px // 4 : -size_px // 4, size_px // 4 : -size_px // 4]
    assert middle.reshape(-1, 3).mean(0).argmax() == int(np.argmax(color))
    assert middle.reshape(-1, 3).mean(0).max() > 1.5 * np.sort(middle.reshape(-1, 3).mean(0))[1]


def test_prepared_references_keep_their_picture(tiny_avatar: Avatar, tiny_base: Base) -> None:
    encoder = OpenVino(tiny_base.encoder, None, None, "CPU", "f32", 1)
    one = prepare(tiny_avatar.references[0], encoder, 256, 720)
    assert one.full.shape == (720, 720 + 2 * 90, 3)
    shown = cv2.resize(tiny_avatar.references[0].rgb, (720, 720), interpolation=cv2.INTER_CUBIC)
    assert np.array_equal(one.full[:, 90:-90], shown)
    assert (one.picture.shape, one.thumbnail.shape, one.raster.shape) == ((4, 256, 256), (4, 64, 64), (3, 64, 64))
    assert one.features.shape == (tiny_base.feature_channels, 64, 64)
    back = (one.picture[:3].transpose(1, 2, 0) + 1) * 127.5
    small = cv2.resize(tiny_avatar.references[0].rgb, (256, 256), interpolation=cv2.INTER_AREA)
    assert np.abs(back - small).max() < 1
    assert (one.picture[3].min(), one.picture[3].max()) == (0, 1)


# --- background ---------------------------------------------------------------------------------------------


def corner(picture: Image) -> NDArray[np.float64]:
    return picture[:8, :8].reshape(-1, 3).mean(0)


def test_backgrounds(renderer: Maker, make_face: MakeFace, tmp_path: Path) -> None:
    teal = tmp_path / "teal.png"
    cv2.imwrite(str(teal), np.full((40, 60, 3), (128, 128, 0), np.uint8))  # OpenCV writes BGR
    photo, blur, plain, image = (
        renderer(**options).draw(make_face()).rgb
        for options in (
            {},
            {"background": "blur"},
            {"background": "color"},
            {"background": "image", "image": teal},
        )
    )
    assert np.allclose(corner(plain), (0x3C, 0x41, 0x48), atol=8)
    assert np.allclose(corner(image), (0, 128, 128), atol=8)
    assert not np.array_equal(photo, blur)
    centre = slice(110, 150)
    for other in (blur, plain, image):
        assert np.abs(other[centre, centre].astype(int) - photo[centre, centre]).max() <= 12, "the person is the same"


# --- refusals -----------------------------------------------------------------------------------------------


def test_an_avatar_without_tuned_values_is_refused(tiny_avatar: Avatar, tiny_base: Base) -> None:
    bare = replace(tiny_avatar, tuned={})
    with pytest.raises(ValueError, match="the avatar tiny lacks the tuned values 'modulation'"):
        Renderer(bare, tiny_base, settings())


def test_tuned_values_of_another_network_are_refused(tiny_avatar: Avatar, tiny_base: Base) -> None:
    odd = replace(tiny_avatar, tuned=tiny_avatar.tuned | {"modulation": np.zeros((1, 3), np.float32)})
    with pytest.raises(ValueError, match="'modulation' has shape"):
        Renderer(odd, tiny_base, settings())


def test_a_device_that_is_not_there_is_refused(tiny_avatar: Avatar, tiny_base: Base) -> None:
    config = settings()
    with pytest.raises(ValueError, match="cuda"):
        Renderer(tiny_avatar, tiny_base, replace(config, engine=replace(config.engine, device="cuda")))
    with pytest.raises(ValueError, match="no device 'MOON'"):
        OpenVino(tiny_base.encoder, device="MOON")


def test_drawing_needs_no_torch() -> None:
    source = (
        "import plugin.cli, plugin.render, engine.renderer, sys\n"
        "print(*{'torch', 'training', 'onnx'} & {name.partition('.')[0] for name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", source], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split()) == (0, []), done.stderr
