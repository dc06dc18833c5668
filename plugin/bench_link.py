"""`make bench-link`: what the link costs and what it survives, counted in IP bytes between two network namespaces.

A face here is 17 bytes a frame at 25 frames a second (3.4 kbit/s), random: this measures the way and not the codec.
Each frame tells its number; the receiver knows what face that number stands for, so that the error it reports is that
of loss, delay and interpolation alone. Both ends share the machine's monotonic clock, so ages need no estimate.
Needs root and Linux; writes `bench/link.json` and `bench/link.png`.
"""

from __future__ import annotations

import argparse
import asyncio
import fractions
import json
import math
import os
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, get_args

import numpy as np
from aiortc import MediaStreamTrack
from aiortc.mediastreams import MediaStreamError
from av import AudioFrame

from engine.codec import SEQUENCE_WRAP, TIME_WRAP_S, Coded
from engine.frames import Face
from engine.tracker import canonical_face
from plugin.jitter import Jitter
from plugin.netns import LinkProcess
from plugin.routes import CLOCK_HZ
from plugin.transport import IceServers, Route, Transport, TransportError

FPS = 25
FRAME_BYTES = 17
LOOK_FPS = 60
_HEAD = struct.Struct("!I")
KINDS = ("rtp", "dtls", "rtcp", "stun")
COLOURS = {"rtp": "#7aa6c2", "dtls": "#d98c5f", "rtcp": "#8fb58a", "stun": "#b59ac2", "other": "#bbbbbb"}


def performance(seconds: float) -> Face:
    """A head that turns and nods and talks, at a moment of its performance."""
    yaw = 0.35 * math.sin(2 * math.pi * 0.4 * seconds) + 0.05 * math.sin(2 * math.pi * 1.7 * seconds)
    pitch = 0.15 * math.sin(2 * math.pi * 0.6 * seconds + 1)
    cos_y, sin_y, cos_p, sin_p = math.cos(yaw), math.sin(yaw), math.cos(pitch), math.sin(pitch)
    about_y = np.array([[cos_y, 0, sin_y], [0, 1, 0], [-sin_y, 0, cos_y]])
    about_x = np.array([[1, 0, 0], [0, cos_p, -sin_p], [0, sin_p, cos_p]])
    rotation = (np.diag([1.0, -1.0, -1.0]) @ about_y @ about_x).astype(np.float32)
    shape = np.zeros((478, 3), np.float32)
    shape[:468] = canonical_face().vertices_cm
    mouth = 0.6 * max(0.0, math.sin(2 * math.pi * 2.3 * seconds))
    shape[[14, 17, 84, 87, 178, 181, 314, 317, 402, 405, 152], 1] -= mouth
    translation = np.array([256 + 20 * math.sin(seconds), 256, 0], np.float32)
    points = (16 * shape @ rotation.T + translation).astype(np.float32)
    return Face(points, rotation, translation, 16.0, 1.0, (512, 512), seconds)


class Babble(MediaStreamTrack):
    """A voice of sorts: a tone whose pitch and strength wander, in 20 ms frames on the monotonic clock.

    Encoded at 12 kbit/s it takes 9, as speech does that is encoded at 10.
    """

    kind = "audio"

    def __init__(self) -> None:
        super().__init__()
        self._frame = 0
        self._began_s = 0.0

    async def recv(self) -> AudioFrame:
        self._began_s = self._began_s or time.monotonic()
        self._frame += 1
        await asyncio.sleep(max(0.0, self._began_s + self._frame * 0.02 - time.monotonic()))
        seconds = (np.arange(960) + (self._frame - 1) * 960) / CLOCK_HZ
        envelope = 0.2 + np.abs(np.sin(2 * np.pi * 1.9 * seconds))
        tone = sum(np.sin(2 * np.pi * 140 * k * seconds + np.sin(3 * seconds)) / k for k in range(1, 20))
        noise = np.random.default_rng(self._frame).normal(0, 0.8, 960)
        sound = (4000 * envelope * (tone + noise)).astype(np.int16)
        frame = AudioFrame.from_ndarray(sound[None], format="s16", layout="mono")
        frame.sample_rate = CLOCK_HZ
        frame.pts = int((self._began_s + (self._frame - 1) * 0.02) * CLOCK_HZ)
        frame.time_base = fractions.Fraction(1, CLOCK_HZ)
        return frame


