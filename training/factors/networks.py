"""The networks of Wang et al. 2023 (section 3.1): appearance and motion encoders, audio encoder, generator, critic.

Sizes follow the authors' release, as far as it tells: ResNeXt-50 for the appearance, a face alignment network with one
hourglass for the motion, a squeeze-and-excitation ResNet-34 for the sound, a StyleGAN2 generator, codes of 500, 30, 6
and 6 numbers. Chosen here, since neither paper nor release says or since it serves training: group and layer norm
instead of batch norm (a code never depends on who else is in the batch, and many processes learn what one would), no
noise in the generator (a call must not flicker), codes of lips and eyes at unit mean square (what a cosine compares),
one embedding from lip feature to lip code for picture and sound alike, and the critic's widths. What batch norm did for
the heads is done once: before stage 2 the frozen trunk's feature is centred and scaled (`Codes.calibrate`), since codes
that share most of what they say can hardly be told apart by a cosine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.factors.audio import COLUMNS, MEL_BANDS


@dataclass(frozen=True, slots=True)
class FactorOptions:
    """Sizes of all networks; the defaults are the paper's, as released."""

    size_px: int = 224
    start_px: int = 7
    """Side of the map that the generator begins with, and the appearance encoder ends with."""
    lip: int = 500
    expression: int = 30
    eye: int = 6
    pose: int = 6
    feature: int = 512
    """Of the unified motion feature of stage 1, of each factor's own feature, and of the sound's."""
    appearance: int = 2048
    appearance_blocks: tuple[int, ...] = (3, 4, 6, 3)
    appearance_width: int = 64
    """Channels after the first convolution."""
    cardinality: int = 32
    alignment_channels: int = 256
    """Of the hourglass."""
    heatmaps: int = 68
    hourglass_depth: int = 3
    audio_blocks: tuple[int, ...] = (3, 4, 6, 3)
    audio_widths: tuple[int, ...] = (32, 64, 128, 256)
    most_channels: int = 512
    least_channels: int = 128
    """Of the generator, at full size; they double on the way down to `start_px`, up to `most_channels`."""
    critic_channels: int = 64
    critic_scales: int = 2
    critic_layers: int = 3
    reader_width: int = 32
    reader_feature: int = 256

    def __post_init__(self) -> None:
        if self.size_px != self.start_px << self.doublings or self.doublings < 2:
            raise ValueError(f"size_px = {self.size_px} must be start_px = {self.start_px} times 4, 8, 16 ...")

    @property
    def doublings(self) -> int:
        return round(math.log2(self.size_px / self.start_px))

    @property
    def codes(self) -> int:
        """Numbers that say all of a face's motion."""
        return self.lip + self.expression + self.eye + self.pose


def _norm(channels: int) -> nn.GroupNorm:
    groups = min(32, channels // 4) or 1
    return nn.GroupNorm(math.gcd(groups, channels), channels)


def _conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)


def unit(code: Tensor) -> Tensor:
    """`[..., C]` -> the same direction, mean square one."""
    return F.normalize(code.float(), dim=-1) * math.sqrt(code.shape[-1])


# --- appearance ---------------------------------------------------------------------------------------------


class _Grouped(nn.Module):
    """ResNeXt's bottleneck (Xie et al. 2017, figure 3c)."""

    def __init__(self, inputs: int, inner: int, outputs: int, stride: int, groups: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            _conv(inputs, inner, 1),
            _norm(inner),
            nn.ReLU(),
            _conv(inner, inner, 3, stride, groups),
            _norm(inner),
            nn.ReLU(),
            _conv(inner, outputs, 1),
            _norm(outputs),
        )
        same = stride == 1 and inputs == outputs
        self.skip = nn.Identity() if same else nn.Sequential(_conv(inputs, outputs, 1, stride), _norm(outputs))

    def forward(self, features: Tensor) -> Tensor:
        return F.relu(self.skip(features) + self.inner(features))


