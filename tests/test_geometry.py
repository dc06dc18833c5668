"""Geometry against second implementations, written plainly: loops and `lstsq` instead of closed forms."""

from __future__ import annotations

import math
from collections.abc import Callable

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from engine import geometry
from engine.frames import Face
from tests.conftest import rotation_from_euler

Floats = NDArray[np.float32]
MakeFace = Callable[..., Face]


def crop(face: Face) -> Floats:
    return geometry.to_crop_units(face.points, face.size_px[0])


@pytest.fixture(scope="module")
def target(make_face: MakeFace) -> Floats:
    return crop(make_face(yaw_deg=12, pitch_deg=-5, roll_deg=8, mouth_open_cm=1.2, center_px=(131, 140)))


@pytest.fixture(scope="module")
def references(make_face: MakeFace) -> Floats:
    """Four faces, each with a noise of its own so that no map is exact."""
    random = np.random.default_rng(0)
    turns = [(0, 0, 0), (-20, 5, 3), (15, -10, -9), (5, 12, 20)]
    faces = [
        crop(make_face(yaw_deg=yaw, pitch_deg=pitch, roll_deg=roll, scale=7 + number, mouth_open_cm=0.4 * number))
        for number, (yaw, pitch, roll) in enumerate(turns)
    ]
    return (np.stack(faces) + random.normal(0, 0.01, (4, 478, 3))).astype(np.float32)


def applied(map_: NDArray[np.floating], points: NDArray[np.floating]) -> NDArray[np.floating]:
    return points @ map_[:, :2].T + map_[:, 2]


# --- units --------------------------------------------------------------------------------------------------


def test_crop_units_span_the_crop_and_scale_depth() -> None:
    pixels = np.array([[0, 0, 0], [256, 128, 64], [128, 256, -32]], np.float32)
    assert geometry.to_crop_units(pixels, 256).tolist() == [[-1, -1, 0], [1, 0, 0.5], [0, 1, -0.25]]
    assert pixels[1, 0] == 256, "the pixels were changed in place"


def test_grid_lies_on_the_pixel_centres_of_grid_sample() -> None:
    assert geometry.GRID.shape == (64, 64, 2)
    assert np.allclose(geometry.GRID[0, 0], -1 + 1 / 64)
    assert np.allclose(geometry.GRID[3, 60], [(2 * 60 + 1) / 64 - 1, (2 * 3 + 1) / 64 - 1])  # row is y, column is x


# --- maps ---------------------------------------------------------------------------------------------------


def test_head_similarity_is_the_complex_least_squares(target: Floats, references: Floats) -> None:
    """A similarity of the plane is z -> a z + b over complex numbers: `lstsq` finds a and b by itself."""
    found = geometry.head_similarity(target, references)
    assert found.shape == (4, 2, 3)
    assert found.dtype == np.float32
    here = target[geometry.STABLE, 0] + 1j * target[geometry.STABLE, 1]
    for map_, reference in zip(found, references, strict=True):
        there = reference[geometry.STABLE, 0] + 1j * reference[geometry.STABLE, 1]
        system = np.stack([here, np.ones_like(here)], 1)
        (factor, shift), *_ = np.linalg.lstsq(system, there, rcond=None)
        expected = [[factor.real, -factor.imag, shift.real], [factor.imag, factor.real, shift.imag]]
        assert np.abs(map_ - expected).max() < 1e-4


def test_head_similarity_recovers_a_known_one(target: Floats) -> None:
    turned, moved = 1.3 * np.exp(0.4j), 0.2 - 0.1j
    z = (target[:, 0] + 1j * target[:, 1]) * turned + moved
    reference = np.stack([z.real, z.imag, target[:, 2]], 1).astype(np.float32)
    (found,) = geometry.head_similarity(target, reference[None])
    assert np.allclose(found[:, 0], [turned.real, turned.imag], atol=1e-4)
    assert np.allclose(applied(found, target[:, :2]), reference[:, :2], atol=1e-4)


