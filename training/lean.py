"""The live generator once more, as a processor likes it: the same inputs, weights and numbers, cheaper operations.

`training.export.PerFrame` says what a frame is; this is what `processor.onnx` holds (a graphics card is given the
plain graph). Nothing is approximated, `tests/test_lean.py` compares the two. What differs:

- Everything at full size is *packed*: a plane `[S, S]` is held as its four phases `[4, S/2, S/2]`, in the order of
  `pixel_shuffle`. The photos are sampled at packed places, so what the head takes in and what the output layer gives
  need no shuffling; only the finished bytes are put in order.
- Doubling and then convolving is one transposed convolution (`doubling`).
- Enlarging is two gathers and a blend along each side instead of OpenVINO's Interpolate, whose results would be
  bfloat16 besides (a quarter of a pixel in a flow); flows stay interleaved (x, y), as samples are taken by them.
- The head's convolution of one wide concatenation is the sum of two narrow ones, each in the memory order that its
  input already has; what else it looks at is shuffled up together with the risen features.
- The share of slot B is weighed by `detail` instead of adding its logarithm (softmax of `l + log d` is `d exp l`).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.geometry import DETAIL_COUNT, MAP_COUNT
from training.networks.live import PICTURE_CHANNELS, TILES, TRUST, LiveGenerator

_CARRIED = 16
"""Channels at a quarter of the size that are shuffled up with the risen features: the raster (12) and `detail` (4)."""


class Lean(nn.Module):
    """`PerFrame`, input for input and output for output."""

    def __init__(self, generator: LiveGenerator) -> None:
        super().__init__()
        self.generator = generator
        # A 1x1 convolution that sets what is carried along behind the risen features.
        made = generator.rise.out_channels
        carry = torch.zeros(made + _CARRIED, _CARRIED, 1, 1)
        carry[made:, :, 0, 0] = torch.eye(_CARRIED)
        self.carry = nn.Buffer(carry, persistent=False)
        motion = generator.motion
        self.ups = nn.ModuleList(
            [*(doubling(_first(block)) for block in (motion.up3, motion.up2, motion.up1)), doubling(generator.up)]
        )

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
        *tuned: Tensor,
    ) -> tuple[Tensor, ...]:
        network = self.generator
        size = network.options.size_px
        h, half = size // 4, size // 2
        tile = tile.float()
        trusted = (detail - 1).clamp(min=0)
        detail = detail.clamp(max=1)
        drawn = raster.reshape(1, h, 2, h, 2, 3).permute(0, 5, 2, 4, 1, 3).reshape(1, 12, h, h).float() / 255

        # Where slot B looks is told by the tile: rows of the atlas to add, interleaved with zeros for x.
        zones = tile[..., None] * torch.tensor([0.0, 2 / TILES])
        count = MAP_COUNT + DETAIL_COUNT
        from_b = torch.cat([torch.zeros(1, MAP_COUNT, 1, 1), torch.ones(1, DETAIL_COUNT, 1, 1)], 1)
        looked = in_atlas(grids.reshape(1, count, h, 2 * h), h) + from_b * zones.reshape(1, 1, h, 2 * h)
        seen = sample(thumbnails, looked.reshape(1, count * h, h, 2)).reshape(1, PICTURE_CHANNELS * count, h, h)
        where = (1 - (tile[:, None] - torch.tensor([1.0, 2.0, 3.0])[None, :, None, None]).abs()).clamp(min=0)
        seen = torch.cat([seen, drawn, reference_raster, detail, where], 1)
        masks_a, masks_b, residual = self._motion(seen, tuned[6], tuned[7])
        flow_a = (masks_a[..., None] * grids[:, :MAP_COUNT]).sum(1)
        flow_b = (masks_b[..., None] * grids[:, MAP_COUNT:]).sum(1)
        residual = residual.reshape(2, 2, h, h).permute(0, 2, 3, 1)
        flow = torch.stack([flow_a, flow_b], 1) + residual[None]  # [1, 2, h, h, 2]

        coarse = in_atlas(flow.reshape(2, h, 2 * h), h)
        coarse_a, coarse_b = coarse[:1], coarse[1:] + zones.reshape(1, h, 2 * h)
        warped_a = sample(features, coarse_a.reshape(1, h, h, 2))
        warped_b = sample(features, coarse_b.reshape(1, h, h, 2))
        warped_b = (warped_b.reshape(-1, h * h) * detail.reshape(1, h * h)).reshape(1, -1, h, h)

        fine = enlarge(flow.reshape(2, h, 2 * h), 4, 2)  # [2, 2, 2, half, 2 * half]
        fine = in_atlas(fine, size)
        twice = torch.arange(size)  # each column's pair, twice
        fine_zones = zones.reshape(h, 2 * h).index_select(1, twice // 4 * 2 + twice % 2)
        fine_b = fine[1].reshape(2, 2, h, 2, size) + fine_zones[:, None]
        look_a = sample(pictures, fine[0].reshape(1, 4 * half, half, 2)).reshape(1, PICTURE_CHANNELS, 4, half, half)
        look_b = sample(pictures, fine_b.reshape(1, 4 * half, half, 2)).reshape(1, PICTURE_CHANNELS, 4, half, half)
        wide = enlarge(torch.cat([detail, trusted], 1)[0], 4, 1).reshape(2, 1, 1, 4, half, half)
        fine_detail, fine_trusted = wide[0], wide[1]
        half_detail = enlarge(detail[0], 2, 1).reshape(1, 4, h, h)

        confidence = masks_a[:, MAP_COUNT - 3 : MAP_COUNT - 2]
        body = network.enter(torch.cat([warped_a, warped_b, drawn, detail, confidence], 1))
        modulations = modulation.split(network.modulation_counts, 1)
        body = network.blocks[0](body, modulations[0])
        deep = network.down(body)
        deep = network.blocks[2](network.blocks[1](deep, modulations[1]), modulations[2])
        body = body + self.ups[3](deep)
        body = network.blocks[3](body, modulations[3])

        rise, head, leave = tuned[0:2], tuned[2:4], tuned[4:6]
        wider = torch.cat([rise[0], torch.zeros(_CARRIED, network.rise.in_channels, 1, 1)])
        risen = F.conv2d(body, wider, torch.cat([rise[1], torch.zeros(_CARRIED)]))
        risen = risen + F.conv2d(torch.cat([drawn, half_detail], 1), self.carry)
        risen = F.pixel_shuffle(F.relu(risen), 2)
        planes = look_b.reshape(PICTURE_CHANNELS, 4 * half * half) * fine_detail.reshape(1, 4 * half * half)
        packed = torch.cat([look_a.reshape(planes.shape), planes]).reshape(1, 8 * PICTURE_CHANNELS, half, half)
        begin = network.rise.out_channels // 4
        end = begin + 8 * PICTURE_CHANNELS
        of_risen = torch.cat([head[0][:, :begin], head[0][:, end:]], 1)
        inner = F.conv2d(packed, head[0][:, begin:end], head[1], padding=1) + F.conv2d(risen, of_risen, padding=1)
        leaving = F.conv2d(F.relu(inner), leave[0], leave[1], padding=1).float().reshape(1, 7, 4, half, half)

        synthesised = torch.tanh(leaving[:, :3])
        own_a, own_s = leaving[:, 3:4] + 2, leaving[:, 5:6]
        own_b = leaving[:, 4:5] + 2 + TRUST * fine_trusted
        most = torch.maximum(torch.maximum(own_a, own_b), own_s)
        odds_a, odds_s = (own_a - most).exp(), (own_s - most).exp()
        odds_b = (own_b - most).exp() * (fine_detail + 1e-4)
        total = 1 / (odds_a + odds_b + odds_s)
        share_a, share_b, share_s = odds_a * total, odds_b * total, odds_s * total
        rgb = share_a * look_a[:, :3] + share_b * look_b[:, :3] + share_s * synthesised
        matte = torch.sigmoid(leaving[:, 6:7] + 6 * look_a[:, 3:4] - 3)
        weight = torch.cat([share_a, share_b, share_s], 1)
        return (
            unpacked((rgb.clamp(-1, 1) * 127.5 + 128.0).clamp(0, 255).to(torch.uint8)),
            unpacked((matte * 255 + 0.5).to(torch.uint8))[..., 0],
            flow,
            unpacked((weight * 255 + 0.5).to(torch.uint8), first=True),
            unpacked((synthesised * 127.5 + 128.0).clamp(0, 255).to(torch.uint8)),
        )

    def _motion(self, seen: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`MotionNet.forward`."""
        motion = self.generator.motion
        first = motion.enter(seen)
        second = motion.down1(first)
        third = motion.down2(second)
        deep = F.relu(self.ups[0](motion.down3(third))) + third
        deep = F.relu(self.ups[1](deep)) + second
        deep = F.relu(self.ups[2](deep)) + first
        leaving = F.conv2d(deep, weight, bias, padding=1)
        masks_a, masks_b, residual = leaving.split([MAP_COUNT, DETAIL_COUNT, 4], 1)
        return masks_a.softmax(1), masks_b.softmax(1), 0.2 * torch.tanh(0.25 * residual)


