"""What the evaluation of the factors measures, and the matrix that it draws."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

from engine.frames import Face
from training.evaluate_factors import MEASURES, OWNED, columns, measured, picture, summary


def test_measures_tell_what_a_face_does(make_face: Callable[..., Face]) -> None:
    rest, asked = measured(make_face()), measured(make_face(yaw_deg=12, mouth_open_cm=1.0))
    assert set(rest) == set(MEASURES)
    assert asked["yaw"] - rest["yaw"] == pytest.approx(12, abs=0.1)
    assert asked["mouth"] - rest["mouth"] > 5
    assert abs(asked["brows"] - rest["brows"]) < 0.1


def test_frames_that_the_tracker_missed_lie_between_their_neighbours() -> None:
    rows = [dict.fromkeys(MEASURES, float(k)) if k != 2 else None for k in range(5)]
    assert columns(rows)["yaw"].tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="no face in most"):
        columns([*rows[:1], None, None, None])


def test_the_matrix(tmp_path: Path) -> None:
    one = {factor: {key: 0.9 if key in owned else 0.05 for key in MEASURES} for factor, owned in OWNED.items()}
    other = {factor: {"yaw": 0.5} for factor in OWNED}
    means = summary([one, other, one])
    assert means["pose"]["yaw"] == (0.9, 3)
    assert means["lips"]["mouth"] == (0.9, 2)
    picture(means, tmp_path / "matrix.png")
    with Pillow.open(tmp_path / "matrix.png") as drawn:
        assert np.asarray(drawn).std() > 20
