"""Control: gains, steadiness, limits and confidence act on the driver's motion, and change nothing when neutral."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest

from engine import geometry
from engine.control import Control, Gains, TurnLimits
from engine.frames import Face
from engine.motion import to_head
from engine.tracker import euler_deg
from tests.conftest import rotation_from_euler

MakeFace = Callable[..., Face]
UPPER, LOWER = 159, 145


def lips_cm(face: Face) -> float:
    shape = to_head(face).shape
    return float(shape[13, 1] - shape[14, 1])


def lids_cm(face: Face) -> float:
    shape = to_head(face).shape
    return float(shape[UPPER, 1] - shape[LOWER, 1])


def blinking(face: Face, share: float) -> Face:
    """The same face with its right eye closed by this share."""
    points = face.points.copy()
    for upper, lower in zip(geometry.EYE_RIGHT[1:8], reversed(geometry.EYE_RIGHT[9:]), strict=True):
        points[upper] += share * (points[lower] - points[upper])
    return dataclasses.replace(face, points=points)


def looking(face: Face, aside_px: float) -> Face:
    points = face.points.copy()
    points[[*geometry.IRIS_RIGHT, *geometry.IRIS_LEFT], 0] += aside_px
    return dataclasses.replace(face, points=points)


def started(make_face: MakeFace, **gains: float) -> Control:
    control = Control(gains=Gains(**gains))
    control.calibrate(make_face(time_s=0.0))
    control(make_face(time_s=0.0))
    return control


def test_nothing_is_changed_by_default(make_face: MakeFace) -> None:
    control = started(make_face)
    face = make_face(yaw_deg=12, pitch_deg=-5, mouth_open_cm=1.0, time_s=0.1)
    assert control(face) is face


@pytest.mark.parametrize("gain", [0.0, 0.5, 1.5])
def test_expression_gain(make_face: MakeFace, gain: float) -> None:
    control = started(make_face, expression=gain)
    rest = lips_cm(make_face())
    asked = control(make_face(mouth_open_cm=1.0, yaw_deg=10, time_s=0.1))
    assert lips_cm(asked) - rest == pytest.approx(gain * 1.0, abs=0.05)
    assert euler_deg(asked.rotation)[0] == pytest.approx(10, abs=0.1), "the turn is not expression"


@pytest.mark.parametrize("gain", [0.0, 0.5, 1.0])
def test_blink_gain_is_apart_from_expression(make_face: MakeFace, gain: float) -> None:
    control = started(make_face, blink=gain, expression=0.3)
    wide = lids_cm(make_face())
    asked = control(blinking(make_face(time_s=0.1), 0.8))
    assert lids_cm(asked) == pytest.approx(wide * (1 - 0.8 * gain), abs=0.02 * wide)


def test_lids_never_cross(make_face: MakeFace) -> None:
    control = started(make_face, blink=1.5)
    assert lids_cm(control(blinking(make_face(time_s=0.1), 1.0))) >= -1e-4


def test_gaze_gain(make_face: MakeFace) -> None:
    rest = make_face()
    moved = {}
    for gain in (0.0, 0.5, 1.0):
        control = started(make_face, gaze=gain, expression=0.99)
        moved[gain] = float(control(looking(make_face(time_s=0.1), 2.0)).points[468, 0] - rest.points[468, 0])
    assert moved[0.0] == pytest.approx(0.0, abs=0.02)
    assert moved[0.5] == pytest.approx(1.0, abs=0.05)
    assert moved[1.0] == pytest.approx(2.0, abs=0.05)


def test_steadiness_holds_the_head_and_leaves_the_mouth(make_face: MakeFace) -> None:
    moved = {"yaw_deg": 20.0, "roll_deg": 10.0, "center_px": (150.0, 120.0), "scale": 9.0, "mouth_open_cm": 1.0}
    still = started(make_face, steadiness=1.0)(make_face(**moved, time_s=0.1))
    assert np.allclose(euler_deg(still.rotation), 0, atol=0.1)
    assert np.allclose(still.translation, make_face().translation, atol=0.1)
    assert still.scale == pytest.approx(8.0, abs=0.01)
    assert lips_cm(still) - lips_cm(make_face()) == pytest.approx(1.0, abs=0.05)
    half = started(make_face, steadiness=0.5)(make_face(**moved, time_s=0.1))
    assert euler_deg(half.rotation)[0] == pytest.approx(10, abs=0.3)


def test_turns_are_eased_into_their_limits(make_face: MakeFace) -> None:
    frontal = make_face().rotation
    seen = [rotation_from_euler(yaw, 0, 0).astype(np.float32) for yaw in (-10.0, 0.0, 25.0)]
    limits = TurnLimits.of([np.asarray(one, np.float32) for one in seen], frontal, beyond_deg=15)
    assert np.allclose(limits.yaw_deg, (-25, 40), atol=0.1)
    assert np.allclose(limits.pitch_deg, (-15, 15), atol=0.1)
    control = Control(limits)
    control.calibrate(make_face(time_s=0.0))
    shown = []
    for number, yaw in enumerate(range(0, 90, 5)):
        shown.append(euler_deg(control(make_face(yaw_deg=float(yaw), time_s=0.1 * number)).rotation)[0])
    assert np.allclose(shown[:5], [0, 5, 10, 15, 20], atol=0.1), "well inside nothing is changed"
    assert max(shown) < 40
    assert (np.diff(shown) >= -1e-3).all(), "and it never turns back"


def test_an_unsure_face_is_eased_towards_rest_and_back(make_face: MakeFace) -> None:
    control = started(make_face)
    loud = {"yaw_deg": 20.0, "mouth_open_cm": 1.5}
    trace = []
    for number in range(1, 60):
        visibility = 0.4 if 10 <= number < 35 else 1.0
        face = dataclasses.replace(make_face(**loud, time_s=number / 30), visibility=visibility)
        trace.append(euler_deg(control(face).rotation)[0])
    assert trace[8] == pytest.approx(20, abs=0.1)
    assert trace[33] < 2.0
    assert trace[-1] > 18.0
    assert np.abs(np.diff(trace)).max() < 4.0, "eased, never torn"


def test_neutral_is_found_by_itself_from_what_was_really_seen(make_face: MakeFace) -> None:
    control = Control(gains=Gains(expression=2.0))
    control(make_face(yaw_deg=15, mouth_open_cm=1.0, time_s=0.0))
    for number in range(1, 40):
        control(make_face(time_s=number / 30))
    assert control.neutral.now is not None
    assert np.allclose(control.neutral.now.rotation, make_face().rotation, atol=0.02)
    asked = control(make_face(time_s=2.0))
    assert np.abs(asked.points - make_face().points).max() < 0.3


# --- eye contact, lids that hang ----------------------------------------------------------------------------


def looks_px(face: Face, rest: Face) -> float:
    return float(face.points[468, 0] - rest.points[468, 0])


def test_a_gaze_near_the_camera_is_drawn_to_it_and_a_far_one_let_go(make_face: MakeFace) -> None:
    control, rest = started(make_face, contact=1.0), make_face()
    asked = [float(px) for px in np.arange(-6, 6.01, 0.1)]
    shown = [looks_px(control(looking(make_face(time_s=0.1 + k / 30), px)), rest) for k, px in enumerate(asked)]
    near, far = np.abs(asked) < 1.2, np.abs(asked) > 3.0
    assert np.abs(np.array(shown)[near]).max() < 0.15, "8 degrees off becomes less than one"
    assert np.abs(np.array(shown)[near]).max() > 0, "and never stares"
    assert np.allclose(np.array(shown)[far], np.array(asked)[far], atol=0.05)
    assert (np.diff(shown) > 0).all(), "no jump and no way back"
    assert np.abs(np.diff(shown)).max() < 1.0


def test_eyes_stay_on_the_camera_when_the_head_turns(make_face: MakeFace) -> None:
    """A head turned aside whose eyes are in their middle looks past the camera; turned back, they look into it."""
    control = started(make_face, contact=1.0)
    turned = make_face(yaw_deg=6.0, time_s=0.1)
    before, after = to_head(turned).shape, to_head(control(turned)).shape
    iris_cm = float(after[468, 0] - before[468, 0])
    depth = np.array([0.0, 0.0, 1.2]) + np.array([iris_cm, 0.0, 0.0])
    gaze = turned.rotation @ (depth / np.linalg.norm(depth))
    straight = turned.rotation @ np.array([0.0, 0.0, 1.0])
    assert abs(gaze[0]) < 0.2 * abs(straight[0])
    far = to_head(control(make_face(yaw_deg=50.0, time_s=0.2))).shape
    assert abs(float(far[468, 0] - before[468, 0])) < 0.05, "out of reach, so they go with the head"


def test_lids_that_hang_are_lifted_and_blinks_stay(make_face: MakeFace) -> None:
    control = started(make_face, wake=1.0)
    wide = lids_cm(make_face())
    shares = np.arange(0, 1.001, 0.02)
    shown = [lids_cm(control(blinking(make_face(time_s=0.1 + k / 30), 1 - s))) / wide for k, s in enumerate(shares)]
    assert shown[0] == pytest.approx(0, abs=0.01)
    assert shown[int(0.7 / 0.02)] == pytest.approx(0.95, abs=0.03)
    assert shown[-1] == pytest.approx(1, abs=0.02)
    assert (np.diff(shown) > -1e-3).all()
    assert np.abs(np.diff(shown)).max() < 0.1


# --- mood ---------------------------------------------------------------------------------------------------


def corners_cm(face: Face) -> tuple[float, float]:
    """How far the mouth's corners are apart, and how high they stand."""
    shape = to_head(face).shape
    return float(np.linalg.norm(shape[61] - shape[291])), float((shape[61, 1] + shape[291, 1]) / 2)


@pytest.mark.parametrize("mood", [-1.0, 0.5, 1.0])
def test_a_mood_is_added_to_whatever_the_face_does(make_face: MakeFace, mood: float) -> None:
    for open_cm, yaw_deg in ((0.0, 0.0), (1.0, 15.0)):
        face = make_face(mouth_open_cm=open_cm, yaw_deg=yaw_deg, time_s=0.1)
        wide, high = corners_cm(face)
        asked = started(make_face, mood=mood)(face)
        wider, higher = corners_cm(asked)
        assert (wider - wide) * mood > 0.2 * mood * mood
        assert (higher - high) * mood > 0.1 * mood * mood
        assert lips_cm(asked) == pytest.approx(lips_cm(face), abs=0.06), "it opens no mouth"
        assert euler_deg(asked.rotation)[0] == pytest.approx(yaw_deg, abs=0.1)
        irises = [468, 473]
        assert np.allclose(to_head(asked).shape[irises], to_head(face).shape[irises], atol=0.01), "it looks nowhere"
