"""The graph for processors is the network that was trained: whole and in its parts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.backends.openvino import OpenVino, core
from engine.base import Base
from training.export import OUTPUTS, PerFrame, example
from training.lean import Lean, doubling, enlarge, unpacked
from training.meta_learn import PRESETS
from training.networks.live import TUNED, LiveGenerator


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))


@pytest.fixture(scope="module")
def generator() -> LiveGenerator:
    """Tiny, with random weights where it starts from zeros, so that nothing is silent by chance."""
    torch.manual_seed(0)
    made = LiveGenerator(PRESETS["tiny"])
    with torch.no_grad():
        for value in made.parameters():
            if not value.any():
                value.normal_(std=0.1)
    return made.eval()


@pytest.mark.parametrize("seed", [1, 2])
def test_it_draws_what_the_network_draws(generator: LiveGenerator, seed: int) -> None:
    inputs = example(generator, seed)
    inputs["detail"] = inputs["detail"] * 2  # beyond one, slot B is believed before slot A
    with torch.no_grad():
        drawn, expected = Lean(generator)(*inputs.values()), PerFrame(generator)(*inputs.values())
    for name, one, other in zip(OUTPUTS, drawn, expected, strict=True):
        assert one.shape == other.shape, name
        assert one.dtype == other.dtype, name
        assert other.float().std() > 0.01, name
        off = (one.double() - other.double()).abs()
        assert off.max() <= (1e-5 if name == "flow" else 1), name
        assert (off > 1e-5).double().mean() < 0.01, f"{name}: only a rounding here and there"


def test_every_input_is_used_alike(generator: LiveGenerator) -> None:
    """A change of any one input, tuned weights included, changes the picture of both by the same."""
    inputs = example(generator, seed=4)
    plain, lean = PerFrame(generator), Lean(generator)
    with torch.no_grad():
        before = plain(*inputs.values())[0]
        for name in inputs:
            changed = inputs | {name: inputs[name] + 1 if name in ("modulation", *TUNED) else inputs[name].flip(-1)}
            expected, drawn = plain(*changed.values())[0], lean(*changed.values())[0]
            assert (expected.double() - before.double()).abs().max() > 2, name
            assert (expected.double() - drawn.double()).abs().max() <= 1, name


def packed(planes: Tensor) -> Tensor:
    """`[n, H, W]` -> `[n, 2, 2, H / 2, W / 2]`: phase of row, phase of column."""
    return torch.stack([torch.stack([planes[:, y::2, x::2] for x in (0, 1)], 1) for y in (0, 1)], 1)


@pytest.mark.parametrize("factor", [2, 4])
def test_enlarging_is_bilinear(factor: int) -> None:
    small = noise(3, 6, 5)
    large = F.interpolate(small[None], scale_factor=factor, mode="bilinear", align_corners=False)[0]
    assert torch.allclose(enlarge(small, factor, 1), packed(large), atol=1e-6)
    pairs = torch.stack([small, -2 * small], -1).reshape(3, 6, 10)
    found = enlarge(pairs, factor, 2).unflatten(-1, (-1, 2))
    assert torch.allclose(found[..., 0], packed(large), atol=1e-6)
    assert torch.allclose(found[..., 1], packed(-2 * large), atol=1e-6)


def test_doubling_is_repeating_and_convolving() -> None:
    convolution = nn.Conv2d(3, 5, 3, 1, 1)
    given = noise(2, 3, 6, 7)
    expected = convolution(F.interpolate(given, scale_factor=2.0))
    assert torch.allclose(doubling(convolution)(given), expected, atol=1e-5)


def test_unpacking_is_pixel_shuffle() -> None:
    planes = noise(1, 3, 4, 5, 6)
    expected = F.pixel_shuffle(planes.reshape(1, 12, 5, 6), 2)
    assert torch.equal(unpacked(planes), expected.permute(0, 2, 3, 1))
    assert torch.equal(unpacked(planes, first=True), expected)


def test_samples_are_taken_at_exact_places(tiny_base: Base, generator: LiveGenerator) -> None:
    """In bfloat16 a place would be off by up to half a pixel: whatever leads to a sample is computed in float32."""
    if "BF16" not in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this processor has no bfloat16")
    inputs = {name: value.numpy() for name, value in example(generator, seed=1).items()}
    constants = {name: inputs[name] for name in ("modulation", *TUNED)}
    outputs = ("rgb", "matte", "flow", "weight", "synthesised")
    backend = OpenVino(tiny_base.processor, constants, outputs, "CPU", "bf16", 1)
    assert tuple(backend.run({name: inputs[name] for name in backend.inputs})) == outputs
    graph = backend.running()
    samples = [node for node in graph.get_ops() if node.get_rt_info()["layerType"].astype(str) == "GridSample"]
    assert len(samples) == 5
    for node in samples:
        source = node.input_value(1).get_node()
        while source.get_rt_info()["layerType"].astype(str) in ("Reshape", "Input"):
            if not source.get_input_size():
                break
            source = source.input_value(0).get_node()
        assert source.get_rt_info()["runtimePrecision"].astype(str) == "f32", source.friendly_name
