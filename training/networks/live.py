"""The live generator: four references, one raster and a few maps in, one picture with alpha out.

It follows the warping-and-inpainting line (Siarohin et al. 2019, FOMM; Zakharov et al. 2020, bilayer), with the maps
fitted in closed form from landmarks (`engine.geometry`) instead of learned keypoints, and the person's embedding
applied through AdaIN (Huang & Belongie 2017; Zakharov et al. 2019, section 3.1).

Slot A is one reference of the whole picture. Slot B is a second one made of zones (rest, eyes, mouth), each from the
reference that fits it best, so that the picture costs two references however many were enrolled. The four of them
(A, rest, eyes, mouth) lie above each other in one *atlas*, so that every warp is a single 4-D grid_sample.

What depends on the person alone (`encode`, `modulate`) runs once; `forward` is what a call runs per frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.geometry import DETAIL_COUNT, MAP_COUNT

TILES = 4
TRUST = 4.0
"""What a `detail` of 2 instead of 1 adds to the logit of slot B."""
TUNED = ("rise.weight", "rise.bias", "head.weight", "head.bias", "output.weight", "output.bias")
TUNED += ("motion.leave.weight", "motion.leave.bias")
"""What an avatar brings along beside its modulation: the layers that turn features into pixels and motion (50 k)."""
PICTURE_CHANNELS = 4
"""Red, green, blue in -1..1 and the matte in 0..1."""


@dataclass(frozen=True, slots=True)
class LiveOptions:
    """Sizes of the network; `tiny` ones serve the tests."""

    size_px: int = 256
    feature_channels: int = 48
    body_channels: int = 64
    deep_channels: int = 128
    motion_channels: int = 32
    head_channels: int = 48
    embedding_channels: int = 256


class Drawn(NamedTuple):
    """One frame of the generator, S = `size_px`."""

    rgb: Tensor
    """`[N, 3, S, S]` in -1..1: the picture at the network's own size."""
    matte: Tensor
    """`[N, 1, S, S]` in 0..1."""
    flow: Tensor
    """`[N, 2, 2, S/4, S/4]`: slot, (x, y); where each slot looks, crop units of its own reference."""
    weight: Tensor
    """`[N, 3, S, S]`: shares of slot A, slot B and the synthesised picture; they sum to one."""
    synthesised: Tensor
    """`[N, 3, S, S]` in -1..1."""
    looks: Tensor
    """`[N, 2, 3, S, S]`: what the two slots contribute, before they are weighed."""


def _conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2)