# --- the two peers, each a process in its namespace ------------------------------------------------------------


async def _read_line() -> dict[str, Any]:
    return json.loads(await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline))


def _say(**told: Any) -> None:
    print(json.dumps(told), flush=True)


async def _send(options: argparse.Namespace) -> None:
    voice = Babble() if options.voice else None
    transport = Transport(
        IceServers(),
        options.route,
        voice,
        packet_ms=options.packet_ms,
        face_interval_ms=options.interval_ms,
        voice_kbps=options.voice_kbps,
    )
    gathered: list[int] = []
    transport.on_room = lambda: _leave(transport, gathered)
    if options.faceless:
        transport.on_room = None
    answer = await transport.answer((await _read_line())["sdp"])
    _say(sdp=answer)
    await transport.connected()
    _say(connected_s=time.monotonic(), route=transport.route)
    if options.message_bytes:
        transport.muted = True
        await transport.send_message("avatar", os.urandom(options.message_bytes))
        transport.muted = False
    until_s = time.monotonic() + options.seconds
    # A frame's number tells when it was taken: it counts 25ths of a second of the monotonic clock.
    for number in range(math.ceil(time.monotonic() * FPS), math.ceil(until_s * FPS)):
        await asyncio.sleep(max(0.0, number / FPS - time.monotonic()))
        gathered.append(number)
        del gathered[:-16]
    _say(stats=transport.stats())
    await transport.close()


def _leave(transport: Transport, gathered: list[int]) -> None:
    if gathered:
        transport.send_face(b"".join(_HEAD.pack(one) + os.urandom(FRAME_BYTES - _HEAD.size) for one in gathered))
        gathered.clear()


async def _receive(options: argparse.Namespace) -> None:
    transport = Transport(receive_only=not options.both_ways)
    jitter = Jitter()
    arrivals: list[tuple[int, float]] = []
    message_s: list[float] = []

    def came(packet: bytes) -> None:
        now_s = time.monotonic()
        for at in range(0, len(packet) - FRAME_BYTES + 1, FRAME_BYTES):
            (number,) = _HEAD.unpack_from(packet, at)
            arrivals.append((number, now_s))
            time_s = number / FPS
            jitter.put(Coded(number % SEQUENCE_WRAP, time_s % TIME_WRAP_S, performance(time_s), True), now_s)

    transport.on_face = came
    transport.on_message = lambda kind, payload: message_s.append(time.monotonic())
    begun_s = time.monotonic()
    _say(sdp=await transport.offer())
    await transport.accept((await _read_line())["sdp"])
    await transport.connected()
    heard = asyncio.create_task(_listen(transport))
    looks = []
    settled_s = None
    while transport.state not in ("closed", "failed"):
        await asyncio.sleep(1 / LOOK_FPS)
        now_s = time.monotonic()
        shown = jitter.at(now_s)
        if isinstance(shown.face, Face):
            settled_s = settled_s or now_s
        if settled_s is None or now_s - settled_s < 3:
            continue
        error, age_s = None, None
        if isinstance(shown.face, Face):
            sender_s = jitter.sender_s(now_s)
            assert sender_s is not None
            true_s = sender_s + TIME_WRAP_S * round((now_s - sender_s) / TIME_WRAP_S)
            truth = performance(true_s).points
            eyes_px = float(np.linalg.norm(truth[33] - truth[263]))
            error = float(np.linalg.norm(shown.face.points - truth, axis=1)[:468].mean()) / eyes_px * 100
            age_s = now_s - true_s
        looks.append((now_s, shown.showing, error, age_s))
    heard.cancel()
    counts = jitter.counts
    # A sender that hangs up on a bad line may not be heard: what comes after its last packet is no part of the call.
    looks = [look for look in looks if arrivals and look[0] <= arrivals[-1][1]]
    _say(
        looks=looks,
        ways_ms=[(now_s - number / FPS) * 1e3 for number, now_s in arrivals[FPS:]],
        first_face_s=settled_s - begun_s if settled_s is not None else None,
        message_s=message_s[0] - begun_s if message_s else None,
        missing=counts.missing,
        late=counts.late,
        voice_ages_ms=heard_ages,
        voice_lost=transport.voice_received.lost if transport.voice_received else None,
        stats=transport.stats(),
    )
    await transport.close()


