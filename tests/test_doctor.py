"""The doctor: every check is tested by breaking what it checks, the real thing where that can be broken here."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine import avatar as avatars
from engine.avatar import Avatar
from engine.base import Base, shipped_folder
from engine.config import load
from engine.frames import Image
from plugin import v4l2
from plugin.cli import main
from plugin.doctor import CHECKS, examine, findings, selftest
from plugin.doctor.findings import Check, Finding, Level, Request, Result, Writer, as_json, green, red, worst, yellow
from plugin.doctor.installation import PYTHONS
from plugin.doctor.system import ROOT, Ran, System
from plugin.doctor.system import run as run_program
from plugin.v4l2 import CAPTURE, LOOPBACK_DRIVER, OUTPUT, Capability, Mode

RELEASE = "6.1.0-9-amd64"
MODULE_OPTIONS = "options v4l2loopback devices=1 video_nr=10 card_label=Understudy exclusive_caps=1"
FLAGS = "fpu avx2 avx512f avx512_bf16"
BASE_NAME = "base.json"
CRASHING = "import os, signal\nos.kill(os.getpid(), signal.SIGILL)\n"


# --- a machine that can be broken ---------------------------------------------------------------------------


@dataclass
class Machine:
    """A folder that looks like a Linux machine in good order, with a webcam and a virtual camera."""

    root: Path
    programs: dict[str, str | None] = field(default_factory=dict)
    """The first words of a command -> what it prints; None: it fails."""
    devices: dict[str, Capability | OSError] = field(default_factory=dict)
    modes: list[Mode] = field(default_factory=list)
    closed: set[str] = field(default_factory=set)
    fields: dict[str, Any] = field(default_factory=dict)
    clock: Clock = field(default_factory=lambda: Clock())
    config: Path | None = None
    avatar: str | None = None

    def __post_init__(self) -> None:
        texts = {
            "/proc/cpuinfo": f"processor\t: 0\nmodel name\t: Test Processor\nflags\t\t: {FLAGS}\n",
            "/proc/loadavg": "0.20 0.30 0.40 1/200 4242",
            "/proc/meminfo": "MemTotal: 16000000 kB\nMemAvailable: 8000000 kB",
            "/proc/modules": "v4l2loopback 1 0 - Live 0x0",
            "/proc/self/cgroup": "0::/user.slice",
            "/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "schedutil",
            "/sys/devices/system/cpu/cpu0/cpufreq/scaling_driver": "acpi-cpufreq",
            "/sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq": "4000000",
            "/sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq": "4000000",
            "/sys/devices/system/clocksource/clocksource0/current_clocksource": "tsc",
            "/sys/module/v4l2loopback/parameters/exclusive_caps": "Y,N,N",
            "/sys/class/video4linux/video0/name": "Test Webcam",
            "/sys/class/video4linux/video10/name": "Understudy",
            "/etc/os-release": 'ID=ubuntu\nID_LIKE="debian"',
            "/etc/group": "root:x:0:\nvideo:x:44:somebody",
            "/etc/modules-load.d/understudy.conf": "v4l2loopback",
            "/etc/modprobe.d/understudy.conf": MODULE_OPTIONS,
            f"/lib/modules/{RELEASE}/modules.dep": "updates/dkms/v4l2loopback.ko: kernel/drivers/media/videodev.ko",
            "/run/user/1000/pipewire-0": "",
        }
        for path, text in texts.items():
            self.write(path, text)
        self.devices = {
            "video0": Capability("uvcvideo", "Test Webcam", CAPTURE),
            "video10": Capability(LOOPBACK_DRIVER, "Understudy", OUTPUT),
        }
        self.modes = [Mode("MJPG", 640, 480, 30.0), Mode("YUYV", 1280, 720, 10.0)]
        self.programs = {
            "timedatectl show": "yes",
            "pactl get-default-source": "alsa_input.usb",
            "ss -Hltnp": "",
        }

    def write(self, path: str, text: str | bytes) -> None:
        file = self.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text if isinstance(text, bytes) else text.encode())

    def remove(self, path: str) -> None:
        file = self.root / path.lstrip("/")
        if file.is_dir():
            shutil.rmtree(file)
        else:
            file.unlink()

    def open_in(self, pid: int, name: str, device: str) -> None:
        """A process holds a device."""
        self.write(f"/proc/{pid}/comm", name)
        handles = self.root / f"proc/{pid}/fd"
        handles.mkdir(parents=True)
        (handles / "7").symlink_to(device)

    def unload(self) -> None:
        """v4l2loopback is not loaded, so its device is not there."""
        self.remove("/sys/module/v4l2loopback")
        self.remove("/sys/class/video4linux/video10")
        del self.devices["video10"]

    def _run(self, command: Sequence[str], limit_s: float) -> Ran | None:
        words = " ".join(command)
        for start, printed in self.programs.items():
            if words.startswith(start):
                return Ran(1, "") if printed is None else Ran(0, printed)
        return None

    def _capability(self, device: Path) -> Capability:
        found = self.devices.get(device.name, OSError(2, "No such file or directory"))
        if isinstance(found, OSError):
            raise found
        return found

    def system(self) -> System:
        given: dict[str, Any] = {
            "root": self.root,
            "platform": "linux",
            "machine": "x86_64",
            "release": RELEASE,
            "python": (3, 11, 7),
            "environment": {"USER": "somebody", "HOME": "/home/somebody", "XDG_RUNTIME_DIR": "/run/user/1000"},
            "cores": lambda: 4,
            "run": self._run,
            "capability": self._capability,
            "modes": lambda device: self.modes,
            "usable": lambda device: device.name not in self.closed,
        }
        clock = self.clock
        given |= {"sleep": clock.sleep, "wall_s": clock.wall_s, "monotonic_s": clock.monotonic_s}
        return System(**(given | self.fields))


class Clock:
    """Time passes while somebody sleeps; the time of day may jump then, or the monotonic time stand still."""

    def __init__(self, date_s: float = 1.8e9, jump_s: float = 0.0, stands_still: bool = False) -> None:
        self._passed_s, self._date_s, self._jump_s, self._stands_still = 0.0, date_s, jump_s, stands_still

    def sleep(self, spent_s: float) -> None:
        self._passed_s += spent_s
        self._date_s += self._jump_s

    def wall_s(self) -> float:
        return self._date_s + self._passed_s

    def monotonic_s(self) -> float:
        return 100.0 if self._stands_still else 100.0 + self._passed_s


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """In good order, with an empty home of its own."""
    monkeypatch.setenv("UNDERSTUDY_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "cache"))
    (tmp_path / "root").mkdir()
    return Machine(tmp_path / "root")


@pytest.fixture
def own_avatar(machine: Machine, tiny_base: Base, tiny_avatar: Avatar, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An avatar in that home, over a tiny base."""
    monkeypatch.setattr("engine.base.shipped_folder", lambda: tiny_base.folder)
    path = avatars.place("tiny")
    avatars.save(tiny_avatar, path)
    return path


