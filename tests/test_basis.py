"""What the codec's basis is learned with: the same arithmetic as the codec's, and tables that can code anything."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from engine.codec import COUNT_BITS, POSE, QUALITIES, Encoder, shipped_basis
from engine.frames import Face, NoFace
from tests.test_codec import talking
from training import basis as learning
from training.measure_codec import errors, gaze_deg, mean, sent, sent_thin


def test_packets_are_learned_from_as_they_are_sent() -> None:
    basis, faces = shipped_basis(), talking()[:40]
    encoder = Encoder(3, neutral=faces[0])
    values = learning.parameters(faces, encoder._now.neutral, encoder._analysis)
    cut = learning.windows([values], 5)
    assert cut.shape == (5, 8, basis.parameter_count)
    assert np.array_equal(cut[:, 2], values[10:15])
    found = dict(learning.differences(basis, cut, 3))
    levels = encoder._quantised(faces[10:15], 3)
    assert set(found) == {0, 4, 14 + 4, 14 + 2}
    off = found[0][2] - (levels[0] - basis.means[3])
    assert not off[:POSE].any()
    assert np.abs(off).max() <= 2, "the encoder weighs bits as well"


def test_a_histogram_counts_every_difference() -> None:
    rng = np.random.default_rng(0)
    found = rng.integers(-500, 501, (300, 4))
    counted = learning.histograms(found)
    assert counted.shape == (4, 2 * learning.REACH + 1)
    assert (counted.sum(axis=1) == 300).all()
    assert counted[2, learning.REACH + 7] == (found[:, 2] == 7).sum()
    assert counted[1, -1] == (found[:, 1] >= learning.REACH).sum()


@pytest.mark.parametrize("histogram", [[1.0], [0.0, 0.0, 1.0], [1e-9, 5.0, 3.0], list(range(1, 700))])
def test_counts_are_whole_and_none_is_zero(histogram: list[float]) -> None:
    sums = learning.cumulative(np.array(histogram))
    assert sums[0] == 0
    assert sums[-1] == 1 << COUNT_BITS
    assert (np.diff(sums) > 0).all()


def test_tables_follow_the_size_of_differences() -> None:
    sizes = np.array([1e-6, 0.1, 1.0, 2.0, 1e6])
    tables = learning.table_of(sizes)
    assert tables[0] == 0
    assert tables[3] - tables[2] == learning.PER_OCTAVE
    assert tables[4] == learning.PER_OCTAVE * learning.OCTAVES - 1


def test_steps_grow_and_those_of_lips_grow_less() -> None:
    share = np.linspace(0, 1, learning.EXPRESSIONS)
    steps = learning.ladder(share)
    assert steps.shape == (QUALITIES, POSE + learning.EXPRESSIONS)
    assert (np.diff(steps, axis=0) < 0).all()
    assert (np.diff(steps[0, POSE:] / steps[4, POSE:]) < 0).all()


def test_tracks_are_kept_with_their_gaps(tmp_path: Path) -> None:
    faces: list[Face | NoFace] = [talking()[0], NoFace(0.04), talking()[2]]
    learning.save_track(tmp_path / "train" / "a.npz", faces)
    back = learning.load_track(tmp_path / "train" / "a.npz")
    assert isinstance(back[1], NoFace)
    assert isinstance(back[2], Face)
    assert np.array_equal(back[2].points, talking()[2].points)
    assert back[2].size_px == talking()[2].size_px
    assert [one.time_s for one in back] == pytest.approx([one.time_s for one in faces])


def test_what_is_measured() -> None:
    clip = talking()[:30]
    arrived, cost, neutral = sent(clip, 5, 4)
    assert neutral is not None
    assert len(arrived) == len(clip)
    assert cost["kbit/s"] > 1
    assert cost["headers"] == 1
    told = mean([errors(a, b) for a, b in zip(arrived, clip, strict=True) if isinstance(a, Face)])
    assert 0 < told["points"] < 1
    assert 0 < told["gaze"] < 3
    assert errors(clip[0], clip[0])["points"] == 0
    assert mean([{"a": 1.0}, {"a": 3.0, "b": 5.0}]) == {"a": 2.0, "b": 5.0}
    assert np.abs(gaze_deg(clip[0])).max() < 60


def test_the_lowest_rung_is_measured_with_what_lies_between() -> None:
    clip: list[Face | NoFace] = list(talking()[:60])
    arrived, cost, _ = sent_thin(clip)
    assert len(arrived) == len(clip)
    assert 10 < cost["faces/s"] < 19
    assert cost["kbit/s"] < 1.7
    drawn = [(a, b) for a, b in zip(arrived[:55], clip, strict=False) if isinstance(a, Face) and isinstance(b, Face)]
    assert len(drawn) > 50
    assert mean([errors(a, b) for a, b in drawn])["points"] < 1.5
    away = list(clip)
    away[20:30] = [NoFace(face.time_s) for face in clip[20:30]]
    seen, _, _ = sent_thin(away)
    assert all(isinstance(face, NoFace) for face in seen[23:27])
    assert [face.time_s for face in seen] == [face.time_s for face in away]


def test_the_shipped_steps_are_those_that_would_be_learned() -> None:
    basis = shipped_basis()
    live = (basis.expression * basis.weights_xyz).reshape(learning.EXPRESSIONS, -1, 3) ** 2
    share = live[:, basis.weights > 1].sum(axis=(1, 2)) / live.sum(axis=(1, 2))
    assert np.allclose(learning.ladder(share.astype(np.float64)), basis.steps, rtol=1e-4)