class ResNeXt(nn.Module):
    """`[N, 3, S, S]` -> a map `[N, 32 * width, S/32, S/32]` (with four stages); 32x4d where width and groups are."""

    def __init__(self, blocks: tuple[int, ...], width: int, groups: int) -> None:
        super().__init__()
        self.enter = nn.Sequential(_conv(3, width, 7, 2), _norm(width), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
        layers: list[nn.Module] = []
        channels = width
        for stage, count in enumerate(blocks):
            inner = 2 * width << stage
            for number in range(count):
                stride = 2 if stage and not number else 1
                layers.append(_Grouped(channels, inner, 2 * inner, stride, math.gcd(groups, inner)))
                channels = 2 * inner
        self.layers = nn.Sequential(*layers)
        self.channels = channels

    def forward(self, rgb: Tensor) -> Tensor:
        return self.layers(self.enter(rgb))


class AppearanceEncoder(nn.Module):
    """E_app: K frames of somebody -> who is to be seen, whatever the face does: a vector and a map, means over K."""

    def __init__(self, options: FactorOptions) -> None:
        super().__init__()
        self.start_px = options.start_px
        self.trunk = ResNeXt(options.appearance_blocks, options.appearance_width, options.cardinality)
        self.vector = nn.Linear(self.trunk.channels, options.appearance)
        self.map = nn.Conv2d(self.trunk.channels, options.most_channels, 1)

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """`[N, K, 3, S, S]` in -1..1 -> `[N, appearance]` and `[N, most_channels, start_px, start_px]`."""
        seen = self.trunk(pictures.flatten(0, 1))
        vector = self.vector(seen.mean((2, 3))).unflatten(0, pictures.shape[:2]).mean(1)
        placed = self.map(F.adaptive_avg_pool2d(seen, self.start_px)).unflatten(0, pictures.shape[:2]).mean(1)
        return vector, placed


# --- motion -------------------------------------------------------------------------------------------------


class _Branched(nn.Module):
    """The residual block of Bulat & Tzimiropoulos 2017 (figure 2b): three convolutions, each seen at the end."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        widths = (outputs // 2, outputs // 4, outputs - outputs // 2 - outputs // 4)
        self.parts = nn.ModuleList(
            nn.Sequential(_norm(a), nn.ReLU(), _conv(a, b)) for a, b in pairwise([inputs, *widths])
        )
        self.skip = nn.Identity() if inputs == outputs else _conv(inputs, outputs, 1)

    def forward(self, features: Tensor) -> Tensor:
        seen, left = features, []
        for part in self.parts:
            seen = part(seen)
            left.append(seen)
        return torch.cat(left, 1) + self.skip(features)


class _Hourglass(nn.Module):
    """Newell et al. 2016, with blocks of the above."""

    def __init__(self, depth: int, channels: int) -> None:
        super().__init__()
        self.beside, self.down, self.up = (_Branched(channels, channels) for _ in range(3))
        self.inner = _Hourglass(depth - 1, channels) if depth > 1 else _Branched(channels, channels)

    def forward(self, features: Tensor) -> Tensor:
        seen = self.up(self.inner(self.down(F.avg_pool2d(features, 2))))
        return self.beside(features) + F.interpolate(seen, size=features.shape[2:])


class MotionTrunk(nn.Module):
    """E_mot of stage 1: a face -> the unified motion feature `[N, feature]`.

    A face alignment network whose heatmaps become one map, and that a vector: little of how somebody looks gets through
    (Zhou et al. 2021, PC-AVS, from whom the release takes it).
    """

    def __init__(self, options: FactorOptions) -> None:
        super().__init__()
        wide = options.alignment_channels
        self.enter = nn.Sequential(
            nn.Conv2d(3, wide // 4, 7, 2, 3),
            _norm(wide // 4),
            nn.ReLU(),
            _Branched(wide // 4, wide // 2),
            nn.AvgPool2d(2),
            _Branched(wide // 2, wide // 2),
            _Branched(wide // 2, wide),
        )
        self.hourglass = _Hourglass(options.hourglass_depth, wide)
        self.leave = nn.Sequential(
            _Branched(wide, wide),
            nn.Conv2d(wide, wide, 1),
            _norm(wide),
            nn.ReLU(),
            nn.Conv2d(wide, options.heatmaps, 1),
            nn.GroupNorm(1, options.heatmaps),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(options.heatmaps, 1, 3, 1, 1),
        )
        self.vector = nn.Linear((options.size_px // 8) ** 2, options.feature)

    def forward(self, rgb: Tensor) -> Tensor:
        return self.vector(self.leave(self.hourglass(self.enter(rgb))).flatten(1))


class Head(nn.Module):
    """One factor out of the unified feature: its own feature `[N, feature]`, and from that its code."""

    def __init__(self, feature: int, code: int, normed: bool) -> None:
        super().__init__()
        self.feature = nn.Sequential(
            nn.Linear(feature, feature), nn.ReLU(), nn.LayerNorm(feature), nn.Linear(feature, feature)
        )
        self.embed = nn.Sequential(nn.ReLU(), nn.Linear(feature, code))
        self.normed = normed

    def forward(self, unified: Tensor) -> tuple[Tensor, Tensor]:
        feature = self.feature(unified)
        return feature, self.code(feature)

    def code(self, feature: Tensor) -> Tensor:
        code = self.embed(feature)
        return unit(code) if self.normed else code


# --- sound --------------------------------------------------------------------------------------------------


class _Excited(nn.Module):
    """Squeeze and excitation (Hu et al. 2018) on a ResNet block."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            _conv(inputs, outputs, 3, stride), _norm(outputs), nn.ReLU(), _conv(outputs, outputs), _norm(outputs)
        )
        narrow = max(outputs // 8, 4)
        self.gate = nn.Sequential(nn.Linear(outputs, narrow), nn.ReLU(), nn.Linear(narrow, outputs), nn.Sigmoid())
        same = stride == 1 and inputs == outputs
        self.skip = nn.Identity() if same else nn.Sequential(_conv(inputs, outputs, 1, stride), _norm(outputs))

    def forward(self, features: Tensor) -> Tensor:
        inner = self.inner(features)
        return F.relu(inner * self.gate(inner.mean((2, 3)))[..., None, None] + self.skip(features))


class AudioEncoder(nn.Module):
    """0.2 s of mel -> the sound's feature `[N, feature]`, in which the lips' own feature is looked for (section 3.3).

    What is left of the spectrogram goes on flattened, not pooled: when something is heard matters here.
    """

    def __init__(self, options: FactorOptions) -> None:
        super().__init__()
        widths = options.audio_widths
        layers: list[nn.Module] = [_conv(1, widths[0]), _norm(widths[0]), nn.ReLU()]
        channels, rows, columns = widths[0], MEL_BANDS, COLUMNS
        for stage, (width, count) in enumerate(zip(widths, options.audio_blocks, strict=True)):
            for number in range(count):
                stride = 2 if stage and not number else 1
                layers.append(_Excited(channels, width, stride))
                channels, rows, columns = width, -(-rows // stride), -(-columns // stride)
        self.layers = nn.Sequential(*layers)
        self.vector = nn.Linear(channels * rows * columns, options.feature)

    def forward(self, mel: Tensor) -> Tensor:
        """`[N, 1, MEL_BANDS, COLUMNS]`"""
        return self.vector(self.layers(mel).flatten(1))


# --- pictures -----------------------------------------------------------------------------------------------


class _Modulated(nn.Module):
    """StyleGAN2's modulated convolution (Karras et al. 2020, equations 1 to 3), written as scaling before and after."""

    def __init__(self, inputs: int, outputs: int, kernel: int, style: int, demodulate: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel) / math.sqrt(inputs * kernel**2))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.scale = nn.Linear(style, inputs)
        nn.init.normal_(self.scale.weight, std=1 / math.sqrt(style))
        nn.init.ones_(self.scale.bias)
        self.demodulate = demodulate

    def forward(self, features: Tensor, style: Tensor) -> Tensor:
        scale = self.scale(style)
        drawn = F.conv2d(features * scale[..., None, None].to(features.dtype), self.weight, padding="same")
        if self.demodulate:
            power = scale.float().square() @ self.weight.float().square().sum((2, 3)).T
            drawn = drawn * (power + 1e-8).rsqrt()[..., None, None].to(drawn.dtype)
        return drawn + self.bias.to(drawn.dtype)[:, None, None]


def _twice(features: Tensor) -> Tensor:
    return F.interpolate(features, scale_factor=2.0, mode="bilinear", align_corners=False)


class Generator(nn.Module):
    """G0 and G: StyleGAN2's synthesis, every layer told all of appearance and motion; no mapping network, no noise.

    It begins with the appearance's map instead of a constant.
    """

    def __init__(self, options: FactorOptions, motion: int) -> None:
        super().__init__()
        style, count = options.appearance + motion, options.doublings
        widths = [min(options.least_channels << (count - step), options.most_channels) for step in range(count + 1)]
        self.first = _Modulated(options.most_channels, widths[0], 3, style)
        self.layers = nn.ModuleList(
            nn.ModuleList([_Modulated(a, b, 3, style), _Modulated(b, b, 3, style)]) for a, b in pairwise(widths)
        )
        colours = [_Modulated(width, 3, 1, style, demodulate=False) for width in widths]
        for colour, width in zip(colours, widths, strict=True):
            nn.init.normal_(colour.weight, std=0.1 / math.sqrt(width))  # grey: far from where tanh dies
        self.colours = nn.ModuleList(colours)

    def forward(self, appearance: tuple[Tensor, Tensor], motion: Tensor) -> Tensor:
        """What `AppearanceEncoder` returns, and `[N, motion]` -> `[N, 3, S, S]` in -1..1."""
        vector, placed = appearance
        style = torch.cat([vector, motion.to(vector.dtype)], 1)
        features = self._act(self.first(placed, style))
        rgb = self.colours[0](features, style)
        for (grow, refine), colour in zip(self.layers, self.colours[1:], strict=True):  # pyright: ignore[reportGeneralTypeIssues]
            features = self._act(grow(_twice(features), style))
            features = self._act(refine(features, style))
            rgb = _twice(rgb) + colour(features, style)
        return torch.tanh(rgb.float())

    @staticmethod
    def _act(features: Tensor) -> Tensor:
        return F.leaky_relu(features, 0.2) * math.sqrt(2)


class Critic(nn.Module):
    """Patches judged at several scales (Wang et al. 2018, pix2pixHD, section 3.2): scores and features of each."""

    def __init__(self, options: FactorOptions) -> None:
        super().__init__()
        widths = [min(options.critic_channels << step, 512) for step in range(options.critic_layers)]
        self.scales = nn.ModuleList()
        for _ in range(options.critic_scales):
            layers = [nn.Conv2d(a, b, 4, 2, 1) for a, b in pairwise([3, *widths])]
            layers += [nn.Conv2d(widths[-1], widths[-1], 3, 1, 1), nn.Conv2d(widths[-1], 1, 3, 1, 1)]
            self.scales.append(nn.ModuleList(nn.utils.parametrizations.spectral_norm(layer) for layer in layers))

    def forward(self, rgb: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """`[N, 3, S, S]` -> the scores of each scale, and what left each layer but the last."""
        scores: list[Tensor] = []
        features: list[Tensor] = []
        for layers in self.scales:
            seen = rgb
            *before, last = layers  # pyright: ignore[reportGeneralTypeIssues]
            for layer in before:
                seen = F.leaky_relu(layer(seen), 0.2)
                features.append(seen)
            scores.append(last(seen).float())
            rgb = F.avg_pool2d(rgb, 2)
        return scores, features


# --- all of it ----------------------------------------------------------------------------------------------


class Codes(nn.Module):
    """The factors of a face: E_mot's trunk with a head for each, and the sound's way to the lips' code."""

    def __init__(self, options: FactorOptions) -> None:
        super().__init__()
        self.trunk = MotionTrunk(options)
        self.lip = Head(options.feature, options.lip, normed=True)
        self.eye = Head(options.feature, options.eye, normed=True)
        self.pose = Head(options.feature, options.pose, normed=False)
        self.expression = Head(options.feature, options.expression, normed=False)
        self.audio = AudioEncoder(options)
        self.register_buffer("centre", torch.zeros(options.feature))
        self.register_buffer("spread", torch.ones(options.feature))

    @torch.no_grad()
    def calibrate(self, frames: Tensor) -> None:
        """Mean and deviation of the unified feature over many frames `[N, 3, S, S]`; the trunk rests from here on."""
        features = torch.cat([self.trunk(part).float() for part in frames.split(16)])
        self.centre = features.mean(0)
        self.spread = features.std(0).clamp(min=1e-6)

    def unified(self, rgb: Tensor) -> Tensor:
        """`[N, 3, S, S]` -> what the heads take, `[N, feature]`."""
        return (self.trunk(rgb) - self.get_buffer("centre")) / self.get_buffer("spread")

    def spoken(self, mel: Tensor) -> tuple[Tensor, Tensor]:
        """Feature and lip code of a sound `[N, 1, MEL_BANDS, COLUMNS]`."""
        feature = self.audio(mel)
        return feature, self.lip.code(feature)

    def window_expression(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Frames `[N, W, 3, S, S]` around a moment -> its feature and expression code: the means over the window.

        In-window decorrelation (section 3.4): what passes within the window, lips and lids, cannot be told by them.
        """
        feature, code = self.expression(self.unified(frames.flatten(0, 1)))
        feature, code = (one.unflatten(0, frames.shape[:2]).mean(1) for one in (feature, code))
        return feature, code


class Factors(nn.Module):
    """Everything but the critic and the face reader."""

    def __init__(self, options: FactorOptions) -> None:
        super().__init__()
        self.options = options
        self.appearance = AppearanceEncoder(options)
        self.codes = Codes(options)
        self.draft = Generator(options, options.feature)
        """G0, of stage 1: told the unified motion feature."""
        self.generator = Generator(options, options.codes)
        """G, of stage 3: told lip, expression, eye and pose codes, in this order."""

    def sketch(self, pictures: Tensor, driver: Tensor) -> Tensor:
        """Stage 1: `[N, K, 3, S, S]` of somebody and `[N, 3, S, S]` whose motion is wanted -> the picture."""
        return self.draft(self.appearance(pictures), self.codes.trunk(driver))

    def draw(self, pictures: Tensor, lip: Tensor, expression: Tensor, eye: Tensor, pose: Tensor) -> Tensor:
        """Stage 3: each code from wherever it comes -> the picture."""
        return self.generator(self.appearance(pictures), torch.cat([lip, expression, eye, pose], 1))
