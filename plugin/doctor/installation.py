"""The program itself: Python, the packages it needs, and whether they load."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from plugin.doctor.findings import Check, Finding, Request, green, red, yellow
from plugin.doctor.system import System

if TYPE_CHECKING:
    from packaging.requirements import Requirement

PYTHONS = ((3, 11), (3, 12))
"""The same as `requires-python`; MediaPipe 0.10.21 has no wheels for later ones."""
MACHINES = {"linux": {"x86_64"}, "darwin": {"arm64", "x86_64"}, "win32": {"AMD64"}}
"""What MediaPipe 0.10.21 has wheels for."""
_CV2_BUILDS = ("opencv-python", "opencv-python-headless", "opencv-contrib-python-headless")
_NOT_FOR_USERS = {"dev", "cluster"}


def python(system: System, request: Request) -> Finding:
    version = ".".join(map(str, system.python))
    facts = {"version": version, "machine": system.machine, "bits": system.pointer_bits}
    if not PYTHONS[0] <= system.python[:2] <= PYTHONS[1]:
        return red(
            f"Python {version}: the face tracker is built for 3.11 and 3.12 only",
            "python3.11 -m venv .venv, and install the program there",
            **facts,
        )
    if system.pointer_bits != 64:
        return red(f"Python {version} of {system.pointer_bits} bits", "install a 64-bit Python 3.11", **facts)
    known = MACHINES.get("linux" if system.linux else system.platform, set())
    if system.machine not in known:
        return red(
            f"{system.platform} on {system.machine}: the face tracker is not built for it",
            "use a computer with an Intel or AMD processor, or an Apple one under macOS",
            **facts,
        )
    if system.platform == "darwin" and system.answer("sysctl", "-n", "sysctl.proc_translated") == "1":
        return yellow(
            f"Python {version} runs translated (Rosetta): about half as fast",
            "install the arm64 build of Python 3.11 and make .venv anew",
            **facts,
        )
    return green(f"{version}, 64 bits, {system.machine}", **facts)


def install_command(system: System, extra: str = "") -> str:
    """What to type to (re)install the program, with an extra."""
    extras = f"[{extra}]" if extra else ""
    if system.project is not None:
        return f"cd {system.project} && .venv/bin/pip install --constraint constraints.txt --editable '.{extras}'"
    return f"{Path(sys.executable).name} -m pip install --upgrade 'understudy{extras}'"


def _own(system: System) -> dict[str, list[Requirement]] | None:
    """What the program asks for, by extra ("" is what everybody needs), markers of other systems left out.

    None where its own list is missing.
    """
    from packaging.requirements import Requirement

    if system.project is not None:
        import tomllib

        project = tomllib.loads((system.project / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        told: dict[str, list[str]] = {"": project["dependencies"], **project.get("optional-dependencies", {})}
        read = {extra: [Requirement(line) for line in lines] for extra, lines in told.items()}
        return {
            extra: [one for one in ones if one.marker is None or one.marker.evaluate({"extra": extra})]
            for extra, ones in read.items()
        }
    installed = _installed(system, "understudy")
    if installed is None:
        return None
    read = {}
    for extra in ("", *(installed.metadata.get_all("Provides-Extra") or ())):
        for line in installed.requires or ():
            one = Requirement(line)
            if one.marker is None:
                if not extra:
                    read.setdefault("", []).append(one)
            elif one.marker.evaluate({"extra": extra}) and (not extra or not one.marker.evaluate({"extra": ""})):
                read.setdefault(extra, []).append(one)
    return read


def _installed(system: System, name: str) -> metadata.Distribution | None:
    found = metadata.Distribution.discover(name=name, path=list(system.package_path))
    return next(iter(found), None)


def _unmet(system: System, wanted: list[Requirement]) -> Iterator[tuple[str, str, str]]:
    """Who asks, for what, and what is there instead: through everything that is needed in turn."""
    from packaging.requirements import InvalidRequirement, Requirement

    left = [("understudy", one) for one in wanted]
    seen: set[tuple[str, frozenset[str]]] = set()
    while left:
        asker, one = left.pop(0)
        there = _installed(system, one.name)
        if there is None:
            yield asker, str(one).partition(";")[0].strip(), "missing"
            continue
        if not one.specifier.contains(there.version, prereleases=True):
            yield asker, str(one).partition(";")[0].strip(), f"{there.version} is there"
        key = (one.name.lower(), frozenset(one.extras))
        if key in seen:
            continue
        seen.add(key)
        for line in there.requires or ():
            try:
                further = Requirement(line)
            except InvalidRequirement:
                continue  # somebody else's mistake, and pip has already put up with it
            extras = one.extras or {""}
            if further.marker is None or any(further.marker.evaluate({"extra": extra}) for extra in extras):
                left.append((one.name, further))


def packages(system: System, request: Request) -> Finding:
    own = _own(system)
    if own is None:
        return red("the program's own list of packages is missing", install_command(system))
    wanted = list(own.get("", []))
    lacking = {extra: list(_unmet(system, ones)) for extra, ones in own.items() if extra not in _NOT_FOR_USERS}
    if not any(system.names("/proc/driver/nvidia")):
        lacking.pop("gpu", None)
    facts = {"unmet": {extra: [" ".join(one) for one in some] for extra, some in lacking.items() if some}}
    for extra in ("", "call"):
        if some := lacking.pop(extra, []):
            asker, asked, there = some[0]
            more = f" (and {len(some) - 1} more)" if len(some) > 1 else ""
            return red(f"{asker} needs {asked}: {there}{more}", install_command(system, extra), **facts)
    for extra, some in lacking.items():
        if some:
            use = {"train": "enrolling", "gpu": "drawing on the NVIDIA card"}.get(extra, f"the extra {extra!r}")
            return yellow(f"{use} needs {some[0][1]}: {some[0][2]}", install_command(system, extra), **facts)
    return green(f"{len(wanted)} packages and all that they need, in the right versions", **facts)


def cv2_once(system: System, request: Request) -> Finding:
    """Two distributions that both bring `cv2` overwrite each other's files, and pip does not mind."""
    rivals = [name for name in _CV2_BUILDS if _installed(system, name) is not None]
    if rivals:
        return yellow(
            f"{rivals[0]} is installed beside opencv-contrib-python: both write the same files",
            f"pip uninstall -y {' '.join(rivals)} opencv-contrib-python, then {install_command(system)}",
            rivals=rivals,
        )
    return green("one build of cv2")


CHECKS = (
    Check("program.python", "Python", python),
    Check("program.packages", "packages", packages),
    Check("program.cv2", "OpenCV", cv2_once),
)
