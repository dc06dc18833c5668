"""Videos become shards: every layout, every way to fail, and the same bytes however they are made."""

from __future__ import annotations

import csv
import io
import json
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from engine.frames import Image, Points
from engine.upright import upright
from plugin.demo import photos_of
from plugin.webcam import Clip
from tests.clips import demo_photo, person_clip, person_frames, write_clip
from tests.conftest import landmarks
from tests.poison import poison
from tests.test_episodes import write_shard
from tests.test_webcam import set_display_matrix
from training import prepare
from training.episodes import Episodes, KeptFrame, load_shards
from training.prepare import (
    MAX_DRIFT,
    Job,
    Sighting,
    cut_shots,
    find_videos,
    head_square,
    in_processes,
    main,
    split_of,
)
from training.shards import VERSION, ShardWriter

SECONDS, EVERY = 1.2, 5  # six frames to keep


def make(source: Path, out: Path, *more: str) -> dict[str, bytes]:
    """Runs the command; the shards by their place in `out`."""
    main([str(source), "--out", str(out), "--workers", "1", "--every", str(EVERY), *more])
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in sorted(out.rglob("*.tar"))}


def about(shard: bytes) -> dict[str, object]:
    with tarfile.open(fileobj=io.BytesIO(shard)) as tar:
        content = tar.extractfile("clip.json")
        assert content is not None
        return json.load(content)


def failures(out: Path) -> dict[str, tuple[str, str]]:
    with (out / "failed.tsv").open(newline="") as file:
        return {Path(row["video"]).name: (row["kind"], row["why"]) for row in csv.DictReader(file, delimiter="\t")}


