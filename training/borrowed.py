"""Shut eyes, teeth and an open mouth for a person whose photos show none, borrowed from people who do not exist.

Warping cannot make what no photo shows, and the network of this base paints it badly. So the missing picture is made at
enrolment: the person's own photo is bent to the landmarks of the expression, and the inside of the mouth, or the lids,
are those of the donor whose skin is most alike, brought into place by a thin-plate spline (Bookstein 1989) and into
colour by the two skins' difference, or by Poisson blending (Perez et al. 2003). The reference says that it borrows: it
serves the mouth or the eyes and nothing else, and a photo of the person's own that shows the same comes first.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import RBFInterpolator

from engine import geometry
from engine.avatar import Reference
from engine.frames import Face, Image, Points
from engine.motion import HeadFace, to_head, transfer_shape
from engine.tracker import canonical_face, fit_pose
from training.photos import GRAY

DONORS = Path(__file__).parent / "assets" / "donors"
EXPRESSIONS = {"eyes shut": "eyes", "teeth": "mouth", "mouth open": "mouth"}
"""What can be borrowed, and the zone it serves."""
_SHUT = 0.55  # of the widest lids: a photo below shows a shut eye
_PARTED, _OPEN = 0.3, 0.9  # of `geometry.describe`'s mouth: teeth are to be seen, the inside is
_LIDS = (
    (geometry.EYE_RIGHT, [247, 30, 29, 27, 28, 56, 190, 243, 112, 26, 22, 23, 24, 110, 25, 130]),
    (geometry.EYE_LEFT, [467, 260, 259, 257, 258, 286, 414, 463, 341, 256, 252, 253, 254, 339, 255, 359]),
)
"""Each eye's outline and the ring of the mesh around it."""
_AROUND = (
    [113, 225, 224, 223, 222, 221, 189, 244, 233, 232, 231, 230, 229, 228, 31, 226],
    [342, 445, 444, 443, 442, 441, 413, 464, 453, 452, 451, 450, 449, 448, 261, 446],
)
"""The next ring: it stays where it is."""
_LIPS = sorted({*geometry.LIPS_INNER, *geometry.LIPS_OUTER})
_SOFT = 30.0
"""Stiffness of the bent photo: landmarks of lips tremble, and an outline must not."""
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Donor:
    """Somebody who does not exist, at rest and in one expression."""

    rgb: Image
    rest: Points
    """In pixels of a picture of the same size as `rgb`, which is not kept."""
    points: Points
    tone: Floats
    """`skin_tone` of it."""


@dataclass(frozen=True, slots=True, eq=False)
class Borrowed:
    expression: str
    reference: Reference


@functools.cache
def donors(expression: str, folder: Path = DONORS) -> tuple[Donor, ...]:
    """Everybody who can lend it."""
    known = np.load(folder / "points.npz")
    found = []
    for path in sorted(folder.glob(f"*-{expression.replace(' ', '-')}.jpg")):
        rgb = np.asarray(cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB), np.uint8)
        rest, points = known[path.stem.split("-")[0]], known[path.stem]
        found.append(Donor(rgb, rest, points, skin_tone(rgb, points)))
    return tuple(found)


def missing(told: Sequence[dict[str, Floats]]) -> list[str]:
    """The `EXPRESSIONS` that none of the photos shows, by what `geometry.describe` says of each."""
    lids = np.array([one["eyes"][:2].mean() for one in told])
    opening = max(float(one["mouth"][0]) for one in told)
    lacking = {"eyes shut": lids.min() >= _SHUT * lids.max(), "teeth": opening < _PARTED, "mouth open": opening < _OPEN}
    return [name for name, lacks in lacking.items() if lacks]


def borrow(references: Sequence[Reference]) -> list[Borrowed]:
    """References for what these, the person's own, do not show."""
    told = [geometry.describe(one.points) for one in references]
    wanted = missing(told)
    if not wanted:
        return []
    lids = np.array([one["eyes"][:2].mean() for one in told])
    turned = np.array([np.linalg.norm(one["rest"]) + 0.3 * float(one["mouth"][0]) for one in told])
    plain = references[int(np.where(lids >= 0.75 * lids.max(), turned, np.inf).argmin())]
    tone = skin_tone(plain.rgb, plain.points)
    gray = float(np.hypot(*(tone[1:] - 128))) < GRAY
    lent = []
    for expression in wanted:
        donor = min(donors(expression), key=lambda one: float(np.linalg.norm((one.tone - tone) * [0.5, 1, 1])))
        made = _eyes(plain, donor, tone) if EXPRESSIONS[expression] == "eyes" else _mouth(plain, donor, tone)
        if gray:
            levels = cv2.cvtColor(made.rgb, cv2.COLOR_RGB2GRAY)
            made = replace(made, rgb=np.asarray(cv2.cvtColor(levels, cv2.COLOR_GRAY2RGB), np.uint8))
        lent.append(Borrowed(expression, made))
    return lent


