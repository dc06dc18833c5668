"""Nothing leaves the machine unasked."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

WATCHED = """
import socket, sys
asked = []
for name in ("getaddrinfo", "create_connection"):
    setattr(socket, name, lambda *where, **how: asked.append(where) or (_ for _ in ()).throw(OSError("no network")))
socket.socket.connect = lambda self, where: asked.append(where) or (_ for _ in ()).throw(OSError("no network"))
import multiprocessing.context
multiprocessing.context.Process.start = lambda self: asked.append(("a process of its own", self._target))
import {module}
import openvino, time
time.sleep(0.5)
print(asked)
"""


def asked_for(code: str, home: Path) -> str:
    """What the code, in a process of somebody who never told OpenVINO anything, tried to reach."""
    environment = {name: value for name, value in os.environ.items() if name != "CI"} | {"HOME": str(home)}
    root = Path(__file__).parents[1]
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, env=environment)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()


@pytest.mark.parametrize("module", ["engine.backends.openvino", "plugin.cli", "plugin.roofline", "training.quantise"])
def test_importing_contacts_nobody(module: str, tmp_path: Path) -> None:
    assert asked_for(WATCHED.format(module=module), tmp_path) == "[]"


def test_the_watch_would_see_it(tmp_path: Path) -> None:
    """OpenVINO by itself. Should it stop reporting that, `engine/__init__.py` need no longer hinder it."""
    assert asked_for(WATCHED.format(module="socket"), tmp_path) != "[]"