heard_ages: list[float] = []


async def _listen(transport: Transport) -> None:
    """How old sound is when it can be played: its last sample's age, milliseconds."""
    while transport.voice_received is None:
        await asyncio.sleep(0.1)
    while True:
        try:
            frame = await transport.voice_received.recv()
        except MediaStreamError:
            return
        if transport.voice_received.clock_known and frame.pts is not None:
            ticks = (int(time.monotonic() * CLOCK_HZ) - frame.pts - frame.samples) % 2**32
            heard_ages.append(ticks / CLOCK_HZ * 1e3)


# --- the bench -------------------------------------------------------------------------------------------------


class EndedEarlyError(Exception):
    """A peer said nothing more."""


def _peer(namespace: str, role: str, words: list[str]) -> subprocess.Popen[str]:
    command = ["ip", "netns", "exec", namespace, sys.executable, "-m", "plugin.bench_link", role, *words]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _told(peer: subprocess.Popen[str]) -> dict[str, Any]:
    assert peer.stdout is not None
    line = peer.stdout.readline()
    if not line:
        raise EndedEarlyError
    return json.loads(line)


def _tell(peer: subprocess.Popen[str], told: dict[str, Any]) -> None:
    assert peer.stdin is not None
    peer.stdin.write(json.dumps(told) + "\n")
    peer.stdin.flush()


def call(
    link: LinkProcess, seconds: float, *words: str, burst_ms: float = 0, receiver: tuple[str, ...] = ()
) -> dict[str, Any]:
    """One call over the link as it is; what was counted after it settled, and what the receiver saw.

    Raises `ValueError` when it did not come about, three times.
    """
    for attempt in range(3):
        try:
            return {"failed_connects": attempt, **_call(link, seconds, words, burst_ms, receiver)}
        except EndedEarlyError:
            pass
    raise ValueError("three calls in a row did not come about")


def _call(
    link: LinkProcess, seconds: float, words: tuple[str, ...], burst_ms: float, receiver: tuple[str, ...]
) -> dict[str, Any]:
    receiving = _peer(link.names[1], "receive", list(receiver))
    sending = _peer(link.names[0], "send", ["--seconds", str(seconds + 4), *words])
    try:
        _tell(sending, _told(receiving))
        _tell(receiving, _told(sending))
        route = _told(sending)["route"]
        time.sleep(3.5)
        link.count()
        began_s = time.monotonic()
        while time.monotonic() - began_s < seconds - 0.5:
            if burst_ms:
                link.say(burst_ms=burst_ms)
            time.sleep(min(3.0, seconds - 0.5))
        counted, spent_s = link.count(), time.monotonic() - began_s
        sent, seen = _told(sending), _told(receiving)
    finally:
        for peer in (sending, receiving):
            peer.kill()
            peer.communicate()
    return {"route": route, **_summary(counted, spent_s, sent["stats"], seen)}


