"""Embedder and generator of Zakharov et al. 2019 (arXiv 1905.08233), section 3 and "Implementation details".

Residual blocks as in Brock et al. 2019 (BigGAN), self-attention as in Zhang et al. 2019 (SAGAN), spectral norm on every
convolution and linear layer (Miyato et al. 2018). What the paper leaves open is said where it is decided. The third
network, V, is in `training.networks.discriminator` and made of the same blocks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm

from training.networks.live import adain

Layer = TypeVar("Layer", nn.Conv2d, nn.Linear)
Network = TypeVar("Network", bound=nn.Module)

_EPSILON = 1e-4


@dataclass(frozen=True, slots=True)
class PaperOptions:
    """Sizes of the three networks; the defaults are the paper's, small ones serve the tests."""

    size_px: int = 256
    least_channels: int = 64
    most_channels: int = 512
    embedding_channels: int = 512
    """N: of the person's vector, of V's output and of a column W_i."""
    bottleneck_px: int = 16
    vector_px: int = 4
    """Where embedder and discriminator stop halving and sum."""
    residual_blocks: int = 5
    """At the bottleneck; not said in the paper: with five the generator has its 38 M parameters."""
    attention_down_px: int = 32
    attention_up_px: int = 64

    def widths(self, until_px: int) -> list[int]:
        """Channels after each halving from `size_px` down to `until_px`."""
        count = int(math.log2(self.size_px // until_px))
        if self.size_px != until_px << count or count < 1:
            raise ValueError(f"{self.size_px} px cannot be halved down to {until_px} px")
        return [min(self.least_channels << step, self.most_channels) for step in range(count)]


def normed(layer: Layer) -> Layer:
    """The layer under spectral norm, begun orthogonal as in BigGAN: what passes through many of them does not fade."""
    nn.init.orthogonal_(layer.weight)
    return spectral_norm(layer, eps=_EPSILON)  # type: ignore[return-value]  # the layer itself comes back


def fold(network: Network) -> Network:
    """Spectral norm worked into the weights, in place: the same pictures for less time; no training after it."""
    for module in list(network.modules()):
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight")
    return network


def _conv(inputs: int, outputs: int, kernel: int = 3) -> nn.Conv2d:
    return normed(nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2))


def full_size(raster: Tensor, size_px: int) -> Tensor:
    """A raster `[N, 3, h, h]` (128 px as the engine draws it) at the networks' own size."""
    return F.interpolate(raster, size=(size_px, size_px), mode="bilinear", align_corners=False)


class SelfAttention(nn.Module):
    """SAGAN, section 3, as BigGAN has it: keys and values at half the size, a gate that starts shut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        narrow, half = max(channels // 8, 1), max(channels // 2, 1)
        self.query, self.key = _conv(channels, narrow, 1), _conv(channels, narrow, 1)
        self.value, self.leave = _conv(channels, half, 1), _conv(half, channels, 1)
        self.gate = nn.Parameter(torch.zeros(()))

    def forward(self, features: Tensor) -> Tensor:
        query = self.query(features).flatten(2)
        key = F.max_pool2d(self.key(features), 2).flatten(2)
        value = F.max_pool2d(self.value(features), 2).flatten(2)
        share = torch.softmax(query.transpose(1, 2).float() @ key.float(), -1).to(value.dtype)
        seen = (value @ share.transpose(1, 2)).unflatten(2, features.shape[2:])
        return features + self.gate.to(features.dtype) * self.leave(seen)


class DownBlock(nn.Module):
    """A residual block that halves the size (BigGAN, figure 15c), with instance norm where the generator wants it."""

    def __init__(self, inputs: int, outputs: int, first: bool = False, norm: bool = False, halve: bool = True) -> None:
        super().__init__()
        self.first, self.halve = first, halve
        # Nothing is normalised or rectified before the first convolution: it sees the picture itself.
        self.norms = nn.ModuleList(
            nn.InstanceNorm2d(width, affine=True) if norm and wanted else nn.Identity()
            for width, wanted in ((inputs, not first), (outputs, True))
        )
        self.enter, self.leave = _conv(inputs, outputs), _conv(outputs, outputs)
        self.skip = _conv(inputs, outputs, 1) if halve or inputs != outputs else nn.Identity()

    def forward(self, features: Tensor) -> Tensor:
        inner = features if self.first else F.relu(self.norms[0](features))
        inner = self.leave(F.relu(self.norms[1](self.enter(inner))))
        if not self.halve:
            return self.skip(features) + inner
        # Averaging before the 1x1 convolution of the skip gives the same numbers for a quarter of the work.
        return self.skip(F.avg_pool2d(features, 2)) + F.avg_pool2d(inner, 2)


class Downwards(nn.Module):
    """The downsampling half of all three networks: blocks, and attention at one size."""

    def __init__(self, inputs: int, widths: list[int], options: PaperOptions, norm: bool = False) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            DownBlock(a, b, first=number == 0, norm=norm) for number, (a, b) in enumerate(pairwise([inputs, *widths]))
        )
        self.attention = nn.ModuleDict()
        for number, width in enumerate(widths):
            if options.size_px >> (number + 1) == options.attention_down_px:
                self.attention[str(number)] = SelfAttention(width)

    def forward(self, features: Tensor) -> list[Tensor]:
        """-> what leaves each block."""
        left: list[Tensor] = []
        for number, block in enumerate(self.blocks):
            features = block(features)
            if str(number) in self.attention:
                features = self.attention[str(number)](features)
            left.append(features)
        return left


def vector(features: Tensor) -> Tensor:
    """`[N, C, h, w]` -> `[N, C]`: "global sum pooling over spatial dimensions followed by ReLU"; in float32."""
    return F.relu(features.sum((2, 3), dtype=torch.float32))


class Embedder(nn.Module):
    """E(x, y): a frame and its raster -> the person's vector; six blocks down to 4 px."""

    def __init__(self, options: PaperOptions) -> None:
        super().__init__()
        self.options = options
        widths = [*options.widths(options.vector_px)[:-1], options.embedding_channels]
        self.trunk = Downwards(6, widths, options)

    def forward(self, pictures: Tensor, rasters: Tensor) -> Tensor:
        """`[N, K, 3, S, S]` in -1..1 and `[N, K, 3, h, h]` in 0..1 -> the mean over the K frames, `[N, E]`."""
        raster = full_size(rasters.flatten(0, 1), self.options.size_px)
        features = self.trunk(torch.cat([pictures.flatten(0, 1), raster], 1))[-1]
        return vector(features).unflatten(0, pictures.shape[:2]).mean(1)


class AdaptiveBlock(nn.Module):
    """A residual block whose two instance norms take their scale and shift from the person (AdaIN); may double."""

    def __init__(self, inputs: int, outputs: int, doubles: bool) -> None:
        super().__init__()
        self.doubles = doubles
        self.counts = [inputs, inputs, outputs, outputs]
        self.enter, self.leave = _conv(inputs, outputs), _conv(outputs, outputs)
        self.skip = _conv(inputs, outputs, 1) if doubles else nn.Identity()

    def forward(self, features: Tensor, coefficients: Tensor) -> Tensor:
        scale1, shift1, scale2, shift2 = coefficients.to(features.dtype).split(self.counts, 1)
        inner = F.relu(adain(features, scale1, shift1))
        skip = self.skip(features)
        if self.doubles:
            inner, skip = F.interpolate(inner, scale_factor=2.0), F.interpolate(skip, scale_factor=2.0)
        inner = self.enter(inner)
        return skip + self.leave(F.relu(adain(inner, scale2, shift2)))


class Generator(nn.Module):
    """G(y, e): a raster -> a picture, through instance-normed blocks down and adaptive ones up.

    `project` is the matrix P: one product gives every AdaIN coefficient. As in `training.networks.live` a scale is
    kept as its difference from one.
    """

    def __init__(self, options: PaperOptions) -> None:
        super().__init__()
        self.options = options
        down = options.widths(options.bottleneck_px)
        deep = down[-1]
        self.down = Downwards(3, down, options, norm=True)
        self.deep = nn.ModuleList(AdaptiveBlock(deep, deep, doubles=False) for _ in range(options.residual_blocks))
        up = [deep, *reversed(down[:-1]), options.least_channels]
        self.up = nn.ModuleList(AdaptiveBlock(a, b, doubles=True) for a, b in pairwise(up))
        self.attention = nn.ModuleDict()
        for number, width in enumerate(up[1:]):
            if options.bottleneck_px << (number + 1) == options.attention_up_px:
                self.attention[str(number)] = SelfAttention(width)
        self.output = _conv(up[-1], 3)
        blocks = [*self.deep, *self.up]
        self.counts = [sum(block.counts) for block in blocks if isinstance(block, AdaptiveBlock)] + [2 * up[-1]]
        self.projection = normed(nn.Linear(options.embedding_channels, sum(self.counts), bias=False))

    def project(self, embedding: Tensor) -> Tensor:
        """`[N, E]` -> psi = P e, every AdaIN coefficient, `[N, M]`."""
        return self.projection(embedding).float()

    def forward(self, raster: Tensor, coefficients: Tensor) -> Tensor:
        """`[N, 3, h, h]` in 0..1 and psi `[N, M]` -> `[N, 3, S, S]` in -1..1."""
        features = self.down(full_size(raster, self.options.size_px))[-1]
        parts = coefficients.split(self.counts, 1)
        count = len(self.deep)
        for block, part in zip(self.deep, parts[:count], strict=True):
            features = block(features, part)
        for number, (block, part) in enumerate(zip(self.up, parts[count:-1], strict=True)):
            features = block(features, part)
            if str(number) in self.attention:
                features = self.attention[str(number)](features)
        scale, shift = parts[-1].to(features.dtype).chunk(2, 1)
        return torch.tanh(self.output(F.relu(adain(features, scale, shift))).float())
