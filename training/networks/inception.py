"""The Inception network that FID and KID are defined by: pictures -> 2048 numbers each.

Inception v3 (Szegedy et al., CVPR 2016) as TensorFlow's `inception-2015-12-05` graph has it, which is what the
canonical implementation of FID (Heusel et al., NeurIPS 2017) and its port pytorch-fid use: averages leave the padding
out, and the last block pools by its maximum. The weights are those of `training.fetch` ("inception"), a TorchScript
translation of that graph; only its tensors are read, by an unpickler that knows nothing else, and no code runs.
"""

from __future__ import annotations

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.frames import Image
from training.fetch import fetch

FEATURES = 2048
SIZE_PX = 299
_EPSILON = 1e-3
_PREFIX = "net.layers."

Weights = dict[str, Tensor]


class _Part:
    """Any object of the file: TorchScript modules are bags of attributes."""


class _Tensors(pickle.Unpickler):
    """Reads modules and float32 tensors out of a TorchScript archive, and nothing else."""

    def __init__(self, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(archive.open(f"{root}/data.pkl"))
        self._archive, self._root = archive, root

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        known: dict[tuple[str, str], Callable[..., Any] | str] = {
            ("torch", "FloatStorage"): "float32",
            ("torch._utils", "_rebuild_tensor_v2"): _rebuild,
            ("collections", "OrderedDict"): OrderedDict,
            ("torch.jit._pickle", "build_intlist"): list,
        }
        if (module_name, global_name) in known:
            return known[module_name, global_name]
        if module_name.startswith("__torch__."):
            return _Part
        raise pickle.UnpicklingError(f"the Inception weights ask for {module_name}.{global_name}")

    def persistent_load(self, told: Any, /) -> Tensor:
        kind, dtype, key, *_ = told
        if (kind, dtype) != ("storage", "float32"):
            raise pickle.UnpicklingError(f"the Inception weights hold a {kind} of {dtype}")
        return torch.from_numpy(np.frombuffer(self._archive.read(f"{self._root}/data/{key}"), "<f4").copy())


def _rebuild(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: object) -> Tensor:
    return storage.as_strided(size, stride, offset)


def load_weights(path: Path | None = None) -> Weights:
    """The tensors of the file, by their names in the graph: `conv.weight`, `mixed.tower.conv_1.mean` ..."""
    with zipfile.ZipFile(path or fetch("inception")) as archive:
        (told,) = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        script = _Tensors(archive, told.removesuffix("/data.pkl")).load()
    return {name.removeprefix(_PREFIX): value for name, value in _walk(script, "")}


def _walk(part: _Part, prefix: str) -> Iterator[tuple[str, Tensor]]:
    for name, value in vars(part).items():
        if isinstance(value, Tensor):
            yield prefix + name, value
        elif isinstance(value, _Part):
            yield from _walk(value, f"{prefix}{name}.")


class Inception(nn.Module):
    """Frozen. `forward` takes `[N, 3, H, W]` RGB in -1..1 of any size and returns `[N, 2048]`.

    Pictures are resized as pytorch-fid does it (bilinear, half-pixel centres); TensorFlow's own resizing has no half
    pixels, which moves a FID by a few hundredths. Batch normalisation is folded into the convolutions.
    """

    def __init__(self, weights: Weights | None = None) -> None:
        super().__init__()
        weights = load_weights() if weights is None else weights
        self._folded: dict[str, tuple[Tensor, Tensor]] = {}
        for name in [name.removesuffix(".weight") for name in weights if name.endswith(".weight")]:
            scale = (weights[f"{name}.var"] + _EPSILON).rsqrt()
            shift = weights[f"{name}.beta"] - weights[f"{name}.mean"] * scale
            self._folded[name] = weights[f"{name}.weight"] * scale[:, None, None, None], shift

    def _conv(self, name: str, features: Tensor, stride: int = 1, pad: bool = True) -> Tensor:
        weight, shift = self._folded[name]
        padding = (weight.shape[2] // 2, weight.shape[3] // 2) if pad else 0
        return F.relu(F.conv2d(features, weight, shift, stride, padding), inplace=True)

    def _chain(self, name: str, features: Tensor, count: int, last_stride: int = 1) -> Tensor:
        """`count` convolutions in a row; with a stride the last one has no padding."""
        for number in range(count):
            step = last_stride if number == count - 1 else 1
            layer = f"{name}.conv_{number}" if number else f"{name}.conv"
            features = self._conv(layer, features, step, step == 1)
        return features

    def _wide(self, name: str, features: Tensor, towers: Sequence[int]) -> Tensor:
        """Blocks A and C: a 1 x 1, two towers of `towers` convolutions, and an average."""
        pooled = F.avg_pool2d(features, 3, 1, 1, count_include_pad=False)
        parts = [self._conv(f"{name}.conv", features)]
        parts += [
            self._chain(f"{name}.{tower}", features, n) for tower, n in zip(("tower", "tower_1"), towers, strict=True)
        ]
        return torch.cat([*parts, self._chain(f"{name}.tower_2", pooled, 1)], 1)

    def _last(self, name: str, features: Tensor, pooled: Tensor) -> Tensor:
        """Block E: towers that end in a 1 x 3 and a 3 x 1 side by side."""
        one = self._conv(f"{name}.tower_conv", features)
        two = self._conv(f"{name}.tower_1_conv_1", self._conv(f"{name}.tower_1_conv", features))
        parts = [self._conv(f"{name}.conv", features)]
        for tower, given in (("tower", one), ("tower_1", two)):
            parts += [self._conv(f"{name}.{tower}_mixed_conv{end}", given) for end in ("", "_1")]
        return torch.cat([*parts, self._conv(f"{name}.tower_2_conv", pooled)], 1)

    def forward(self, pictures: Tensor) -> Tensor:
        size = (SIZE_PX, SIZE_PX)
        features = F.interpolate(pictures, size=size, mode="bilinear", align_corners=False)
        features = self._conv("conv", features, 2, pad=False)
        features = self._conv("conv_2", self._conv("conv_1", features, pad=False))
        features = F.max_pool2d(features, 3, 2)
        features = self._conv("conv_4", self._conv("conv_3", features), pad=False)
        features = F.max_pool2d(features, 3, 2)
        for name in ("mixed", "mixed_1", "mixed_2"):
            features = self._wide(name, features, (2, 3))
        halved = F.max_pool2d(features, 3, 2)
        strided = self._conv("mixed_3.conv", features, 2, pad=False)
        features = torch.cat([strided, self._chain("mixed_3.tower", features, 3, 2), halved], 1)
        for name in ("mixed_4", "mixed_5", "mixed_6", "mixed_7"):
            features = self._wide(name, features, (3, 5))
        halved = F.max_pool2d(features, 3, 2)
        towers = [self._chain("mixed_8.tower", features, 2, 2), self._chain("mixed_8.tower_1", features, 4, 2)]
        features = torch.cat([*towers, halved], 1)
        features = self._last("mixed_9", features, F.avg_pool2d(features, 3, 1, 1, count_include_pad=False))
        features = self._last("mixed_10", features, F.max_pool2d(features, 3, 1, 1))
        return features.mean((2, 3))

    @torch.inference_mode()
    def describe(self, pictures: Sequence[Image], batch: int = 8) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
        """`[N, 2048]` float32 of pictures `[H, W, 3]` of one size."""
        rows = [np.zeros((0, FEATURES), np.float32)]
        for start in range(0, len(pictures), batch):
            stacked = torch.from_numpy(np.stack(pictures[start : start + batch])).permute(0, 3, 1, 2)
            rows.append(self(stacked.float() / 127.5 - 1).numpy())
        return np.concatenate(rows)
