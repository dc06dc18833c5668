"""The critics: V of Zakharov et al. 2019 with its columns W_i, and a light one for the live generator."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training import ranks as across
from training.networks.paper import DownBlock, Downwards, PaperOptions, full_size, normed, vector
from training.ranks import Ranks


class Discriminator(nn.Module):
    """D(x, y, i) = V(x, y) . (W_i + w0) + b, equation 5; the columns W_i are kept apart (`Columns`).

    V is the embedder's trunk with one more residual block at 4 px. The score is a plain number, for a hinge.
    """

    def __init__(self, options: PaperOptions) -> None:
        super().__init__()
        self.options = options
        width = options.embedding_channels
        self.trunk = Downwards(6, [*options.widths(options.vector_px)[:-1], width], options)
        self.last = DownBlock(width, width, halve=False)
        self.realism = nn.Parameter(torch.randn(width) * 0.02)
        """w0"""
        self.bias = nn.Parameter(torch.zeros(()))
        """b"""

    def forward(self, rgb: Tensor, raster: Tensor, columns: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        """`[N, 3, S, S]` in -1..1, `[N, 3, h, h]` in 0..1 and W_i `[N, E]` -> scores `[N]` and what left each block.

        `columns` is None after enrolment, when `realism` has become w' = w0 + e (section 3.3).
        """
        features = self.trunk(torch.cat([rgb, full_size(raster, self.options.size_px)], 1))
        features.append(self.last(features[-1]))
        weight = self.realism if columns is None else self.realism + columns
        return (vector(features[-1]) * weight).sum(1) + self.bias, features


class Columns(nn.Module):
    """W: one vector for each video of the training set, in memory, each rank holding every `ranks.count`-th.

    Gradients are sparse: with `torch.optim.SparseAdam` a video's moments are its own, and rest while it is not seen.
    """

    def __init__(self, count: int, channels: int, ranks: Ranks | None = None) -> None:
        super().__init__()
        self.count, self.ranks = count, ranks or Ranks()
        # Drawn whole, so that it does not depend on how many share it.
        self.weight = nn.Parameter(across.own_part(torch.randn(count, channels) * 0.02, self.ranks))

    def forward(self, index: Tensor) -> Tensor:
        """`[N]` -> `[N, channels]`; under several ranks all of them call it together."""
        return across.lookup(self.weight, index, self.ranks)


PATCH_GAIN = 8.0
"""The whole is summed over 16 places and speaks loudly; a patch is one of them, and spectral norm keeps it quiet."""


@dataclass(frozen=True, slots=True)
class CriticOptions:
    """Channels of `LiveCritic` at 1/4, 1/8, ... of the picture's side, and of its raster's network."""

    widths: tuple[int, ...] = (48, 96, 160, 192, 256)
    raster_widths: tuple[int, ...] = (32, 64, 96, 128)
    patch_level: int = 2
    """After which of `widths` patches are judged: 16 x 16 of them, each seeing 46 px of 256."""


class Verdict(NamedTuple):
    """What a critic says of N pictures: the higher, the more real."""

    patches: Tensor
    """`[N, S/16, S/16]`"""
    whole: Tensor
    """`[N]`"""
    features: list[Tensor]
    """What left each layer."""


class LiveCritic(nn.Module):
    """A light projection discriminator (Miyato & Koyama 2018) that judges patches and the whole in one pass.

    It works at half the picture's side, yet loses no detail: pixels are folded into channels first. The landmarks'
    raster conditions both judgements by projection: place by place for patches, its pooled vector for the whole.
    """

    def __init__(self, options: CriticOptions | None = None) -> None:
        super().__init__()
        self.options = options = options or CriticOptions()
        wide, level = options.widths, options.patch_level
        kernels = [4 if number <= level else 3 for number in range(len(wide))]
        self.trunk = nn.ModuleList(
            normed(nn.Conv2d(a, b, kernel, 2, 1)) for (a, b), kernel in zip(pairwise([12, *wide]), kernels, strict=True)
        )
        self.raster = nn.ModuleList(normed(nn.Conv2d(a, b, 3, 2, 1)) for a, b in pairwise([12, *options.raster_widths]))
        self.patch_place = normed(nn.Conv2d(options.raster_widths[level - 1], wide[level], 1))
        self.patch_score = normed(nn.Conv2d(wide[level], 1, 1))
        self.whole_place = normed(nn.Linear(options.raster_widths[-1], wide[-1]))
        self.whole_score = normed(nn.Linear(wide[-1], 1))

    def forward(self, rgb: Tensor, raster: Tensor) -> Verdict:
        """`[N, 3, S, S]` in -1..1 and its raster `[N, 3, S/2, S/2]` in 0..1."""
        level = self.options.patch_level
        features: list[Tensor] = []
        seen = F.pixel_unshuffle(rgb, 2)
        for layer in self.trunk:
            seen = F.leaky_relu(layer(seen), 0.2)
            features.append(seen)
        placed: list[Tensor] = []
        drawn = F.pixel_unshuffle(raster, 2)
        for layer in self.raster:
            drawn = F.leaky_relu(layer(drawn), 0.2)
            placed.append(drawn)
        middle = features[level]
        patches = self.patch_score(middle) + (middle * self.patch_place(placed[level - 1])).sum(1, keepdim=True)
        pooled = F.relu(features[-1]).sum((2, 3))
        place = self.whole_place(placed[-1].mean((2, 3)))
        whole = self.whole_score(pooled)[:, 0] + (pooled * place).sum(1)
        return Verdict(PATCH_GAIN * patches[:, 0].float(), whole.float(), features)
