"""Episodes: who may be drawn from whom, and that points stay on what they mark."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from engine import geometry
from engine.frames import Face, Image, Points
from tests.conftest import landmarks, photo
from training.episodes import (
    UNAIDED,
    Episodes,
    KeptFrame,
    Sample,
    Shot,
    _mirrored,
    _moved,
    choose,
    collate,
    load_shards,
    mirror_table,
    rarity,
)
from training.ranks import batches

MakeFace = Callable[..., Face]
SIZE = 256
CPU = torch.device("cpu")


@dataclass(frozen=True, eq=False)
class Painted:
    """A shot whose picture is made on demand: noise unlike any other's."""

    clip: str
    number: int
    points: Points
    seed: int = 0
    picture: Image | None = None

    def rgb(self) -> Image:
        if self.picture is not None:
            return self.picture
        return np.random.default_rng(self.seed).integers(0, 256, (SIZE, SIZE, 3)).astype(np.uint8)

    def matte(self, size_px: int) -> NDArray[np.uint8]:
        return np.full((size_px, size_px), 255, np.uint8)


People = dict[str, dict[str, list[Painted]]]


@pytest.fixture(scope="module")
def people(make_face: MakeFace) -> People:
    """Two people, clips of 12 shots, 5 frames apart."""
    made: People = {}
    seed = 0
    for person in ("ann", "ben"):
        for clip in ("one", "two"):
            shots = []
            for number in range(12):
                seed += 1
                turn = 30 * np.sin(seed)
                points = make_face(yaw_deg=turn, mouth_open_cm=1 + np.cos(seed)).points
                shots.append(Painted(f"{person} {clip}", 5 * number, points, seed))
            made.setdefault(person, {})[f"{person} {clip}"] = shots
    return made


@dataclass
class Watched(Episodes):
    """Episodes that say what they drew instead of drawing it."""

    seen: list[tuple[Shot, list[Shot], list[Shot]]] = field(default_factory=list)

    def __init__(self, people: People, **options: Any) -> None:
        super().__init__(people, **options)
        self.seen = []

    def episode(self, target: Shot, support: Sequence[Shot], rng: np.random.Generator) -> Sample:
        chosen: list[Shot] = []

        def assemble(target: Shot, picked: Sequence[Shot], *rest: object) -> Sample:
            chosen.extend(picked)
            return Sample(*[torch.zeros(1)] * len(tuple(Sample.__slots__)))

        self.assemble = assemble  # type: ignore[method-assign]
        sample = super().episode(target, support, rng)
        self.seen.append((target, list(support), chosen))
        return sample


# --- who is drawn from whom ---------------------------------------------------------------------------------


def test_the_target_is_never_among_its_references(people: People) -> None:
    episodes = Watched(people, shots=4)
    for number in range(300):
        episodes[number]
    homes = set()
    for target, support, chosen in episodes.seen:
        assert target not in support
        assert 1 <= len(support) <= 4
        assert len(set(map(id, support))) == len(support)
        assert len(chosen) == 4
        assert all(shot in support for shot in chosen)
        person = target.clip.split()[0]
        assert {shot.clip.split()[0] for shot in support} == {person}, "a reference of somebody else"
        homes.add((target.clip, support[0].clip == target.clip))
    assert len(homes) == 8, "every clip is drawn from itself and from the other one"


def test_neighbours_in_time_are_left_out(people: People) -> None:
    episodes = Watched(people)
    for number in range(200):
        episodes[number]
    for target, support, _ in episodes.seen:
        for shot in support:
            assert shot.clip != target.clip or abs(shot.number - target.number) > 12


def test_some_episodes_lack_a_mouth_like_the_target_s(people: People) -> None:
    episodes = Watched(people, shots=4)
    for number in range(300):
        episodes[number]

    def opening(shot: Shot) -> float:
        return float(geometry.describe(shot.points)["mouth"][0])

    def furthest(clip: str) -> float:
        return max(opening(shot) for shot in people[clip.split()[0]][clip])

    wide = [one for one in episodes.seen if opening(one[0]) > 0.9 * furthest(one[0].clip)]
    nearest = [min(abs(opening(shot) - opening(target)) for shot in support) for target, support, _ in wide]
    counts = [len(support) for _, support, _ in episodes.seen]
    assert np.quantile(nearest, 0.9) > 3 * np.median(nearest), "nobody had to open a mouth unaided"
    # Of the unaided ones three in four have fewer than four references; 300 draws scatter by 0.02.
    assert np.mean(np.array(counts) < 4) == pytest.approx(0.75 * UNAIDED, abs=0.06)


