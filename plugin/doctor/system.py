"""What the checks look at: files below a root, programs, clocks. All of it can be replaced by a test's own."""

from __future__ import annotations

import os
import platform as host
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from plugin import v4l2

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Ran:
    """A program that was started: its status (negative: the signal that ended it) and what it printed."""

    status: int
    out: str
    ended: bool = True
    """False: it was stopped because its time was over."""


def run(command: Sequence[str], limit_s: float) -> Ran | None:
    """Run a program; None where there is no such program."""
    environment = os.environ | {"LC_ALL": "C"}  # the answers are read by their English words
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=limit_s,
            env=environment,
            check=False,
        )
    except subprocess.TimeoutExpired as over:
        return Ran(0, (over.stdout or b"").decode(errors="replace"), ended=False)
    except OSError:
        return None
    return Ran(done.returncode, done.stdout.decode(errors="replace"))


def usable(path: Path) -> bool:
    """Whether this user may read and write it, access lists included."""
    return os.access(path, os.R_OK | os.W_OK)


def allowed_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class System:
    """This machine, as far as the doctor looks at it. Paths are given as "/proc/..." and read below `root`."""

    root: Path = Path("/")
    platform: str = sys.platform
    machine: str = field(default_factory=host.machine)
    release: str = field(default_factory=host.release)
    python: tuple[int, int, int] = (sys.version_info[0], sys.version_info[1], sys.version_info[2])
    pointer_bits: int = struct.calcsize("P") * 8
    environment: Mapping[str, str] = field(default_factory=lambda: os.environ)
    package_path: Sequence[str] = field(default_factory=lambda: tuple(sys.path))
    project: Path | None = ROOT if (ROOT / "pyproject.toml").is_file() else None
    """The checkout that the program runs from; None where it was installed as a wheel."""
    cores: Callable[[], int] = allowed_cores
    run: Callable[[Sequence[str], float], Ran | None] = run
    wall_s: Callable[[], float] = time.time
    monotonic_s: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    capability: Callable[[Path], v4l2.Capability] = v4l2.capability
    modes: Callable[[Path], list[v4l2.Mode]] = v4l2.modes
    usable: Callable[[Path], bool] = usable
    patience: float = 1.0
    """How many times longer than usual an answer may take: for slow machines."""

    @property
    def linux(self) -> bool:
        return self.platform.startswith("linux")

    def at(self, path: str) -> Path:
        return self.root / path.lstrip("/")

    def text(self, path: str) -> str:
        """What the file says, stripped; "" where there is none or it may not be read."""
        try:
            return self.at(path).read_text(encoding="utf-8", errors="replace").strip()
        except OSError:
            return ""

    def names(self, folder: str) -> list[str]:
        """The names in a folder, sorted; none where there is no such folder."""
        try:
            return sorted(os.listdir(self.at(folder)))  # noqa: PTH208 - names alone, of folders as large as /proc
        except OSError:
            return []

    def answer(self, *command: str, limit_s: float = 3.0) -> str | None:
        """What a program printed; None where it is not there, failed, or did not answer."""
        done = self.run(command, limit_s * self.patience)
        return done.out.strip() if done is not None and done.ended and done.status == 0 else None

    def distribution(self) -> str:
        """The family of the Linux distribution: "debian", "fedora", "arch", "suse", or ""."""
        said = self.text("/etc/os-release").lower()
        words = {
            word.strip("\"'")
            for line in said.splitlines()
            if line.startswith(("id=", "id_like="))
            for word in line.partition("=")[2].replace('"', " ").split()
        }
        for family, marks in _FAMILIES.items():
            if words & marks:
                return family
        return ""


_FAMILIES = {
    "debian": {"debian", "ubuntu"},
    "fedora": {"fedora", "rhel"},
    "arch": {"arch"},
    "suse": {"suse", "opensuse"},
}
