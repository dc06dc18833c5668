"""Identity: alignment puts every face in the same place; one person is nearer to himself than to another."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import pytest

from engine.frames import Face, Image, Points
from engine.tracker import Tracker
from training import identity
from training.fetch import FetchError, fetch


def test_a_similarity_transform_is_found_again() -> None:
    turn, scale, shift = np.radians(30), 0.4, np.array([5, -9])
    matrix = scale * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    moved = (identity.TEMPLATE @ matrix.T + shift).astype(np.float32)
    found = identity.similarity_transform(identity.TEMPLATE, moved)
    np.testing.assert_allclose(found, np.column_stack([matrix, shift]), atol=1e-5)
    with pytest.raises(ValueError, match="all lie in one place"):
        identity.similarity_transform(np.ones((5, 2), np.float32), identity.TEMPLATE)


@pytest.mark.parametrize(("roll_deg", "scale"), [(0, 8), (35, 8), (-80, 8), (10, 40), (0, 3)])
def test_any_roll_and_size_is_aligned(roll_deg: float, scale: float, make_face: Callable[..., Face]) -> None:
    """Dots painted on the five points come out at the template's places, whatever the picture's size."""
    side = int(scale * 32)
    face = make_face(roll_deg=roll_deg, scale=scale, center_px=(side / 2, side / 2), size_px=(side, side))
    five = identity.five_points(face.points)
    picture = np.zeros((side, side, 3), np.uint8)
    for x, y in five:
        cv2.circle(picture, (round(float(x)), round(float(y))), max(1, int(scale / 3)), (255, 255, 255), -1)
    aligned = identity.align(picture, face.points)
    assert aligned.shape == (112, 112, 3)
    matrix = identity.similarity_transform(five, identity.TEMPLATE)
    bright = np.argwhere(aligned[..., 0] > 60)[:, ::-1]
    for place in five @ matrix[:, :2].T + matrix[:, 2]:
        near = bright[np.abs(bright - place).max(1) < 7]
        assert len(near)
        assert np.abs(near.mean(0) - place).max() < 1.3


@pytest.mark.parametrize("network", [identity.SFace, identity.ArcFace])
@pytest.mark.slow
def test_one_person_is_nearer_than_another(
    network: type[identity.SFace] | type[identity.ArcFace],
    face_photo: Image,
    speaking_photo: Image,
    turned_photo: Image,
) -> None:
    try:
        fetch(network.helper)
    except FetchError as error:
        pytest.skip(str(error))
    embedder = network()
    with Tracker(video=False) as tracker:

        def points(rgb: Image) -> Points:
            return tracker.track_all(rgb)[0].points

        still, speaking, woman = (
            embedder.embed(rgb, points(rgb)) for rgb in (face_photo, speaking_photo, turned_photo)
        )
        mirrored = np.ascontiguousarray(face_photo[:, ::-1])
        large = cv2.resize(face_photo, (1024, 1024), interpolation=cv2.INTER_CUBIC).astype(np.uint8)
        same = [embedder.embed(rgb, points(rgb)) @ still for rgb in (mirrored, large)]
    assert still.dtype == np.float32
    assert np.linalg.norm(still) == pytest.approx(1, abs=1e-5)
    assert still @ speaking > network.same_person
    assert min(same) > 0.8
    assert max(still @ woman, speaking @ woman) < network.same_person
    with pytest.raises(ValueError, match=r"\[112, 112, 3\], not \[256, 256, 3\]"):
        embedder.embed_aligned(face_photo)
