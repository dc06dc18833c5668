"""Face -> what the generator is conditioned on: a raster, the maps from target to reference, and zones.

Everything here is numpy and OpenCV, runs once per frame on the CPU, and is the *only* implementation: training and the
live renderer call the same functions. Points are `[478, 2+]` float32 in *crop units*: the crop spans -1 to 1, x right,
y down, pixel centres at `(2 i + 1) / size - 1` (the convention of grid_sample with `align_corners=False`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from engine.frames import POINT_COUNT

Floats = NDArray[np.float32]

GRID_PX = 64
"""Side of the grid on which motion is described."""
RASTER_PX = 128

LIPS_OUTER = [61, 185, 40, 39, 37, 0, 267, 269, 270, 409, 291, 375, 321, 405, 314, 17, 84, 181, 91, 146]
LIPS_INNER = [78, 191, 80, 81, 82, 13, 312, 311, 310, 415, 308, 324, 318, 402, 317, 14, 87, 178, 88, 95]
UPPER_LIP = LIPS_OUTER[:11] + LIPS_INNER[:11]
LOWER_LIP = [61, 291, 78, 308, *LIPS_OUTER[11:], *LIPS_INNER[11:]]
EYE_RIGHT = [33, 246, 161, 160, 159, 158, 157, 173, 133, 155, 154, 153, 145, 144, 163, 7]
EYE_LEFT = [263, 466, 388, 387, 386, 385, 384, 398, 362, 382, 381, 380, 374, 373, 390, 249]
BROW_RIGHT = [46, 53, 52, 65, 55, 107, 66, 105, 63, 70]
BROW_LEFT = [276, 283, 282, 295, 285, 336, 296, 334, 293, 300]
IRIS_RIGHT = [468, 469, 470, 471, 472]
IRIS_LEFT = [473, 474, 475, 476, 477]
NOSE = [168, 6, 197, 195, 5, 4, 1, 19, 94, 2, 98, 97, 326, 327, 294, 278, 344, 115, 48, 64]
JAW = [152, 148, 176, 149, 150, 136, 172, 58, 377, 400, 378, 379, 365, 397, 288, 199, 200, 18, 175, 171, 396]
FOREHEAD = [10, 338, 297, 332, 284, 251, 109, 67, 103, 54, 21, 151, 9, 108, 69, 104, 68, 337, 299, 333, 298]
OVAL = [10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377, 152]
OVAL += [148, 176, 149, 150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109]
STABLE = NOSE[:8] + FOREHEAD + [33, 133, 362, 263, 234, 454, 127, 356, 93, 323, 132, 361, 123, 352, 50, 280]
"""Points that expressions hardly move: they carry the pose of the head."""

AFFINE_GROUPS = [
    ("upper lip", UPPER_LIP),
    ("lower lip", LOWER_LIP),
    ("right eye", EYE_RIGHT + BROW_RIGHT),
    ("left eye", EYE_LEFT + BROW_LEFT),
    ("nose", NOSE),
    ("jaw", JAW),
    ("forehead", FOREHEAD),
]
MAP_NAMES = [
    "head",
    *[name for name, _ in AFFINE_GROUPS],
    "right iris",
    "left iris",
    "background",
    "upper mesh",
    "lower mesh",
]
"""The maps of slot A, in order; the last two are dense, the others affine."""
AFFINE_COUNT = len(MAP_NAMES) - 2
MAP_COUNT = len(MAP_NAMES)
DETAIL_COUNT = 3
"""The maps of slot B: head, upper mesh, lower mesh, each of the zone's own reference."""
ZONES = ["rest", "eyes", "mouth"]
"""Parts of the head that slot B takes from a reference of their own."""

_LOWER_ONLY = sorted(set(LIPS_OUTER[11:] + LIPS_INNER[11:] + EYE_RIGHT[9:] + EYE_LEFT[9:] + [18, 200, 199, 175]))
_UPPER_ONLY = sorted(set(LIPS_OUTER[1:10] + LIPS_INNER[1:10] + EYE_RIGHT[1:8] + EYE_LEFT[1:8] + [164, 2]))
UPPER_MESH = np.array([index for index in range(POINT_COUNT) if index not in _LOWER_ONLY])
LOWER_MESH = np.array([index for index in range(POINT_COUNT) if index not in _UPPER_ONLY])
EYES_ZONE = BROW_RIGHT + BROW_LEFT + [226, 31, 230, 231, 232, 446, 261, 450, 451, 452, 168, 6]
MOUTH_ZONE = [2, 98, 327, 206, 426, 216, 436, 212, 432, 214, 434, 135, 364, 169, 394, 170, 395, 175, 171, 396]