def _summary(
    counted: list[dict[str, Any]], spent_s: float, stats: dict[str, Any], seen: dict[str, Any]
) -> dict[str, Any]:
    def kbps(way: dict[str, Any]) -> dict[str, float]:
        kinds = {kind: round(both["bytes"] * 8e-3 / spent_s, 2) for kind, both in way["kinds"].items()}
        return {"all": round(way["bytes"] * 8e-3 / spent_s, 2), **kinds}

    def spread(values: list[float]) -> list[float] | None:
        return [round(float(np.percentile(values, share)), 1) for share in (50, 95, 99)] if values else None

    looks = seen["looks"]
    voice_s = stats["voice"]["out_packets"] * stats["packet_ms"] / 1e3
    ages_ms = [one[3] * 1e3 for one in looks if one[3] is not None]
    errors = [one[2] for one in looks if one[2] is not None]
    stall_ms, began_s = 0.0, None
    for now_s, showing, _, _ in looks:
        if showing == "live":
            began_s = None
        else:
            began_s = began_s if began_s is not None else now_s
            stall_ms = max(stall_ms, (now_s - began_s) * 1e3)
    return {
        "out_kbps": kbps(counted[0]),
        "back_kbps": kbps(counted[1]),
        "way_ms_p50_p95_p99": spread(seen["ways_ms"]),
        "age_ms_p50_p95_p99": spread(ages_ms),
        "voice_ms_p50_p95_p99": spread(seen["voice_ages_ms"]),
        "voice_lost": seen["voice_lost"],
        "error_percent_of_eye_distance": round(float(np.mean(errors)), 3) if errors else None,
        "error_p95": round(float(np.percentile(errors, 95)), 3) if errors else None,
        "live_share": round(sum(one[1] == "live" for one in looks) / max(len(looks), 1), 4),
        "longest_stall_ms": round(stall_ms),
        "first_face_s": seen["first_face_s"] and round(seen["first_face_s"], 2),
        "message_s": seen["message_s"],
        "missing": seen["missing"],
        "late": seen["late"],
        "voice_payload_kbps": round(stats["voice"]["out_bytes"] * 8e-3 / voice_s, 2) if voice_s else None,
        "rtt_ms": stats["rtt_ms"],
        "loss": stats["loss"],
        "stale": stats["dropped"]["stale"],
    }


COSTS: dict[str, list[str]] = {
    "datachannel, 5 a second": ["--route", "datachannel"],
    "datachannel, 8 a second": ["--route", "datachannel", "--interval-ms", "120"],
    "datachannel, 25 a second": ["--route", "datachannel", "--interval-ms", "40"],
    "own RTP, 10 a second": ["--route", "rtp"],
    "own RTP, 12.5 a second": ["--route", "rtp", "--interval-ms", "80"],
    "own RTP, 25 a second": ["--route", "rtp", "--interval-ms", "40"],
    "voice alone, 60 ms": ["--route", "audio", "--voice", "--faceless"],
    "voice with face, 60 ms": ["--route", "audio", "--voice"],
    "voice alone, 40 ms": ["--route", "audio", "--voice", "--faceless", "--packet-ms", "40"],
    "voice with face, 40 ms": ["--route", "audio", "--voice", "--packet-ms", "40"],
    "voice alone, 20 ms": ["--route", "audio", "--voice", "--faceless", "--packet-ms", "20"],
    "voice with face, 20 ms": ["--route", "audio", "--voice", "--packet-ms", "20"],
    "voice, face by datachannel": ["--route", "datachannel", "--voice"],
}


