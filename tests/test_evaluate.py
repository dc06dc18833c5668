"""The evaluation: no method sees the frame it is asked for, every number lands in its row, nothing is done twice."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import av
import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from engine.avatar import Avatar
from engine.base import Base
from engine.config import Config, load
from engine.frames import Face, Frame, Image, Points
from engine.renderer import Renderer
from training import evaluate, protocol, tables
from training.evaluate import Made, Options
from training.measures import Floats, Judge, kernel_distance
from training.networks.content import PIXELS
from training.paper import PRESETS, Recipe, make_state, save_checkpoint
from training.photos import CheckedPhoto
from training.protocol import APART_S, MEASURED, STRETCH
from training.tables import NEAREST, OWN, TRUTH, TUNED, UNTUNED, WHOLE_HEAD, Person, Result, Which

FPS = 25.0
METHODS = (TRUTH, NEAREST, WHOLE_HEAD, UNTUNED, TUNED, OWN)
SELF_8, CROSS_8 = Which(False, 8), Which(True, 8)


def stamps(*counts: int) -> list[Floats]:
    return [np.arange(count) / FPS for count in counts]


# --- the protocol ---


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(1, 520), min_size=1, max_size=6),
    shares=st.lists(st.floats(0, 1), min_size=8, max_size=8),
    frames=st.integers(1, 60),
)
def test_no_driving_frame_is_near_a_photo_of_its_clip(counts: list[int], shares: list[float], frames: int) -> None:
    times = stamps(*counts)
    pools = protocol.photo_pools(times)
    offered = [(clip, int(number)) for clip, pool in enumerate(pools) for number in pool]
    taken = [offered[int(share * (len(offered) - 1))] for share in shares]
    chosen = protocol.stretches(protocol.drivable(times, taken), frames)
    assert len(chosen) == len(set(chosen)) <= -(-frames // len(MEASURED))
    for clip, start in chosen:
        assert start + STRETCH <= counts[clip]
        for number in range(start, start + STRETCH):
            assert (clip, number) not in taken
            near = [other for where, other in taken if where == clip and abs(other - number) / FPS < APART_S - 1e-9]
            assert not near


def test_a_single_clip_gives_both_photos_and_driving_frames() -> None:
    times = stamps(500)
    (pool,) = protocol.photo_pools(times)
    assert 190 <= len(pool) <= 200
    free = protocol.drivable(times, [(0, int(number)) for number in pool])
    assert len(protocol.stretches(free, 1000)) == 8


def test_short_clips_take_turns() -> None:
    pools = protocol.photo_pools(stamps(75, 75, 75))
    assert [len(pool) for pool in pools] == [75, 0, 75]
    free = protocol.drivable(stamps(75, 75, 75), [(0, 10), (2, 40)])
    assert protocol.stretches(free, 100) == [(1, 0), (1, 30)]


def test_stretches_spread_over_what_there_is() -> None:
    free = [np.ones(300, bool), np.ones(29, bool), np.ones(300, bool)]
    assert protocol.stretches(free, 2 * len(MEASURED)) == [(0, 150), (2, 150)]
    assert protocol.stretches([np.zeros(100, bool)], 5) == []


def test_index_gives_the_split_longest_clip_first(tmp_path: Path) -> None:
    rows = ["clip\tperson\tsplit\tframes", "a.mp4\tp1\ttest\t50", "b.mp4\tp1\ttest\t300", "c.mp4\tp2\ttrain\t300"]
    (tmp_path / "index.tsv").write_text("\n".join(rows) + "\n")
    assert protocol.read_index(tmp_path, "test") == {"p1": [tmp_path / "b.mp4", tmp_path / "a.mp4"]}
    with pytest.raises(ValueError, match="nobody in the split 'val'"):
        protocol.read_index(tmp_path, "val")


def write_clip(path: Path, pictures: Sequence[Image]) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt, stream.bit_rate = "yuv420p", 8_000_000
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


def test_frames_are_read_by_number(tmp_path: Path) -> None:
    levels = [20, 60, 100, 140, 180, 220]
    write_clip(tmp_path / "clip.mp4", [np.full((64, 64, 3), level, np.uint8) for level in levels])
    times = protocol.frame_times(tmp_path / "clip.mp4")
    np.testing.assert_allclose(np.diff(times), 1 / FPS, atol=1e-3)
    found = protocol.read_frames(tmp_path / "clip.mp4", [1, 4])
    assert sorted(found) == [1, 4]
    for number, frame in found.items():
        assert frame.rgb.shape == (256, 256, 3)
        assert abs(float(frame.rgb.mean()) - levels[number]) < 6
        assert frame.time_s == times[number]


# --- the methods ---


def photo_of(rgb: Image, face: Face) -> CheckedPhoto:
    return CheckedPhoto("photo", "accepted", rgb=rgb, face=face)


def test_nearest_photo_is_the_one_with_the_nearest_landmarks(make_face: Callable[..., Face]) -> None:
    grey = [np.full((256, 256, 3), level, np.uint8) for level in (10, 90, 170)]
    shown = [make_face(yaw_deg=yaw_deg) for yaw_deg in (-20, 0, 20)]
    nearest = evaluate.NearestPhoto([photo_of(*pair) for pair in zip(grey, shown, strict=True)], warped=False)
    for yaw_deg, level in ((-14, 10), (3, 90), (30, 170)):
        face = make_face(yaw_deg=yaw_deg)
        assert (nearest(Frame(grey[0], 0.0), face) == level).all()


def test_whole_head_lands_on_the_driver_to_the_pixel(face_photo: Image, make_face: Callable[..., Face]) -> None:
    """A photo drawn 3 px aside, and one turned and enlarged about the middle, come back as they were."""
    face = make_face()
    shifted = np.roll(face_photo, 3, 1)
    there = make_face(center_px=(131.0, 128.0))
    whole_head = evaluate.NearestPhoto([photo_of(shifted, there)], warped=True)
    back = whole_head(Frame(face_photo, 0.0), face)
    assert np.abs(back[:, 8:-8].astype(int) - face_photo[:, 8:-8]).max() <= 1

    smooth = cv2.GaussianBlur(face_photo, (0, 0), 2.0)
    matrix = cv2.getRotationMatrix2D((127.5, 127.5), -10, 1.1)  # clockwise, about the picture's middle
    turned = cv2.warpAffine(smooth, matrix, (256, 256), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    there = make_face(roll_deg=10, scale=8.8)
    whole_head = evaluate.NearestPhoto([photo_of(np.asarray(turned, np.uint8), there)], warped=True)
    back = whole_head(Frame(face_photo, 0.0), face)
    assert np.abs(back[60:-60, 60:-60].astype(int) - smooth[60:-60, 60:-60]).max() <= 3


def test_relative_motion_is_the_one_of_a_call(
    tiny_avatar: Avatar, tiny_base: Base, make_face: Callable[..., Face]
) -> None:
    """Drawing what is asked for, as it stands, is drawing the driver's motion as the product does."""
    config = load()
    render = replace(config.render, size_px=256, background="photo", motion="relative")
    faces = [make_face(yaw_deg=5 * step, mouth_open_cm=0.2 * step, time_s=step / 25) for step in range(4)]
    product = Renderer(tiny_avatar, tiny_base, replace(config, render=render))
    product.retarget.finder.prime(faces)
    relative = evaluate.Relative(tiny_avatar, faces)
    absolute = Renderer(tiny_avatar, tiny_base, replace(config, render=replace(render, motion="absolute")))
    asked = [relative(face) for face in faces]
    assert np.linalg.norm(asked[3].points - asked[0].points, axis=1).mean() > 3  # it does move
    for face, one in zip(faces, asked, strict=True):
        np.testing.assert_allclose(absolute.landmarks(one), product.landmarks(face), atol=1e-5)
        assert one.time_s == face.time_s and one.size_px == (256, 256)
    turned = evaluate.stance(asked[3])["yaw"] - evaluate.stance(asked[0])["yaw"]
    assert turned == pytest.approx(15, abs=3)


