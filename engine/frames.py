"""What crosses the border between two stages: a picture (`Frame`) and a tracked face (`Face`)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
"""A picture, `[H, W, 3]` uint8, RGB unless a name says otherwise."""

Points = NDArray[np.float32]
"""Landmarks, `[478, 3]` float32: x right, y down, z away from the camera, all in pixels of the frame.

Places count from the picture's edge, as MediaPipe's do: the middle of the first pixel is at 0.5, the right edge at W.
"""

POINT_COUNT = 478


@dataclass(frozen=True, slots=True)
class Frame:
    """A picture and the moment it was taken."""

    rgb: Image
    time_s: float


@dataclass(frozen=True, slots=True, eq=False)
class Face:
    """One tracked face.

    `points` are MediaPipe's 468 mesh points followed by ten iris points (`Points`).
    The pose maps the canonical face model (centimetres, y up, z towards the camera) onto the
    first 468 points under weak perspective: `points ~ scale * canonical @ rotation.T + translation`,
    where `rotation` is a proper `[3, 3]` rotation *from canonical axes to image axes* (so a frontal
    face has `diag(1, -1, -1)`), `translation` is `[3]` pixels and `scale` is pixels per centimetre.
    """

    points: Points
    rotation: NDArray[np.float32]
    translation: NDArray[np.float32]
    scale: float
    visibility: float
    """0 (guessed) to 1 (sure): how far the tracker trusts this face."""
    size_px: tuple[int, int]
    """Width and height of the frame in which the face was tracked."""
    time_s: float
    """Capture time of the frame, seconds on the source's own clock."""


@dataclass(frozen=True, slots=True)
class NoFace:
    """The tracker looked and found nobody."""

    time_s: float
