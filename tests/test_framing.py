"""Framing: the avatar at a desk fills a wide picture without hard edges, and the crop follows slowly."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from engine import geometry
from engine.compositor import Plate, cover
from engine.frames import Face, Image
from plugin.framing import Desk, Follow, Place, blend

SQUARE = 128
SIZES = [(640, 360), (1280, 720), (1920, 1080)]


def person(shoulder_row: int = 100) -> tuple[Image, NDArray[np.uint8]]:
    """A red head on shoulders that leave the square at both sides."""
    matte = np.zeros((SQUARE, SQUARE), np.uint8)
    cv2.ellipse(matte, (64, 60), (32, 52), 0, 0, 360, [255], -1)
    outline = np.array([[0, shoulder_row + 8], [64, 84], [127, shoulder_row + 8], [127, 127], [0, 127]], np.int32)
    cv2.fillPoly(matte, [outline], [255])
    rgb = np.full((SQUARE, SQUARE, 3), (200, 30, 30), np.uint8)
    return rgb, matte


def plate(value: int = 90) -> Plate:
    return Plate(np.full((SQUARE, SQUARE, 3), value, np.uint8), np.full((SQUARE, SQUARE), 255, np.uint8))


@pytest.mark.parametrize("size_px", SIZES)
@pytest.mark.parametrize("background", ["photo", "blur", "color", "green"])
def test_every_size_and_background_is_filled(size_px: tuple[int, int], background: str) -> None:
    desk = Desk(size_px, SQUARE, background, plate=plate(), color="#5a5a5a")  # pyright: ignore[reportArgumentType]
    picture = desk.compose(*person())
    assert picture.shape == (size_px[1], size_px[0], 3)
    corner = (0, 255, 0) if background == "green" else (90, 90, 90)
    for y, x in ((2, 2), (2, -3), (size_px[1] // 2, 2), (size_px[1] // 2, -3)):
        assert np.abs(picture[y, x].astype(int) - corner).max() <= 1
    assert tuple(picture[-2, size_px[0] // 2]) == (200, 30, 30), "the person reaches the lower edge"


def test_head_room() -> None:
    desk = Desk((640, 360), SQUARE, "color", color="#000000", head_room=0.2, hair_top=8 / SQUARE)
    red = desk.compose(*person())[..., 0] > 100
    first = int(np.flatnonzero(red.any(1))[0])
    assert abs(first - 0.2 * 360) < 6


def test_cut_hair_is_cut_by_the_picture() -> None:
    rgb, matte = person()
    matte[:40] = np.maximum(matte[:40], matte[40])
    desk = Desk((640, 360), SQUARE, "color", color="#000000", cut=True)
    assert desk.compose(rgb, matte)[0, 320, 0] == 200


def test_shoulders_go_on_beyond_the_square_without_an_upright_edge() -> None:
    desk = Desk((640, 360), SQUARE, "color", color="#000000")
    rgb, matte = person()
    red = [desk.compose(rgb, matte) for _ in range(30)][-1][..., 0] > 100
    tops = np.array([np.flatnonzero(column)[0] if column.any() else 360 for column in red.T])
    right_edge = 320 + desk.side_px // 2
    assert red[-1, right_edge + 4], "red outside the square"
    steps = np.abs(np.diff(tops[right_edge - 40 : right_edge + 40]))
    assert steps.max() <= 6, "the outline goes on, it does not fall"


def test_nothing_of_the_head_is_mirrored_beside_it() -> None:
    rgb, matte = person()
    rgb[:70] = (30, 30, 220)
    desk = Desk((640, 360), SQUARE, "color", color="#000000")
    picture = desk.compose(rgb, matte)
    beside = np.r_[0 : 320 - desk.side_px // 2, 320 + desk.side_px // 2 : 640]
    assert picture[:, beside, 2].max() < 60


def test_hair_at_the_top_of_the_square_ends_softly() -> None:
    rgb, matte = person()
    matte[:60, 40:90] = 255
    desk = Desk((1280, 720), SQUARE, "color", color="#000000")
    column = desk.compose(rgb, matte)[:, 640, 0].astype(int)
    assert np.abs(np.diff(column)).max() < 70


def test_photo_goes_on_into_a_blur_without_a_seam() -> None:
    stripes = np.zeros((SQUARE, SQUARE, 3), np.uint8)
    stripes[::8] = 160
    stripes[4::8] = 80
    desk = Desk((1280, 720), SQUARE, "photo", plate=Plate(stripes, np.full((SQUARE, SQUARE), 255, np.uint8)))
    backdrop = desk.backdrop.astype(int)
    edge = 640 - desk.side_px // 2
    assert np.abs(np.diff(backdrop[:, edge - 20 : edge + 20], axis=1)).max() < 25
    assert backdrop[:, 60].std() < 0.4 * backdrop[:, 640].std(), "out of focus far from the photo"


def test_moves_keep_the_lower_edge_covered() -> None:
    desk = Desk((640, 360), SQUARE, "color", color="#000000")
    rgb, matte = person()
    for place in (
        Place(desk.side_px, 0, -200),
        Place(desk.side_px, 300, 10),
        Place(2 * desk.side_px),
        Place(2 * round(desk.side_px * 0.45), -300, -40),
    ):
        middle = min(max(320 + place.right_px, 0), 639)
        assert desk.compose(rgb, matte, place)[-1, middle, 0] == 200


def test_result_goes_where_it_is_wanted() -> None:
    desk = Desk((640, 360), SQUARE, "green")
    out = np.zeros((360, 640, 3), np.uint8)
    assert desk.compose(*person(), out=out) is out
    again = Desk((640, 360), SQUARE, "green").compose(*person())
    assert np.array_equal(out, again)


def test_blend_is_a_weighted_mean() -> None:
    generator = np.random.default_rng(1)
    front, onto = (generator.integers(0, 256, (9, 7, 3), np.uint8) for _ in range(2))
    weight = generator.integers(0, 256, (9, 7), np.uint8)
    share = weight[..., None] / 255
    wanted = front * share + onto * (1 - share)
    blend(front, weight, onto)
    assert np.abs(onto - wanted).max() <= 1.01


@pytest.mark.parametrize("shape", [(360, 640), (500, 300), (9, 900), (360, 641), (1, 1)])
def test_cover_fills_and_keeps_proportions(shape: tuple[int, int]) -> None:
    """A white square in the middle of a grey picture is one afterwards; nothing is black."""
    picture = np.full((*shape, 3), 90, np.uint8)
    side = (min(shape) + 2) // 3
    top, left = (shape[0] - side) // 2, (shape[1] - side) // 2
    picture[top : top + side, left : left + side] = 255
    shown = cover(picture, (640, 360))
    assert shown.shape == (360, 640, 3) and shown.min() >= 90
    if min(shape) > 1:
        white = shown[..., 0] > 172
        rows, columns = np.flatnonzero(white.any(1)), np.flatnonzero(white.any(0))
        assert len(rows) == pytest.approx(len(columns), rel=0.04)
        assert abs(rows.mean() - 179.5) < len(rows) / 2 and abs(columns.mean() - 319.5) < len(columns) / 2


def test_missing_parts_are_told() -> None:
    with pytest.raises(ValueError, match="plate"):
        Desk((640, 360), SQUARE, "photo")
    with pytest.raises(ValueError, match="picture"):
        Desk((640, 360), SQUARE, "image")


# --- following ----------------------------------------------------------------------------------------------


@pytest.fixture
def crop(make_face: Callable[..., Face]) -> Callable[..., NDArray[np.float32]]:
    def make(x: float = 0.0, y: float = 0.0, zoom: float = 1.0, **pose: float) -> NDArray[np.float32]:
        face = make_face(center_px=(128 + 128 * x, 128 + 128 * y), scale=8.0 * zoom, **pose)
        return geometry.to_crop_units(face.points.copy(), 256)

    return make


def middle(points: NDArray[np.float32]) -> NDArray[np.float32]:
    return points[geometry.STABLE, :2].mean(0)


def test_follow_leaves_a_resting_head_alone(crop: Callable[..., NDArray[np.float32]]) -> None:
    follow = Follow(crop(), 600)
    points, place = follow(crop(), 0.0)
    assert place == Place(600)
    assert np.allclose(points, crop(), atol=1e-3)


def test_what_moves_is_the_sum_of_both_and_never_steps(crop: Callable[..., NDArray[np.float32]]) -> None:
    follow = Follow(crop(), 600)
    follow(crop(), 0.0)
    shown = []
    for number in range(60):
        points, place = follow(crop(x=0.004 * number), 0.001 * number)
        shown.append(middle(points)[0] * place.side_px / 2 + place.right_px)
    steps = np.diff(shown)
    assert 0.2 < steps.mean() < 0.004 * 300 + 0.2
    assert np.abs(steps - np.median(steps)).max() < 0.75, "whole pixels are made up for by the landmarks"


def test_a_head_far_out_stays_inside_the_square(crop: Callable[..., NDArray[np.float32]]) -> None:
    follow = Follow(crop(), 600)
    follow(crop(), 0.0)
    for x, y in ((0.8, 0.0), (-0.8, 0.3), (0.0, -0.6)):
        points, place = follow(crop(x, y), 0.01)
        assert np.abs(middle(points) - middle(crop())).max() < 0.2
        assert abs(place.right_px) <= 0.36 * 300
        assert abs(place.down_px) <= 0.07 * 300


def test_who_sits_aside_is_brought_to_the_middle_slowly(crop: Callable[..., NDArray[np.float32]]) -> None:
    follow = Follow(crop(), 600)
    follow(crop(), 0.0)
    for number in range(1, 30):
        follow(crop(), number / 30)
    _, moved = follow(crop(x=0.3, zoom=1.15), 1.0)
    points, place = [follow(crop(x=0.3, zoom=1.15), number / 30) for number in range(31, 30 * 30)][-1]
    assert abs(moved.right_px) > 10
    assert abs(place.right_px) <= 1
    assert abs(place.side_px - 600) <= 4
    assert np.allclose(middle(points), middle(crop()), atol=0.02)


def test_turning_is_no_move(crop: Callable[..., NDArray[np.float32]]) -> None:
    follow = Follow(crop(), 600)
    follow(crop(), 0.0)
    _, place = follow(crop(yaw_deg=25.0), 0.03)
    assert abs(place.right_px) <= 3
    assert abs(place.side_px - 600) <= 6
