"""Frame -> Face: finds a head in a picture, tracks 478 points on it, fits its pose, smooths both over time.

The networks are MediaPipe's (BlazeFace detectors, Attention Mesh), taken from inside its wheel. The graph
that `mp.solutions.face_mesh` builds is not used as a whole: it detects only with the short-range detector on
the whole frame, so it misses faces narrower than an eighth of the frame, and it hides the presence score.
Here its two halves are run by hand: detectors where and when they are needed, and the landmark network on an
upright square patch cut around the face, whatever the size of the frame.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import cv2
import numpy as np
from numpy.typing import NDArray

from engine.config import Smoothing
from engine.config import Tracker as TrackerConfig
from engine.frames import POINT_COUNT, Face, Frame, Image, NoFace, Points

_PATCH_PX = 192  # what the landmark network sees
_MARGIN = 1.5  # side of the patch, in sides of the box around the points (as in MediaPipe's own graph)
_DETECTOR_PX = 640  # frames are shrunk to this before a detector shrinks them further to 128 or 192
_OUTER_EYE_CORNERS = (33, 263)
_SQUARES_PER_FRAME = 2  # how many close looks a live frame may cost while nobody is found

_LANDMARK_GRAPH = """
input_stream: "image"
input_stream: "roi"
input_side_packet: "with_attention"
output_stream: "landmarks"
node {
  calculator: "FaceLandmarkCpu"
  input_stream: "IMAGE:image"
  input_stream: "ROI:roi"
  input_side_packet: "WITH_ATTENTION:with_attention"
  output_stream: "LANDMARKS:landmarks"
}
"""
_PRESENCE = "facelandmarkcpu__face_presence_score"


# --- pose ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class CanonicalFace:
    """MediaPipe's canonical face model: centimetres, x to the subject's left, y up, z towards the camera."""

    vertices_cm: NDArray[np.float32]  # [468, 3]
    triangles: NDArray[np.int16]  # [898, 3]
    uv: NDArray[np.float32]  # [468, 2]
    procrustes_weights: NDArray[np.float32]  # [468], zero but for the 33 points that expression moves least


def canonical_face() -> CanonicalFace:
    """Reads the model from `engine/assets`."""
    with (
        resources.as_file(resources.files("engine") / "assets" / "canonical_face.npz") as path,
        np.load(path, allow_pickle=False) as stored,
    ):
        return CanonicalFace(**{name: stored[name] for name in stored.files})


def fit_pose(
    points: NDArray[np.floating[Any]], canonical: CanonicalFace
) -> tuple[NDArray[np.float32], NDArray[np.float32], float]:
    """Rotation `[3, 3]`, translation `[3]`, scale: `points ~ scale * canonical @ rotation.T + translation`.

    Weighted least squares over similarity transforms: Umeyama 1991, eqs. 40-42, with the weights of
    MediaPipe's face geometry. `points` is `[468 or more, 3]`; see `engine.frames.Face` for the axes.
    """
    stable = canonical.procrustes_weights > 0
    weights = canonical.procrustes_weights[stable].astype(np.float64)
    weights /= weights.sum()
    source = canonical.vertices_cm[stable].astype(np.float64)
    target = points[: len(canonical.vertices_cm)][stable].astype(np.float64)
    source_mean, target_mean = weights @ source, weights @ target
    source, target = source - source_mean, target - target_mean
    covariance = (target * weights[:, None]).T @ source
    left, singular, right = np.linalg.svd(covariance)
    signs = np.array([1.0, 1.0, np.sign(np.linalg.det(left) * np.linalg.det(right))])
    rotation = (left * signs) @ right
    scale = float((singular * signs).sum() / (weights @ (source**2).sum(axis=1)))
    translation = target_mean - scale * rotation @ source_mean
    return rotation.astype(np.float32), translation.astype(np.float32), scale


def euler_deg(rotation: NDArray[np.floating[Any]]) -> tuple[float, float, float]:
    """(yaw, pitch, roll) in degrees of a `Face.rotation`; a frontal face is (0, 0, 0).

    Signs as seen in the picture: yaw > 0 turns the nose to the right of the picture, pitch > 0 lifts the
    nose, roll > 0 tilts the head clockwise. With frontal = diag(1, -1, -1) and axes of the picture (x right,
    y down, z away), `rotation = Rz(roll) @ Ry(-yaw) @ Rx(-pitch) @ frontal`.
    """
    turned = np.asarray(rotation, dtype=np.float64) @ np.diag([1.0, -1.0, -1.0])
    yaw = math.asin(float(np.clip(turned[2, 0], -1.0, 1.0)))
    pitch = -math.atan2(float(turned[2, 1]), float(turned[2, 2]))
    roll = math.atan2(float(turned[1, 0]), float(turned[0, 0]))
    return math.degrees(yaw), math.degrees(pitch), math.degrees(roll)


# --- tracking -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Square:
    """A square of the frame, turned clockwise by `angle` radians about its centre; the rest in pixels."""

    x: float
    y: float
    side: float
    angle: float

    def to_frame(self, side_px: float) -> NDArray[np.float64]:
        """`[2, 3]` affine from pixels of a patch `side_px` wide to pixels of the frame."""
        scale = self.side / side_px
        cos, sin = math.cos(self.angle) * scale, math.sin(self.angle) * scale
        half = side_px / 2
        return np.array(
            [
                [cos, -sin, self.x - cos * half + sin * half],
                [sin, cos, self.y - sin * half - cos * half],
            ]
        )


@dataclass(frozen=True, slots=True)
class _Detection:
    square: _Square
    score: float


class Tracker:
    """MediaPipe's face networks around one live stream (`video=True`) or unrelated pictures (`video=False`).

    One tracker belongs to one thread at a time. Construction loads the networks and runs them once (about
    a second the first time, most of it importing mediapipe). Close it, or use it as a context manager.
    """

    def __init__(
        self,
        video: bool = True,
        max_faces: int = 8,
        min_detection_confidence: float = 0.5,
        min_tracking_confidence: float = 0.5,
    ) -> None:
        """`max_faces`: the most that `track_all` reports. `track` follows one face, the largest it finds."""
        if max_faces < 1:
            raise ValueError(f"max_faces = {max_faces} must be at least 1.")
        self._video = video
        self._max_faces = max_faces
        self._min_detection = min_detection_confidence
        self._min_presence = min_tracking_confidence
        self._canonical = canonical_face()
        self._near: _Square | None = None
        self._next_square = 0
        with quiet_stderr():
            from mediapipe.framework.formats import rect_pb2
            from mediapipe.python.solution_base import PacketDataType, SolutionBase
            from mediapipe.python.solutions.face_detection import FaceDetection

            self._short_range = FaceDetection(min_detection_confidence, model_selection=0)
            self._full_range = FaceDetection(min_detection_confidence, model_selection=1)
            self._landmarks = SolutionBase(
                graph_config=_LANDMARK_GRAPH,
                side_inputs={"with_attention": True},
                # The gate is opened: the score is read and judged here.
                calculator_params={"facelandmarkcpu__ThresholdingCalculator.threshold": 0.0},
                outputs=["landmarks", _PRESENCE],
                stream_type_hints={
                    "image": PacketDataType.IMAGE_FRAME,
                    "roi": PacketDataType.PROTO,
                    "landmarks": PacketDataType.PROTO,
                    _PRESENCE: PacketDataType.FLOAT,
                },
            )
            rectangle: Any = vars(rect_pb2)["NormalizedRect"]  # made at run time: no stub knows it
            self._whole_patch = rectangle(x_center=0.5, y_center=0.5, width=1.0, height=1.0, rotation=0.0)
            blank = np.zeros((_PATCH_PX, _PATCH_PX, 3), np.uint8)
            self._short_range.process(blank)
            self._full_range.process(blank)
            self._points_in(blank, _Square(_PATCH_PX / 2, _PATCH_PX / 2, _PATCH_PX, 0.0))
        self._open = True

    @classmethod
    def from_config(cls, config: TrackerConfig, video: bool = True) -> Self:
        return cls(
            video=video,
            min_detection_confidence=config.min_detection_confidence,
            min_tracking_confidence=config.min_tracking_confidence,
        )

    def track(self, frame: Frame) -> Face | NoFace:
        """The face that is being followed, else the largest to be found.

        `Face.visibility` is the landmark network's own presence score times the share of the points that
        lie inside the frame.
        """
        rgb = frame.rgb
        found = self._follow(rgb, self._near) if self._video and self._near is not None else None
        if found is None:
            faces = self._search(rgb, thorough=not self._video)
            found = faces[0] if faces else None
        if found is None:
            self._near = None
            return NoFace(frame.time_s)
        points, presence = found
        self._near = _square_around(points)
        return self._face(points, presence, rgb, frame.time_s)

    def track_all(self, rgb: Image, time_s: float = 0.0) -> list[Face]:
        """Every face of a single picture, the largest first. What `track` follows is left alone."""
        faces = self._search(rgb, thorough=True)[: self._max_faces]
        return [self._face(points, presence, rgb, time_s) for points, presence in faces]

    def reset(self) -> None:
        """Forgets where the face was: the next frame is from another stream."""
        self._near = None

    def close(self) -> None:
        """Frees the networks; a second call does nothing."""
        if self._open:
            self._open = False
            for graph in (self._landmarks, self._short_range, self._full_range):
                graph.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _face(self, points: Points, presence: float, rgb: Image, time_s: float) -> Face:
        height, width = rgb.shape[:2]
        inside = (points[:, :2] >= 0).all(axis=1) & (points[:, 0] < width) & (points[:, 1] < height)
        rotation, translation, scale = fit_pose(points, self._canonical)
        return Face(
            points=points,
            rotation=rotation,
            translation=translation,
            scale=scale,
            visibility=presence * float(inside.mean()),
            size_px=(width, height),
            time_s=time_s,
        )

    def _follow(self, rgb: Image, square: _Square) -> tuple[Points, float] | None:
        """Points and presence of the face in `square`; looks again when it lies off the middle."""
        points, presence = self._points_in(rgb, square)
        centred = _square_around(points)
        shift = math.hypot(centred.x - square.x, centred.y - square.y) / square.side
        if presence >= self._min_presence and (shift > 0.08 or not 0.85 < centred.side / square.side < 1.18):
            points, presence = self._points_in(rgb, centred)
        return (points, presence) if presence >= self._min_presence else None

    def _points_in(self, rgb: Image, square: _Square) -> tuple[Points, float]:
        """Runs the landmark network on a square of the frame: points in frame pixels, and presence 0..1."""
        # A patch much larger than what the network sees is averaged down, not sampled: less jitter.
        fold = min(4, max(1, round(square.side / _PATCH_PX)))
        patch = cv2.warpAffine(
            rgb,
            square.to_frame(_PATCH_PX * fold),
            (_PATCH_PX * fold, _PATCH_PX * fold),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_CONSTANT,
        )
        if fold > 1:
            patch = cv2.resize(patch, (_PATCH_PX, _PATCH_PX), interpolation=cv2.INTER_AREA)
        seen: Any = self._landmarks.process({"image": patch, "roi": self._whole_patch})
        normalized = np.array([(mark.x, mark.y, mark.z) for mark in seen.landmarks.landmark], np.float64)
        if normalized.shape != (POINT_COUNT, 3):
            raise RuntimeError(f"the landmark network gave {normalized.shape[0]} points, not {POINT_COUNT}.")
        affine = square.to_frame(1.0)
        points = np.empty((POINT_COUNT, 3), np.float32)
        points[:, :2] = normalized[:, :2] @ affine[:, :2].T + affine[:, 2]
        points[:, 2] = normalized[:, 2] * square.side
        return points, float(getattr(seen, _PRESENCE))

    def _search(self, rgb: Image, thorough: bool) -> list[tuple[Points, float]]:
        """Looks for faces without knowing where: the largest first, each once.

        The whole frame with both detectors; when that finds nobody, close looks at overlapping squares:
        all of them when `thorough`, else a few and the next ones on the next frame.
        """
        height, width = rgb.shape[:2]
        whole = self._detect(self._short_range, rgb, (0, 0, width, height))
        if thorough or not whole:
            whole = whole + self._detect(self._full_range, rgb, (0, 0, width, height))
        faces = self._confirm(rgb, whole)
        if faces:
            return [self._settled(rgb, face) for face in faces] if thorough else faces
        squares = list(_close_looks(width, height))
        if not thorough:
            first = self._next_square % len(squares)
            self._next_square = first + _SQUARES_PER_FRAME
            squares = [squares[(first + k) % len(squares)] for k in range(_SQUARES_PER_FRAME)]
        close = [found for box in squares for found in self._detect(self._full_range, rgb, box)]
        faces = self._confirm(rgb, close)
        return [self._settled(rgb, face) for face in faces] if thorough else faces

    def _settled(self, rgb: Image, face: tuple[Points, float]) -> tuple[Points, float]:
        """The face of a single picture after two more looks from where it was found, as a stream would get them.

        A detector's square is only roughly right: after one look the points of 96 portraits were 1.4 % of the
        distance between the outer eye corners from where they came to rest, after three 0.5 %.
        """
        for _ in range(2):
            face = self._points_in(rgb, _square_around(face[0]))
        return face

    def _detect(self, detector: Any, rgb: Image, box: tuple[int, int, int, int]) -> list[_Detection]:
        """Detections inside a box (left, top, width, height), as squares for the landmark network."""
        left, top, width, height = box
        part = rgb[top : top + height, left : left + width]
        shrink = _DETECTOR_PX / max(width, height)
        if shrink < 1:
            small = (max(1, round(width * shrink)), max(1, round(height * shrink)))
            part = cv2.resize(part, small, interpolation=cv2.INTER_AREA)
        found = []
        for detection in detector.process(np.ascontiguousarray(part)).detections or []:
            location = detection.location_data
            rough = location.relative_bounding_box
            eyes = location.relative_keypoints
            found.append(
                _Detection(
                    _Square(
                        x=left + (rough.xmin + rough.width / 2) * width,
                        y=top + (rough.ymin + rough.height / 2) * height,
                        side=_MARGIN * max(rough.width * width, rough.height * height),
                        angle=math.atan2((eyes[1].y - eyes[0].y) * height, (eyes[1].x - eyes[0].x) * width),
                    ),
                    detection.score[0],
                )
            )
        return found

    def _confirm(self, rgb: Image, detections: list[_Detection]) -> list[tuple[Points, float]]:
        """Keeps the detections in which the landmark network sees a face: largest first, each face once."""
        faces: list[tuple[Points, float]] = []
        taken: list[_Square] = []
        for detection in sorted(detections, key=lambda one: -one.score):
            square = detection.square
            if square.side < 1 or any(_same_place(square, other) for other in taken):
                continue
            found = self._follow(rgb, square)
            if found is None:
                continue
            around = _square_around(found[0])
            if not any(_same_place(around, other) for other in taken):
                faces.append(found)
                taken.append(around)
        return sorted(faces, key=lambda face: -_square_around(face[0]).side)


def _square_around(points: Points) -> _Square:
    """The square in which the landmark network is to look next, turned so that the eyes are level."""
    start, end = points[_OUTER_EYE_CORNERS[0], :2], points[_OUTER_EYE_CORNERS[1], :2]
    angle = math.atan2(float(end[1] - start[1]), float(end[0] - start[0]))
    cos, sin = math.cos(angle), math.sin(angle)
    upright = points[:, :2].astype(np.float64) @ np.array([[cos, -sin], [sin, cos]])
    low, high = upright.min(axis=0), upright.max(axis=0)
    x, y = (low + high) / 2
    return _Square(
        x=float(cos * x - sin * y),
        y=float(sin * x + cos * y),
        side=max(_MARGIN * float((high - low).max()), 1.0),
        angle=angle,
    )


def _same_place(one: _Square, other: _Square) -> bool:
    """Faces cannot overlap much: centres nearer than half the larger one's width are the same face."""
    apart = math.hypot(one.x - other.x, one.y - other.y)
    return apart < 0.5 / _MARGIN * max(one.side, other.side)


