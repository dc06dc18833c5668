"""Pictures and what they should have been -> numbers: every measure behind the tables of `training.evaluate`."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from engine import geometry
from engine.frames import Face, Frame, Image, Points
from engine.tracker import Tracker, euler_deg
from training.identity import ArcFace
from training.matte import Matte, Matter
from training.networks.inception import Inception
from training.networks.perceptual import LPIPS

Floats = NDArray[np.floating[Any]]

# --- where things are ---

# fmt: off
SIXTY_EIGHT = [
    162, 234, 93, 58, 172, 136, 149, 148, 152, 377, 378, 365, 397, 288, 323, 454, 389, 71, 63, 105, 66, 107, 336,
    296, 334, 293, 301, 168, 197, 5, 4, 75, 97, 2, 326, 305, 33, 160, 158, 133, 153, 144, 362, 385, 387, 263, 373,
    380, 61, 39, 37, 0, 267, 269, 291, 405, 314, 17, 84, 181, 78, 82, 13, 312, 308, 317, 14, 87,
]
# fmt: on
SUBSETS = {
    "points": list(range(478)),
    "points68": SIXTY_EIGHT,
    "lips": geometry.LIPS_OUTER + geometry.LIPS_INNER,
    "lids": geometry.EYE_RIGHT + geometry.EYE_LEFT,
}


_LIP_PAIRS = list(zip(geometry.LIPS_INNER[1:10], reversed(geometry.LIPS_INNER[11:]), strict=True))
_EYES = (
    (33, 133, geometry.IRIS_RIGHT[0], geometry.EYE_RIGHT),
    (362, 263, geometry.IRIS_LEFT[0], geometry.EYE_LEFT),
)
"""Two corners (the left one in the picture first), middle of the iris, outline."""
_SHUT = 0.12
"""Lids nearer to each other than this share of the eye's width hide the iris."""


def _apart(points: Points, one: int, other: int) -> float:
    return float(np.linalg.norm(points[one, :2] - points[other, :2]))


def landmark_errors(found: Points, driving: Points) -> dict[str, float]:
    """Mean distance in the picture for each of `SUBSETS`, % of the driver's distance between outer eye corners."""
    unit = float(np.linalg.norm(driving[33, :2] - driving[263, :2]))
    apart = np.linalg.norm(found[:, :2] - driving[:, :2], axis=1) * (100 / unit)
    return {name: float(apart[members].mean()) for name, members in SUBSETS.items()}


def mouth_opening(points: Points) -> float:
    """Mean gap of the inner lips, % of the face's own distance between outer eye corners."""
    return 100 * float(np.mean([_apart(points, *pair) for pair in _LIP_PAIRS])) / _apart(points, 33, 263)


def lid_openings(points: Points) -> tuple[float, float]:
    """Mean gap of the lids, % of the eye's own width: right eye, left eye."""
    openings = []
    for left, right, _, outline in _EYES:
        pairs = zip(outline[1:8], reversed(outline[9:]), strict=True)
        openings.append(100 * float(np.mean([_apart(points, *pair) for pair in pairs])) / _apart(points, left, right))
    return openings[0], openings[1]


def gaze(points: Points) -> Floats:
    """Where the irises stand between the corners of their eyes: `[2, 2]`, along and across each, % of its width."""
    stand = np.empty((2, 2))
    for row, (left, right, iris, _) in zip(stand, _EYES, strict=True):
        along = (points[right, :2] - points[left, :2]).astype(np.float64)
        width = float(np.linalg.norm(along))
        off = points[iris, :2] - (points[left, :2] + points[right, :2]) / 2
        row[:] = off @ along, off[1] * along[0] - off[0] * along[1]
        row *= 100 / width**2
    return stand


def gaze_error(found: Points, driving: Points) -> float | None:
    """How far the irises stand from where they should, % of the eye's width: mean over eyes that are open."""
    seen = np.minimum(lid_openings(driving), lid_openings(found)) >= 100 * _SHUT
    if not seen.any():
        return None
    return float(np.linalg.norm(gaze(found) - gaze(driving), axis=1)[seen].mean())


def turn_deg(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """The angle between two rotations `[3, 3]`."""
    cosine = (float(np.trace(one.astype(np.float64) @ other.T)) - 1) / 2
    return float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))


def motion_errors(found: Face, driving: Face) -> dict[str, float]:
    """Everything the tracker can say about how well `found` follows `driving`."""
    errors = landmark_errors(found.points, driving.points)
    errors["pose"] = turn_deg(found.rotation, driving.rotation)
    errors["mouth_gap"] = abs(mouth_opening(found.points) - mouth_opening(driving.points))
    lids = np.subtract(lid_openings(found.points), lid_openings(driving.points))
    errors["lid_gap"] = float(np.abs(lids).mean())
    if (looked := gaze_error(found.points, driving.points)) is not None:
        errors["gaze"] = looked
    return errors


