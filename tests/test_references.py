"""The choice of references: no flicker, no jump, and no change while it could be seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from engine.frames import Face, Image
from engine.references import ReferenceChooser, front_reference, unlike

Floats = NDArray[np.float32]
MakeFace = Callable[..., Face]
FPS = 30
FADE_S = 0.12


@pytest.fixture(scope="module")
def references(make_face: MakeFace) -> list[Floats]:
    """Frontal, speaking, turned one way, turned the other."""
    return [
        make_face().points,
        make_face(mouth_open_cm=1.5).points,
        make_face(yaw_deg=-25).points,
        make_face(yaw_deg=25).points,
    ]


def run(
    chooser: ReferenceChooser, targets: Sequence[Floats], fps: float = FPS
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """`[T, 4]` choices and `[T, 3]` fades."""
    told = [chooser.choose(target, frame / fps) for frame, target in enumerate(targets)]
    return np.stack([one for one, _ in told]), np.stack([fade for _, fade in told])


def wander(make_face: MakeFace, count: int, seed: int = 0) -> list[Floats]:
    """A head that turns and speaks at random, quickly."""
    random = np.random.default_rng(seed)
    turns = np.cumsum(random.normal(0, 5, count)) % 80
    turns = np.abs(turns - 40) * 1.5 - 30
    return [
        make_face(yaw_deg=float(turn), mouth_open_cm=float(gap)).points
        for turn, gap in zip(turns, random.uniform(0, 2, count), strict=True)
    ]


def test_the_first_frame_takes_the_best_at_once(references: list[Floats]) -> None:
    for best, target in enumerate(references):
        chosen, fade = ReferenceChooser(references, 0).choose(target, 100.0)
        assert chosen.tolist() == [0, best, best, best]
        assert fade.tolist() == [1, 1, 1]


def test_zones_choose_for_themselves(make_face: MakeFace, references: list[Floats]) -> None:
    blinking = make_face().points.copy()
    blinking[[159, 386, 158, 160, 385, 387]] = blinking[[145, 374, 153, 144, 380, 373]]
    target = make_face(mouth_open_cm=1.5).points.copy()
    target[[159, 386, 158, 160, 385, 387]] = blinking[[145, 374, 153, 144, 380, 373]]
    chosen, _ = ReferenceChooser([*references, blinking], 0).choose(target, 0.0)
    assert (chosen[2], chosen[3]) == (4, 1)


def test_slot_a_never_changes(make_face: MakeFace, references: list[Floats]) -> None:
    chosen, _ = run(ReferenceChooser(references, 2), wander(make_face, 100))
    assert (chosen[:, 0] == 2).all()


@pytest.mark.parametrize("fps", [12, 30, 60])
def test_nothing_changes_while_it_can_be_seen(make_face: MakeFace, references: list[Floats], fps: float) -> None:
    chosen, fade = run(ReferenceChooser(references, 0), wander(make_face, 400), fps)
    changed = np.diff(chosen[:, 1:], axis=0) != 0
    assert changed.sum() > 10, "this test needs changes to look at"
    assert (fade[1:][changed] == 0).all()


@pytest.mark.parametrize("fps", [30, 60])
def test_fades_are_continuous(make_face: MakeFace, references: list[Floats], fps: float) -> None:
    _, fade = run(ReferenceChooser(references, 0, fade_s=FADE_S), wander(make_face, 400), fps)
    assert fade.min() == 0
    assert fade.max() == 1
    assert np.abs(np.diff(fade, axis=0)).max() <= 1 / (FADE_S * fps) + 1e-5


def test_a_change_takes_two_fades(make_face: MakeFace, references: list[Floats]) -> None:
    targets = [references[0]] * 15 + [references[3]] * 30
    chosen, fade = run(ReferenceChooser(references, 0, fade_s=FADE_S), targets)
    changed = int(np.flatnonzero(chosen[:, 1] == 3)[0])
    assert 15 < changed <= 15 + FADE_S * FPS + 1
    assert (fade[changed + int(FADE_S * FPS) + 1 :] == 1).all()


def test_alternating_input_does_not_flicker(make_face: MakeFace, references: list[Floats]) -> None:
    """Two poses either side of the middle between two references, in turn on every frame."""
    either = [make_face(yaw_deg=yaw).points for yaw in (11.5, 13.5)]
    chosen, fade = run(ReferenceChooser(references, 0), either * 60)
    assert (np.diff(chosen[:, 1:], axis=0) != 0).sum() == 0
    assert (fade == 1).all()


def test_even_wild_input_changes_no_more_often_than_the_dwell(make_face: MakeFace, references: list[Floats]) -> None:
    either = [references[2], references[3]]
    chosen, _ = run(ReferenceChooser(references, 0, dwell_s=0.35), either * 75)
    for zone in (1, 2, 3):
        changes = np.flatnonzero(np.diff(chosen[:, zone]))
        assert (np.diff(changes) >= 0.35 * FPS - 1).all()


def test_a_slightly_better_reference_is_not_worth_a_change(make_face: MakeFace, references: list[Floats]) -> None:
    chooser = ReferenceChooser(references, 0, margin=0.15)
    targets = [make_face(yaw_deg=yaw).points for yaw in (*np.linspace(0, 13, 40), *[13] * 40)]
    chosen, _ = run(chooser, targets)  # 13 degrees is nearer to 25 than to 0, by a little
    assert (chosen[:, 1] == 0).all()
    chosen, _ = run(ReferenceChooser(references, 0, margin=0.0), targets)
    assert chosen[-1, 1] == 3


def test_a_single_reference_serves_all(make_face: MakeFace, references: list[Floats]) -> None:
    chosen, fade = run(ReferenceChooser(references[:1], 0), wander(make_face, 30))
    assert not chosen.any()
    assert (fade == 1).all()


def test_time_that_stands_still_or_runs_back_is_survived(references: list[Floats]) -> None:
    chooser = ReferenceChooser(references, 0)
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
        chosen, _ = ReferenceChooser(references, 0, strangeness=strangeness).choose(target, 0.0)
        plain, _ = ReferenceChooser(references, 0).choose(target, 0.0)
        assert chosen[1] == 0
        assert chosen[2:].tolist() == plain[2:].tolist()
    assert plain[1] == 3
