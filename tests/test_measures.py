"""Measures against known values: a second implementation, a known shift, a known turn, Gaussians with a formula."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from engine import geometry
from engine.frames import Face, Frame, Image
from engine.tracker import Tracker
from training import measures
from training.fetch import FetchError


def test_a_picture_is_like_itself(face_photo: Image) -> None:
    assert measures.ssim(face_photo, face_photo) == pytest.approx(1.0)
    assert measures.flicker(face_photo, face_photo, face_photo, face_photo) == 0.0


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
    assert measures.ssim(one, two) == pytest.approx(slow_ssim(one, two), abs=1e-9)
    assert measures.ssim(one, two) < 0.99


def test_shifted_landmarks_give_the_error_they_should(make_face: Callable[..., Face]) -> None:
    driving = make_face().points
    unit = float(np.linalg.norm(driving[33, :2] - driving[263, :2]))
    found = driving + np.array([3.0, 4.0, 50.0], np.float32)  # depth does not count
    for error in measures.landmark_errors(found, driving).values():
        assert error == pytest.approx(500 / unit, rel=1e-4)
    found = driving.copy()
    found[geometry.LIPS_INNER, 1] += 2.0
    told = measures.landmark_errors(found, driving)
    assert told["lips"] == pytest.approx(100 / unit, rel=1e-4)
    assert told["lids"] == 0
    assert told["points"] == pytest.approx(20 / 478 * 200 / unit, rel=1e-4)


def test_subsets_are_whole() -> None:
    assert len(set(measures.SIXTY_EIGHT)) == 68
    assert len(set(measures.SUBSETS["lips"])) == 40
    assert len(set(measures.SUBSETS["lids"])) == 32


def test_flicker_is_change_the_truth_does_not_show(face_photo: Image) -> None:
    brighter = np.asarray(cv2.add(face_photo, np.full_like(face_photo, 10)), np.uint8)
    change = float(np.abs(brighter.astype(int) - face_photo).max(-1).mean())
    assert measures.flicker(face_photo, brighter, face_photo, face_photo) == pytest.approx(change)
    assert measures.flicker(face_photo, brighter, face_photo, brighter) == 0  # the truth brightens too
    assert measures.flicker(face_photo, face_photo, face_photo, brighter) == 0  # standing still is no flicker


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
    whole, inside = measures.perceptual_distances(heads, features, person)
    expected = sum(
        float((head * (layer[2] / layer[2].norm(dim=0) - layer[0] / layer[0].norm(dim=0)) ** 2).sum(1).mean())
        for head, layer in zip(heads, features, strict=True)
    )
    assert whole == pytest.approx([0, expected], abs=1e-5)
    assert inside == pytest.approx([0, 0], abs=1e-6)
    everywhere = measures.perceptual_distances(heads, features, torch.ones(1, 1, 16, 16))[1]
    assert everywhere == pytest.approx(whole, abs=1e-5)


# --- what a face does ---


def test_mouth_and_lids_open_by_what_they_are_opened(make_face: Callable[..., Face]) -> None:
    """The fake's lower lip drops 0.5 cm, its outer eye corners are as far apart as the points say."""
    shut, opened = make_face(), make_face(mouth_open_cm=0.5)
    unit = float(np.linalg.norm(shut.points[33, :2] - shut.points[263, :2]))
    moved = [index for index in geometry.LIPS_INNER[11:] if opened.points[index, 1] != shut.points[index, 1]]
    expected = 100 * 8.0 * 0.5 * len(moved) / 9 / unit
    told = measures.motion_errors(opened, shut)
    assert told["mouth_gap"] == pytest.approx(expected, rel=0.02)
    assert told["lid_gap"] == told["gaze"] == told["pose"] == pytest.approx(0, abs=1e-3)

    points = shut.points.copy()
    for upper, lower in zip(geometry.EYE_LEFT[1:8], reversed(geometry.EYE_LEFT[9:]), strict=True):
        points[upper] = points[lower]
    right, left = measures.lid_openings(points)
    assert left == 0
    assert right == pytest.approx(measures.lid_openings(shut.points)[0]) and right > 10


def test_gaze_is_a_share_of_the_eye_and_turns_with_the_head(make_face: Callable[..., Face]) -> None:
    for roll_deg in (0, 30):
        face = make_face(roll_deg=roll_deg)
        looking = face.points.copy()
        for left, right, iris in ((33, 133, 468), (362, 263, 473)):
            looking[iris] += 0.1 * (face.points[right] - face.points[left])
        assert measures.gaze_error(looking, face.points) == pytest.approx(10, rel=1e-3)
        along = measures.gaze(looking) - measures.gaze(face.points)
        np.testing.assert_allclose(along, [[10, 0], [10, 0]], atol=1e-2)
    for outline in (geometry.EYE_RIGHT, geometry.EYE_LEFT):
        looking[outline[1:8]] = looking[list(reversed(outline[9:]))]
    assert measures.gaze_error(looking, face.points) is None  # nobody can see where a shut eye looks


def test_pose_is_the_angle_between_the_heads(make_face: Callable[..., Face]) -> None:
    assert measures.turn_deg(make_face(yaw_deg=12).rotation, make_face().rotation) == pytest.approx(12, abs=1e-3)
    one, other = make_face(yaw_deg=-10, roll_deg=5), make_face(yaw_deg=10, roll_deg=5)
    assert measures.turn_deg(one.rotation, other.rotation) == pytest.approx(20, abs=1e-3)