def run(folder: Path, seconds: float) -> dict[str, Any]:
    told: dict[str, Any] = {"frame_bytes": FRAME_BYTES, "fps": FPS, "seconds": seconds, "cores": os.cpu_count()}
    with LinkProcess(delay_ms=10) as link:
        told["costs, 20 ms round trip"] = costs = {}
        for name, words in COSTS.items():
            costs[name] = call(link, seconds, *words)
            _print(name, costs[name])
        told["loss"] = losses = {}
        for route, words in (("audio", ["--voice"]), ("rtp", []), ("datachannel", [])):
            for loss in (0.0, 0.05, 0.1, 0.2, 0.3):
                link.say(loss=loss)
                name = f"{route}, {loss:.0%} lost"
                losses[name] = call(link, 1.5 * seconds, "--route", route, *words)
                _print(name, losses[name])
            link.say(loss=0.0)
            name = f"{route}, bursts of 500 ms"
            losses[name] = call(link, 1.5 * seconds, "--route", route, *words, burst_ms=500)
            _print(name, losses[name])
    told["thin: 32 kbit/s, 300 ms"] = thin = {}
    with LinkProcess(delay_ms=150, rate_kbps=32) as link:
        for name, words in (
            ("audio", ["--route", "audio", "--voice"]),
            ("audio, a 25 kB message first", ["--route", "audio", "--voice", "--message-bytes", "25000"]),
            ("rtp", ["--route", "rtp"]),
            ("datachannel", ["--route", "datachannel"]),
        ):
            thin[name] = call(link, 1.5 * seconds, *words)
            _print(f"thin: {name}", thin[name])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "link.json").write_text(json.dumps(told, indent=1, allow_nan=False) + "\n")
    _picture(told, folder / "link.png")
    return told


def _print(name: str, one: dict[str, Any]) -> None:
    age = one["age_ms_p50_p95_p99"] or ["-"] * 3
    print(
        f"{name:<34} out {one['out_kbps']['all']:6.2f}  back {one['back_kbps']['all']:6.2f} kbit/s   "
        f"face {age[0]}/{age[1]} ms   live {one['live_share']:.1%}   stall {one['longest_stall_ms']} ms   "
        f"error {one['error_percent_of_eye_distance']} %",
        flush=True,
    )


def _picture(told: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.patches import Rectangle

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(13, 5), width_ratios=(1.5, 1))
    costs = told["costs, 20 ms round trip"]
    for place, one in enumerate(costs.values()):
        at = 0.0
        for way, hatch in (("out_kbps", None), ("back_kbps", "//")):
            for kind in KINDS:
                width = one[way].get(kind, 0.0)
                left.barh(place, width, left=at, color=COLOURS[kind], hatch=hatch, edgecolor="white", linewidth=0.4)
                at += width
        left.text(at + 0.3, place, f"{at:.1f}", va="center", fontsize=8)
    left.set_yticks(range(len(costs)), list(costs))
    left.invert_yaxis()
    left.set_xlabel("kbit/s on the wire, IP headers included; hatched: on the way back")
    left.legend(
        [Rectangle((0, 0), 1, 1, color=COLOURS[kind]) for kind in KINDS],
        ["RTP: voice and face", "DTLS: datachannels", "RTCP", "STUN consent"],
        frameon=False,
        fontsize=8,
    )
    shares = (0, 5, 10, 20, 30)
    for route in ("audio", "rtp", "datachannel"):
        mine = [told["loss"][f"{route}, {share}% lost"] for share in shares]
        right.plot(shares, [one["error_percent_of_eye_distance"] for one in mine], marker="o", label=f"{route}, mean")
    right.set_xlabel("packets lost each way, %")
    right.set_ylabel("error of what is shown, % of the distance between the eyes")
    right.set_ylim(bottom=0)
    right.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("role", nargs="?", choices=("send", "receive"), help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=Path("bench"))
    parser.add_argument("--seconds", type=float, default=12.0, help="how long each call is counted")
    parser.add_argument("--route", choices=get_args(Route), default="auto", help=argparse.SUPPRESS)
    parser.add_argument("--voice", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--faceless", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--both-ways", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--packet-ms", type=int, default=60, help=argparse.SUPPRESS)
    parser.add_argument("--interval-ms", type=int, default=None, help=argparse.SUPPRESS)
    parser.add_argument("--voice-kbps", type=float, default=12.0, help=argparse.SUPPRESS)
    parser.add_argument("--message-bytes", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    try:
        if options.role == "send":
            asyncio.run(_send(options))
        elif options.role == "receive":
            asyncio.run(_receive(options))
        else:
            run(options.out, options.seconds)
    except (ValueError, TransportError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