STANCE = ("yaw", "pitch", "mouth", "lids")


def stance(face: Face) -> dict[str, float]:
    """What a face does that another face can do too: turn (degrees), mouth and lids (%, of its own measures)."""
    yaw_deg, pitch_deg, _ = euler_deg(face.rotation)
    openings = mouth_opening(face.points), float(np.mean(lid_openings(face.points)))
    return dict(zip(STANCE, (yaw_deg, pitch_deg, *openings), strict=True))


_LEAST_SPREAD = {"yaw": 2.0, "pitch": 2.0, "mouth": 1.0, "lids": 2.0}


def following(shown: Sequence[dict[str, float]], driving: Sequence[dict[str, float]]) -> dict[str, float]:
    """Pearson's correlation of `stance` over the frames, where the driver moved enough for one to mean something."""
    told = {}
    for key in STANCE:
        one, other = (np.array([frame[key] for frame in frames], np.float64) for frames in (shown, driving))
        if len(one) >= 5 and other.std() >= _LEAST_SPREAD[key] and one.std() > 0:
            told[f"follows {key}"] = float(np.corrcoef(one, other)[0, 1])
    return told


# --- how pictures look ---


def ssim(picture: Image, other: Image) -> float:
    """Structural similarity (Wang et al. 2004) of the luma (BT.601): Gaussian 11 x 11 of sigma 1.5, inside the rim."""
    one, two = (cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY).astype(np.float64) for rgb in (picture, other))

    def local(values: Floats) -> Floats:
        return np.asarray(cv2.GaussianBlur(values, (11, 11), 1.5)[5:-5, 5:-5], np.float64)

    mean_one, mean_two = local(one), local(two)
    both = local(one * two) - mean_one * mean_two
    spread_one, spread_two = local(one * one) - mean_one**2, local(two * two) - mean_two**2
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    alike = (2 * mean_one * mean_two + c1) * (2 * both + c2)
    return float((alike / ((mean_one**2 + mean_two**2 + c1) * (spread_one + spread_two + c2))).mean())


def flicker(before: Image, now: Image, truth_before: Image, truth_now: Image) -> float:
    """How much pixels change from one frame to the next beyond what the truth changes within 4 px, levels of 255."""
    change = np.abs(now.astype(np.int16) - before).max(-1).astype(np.uint8)
    due = np.abs(truth_now.astype(np.int16) - truth_before).max(-1).astype(np.uint8)
    return float(cv2.subtract(change, cv2.dilate(due, np.ones((9, 9), np.uint8))).mean())


def restlessness(before: Image, now: Image, after: Image, person: Matte) -> float:
    """What no steady movement explains: mean |x(t-1) - 2 x(t) + x(t+1)| of the luma over the person, levels of 255.

    The temporal second difference. A real video has some of it too (noise, blinks, changes of speed); what counts is
    how many times that a drawn one has.
    """
    luma = [cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY).astype(np.float32) for rgb in (before, now, after)]
    weight = person.astype(np.float32)
    return float((np.abs(luma[0] - 2 * luma[1] + luma[2]) * weight).sum() / max(float(weight.sum()), 1.0))


def perceptual_distances(
    heads: Sequence[Tensor], features: Sequence[Tensor], person: Tensor
) -> tuple[list[float], list[float]]:
    """LPIPS (Zhang et al. 2018, eq. 1) of a batch's pictures from its first: over all, and over `person` alone.

    `features` as `LPIPS.features` gives them, `person` `[1, 1, S, S]` in 0..1. The second averages the same differences
    with the mask as weight, at each layer's own size.
    """
    count = len(features[0]) - 1
    whole, inside = torch.zeros(count), torch.zeros(count)
    for head, layer in zip(heads, features, strict=True):
        unit = F.normalize(layer, dim=1)
        apart = ((unit[1:] - unit[:1]) ** 2 * head).sum(1)
        weight = F.interpolate(person, size=apart.shape[-2:], mode="area")[0]
        whole += apart.mean((1, 2))
        inside += (apart * weight).sum((1, 2)) / weight.sum().clamp(min=1e-6)
    return whole.tolist(), inside.tolist()


# --- two sets of pictures ---


