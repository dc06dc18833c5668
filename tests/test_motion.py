"""Retargeting: what must come through (motion), and what must not (the driver's own shape)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from engine import geometry
from engine.frames import Face, NoFace
from engine.motion import NeutralFinder, Rest, Retarget, head_rotation, neutrality, to_head, turned, turned_by
from engine.tracker import canonical_face, euler_deg, fit_pose

Floats = NDArray[np.float32]
MakeFace = Callable[..., Face]

LIPS = list(zip(geometry.LIPS_INNER[1:10], reversed(geometry.LIPS_INNER[11:]), strict=True))
LIDS = [
    pair for eye in (geometry.EYE_RIGHT, geometry.EYE_LEFT) for pair in zip(eye[1:8], reversed(eye[9:]), strict=True)
]


def crop(face: Face) -> Floats:
    return geometry.to_crop_units(face.points, face.size_px[0])


def reshaped(face: Face, change: Callable[[Floats], None]) -> Face:
    """The same head with another shape: `change` moves the points in the head's own frame (cm, y up)."""
    head = to_head(face)
    shape = head.shape.copy()
    change(shape)
    points = (head.scale * shape @ head.rotation.T + head.translation).astype(np.float32)
    rotation, translation, scale = fit_pose(points, canonical_face())
    return replace(face, points=points, rotation=rotation, translation=translation, scale=scale)


def with_lips(gap_cm: float) -> Callable[[Floats], None]:
    """Sets the gap between the lips, the outer ones following."""

    def change(shape: Floats) -> None:
        for upper, lower in LIPS:
            middle = (shape[upper, 1] + shape[lower, 1]) / 2
            shape[upper, 1], shape[lower, 1] = middle + gap_cm / 2, middle - gap_cm / 2

    return change


def with_lids(gap_cm: float) -> Callable[[Floats], None]:
    def change(shape: Floats) -> None:
        for upper, lower in LIDS:
            shape[upper, 1] = shape[lower, 1] + gap_cm

    return change


def stretched(factors: tuple[float, float, float]) -> Callable[[Floats], None]:
    def change(shape: Floats) -> None:
        shape *= np.array(factors, np.float32)

    return change


def gaps(points: Floats, pairs: list[tuple[int, int]]) -> NDArray[np.floating]:
    """How far apart, from above to below, in face widths (of a face that is not turned)."""
    width = np.linalg.norm(points[454] - points[234])
    return np.array([points[lower, 1] - points[upper, 1] for upper, lower in pairs]) / width


def retarget(avatar_neutral: Face, driver_neutral: Face) -> Retarget:
    finder = NeutralFinder()
    finder.pin(driver_neutral)
    return Retarget(avatar_neutral, finder)


# --- retargeting --------------------------------------------------------------------------------------------


def test_a_driver_who_is_the_avatar_gets_the_own_landmarks_back(make_face: MakeFace) -> None:
    neutral = make_face()
    move = retarget(neutral, neutral)
    for face in (
        make_face(),
        make_face(yaw_deg=18, pitch_deg=-7, roll_deg=5),
        make_face(center_px=(140, 118)),
        make_face(scale=8.8, yaw_deg=-6),
        make_face(mouth_open_cm=1.0),
    ):
        missed_px = np.abs(move(face) - crop(face))[:, :2] * 128
        assert missed_px.max() < 0.5
    assert np.allclose(move.rest(), crop(neutral), atol=1e-5)


@pytest.mark.parametrize("factors", [(1.25, 1, 1), (1, 1.3, 1), (0.8, 0.9, 1.2), (1.5, 1.5, 1.5)])
def test_the_shape_of_the_driver_does_not_leak(make_face: MakeFace, factors: tuple[float, float, float]) -> None:
    """A driver with a wider, longer or larger face, doing nothing, leaves the avatar as it is."""
    avatar = make_face(yaw_deg=4)
    driver = reshaped(make_face(center_px=(100, 150), scale=6), stretched(factors))
    points = retarget(avatar, driver)(driver)
    assert np.abs(points - crop(avatar)).max() * 128 < 0.5