def to_crop_units(points_px: Floats, size_px: float) -> Floats:
    """`[..., 2+]` pixels of a square crop -> crop units (depth is scaled alike)."""
    scaled = points_px * np.float32(2.0 / size_px)
    scaled[..., :2] -= 1.0
    return scaled


def pixel_map(matrix: Floats, size_px: int) -> Floats:
    """An affine map `[2, 3]` in crop units -> the same in pixel centres of a square picture, as OpenCV warps by."""
    rim = np.float32(1 / size_px - 1)  # u = (2 i + 1) / size - 1 on both sides
    moved = matrix.copy()
    moved[:, 2] = (matrix[:, 2] + matrix[:, :2].sum(1) * rim - rim) * np.float32(size_px / 2)
    return moved


def _polygon(points: Floats, indices: list[int], size_px: int) -> NDArray[np.int32]:
    return np.round(((points[indices, :2] + 1.0) * (size_px / 2) - 0.5) * 16).astype(np.int32)


def raster(points: Floats) -> NDArray[np.uint8]:
    """Draw the landmarks: `[128, 128, 3]` uint8, contours / eyes / mouth, one channel each."""
    contours = np.zeros((RASTER_PX, RASTER_PX), np.uint8)
    eyes = np.zeros_like(contours)
    mouth = np.zeros_like(contours)

    def line(canvas: NDArray[np.uint8], indices: list[int], closed: bool, value: int) -> None:
        cv2.polylines(canvas, [_polygon(points, indices, RASTER_PX)], closed, [value], 1, cv2.LINE_AA, 4)

    def fill(canvas: NDArray[np.uint8], indices: list[int], value: int) -> None:
        cv2.fillPoly(canvas, [_polygon(points, indices, RASTER_PX)], [value], cv2.LINE_AA, 4)

    line(contours, OVAL, True, 120)
    line(contours, NOSE[:8], False, 200)
    line(contours, [98, 97, 2, 326, 327], False, 200)
    for brow in (BROW_RIGHT, BROW_LEFT):
        fill(contours, brow, 255)
    for eye, iris in ((EYE_RIGHT, IRIS_RIGHT), (EYE_LEFT, IRIS_LEFT)):
        fill(eyes, eye, 110)
        line(eyes, eye, True, 180)
        centre = points[iris[0], :2]
        radius = float(np.linalg.norm(points[iris[1:], :2] - centre, axis=1).mean()) * RASTER_PX / 2
        x, y = ((centre + 1.0) * (RASTER_PX / 2) - 0.5) * 16
        opening = np.zeros_like(eyes)
        cv2.circle(opening, (round(float(x)), round(float(y))), max(round(radius * 16), 1), [255], -1, cv2.LINE_AA, 4)
        np.maximum(eyes, np.where(eyes > 60, opening, 0), out=eyes)
    fill(mouth, LIPS_OUTER, 130)
    fill(mouth, LIPS_INNER, 255)
    line(mouth, LIPS_INNER, True, 200)
    return np.dstack([contours, eyes, mouth])


def head_similarity(target: Floats, references: Floats) -> Floats:
    """Least-squares similarity of the stable points, target -> each reference: `[R, 2, 3]`.

    Umeyama 1991, in the plane. `target` is `[478, 2+]`, `references` `[R, 478, 2+]`, crop units.
    """
    p = target[STABLE, :2]
    q = references[:, STABLE, :2]
    p_mean, q_mean = p.mean(0), q.mean(1)
    p, q = p - p_mean, q - q_mean[:, None]
    norm = (p * p).sum()
    cosine = (q * p).sum((1, 2)) / norm
    sine = (q[..., 1] * p[:, 0] - q[..., 0] * p[:, 1]).sum(1) / norm
    linear = np.stack([np.stack([cosine, -sine], -1), np.stack([sine, cosine], -1)], -2)
    return np.concatenate([linear, (q_mean - linear @ p_mean)[..., None]], -1).astype(np.float32)