def roomy_frames() -> Iterator[Image]:
    for frame in person_frames(SECONDS, size_px=(300, 225)):
        picture = np.empty((360, 640, 3), np.uint8)
        picture[:] = frame[2, 2]
        picture[90:315, 260:560] = frame
        yield picture


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Mara to the right of the middle, with room around her."""
    return write_clip(tmp_path_factory.mktemp("clip") / "mara.mp4", roomy_frames())


def head_frames(count: int = 30) -> Iterator[Image]:
    """A square head crop of 256 px that sways."""
    for index in range(count):
        moved = np.array([[1, 0, 4 * np.sin(index / 5)], [0, 1, 0]])
        small = cv2.resize(demo_photo("jun"), (256, 256), interpolation=cv2.INTER_AREA)
        yield np.asarray(cv2.warpAffine(small, moved, (256, 256), borderMode=cv2.BORDER_REPLICATE), np.uint8)


@pytest.fixture(scope="module")
def voxceleb(tmp_path_factory: pytest.TempPathFactory, clip: Path) -> Path:
    """Two people of `dev`, one of `test`, one file that is no video."""
    source = tmp_path_factory.mktemp("vox")
    for place in ("dev/mp4/id00012/abc/00001", "dev/mp4/id00015/def/00007", "test/mp4/id00017/ghi/00001"):
        path = source / f"{place}.mp4"
        path.parent.mkdir(parents=True)
        path.write_bytes(clip.read_bytes())
    (source / "dev/mp4/id00012/abc/00002.mp4").write_bytes(b"this is no video")
    (source / "licence.txt").write_text("research only\n")
    (source / "test/mp4/id00017/licence.txt").write_text("CC BY 4.0\n")
    return source


@pytest.fixture(scope="module")
def voxceleb_shards(tmp_path_factory: pytest.TempPathFactory, voxceleb: Path) -> tuple[Path, dict[str, bytes]]:
    out = tmp_path_factory.mktemp("vox-shards")
    return out, make(voxceleb, out, "--source", "VoxCeleb2", "--licence", "never asked for")


# --- layouts ------------------------------------------------------------------------------------------------


def test_voxceleb_keeps_person_video_split_and_licence(voxceleb_shards: tuple[Path, dict[str, bytes]]) -> None:
    out, shards = voxceleb_shards
    assert list(shards) == ["id00012/abc/00001.tar", "id00015/def/00007.tar", "id00017/ghi/00001.tar"]
    told = {name: about(shard) for name, shard in shards.items()}
    one = told["id00012/abc/00001.tar"]
    assert [one[key] for key in ("version", "person", "video", "split")] == [VERSION, "id00012", "abc", "train"]
    assert (one["source"], one["licence"], one["frames"]) == ("VoxCeleb2", "research only", 6)
    other = told["id00017/ghi/00001.tar"]
    assert (other["split"], other["licence"]) == ("test", "CC BY 4.0"), "the nearest licence.txt counts"
    assert list(failures(out)) == ["00002.mp4"]
    assert failures(out)["00002.mp4"][0] == "broken"


def test_a_folder_named_dev_is_read_from_inside(voxceleb: Path) -> None:
    for source in (voxceleb / "test", voxceleb / "test" / "mp4"):
        assert [(one.about["person"], one.about["split"]) for one in find_videos(source, 0.0)] == [("id00017", "test")]


def test_shards_make_episodes(voxceleb_shards: tuple[Path, dict[str, bytes]]) -> None:
    people = load_shards(voxceleb_shards[0], "train")
    assert {person: list(clips) for person, clips in people.items()} == {
        "id00012": ["id00012/abc/00001"],
        "id00015": ["id00015/def/00007"],
    }
    shots = people["id00012"]["id00012/abc/00001"]
    assert [shot.number for shot in shots] == [0, 5, 10, 15, 20, 25]
    sample = Episodes(people, shots=2)[0]
    assert sample.target.shape == (4, 256, 256)
    assert sample.target[3].max() == 1, "there is somebody in the matte"


def test_heads_are_cut_as_an_enrolled_photo_is(voxceleb_shards: tuple[Path, dict[str, bytes]], clip: Path) -> None:
    """The crop holds the head with its room, and the landmarks and the picture agree with the video."""
    shots = load_shards(voxceleb_shards[0], "test")["id00017"]["id00017/ghi/00001"]
    told = about(voxceleb_shards[1]["id00017/ghi/00001.tar"])
    left, top, side = (int(str(told[key])) for key in ("left", "top", "side"))
    frames = [frame.rgb for frame in Clip(clip)]
    for shot in shots:
        assert isinstance(shot, KeptFrame)
        height = np.linalg.norm(shot.points[10] - shot.points[152])
        assert 0.40 < height / 256 < 0.58
        assert np.abs((shot.points[10] + shot.points[152])[:2] / 512 - (0.5, 0.51)).max() < 0.16
        part = frames[shot.number][top : top + side, left : left + side]
        wanted = cv2.resize(part, (256, 256), interpolation=cv2.INTER_CUBIC)
        assert np.abs(shot.rgb().astype(int) - wanted).mean() < 3
        lips = shot.points[[13, 14], :2].mean(axis=0).astype(int)
        redness = shot.rgb().astype(int)[..., 0] - shot.rgb()[..., 1]
        assert redness[lips[1] - 6 : lips[1] + 6, lips[0] - 6 : lips[0] + 6].mean() > 25, "lips lie where they are red"
        matte = shot.matte(256)
        assert matte[lips[1], lips[0]] > 250
        assert matte[:, :3].mean() < 60


def test_index_takes_clips_whole(tmp_path: Path) -> None:
    write_clip(tmp_path / "one.mp4", head_frames())
    rows = "clip\tperson\tsplit\tframes\tsource\tlicence\none.mp4\tjun\ttest\t30\ta studio\t\n"
    (tmp_path / "index.tsv").write_text(rows + "none.mp4\tjun\ttest\t30\ta studio\t\n")
    shards = make(tmp_path, tmp_path / "out", "--licence", "internal")
    assert list(shards) == ["one.tar"]
    told = about(shards["one.tar"])
    assert [told[key] for key in ("person", "split", "source", "licence")] == ["jun", "test", "a studio", "internal"]
    shots = load_shards(tmp_path / "out", "test")["jun"]["one"]
    wanted = np.stack(list(head_frames()))[:: len(shots) and EVERY]
    assert np.abs(np.stack([shot.rgb() for shot in shots]).astype(int) - wanted).mean() < 4
    assert "No such file" in failures(tmp_path / "out")["none.mp4"][1]


def test_index_without_a_person_is_refused(tmp_path: Path) -> None:
    (tmp_path / "index.tsv").write_text("clip\tperson\tsplit\none.mp4\t\ttrain\n")
    with pytest.raises(SystemExit, match=r"index\.tsv, line 2, has no person$"):
        make(tmp_path, tmp_path / "out")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "names no clip and no picture"),
        (b"clip\tperson\tsplit\n", "names no clip and no picture"),
        (b"\xff\xfeclip", "is no table .*: save it as UTF-8 text, a tab between columns"),
        (b"picture\tperson\n1.png\t../../ann\n", r"line 2: the person '\.\./\.\./ann' is no file name"),
    ],
)
def test_an_index_that_cannot_be_followed_is_told(tmp_path: Path, content: bytes, sentence: str) -> None:
    (tmp_path / "index.tsv").write_bytes(content)
    with pytest.raises(SystemExit, match=sentence):
        make(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_pictures_of_one_person_are_one_clip(tmp_path: Path) -> None:
    rows = ["picture\tperson\tsplit"]
    for person in ("jun", "mara"):
        for number, photo in enumerate(photos_of(person)[:5]):
            small = cv2.resize(cv2.imread(str(photo)), (256, 256), interpolation=cv2.INTER_AREA)
            cv2.imwrite(str(tmp_path / f"{person}{number}.png"), small)
            rows.append(f"{person}{number}.png\t{person}\ttrain")
    (tmp_path / "mara2.png").write_bytes(b"no picture")
    (tmp_path / "index.tsv").write_text("\n".join(rows))
    assert list(make(tmp_path, tmp_path / "out")) == ["jun.tar"]
    shots = load_shards(tmp_path / "out", "train")["jun"]["jun"]
    assert [shot.number for shot in shots] == [0, 100, 200, 300, 400], "no neighbours in time"
    truth = cv2.cvtColor(cv2.imread(str(tmp_path / "jun3.png")), cv2.COLOR_BGR2RGB)
    assert np.abs(shots[3].rgb().astype(int) - truth).mean() < 3
    lips = shots[0].points[13]
    assert 100 < lips[0] < 156 and 150 < lips[1] < 230
    assert failures(tmp_path / "out")["mara0.png"][0] == "broken"


def test_people_of_a_folder_are_its_folders_or_files(tmp_path: Path) -> None:
    for name in ("ann/one.mp4", "ann/at home/two.MOV", "ben.mp4", ".hidden.mp4", "ann/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = find_videos(tmp_path, 0.5)
    assert [(one.name, one.about["person"]) for one in found] == [
        ("ann/at home/two", "ann"),
        ("ann/one", "ann"),
        ("ben", "ben"),
    ]
    assert found[0].about["split"] == found[1].about["split"] == split_of("ann", 0.5)


def test_a_split_is_for_ever() -> None:
    """The first values are written down: another hash would move people from test to train."""
    names = [f"person {number}" for number in range(1000)]
    tested = [name for name in names if split_of(name, 0.1) == "test"]
    assert tested[:3] == ["person 3", "person 45", "person 53"]
    assert 70 < len(tested) < 130
    assert set(tested) < {name for name in names if split_of(name, 0.2) == "test"}, "a larger share only adds"


def test_pictures_are_turned_as_the_player_shows_them(tmp_path: Path, clip: Path) -> None:
    plain = upright(*next(prepare._decode(clip)))
    assert np.array_equal(plain, next(iter(Clip(clip))).rgb)
    due = {
        (0, 1, -1, 0): np.rot90(plain, -1),
        (-1, 0, 0, -1): np.rot90(plain, 2),
        (0, -1, 1, 0): np.rot90(plain),
        (-1, 0, 0, 1): plain[:, ::-1],
    }
    for matrix, shown in due.items():
        turned = tmp_path / "turned.mp4"
        turned.write_bytes(clip.read_bytes())
        set_display_matrix(turned, *matrix)
        assert np.array_equal(upright(*next(prepare._decode(turned))), shown), matrix


# --- shots --------------------------------------------------------------------------------------------------


def seen(number: int, x: float = 0.0, zoom: float = 1.0) -> Sighting:
    points: Points = landmarks("man_still") * np.float32(zoom) + np.array([x, 0, 0], np.float32)
    return Sighting(number, number / 25, points, 1.0)


def test_shots_end_where_the_face_leaves_moves_or_grows() -> None:
    side = seen(0).face_px / 0.48
    steps = [seen(0), seen(5), seen(60), None, seen(65), seen(70, side), seen(75, side), seen(80, side, 1.6)]
    assert [[one.number for one in shot] for shot in cut_shots(steps)] == [[0, 5], [60], [65], [70, 75], [80]]
    assert [[one.number for one in shot] for shot in cut_shots(steps, steady=False)] == [[0, 5], [60], [65, 70, 75, 80]]


def test_slow_drift_is_cut_too() -> None:
    """What counts is how far the head is from where it was at first, not from where it was last."""
    side = seen(0).face_px / 0.48
    shots = cut_shots(seen(number, side * number / 100) for number in range(0, 100, 5))
    assert len(shots) >= 3
    for shot in shots:
        assert shot[-1].middle[0] - shot[0].middle[0] <= MAX_DRIFT * side + 1e-3


def test_squares_stay_inside_the_picture() -> None:
    shot = [seen(0), seen(5, 10)]
    for x in (-200.0, 0.0, 2000.0):
        square = head_square([seen(0, x)], (1280, 270))
        assert square.side <= 270
        assert 0 <= square.left <= 1280 - square.side
        assert 0 <= square.top <= 270 - square.side
    whole = head_square(shot, (256, 256))
    assert (whole.left, whole.top, whole.side) == (0, 0, 256), "a head crop stays as it is"


def test_two_shots_are_two_clips(tmp_path: Path) -> None:
    """Mara, then Jun in front of something else; the short rest of a third shot is left out."""
    frames = [*person_frames(SECONDS, size_px=(400, 300)), *person_frames(SECONDS, size_px=(400, 300), person="jun")]
    write_clip(tmp_path / "both.mp4", [*frames, *(cv2.bitwise_not(frame).astype(np.uint8) for frame in frames[:5])])
    shards = make(tmp_path, tmp_path / "out", "--test-share", "0")
    assert list(shards) == ["both.shot-2.tar", "both.tar"]
    clips = load_shards(tmp_path / "out", "train")["both"]
    assert [shot.number for shot in clips["both"]] == [0, 5, 10, 15, 20, 25]
    assert [shot.number for shot in clips["both.shot-2"]] == [30, 35, 40, 45, 50, 55]


# --- failures, resuming, workers ----------------------------------------------------------------------------


def test_what_gives_nothing_is_named_and_not_fatal(
    tmp_path: Path, clip: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good = clip.read_bytes()
    (tmp_path / "good.mp4").write_bytes(good)
    (tmp_path / "good.mov").write_bytes(good)
    (tmp_path / "torn.mp4").write_bytes(good[: len(good) // 2])
    (tmp_path / "empty.mp4").touch()
    write_clip(tmp_path / "wall.mp4", [np.full((96, 96, 3), 90, np.uint8)] * 12)
    person_clip(tmp_path / "short.mp4", 0.4, size_px=(400, 300))
    person_clip(tmp_path / "far.mp4", 1.2, size_px=(112, 84), still=True)
    shards = make(tmp_path, tmp_path / "out")
    assert list(shards) == ["good.tar"]
    told = {name: kind for name, (kind, _) in failures(tmp_path / "out").items()}
    assert told == {
        "empty.mp4": "broken",
        "far.mp4": "too small",
        "good.mp4": "twice",
        "short.mp4": "too short",
        "torn.mp4": "broken",
        "wall.mp4": "no face",
    }
    assert "6 videos gave nothing (2 broken, 1 no face, 1 too short, 1 too small, 1 twice)" in caplog.text


def test_an_interrupted_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between the shards of a video: what is left makes nothing whole, and the end is that of a quiet run."""
    source = tmp_path / "videos"
    source.mkdir()
    frames = [*person_frames(1, size_px=(400, 300)), *person_frames(1, size_px=(400, 300), person="jun")]
    write_clip(source / "both.mp4", frames)
    write_clip(source / "early.mp4", frames[:25])
    (source / "early.mp4").rename(source / "a.mp4")
    quiet = make(source, tmp_path / "quiet")

    with monkeypatch.context() as patch:
        finish = ShardWriter.finish

        def killed(writer: ShardWriter) -> None:
            if writer.path.name == "both.tar":
                raise OSError("no space left")
            finish(writer)

        patch.setattr(ShardWriter, "finish", killed)
        with pytest.raises(SystemExit, match="no space left"):
            make(source, tmp_path / "out")
    half = sorted(path.name for path in (tmp_path / "out").rglob("*.tar*"))
    assert half == ["a.tar", "both.shot-2.tar"], "finished shards, and nothing by halves"
    (tmp_path / "out" / "both.tar.part").write_bytes(b"what a power cut leaves")
    before = (tmp_path / "out" / "a.tar").stat().st_mtime_ns
    assert make(source, tmp_path / "out") == quiet
    assert (tmp_path / "out" / "a.tar").stat().st_mtime_ns == before, "finished is finished"
    assert not list((tmp_path / "out").rglob("*.part"))