def test_affine_maps_solve_the_ridge_problem(target: Floats, references: Floats) -> None:
    """Rows of `sqrt(k) I -> sqrt(k) S` beneath the data make an ordinary least squares of the ridge."""
    stiffness = 0.15
    head = geometry.head_similarity(target, references)
    found = geometry.affine_maps(target, references, head, stiffness)
    assert found.shape == (4, geometry.AFFINE_COUNT, 2, 3)
    assert np.array_equal(found[:, 0], head)
    for row, reference in enumerate(references):
        for number, (_, indices) in enumerate(geometry.AFFINE_GROUPS, 1):
            here = target[indices, :2].astype(np.float64)
            there = reference[indices, :2].astype(np.float64)
            middle, goal = here.mean(0), there.mean(0)
            weight = math.sqrt(stiffness * ((here - middle) ** 2).sum() / 2 + 1e-6)
            system = np.vstack([here - middle, weight * np.eye(2)])
            wanted = np.vstack([there - goal, weight * head[row, :, :2].T])
            linear = np.linalg.lstsq(system, wanted, rcond=None)[0].T
            expected = np.column_stack([linear, goal - linear @ middle])
            assert np.abs(found[row, number] - expected).max() < 2e-3, geometry.AFFINE_GROUPS[number - 1][0]


def test_affine_maps_carry_irises_and_leave_the_background(target: Floats, references: Floats) -> None:
    found = geometry.affine_maps(target, references, geometry.head_similarity(target, references))
    for name, centre in (("right iris", 468), ("left iris", 473)):
        for map_, reference in zip(found[:, geometry.MAP_NAMES.index(name)], references, strict=True):
            assert np.allclose(applied(map_, target[centre, :2]), reference[centre, :2], atol=1e-5)
    assert np.array_equal(found[2, geometry.MAP_NAMES.index("background")], np.eye(2, 3))


