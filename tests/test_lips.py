"""What is measured of lips that follow a voice, and the network one step at a time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.backends.openvino import OpenVino
from engine.factors import shipped_anatomy
from engine.voice_lips import BANDS, HEARD_HOPS, RATE_HZ, STEP_HOPS, LogMel
from training.lips import (
    ROWS,
    Lesson,
    LipNet,
    LipStep,
    best_offset,
    correlation,
    follow,
    hush,
    in_step,
    pearson,
    retrieval,
    save,
    teach,
    windowed,
)


def wander(steps: int, seed: int) -> np.ndarray:
    """A curve that goes up and down at no fixed rate."""
    noise = np.random.default_rng(seed).normal(size=steps + 20)
    return np.convolve(noise, np.hanning(9), "same")[10:-10].astype(np.float32)


def test_the_network_in_steps_is_the_network_of_the_whole() -> None:
    torch.manual_seed(0)
    network = LipNet().eval()
    scale, offset = torch.rand(1 + ROWS) + 0.5, torch.randn(1 + ROWS)
    step = LipStep(network, scale, offset)
    heard = windowed(torch.randn(1, 20, STEP_HOPS, BANDS))
    assert heard.shape == (1, 20, HEARD_HOPS, BANDS)
    with torch.no_grad():
        whole = network(heard)[0] * scale + offset
        memory, pieces = torch.zeros(1, network.memory.hidden_size), []
        for k in range(20):
            codes, memory = step(heard[:, k], memory)
            pieces.append(codes[0])
    assert torch.allclose(whole, torch.stack(pieces), atol=1e-5)


def test_what_is_saved_is_at_rest_in_silence(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network, gain = LipNet().eval(), torch.full((1 + ROWS,), 2.0)
    scale, offset = torch.rand(1 + ROWS) + 0.5, torch.randn(1 + ROWS)
    save(network, shipped_anatomy(), scale, offset, gain, tmp_path)
    kept = OpenVino(tmp_path / "lips.onnx", device="CPU", precision="f32", threads=1)

    def said(heard: np.ndarray, steps: int) -> np.ndarray:
        codes, memory = np.zeros(1 + ROWS), np.zeros((1, network.memory.hidden_size), np.float32)
        for _ in range(steps):
            drawn = kept.run({"heard": heard, "memory": memory})
            codes, memory = drawn["codes"][0].copy(), drawn["remembered"].astype(np.float32)
        return codes

    quiet = LogMel().feed(np.zeros(RATE_HZ // 4, np.float32))[:HEARD_HOPS][None]
    assert np.abs(said(quiet, 100)).max() < 1e-3
    loud = np.random.default_rng(0).normal(size=quiet.shape).astype(np.float32)
    with torch.no_grad():
        plain = LipStep(network, scale, offset)
        expected = 2 * (plain(torch.from_numpy(loud), torch.zeros(1, network.memory.hidden_size))[0][0] - hush(plain))
    assert np.allclose(said(loud, 1), expected.numpy(), atol=1e-3)
    with np.load(tmp_path / "mouth.npz") as stored:
        assert np.allclose(stored["rows"], shipped_anatomy().rows, atol=1e-3)


def test_an_offset_is_found_with_its_sign() -> None:
    real = wander(200, 1)
    assert best_offset(real, real)[0] == 0
    assert best_offset(np.roll(real, 3), real)[0] == 3, "late"
    assert best_offset(np.roll(real, -2), real)[0] == -2, "early"


def spoken_clip(codes: np.ndarray, name: str = "clip") -> Lesson:
    """Sound whose lower half of the bands is as loud as the mouth is open; the rest is noise."""
    random = np.random.default_rng(len(name))
    heard = random.normal(0, 0.1, (len(codes), STEP_HOPS, BANDS)) - 1
    heard[..., : BANDS // 2] += codes[:, None, None]
    told = np.tile(codes[:, None], (1, 1 + ROWS))
    return Lesson(
        name, heard.astype(np.float32), told.astype(np.float32), np.ones(len(codes), np.bool_), codes.astype(np.float32)
    )


def test_lips_out_of_step_are_found_and_put_right() -> None:
    real = wander(300, 2)
    late = spoken_clip(real)
    late = replace(late, codes=np.roll(late.codes, 4, 0))
    slip, fit = best_offset(real, late.codes[:, 0], 15)
    assert (slip, fit > 0.95) == (-4, True), "what is said comes four steps before the lips"
    right = in_step(late, -slip)
    assert np.array_equal(right.codes[right.seen, 0], real[right.seen])
    assert (right.seen.sum(), right.seen[-4:].any()) == (296, False)


def test_a_small_network_learns_to_follow_and_leaves_strangers_out(caplog: pytest.LogCaptureFixture) -> None:
    own = [spoken_clip(wander(400, k), f"own{k}") for k in range(4)]
    stranger = replace(spoken_clip(wander(400, 50)), codes=spoken_clip(wander(400, 99)).codes)
    with caplog.at_level("INFO"):
        network, good, _, _ = teach([*own, stranger], 24)
    assert {one.name for one in good} == {one.name for one in own}
    assert "4 of 5 clips" in caplog.text
    unseen = spoken_clip(wander(200, 7))
    assert pearson(follow(network, unseen)[:, 0], unseen.codes[:, 0]) > 0.6


def test_retrieval_of_the_truth_and_of_noise() -> None:
    real = np.stack([wander(500, k) for k in range(3)], 1)
    found, tried = retrieval(real, real)
    assert (found, tried > 10) == (tried, True)
    found, tried = retrieval(np.stack([wander(500, k + 9) for k in range(3)], 1), real)
    assert found < 0.3 * tried
    assert retrieval(real[:100], real[:100]) == (0, 0), "too short to choose among fifty"


def test_correlation_looks_only_where_a_face_was_seen() -> None:
    one = torch.from_numpy(wander(60, 1))[None, :, None]
    other = one.clone() * 3 + 1
    other[:, 30:] = torch.randn(1, 30, 1)
    seen = torch.arange(60)[None] < 30
    assert float(correlation(one, other, seen)) > 0.99
    assert float(correlation(one, other, torch.ones_like(seen))) < 0.9
    assert pearson(np.ones(5, np.float32), np.arange(5, dtype=np.float32)) == 0
