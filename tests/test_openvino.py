"""The OpenVINO backend as a guest in a process that has other things to do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np

from engine.backends.openvino import OpenVino, core
from engine.base import Base

ROOT = Path(__file__).parents[1]


def test_ctrl_c_survives_backends_that_come_and_go(tiny_base: Base) -> None:
    """Signals are handled on a stack that the CPU plug-in sets up: it must outlive every backend."""
    source = (
        "import gc, signal; from pathlib import Path\n"
        "from engine.backends.openvino import OpenVino\n"
        f"model = Path({str(tiny_base.encoder)!r})\n"
        "seen = []\n"
        "signal.signal(signal.SIGTERM, lambda *_: seen.append('seen'))\n"
        "first, second = OpenVino(model), OpenVino(model)\n"
        "del first; gc.collect()\n"
        "del second; gc.collect()\n"
        "signal.raise_signal(signal.SIGTERM)\n"
        "print(*seen)"
    )
    done = subprocess.run([sys.executable, "-c", source], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "seen"), done.stderr


def test_there_is_one_core() -> None:
    assert core() is core()


def test_results_outlive_the_backend_and_inputs_are_held(tiny_base: Base) -> None:
    backend = OpenVino(tiny_base.encoder, None, None, "CPU", "f32", 1)
    picture, raster = np.full((1, 4, 256, 256), 0.5, np.float32), np.zeros((1, 3, 128, 128), np.float32)
    expected = backend.run({"picture": picture, "raster": raster})["features"].copy()
    backend.set({"picture": picture.copy(), "raster": raster.copy()})  # nobody else holds these
    again = backend.run({})["features"]
    del backend
    assert np.array_equal(again, expected)
