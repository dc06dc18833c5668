"""The machine: processor, memory, other load, power, clock."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from plugin.doctor.findings import Check, Finding, Request, green, red, yellow
from plugin.doctor.system import System

NEEDED_MB = 1000
"""What should be free for a call at 512 px, which takes half of it, so that others may grow meanwhile."""
_SLOW_CLOCKS = {"hpet", "acpi_pm", "refined-jiffies", "jiffies", "pit"}
_RELEASED_S = 1_760_000_000  # autumn 2025: a clock that is earlier has not been set
_WINDOWS_POWER_SAVER = "a1841308-3541-4fab-bc81-f71556f20b4a"


# --- processor ---


def _cgroup(system: System, file: str) -> list[str]:
    """What the control groups of this process say in `file`, from its own group up to the root."""
    own = next((line[3:] for line in system.text("/proc/self/cgroup").splitlines() if line.startswith("0::")), "/")
    group, said = PurePosixPath("/sys/fs/cgroup") / own.strip("/"), []
    while len(group.parts) >= 4 or str(group) == "/sys/fs/cgroup":
        said.append(system.text(f"{group}/{file}"))
        if str(group) == "/sys/fs/cgroup":
            break
        group = group.parent
    return [one for one in said if one]


def cores(system: System) -> float:
    """How many cores this process may keep busy: those of its affinity, less where a container has a quota."""
    count = float(system.cores())
    for said in _cgroup(system, "cpu.max"):
        quota, _, period = said.partition(" ")
        if quota.isdigit() and period.isdigit() and int(period):
            count = min(count, int(quota) / int(period))
    return count


def _features(system: System) -> tuple[str, set[str]]:
    """The processor's name and its instruction sets, by Linux's names for them."""
    if system.linux:
        said = system.text("/proc/cpuinfo")
        name = re.search(r"^model name\s*: (.*)$", said, re.MULTILINE)
        flags = re.search(r"^flags\s*: (.*)$", said, re.MULTILINE)
        return name[1].strip() if name else "unknown processor", set(flags[1].split()) if flags else set()
    if system.platform == "darwin":
        name = system.answer("sysctl", "-n", "machdep.cpu.brand_string") or "unknown processor"
        flags = system.answer("sysctl", "-n", "machdep.cpu.features", "machdep.cpu.leaf7_features") or ""
        return name, set(flags.lower().split())
    return system.environment.get("PROCESSOR_IDENTIFIER", "unknown processor"), set()


def cpu(system: System, request: Request) -> Finding:
    name, flags = _features(system)
    count = cores(system)
    known = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_bf16")
    there = [flag for flag in known if flag in flags]
    facts = {"name": name, "cores": count, "features": there}
    told = f"{name}, {count:g} core{'' if count == 1 else 's'}"
    if count < 2:
        return yellow(
            f"{told}: a call wants two",
            "give it a second core, or type: understudy --config with render.size_px = 256 in it",
            **facts,
        )
    if not flags:
        return green(f"{told}; the self-test says how fast it draws", **facts)
    if {"avx512_bf16", "amx_bf16"} & flags:
        return green(f"{told}, {', '.join(there)}: draws in bf16, the fastest way", **facts)
    if "avx2" in flags:
        return green(f"{told}, {', '.join(there)}: draws in f32; the self-test says how fast", **facts)
    return yellow(f"{told}, without AVX2: slow", "set render.size_px = 256, or use a newer computer", **facts)


def load(system: System, request: Request) -> Finding | None:
    said = system.text("/proc/loadavg").split()
    if not said:
        return None
    waiting, count = float(said[0]), cores(system)
    facts = {"load_1min": waiting, "cores": count}
    if waiting > 0.75 * count:
        return yellow(
            f"other programs want {waiting:.1f} of {count:g} cores at the moment",
            "close what you do not need (top shows it); a call wants about one core",
            **facts,
        )
    return green(f"{waiting:.1f} of {count:g} cores busy", **facts)


# --- memory ---


def memory(system: System, request: Request) -> Finding | None:
    said = re.search(r"^MemAvailable:\s*(\d+) kB", system.text("/proc/meminfo"), re.MULTILINE)
    if said is None:
        return None
    free_mb = int(said[1]) / 1000
    for limit, used in zip(_cgroup(system, "memory.max"), _cgroup(system, "memory.current"), strict=False):
        if limit.isdigit() and used.isdigit():
            free_mb = min(free_mb, (int(limit) - int(used)) / 1e6)
    told, facts = f"{free_mb / 1000:.1f} GB free", {"free_mb": round(free_mb)}
    if free_mb < NEEDED_MB:
        return red(f"{told}; a call wants {NEEDED_MB / 1000:.0f} GB", "close other programs", **facts)
    if free_mb < 2 * NEEDED_MB:
        return yellow(f"{told}; a call wants {NEEDED_MB / 1000:.0f} GB", "close a browser tab or two", **facts)
    return green(told, **facts)


# --- power ---


def power(system: System, request: Request) -> Finding | None:
    if system.platform == "darwin":
        return _power_mac(system)
    if system.platform == "win32":
        scheme = system.answer("powercfg", "/getactivescheme")
        if scheme is None:
            return None
        if _WINDOWS_POWER_SAVER in scheme.lower():
            return yellow("the power saver is on", "powercfg /setactive SCHEME_BALANCED")
        return green("no power saving")
    policy = "/sys/devices/system/cpu/cpu0/cpufreq"
    governor, driver = system.text(f"{policy}/scaling_governor"), system.text(f"{policy}/scaling_driver")
    preference = system.text(f"{policy}/energy_performance_preference")
    profile = system.text("/sys/firmware/acpi/platform_profile")
    supplies = [f"/sys/class/power_supply/{name}" for name in system.names("/sys/class/power_supply")]
    batteries = [one for one in supplies if system.text(f"{one}/type") == "Battery"]
    discharging = any(
        system.text(f"{one}/status") == "Discharging" and system.text(f"{one}/scope") != "Device" for one in batteries
    )
    highest, allowed = (system.text(f"{policy}/{name}_max_freq") for name in ("cpuinfo", "scaling"))
    facts = {"governor": governor, "driver": driver, "preference": preference, "profile": profile}
    facts |= {"on_battery": discharging}
    # With intel_pstate and amd-pstate-epp "powersave" is the ordinary governor, and the preference decides.
    own_ways = driver.startswith(("intel_pstate", "amd-pstate-epp", "amd_pstate_epp"))
    if governor == "powersave" and not own_ways:
        return yellow(
            "the processor is held at its lowest speed (governor powersave)",
            "sudo cpupower frequency-set --governor schedutil",
            **facts,
        )
    if preference == "power" or profile in ("low-power", "quiet"):
        return yellow("power saving is on: the processor is held back", "powerprofilesctl set balanced", **facts)
    if highest.isdigit() and allowed.isdigit() and int(allowed) < 0.7 * int(highest):
        return yellow(
            f"the processor may run at {int(allowed) / 1e6:.1f} of its {int(highest) / 1e6:.1f} GHz only",
            f"sudo cpupower frequency-set --max {highest}",
            **facts,
        )
    if discharging:
        return yellow("on battery: the processor may be held back", "plug the power supply in", **facts)
    told = ", ".join(one for one in (governor and f"governor {governor}", preference) if one)
    return green(told or "no power saving to be seen", **facts)


def _power_mac(system: System) -> Finding | None:
    settings, source = system.answer("pmset", "-g"), system.answer("pmset", "-g", "ps")
    if settings is None or source is None:
        return None
    if re.search(r"lowpowermode\s+1", settings):
        return yellow("Low Power Mode is on", "sudo pmset -a lowpowermode 0")
    if "Battery Power" in source:
        return yellow("on battery: the processor may be held back", "plug the power supply in")
    return green("mains, no Low Power Mode")


# --- clock ---


def _both_clocks(system: System) -> tuple[float, float]:
    """The time of day and the monotonic time of one moment: of a few readings the one that took least."""
    readings = []
    for _ in range(5):
        before, wall, after = system.monotonic_s(), system.wall_s(), system.monotonic_s()
        readings.append((after - before, wall, (before + after) / 2))
    _, wall, monotonic = min(readings)
    return wall, monotonic


def clock(system: System, request: Request) -> Finding:
    wall, monotonic = _both_clocks(system)
    system.sleep(0.2)
    later = _both_clocks(system)
    passed, elapsed = later[0] - wall, later[1] - monotonic
    facts: dict[str, object] = {"wall_less_monotonic_ms": round((passed - elapsed) * 1e3, 1)}
    if elapsed <= 0:
        return red("the monotonic clock stands still", "restart the computer", **facts)
    if wall < _RELEASED_S:
        return yellow(
            "the date is wrong: secure connections will be refused",
            "set the date and the time of this computer",
            **facts,
        )
    if abs(passed - elapsed) > 0.05:
        return yellow(
            f"the time of day jumped by {(passed - elapsed) * 1e3:+.0f} ms while watched",
            "let one program alone set the time (timedatectl status)",
            **facts,
        )
    source = system.text("/sys/devices/system/clocksource/clocksource0/current_clocksource")
    facts["clocksource"] = source
    if source in _SLOW_CLOCKS:
        return yellow(
            f"the slow clock {source} is in use, so every time stamp is expensive",
            "sudo dmesg | grep -i tsc   (says why the fast one was given up)",
            **facts,
        )
    if system.linux:
        synchronised = system.answer("timedatectl", "show", "--property=NTPSynchronized", "--value")
        facts["synchronised"] = synchronised
        if synchronised == "no" and not system.at("/run/systemd/timesync/synchronized").exists():
            return yellow("the time of day is not set from the network", "sudo timedatectl set-ntp true", **facts)
        if synchronised is None:
            return green("runs evenly; whether the network sets it cannot be told here", **facts)
    return green("runs evenly", **facts)


CHECKS = (
    Check("machine.cpu", "processor", cpu),
    Check("machine.load", "other load", load),
    Check("machine.memory", "memory", memory),
    Check("machine.power", "power", power),
    Check("machine.clock", "clock", clock),
)
