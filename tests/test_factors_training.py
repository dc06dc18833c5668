"""The second paper's system: what its losses are, what each stage learns and leaves alone, and that it learns."""

from __future__ import annotations

import math
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from engine import geometry
from engine.frames import Face, Image, Points
from tests.clips import demo_photo, write_clip
from tests.conftest import landmarks, photo
from training import prepare
from training import ranks as across
from training.episodes import load_shards
from training.factors import __main__ as command
from training.factors import losses
from training.factors.audio import COLUMNS, HOP, MEL_BANDS, Waveform, heard, mel
from training.factors.clips import (
    OUT_OF_STEP_S,
    Clip,
    Disturbance,
    Moments,
    Sketches,
    Speech,
    Steps,
    composite,
    find_clips,
    picture,
)
from training.factors.losses import Bank
from training.factors.networks import Codes, Factors
from training.factors.reader import CONTOUR, MEASURES, READINGS, FaceReader, pose_numbers, readings
from training.factors.stages import (
    PRESETS,
    FactorCourse,
    MomentStage,
    ReaderStage,
    Recipe,
    SketchStage,
    Stage,
    StepsStage,
    begin_with,
    load_checkpoint,
    load_factors,
    load_reader,
    make_state,
)
from training.networks.content import PIXELS, Content
from training.prepare import Sighting, sound_of
from training.ranks import Ranks
from training.shards import SOUND_HZ, ShardWriter

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")
TINY = PRESETS["tiny"]
SHORT = Recipe(rate=3e-3, shots=2, moments=6, window=5, bank=16)
GENTLE = replace(SHORT, rate=1e-3, content=10.0)  # its pixels are smaller numbers than a network's features
SIDE = 64
MakeFace = Callable[..., Face]
People = dict[str, list[Clip]]


# --- people who speak as loud as their mouths are open --------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Drawn:
    """A frame that is its landmarks' drawing on somebody's colour."""

    clip: str
    number: int
    points: Points
    colour: int

    def rgb(self) -> Image:
        drawn = np.asarray(
            cv2.resize(geometry.raster(geometry.to_crop_units(self.points, SIDE)), (SIDE, SIDE)), np.uint8
        )
        return np.maximum(drawn, np.uint8(self.colour))

    def matte(self, size_px: int) -> NDArray[np.uint8]:
        return np.full((size_px, size_px), 255, np.uint8)