def test_a_stretched_driver_turns_the_head_and_opens_the_mouth_alike(make_face: MakeFace) -> None:
    """Motion of a stretched face, scaled by its proportions, is the motion of the plain one."""
    avatar = make_face()
    plain = make_face(yaw_deg=15, mouth_open_cm=1)
    expected = retarget(avatar, make_face())(plain)
    wide = stretched((1.2, 1.0, 1.0))
    got = retarget(avatar, reshaped(make_face(), wide))(reshaped(plain, wide))
    assert np.abs(got - expected)[:, :2].max() * 128 < 3
    assert got[1, 0] - crop(avatar)[1, 0] > 0.05, "the nose went to the right"


def test_motion_is_scaled_to_the_crop_of_the_avatar(make_face: MakeFace) -> None:
    """A driver at twice the size who moves by 10 px moves the avatar by 5."""
    avatar = make_face(scale=8)
    move = retarget(avatar, make_face(scale=16))
    moved = move(make_face(scale=16, center_px=(138, 128)))
    assert np.allclose((moved - crop(avatar))[:, 0] * 128, 5, atol=0.05)
    assert np.allclose((moved - crop(avatar))[:, 1], 0, atol=1e-3)


@pytest.mark.parametrize("driver_gap", [0.0, 0.25])
@pytest.mark.parametrize("avatar_gap", [0.0, 0.3, 0.8])
def test_closed_lips_stay_closed(make_face: MakeFace, driver_gap: float, avatar_gap: float) -> None:
    """Whatever the mouths of the two neutral faces do, lips that touch shall touch."""
    avatar = reshaped(make_face(), with_lips(avatar_gap))
    move = retarget(avatar, reshaped(make_face(), with_lips(driver_gap)))
    closed = move(reshaped(make_face(center_px=(120, 130)), with_lips(0.0)))
    assert np.abs(gaps(closed, LIPS)).max() < 0.004
    opened = move(reshaped(make_face(), with_lips(1.0)))
    driver = gaps(reshaped(make_face(), with_lips(1.0)).points, LIPS)
    assert np.allclose(gaps(opened, LIPS), driver, atol=0.01)


@pytest.mark.parametrize("driver_gap", [0.7, 1.1])
@pytest.mark.parametrize("avatar_gap", [0.6, 1.0])
def test_shut_lids_stay_shut_and_open_ones_are_the_avatars(
    make_face: MakeFace, driver_gap: float, avatar_gap: float
) -> None:
    avatar = reshaped(make_face(), with_lids(avatar_gap))
    move = retarget(avatar, reshaped(make_face(), with_lids(driver_gap)))
    shut = move(reshaped(make_face(center_px=(120, 130)), with_lids(0.0)))
    assert np.abs(gaps(shut, LIDS)).max() < 0.004
    opened = move(reshaped(make_face(), with_lids(driver_gap)))
    assert np.allclose(gaps(opened, LIDS), gaps(avatar.points, LIDS), atol=0.003)
    half = move(reshaped(make_face(), with_lids(driver_gap / 2)))
    assert np.allclose(gaps(half, LIDS), gaps(avatar.points, LIDS) / 2, atol=0.003)


def test_pupils_follow(make_face: MakeFace) -> None:
    avatar = make_face()
    move = retarget(avatar, make_face())

    def look_aside(shape: Floats) -> None:
        shape[468:, 0] += 0.3

    got = move(reshaped(make_face(), look_aside)) - crop(avatar)
    assert np.allclose(got[468:, 0] * 128, 0.3 * 8, atol=0.2)
    assert np.abs(got[:468]).max() * 128 < 0.2