def affine_maps(target: Floats, references: Floats, head: Floats, stiffness: float = 0.15) -> Floats:
    """The affine maps of slot A, target -> reference: `[R, AFFINE_COUNT, 2, 3]` in the order of `MAP_NAMES`.

    A group's map is the ridge solution that prefers the head's own linear part S:
    `A = (sum q p' + k S)(sum p p' + k I)^-1` with k = stiffness * trace(sum p p') / 2, p and q centred.
    """
    count = len(references)
    maps = np.empty((count, AFFINE_COUNT, 2, 3), np.float32)
    maps[:, 0] = head
    linear = head[:, :, :2]
    for number, (_, indices) in enumerate(AFFINE_GROUPS, 1):
        p = target[indices, :2]
        q = references[:, indices, :2]
        p_mean, q_mean = p.mean(0), q.mean(1)
        p, q = p - p_mean, q - q_mean[:, None]
        (a, b), (_, d) = p.T @ p
        k = stiffness * (a + d) / 2 + 1e-6
        a, d = a + k, d + k
        inverse = np.array([[d, -b], [-b, a]], np.float32) / (a * d - b * b)
        fitted = (np.swapaxes(q, 1, 2) @ p + k * linear) @ inverse
        maps[:, number, :, :2] = fitted
        maps[:, number, :, 2] = q_mean - fitted @ p_mean
    for number, iris in ((AFFINE_COUNT - 3, IRIS_RIGHT[0]), (AFFINE_COUNT - 2, IRIS_LEFT[0])):
        maps[:, number, :, :2] = linear
        maps[:, number, :, 2] = references[:, iris, :2] - linear @ target[iris, :2]
    maps[:, AFFINE_COUNT - 1] = np.eye(2, 3, dtype=np.float32)
    return maps


def _grid() -> Floats:
    line = (2 * np.arange(GRID_PX, dtype=np.float32) + 1) / GRID_PX - 1
    return np.stack(np.meshgrid(line, line), -1)


SPREADS = [
    (cv2.getGaussianKernel(size, sigma, cv2.CV_32F), weight)
    for size, sigma, weight in ((7, 0.8, 1.0), (11, 1.8, 0.1), (19, 3.0, 0.002))
]
"""Kernels over cells of the grid, and what each of them counts for."""
LEAST_SPREAD = 1e-5
"""Where landmarks count for less than this there is the similarity alone."""
_SQUARE = np.ones((3, 3), np.uint8)
_CROSS = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
GRID = _grid()
"""`[64, 64, 2]`: where each cell of the motion grid lies, in crop units."""


def landmark_weights(target: Floats, eyes: Floats) -> Floats:
    """How much each landmark says about the dense maps, `[478]`; `eyes` is the reference that the eyes come from.

    Irises outweigh the lids around them, for an eye is five cells of the motion grid wide and lids would hold its
    irises still; but the less, the more the lids have to move, or irises would hold the lids.
    """

    def openness(points: Floats, outer: int, inner: int, upper: int, lower: int) -> float:
        gap, width = points[upper, :2] - points[lower, :2], points[outer, :2] - points[inner, :2]
        return float(np.linalg.norm(gap) / (np.linalg.norm(width) + 1e-6))

    weights = np.ones(len(target), np.float32)
    for iris, *lids in ((IRIS_RIGHT, 33, 133, 159, 145), (IRIS_LEFT, 263, 362, 386, 374)):
        moved = abs(openness(target, *lids) - openness(eyes, *lids))
        weights[iris] += 11.0 * min(max(1.25 - moved / 0.08, 0.0), 1.0)
    return weights


def mesh_flows(target: Floats, references: Floats, head: Floats, weights: Floats) -> Floats:
    """Dense maps target -> reference from the landmarks themselves: `[R, 2, 64, 64, 2]` (upper, lower).

    What the head's similarity leaves over at each landmark is spread by normalised convolution (Knutsson & Westin
    1993) at three widths: exact to about half a cell on the face, even between landmarks that a turn has drawn apart,
    and easing into the similarity outside.
    The upper set leaves out the lower lip and lids and the other way round: where lips or lids touch, the two differ.
    `weights [478]` as `landmark_weights` gives them.
    """
    count = len(references)
    places = (target[:, :2] + 1.0) * (GRID_PX / 2) - 0.5
    corner = np.floor(places).astype(np.int64)
    fraction = (places - corner).astype(np.float32)
    left = references[..., :2] - (target[:, :2] @ np.swapaxes(head[:, :, :2], 1, 2) + head[:, None, :, 2])
    carried = np.concatenate([left.transpose(0, 2, 1).reshape(-1, len(target)), np.ones((1, len(target)), np.float32)])
    cells, shares = [], []
    for dx in (0, 1):
        for dy in (0, 1):
            x, y = corner[:, 0] + dx, corner[:, 1] + dy
            inside = (x >= 0) & (x < GRID_PX) & (y >= 0) & (y < GRID_PX)
            cells.append(np.where(inside, y * GRID_PX + x, 0))
            shares.append(weights * inside * np.abs(1 - dx - fraction[:, 0]) * np.abs(1 - dy - fraction[:, 1]))
    cell, weight = np.stack(cells), np.stack(shares)
    flows = np.empty((count, 2, GRID_PX, GRID_PX, 2), np.float32)
    outside = GRID @ np.swapaxes(head[:, None, :, :2], 2, 3) + head[:, None, None, :, 2]
    for number, members in enumerate((UPPER_MESH, LOWER_MESH)):
        splat_cell, splat_weight = cell[:, members].ravel(), weight[:, members]
        sums = np.empty((GRID_PX * GRID_PX, 2 * count + 1), np.float32)
        for channel, values in enumerate(carried[:, members]):
            sums[:, channel] = np.bincount(splat_cell, (splat_weight * values).ravel(), GRID_PX * GRID_PX)
        sums = sums.reshape(GRID_PX, GRID_PX, -1)
        total = np.zeros_like(sums)
        for kernel, weight_of_width in SPREADS:
            total += weight_of_width * cv2.sepFilter2D(sums, -1, kernel, kernel, borderType=cv2.BORDER_CONSTANT)
        spread = total[..., :-1] / (total[..., -1:] + LEAST_SPREAD)
        flows[:, number] = outside + spread.reshape(GRID_PX, GRID_PX, count, 2).transpose(2, 0, 1, 3)
    return flows


