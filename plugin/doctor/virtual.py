"""The virtual camera that calls are to see: v4l2loopback on Linux, OBS or Unity Capture on Windows, OBS on macOS."""

from __future__ import annotations

import re

from plugin import v4l2
from plugin.doctor.cameras import Device, devices, holders
from plugin.doctor.findings import Check, Finding, Request, green, red, yellow
from plugin.doctor.settings import read_settings
from plugin.doctor.system import System
from plugin.v4l2 import LABEL, NUMBER, options, reload

_PACKAGES = {
    "debian": "sudo apt install v4l2loopback-dkms linux-headers-{release}",
    "fedora": "sudo dnf install akmod-v4l2loopback   (from RPM Fusion)",
    "arch": "sudo pacman -S v4l2loopback-dkms linux-headers",
    "suse": "sudo zypper install v4l2loopback-kmp-default",
    "": "install v4l2loopback from your distribution",
}
_DEFAULT_LABEL = "Dummy video device"
# The same keys that pyvirtualcam 0.15 looks for.
_OBS_CLASS = "{A3FCE0F5-3493-419F-958A-ABA1250EC20B}"
_UNITY_CLASS = "{5C2CD55C-92AD-4999-8666-912BD3E70010}"
_OBS_EXTENSION = "com.obsproject.obs-studio.mac-camera-extension"
_SNAPS = ("chromium", "brave", "opera", "firefox", "zoom-client", "teams-for-linux", "discord", "slack", "skype")
_FLATPAKS = (
    *("org.chromium.Chromium", "com.google.Chrome", "com.brave.Browser", "com.microsoft.Edge", "org.mozilla.firefox"),
    *("us.zoom.Zoom", "com.discordapp.Discord", "com.slack.Slack", "com.github.IsmaelMartinez.teams_for_linux"),
)


# --- Linux ---


def modprobe(system: System) -> str:
    """What loads it, with the first free device number from `NUMBER` on."""
    taken = {one.path.name for one in devices(system)}
    number = next(number for number in range(NUMBER, NUMBER + 1000) if f"video{number}" not in taken)
    return v4l2.modprobe(number)


def loaded(system: System) -> bool:
    return system.at("/sys/module/v4l2loopback").is_dir()


def _built_for(system: System) -> list[str]:
    """The kernels that the module is there for."""
    return [
        release
        for folder in ("/lib/modules", "/usr/lib/modules")
        for release in system.names(folder)
        if "/v4l2loopback.ko" in system.text(f"{folder}/{release}/modules.dep")
    ]


def secure_boot(system: System) -> bool:
    variable = "/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
    try:
        return system.at(variable).read_bytes()[-1:] == b"\1"  # four bytes of attributes, then the value
    except OSError:
        return False


def module(system: System, request: Request) -> Finding | None:
    if not system.linux:
        return None
    if loaded(system):
        version = system.text("/sys/module/v4l2loopback/version")
        return green(f"v4l2loopback {version}".strip() + " is loaded", version=version)
    if system.at("/.dockerenv").exists() or system.at("/run/.containerenv").exists():
        return red(
            "v4l2loopback is not loaded, and a container cannot load it",
            f"on the host: {modprobe(system)}; then start the container with --device /dev/video{NUMBER}",
        )
    if not system.at("/proc/modules").exists():
        return red(
            "this kernel takes no modules, so there can be no virtual camera",
            "use an ordinary kernel of your distribution",
            release=system.release,
        )
    built = _built_for(system)
    if system.release in built:
        if secure_boot(system):
            return red(
                "v4l2loopback is there but not loaded; Secure Boot is on and wants it signed",
                f'{modprobe(system)}   ("Key was rejected": sudo mokutil --import /var/lib/dkms/mok.pub, then restart)',
                secure_boot=True,
            )
        return red("v4l2loopback is installed but not loaded", modprobe(system), secure_boot=False)
    get = _PACKAGES[system.distribution()].format(release=system.release)
    if built:
        return red(
            f"v4l2loopback was built for {', '.join(built)}, and {system.release} is running",
            "sudo apt install linux-headers-$(uname -r) && sudo dkms autoinstall"
            if system.distribution() == "debian"
            else "sudo dkms autoinstall   (with the headers of the running kernel), or restart into the newest kernel",
            built_for=built,
        )
    return red("v4l2loopback is not installed", f"{get}; then {modprobe(system)}", release=system.release)


def loopbacks(system: System) -> list[Device]:
    """Its devices; those that cannot be opened count where they are no hardware."""
    if not loaded(system):
        return []
    return [one for one in devices(system) if (one.virtual if one.capability is None else one.capability.loopback)]