def test_more_people_have_their_share(people: People) -> None:
    more = {"cyd": {"cyd one": people["ben"]["ben one"]}}
    episodes = Episodes({"ann": people["ann"]}, also=more, also_share=0.3)
    assert episodes.odds[episodes.names.index("cyd")] == pytest.approx(0.3)
    assert episodes.odds.sum() == pytest.approx(1)


def test_clips_of_two_people_may_share_a_name(people: People) -> None:
    more = {"cyd": {"ann one": people["ben"]["ben one"][:7]}}
    episodes = Watched({"ann": people["ann"]}, also=more, also_share=0.5)
    for number in range(10):
        episodes[number]
    assert {target.clip for target, _, _ in episodes.seen} >= {"ann one", "ben one"}


def test_more_people_without_two_pictures_are_refused(people: People) -> None:
    alone = {"cyd": {"cyd one": people["ben"]["ben one"][:1]}}
    with pytest.raises(ValueError, match="has two pictures, and an episode takes two"):
        Episodes({"ann": people["ann"]}, also=alone, also_share=0.3)


def test_neighbours_serve_where_there_is_nobody_else(people: People) -> None:
    few = {"ann": {"ann one": people["ann"]["ann one"][:3]}}
    episodes = Watched(few)
    for number in range(20):
        episodes[number]
    assert {len(support) for _, support, _ in episodes.seen} == {2}


def test_the_best_reference_is_mostly_chosen(people: People) -> None:
    episodes = Watched(people)
    for number in range(200):
        episodes[number]
    hits = []
    for target, support, chosen in episodes.seen:
        best = choose(geometry.describe(target.points), [geometry.describe(shot.points) for shot in support])
        hits += [shot is support[index] for shot, index in zip(chosen[1:], best, strict=True)]
    assert 0.55 < np.mean(hits) < 0.85, "0.65 by rule, the rest by chance"


def test_rare_faces_are_targets_more_often(make_face: MakeFace) -> None:
    """Of ten pictures one has the eyes shut and one the mouth wide open: those two come more often."""
    points = [make_face(yaw_deg=number).points.copy() for number in range(10)]
    for upper, lower in ((159, 145), (386, 374)):
        points[3][upper] = points[3][lower]
    points[7] = make_face(mouth_open_cm=2.5).points
    odds = rarity([Painted("clip", 20 * number, one) for number, one in enumerate(points)])
    assert odds.sum() == pytest.approx(1)
    usual = np.delete(odds, [3, 7])
    assert np.allclose(usual, usual[0], rtol=0.15)
    assert 3 < odds[3] / usual[0] <= 4.01
    assert 2 < odds[7] / usual[0] <= 4.01


def test_somebody_with_one_picture_is_no_episode(people: People) -> None:
    lone = {"ann": {"ann one": people["ann"]["ann one"][:1]}}
    assert Episodes({**lone, "ben": people["ben"]}).names == ["ben"]
    with pytest.raises(ValueError, match="nobody here has two pictures"):
        Episodes(lone)


# --- reproducible -------------------------------------------------------------------------------------------


def same(one: Sample, other: Sample) -> bool:
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in Sample.__slots__)


def test_an_episode_depends_on_seed_and_number_alone(people: People) -> None:
    assert same(Episodes(people, seed=5)[7], Episodes(people, seed=5)[7])
    assert not same(Episodes(people, seed=5)[7], Episodes(people, seed=5)[8])
    assert not same(Episodes(people, seed=5)[7], Episodes(people, seed=6)[7])


def test_a_stream_can_be_entered_anywhere(people: People) -> None:
    episodes = Episodes(people, seed=1)
    batch = next(batches(episodes, Sample, 2, CPU, first=3))
    assert same(batch, collate([episodes[6], episodes[7]]))


def test_workers_change_nothing(people: People) -> None:
    episodes = Episodes(people, seed=2)
    alone, shared = (batches(episodes, Sample, 1, CPU, workers=workers) for workers in (0, 2))
    for _ in range(3):
        assert same(next(alone), next(shared))


# --- pictures and points ------------------------------------------------------------------------------------


def test_shapes(people: People) -> None:
    sample = Episodes(people)[0]
    count = geometry.MAP_COUNT + geometry.DETAIL_COUNT
    assert {name: tuple(getattr(sample, name).shape) for name in Sample.__slots__} == {
        "target": (4, SIZE, SIZE),
        "pictures": (4, 4, SIZE, SIZE),
        "rasters": (4, 3, 128, 128),
        "raster": (3, 128, 128),
        "grids": (count, 64, 64, 2),
        "tile": (64, 64),
        "detail": (1, 64, 64),
        "background": (),
        "focus": (1, SIZE, SIZE),
        "placed": (2, 3),
    }
    assert collate([sample, sample]).target.shape == (2, 4, SIZE, SIZE)


