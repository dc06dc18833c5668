"""One process or many: what training needs to know of the others, and batches cut among them.

Alone, everything here is the identity. Under `torchrun` each rank takes its part of every batch, and gradients are
averaged, so that the same command learns the same, just sooner. Gradients are averaged by hand after each backward pass
rather than by DistributedDataParallel: an adversarial step runs several networks several times, partly frozen, which
its reducer does not follow.
"""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import cv2
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.utils.data import DataLoader, Dataset

Episode = TypeVar("Episode")
_BUCKET = 16 * 1024 * 1024
"""Numbers sent at once: 64 MiB."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """Which of how many processes this is."""

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """The one that writes files and speaks."""
        return self.rank == 0

    def share(self, batch: int) -> int:
        """This rank's part of a batch; raises `ValueError` when it cannot be cut evenly."""
        if batch % self.count:
            raise ValueError(f"a batch of {batch} cannot be cut among {self.count} processes")
        return batch // self.count


def join(device: str) -> tuple[Ranks, torch.device]:
    """Meet the other processes when there are any, as `torchrun` told them to (environment); -> this one's device.

    Raises `ValueError` when this machine has no such device.
    """
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"torch knows no device {device!r}: take cpu or cuda") from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"{device!r} was asked for, and torch finds no CUDA device here: take cpu")
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        return Ranks(), chosen
    if chosen.type == "cuda":
        chosen = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(chosen)
    dist.init_process_group("cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo")
    return Ranks(dist.get_rank(), dist.get_world_size()), chosen


def leave(ranks: Ranks) -> None:
    if ranks.count > 1:
        dist.destroy_process_group()


def average_gradients(parameters: Iterable[nn.Parameter], ranks: Ranks) -> None:
    """The mean gradient over all ranks, in place; a parameter without one here has none anywhere."""
    if ranks.count == 1:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    for bucket in _buckets(gradients):
        flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
        dist.all_reduce(flat)
        flat /= ranks.count
        parts = flat.split([gradient.numel() for gradient in bucket])
        for gradient, part in zip(bucket, parts, strict=True):
            gradient.copy_(part.view(gradient.shape))