def device(system: System, request: Request) -> Finding | None:
    if system.platform == "win32":
        return _device_windows(system)
    if system.platform == "darwin":
        return _device_mac(system)
    if not loaded(system):
        return None  # `module` says what to do
    there = loopbacks(system)
    if not there:
        return red("v4l2loopback is loaded without a device", reload())
    facts = {"devices": {str(one.path): one.name for one in there}}
    closed = [one for one in there if one.capability is None]
    if all(one.absent for one in there):
        return red(f"{there[0].path} is not in this container", f"start it with --device {there[0].path}", **facts)
    if len(closed) == len(there):
        user = system.environment.get("USER") or "$USER"
        return red(
            f"{closed[0].path} cannot be opened: {closed[0].trouble}",
            f"sudo usermod -aG video {user}   (then log out and in)",
            **facts,
        )
    free = [one for one in there if _takes(one)]
    held = {one.path: holders(system, one.path) for one in there}
    if not free:
        path = there[0].path
        who = ", ".join(f"{name} (process {pid})" for pid, name in held[path])
        if who:
            return red(
                f"{path} is fed by another program already; it is open in {who}",
                f"close that program, or load two devices: {two_devices()}",
                **facts,
            )
        return red(
            f"{path} takes no pictures: a program that cannot be seen from here feeds it, or reads what another left",
            f"close calls and browsers; if it stays so: {reload()}",
            **facts,
        )
    wanted = read_settings(request).camera.device
    chosen = next((one for one in free if not wanted or str(one.path) == wanted), None)
    if chosen is None:
        return red(
            f"{wanted} (camera.device) is not a virtual camera that is free; {free[0].path} is",
            'set camera.device = "" in your settings',
            **facts,
        )
    if chosen.name.startswith(_DEFAULT_LABEL):
        return yellow(f"{chosen.path} is called {chosen.name!r} in every call", reload(), **facts)
    names = [one.name for one in there]
    if names.count(chosen.name) > 1:
        return yellow(f"{names.count(chosen.name)} devices are called {chosen.name!r}", reload(), **facts)
    return green(f"{chosen.name} ({chosen.path}), free", **facts)


def _takes(one: Device) -> bool:
    """It takes pictures, or will once the sink has asked for it (`plugin.v4l2.take_again`)."""
    return one.capability is not None and (one.capability.outputs or one.capability.left)


def two_devices() -> str:
    return (
        f"sudo modprobe -r v4l2loopback && sudo modprobe v4l2loopback devices=2 video_nr={NUMBER},{NUMBER + 1} "
        f"card_label={LABEL},{LABEL}-2 exclusive_caps=1,0"
    )


def exclusive_caps(system: System, request: Request) -> Finding | None:
    """Browsers want a camera that gives pictures and takes none; with exclusive_caps=0 it says that it does both."""
    if not system.linux or not loaded(system):
        return None
    parameter = system.text("/sys/module/v4l2loopback/parameters/exclusive_caps")
    known = [one for one in loopbacks(system) if one.capability is not None]
    both = [one for one in known if one.capability and one.capability.captures and one.capability.outputs]
    facts = {"parameter": parameter, "without": [str(one.path) for one in both]}
    if not known:
        return None  # `device` says why
    if len(both) == len(known):
        return red(f"{both[0].path} has exclusive_caps=0: Chrome, Meet and Teams do not list it", reload(), **facts)
    taken = next((one for one in known if _takes(one)), None)
    if taken is not None and taken in both:
        good = next(one for one in known if one not in both)
        return yellow(
            f"{taken.path}, the first, has exclusive_caps=0: browsers do not list it",
            f"use {good.path} instead, which has exclusive_caps=1",
            **facts,
        )
    return green("exclusive_caps=1: browsers list it while pictures are sent", **facts)


