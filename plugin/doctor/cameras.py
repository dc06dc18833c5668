"""The real camera: is there one, may we use it, what does it deliver, and who holds it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from plugin.doctor.findings import Check, Finding, Request, green, red, yellow
from plugin.doctor.settings import read_settings
from plugin.doctor.system import System
from plugin.v4l2 import Capability, Mode

_WANTED_FPS, _WANTED_HEIGHT = 24.0, 360
_WATCHERS = {"pipewire", "wireplumber", "pipewire-media-"}
"""They keep cameras open without taking pictures."""


@dataclass(frozen=True, slots=True)
class Device:
    """One `/dev/videoN`."""

    path: Path
    """As the system names it, not below `System.root`."""
    name: str
    capability: Capability | None
    """None where it could not be opened: then `trouble` says why."""
    trouble: str = ""
    virtual: bool = False
    """It is no hardware: v4l2loopback's, or another module's of that kind."""
    absent: bool = False
    """The system has it, but there is no file for it here: so it is in a container that was not given it."""


def devices(system: System) -> list[Device]:
    """Every video device of a Linux machine, by number."""
    numbers = {
        int(name.removeprefix("video"))
        for folder in ("/dev", "/sys/class/video4linux")
        for name in system.names(folder)
        if re.fullmatch(r"video\d+", name)
    }
    found = []
    for number in sorted(numbers):
        path = Path(f"/dev/video{number}")
        entry = f"/sys/class/video4linux/video{number}"
        name = system.text(f"{entry}/name")
        virtual = "/virtual/" in str(system.at(entry).resolve())
        try:
            capability = system.capability(system.at(str(path)))
        except OSError as error:
            absent = isinstance(error, FileNotFoundError)
            found.append(Device(path, name, None, error.strerror or str(error), virtual, absent))
        else:
            found.append(Device(path, name or capability.card, capability, "", virtual or capability.loopback))
    return found


def real(system: System) -> list[Device]:
    """Those that take pictures of the world, or may do so once they can be opened; not their metadata nodes."""
    return [
        one
        for one in devices(system)
        if not one.virtual and not one.absent and (one.capability is None or one.capability.captures)
    ]


def holders(system: System, path: Path) -> list[tuple[int, str]]:
    """Who has the device open: process and its name; of other users' processes only root sees that."""
    found = []
    for name in system.names("/proc"):
        if not name.isdigit():
            continue
        for handle in system.names(f"/proc/{name}/fd"):
            try:
                target = system.at(f"/proc/{name}/fd/{handle}").readlink()
            except OSError:
                continue
            if target == path:
                found.append((int(name), system.text(f"/proc/{name}/comm") or "unknown"))
                break
    return found


def _why_none(system: System) -> tuple[str, str]:
    """No camera at all: the likeliest reason, and what to do about it."""
    if "microsoft" in system.text("/proc/version").lower():
        return "Windows does not pass its cameras on to WSL", "run the program under Windows itself"
    if system.at("/.dockerenv").exists() or system.at("/run/.containerenv").exists():
        return "this container was given none", "start it with --device /dev/video0"
    if any(name.startswith(("intel_ipu6", "intel_ipu7")) for name in system.names("/sys/module")):
        return (
            "this laptop's camera (Intel IPU) is no ordinary video device",
            "install v4l2-relayd or libcamera-v4l2 from your distribution, which makes it one",
        )
    if " hypervisor " in system.text("/proc/cpuinfo"):
        return "this is a virtual machine without one", "pass the USB camera through to it"
    return "none is plugged in, or its key or shutter is off", "plug one in; then: ls /dev/video*"


def devices_found(system: System, request: Request) -> Finding:
    if not system.linux:
        from plugin.webcam import list_cameras

        listed = [one for one in list_cameras() if not one.virtual]
        if not listed:
            return red("no camera was found", "plug one in, and look whether the system's own camera program sees it")
        return _wanted(request, {one.name: one.path for one in listed})
    there = real(system)
    if not there:
        why, advice = _why_none(system)
        return red(f"no camera: {why}", advice, cameras=[])
    return _wanted(request, {f"{one.name or 'camera'} ({one.path})": str(one.path) for one in there})