def test_a_driver_who_leans_in_does_not_fill_the_picture(make_face: MakeFace) -> None:
    avatar = make_face()
    huge = retarget(avatar, make_face())(make_face(scale=24))
    width = np.linalg.norm(huge[454] - huge[234]) / np.linalg.norm(crop(avatar)[454] - crop(avatar)[234])
    assert width == pytest.approx(1.4, abs=0.01)


# --- the neutral face ---------------------------------------------------------------------------------------


def test_neutral_is_frontal_closed_and_awake(make_face: MakeFace) -> None:
    best = neutrality(reshaped(make_face(), with_lips(0.0)))
    for worse in (
        make_face(yaw_deg=20),
        make_face(pitch_deg=-20),
        make_face(mouth_open_cm=1.2),
        reshaped(make_face(), with_lids(0.0)),
    ):
        assert neutrality(worse) > best + 0.1


def test_finder_starts_with_the_best_it_was_primed_with(make_face: MakeFace) -> None:
    faces = [make_face(yaw_deg=25), make_face(mouth_open_cm=1.5), make_face(center_px=(120, 130)), make_face(30)]
    finder = NeutralFinder()
    finder.prime(faces)
    assert np.array_equal(finder.look(faces[0]).shape, to_head(faces[2]).shape)


def test_finder_moves_over_smoothly_and_never_to_a_worse_one(make_face: MakeFace) -> None:
    finder = NeutralFinder(ease_s=0.5)
    first = make_face(yaw_deg=20, mouth_open_cm=1.0)
    better = make_face(center_px=(150, 120), scale=9, time_s=1.0)
    before = finder.look(replace(first, time_s=0.97))
    way = float(np.abs(to_head(better).to_picture() - before.to_picture()).max())
    shown = [before]
    for frame in range(90):
        face = better if frame == 0 else make_face(yaw_deg=30, mouth_open_cm=2)
        shown.append(finder.look(replace(face, time_s=1 + frame / 30)))
    pictures = [one.to_picture() for one in shown]
    steps = [float(np.abs(b - a).max()) for a, b in pairwise(pictures)]
    assert max(steps) < 0.12 * way, "a jump"
    left = [float(np.abs(one - to_head(better).to_picture()).max()) for one in pictures]
    assert left[16] < 0.5 * way
    assert left[-1] < 0.02 * way
    assert np.linalg.det(shown[5].rotation) == pytest.approx(1, abs=1e-4)


def test_a_pinned_neutral_stays(make_face: MakeFace) -> None:
    finder = NeutralFinder()
    pinned = make_face(yaw_deg=20, mouth_open_cm=1)
    finder.pin(pinned)
    finder.prime([make_face()])
    for frame in range(40):
        assert np.array_equal(finder.look(make_face(time_s=frame / 10)).shape, to_head(pinned).shape)


def test_a_neutral_found_elsewhere_is_reached_smoothly_and_kept(make_face: MakeFace) -> None:
    finder = NeutralFinder(ease_s=0.5)
    finder.look(make_face(mouth_open_cm=1, time_s=0))
    goal = make_face(mouth_open_cm=0.3)
    finder.lead(goal)
    gaps = []
    for frame in range(1, 30):
        shown = finder.look(make_face(time_s=frame / 20)).shape
        gaps.append(float(np.abs(shown - to_head(goal).shape).max()))
    assert gaps[0] > 0.3, "no jump"
    assert all(later <= earlier for earlier, later in pairwise(gaps))
    assert gaps[-1] < 0.06 * gaps[0], "though a better neutral face was seen meanwhile"


# --- rest ---------------------------------------------------------------------------------------------------

RESTING = np.zeros((478, 3), np.float32)
FACE = np.ones((478, 3), np.float32)
FPS = 30


def test_rest_passes_faces_through() -> None:
    rest = Rest(RESTING, hold_s=0.5, ease_s=1.0)
    for frame in range(5):
        points = FACE * frame
        assert np.array_equal(rest.seen(points, frame / FPS), points)


