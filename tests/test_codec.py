"""The landmark codec: what goes in comes out, alone, and nothing else."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest

from engine.codec import (
    TIME_WRAP_S,
    Decoder,
    Encoder,
    unwrap,
)
from engine.frames import Face
from plugin.render import read_faces

TALKING = Path(__file__).parents[1] / "plugin" / "assets" / "demo" / "talking.npz"


@cache
def talking() -> list[Face]:
    return read_faces(TALKING)[0]


def error_percent(found: Face, wanted: Face) -> float:
    """Mean distance in the picture, % of the distance between the outer eye corners."""
    unit = np.linalg.norm(wanted.points[33, :2] - wanted.points[263, :2])
    return float(100 * np.linalg.norm(found.points[:, :2] - wanted.points[:, :2], axis=1).mean() / unit)


def test_a_face_comes_back() -> None:
    faces = talking()[:5]
    encoder, decoder = Encoder(), Decoder()
    packet = encoder.encode(faces)
    decoder.feed_header(encoder.header())
    coded = decoder.decode(packet)
    assert [one.sequence for one in coded] == [0, 1, 2, 3, 4]
    for face, one in zip(faces, coded, strict=True):
        assert isinstance(one.face, Face)
        assert error_percent(one.face, face) < 1.0
        assert one.face.size_px == face.size_px
        assert one.time_s == one.face.time_s == pytest.approx(face.time_s, abs=6e-4)
        assert one.header_known


def test_unwrap() -> None:
    assert unwrap(3, 255, 256) == 259
    assert unwrap(250, 258, 256) == 250
    assert unwrap(1.0, 1000.0, TIME_WRAP_S) == pytest.approx(1.0 + 15 * TIME_WRAP_S)