def test_other_options_need_another_folder(tmp_path: Path) -> None:
    write_clip(tmp_path / "wall.mp4", [np.full((96, 96, 3), 90, np.uint8)] * 2)
    make(tmp_path, tmp_path / "out")
    with pytest.raises(SystemExit, match="was begun with --every 5, not 2: take that, or another --out"):
        make(tmp_path, tmp_path / "out", "--every", "2")
    (tmp_path / "out" / "options.json").write_text("{")
    with pytest.raises(SystemExit, match=r"options\.json is damaged"):
        make(tmp_path, tmp_path / "out")


def test_an_out_that_is_a_file_is_told(tmp_path: Path, clip: Path) -> None:
    with pytest.raises(SystemExit, match="is a file: --out is a folder"):
        make(clip.parent, clip)


def test_two_processes_write_the_same_bytes(
    tmp_path: Path, voxceleb: Path, voxceleb_shards: tuple[Path, dict[str, bytes]]
) -> None:
    more = ("--source", "VoxCeleb2", "--workers", "2")
    assert make(voxceleb, tmp_path, *more) == voxceleb_shards[1]
    assert list(failures(tmp_path)) == ["00002.mp4"]


def test_limit_takes_the_first(tmp_path: Path, voxceleb: Path) -> None:
    options = (str(voxceleb), "--out", str(tmp_path), "--workers", "1", "--every", "5", "--limit", "1")
    main(list(options))
    assert [path.name for path in tmp_path.rglob("*.tar")] == ["00001.tar"]


