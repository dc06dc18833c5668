"""The card's backend on a card that is none: one copy each way, residents, kernels kept, every refusal a sentence."""

from __future__ import annotations

import dataclasses
import gc
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from engine.avatar import Avatar
from engine.backends import UnavailableError, compiled, cuda, engine_file, tensorrt
from engine.backends.card_graph import FRAME_INPUTS, card_graph
from engine.backends.tensorrt import PORTABLE, Flavour, TensorRt, parse_target
from engine.base import Base, open_base
from engine.config import load
from engine.frames import POINT_COUNT
from engine.renderer import Generator, constants_of
from tests.cards import GOOD, FakeCard, flavour
from tests.conftest import landmarks, untuned

FADE = np.ones(3, np.float32)
KEY = {"avatar": "somebody"}


@pytest.fixture(scope="module")
def graph(tiny_base: Base, tiny_avatar: Avatar) -> bytes:
    return card_graph(tiny_base.generator, constants_of(tiny_avatar, tiny_base), 3, 256, "f16")


@pytest.fixture
def card() -> FakeCard:
    return FakeCard()


def opened(graph: bytes, card: FakeCard, cache: Path | None = None, made: Flavour | None = None) -> TensorRt:
    return TensorRt(made or flavour(card), card, graph, "f16", KEY, cache)


def given(backend: TensorRt, seed: int = 0) -> dict[str, NDArray[np.generic]]:
    """Something for every input."""
    random = np.random.default_rng(seed)
    target = random.uniform(-0.9, 0.9, backend.inputs["target"]).astype(np.float32)
    told: dict[str, NDArray[np.generic]] = {
        name: random.uniform(0, 1, shape).astype(np.float32) for name, shape in backend.inputs.items()
    }
    told["raster"] = random.integers(0, 256, backend.inputs["raster"]).astype(np.uint8)
    told["tile"] = random.integers(1, 4, backend.inputs["tile"]).astype(np.uint8)
    return told | {"target": target, "chosen": np.array([0, 1, 2, 1], np.int32)}


def per_frame(told: dict[str, NDArray[np.generic]]) -> dict[str, NDArray[np.generic]]:
    return {name: told[name] for name in FRAME_INPUTS}


def refused(graph: bytes, card: FakeCard, made: Flavour | None = None) -> str:
    """The sentence with which the engine is not opened; nothing of the card is kept."""
    with pytest.raises(UnavailableError) as caught:
        opened(graph, card, None, made)
    assert "\n" not in str(caught.value)
    gc.collect()
    assert not card.memory and not card.streams
    return str(caught.value)


# --- frames ---


def test_a_frame_is_one_copy_up_the_network_and_one_copy_down(graph: bytes, card: FakeCard) -> None:
    backend = opened(graph, card)
    told = given(backend)
    assert [what.split()[0] for what in card.seen] == ["up", "network", "down", "wait", *["recorded"] * 3]
    assert int(card.seen[0].split()[1]) <= sum(one.nbytes for one in per_frame(told).values()) + 5 * 256
    backend.set({name: told[name] for name in told.keys() - per_frame(told).keys()})
    card.seen.clear()
    for _ in range(3):
        backend.run(per_frame(told))
    assert card.seen == ["replay", "wait"] * 3


def test_what_changes_shows_and_what_does_not_is_remembered(graph: bytes, card: FakeCard) -> None:
    backend = opened(graph, card)
    told = given(backend)
    before = backend.run(told)["rgb"].copy()
    assert np.array_equal(backend.run({})["rgb"], before)
    other = backend.run({"chosen": np.array([1, 0, 0, 2], np.int32)})["rgb"].copy()
    assert np.abs(other.astype(int) - before).max() > 10
    assert np.array_equal(backend.run(told)["rgb"], before)
    backend.set({"pictures": -np.asarray(told["pictures"], np.float32)})
    assert np.abs(backend.run({})["rgb"].astype(int) - before).max() > 10


def test_results_outlive_the_backend_and_the_card_gets_everything_back(graph: bytes, card: FakeCard) -> None:
    backend = opened(graph, card)
    results = backend.run(given(backend))
    copies = {name: value.copy() for name, value in results.items()}
    del backend
    gc.collect()
    assert all(np.array_equal(value, copies[name]) for name, value in results.items())
    assert not card.streams and not card.recordings
    assert len(card.memory) == 1, "the results themselves"
    del results
    gc.collect()
    assert not card.memory


