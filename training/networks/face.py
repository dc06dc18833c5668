"""SFace as a torch network, so that likeness can be a loss: gradients flow into the picture.

Who somebody is, is measured with another network (`training.identity.ArcFace`), never with the one trained against.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn import functional as F

from engine.frames import Points
from training.fetch import fetch
from training.identity import ALIGNED_PX, TEMPLATE, five_points, similarity_transform


class FaceFeatures(nn.Module):
    """SFace (Zhong et al. 2021), frozen: an aligned face -> its embedding and the features on the way.

    `forward` takes `[N, 3, 112, 112]` RGB in -1..1 and returns `[N, 128]` of length one, and the outputs of the
    activations in `taps` (0 is the first). The graph is a plain chain, read from the ONNX file as it stands; raises
    `ValueError` when a file holds anything else.
    """

    def __init__(self, path: Path | None = None, taps: Sequence[int] = ()) -> None:
        super().__init__()
        graph = onnx.load(str(path or fetch("sface"))).graph
        values = {one.name: torch.from_numpy(numpy_helper.to_array(one).copy()) for one in graph.initializer}
        self.layers = nn.ModuleList()
        self.shift = self.scale = 0.0
        for node in graph.node:
            told = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
            given = [values[name] for name in node.input if name in values]
            match node.op_type:
                case "Sub":
                    self.shift = float(given[0])
                case "Mul":
                    self.scale = float(given[0])
                case "Conv" | "BatchNormalization" | "PRelu" | "Gemm":
                    self.layers.append(_layer(node.op_type, told, given))
                case "Flatten":
                    self.layers.append(nn.Flatten())
                case "Dropout":
                    pass
                case other:
                    raise ValueError(f"{path} is no plain chain: it holds {other}")
        self.taps = frozenset(taps)
        self.requires_grad_(False).eval()

    def forward(self, faces: Tensor) -> tuple[Tensor, list[Tensor]]:
        features = ((faces + 1) * 127.5 - self.shift) * self.scale
        tapped: list[Tensor] = []
        count = 0
        for layer in self.layers:
            features = layer(features)
            if isinstance(layer, nn.PReLU):
                if count in self.taps:
                    tapped.append(features)
                count += 1
        return F.normalize(features.float(), dim=1), tapped


class _Scale(nn.Module):
    """A batch normalisation that has learned all it will: one factor and one shift a channel."""

    def __init__(self, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, epsilon: float) -> None:
        super().__init__()
        factor = weight / torch.sqrt(variance + epsilon)
        self.register_buffer("factor", factor)
        self.register_buffer("shift", bias - mean * factor)

    def forward(self, features: Tensor) -> Tensor:
        shape = (1, -1) + (1,) * (features.dim() - 2)
        factor, shift = self.get_buffer("factor"), self.get_buffer("shift")
        return features * factor.view(shape).to(features.dtype) + shift.view(shape).to(features.dtype)


def alignment(points: Points, size_px: int) -> np.ndarray:
    """Where an aligned face lies in a picture: `[2, 3]` float32, normalised, for `torch.nn.functional.affine_grid`.

    `points` is `[478, 3]` in pixels of a square picture of `size_px`.
    """
    to_template = np.vstack([similarity_transform(five_points(points), TEMPLATE), [0, 0, 1]])
    # Pixel middles at whole numbers on both sides, as warpAffine has them.
    from_unit = np.array(
        [[ALIGNED_PX / 2, 0, ALIGNED_PX / 2 - 0.5], [0, ALIGNED_PX / 2, ALIGNED_PX / 2 - 0.5], [0, 0, 1]]
    )
    to_unit = np.array([[2 / size_px, 0, 1 / size_px - 1], [0, 2 / size_px, 1 / size_px - 1], [0, 0, 1]])
    return (to_unit @ np.linalg.inv(to_template) @ from_unit)[:2].astype(np.float32)


def cut_faces(rgb: Tensor, placed: Tensor) -> Tensor:
    """`[N, 3, S, S]` and `alignment`s `[N, 2, 3]` -> aligned faces `[N, 3, 112, 112]`, differentiable."""
    grid = F.affine_grid(placed.float(), [len(rgb), 3, ALIGNED_PX, ALIGNED_PX], align_corners=False)
    return F.grid_sample(rgb.float(), grid, align_corners=False)


def cut_eyes_and_mouth(rgb: Tensor, placed: Tensor, size_px: int) -> Tensor:
    """The part of the aligned faces from brows to lower lip (72 of 112 px), enlarged: `[N, 3, size_px, size_px]`."""
    part = placed.new_tensor([[72 / ALIGNED_PX, 0, 0], [0, 72 / ALIGNED_PX, 32 / ALIGNED_PX], [0, 0, 1]])
    grid = F.affine_grid(placed.float() @ part.float(), [len(rgb), 3, size_px, size_px], align_corners=False)
    return F.grid_sample(rgb.float(), grid, align_corners=False)


def _layer(kind: str, told: dict[str, object], given: list[Tensor]) -> nn.Module:
    if kind == "Conv":
        weight = given[0]
        groups, strides, pads = told["group"], told["strides"], told["pads"]
        conv = nn.Conv2d(
            weight.shape[1] * int(groups),  # type: ignore[call-overload]
            weight.shape[0],
            (weight.shape[2], weight.shape[3]),
            tuple(strides),  # type: ignore[arg-type]
            tuple(pads)[:2],  # type: ignore[arg-type]
            groups=int(groups),  # type: ignore[call-overload]
            bias=len(given) > 1,
        )
        conv.load_state_dict(dict(zip(("weight", "bias"), given, strict=False)))
        return conv
    if kind == "BatchNormalization":
        return _Scale(*given, epsilon=float(told["epsilon"]))  # type: ignore[arg-type]
    if kind == "PRelu":
        slope = nn.PReLU(given[0].numel())
        slope.load_state_dict({"weight": given[0].flatten()})
        return slope
    if told.get("transB") != 1:
        raise ValueError("a Gemm whose second factor is not transposed is not foreseen")
    linear = nn.Linear(given[0].shape[1], given[0].shape[0], bias=len(given) > 1)
    linear.load_state_dict(dict(zip(("weight", "bias"), given, strict=False)))
    return linear
