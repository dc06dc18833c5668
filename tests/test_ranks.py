"""Many processes learn what one would: the same episodes, the same gradients, the same table."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.test_episodes import write_shard
from training import adversarial, meta_learn, paper
from training import ranks as across
from training.adversarial import AdversaryOptions
from training.episodes import Episodes, Sample, load_shards
from training.networks.content import PIXELS, Content
from training.paper import FewShot, Recipe, Videos
from training.ranks import Ranks

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")
BATCH = 4


def gradients(module: nn.Module) -> Tensor:
    parts = [torch.zeros_like(one) if one.grad is None else one.grad.to_dense() for one in module.parameters()]
    return torch.cat([part.flatten() for part in parts]).detach()


def paper_state(shards: Path, ranks: Ranks) -> tuple[paper.PaperState, Videos]:
    torch.manual_seed(0)
    sizes = paper.PRESETS["paper-tiny"]
    videos = Videos(load_shards(shards, "train"), shots=2, size_px=sizes.size_px)
    return paper.make_state(sizes, videos.names, Recipe(), CPU, ranks), videos


def learn_paper(shards: Path, ranks: Ranks) -> dict[str, Tensor]:
    """Gradients of the first step, and the table before and after it."""
    state, videos = paper_state(shards, ranks)
    whole = [across.gathered(state.columns.weight.detach().clone(), 3, ranks)]
    batch = next(across.batches(videos, FewShot, BATCH, CPU, ranks=ranks))
    told = paper.train_step(state, batch, Content((PIXELS,)), Recipe(), bf16=False, ranks=ranks)
    assert state.columns.weight.grad is not None
    rows = across.gathered(state.columns.weight.grad.to_dense(), 3, ranks)
    whole.append(across.gathered(state.columns.weight.detach(), 3, ranks))
    return {
        "portrait": gradients(state.portrait),
        "discriminator": gradients(state.discriminator),
        "columns": rows,
        "table before": whole[0],
        "table after": whole[1],
        "norms": torch.tensor([told["gradient"], told["critic gradient"]]),
    }


def learn_live(shards: Path, ranks: Ranks) -> dict[str, Tensor]:
    """The live generator with its adversary."""
    torch.manual_seed(0)
    state = meta_learn.make_state(meta_learn.PRESETS["tiny"], 1e-3, CPU)
    wishes = AdversaryOptions(weight=1.0, warm_up=0)
    state.adversary = adversarial.make_adversary(wishes, CPU, meta_learn.TINY_CRITIC, ranks)
    episodes = Episodes(load_shards(shards, "train"))
    sample = next(across.batches(episodes, Sample, 2, CPU, ranks=ranks))
    meta_learn.train_step(state, sample, None, 144, bf16=False, ranks=ranks)
    return {"generator": gradients(state.generator), "critic": gradients(state.adversary.critic)}


def meet_a_bad_batch(shards: Path, ranks: Ranks) -> dict[str, Tensor]:
    """Only the last rank's pictures are not finite."""
    state, videos = paper_state(shards, ranks)
    batch = next(across.batches(videos, FewShot, BATCH, CPU, ranks=ranks))
    if ranks.rank == ranks.count - 1:
        batch.target = batch.target * float("nan")
    before = [weight.detach().clone() for weight in state.portrait.parameters()]
    paper.train_step(state, batch, Content((PIXELS,)), Recipe(), bf16=False, ranks=ranks)
    after = zip(before, state.portrait.parameters(), strict=True)
    moved = torch.stack([(one - now.detach()).abs().sum() for one, now in after]).sum()
    return {"skipped": torch.tensor(float(state.skipped)), "moved": moved}


def part_of_batches(shards: Path, ranks: Ranks) -> dict[str, Tensor]:
    _, videos = paper_state(shards, ranks)
    drawn = islice(across.batches(videos, FewShot, BATCH, CPU, first=3, ranks=ranks), 2)
    return {"targets": torch.stack([one.target for one in drawn])}


def keep_and_agree(shards: Path, ranks: Ranks) -> dict[str, Tensor]:
    """A checkpoint written together after two steps, and who wants what."""
    state, videos = paper_state(shards, ranks)
    batch = next(across.batches(videos, FewShot, BATCH, CPU, ranks=ranks))
    for _ in range(2):
        paper.train_step(state, batch, Content((PIXELS,)), Recipe(), bf16=False, ranks=ranks)
    paper.save_checkpoint(state, shards / f"checkpoint-{ranks.count}.pt")
    return {"agreed": torch.tensor(across.largest([float(ranks.rank), -float(ranks.rank)], ranks))}