def boot(system: System, request: Request) -> Finding | None:
    """Whether it will be there after a restart, and with the right options."""
    if not system.linux or not loaded(system):
        return None
    listed = any(
        re.search(r"^\s*v4l2loopback\b", system.text(f"{folder}/{name}"), re.MULTILINE)
        for folder in ("/etc/modules-load.d", "/usr/lib/modules-load.d")
        for name in system.names(folder)
        if name.endswith(".conf")
    ) or re.search(r"^\s*v4l2loopback\b", system.text("/etc/modules"), re.MULTILINE)
    given = " ".join(
        line
        for folder in ("/etc/modprobe.d", "/usr/lib/modprobe.d")
        for name in system.names(folder)
        if name.endswith(".conf")
        for line in re.findall(r"^\s*options\s+v4l2loopback\s+(.*)$", system.text(f"{folder}/{name}"), re.MULTILINE)
    )
    write = f"echo 'options v4l2loopback {options()}' | sudo tee /etc/modprobe.d/understudy.conf"
    if not listed:
        return yellow(
            "it will be gone after a restart",
            f"echo v4l2loopback | sudo tee /etc/modules-load.d/understudy.conf; {write}",
            options=given,
        )
    if not re.search(r"exclusive_caps=[\"']?(1|Y)", given, re.IGNORECASE):
        return yellow("after a restart it will come without exclusive_caps=1", write, options=given)
    return green("loaded again after a restart", options=given)


def sandboxes(system: System, request: Request) -> Finding | None:
    """Snap and Flatpak programs see a camera only where they are connected to it."""
    if not system.linux:
        return None
    snaps = [name for name in _SNAPS if name in system.names("/snap")]
    for name in snaps:
        plugs = system.answer("snap", "connections", name) or ""
        camera = re.search(rf"^camera\s+{name}:camera\s+(\S+)", plugs, re.MULTILINE)
        if camera and camera[1] == "-":
            return yellow(f"the snap {name} may not use cameras", f"sudo snap connect {name}:camera", snaps=snaps)
    if "zoom-client" in snaps:
        return yellow(
            "the snap of Zoom lists only devices with exclusive_caps=0",
            f"use Zoom's own package instead, or two devices: {two_devices()}",
            snaps=snaps,
        )
    own = f"{system.environment.get('HOME', '/root')}/.local/share/flatpak/app"
    there = {name for folder in ("/var/lib/flatpak/app", own) for name in system.names(folder)}
    flatpaks = [name for name in _FLATPAKS if name in there]
    for name in flatpaks:
        allowed = system.answer("flatpak", "info", "--show-permissions", name)
        if allowed is not None and not re.search(r"^devices=.*\ball\b", allowed, re.MULTILINE):
            return yellow(
                f"the Flatpak {name} may not use cameras",
                f"flatpak override --user --device=all {name}   (then start it again)",
                flatpaks=flatpaks,
            )
    if not snaps and not flatpaks:
        return green("no browser or call program in a snap or Flatpak was found")
    return green(f"{', '.join((*snaps, *flatpaks))} may use cameras", snaps=snaps, flatpaks=flatpaks)


# --- Windows and macOS ---


def _device_windows(system: System) -> Finding:
    def there(clsid: str) -> bool:
        return system.answer("reg", "query", rf"HKEY_CLASSES_ROOT\CLSID\{clsid}") is not None

    obs, unity = there(_OBS_CLASS), there(_UNITY_CLASS)
    if not obs and not unity:
        return red(
            "neither OBS nor Unity Capture is installed", "winget install OBSProject.OBSStudio", obs=obs, unity=unity
        )
    names = [name for name, found in (("OBS Virtual Camera", obs), ("Unity Capture", unity)) if found]
    if obs and not unity and "obs64.exe" in (system.answer("tasklist", "/fi", "imagename eq obs64.exe") or "").lower():
        return yellow(
            "OBS is running: there is one OBS Virtual Camera, and it may be using it itself",
            "press Stop Virtual Camera in OBS; or install Unity Capture as a second camera",
            obs=obs,
            unity=unity,
        )
    return green(", ".join(names), obs=obs, unity=unity)


def _device_mac(system: System) -> Finding:
    steps = "open OBS, press Start Virtual Camera, allow it in System Settings, press Stop Virtual Camera, quit OBS"
    listed = system.answer("systemextensionsctl", "list")
    line = next((one for one in (listed or "").splitlines() if _OBS_EXTENSION in one), "")
    if "[activated enabled]" in line:
        return green("the OBS camera extension is active")
    if line:
        return red("the OBS camera extension is not allowed yet", steps, extension=line.strip())
    if system.at("/Applications/OBS.app").exists():
        return red("the camera of OBS was never started on this Mac", steps)
    return red("OBS is not installed (30 or newer is needed)", f"brew install --cask obs; then {steps}")


CHECKS = (
    Check("virtual.module", "v4l2loopback", module),
    Check("virtual.device", "device", device),
    Check("virtual.exclusive_caps", "exclusive_caps", exclusive_caps),
    Check("virtual.boot", "after a restart", boot),
    Check("virtual.sandboxes", "snap, Flatpak", sandboxes),
)