def test_moving_keeps_points_on_what_they_mark(make_face: MakeFace) -> None:
    """A blob is painted at a landmark, picture and points are moved, and the blob is found where the point went."""
    points = make_face().points
    random = np.random.default_rng(0)
    y, x = np.mgrid[:SIZE, :SIZE] + 0.5  # landmarks count from the picture's edge: pixel centres lie at a half
    for index in (1, 33, 263, 61, 291, 152):
        blob = np.exp(-((x - points[index, 0]) ** 2 + (y - points[index, 1]) ** 2) / 18)
        rgb = np.repeat((255 * blob)[..., None], 3, 2).astype(np.uint8)
        turn, factor = np.radians(random.uniform(-8, 8)), np.exp(random.uniform(-0.15, 0.15))
        linear = factor * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        matrix = np.column_stack([linear, [128, 128] - linear @ [128, 128] + random.uniform(-15, 15, 2)])
        moved, matte, marks = _moved(rgb, rgb[..., 0].copy(), points, matrix.astype(np.float32))
        for picture in (moved[..., 0].astype(float), matte.astype(float)):
            found = (picture * x).sum() / picture.sum(), (picture * y).sum() / picture.sum()
            assert np.abs(np.array(found) - marks[index, :2]).max() < 0.1
        assert np.allclose(marks[:, 2], points[:, 2] * factor, atol=1e-3)


def test_a_mirrored_face_is_the_face_of_the_mirrored_picture() -> None:
    """The right eye becomes the left one; lips, chin and nose stay; twice is once too often."""
    table = mirror_table()
    assert np.array_equal(table[table], np.arange(478))
    assert table[[33, 61, 468, 13, 152]].tolist() == [263, 291, 473, 13, 152]
    points = landmarks("woman_turned")
    rgb, matte, mirrored = _mirrored(photo("woman_turned"), np.eye(SIZE, dtype=np.uint8), points, table)
    assert np.array_equal(rgb, photo("woman_turned")[:, ::-1])
    assert matte[0, -1] == 1
    assert mirrored[33, 0] == SIZE - points[263, 0]
    told, turned = geometry.describe(points), geometry.describe(mirrored)
    assert told["rest"][0] == pytest.approx(-turned["rest"][0], abs=0.02)
    assert np.allclose(told["mouth"], turned["mouth"], atol=0.02)


def test_augmentation_moves_pictures_and_rasters_together() -> None:
    """Seen through an episode: the darkest place of each eye of a photo stays inside the eye that is drawn."""
    shots = [
        Painted("clip", 100 * number, landmarks(name), picture=photo(name))
        for number, name in enumerate(("man_still", "man_speaking"))
    ]
    plain = Episodes.assemble(shots[0], [shots[1]] * 4, np.ones(3, np.float32), SIZE)
    moved = 0
    for seed in range(12):
        rng = np.random.default_rng(seed)
        sample = Episodes.assemble(shots[0], [shots[1]] * 4, np.ones(3, np.float32), SIZE, rng)
        moved += not torch.equal(sample.raster, plain.raster)
        for picture, raster in ((sample.target, sample.raster), (sample.pictures[0], sample.rasters[0])):
            gray = cv2.resize(picture[:3].mean(0).numpy(), (128, 128), interpolation=cv2.INTER_AREA)
            lips = cv2.erode((raster[2].numpy() > 0.3).astype(np.uint8), np.ones((2, 2), np.uint8)) > 0
            pupils = raster[1].numpy() > 0.97
            around = cv2.dilate(pupils.astype(np.uint8), np.ones((9, 9), np.uint8)) > 0
            assert gray[pupils].mean() < gray[around & ~pupils].mean() - 0.03
            reddish = cv2.resize((picture[0] - picture[1]).numpy(), (128, 128), interpolation=cv2.INTER_AREA)
            skin = cv2.dilate(lips.astype(np.uint8), np.ones((11, 11), np.uint8)) > 0
            assert reddish[lips].mean() > reddish[skin & ~lips].mean()
    assert 5 <= moved <= 11, "half of them are moved, and half are mirrored"