WORK: Mapping[str, Callable[[Path, Ranks], dict[str, Tensor]]] = {
    one.__name__: one for one in (learn_paper, learn_live, meet_a_bad_batch, part_of_batches, keep_and_agree)
}


def one_rank(shards: Path) -> None:
    """What each of the two processes runs; told who it is by the environment, as by torchrun."""
    torch.set_num_threads(1)
    ranks, device = across.join("cpu")
    assert device == CPU
    done: dict[str, Any] = {name: work(shards, ranks) for name, work in WORK.items()}
    torch.save(done, shards / f"rank-{ranks.rank}.pt")
    across.leave(ranks)
    os.environ["MASTER_PORT"] = os.environ["NEXT_PORT"]
    meta_learn.main(command(shards, shards / "run"))


def command(shards: Path, run: Path) -> list[str]:
    text = f"--shards {shards} --run {run} --preset paper-tiny --shots 2 --steps 3 --batch 2 --workers 0 --hold-out 1"
    return [*text.split(), "--save-s", "0", "--device", "cpu"]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    for person, picture_at in (("ann", 0), ("ben", 40), ("cleo", 80)):
        write_shard(folder / f"{person}.tar", person, "train", [picture_at, picture_at + 20, picture_at + 40])
    return folder


@pytest.fixture(scope="module")
def two(shards: Path) -> list[dict[str, dict[str, Tensor]]]:
    """What two processes that met over gloo found."""
    with socket.socket() as one, socket.socket() as other:
        for free in (one, other):
            free.bind(("127.0.0.1", 0))
        ports = {"MASTER_PORT": str(one.getsockname()[1]), "NEXT_PORT": str(other.getsockname()[1])}
    meeting = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"} | ports
    source = f"from pathlib import Path; from tests.test_ranks import one_rank; one_rank(Path({str(shards)!r}))"
    running = [
        subprocess.Popen([sys.executable, "-c", source], cwd=ROOT, env=os.environ | meeting | {"RANK": str(rank)})
        for rank in range(2)
    ]
    assert [one.wait() for one in running] == [0, 0]
    return [torch.load(shards / f"rank-{rank}.pt", weights_only=True) for rank in range(2)]


def assert_near(ours: Tensor, theirs: Tensor) -> None:
    """To 1e-5 of the largest."""
    assert theirs.abs().max() > 0
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))


@pytest.mark.parametrize("work", ["learn_paper", "learn_live"])
def test_two_ranks_have_the_gradients_of_one_process(
    work: str, two: list[dict[str, dict[str, Tensor]]], shards: Path
) -> None:
    alone = WORK[work](shards, Ranks())
    for told in two:
        assert told[work].keys() == alone.keys()
        for name in alone.keys() - {"table after"}:  # Adam's first step is the gradient's sign, zeros and all
            assert_near(told[work][name], alone[name])


def test_a_shared_table_is_one_table(two: list[dict[str, dict[str, Tensor]]], shards: Path) -> None:
    """Rows seen in the step have moved, on every rank as on one; the others have not."""
    alone = WORK["learn_paper"](shards, Ranks())
    seen = alone["columns"].abs().sum(1) > 0
    assert seen.any()
    for told in two:
        found = told["learn_paper"]
        assert torch.equal((found["table after"] - found["table before"]).abs().sum(1) > 0, seen)


def test_together_the_ranks_see_what_one_would(two: list[dict[str, dict[str, Tensor]]], shards: Path) -> None:
    alone = part_of_batches(shards, Ranks())["targets"]
    together = torch.cat([told["part_of_batches"]["targets"] for told in two], 1)
    assert torch.equal(together, alone)


def test_what_one_rank_cannot_use_all_skip(two: list[dict[str, dict[str, Tensor]]]) -> None:
    for told in two:
        assert told["meet_a_bad_batch"]["skipped"] == 1
        assert told["meet_a_bad_batch"]["moved"] == 0