def test_a_long_call_takes_no_more_memory_than_a_short_one(graph: bytes, card: FakeCard) -> None:
    made = flavour(card)
    backend = opened(graph, card, None, made)
    told = given(backend)
    backend.run(told)
    made.module.idle = True

    def draw(count: int) -> int:
        for _ in range(count):
            backend.run(per_frame(told))
            card.seen.clear()
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        before = draw(20)
        assert draw(1000) - before < 2000
    finally:
        tracemalloc.stop()


def test_wrong_inputs_are_told(graph: bytes, card: FakeCard) -> None:
    backend = opened(graph, card)
    with pytest.raises(ValueError, match="never given chosen, detail, features"):
        backend.run({})
    with pytest.raises(ValueError, match=r"'tile' has shape \[1, 2\], and the engine wants \[1, 64, 64\]"):
        backend.set({"tile": np.zeros((1, 2), np.uint8)})
    with pytest.raises(ValueError, match=r"'colour' has shape \[3\], and the engine wants one of "):
        backend.set({"colour": np.zeros(3, np.float32)})
    with pytest.raises(TypeError, match="Cannot cast"):
        backend.set({"tile": np.zeros((1, 64, 64), np.float32)})


def test_a_card_that_cannot_record_draws_all_the_same_and_says_so(
    graph: bytes, card: FakeCard, caplog: pytest.LogCaptureFixture
) -> None:
    card.records = False
    backend = opened(graph, card)
    told = given(backend)
    first = backend.run(told)["rgb"].copy()
    assert np.array_equal(backend.run(told)["rgb"], first)
    assert backend.describe() == "TensorRT for RTX 1.2.3 on Imaginary RTX (sm89), f16, without a CUDA graph"
    assert "frames will take longer" in caplog.text
    other = flavour(card)
    other.module.capturable = False
    card.records = True
    card.seen.clear()
    backend = opened(graph, card, None, other)
    backend.run(told)
    backend.run(told)
    assert not card.recordings and "replay" not in card.seen


def test_a_card_that_stops_is_a_sentence(graph: bytes, card: FakeCard) -> None:
    made = flavour(card)
    card.records = False
    backend = opened(graph, card, None, made)
    made.module.draws = False
    with pytest.raises(UnavailableError, match=r"stopped drawing on Imaginary RTX \(sm89\)"):
        backend.run(given(backend))
    card = FakeCard()
    made = flavour(card)
    made.module.draws = False
    assert "stopped drawing" in refused(graph, card, made), "already at the start"


# --- what can be wrong at the start ---


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ("OLD_CUDA_DRIVER", "the NVIDIA driver is too old; to use it: install a newer driver"),
        ("INSUFFICIENT_GPU_MEMORY", "memory is full; to use it: close other programs"),
        ("UNSUPPORTED_CC", r"TensorRT for RTX 1\.2\.3 does not draw on Imaginary RTX \(sm89\)"),
        ("VERSION_MISMATCH", "does not take the compiled engine"),
        ("MALFORMED_ENGINE", "does not take the compiled engine"),
    ],
)
def test_an_engine_that_does_not_fit(graph: bytes, card: FakeCard, wrong: str, sentence: str) -> None:
    made = flavour(card)
    made.module.invalid = wrong
    with pytest.raises(UnavailableError, match=sentence):
        opened(graph, card, None, made)


def test_what_tensorrt_says_is_passed_on(graph: bytes, card: FakeCard) -> None:
    made = flavour(card)
    made.module.said = "no kernel for this\narchitecture"
    assert refused(graph, card, made).endswith("on Imaginary RTX (sm89): no kernel for this architecture")
    made = flavour(card)
    made.module.said = "Requested 8 GB: out of memory"
    assert "memory is full" in refused(graph, card, made)


def test_a_context_that_does_not_start_and_a_full_card(graph: bytes, card: FakeCard) -> None:
    made = flavour(card)
    made.module.starts = False
    assert "cannot start" in refused(graph, card, made)
    card.full = True
    assert "memory is full" in refused(graph, card)


# --- kernels ---


def test_kernels_are_kept_from_one_start_to_the_next(graph: bytes, card: FakeCard, tmp_path: Path) -> None:
    kept = tmp_path / "one.kernels"
    opened(graph, card, kept)
    key = {**KEY, "card": card.name}
    assert engine_file.load(kept, key) == GOOD + card.name.encode()
    written = kept.stat().st_mtime_ns, kept.read_bytes()
    opened(graph, card, kept)
    assert (kept.stat().st_mtime_ns, kept.read_bytes()) == written, "made once"
    kept.write_bytes(written[1][:-3])
    opened(graph, card, kept)
    assert kept.read_bytes() == written[1], "truncated: made again"
    engine_file.save(kept, key, b"kernels of another driver")
    opened(graph, card, kept)
    assert kept.read_bytes() == written[1], "refused by TensorRT: made again"
    opened(graph, FakeCard("Another card"), kept)
    assert kept.read_bytes() != written[1]