def _down(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(_conv(inputs, outputs, stride=2), nn.ReLU(inplace=True))


class Embedder(nn.Module):
    """E(x, y) of Zakharov et al. 2019, small: frame and raster -> the person's vector, the mean over the references."""

    def __init__(self, options: LiveOptions) -> None:
        super().__init__()
        widths = [6, 32, 64, 96, 128, options.embedding_channels]
        self.blocks = nn.Sequential(*[_down(a, b) for a, b in pairwise(widths)])

    def forward(self, rgb: Tensor, raster: Tensor) -> Tensor:
        """`[N, 3, 128, 128]` in -1..1 and `[N, 3, 128, 128]` in 0..1 -> `[N, embedding_channels]`."""
        features = self.blocks(torch.cat([rgb, raster], 1))
        return F.relu(features.float().sum((2, 3)) / 16)


class ReferenceEncoder(nn.Module):
    """A reference's picture, matte and raster -> its features at a quarter of the size."""

    def __init__(self, options: LiveOptions) -> None:
        super().__init__()
        wide = options.feature_channels
        self.blocks = nn.Sequential(
            nn.PixelUnshuffle(2),
            _conv(4 * PICTURE_CHANNELS + 3, wide),
            nn.ReLU(inplace=True),
            _down(wide, wide),
            _conv(wide, wide),
        )

    def forward(self, picture: Tensor, raster: Tensor) -> Tensor:
        """`[N, 4, S, S]` and `[N, 3, S/2, S/2]` -> `[N, feature_channels, S/4, S/4]`."""
        return self.blocks[1:](torch.cat([self.blocks[0](picture), raster], 1))


class MotionNet(nn.Module):
    """A U-Net that weighs the maps against each other and adds what they leave over."""

    def __init__(self, options: LiveOptions) -> None:
        super().__init__()
        w = options.motion_channels
        count = MAP_COUNT + DETAIL_COUNT
        self.enter = nn.Sequential(_conv(count * PICTURE_CHANNELS + 12 + 3 + 1 + 3, w), nn.ReLU(inplace=True))
        self.down1, self.down2, self.down3 = _down(w, 2 * w), _down(2 * w, 3 * w), _down(3 * w, 4 * w)
        self.up3 = nn.Sequential(_conv(4 * w, 3 * w), nn.ReLU(inplace=True))
        self.up2 = nn.Sequential(_conv(3 * w, 2 * w), nn.ReLU(inplace=True))
        self.up1 = nn.Sequential(_conv(2 * w, w), nn.ReLU(inplace=True))
        self.leave = _conv(w, count + 4)

    def forward(self, seen: Tensor, leave: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Masks and residual flow; `leave` are weight and bias of the last layer.

        -> masks of slot A `[N, MAP_COUNT, h, w]`, of slot B `[N, DETAIL_COUNT, h, w]`, residual `[N, 4, h, w]`.
        """
        first = self.enter(seen)
        second = self.down1(first)
        third = self.down2(second)
        deep = self.up3(F.interpolate(self.down3(third), scale_factor=2.0)) + third
        deep = self.up2(F.interpolate(deep, scale_factor=2.0)) + second
        deep = self.up1(F.interpolate(deep, scale_factor=2.0)) + first
        leaving = F.conv2d(deep, leave[0], leave[1], padding=1).float()
        masks_a = leaving[:, :MAP_COUNT].softmax(1)
        masks_b = leaving[:, MAP_COUNT : MAP_COUNT + DETAIL_COUNT].softmax(1)
        return masks_a, masks_b, 0.2 * torch.tanh(0.25 * leaving[:, MAP_COUNT + DETAIL_COUNT :])


def adain(features: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """AdaIN with the person's own scale and shift (`[N, C]`; stored as a difference from one)."""
    return F.instance_norm(features) * (1 + scale[..., None, None]) + shift[..., None, None]


class AdaptiveBlock(nn.Module):
    """A residual block whose two normalisations take 4 C numbers from the person's modulation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = _conv(channels, channels), _conv(channels, channels)
        self.modulation_count = 4 * channels

    def forward(self, features: Tensor, modulation: Tensor) -> Tensor:
        scale1, shift1, scale2, shift2 = modulation.to(features.dtype).chunk(4, 1)
        inner = self.first(F.relu(adain(features, scale1, shift1)))
        return features + self.second(F.relu(adain(inner, scale2, shift2)))


def atlas(tensor: Tensor) -> Tensor:
    """`[N, 4, C, h, w]` -> `[N, C, 4 h, w]`."""
    n, tiles, channels, height, width = tensor.shape
    return tensor.transpose(1, 2).reshape(n, channels, tiles * height, width)


def atlas_grid(x: Tensor, y: Tensor, tile: Tensor | float, height: int) -> Tensor:
    """Crop units of one tile -> sampling grid of the atlas, clamped so that no sample reaches into the next tile."""
    edge = 1 - 1 / height
    inside = (y.clamp(-edge, edge) + 1) / 2
    return torch.stack([x, (inside + tile) * (2 / TILES) - 1], -1)


def thumbnail(tensor: Tensor, size_px: int) -> Tensor:
    """`[..., C, H, W]` -> `[..., C, size_px, size_px]`, by area."""
    small = F.interpolate(tensor.flatten(0, -4) if tensor.dim() > 4 else tensor, size=(size_px, size_px), mode="area")
    return small.unflatten(0, tensor.shape[:-3]) if tensor.dim() > 4 else small


def sample(tensor: Tensor, grid: Tensor) -> Tensor:
    """Bilinear, clamped at the border."""
    tensor = tensor if tensor.dtype == torch.float32 else tensor.float()
    return F.grid_sample(tensor, grid, mode="bilinear", padding_mode="border", align_corners=False)


class LiveGenerator(nn.Module):
    """The network of a call (see the module's own words)."""

    def __init__(self, options: LiveOptions | None = None) -> None:
        super().__init__()
        self.options = options = options or LiveOptions()
        body, deep = options.body_channels, options.deep_channels
        self.embedder = Embedder(options)
        self.reference_encoder = ReferenceEncoder(options)
        self.motion = MotionNet(options)
        self.enter = _conv(2 * options.feature_channels + 12 + 2, body)
        blocks = [AdaptiveBlock(body), AdaptiveBlock(deep), AdaptiveBlock(deep), AdaptiveBlock(body)]
        self.blocks = nn.ModuleList(blocks)
        self.down = _down(body, deep)
        self.up = _conv(deep, body)
        self.rise = _conv(body, 4 * 24, 1)
        self.head = _conv(24 + 2 * 4 * PICTURE_CHANNELS + 3 + 1, options.head_channels)
        self.output = _conv(options.head_channels, 4 * 7)
        self.modulation_counts = [block.modulation_count for block in blocks]
        self.projection = nn.Linear(options.embedding_channels, sum(self.modulation_counts))
        nn.init.normal_(self.projection.weight, std=0.01)
        nn.init.zeros_(self.projection.bias)
        nn.init.zeros_(self.motion.leave.weight)
        with torch.no_grad():
            leaning = self.get_parameter("motion.leave.bias").zero_()
            leaning[MAP_COUNT - 2 : MAP_COUNT] += 1.5
            nn.init.zeros_(self.get_parameter("output.bias"))
            self.output.weight.mul_(0.3)

    def options_dict(self) -> dict[str, int]:
        return asdict(self.options)

    def tuned_weights(self) -> list[Tensor]:
        """The base's own weights of the layers an avatar brings along, in the order of `TUNED`."""
        return [self.get_parameter(name) for name in TUNED]

    def encode(self, pictures: Tensor, rasters: Tensor) -> Tensor:
        """Once per person: `[N, R, 4, S, S]`, `[N, R, 3, S/2, S/2]` -> features `[N, R, C, S/4, S/4]`."""
        features = self.reference_encoder(pictures.flatten(0, 1), rasters.flatten(0, 1))
        return features.unflatten(0, pictures.shape[:2])

    def embed(self, pictures: Tensor, rasters: Tensor) -> Tensor:
        """Once per person: the mean embedding over `[N, R, 4, S, S]` and `[N, R, 3, S/2, S/2]` -> `[N, E]`."""
        rgb = thumbnail(pictures[:, :, :3], 128).flatten(0, 1)
        raster = thumbnail(rasters, 128).flatten(0, 1)
        return self.embedder(rgb, raster).unflatten(0, pictures.shape[:2]).mean(1)

    def modulate(self, embedding: Tensor) -> Tensor:
        """Once per person: P e, every AdaIN constant, `[N, M]`."""
        return self.projection(embedding.to(self.projection.weight.dtype))

    def forward(
        self,
        raster: Tensor,
        grids: Tensor,
        tile: Tensor,
        detail: Tensor,
        pictures: Tensor,
        thumbnails: Tensor,
        reference_raster: Tensor,
        features: Tensor,
        modulation: Tensor,
        tuned: Sequence[Tensor] | None = None,
    ) -> Drawn:
        """Draw one frame.

        Per frame: `raster [N, 3, S/2, S/2]` in 0..1, `grids [N, MAP_COUNT + DETAIL_COUNT, S/4, S/4, 2]`,
        `tile [N, S/4, S/4]` (1, 2 or 3) and `detail [N, 1, S/4, S/4]` (0 to 1, beyond 1 see `TRUST`), as
        `engine.geometry.condition` makes them.
        Changing only with the choice of references, each an atlas (`atlas`): `pictures [N, 4, 4 S, S]`, their
        `thumbnails [N, 4, S, S/4]` and `features [N, C, S, S/4]`; and slot A's own `reference_raster [N, 3, S/4, S/4]`.
        Constant: `modulation [N, M]`, and the person's own weights of the `TUNED` layers in order (None: the base's).
        """
        size = pictures.shape[-1]
        h = size // 4
        n = raster.shape[0]
        tile = tile.float()
        trusted = (detail - 1).clamp(min=0)
        detail = detail.clamp(max=1)
        first, last = grids[:, :MAP_COUNT], grids[:, MAP_COUNT:]
        looked = torch.cat(
            [
                atlas_grid(first[..., 0], first[..., 1], 0.0, h),
                atlas_grid(last[..., 0], last[..., 1], tile[:, None], h),
            ],
            1,
        )
        count = MAP_COUNT + DETAIL_COUNT
        seen = sample(thumbnails, looked.reshape(n, count * h, h, 2))
        seen = seen.reshape(n, PICTURE_CHANNELS, count, h, h).reshape(n, PICTURE_CHANNELS * count, h, h)
        drawn = F.pixel_unshuffle(raster, 2)
        where = torch.stack([(tile == number).float() for number in (1, 2, 3)], 1)
        weights = self.tuned_weights() if tuned is None else tuned
        seen = torch.cat([seen, drawn, reference_raster, detail, where], 1)
        masks_a, masks_b, residual = self.motion(seen, weights[6:])
        flow_a = (masks_a[..., None] * first).sum(1).permute(0, 3, 1, 2) + residual[:, :2]
        flow_b = (masks_b[..., None] * last).sum(1).permute(0, 3, 1, 2) + residual[:, 2:]
        flow = torch.stack([flow_a, flow_b], 1)

        grid = torch.cat(
            [atlas_grid(flow_a[:, 0], flow_a[:, 1], 0.0, h), atlas_grid(flow_b[:, 0], flow_b[:, 1], tile, h)],
            1,
        )
        warped = sample(features, grid)
        warped = torch.cat([warped[:, :, :h], warped[:, :, h:] * detail], 1)
        fine = F.interpolate(flow.flatten(1, 2), scale_factor=4.0, mode="bilinear", align_corners=False)
        fine_tile = F.interpolate(tile[:, None], scale_factor=4.0)[:, 0]
        fine_detail = F.interpolate(detail, scale_factor=4.0, mode="bilinear", align_corners=False)
        fine_trusted = F.interpolate(trusted, scale_factor=4.0, mode="bilinear", align_corners=False)
        grid = torch.cat(
            [
                atlas_grid(fine[:, 0], fine[:, 1], 0.0, size),
                atlas_grid(fine[:, 2], fine[:, 3], fine_tile, size),
            ],
            1,
        )
        looks = sample(pictures, grid)
        look_a, look_b = looks[:, :, :size], looks[:, :, size:]

        confidence = masks_a[:, MAP_COUNT - 3 : MAP_COUNT - 2]
        body = self.enter(torch.cat([warped, drawn, detail, confidence], 1))
        modulations = modulation.split(self.modulation_counts, 1)
        body = self.blocks[0](body, modulations[0])
        deep = self.down(body)
        deep = self.blocks[2](self.blocks[1](deep, modulations[1]), modulations[2])
        body = body + self.up(F.interpolate(deep, scale_factor=2.0))
        body = self.blocks[3](body, modulations[3])
        risen = F.relu(F.pixel_shuffle(F.conv2d(body, weights[0], weights[1]), 2))
        packed = [F.pixel_unshuffle(look, 2) for look in (look_a, look_b * fine_detail)]
        half_detail = F.interpolate(detail, scale_factor=2.0, mode="bilinear", align_corners=False)
        head = F.relu(F.conv2d(torch.cat([risen, *packed, raster, half_detail], 1), weights[2], weights[3], padding=1))
        leaving = F.pixel_shuffle(F.conv2d(head, weights[4], weights[5], padding=1), 2).float()
        synthesised = torch.tanh(leaving[:, :3])
        bias = leaving.new_tensor([2.0, 2.0, 0.0])[None, :, None, None]
        allowed = torch.cat(
            [
                torch.zeros_like(fine_detail),
                torch.log(fine_detail + 1e-4) + TRUST * fine_trusted,
                torch.zeros_like(fine_detail),
            ],
            1,
        )
        weight = (leaving[:, 3:6] + bias + allowed).softmax(1)
        matte = torch.sigmoid(leaving[:, 6:7] + 6 * look_a[:, 3:4] - 3)
        rgb = weight[:, :1] * look_a[:, :3] + weight[:, 1:2] * look_b[:, :3] + weight[:, 2:] * synthesised
        looks = torch.stack([look_a[:, :3], look_b[:, :3]], 1)
        return Drawn(rgb, matte, flow, weight, synthesised, looks)
