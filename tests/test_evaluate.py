"""The tables: measures against known values, and a protocol that never shows a method the frame it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import av
import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from engine import geometry
from engine.base import Base
from engine.config import load
from engine.frames import Face, Frame, Image, Points
from training import evaluate
from training.evaluate import APART_S, MEASURED, METHODS, STRETCH, Person
from training.photos import CheckedPhoto

FPS = 25.0


def stamps(*counts: int) -> list[evaluate.Floats]:
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
    pools = evaluate.photo_pools(times)
    offered = [(clip, int(number)) for clip, pool in enumerate(pools) for number in pool]
    taken = [offered[int(share * (len(offered) - 1))] for share in shares]
    chosen = evaluate.stretches(evaluate.drivable(times, taken), frames)
    assert len(chosen) == len(set(chosen)) <= -(-frames // len(MEASURED))
    for clip, start in chosen:
        assert start + STRETCH <= counts[clip]
        for number in range(start, start + STRETCH):
            assert (clip, number) not in taken
            near = [other for where, other in taken if where == clip and abs(other - number) / FPS < APART_S - 1e-9]
            assert not near


def test_a_single_clip_gives_both_photos_and_driving_frames() -> None:
    times = stamps(500)
    (pool,) = evaluate.photo_pools(times)
    assert 190 <= len(pool) <= 200
    free = evaluate.drivable(times, [(0, int(number)) for number in pool])
    assert len(evaluate.stretches(free, 1000)) == 8


def test_short_clips_take_turns() -> None:
    pools = evaluate.photo_pools(stamps(75, 75, 75))
    assert [len(pool) for pool in pools] == [75, 0, 75]
    free = evaluate.drivable(stamps(75, 75, 75), [(0, 10), (2, 40)])
    assert evaluate.stretches(free, 100) == [(1, 0), (1, 30)]


def test_stretches_spread_over_what_there_is() -> None:
    free = [np.ones(300, bool), np.ones(29, bool), np.ones(300, bool)]
    assert evaluate.stretches(free, 2 * len(MEASURED)) == [(0, 150), (2, 150)]
    assert evaluate.stretches([np.zeros(100, bool)], 5) == []


def test_index_gives_the_split_longest_clip_first(tmp_path: Path) -> None:
    rows = ["clip\tperson\tsplit\tframes", "a.mp4\tp1\ttest\t50", "b.mp4\tp1\ttest\t300", "c.mp4\tp2\ttrain\t300"]
    (tmp_path / "index.tsv").write_text("\n".join(rows) + "\n")
    assert evaluate.read_index(tmp_path, "test") == {"p1": [tmp_path / "b.mp4", tmp_path / "a.mp4"]}
    with pytest.raises(ValueError, match="nobody in the split 'val'"):
        evaluate.read_index(tmp_path, "val")


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
    times = evaluate.frame_times(tmp_path / "clip.mp4")
    np.testing.assert_allclose(np.diff(times), 1 / FPS, atol=1e-3)
    found = evaluate.read_frames(tmp_path / "clip.mp4", [1, 4])
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


# --- the measures ---


def test_a_picture_is_like_itself(face_photo: Image) -> None:
    assert evaluate.ssim(face_photo, face_photo) == pytest.approx(1.0)
    assert evaluate.flicker(face_photo, face_photo, face_photo, face_photo) == 0.0


def slow_ssim(picture: Image, other: Image) -> float:
    """Window by window, in the words of Wang et al. 2004, equation 13."""
    along = np.arange(11) - 5
    kernel = np.exp(-(along**2) / (2 * 1.5**2))
    window = np.outer(kernel, kernel) / kernel.sum() ** 2
    one, two = (cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY).astype(np.float64) for rgb in (picture, other))
    values = []
    for top in range(one.shape[0] - 10):
        for left in range(one.shape[1] - 10):
            x, y = one[top : top + 11, left : left + 11], two[top : top + 11, left : left + 11]
            mean_x, mean_y = (window * x).sum(), (window * y).sum()
            var_x, var_y = (window * (x - mean_x) ** 2).sum(), (window * (y - mean_y) ** 2).sum()
            both = (window * (x - mean_x) * (y - mean_y)).sum()
            above = (2 * mean_x * mean_y + 6.5025) * (2 * both + 58.5225)
            values.append(above / ((mean_x**2 + mean_y**2 + 6.5025) * (var_x + var_y + 58.5225)))
    return float(np.mean(values))


def test_ssim_is_what_a_second_implementation_says(face_photo: Image, speaking_photo: Image) -> None:
    one, two = face_photo[100:132, 90:130], speaking_photo[100:132, 90:130]
    assert evaluate.ssim(one, two) == pytest.approx(slow_ssim(one, two), abs=1e-9)
    assert evaluate.ssim(one, two) < 0.99


def test_shifted_landmarks_give_the_error_they_should(make_face: Callable[..., Face]) -> None:
    driving = make_face().points
    unit = float(np.linalg.norm(driving[33, :2] - driving[263, :2]))
    found = driving + np.array([3.0, 4.0, 50.0], np.float32)  # depth does not count
    for error in evaluate.landmark_errors(found, driving).values():
        assert error == pytest.approx(500 / unit, rel=1e-4)
    found = driving.copy()
    found[geometry.LIPS_INNER, 1] += 2.0
    told = evaluate.landmark_errors(found, driving)
    assert told["lips"] == pytest.approx(100 / unit, rel=1e-4)
    assert told["lids"] == 0
    assert told["points"] == pytest.approx(20 / 478 * 200 / unit, rel=1e-4)


def test_subsets_are_whole() -> None:
    assert len(set(evaluate.SIXTY_EIGHT)) == 68
    assert len(set(evaluate.SUBSETS["lips"])) == 40
    assert len(set(evaluate.SUBSETS["lids"])) == 32


def test_flicker_is_change_the_truth_does_not_show(face_photo: Image) -> None:
    brighter = np.asarray(cv2.add(face_photo, np.full_like(face_photo, 10)), np.uint8)
    change = float(np.abs(brighter.astype(int) - face_photo).max(-1).mean())
    assert evaluate.flicker(face_photo, brighter, face_photo, face_photo) == pytest.approx(change)
    assert evaluate.flicker(face_photo, brighter, face_photo, brighter) == 0  # the truth brightens too
    assert evaluate.flicker(face_photo, face_photo, face_photo, brighter) == 0  # standing still is no flicker


def test_distances_over_all_and_over_the_person() -> None:
    """The whole is LPIPS' own formula; the person's part forgets what differs elsewhere."""
    random = torch.Generator().manual_seed(0)

    def layers(picture: Tensor) -> list[Tensor]:
        return [picture, F.avg_pool2d(picture, 4)]

    truth = torch.rand(1, 5, 16, 16, generator=random)
    elsewhere = truth.clone()
    elsewhere[..., 8:] = torch.rand(1, 5, 16, 8, generator=random)
    person = torch.zeros(1, 1, 16, 16)
    person[..., :8] = 1
    heads = [torch.rand(1, 5, 1, 1, generator=random) for _ in range(2)]
    features = layers(torch.cat([truth, truth, elsewhere]))
    whole, inside = evaluate.perceptual_distances(heads, features, person)
    expected = sum(
        float((head * (layer[2] / layer[2].norm(dim=0) - layer[0] / layer[0].norm(dim=0)) ** 2).sum(1).mean())
        for head, layer in zip(heads, features, strict=True)
    )
    assert whole == pytest.approx([0, expected], abs=1e-5)
    assert inside == pytest.approx([0, 0], abs=1e-6)
    everywhere = evaluate.perceptual_distances(heads, features, torch.ones(1, 1, 16, 16))[1]
    assert everywhere == pytest.approx(whole, abs=1e-5)


def test_a_measure_missing_in_some_frames_is_averaged_over_the_others() -> None:
    assert evaluate.means([{"lost": 1.0}, {"lost": 0.0, "identity": 0.5}]) == {"lost": 0.5, "identity": 0.5}


# --- one person ---


class GreyJudge:
    """Scores a picture by its brightness, and remembers which true frames it was shown."""

    def __init__(self) -> None:
        self.truths: list[Image] = []

    def score(self, truth: Image, driving: Points, pictures: dict[str, Image]) -> dict[str, dict[str, float]]:
        self.truths.append(truth)
        return {name: {"lpips": float(picture.mean())} for name, picture in pictures.items()}


def test_every_method_is_scored_by_its_own_pictures_of_frames_kept_from_it(
    tmp_path: Path, face_photo: Image, make_face: Callable[..., Face], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clip counts its frames in a corner: none that is measured lies within 2 s of a photo."""
    frames = [face_photo.copy() for _ in range(130)]
    for number, frame in enumerate(frames):
        frame[:32, :32] = number + 50
    write_clip(tmp_path / "clip.mp4", frames)
    taken = [evaluate.Taken(0, number, photo_of(face_photo, make_face())) for number in range(10, 18)]
    levels = {method: 10.0 * place for place, method in enumerate(METHODS)}

    def grey(level: float) -> evaluate.Method:
        return lambda frame, face: np.full((256, 256, 3), level, np.uint8)

    monkeypatch.setattr(evaluate, "SFace", lambda: None)
    monkeypatch.setattr(evaluate, "take_photos", lambda *_: taken)
    monkeypatch.setattr(evaluate, "methods", lambda *_: {method: grey(level) for method, level in levels.items()})
    judge = GreyJudge()
    base = cast(Base, None)
    one = evaluate.evaluate_person("p1", [tmp_path / "clip.mp4"], base, load(), cast(evaluate.Judge, judge), 20)
    assert {method: score["lpips"] for method, score in one.scores.items()} == levels
    assert one.frames == len(judge.truths) == 2 * len(MEASURED)
    numbers = [round(float(truth[4:28, 4:28].mean())) - 50 for truth in judge.truths]
    assert min(numbers) >= 17 + APART_S * FPS
    assert len(set(numbers)) == len(numbers)
    assert one.about["stretches"] == ["clip 67", "clip 97"]
    with pytest.raises(evaluate.LeftOutError, match="7 photos instead of 8"):
        monkeypatch.setattr(evaluate, "take_photos", lambda *_: taken[1:])
        evaluate.evaluate_person("p1", [tmp_path / "clip.mp4"], base, load(), cast(evaluate.Judge, judge), 20)


