"""The command line: whatever it is given, one sentence and status 1, or a result; never a trace, never harm."""

from __future__ import annotations

import math
import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image as Pillow

from engine import avatar as avatars
from engine.avatar import Avatar
from engine.base import Base
from plugin.cli import main
from plugin.webcam import Clip
from tests.clips import DEMO, demo_photo, person_clip, write_clip
from tests.test_enrol import stub

ROOT = Path(__file__).parents[1]
Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def world(tmp_path: Path, tiny_base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home of its own, a tiny base in the place of the shipped one, nothing fetched, and an empty folder to be in."""
    stub(monkeypatch)
    monkeypatch.setenv("UNDERSTUDY_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("engine.base.shipped_folder", lambda: tiny_base.folder)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


@pytest.fixture
def avatar_file(tiny_avatar: Avatar) -> Path:
    """The tiny avatar, enrolled under the name "tiny"."""
    path = avatars.place("tiny")
    avatars.save(tiny_avatar, path)
    return path


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A quarter of a second of one person."""
    return person_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", 0.25, 20, (320, 240))


def refused(capfd: Captured, *arguments: object) -> str:
    """Runs a command that must fail: its one sentence, everything else checked."""
    capfd.readouterr()
    assert main([str(one) for one in arguments]) == 1
    told = capfd.readouterr()
    assert told.out == ""
    assert told.err.startswith("understudy: ")
    assert told.err.count("\n") == 1, told.err
    assert "Traceback" not in told.err
    return told.err.removeprefix("understudy: ").rstrip("\n")


def enrol_refused(capfd: Captured, *photos: object) -> str:
    """The same for `enrol`, over an avatar that is there already and must stay."""
    path = avatars.place("me")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"the old avatar")
    sentence = refused(capfd, "enrol", *photos, "--name", "me", "--tune-s", 0)
    assert path.read_bytes() == b"the old avatar"
    assert [one.name for one in path.parent.iterdir()] == ["me.avatar"]
    return sentence


def render_refused(capfd: Captured, avatar: object, drive: object, *more: object) -> str:
    """The same for `render`, over an output that is there already and must stay."""
    out = Path("out.mp4")
    out.write_bytes(b"the old output")
    before = sorted(one.name for one in Path().iterdir())
    sentence = refused(capfd, "render", "--avatar", avatar, "--drive", drive, "--out", out, *more)
    assert out.read_bytes() == b"the old output"
    assert sorted(one.name for one in Path().iterdir()) == before
    return sentence


def rendered(capfd: Captured, drive: Path, *more: object) -> tuple[str, Clip]:
    """A render that must succeed: what was printed, and the video."""
    assert main(["render", "--avatar", "tiny", "--drive", str(drive), "--out", "out.mp4", *map(str, more)]) == 0
    told = capfd.readouterr()
    assert told.err == ""
    return told.out, Clip("out.mp4")


# --- enrol: photos that cannot be used ----------------------------------------------------------------------