def test_rest_holds_then_eases_then_stays() -> None:
    rest = Rest(RESTING, hold_s=0.5, ease_s=1.0)
    rest.seen(FACE, 0.0)
    shown = np.array([rest.missing(NoFace(frame / FPS))[0, 0] for frame in range(1, 90)])
    at_s = np.arange(1, 90) / FPS
    assert (shown[at_s <= 0.5] == 1).all()
    assert (np.diff(shown) <= 0).all()
    assert shown[at_s.searchsorted(1.0)] == pytest.approx(0.5, abs=0.02)
    assert (shown[at_s > 1.5] == 0).all()
    assert np.abs(np.diff(shown)).max() < 1.6 / FPS


@pytest.mark.parametrize("away_s", [0.1, 0.7, 1.2, 5.0])
def test_rest_returns_without_a_jump(away_s: float) -> None:
    """Lost for a while, back somewhere else, lost again while still on the way: no step exceeds the eased ones."""
    rest = Rest(RESTING, hold_s=0.5, ease_s=1.0, back_s=0.2)
    shown = [rest.seen(FACE, 0.0)]
    now = 0.0

    def advance(seconds: float, points: Floats | None) -> None:
        nonlocal now
        for _ in range(round(seconds * FPS)):
            now += 1 / FPS
            shown.append(rest.missing(NoFace(now)) if points is None else rest.seen(points, now))

    advance(away_s, None)
    advance(0.1, -FACE)
    advance(0.4, None)
    advance(1.0, -FACE)
    levels = np.array([one[0, 0] for one in shown])
    assert levels[-1] == -1
    assert np.abs(np.diff(levels)).max() < 2 * 1.6 / (0.2 * FPS)


def test_rest_before_the_first_face_and_into_it() -> None:
    rest = Rest(RESTING, hold_s=0.5, ease_s=1.0, back_s=0.2)
    before = [rest.missing(NoFace(frame / FPS)) for frame in range(10)]
    assert all(np.array_equal(one, RESTING) for one in before)
    after = [rest.seen(FACE, (10 + frame) / FPS)[0, 0] for frame in range(10)]
    assert np.abs(np.diff([0, *after])).max() < 1.6 / (0.2 * FPS)
    assert after[-1] == 1


def test_rest_without_easing_jumps_once() -> None:
    rest = Rest(RESTING, hold_s=0.0, ease_s=0.0, back_s=0.0)
    rest.seen(FACE, 0.0)
    assert np.array_equal(rest.missing(NoFace(0.1)), RESTING)
    assert np.array_equal(rest.seen(FACE, 0.2), FACE)


# --- turning ---


@pytest.mark.parametrize("angles", [(20.0, 0.0, 0.0), (0.0, -15.0, 0.0), (10.0, 5.0, -20.0), (-50.0, 25.0, 30.0)])
def test_a_rotation_of_angles_is_read_as_these_angles(angles: tuple[float, float, float]) -> None:
    assert euler_deg(head_rotation(*angles)) == pytest.approx(angles, abs=1e-3)


def test_a_tilted_driver_turns_an_upright_avatar_angle_by_angle(make_face: MakeFace) -> None:
    """A camera that sees the driver from below and askew: the avatar nods and turns by as much, and does not tilt."""
    neutral, avatar = to_head(make_face(pitch_deg=20, roll_deg=15)), to_head(make_face(yaw_deg=-5))
    now = to_head(make_face(yaw_deg=30, pitch_deg=26, roll_deg=15))
    assert turned_by(now, neutral) == pytest.approx([30, 6, 0], abs=1e-3)
    assert euler_deg(turned(avatar, turned_by(now, neutral))) == pytest.approx([25, 6, 0], abs=1e-3)


def test_a_head_that_is_upside_down_has_turned_the_short_way(make_face: MakeFace) -> None:
    assert turned_by(to_head(make_face(roll_deg=-175)), to_head(make_face(roll_deg=175)))[2] == pytest.approx(
        10, abs=0.01
    )
