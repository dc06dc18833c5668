"""The evaluation of the factors: what it reads, who drives whom, and that a perfect picture is told as one."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image as Pillow

from engine.avatar import Avatar
from engine.base import Base
from engine.config import Config, load
from engine.frames import Face, Frame, Image
from engine.motion import to_head
from engine.tracker import Tracker
from tests.test_factors import changed, lively
from training import evaluate, evaluate_factors
from training.evaluate_factors import (
    LEAST_SPREAD,
    MEASURES,
    OWNED,
    Driver,
    Readings,
    Stage,
    columns,
    half_a_pixel_aside,
    in_turn,
    liveliest,
    liveliness,
    markdown,
    measure_person,
    measured,
    picture,
    ratio_cell,
    summary,
)
from training.measures import Judge
from training.photos import CheckedPhoto
from training.protocol import Stretch

MakeFace = Callable[..., Face]


# --- what is read ---


def test_measures_tell_what_a_face_does(make_face: MakeFace) -> None:
    rest, asked = measured(make_face()), measured(make_face(yaw_deg=12, mouth_open_cm=1.0))
    assert set(rest) == set(MEASURES)
    assert asked["yaw"] - rest["yaw"] == pytest.approx(12, abs=0.1)
    assert asked["mouth"] - rest["mouth"] > 3
    assert abs(asked["brows"] - rest["brows"]) < 0.1


def test_a_turned_head_closes_no_lids_and_looks_nowhere_else(make_face: MakeFace) -> None:
    """In the picture lids near and irises shift when a head turns; in the head they do not."""
    rest, turned = measured(make_face()), measured(make_face(yaw_deg=25, pitch_deg=15, roll_deg=20, scale=6))
    for key in ("lids", "gaze", "mouth", "brows", "smile"):
        assert turned[key] == pytest.approx(rest[key], abs=0.01), key


def test_a_gaze_and_a_smile_are_told_in_millimetres(make_face: MakeFace) -> None:
    rest = measured(make_face())
    assert measured(changed(make_face(), look_cm=0.3))["gaze"] - rest["gaze"] == pytest.approx(3, abs=0.01)
    face = make_face()
    shape = to_head(face).shape.copy()
    shape[[61, 291], 1] += 0.2
    lifted = replace(face, points=replace(to_head(face), shape=shape).to_picture())
    assert measured(lifted)["smile"] - rest["smile"] == pytest.approx(2, abs=0.05)
    assert np.isnan(measured(changed(make_face(), blink=1.0))["gaze"]), "shut eyes look nowhere"


def test_what_could_not_be_read_lies_between_its_neighbours() -> None:
    rows = [dict.fromkeys(MEASURES, float(k)) if k != 2 else None for k in range(5)]
    assert columns(rows)["yaw"].tolist() == [0, 1, 2, 3, 4]
    blinking = [dict.fromkeys(MEASURES, float(k)) | ({"gaze": math.nan} if k == 3 else {}) for k in range(5)]
    assert columns(blinking)["gaze"].tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="no face with open eyes in most"):
        columns([*rows[:1], None, None, None])


# --- who drives ---


def driver(person: str, spread: float) -> Driver:
    told = {key: np.array([-1.0, 1.0]) * spread * LEAST_SPREAD[key] for key in MEASURES}
    return Driver(person, "", [], [], told)


def test_the_liveliest_drive_in_turn_and_nobody_drives_himself() -> None:
    lively_ones = {
        name: dict.fromkeys(OWNED, driver(name, spread)) for name, spread in zip("abcdef", range(7, 1, -1), strict=True)
    }
    assert liveliness(driver("a", 3).told, "pose") == pytest.approx(3)
    chosen = [in_turn(lively_ones, "a", number)["eyes"].person for number in range(5)]
    assert chosen == ["b", "c", "d", "e", "b"], "the four liveliest others"
    assert "lips" not in in_turn({"a": {"lips": driver("a", 2)}}, "a", 0)


def test_a_stretch_in_which_nothing_moves_drives_nothing(make_face: MakeFace) -> None:
    still = [make_face(time_s=k / 25) for k in range(60)]
    turning = [
        make_face(
            yaw_deg=20 * math.sin(k / 9), pitch_deg=9 * math.sin(k / 7), roll_deg=8 * math.sin(k / 5), time_s=k / 25
        )
        for k in range(60)
    ]
    found = liveliest("p1", {"clip": [*still, *turning]}, 60)
    assert set(found) == {"pose"}
    assert found["pose"].place == "clip 60"


# --- one person ---


class Mirror(Stage):
    """A stage whose pictures show exactly what was asked."""

    def draw(self, faces: Sequence[Face]) -> list[Image]:
        self.asked = list(faces)
        return [np.full((8, 8, 3), k, np.uint8) for k in range(len(faces))]

    def rigid(self, faces: Sequence[Face]) -> list[Image]:
        return self.draw(faces)

    def look(self, pictures: Sequence[Image]) -> tuple[Readings, list[Face | None]]:
        return columns([measured(face) for face in self.asked]), list(self.asked)


class Impartial:
    def identity(self, rgb: Image, points: object) -> np.ndarray[Any, Any]:
        return np.eye(512, dtype=np.float32)[0]

    def likeness(self, truth: Image, pictures: dict[str, Image], person: object) -> dict[str, dict[str, float]]:
        return {name: {"lpips": 0.25} for name in pictures}


def person(make_face: MakeFace, avatar: Avatar, base: Base) -> dict[str, Any]:
    settings: Config = load()
    settings = replace(settings, render=replace(settings.render, size_px=64, motion="absolute", background="photo"))
    stage = Mirror(avatar, base, settings, cast(Tracker, None))
    own = [lively(make_face, frame) for frame in range(60)]
    others = [replace(lively(make_face, frame + 303), time_s=frame / 25) for frame in range(60)]
    told = columns([measured(face) for face in others])
    frames = [Frame(np.zeros((8, 8, 3), np.uint8), face.time_s) for face in own]
    driven_by = dict.fromkeys(OWNED, Driver("other", "clip 0", others, others, told))
    photo = cast(CheckedPhoto, type("Photo", (), {"rgb": frames[0].rgb, "face": own[0]}))
    return measure_person(stage, [photo], [Stretch(frames, own)], driven_by, cast(Judge, Impartial()))


def test_a_perfect_picture_is_told_as_perfect(make_face: MakeFace, tiny_avatar: Avatar, tiny_base: Base) -> None:
    """The landmarks themselves: every factor follows its source and leaves the rest alone."""
    told = person(make_face, tiny_avatar, tiny_base)
    assert told["factors"]["eyes"]["floor"] == dict.fromkeys(MEASURES, 0.0)
    assert told["factors"]["pose"]["floor"]["yaw"] > 1, "of the photo, turned"
    assert told["lpips"] == {"landmarks": 0.25, "factors": 0.25}
    matrix = summary([told])["matrix"]
    for factor, owned in OWNED.items():
        assert told["factors"][factor]["csim"] == {"landmarks": 1.0, "mix": 1.0}
        for key in MEASURES[:-1]:  # the made-up smile widens the mouth and lifts nothing
            value = matrix[factor][key]["seen"]["value"]
            assert value > 0.9 if key in owned else value < 0.1, (factor, key)


def test_half_a_pixel_aside() -> None:
    rgb = np.zeros((4, 4, 3), np.uint8)
    rgb[:, 1] = 100
    assert half_a_pixel_aside(rgb)[2, :, 0].tolist() == [0, 50, 50, 0]


# --- everybody ---


def test_shares_are_sums_and_people_are_drawn_together() -> None:
    cell = ratio_cell([1.0, 0.0], [2.0, 8.0])
    assert cell.value == pytest.approx(0.1), "not the mean of a half and nothing"
    assert (cell.low, cell.high, cell.people) == (0.0, 0.5, 2)


def test_the_files(make_face: MakeFace, tiny_avatar: Avatar, tiny_base: Base, tmp_path: Path) -> None:
    one = person(make_face, tiny_avatar, tiny_base)
    one["factors"].pop("lips")
    told = json.loads(json.dumps(summary([one, one])))
    text = markdown(told, "2 people.")
    assert text.count("**") == 2 * sum(len(owned) for factor, owned in OWNED.items() if factor != "lips")
    assert "| CSIM" in text
    assert "| lips | – |" in text
    picture(told, tmp_path / "matrix.png")
    with Pillow.open(tmp_path / "matrix.png") as drawn:
        assert np.asarray(drawn).std() > 20


def test_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny_base: Base
) -> None:
    """`python -m training.evaluate CLIPS --factors` measures the factors, and nothing else."""
    asked: list[Any] = []

    def noted(*given: Any) -> None:
        asked.extend(given)
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "factors.md").write_text("the matrix")

    monkeypatch.setattr(evaluate, "evaluate_factors", noted)
    monkeypatch.setattr(evaluate, "read_bases", lambda *_: {evaluate.TUNED: tiny_base})
    monkeypatch.setattr(evaluate, "evaluate", lambda *_: pytest.fail("the other tables were not asked for"))
    evaluate.main([str(tmp_path), "--factors", "--people", "4", "--tune-s", "0", "--out", str(tmp_path / "out")])
    assert asked[0] == tmp_path
    assert asked[2].enrol.tune_s == 0
    assert asked[4:] == ["test", 4, 40, 0, 0]
    with pytest.raises(SystemExit) as stopped:
        evaluate.main([str(tmp_path), "--factors", "--cross"])
    assert stopped.value.code == 1
    assert "without --compare" in capsys.readouterr().err


def test_nobody_to_measure_is_one_sentence(tmp_path: Path, tiny_base: Base) -> None:
    (tmp_path / "index.tsv").write_text("clip\tperson\tsplit\tframes\nc.mp4\tp1\ttrain\t75\n")
    with pytest.raises(ValueError, match="nobody in the split 'test'"):
        evaluate_factors.evaluate_factors(tmp_path, tiny_base, load(), tmp_path, "test", 0, 40, 0, 0)
