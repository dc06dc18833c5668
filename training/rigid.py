"""A photo as a rigid head, turned: what the tracker makes of turning alone, with no network between.

The photo is laid over the tracked points' own mesh, which turns as one piece; the rest of the picture follows the
head's similarity in the plane. Lids, gaze, mouth and brows keep still in the head by construction, so that whatever the
tracker reads there is its own.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from engine import geometry
from engine.avatar import Reference
from engine.frames import Face, Image, Points
from engine.motion import HeadFace, to_head
from engine.tracker import canonical_face

Floats = NDArray[np.float32]
_NO_MAP = np.empty(0, np.float32)
_LEAST_AREA = 0.2


def posed_like(photo: Reference, face: Face) -> Points:
    """`[478, 3]` pixels of the face's picture: the photo's head, its shape unchanged, where the face is."""
    size = (photo.rgb.shape[1], photo.rgb.shape[0])
    own = to_head(Face(photo.points, photo.rotation, photo.translation, photo.scale, 1.0, size, 0.0))
    return HeadFace(own.shape, face.rotation, face.translation, face.scale).to_picture()


def rigid_picture(photo: Reference, face: Face, size_px: int) -> Image:
    """`[size_px, size_px, 3]`: the photo's head turned and placed as `face` is, pixels of `size_px`."""
    target, side = posed_like(photo, face), photo.rgb.shape[0]
    triangles = canonical_face().triangles.astype(np.intp)
    to, source = target[triangles, :2].astype(np.float64), photo.points[triangles, :2].astype(np.float64)
    ways, back = np.concatenate([to, np.ones((*to.shape[:2], 1))], 2), _areas(source)
    area = _areas(to)
    shown = np.flatnonzero((area * back > 0) & (np.abs(area) > _LEAST_AREA))
    maps = np.linalg.solve(ways[shown], source[shown])
    owner = np.full((size_px, size_px), -1, np.int16)
    far_first = np.argsort(-target[triangles[shown], 2].mean(1))
    corners = np.round((to[shown] - 0.5) * 16).astype(np.int32)
    for number in far_first:
        cv2.fillConvexPoly(owner, corners[number], [int(number)], cv2.LINE_8, 4)
    line = np.arange(size_px) + 0.5
    places = np.stack([*np.meshgrid(line, line), np.ones((size_px, size_px))], -1)
    crop, own = geometry.to_crop_units(target, size_px), geometry.to_crop_units(photo.points, side)
    head = geometry.head_similarity(crop, own[None])[0]
    found = (places[..., :2] * (2 / size_px) - 1) @ head[:, :2].T + head[:, 2]
    found = (found + 1) * (side / 2)
    inside = owner >= 0
    found[inside] = np.einsum("pi,pij->pj", places[inside], maps[owner[inside]])
    looked = cv2.remap(
        photo.rgb, (found - 0.5).astype(np.float32), _NO_MAP, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    return np.asarray(looked, np.uint8)


def _areas(triangles: NDArray[np.float64]) -> NDArray[np.float64]:
    """Twice the signed area of `[T, 3, 2]`."""
    one, two = triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0]
    return one[:, 0] * two[:, 1] - one[:, 1] * two[:, 0]
