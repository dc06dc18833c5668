"""Training, tiny: it learns, it survives a bad step and a full disk, and an interruption leaves no trace."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.test_episodes import write_shard
from training import meta_learn, paper
from training.episodes import Episodes, Sample, load_shards
from training.meta_learn import PRESETS, State, learning_rate, load_checkpoint, make_state, save_checkpoint, train_step
from training.ranks import batches

CPU = torch.device("cpu")
PAPER_STEP = paper.train_step


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three invented people (of one picture, seen at several moments) in shards."""
    folder = tmp_path_factory.mktemp("shards")
    for person in ("ann", "ben", "cleo"):
        write_shard(folder / f"{person}.tar", person, "train", [0, 20, 40])
    return folder


@pytest.fixture(scope="module")
def batch(shards: Path) -> Sample:
    return next(batches(Episodes(load_shards(shards, "train")), Sample, 1, CPU))


@pytest.fixture
def state() -> State:
    torch.manual_seed(0)
    return make_state(PRESETS["tiny"], 4e-3, CPU)


@pytest.fixture
def signals() -> Iterator[None]:
    """`main` takes over Ctrl-C and SIGTERM; they are given back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_few_steps_lower_the_loss(state: State, batch: Sample) -> None:
    told = [train_step(state, batch, None, 144, bf16=False) for _ in range(12)]
    assert told[-1]["loss"] < 0.85 * told[0]["loss"]
    assert told[-1]["synthesis"] < told[0]["synthesis"]
    assert told[0].keys() == {"loss", "gradient", "l1", "warp", "synthesis", "matte"}
    assert state.step == 12
    assert state.skipped == 0


def test_the_average_follows_behind(state: State, batch: Sample) -> None:
    train_step(state, batch, None, 144, bf16=False)
    before = {name: value.clone() for name, value in state.average.state_dict().items()}
    train_step(state, batch, None, 144, bf16=False)
    now, goal = state.average.state_dict(), state.generator.state_dict()
    decay = 2 / 11  # (1 + step) / (10 + step), step 1
    for name in before:
        assert torch.allclose(now[name], decay * before[name] + (1 - decay) * goal[name], atol=1e-5), name


def test_a_step_that_is_not_finite_is_skipped_and_counted(
    state: State, batch: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_step(state, batch, None, 144, bf16=False)
    before = {name: value.clone() for name, value in state.generator.state_dict().items()}
    real = meta_learn.losses.reconstruction

    def spoiled(*given: Any) -> dict[str, torch.Tensor]:
        terms = real(*given)
        return terms | {"l1": terms["l1"] * float("nan")}

    monkeypatch.setattr(meta_learn.losses, "reconstruction", spoiled)
    told = train_step(state, batch, None, 144, bf16=False)
    assert np.isnan(told["loss"])
    assert (state.step, state.skipped) == (2, 1)
    assert all(torch.equal(before[name], value) for name, value in state.generator.state_dict().items())
    monkeypatch.undo()
    assert np.isfinite(train_step(state, batch, None, 144, bf16=False)["loss"])
    assert all(torch.isfinite(value).all() for value in state.average.state_dict().values())


# --- the whole command --------------------------------------------------------------------------------------


def command(shards: Path, run: Path, preset: str = "tiny") -> list[str]:
    text = f"--shards {shards} --run {run} --preset {preset} --steps 6 --hours 1000 --batch 1 --workers 0 --hold-out 1"
    return [*text.split(), "--device", "cpu"]


def watched(
    monkeypatch: pytest.MonkeyPatch, stop_after: int = 0, spoil: int = 0, module: Any = meta_learn, term: str = "loss"
) -> list[float]:
    """The losses of every step from now on; SIGTERM comes during step `stop_after`, step `spoil` is not finite."""
    told: list[float] = []
    real = {meta_learn: train_step, paper: PAPER_STEP}[module]

    def step(*given: Any, **named: Any) -> dict[str, float]:
        result = real(*given, **named)
        told.append(result[term])
        if len(told) == stop_after:
            signal.raise_signal(signal.SIGTERM)
        if len(told) == spoil:
            result["loss"] = float("nan")
        return result

    monkeypatch.setattr(module, "train_step", step)
    return told


def test_a_resumed_run_sees_what_it_would_have_seen(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signals: None
) -> None:
    whole = watched(monkeypatch)
    meta_learn.main(command(shards, tmp_path / "whole"))
    first = watched(monkeypatch, stop_after=3)
    meta_learn.main(command(shards, tmp_path / "parts"))
    second = watched(monkeypatch)
    meta_learn.main(command(shards, tmp_path / "parts"))
    assert (len(whole), len(first), len(second)) == (6, 3, 3)
    assert first + second == pytest.approx(whole, rel=1e-5)
    assert len(set(whole)) == 6
    ends = [torch.load(tmp_path / run / "checkpoint.pt", weights_only=True) for run in ("whole", "parts")]
    assert [end["step"] for end in ends] == [6, 6]
    for name, value in ends[0]["average"].items():
        assert torch.allclose(value, ends[1]["average"][name], atol=1e-6), name


@pytest.mark.parametrize(
    ("preset", "more", "module"),
    [("paper-tiny", "--shots 2", paper), ("tiny", "--adversarial --critic-warm-up 2", meta_learn)],
)
def test_a_resumed_adversarial_run_sees_what_it_would_have_seen(
    shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    signals: None,
    preset: str,
    more: str,
    module: Any,
) -> None:
    """Interrupted between the discriminator's two steps, and after an adversary's warm-up."""
    whole = watched(monkeypatch, module=module, term="critic")
    meta_learn.main([*command(shards, tmp_path / "whole", preset), *more.split()])
    first = watched(monkeypatch, stop_after=3, module=module, term="critic")
    meta_learn.main([*command(shards, tmp_path / "parts", preset), *more.split()])
    second = watched(monkeypatch, module=module, term="critic")
    meta_learn.main([*command(shards, tmp_path / "parts", preset), *more.split()])
    assert (len(whole), len(first), len(second)) == (6, 3, 3)
    assert first + second == pytest.approx(whole, rel=1e-5)
    assert len(set(whole)) == 6


def test_the_paper_leaves_the_same_run_folder(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signals: None
) -> None:
    meta_learn.main([*command(shards, tmp_path, "paper-tiny"), "--shots", "2", "--steps", "20", "--save-s", "0"])
    options = json.loads((tmp_path / "options.json").read_text())
    assert options["network"]["videos"] == 2
    assert options["network"]["recipe"]["match"] == 80
    assert options["rate"] == "5e-05"
    told = [json.loads(line) for line in (tmp_path / "stats.jsonl").read_text().splitlines()]
    means = next(one for one in told if "critic" in one)
    assert 0 <= means["waiting"] <= 1
    assert means["match"] > 0
    assert any("held out content" in one for one in told)
    assert (tmp_path / "samples-000020.jpg").stat().st_size > 500


def test_a_dry_run_says_what_a_run_would_cost_and_writes_nothing(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = "--shots 2 --steps 7200 --dry-run"
    meta_learn.main([*command(shards, tmp_path / "run", "paper-tiny"), *more.split()])
    told = capsys.readouterr().out
    found = re.search(r"\n([\d.]+) steps/s, ([\d.]+) GiB at most\n7200 steps take ([\d.]+) hours\n", told)
    assert found is not None, told
    rate, memory, hours = (float(one) for one in found.groups())
    assert hours == pytest.approx(2 / rate, rel=0.05, abs=0.01)
    assert memory > 0.05
    assert re.search(r"computes \d+ ms and needs \d+ ms of drawing \(0 worker\(s\)\): the bottleneck is ", told)
    assert not (tmp_path / "run").exists()


def test_a_run_cannot_go_on_in_another_presets_folder(shards: Path, tmp_path: Path) -> None:
    meta_learn.main([*command(shards, tmp_path, "paper-tiny"), "--shots", "2", "--steps", "1"])
    with pytest.raises(SystemExit, match="is of another preset: choose another --run"):
        meta_learn.main(command(shards, tmp_path))


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ("--shards nowhere", "holds no shard of the split 'train': run python -m training.prepare first"),
        ("--hold-out 12", "there are 3 people, and --hold-out 12 leaves none to learn from"),
        ("--also {shards}", "'ann' is in --shards and in --also"),
        ("--start nowhere/checkpoint.pt", "there are no weights in nowhere/checkpoint.pt"),
    ],
)
def test_what_cannot_be_learned_from_is_told(shards: Path, tmp_path: Path, wrong: str, sentence: str) -> None:
    with pytest.raises(SystemExit, match=re.escape(sentence)):
        meta_learn.main([*command(shards, tmp_path / "run"), *wrong.format(shards=shards).split()])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("wrong", ["--batch 0", "--hold-out 0", "--hours 0", "--also-share 1"])
def test_numbers_that_make_no_run_are_refused(wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        meta_learn.read_options(wrong.split())
    assert wrong.split()[0] in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("wrong", ["--adversarial", "--start weights.safetensors"])
def test_options_of_the_live_generator_are_refused_for_the_papers(wrong: str) -> None:
    with pytest.raises(SystemExit):
        meta_learn.read_options(["--preset", "paper", *wrong.split()])


def test_rates_are_the_presets_own() -> None:
    assert meta_learn.read_options([]).rate == 4e-4
    assert meta_learn.read_options(["--preset", "paper"]).rate == 5e-5
    assert meta_learn.read_options(["--preset", "paper"]).run == Path("runs/paper")


def test_means_are_taken_over_the_steps_that_told_them() -> None:
    assert meta_learn.averaged([{"a": 1.0}, {"a": 3.0, "b": 5.0}]) == {"a": 2.0, "b": 5.0}


def test_a_run_folder_tells_what_was_done(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signals: None
) -> None:
    watched(monkeypatch, spoil=2)
    meta_learn.main([*command(shards, tmp_path), "--steps", "20", "--save-s", "1e9"])
    options = json.loads((tmp_path / "options.json").read_text())
    assert options["network"] == meta_learn.asdict(PRESETS["tiny"])
    assert options["steps"] == "20"
    (line,) = (tmp_path / "stats.jsonl").read_text().splitlines()
    told = json.loads(line, parse_constant=pytest.fail)  # a NaN of one step must not reach the mean
    assert told["step"] == 20
    assert told["loss"] > 0
    assert told["skipped"] == 0


def test_validation_and_samples(state: State, batch: Sample, tmp_path: Path) -> None:
    measured = meta_learn.validate(state, [batch, batch], None)
    assert measured.keys() == {f"held out {name}" for name in ("l1", "warp", "synthesis", "matte")}
    meta_learn.save_samples(state, batch, tmp_path / "samples.jpg")
    assert (tmp_path / "samples.jpg").stat().st_size > 5000


# --- checkpoints --------------------------------------------------------------------------------------------


def test_a_checkpoint_that_cannot_be_written_leaves_the_old_one(
    state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "checkpoint.pt"
    state.step = 7
    save_checkpoint(state, path)
    state.step = 8

    def full(content: object, where: Path) -> None:
        where.write_bytes(b"half a checkpoint")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(state, path)
    monkeypatch.undo()
    again = make_state(PRESETS["tiny"], 1e-3, CPU)
    load_checkpoint(again, path, CPU)
    assert again.step == 7


def test_a_checkpoint_gives_back_everything(state: State, batch: Sample, tmp_path: Path) -> None:
    for _ in range(2):
        train_step(state, batch, None, 144, bf16=False)
    state.seconds, state.skipped = 12.5, 1
    save_checkpoint(state, tmp_path / "checkpoint.pt")
    again = make_state(PRESETS["tiny"], 1e-3, CPU)
    load_checkpoint(again, tmp_path / "checkpoint.pt", CPU)
    assert (again.step, again.seconds, again.skipped) == (2, 12.5, 1)
    expected = train_step(state, batch, None, 144, bf16=False)
    assert train_step(again, batch, None, 144, bf16=False) == pytest.approx(expected, rel=1e-5)
    expected = train_step(state, batch, None, 144, bf16=False)
    assert train_step(again, batch, None, 144, bf16=False) == pytest.approx(expected, rel=1e-5)


def test_a_checkpoint_of_other_sizes_is_refused(state: State, tmp_path: Path) -> None:
    save_checkpoint(state, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match=r"was trained with \{.*'body_channels': 4"):
        load_checkpoint(make_state(PRESETS["live-256"], 1e-3, CPU), tmp_path / "checkpoint.pt", CPU)


def test_the_rate_warms_up_holds_and_falls() -> None:
    rates = [learning_rate(1.0, step / 1000, step) for step in range(1001)]
    assert rates[0] == pytest.approx(0.01)
    assert rates[99:601] == [pytest.approx(1.0)] * 502
    assert (np.diff(rates[600:]) < 0).all()
    assert rates[-1] == pytest.approx(0.03)