def test_a_process_that_dies_costs_one_video(tmp_path: Path) -> None:
    jobs = [Job(tmp_path / f"{number}.mp4", tmp_path / f"{number}.tar", {}, True, 5, 256, 5) for number in range(3)]
    told = {Path(one.video).stem: one for one in in_processes(jobs, 2, poison)}
    assert sorted(told) == ["0", "1", "2"]
    assert [name for name, one in told.items() if one.kind] == ["1"]
    assert told["1"].why == "the process that read it died"


def test_ray_writes_the_same_bytes(
    tmp_path: Path, voxceleb: Path, voxceleb_shards: tuple[Path, dict[str, bytes]]
) -> None:
    pytest.importorskip("ray")
    assert make(voxceleb, tmp_path, "--source", "VoxCeleb2", "--ray", "local") == voxceleb_shards[1]
    assert list(failures(tmp_path)) == ["00002.mp4"]


def test_without_ray_one_sentence(tmp_path: Path, voxceleb: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SystemExit, match=r"--ray needs Ray Data \(.*\): pip install 'understudy\[cluster\]' here and"):
        make(voxceleb, tmp_path, "--ray", "auto")


# --- the format ---------------------------------------------------------------------------------------------


def test_samples_share_a_basename(voxceleb_shards: tuple[Path, dict[str, bytes]]) -> None:
    """As WebDataset wants them: side by side, and each with all of its parts."""
    with tarfile.open(fileobj=io.BytesIO(voxceleb_shards[1]["id00012/abc/00001.tar"])) as tar:
        names = tar.getnames()
        first = tar.extractfile("00005.json")
        assert first is not None
        assert json.load(first)["time_s"] == pytest.approx(0.2)
    parts = [f"{number:05d}.{part}" for number in range(0, 30, 5) for part in ("jpg", "npy", "png", "json")]
    assert names == [*parts, "clip.json"]


def test_shards_of_the_first_hour_are_still_read(tmp_path: Path) -> None:
    write_shard(tmp_path / "p000_00.tar", "ann", "train", [0, 5])  # neither version nor 00000.json
    assert [shot.number for shot in load_shards(tmp_path, "train")["ann"]["p000_00"]] == [0, 5]


def test_a_newer_shard_is_not_called_damaged(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "a.tar", {"person": "ann", "split": "train"}) as writer:
        writer.about = {**writer.about, "version": VERSION + 1}
        writer.close()
        writer.finish()
    with pytest.raises(ValueError, match=r"a\.tar has format 2, this version reads up to 1: update Understudy$"):
        load_shards(tmp_path, "train")
