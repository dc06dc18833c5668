from pathlib import Path

import av
import numpy as np
import pytest

from engine.frames import Face, Frame, NoFace
from engine.tracker import Tracker
from plugin.webcam import Clip
from tests.clips import DEMO, demo_photo, person_clip, person_frames, write_clip


@pytest.fixture(scope="module")
def tracker():
    with Tracker() as open_tracker:
        yield open_tracker


def mouth_px(face: Face) -> float:
    return float(np.linalg.norm(face.points[13, :2] - face.points[14, :2]))


def test_the_invented_person_is_tracked_and_moves(tracker) -> None:
    tracker.reset()
    faces = [tracker.track(Frame(rgb, index / 25)) for index, rgb in enumerate(person_frames(1.0))]
    assert all(isinstance(face, Face) for face in faces)
    mouths = [mouth_px(face) for face in faces if isinstance(face, Face)]
    assert max(mouths) > 3 * min(mouths) + 2


def test_nobody_is_there_while_away(tracker) -> None:
    tracker.reset()
    frames = list(person_frames(0.8, 10, away_s=(0.3, 0.6)))
    found = [tracker.track(Frame(rgb, index / 10)) for index, rgb in enumerate(frames)]
    assert [isinstance(face, NoFace) for face in found] == [False] * 3 + [True] * 3 + [False] * 2


def test_two_people_side_by_side(tracker) -> None:
    frame = next(person_frames(0.1, size_px=(1280, 720), beside="jun"))
    left, right = sorted(float(face.translation[0]) for face in tracker.track_all(frame))
    assert left < 640 < right


@pytest.mark.parametrize(("fps", "size_px"), [(60, (321, 241)), (25, (640, 360))])
def test_a_clip_comes_back_with_its_size_and_rate(tmp_path: Path, fps: int, size_px: tuple[int, int]) -> None:
    path = person_clip(tmp_path / "clip.mp4", 0.2, fps, size_px, audio=True)
    frames = list(Clip(path))
    assert len(frames) == round(0.2 * fps)
    assert frames[0].rgb.shape == (size_px[1], size_px[0], 3)
    assert frames[1].time_s - frames[0].time_s == pytest.approx(1 / fps, abs=1e-4)
    with av.open(str(path)) as container:
        assert container.streams.audio[0].rate == 48_000


def test_still_and_empty(tmp_path: Path) -> None:
    first, *others = person_frames(0.2, still=True)
    assert all(np.array_equal(first, other) for other in others)
    with pytest.raises(ValueError, match="no frames"):
        write_clip(tmp_path / "none.mp4", [])


@pytest.mark.parametrize("person", ["mara", "jun"])
def test_every_photo_of_the_demo_shows_one_face(tracker, person: str) -> None:
    assert all(len(tracker.track_all(demo_photo(person, number))) == 1 for number in range(1, 11))


def test_the_stream_of_the_demo() -> None:
    with np.load(DEMO / "talking.npz") as stream:
        points, time_s = stream["points"], stream["time_s"]
        assert points.shape == (len(time_s), 478, 3) and points.dtype == np.float32
        assert tuple(stream["size_px"]) == (640, 480)
        assert "CC BY-SA 4.0" in str(stream["note"])
    assert 12 <= time_s[-1] <= 20
    np.testing.assert_allclose(np.diff(time_s), 1 / 25, atol=1e-5)
    assert np.abs(np.diff(points[..., :2], axis=0)).max() < 10  # no jump, and none where it starts again
    assert np.abs(points[-1] - points[0]).max() < 3