def frechet_distance(one: Floats, two: Floats) -> float:
    """FID (Heusel et al. 2017, eq. 6) of features `[N, D]` and `[M, D]`: two Gaussians' Frechet distance.

    With the centred features A and B (divided by the root of their count less one) the trace of the root of the
    product of the covariances is the sum of the singular values of A B': exact, also for fewer pictures than features.
    Where there are more, A and B give way to the triangles of their QR decompositions, which have the same products.
    """
    one, two = one.astype(np.float64), two.astype(np.float64)
    centred = [(rows - rows.mean(0)) / np.sqrt(len(rows) - 1) for rows in (one, two)]
    apart = float(((one.mean(0) - two.mean(0)) ** 2).sum())
    centred = [_triangle(rows) if len(rows) > rows.shape[1] else rows for rows in centred]
    shared = float(np.linalg.svd(centred[0] @ centred[1].T, compute_uv=False).sum())
    return apart + float((centred[0] ** 2).sum() + (centred[1] ** 2).sum()) - 2 * shared


def _triangle(rows: Floats) -> Floats:
    return np.asarray(np.linalg.qr(rows, "r"), np.float64)


def kernel_distance(one: Floats, two: Floats) -> float:
    """KID (Binkowski et al. 2018): unbiased squared MMD with the kernel (x'y / D + 1)^3, over all pictures at once."""
    one, two = one.astype(np.float64), two.astype(np.float64)

    def kernel(rows: Floats, columns: Floats) -> Floats:
        return (rows @ columns.T / rows.shape[1] + 1) ** 3

    within = 0.0
    for rows in (one, two):
        values = kernel(rows, rows)
        within += float((values.sum() - np.trace(values)) / (len(rows) * (len(rows) - 1)))
    return within - 2 * float(kernel(one, two).mean())


# --- the networks that measure ---


class Judge:
    """The networks that measure, the large ones loaded when they are first asked; one thread."""

    def __init__(self) -> None:
        self._arcface = ArcFace()
        self._tracker = Tracker(video=True)
        self._matter = Matter()

    @functools.cached_property
    def _lpips(self) -> LPIPS:
        return LPIPS("vgg").eval()

    @functools.cached_property
    def _inception(self) -> Inception:
        return Inception().eval()

    def _track(self, rgb: Image) -> Face | None:
        """Three looks, each where the last one found the face: as steady as in a stream (1.4 % -> 0.5 %)."""
        self._tracker.reset()
        looks = [self._tracker.track(Frame(rgb, 0.0)) for _ in range(3)]
        return looks[-1] if isinstance(looks[-1], Face) else None

    def identity(self, rgb: Image, points: Points) -> NDArray[np.float32]:
        """ArcFace embedding, `[512]` of length one."""
        return self._arcface.embed(rgb, points)

    def matte(self, rgb: Image) -> Matte:
        return self._matter.matte(rgb)

    def describe(self, pictures: Sequence[Image]) -> NDArray[np.float32]:
        """Inception features, `[N, 2048]`."""
        return self._inception.describe(pictures)

    def likeness(self, truth: Image, pictures: dict[str, Image], person: Matte) -> dict[str, dict[str, float]]:
        """How far each picture is from the true frame, whoever is in it."""
        stacked = torch.from_numpy(np.stack([truth, *pictures.values()])).permute(0, 3, 1, 2).float() / 127.5 - 1
        with torch.inference_mode():
            features: list[Tensor] = self._lpips.features(stacked)
            weight = torch.from_numpy(person)[None, None].float() / 255
            distances = perceptual_distances(list(self._lpips.heads), features, weight)
        return {
            name: {"lpips": whole, "lpips_person": inside, "ssim": ssim(picture, truth)}
            for (name, picture), whole, inside in zip(pictures.items(), *distances, strict=True)
        }

    def face(
        self, picture: Image, asked: Face, enrolled: NDArray[np.float32], true: NDArray[np.float32] | None
    ) -> tuple[dict[str, float], dict[str, float] | None]:
        """Identity and motion of the face in a picture, and its `stance`; ({"lost": 1}, None) where there is no face.

        `enrolled` `[P, 512]` are the person's photos, `true` `[512]` the true frame. CSIM (Zakharov et al. 2019): the
        cosine to the mean of the photos, and to the best of them.
        """
        found = self._track(picture)
        if found is None:
            return {"lost": 1.0}, None
        embedded = self.identity(picture, found.points)
        mean = enrolled.mean(0)
        told = {"lost": 0.0, "csim": float(embedded @ mean / np.linalg.norm(mean))}
        told["csim_best"] = float((enrolled @ embedded).max())
        if true is not None:
            told["identity"] = float(embedded @ true)
        return told | motion_errors(found, asked), stance(found)

    def close(self) -> None:
        self._tracker.close()
        self._matter.close()
