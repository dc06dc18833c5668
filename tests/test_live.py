"""The live network: shapes, where each sample comes from, and that every weight learns."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from engine.geometry import DETAIL_COUNT, MAP_COUNT
from training.export import FRAME_INPUTS, PERSON_INPUTS, example
from training.meta_learn import PRESETS
from training.networks.live import (
    TRUST,
    TUNED,
    Drawn,
    LiveGenerator,
    LiveOptions,
    adain,
    atlas,
    atlas_grid,
    sample,
    thumbnail,
)

SIZE = 256
SMALL = SIZE // 4


@pytest.fixture(scope="module")
def generator() -> LiveGenerator:
    """Tiny, with random weights where it starts from zeros, so that nothing is silent by chance."""
    torch.manual_seed(0)
    made = LiveGenerator(PRESETS["tiny"])
    with torch.no_grad():
        made.motion.leave.weight.normal_(std=0.1)
    return made.eval()


@pytest.fixture(scope="module")
def inputs(generator: LiveGenerator) -> dict[str, Tensor]:
    """What `forward` takes, one frame."""
    told = example(generator, seed=3)
    given = {name: told[name] for name in (*FRAME_INPUTS, *PERSON_INPUTS)}
    given["raster"] = given["raster"].permute(0, 3, 1, 2).float() / 255
    return given


def drawn(generator: LiveGenerator, inputs: dict[str, Tensor], **changed: Tensor) -> Drawn:
    with torch.no_grad():
        return generator(**(inputs | changed))


def test_shapes_and_ranges(generator: LiveGenerator, inputs: dict[str, Tensor]) -> None:
    made = drawn(generator, inputs)
    assert made.rgb.shape == (1, 3, SIZE, SIZE)
    assert made.matte.shape == (1, 1, SIZE, SIZE)
    assert made.flow.shape == (1, 2, 2, SMALL, SMALL)
    assert made.weight.shape == (1, 3, SIZE, SIZE)
    assert made.synthesised.shape == (1, 3, SIZE, SIZE)
    assert made.looks.shape == (1, 2, 3, SIZE, SIZE)
    assert made.rgb.abs().max() <= 1 + 1e-5
    assert (made.matte.min() >= 0, made.matte.max() <= 1) == (True, True)


def test_a_batch_is_its_frames(generator: LiveGenerator, inputs: dict[str, Tensor]) -> None:
    other = {name: value.flip(-1).contiguous() if name != "modulation" else -value for name, value in inputs.items()}
    both = {name: torch.cat([inputs[name], other[name]]) for name in inputs}
    together = drawn(generator, both)
    for row, alone in enumerate((drawn(generator, inputs), drawn(generator, other))):
        for name in Drawn._fields:
            # Pictures of noise: a thousandth of a pixel's difference in the flow is seen.
            assert torch.allclose(getattr(together, name)[row], getattr(alone, name)[0], atol=5e-3), name


def test_weights_sum_to_one_and_make_the_picture(generator: LiveGenerator, inputs: dict[str, Tensor]) -> None:
    made = drawn(generator, inputs)
    assert torch.allclose(made.weight.sum(1), torch.ones(1, SIZE, SIZE), atol=1e-5)
    parts = torch.cat([made.looks[0], made.synthesised], 0)
    assert torch.allclose((made.weight[0][:, None] * parts).sum(0), made.rgb[0], atol=1e-5)


def test_slot_b_is_silent_where_there_is_no_detail(generator: LiveGenerator, inputs: dict[str, Tensor]) -> None:
    """On the left half nothing may say slot B, and what its references show must not matter there."""
    detail = torch.ones_like(inputs["detail"])
    detail[..., : SMALL // 2] = 0
    made = drawn(generator, inputs, detail=detail)
    left = slice(None, SIZE // 2 - 8)
    assert made.weight[:, 1, :, left].max() < 1e-3
    assert made.weight[:, 1, :, SIZE // 2 + 8 :].mean() > 0.1
    none = torch.zeros_like(detail)
    features = inputs["features"].clone()
    features[:, :, SMALL:] = 9
    pictures = inputs["pictures"].clone()
    pictures[:, :, SIZE:] = -1
    silent, other = drawn(generator, inputs, detail=none), drawn(generator, inputs, detail=none, features=features)
    assert torch.equal(silent.rgb, other.rgb)
    assert (silent.rgb - drawn(generator, inputs, detail=none, pictures=pictures).rgb).abs().max() < 1e-3


def test_detail_beyond_one_believes_slot_b(generator: LiveGenerator, inputs: dict[str, Tensor]) -> None:
    """It adds `TRUST` to slot B's logit and changes nothing else: the odds against slot A grow by exp(TRUST)."""
    ones = torch.ones(1, 1, SMALL, SMALL)
    plain, trusting = (drawn(generator, inputs, detail=ones * value) for value in (1.0, 2.0))
    odds = [(made.weight[:, 1] / made.weight[:, 0]).log() for made in (plain, trusting)]
    assert torch.allclose(odds[1] - odds[0], torch.tensor(TRUST), atol=1e-3)
    assert torch.equal(plain.flow, trusting.flow)
    assert torch.equal(plain.synthesised, trusting.synthesised)


