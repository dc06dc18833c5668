"""The virtual camera for real: v4l2loopback in a virtual machine, looked at by ffmpeg, OpenCV and Chromium."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import pytest

MACHINE = Path(__file__).parent / "vm" / "machine.sh"
CACHE = Path(os.environ.get("VM_CACHE", "~/.cache/understudy-vm")).expanduser()

pytestmark = [pytest.mark.slow, pytest.mark.needs_vm]


@pytest.mark.skipif(not (CACHE / "vmlinuz").is_file(), reason="no virtual machine: tests/vm/machine.sh build")
@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed")
@pytest.mark.skipif(shutil.which("chromium-headless-shell") is None, reason="chromium-headless-shell is not installed")
def test_ffmpeg_opencv_and_chromium_see_the_avatar(tmp_path: Path) -> None:
    root = MACHINE.parents[2]
    command = [str(MACHINE), "run", "900", "env", f"PYTHONPATH={root}", sys.executable, "tests/vm/appear.py"]
    environment = os.environ | {"VM_OUT": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    print(done.stdout, done.stderr)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    for who in ("ffmpeg", "opencv", "chromium"):
        seen = cv2.imread(str(tmp_path / f"{who}.png"))
        assert seen.shape == (360, 640, 3)