def test_kernels_that_cannot_be_kept_are_no_reason_not_to_draw(
    graph: bytes, card: FakeCard, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_bytes(b"")
    opened(graph, card, tmp_path / "file" / "one.kernels").run(given(opened(graph, card)))
    assert "the next start will be slow" in caplog.text


def test_the_full_tensorrt_needs_no_kernels_of_ours(graph: bytes, card: FakeCard, tmp_path: Path) -> None:
    backend = opened(graph, card, tmp_path / "one.kernels", flavour(card, for_rtx=False))
    backend.run(given(backend))
    assert not list(tmp_path.iterdir())
    assert backend.describe() == "TensorRT 1.2.3 on Imaginary RTX (sm89), f16"


# --- the whole way, from the renderer ---


@pytest.fixture
def on_card(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, card: FakeCard) -> FakeCard:
    """The program finds a card; what it compiles is the graph."""
    made = flavour(card)
    monkeypatch.setenv("UNDERSTUDY_HOME", str(tmp_path))
    monkeypatch.setattr(cuda, "open_card", lambda: card)
    monkeypatch.setattr(tensorrt, "flavours", lambda: [made])
    monkeypatch.setattr(compiled, "build", lambda flavour, graph, target: graph)
    return card


def generator(avatar: Avatar, base: Base, device: str, size_px: int) -> Generator:
    config = load()
    engine: Any = dataclasses.replace(config.engine, device=device, precision="f32", threads=1)
    return Generator(avatar, base, dataclasses.replace(config, engine=engine), size_px)


def target(name: str) -> NDArray[np.float32]:
    scaled = landmarks(name) * np.float32(2 / 256)
    scaled[:, :2] -= 1
    assert scaled.shape == (POINT_COUNT, 3)
    return scaled


@pytest.mark.parametrize(("size_px", "levels", "mean"), [(256, 1, 0.01), (512, 4, 0.6), (720, 4, 0.6)])
def test_the_card_draws_what_the_processor_draws(
    on_card: FakeCard, tiny_base: Base, tiny_avatar: Avatar, size_px: int, levels: int, mean: float
) -> None:
    """Above 256 px OpenCV rounds every picture that it mixes down to bytes, the card only the sum."""
    drawing, expected = (generator(tiny_avatar, tiny_base, device, size_px) for device in ("cuda", "cpu"))
    assert drawing.describe() == "TensorRT for RTX 1.2.3 on Imaginary RTX (sm89), f32"
    pictures = []
    for name, chosen in (("man_still", [0, 1, 2, 1]), ("woman_turned", [2, 0, 0, 1]), ("man_still", [1, 1, 0, 2])):
        told = target(name), np.array(chosen), FADE
        drawn = [np.array(one) for one in drawing.draw(*told)]
        for one, other in zip(drawn, expected.draw(*told), strict=True):
            assert one.shape == other.shape
            difference = np.abs(one.astype(int) - other)
            assert difference.max() <= levels
            assert difference.mean() <= mean
        pictures.append(drawn[0])
    assert np.abs(pictures[0].astype(int) - pictures[2]).max() > 30, "other references, another picture"
    up = [what for what in on_card.seen if what.startswith("up")]
    assert len(up) == len(drawing.backend.inputs) - len(FRAME_INPUTS) + 1, "references once, and the first frame"
    assert int(up[0].split()[1]) < 80_000, "landmarks go up and no maps"


def test_two_avatars_are_at_hand_at_once(on_card: FakeCard, tiny_base: Base, tiny_avatar: Avatar) -> None:
    other = dataclasses.replace(tiny_avatar, name="other", references=tiny_avatar.references[::-1])
    told = target("man_still"), np.array([0, 1, 2, 1]), FADE
    alone = [generator(one, tiny_base, "cuda", 256).draw(*told)[0].copy() for one in (tiny_avatar, other)]
    both = [generator(one, tiny_base, "cuda", 256) for one in (tiny_avatar, other)]
    for one in both:
        one.draw(*told)
    on_card.seen.clear()
    for _ in range(2):
        for one, expected in zip(both, alone, strict=True):
            assert np.array_equal(one.draw(*told)[0], expected)
    assert on_card.seen == ["replay", "wait"] * 4, "a switch moves nothing"


def test_a_card_that_goes_in_the_middle_of_a_call(
    on_card: FakeCard, tiny_base: Base, tiny_avatar: Avatar, caplog: pytest.LogCaptureFixture
) -> None:
    """With `auto` the processor goes on with the same picture; who asked for the card is told that it is gone."""
    on_card.records = False
    told = target("man_still"), np.array([0, 1, 2, 1]), FADE
    drawing, asked = (generator(tiny_avatar, tiny_base, device, 256) for device in ("auto", "cuda"))
    before = drawing.draw(*told)[0].copy()
    tensorrt.flavours()[0].module.draws = False
    assert np.abs(drawing.draw(*told)[0].astype(int) - before).max() <= 1
    assert "OpenVINO goes on: TensorRT for RTX 1.2.3 stopped drawing" in caplog.text
    said = drawing.describe()
    assert said.startswith("OpenVINO ") and "(TensorRT stopped: TensorRT for RTX 1.2.3 stopped drawing on" in said
    with pytest.raises(UnavailableError, match="stopped drawing"):
        asked.draw(*told)


# --- which TensorRT, for which cards ---


def test_targets(card: FakeCard) -> None:
    rtx, full = flavour(card), flavour(card, for_rtx=False)
    rtx.module.ComputeCapability = type("ComputeCapability", (), {"SM75": 0, "SM89": 1, "SM120": 2, "CURRENT": 3})
    assert parse_target("", rtx) == PORTABLE
    assert parse_target("sm120, SM89,sm89", rtx) == "sm89+sm120"
    with pytest.raises(ValueError, match="knows sm75, sm89, sm120, and not 'sm90'"):
        parse_target("sm90", rtx)
    with pytest.raises(ValueError, match="leave --target out"):
        parse_target("sm89", full)
    assert [rtx.target_of(one) for one in ((7, 5), (8, 6), (12, 0))] == ["sm75", PORTABLE, PORTABLE]
    assert full.target_of((9, 0)) == "sm90"
    assert rtx.serves(PORTABLE, (12, 0)) and not rtx.serves(PORTABLE, (7, 5))
    assert rtx.serves("sm89+sm120", (12, 0)) and not rtx.serves("sm89+sm120", (8, 6))
    assert not full.serves(PORTABLE, (8, 9))


def test_the_one_for_the_card_is_taken(card: FakeCard, monkeypatch: pytest.MonkeyPatch) -> None:
    rtx, full = flavour(card), flavour(card, for_rtx=False)
    monkeypatch.setattr(tensorrt, "flavours", lambda: [rtx, full])
    assert [tensorrt.flavour_for(one) for one in ((8, 9), (9, 0), None)] == [rtx, full, rtx]
    monkeypatch.setattr(tensorrt, "flavours", lambda: [rtx])
    assert tensorrt.flavour_for((9, 0)) is rtx, "it is tried, and says itself that it does not"
    monkeypatch.setattr(tensorrt, "flavours", list)
    with pytest.raises(UnavailableError, match=r"not installed; to use it: pip install 'understudy\[gpu\]'"):
        tensorrt.flavour_for((8, 9))


# --- on a card that is one ---


@pytest.mark.needs_gpu
@pytest.mark.parametrize(("size_px", "levels", "mean"), [(256, 4, 0.1), (512, 6, 0.8)])
def test_a_real_card_draws_what_the_processor_draws(
    tiny_references: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size_px: int, levels: int, mean: float
) -> None:
    monkeypatch.setenv("UNDERSTUDY_HOME", str(tmp_path))
    base = open_base()
    avatar = untuned("shipped", base, tiny_references)
    config = load()
    drawn = []
    for device, precision in (("cuda", "auto"), ("cpu", "f32")):
        engine: Any = dataclasses.replace(config.engine, device=device, precision=precision)
        drawing = Generator(avatar, base, dataclasses.replace(config, engine=engine), size_px)
        told = target("man_speaking"), np.array([0, 1, 2, 1]), FADE
        drawn.append([[np.array(part) for part in drawing.draw(*told)] for _ in range(3)])
    for one, other in zip(drawn[0], drawn[1], strict=True):
        for part, expected in zip(one, other, strict=True):
            difference = np.abs(part.astype(int) - expected)
            assert difference.max() <= levels
            assert difference.mean() <= mean