def test_atlas_sampling_equals_sampling_each_tile(generator: LiveGenerator) -> None:
    """One grid_sample of the atlas against four of the single tiles, also far outside of them."""
    random = torch.Generator().manual_seed(1)
    tiles = torch.rand(2, 4, 3, 32, 32, generator=random)
    x, y = torch.rand(2, 2, 24, 24, generator=random) * 3 - 1.5
    tile = torch.randint(0, 4, (2, 24, 24), generator=random)
    found = sample(atlas(tiles), atlas_grid(x, y, tile.float(), 32))
    for number in range(4):
        grid = torch.stack([x, y], -1)
        alone = F.grid_sample(tiles[:, number], grid, mode="bilinear", padding_mode="border", align_corners=False)
        own = (tile == number)[:, None].expand_as(found)
        assert torch.allclose(found[own], alone[own], atol=1e-5)


def test_atlas_lays_tiles_above_each_other() -> None:
    tiles = torch.arange(4.0)[None, :, None, None, None].expand(1, 4, 2, 3, 5)
    laid = atlas(tiles)
    assert laid.shape == (1, 2, 12, 5)
    assert laid[0, 0, :, 0].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]


def test_identity_grids_look_straight_at_the_references(inputs: dict[str, Tensor]) -> None:
    """A network that has learned nothing yet, and maps that move nothing: the slots show their references."""
    torch.manual_seed(0)
    untrained = LiveGenerator(PRESETS["tiny"])
    line = torch.linspace(-1 + 1 / SMALL, 1 - 1 / SMALL, SMALL)
    still = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1)
    grids = still.expand(1, MAP_COUNT + DETAIL_COUNT, SMALL, SMALL, 2)
    tile = torch.full((1, SMALL, SMALL), 2)
    made = drawn(untrained, inputs, grids=grids, tile=tile)
    tiles = inputs["pictures"].unflatten(2, (4, SIZE))[:, :3]
    inner = slice(4, -4)  # the flow is enlarged from a quarter, and its rim is carried on
    assert torch.allclose(made.looks[0, 0][:, inner, inner], tiles[0, :, 0][:, inner, inner], atol=1e-3)
    assert torch.allclose(made.looks[0, 1][:, inner, inner], tiles[0, :, 2][:, inner, inner], atol=1e-3)


def test_modulation_is_split_over_the_blocks(generator: LiveGenerator, inputs: dict[str, Tensor]) -> None:
    """4 C numbers a block; each share reaches its own block, and not one number is idle."""
    options = generator.options
    widths = [options.body_channels, options.deep_channels, options.deep_channels, options.body_channels]
    assert generator.modulation_counts == [4 * width for width in widths]
    modulation = inputs["modulation"].clone().requires_grad_(True)
    generator(**(inputs | {"modulation": modulation})).rgb.square().sum().backward()
    assert modulation.grad is not None
    assert (modulation.grad != 0).all()
    seen: list[Tensor] = []
    hooks = [block.register_forward_pre_hook(lambda _, given: seen.append(given[1])) for block in generator.blocks]
    numbers = torch.arange(float(sum(generator.modulation_counts)))[None] * 1e-3
    drawn(generator, inputs, modulation=numbers)
    for hook in hooks:
        hook.remove()
    assert torch.equal(torch.cat(seen, 1), numbers)