def talk(make_face: MakeFace, name: str, seed: int, count: int = 60) -> Clip:
    """Sixty frames: the mouth opens at random, the head sways, the eyes shut now and then, and a hiss is as loud as the
    mouth is open."""
    rng = np.random.default_rng(seed)
    opening = np.interp(np.arange(count), np.arange(0, count + 5, 5), rng.uniform(0, 1, len(range(0, count + 5, 5))))
    frames = []
    for number in range(count):
        face = make_face(
            yaw_deg=20 * math.sin(number / 9 + seed), center_px=(32, 30), scale=3.2, mouth_open_cm=2 * opening[number]
        )
        points = face.points.copy()
        if number // 4 % 2:
            for eye in (geometry.EYE_RIGHT, geometry.EYE_LEFT):
                points[eye[1:8]] = points[eye[:8:-1]]  # the upper lid comes down to the lower
        frames.append(Drawn(name, number, points, 20 + 30 * seed))
    times_s = np.arange(count) / 25
    loud = np.interp(np.arange(count * SOUND_HZ // 25) / SOUND_HZ, times_s, opening)
    hiss = rng.normal(size=len(loud)) * loud**2 * 0.3
    return Clip(name, frames, times_s, Waveform(hiss.astype(np.float32)))


@pytest.fixture(scope="module")
def people(make_face: MakeFace) -> People:
    return {name: [talk(make_face, name, seed)] for seed, name in enumerate(("ann", "ben", "cleo"))}


@pytest.fixture(scope="module")
def reader() -> FaceReader:
    torch.manual_seed(1)
    return FaceReader(TINY).requires_grad_(False).eval()


Make = Callable[[str], Stage[Any]]


@pytest.fixture(scope="module")
def make_stage(reader: FaceReader) -> Make:
    def make(name: str) -> Stage[Any]:
        content = Content((PIXELS,))
        match name:
            case "reader":
                return ReaderStage(TINY, SHORT)
            case "stage-1":
                return SketchStage(TINY, GENTLE, reader, content)
            case "stage-2":
                return StepsStage(TINY, SHORT)
            case _:
                return MomentStage(TINY, GENTLE, reader, content)

    return make


def course(stage: Stage[Any], people: People, batch: int = 2) -> FactorCourse[Any]:
    torch.manual_seed(0)
    return FactorCourse(stage, people, {}, batch, 0, CPU, Ranks())


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.named_parameters()}


NAMES = ("reader", "stage-1", "stage-2", "stage-3")


# --- sizes ----------------------------------------------------------------------------------------------------


def test_codes_have_the_sizes_of_the_release() -> None:
    options = PRESETS["paper"]
    assert (options.lip, options.expression, options.eye, options.pose) == (500, 30, 6, 6)
    assert (options.size_px, options.appearance + options.codes) == (224, 2590)  # its generator's style_dim
    with torch.device("meta"):
        factors = Factors(options)
        unified = torch.zeros(1, 512)
        heads = (factors.codes.lip, factors.codes.expression, factors.codes.eye, factors.codes.pose)
        found = [head(unified)[1].shape[1] for head in heads]
    assert found == [500, 30, 6, 6]


def test_encoders_are_of_the_sizes_their_names_say() -> None:
    """ResNeXt-50 32x4d has 23 M parameters before its classifier, ResNet-34 of these widths with SE 5.4 M."""
    with torch.device("meta"):
        factors = Factors(PRESETS["paper"])
    count = {
        "appearance": sum(one.numel() for one in factors.appearance.trunk.parameters()),
        "audio": sum(one.numel() for one in factors.codes.audio.layers.parameters()),
    }
    assert count["appearance"] == pytest.approx(22.98e6, rel=0.01)
    assert count["audio"] == pytest.approx(5.4e6, rel=0.05)


@pytest.mark.parametrize("preset", ["tiny", "compact"])
def test_a_picture_and_all_codes_come_out(preset: str) -> None:
    options = PRESETS[preset]
    factors, side = Factors(options).eval(), options.size_px
    rgb, sound = torch.rand(2, 3, side, side) * 2 - 1, torch.zeros(2, 1, MEL_BANDS, COLUMNS)
    with torch.no_grad():
        unified = factors.codes.trunk(rgb)
        _, spoken = factors.codes.spoken(sound)
        _, expression = factors.codes.window_expression(rgb[:, None])
        eye, pose = factors.codes.eye(unified)[1], factors.codes.pose(unified)[1]
        drawn = factors.draw(rgb[:, None], spoken, expression, eye, pose)
    assert [one.shape[1] for one in (spoken, expression, eye, pose)] == [
        options.lip,
        options.expression,
        options.eye,
        options.pose,
    ]
    assert drawn.shape == factors.sketch(rgb[:, None], rgb).shape == rgb.shape
    assert drawn.abs().max() <= 1


def test_sizes_that_do_not_double_are_refused() -> None:
    with pytest.raises(ValueError, match="size_px = 100 must be start_px = 4 times 4, 8, 16"):
        replace(TINY, size_px=100)


# --- losses ---------------------------------------------------------------------------------------------------


def test_info_nce_by_hand() -> None:
    """Cosines 0.6 and 0, temperature 0.5: -log(e^1.2 / (e^1.2 + e^0))."""
    value = losses.info_nce(torch.tensor([[2.0, 0]]), torch.tensor([[3.0, 4]]), torch.tensor([[[0.0, 7]]]), 0.5)
    assert float(value) == pytest.approx(-math.log(math.exp(1.2) / (math.exp(1.2) + 1)))


def test_in_step_is_info_nce_both_ways() -> None:
    rng = torch.Generator().manual_seed(3)
    lips, sounds = torch.randn(2, 4, 5, generator=rng), torch.randn(2, 4, 5, generator=rng)

    def one_way(one: Tensor, other: Tensor) -> float:
        asked = [
            float(
                losses.info_nce(
                    one[n, w][None], other[n, w][None], other[n, [k for k in range(4) if k != w]][None], 0.1
                )
            )
            for n in range(2)
            for w in range(4)
        ]
        return float(np.mean(asked))

    expected = (one_way(lips, sounds) + one_way(sounds, lips)) / 2
    assert float(losses.in_step(lips, sounds, 0.1)) == pytest.approx(expected, rel=1e-5)
    assert float(losses.in_step(lips, lips, 0.1)) < float(losses.in_step(lips, lips.roll(1, 1), 0.1))


def test_composites_belong_to_whose_eyes_they_have() -> None:
    frames = torch.eye(3)[None]
    right = losses.eyes_apart(frames.roll(-1, 1), frames, 0.1)  # each is what the next frame is
    wrong = losses.eyes_apart(frames, frames, 0.1)
    assert float(right) == pytest.approx(math.log(1 + math.exp(-10)), abs=1e-5)
    assert float(wrong) == pytest.approx(math.log(1 + math.exp(10)), rel=1e-3)


def test_decorrelation_of_equal_and_of_independent_features() -> None:
    features = torch.randn(4000, 6, generator=torch.Generator().manual_seed(0))
    assert float(losses.decorrelation(features, -3 * features + 1)) == pytest.approx(1.0, abs=1e-4)
    other = torch.randn(4000, 6, generator=torch.Generator().manual_seed(1))
    assert float(losses.decorrelation(features, other)) < 0.002
    assert float(losses.decorrelation(features, torch.ones_like(other))) == 0.0


def test_the_bank_remembers_without_gradients() -> None:
    bank = Bank(4, 3)
    rng = torch.Generator().manual_seed(0)
    past = torch.randn(3, 3, generator=rng, requires_grad=True)
    bank.decorrelation(past * 2, torch.randn(3, 3, generator=rng), Ranks())
    assert bank.filled == 3
    now = torch.randn(2, 3, generator=rng, requires_grad=True)
    sounds = torch.randn(2, 3, generator=rng, requires_grad=True)
    kept = bank.get_buffer("expressions")[:3].clone(), bank.get_buffer("sounds")[:3].clone()
    loss = bank.decorrelation(now, sounds, Ranks())
    expected = losses.decorrelation(torch.cat([now, kept[0]]), torch.cat([sounds, kept[1]]))
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert now.grad is not None
    assert now.grad.abs().sum() > 0
    assert past.grad is None
    assert sounds.grad is None  # it is the expression that is to have nothing of the sound
    assert not any(buffer.requires_grad for buffer in bank.buffers())
    # Five rows into four places: the oldest has gone.
    torch.testing.assert_close(bank.get_buffer("expressions")[0], now.detach()[1])
    torch.testing.assert_close(bank.get_buffer("expressions")[1:3], kept[0][1:])


def test_a_bad_row_stays_out_of_the_bank() -> None:
    bank = Bank(4, 2)
    bank.put(torch.tensor([[1.0, 2], [float("nan"), 0]]), torch.ones(2, 2))
    assert bank.filled == 1
    assert all(torch.isfinite(buffer).all() for buffer in bank.buffers())


def test_the_windows_code_is_the_mean() -> None:
    torch.manual_seed(0)
    codes = Codes(TINY)
    window = torch.rand(2, 5, 3, TINY.size_px, TINY.size_px)
    feature, code = codes.window_expression(window)
    alone = [codes.expression(codes.trunk(window[:, w])) for w in range(5)]
    torch.testing.assert_close(feature, torch.stack([one[0] for one in alone]).mean(0))
    torch.testing.assert_close(code, torch.stack([one[1] for one in alone]).mean(0))
    torch.testing.assert_close(codes.window_expression(window.flip(1))[1], code)  # the order says nothing


# --- sound ----------------------------------------------------------------------------------------------------


def test_mel_of_a_tone_and_of_silence() -> None:
    time_s = torch.arange(SOUND_HZ) / SOUND_HZ
    low, high = (mel(0.5 * torch.sin(2 * torch.pi * f * time_s)).mean(-1).argmax() for f in (300.0, 3000.0))
    assert 0 < low < high < MEL_BANDS
    assert torch.equal(mel(torch.zeros(SOUND_HZ)).unique(), torch.tensor([-1.0]))


def test_what_is_heard_lies_around_the_moment() -> None:
    wave = np.zeros(SOUND_HZ, np.float32)
    wave[SOUND_HZ // 2] = 1  # a click after 0.5 s
    for off_s in (0.0, 0.05):
        columns = heard(Waveform(wave), 0.5 - off_s)[0].mean(0)
        assert abs(float(columns.argmax()) - (COLUMNS - 1) / 2 - off_s * SOUND_HZ / HOP) <= 1
    assert torch.equal(heard(Waveform(wave), 0.0), heard(Waveform(wave, from_s=2.0), 2.0))  # each on its own clock
    assert heard(Waveform(wave), 99.0).shape == (1, MEL_BANDS, COLUMNS)  # past the end: silence


# --- pictures -------------------------------------------------------------------------------------------------


def test_a_composite_shows_the_others_eyes_and_the_faces_rest() -> None:
    """The face grey, the other red: around the irises red, everywhere else as it was."""
    points = landmarks("man_still")
    face, other = np.full((256, 256, 3), 90, np.uint8), np.full((256, 256, 3), 90, np.uint8)
    other[...] = (200, 0, 0)
    mixed, shown = composite(face, points, other, landmarks("man_speaking"))
    for iris in (468, 473):
        x, y = points[iris, :2].astype(int)
        assert mixed[y, x].tolist() == [200, 0, 0]
        assert shown[y, x] == pytest.approx(1)
    for index in (13, 1, 152, 10, 105, 334):  # lips, nose, chin, forehead, brows
        x, y = np.clip(points[index, :2].astype(int), 0, 255)
        assert mixed[y, x].tolist() == [90, 90, 90]
    assert np.array_equal(mixed[shown == 0], face[shown == 0])


def test_a_composites_eyes_lie_where_the_face_has_them() -> None:
    """Whatever the other's pose: its iris comes to within a few pixels of the face's when it looks the same way."""
    points = landmarks("man_still")
    turn = cv2.getRotationMatrix2D((128, 128), 20, 0.8)
    moved = points.copy()
    moved[:, :2] = points[:, :2] @ turn[:, :2].T.astype(np.float32) + turn[:, 2].astype(np.float32)
    other = np.zeros((256, 256, 3), np.uint8)
    for iris in (468, 473):
        cv2.circle(other, (round(float(moved[iris, 0])), round(float(moved[iris, 1]))), 3, (255, 255, 255), -1)
    mixed, _ = composite(np.zeros((256, 256, 3), np.uint8), points, other, moved)
    bright = np.argwhere(mixed[..., 0] > 128)
    for iris in (468, 473):
        assert np.abs(bright - points[iris, 1::-1]).sum(1).min() < 3


def test_a_composite_of_one_frame_is_that_frame() -> None:
    rgb, points = photo("man_still"), landmarks("man_still")
    mixed, _ = composite(rgb, points, rgb, points)
    assert np.abs(mixed.astype(int) - rgb).mean() < 0.2


def test_a_disturbance_is_the_same_for_all_frames_and_never_twice() -> None:
    rgb = photo("man_still")
    one = Disturbance.drawn(np.random.default_rng(0))
    assert np.array_equal(one(rgb), one(rgb))
    other = Disturbance.drawn(np.random.default_rng(1))(rgb)
    assert np.abs(one(rgb).astype(int) - other).mean() > 10
    still = Disturbance(np.ones(3, np.float32), 0.0, 0.0, (1.0, 1.0), (0.0, 0.0), np.zeros((4, 4, 2), np.float32))
    assert np.abs(still(rgb).astype(int) - rgb).max() <= 1


def test_what_the_tracker_says_is_put_in_numbers(make_face: MakeFace) -> None:
    straight = make_face(center_px=(128, 128), scale=8)
    told = readings(straight.points, 256)
    assert told.shape == (READINGS,) == (MEASURES + 2 * len(CONTOUR),)
    assert np.abs(told).max() < 4
    assert pose_numbers(straight.points, 256) == pytest.approx([0, 0, 0, 0, 0, 0], abs=1e-3)
    turned = pose_numbers(make_face(yaw_deg=30, center_px=(160, 96), scale=16).points, 256)
    assert abs(turned[1]) == pytest.approx(math.radians(30), abs=1e-3)
    assert turned[3:] == pytest.approx([0.25, -0.25, math.log(2)], abs=1e-3)
    wide = readings(make_face(mouth_open_cm=2).points, 256)
    assert np.abs(wide[14:MEASURES] - told[14:MEASURES]).max() > 0.2  # the mouth's


# --- episodes -------------------------------------------------------------------------------------------------


def test_moments_of_a_clip_are_out_of_step(people: People) -> None:
    speech = Speech(people, 6, 32)
    times = people["ann"][0].times_s
    for seed in range(20):
        chosen = times[speech.choose(times, np.random.default_rng(seed))]
        apart = np.abs(np.subtract.outer(chosen, chosen))[~np.eye(6, dtype=bool)]
        assert apart.min() >= OUT_OF_STEP_S - 1e-9
    tight = speech.choose(times[:10], np.random.default_rng(0))  # 0.4 s: as far apart as it goes, and never twice
    assert len(set(tight)) == 6
    with pytest.raises(ValueError, match="a clip of 4 frames has no 6 different ones"):
        speech.choose(times[:4], np.random.default_rng(0))


def test_episodes_are_numbered(people: People) -> None:
    for drawn in (Sketches(people, 2, 32), Speech(people, 6, 32), Moments(people, 2, 5, 32)):
        one, again, next_one = drawn[7], drawn[7], drawn[8]
        for name in type(one).__slots__:
            assert torch.equal(getattr(one, name), getattr(again, name)), name
        seen = "frames" if isinstance(one, Steps) else "pictures"
        assert not torch.equal(getattr(one, seen), getattr(next_one, seen))


def test_a_target_is_never_among_its_persons_pictures(people: People) -> None:
    for number in range(12):
        sketch, moment = Sketches(people, 3, 32)[number], Moments(people, 3, 5, 32)[number]
        for episode in (sketch, moment):
            assert all(not torch.equal(one, episode.target) for one in episode.pictures)
        assert moment.window.shape == (5, 3, 32, 32)


def test_sounds_and_pictures_are_of_the_same_moment(people: People) -> None:
    steps = Speech(people, 6, 32)[0]
    clip = next(clip for clips in people.values() for clip in clips if _is_of(clip, steps.frames[0]))
    moment = next(n for n, frame in enumerate(clip.frames) if torch.equal(_small(frame.rgb()), steps.frames[2]))
    assert clip.sound is not None
    assert torch.equal(heard(clip.sound, float(clip.times_s[moment])), steps.sounds[2])
    assert steps.poses[2].numpy() == pytest.approx(pose_numbers(clip.frames[moment].points / 2, 32), abs=1e-5)


def _small(rgb: Image) -> Tensor:
    return picture(np.asarray(cv2.resize(rgb, (32, 32), interpolation=cv2.INTER_AREA), np.uint8))


def _is_of(clip: Clip, frame: Tensor) -> bool:
    return any(torch.equal(_small(one.rgb()), frame) for one in clip.frames)


def test_clips_without_sound_serve_stage_1_alone(people: People) -> None:
    silent = {"ann": [replace(people["ann"][0], sound=None)]}
    assert len(Sketches(silent, 2, 32).people) == 1
    with pytest.raises(ValueError, match="no clip here has sound"):
        Speech(silent, 6, 32)
    assert len(Speech(people | silent, 6, 32).people) == 2


def test_even_windows_are_refused(people: People) -> None:
    with pytest.raises(ValueError, match="window = 4 must be odd"):
        Moments(people, 2, 4, 32)


# --- what learns ----------------------------------------------------------------------------------------------

LEARNING = {
    "reader": {"trunk", "feature", "numbers"},
    "stage-1": {"appearance", "codes.trunk", "draft"},
    "stage-2": {"codes.lip", "codes.eye", "codes.pose", "codes.audio"},
    "stage-3": {"appearance", "codes.expression", "generator"},
}


@pytest.mark.parametrize("name", NAMES)
def test_each_stage_moves_its_own_and_nothing_else(name: str, make_stage: Make, people: People) -> None:
    learner = course(make_stage(name), people)
    before = weights_of(learner.state.model)
    for batch in islice(learner.batches(0, 0), 3):
        learner.learn(batch, 0.0)
    after = weights_of(learner.state.model)
    moved = {weight for weight, value in after.items() if not torch.equal(value, before[weight])}
    own = {weight for weight in after if any(weight.startswith(part + ".") for part in LEARNING[name])}
    assert moved <= own
    # A bias that the norm behind it takes away again may stay; whole layers may not.
    layers = {weight.rpartition(".")[0] for weight in own}
    assert layers == {weight.rpartition(".")[0] for weight in moved}
    assert learner.state.skipped == 0


def test_gradients_reach_the_picture_through_what_is_frozen(make_stage: Make, people: People) -> None:
    """Lips, gaze and motion of what is drawn teach the generator, through trunk, heads and reader that stand still."""
    learner = course(make_stage("stage-3"), people)
    batch = next(learner.batches(0, 0))
    for name in ("lips", "gaze", "motion", "content"):
        terms, _ = learner.stage.terms(learner.state, batch, Ranks())
        learner.state.model.zero_grad(set_to_none=True)
        terms[name].backward()
        assert isinstance(learner.state.model, Factors)
        grads = [weight.grad for weight in learner.state.model.generator.parameters()]
        assert sum(float(one.abs().sum()) for one in grads if one is not None) > 0, name
        assert all(weight.grad is None for weight in learner.state.model.codes.trunk.parameters())
    terms, _ = learner.stage.terms(learner.state, batch, Ranks())
    learner.state.model.zero_grad(set_to_none=True)
    terms["decorrelation"].backward()
    touched = {name.split(".")[1] for name, weight in learner.state.model.named_parameters() if weight.grad is not None}
    assert touched == {"expression"}


def test_lips_come_from_sound_or_picture(make_stage: Make, people: People) -> None:
    learner = course(make_stage("stage-3"), people)
    batch = next(learner.batches(0, 0))
    assert isinstance(learner.state.model, Factors)
    drawn = {}
    for by_sound in (0.0, 1.0):
        for sound in (batch.sound, torch.zeros_like(batch.sound)):
            asked = replace(batch, by_sound=torch.full((2,), by_sound), sound=sound)
            drawn.setdefault(by_sound, []).append(MomentStage.draw(learner.state.model, asked)[0])
    assert torch.equal(*drawn[0.0])
    assert not torch.equal(*drawn[1.0])


@pytest.mark.parametrize(
    ("name", "number", "steps", "share"),
    [("reader", "reading", 40, 0.6), ("stage-1", "content", 30, 0.75), ("stage-3", "content", 25, 0.85)],
)
def test_a_little_training_lowers_the_loss(
    name: str, number: str, steps: int, share: float, make_stage: Make, people: People
) -> None:
    learner = course(make_stage(name), people)
    batch = next(learner.batches(0, 0))
    told = [learner.learn(batch, 0.0) for _ in range(steps)]
    assert told[-1][number] < share * told[0][number]


def test_stage_2_learns_from_the_sound_what_the_lips_do(make_stage: Make, people: People) -> None:
    """Out of a trunk of random weights; chance is one in six for the lips."""
    learner = course(make_stage("stage-2"), people, batch=3)
    learner.calibrate(8)
    batches = list(islice(learner.batches(0, 0), 8))
    model = learner.state.model
    assert isinstance(model, Factors)
    told = [learner.learn(batch, 0.0) for _ in range(8) for batch in batches]
    first, last = told[0], told[-8:]
    for name in ("lip", "eye", "pose"):
        assert np.mean([one[name] for one in last]) < 0.8 * first[name], name
    with torch.no_grad():
        measured = [learner.stage.measure(model, batch) for batch in batches]
    assert np.mean([one["lips retrieved"] for one in measured]) > 0.6


def test_a_bad_step_is_skipped_and_leaves_nothing(make_stage: Make, people: People) -> None:
    learner = course(make_stage("stage-3"), people)
    batch = next(learner.batches(0, 0))
    learner.learn(batch, 0.0)
    before = weights_of(learner.state.model)
    told = learner.learn(replace(batch, target=batch.target * float("nan")), 0.0)
    assert np.isnan(told["loss"])
    assert learner.state.skipped == 1
    assert all(torch.equal(value, before[name]) for name, value in weights_of(learner.state.model).items())
    assert np.isfinite(learner.learn(batch, 0.0)["loss"])


# --- checkpoints ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_resumed_run_loses_the_same(name: str, make_stage: Make, people: People, tmp_path: Path) -> None:
    whole = course(make_stage(name), people)
    told = [whole.learn(batch, 0.0) for batch in islice(whole.batches(0, 0), 5)]
    first = course(make_stage(name), people)
    for batch in islice(first.batches(0, 0), 3):
        first.learn(batch, 0.0)
    first.save(tmp_path / "checkpoint.pt")
    again = course(make_stage(name), people)
    again.load(tmp_path / "checkpoint.pt")
    assert again.state.step == 3
    rest = [again.learn(batch, 0.0) for batch in islice(again.batches(again.state.step, 0), 2)]
    for expected, found in zip(told[3:], rest, strict=True):
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_a_stage_begins_with_the_one_before(make_stage: Make, people: People, tmp_path: Path) -> None:
    one = course(make_stage("stage-1"), people)
    one.learn(next(one.batches(0, 0)), 0.0)
    one.save(tmp_path / "one.pt")
    torch.manual_seed(5)
    two = make_state(make_stage("stage-2"), CPU)
    begin_with(two, make_stage("stage-2"), tmp_path / "one.pt", CPU)
    for name, value in one.state.average.state_dict().items():
        assert torch.equal(two.model.state_dict()[name], value)
    with pytest.raises(ValueError, match="is of stage-1, and stage-2 is wanted"):
        begin_with(two, make_stage("stage-3"), tmp_path / "one.pt", CPU)
    with pytest.raises(ValueError, match="is of stage-1, and reader is wanted"):
        load_reader(tmp_path / "one.pt", CPU)
    other = StepsStage(replace(TINY, lip=12), SHORT)
    with pytest.raises(ValueError, match="'lip': 8"):
        begin_with(make_state(other, CPU), other, tmp_path / "one.pt", CPU)


def test_the_feature_is_centred_before_stage_2(make_stage: Make, people: People, tmp_path: Path) -> None:
    one = course(make_stage("stage-1"), people)
    one.save(tmp_path / "one.pt")
    two = course(make_stage("stage-2"), people)
    two.begin(tmp_path / "one.pt")
    frames = torch.cat([two.drawn[number].frames for number in range(64)])
    for model in (two.state.model, two.state.average):
        assert isinstance(model, Factors)
        with torch.no_grad():
            unified = model.codes.unified(frames)
        torch.testing.assert_close(unified.mean(0), torch.zeros(TINY.feature), atol=1e-3, rtol=0)
        torch.testing.assert_close(unified.std(0), torch.ones(TINY.feature), atol=1e-3, rtol=0)
    two.save(tmp_path / "two.pt")
    three = course(make_stage("stage-3"), people)
    three.begin(tmp_path / "two.pt")
    assert isinstance(three.state.model, Factors)
    assert isinstance(two.state.model, Factors)
    assert torch.equal(three.state.model.codes.get_buffer("centre"), two.state.model.codes.get_buffer("centre"))


def test_a_bank_of_another_size_is_refused(make_stage: Make, people: People, tmp_path: Path) -> None:
    learner = course(make_stage("stage-3"), people)
    learner.save(tmp_path / "checkpoint.pt")
    other = make_stage("stage-3")
    other.recipe = replace(SHORT, bank=8)
    with pytest.raises(ValueError, match="has a bank of 16 moments, not 8"):
        load_checkpoint(make_state(other, CPU), other, tmp_path / "checkpoint.pt", CPU)
    assert isinstance(load_factors(tmp_path / "checkpoint.pt", CPU), Factors)


# --- the command, over shards, alone and in two processes -------------------------------------------------------


@pytest.fixture(scope="module")
def shards(people: People, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same people, as `training.prepare --every 1 --sound` writes them."""
    folder = tmp_path_factory.mktemp("voices")
    for name, (clip,) in people.items():
        assert isinstance(clip.sound, Waveform)
        with ShardWriter(folder / f"{name}.tar", {"person": name, "split": "train"}) as writer:
            for frame, time_s in zip(clip.frames, clip.times_s, strict=True):
                writer.add(frame.number, frame.rgb(), frame.points, frame.matte(128), float(time_s) + 3, 1.0)
            writer.add_sound((clip.sound.wave * 32767).clip(-32768, 32767).astype(np.int16), 3.0)
            writer.close()
            writer.finish()
    return folder


def test_shards_give_back_pictures_moments_and_sound(shards: Path, people: People) -> None:
    found = find_clips(shards, "train")
    assert sorted(found) == ["ann", "ben", "cleo"]
    clip, original = found["ben"][0].open(), people["ben"][0]
    assert clip.sounded
    assert clip.times_s == pytest.approx(original.times_s + 3)
    assert np.array_equal(clip.frames[7].points, original.frames[7].points)
    assert clip.sound is not None
    assert original.sound is not None
    ours, theirs = clip.sound.samples(3.95, 800), original.sound.samples(0.95, 800)
    assert np.abs(ours - theirs).max() < 1e-4
    assert np.abs(theirs).max() > 0.01
    assert not clip.sound.samples(0.0, 100).any()  # before it begins


def test_shards_of_every_fifth_frame_or_another_split_are_not_taken(
    shards: Path, people: People, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="holds no clip of the split 'test' with 24 frames that follow one another"):
        find_clips(shards, "test")
    with ShardWriter(tmp_path / "ann.tar", {"person": "ann", "split": "train"}) as writer:
        for frame in people["ann"][0].frames[:30]:
            writer.add(5 * frame.number, frame.rgb(), frame.points, frame.matte(128), frame.number / 5, 1.0)
        writer.close()
        writer.finish()
    with pytest.raises(ValueError, match="holds no clip of the split 'train'"):
        find_clips(tmp_path, "train")
    (tmp_path / "bad.tar").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="is damaged"):
        find_clips(tmp_path, "train")


def test_prepare_keeps_the_sound_in_step(tmp_path: Path) -> None:
    """A tone that swells to its loudest after 0.25 s and is gone after 0.5 s, beside a head."""
    source = tmp_path / "heads"
    source.mkdir()
    small = np.asarray(cv2.resize(demo_photo("jun"), (128, 128), interpolation=cv2.INTER_AREA), np.uint8)
    for name, audio in (("loud", True), ("silent", False)):
        write_clip(source / f"{name}.mp4", [small] * 26, audio=audio)
    rows = [f"{name}.mp4\t{name}\ttrain" for name in ("loud", "silent")]
    (source / "index.tsv").write_text("\n".join(["clip\tperson\tsplit", *rows]))
    asked = [str(source), "--out", str(tmp_path / "out"), "--every", "1", "--size-px", "128", "--workers", "1"]
    prepare.main([*asked, "--sound"])
    found = find_clips(tmp_path / "out", "train")
    assert not found["silent"][0].sounded
    clip = found["loud"][0].open()
    assert clip.sound is not None
    loud = [float(np.abs(clip.sound.samples(at_s - 0.02, SOUND_HZ // 25)).mean()) for at_s in (0.25, 0.5, 0.75)]
    assert min(loud[0], loud[2]) > 8 * loud[1]
    assert sorted(load_shards(tmp_path / "out", "train")) == ["loud", "silent"]  # who wants no sound reads on
    with pytest.raises(SystemExit, match="was begun with --sound True, not False"):
        prepare.main(asked)


def test_a_shots_sound_reaches_half_a_second_further() -> None:
    def seen(time_s: float) -> Sighting:
        return Sighting(0, time_s, np.zeros((478, 3), np.float32), 1.0)

    samples = np.arange(10 * SOUND_HZ).astype(np.int16)
    cut, from_s = sound_of([seen(3.0), seen(4.0)], (samples, 1.0))
    assert (from_s, len(cut)) == (2.5, 2 * SOUND_HZ)
    assert np.array_equal(cut, samples[3 * SOUND_HZ // 2 :][: len(cut)])
    cut, from_s = sound_of([seen(0.2), seen(11.0)], (samples, 0.0))  # as far as there is any
    assert (from_s, len(cut)) == (0.0, 10 * SOUND_HZ)
    assert len(sound_of([seen(20.0)], (samples, 0.0))[0]) == 0


def arguments(shards: Path, stage: str, runs: Path, *more: str) -> list[str]:
    text = (
        f"--stage {stage} --preset tiny --shards {shards} --run {runs / command.FOLDERS[stage]} --batch 2 --workers 0"
    )
    text += " --hold-out 1 --shots 2 --moments 6 --window 5 --bank 16 --device cpu --threads 1 --save-s 0"
    return [*text.split(), *more]


def test_all_stages_run_one_after_another(shards: Path, tmp_path: Path) -> None:
    for stage in ("1", "2", "3"):
        with pytest.raises(SystemExit, match="first, or say --"):
            command.main(arguments(shards, stage, tmp_path, "--steps", "1"))
    for stage in ("reader", "1", "2", "3"):
        command.main(arguments(shards, stage, tmp_path, "--steps", "2"))
        folder = tmp_path / command.FOLDERS[stage]
        assert {"checkpoint.pt", "options.json", "stats.jsonl"} <= {one.name for one in folder.iterdir()}
        assert "held out" in (folder / "stats.jsonl").read_text()
        sheet = cv2.imread(str(folder / "samples-000001.jpg"))
        assert sheet is not None
        assert sheet.std() > 1
    command.main(arguments(shards, "3", tmp_path, "--steps", "3"))  # goes on
    assert torch.load(tmp_path / "stage-3" / "checkpoint.pt", weights_only=True)["step"] == 3


def test_a_dry_run_writes_nothing(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command.main(arguments(shards, "reader", tmp_path, "--dry-run"))
    assert "steps/s" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def first_steps(shards: Path, ranks: Ranks) -> dict[str, Tensor]:
    """Gradients of the second step of each stage, and what stage 3 remembers."""
    torch.manual_seed(1)
    reader = FaceReader(TINY).requires_grad_(False).eval()
    content = Content((PIXELS,))
    people = find_clips(shards, "train")
    told: dict[str, Tensor] = {}
    every: list[Stage[Any]] = [
        ReaderStage(TINY, SHORT),
        SketchStage(TINY, SHORT, reader, content),
        StepsStage(TINY, SHORT),
        MomentStage(TINY, SHORT, reader, content),
    ]
    for stage in every:
        torch.manual_seed(0)
        learner = FactorCourse(stage, people, {}, 4, 0, CPU, ranks)
        for batch in islice(learner.batches(0, 0), 2):
            learner.learn(batch, 0.0)
        for name, network in (("", learner.state.model), (" critic", learner.state.critic)):
            if network is not None:
                parts = [one.grad.flatten() for one in network.parameters() if one.grad is not None]
                told[stage.name + name] = torch.cat(parts)
        if learner.state.bank is not None:
            told["bank"] = learner.state.bank.get_buffer("expressions").clone()
    return told


def one_rank(shards: Path) -> None:
    """What each of the two processes runs; told who it is by the environment, as by torchrun."""
    torch.set_num_threads(1)
    ranks, _ = across.join("cpu")
    torch.save(first_steps(shards, ranks), shards / f"rank-{ranks.rank}.pt")
    across.leave(ranks)


def test_two_processes_learn_what_one_would(shards: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    meeting = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    module = "tests.test_factors_training"
    source = f"from pathlib import Path; from {module} import one_rank; one_rank(Path({str(shards)!r}))"
    running = [
        subprocess.Popen([sys.executable, "-c", source], cwd=ROOT, env=os.environ | meeting | {"RANK": str(rank)})
        for rank in range(2)
    ]
    alone = first_steps(shards, Ranks())
    assert [one.wait() for one in running] == [0, 0]
    for rank in range(2):
        found = torch.load(shards / f"rank-{rank}.pt", weights_only=True)
        assert found.keys() == alone.keys()
        for name, value in found.items():
            off = float((value - alone[name]).norm() / alone[name].norm())
            assert off < 2e-3, (name, off)