def _buckets(gradients: list[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    size = 0
    for gradient in gradients:
        if bucket and size + gradient.numel() > _BUCKET:
            yield bucket
            bucket, size = [], 0
        bucket.append(gradient)
        size += gradient.numel()
    if bucket:
        yield bucket


def spread(module: nn.Module, ranks: Ranks) -> None:
    """Every rank gets the first one's weights and buffers."""
    if ranks.count > 1:
        for value in module.state_dict().values():
            dist.broadcast(value, 0)


def summed(value: Tensor, ranks: Ranks) -> Tensor:
    """The sum over all ranks, outside of gradients."""
    if ranks.count > 1:
        value = value.clone()
        dist.all_reduce(value)
    return value


class _Together(torch.autograd.Function):
    """All ranks' rows, in order; each rank's own rows get the gradient."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks, ctx.count = ranks, len(rows)
        everyone = [torch.empty_like(rows) for _ in range(ranks.count)]
        dist.all_gather(everyone, rows.contiguous())
        return torch.cat(everyone)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        # Every rank computes the same loss of all the rows, and gradients are averaged: together they are to sum up.
        return gradient[ctx.ranks.rank * ctx.count :][: ctx.count] * ctx.ranks.count, None


def together(rows: Tensor, ranks: Ranks) -> Tensor:
    """`[n, C]` of each rank -> `[count * n, C]` of all, for a loss that is no mean over rows (a correlation)."""
    if ranks.count == 1:
        return rows
    gathered_rows = _Together.apply(rows, ranks)
    assert isinstance(gathered_rows, Tensor)
    return gathered_rows


def largest(values: list[float], ranks: Ranks) -> list[float]:
    """The largest of each number over all ranks: how they agree to stop, to save, and on how far a run has come."""
    if ranks.count == 1:
        return values
    told = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(told, dist.ReduceOp.MAX)
    return told.tolist()


# --- rows of a table, shared out ---


class _Lookup(torch.autograd.Function):
    """Rows of a table whose row i lies with rank i modulo the count; the gradient finds its way back to the owner."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, index: Tensor, ranks: Ranks) -> Tensor:
        everyone = [torch.empty_like(index) for _ in range(ranks.count)]
        dist.all_gather(everyone, index.contiguous())
        asked = torch.cat(everyone)
        mine = asked % ranks.count == ranks.rank
        rows = table.new_zeros(len(asked), table.shape[1])
        rows[mine] = table[asked[mine] // ranks.count]
        dist.all_reduce(rows)
        ctx.save_for_backward(asked[mine] // ranks.count, mine)
        ctx.shape, ctx.ranks = table.shape, ranks
        return rows[ranks.rank * len(index) :][: len(index)].clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        own, mine = ctx.saved_tensors
        everyone = [torch.empty_like(gradient) for _ in range(ctx.ranks.count)]
        dist.all_gather(everyone, gradient.contiguous())
        values = torch.cat(everyone)[mine] / ctx.ranks.count
        return torch.sparse_coo_tensor(own[None], values, ctx.shape, check_invariants=False), None, None


def lookup(table: Tensor, index: Tensor, ranks: Ranks) -> Tensor:
    """Rows `index [n]` of a table `[rows, C]` of which each rank holds every `count`-th row -> `[n, C]`.

    Every rank asks for the same number of rows. The gradient is sparse, and that of the mean of the ranks' losses.
    """
    if ranks.count == 1:
        return nn.functional.embedding(index, table, sparse=True)
    rows = _Lookup.apply(table, index, ranks)
    assert isinstance(rows, Tensor)
    return rows


def gathered(part: Tensor, count: int, ranks: Ranks) -> Tensor:
    """The whole table `[count, C]` out of the ranks' parts."""
    if ranks.count == 1:
        return part
    everyone = [torch.empty_like(part) for _ in range(ranks.count)]
    dist.all_gather(everyone, part.contiguous())
    return torch.stack(everyone, 1).flatten(0, 1)[:count]


def own_part(table: Tensor, ranks: Ranks) -> Tensor:
    """This rank's rows of a whole table, filled up with zeros to the same number on every rank."""
    part = table[ranks.rank :: ranks.count]
    missing = -(-len(table) // ranks.count) - len(part)
    return torch.cat([part, part.new_zeros(missing, *part.shape[1:])]) if missing else part.clone()


# --- batches ---


class Stacked:
    """A collate function: episodes -> their tensors by name, stacked. A dict, since that is what gets pinned."""

    def __init__(self, kind: type) -> None:
        self.names = tuple(kind.__slots__)

    def __call__(self, episodes: Sequence[Any]) -> dict[str, Tensor]:
        return {name: torch.stack([getattr(one, name) for one in episodes]) for name in self.names}


def numbers(batch: int, first: int, ranks: Ranks) -> Iterator[int]:
    """Numbers of the episodes this rank draws, without end, from batch `first` on.

    Batch k is episodes k * batch and following, cut among the ranks in order: together they see what one would.
    """
    share = ranks.share(batch)
    for number in itertools.count(first):
        start = number * batch + ranks.rank * share
        yield from range(start, start + share)


class _Numbers:
    """`numbers` as a sampler that may be asked again."""

    def __init__(self, batch: int, first: int, ranks: Ranks) -> None:
        self.batch, self.first, self.ranks = batch, first, ranks

    def __iter__(self) -> Iterator[int]:
        return numbers(self.batch, self.first, self.ranks)


def _outlast_signals(worker: int) -> None:
    """What stops a whole group of processes (Ctrl-C, a scheduler's SIGTERM) leaves the workers to their parent, which
    saves first; without this a worker's end would end the parent in the middle of a step."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def batches(
    episodes: Dataset[Episode],
    kind: Callable[..., Episode],
    batch: int,
    device: torch.device,
    first: int = 0,
    workers: int = 0,
    ranks: Ranks | None = None,
) -> Iterator[Episode]:
    """This rank's part of each batch, on the device, from number `first` on; `kind` is the episodes' dataclass.

    Towards a GPU the memory is pinned and the next batch is copied on a stream of its own while this one is computed.
    """
    ranks = ranks or Ranks()
    assert isinstance(kind, type)
    if workers:
        cv2.setNumThreads(1)  # a worker that is forked beside OpenCV's threads would wait for them for ever
    loader: DataLoader[Any] = DataLoader(
        episodes,
        ranks.share(batch),
        sampler=_Numbers(batch, first, ranks),
        num_workers=workers,
        collate_fn=Stacked(kind),
        prefetch_factor=4 if workers else None,
        worker_init_fn=_outlast_signals if workers else None,
        pin_memory=device.type == "cuda",
    )
    if device.type == "cuda":
        for tensors in _ahead(iter(loader), device):
            yield kind(**tensors)
    else:
        for tensors in loader:
            yield kind(**{name: value.to(device) for name, value in tensors.items()})


def _ahead(source: Iterator[dict[str, Tensor]], device: torch.device) -> Iterator[dict[str, Tensor]]:
    stream = torch.cuda.Stream(device)
    coming: dict[str, Tensor] | None = None
    for tensors in source:
        ready = coming
        with torch.cuda.stream(stream):
            coming = {name: value.to(device, non_blocking=True) for name, value in tensors.items()}
        if ready is not None:
            yield _handed_over(ready, stream, device)
    if coming is not None:
        yield _handed_over(coming, stream, device)


def _handed_over(tensors: dict[str, Tensor], stream: torch.cuda.Stream, device: torch.device) -> dict[str, Tensor]:
    """Tensors made on `stream`, for use on the present one."""
    now = torch.cuda.current_stream(device)
    now.wait_stream(stream)
    for value in tensors.values():
        value.record_stream(now)
    return tensors