def zones(target: Floats) -> tuple[NDArray[np.uint8], Floats]:
    """Which zone each cell belongs to, `[64, 64]` uint8 index into `ZONES`, and how far inside: `[3, 64, 64]` in 0..1.

    The second is zero on every border between zones, so that nothing is ever blended across one.
    """
    index = np.zeros((GRID_PX, GRID_PX), np.uint8)
    for number, members in ((1, EYES_ZONE), (2, MOUTH_ZONE)):
        own = np.zeros_like(index)
        cv2.fillConvexPoly(own, cv2.convexHull(_polygon(target, members, GRID_PX)), [1], cv2.LINE_8, 4)
        index[cv2.dilate(own, _CROSS, iterations=2) > 0] = number
    inside = np.empty((3, GRID_PX, GRID_PX), np.float32)
    for number in range(3):
        own = cv2.erode((index == number).astype(np.uint8), _SQUARE, iterations=2, borderValue=[1])
        inside[number] = cv2.blur(own.astype(np.float32), (3, 3))
    return index, inside


def describe(points: Floats) -> dict[str, Floats]:
    """What a reference is chosen by, each a short vector of about unit scale: `rest` (pose), `eyes`, `mouth`.

    `points` is `[478, 3]`, any unit: the numbers are ratios to the distance between the outer corners of the eyes
    (in 3-D, so that turning the head leaves it alone).
    """
    across = points[263] - points[33]
    unit = float(np.linalg.norm(across)) + 1e-6
    across = across / unit
    down = points[152] - points[10]
    down = down - across * float(down @ across)
    down = down / (float(np.linalg.norm(down)) + 1e-6)
    forward = np.cross(across, down)
    axes = np.stack([across, down, forward])

    def between(first: int, second: int) -> float:
        return float(np.linalg.norm(points[first] - points[second])) / unit

    def local(index: int, origin: int) -> Floats:
        return (axes @ (points[index] - points[origin]) / unit).astype(np.float32)

    pose = np.array([forward[0], forward[1], 0.5 * across[1]], np.float32) * 2.0
    lids = [between(159, 145), between(386, 374)]
    iris_right = local(468, 33)[:2] - local(133, 33)[:2] / 2
    iris_left = local(473, 362)[:2] - local(263, 362)[:2] / 2
    brows = [local(105, 168)[1], local(334, 168)[1]]
    eyes = np.array([*lids, *(0.7 * (iris_right + iris_left)), 0.5 * (brows[0] + brows[1]) / 2], np.float32) * 6.0
    mouth = np.array(
        [between(13, 14), 0.7 * between(61, 291), between(0, 17) * 0.6, 0.5 * between(78, 308)], np.float32
    )
    return {"rest": pose, "eyes": eyes, "mouth": mouth * 6.0}


def misfit(target: dict[str, Floats], reference: dict[str, Floats]) -> Floats:
    """How badly a reference serves each zone of the target: `[3]` in the order of `ZONES`, 0 is perfect.

    A mouth that is too open can be closed; one that is too closed has nothing to show between the lips.
    """
    pose = float(np.linalg.norm(target["rest"] - reference["rest"]))
    eyes = float(np.linalg.norm(target["eyes"] - reference["eyes"]))
    mouth = float(np.linalg.norm(target["mouth"] - reference["mouth"]))
    closed = max(float(target["mouth"][0] - reference["mouth"][0]), 0.0)
    return np.array([pose, eyes + 0.7 * pose, mouth + 0.6 * closed + 0.7 * pose], np.float32)


