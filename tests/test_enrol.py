"""Enrolment over a tiny base: from photos of people who do not exist to an avatar, or to nothing at all."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from engine import avatar as avatars
from engine.avatar import MAX_FILE_BYTES, Avatar, AvatarError, Reference
from engine.base import Base
from engine.config import Config, load
from engine.frames import Face
from engine.motion import neutrality, to_head
from engine.tracker import euler_deg
from tests.clips import DEMO
from training import enrol as enrolling
from training.enrol import CheckedPhoto, Enrolment, Person, PersonShot, PhotoError, enrol, fine_tune, to_shots
from training.export import load_generator
from training.networks.live import TUNED

PHOTOS = [DEMO / "mara" / f"{number:02d}.jpg" for number in (1, 3, 5, 6)]


class StubLPIPS(nn.Module):
    """In the place of LPIPS, whose weights would have to be fetched: means of small squares."""

    def __init__(self, net: str = "vgg") -> None:
        super().__init__()

    def features(self, rgb: Tensor) -> list[Tensor]:
        return [F.avg_pool2d(rgb, 4)]

    def distance(self, features: list[Tensor], others: list[Tensor]) -> Tensor:
        return (features[0] - others[0]).abs().float().mean((1, 2, 3))


class StubFaceFeatures(nn.Module):
    """In the place of SFace as a torch network."""

    def forward(self, faces: Tensor) -> tuple[Tensor, list[Tensor]]:
        return F.normalize(F.avg_pool2d(faces.float(), 16).flatten(1), dim=1), []


class StubSFace:
    """In the place of SFace: everybody is the same person."""

    def embed(self, rgb: object, points: object) -> NDArray[np.float32]:
        return np.ones(4, np.float32) / 2


def stub(patch: pytest.MonkeyPatch) -> None:
    """Nothing in this file is fetched from anywhere."""
    patch.setattr(enrolling, "LPIPS", StubLPIPS)
    patch.setattr(enrolling, "FaceFeatures", StubFaceFeatures)
    patch.setattr(enrolling, "SFace", StubSFace)


def settings(tune_s: float = 0.0, max_photos: int = 32) -> Config:
    config = load()
    engine = replace(config.engine, precision="f32", threads=1)
    return replace(config, engine=engine, enrol=replace(config.enrol, tune_s=tune_s, max_photos=max_photos))


def quiet(stage: str, done: int, total: int) -> None:
    """A `Report` for nobody."""


@pytest.fixture(scope="module")
def checked() -> list[CheckedPhoto]:
    """The four photos, looked at once for all tests."""
    with pytest.MonkeyPatch.context() as patch:
        stub(patch)
        return enrolling.check_photos(PHOTOS, None, 32, quiet)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checked: list[CheckedPhoto]) -> Path:
    """A home of its own, and photos that are already checked."""
    stub(monkeypatch)
    monkeypatch.setenv("UNDERSTUDY_HOME", str(tmp_path))

    def known(paths: Sequence[Path], *rest: object) -> list[CheckedPhoto]:
        names = [path.name for path in paths]
        return [photo for photo in checked if photo.name in names]

    monkeypatch.setattr(enrolling, "check_photos", known)
    return tmp_path


@pytest.fixture(scope="module")
def enrolled(tiny_base: Base, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Enrolment, list[str]]]:
    """One whole enrolment, fine-tuned for a moment, and the stages it reported."""
    home = tmp_path_factory.mktemp("home")
    stages: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        stub(patch)
        patch.setenv("UNDERSTUDY_HOME", str(home))
        made = enrol(
            PHOTOS, "mara", tiny_base, settings(0.5), lambda stage, *_: stages.append(stage), None, home / "sheet.png"
        )
        yield made, stages


@pytest.fixture(scope="module")
def shots(tiny_references: tuple[Reference, ...]) -> list[PersonShot]:
    return to_shots([*tiny_references, tiny_references[0]], 256)


# --- what comes out -----------------------------------------------------------------------------------------


def test_an_avatar_is_written_and_loads(enrolled: tuple[Enrolment, list[str]], tiny_base: Base) -> None:
    made, stages = enrolled
    assert made.path == avatars.place("mara")
    assert made.path.stat().st_size <= MAX_FILE_BYTES
    avatar = avatars.load(made.path, tiny_base.sha256)
    assert len(avatar.references) == 4
    assert avatar.tuned.keys() == {"modulation", *TUNED}
    assert avatar.checks["photos"] == 4
    assert [photo.verdict != "refused" for photo in made.photos] == [True] * 4
    assert list(dict.fromkeys(stages)) == ["checking photos", "cropping and matting", "fine-tuning", "writing"]
    assert sorted(path.name for path in made.path.parent.iterdir()) == ["mara.avatar"]
    assert set(made.seconds) == {"check", "fine-tune", "write"}


def test_references_are_upright_heads_with_mattes(enrolled: tuple[Enrolment, list[str]]) -> None:
    for reference in enrolled[0].avatar.references:
        assert reference.rgb.shape == (512, 512, 3)
        chin, brow = reference.points[152], reference.points[10]
        assert 0.3 < (chin[1] - brow[1]) / 512 < 0.8, "a tight selfie is kept whole"
        nose = reference.points[1].astype(int)
        assert reference.matte[nose[1], nose[0]] > 200
        assert reference.matte[:40, :40].mean() < 60


def test_the_neutral_face_is_the_most_neutral_photo(enrolled: tuple[Enrolment, list[str]]) -> None:
    avatar = enrolled[0].avatar
    scores = [neutrality(enrolling._as_face(one)) for one in avatar.references]
    assert np.array_equal(avatar.neutral, avatar.references[int(np.argmin(scores))].points)


def test_the_contact_sheet_has_three_rows(enrolled: tuple[Enrolment, list[str]]) -> None:
    contact = enrolled[0].contact
    assert contact is not None
    sheet = cv2.imread(str(contact))
    assert sheet is not None
    assert sheet.shape == (3 * (256 + 26), 6 * 256, 3), "six poses are wider than four photos"
    first = enrolled[0].avatar.references[0].rgb
    small = cv2.resize(first, (256, 256), interpolation=cv2.INTER_AREA)[..., ::-1]
    assert np.abs(sheet[:256, :256].astype(int) - small).mean() < 1, "the first photo, its colours not exchanged"
    for row, column in itertools.product(range(3), range(4)):
        assert sheet[row * 282 : row * 282 + 256, column * 256 : column * 256 + 256].std() > 10
    assert (sheet[:256, 4 * 256 :] == 255).all()
    assert [path.name for path in contact.parent.iterdir() if path.name.endswith(".part")] == []


def test_new_poses_move_what_they_say(enrolled: tuple[Enrolment, list[str]]) -> None:
    poses = dict(enrolling.new_poses(enrolled[0].avatar))
    assert len(poses) == 6
    assert poses["turned left"][1, 0] < poses["turned right"][1, 0] - 0.05
    assert poses["looking up"][1, 1] < poses["looking down"][1, 1] - 0.05
    gap = {name: float(points[14, 1] - points[13, 1]) for name, points in poses.items()}
    assert gap["speaking"] > max(gap["turned left"], gap["blinking"]) + 0.05
    lids = {name: float(points[145, 1] - points[159, 1]) for name, points in poses.items()}
    assert lids["blinking"] < 0.4 * lids["speaking"]


# --- few photos, no time ------------------------------------------------------------------------------------


def test_without_time_nothing_is_tuned(home: Path, tiny_base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(enrolling, "LPIPS", None)  # not even asked for
    monkeypatch.setattr(enrolling, "FaceFeatures", None)
    made = enrol(PHOTOS, "mara", tiny_base, settings(0.0), quiet)
    assert "steps" not in made.avatar.checks
    shots = to_shots(made.avatar.references, 256)
    expected = Person(load_generator(tiny_base.weights), shots).tuned()
    for name, values in made.avatar.tuned.items():
        assert np.array_equal(values, expected[name]), name
    assert made.contact is None


def test_one_photo_is_enough(home: Path, tiny_base: Base) -> None:
    made = enrol(PHOTOS[:1], "mara", tiny_base, settings(60.0), quiet, contact=home / "sheet.jpg")
    read = avatars.load(made.path)
    assert len(read.photos) == 1
    assert [one.borrowed for one in read.references] == ["", "eyes", "mouth", "mouth"]
    assert made.avatar.checks["borrowed"] == ["eyes shut", "teeth", "mouth open"]
    assert "steps" not in made.avatar.checks
    assert cv2.imread(str(home / "sheet.jpg")) is not None


def test_one_photo_needs_nobody_to_compare_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(enrolling, "SFace", None)  # its network would have to be fetched
    (photo,) = enrolling.check_photos(PHOTOS[:1], None, 32, quiet)
    assert photo.verdict == "accepted"


def test_of_many_photos_the_odd_ones_are_kept_too(checked: list[CheckedPhoto], make_face: Callable[..., Face]) -> None:
    """Nineteen frames near two poses and one blink-and-you-miss-it: the rare one is what nothing else can draw."""
    poses = [0.0] * 10 + [20.0] * 9 + [-25.0]
    told = [make_face(yaw_deg=yaw + 0.3 * number % 1) for number, yaw in enumerate(poses)]
    many = [replace(checked[0], name=str(yaw), face=face) for yaw, face in zip(poses, told, strict=True)]
    assert {photo.name for photo in enrolling.spread(many, 3)} == {"0.0", "20.0", "-25.0"}


def test_spread_begins_with_the_most_neutral_and_keeps_its_order(checked: list[CheckedPhoto]) -> None:
    order = enrolling.spread(checked, 4)
    assert {id(photo) for photo in order} == {id(photo) for photo in checked}
    assert order[0].name == "01.jpg", "the most neutral comes first"
    assert [photo.name for photo in enrolling.spread(checked, 2)] == [photo.name for photo in order[:2]]


def test_a_head_is_turned_as_the_angles_say(make_face: Callable[..., Face]) -> None:
    face = to_head(make_face(center_px=(100, 90), scale=7))
    aside, up = enrolling.turned(face, 20), enrolling.turned(face, 0, 10)
    assert euler_deg(aside.rotation) == pytest.approx((20, 0, 0), abs=0.1)
    assert euler_deg(up.rotation) == pytest.approx((0, 10, 0), abs=0.1)
    nose = face.to_picture()[1]
    assert aside.to_picture()[1, 0] > nose[0] + 5, "to the right of the picture"
    assert up.to_picture()[1, 1] < nose[1] - 5


def test_an_avatar_can_be_had_without_a_file(home: Path, tiny_base: Base) -> None:
    made = enrolling.avatar_of(PHOTOS[:1], "mara", tiny_base, settings())
    assert (made.name, len(made.photos)) == ("mara", 1)
    assert not list(home.rglob("*.avatar"))


# --- fine-tuning --------------------------------------------------------------------------------------------


def tuned_with(
    shots: list[PersonShot], base: Base, monkeypatch: pytest.MonkeyPatch, seconds: int
) -> tuple[Person, enrolling.Tuning | None, list[tuple[Any, list[Any]]]]:
    """Fine-tunes by a clock that ticks once a step, and says who was drawn from whom."""
    drawn: list[tuple[Any, list[Any]]] = []
    real = enrolling.still_episode

    def still_episode(target: Any, support: Sequence[Any], size_px: int) -> Any:
        drawn.append((target, list(support)))
        return real(target, support, size_px)

    monkeypatch.setattr(enrolling, "still_episode", still_episode)
    steps: list[int] = []
    monkeypatch.setattr(enrolling, "time", SimpleNamespace(monotonic=lambda: float(len(steps))))
    person = Person(load_generator(base.weights), shots)
    tuning = fine_tune(
        person,
        shots,
        StubLPIPS(),  # type: ignore[arg-type]
        StubFaceFeatures(),  # type: ignore[arg-type]
        seconds,
        lambda stage, done, total: steps.append(done),
    )
    return person, tuning, drawn


def test_the_held_back_photo_is_never_trained_on(
    shots: list[PersonShot], tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, tuning, drawn = tuned_with(shots, tiny_base, monkeypatch, 5)
    assert tuning is not None
    assert tuning.steps == 5
    held = shots[len(shots) // 2]
    first, *learned = drawn
    assert first[0] is held, "the photo that decides"
    assert len(learned) == 10
    for target, support in learned:
        assert target is not held
        assert held not in support
        assert target not in support


def test_of_six_photos_two_are_held_back(
    shots: list[PersonShot], tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    six = [*shots, *(replace(shot, number=10 + shot.number) for shot in shots[:2])]
    _, tuning, drawn = tuned_with(six, tiny_base, monkeypatch, 4)
    assert tuning is not None
    held = [target for target, _ in drawn[:2]]
    assert [shot.number for shot in held] == [six[3].number, six[4].number]
    for target, support in drawn[2:]:
        assert not any(shot is one for shot in held for one in (target, *support))


def test_the_better_of_before_and_after_is_kept(
    shots: list[PersonShot], tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = Person(load_generator(tiny_base.weights), shots).tuned()
    person, tuning, _ = tuned_with(shots, tiny_base, monkeypatch, 9)
    assert tuning is not None
    assert tuning.steps == 9, "looked at twice: after eight steps and in the end"
    assert tuning.after.total <= tuning.before.total
    moved = any(not np.array_equal(values, start[name]) for name, values in person.tuned().items())
    assert moved == (tuning.after.total < tuning.before.total)


def test_a_spoiled_tuning_falls_back_to_the_start(
    shots: list[PersonShot], tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = Person(load_generator(tiny_base.weights), shots).tuned()
    nothing = torch.tensor(float("nan"), requires_grad=True)
    monkeypatch.setattr(enrolling.losses, "total", lambda terms, weights: nothing * sum(terms.values()))
    person, tuning, _ = tuned_with(shots, tiny_base, monkeypatch, 9)
    assert tuning is not None
    assert tuning.after == tuning.before
    assert all(np.array_equal(values, start[name]) for name, values in person.tuned().items())


def test_two_photos_are_too_few(shots: list[PersonShot], tiny_base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tuned_with(shots[:2], tiny_base, monkeypatch, 5)[1] is None


def test_the_base_itself_is_not_tuned(
    shots: list[PersonShot], tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    person, _, _ = tuned_with(shots, tiny_base, monkeypatch, 4)
    for name, value in load_generator(tiny_base.weights).state_dict().items():
        assert torch.equal(value, person.generator.state_dict()[name]), name


def test_photos_before_the_same_wall_are_one_scene(tiny_references: tuple[Reference, ...]) -> None:
    still, speaking, woman = tiny_references
    elsewhere = replace(still, rgb=np.where(still.matte[..., None] < 8, 255 - still.rgb, still.rgb))
    clips = [shot.clip for shot in to_shots([still, still, elsewhere], 256)]
    assert clips == ["scene 0", "scene 0", "scene 2"]
    assert len({shot.clip for shot in to_shots([speaking, woman], 256)}) == 2


# --- what goes wrong ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["cropping and matting", "fine-tuning", "writing"])
def test_an_interruption_leaves_the_old_avatar_and_nothing_else(home: Path, tiny_base: Base, stage: str) -> None:
    path, contact = avatars.place("mara"), home / "sheet.png"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"the old avatar")
    contact.write_bytes(b"the old sheet")

    def stopped(now: str, done: int, total: int) -> None:
        if now == stage and (done or stage == "fine-tuning"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        enrol(PHOTOS[:3], "mara", tiny_base, settings(30.0), stopped, contact=contact)
    assert path.read_bytes() == b"the old avatar"
    assert contact.read_bytes() == b"the old sheet"
    assert sorted(one.name for one in home.rglob("*") if one.is_file()) == ["mara.avatar", "sheet.png"]


def test_a_failing_enrolment_leaves_the_old_avatar(
    home: Path, tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, contact = avatars.place("mara"), home / "sheet.png"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"the old avatar")
    contact.write_bytes(b"the old sheet")

    def full(avatar: Avatar, path: Path) -> None:
        raise AvatarError("there is no room on the disk")

    monkeypatch.setattr(avatars, "save", full)
    with pytest.raises(AvatarError):
        enrol(PHOTOS[:1], "mara", tiny_base, settings(), quiet, contact=contact)
    assert path.read_bytes() == b"the old avatar"
    assert contact.read_bytes() == b"the old sheet"
    assert sorted(one.name for one in home.rglob("*") if one.is_file()) == ["mara.avatar", "sheet.png"]


def test_a_contact_sheet_that_cannot_be_written_is_told(home: Path, tiny_base: Base) -> None:
    (home / "file").write_text("in the way")
    with pytest.raises(OSError, match=r"sheet\.png could not be written, and nothing was changed: "):
        enrol(PHOTOS[:1], "mara", tiny_base, settings(), quiet, contact=home / "file" / "sheet.png")
    assert not avatars.place("mara").exists()


def test_bad_names_are_refused_before_any_work(home: Path, tiny_base: Base) -> None:
    def never(*given: object) -> None:
        pytest.fail("work was done")

    with pytest.raises(ValueError, match="a contact sheet is a"):
        enrol(PHOTOS, "mara", tiny_base, settings(), never, contact=home / "sheet.docx")
    with pytest.raises(AvatarError, match="cannot be called"):
        enrol(PHOTOS, "a/b", tiny_base, settings(), never)


def test_when_no_photo_can_be_used_the_reasons_are_given(tmp_path: Path) -> None:
    for name, level in (("black.png", 0), ("white.png", 255)):
        cv2.imwrite(str(tmp_path / name), np.full((200, 200, 3), level, np.uint8))
    with pytest.raises(PhotoError, match=r"^no photo can be used \(black\.png: no face was found.*white\.png: no face"):
        enrolling.check_photos([tmp_path], None, 32, quiet)