def _first(block: nn.Module) -> nn.Conv2d:
    convolution = next(iter(block.children()))
    assert isinstance(convolution, nn.Conv2d)
    return convolution


def doubling(convolution: nn.Conv2d) -> nn.ConvTranspose2d:
    """A 3x3 convolution of what was enlarged twofold by repeating, as one transposed convolution: 4 of 9 products.

    Each output lies over two of the input's rows (and columns); taps that meet the same one are summed.
    """
    made = nn.ConvTranspose2d(convolution.in_channels, convolution.out_channels, 4, 2, 1)
    fold = torch.tensor([[0.0, 0, 1], [0, 1, 1], [1, 1, 0], [1, 0, 0]])
    with torch.no_grad():
        made.weight.copy_(torch.einsum("oiyx,ay,bx->ioab", convolution.weight, fold, fold))
        if convolution.bias is not None and made.bias is not None:
            made.bias.copy_(convolution.bias)
    return made


def in_atlas(flow: Tensor, height: int) -> Tensor:
    """Interleaved crop units `[..., 2 w]` -> places in the first tile of an atlas, clamped as `atlas_grid` does.

    Along x the clamp is that of the border, so both may have it.
    """
    edge = 1 - 1 / height
    pairs = flow.shape[-1] // 2
    scale, shift = torch.tensor([1.0, 1 / TILES]).repeat(pairs), torch.tensor([0.0, 1 / TILES - 1]).repeat(pairs)
    return flow.clamp(-edge, edge) * scale + shift


