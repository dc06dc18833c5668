"""The choice of references: no flicker, no jump, and no change while it could be seen."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from engine import geometry
from engine.frames import Face, Image
from engine.references import (
    Dissolve,
    Pictures,
    ReferenceChooser,
    continued,
    cut_edge,
    front_reference,
    softness_of,
    unlike,
)

Floats = NDArray[np.float32]
MakeFace = Callable[..., Face]
Make = Callable[..., Floats]
FPS = 30
FADE_S = 0.12


@pytest.fixture(scope="module")
def make(make_face: MakeFace) -> Make:
    """Landmarks in crop units, the head in the middle unless told."""

    def landmarks(**how: float) -> Floats:
        face = make_face(center_px=(128, 120), **how)
        return geometry.to_crop_units(face.points, 256)

    return landmarks


@pytest.fixture(scope="module")
def references(make: Make) -> list[Floats]:
    """Frontal, speaking, turned one way, turned the other."""
    return [make(), make(mouth_open_cm=1.5), make(yaw_deg=-25), make(yaw_deg=25)]


def run(
    chooser: ReferenceChooser, targets: Sequence[Floats], fps: float = FPS
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """`[T, 4]` choices and `[T, 3]` fades."""
    told = [chooser.choose(target, frame / fps) for frame, target in enumerate(targets)]
    return np.stack([one for one, _ in told]), np.stack([fade for _, fade in told])


def wander(make: Make, count: int, seed: int = 0) -> list[Floats]:
    """A head that turns and speaks at random, quickly."""
    random = np.random.default_rng(seed)
    turns = np.cumsum(random.normal(0, 5, count)) % 80
    turns = np.abs(turns - 40) * 1.5 - 30
    return [
        make(yaw_deg=float(turn), mouth_open_cm=float(gap))
        for turn, gap in zip(turns, random.uniform(0, 2, count), strict=True)
    ]


def test_the_first_frame_takes_the_best_at_once(references: list[Floats]) -> None:
    for best, target in enumerate(references):
        chosen, fade = ReferenceChooser(references).choose(target, 100.0)
        assert chosen.tolist() == [best] * 4
        assert fade.tolist() == [1, 1, 1]


def test_zones_choose_for_themselves(make: Make, references: list[Floats]) -> None:
    blinking = make().copy()
    blinking[[159, 386, 158, 160, 385, 387]] = blinking[[145, 374, 153, 144, 380, 373]]
    target = make(mouth_open_cm=1.5).copy()
    target[[159, 386, 158, 160, 385, 387]] = blinking[[145, 374, 153, 144, 380, 373]]
    chosen, _ = ReferenceChooser([*references, blinking]).choose(target, 0.0)
    assert (chosen[2], chosen[3]) == (4, 1)


def test_slot_a_is_turned_and_placed_as_the_target(make: Make, references: list[Floats]) -> None:
    """Of two photos turned alike the one with the head where it is wanted, and never one with shut eyes."""
    aside = make(yaw_deg=20) + np.array([0.2, 0, 0], np.float32)
    chosen, _ = ReferenceChooser([*references, aside]).choose(make(yaw_deg=22) + np.array([0.18, 0, 0], np.float32), 0)
    assert chosen[0] == 4
    blinking = aside.copy()
    blinking[[159, 386]] = blinking[[145, 374]]
    chosen, _ = ReferenceChooser([*references, blinking]).choose(blinking, 0)
    assert (chosen[0], chosen[2]) == (3, 4)


def test_a_photo_with_hair_cut_off_is_not_shown_with_its_edge(make: Make) -> None:
    full = np.zeros((256, 256), np.uint8)
    full[:, 40:200] = 255
    turned, front = make(yaw_deg=20), make()
    assert cut_edge(np.zeros_like(full)) is None
    chooser = ReferenceChooser([front, turned], cuts=[None, cut_edge(full)])
    assert chooser.choose(turned, 0.0)[0][0] == 1, "as it lies the edge is the picture's own"
    lower = turned + np.array([0, 0.3, 0], np.float32)
    assert chooser.choose(lower, 9.0)[0][0] == 0


def test_a_photo_goes_on_beyond_its_sides() -> None:
    """Hair at the right edge goes on mirrored and falls away; wall stays wall."""
    noise = np.random.default_rng(0)
    wall, hair = np.array([200, 190, 180]), np.array([90, 50, 20])
    rgb = np.clip(wall + noise.normal(0, 2, (64, 64, 3)), 0, 255)
    matte = np.zeros((64, 64), np.uint8)
    matte[24:, 40:] = 255
    rgb[matte > 0] = hair + noise.integers(-20, 20, (np.count_nonzero(matte), 3))
    rgb = rgb.astype(np.uint8)
    wide = continued(rgb, matte)
    assert wide.shape == (64, 64 + 2 * 8, 3)
    assert np.array_equal(wide[:, 8:-8], rgb)
    assert np.abs(wide[:, :8].astype(float) - wall).max() < 12
    right = wide[:, -8:].astype(float)
    assert np.abs(right[:20] - wall).max() < 12
    assert np.abs(right[40:] - rgb[40:, :-9:-1]).max() < 3, "hair, as in a mirror"
    assert np.abs(right[25, 7] - wall).max() < 60, "and one row lower with each column"


def test_a_photo_full_of_person_goes_on_as_in_a_mirror() -> None:
    rgb = np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)
    wide = continued(rgb, np.full((64, 64), 255, np.uint8))
    assert np.array_equal(wide, cv2.copyMakeBorder(rgb, 0, 0, 8, 8, cv2.BORDER_REFLECT))


def test_after_a_pause_everything_changes_at_once(references: list[Floats]) -> None:
    chooser = ReferenceChooser(references)
    chooser.choose(references[0], 0.0)
    chosen, fade = chooser.choose(references[3], 2.0)
    assert chosen.tolist() == [3] * 4
    assert fade.tolist() == [1, 1, 1]


@pytest.mark.parametrize("fps", [12, 30, 60])
def test_nothing_changes_while_it_can_be_seen(make: Make, references: list[Floats], fps: float) -> None:
    chosen, fade = run(ReferenceChooser(references), wander(make, 400), fps)
    changed = np.diff(chosen[:, 1:], axis=0) != 0
    assert changed.sum() > 10, "this test needs changes to look at"
    assert (fade[1:][changed] == 0).all()


@pytest.mark.parametrize("fps", [30, 60])
def test_fades_are_continuous(make: Make, references: list[Floats], fps: float) -> None:
    _, fade = run(ReferenceChooser(references, fade_s=FADE_S), wander(make, 400), fps)
    assert fade.min() == 0
    assert fade.max() == 1
    assert np.abs(np.diff(fade, axis=0)).max() <= 1 / (FADE_S * fps) + 1e-5


def test_a_change_takes_two_fades(make: Make, references: list[Floats]) -> None:
    targets = [references[0]] * 15 + [references[3]] * 30
    chosen, fade = run(ReferenceChooser(references, fade_s=FADE_S), targets)
    changed = int(np.flatnonzero(chosen[:, 1] == 3)[0])
    assert 15 < changed <= 15 + FADE_S * FPS + 1
    assert (fade[changed + int(FADE_S * FPS) + 1 :] == 1).all()


def test_alternating_input_does_not_flicker(make: Make, references: list[Floats]) -> None:
    """Two poses either side of the middle between two references, in turn on every frame."""
    either = [make(yaw_deg=yaw) for yaw in (11.5, 13.5)]
    chosen, fade = run(ReferenceChooser(references), either * 60)
    assert (np.diff(chosen, axis=0) != 0).sum() == 0
    assert (fade == 1).all()


def test_even_wild_input_changes_no_more_often_than_a_fifth_of_the_dwell(make: Make, references: list[Floats]) -> None:
    either = [references[2], references[3]]
    chosen, _ = run(ReferenceChooser(references, dwell_s=1.5), either * 75)
    for zone in range(4):
        changes = np.flatnonzero(np.diff(chosen[:, zone]))
        assert len(changes) > 3
        assert (np.diff(changes) >= 0.3 * FPS - 1).all()


def test_a_reference_that_is_a_little_wrong_is_kept_for_its_dwell(make: Make, references: list[Floats]) -> None:
    chooser = ReferenceChooser(references, dwell_s=2.0)
    targets = [make(yaw_deg=yaw) for yaw in [10] * 5 + [15] * 25 + [10] * 60]
    chosen, _ = run(chooser, targets)
    assert chosen[10, 0] == 3, "the first change is free"
    changes = np.flatnonzero(np.diff(chosen[:, 0]))
    assert len(changes) == 2
    assert np.diff(changes)[0] >= 2.0 * FPS - 1


def test_a_slightly_better_reference_is_not_worth_a_change(make: Make, references: list[Floats]) -> None:
    chooser = ReferenceChooser(references, margin=0.15)
    targets = [make(yaw_deg=yaw) for yaw in (*np.linspace(0, 13, 40), *[13] * 40)]
    chosen, _ = run(chooser, targets)  # 13 degrees is nearer to 25 than to 0, by a little
    assert (chosen[:, 1] == 0).all()
    chosen, _ = run(ReferenceChooser(references, margin=0.0), targets)
    assert chosen[-1, 1] == 3


def test_a_single_reference_serves_all(make: Make, references: list[Floats]) -> None:
    chosen, fade = run(ReferenceChooser(references[:1]), wander(make, 30))
    assert not chosen.any()
    assert (fade == 1).all()


def test_time_that_stands_still_or_runs_back_is_survived(references: list[Floats]) -> None:
    chooser = ReferenceChooser(references)
    for time_s in (5.0, 5.0, 4.0, 4.5, 9.0, 9.0):
        _, fade = chooser.choose(references[1], time_s)
        assert ((fade >= 0) & (fade <= 1)).all()


def test_front_reference(make_face: MakeFace) -> None:
    faces = [make_face(yaw_deg=yaw, pitch_deg=pitch).points for yaw, pitch in ((20, 0), (-3, 1), (0, 25), (-15, 5))]
    assert front_reference(faces) == 1


def test_front_reference_has_its_eyes_open(make_face: MakeFace) -> None:
    """A blink in the most frontal photo would shine through for the whole call."""
    blinking = make_face().points.copy()
    for upper, lower in ((159, 145), (386, 374)):
        blinking[upper] = blinking[lower]
    faces = [make_face(yaw_deg=20).points, blinking, make_face(yaw_deg=-8).points]
    assert front_reference(faces) == 2
    assert front_reference([blinking]) == 0


def dressed(color: tuple[int, int, int], points: Floats) -> tuple[Image, NDArray[np.uint8], Floats]:
    """A photo of 256 px whose person wears one colour."""
    rgb = np.full((256, 256, 3), (200, 150, 130), np.uint8)
    rgb[int(points[152, 1]) :] = color
    return rgb, np.full((256, 256), 255, np.uint8), points


def test_clothes_tell_how_unlike_two_photos_are(make_face: MakeFace) -> None:
    points = make_face(center_px=(128, 110)).points
    photos = [dressed(color, points) for color in ((30, 40, 90), (33, 42, 92), (200, 40, 30))]
    found = unlike(photos, 0)
    assert found.dtype == np.float32
    assert found[:2].tolist() == [0, 0], "a little light makes no difference"
    assert found[2] > 0.5
    hidden = photos[2][0], np.zeros((256, 256), np.uint8), points
    assert unlike([photos[0], hidden], 0).tolist() == [0, 0], "nothing to be seen is nothing unlike"


def test_strange_clothes_keep_a_reference_from_the_rest_but_not_from_the_mouth(
    make_face: MakeFace, references: list[Floats]
) -> None:
    strangeness = np.array([0, 5, 5, 5], np.float32)
    for target in (references[1], references[3]):
        chosen, _ = ReferenceChooser(references, strangeness=strangeness).choose(target, 0.0)
        plain, _ = ReferenceChooser(references).choose(target, 0.0)
        assert chosen[1] == 0
        assert chosen[2:].tolist() == plain[2:].tolist()
    assert plain[1] == 3


def test_what_is_borrowed_serves_its_zone_alone(make: Make, references: list[Floats]) -> None:
    open_mouth = references[1]
    borrowed = ["", "mouth", "", ""]
    chosen, _ = ReferenceChooser(references, borrowed=borrowed).choose(open_mouth, 0.0)
    assert chosen[3] == 1
    assert 1 not in chosen[:3], "only the mouth is somebody else's to lend"
    own = [*references, make(mouth_open_cm=1.47)]
    chosen, _ = ReferenceChooser(own, borrowed=[*borrowed, ""]).choose(open_mouth, 0.0)
    assert chosen[3] == 4, "one's own teeth come first"


def test_a_blurred_photo_is_used_only_for_want_of_a_better_one(make: Make, references: list[Floats]) -> None:
    random = np.random.default_rng(0)
    grain = np.asarray(cv2.GaussianBlur(random.integers(0, 256, (256, 256, 3), np.uint8), (0, 0), 1.5), np.uint8)
    pixels: list[Floats] = [(one + np.array([1, 1, 0], np.float32)) * 128 for one in references]
    photos: list[tuple[Image, Floats]] = [(grain, one) for one in pixels]
    assert softness_of(photos).tolist() == [0, 0, 0, 0]
    photos[3] = np.asarray(cv2.GaussianBlur(grain, (0, 0), 4), np.uint8), pixels[3]
    soft = softness_of(photos)
    assert soft[:3].tolist() == [0, 0, 0]
    assert soft[3] > 0.7
    assert softness_of([(photos[3][0], one) for one in pixels]).max() < 0.1, "when all are soft none is worse"
    target = make(yaw_deg=18)
    assert ReferenceChooser(references).choose(target, 0.0)[0].tolist()[0] == 3
    assert ReferenceChooser(references, softness=soft).choose(target, 0.0)[0].tolist()[0] == 0
    far = make(yaw_deg=40)
    assert ReferenceChooser(references, softness=soft).choose(far, 0.0)[0].tolist()[0] == 3


# --- the step of slot A ---------------------------------------------------------------------------------------


def pictures(level: int) -> Pictures:
    return np.full((64, 64, 3), level, np.uint8), np.full((64, 64), level, np.uint8)


def test_a_step_is_dissolved(references: list[Floats]) -> None:
    dissolve = Dissolve(64, seconds=0.2)
    assert dissolve(pictures(50), references[0], 0.9)[0][0, 0, 0] == 50
    dissolve.step(pictures(150), pictures(50), references[0], 1.0)
    told = [int(dissolve(pictures(50), references[0], 1.0 + t)[0][32, 32, 1]) for t in np.linspace(0, 0.25, 26)]
    assert told[0] == 150, "the frame of the step looks as if there were none"
    assert told[-1] == 50
    assert all(0 <= before - now <= 9 for before, now in itertools.pairwise(told))
    assert dissolve(pictures(50), references[0], 1.0)[1][0, 0] == 50, "what is over does not come back"


def test_what_dissolves_moves_with_the_head(references: list[Floats]) -> None:
    dissolve = Dissolve(64)
    before, after = pictures(100), pictures(100)
    before[0][30:34, 20:24] = 200
    dissolve.step(before, after, references[0], 0.0)
    moved = references[0] + np.array([2 * 8 / 64, 0, 0], np.float32)
    left = dissolve(after, moved, 0.04)[0][..., 0].astype(int) - 100
    assert left[31, 29] > 50
    assert left[31, 21] == 0


def test_a_second_step_starts_from_what_is_left_of_the_first(references: list[Floats]) -> None:
    dissolve = Dissolve(64, seconds=0.2)
    dissolve.step(pictures(150), pictures(50), references[0], 0.0)
    due = dissolve(pictures(50), references[0], 0.1)
    assert int(due[0][0, 0, 0]) == 100
    dissolve.step(due, pictures(20), references[0], 0.1)
    assert int(dissolve(pictures(20), references[0], 0.1)[0][0, 0, 0]) == 100


def test_a_step_can_be_forgotten(references: list[Floats]) -> None:
    dissolve = Dissolve(64)
    dissolve.step(pictures(150), pictures(50), references[0], 0.0)
    dissolve.forget()
    assert dissolve(pictures(50), references[0], 0.0)[0][0, 0, 0] == 50