def _close_looks(width: int, height: int) -> Iterator[tuple[int, int, int, int]]:
    """Overlapping squares (left, top, side, side), two thirds of the short side wide, the middle first."""
    side = max(1, min(width, height) * 2 // 3)
    step = max(1, side // 2)
    lefts = sorted({min(left, width - side) for left in range(0, width - side + step, step)})
    tops = sorted({min(top, height - side) for top in range(0, height - side + step, step)})
    corners = [(left, top) for left in lefts for top in tops]
    middle = ((width - side) / 2, (height - side) / 2)
    corners.sort(key=lambda corner: math.dist(corner, middle))
    yield from ((left, top, side, side) for left, top in corners)


@contextlib.contextmanager
def quiet_stderr() -> Iterator[None]:
    """Drops what C++ libraries write to file descriptor 2; mediapipe's start-up chatter has no switch.

    The whole process is mute on stderr for that time, so this is for construction only.
    """
    try:
        sys.stderr.flush()
        kept = os.dup(2)
    except (OSError, AttributeError, ValueError):  # no stderr at all, as under pythonw
        yield
        return
    try:
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


# --- smoothing ----------------------------------------------------------------------------------------------


class OneEuro:
    """The One-Euro filter (Casiez, Roussel, Vogel, CHI 2012) over an array of vectors `[..., dimensions]`.

    A vector is filtered as one: its cutoff follows the length of its velocity, so that its direction is kept.
    Cutoffs broadcast against `[...]`. Time is an argument, in seconds; it must grow from call to call.
    """

    def __init__(
        self,
        min_cutoff_hz: float | NDArray[np.float64],
        beta: float | NDArray[np.float64],
        derivative_cutoff_hz: float | NDArray[np.float64] = 1.0,
    ) -> None:
        self._min_cutoff_hz = np.asarray(min_cutoff_hz, np.float64)
        self._beta = np.asarray(beta, np.float64)
        self._derivative_cutoff_hz = np.asarray(derivative_cutoff_hz, np.float64)
        self._last: tuple[float, NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]] | None = None

    def reset(self) -> None:
        """Forgets the past: the next value passes unchanged."""
        self._last = None

    def __call__(self, value: NDArray[np.floating[Any]], time_s: float) -> NDArray[np.float64]:
        now = np.asarray(value, np.float64)
        if self._last is None:
            self._last = (time_s, now, now, np.zeros_like(now))
            return now
        last_time_s, last_raw, last_smooth, last_velocity = self._last
        elapsed_s = time_s - last_time_s
        if elapsed_s <= 0:
            raise ValueError(f"time must grow, but {time_s} s came after {last_time_s} s.")
        velocity = _towards(last_velocity, (now - last_raw) / elapsed_s, self._derivative_cutoff_hz, elapsed_s)
        speed = np.linalg.norm(velocity, axis=-1)
        smooth = _towards(last_smooth, now, self._min_cutoff_hz + self._beta * speed, elapsed_s)
        self._last = (time_s, now, smooth, velocity)
        return smooth


def _towards(
    old: NDArray[np.float64], new: NDArray[np.float64], cutoff_hz: NDArray[np.float64], elapsed_s: float
) -> NDArray[np.float64]:
    """First-order low pass with a cutoff for each vector."""
    radians = 2 * math.pi * cutoff_hz * elapsed_s
    share = radians / (radians + 1)
    return old + np.broadcast_to(share, old.shape[:-1])[..., None] * (new - old)


# fmt: off
_LIPS_AND_LIDS = (
    # lips, outer and inner rings
     0, 11, 12, 13, 14, 15, 16, 17, 37, 38, 39, 40, 41, 42, 61, 62, 72, 73, 74, 76, 77, 78, 80, 81,
    82, 84, 85, 86, 87, 88, 89, 90, 91, 95, 96, 146, 178, 179, 180, 181, 183, 184, 185, 191, 267,
    268, 269, 270, 271, 272, 291, 292, 302, 303, 304, 306, 307, 308, 310, 311, 312, 314, 315, 316,
    317, 318, 319, 320, 321, 324, 325, 375, 402, 403, 404, 405, 407, 408, 409, 415,
    # eyelids
     7, 22, 23, 24, 25, 26, 27, 28, 29, 30, 33, 56, 110, 112, 130, 133, 144, 145, 153, 154, 155,
    157, 158, 159, 160, 161, 163, 173, 190, 243, 246, 247, 249, 252, 253, 254, 255, 256, 257, 258,
    259, 260, 263, 286, 339, 341, 359, 362, 373, 374, 380, 381, 382, 384, 385, 386, 387, 388, 390,
    398, 414, 463, 466, 467,
    # chin and jaw below the mouth, which go with the lower lip
     18, 32, 83, 106, 140, 148, 152, 171, 175, 176, 182, 199, 200, 201, 208, 262, 313, 335, 369,
    377, 396, 400, 406, 421, 428,
    # irises
    *range(468, 478),
)
# fmt: on
LIPS_AND_LIDS: NDArray[np.intp] = np.array(sorted(_LIPS_AND_LIDS), np.intp)
"""Indices of the points that must not lag: lips and chin, eyelids, irises."""

_FACE_WIDTH_CM = 14.0


class Smoother:
    """Takes the jitter out of a stream of faces without slowing lips and eyelids.

    The face is split into its rigid motion and its shape in the head's own frame. Rotation, position and size
    are filtered as one motion each, the shape point by point: lips, eyelids and irises with a quick filter,
    the rest with a slow one. Speeds are counted in face widths (and radians) a second, so the size of the
    face in the frame does not matter. Resets itself after a gap, a jump, or time that runs backwards.
    """

    def __init__(
        self,
        head: Smoothing,
        lips_and_lids: Smoothing,
        skin: Smoothing,
        gap_s: float = 0.5,
    ) -> None:
        quick = np.zeros(POINT_COUNT, bool)
        quick[LIPS_AND_LIDS] = True
        self._rotation, self._position, self._size = (
            OneEuro(head.min_cutoff_hz, head.beta, head.derivative_cutoff_hz) for _ in range(3)
        )
        self._shape = OneEuro(
            np.where(quick, lips_and_lids.min_cutoff_hz, skin.min_cutoff_hz),
            np.where(quick, lips_and_lids.beta, skin.beta),
            np.where(quick, lips_and_lids.derivative_cutoff_hz, skin.derivative_cutoff_hz),
        )
        self._gap_s = gap_s
        self._unit_px = 1.0
        self._last: Face | None = None

    @classmethod
    def from_config(cls, config: TrackerConfig) -> Self:
        return cls(config.head, config.lips_and_lids, config.skin)

    def reset(self) -> None:
        """Forgets the past: the next face passes unchanged. Call it when the tracker reports `NoFace`."""
        self._last = None
        for one_euro in (self._rotation, self._position, self._size, self._shape):
            one_euro.reset()

    def smooth(self, face: Face) -> Face:
        """The same face with calmer points and pose; the first one after a reset passes unchanged."""
        if self._last is not None and self._is_another(self._last, face):
            self.reset()
        first = self._last is None
        self._last = face
        width_px = _FACE_WIDTH_CM * face.scale
        shape = (face.points - face.translation) @ face.rotation / width_px
        rotation = self._rotation(face.rotation.reshape(9) / math.sqrt(2), face.time_s).reshape(3, 3)
        # In face widths as of the last reset: in those of now, a change of size would move it.
        if first:
            self._unit_px = width_px
        position = self._position(face.translation / self._unit_px, face.time_s) * self._unit_px
        size = self._size(np.log([face.scale]), face.time_s)
        shape = self._shape(shape, face.time_s)
        if first:
            return face
        left, _, right = np.linalg.svd(rotation)
        rotation = left @ right
        scale = float(np.exp(size[0]))
        points = shape @ rotation.T * (_FACE_WIDTH_CM * scale) + position
        return replace(
            face,
            points=points.astype(np.float32),
            rotation=rotation.astype(np.float32),
            translation=position.astype(np.float32),
            scale=scale,
        )

    def _is_another(self, last: Face, face: Face) -> bool:
        """Whether `face` cannot be the continuation of `last`."""
        elapsed_s = face.time_s - last.time_s
        jump_px = float(np.linalg.norm(face.translation[:2] - last.translation[:2]))
        return (
            not 0 < elapsed_s <= self._gap_s
            or face.size_px != last.size_px
            or jump_px > _FACE_WIDTH_CM * last.scale
            or not 0.5 < face.scale / last.scale < 2.0
        )
