"""LPIPS: equal pictures are 0 apart, worse ones further, gradients flow; its pickle can run nothing."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from training.fetch import FetchError
from training.networks import perceptual
from training.networks.perceptual import LPIPS, TAPS, Features, Net, Weights


def drawn_checkpoint(net: Net = "alex") -> dict[str, dict[str, object]]:
    """A checkpoint like the real one, its numbers drawn by lot."""
    numbers = np.random.default_rng(1)

    def kernel(*shape: int) -> np.ndarray:
        return (numbers.standard_normal(shape) * (2 / np.prod(shape[:3])) ** 0.5).astype(np.float32)

    trunk: dict[str, object] = {}
    heads: dict[str, dict[str, object]] = {}
    channels = 3
    for layer in perceptual._PLANS[net]:
        if len(layer) == 5:
            name, out, side, _, _ = layer
            bias = numbers.standard_normal(out).astype(np.float32) * 0.1
            trunk[f"Conv_{len(trunk)}"] = {"kernel": kernel(side, side, channels, out), "bias": bias}
            if name in TAPS[net]:
                heads[f"NetLinLayer_{len(heads)}"] = {"Conv_0": {"kernel": np.abs(kernel(1, 1, out, 1))}}
            channels = out
    return {"AlexNet_0" if net == "alex" else "VGG16_0": trunk, **heads}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    path = tmp_path_factory.mktemp("weights") / "alexnet.ckpt"
    path.write_bytes(pickle.dumps(drawn_checkpoint(), protocol=4))
    return perceptual.convert(path, "alex")


def noise(seed: int, count: int = 2, side: int = 64) -> torch.Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_equal_pictures_are_zero_apart_and_the_order_does_not_matter(weights: Weights) -> None:
    lpips = LPIPS("alex", weights)
    assert lpips(noise(1), noise(1)).tolist() == [0, 0]
    there, back = lpips(noise(1), noise(2)), lpips(noise(2), noise(1))
    assert there.shape == (2,)
    assert (there > 0.01).all()
    torch.testing.assert_close(there, back)


def test_gradients_reach_the_picture_and_no_weight(weights: Weights) -> None:
    lpips = LPIPS("alex", weights)
    picture = noise(1).requires_grad_()
    lpips(picture, noise(2)).sum().backward()
    assert picture.grad is not None
    assert picture.grad.abs().sum() > 0
    assert not any(parameter.requires_grad for parameter in lpips.parameters())
    equal = noise(1).requires_grad_()
    lpips(equal, noise(1)).sum().backward()
    assert equal.grad is not None
    assert equal.grad.abs().max() == 0  # and not NaN


def test_bfloat16_and_channels_last_say_the_same(weights: Weights) -> None:
    lpips = LPIPS("alex", weights)
    plain = lpips(noise(1), noise(2))
    lpips.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    first, second = (noise(seed).contiguous(memory_format=torch.channels_last) for seed in (1, 2))
    torch.testing.assert_close(lpips(first, second), plain)
    with torch.autocast("cpu", torch.bfloat16):
        half = lpips(first, second)
        assert lpips(first, first).tolist() == [0, 0]
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, plain, rtol=0.02, atol=0.002)


def test_taps_choose_layers(weights: Weights) -> None:
    first, last = Features("alex", ("relu1", "relu3"), weights)(noise(1))
    assert (first.shape, last.shape) == ((2, 64, 15, 15), (2, 384, 3, 3))
    assert len(Features("alex", ("relu2",), weights).convs) == 2
    with pytest.raises(ValueError, match="alex has no layer relu9; it has relu1, relu2"):
        Features("alex", ("relu9",), weights)


def test_vgg16_has_its_thirteen_layers() -> None:
    layers = [layer for layer in perceptual._PLANS["vgg"] if len(layer) == 5]
    assert len(layers) == 13
    assert [name for name, *_ in layers][-1] == "relu5_3"


def test_a_kernel_keeps_its_orientation(weights: Weights) -> None:
    """Rows stay rows: HWIO in the checkpoint, OIHW in torch."""
    checkpoint = drawn_checkpoint()
    kernel = checkpoint["AlexNet_0"]["Conv_0"]["kernel"]  # type: ignore[index]
    assert weights["relu1.weight"][5, 2, 7, 3] == kernel[7, 3, 2, 5]


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("exit 7",)


@pytest.mark.parametrize("bad", [Evil(), np.random.default_rng(1), Path("/"), np.array([Evil()], dtype=object)])
def test_a_pickle_with_anything_but_arrays_is_refused(bad: object, tmp_path: Path) -> None:
    path = tmp_path / "bad.ckpt"
    path.write_bytes(pickle.dumps({"AlexNet_0": bad}, protocol=4))
    with pytest.raises(pickle.UnpicklingError, match="has no business with"):
        perceptual.convert(path, "alex")


def test_weights_are_converted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "alexnet.ckpt"
    path.write_bytes(pickle.dumps(drawn_checkpoint(), protocol=4))
    monkeypatch.setattr(perceptual, "fetch", lambda name: tmp_path / f"{name}.ckpt")
    first = perceptual.load_weights("alex")
    path.unlink()
    second = perceptual.load_weights("alex")
    assert list(first) == list(second)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["alexnet.npz"]
    (tmp_path / "alexnet.npz").write_bytes(b"PK damaged")
    path.write_bytes(pickle.dumps(drawn_checkpoint(), protocol=4))
    assert torch.equal(perceptual.load_weights("alex")["relu5.bias"], first["relu5.bias"])
    with pytest.raises(ValueError, match="no perceptual net 'squeeze'"):
        perceptual.load_weights("squeeze")  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize(("net", "expected"), [("vgg", (0.223, 0.453, 0.617)), ("alex", (0.349, 0.540, 0.497))])
def test_the_real_weights_on_a_face(
    net: Net, expected: tuple[float, ...], face_photo: np.ndarray, turned_photo: np.ndarray
) -> None:
    """Blur a little, blur much, another face; the numbers hold still from one version to the next."""
    try:
        lpips = LPIPS(net)
    except FetchError as error:
        pytest.skip(str(error))

    def tensor(rgb: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(rgb.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1

    others = [cv2.GaussianBlur(face_photo, (0, 0), sigma) for sigma in (2, 6)] + [turned_photo]
    found = [lpips(tensor(face_photo), tensor(np.asarray(other))).item() for other in others]
    assert lpips(tensor(face_photo), tensor(face_photo)).item() == 0
    assert found == pytest.approx(expected, abs=0.005)
