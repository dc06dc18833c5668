"""`understudy camera` from the command line: what is chosen, what is remembered, what refuses to start."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from engine import avatar as avatars
from engine.config import Config, load
from plugin import cli, everyday, memory
from plugin.listening import FileMicrophone, LiveMicrophone, Microphone
from plugin.webcam import CameraInfo, CameraLostError
from tests.test_voice_lips import babble, write_wav


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("UNDERSTUDY_HOME", str(tmp_path))
    return tmp_path


class FakeLive:
    """A loop that is over as soon as it began."""

    def __enter__(self) -> FakeLive:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to end."""

    def status(self) -> Any:
        return SimpleNamespace(avatar="")


def listed(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    header = object()
    there = [avatars.Listed(Path(f"{name}.avatar"), header) for name in names]  # pyright: ignore[reportArgumentType]
    monkeypatch.setattr(avatars, "listing", lambda: there)


def test_memory(home: Path) -> None:
    assert memory.recall("camera") == ""
    memory.remember(camera="BRIO")
    memory.remember(avatar="me")
    assert (memory.recall("camera"), memory.recall("avatar")) == ("BRIO", "me")
    assert [one.name for one in home.iterdir()] == ["last.json"]


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"camera": 3}', "\x00\xff"])
def test_a_damaged_memory_is_none(home: Path, damage: str) -> None:
    (home / "last.json").write_bytes(damage.encode("latin-1"))
    assert memory.recall("camera") == ""
    memory.remember(camera="BRIO")
    assert memory.recall("camera") == "BRIO"


def test_a_memory_that_cannot_be_kept_is_no_reason_to_stop(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "file").write_text("")
    monkeypatch.setenv("UNDERSTUDY_HOME", str(home / "file"))
    memory.remember(camera="BRIO")
    assert memory.recall("camera") == ""


def test_which_avatar(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed(monkeypatch)
    with pytest.raises(ValueError, match="understudy enrol"):
        everyday.first_avatar("")
    listed(monkeypatch, "me")
    assert everyday.first_avatar("") == "me"
    listed(monkeypatch, "me", "work")
    with pytest.raises(ValueError, match="--avatar me, --avatar work"):
        everyday.first_avatar("")
    memory.remember(avatar="work")
    assert everyday.first_avatar("") == "work"
    memory.remember(avatar="deleted since")
    with pytest.raises(ValueError, match="which avatar"):
        everyday.first_avatar("")
    assert everyday.first_avatar("me") == "me"


def test_settings_of_the_user_profiles_and_the_command_line(home: Path) -> None:
    (home / "config.toml").write_text(
        '[camera]\nname = "BRIO"\nblink = 0.5\n'
        '[profiles.work.camera]\nname = "Integrated"\navatar = "suit"\n[profiles.work.render]\nbackground = "blur"\n'
    )
    plain = everyday.configured(None, "", None, None, None, None)
    assert (plain.camera.name, plain.camera.blink, plain.render.background) == ("BRIO", 0.5, "photo")
    work = everyday.configured(None, "work", None, None, None, None)
    assert (work.camera.name, work.camera.avatar, work.camera.blink) == ("Integrated", "suit", 0.5)
    assert work.render.background == "blur"
    typed = everyday.configured(None, "work", "me", "other", "640x360", "/dev/video7")
    assert (typed.camera.avatar, typed.camera.name, typed.camera.picture_px) == ("me", "other", (640, 360))
    assert typed.camera.device == "/dev/video7"


def test_profiles_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("[profiles.work.camera]\nblnk = 0.5\n")
    with pytest.raises(ValueError, match=r"profiles\.work: camera\.blnk is not a known setting.*camera\.blink"):
        load(path)
    path.write_text("[profiles.work.camera]\nblink = 9\n")
    with pytest.raises(ValueError, match=r"profiles\.work: camera\.blink = 9"):
        load(path, "work")
    path.write_text("[profiles.work.camera]\nblink = 1\n")
    with pytest.raises(ValueError, match=r"no profile 'play'.*there is work"):
        load(path, "play")
    path.write_text("profiles = 3\n")
    with pytest.raises(ValueError, match="must be a section"):
        load(path)
    path.write_text("[profiles]\nwork = 3\n")
    with pytest.raises(ValueError, match=r"profiles\.work"):
        load(path)
    with pytest.raises(ValueError, match="no profile 'work'"):
        load(None, "work")


def test_nothing_starts_without_a_webcam(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def none(wanted: str, remembered: str = "") -> CameraInfo:
        raise CameraLostError("no camera was found: plug one in")

    listed(monkeypatch, "me")
    (home / "avatars").mkdir()
    (home / "avatars" / "me.avatar").write_bytes(b"")
    monkeypatch.setattr(everyday, "choose_camera", none)
    assert cli.main(["camera"]) == 1
    assert capsys.readouterr().err == "understudy: no camera was found: plug one in\n"


@pytest.mark.parametrize(
    ("typed", "webcam", "voice_lips", "ear"),
    [
        ([], False, False, Microphone),
        (["--voice"], False, True, Microphone),
        (["--voice", "hello.wav"], False, True, FileMicrophone),
        (["--camera", "BRIO"], True, False, Microphone),
    ],
)
def test_a_voice_starts_without_a_webcam(
    home: Path, monkeypatch: pytest.MonkeyPatch, typed: list[str], webcam: bool, voice_lips: bool, ear: type
) -> None:
    """With `webcam = false`, or a voice in its place, no camera is looked for; one that is named is."""
    (home / "config.toml").write_text('[camera]\nwebcam = false\nmicrophone = "Headset"\n')
    write_wav(home / "hello.wav", babble(0.5))
    monkeypatch.chdir(home)
    looked: list[str] = []
    made: dict[str, Any] = {}

    class Loop(FakeLive):
        def __init__(self, config: Config, *parts: object, microphone: LiveMicrophone) -> None:
            made.update(camera=config.camera, microphone=microphone)

    monkeypatch.setattr(everyday, "choose_camera", lambda wanted, last="": looked.append(wanted))
    monkeypatch.setattr(everyday, "EnrolledWardrobe", lambda config, first: SimpleNamespace(names=["me"]))
    monkeypatch.setattr(everyday, "Live", Loop)
    monkeypatch.setattr(everyday, "attend", lambda *parts: None)
    assert cli.main(["camera", "--avatar", "me", "--preview-only", "--no-window", *typed]) == 0
    assert looked == (["BRIO"] if webcam else [])
    assert (made["camera"].webcam, made["camera"].voice_lips) == (webcam, voice_lips)
    assert type(made["microphone"]) is ear
    assert made["microphone"].name == ("Headset" if ear is Microphone else "hello.wav")


def test_list(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(everyday, "list_cameras", lambda: [CameraInfo(2, "BRIO", "/dev/video2", False)])
    assert cli.main(["camera", "--list"]) == 0
    assert "BRIO" in capsys.readouterr().out
    monkeypatch.setattr(everyday, "list_cameras", list)
    assert cli.main(["camera", "--list"]) == 0
    assert "no camera was found" in capsys.readouterr().out
