"""Tracker: known rotations come back, small and huge faces are found, jitter goes, lips do not lag."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from engine import config
from engine.frames import POINT_COUNT, Face, Frame, Image, NoFace
from engine.tracker import OneEuro, Smoother, Tracker, canonical_face, euler_deg, fit_pose
from tests.conftest import rotation_from_euler


@pytest.fixture(scope="module")
def tracker() -> Iterator[Tracker]:
    with Tracker(video=True) as opened:
        yield opened


@pytest.fixture(autouse=True)
def fresh(request: pytest.FixtureRequest) -> None:
    if "tracker" in request.fixturenames:
        request.getfixturevalue("tracker").reset()


def tracked(tracker: Tracker, rgb: Image, time_s: float = 0.0) -> Face:
    found = tracker.track(Frame(rgb, time_s))
    assert isinstance(found, Face)
    return found


def in_scene(photo: Image, side_px: int, left: int, top: int, size_px: tuple[int, int] = (1280, 720)) -> Image:
    """The photo, shrunk to `side_px`, somewhere in a large and otherwise empty frame."""
    scene = np.full((size_px[1], size_px[0], 3), 90, np.uint8)
    scene[top : top + side_px, left : left + side_px] = cv2.resize(
        photo, (side_px, side_px), interpolation=cv2.INTER_AREA
    )
    return scene


# --- pose


@pytest.mark.parametrize("angles", [(0, 0, 0), (30, 0, 0), (0, -20, 0), (0, 0, 25), (-40, 15, -10)])
def test_known_pose_comes_back(make_face: Callable[..., Face], angles: tuple[float, float, float]) -> None:
    yaw, pitch, roll = angles
    face = make_face(yaw_deg=yaw, pitch_deg=pitch, roll_deg=roll, center_px=(300.0, 200.0), scale=11.0)
    rotation, translation, scale = fit_pose(face.points, canonical_face())
    assert euler_deg(rotation) == pytest.approx(angles, abs=0.01)
    assert translation == pytest.approx([300, 200, 0], abs=0.01)
    assert scale == pytest.approx(11.0, rel=1e-4)
    assert np.linalg.det(rotation.astype(np.float64)) == pytest.approx(1.0, abs=1e-5)


def test_frontal_rotation_is_the_one_in_the_interface() -> None:
    assert rotation_from_euler(0, 0, 0) == pytest.approx(np.diag([1, -1, -1]))
    assert euler_deg(np.diag([1.0, -1.0, -1.0])) == (0.0, 0.0, 0.0)


def test_signs_are_as_seen_in_the_picture() -> None:
    nose = np.array([0.0, 0.0, 1.0])  # out of the face, in canonical axes
    crown = np.array([0.0, 1.0, 0.0])
    assert (rotation_from_euler(30, 0, 0) @ nose)[0] > 0.4  # yaw > 0: nose to the right of the picture
    assert (rotation_from_euler(0, 30, 0) @ nose)[1] < -0.4  # pitch > 0: nose up
    assert (rotation_from_euler(0, 0, 30) @ crown)[0] > 0.4  # roll > 0: crown to the right, clockwise


def test_open_mouth_does_not_nod_the_head(make_face: Callable[..., Face]) -> None:
    rotation, _, _ = fit_pose(make_face(mouth_open_cm=2.0).points, canonical_face())
    assert abs(euler_deg(rotation)[1]) < 0.5


# --- tracking


def test_points_lie_on_the_face(tracker: Tracker, face_photo: Image) -> None:
    face = tracked(tracker, face_photo, time_s=3.25)
    assert face.points.shape == (POINT_COUNT, 3)
    assert face.points.dtype == np.float32
    assert (face.size_px, face.time_s) == ((256, 256), 3.25)
    assert face.visibility > 0.95
    # The iris centres lie on dark pixels, darker than the cheeks below them.
    grey = face_photo.mean(axis=2)
    for iris, cheek in ((468, 50), (473, 280)):
        (x, y), (cheek_x, cheek_y) = face.points[iris, :2].astype(int), face.points[cheek, :2].astype(int)
        assert grey[y - 1 : y + 2, x - 1 : x + 2].mean() < grey[cheek_y, cheek_x] - 30
    # The nose is nearer to the camera than the ears.
    assert face.points[1, 2] < face.points[[127, 356], 2].min()


def test_pose_fits_the_points(tracker: Tracker, face_photo: Image) -> None:
    face = tracked(tracker, face_photo)
    fitted = face.scale * canonical_face().vertices_cm @ face.rotation.T + face.translation
    error_px = np.linalg.norm(fitted - face.points[:468], axis=1).mean()
    assert error_px < 0.05 * np.ptp(face.points[:, 0])
    assert max(map(abs, euler_deg(face.rotation))) < 15


def test_mirrored_picture_mirrors_yaw_and_roll(tracker: Tracker, turned_photo: Image) -> None:
    yaw, pitch, roll = euler_deg(tracked(tracker, turned_photo).rotation)
    tracker.reset()
    mirrored = euler_deg(tracked(tracker, np.ascontiguousarray(turned_photo[:, ::-1])).rotation)
    assert abs(yaw) > 5
    assert mirrored == pytest.approx((-yaw, pitch, -roll), abs=4)


def test_tilted_picture_tilts_the_head(tracker: Tracker, face_photo: Image) -> None:
    _, _, before = euler_deg(tracked(tracker, face_photo).rotation)
    turn = cv2.getRotationMatrix2D((128, 128), -20, 1.0)  # minus: clockwise
    tracker.reset()
    _, _, after = euler_deg(tracked(tracker, cv2.warpAffine(face_photo, turn, (256, 256)).astype(np.uint8)).rotation)
    assert after - before == pytest.approx(20, abs=3)


def test_open_mouth_is_seen(tracker: Tracker, face_photo: Image, speaking_photo: Image) -> None:
    def opening(face: Face) -> float:
        return float(np.linalg.norm(face.points[13] - face.points[14]) / face.scale)

    closed = opening(tracked(tracker, face_photo))
    tracker.reset()
    assert opening(tracked(tracker, speaking_photo)) > closed + 0.8  # centimetres


def test_agrees_with_mediapipe_itself(tracker: Tracker, face_photo: Image) -> None:
    from mediapipe.python.solutions.face_mesh import FaceMesh

    with FaceMesh(static_image_mode=True, refine_landmarks=True) as mesh:
        seen = mesh.process(face_photo).multi_face_landmarks[0].landmark  # pyright: ignore
    theirs = np.array([(mark.x, mark.y, mark.z) for mark in seen]) * 256
    assert np.abs(tracked(tracker, face_photo).points - theirs).mean() < 1.0


def test_following_agrees_with_finding(tracker: Tracker, face_photo: Image) -> None:
    first = tracked(tracker, face_photo)
    again = tracked(tracker, face_photo, time_s=0.04)
    assert np.abs(first.points - again.points).mean() < 1.0


def test_a_moved_face_is_followed(tracker: Tracker, face_photo: Image) -> None:
    before = tracked(tracker, in_scene(face_photo, 256, 400, 200))
    after = tracked(tracker, in_scene(face_photo, 256, 460, 200), time_s=0.04)
    assert (after.points - before.points).mean(axis=0)[:2] == pytest.approx([60, 0], abs=1.0)


@pytest.mark.parametrize(("left", "top"), [(20, 10), (600, 300), (1170, 610)])
def test_face_of_sixty_pixels_is_found(tracker: Tracker, face_photo: Image, left: int, top: int) -> None:
    scene = in_scene(face_photo, 96, left, top)
    faces = tracker.track_all(scene)
    assert len(faces) == 1
    assert 50 < np.ptp(faces[0].points[:, 0]) < 70
    assert faces[0].points[:, :2].mean(axis=0) == pytest.approx([left + 48, top + 54], abs=8)


def test_live_search_finds_a_small_face_within_some_frames(tracker: Tracker, face_photo: Image) -> None:
    scene = in_scene(face_photo, 60, 1150, 40)
    found = [isinstance(tracker.track(Frame(scene, n / 30)), Face) for n in range(8)]
    assert any(found)
    assert all(found[found.index(True) :])


def test_huge_photo_is_tracked_in_its_own_pixels(tracker: Tracker, face_photo: Image) -> None:
    huge = cv2.resize(face_photo, (3000, 3000), interpolation=cv2.INTER_CUBIC).astype(np.uint8)
    small = tracked(tracker, face_photo).points
    large = tracker.track_all(huge)[0].points
    assert large / (3000 / 256) == pytest.approx(small, abs=3)


def test_several_faces_largest_first(tracker: Tracker, face_photo: Image, turned_photo: Image) -> None:
    scene = in_scene(face_photo, 200, 100, 200)
    scene[100:400, 800:1100] = cv2.resize(turned_photo, (300, 300), interpolation=cv2.INTER_AREA)
    faces = tracker.track_all(scene, time_s=7.0)
    assert [round(float(face.points[1, 0]), -2) for face in faces] == [900, 200]
    assert all(face.time_s == 7.0 for face in faces)


def test_max_faces_keeps_the_largest(face_photo: Image, turned_photo: Image) -> None:
    scene = in_scene(face_photo, 200, 100, 200)
    scene[100:400, 800:1100] = cv2.resize(turned_photo, (300, 300), interpolation=cv2.INTER_AREA)
    with Tracker(video=False, max_faces=1) as opened:
        (only,) = opened.track_all(scene)
    assert only.points[1, 0] > 800
    with pytest.raises(ValueError, match="max_faces = 0"):
        Tracker(max_faces=0)


def test_nobody_there(tracker: Tracker) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (240, 320, 3), dtype=np.uint8)
    assert tracker.track(Frame(noise, 1.5)) == NoFace(1.5)
    assert tracker.track_all(noise) == []
    assert tracker.track(Frame(np.zeros((3, 2, 3), np.uint8), 2.0)) == NoFace(2.0)


def test_lost_and_found_again(tracker: Tracker, face_photo: Image) -> None:
    tracked(tracker, face_photo)
    assert isinstance(tracker.track(Frame(np.zeros_like(face_photo), 0.04)), NoFace)
    tracked(tracker, face_photo, 0.08)


def test_half_outside_is_less_visible(tracker: Tracker, face_photo: Image) -> None:
    cut = np.ascontiguousarray(face_photo[:, 110:])
    faces = tracker.track_all(cut)
    assert not faces or faces[0].visibility < 0.85


def test_tracker_is_silent_and_closes_twice(face_photo: Image, capfd: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opened = Tracker()
        tracked(opened, face_photo)
        opened.close()
        opened.close()
    assert capfd.readouterr() == ("", "")


# --- smoothing


def test_one_euro_follows_its_paper() -> None:
    # Casiez et al. 2012, algorithms 1 and 2, by hand for two samples.
    one_euro = OneEuro(min_cutoff_hz=1.0, beta=0.5, derivative_cutoff_hz=2.0)
    assert one_euro(np.array([1.0]), 0.0) == pytest.approx([1.0])
    elapsed_s = 0.1
    derivative_share = 1 / (1 + (1 / (2 * math.pi * 2.0)) / elapsed_s)
    velocity = derivative_share * (3.0 - 1.0) / elapsed_s
    share = 1 / (1 + (1 / (2 * math.pi * (1.0 + 0.5 * velocity))) / elapsed_s)
    assert one_euro(np.array([3.0]), 0.1) == pytest.approx([1.0 + share * 2.0])


def test_one_euro_takes_a_cutoff_for_each_vector() -> None:
    one_euro = OneEuro(np.array([1.0, 100.0]), 0.0)
    one_euro(np.zeros((2, 3)), 0.0)
    slow, quick = one_euro(np.ones((2, 3)), 0.04)
    assert slow[0] < 0.3 < 0.9 < quick[0]


def test_one_euro_refuses_time_that_stands_still() -> None:
    one_euro = OneEuro(1.0, 0.0)
    one_euro(np.zeros(1), 5.0)
    with pytest.raises(ValueError, match="time must grow"):
        one_euro(np.zeros(1), 5.0)


@pytest.fixture
def smoother() -> Smoother:
    return Smoother.from_config(config.load().tracker)


def stacked(faces: list[Face]) -> NDArray[np.float32]:
    return np.stack([face.points for face in faces])


def test_still_face_stops_trembling(make_face: Callable[..., Face], smoother: Smoother) -> None:
    rng = np.random.default_rng(1)
    noisy = []
    for n in range(90):
        clean = make_face(time_s=n / 30)
        points = (clean.points + rng.normal(0, 0.15, clean.points.shape)).astype(np.float32)
        rotation, translation, scale = fit_pose(points, canonical_face())
        noisy.append(Face(points, rotation, translation, scale, 1.0, clean.size_px, clean.time_s))
    calm = [smoother.smooth(face) for face in noisy]
    ratio = stacked(calm)[30:].std(axis=0).mean() / stacked(noisy)[30:].std(axis=0).mean()
    assert ratio < 0.6
    truth = make_face().points
    assert np.abs(stacked(calm)[30:].mean(axis=0) - truth).max() < 0.2


def test_lips_do_not_lag(make_face: Callable[..., Face], smoother: Smoother) -> None:
    # Four syllables a second, 1.2 cm of opening.
    times = np.arange(75) / 30
    truth = 0.6 - 0.6 * np.cos(2 * np.pi * 4 * times)
    faces = [make_face(mouth_open_cm=cm, time_s=t) for cm, t in zip(truth, times, strict=True)]
    smooth = stacked([smoother.smooth(face) for face in faces])
    opening_cm = (smooth[:, 14, 1] - smooth[:, 13, 1]) / 8.0
    opening_cm -= opening_cm[0]
    lags_s = np.arange(0, 0.12, 0.001)
    errors = [((np.interp(times - lag, times, truth) - opening_cm)[10:] ** 2).sum() for lag in lags_s]
    assert lags_s[int(np.argmin(errors))] < 0.012
    assert np.ptp(opening_cm) > 0.9 * np.ptp(truth)


def test_lips_lids_and_irises_have_their_own_filter(make_face: Callable[..., Face]) -> None:
    slow, quick = config.Smoothing(0.1, 0.0, 1.0), config.Smoothing(50.0, 0.0, 1.0)
    smoother = Smoother(head=slow, lips_and_lids=quick, skin=slow)
    before = make_face(time_s=0.0)
    after = make_face(time_s=1 / 30)
    after.points[:, 1] += np.where(canonical_weightless(), 5.0, 0.0)  # what moves the pose stays where it is
    smoother.smooth(before)
    moved = (smoother.smooth(after).points - before.points)[:, 1]
    upper_lid, lower_lip, iris, brow, cheek = 159, 14, 468, 105, 50
    assert moved[[upper_lid, lower_lip, iris]].min() > 4
    assert moved[[brow, cheek]].max() < 1


def canonical_weightless() -> NDArray[np.bool_]:
    """Which of the 478 points have no say in the pose."""
    weightless = np.ones(POINT_COUNT, bool)
    weightless[:468] = canonical_face().procrustes_weights == 0
    return weightless


def test_pose_and_points_stay_one_face(make_face: Callable[..., Face], smoother: Smoother) -> None:
    turning = [make_face(yaw_deg=2.0 * n, roll_deg=n, scale=8 + 0.1 * n, time_s=n / 30) for n in range(20)]
    face = [smoother.smooth(raw) for raw in turning][-1]
    fitted = face.scale * canonical_face().vertices_cm @ face.rotation.T + face.translation
    assert np.abs(fitted - face.points[:468]).max() < 0.01
    assert np.linalg.det(face.rotation) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize(
    "second",
    [
        {"time_s": 2.0},  # a gap
        {"time_s": 0.0},  # the same instant again
        {"time_s": -1.0},  # a clip that starts over
        {"time_s": 0.04, "center_px": (20.0, 20.0)},  # somebody else
        {"time_s": 0.04, "size_px": (640, 480)},  # another camera
    ],
)
def test_a_new_stream_starts_afresh(
    make_face: Callable[..., Face], smoother: Smoother, second: dict[str, object]
) -> None:
    smoother.smooth(make_face(yaw_deg=10))
    fresh_face = make_face(yaw_deg=-10, **second)
    assert np.array_equal(smoother.smooth(fresh_face).points, fresh_face.points)


def test_reset_forgets(make_face: Callable[..., Face], smoother: Smoother) -> None:
    smoother.smooth(make_face())
    moved = make_face(yaw_deg=5, time_s=0.04)
    assert not np.array_equal(smoother.smooth(moved).points, moved.points)
    smoother.reset()
    assert np.array_equal(smoother.smooth(moved).points, moved.points)
