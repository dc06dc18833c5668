"""The shared smile: found beside open mouths and raised brows, the same for all, and it looks nowhere."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest

from engine import geometry
from engine.control import mood_shift
from engine.factors import opening_of
from engine.frames import Face
from training import mood as moods


def people(make_face: Callable[..., Face], count: int = 3) -> list[list[Face]]:
    """Who smile, speak and raise their brows, each to a time of its own; cheeks smile along."""
    made = []
    for person in range(count):
        faces = []
        for frame in range(200):
            smile, speech, brow = (0.5 + 0.5 * np.sin(frame / rate + person) for rate in (23, 3, 41))
            face = make_face(mouth_open_cm=0.8 * speech, scale=8.0 + person, time_s=frame / 25)
            points = face.points.copy()
            unit = face.scale
            points[61] += unit * smile * np.array([-0.5, -0.4, 0])
            points[291] += unit * smile * np.array([0.5, -0.4, 0])
            points[[205, 425], 1] -= unit * smile * 0.2
            points[[*geometry.BROW_RIGHT, *geometry.BROW_LEFT], 1] -= unit * brow * 0.4
            points[[*geometry.IRIS_RIGHT, *geometry.IRIS_LEFT], 0] += unit * smile * 0.3
            faces.append(dataclasses.replace(face, points=points))
        made.append(faces)
    return made


def test_a_smile_is_found_and_nothing_beside_it(make_face: Callable[..., Face]) -> None:
    smile = moods.learn(people(make_face))
    right, left = smile[61], smile[291]
    assert left[0] > 0.2 < -right[0]
    assert right[1] == pytest.approx(left[1], rel=0.1)
    assert smile[[205, 425], 1].mean() == pytest.approx(0.5 * left[1], rel=0.25), "what smiles along comes along"
    assert abs(opening_of(smile)) < 0.1 * left[1], "speech does not"
    assert np.abs(smile[105, 1]) < 0.15 * left[1]
    assert not smile[[*geometry.IRIS_RIGHT, *geometry.IRIS_LEFT]].any()


def test_too_little_is_refused(make_face: Callable[..., Face]) -> None:
    with pytest.raises(ValueError, match="shows a face clearly in 100 frames"):
        moods.learn([people(make_face, 1)[0][:30]])


def test_the_shipped_smile_smiles_on_both_sides_and_opens_no_mouth(make_face: Callable[..., Face]) -> None:
    neutral = moods.to_head(make_face()).shape
    moved = mood_shift(neutral, 1.0)
    assert 0.15 < moved[61, 1] < 0.5
    assert moved[61, 1] == pytest.approx(moved[291, 1], rel=0.1)
    assert moved[61, 0] == pytest.approx(-moved[291, 0], rel=0.15)
    assert abs(opening_of(moved)) < 0.1
    assert np.abs(moved).max() < 0.6
    assert np.array_equal(mood_shift(neutral, -0.5), -0.5 * moved)
    assert not mood_shift(neutral, 0.0).any()
