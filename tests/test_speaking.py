"""A voice in the place of a face: when it takes over, what it moves, how it lives, and the way back."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from engine import geometry
from engine.factors import opening_of, shipped_anatomy
from engine.frames import Face, NoFace
from engine.motion import to_head
from plugin.speaking import FADE_S, Speaking, Spoken

Floats = NDArray[np.float32]
FPS = 30
SILENT = np.zeros(1 + len(shipped_anatomy().rows), np.float32)


@pytest.fixture
def canvas(make_face: Callable[..., Face]) -> Face:
    return make_face()


def rest_of(canvas: Face) -> Floats:
    return geometry.to_crop_units(canvas.points, canvas.size_px[0])


def open_by(cm: float) -> Floats:
    codes = SILENT.copy()
    codes[0] = cm
    return codes


def mouth(points: Floats) -> float:
    return float(points[14, 1] - points[13, 1])


def lids(points: Floats) -> float:
    return float(points[145, 1] - points[159, 1])


def spoken(speaking: Speaking, canvas: Face, seconds: float, codes: Floats = SILENT, **settings: float) -> Floats:
    """`[frames, 478, 3]`."""
    rest = rest_of(canvas)
    start = speaking._last_s or 0.0
    made = [speaking(rest, Spoken(start + k / FPS, codes), **settings) for k in range(1, round(seconds * FPS) + 1)]
    return np.stack(made)


def test_a_face_passes_through_untouched(canvas: Face) -> None:
    speaking, points = Speaking(canvas), rest_of(canvas)
    assert speaking(points, canvas) is points
    assert speaking(points, NoFace(0.1)) is points
    assert speaking.share == 0


def test_the_voice_takes_over_and_gives_back_softly(canvas: Face, make_face: Callable[..., Face]) -> None:
    """From a face turned aside with its mouth open, to silence, and back: no point ever jumps."""
    speaking = Speaking(canvas)
    aside = geometry.to_crop_units(make_face(yaw_deg=12, mouth_open_cm=1.0).points, 256)
    shown: list[Floats] = []
    for frame in range(3 * FPS):
        time_s = frame / FPS
        there = frame < FPS or frame >= 2 * FPS
        tracked = make_face(time_s=time_s) if there else Spoken(time_s, SILENT)
        shown.append(speaking(aside, tracked))
    assert np.array_equal(shown[FPS - 1], aside)
    assert np.array_equal(shown[-1], aside)
    assert mouth(shown[2 * FPS - 1]) == pytest.approx(mouth(rest_of(canvas)), abs=0.004), "silence shuts the mouth"
    steps = np.abs(np.diff(np.stack(shown), axis=0)).max(axis=(1, 2))
    apart = np.abs(shown[2 * FPS - 1] - aside).max()
    assert steps.max() < 0.25 * apart, "a third of a second, eased"
    away = np.flatnonzero(steps > 1e-6)
    assert away[0] >= FPS - 1
    assert away[-1] <= 2 * FPS + round(FADE_S * FPS) + 1


def test_lips_follow_the_codes_and_the_gain(canvas: Face) -> None:
    rest = mouth(rest_of(canvas))
    opened = [mouth(spoken(Speaking(canvas), canvas, 0.5, open_by(cm))[-1]) - rest for cm in (0.0, 0.2, 0.4)]
    assert opened[0] == pytest.approx(0, abs=0.004)
    assert opened[1] > 0.01
    assert opened[2] == pytest.approx(2 * opened[1], rel=0.15)
    still = spoken(Speaking(canvas), canvas, 0.5, open_by(0.4), expression=0.0)[-1]
    assert mouth(still) == pytest.approx(rest, abs=0.004)


def test_it_lives_while_it_is_silent(canvas: Face) -> None:
    """Blinks every 2 to 7 s that shut the eyes for about a sixth of a second, and a head that sways a degree or so."""
    shown = spoken(Speaking(canvas), canvas, 40.0)[FPS:]
    wide = lids(rest_of(canvas))
    narrow = np.array([lids(one) for one in shown]) < 0.5 * wide
    starts = np.flatnonzero(np.diff(narrow.astype(int)) == 1)
    lengths = np.flatnonzero(np.diff(narrow.astype(int)) == -1)[: len(starts)] - starts
    assert 40 / 7 - 1 <= len(starts) <= 40 / 2
    assert (np.diff(starts) / FPS >= 1.9).all()
    assert (np.diff(starts) / FPS <= 7.3).all()
    assert (lengths / FPS >= 0.09).all()
    assert (lengths / FPS <= 0.25).all()
    nose = shown[:, 1, :2]
    assert 0.003 < nose.std(0).max() < 0.05, "crop units: half the square's side"
    assert np.abs(np.diff(nose, axis=0)).max() < 0.004, "never with a jerk"
    assert max(mouth(one) for one in shown) < mouth(rest_of(canvas)) + 0.006


def test_steadiness_keeps_the_head_still(canvas: Face) -> None:
    shown = spoken(Speaking(canvas), canvas, 10.0, steadiness=1.0)[FPS:]
    assert shown[:, 1].std(0).max() < 1e-5
    assert np.array([lids(one) for one in shown]).std() > 0.001, "blinks stay"


def test_mood_moves_the_corners_of_the_mouth(canvas: Face) -> None:
    heights = [
        spoken(Speaking(canvas), canvas, 0.5, mood=mood, steadiness=1.0)[-1][[61, 291], 1].mean()
        for mood in (-1.0, 0.0, 1.0)
    ]
    assert heights[0] > heights[1] + 0.01 > heights[2] + 0.02, "y grows downwards"


def test_the_same_calls_make_the_same_motion(canvas: Face) -> None:
    one, two, other = (spoken(Speaking(canvas, seed), canvas, 3.0) for seed in (1, 1, 2))
    assert np.array_equal(one, two)
    assert not np.allclose(one, other, atol=1e-3)


def test_hours_and_jumps_of_the_clock_are_nothing(canvas: Face) -> None:
    speaking = Speaking(canvas)
    spoken(speaking, canvas, 1.0)
    speaking(rest_of(canvas), NoFace(90_000.0))
    assert speaking._alive_s < 2.0, "no blinks are made up for"
    speaking(rest_of(canvas), Spoken(10.0, SILENT))
    after = spoken(speaking, canvas, 1.0)
    assert np.isfinite(after).all()


def test_lips_meet_on_an_avatar_that_rests_with_its_mouth_open(make_face: Callable[..., Face]) -> None:
    canvas = make_face(mouth_open_cm=0.4)
    shown = spoken(Speaking(canvas), canvas, 0.5, open_by(-1.0))[-1]
    assert opening_of(to_head(canvas).shape) > 0.3
    assert mouth(shown) == pytest.approx(0, abs=0.004)