def test_the_order_goes_round_and_nobody_drives_themselves() -> None:
    order = ["c", "a", "b", "d"]
    assert protocol.drivers("b", order, 2) == ["d", "c"]
    assert protocol.drivers("d", order, 9) == ["c", "a", "b"]
    assert protocol.drivers("a", order, 0) == []
    assert protocol.drivers("a", ["a"], 1) == []
    assert sorted(protocol.drivers(one, order, 1)[0] for one in order) == sorted(order)  # each drives once


def test_understudy_is_made_twice_through_its_file(
    tiny_base: Base, face_photo: Image, make_face: Callable[..., Face]
) -> None:
    config = load()
    render = replace(config.render, size_px=tiny_base.size_px, background="photo", motion="absolute")
    config = replace(config, render=render, enrol=replace(config.enrol, tune_s=0.0))
    about: dict[str, Any] = {}
    made = evaluate.understudy(tiny_base, "tiny", own=True)([photo_of(face_photo, make_face())], config, about)
    assert list(made) == ["tiny, not tuned", "tiny", OWN]
    assert about == {}  # nobody was tuned
    face = make_face(size_px=(256, 256))
    pictures = [one.draw(Frame(face_photo, 0.0), face) for one in made.values()]
    np.testing.assert_array_equal(pictures[0], pictures[1])
    assert pictures[0].shape == (tiny_base.size_px, tiny_base.size_px, 3)
    assert (made["tiny"].enrol_s or 0) > 0 and made[OWN].enrol_s is None


