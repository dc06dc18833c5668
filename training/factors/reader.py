"""What a picture's face does, as numbers, differentiable: a small network taught by the tracker.

The paper compares poses and expressions of a 3D face reconstruction and features of an emotion network (EMOCA, section
3.2, L_mot). Neither may be used by everybody; here a network of our own reads what the tracker and
`engine.geometry.describe` say, and its last features stand beside them. `Reader` is all that the losses ask for, so
that another one can take its place.
"""

from __future__ import annotations

from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from engine import geometry
from engine.frames import Points
from engine.tracker import canonical_face, fit_pose
from training.factors.networks import FactorOptions, ResNeXt

CONTOUR = sorted(
    {
        *geometry.LIPS_OUTER,
        *geometry.LIPS_INNER,
        *geometry.EYE_LEFT,
        *geometry.EYE_RIGHT,
        *geometry.BROW_LEFT,
        *geometry.BROW_RIGHT,
        *geometry.IRIS_LEFT,
        *geometry.IRIS_RIGHT,
        *geometry.NOSE,
        *geometry.OVAL,
    }
)
"""The points that are read."""
MEASURES = 6 + 3 + 5 + 4
"""Pose, and `describe`'s rest, eyes (lids, gaze, brows) and mouth."""
READINGS = MEASURES + 2 * len(CONTOUR)


def readings(points: Points, size_px: int) -> NDArray[np.float32]:
    """What the tracker says of a face, `[READINGS]`, each about -1..1: `[:6]` the pose, `[6:MEASURES]` what
    `engine.geometry.describe` gives, and then the contours' places in crop units. `points` in pixels."""
    told = geometry.describe(points)
    measures = np.concatenate([told["rest"], told["eyes"], told["mouth"]]) / 3
    places = geometry.to_crop_units(points, size_px)[CONTOUR, :2].ravel()
    return np.concatenate([pose_numbers(points, size_px), measures, places]).astype(np.float32)


def pose_numbers(points: Points, size_px: int) -> NDArray[np.float32]:
    """Six numbers of the 3D prior, each about -1..1: `engine.tracker.fit_pose` as a rotation vector in radians against
    a frontal face, the place in crop units, and the logarithm of the size."""
    rotation, translation, scale = fit_pose(points, canonical_face())
    turn, _ = cv2.Rodrigues(rotation.astype(np.float64) @ np.diag([1.0, -1.0, -1.0]))
    place = translation[:2] * (2 / size_px) - 1
    return np.array([*turn[:, 0], *place, np.log(scale * 32 / size_px)], np.float32)


class Reader(Protocol):
    """Reads faces; gradients flow into the pictures."""

    def __call__(self, rgb: Tensor) -> tuple[Tensor, Tensor]:
        """`[N, 3, S, S]` in -1..1 -> numbers `[N, R]` of about unit scale, and features `[N, F]` of any scale."""
        ...


class FaceReader(nn.Module):
    """The reader that is taught here."""

    def __init__(self, options: FactorOptions) -> None:
        super().__init__()
        self.options = options
        self.trunk = ResNeXt((1, 1, 1, 1), options.reader_width, 1)
        self.feature = nn.Sequential(
            nn.Linear(self.trunk.channels * 4, options.reader_feature), nn.LayerNorm(options.reader_feature), nn.ReLU()
        )
        self.numbers = nn.Linear(options.reader_feature, READINGS)

    def forward(self, rgb: Tensor) -> tuple[Tensor, Tensor]:
        seen = F.adaptive_avg_pool2d(self.trunk(rgb), 2)  # four quarters: where things are is wanted
        feature = self.feature(seen.flatten(1))
        return self.numbers(feature).float(), feature


def reading_loss(numbers: Tensor, wanted: Tensor) -> Tensor:
    """L1 with the tracker's numbers, `[N, READINGS]` both: pose, measures and points count the same, however many."""
    off = (numbers - wanted).abs()
    return (off[:, :6].mean() + off[:, 6:MEASURES].mean() + off[:, MEASURES:].mean()) / 3