def _wanted(request: Request, there: dict[str, str]) -> Finding:
    """Whether the one that the settings name is among them (name -> path)."""
    told, facts = ", ".join(there), {"cameras": list(there.values())}
    name = read_settings(request).camera.name
    if name and not any(name.lower() in one.lower() for one in there):
        return red(f"there is no camera {name!r} (camera.name), only {told}", 'set camera.name = ""', **facts)
    return green(told, **facts)


def permission(system: System, request: Request) -> Finding | None:
    if system.platform == "win32":
        return _permission_windows(system)
    if not system.linux:
        return None  # macOS tells nobody; the self-test opens the camera and sees
    there = real(system)
    if not there:
        return None
    closed = [one for one in there if not system.usable(system.at(str(one.path)))]
    if not closed:
        return green("may be used by you")
    path, user = closed[0].path, system.environment.get("USER") or "$USER"
    facts = {"closed": [str(one.path) for one in closed]}
    group = next((line for line in system.text("/etc/group").splitlines() if line.startswith("video:")), "")
    if user in group.rpartition(":")[2].split(","):
        return red(
            f"{path} may not be opened yet, though {user} is in the group video", "log out and in again", **facts
        )
    return red(f"{path} may not be opened by {user}", f"sudo usermod -aG video {user}   (then log out and in)", **facts)


def _permission_windows(system: System) -> Finding | None:
    store = r"Software\Microsoft\Windows\CurrentVersion\CapabilityAccessManager\ConsentStore\webcam"
    for key in (rf"HKLM\{store}", rf"HKCU\{store}", rf"HKCU\{store}\NonPackaged"):
        if re.search(r"REG_SZ\s+Deny", system.answer("reg", "query", key, "/v", "Value") or ""):
            return red(
                "Windows does not let programs use the camera",
                "start ms-settings:privacy-webcam   (switch it on)",
                key=key,
            )
    return green("Windows lets programs use the camera")


def formats(system: System, request: Request) -> Finding | None:
    if not system.linux:
        return None
    told: dict[str, list[Mode]] = {}
    for one in real(system):
        try:
            told[f"{one.name} ({one.path})"] = system.modes(system.at(str(one.path)))
        except OSError:
            continue  # `permission` and `busy` say why
    if not any(told.values()):
        return None
    facts = {
        name: sorted({f"{one.fourcc} {one.width}x{one.height} {one.fps:g}" for one in modes})
        for name, modes in told.items()
    }
    best = {
        name: [one for one in modes if one.height >= _WANTED_HEIGHT] or modes for name, modes in told.items() if modes
    }
    name = max(best, key=lambda which: max(one.fps for one in best[which]))
    mode = max(best[name], key=lambda one: (min(one.fps, 30.0), -abs(one.height - 480)))
    if 0 < mode.fps < _WANTED_FPS:
        return yellow(
            f"{name}: {mode.fps:g} pictures a second at most ({mode.width} x {mode.height} {mode.fourcc.strip()})",
            "plug it into another USB port, or use another camera",
            modes=facts,
        )
    if mode.height < _WANTED_HEIGHT:
        return yellow(f"{name}: {mode.width} x {mode.height} at most", "use another camera", modes=facts)
    rate = f" at {mode.fps:g} a second" if mode.fps else ""
    return green(f"{name}: {mode.width} x {mode.height}{rate} ({mode.fourcc.strip()})", modes=facts)


def busy(system: System, request: Request) -> Finding | None:
    if not system.linux:
        return None
    there = real(system)
    if not there:
        return None
    held = {one.path: [who for who in holders(system, one.path) if who[1] not in _WATCHERS] for one in there}
    facts = {"held": {str(path): [f"{name} ({pid})" for pid, name in who] for path, who in held.items() if who}}
    for path, who in held.items():
        if who:
            pid, name = who[0]
            return yellow(f"{name} (process {pid}) has {path} open", f"close {name}, or choose another camera", **facts)
    return green("nobody holds it", **facts)


CHECKS = (
    Check("webcam.device", "camera", devices_found),
    Check("webcam.permission", "permission", permission),
    Check("webcam.formats", "pictures", formats),
    Check("webcam.busy", "in use", busy),
)
