"""Inception: reads nothing but tensors, sees as the published graph does, and pools as only that graph does."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.frames import Image
from training.fetch import FetchError, fetch
from training.networks import inception
from training.networks.inception import Inception


@pytest.fixture(scope="module")
def weights_file() -> Path:
    try:
        return fetch("inception")
    except FetchError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def network(weights_file: Path) -> Inception:
    return Inception(inception.load_weights(weights_file)).eval()


def test_it_computes_what_the_translated_graph_computes(network: Inception, weights_file: Path) -> None:
    """The layers written here against the ones that came with the weights."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch.jit.load: only here, as the second opinion
        script = torch.jit.load(str(weights_file), map_location="cpu").eval()
    picture = torch.rand(1, 3, 299, 299, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.inference_mode():
        ours, theirs = network(picture), script(picture)
    assert ours.shape == (1, 2048)
    assert float(theirs.max()) > 1
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_pictures_are_described_one_by_one_and_in_order(
    network: Inception, face_photo: Image, turned_photo: Image
) -> None:
    both = network.describe([face_photo, turned_photo], batch=1)
    assert both.shape == (2, 2048) and both.dtype == np.float32
    alone = network.describe([turned_photo])
    np.testing.assert_allclose(both[1], alone[0], atol=1e-4)
    assert np.abs(both[0] - both[1]).mean() > 0.1
    assert network.describe([]).shape == (0, 2048)


class _Runs:
    def __reduce__(self) -> tuple[object, ...]:
        return print, ("ran",)


def test_a_file_that_would_run_something_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with zipfile.ZipFile(tmp_path / "bad.pt", "w") as archive:
        archive.writestr("net/data.pkl", pickle.dumps(_Runs()))
    with pytest.raises(pickle.UnpicklingError, match=r"ask for builtins\.print"):
        inception.load_weights(tmp_path / "bad.pt")
    assert capsys.readouterr().out == ""
