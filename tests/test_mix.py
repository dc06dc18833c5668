"""`understudy render` with a source for each factor: what follows what, what is said of it, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from engine import avatar as avatars
from engine.avatar import Avatar
from engine.base import Base
from engine.config import Config, load
from engine.factors import opening_of
from engine.frames import Face, NoFace
from engine.motion import to_head
from engine.recording import FaceWriter
from engine.tracker import euler_deg
from plugin.cli import main
from plugin.meter import Meter
from plugin.mix import Faces, Mix, Wanted
from plugin.webcam import Clip
from tests.clips import write_clip
from tests.test_voice_lips import babble, write_wav

MakeFace = Callable[..., Face]
Captured = pytest.CaptureFixture[str]


@pytest.fixture
def config() -> Config:
    return load()


@pytest.fixture
def canvas(make_face: MakeFace) -> Face:
    return make_face()


def record(path: Path, faces: list[Face]) -> Path:
    """A recording of landmarks, as `training.record` writes it."""
    np.savez(
        path,
        points=np.stack([face.points for face in faces]),
        time_s=np.array([face.time_s for face in faces]),
        size_px=np.array(faces[0].size_px),
    )
    return path


@pytest.fixture
def turning(tmp_path: Path, make_face: MakeFace) -> Path:
    """2 s at 10 a second; the head turns to 19 degrees, a degree each frame."""
    return record(tmp_path / "turning.npz", [make_face(yaw_deg=float(k), time_s=k / 10) for k in range(20)])


@pytest.fixture
def talking(tmp_path: Path, make_face: MakeFace) -> Path:
    """4 s at 25 a second; the mouth opens and shuts three times a second."""
    opened = [0.5 - 0.5 * np.cos(2 * np.pi * 3 * k / 25) for k in range(100)]
    return record(
        tmp_path / "talking.npz", [make_face(mouth_open_cm=float(o), time_s=k / 25) for k, o in enumerate(opened)]
    )


def yaws(faces: list[Face]) -> np.ndarray:
    return np.array([euler_deg(face.rotation)[0] for face in faces])


def openings(faces: list[Face]) -> np.ndarray:
    return np.array([opening_of(to_head(face).shape) for face in faces])


def test_each_from_its_own_and_another_rate(canvas: Face, config: Config, turning: Path, talking: Path) -> None:
    mix = Mix(Wanted(lips=str(talking), pose=str(turning), eyes="still"), None, canvas, config, Meter())
    assert mix.seconds == pytest.approx(4.0)
    assert mix.fps == pytest.approx(25)
    shown = list(mix)
    assert len(shown) == 100
    assert np.allclose(yaws(shown)[:46], np.arange(46) * 0.4, atol=0.6), "in a straight line between 10 a second"
    assert np.allclose(yaws(shown)[50:], 19, atol=0.6), "and then held"
    assert openings(shown).std() > 0.3
    assert [line.split()[0] for line in mix.lines] == ["lips", "pose", "eyes", "expression"]
    assert any("turning.npz lasts 2.0 s of 4.0 s: its last moment was held" in note for note in mix.notes())
    mix.close()


def test_a_source_that_begins_again_does_so_softly(canvas: Face, config: Config, turning: Path, talking: Path) -> None:
    mix = Mix(Wanted(lips=str(talking), pose=str(turning), loop=True), None, canvas, config, Meter())
    turned = yaws(list(mix))
    assert turned[47] == pytest.approx(18.8, abs=0.8)
    assert turned[70] == pytest.approx(8, abs=1.0), "2.8 s is 0.8 s of the second round"
    assert np.abs(np.diff(turned)).max() < 5, "no jump of 19 degrees"
    assert any("it began again" in note for note in mix.notes())


def test_the_driver_has_what_is_not_named(canvas: Face, config: Config, turning: Path, talking: Path) -> None:
    mix = Mix(Wanted(pose=str(turning)), talking, canvas, config, Meter())
    shown = list(mix)
    assert openings(shown).std() > 0.3
    assert yaws(shown)[45] == pytest.approx(18, abs=0.6)
    steady = Mix(Wanted(pose="12,-5"), talking, canvas, config, Meter())
    assert np.allclose(yaws(list(steady)), 12, atol=0.1)


def test_a_voice_moves_the_lips_and_the_rest_lives_by_itself(canvas: Face, config: Config, tmp_path: Path) -> None:
    voice = write_wav(tmp_path / "voice.wav", babble(6.0))
    mix = Mix(Wanted(lips=str(voice)), None, canvas, config, Meter())
    shown = list(mix)
    assert len(shown) == 150
    assert mix.audio == voice
    assert openings(shown).std() > 0.03
    assert 0.1 < yaws(shown).std() < 3
    lids = np.array([to_head(face).shape[159, 1] - to_head(face).shape[145, 1] for face in shown])
    assert lids.min() < 0.5 * lids.max(), "it blinks"
    silent = write_wav(tmp_path / "silent.wav", np.zeros(16_000, np.float32))
    hush = Mix(Wanted(lips=str(silent), pose="still", eyes="still"), None, canvas, config, Meter())
    assert all(np.abs(face.points - canvas.points).max() < 0.01 for face in hush)
    assert any("is silent" in note for note in hush.notes())


def test_a_recorded_performance_is_a_source(canvas: Face, config: Config, tmp_path: Path, make_face: MakeFace) -> None:
    with FaceWriter(tmp_path / "one.face") as writer:
        for k in range(25):
            writer.write(make_face(yaw_deg=0.5 * k, time_s=100 + k / 25))
    source = Faces(tmp_path / "one.face", to_head(canvas), config, Meter(), loop=False)
    assert source.seconds == pytest.approx(1.0, abs=0.01)
    assert np.linalg.norm(source.at(0.9).pose[:3]) == pytest.approx(11, abs=1)


def test_a_face_that_comes_back_is_eased_in(canvas: Face, config: Config, tmp_path: Path, make_face: MakeFace) -> None:
    with FaceWriter(tmp_path / "gap.face") as writer:
        for k in range(60):
            away = 20 <= k < 40
            face = make_face(yaw_deg=0.0 if k < 20 else 20.0, time_s=k / 20)
            writer.write(NoFace(face.time_s) if away else face)
    source = Faces(tmp_path / "gap.face", to_head(canvas), config, Meter(), loop=False)
    turned = np.array([float(np.linalg.norm(source.at(k / 40).pose[:3])) for k in range(118)])
    assert np.abs(np.diff(turned)).max() < 6
    assert turned[75] < 2
    assert turned[-1] == pytest.approx(20, abs=1)
    assert "20 of 60 frames" in source.notes(3.0)[0]


# --- as it is typed -----------------------------------------------------------------------------------------


@pytest.fixture
def world(tmp_path: Path, tiny_base: Base, tiny_avatar: Avatar, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("UNDERSTUDY_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("engine.base.shipped_folder", lambda: tiny_base.folder)
    avatars.save(tiny_avatar, avatars.place("tiny"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path


def test_render_with_a_voice_and_clips(world: Path, capfd: Captured, turning: Path, talking: Path) -> None:
    voice = write_wav(world / "voice.wav", babble(1.0, 48_000), 48_000, 2)
    arguments = ["--lips", voice, "--pose", turning, "--eyes", "0.5", "--expression", talking, "--size", 256]
    assert main(["render", "--avatar", "tiny", *map(str, arguments)]) == 0
    told = capfd.readouterr()
    assert told.err == ""
    for line in (f"lips       {voice}", f"pose       {turning}", "eyes       0.5", f"expression {talking}"):
        assert line in told.out
    made = Clip("understudy.mp4")
    assert made.frame_count == pytest.approx(made.fps, abs=1), "as long as the voice"
    assert made.has_sound


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "nothing drives the avatar"),
        (["--pose", "still"], "nothing here lasts any time"),
        (["--pose", "90"], "--pose: yaw is 90, not between -40 and 40"),
        (["--eyes", "1,2,3,4"], "--eyes takes at most 3 numbers (open, aside, up)"),
        (["--lips", "3"], "--lips takes a file or 'still', not a number"),
        (["--eyes", "nowhere.mp4"], "--eyes: there is no file nowhere.mp4"),
        (["--lips", "nowhere.wav"], "--lips: there is no file nowhere.wav"),
        (["--pose", "VOICE"], "is sound, which drives lips alone"),
        (["--lips", "VOICE", "--neutral", "1"], "--neutral is for one driver"),
        (["--lips", "VOICE", "--motion", "absolute"], "--motion absolute draws one driver's own shape"),
        (["--drive", "VOICE", "--loop"], "--loop is for factors with sources of their own"),
        (["--pose", "nan"], "holds a number that is none"),
    ],
)
def test_what_is_refused(world: Path, capfd: Captured, arguments: list[str], sentence: str) -> None:
    voice = write_wav(world / "voice.wav", babble(0.5))
    given = [str(voice) if one == "VOICE" else one for one in arguments]
    assert main(["render", "--avatar", "tiny", "--out", "out.mp4", *given]) == 1
    told = capfd.readouterr().err
    assert sentence in told
    assert told.count("\n") == 1
    assert not Path("out.mp4").exists()


def test_a_source_without_a_face_is_named(world: Path, capfd: Captured, talking: Path) -> None:
    write_clip(Path("wall.mp4"), [np.full((120, 160, 3), 90, np.uint8)] * 5, 10)
    assert main(["render", "--avatar", "tiny", "--lips", str(talking), "--eyes", "wall.mp4"]) == 1
    assert capfd.readouterr().err == "understudy: --eyes: no face was found in wall.mp4\n"
    assert not Path("understudy.mp4").exists()


def test_the_result_is_never_written_over_a_source(world: Path, capfd: Captured) -> None:
    voice = write_wav(world / "voice.wav", babble(0.5))
    assert main(["render", "--avatar", "tiny", "--lips", str(voice), "--out", str(voice)]) == 1
    assert "is a clip that drives" in capfd.readouterr().err
    assert voice.stat().st_size > 1000