def whole_misfit(
    told: dict[str, Floats], references_told: Sequence[dict[str, Floats]], target: Floats, references: Floats
) -> Floats:
    """How badly each reference serves the picture as a whole: `[R]`, 0 is perfect.

    Turned alike counts, and so does being in the same place: shoulders, hair and background have no landmarks, and
    warp least from a photo with the head where it is wanted. `told` as `describe` gives them; `target [478, 3]` and
    `references [R, 478, 3]` in crop units.
    """
    turned = np.array([np.linalg.norm(one["rest"] - told["rest"]) for one in references_told])
    away = np.linalg.norm(references[:, STABLE, :2] - target[STABLE, :2], axis=2).mean(1)
    return (turned + 4 * away).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Brief:
    """What one frame of the generator is drawn from, but for the dense maps."""

    raster: NDArray[np.uint8]
    """`[128, 128, 3]`."""
    maps: Floats
    """`[AFFINE_COUNT + 3, 2, 3]`: slot A's affine maps, and the head's similarities to slot B's references."""
    weights: Floats
    """`landmark_weights`, for the dense maps."""
    tile: NDArray[np.uint8]
    """`[64, 64]`: which of the four references slot B looks into (1 to 3)."""
    detail: Floats
    """`[64, 64]`: how much slot B may say, 0 to 1; up to 2 where it is to be believed before slot A (`trust`)."""


@dataclass(frozen=True, slots=True)
class Conditioning(Brief):
    """All that one frame of the generator is drawn from."""

    grids: Floats
    """`[MAP_COUNT + DETAIL_COUNT, 64, 64, 2]`: where each map looks, crop units of its own reference."""


def trust(target: dict[str, Floats], slot_a: dict[str, Floats], chosen: Sequence[dict[str, Floats]]) -> Floats:
    """How much more slot B is to be believed than slot A, `[3]` in 0..1; all as `describe` gives them.

    `chosen` are the references of rest, eyes and mouth. Only where slot A's eyes or mouth are clearly of another
    kind (open for shut): the network alone, at the age it has, blends the two. The rest also holds the background,
    which is slot A's.
    """
    behind = misfit(target, slot_a) - [misfit(target, one)[zone] for zone, one in enumerate(chosen)]
    behind[0] = 0.0
    return np.clip((behind - 0.1) / 0.4, 0.0, 1.0).astype(np.float32)


def brief(target: Floats, references: Floats, fade: Floats, trust: Floats | None = None) -> Brief:
    """Describe one target `[478, 2+]` against four references `[4, 478, 2+]`, all in crop units.

    The references are slot A, then slot B's rest, eyes and mouth; `fade` is `[3]`, how far each of the latter three is
    faded in (0 while another one takes its place), `trust` `[3]` as the function of that name gives it.
    """
    head = head_similarity(target, references)
    index, inside = zones(target)
    affine = affine_maps(target, references[:1], head[:1])[0]
    strength = fade if trust is None else fade * (1 + trust)
    detail = (strength[:, None, None] * inside).sum(0, dtype=np.float32)
    maps, weights = np.concatenate([affine, head[1:]]), landmark_weights(target, references[2])
    return Brief(raster(target), maps, weights, index + np.uint8(1), detail)


def condition(target: Floats, references: Floats, fade: Floats, trust: Floats | None = None) -> Conditioning:
    """`brief`, and the dense maps."""
    told = brief(target, references, fade, trust)
    head = np.concatenate([told.maps[:1], told.maps[AFFINE_COUNT:]])
    mesh = mesh_flows(target, references, head, told.weights)
    grids = np.empty((MAP_COUNT + DETAIL_COUNT, GRID_PX, GRID_PX, 2), np.float32)
    for number, map_ in enumerate(told.maps[:AFFINE_COUNT]):
        np.add(GRID @ map_[:, :2].T, map_[:, 2], out=grids[number])
    grids[AFFINE_COUNT:MAP_COUNT] = mesh[0]
    for reference in (1, 2, 3):
        own = told.tile == reference
        grids[MAP_COUNT][own] = GRID[own] @ head[reference, :, :2].T + head[reference, :, 2]
        grids[MAP_COUNT + 1][own] = mesh[reference, 0][own]
        grids[MAP_COUNT + 2][own] = mesh[reference, 1][own]
    return Conditioning(told.raster, told.maps, told.weights, told.tile, told.detail, grids)
