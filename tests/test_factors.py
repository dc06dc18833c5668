"""Factors: taken apart and put together nothing is lost, and each follows its own source alone."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import pytest

from engine import geometry
from engine.factors import (
    Factors,
    Idle,
    Mixer,
    Sources,
    Splitter,
    eyes_of,
    gaps_of,
    opening_of,
    pose_of,
    shares,
    shipped_anatomy,
    still,
)
from engine.frames import Face
from engine.motion import NeutralFinder, to_head
from engine.tracker import euler_deg
from tests.conftest import landmarks

MakeFace = Callable[..., Face]
FPS = 25


def changed(face: Face, blink: float = 0.0, look_cm: float = 0.0, smile_cm: float = 0.0, brows_cm: float = 0.0) -> Face:
    """The same head with other lids (0 open to 1 shut), irises, corners of the mouth and brows."""
    head = to_head(face)
    shape = head.shape.copy()
    for eye in (geometry.EYE_RIGHT, geometry.EYE_LEFT):
        for upper, lower in zip(eye[1:8], reversed(eye[9:]), strict=True):
            shape[upper, 1] -= blink * (shape[upper, 1] - shape[lower, 1])
    shape[468:, 0] += look_cm
    shape[[61, 78], 0] -= smile_cm
    shape[[291, 308], 0] += smile_cm
    shape[[*geometry.BROW_RIGHT, *geometry.BROW_LEFT], 1] += brows_cm
    return dataclasses.replace(face, points=dataclasses.replace(head, shape=shape).to_picture())


def splitter(canvas: Face, neutral: Face) -> Splitter:
    finder = NeutralFinder()
    finder.pin(neutral)
    return Splitter(to_head(canvas), finder)


def lids_cm(face: Face) -> float:
    shape = to_head(face).shape
    return float(shape[159, 1] - shape[145, 1])


def looks_cm(face: Face) -> float:
    shape = to_head(face).shape
    return float(shape[468, 0] - shape[[33, 133], 0].mean())


def brows_cm(face: Face) -> float:
    return float(to_head(face).shape[105, 1])


def width_cm(face: Face) -> float:
    shape = to_head(face).shape
    return float(shape[291, 0] - shape[61, 0])


def measured(face: Face) -> dict[str, float]:
    yaw, pitch, roll = euler_deg(face.rotation)
    return {
        "yaw": yaw,
        "pitch": pitch,
        "roll": roll,
        "lids": lids_cm(face),
        "gaze": looks_cm(face),
        "opening": opening_of(to_head(face).shape),
        "brows": brows_cm(face),
    }


OWNED = {"pose": {"yaw", "pitch", "roll"}, "eyes": {"lids", "gaze"}, "lips": {"opening"}, "expression": {"brows"}}


def lively(make_face: MakeFace, frame: int) -> Face:
    """A performance in which everything moves, each at a rate of its own; speech at 4 Hz, a slow smile."""
    t = frame / FPS
    face = make_face(
        yaw_deg=15 * math.sin(1.1 * t),
        pitch_deg=6 * math.sin(0.7 * t),
        roll_deg=5 * math.sin(0.9 * t),
        center_px=(128 + 10 * math.sin(0.8 * t), 128.0),
        scale=8 + math.sin(0.5 * t),
        mouth_open_cm=0.6 + 0.5 * math.sin(2 * math.pi * 4 * t),
        time_s=t,
    )
    blink = max(math.sin(2 * math.pi * 0.7 * t) - 0.8, 0) * 5
    return changed(face, blink, 0.3 * math.sin(1.9 * t), 0.3 * math.sin(0.4 * t) ** 2, 0.4 * math.sin(1.3 * t))


# --- nothing is lost ----------------------------------------------------------------------------------------


def test_taken_apart_and_put_together_it_is_the_same_face(make_face: MakeFace) -> None:
    canvas = make_face()
    split, mix = Splitter(to_head(canvas)), Mixer(canvas)
    for frame in range(0, 60, 3):
        face = lively(make_face, frame)
        again = mix(Sources.all(split(face)), face.time_s)
        assert np.abs(again.points - face.points).max() < 1e-3
        assert np.allclose(again.rotation, face.rotation, atol=1e-5)
        assert (again.time_s, again.size_px) == (face.time_s, face.size_px)
        assert again.scale == pytest.approx(face.scale)


def test_the_shares_of_the_factors_are_whole() -> None:
    eyes, mouth = shares()
    assert ((eyes >= 0) & (mouth >= 0) & (eyes + mouth <= 1 + 1e-6)).all()
    assert (eyes[[*geometry.EYE_RIGHT, *geometry.EYE_LEFT, *range(468, 478)]] == 1).all()
    assert (mouth[[*geometry.LIPS_INNER, *geometry.LIPS_OUTER, 152]] == 1).all()
    assert (eyes[[*geometry.BROW_RIGHT, *geometry.BROW_LEFT]] == 0).all()
    anatomy = shipped_anatomy()
    assert opening_of(anatomy.opening) == pytest.approx(1, abs=0.01)
    assert np.abs(anatomy.opening[mouth[:, 0] == 0]).max() == 0


def test_a_neutral_face_has_no_factors(make_face: MakeFace) -> None:
    canvas = make_face()
    rest, found = still(to_head(canvas)), Splitter(to_head(canvas))(canvas)
    for name in ("pose", "eyes", "lips", "gaps", "expression"):
        assert np.allclose(getattr(found, name), getattr(rest, name), atol=1e-4), name


# --- each follows its own -----------------------------------------------------------------------------------


@pytest.mark.parametrize("driven", list(OWNED))
def test_one_factor_from_another_and_the_rest_still(make_face: MakeFace, driven: str) -> None:
    """What the driven factor owns moves as in its source; everything else by less than a twentieth of what it could."""
    canvas = make_face()
    split, mix, rest = splitter(canvas, make_face()), Mixer(canvas), still(to_head(canvas))
    source, shown = [], []
    for frame in range(0, 200, 2):
        face = lively(make_face, frame)
        given = dict.fromkeys(OWNED, rest) | {driven: split(face)}
        shown.append(measured(mix(Sources(**given), face.time_s)))
        source.append(measured(face))
    for name, owned in OWNED.items():
        for key in owned:
            wanted, found = (np.array([one[key] for one in rows]) for rows in (source, shown))
            if name == driven:
                assert np.corrcoef(wanted, found)[0, 1] > 0.98, key
                assert found.std() == pytest.approx(wanted.std(), rel=0.1), key
            else:
                assert found.std() < 0.05 * wanted.std(), key


def test_four_sources_on_one_face_of_another_shape(make_face: MakeFace) -> None:
    wide = make_face(scale=9.5, center_px=(120.0, 140.0))
    canvas = dataclasses.replace(wide, points=landmarks("man_still"))
    rest = make_face()
    given = {
        "pose": splitter(canvas, rest)(make_face(yaw_deg=12.0)),
        "eyes": splitter(canvas, rest)(changed(make_face(), blink=1.0)),
        "lips": splitter(canvas, rest)(make_face(mouth_open_cm=1.0)),
        "expression": splitter(canvas, rest)(changed(make_face(), brows_cm=0.5)),
    }
    asked = Mixer(canvas)(Sources(**given), 0.0)
    before = measured(canvas)
    after = measured(asked)
    assert after["yaw"] - before["yaw"] == pytest.approx(12, abs=0.5)
    assert after["lids"] < 0.1 * before["lids"]
    assert after["opening"] - before["opening"] > 0.7
    assert after["brows"] - before["brows"] == pytest.approx(0.5, abs=0.15)


def test_a_slow_smile_is_expression_and_a_fast_one_is_speech(make_face: MakeFace) -> None:
    """The smile of one, the lips of another: what stays belongs to the first, what flits to the second."""
    canvas = make_face()
    smiling, mix, rest = Splitter(to_head(canvas)), Mixer(canvas), still(to_head(canvas))
    plain = width_cm(canvas)
    kept, flitted = [], []
    for frame in range(150):
        t = frame / FPS
        given = smiling(changed(make_face(time_s=t), smile_cm=0.4 + 0.1 * math.sin(2 * math.pi * 4 * t)))
        kept.append(width_cm(mix(dataclasses.replace(Sources.all(rest), expression=given), t)) - plain)
        flitted.append(width_cm(mix(dataclasses.replace(Sources.all(rest), lips=given), t)) - plain)
    late = slice(75, None)
    assert np.mean(kept[late]) == pytest.approx(0.8, abs=0.05)
    assert np.std(kept[late]) < 0.15 * np.std(flitted[late])
    assert abs(np.mean(flitted[late])) < 0.05


def test_lips_that_touch_in_their_source_touch_whatever_the_expression(make_face: MakeFace) -> None:
    canvas = make_face()
    split, mix = Splitter(to_head(canvas)), Mixer(canvas)
    rest = still(to_head(canvas))
    shut = dataclasses.replace(rest, gaps=np.zeros(9, np.float32))
    gaping = split(changed(make_face(mouth_open_cm=2.0), smile_cm=0.5))
    asked = mix(dataclasses.replace(Sources.all(rest), lips=shut, expression=gaping), 0.0)
    assert np.abs(gaps_of(to_head(asked).shape)).max() < 1e-3


def test_nothing_of_the_future_is_known(make_face: MakeFace) -> None:
    faces = [lively(make_face, frame) for frame in range(20)]
    short, long = Splitter(to_head(make_face())), Splitter(to_head(make_face()))
    whole = [long(face) for face in faces]
    for one, other in zip([short(face) for face in faces[:10]], whole, strict=False):
        assert all(np.array_equal(getattr(one, name), getattr(other, name)) for name in ("lips", "expression", "gaps"))


def test_eyes_that_are_carried_along_with_their_corners_do_not_move(make_face: MakeFace) -> None:
    """Where the corners of the eyes are found is no matter of lids or gaze; a blink on top of it is."""
    canvas = make_face()
    head, split = to_head(canvas), Splitter(to_head(canvas))
    eyes = [*geometry.EYE_RIGHT, *geometry.EYE_LEFT, *range(468, 478)]
    shape = head.shape.copy()
    shape[eyes] += np.array([0.05, 0.2, 0.0], np.float32)
    carried = dataclasses.replace(canvas, points=dataclasses.replace(head, shape=shape).to_picture())
    assert np.abs(split(carried).eyes[eyes]).max() < 1e-3
    asked = Mixer(canvas)(dataclasses.replace(Sources.all(still(head)), eyes=split(changed(carried, blink=1.0))), 0.0)
    assert lids_cm(asked) == pytest.approx(0, abs=0.02)
    assert brows_cm(asked) == pytest.approx(brows_cm(canvas), abs=1e-3)


# --- from no face -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("angles", [(20.0, 0.0, 0.0), (0.0, -15.0, 0.0), (10.0, 5.0, -20.0)])
def test_a_pose_of_numbers(make_face: MakeFace, angles: tuple[float, float, float]) -> None:
    canvas = make_face()
    rest = still(to_head(canvas))
    turned = dataclasses.replace(rest, pose=pose_of(*angles))
    asked = Mixer(canvas)(dataclasses.replace(Sources.all(rest), pose=turned), 0.0)
    assert np.allclose(euler_deg(asked.rotation), angles, atol=0.1)


def test_eyes_of_numbers(make_face: MakeFace) -> None:
    canvas = make_face()
    head = to_head(canvas)

    def looking(**numbers: float) -> Face:
        rest = still(head)
        given = dataclasses.replace(rest, eyes=eyes_of(head, **numbers))
        return Mixer(canvas)(dataclasses.replace(Sources.all(rest), eyes=given), 0.0)

    assert np.abs(looking().points - canvas.points).max() < 1e-4
    assert lids_cm(looking(open_share=0.0)) == pytest.approx(0, abs=1e-3)
    assert lids_cm(looking(open_share=0.5)) == pytest.approx(0.5 * lids_cm(canvas), abs=1e-3)
    assert looks_cm(looking(aside_deg=20)) > looks_cm(canvas) + 0.3
    assert looking(up_deg=15).points[468, 1] < canvas.points[468, 1] - 1, "up in the picture"


def test_a_head_left_to_itself_blinks_and_hardly_moves(make_face: MakeFace) -> None:
    canvas = make_face()
    head = to_head(canvas)
    rest, idle, mix = still(head), Idle(head, seed=3), Mixer(canvas)
    lids, yaws = [], []
    for frame in range(60 * FPS):
        t = frame / FPS
        given = Factors(idle.pose(t), idle.eyes(t), rest.lips, rest.gaps, rest.expression)
        asked = mix(Sources.all(given), t)
        lids.append(lids_cm(asked) / lids_cm(canvas))
        yaws.append(euler_deg(asked.rotation)[0])
    shut = np.array(lids) < 0.35
    blinks = int((np.diff(shut.astype(int)) == 1).sum())
    assert 8 <= blinks <= 30, "people blink 8 to 30 times a minute"
    assert np.mean(shut) < 0.1
    assert 0.2 < np.std(yaws) < 2
    assert np.abs(np.diff(yaws)).max() * FPS < 3, "degrees a second"