def test_mesh_flows_are_splat_blur_and_divide(target: Floats, references: Floats) -> None:
    """Every landmark of a set is laid onto its four nearest cells, both sums are blurred, and divided."""
    references = references[:1]
    head = geometry.head_similarity(target, references)
    weights = np.random.default_rng(0).uniform(0.5, 12, len(target)).astype(np.float32)
    found = geometry.mesh_flows(target, references, head, weights)
    assert found.shape == (1, 2, 64, 64, 2)

    def blurred(values: NDArray[np.float64], size: int, sigma: float) -> NDArray[np.float64]:
        offsets = np.arange(size) - size // 2
        line = np.exp(-(offsets**2) / (2 * sigma**2))
        line /= line.sum()
        padded = np.pad(values, ((size // 2, size // 2), (size // 2, size // 2), (0, 0)))
        total = np.zeros_like(values)
        for dy in range(size):
            for dx in range(size):
                total += line[dy] * line[dx] * padded[dy : dy + 64, dx : dx + 64]
        return total

    for number, members in enumerate((geometry.UPPER_MESH, geometry.LOWER_MESH)):
        sums = np.zeros((64, 64, 3))  # x, y, count
        for index in members:
            column, row = (target[index, :2].astype(np.float64) + 1) * 32 - 0.5
            left, top = math.floor(column), math.floor(row)
            rest = references[0, index, :2] - applied(head[0], target[index, :2])
            for y, down in ((top, 1 - (row - top)), (top + 1, row - top)):
                for x, along in ((left, 1 - (column - left)), (left + 1, column - left)):
                    if 0 <= x < 64 and 0 <= y < 64:
                        sums[y, x] += weights[index] * down * along * np.array([*rest, 1])
        total = blurred(sums, 7, 0.8) + 0.1 * blurred(sums, 11, 1.8) + 0.002 * blurred(sums, 19, 3.0)
        spread = total[..., :2] / (total[..., 2:] + 1e-5)
        expected = applied(head[0], geometry.GRID) + spread
        assert np.abs(found[0, number] - expected).max() < 1e-4


def test_irises_outweigh_lids_unless_lids_have_to_move(target: Floats) -> None:
    def with_eyes(open_share: float) -> Floats:
        points = target.copy()
        for upper, lower, one, other in ((159, 145, 33, 133), (386, 374, 263, 362)):
            width = np.linalg.norm(points[one, :2] - points[other, :2])
            middle = (points[upper, :2] + points[lower, :2]) / 2
            half = np.array([0, open_share * width / 2], np.float32)
            points[upper, :2], points[lower, :2] = middle - half, middle + half
        return points

    def weight_of(iris: int, open_share: float, reference_share: float) -> float:
        weights = geometry.landmark_weights(with_eyes(open_share), with_eyes(reference_share))
        assert (np.delete(weights, range(468, 478)) == 1).all()
        return float(weights[iris])

    for iris in (468, 477):
        assert weight_of(iris, 0.3, 0.3) == weight_of(iris, 0.1, 0.1) == 12
        assert weight_of(iris, 0.1, 0.3) == weight_of(iris, 0.3, 0.1) == 1
        assert weight_of(iris, 0.24, 0.3) == pytest.approx(6.5, abs=0.01)


def test_mesh_flows_lead_each_landmark_home(target: Floats, references: Floats) -> None:
    """At a landmark the flow says where that landmark is in the reference, to about half a cell."""
    head = geometry.head_similarity(target, references)
    flows = geometry.mesh_flows(target, references, head, np.ones(len(target), np.float32))
    places = ((target[:, :2] + 1) * 32 - 0.5).astype(np.float32)
    for row, reference in enumerate(references):
        for number, members in enumerate((geometry.UPPER_MESH, geometry.LOWER_MESH)):
            flow = flows[row, number].astype(np.float32)
            at = cv2.remap(flow, places[members, 0], places[members, 1], cv2.INTER_LINEAR)[:, 0]
            missed = np.linalg.norm(at - reference[members, :2], axis=1) * 32
            assert np.median(missed) < 0.5
            plain = np.linalg.norm(applied(head[row], target[members, :2]) - reference[members, :2], axis=1) * 32
            assert np.median(missed) < np.median(plain)


def test_meshes_part_where_lips_and_lids_touch() -> None:
    upper, lower = set(geometry.UPPER_MESH.tolist()), set(geometry.LOWER_MESH.tolist())
    assert {0, 13, 159, 386} <= upper - lower  # upper lip, upper lids
    assert {17, 14, 145, 374} <= lower - upper  # lower lip, lower lids
    assert {1, 61, 291, 10, 152, 468, 473} <= upper & lower  # nose, corners of the mouth, forehead, chin, irises
    assert upper | lower == set(range(478))


def test_points_outside_the_crop_do_no_harm(target: Floats, references: Floats) -> None:
    away = target + np.array([1.2, -0.9, 0], np.float32)
    told = geometry.condition(away, references, np.ones(3, np.float32))
    assert np.isfinite(told.grids).all()


def test_reference_equal_to_target_gives_identity_maps(target: Floats) -> None:
    told = geometry.condition(target, np.stack([target] * 4), np.ones(3, np.float32))
    assert np.abs(told.grids - geometry.GRID).max() < 1e-5


# --- zones --------------------------------------------------------------------------------------------------


def test_zones_lie_where_eyes_and_mouth_are(target: Floats) -> None:
    index, _ = geometry.zones(target)

    def zone_at(point: int) -> str:
        column, row = np.round((target[point, :2] + 1) * 32 - 0.5).astype(int)
        return geometry.ZONES[index[row, column]]

    assert [zone_at(point) for point in (159, 386, 105)] == ["eyes"] * 3
    assert [zone_at(point) for point in (13, 14, 61, 291)] == ["mouth"] * 4
    assert [geometry.ZONES[index[row, column]] for row, column in ((0, 0), (63, 63))] == ["rest"] * 2


def test_inside_is_zero_on_every_border_between_zones(target: Floats) -> None:
    index, inside = geometry.zones(target)
    assert (inside.min(), inside.max()) == (0, 1)
    borders = 0
    for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
        for row in range(63):
            for column in range(1, 63):
                other = row + down, column + right
                if index[row, column] != index[other]:
                    borders += 1
                    assert inside[:, row, column].max() == 0
                    assert inside[(slice(None), *other)].max() == 0
    assert borders > 100
    assert not (inside[:, index == 0][1:] > 0).any(), "a zone speaks outside of itself"


# --- raster -------------------------------------------------------------------------------------------------


def centre_of(channel: NDArray[np.uint8]) -> tuple[float, float]:
    """Column and row of the middle of what is drawn."""
    rows, columns = np.nonzero(channel)
    return float(columns.mean()), float(rows.mean())


def test_raster_is_upright_and_not_mirrored(make_face: MakeFace) -> None:
    drawn = geometry.raster(crop(make_face(center_px=(160, 100))))
    assert drawn.shape == (128, 128, 3)
    assert drawn.dtype == np.uint8
    contours, eyes, mouth = (centre_of(drawn[..., channel]) for channel in range(3))
    assert eyes[1] < mouth[1], "the mouth lies below the eyes"
    assert eyes[0] == pytest.approx(80, abs=2), "half of 160: x goes to the right"
    assert mouth[0] == pytest.approx(80, abs=2)
    assert contours[1] == pytest.approx(50, abs=8)


def test_raster_puts_the_right_eye_left(make_face: MakeFace) -> None:
    points = crop(make_face())
    winking = points.copy()
    winking[geometry.EYE_RIGHT + geometry.IRIS_RIGHT] = winking[33]  # the person's right eye shrinks to a point
    gone = geometry.raster(points)[..., 1].astype(int) - geometry.raster(winking)[..., 1]
    assert centre_of(np.abs(gone).astype(np.uint8))[0] < 64, "it is on the left of the picture"


def test_raster_shows_the_mouth_opening(make_face: MakeFace) -> None:
    opened = [int((geometry.raster(crop(make_face(mouth_open_cm=gap)))[..., 2] > 220).sum()) for gap in (0, 0.8, 2)]
    assert opened[0] < opened[1] < opened[2]


def test_raster_shows_the_lids_and_the_gaze(make_face: MakeFace) -> None:
    points = crop(make_face())
    shut = points.copy()
    for eye in (geometry.EYE_RIGHT, geometry.EYE_LEFT):
        shut[eye[1:8], 1] = shut[list(reversed(eye[9:])), 1]
    aside = points.copy()
    aside[468:, 0] += 0.02
    eyes, closed, looking = (geometry.raster(one)[..., 1] for one in (points, shut, aside))
    assert (closed > 60).sum() < 0.7 * (eyes > 60).sum()

    def pupil(channel: NDArray[np.uint8]) -> float:
        return centre_of((channel > 240).astype(np.uint8))[0]

    assert pupil(looking) - pupil(eyes) == pytest.approx(0.02 * 64, abs=0.7)


# --- describing ---------------------------------------------------------------------------------------------


def difference(one: dict[str, Floats], other: dict[str, Floats], part: str) -> float:
    return float(np.linalg.norm(one[part] - other[part]))


def test_describe_knows_neither_place_nor_size_nor_tilt(make_face: MakeFace) -> None:
    face = make_face(yaw_deg=10, mouth_open_cm=1)
    told = geometry.describe(face.points)
    moved = (face.points * 3.7 + [100, -40, 20]).astype(np.float32)
    tilt = rotation_from_euler(0, 0, 25) @ np.diag([1.0, -1.0, -1.0])
    tilted = (face.points @ tilt.T).astype(np.float32)
    for part in told:
        assert difference(told, geometry.describe(moved), part) < 1e-3
        if part != "rest":
            assert difference(told, geometry.describe(tilted), part) < 1e-3


def test_describe_of_eyes_and_mouth_hardly_feels_a_turn(make_face: MakeFace) -> None:
    told = geometry.describe(make_face(mouth_open_cm=1).points)
    turned = geometry.describe(make_face(yaw_deg=25, pitch_deg=10, mouth_open_cm=1).points)
    assert difference(told, turned, "eyes") < 0.01
    assert difference(told, turned, "mouth") < 0.01
    assert difference(told, turned, "rest") > 0.5


def test_describe_feels_mouth_lids_and_pose(make_face: MakeFace) -> None:
    told = geometry.describe(make_face().points)
    speaking = geometry.describe(make_face(mouth_open_cm=1.5).points)
    assert difference(told, speaking, "mouth") > 0.5
    assert difference(told, speaking, "eyes") < 0.01
    points = make_face().points.copy()
    points[[159, 386]] = points[[145, 374]]
    assert difference(told, geometry.describe(points), "eyes") > 0.5
    left, right = (geometry.describe(make_face(yaw_deg=yaw).points)["rest"] for yaw in (-15, 15))
    assert left[0] * right[0] < 0


def test_misfit_is_zero_for_itself_and_grows_with_the_difference(make_face: MakeFace) -> None:
    told = geometry.describe(make_face(yaw_deg=5).points)
    assert geometry.misfit(told, told).tolist() == [0, 0, 0]
    near, far = (geometry.misfit(told, geometry.describe(make_face(yaw_deg=yaw).points)) for yaw in (10, 25))
    assert (near > 0).all()
    assert (far > near).all()
    speaking = geometry.misfit(told, geometry.describe(make_face(yaw_deg=5, mouth_open_cm=1).points))
    assert speaking[2] > 0.3
    assert speaking[0] < 0.01


# --- all of it ----------------------------------------------------------------------------------------------


def test_condition_shapes_and_kinds(target: Floats, references: Floats) -> None:
    told = geometry.condition(target, references, np.array([1, 0.5, 0], np.float32))
    count = geometry.MAP_COUNT + geometry.DETAIL_COUNT
    for array, shape, kind in (
        (told.raster, (128, 128, 3), np.uint8),
        (told.grids, (count, 64, 64, 2), np.float32),
        (told.tile, (64, 64), np.uint8),
        (told.detail, (64, 64), np.float32),
    ):
        assert (array.shape, array.dtype) == (shape, kind)
        assert array.flags.c_contiguous
    assert set(np.unique(told.tile)) == {1, 2, 3}
    assert told.detail[told.tile == 1].max() == 1
    assert told.detail[told.tile == 2].max() == 0.5
    assert told.detail[told.tile == 3].max() == 0


def test_condition_looks_into_the_reference_of_its_zone(target: Floats, references: Floats) -> None:
    """Slot A's maps are those of the first reference; in each zone slot B's are those of its own."""
    told = geometry.condition(target, references, np.ones(3, np.float32))
    head = geometry.head_similarity(target, references)
    meshes = geometry.mesh_flows(target, references, head, geometry.landmark_weights(target, references[2]))
    affine = geometry.affine_maps(target, references[:1], head[:1])[0]
    for number, map_ in enumerate(affine):
        assert np.allclose(told.grids[number], applied(map_, geometry.GRID), atol=1e-5)
    assert np.array_equal(told.grids[geometry.AFFINE_COUNT : geometry.MAP_COUNT], meshes[0])
    for reference in (1, 2, 3):
        own = told.tile == reference
        slot_b = told.grids[geometry.MAP_COUNT :]
        assert np.allclose(slot_b[0][own], applied(head[reference], geometry.GRID[own]), atol=1e-5)
        assert np.array_equal(slot_b[1:, own], meshes[reference][:, own])


def test_trust_is_for_eyes_and_mouths_of_another_kind() -> None:
    still = {
        part: np.zeros(5 if part == "eyes" else 4 if part == "mouth" else 3, np.float32) for part in geometry.ZONES
    }
    shut = still | {"eyes": np.array([-0.6, -0.6, 0, 0, 0], np.float32)}
    assert not geometry.trust(still, still, [still] * 3).any()
    assert geometry.trust(shut, still, [still, shut, still]).tolist() == [0, 1, 0]
    assert geometry.trust(still, shut, [shut, still, shut]).tolist() == [0, 1, 0], "slot A blinks, the driver does not"
    turned = still | {"rest": np.array([2, 0, 0], np.float32)}
    assert geometry.trust(turned, still, [turned] * 3)[0] == 0, "the rest holds the background too"


def test_a_pixel_map_warps_as_the_crop_units_say() -> None:
    """Against the definition: pixel centre i lies at (2 i + 1) / size - 1."""
    matrix = np.array([[0.9, -0.2, 0.1], [0.15, 1.1, -0.05]], np.float32)
    size, place = 64, np.array([10.0, 37.0])
    units = (2 * place + 1) / size - 1
    expected = ((matrix[:, :2] @ units + matrix[:, 2] + 1) * size - 1) / 2
    made = geometry.pixel_map(matrix, size)
    assert np.allclose(made[:, :2] @ place + made[:, 2], expected, atol=1e-4)
    assert np.allclose(geometry.pixel_map(np.eye(2, 3, dtype=np.float32), size), np.eye(2, 3), atol=1e-6)


def test_a_closed_mouth_serves_an_open_one_worse_than_the_other_way_round(make_face: Callable[..., Face]) -> None:
    """Between closed lips there is nothing to show; parted ones can be brought together."""
    closed, parted = (geometry.describe(make_face(mouth_open_cm=gap).points) for gap in (0, 1))
    opening, closing = geometry.misfit(parted, closed), geometry.misfit(closed, parted)
    assert opening[2] > 1.3 * closing[2]
    assert np.allclose(opening[:2], closing[:2])
