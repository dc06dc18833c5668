"""`.face` files: a performance comes back, whole or up to where it was cut."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engine.frames import Face, NoFace
from engine.recording import MAGIC, FaceWriter, Recording
from tests.test_codec import error_percent, talking


def performance(start_s: float = 0.0) -> list[Face | NoFace]:
    faces: list[Face | NoFace] = [replace(face, time_s=face.time_s + start_s) for face in talking()[:45]]
    faces[20] = NoFace(faces[20].time_s)
    return faces


def record(path: Path, faces: list[Face | NoFace]) -> Path:
    with FaceWriter(path) as writer:
        for face in faces:
            writer.write(face)
    return path


def test_a_performance_comes_back_with_its_clock(tmp_path: Path) -> None:
    faces = performance(start_s=100_000.25)
    recording = Recording(record(tmp_path / "a.face", faces))
    back = list(recording)
    assert recording.trouble is None
    assert np.allclose([one.time_s for one in back], [one.time_s for one in faces], atol=6e-4)
    for wanted, found in zip(faces, back, strict=True):
        assert type(found) is type(wanted)
        if isinstance(found, Face) and isinstance(wanted, Face):
            assert error_percent(found, wanted) < 1.0
    assert recording.neutral is not None
    assert len(list(recording)) == len(back)


def test_a_second_of_it_is_small(tmp_path: Path) -> None:
    faces = performance()
    size = record(tmp_path / "a.face", faces).stat().st_size
    assert size * 8 / (len(faces) / 25) < 8000


@pytest.mark.parametrize("cut", [1, 5, 40, 300])
def test_a_cut_file_plays_up_to_the_cut_and_says_so(tmp_path: Path, cut: int) -> None:
    path = record(tmp_path / "a.face", performance())
    path.write_bytes(path.read_bytes()[:-cut])
    recording = Recording(path)
    back = list(recording)
    assert 0 < len(back) < 45
    assert recording.trouble is not None
    assert "ends early" in recording.trouble


def test_a_damaged_record_is_never_played(tmp_path: Path) -> None:
    path = record(tmp_path / "a.face", performance())
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    recording = Recording(path)
    assert len(list(recording)) < 45
    assert recording.trouble is not None
    assert "damaged" in recording.trouble


def test_a_long_pause_is_kept(tmp_path: Path) -> None:
    first, second, third = performance()[:3]
    faces = [first, second, replace(third, time_s=500.0)]
    back = list(Recording(record(tmp_path / "a.face", faces)))
    assert back[2].time_s == pytest.approx(500.0)


def test_times_must_grow(tmp_path: Path) -> None:
    first, second = performance()[:2]
    with FaceWriter(tmp_path / "a.face") as writer:
        writer.write(second)
        with pytest.raises(ValueError, match="time must grow"):
            writer.write(first)


@pytest.mark.parametrize(
    ("content", "says"), [(b"", "no recorded"), (b"GIF89a...", "no recorded"), (MAGIC + b"\x09", "format 9")]
)
def test_what_is_no_recording(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "a.face"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=says):
        Recording(path)
    with pytest.raises(ValueError, match="there is no file"):
        Recording(tmp_path / "b.face")
