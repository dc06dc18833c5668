"""How alike two pictures look to a network: VGG16 and AlexNet features, and LPIPS on top of them.

LPIPS v0.1: Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", CVPR 2018,
eq. 1. The weights come from `training.fetch` ("vgg16", "alexnet"), a numpy pickle read by an unpickler that
knows nothing but arrays, and are kept beside it as a plain `.npz`, which loads faster.
"""

from __future__ import annotations

import importlib
import os
import pickle
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from training.fetch import fetch

Net = Literal["vgg", "alex"]
Weights = dict[str, Tensor]

_HELPER = {"vgg": "vgg16", "alex": "alexnet"}

# A layer: (name of its output, output channels, kernel, stride, padding), or a max pooling: (size, stride).
_Layer = tuple[str, int, int, int, int] | tuple[int, int]


def _vgg16() -> list[_Layer]:
    plan: list[_Layer] = []
    for block, (channels, depth) in enumerate(((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)), start=1):
        if block > 1:
            plan.append((2, 2))
        plan += [(f"relu{block}_{layer}", channels, 3, 1, 1) for layer in range(1, depth + 1)]
    return plan


_PLANS: dict[Net, list[_Layer]] = {
    "vgg": _vgg16(),
    "alex": [
        ("relu1", 64, 11, 4, 2),
        (3, 2),
        ("relu2", 192, 5, 1, 2),
        (3, 2),
        ("relu3", 384, 3, 1, 1),
        ("relu4", 256, 3, 1, 1),
        ("relu5", 256, 3, 1, 1),
    ],
}
TAPS: dict[Net, tuple[str, ...]] = {
    "vgg": ("relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3"),
    "alex": ("relu1", "relu2", "relu3", "relu4", "relu5"),
}
"""The layers LPIPS compares."""


class Features(nn.Module):
    """The convolutions of an ImageNet network, frozen; gradients flow through to the picture.

    `forward` takes `[N, 3, H, W]` RGB in [-1, 1] and returns the outputs of the layers in `taps`, in the
    order of the network, each `[N, C, H', W']`. Layers after the last tap are not computed.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, net: Net = "vgg", taps: Sequence[str] = (), weights: Weights | None = None) -> None:
        super().__init__()
        self.taps = tuple(taps) or TAPS[net]
        named = [layer[0] for layer in _PLANS[net] if len(layer) == 5]
        if unknown := [tap for tap in self.taps if tap not in named]:
            raise ValueError(f"{net} has no layer {unknown[0]}; it has {', '.join(named)}")
        last = max(named.index(tap) for tap in self.taps)
        weights = load_weights(net) if weights is None else weights
        self.convs = nn.ModuleDict()
        self.plan: list[tuple[str, int, int]] = []
        channels = 3
        for layer in _PLANS[net]:
            if len(layer) == 2:
                self.plan.append(("pool", *layer))
                continue
            name, out, kernel, stride, padding = layer
            conv = nn.Conv2d(channels, out, kernel, stride, padding)
            conv.load_state_dict({part: weights[f"{name}.{part}"] for part in ("weight", "bias")})
            self.convs[name] = conv
            self.plan.append((name, 0, 0))
            channels = out
            if named.index(name) == last:
                break
        # ImageNet's mean and deviation, said for pictures in [-1, 1]
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False)

    def forward(self, rgb: Tensor) -> list[Tensor]:
        features = (rgb - self.shift) / self.scale
        tapped: list[Tensor] = []
        for name, size, stride in self.plan:
            if name == "pool":
                features = functional.max_pool2d(features, size, stride)
                continue
            features = functional.relu(self.convs[name](features))
            if name in self.taps:
                tapped.append(features)
        return tapped


class LPIPS(nn.Module):
    """LPIPS v0.1: 0 for equal pictures, about 0.3 for a blurred face, 0.7 for another picture.

    `forward` takes two `[N, 3, H, W]` RGB in [-1, 1] (32 px a side or more, 64 px for "alex") and returns
    `[N]` float32. Only pictures that require gradients get them. The features may run in bfloat16
    (`torch.autocast`), and then so does the distance, summed in float32.
    """

    def __init__(self, net: Net = "vgg", weights: Weights | None = None) -> None:
        super().__init__()
        weights = load_weights(net) if weights is None else weights
        self.features = Features(net, weights=weights)
        self.heads = nn.ParameterList([weights[f"head.{tap}"].view(1, -1, 1, 1) for tap in TAPS[net]])
        self.requires_grad_(False)

    def forward(self, picture: Tensor, other: Tensor) -> Tensor:
        return self.distance(self.features(picture), self.features(other))

    def distance(self, features: Sequence[Tensor], others: Sequence[Tensor]) -> Tensor:
        """`[N]`, from what `self.features` gave for each: a fixed target need be looked at only once."""
        total = torch.zeros((), device=features[0].device)
        for head, ours, theirs in zip(self.heads, features, others, strict=True):
            difference = _unit(ours) - _unit(theirs)
            weighted = difference * difference * head.to(difference.dtype)
            total = total + weighted.sum((1, 2, 3), dtype=torch.float32) / difference[0, 0].numel()
        return total


def _unit(features: Tensor) -> Tensor:
    """Each pixel's channels scaled to length one; the root never sees zero, where it has no gradient."""
    length = (features * features).sum(1, keepdim=True, dtype=torch.float32)
    return features * torch.rsqrt(length + 1e-12).to(features.dtype)


