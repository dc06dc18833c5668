"""What lies around the call: sound, and ports for the panel and for links."""

from __future__ import annotations

import dataclasses
import errno
import re
import socket

from plugin.doctor.findings import Check, Finding, Request, green, red, yellow
from plugin.doctor.settings import read_settings
from plugin.doctor.system import System


def sound(system: System, request: Request) -> Finding | None:
    """A microphone, and a sound server in which a delayed one could be made."""
    if not system.linux:
        return None
    runtime = system.environment.get("XDG_RUNTIME_DIR", "")
    servers = [
        name
        for name, path in (("PipeWire", f"{runtime}/pipewire-0"), ("PulseAudio", f"{runtime}/pulse/native"))
        if runtime and system.at(path).exists()
    ]
    if not servers:
        return yellow(
            "neither PipeWire nor PulseAudio runs for you: there can be no microphone that is as late as the picture",
            "sudo apt install pipewire-pulse   (then log in again)",
            servers=[],
        )
    microphone = system.answer("pactl", "get-default-source")
    if microphone is None:
        return yellow(
            f"{servers[0]} runs, but pactl, which makes a delayed microphone, is not there or does not answer",
            "sudo apt install pulseaudio-utils",
            servers=servers,
        )
    facts = {"servers": servers, "microphone": microphone}
    if not microphone or microphone.endswith(".monitor"):
        return yellow(
            f"{servers[0]} runs and knows no microphone", "plug one in; then: pactl get-default-source", **facts
        )
    return green(f"{servers[0]}; the microphone can be made as late as the picture (--delay-voice)", **facts)


def window(system: System, request: Request) -> Finding:
    """Whether the preview window can be opened; the call does without."""
    from plugin.window import can_show

    refusal = can_show()
    if not refusal:
        return green("a preview can be shown")
    cause, _, cure = refusal.partition(": ")
    return yellow(f"no preview: {cause}", cure or "understudy camera --no-window, or understudy panel in a browser")


def ports(system: System, request: Request) -> Finding:
    """Every setting called `port`, and any free one for the panel."""
    settings = read_settings(request)
    wanted = {
        f"{section.name}.port": port
        for section in dataclasses.fields(settings)
        if isinstance(port := getattr(getattr(settings, section.name), "port", None), int)
    }
    for name, port in {**wanted, "the panel": 0}.items():
        try:
            with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
                if system.platform != "win32":  # there it would let two listen at once
                    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind(("127.0.0.1", port))
                listener.listen()
        except OSError as error:
            who = _listening(system, port)
            if error.errno == errno.EADDRINUSE:
                return red(
                    f"port {port} ({name}) is taken{f' by {who}' if who else ''}",
                    f"set {name} to 0 (any that is free) in your settings, or end the other program",
                    ports=wanted,
                )
            return red(
                f"no program may listen on 127.0.0.1 ({error.strerror or error})", "ip link set lo up", ports=wanted
            )
    told = ", ".join(f"{name} {port}" for name, port in wanted.items() if port)
    return green(f"free: {told}" if told else "any free one will do, and there is one", ports=wanted)


def _listening(system: System, port: int) -> str:
    """The program that listens on a port, where that can be seen."""
    listed = system.answer("ss", "-Hltnp", f"sport = :{port}") if system.linux else None
    who = re.search(r'users:\(\("([^"]+)",pid=(\d+)', listed or "")
    return f"{who[1]} (process {who[2]})" if who else ""


CHECKS = (
    Check("around.sound", "sound", sound),
    Check("around.window", "window", window),
    Check("around.ports", "ports", ports),
)
