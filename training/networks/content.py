"""The networks whose features the content loss compares: which, which layers, with which weight.

The paper compares VGG19 and VGGFace, both trained with Caffe. They are used when their weights are given; until then
VGG16 (`training.networks.perceptual`) and SFace (`training.networks.face`) stand in for them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional as F

from training import losses
from training.networks.face import FaceFeatures, cut_faces
from training.networks.perceptual import Features

Source = Literal["vgg16", "sface", "vgg19", "vggface", "pixels"]


@dataclass(frozen=True, slots=True)
class ContentTerm:
    """One network of the content loss. `layers` as the network names them: `relu3_1`, or for SFace a number."""

    source: Source
    layers: tuple[str, ...]
    weight: float
    file: str = ""
    """Weights of vgg19 and vggface (`VggFile`)."""


_FIRST_OF_BLOCKS = ("relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1")
"""Conv1, 6, 11, 20, 29 of VGG19 and 1, 6, 11, 18, 25 of VGGFace are these activations in either."""
STAND_INS = (
    ContentTerm("vgg16", _FIRST_OF_BLOCKS, 8.5),
    ContentTerm("sface", ("0", "6", "12", "18", "24"), 2.0),
)
"""Caffe's networks see 0 to 255, torch's about -2 to 2: the paper's 0.15, times 57, is VGG16's 8.5. SFace sees 0 to 255
as well, normalised on its way: its weight gives it about the share that the paper's give VGGFace beside VGG19."""


PIXELS = ContentTerm("pixels", (), 1.0)
"""No network at all: for the smallest preset."""


def chosen_terms(vgg19: Path | None = None, vggface: Path | None = None) -> tuple[ContentTerm, ...]:
    """The paper's own networks and weights (1.5e-1, 2.5e-2) where files are given, otherwise the stand-ins."""
    first, second = STAND_INS
    if vgg19 is not None:
        first = ContentTerm("vgg19", _FIRST_OF_BLOCKS, 1.5e-1, str(vgg19))
    if vggface is not None:
        second = ContentTerm("vggface", _FIRST_OF_BLOCKS, 2.5e-2, str(vggface))
    return first, second


_DEPTHS = {13: (2, 2, 3, 3, 3), 16: (2, 2, 4, 4, 4)}
"""Convolutions in each block of a VGG, by how many there are altogether."""


class VggFile(nn.Module):
    """A VGG with 13 or 16 convolutions from a safetensors file; RGB in -1..1 -> the activations in `layers`.

    Convolutions are taken in the order of the numbers in their names (`features.0.weight`, `conv1_1.weight`), each
    `[out, in, 3, 3]`. The file's own metadata says what the network was trained on, since feeding it anything else
    goes unnoticed: `input` is `caffe` (BGR, 0 to 255, minus `mean`, three numbers in that order) or `torchvision`.
    """

    def __init__(self, path: Path, layers: Sequence[str]) -> None:
        super().__init__()
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
            named = [name for name in file.keys() if re.search(r"(features\.|conv)[\d_]+\.weight$", name)]  # noqa: SIM118
            named.sort(key=lambda name: [int(digits) for digits in re.findall(r"\d+", name)])
            if len(named) not in _DEPTHS:
                raise ValueError(f"{path} has {len(named)} convolutions, and a VGG has 13 or 16")
            weights = [(file.get_tensor(name), file.get_tensor(name[:-6] + "bias")) for name in named]
        match about.get("input"):
            case "caffe" if "mean" in about:
                self.order, self.gain = [2, 1, 0], 127.5
                shift, scale = [127.5 - float(part) for part in about["mean"].split(",")], [1.0] * 3
            case "torchvision":
                self.order, self.gain = [0, 1, 2], 0.5
                shift, scale = [0.5 - 0.485, 0.5 - 0.456, 0.5 - 0.406], [0.229, 0.224, 0.225]
            case told:
                raise ValueError(
                    f"{path} says it takes {told!r}: give its safetensors metadata input=torchvision, "
                    "or input=caffe and mean=blue,green,red"
                )
        self.register_buffer("shift", torch.tensor(shift).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor(scale).view(1, 3, 1, 1))
        self.layers = tuple(layers)
        self.convs = nn.ModuleDict()
        self.starts: set[str] = set()
        places = [(block, at) for block, depth in enumerate(_DEPTHS[len(named)], 1) for at in range(1, depth + 1)]
        for (block, at), (weight, bias) in zip(places, weights, strict=True):
            conv = nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1)
            conv.load_state_dict({"weight": weight.float(), "bias": bias.float()})
            self.convs[f"relu{block}_{at}"] = conv
            if at == 1 and block > 1:
                self.starts.add(f"relu{block}_{at}")
        if unknown := [layer for layer in layers if layer not in self.convs]:
            raise ValueError(f"{path} has no layer {unknown[0]}; it has {', '.join(self.convs)}")
        self.requires_grad_(False)

    def forward(self, rgb: Tensor) -> list[Tensor]:
        features = (rgb[:, self.order] * self.gain + self.get_buffer("shift")) / self.get_buffer("scale")
        tapped: list[Tensor] = []
        for name, conv in self.convs.items():
            if name in self.starts:
                features = F.max_pool2d(features, 2)
            features = F.relu(conv(features))
            if name in self.layers:
                tapped.append(features)
            if len(tapped) == len(self.layers):
                break
        return tapped


class _AlignedFace(nn.Module):
    """SFace's features of the face where it was found."""

    def __init__(self, layers: Sequence[str]) -> None:
        super().__init__()
        self.network = FaceFeatures(taps=[int(layer) for layer in layers])

    def forward(self, rgb: Tensor, placed: Tensor) -> list[Tensor]:
        return self.network(cut_faces(rgb, placed))[1]


class _Pixels(nn.Module):
    """The picture itself, and made small."""

    def forward(self, rgb: Tensor) -> list[Tensor]:
        return [rgb, F.avg_pool2d(rgb, 4)]


def _build(term: ContentTerm) -> nn.Module:
    match term.source:
        case "vgg16":
            return Features("vgg", term.layers)
        case "sface":
            return _AlignedFace(term.layers)
        case "vgg19" | "vggface":
            return VggFile(Path(term.file), term.layers)
        case "pixels":
            return _Pixels()


class Content(nn.Module):
    """L_CNT of Zakharov et al. 2019: `forward` takes drawn and target `[N, 3, S, S]` in -1..1 and where the faces lie
    (`alignment`, `[N, 2, 3]`), and returns one number, each network's part weighted."""

    def __init__(self, terms: Sequence[ContentTerm], networks: Mapping[str, nn.Module] | None = None) -> None:
        """`networks` replaces what the terms' sources name (by source), for tests."""
        super().__init__()
        self.terms = tuple(terms)
        given = networks or {}
        self.networks = nn.ModuleDict(
            {term.source: given[term.source] if term.source in given else _build(term) for term in terms}
        )
        self.requires_grad_(False).eval()

    def forward(self, drawn: Tensor, target: Tensor, placed: Tensor) -> Tensor:
        total = drawn.new_zeros(())
        for term in self.terms:
            network = self.networks[term.source]
            with torch.no_grad():
                goal = self._features(network, target, placed)
            total = total + term.weight * losses.content(self._features(network, drawn, placed), goal)
        return total

    @staticmethod
    def _features(network: nn.Module, rgb: Tensor, placed: Tensor) -> list[Tensor]:
        return network(rgb, placed) if isinstance(network, _AlignedFace) else network(rgb)