def test_adain_sets_mean_and_deviation() -> None:
    features = torch.randn(2, 3, 16, 16) * 5 + 2
    scale, shift = torch.randn(2, 3), torch.randn(2, 3)
    made = adain(features, scale, shift)
    assert torch.allclose(made.mean((2, 3)), shift, atol=1e-4)
    assert torch.allclose(made.std((2, 3), correction=0), (1 + scale).abs(), atol=1e-3)


def test_tuned_weights_stand_in_for_the_bases(generator: LiveGenerator, inputs: dict[str, Tensor]) -> None:
    plain = drawn(generator, inputs)
    with torch.no_grad():
        same = generator(**inputs, tuned=[generator.get_parameter(name) for name in TUNED])
        assert torch.equal(same.rgb, plain.rgb)
        for number, name in enumerate(TUNED):
            weights = [weight.clone() for weight in generator.tuned_weights()]
            weights[number] += 0.3
            assert (generator(**inputs, tuned=weights).rgb - plain.rgb).abs().max() > 1e-3, name


def test_gradients_flow_to_every_weight(generator: LiveGenerator) -> None:
    torch.manual_seed(1)
    pictures, rasters = torch.rand(1, 4, 4, SIZE, SIZE), torch.rand(1, 4, 3, SIZE // 2, SIZE // 2)
    told = example(generator, seed=5)
    generator.zero_grad()
    made = generator(
        raster=rasters[:, 0],
        grids=told["grids"],
        tile=told["tile"],
        detail=told["detail"],
        pictures=atlas(pictures),
        thumbnails=atlas(thumbnail(pictures, SMALL)),
        reference_raster=thumbnail(rasters[:, 0], SMALL),
        features=atlas(generator.encode(pictures, rasters)),
        modulation=generator.modulate(generator.embed(pictures, rasters)),
    )
    (made.rgb.square().sum() + made.matte.sum() + made.synthesised.square().sum()).backward()
    still = [
        name
        for name, weight in generator.named_parameters()
        if weight.grad is None or not torch.isfinite(weight.grad).all() or not weight.grad.any()
    ]
    generator.zero_grad()
    assert not still


def test_thumbnails_are_means(generator: LiveGenerator) -> None:
    pictures = torch.rand(2, 4, 4, SIZE, SIZE)
    small = thumbnail(pictures, SMALL)
    assert small.shape == (2, 4, 4, SMALL, SMALL)
    assert torch.allclose(small[1, 2, 3, 5, 7], pictures[1, 2, 3, 20:24, 28:32].mean())
    assert torch.equal(thumbnail(pictures[:, 1], SMALL), small[:, 1])


def test_the_embedding_is_the_mean_over_the_references(generator: LiveGenerator) -> None:
    pictures, rasters = torch.rand(1, 3, 4, SIZE, SIZE), torch.rand(1, 3, 3, SIZE // 2, SIZE // 2)
    with torch.no_grad():
        together = generator.embed(pictures, rasters)
        alone = [generator.embed(pictures[:, one : one + 1], rasters[:, one : one + 1]) for one in range(3)]
    assert torch.allclose(together, torch.stack(alone).mean(0), atol=1e-5)


def test_state_names_are_those_of_the_shipped_weights() -> None:
    """Renaming a layer would orphan every base and every checkpoint: this list changes only on purpose."""
    names = set(LiveGenerator(PRESETS["tiny"]).state_dict())
    assert set(TUNED) <= names
    parts = {name.split(".")[0] for name in names}
    assert parts == {
        *("embedder", "reference_encoder", "motion", "enter", "blocks", "down", "up"),
        *("rise", "head", "output", "projection"),
    }
    assert len(names) == 62
    assert {field.name for field in fields(LiveOptions)} == {
        *("size_px", "feature_channels", "body_channels", "deep_channels", "motion_channels"),
        *("head_channels", "embedding_channels"),
    }
