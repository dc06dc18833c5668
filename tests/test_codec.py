"""The landmark codec: what goes in comes out, alone, and nothing else."""

from __future__ import annotations

import numpy as np

from engine.codec import Decoder, Encoder, unwrap
from engine.frames import Face, NoFace
from engine.tracker import canonical_face, fit_pose


def some_face(time_s: float) -> Face:
    canonical = canonical_face()
    rotation = np.diag([1.0, -1.0, -1.0]).astype(np.float32)
    mesh = canonical.vertices_cm @ rotation.T * 10 + np.array([128, 128, 0])
    points = np.concatenate([mesh, np.zeros((10, 3))]).astype(np.float32)
    return Face(points, *fit_pose(points, canonical), 1.0, (256, 256), time_s)


def test_a_face_comes_back() -> None:
    encoder, decoder = Encoder(), Decoder()
    packet = encoder.encode([some_face(0.04), NoFace(0.08)])
    decoder.feed_header(encoder.header())
    first, second = decoder.decode(packet)
    assert isinstance(first.face, Face)
    assert isinstance(second.face, NoFace)
    assert np.abs(first.face.points[:468] - some_face(0.04).points[:468]).max() < 1
    assert first.header_known
    assert second.sequence == first.sequence + 1


def test_unwrap() -> None:
    assert unwrap(3, 255, 256) == 259