def test_the_papers_rows(tmp_path: Path, face_photo: Image, make_face: Callable[..., Face]) -> None:
    state = make_state(PRESETS["paper-tiny"], ["one", "two"], Recipe(), torch.device("cpu"))
    save_checkpoint(state, tmp_path / "checkpoint.pt")
    make = evaluate.zakharov(tmp_path / "checkpoint.pt", [PIXELS], epochs=2)
    photo = photo_of(face_photo, make_face())
    about: dict[str, Any] = {}
    made = make([photo, photo], load(), about)
    assert list(made) == ["Zakharov et al. 2019, feed-forward", "Zakharov et al. 2019"]
    assert about["tuning"]["Zakharov et al. 2019"]["epochs"] == 2
    face = make_face(size_px=(256, 256))
    plain, tuned = (one.draw(Frame(face_photo, 0.0), face) for one in made.values())
    assert plain.shape == tuned.shape == (256, 256, 3)
    assert plain.dtype == np.uint8
    assert (plain != tuned).any(), "two steps have moved something"
    turned = made[evaluate.PAPER].draw(Frame(face_photo, 0.0), make_face(yaw_deg=30, size_px=(256, 256)))
    assert (turned != tuned).any(), "it draws the landmarks, not the frame"
    assert (made[evaluate.PAPER].enrol_s or 0) > (made["Zakharov et al. 2019, feed-forward"].enrol_s or 0)


# --- one person ---


class GreyJudge:
    """Scores a picture by its brightness, and remembers which true frames it was shown."""

    def __init__(self) -> None:
        self.truths: list[Image] = []

    def identity(self, rgb: Image, points: Points) -> NDArray[np.float32]:
        return np.eye(512, dtype=np.float32)[0]

    def matte(self, rgb: Image) -> NDArray[np.uint8]:
        return np.full(rgb.shape[:2], 255, np.uint8)

    def describe(self, pictures: Sequence[Image]) -> NDArray[np.float32]:
        return np.array([[picture.mean(), 1] for picture in pictures], np.float32)

    def likeness(self, truth: Image, pictures: dict[str, Image], person: Image) -> dict[str, dict[str, float]]:
        self.truths.append(truth)
        return {name: {"lpips": float(picture.mean())} for name, picture in pictures.items()}

    def face(
        self, picture: Image, asked: Face, enrolled: Floats, true: Floats | None
    ) -> tuple[dict[str, float], dict[str, float] | None]:
        told = {"lost": 0.0, "csim": float(picture.mean()) / 255}
        return told if true is None else told | {"identity": 1.0}, evaluate.stance(asked)