@pytest.fixture
def own_base(tmp_path: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the base, to be damaged."""
    folder = tmp_path / "base"
    shutil.copytree(shipped_folder(), folder)
    monkeypatch.setattr("engine.base.shipped_folder", lambda: folder)
    return folder


def expect(finding: Finding | None, level: Level, told: str, advice: str = "") -> None:
    assert finding is not None
    assert finding.level == level, finding
    assert told in finding.told
    assert advice in finding.next
    assert bool(finding.next) == (level != "green")


ALL = (*CHECKS, *selftest.SelfTest().checks())
BY_ID = {check.id: check for check in ALL}
COVERED: set[str] = set()


def found(machine: Machine, check_id: str) -> Finding | None:
    return BY_ID[check_id].examine(machine.system(), Request(machine.config, machine.avatar))


def breaks(*check_ids: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Marks a test that breaks what these checks look at."""
    COVERED.update(check_ids)
    return lambda test: test


# --- broken trees: (check, what is broken, how, level, words of the sentence, words of what to type) ------------

Case = tuple[str, str, Callable[[Machine], object], Level, str, str]


def edit(path: str, text: str | bytes) -> Callable[[Machine], object]:
    return lambda machine: machine.write(path, text)


def program(words: str, printed: str | None) -> Callable[[Machine], object]:
    return lambda machine: machine.programs.update({words: printed})


def given(**fields: Any) -> Callable[[Machine], object]:
    return lambda machine: machine.fields.update(fields)


def tick(clock: Clock) -> Callable[[Machine], object]:
    return lambda machine: setattr(machine, "clock", clock)


def device(name: str, told: Capability | OSError) -> Callable[[Machine], object]:
    def change(machine: Machine) -> None:
        machine.devices[name] = told
        machine.write(f"/sys/class/video4linux/{name}/name", told.card if isinstance(told, Capability) else "closed")

    return change


def both(*changes: Callable[[Machine], object]) -> Callable[[Machine], object]:
    return lambda machine: [change(machine) for change in changes]


def settings(text: str) -> Callable[[Machine], object]:
    def change(machine: Machine) -> None:
        machine.config = machine.root / "mine.toml"
        machine.config.write_text(text)

    return change


def own_settings(machine: Machine) -> None:
    avatars.home().mkdir()
    (avatars.home() / "config.toml").write_text("[camera]\nfsp = 30")


def unload(machine: Machine) -> None:
    machine.unload()


def without(path: str) -> Callable[[Machine], object]:
    return lambda machine: machine.remove(path)


def no_webcam(machine: Machine) -> None:
    machine.remove("/sys/class/video4linux/video0")
    del machine.devices["video0"]


def closed(*names: str) -> Callable[[Machine], object]:
    return lambda machine: machine.closed.update(names)


def deliver(*modes: Mode) -> Callable[[Machine], object]:
    return lambda machine: setattr(machine, "modes", list(modes))


def windows(**programs: str | None) -> Callable[[Machine], object]:
    return both(given(platform="win32"), lambda machine: machine.programs.update(programs))


LOOP = "/sys/module/v4l2loopback"
CPUFREQ = "/sys/devices/system/cpu/cpu0/cpufreq"
EFI = "/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
FULL = Capability(LOOPBACK_DRIVER, "Understudy", CAPTURE | OUTPUT)
FED = Capability(LOOPBACK_DRIVER, "Understudy", CAPTURE)
WEBCAM_KEY = (
    "reg query HKCU\\Software\\Microsoft\\Windows\\CurrentVersion\\CapabilityAccessManager\\ConsentStore\\webcam "
)
EXTENSION = "com.obsproject.obs-studio.mac-camera-extension (1.0/1)"

CASES: list[Case] = [
    ("program.python", "3.13", given(python=(3, 13, 0)), "red", "3.11 and 3.12 only", "python3.11 -m venv"),
    ("program.python", "3.10", given(python=(3, 10, 4)), "red", "3.11 and 3.12 only", "python3.11 -m venv"),
    ("program.python", "32 bits", given(pointer_bits=32), "red", "32 bits", "64-bit"),
    ("program.python", "arm", given(machine="aarch64"), "red", "aarch64", "Intel or AMD"),
    (
        "program.python",
        "Rosetta",
        both(given(platform="darwin"), program("sysctl -n sysctl.proc_translated", "1")),
        "yellow",
        "Rosetta",
        "arm64",
    ),
    ("machine.cpu", "one core", given(cores=lambda: 1), "yellow", "1 core:", "second core"),
    (
        "machine.cpu",
        "old",
        edit("/proc/cpuinfo", "model name : Old\nflags : sse4_2\n"),
        "yellow",
        "AVX2",
        "size_px = 256",
    ),
    (
        "machine.cpu",
        "a container's quota",
        edit("/sys/fs/cgroup/user.slice/cpu.max", "50000 100000"),
        "yellow",
        "0.5",
        "",
    ),
    ("machine.load", "busy", edit("/proc/loadavg", "7.50 1 1 1/1 1"), "yellow", "7.5 of 4", "top"),
    ("machine.memory", "little", edit("/proc/meminfo", "MemAvailable: 1500000 kB"), "yellow", "1.5 GB", "close"),
    ("machine.memory", "none", edit("/proc/meminfo", "MemAvailable: 300000 kB"), "red", "0.3 GB", "close"),
    (
        "machine.memory",
        "a container's limit",
        both(edit("/sys/fs/cgroup/memory.max", "800000000"), edit("/sys/fs/cgroup/memory.current", "300000000")),
        "red",
        "0.5 GB",
        "close",
    ),
    (
        "machine.power",
        "governor",
        edit(f"{CPUFREQ}/scaling_governor", "powersave"),
        "yellow",
        "lowest speed",
        "cpupower",
    ),
    (
        "machine.power",
        "preference",
        edit(f"{CPUFREQ}/energy_performance_preference", "power"),
        "yellow",
        "held back",
        "powerprofilesctl set balanced",
    ),
    (
        "machine.power",
        "profile",
        edit("/sys/firmware/acpi/platform_profile", "low-power"),
        "yellow",
        "held back",
        "balanced",
    ),
    ("machine.power", "capped", edit(f"{CPUFREQ}/scaling_max_freq", "1200000"), "yellow", "1.2 of its 4.0", "4000000"),
    (
        "machine.power",
        "battery",
        both(
            edit("/sys/class/power_supply/BAT0/type", "Battery"),
            edit("/sys/class/power_supply/BAT0/status", "Discharging"),
        ),
        "yellow",
        "battery",
        "plug",
    ),
    (
        "machine.power",
        "battery of a Mac",
        both(
            given(platform="darwin"),
            program("pmset -g ps", "Now drawing from 'Battery Power'"),
            program("pmset -g", ""),
        ),
        "yellow",
        "battery",
        "plug",
    ),
    (
        "machine.power",
        "low power on a Mac",
        both(given(platform="darwin"), program("pmset -g", "lowpowermode 1")),
        "yellow",
        "Low Power Mode",
        "pmset",
    ),
    (
        "machine.power",
        "power saver on Windows",
        both(given(platform="win32"), program("powercfg", "GUID: A1841308-3541-4FAB-BC81-F71556F20B4A (Power saver)")),
        "yellow",
        "power saver",
        "powercfg",
    ),
    ("machine.clock", "jump", tick(Clock(jump_s=3.0)), "yellow", "jumped", "timedatectl"),
    ("machine.clock", "stands still", tick(Clock(stands_still=True)), "red", "stands still", "restart"),
    ("machine.clock", "date", tick(Clock(date_s=1000.0)), "yellow", "date is wrong", "set the date"),
    ("machine.clock", "not set", program("timedatectl show", "no"), "yellow", "not set from the network", "set-ntp"),
    (
        "machine.clock",
        "slow source",
        edit("/sys/devices/system/clocksource/clocksource0/current_clocksource", "hpet"),
        "yellow",
        "hpet",
        "dmesg",
    ),
    ("machine.card", "asked for", settings('[engine]\ndevice = "cuda"'), "red", "no NVIDIA card", "auto"),
    ("files.config", "unknown name", settings("[camera]\nfsp = 30"), "red", "fsp is not a known setting", "mine.toml"),
    ("files.config", "no TOML", settings("[camera"), "red", "not a TOML file", "mine.toml"),
    (
        "files.config",
        "no picture",
        settings('[render]\nbackground = "image"\nimage = "gone.jpg"'),
        "red",
        "gone.jpg",
        "mine.toml",
    ),
    ("webcam.device", "none", no_webcam, "red", "none is plugged in", "ls /dev/video"),
    ("webcam.device", "WSL", both(no_webcam, edit("/proc/version", "Linux Microsoft")), "red", "WSL", "Windows"),
    ("webcam.device", "container", both(no_webcam, edit("/.dockerenv", "")), "red", "container", "--device"),
    (
        "webcam.device",
        "laptop camera without a driver",
        both(no_webcam, edit("/sys/module/intel_ipu6_isys/refcnt", "0")),
        "red",
        "IPU",
        "libcamera",
    ),
    ("webcam.device", "another name", settings('[camera]\nname = "Zeta"'), "red", "'Zeta'", "camera.name"),
    (
        "webcam.permission",
        "not in the group",
        both(closed("video0"), edit("/etc/group", "video:x:44:")),
        "red",
        "",
        "usermod",
    ),
    ("webcam.permission", "not logged in again", closed("video0"), "red", "though somebody is in", "log out"),
    (
        "webcam.permission",
        "Windows",
        both(given(platform="win32"), program(WEBCAM_KEY, "    Value    REG_SZ    Deny")),
        "red",
        "does not let",
        "privacy-webcam",
    ),
    ("webcam.formats", "slow", deliver(Mode("YUYV", 1280, 720, 10.0)), "yellow", "10 pictures", "USB port"),
    ("webcam.formats", "small", deliver(Mode("YUYV", 320, 240, 30.0)), "yellow", "320 x 240", "another camera"),
    (
        "webcam.busy",
        "held",
        lambda machine: machine.open_in(812, "zoom", "/dev/video0"),
        "yellow",
        "zoom (process 812)",
        "close zoom",
    ),
    ("virtual.module", "not loaded", unload, "red", "not loaded", "sudo modprobe v4l2loopback devices=1 video_nr=10"),
    (
        "virtual.module",
        "not installed",
        both(unload, without(f"/lib/modules/{RELEASE}")),
        "red",
        "not installed",
        f"sudo apt install v4l2loopback-dkms linux-headers-{RELEASE}; then sudo modprobe v4l2loopback",
    ),
    (
        "virtual.module",
        "not installed, Fedora",
        both(unload, without(f"/lib/modules/{RELEASE}"), edit("/etc/os-release", "ID=fedora")),
        "red",
        "not installed",
        "dnf",
    ),
    (
        "virtual.module",
        "of another kernel",
        both(unload, given(release="6.1.0-10-amd64")),
        "red",
        f"built for {RELEASE}, and 6.1.0-10-amd64",
        "dkms autoinstall",
    ),
    ("virtual.module", "Secure Boot", both(unload, edit(EFI, b"\x06\0\0\0\1")), "red", "Secure Boot", "mokutil"),
    ("virtual.module", "container", both(unload, edit("/.dockerenv", "")), "red", "container", "on the host"),
    ("virtual.module", "no modules", both(unload, without("/proc/modules")), "red", "takes no modules", "kernel"),
    (
        "virtual.module",
        "number taken",
        both(unload, device("video10", Capability("uvcvideo", "Second webcam", CAPTURE))),
        "red",
        "not loaded",
        "video_nr=11",
    ),
    (
        "virtual.device",
        "no device",
        both(without("/sys/class/video4linux/video10"), lambda m: m.devices.pop("video10")),
        "red",
        "without a device",
        "modprobe -r",
    ),
    (
        "virtual.device",
        "fed by another",
        both(device("video10", FED), lambda machine: machine.open_in(77, "obs", "/dev/video10")),
        "red",
        "obs (process 77)",
        "devices=2",
    ),
    ("virtual.device", "fed by somebody unseen", device("video10", FED), "red", "takes no pictures", "modprobe -r"),
    (
        "virtual.device",
        "label",
        device("video10", Capability(LOOPBACK_DRIVER, "Dummy video device (0x0000)", OUTPUT)),
        "yellow",
        "Dummy",
        "card_label=Understudy",
    ),
    (
        "virtual.device",
        "two of one name",
        device("video11", Capability(LOOPBACK_DRIVER, "Understudy", OUTPUT)),
        "yellow",
        "2 devices",
        "modprobe",
    ),
    (
        "virtual.device",
        "named one is not there",
        settings('[camera]\ndevice = "/dev/video7"'),
        "red",
        "/dev/video7",
        "camera.device",
    ),
    (
        "virtual.device",
        "Windows without any",
        windows(**{"reg query": None}),
        "red",
        "neither OBS nor Unity Capture",
        "winget install",
    ),
    (
        "virtual.device",
        "Windows with OBS running",
        windows(
            **{"reg query HKEY_CLASSES_ROOT\\CLSID\\{5C2": None, "reg query": "there", "tasklist": "obs64.exe 4242"}
        ),
        "yellow",
        "OBS is running",
        "Stop Virtual Camera",
    ),
    ("virtual.device", "Mac without OBS", given(platform="darwin"), "red", "not installed", "brew install"),
    (
        "virtual.device",
        "Mac, never started",
        both(given(platform="darwin"), edit("/Applications/OBS.app/Contents/Info.plist", "")),
        "red",
        "never started",
        "Start Virtual Camera",
    ),
    (
        "virtual.device",
        "Mac, not allowed",
        both(given(platform="darwin"), program("systemextensionsctl", f"* {EXTENSION} [activated waiting for user]")),
        "red",
        "not allowed yet",
        "System Settings",
    ),
    ("virtual.exclusive_caps", "off", device("video10", FULL), "red", "exclusive_caps=0", "exclusive_caps=1"),
    (
        "virtual.exclusive_caps",
        "off for the first of two",
        device("video9", FULL),
        "yellow",
        "/dev/video9, the first",
        "/dev/video10",
    ),
    (
        "virtual.boot",
        "not loaded",
        without("/etc/modules-load.d/understudy.conf"),
        "yellow",
        "gone after a restart",
        "tee /etc/modules-load.d",
    ),
    (
        "virtual.boot",
        "without options",
        without("/etc/modprobe.d/understudy.conf"),
        "yellow",
        "without exclusive_caps=1",
        MODULE_OPTIONS,
    ),
    (
        "virtual.sandboxes",
        "snap",
        both(
            edit("/snap/chromium/current", ""),
            program("snap connections chromium", "Interface Plug Slot Notes\ncamera chromium:camera - -"),
        ),
        "yellow",
        "snap chromium may not",
        "sudo snap connect chromium:camera",
    ),
    (
        "virtual.sandboxes",
        "Zoom's snap",
        edit("/snap/zoom-client/current", ""),
        "yellow",
        "exclusive_caps=0",
        "exclusive_caps=1,0",
    ),
    (
        "virtual.sandboxes",
        "Flatpak",
        both(
            edit("/home/somebody/.local/share/flatpak/app/us.zoom.Zoom/x", ""),
            program("flatpak info --show-permissions us.zoom.Zoom", "[Context]\ndevices=dri;"),
        ),
        "yellow",
        "Flatpak us.zoom.Zoom may not",
        "--device=all us.zoom.Zoom",
    ),
    ("around.sound", "no server", without("/run/user/1000/pipewire-0"), "yellow", "neither PipeWire", "apt install"),
    ("around.sound", "no pactl", program("pactl get-default-source", None), "yellow", "pactl", "pulseaudio-utils"),
    (
        "around.sound",
        "no microphone",
        program("pactl get-default-source", "a.monitor"),
        "yellow",
        "no microphone",
        "plug",
    ),
    ("files.config", "the user's own", own_settings, "red", "fsp is not a known setting", "config.toml"),
]
COVERED.update(case[0] for case in CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}: {case[1]}")
def test_what_is_broken_is_told(machine: Machine, case: Case) -> None:
    check_id, _, break_it, level, told, advice = case
    break_it(machine)
    expect(found(machine, check_id), level, told, advice)


def test_nothing_is_wrong_with_a_machine_in_good_order(machine: Machine, own_avatar: Path) -> None:
    skipped = {"program.packages", "program.cv2", "program.load", "around.window"}
    answers = {check.id: found(machine, check.id) for check in CHECKS if check.id not in skipped}
    assert {check_id: one for check_id, one in answers.items() if one is None or one.level != "green"} == {}


def test_the_governor_powersave_is_ordinary_where_the_driver_decides(machine: Machine) -> None:
    machine.write(f"{CPUFREQ}/scaling_governor", "powersave")
    machine.write(f"{CPUFREQ}/scaling_driver", "intel_pstate")
    finding = found(machine, "machine.power")
    assert finding is not None and finding.level == "green"


def test_who_only_watches_a_camera_does_not_hold_it(machine: Machine) -> None:
    machine.open_in(5, "wireplumber", "/dev/video0")
    finding = found(machine, "webcam.busy")
    assert finding is not None and finding.level == "green"


@pytest.mark.parametrize(
    ("error", "told", "advice"),
    [
        (PermissionError(13, "Permission denied"), "Permission denied", "usermod -aG video somebody"),
        (FileNotFoundError(2, "No such file"), "not in this container", "--device /dev/video10"),
    ],
)
def test_a_virtual_camera_that_cannot_be_opened(machine: Machine, error: OSError, told: str, advice: str) -> None:
    """It is known by its place in /sys/devices/virtual, and taken neither for a webcam nor for a free device."""
    machine.devices["video10"] = error
    entry = machine.root / "sys/class/video4linux/video10"
    virtual = machine.root / "sys/devices/virtual/video4linux/video10"
    virtual.parent.mkdir(parents=True)
    entry.rename(virtual)
    entry.symlink_to(virtual)
    expect(found(machine, "virtual.device"), "red", told, advice)
    webcam = found(machine, "webcam.device")
    assert webcam is not None and webcam.facts["cameras"] == ["/dev/video0"]


def test_a_device_that_a_program_left_is_free(machine: Machine) -> None:
    """v4l2loopback 0.12.7 then says neither; the sink asks it to take pictures again."""
    machine.devices["video10"] = Capability(LOOPBACK_DRIVER, "Understudy", 0)
    expect(found(machine, "virtual.device"), "green", "Understudy (/dev/video10), free")
    expect(found(machine, "virtual.exclusive_caps"), "green", "exclusive_caps=1")


def test_a_webcam_that_a_container_was_not_given(machine: Machine) -> None:
    machine.devices["video0"] = FileNotFoundError(2, "No such file")
    machine.write("/.dockerenv", "")
    expect(found(machine, "webcam.device"), "red", "container", "--device /dev/video0")
    assert found(machine, "webcam.permission") is None


# --- the real thing, broken ---------------------------------------------------------------------------------


@breaks("files.home")
def test_a_home_that_is_a_file(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    (machine.root / "file").touch()
    monkeypatch.setenv("UNDERSTUDY_HOME", str(machine.root / "file"))
    expect(found(machine, "files.home"), "red", "cannot be written to", "UNDERSTUDY_HOME")


@breaks("files.home")
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root may become somebody else")
def test_a_home_of_somebody_else(machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> None:
    """In a process of an ordinary user, for root may write everywhere."""
    folder = Path("/tmp") / f"understudy-{os.getpid()}"
    folder.mkdir(mode=0o555)
    try:
        code = (
            "import os, sys; sys.path.insert(0, sys.argv[1]); import engine.avatar\n"
            "from plugin.doctor.files import home; from plugin.doctor.system import System\n"
            "from plugin.doctor.findings import Request\n"
            "os.setuid(65534); finding = home(System(), Request()); print(finding.level, finding.told)"
        )
        command = [sys.executable, "-c", code, str(ROOT)]
        environment = os.environ | {"UNDERSTUDY_HOME": str(folder / "home")}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert done.stdout.startswith("red"), done.stderr
        assert "Permission denied" in done.stdout
    finally:
        folder.rmdir()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@breaks("files.home", "files.disk")
def test_a_disk_that_is_full(machine: Machine, small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNDERSTUDY_HOME", str(small_disk / "home"))
    expect(found(machine, "files.disk"), "red", "1 MB free for avatars", str(small_disk))
    (small_disk / "home").mkdir()
    filler = os.open(small_disk / "filler", os.O_WRONLY | os.O_CREAT)
    with pytest.raises(OSError, match="No space left"):
        while True:
            os.write(filler, bytes(4096))
    os.close(filler)
    expect(found(machine, "files.home"), "red", "is full", "free some space")


@breaks("files.disk")
def test_a_disk_with_little_room(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(machine.root)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=100_000_000))
    expect(found(machine, "files.disk"), "yellow", "100 MB free", "free some space")


@breaks("files.base")
def test_a_damaged_base(machine: Machine, own_base: Path) -> None:
    whole = (own_base / "encoder.onnx").read_bytes()
    (own_base / "encoder.onnx").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    expect(found(machine, "files.base"), "red", "encoder.onnx is not the file that was shipped", "pip install")
    (own_base / "encoder.onnx").unlink()
    expect(found(machine, "files.base"), "red", "has no encoder.onnx", "pip install")
    shutil.rmtree(own_base)
    expect(found(machine, "files.base"), "red", "there is no base model", "pip install")


@breaks("files.helpers")
def test_a_damaged_helper(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    from training.fetch import HELPERS

    expect(found(machine, "files.helpers"), "green", "needs the network once")
    file = HELPERS["sface"].file
    file.parent.mkdir(parents=True)
    file.write_bytes(b"half a download")
    expect(found(machine, "files.helpers"), "yellow", "is damaged", f"rm '{file}'")


@breaks("files.avatars")
def test_damaged_and_foreign_avatars(machine: Machine, own_avatar: Path, tiny_avatar: Avatar) -> None:
    expect(found(machine, "files.avatars"), "green", "tiny")
    avatars.save(replace(tiny_avatar, name="old", base="0" * 64), avatars.place("old"))
    expect(found(machine, "files.avatars"), "yellow", "old cannot be used", "understudy enrol PHOTOS... --name old")
    machine.avatar = "old"
    expect(found(machine, "files.avatars"), "red", "base", "understudy avatars")
    machine.avatar = "nobody"
    expect(found(machine, "files.avatars"), "red", "no avatar called 'nobody'", "understudy avatars")
    machine.avatar = None
    own_avatar.write_bytes(own_avatar.read_bytes()[:-100])
    expect(found(machine, "files.avatars"), "red", "cannot be used", "understudy enrol")
    shutil.rmtree(own_avatar.parent)
    expect(found(machine, "files.avatars"), "yellow", "none yet", "understudy enrol")


@breaks("around.window")
def test_a_preview_without_a_display(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.system", lambda: "Linux")
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    expect(found(machine, "around.window"), "yellow", "no preview: there is no display", "--no-window")
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr("cv2.getBuildInformation", lambda: "  GUI:                           NONE")
    expect(found(machine, "around.window"), "yellow", "no windows", "pip install")
    monkeypatch.setattr("cv2.getBuildInformation", lambda: "  GUI:                           QT5")
    expect(found(machine, "around.window"), "green", "preview")


@breaks("around.ports")
def test_a_port_that_is_taken(machine: Machine) -> None:
    expect(found(machine, "around.ports"), "green", "")
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        settings(f"[link]\nport = {port}")(machine)
        machine.programs["ss -Hltnp"] = 'LISTEN 0 1 127.0.0.1:1 0.0.0.0:* users:(("nginx",pid=99,fd=3))'
        expect(found(machine, "around.ports"), "red", f"port {port} (link.port) is taken by nginx", "link.port")


def distribution(folder: Path, name: str, version: str, *requires: str) -> None:
    """An installed package, as far as its metadata goes."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    lines = [
        "Metadata-Version: 2.1",
        f"Name: {name}",
        f"Version: {version}",
        *(f"Requires-Dist: {one}" for one in requires),
    ]
    (info / "METADATA").write_text("\n".join(lines) + "\n")


@pytest.fixture
def packages(machine: Machine, tmp_path: Path) -> Path:
    """A folder of packages for a project that wants two, and one for calls."""
    project, folder = tmp_path / "project", tmp_path / "packages"
    project.mkdir()
    (project / "pyproject.toml").write_text(
        '[project]\ndependencies = ["alpha==1.0"]\n[project.optional-dependencies]\n'
        'call = ["gamma>=2"]\ntrain = ["delta==1"]\ngpu = ["epsilon"]\ndev = ["zeta"]\n'
    )
    distribution(folder, "alpha", "1.0", "beta<3", "other; sys_platform == 'none'")
    distribution(folder, "beta", "2.5")
    distribution(folder, "gamma", "2.1", "beta>=2")
    distribution(folder, "delta", "1")
    machine.fields |= {"project": project, "package_path": (str(folder),)}
    return folder


@breaks("program.packages")
def test_packages_that_are_missing_or_of_another_version(machine: Machine, packages: Path) -> None:
    expect(found(machine, "program.packages"), "green", "1 packages")
    shutil.rmtree(packages / "delta-1.dist-info")
    expect(found(machine, "program.packages"), "yellow", "enrolling needs delta==1: missing", "'.[train]'")
    (packages / "beta-2.5.dist-info").rename(packages / "beta-3.0.dist-info")
    metadata = packages / "beta-3.0.dist-info" / "METADATA"
    metadata.write_text(metadata.read_text().replace("2.5", "3.0"))
    expect(found(machine, "program.packages"), "red", "alpha needs beta<3: 3.0 is there", "pip install")
    shutil.rmtree(packages / "beta-3.0.dist-info")
    distribution(packages, "beta", "2.5")
    shutil.rmtree(packages / "gamma-2.1.dist-info")
    expect(found(machine, "program.packages"), "red", "understudy needs gamma>=2: missing", "'.[call]'")


@breaks("program.packages")
def test_packages_of_an_installed_wheel(machine: Machine, packages: Path) -> None:
    machine.fields["project"] = None
    info = packages / "understudy-1.dist-info"
    distribution(packages, "understudy", "1", "alpha==1.0", "gamma>=2; extra == 'call'")
    with (info / "METADATA").open("a") as file:
        file.write("Provides-Extra: call\n")
    expect(found(machine, "program.packages"), "green", "1 packages")
    shutil.rmtree(packages / "gamma-2.1.dist-info")
    expect(found(machine, "program.packages"), "red", "gamma>=2: missing", "pip install --upgrade 'understudy[call]'")
    shutil.rmtree(info)
    expect(found(machine, "program.packages"), "red", "own list of packages is missing", "pip install --upgrade")


@breaks("program.cv2")
def test_two_builds_of_opencv(machine: Machine, packages: Path) -> None:
    expect(found(machine, "program.cv2"), "green", "one build")
    distribution(packages, "opencv-python-headless", "4.11")
    expect(found(machine, "program.cv2"), "yellow", "opencv-python-headless is installed beside", "pip uninstall")


# --- the other process --------------------------------------------------------------------------------------


@pytest.fixture
def modules(machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty modules in the place of those that a call needs, found first by a new process."""
    folder = tmp_path / "modules"
    folder.mkdir()
    for name in selftest.MODULES:
        (folder / f"{name}.py").touch()
    monkeypatch.setenv("PYTHONPATH", str(folder))
    machine.fields["run"] = run_program
    return folder


@breaks("program.load")
def test_libraries_that_do_not_load(machine: Machine, modules: Path) -> None:
    expect(found(machine, "program.load"), "green", "all load")
    (modules / "sounddevice.py").write_text("raise OSError('PortAudio library not found')")
    expect(found(machine, "program.load"), "yellow", "sounddevice does not load", "libportaudio2")
    (modules / "cv2.py").write_text("raise ImportError('libGL.so.1: cannot open shared object file')")
    expect(found(machine, "program.load"), "red", "cv2 does not load: libGL.so.1", "sudo apt install libgl1")
    (modules / "openvino.py").write_text(CRASHING)
    expect(found(machine, "program.load"), "red", "ended by SIGILL while loading openvino", "newer computer")


@breaks("program.load")
def test_a_library_that_hangs_is_told(machine: Machine) -> None:
    said = '{"stage": "load", "began": true}\n{"stage": "load", "began": true, "module": "mediapipe"}'
    machine.fields["run"] = lambda command, limit_s: Ran(0, said, ended=False)
    expect(found(machine, "program.load"), "red", "did not end within 30 s while loading mediapipe", "pip install")


def answering(**stages: dict[str, Any]) -> Callable[[Sequence[str], float], Ran]:
    """A self-test process that tells this."""
    lines = [json.dumps({"stage": name, **told}) for name, told in stages.items()]
    return lambda command, limit_s: Ran(0, "a library talks\n" + "\n".join(lines))


RAN: dict[str, Any] = {
    "avatar": "tiny",
    "wanted_fps": 30.0,
    "size_px": 512,
    "state": "live",
    "fps": 29.9,
    "glass_ms": [41.0, 62.0],
    "backend": "OpenVINO",
    "problems": [],
    "device": "/dev/video10",
    "takes_again": True,
    "back": {"count": 90, "fps": 29.8, "variant": "right", "difference": 2.1, "size_px": [1280, 720], "trouble": ""},
}
SEEN: dict[str, Any] = {
    "name": "Test Webcam",
    "wanted_fps": 30.0,
    "fps": 30.0,
    "brightness": 110.0,
    "contrast": 50.0,
    "change": 4.0,
}


def self_tested(machine: Machine, **stages: dict[str, Any]) -> dict[str, Finding | None]:
    machine.fields["run"] = answering(**stages)
    checks = selftest.SelfTest().checks()
    return {check.id: check.examine(machine.system(), Request()) for check in checks}


def test_a_self_test_that_goes_well(machine: Machine) -> None:
    told = self_tested(machine, loop=RAN, camera=SEEN)
    expect(told["selftest.draw"], "green", "29.9 of 30 pictures a second at 512 px, 41 ms late")
    expect(told["selftest.virtual"], "green", "1280 x 720, upright, colours right")
    expect(told["selftest.webcam"], "green", "30 pictures a second")


@breaks("selftest.draw")
@pytest.mark.parametrize(
    ("change", "level", "told", "advice"),
    [
        ({"fps": 22.0}, "yellow", "22 of 30", "size_px = 256"),
        ({"fps": 5.0, "size_px": 256}, "red", "5 of 30", "more cores"),
        ({"avatar": None}, "yellow", "no avatar", "understudy enrol"),
        ({"fps": 0, "problems": ["the tracker failed"]}, "red", "the tracker failed", "--patience"),
        ({"glass_ms": []}, "red", "no picture was drawn", "--patience"),
        ({"error": "it did not end within 30 s"}, "red", "did not end within 30 s", "--patience"),
        ({"state": "no face"}, "red", "sees no face", "enrol"),
        ({"error": "there is no avatar 'x'"}, "red", "there is no avatar 'x'", "--verbose camera"),
    ],
)
def test_a_loop_that_goes_badly(machine: Machine, change: dict[str, Any], level: Level, told: str, advice: str) -> None:
    expect(self_tested(machine, loop=RAN | change)["selftest.draw"], level, told, advice)


@breaks("selftest.draw")
def test_a_slow_loop_beside_other_programs_blames_them(machine: Machine) -> None:
    machine.write("/proc/loadavg", "9.00 1 1 1/1 1")
    expect(
        self_tested(machine, loop=RAN | {"fps": 22.0})["selftest.draw"],
        "yellow",
        "22 of 30",
        "close what you do not need",
    )


@breaks("selftest.virtual")
@pytest.mark.parametrize(
    ("change", "level", "told"),
    [
        ({"back": {"count": 0, "trouble": "/dev/video10 gave no picture"}}, "red", "nothing came back"),
        ({"back": RAN["back"] | {"variant": "upside down"}}, "red", "comes back upside down"),
        ({"back": RAN["back"] | {"difference": 80.0}}, "red", "something else"),
        ({"back": RAN["back"] | {"fps": 9.0}}, "yellow", "9 pictures a second"),
        ({"takes_again": False}, "yellow", "takes no pictures any more"),
        ({"sink_error": "the virtual camera needs one more part"}, "red", "not tested: the virtual camera needs"),
    ],
)
def test_a_virtual_camera_that_goes_badly(machine: Machine, change: dict[str, Any], level: Level, told: str) -> None:
    expect(self_tested(machine, loop=RAN | change)["selftest.virtual"], level, told)


@breaks("selftest.webcam")
@pytest.mark.parametrize(
    ("change", "level", "told", "advice"),
    [
        ({"brightness": 2.0}, "red", "black", "shutter"),
        ({"contrast": 0.5}, "red", "one colour", "camera.name"),
        ({"change": 0.0}, "yellow", "still picture", "start the program"),
        ({"fps": 9.0}, "yellow", "9 pictures", "light"),
        ({"error": "the camera 'x' cannot be opened"}, "red", "cannot be opened", "close other programs"),
    ],
)
def test_a_webcam_that_goes_badly(
    machine: Machine, change: dict[str, Any], level: Level, told: str, advice: str
) -> None:
    expect(self_tested(machine, loop=RAN, camera=SEEN | change)["selftest.webcam"], level, told, advice)


@breaks("machine.card")
def test_a_card_that_cannot_be_used(machine: Machine) -> None:
    expect(found(machine, "machine.card"), "green", "no NVIDIA card")
    machine.write("/sys/bus/pci/devices/0000:01:00.0/vendor", "0x10de")
    machine.write("/sys/bus/pci/devices/0000:01:00.0/class", "0x030000")
    why = "the NVIDIA driver is too old; to use it: install a newer driver"
    machine.fields["run"] = answering(card={"openvino": ["CPU"], "why": why})
    expect(found(machine, "machine.card"), "yellow", "the NVIDIA driver is too old", "install a newer driver")
    settings('[engine]\ndevice = "cuda"')(machine)
    expect(found(machine, "machine.card"), "red", "the NVIDIA driver is too old", "install a newer driver")
    settings('[engine]\ndevice = "gpu"')(machine)
    expect(found(machine, "machine.card"), "red", "OpenVINO finds only CPU", "auto")
    machine.fields["run"] = lambda command, limit_s: Ran(-11, '{"stage": "card", "began": true}')
    expect(found(machine, "machine.card"), "red", "ended by SIGSEGV", 'device = "cpu"')


# --- the loop of the self-test, as it is --------------------------------------------------------------------


class Mirror:
    """A virtual camera whose other side can be read: what was sent last, changed by `fault`."""

    fault = staticmethod(lambda picture: picture)
    last: Image | None = None

    def __init__(self, width: int, height: int, fps: float, fourcc: int, device: str | None, **other: object) -> None:
        self._shape = (height, width, 3)

    def close(self) -> None:
        Mirror.last = None

    def send(self, flat: Image) -> None:
        Mirror.last = flat.reshape(self._shape).copy()

    def device(self) -> str:
        return "a mirror"

    def native_fourcc(self) -> int | None:
        return None


class Capture:
    """The reading side, as OpenCV's captures are."""

    def isOpened(self) -> bool:  # noqa: N802 - OpenCV's name
        return True

    def read(self) -> tuple[bool, Image | None]:
        time.sleep(0.02)
        if Mirror.last is None:
            return False, None
        return True, np.ascontiguousarray(Mirror.fault(Mirror.last)[..., ::-1])

    def release(self) -> None:
        """Nothing to give back."""


@pytest.fixture
def mirror(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The question to the loop's stage, with `Mirror` for a virtual camera."""
    import pyvirtualcam
    from pyvirtualcam.camera import BACKENDS

    monkeypatch.setattr("pyvirtualcam.camera.BACKENDS", dict(BACKENDS))
    pyvirtualcam.register_backend("mirror", Mirror)
    monkeypatch.setattr(selftest._Reader, "_open", lambda self: Capture())
    monkeypatch.setattr(selftest, "_LIVE_S", 0.5)
    settings('[camera]\nbackend = "mirror"\nsize_px = "640x360"')(machine)
    return {"config": str(machine.config), "avatar": None, "virtual": True, "patience": 1.0}


@breaks("selftest.virtual")
@pytest.mark.parametrize(
    ("fault", "variant"),
    [
        (lambda picture: picture, "right"),
        (lambda picture: picture[::-1], "upside down"),
        (lambda picture: picture[:, ::-1], "mirrored"),
        (lambda picture: picture[..., ::-1], "red and blue exchanged"),
    ],
)
def test_the_loop_reads_back_what_it_sent(
    mirror: dict[str, Any], fault: Callable[[Image], Image], variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Mirror, "fault", staticmethod(fault))
    told = selftest._loop(mirror)
    assert told["back"]["variant"] == variant
    assert told["back"]["difference"] < 3
    assert told["back"]["size_px"] == (640, 360)
    assert told["avatar"] is None
    assert told["problems"] == []


@breaks("selftest.virtual")
def test_the_loop_sees_a_picture_that_is_not_its_own(mirror: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(1).integers(0, 255, (9, 16, 1), np.uint8).repeat(40, 0).repeat(40, 1).repeat(3, 2)
    monkeypatch.setattr(Mirror, "fault", staticmethod(lambda picture: noise))
    assert selftest._loop(mirror)["back"]["difference"] > selftest._MOST_DIFFERENCE


@breaks("selftest.virtual")
def test_the_loop_says_that_nothing_comes_back(mirror: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Capture, "read", lambda self: (False, None))
    told = selftest._loop(mirror)
    assert told["back"] == {"count": 0, "trouble": "a mirror gave no picture"}


@breaks("selftest.virtual")
def test_the_loop_without_a_virtual_camera(mirror: dict[str, Any], machine: Machine) -> None:
    settings('[camera]\nbackend = "nonsense"')(machine)
    told = selftest._loop(mirror)
    assert "nonsense" in told["sink_error"]
    assert "back" not in told
    assert told["fps"] > 0


def test_stages_tell_line_by_line(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of a stage is told, and the next stage is reached."""

    def fail(asked: dict[str, Any]) -> dict[str, Any]:
        raise KeyError("inside")

    class LeftError(Exception):
        pass

    def leave(status: int) -> None:
        raise LeftError

    monkeypatch.setattr(selftest, "_STAGES", {"one": fail, "two": lambda asked: {"answer": asked["question"]}})
    monkeypatch.setattr(os, "_exit", leave)
    with pytest.raises(LeftError):
        selftest.main([json.dumps({"stages": ["one", "two"], "question": 6})])
    said = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert said == [
        {"stage": "one", "began": True},
        {"stage": "one", "error": "KeyError: 'inside'"},
        {"stage": "two", "began": True},
        {"stage": "two", "answer": 6},
    ]


# --- how it is told -----------------------------------------------------------------------------------------


def test_a_check_that_fails_or_hangs_is_a_finding(machine: Machine) -> None:
    hang = threading.Event()

    def fails(system: System, request: Request) -> Finding:
        raise ZeroDivisionError("two\nlines")

    def hangs(system: System, request: Request) -> Finding:
        hang.wait(60)
        return green("too late")

    def does_not_apply(system: System, request: Request) -> None:
        return None

    checks = [
        Check("test.fails", "fails", fails),
        Check("test.hangs", "hangs", hangs, 0.05),
        Check("test.nothing", "nothing", does_not_apply),
        Check("test.good", "good", lambda system, request: green("good")),
    ]
    results = list(examine(machine.system(), Request(), checks))
    hang.set()
    assert [one.id for one in results] == ["test.fails", "test.hangs", "test.good"]
    expect(results[0].finding, "yellow", "this check itself failed (ZeroDivisionError: two lines)", "report")
    expect(results[1].finding, "yellow", "no answer", "--patience")
    assert worst(results) == "yellow"


def test_what_depends_on_unreadable_settings_says_so(machine: Machine) -> None:
    settings("[camera]\nfsp = 30")(machine)
    results = {one.id: one.finding for one in examine(machine.system(), Request(machine.config), ALL)}
    expect(results["files.config"], "red", "fsp")
    waiting = [name for name, finding in results.items() if "depends on the settings" in finding.told]
    assert {"webcam.device", "virtual.device", "around.ports", "machine.card", "selftest.draw"} <= set(waiting)
    assert not [name for name, finding in results.items() if "this check itself failed" in finding.told]


def test_every_check_survives_a_machine_of_which_nothing_can_be_read(machine: Machine) -> None:
    shutil.rmtree(machine.root)
    for platform in ("linux", "win32", "darwin"):
        machine.programs, machine.devices = {}, {}
        machine.fields = {"platform": platform, "project": None, "package_path": (), "environment": {}}
        listed = [check for check in CHECKS if not (platform != "linux" and check.id == "webcam.device")]
        for result in examine(machine.system(), Request(), listed):
            assert result.finding.level == "green" or result.finding.next, result
            assert "this check itself failed" not in result.finding.told, result


RESULTS = [
    Result("machine.one", "first", green("all is well " * 20, count=3), 1.0),
    Result("machine.two", "second", yellow("so so", "type this", path=Path("/x")), 2.0),
    Result("webcam.three", "third", red("broken \u2013 really", "type that"), 3.0),
]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def written(stream: io.StringIO) -> str:
    writer = Writer(stream)
    for result in RESULTS:
        writer.write(result)
    writer.close(RESULTS, 1.5)
    return stream.getvalue()


def test_words_and_symbols_and_colour_on_a_terminal_only() -> None:
    plain, coloured = written(io.StringIO()), written(Terminal())
    assert "\x1b" not in plain
    assert "\x1b[31m" in coloured
    for told in (plain, coloured):
        for word in ("fine", "look", "mend", "-> type this", "-> type that", "1 to mend, 1 to look at, 1 fine (1.5 s)"):
            assert word in told
    assert max(len(line) for line in plain.splitlines()) <= findings._WIDTH
    assert plain.index("This machine") < plain.index("first") < plain.index("Your webcam") < plain.index("third")


def test_a_terminal_that_knows_no_symbols(tmp_path: Path) -> None:
    with (tmp_path / "told").open("w", encoding="ascii") as stream:
        writer = Writer(stream)
        for result in RESULTS:
            writer.write(result)
    told = (tmp_path / "told").read_text(encoding="ascii")
    assert "x mend" in told
    assert "+ fine" in told


def test_json_for_programs() -> None:
    told = json.loads(as_json(RESULTS, {"platform": "linux"}))
    assert (told["format"], told["level"], told["platform"]) == (1, "red", "linux")
    assert told["checks"][1] == {
        "id": "machine.two",
        "title": "second",
        "level": "yellow",
        "told": "so so",
        "next": "type this",
        "facts": {"path": "/x"},
        "ms": 2.0,
    }


def test_the_command(
    machine: Machine, own_base: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Status 1 while there is something to mend, 0 afterwards."""
    monkeypatch.setattr("plugin.doctor.CHECKS", (BY_ID["files.config"], BY_ID["files.base"]))
    assert main(["doctor", "--json", "--no-self-test"]) == 0
    assert json.loads(capfd.readouterr().out)["level"] == "green"
    (own_base / BASE_NAME).write_text("{")
    assert main(["doctor", "--json", "--no-self-test"]) == 1
    told = json.loads(capfd.readouterr().out)
    assert [one["id"] for one in told["checks"]] == ["files.config", "files.base"]
    assert [one["level"] for one in told["checks"]] == ["green", "red"]
    assert main(["doctor", "--no-self-test"]) == 1
    printed = capfd.readouterr()
    assert "base.json is damaged" in printed.out
    assert printed.err == ""
    assert main(["doctor", "--patience", "0"]) == 1
    assert "--patience is 0" in capfd.readouterr().err


def test_the_doctor_starts_without_the_packages() -> None:
    """They may be what is broken, so nothing but the standard library is loaded."""
    code = (
        "import sys; import plugin.doctor\n"
        "print(*{'numpy', 'cv2', 'av', 'PIL', 'packaging', 'openvino', 'mediapipe'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split()) == (0, []), done.stderr


def test_pythons_are_those_of_the_project() -> None:
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["requires-python"]
    (low, high) = PYTHONS
    assert wanted == f">={low[0]}.{low[1]},<{high[0]}.{high[1] + 1}"


def test_a_program_that_hangs_is_stopped_and_what_it_said_is_kept() -> None:
    done = run_program(["sh", "-c", "echo said; exec sleep 60"], 1.0)
    assert done is not None
    assert (done.out.strip(), done.ended) == ("said", False)
    assert run_program(["no-such-program-anywhere"], 1.0) is None


def test_every_check_is_broken_by_a_test() -> None:
    assert set(BY_ID) - COVERED == set()
    assert COVERED - set(BY_ID) == set()
    assert len(BY_ID) == len(ALL), "two checks have one id"


def test_the_manual_is_true() -> None:
    """It names every check in order and no other, no setting that does not exist, and the doctor's modprobe line."""
    manual = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `([a-z]+\.\w+)` \|", manual, re.MULTILINE) == list(BY_ID)
    settings = load()
    for section, key in re.findall(r"`([a-z]+)\.([a-z]\w+)[` ]", manual):
        known = f"{section}.{key}" in BY_ID or hasattr(getattr(settings, section, None), key)
        assert known or f"{section}.{key}" == "config.toml", f"{section}.{key}"
    assert f"sudo modprobe v4l2loopback {v4l2.options()}\n" in manual
    assert f"'options v4l2loopback {v4l2.options()}'" in manual