def sample(tensor: Tensor, grid: Tensor) -> Tensor:
    return F.grid_sample(tensor, grid, mode="bilinear", padding_mode="border", align_corners=False)


def enlarge(planes: Tensor, factor: int, width: int) -> Tensor:
    """Bilinear, packed: `[n, h, w * width]` -> `[n, 2, 2, h * p, w * p * width]`, p = factor / 2.

    `width` is how many numbers belong to a column. The second and third axes are the phases of row and column.
    """
    n, h, wide = planes.shape
    w, p = wide // width, factor // 2
    wanted = torch.arange(w * factor).reshape(w * p, 2).T.reshape(-1)  # columns, phase by phase
    left, right, share = _neighbours(wanted, factor, w)
    column = torch.arange(width)
    first = planes.index_select(2, (left[:, None] * width + column).reshape(-1))
    second = planes.index_select(2, (right[:, None] * width + column).reshape(-1))
    rows = first + (second - first) * share[:, None].expand(-1, width).reshape(-1)
    rows = rows.reshape(n, h, 2, 1, p * wide).transpose(1, 2)  # [n, 2, h, 1, p * wide]
    above = torch.cat([rows[:, :, :1], rows[:, :, :-1]], 2)
    below = torch.cat([rows[:, :, 1:], rows[:, :, -1:]], 2)
    # Row 2 q + phase of each cell lies this far from the cell's middle, in cells.
    away = ((torch.arange(factor) + 0.5) / factor - 0.5).reshape(p, 2).T.reshape(2, 1, 1, p, 1)
    one, up, down = 1 - away.abs(), (-away).clamp(min=0), away.clamp(min=0)
    made = rows[:, None] * one + above[:, None] * up + below[:, None] * down  # [n, 2, 2, h, p, p * wide]
    return made.reshape(n, 2, 2, h * p, p * wide)


def _neighbours(wanted: Tensor, factor: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
    place = ((wanted.double() + 0.5) / factor - 0.5).clamp(0, count - 1)
    left = place.floor().long()
    return left, (left + 1).clamp(max=count - 1), (place - left).float()


def unpacked(planes: Tensor, first: bool = False) -> Tensor:
    """Bytes `[1, C, 4, h, w]` -> `[1, 2 h, 2 w, C]`, or `[1, C, 2 h, 2 w]` when colours come `first`."""
    _, channels, _, h, w = planes.shape
    phases = planes.reshape(channels, 2, 2, h, w)
    if first:
        return phases.permute(0, 3, 1, 4, 2).reshape(1, channels, 2 * h, 2 * w)
    return phases.permute(3, 1, 4, 2, 0).reshape(1, 2 * h, 2 * w, channels)