def test_without_augmentation_the_picture_is_the_shot(people: People) -> None:
    shots = people["ann"]["ann one"]
    sample = Episodes.assemble(shots[0], [shots[4]] * 4, np.ones(3, np.float32), SIZE)
    assert np.abs((sample.target[:3].numpy().transpose(1, 2, 0) + 1) * 127.5 - shots[0].rgb()).max() < 0.01
    assert np.abs((sample.pictures[2, :3].numpy().transpose(1, 2, 0) + 1) * 127.5 - shots[4].rgb()).max() < 0.01
    assert (sample.target[3] == 1).all()
    assert sample.background == 1
    other = Episodes.assemble(people["ann"]["ann two"][0], [shots[4]] * 4, np.ones(3, np.float32), SIZE)
    assert other.background < 0.1, "another clip has another background"


def test_focus_lies_on_eyes_and_mouth(people: People) -> None:
    shot = people["ann"]["ann one"][0]
    focus = Episodes.assemble(shot, [shot] * 4, np.ones(3, np.float32), SIZE).focus[0]
    for index, expected in ((468, 1), (473, 1), (0, 1), (17, 1), (10, 0), (234, 0), (5, 0)):
        x, y = shot.points[index, :2].astype(int)
        assert (focus[y, x] > 0.3) == bool(expected), index


# --- shards -------------------------------------------------------------------------------------------------


def write_shard(path: Path, person: str, split: str, numbers: Sequence[int], leave_out: str = "") -> None:
    rgb = photo("man_still")
    points = io.BytesIO()
    np.save(points, landmarks("man_still"))
    matte = np.full((128, 128), 255, np.uint8)
    files: dict[str, bytes] = {}
    for number in numbers:
        files[f"{number:05d}.jpg"] = cv2.imencode(".jpg", rgb[..., ::-1])[1].tobytes()
        files[f"{number:05d}.npy"] = points.getvalue()
        files[f"{number:05d}.png"] = cv2.imencode(".png", matte)[1].tobytes()
    files["clip.json"] = json.dumps({"person": person, "split": split}).encode()  # the last, as prepare writes it
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            if name != leave_out:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def test_shards_are_read_by_person_clip_and_order(tmp_path: Path) -> None:
    write_shard(tmp_path / "b.tar", "ann", "train", [10, 0, 5])
    write_shard(tmp_path / "a.tar", "ann", "train", [0, 5])
    write_shard(tmp_path / "c.tar", "ben", "train", [0])
    people = load_shards(tmp_path, "train")
    assert {person: sorted(clips) for person, clips in people.items()} == {"ann": ["a", "b"], "ben": ["c"]}
    assert [shot.number for shot in people["ann"]["b"]] == [0, 5, 10]
    shot = people["ann"]["b"][0]
    assert isinstance(shot, KeptFrame)
    assert np.abs(shot.rgb().astype(int) - photo("man_still")).mean() < 4, "RGB, as it went in"
    assert shot.matte(64).shape == (64, 64)
    assert np.array_equal(shot.points, landmarks("man_still"))


def test_splits_do_not_mix(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.tar", "ann", "train", [0, 5])
    write_shard(tmp_path / "b.tar", "ben", "test", [0, 5])
    assert list(load_shards(tmp_path, "train")) == ["ann"]
    assert list(load_shards(tmp_path, "test")) == ["ben"]


def test_a_folder_without_shards_is_told_in_one_sentence(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.tar", "ann", "train", [0])
    with pytest.raises(ValueError, match=r"holds no shard of the split 'test': run python -m training\.prepare first$"):
        load_shards(tmp_path, "test")


def test_a_broken_shard_is_named(tmp_path: Path) -> None:
    write_shard(tmp_path / "whole.tar", "ann", "train", [0, 5])
    broken = tmp_path / "broken.tar"
    sentence = r"broken\.tar is damaged \(.*\): delete it and run python -m training\.prepare again$"
    for spoil in (
        lambda: broken.write_bytes(b"this is no tar at all"),
        lambda: broken.write_bytes((tmp_path / "whole.tar").read_bytes()[:700]),
        lambda: write_shard(broken, "ann", "train", [0, 5], leave_out="clip.json"),
        lambda: write_shard(broken, "ann", "train", [0, 5], leave_out="00005.npy"),
    ):
        spoil()
        with pytest.raises(ValueError, match=sentence):
            load_shards(tmp_path, "train")


def test_kept_frames_are_shots(tmp_path: Path) -> None:
    """What comes out of a shard makes an episode."""
    write_shard(tmp_path / "a.tar", "ann", "train", [0, 50, 100])
    people = load_shards(tmp_path, "train")
    for person in people.values():
        for shots in person.values():
            shots[1] = replace(shots[1], points=shots[1].points + np.float32(1))  # type: ignore[type-var]
    sample = Episodes(people, augment=False)[0]
    assert torch.isfinite(sample.grids).all()