def test_following_says_who_moves_along(make_face: Callable[..., Face]) -> None:
    angles = [-20, -10, 0, 10, 20, 25]
    driver = [measures.stance(make_face(yaw_deg=angle, mouth_open_cm=0.01 * angle + 0.3)) for angle in angles]
    assert [round(one["yaw"]) for one in driver] == angles
    less = [measures.stance(make_face(yaw_deg=angle / 2, mouth_open_cm=0.3 - 0.01 * angle)) for angle in angles]
    told = measures.following(less, driver)
    assert told["follows yaw"] == pytest.approx(1, abs=1e-3)
    assert told["follows mouth"] < -0.9
    assert "follows pitch" not in told  # the driver never nods: nothing to follow
    assert measures.following(less[:4], driver[:4]) == {}


# --- flicker against the real video ---


def test_restlessness_knows_steady_change_from_trembling(face_photo: Image) -> None:
    everywhere = np.full((256, 256), 255, np.uint8)
    grey = np.full((256, 256, 3), 100, np.uint8)
    brighter, brightest = np.full_like(grey, 110), np.full_like(grey, 120)
    assert measures.restlessness(grey, brighter, brightest, everywhere) == 0  # a lamp that brightens steadily
    assert measures.restlessness(grey, brighter, grey, everywhere) == pytest.approx(20, abs=0.1)
    left = everywhere.copy()
    left[:, 128:] = 0
    trembling = grey.copy()
    trembling[:, 128:] += 10
    assert measures.restlessness(grey, trembling, grey, left) == 0  # beside the person
    noise = np.random.default_rng(0).normal(0, 2, (3, *face_photo.shape))
    filmed = [np.clip(face_photo + one, 0, 255).astype(np.uint8) for one in noise]
    assert measures.restlessness(filmed[0], filmed[1], filmed[2], everywhere) > 1  # a camera's noise: a real video's


# --- sets of pictures ---


def test_frechet_distance_of_gaussians_whose_distance_is_known() -> None:
    """Two Gaussians with covariances that commute: |m|^2 + sum (s1 - s2)^2; and the formula with a matrix root."""
    rng = np.random.default_rng(0)
    one = rng.normal(size=(40_000, 4)) * [1, 2, 3, 4] + [1, 0, 0, 0]
    two = rng.normal(size=(40_000, 4)) * [2, 2, 1, 4]
    assert measures.frechet_distance(one, two) == pytest.approx(1 + 1 + 4, rel=0.05)
    mixed = one[:300] @ rng.normal(size=(4, 4)), two[:200]
    covariances = [np.cov(rows, rowvar=False) for rows in mixed]
    root = np.sqrt(np.linalg.eigvals(covariances[0] @ covariances[1]).astype(complex)).real.sum()
    means = [rows.mean(0) for rows in mixed]
    expected = ((means[0] - means[1]) ** 2).sum() + np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * root
    assert measures.frechet_distance(*mixed) == pytest.approx(float(expected), rel=1e-9)


def test_few_pictures_of_one_kind_have_a_frechet_distance_and_no_kernel_distance() -> None:
    """The bias that the tables warn of."""
    rows = np.random.default_rng(1).normal(size=(120, 64))
    assert measures.frechet_distance(rows[:60], rows[60:]) > 10
    assert abs(measures.kernel_distance(rows[:60], rows[60:])) < 0.02
    assert measures.frechet_distance(rows, rows) == pytest.approx(0, abs=1e-9)


def test_kernel_distance_is_the_unbiased_sum_over_pairs() -> None:
    rng = np.random.default_rng(2)
    one, two = rng.normal(size=(4, 3)), rng.normal(size=(5, 3)) + 1

    def kernel(a: measures.Floats, b: measures.Floats) -> float:
        return float(a @ b / 3 + 1) ** 3

    def among(rows: measures.Floats) -> float:
        return float(np.mean([kernel(a, b) for i, a in enumerate(rows) for j, b in enumerate(rows) if i != j]))

    across = np.mean([kernel(a, b) for a in one for b in two])
    assert measures.kernel_distance(one, two) == pytest.approx(among(one) + among(two) - 2 * float(across), rel=1e-12)
    assert measures.kernel_distance(one, two) > 0


# --- the judge ---


def test_the_judge_knows_the_person_and_says_when_there_is_none(
    face_photo: Image, speaking_photo: Image, turned_photo: Image
) -> None:
    """Without LPIPS and Inception, which have their own tests: the same man speaking, and a woman."""
    try:
        judge = measures.Judge()
    except FetchError as error:
        pytest.skip(str(error))
    with Tracker(video=False) as tracker:
        asked = tracker.track(Frame(face_photo, 0.0))
    assert isinstance(asked, Face)
    himself = judge.identity(face_photo, asked.points)
    photos = np.stack([himself, -himself, himself])
    told, posture = judge.face(face_photo, asked, photos, himself)
    assert told["lost"] == 0 and posture is not None
    assert told["identity"] > 0.98 and told["csim_best"] > 0.98 and told["csim"] > 0.98
    assert told["points"] < 2 and told["pose"] < 1
    other = judge.face(turned_photo, asked, photos, himself)[0]
    speaking = judge.face(speaking_photo, asked, photos, himself)[0]
    assert other["identity"] < 0.4 < speaking["identity"]
    assert speaking["mouth_gap"] > 3 * told["mouth_gap"] + 1
    assert judge.face(np.full_like(face_photo, 90), asked, photos, himself) == ({"lost": 1.0}, None)
    judge.close()