def skin_tone(rgb: Image, points: Points) -> Floats:
    """Mean colour of the face without lips and eyes, CIELAB of OpenCV's bytes, `[3]`."""
    skin = _filled(points, geometry.OVAL, len(rgb))
    for part in (geometry.LIPS_OUTER, geometry.EYE_RIGHT, geometry.EYE_LEFT, geometry.BROW_RIGHT, geometry.BROW_LEFT):
        hull = cv2.convexHull(np.round(points[part, :2]).astype(np.int32))
        cv2.fillConvexPoly(skin, hull, [0])
    lab = cv2.cvtColor(rgb, cv2.COLOR_RGB2LAB)[skin > 127]
    return np.asarray(np.median(lab.astype(np.float32), 0), np.float32)


def _eyes(plain: Reference, donor: Donor, tone: Floats) -> Reference:
    """Only the lids move, and they are the donor's. `tone`: the `skin_tone` of `plain`."""
    size = len(plain.rgb)
    goal = plain.points.copy()
    asked = _expression(plain, donor)
    rgb = plain.rgb
    shift = tone - donor.tone
    for (outline, ring), around in zip(_LIDS, _AROUND, strict=True):
        goal[outline], goal[ring] = asked[outline], asked[ring]
        marks = [*outline, *ring, *around]
        lids = _tinted(_warped(donor.rgb, _spline(donor.points[marks], goal[marks], size)), shift)
        mask = cv2.erode(_filled(goal, around, size), np.ones((5, 5), np.uint8))
        left, top, width, height = cv2.boundingRect(mask)
        place = (left + width // 2, top + height // 2)
        rgb = np.asarray(cv2.seamlessClone(lids, rgb, mask, place, cv2.NORMAL_CLONE), np.uint8)
    goal[geometry.IRIS_RIGHT] += (goal[145] - plain.points[145]) / 2
    goal[geometry.IRIS_LEFT] += (goal[374] - plain.points[374]) / 2
    return _reference(plain, rgb, plain.matte, goal, "eyes")


def _mouth(plain: Reference, donor: Donor, tone: Floats) -> Reference:
    """Lips and jaw are the person's own, bent open; what lies between the lips is the donor's."""
    size = len(plain.rgb)
    height = canonical_face().vertices_cm[:, 1]
    # All of it below the nose, nothing of it above the eyes.
    moved = np.clip((height[168] - height) / (height[168] - height[2]), 0, 1)[:, None].astype(np.float32)
    goal = plain.points.copy()
    goal[:468] += moved * (_expression(plain, donor) - plain.points)[:468]
    edge = _frame(size)
    bent = _spline(np.vstack([plain.points[:468], edge]), np.vstack([goal[:468], edge]), size, _SOFT)
    rgb, matte = _warped(plain.rgb, bent), _warped(plain.matte, bent)
    shift = (tone - donor.tone) * np.array([0.6, 0.3, 0.3], np.float32)
    inside = _tinted(_warped(donor.rgb, _spline(donor.points[_LIPS], goal[_LIPS], size)), shift)
    mask = cv2.dilate(_filled(goal, geometry.LIPS_INNER, size), np.ones((3, 3), np.uint8))
    share = cv2.GaussianBlur(mask, (0, 0), size / 420)[..., None] / np.float32(255)
    mixed = np.round(rgb * (1 - share) + inside * share).astype(np.uint8)
    return _reference(plain, mixed, matte, goal, "mouth")


def _reference(plain: Reference, rgb: Image, matte: NDArray[np.uint8], points: Points, zone: str) -> Reference:
    rotation, translation, scale = fit_pose(points, canonical_face())
    changed = {"rotation": rotation, "translation": translation, "scale": scale, "encoded": (b"", b"")}
    return replace(plain, rgb=rgb, matte=matte, points=points.astype(np.float32), borrowed=zone, **changed)


def _face(points: Points, size: int) -> Face:
    return Face(points, *fit_pose(points, canonical_face()), 1.0, (size, size), 0.0)


def _expression(plain: Reference, donor: Donor) -> Points:
    """The person's landmarks in the donor's expression, `[478, 3]` in pixels of the photo."""
    own = HeadFace(to_head(_face(plain.points, len(plain.rgb))).shape, plain.rotation, plain.translation, plain.scale)
    rest, now = (to_head(_face(points, len(donor.rgb))).shape for points in (donor.rest, donor.points))
    return replace(own, shape=transfer_shape(now, rest, own.shape)).to_picture()


def _spline(source: Points, goal: Points, size: int, stiffness: float = 0.5, step: int = 4) -> Floats:
    """Where each pixel of the goal looks in the source, `[size, size, 2]`: a thin-plate spline, coarse and enlarged."""
    line = np.arange(0, size + step, step, dtype=np.float64)
    places = np.stack(np.meshgrid(line, line), -1).reshape(-1, 2)
    bend = RBFInterpolator(goal[:, :2], source[:, :2] - goal[:, :2], smoothing=stiffness, kernel="thin_plate_spline")
    coarse = bend(places).reshape(len(line), len(line), 2).astype(np.float32)
    pixels = np.arange(size, dtype=np.float32) + 0.5
    across, down = np.meshgrid(pixels, pixels)
    bent = np.asarray(cv2.remap(coarse, across / step, down / step, cv2.INTER_LINEAR), np.float32)
    return bent + np.dstack([across, down])


def _warped(picture: NDArray[np.uint8], places: Floats) -> NDArray[np.uint8]:
    half = np.float32(0.5)
    across, down = places[..., 0] - half, places[..., 1] - half
    return np.asarray(cv2.remap(picture, across, down, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE), np.uint8)


def _tinted(rgb: Image, shift: Floats) -> Image:
    lab = cv2.cvtColor(rgb, cv2.COLOR_RGB2LAB).astype(np.float32)
    # Light is a factor, not a sum: what is dark in the mouth stays dark.
    lab[..., 0] *= np.clip(1 + shift[0] / 150, 0.6, 1.4)
    lab[..., 1:] += shift[1:]
    return np.asarray(cv2.cvtColor(np.clip(np.round(lab), 0, 255).astype(np.uint8), cv2.COLOR_LAB2RGB), np.uint8)


def _filled(points: Points, outline: Sequence[int], size: int) -> NDArray[np.uint8]:
    """`[size, size]`, 255 inside, with a soft edge."""
    mask = np.zeros((size, size), np.uint8)
    corners = np.round((points[list(outline), :2] - 0.5) * 16).astype(np.int32)
    cv2.fillPoly(mask, [corners], [255], cv2.LINE_AA, 4)
    return mask


def _frame(size: int) -> Points:
    """Points along the picture's edges, which stay."""
    line = np.linspace(0, size, 9)
    none, full = np.zeros_like(line), np.full_like(line, size)
    ends = np.concatenate([np.stack(pair, 1) for pair in ((line, none), (line, full), (none, line), (full, line))])
    return np.hstack([np.unique(ends, axis=0), np.zeros((32, 1))]).astype(np.float32)


# --- making the donors --------------------------------------------------------------------------------------

_STATES = {
    "teeth": {"open": 0.075, "width": 0.44},
    "mouth open": {"open": 0.15, "width": 0.36},
    "eyes shut": {"lids": 0.010},
}
_DONOR_PX = 352
_SEEDS = (310, 383, 336, 303, 393, 202, 360, 317)


def square_of(rgb: Image, left: int, top: int, side: int) -> Image:
    """A square of a picture; what lies outside of it repeats its edge."""
    height, width = rgb.shape[:2]
    room = max(0, -left, -top, left + side - width, top + side - height)
    around = cv2.copyMakeBorder(rgb, room, room, room, room, cv2.BORDER_REPLICATE)
    return np.asarray(around[top + room :, left + room :][:side, :side], np.uint8)


def main(arguments: list[str] | None = None) -> None:
    """`python -m training.borrowed`: the donors that ship, out of `training.invent`."""
    from training import invent

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=DONORS)
    parser.add_argument("--seeds", type=int, nargs="*", default=_SEEDS, help="numbers of people (training.invent)")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    studio = invent.Studio.ready()
    known: dict[str, Points] = {}
    for seed in options.seeds:
        shots = dict(zip(("rest", *_STATES), studio.photos(seed, ({}, *_STATES.values())), strict=True))
        corners = np.vstack([shot.points[geometry.OVAL, :2] for shot in shots.values()])
        middle = (corners.min(0) + corners.max(0)) / 2
        side = float(np.ptp(corners, axis=0).max()) * 1.1
        left, top = np.round((middle - side / 2) * 2).astype(int)  # points count in pixels of half the size
        for name, shot in shots.items():
            points = (shot.points * 2 - np.array([left, top, 0], np.float32)) * np.float32(_DONOR_PX / (2 * side))
            stem = f"{seed}-{name.replace(' ', '-')}"
            known[f"{seed}" if name == "rest" else stem] = points.astype(np.float32)
            if name != "rest":
                inside = square_of(shot.rgb, left, top, round(2 * side))
                small = cv2.resize(inside, (_DONOR_PX, _DONOR_PX), interpolation=cv2.INTER_AREA)
                path = options.out / f"{stem}.jpg"
                cv2.imwrite(str(path), small[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])
    np.savez_compressed(options.out / "points.npz", **known)


if __name__ == "__main__":
    main()