def test_ranks_agree_on_the_largest(two: list[dict[str, dict[str, Tensor]]]) -> None:
    for told in two:
        assert told["keep_and_agree"]["agreed"].tolist() == [1, 0]


def test_a_checkpoint_of_two_ranks_is_one_of_one(two: list[dict[str, dict[str, Tensor]]], shards: Path) -> None:
    """It holds the whole table and its moments, and one process goes on from it."""
    assert two
    alone, videos = paper_state(shards, Ranks())
    paper.load_checkpoint(alone, shards / "checkpoint-2.pt", CPU)
    assert alone.step == 2
    assert alone.columns.weight.shape == (3, 16)
    moments = alone.column_optimiser.state[alone.columns.weight]
    assert moments["exp_avg_sq"].shape == (3, 16)
    assert (moments["exp_avg_sq"].abs().sum(1) > 0).any()
    batch = next(across.batches(videos, FewShot, BATCH, CPU))
    told = paper.train_step(alone, batch, Content((PIXELS,)), Recipe(), bf16=False)
    assert all(torch.isfinite(torch.tensor(value)) for value in told.values())


def test_the_command_runs_on_two_ranks_as_on_one(
    two: list[dict[str, dict[str, Tensor]]], shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One run folder, written by the first rank, and what one process would have written there."""
    assert two
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    meta_learn.main(command(shards, tmp_path / "run"))
    kept = [torch.load(run / "checkpoint.pt", weights_only=True) for run in (shards / "run", tmp_path / "run")]
    assert [one["step"] for one in kept] == [3, 3]
    assert kept[0]["columns"].shape == kept[1]["columns"].shape == (2, 16)
    assert kept[0]["videos"] == kept[1]["videos"]
    # Not equal: where a gradient is zero but for rounding, Adam goes one way or the other.
    assert float((kept[0]["columns"] - kept[1]["columns"]).abs().mean()) < 2e-3
    names = {path.name for path in (shards / "run").iterdir()}
    assert names == {path.name for path in (tmp_path / "run").iterdir()} >= {"options.json", "samples-000001.jpg"}


@pytest.mark.parametrize(
    ("device", "sentence"), [("abacus", "torch knows no device 'abacus'"), ("cuda", "torch finds no CUDA device here")]
)
def test_a_device_that_is_not_there_is_told(device: str, sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=sentence):
        across.join(device)


def test_parts_of_a_table_make_the_table() -> None:
    table = torch.arange(10.0).view(5, 2)
    parts = [across.own_part(table, Ranks(rank, 3)) for rank in range(3)]
    assert [part[:, 0].tolist() for part in parts] == [[0, 6], [2, 8], [4, 0]]
    assert torch.equal(across.own_part(table, Ranks()), table)


def test_a_batch_that_cannot_be_cut_is_refused() -> None:
    assert Ranks(1, 4).share(8) == 2
    with pytest.raises(ValueError, match="a batch of 8 cannot be cut among 3 processes"):
        Ranks(0, 3).share(8)


def test_numbers_are_cut_in_order() -> None:
    assert list(islice(across.numbers(4, 2, Ranks(1, 2)), 4)) == [10, 11, 14, 15]
    assert list(islice(across.numbers(4, 2, Ranks()), 5)) == [8, 9, 10, 11, 12]


def test_workers_change_nothing(shards: Path) -> None:
    _, videos = paper_state(shards, Ranks())
    alone, drawn = (next(across.batches(videos, FewShot, 2, CPU, 5, workers)).target for workers in (0, 1))
    assert torch.equal(alone, drawn)


def test_workers_outlast_what_stops_the_whole_group(shards: Path) -> None:
    """A scheduler sends SIGTERM to every process; the parent must live to save."""
    episodes = Episodes(load_shards(shards, "train"), seed=3)
    source = across.batches(episodes, Sample, 2, CPU, workers=1)
    next(source)
    (worker,) = multiprocessing.active_children()
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGTERM)
    for sample in islice(source, 8):  # more than was ready beforehand
        assert sample.target.isfinite().all()
    assert worker.is_alive()


def test_gradients_travel_in_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(across, "_BUCKET", 5)
    sizes = [[gradient.numel() for gradient in one] for one in across._buckets([torch.zeros(n) for n in (3, 2, 4, 9)])]
    assert sizes == [[3, 2], [4], [9]]