# --- weights ---


def load_weights(net: Net) -> Weights:
    """The pretrained weights of `net` and its LPIPS heads (`head.<tap>`: `[C]`), fetched at the first use."""
    if net not in _HELPER:
        raise ValueError(f"there is no perceptual net {net!r}; there are {', '.join(_HELPER)}")
    source = fetch(_HELPER[net])
    converted = source.with_suffix(".npz")
    try:
        with np.load(converted, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    except (OSError, ValueError, zipfile.BadZipFile):  # not there yet, or damaged
        weights = convert(source, net)
        _store(weights, converted)
        return weights


def _store(weights: Weights, path: Path) -> None:
    handle, name = tempfile.mkstemp(prefix=".part-", dir=path.parent)
    part = Path(name)
    try:
        with os.fdopen(handle, "wb") as sink:
            np.savez(sink, **{key: value.numpy() for key, value in weights.items()})
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def convert(source: Path, net: Net) -> Weights:
    """The arrays of a flax LPIPS checkpoint under our names, kernels turned from HWIO to torch's OIHW."""
    with source.open("rb") as file:
        tree = _ArraysOnly(file).load()
    arrays = dict(_leaves(tree))
    weights: Weights = {}
    names = [layer[0] for layer in _PLANS[net] if len(layer) == 5]
    trunk = {"vgg": "VGG16_0", "alex": "AlexNet_0"}[net]
    for index, name in enumerate(names):
        kernel = arrays[f"{trunk}/Conv_{index}/kernel"].transpose(3, 2, 0, 1)
        weights[f"{name}.weight"] = torch.from_numpy(np.ascontiguousarray(kernel))
        weights[f"{name}.bias"] = torch.from_numpy(arrays[f"{trunk}/Conv_{index}/bias"].copy())
    for index, tap in enumerate(TAPS[net]):
        weights[f"head.{tap}"] = torch.from_numpy(arrays[f"NetLinLayer_{index}/Conv_0/kernel"].reshape(-1).copy())
    return weights


def _leaves(tree: Any, path: str = "") -> Iterator[tuple[str, np.ndarray]]:
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from _leaves(value, f"{path}/{key}" if path else str(key))
    else:
        yield path, np.asarray(tree, np.float32)


class _ArraysOnly(pickle.Unpickler):
    """Reads dictionaries of numpy arrays and refuses every other name, so that nothing in a file can run."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        match module_name, global_name:
            case "numpy", "dtype" | "ndarray":
                return getattr(np, global_name)
            case "numpy.core.multiarray" | "numpy._core.multiarray", "_reconstruct":
                return getattr(importlib.import_module("numpy._core.multiarray"), "_reconstruct")  # noqa: B009
        raise pickle.UnpicklingError(f"a checkpoint of arrays has no business with {module_name}.{global_name}")
