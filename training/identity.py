"""Whose face it is: a picture and its landmarks -> an embedding, to check an avatar against the photos.

Two independent networks, so that one may judge what the other has steered: `SFace` (free for any use) and
`ArcFace` (for measuring only: its licence is non-commercial research). Both look at the face alone, moved by
a similarity transform to where ArcFace's pictures have eyes, nose and mouth (Deng et al., CVPR 2019).
"""

from __future__ import annotations

from typing import ClassVar

import cv2
import numpy as np
from numpy.typing import NDArray

from engine.backends.openvino import core
from engine.frames import Image, Points
from training.fetch import fetch

ALIGNED_PX = 112
TEMPLATE = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]],
    np.float32,
)
"""Right eye, left eye, tip of the nose, right and left corner of the mouth, in pixels; the person's right."""

_FIVE = ((33, 133), (362, 263), (1, 4), (61,), (291,))
"""The landmarks whose mean is each of the five. An eye is where its corners are: the iris looks around."""


def five_points(points: Points) -> NDArray[np.float32]:
    """`[5, 2]` pixels, in the order of `TEMPLATE`, of a face of `[478, 3]`."""
    return np.stack([points[list(group), :2].mean(axis=0) for group in _FIVE]).astype(np.float32)


def similarity_transform(source: NDArray[np.float32], target: NDArray[np.float32]) -> NDArray[np.float64]:
    """`[2, 3]`: the turn, scale and shift that bring `source` `[n, 2]` nearest to `target` (Umeyama, 1991).

    In the plane, a turn with a scale is one complex factor, and the least squares have one line.
    """
    here, there = (points[:, 0].astype(np.float64) + 1j * points[:, 1] for points in (source, target))
    from_middle = here - here.mean()
    spread = np.vdot(from_middle, from_middle).real
    if spread == 0:
        raise ValueError("a face whose points all lie in one place cannot be aligned")
    factor = np.vdot(from_middle, there - there.mean()) / spread
    shift = there.mean() - factor * here.mean()
    return np.array([[factor.real, -factor.imag, shift.real], [factor.imag, factor.real, shift.imag]])


def align(rgb: Image, points: Points) -> Image:
    """`[112, 112, 3]` uint8 RGB: the face of `points` (`[478, 3]`, pixels of `rgb`) put on `TEMPLATE`."""
    five = five_points(points)
    matrix = similarity_transform(five, TEMPLATE)
    scale = float(np.hypot(matrix[0, 0], matrix[1, 0]))
    if scale < 0.5:  # two pixels of the picture and more make one: average them first
        size = [max(1, round(side * scale * 1.5)) for side in rgb.shape[1::-1]]
        factor = np.array(size, np.float32) / rgb.shape[1::-1]
        rgb = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA).astype(np.uint8)
        matrix = similarity_transform((five + 0.5) * factor - 0.5, TEMPLATE)
    return cv2.warpAffine(rgb, matrix, (ALIGNED_PX, ALIGNED_PX), flags=cv2.INTER_LINEAR).astype(np.uint8)


class _Embedder:
    """One network on the CPU, loaded (and the first time fetched) when it is made; not shared by threads."""

    helper: ClassVar[str]
    same_person: ClassVar[float]
    """Where 4 % of pairs are judged wrongly either way, on 392 pictures of 56 invented people (who drift from
    picture to picture more than real ones do)."""
    shift: ClassVar[float]
    scale: ClassVar[float]

    def __init__(self) -> None:
        network = core().read_model(fetch(self.helper))
        network.reshape([1, 3, ALIGNED_PX, ALIGNED_PX])
        self._compiled = core().compile_model(network, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def embed(self, rgb: Image, points: Points) -> NDArray[np.float32]:
        """`[n]` float32 of length one: `a @ b` is near 1 for one person and near 0 for two."""
        return self.embed_aligned(align(rgb, points))

    def embed_aligned(self, face: Image) -> NDArray[np.float32]:
        """The same for a face that `align` has cut out, `[112, 112, 3]`."""
        if face.shape != (ALIGNED_PX, ALIGNED_PX, 3):
            raise ValueError(f"an aligned face is [112, 112, 3], not {list(face.shape)}")
        picture = (face.transpose(2, 0, 1)[None].astype(np.float32) - self.shift) * self.scale
        embedding = np.asarray(self._compiled(picture)[0], np.float32).reshape(-1)
        return embedding / max(float(np.linalg.norm(embedding)), 1e-12)


class SFace(_Embedder):
    """128 numbers; Apache-2.0. Zhong et al., "SFace", IEEE TIP 2021."""

    helper = "sface"
    same_person = 0.42
    shift, scale = 0.0, 1.0


class ArcFace(_Embedder):
    """512 numbers; a MobileFaceNet trained with ArcFace. Non-commercial research only: never ship it."""

    helper = "w600k_mbf"
    same_person = 0.31
    shift, scale = 127.5, 1 / 127.5