# --- the tables ---


def person(name: str, lpips: dict[str, float]) -> Person:
    keys = [column.key for column in evaluate.COLUMNS]
    scores = {method: {**dict.fromkeys(keys, 1.0), "lpips": lpips[method]} for method in METHODS}
    return Person(name, 5, scores, {}, np.zeros((8, 7 * 256, 3), np.uint8))


def cells(markdown: str, title: str) -> list[str]:
    (line,) = [line for line in markdown.splitlines() if line.replace("*", "").startswith(f"| {title} |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_every_method_keeps_its_own_row() -> None:
    lpips = {method: 0.1 * (place + 1) for place, method in enumerate(METHODS)}
    everyone = [person("one", lpips), person("two", {method: value + 0.02 for method, value in lpips.items()})]
    table = evaluate.table(everyone)
    for method in METHODS:
        assert cells(table, method)[1].startswith(f"{lpips[method] + 0.01:.3f} (")
    apart = evaluate.differences(everyone)
    for method in evaluate.COMPARED:
        ours = lpips[evaluate.TUNED] - lpips[method]
        assert cells(apart, method)[1] == f"{ours:.3f} ({ours:.3f}…{ours:.3f})"


def test_interval_covers_the_mean_and_narrows_with_more_people() -> None:
    few, many = [0.1, 0.3] * 3, [0.1, 0.3] * 50
    assert evaluate.interval([0.2, 0.2]) == pytest.approx((0.2, 0.2))
    low, high = evaluate.interval(many)
    assert low < 0.2 < high
    assert high - low == pytest.approx(2 * 1.96 * 0.1 / 10, rel=0.1)
    assert evaluate.interval(few)[1] - evaluate.interval(few)[0] > 2 * (high - low)


def test_written_files_name_everybody(tmp_path: Path) -> None:
    lpips = {method: 0.2 for method in METHODS}  # noqa: C420 (its keys are str)
    evaluate.write([person("one", lpips)], {"two": "3 photos instead of 8"}, {"split": "test"}, tmp_path)
    assert "1 people (1 left out), 5 frames" in (tmp_path / "evaluate.md").read_text(encoding="utf-8")
    assert '"two": "3 photos instead of 8"' in (tmp_path / "evaluate.json").read_text(encoding="utf-8")
    assert {path.name for path in tmp_path.glob("*.png")} == {"best.png", "median.png", "worst.png"}