def test_a_folder_without_pictures(capfd: Captured, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("no pictures")
    assert enrol_refused(capfd, tmp_path / "empty") == f"no pictures in {tmp_path / 'empty'}"


def test_photos_that_are_not_there(capfd: Captured) -> None:
    assert enrol_refused(capfd, "nowhere.jpg") == "there is no file nowhere.jpg"


def test_a_text_file_called_jpg(capfd: Captured) -> None:
    Path("letter.jpg").write_text("Dear Sir or Madam, " * 50)
    assert "letter.jpg is not a picture that can be read" in enrol_refused(capfd, "letter.jpg")


def test_a_picture_of_20000_pixels(capfd: Captured) -> None:
    Pillow.new("1", (20_000, 20_000)).save("huge.png")
    assert "huge.png has more pixels than can safely be opened" in enrol_refused(capfd, "huge.png")


def test_a_picture_of_16_pixels(capfd: Captured) -> None:
    Pillow.fromarray(demo_photo("mara")).resize((16, 16)).save("icon.png")
    assert "icon.png is only 16 x 16 pixels" in enrol_refused(capfd, "icon.png")


def test_a_picture_without_a_face(capfd: Captured) -> None:
    Pillow.new("RGB", (300, 300), "teal").save("wall.png")
    assert "wall.png: no face was found" in enrol_refused(capfd, "wall.png")


def test_heic_without_its_reader(capfd: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("photo.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    sentence = enrol_refused(capfd, "photo.heic")
    assert "is a HEIC photo" in sentence
    assert "export it as JPEG" in sentence


def test_a_name_that_cannot_be_and_time_that_cannot_be(capfd: Captured) -> None:
    assert "cannot be called" in refused(capfd, "enrol", DEMO / "mara", "--name", "../me")
    assert "--tune-s is -1" in refused(capfd, "enrol", DEMO / "mara", "--name", "me", "--tune-s", -1)


def test_a_base_that_is_missing(capfd: Captured, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("engine.base.shipped_folder", lambda: tmp_path / "nowhere")
    assert "there is no base model in" in enrol_refused(capfd, DEMO / "mara" / "01.jpg")


def test_a_helper_that_cannot_be_fetched(capfd: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    from training import enrol as enrolling
    from training.fetch import FetchError

    def offline() -> None:
        raise FetchError("'sface' could not be downloaded; connect to the network.")

    monkeypatch.setattr(enrolling, "SFace", offline)
    sentence = enrol_refused(capfd, DEMO / "mara" / "01.jpg", DEMO / "mara" / "02.jpg")
    assert sentence == "'sface' could not be downloaded; connect to the network."


# --- enrol: photos of every kind ----------------------------------------------------------------------------


def test_cmyk_turned_and_heic_photos_are_enrolled_upright_and_gray_ones_not_beside_them(capfd: Captured) -> None:
    picture = Pillow.open(DEMO / "mara" / "01.jpg").resize((400, 400))
    picture.convert("L").save("gray.jpg")
    picture.convert("CMYK").save("cmyk.jpg")
    exif = Pillow.Exif()
    exif[0x0112] = 6  # to be shown turned to the right
    picture.transpose(Pillow.Transpose.ROTATE_90).save("turned.jpg", exif=exif)
    kinds = ["gray.jpg", "cmyk.jpg", "turned.jpg"]
    heif = pytest.importorskip("pillow_heif", reason="HEIC needs pillow_heif")
    heif.register_heif_opener()
    picture.save("photo.heic")
    kinds.append("photo.heic")
    assert main(["enrol", *kinds, "--name", "me", "--tune-s", "0"]) == 0
    told = capfd.readouterr()
    assert told.err == ""
    assert [line.split()[1].rstrip(":") for line in told.out.splitlines()[:4]] == kinds
    assert told.out.startswith(" - gray.jpg: it is black and white, and other photos of yours are not\n")
    made = avatars.load(avatars.place("me"))
    assert len(made.photos) == 3
    assert avatars.place("me").with_suffix(".png").is_file()
    for reference in made.photos:
        assert reference.points[10, 1] < reference.points[152, 1] - 100
        unlike = np.abs(reference.rgb.mean(2) - made.references[0].rgb.mean(2)).mean()
        assert unlike < 12, "the same picture, the same way up"
        assert reference.rgb.std(2).mean() > 5, "in colour"


def test_avatars_are_listed(capfd: Captured, avatar_file: Path) -> None:
    avatar_file.with_name("broken.avatar").write_bytes(b"nothing")
    assert main(["avatars"]) == 0
    broken, whole = capfd.readouterr().out.splitlines()
    assert broken.startswith("broken: broken.avatar: it is not an avatar")
    assert re.match(r"tiny  2026-01-31T12:34:56Z  512 px  .*tiny\.avatar$", whole)
    avatar_file.unlink()
    avatar_file.with_name("broken.avatar").unlink()
    assert main(["avatars"]) == 0
    assert "make one: understudy enrol" in capfd.readouterr().out


# --- render: avatars that cannot be used --------------------------------------------------------------------


def test_an_avatar_that_is_not_there(capfd: Captured, clip: Path) -> None:
    assert render_refused(capfd, "nobody", clip) == (
        "there is no avatar called 'nobody'; there is none yet: enrol one first"
    )
    assert render_refused(capfd, "some/where.avatar", clip) == "there is no avatar at some/where.avatar"


def test_an_avatar_of_another_base(capfd: Captured, clip: Path, tiny_avatar: Avatar) -> None:
    avatars.save(replace(tiny_avatar, base="f" * 64), avatars.place("old"))
    sentence = render_refused(capfd, "old", clip)
    assert "it was made over base model ffffffffffff" in sentence
    assert "enrol again" in sentence


def test_an_avatar_cut_short(capfd: Captured, clip: Path, avatar_file: Path) -> None:
    avatar_file.write_bytes(avatar_file.read_bytes()[:5000])
    assert "tiny.avatar: it is cut short: 5000 of " in render_refused(capfd, "tiny", clip)


def test_an_avatar_that_is_no_avatar(capfd: Captured, clip: Path) -> None:
    assert "it is not an avatar" in render_refused(capfd, clip, clip)


# --- render: clips that cannot be used ----------------------------------------------------------------------


def test_a_clip_that_is_not_there(capfd: Captured, avatar_file: Path) -> None:
    assert render_refused(capfd, "tiny", "nowhere.mp4") == "there is no file nowhere.mp4"
    assert render_refused(capfd, "tiny", "nowhere.npz") == "there is no file nowhere.npz"


def test_a_text_file_as_clip(capfd: Captured, avatar_file: Path) -> None:
    Path("letter.mp4").write_text("Dear Sir or Madam, " * 50)
    assert "letter.mp4" in render_refused(capfd, "tiny", "letter.mp4")


def test_a_clip_without_a_face(capfd: Captured, avatar_file: Path) -> None:
    wall = np.full((120, 160, 3), 128, np.uint8)
    wall[30:50, 60:100] = 20
    write_clip(Path("wall.mp4"), [wall] * 4)
    assert render_refused(capfd, "tiny", "wall.mp4") == "no face was found in wall.mp4"


def test_landmarks_that_are_none(capfd: Captured, avatar_file: Path) -> None:
    whole = dict(np.load(DEMO / "talking.npz"))
    points, times, size = whole["points"][:5], whole["time_s"][:5], whole["size_px"]
    bad, one_array = Path("bad.npz"), BytesIO()
    np.save(one_array, points)
    for spoil in (
        lambda: bad.write_bytes(b""),
        lambda: bad.write_bytes(b"no archive"),
        lambda: bad.write_bytes((DEMO / "talking.npz").read_bytes()[:9000]),
        lambda: bad.write_bytes(one_array.getvalue()),
        lambda: np.savez(bad, points=points),
        lambda: np.savez(bad, points=points[:, :9], time_s=times, size_px=size),
        lambda: np.savez(bad, points=points * math.nan, time_s=times, size_px=size),
        lambda: np.savez(bad, points=points, time_s=times[::-1], size_px=size),
        lambda: np.savez(bad, points=points, time_s=times * 0, size_px=size),
        lambda: np.savez(bad, points=points, time_s=times, size_px=size[:1]),
        lambda: np.savez(bad, points=points.astype(object), time_s=times, size_px=size),
    ):
        spoil()
        assert "bad.npz" in render_refused(capfd, "tiny", bad)


def test_a_moment_without_a_face_is_no_neutral(capfd: Captured, avatar_file: Path) -> None:
    sentence = render_refused(capfd, "tiny", DEMO / "talking.npz", "--neutral", 999, "--size", 256)
    assert sentence == "there is no face in the clip at 999 s to take as neutral"


def test_the_clip_itself_is_not_overwritten(capfd: Captured, avatar_file: Path, clip: Path) -> None:
    before = clip.read_bytes()
    sentence = refused(capfd, "render", "--avatar", "tiny", "--drive", clip, "--out", clip)
    assert sentence == f"{clip} is the clip that drives: give the result another name"
    assert clip.read_bytes() == before


# --- options ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (("--size", 300), "invalid choice: 300"),
        (("--size", "large"), "invalid int value: 'large'"),
        (("--background", "beach"), "--background 'beach' is neither photo, blur"),
        (("--background", "#12"), "a colour is written #rrggbb"),
        (("--background", "image"), "--background image needs a picture"),
        (("--motion", "sideways"), "invalid choice: 'sideways'"),
        (("--colour", "red"), "unrecognized arguments: --colour red"),
    ],
)
def test_bad_options(capfd: Captured, avatar_file: Path, clip: Path, more: tuple[object, ...], expected: str) -> None:
    assert expected in render_refused(capfd, "tiny", clip, *more)


def test_missing_arguments(capfd: Captured) -> None:
    assert "the following arguments are required: COMMAND" in refused(capfd)
    assert "--name" in refused(capfd, "enrol", "photo.jpg")
    assert "(see understudy enrol --help)" in refused(capfd, "enrol", "photo.jpg")
    assert "invalid choice: 'dance'" in refused(capfd, "dance")


def test_a_background_that_is_no_picture(capfd: Captured, avatar_file: Path, clip: Path) -> None:
    Path("letter.png").write_text("Dear Sir or Madam")
    assert "letter.png" in render_refused(capfd, "tiny", clip, "--background", "letter.png", "--size", 256)


@pytest.mark.parametrize("out", ["out.avi", "nowhere/out.mp4", "."])
def test_outputs_that_cannot_be(capfd: Captured, avatar_file: Path, clip: Path, out: str) -> None:
    refused(capfd, "render", "--avatar", "tiny", "--drive", clip, "--out", out)


def test_bad_configurations(capfd: Captured, avatar_file: Path, clip: Path) -> None:
    def with_config(text: str) -> str:
        Path("my.toml").write_text(text)
        return refused(capfd, "--config", "my.toml", "render", "--avatar", "tiny", "--drive", clip, "--out", "new.mp4")

    assert with_config("[render]\nsise_px = 256") == (
        "render.sise_px is not a known setting; the nearest is render.size_px."
    )
    assert "my.toml is not a TOML file" in with_config("[render\nsize_px = 256")
    assert "must be one of 256, 512, 720" in with_config("[render]\nsize_px = 300")
    assert 'device = "cuda"' in with_config('[engine]\ndevice = "cuda"')
    assert not Path("new.mp4").exists()
    assert "nowhere.toml" in refused(capfd, "--config", "nowhere.toml", "enrol", "x.jpg", "--name", "me")


# --- a full disk --------------------------------------------------------------------------------------------


@contextmanager
def full_disk(limit: int) -> Iterator[None]:
    """No file may grow beyond `limit` bytes, as on a disk with no more room than that."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


def test_render_onto_a_full_disk(capfd: Captured, avatar_file: Path) -> None:
    with full_disk(4096):
        sentence = render_refused(capfd, "tiny", DEMO / "talking.npz", "--size", 256, "--neutral", 0)
    assert sentence == "no space left on the disk for out.mp4; nothing was kept of it"


@pytest.mark.parametrize("limit", [4096, 400_000])
def test_enrol_onto_a_full_disk(capfd: Captured, limit: int) -> None:
    """With 4 kB not even the sheet fits; with 400 kB the sheet may, the avatar of three photos does not."""
    Path("photos").mkdir()
    for number in (1, 2, 3, 5, 6, 7):
        (Path("photos") / f"{number}.jpg").write_bytes((DEMO / "mara" / f"{number:02d}.jpg").read_bytes())
    with full_disk(limit):
        sentence = enrol_refused(capfd, "photos")
    assert "unharmed" in sentence or "nothing was changed" in sentence


# --- render: what works -------------------------------------------------------------------------------------


def test_landmarks_drive(capfd: Captured, avatar_file: Path) -> None:
    whole = dict(np.load(DEMO / "talking.npz"))
    np.savez("short.npz", points=whole["points"][:12], time_s=whole["time_s"][:12], size_px=whole["size_px"])
    told, made = rendered(capfd, Path("short.npz"), "--size", 256, "--background", "#102030")
    assert "12 frames" in told
    assert "video    out.mp4" in told
    assert "note" not in told
    assert (made.frame_count, made.size_px, made.fps) == (12, (256, 256), 25)
    first = next(iter(made)).rgb
    assert np.abs(first[:8, :8].reshape(-1, 3).mean(0) - (0x10, 0x20, 0x30)).max() < 12
    assert first[100:180, 100:160].mean() > 60, "somebody is there"


def test_odd_size_and_60_frames_a_second_are_kept(capfd: Captured, avatar_file: Path) -> None:
    person_clip(Path("odd.mp4"), 0.5, 60, (321, 241), audio=True)
    told, made = rendered(capfd, Path("odd.mp4"), "--size", 256)
    assert "30 frames" in told
    assert made.frame_count == 30
    assert made.fps == pytest.approx(60)
    assert made.duration_s == pytest.approx(Clip("odd.mp4").duration_s, abs=0.03)
    assert made.has_sound
    assert len(list(made)) == 30


def test_two_faces_and_the_note_who_drives(capfd: Captured, avatar_file: Path) -> None:
    person_clip(Path("two.mp4"), 0.3, 20, (640, 320), beside="jun")
    told, made = rendered(capfd, Path("two.mp4"), "--size", 256)
    assert "note: 2 faces are in the clip: the largest one drives the avatar" in told
    assert len(list(made)) == 6


def test_a_face_that_leaves_for_two_seconds(capfd: Captured, avatar_file: Path) -> None:
    person_clip(Path("away.mp4"), 3.0, 5, (320, 240), away_s=(0.6, 2.6))
    told, made = rendered(capfd, Path("away.mp4"), "--size", 256)
    assert re.search(r"note: (9|10) of 15 frames showed no face: the avatar held still, then rested", told)
    assert "faces are in the clip" not in told
    pictures = [frame.rgb.astype(int) for frame in made]
    assert len(pictures) == 15
    assert np.abs(pictures[11] - pictures[12]).mean() < 2, "at rest"


def test_absolute_motion_says_which_square_it_drew(capfd: Captured, avatar_file: Path, clip: Path) -> None:
    told, _ = rendered(capfd, clip, "--size", 256, "--motion", "absolute")
    assert re.search(r"note: the picture is the square of the clip at x [\d.]+, y [\d.]+, side [\d.]+ px", told)


# --- interruptions, noise -----------------------------------------------------------------------------------


def test_ctrl_c_and_sigterm_leave_nothing_half_written(
    capfd: Captured, avatar_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from engine.renderer import Renderer

    real, count = Renderer.draw, 0

    def draw(self: Renderer, face: object) -> object:
        nonlocal count
        count += 1
        if count % 4 == 0:
            signal.raise_signal(signal.SIGTERM)
        return real(self, face)  # type: ignore[arg-type]

    monkeypatch.setattr(Renderer, "draw", draw)
    before = signal.getsignal(signal.SIGTERM)
    arguments = ["render", "--avatar", "tiny", "--drive", str(DEMO / "talking.npz"), "--out", "out.mp4"]
    assert main([*arguments, "--size", "256", "--neutral", "0"]) == 130
    told = capfd.readouterr()
    assert told.err.strip() == "stopped; nothing half-written was left"
    assert list(Path().iterdir()) == []
    assert signal.getsignal(signal.SIGTERM) == before


def test_nothing_but_the_own_words_reaches_the_terminal(
    tiny_base: Base, avatar_file: Path, clip: Path, tmp_path: Path
) -> None:
    """Neither mediapipe nor TensorFlow nor absl may chat on stderr; one process does both commands, as users do."""
    source = (
        "import sys; from pathlib import Path; import engine.base\n"
        f"engine.base.shipped_folder = lambda: Path({str(tiny_base.folder)!r})\n"
        "from plugin.cli import main\n"
        f"done = main(['enrol', {str(DEMO / 'mara' / '01.jpg')!r}, '--name', 'me', '--tune-s', '0'])\n"
        f"sys.exit(done or main(['render', '--avatar', 'me', '--drive', {str(clip)!r}, '--out', 'out.mp4',\n"
        "    '--size', '256']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", source],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "not fine-tuned: that takes three photos or more" in done.stdout
    assert cv2.imread(str(tmp_path / "home" / "avatars" / "me.png")) is not None