def test_every_method_is_scored_by_its_own_pictures_of_frames_kept_from_it(
    tmp_path: Path, face_photo: Image, make_face: Callable[..., Face], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clip counts its frames in a corner: none that is measured lies within 2 s of a photo, whatever T is."""
    frames = [face_photo.copy() for _ in range(130)]
    for number, frame in enumerate(frames):
        frame[:32, :32] = number + 50
    write_clip(tmp_path / "clip.mp4", frames)
    taken = [evaluate.Taken(0, number, photo_of(face_photo, make_face())) for number in range(10, 18)]
    levels = {method: 10.0 * place for place, method in enumerate(METHODS)}
    sizes: list[int] = []

    def grey(level: float) -> Made:
        return Made(lambda frame, face: np.full((256, 256, 3), level, np.uint8), level)

    def made(photos: Sequence[CheckedPhoto], *_: object) -> dict[str, Made]:
        sizes.append(len(photos))
        return {method: grey(level) for method, level in levels.items()}

    def photos(_clips: object, _pools: object, _tracker: object, _embedder: object, count: int = 8, *_: int) -> Any:
        return taken[:count]

    monkeypatch.setattr(evaluate, "SFace", lambda: None)
    monkeypatch.setattr(evaluate, "take_photos", photos)
    monkeypatch.setattr(evaluate, "make_methods", made)
    judge = GreyJudge()

    def person(shots: tuple[int, ...]) -> Person:
        options = Options("test", 0, 20, 0, 0, shots, 0)
        clips = {"p1": [tmp_path / "clip.mp4"]}
        return evaluate.evaluate_person("p1", clips, [], [], load(), cast(Judge, judge), options)

    one = person((1, 8, 32))
    assert sizes == [1, 8]
    assert list(one.results) == [Which(False, 1), SELF_8]
    assert one.skipped == {"T = 32": "8 photos instead of 32"}
    result = one.results[SELF_8]
    assert {method: score["lpips"] for method, score in result.scores.items()} == levels
    assert {method: score["enrol_s"] for method, score in result.scores.items()} == levels
    assert {method: float(rows[0, 0]) for method, rows in result.features.items()} == levels
    assert result.scores[TUNED]["restless"] == 0  # a grey picture stands still
    assert result.frames == 2 * len(MEASURED) and len(judge.truths) == 2 * result.frames
    numbers = [round(float(truth[4:28, 4:28].mean())) - 50 for truth in judge.truths[: result.frames]]
    assert min(numbers) >= 17 + APART_S * FPS
    assert len(set(numbers)) == len(numbers)
    assert result.about["stretches"] == ["clip 67", "clip 97"]
    assert result.strip.shape == (3 * 256, (len(METHODS) + 1) * 256, 3)
    taken = taken[1:]
    with pytest.raises(evaluate.LeftOutError, match="7 photos instead of 8"):
        person((8,))


def test_somebody_else_drives_without_true_frames(face_photo: Image, make_face: Callable[..., Face]) -> None:
    """What is asked of the methods is the relative motion, and they are told of no true frame."""
    faces = [make_face(yaw_deg=step - 15, time_s=step / 25) for step in range(STRETCH)]
    stretch = evaluate.Stretch([Frame(face_photo, face.time_s) for face in faces], faces)
    asked: list[Face] = []

    def draw(frame: Frame, face: Face) -> Image:
        asked.append(face)
        return np.full((256, 256, 3), 100, np.uint8)

    def mirrored(face: Face) -> Face:
        return make_face(yaw_deg=-evaluate.stance(face)["yaw"], time_s=face.time_s)

    bench = evaluate.Bench(
        cast(Judge, GreyJudge()),
        {TRUTH: Made(evaluate.true_frame), TUNED: Made(draw)},
        np.eye(8, 512, dtype=np.float32),
        face_photo,
    )
    crossed = evaluate.measure(bench, [stretch], [cast(evaluate.Relative, mirrored)])
    assert list(crossed.scores) == [TUNED]
    assert "lpips" not in crossed.scores[TUNED] and "flicker" not in crossed.scores[TUNED]
    assert crossed.scores[TUNED]["follows yaw"] == pytest.approx(-1, abs=1e-3)  # it does what was asked
    assert [round(evaluate.stance(face)["yaw"]) for face in asked[:3]] == [15, 14, 13]
    assert crossed.strip.shape == (3 * 256, 3 * 256, 3)


def test_one_person_is_driven_by_another_beside_by_themselves(
    tmp_path: Path,
    face_photo: Image,
    tiny_avatar: Avatar,
    tiny_base: Base,
    make_face: Callable[..., Face],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Both tables come of one avatar, whose clock runs on; who cannot drive is named."""
    write_clip(tmp_path / "one.mp4", [face_photo] * 110)
    write_clip(tmp_path / "two.mp4", [face_photo] * 35)
    write_clip(tmp_path / "short.mp4", [face_photo] * 10)
    taken = [evaluate.Taken(0, number, photo_of(face_photo, make_face())) for number in range(8)]
    config = load()
    render = replace(config.render, size_px=256, background="photo", motion="absolute")
    config = replace(config, render=render)
    times: list[float] = []

    class Timed(evaluate.Shipped):
        def __call__(self, frame: Frame, face: Face) -> Image:
            times.append(face.time_s)
            return super().__call__(frame, face)

    made = {TRUTH: Made(evaluate.true_frame), TUNED: Made(Timed(tiny_avatar, tiny_base, config))}
    monkeypatch.setattr(evaluate, "SFace", lambda: None)
    monkeypatch.setattr(evaluate, "take_photos", lambda *_: taken)
    monkeypatch.setattr(evaluate, "make_methods", lambda *_: made)
    clips = {name: [tmp_path / f"{name}.mp4"] for name in ("one", "two", "short")}
    options = Options("test", 0, 5, 0, 0, (8,), 2)
    judge = cast(Judge, GreyJudge())
    person = evaluate.evaluate_person("one", clips, ["two", "short"], [], config, judge, options)
    assert list(person.results) == [SELF_8, CROSS_8]
    assert person.skipped == {"cross, short": "short has no stretch in which a face was tracked throughout"}
    crossed = person.results[CROSS_8]
    assert crossed.about["drivers"] == ["two"]
    assert list(crossed.scores) == [TUNED]
    np.testing.assert_array_equal(crossed.real, person.results[SELF_8].real)
    assert len(times) == 2 * STRETCH and times == sorted(times)


def test_a_measure_missing_in_some_frames_is_averaged_over_the_others() -> None:
    assert evaluate.means([{"lost": 1.0}, {"lost": 0.0, "identity": 0.5}]) == {"lost": 0.5, "identity": 0.5}


# --- the tables ---


def result(lpips: dict[str, float], seed: int = 0, cross: bool = False) -> Result:
    columns = tables.CROSS if cross else (*tables.SELF, *tables.MORE)
    scores = {method: {**{column.key: 1.0 for column in columns}, "lpips": level} for method, level in lpips.items()}
    rng = np.random.default_rng(seed)
    real = rng.normal(size=(20, 6)).astype(np.float32)
    features = {method: (real + 10 * level).astype(np.float32) for method, level in lpips.items()}
    width = 1 + len(set(lpips) - {TRUTH}) + 1
    strip = np.full((3 * 256, width * 256, 3), seed, np.uint8)
    return Result(5, scores, features, real, strip, {"photos": ["clip 1"]})


def person(name: str, lpips: dict[str, float], seed: int = 0) -> Person:
    others = {method: level for method, level in lpips.items() if method != TRUTH}
    return Person(name, {SELF_8: result(lpips, seed), CROSS_8: result(others, seed, cross=True)})


def cells(markdown: str, title: str) -> list[str]:
    (line,) = [line for line in markdown.splitlines() if line.replace("*", "").startswith(f"| {title} |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_every_method_keeps_its_own_row() -> None:
    lpips = {method: 0.1 * (place + 1) for place, method in enumerate(METHODS)}
    more = {method: value + 0.02 for method, value in lpips.items()}
    everyone = [result(lpips), result(more)]
    told = tables.table(everyone, tables.SELF)
    for method in METHODS:
        assert cells(told, method)[1].startswith(f"{lpips[method] + 0.01:.3f} (")
    apart = tables.differences(everyone, tables.SELF)
    for method in (NEAREST, WHOLE_HEAD, UNTUNED):
        ours = lpips[TUNED] - lpips[method]
        assert cells(apart, method)[1] == f"{ours:.3f} ({ours:.3f}…{ours:.3f})"


def test_interval_covers_the_mean_and_narrows_with_more_people() -> None:
    few, many = [0.1, 0.3] * 3, [0.1, 0.3] * 50
    assert tables.interval([0.2, 0.2]) == pytest.approx((0.2, 0.2))
    low, high = tables.interval(many)
    assert low < 0.2 < high
    assert high - low == pytest.approx(2 * 1.96 * 0.1 / 10, rel=0.1)
    assert tables.interval(few)[1] - tables.interval(few)[0] > 2 * (high - low)


def test_sets_of_pictures_are_compared_over_everybody_at_once() -> None:
    """Shifted by 1 in all six features: a Frechet distance of 6; the jackknife sees that one person differs."""
    everyone = [result({TRUTH: 0.0, TUNED: 0.1}, seed) for seed in range(4)]
    told = tables.set_distances(everyone, sure=True)
    assert list(told) == [TUNED]
    assert told[TUNED]["fid"].value == pytest.approx(6, rel=1e-4)
    assert told[TUNED]["fid"].half == pytest.approx(0, abs=1e-4)
    everyone[0].features[TUNED] += 5
    mixed = tables.set_distances(everyone, sure=True)[TUNED]
    assert (mixed["fid"].half or 0) > 1
    assert tables.set_distances(everyone, sure=False)[TUNED]["fid"].half is None
    together = [
        np.concatenate(rows) for rows in zip(*((one.real, one.features[TUNED]) for one in everyone), strict=True)
    ]
    assert mixed["kid"].value == pytest.approx(kernel_distance(*together))


def test_written_files_name_everybody_and_every_table(tmp_path: Path) -> None:
    lpips = {method: 0.2 for method in METHODS}  # noqa: C420 (its keys are str)
    people = [person("one", lpips, 1), person("three", lpips, 3)]
    people[1].skipped["T = 32"] = "9 photos instead of 32"
    tables.write(people, {"two": "3 photos instead of 8"}, {"split": "test"}, 8, tmp_path, final=True)
    text = (tmp_path / "evaluate.md").read_text(encoding="utf-8")
    assert "2 people (1 left out), 10 frames" in text
    assert "## Self-reenactment, T = 8 photos" in text and "## Cross-reenactment" in text
    assert "three: 9 photos instead of 32" in text
    assert text.count("Nobody was fine-tuned here") == 2
    told = json.loads((tmp_path / "evaluate.json").read_text(encoding="utf-8"))
    assert told["left out"] == {"two": "3 photos instead of 8"}
    assert told["tables"]["self-8"][TUNED]["lpips"] == {"mean": 0.2, "low": 0.2, "high": 0.2, "people": 2}
    assert told["people"]["one"]["cross-8"]["frames"] == 5
    names = {"best.png", "median.png", "worst.png", "grid-self-8.png", "grid-cross-8.png"}
    assert {path.name for path in tmp_path.glob("*.png")} == names
    sheet = cv2.imread(str(tmp_path / "grid-self-8.png"))
    assert sheet.shape == (24 + 2 * 256, 7 * 256, 3)
    assert sheet[24 + 128, 100].tolist() == [1, 1, 1] and sheet[24 + 256 + 128, 100].tolist() == [3, 3, 3]


# --- nothing twice ---


def test_what_is_stored_comes_back_whole_and_only_for_the_same_options(tmp_path: Path) -> None:
    lpips = {method: 0.1 * place for place, method in enumerate(METHODS)}
    store = evaluate.Store(tmp_path, {"frames": 40})
    whole = person("one", lpips, 5)
    store.save("one", whole)
    store.save("two", "3 photos instead of 8")
    again = evaluate.Store(tmp_path, {"frames": 40})
    assert again.load("two") == "3 photos instead of 8"
    assert again.load("three") is None
    found = again.load("one")
    assert isinstance(found, Person) and list(found.results) == [SELF_8, CROSS_8]
    for which, one in found.results.items():
        assert one.scores == whole.results[which].scores and one.about == whole.results[which].about
        np.testing.assert_array_equal(one.features[TUNED], whole.results[which].features[TUNED])
        np.testing.assert_array_equal(one.strip, whole.results[which].strip)
        np.testing.assert_array_equal(one.real, whole.results[which].real)
    assert evaluate.Store(tmp_path, {"frames": 41}).load("one") is None
    (tmp_path / "people" / "one.npz").write_bytes(b"cut off")
    assert again.load("one") is None


def test_a_second_run_measures_only_what_is_new(
    tmp_path: Path, tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = ["clip\tperson\tsplit\tframes", *(f"{name}.mp4\t{name}\ttest\t50" for name in ("p1", "p2", "p3"))]
    (tmp_path / "index.tsv").write_text("\n".join(rows) + "\n")
    measured: list[str] = []

    def one(name: str, clips: dict[str, list[Path]], others: Sequence[str], *_: object) -> Person:
        measured.append(name)
        assert len(others) == 1 and others[0] != name
        if name == "p2":
            raise evaluate.LeftOutError("3 photos instead of 8")
        return person(name, {method: 0.2 for method in METHODS})  # noqa: C420

    class NoJudge:
        def close(self) -> None:
            pass

    monkeypatch.setattr(evaluate, "evaluate_person", one)
    monkeypatch.setattr(evaluate, "Judge", NoJudge)

    def run(people: int, config: Config) -> list[str]:
        options = Options("test", people, 5, 0, 0, (8,), 1)
        done = evaluate.evaluate(tmp_path, {TUNED: tiny_base}, config, tmp_path / "out", options)
        return sorted(one.name for one in done)

    run(2, load())
    assert len(measured) == 2
    assert run(0, load()) == ["p1", "p3"]
    assert sorted(measured) == ["p1", "p2", "p3"]
    run(0, replace(load(), enrol=replace(load().enrol, tune_s=1.0)))
    assert len(measured) == 6
    assert "2 people (1 left out)" in (tmp_path / "out" / "evaluate.md").read_text(encoding="utf-8")


def test_a_base_to_compare_with_needs_a_name_of_its_own(tiny_base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    bases = evaluate.read_bases(tiny_base.folder, [f"{tiny_base.folder}=before"])
    assert list(bases) == [TUNED, "before"]
    with pytest.raises(ValueError, match="a method named 'before' already"):
        evaluate.read_bases(tiny_base.folder, [f"{tiny_base.folder}=before"] * 2)
    monkeypatch.setattr(evaluate, "SIZE_PX", 128)
    with pytest.raises(ValueError, match="draws 256 px; measured is at 128 px"):
        evaluate.read_bases(tiny_base.folder, [])
    assert evaluate._shots("32,1,8,8") == (1, 8, 32)
    with pytest.raises(ValueError, match="0"):
        evaluate._shots("0,8")
