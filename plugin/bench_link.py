"""`make bench-link`: what the link costs and what it survives, counted in IP bytes between two network namespaces.

The face is the demo's recorded performance, 25 frames a second, through `engine.codec` at its default quality; the
receiver knows the performance, so the error it reports is that of everything between the two trackers' faces: codec,
loss, delay and interpolation. Both ends share the machine's monotonic clock, so ages need no estimate.
Needs root and Linux; writes `bench/link.json` and `bench/link.png`.

`--soak MINUTES` leaves one call on a line that loses 5 % each way, the sender's clock 50 millionths fast, and writes
`bench/soak.json`: every ten seconds what both ends hold in memory, and how old, wrong and steady the face is.
"""

from __future__ import annotations

import argparse
import asyncio
import fractions
import itertools
import json
import math
import os
import subprocess
import sys
import time
from collections import deque
from importlib import resources
from pathlib import Path
from typing import Any, get_args

import numpy as np
from aiortc import MediaStreamTrack
from aiortc.mediastreams import MediaStreamError
from av import AudioFrame

from engine.codec import DEFAULT, MAX_FRAMES, QUALITIES, TIME_WRAP_S, CodecError, Decoder, Encoder, unwrap
from engine.frames import Face, NoFace
from engine.motion import to_head
from plugin.jitter import Jitter, between
from plugin.meter import rss_mb
from plugin.netns import LinkProcess
from plugin.render import read_faces
from plugin.routes import CLOCK_HZ
from plugin.transport import IceServers, Route, Transport, TransportError

FPS = 25
LOOK_FPS = 60
SOAK_LOSS, SOAK_DRIFT_PPM, SOAK_REPORT_S = 0.05, 50.0, 10.0
KINDS = ("rtp", "dtls", "rtcp", "stun")
COLOURS = {"rtp": "#7aa6c2", "dtls": "#d98c5f", "rtcp": "#8fb58a", "stun": "#b59ac2", "other": "#bbbbbb"}


class Performance:
    """The demo's recorded face at any moment, forth and back without end."""

    def __init__(self) -> None:
        with resources.as_file(resources.files("plugin") / "assets" / "demo" / "talking.npz") as path:
            faces, self._fps = read_faces(path)
        self._faces = faces
        self._heads = [to_head(face) for face in faces]

    def at(self, seconds: float) -> Face:
        lap = len(self._heads) - 1
        place = seconds * self._fps % (2 * lap)
        place = min(place, 2 * lap - place)
        before = min(int(place), lap - 1)
        head = between(self._heads[before], self._heads[before + 1], place - before)
        like = self._faces[before]
        return Face(
            head.to_picture(), head.rotation, head.translation, head.scale, like.visibility, like.size_px, seconds
        )


class Clock:
    """The sender's: the machine's monotonic one, some millionths fast."""

    def __init__(self, drift_ppm: float = 0.0) -> None:
        self._rate = 1 + drift_ppm * 1e-6

    def now_s(self) -> float:
        return self.told_s(time.monotonic())

    def told_s(self, true_s: float) -> float:
        return true_s * self._rate

    def true_s(self, told_s: float) -> float:
        return told_s / self._rate

    async def until(self, told_s: float) -> None:
        await asyncio.sleep(max(0.0, self.true_s(told_s) - time.monotonic()))


class Babble(MediaStreamTrack):
    """A voice of sorts: a tone whose pitch and strength wander, in 20 ms frames on the sender's clock.

    Encoded at 12 kbit/s it takes 9, as speech does that is encoded at 10.
    """

    kind = "audio"

    def __init__(self, clock: Clock | None = None) -> None:
        super().__init__()
        self._clock = clock or Clock()
        self._frame = 0
        self._began_s = 0.0
        seconds = np.arange(10 * CLOCK_HZ) / CLOCK_HZ
        envelope = 0.2 + np.abs(np.sin(2 * np.pi * 1.9 * seconds))
        tone = sum(np.sin(2 * np.pi * 140 * k * seconds + np.sin(3 * seconds)) / k for k in range(1, 20))
        noise = np.random.default_rng(0).normal(0, 0.8, len(seconds))
        self._sound = (4000 * envelope * (tone + noise)).astype(np.int16).reshape(-1, CLOCK_HZ // 50)

    async def recv(self) -> AudioFrame:
        self._began_s = self._began_s or self._clock.now_s()
        late = int((self._clock.now_s() - self._began_s) * 50) - self._frame
        self._frame += late if late > 5 else 0  # as a sound card does whose reader sleeps
        self._frame += 1
        await self._clock.until(self._began_s + self._frame * 0.02)
        frame = AudioFrame.from_ndarray(self._sound[None, self._frame % len(self._sound)], format="s16", layout="mono")
        frame.sample_rate = CLOCK_HZ
        frame.pts = round((self._began_s + (self._frame - 1) * 0.02) * CLOCK_HZ)
        frame.time_base = fractions.Fraction(1, CLOCK_HZ)
        return frame


# --- the two peers, each a process in its namespace ------------------------------------------------------------


async def _read_line() -> dict[str, Any]:
    return json.loads(await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline))


def _say(**told: Any) -> None:
    print(json.dumps(told), flush=True)


async def _send(options: argparse.Namespace) -> None:
    clock, performance, encoder = Clock(options.drift_ppm), Performance(), Encoder(options.quality)
    transport = Transport(
        IceServers(),
        options.route,
        Babble(clock) if options.voice else None,
        packet_ms=options.packet_ms,
        face_interval_ms=options.interval_ms,
        voice_kbps=options.voice_kbps,
    )
    gathered: deque[Face | NoFace] = deque(maxlen=MAX_FRAMES)

    def leave() -> None:
        if gathered:
            transport.send_face(encoder.encode(list(gathered)))
            gathered.clear()

    transport.on_room = None if options.faceless else leave
    answer = await transport.answer((await _read_line())["sdp"])
    _say(sdp=answer)
    await transport.connected()
    _say(connected_s=time.monotonic(), route=transport.route)
    if options.message_bytes:
        transport.muted = True
        await transport.send_message("avatar", os.urandom(options.message_bytes))
        transport.muted = False
    began_s = reported_s = time.monotonic()
    header_sent, sending = 0, set[asyncio.Task[None]]()
    for number in itertools.count(math.ceil(clock.now_s() * FPS)):
        await clock.until(number / FPS)
        gathered.append(performance.at(number / FPS))
        if encoder.header_id != header_sent:
            header_sent = encoder.header_id
            sending.add(asyncio.create_task(transport.send_message("face/header", encoder.header())))
        if options.report_s and time.monotonic() - reported_s >= options.report_s:
            reported_s = time.monotonic()
            _say(**_footprint(), stats=transport.stats())
        if time.monotonic() - began_s > options.seconds:
            break
    _say(stats=transport.stats(), spent_s=time.monotonic() - began_s)
    await transport.close()


def _footprint() -> dict[str, Any]:
    """What this process holds now."""
    return {
        "at_s": time.monotonic(),
        "rss_mb": round(rss_mb(), 2),
        "files": len(list(Path("/proc/self/fd").iterdir())),
        "tasks": len(asyncio.all_tasks()),
        "cpu_s": round(time.process_time(), 2),
    }


Look = tuple[float, str, float | None, float | None, float]
"""When, what is shown, its error (% of the eye distance), its age (s), and the jitter buffer's delay (ms)."""


class _Viewer:
    """The receiver: what came, and what was seen of it."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._clock, self._performance, self._decoder = Clock(options.drift_ppm), Performance(), Decoder()
        self.jitter = Jitter()
        self.looks: list[Look] = []
        self.ways_ms: list[float] = []
        self.undecodable = 0
        self.last_s = -math.inf
        self.settled_s: float | None = None
        self.message_s: float | None = None

    def came(self, packet: bytes) -> None:
        now_s = time.monotonic()
        try:
            frames = self._decoder.decode(packet)
        except CodecError:
            self.undecodable += 1
            return
        self.last_s = now_s
        for coded in frames:
            self.ways_ms.append((now_s - self._clock.true_s(self._whole_s(coded.time_s, now_s))) * 1e3)
            self.jitter.put(coded, now_s)

    def message(self, kind: str, payload: bytes) -> None:
        if kind == "face/header":
            self._decoder.feed_header(payload)
        else:
            self.message_s = self.message_s or time.monotonic()

    def _whole_s(self, told_s: float, now_s: float) -> float:
        """The sender's clock without its wrap, a little before our `now_s`."""
        return unwrap(told_s, self._clock.told_s(now_s), TIME_WRAP_S)

    def look(self) -> None:
        now_s = time.monotonic()
        shown = self.jitter.at(now_s)
        if isinstance(shown.face, Face):
            self.settled_s = self.settled_s or now_s
        if self.settled_s is None or now_s - self.settled_s < 3:
            return
        error, age_s = None, None
        told_s = self.jitter.sender_s(now_s)
        if isinstance(shown.face, Face) and told_s is not None:
            whole_s = self._whole_s(told_s, now_s)
            age_s = now_s - self._clock.true_s(whole_s)
            truth = self._performance.at(whole_s).points
            eyes_px = float(np.linalg.norm((truth[33] - truth[263])[:2]))
            error = float(np.linalg.norm((shown.face.points - truth)[:, :2], axis=1).mean()) / eyes_px * 100
        self.looks.append((now_s, shown.showing, error, age_s, shown.delay_ms))


async def _receive(options: argparse.Namespace) -> None:
    transport = Transport(receive_only=not options.both_ways)
    viewer = _Viewer(options)
    heard_ages_ms: list[float] = []
    transport.on_face, transport.on_message = viewer.came, viewer.message
    begun_s = time.monotonic()
    _say(sdp=await transport.offer())
    await transport.accept((await _read_line())["sdp"])
    await transport.connected()
    heard = asyncio.create_task(_listen(transport, Clock(options.drift_ppm), heard_ages_ms))
    reported_s = time.monotonic()
    while transport.state not in ("closed", "failed"):
        await asyncio.sleep(1 / LOOK_FPS)
        viewer.look()
        if options.report_s and time.monotonic() - reported_s >= options.report_s:
            reported_s = time.monotonic()
            _say(**_footprint(), **_seen(viewer.looks, viewer.ways_ms, heard_ages_ms), undecodable=viewer.undecodable)
            for told in (viewer.looks, viewer.ways_ms, heard_ages_ms):
                told.clear()
    heard.cancel()
    counts = viewer.jitter.counts
    # A sender that hangs up on a bad line may not be heard: what comes after its last packet is no part of the call.
    _say(
        **_seen([look for look in viewer.looks if look[0] <= viewer.last_s], viewer.ways_ms[FPS:], heard_ages_ms),
        undecodable=viewer.undecodable,
        first_face_s=round(viewer.settled_s - begun_s, 2) if viewer.settled_s is not None else None,
        message_s=round(viewer.message_s - begun_s, 2) if viewer.message_s is not None else None,
        missing=counts.missing,
        late=counts.late,
        restarts=counts.restarts,
        voice_lost=transport.voice_received.lost if transport.voice_received else None,
    )
    await transport.close()


def _seen(looks: list[Look], ways_ms: list[float], heard_ages_ms: list[float]) -> dict[str, Any]:
    """A stretch of looking in a few numbers."""

    def spread(values: list[float]) -> list[float] | None:
        return [round(float(np.percentile(values, share)), 1) for share in (50, 95, 99)] if values else None

    errors = [one[2] for one in looks if one[2] is not None]
    stall_ms, began_s = 0.0, None
    for now_s, showing, *_ in looks:
        if showing == "live":
            began_s = None
        else:
            began_s = began_s if began_s is not None else now_s
            stall_ms = max(stall_ms, (now_s - began_s) * 1e3)
    return {
        "way_ms_p50_p95_p99": spread(ways_ms),
        "way_ms_least": round(min(ways_ms), 1) if ways_ms else None,
        "age_ms_p50_p95_p99": spread([one[3] * 1e3 for one in looks if one[3] is not None]),
        "delay_ms": round(float(np.mean([one[4] for one in looks])), 1) if looks else None,
        "voice_ms_p50_p95_p99": spread(heard_ages_ms),
        "error_percent_of_eye_distance": round(float(np.mean(errors)), 3) if errors else None,
        "error_p95": round(float(np.percentile(errors, 95)), 3) if errors else None,
        "live_share": round(sum(one[1] == "live" for one in looks) / max(len(looks), 1), 4),
        "longest_stall_ms": round(stall_ms),
    }


async def _listen(transport: Transport, clock: Clock, ages_ms: list[float]) -> None:
    """How old sound is when it can be played: its last sample's age, milliseconds."""
    while transport.voice_received is None:
        await asyncio.sleep(0.1)
    while True:
        try:
            frame = await transport.voice_received.recv()
        except MediaStreamError:
            return
        if transport.voice_received.clock_known and frame.pts is not None:
            ticks = (int(clock.now_s() * CLOCK_HZ) - frame.pts - frame.samples) % 2**32
            ages_ms.append(ticks / CLOCK_HZ * 1e3)


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
    return {"route": route, **_summary(counted, spent_s, sent, seen)}


def _summary(
    counted: list[dict[str, Any]], spent_s: float, sent: dict[str, Any], seen: dict[str, Any]
) -> dict[str, Any]:
    stats = sent["stats"]

    def kbps(way: dict[str, Any]) -> dict[str, float]:
        kinds = {kind: round(both["bytes"] * 8e-3 / spent_s, 2) for kind, both in way["kinds"].items()}
        return {"all": round(way["bytes"] * 8e-3 / spent_s, 2), **kinds}

    voice_s = stats["voice"]["out_packets"] * stats["packet_ms"] / 1e3
    return {
        "out_kbps": kbps(counted[0]),
        "back_kbps": kbps(counted[1]),
        **seen,
        "voice_payload_kbps": round(stats["voice"]["out_bytes"] * 8e-3 / voice_s, 2) if voice_s else None,
        "face_payload_kbps": round(stats["face"]["out_bytes"] * 8e-3 / sent["spent_s"], 2),
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
    told: dict[str, Any] = {"quality": DEFAULT, "fps": FPS, "seconds": seconds, "cores": os.cpu_count()}
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
    _write(told, folder / "link.json")
    _picture(told, folder / "link.png")
    return told


def soak(folder: Path, minutes: float) -> dict[str, Any]:
    """One call for so long, on a line that loses `SOAK_LOSS`. The file is there from the start, and grows."""
    told: dict[str, Any] = {"loss": SOAK_LOSS, "drift_ppm": SOAK_DRIFT_PPM, "fps": FPS, "rows": []}
    folder.mkdir(parents=True, exist_ok=True)
    both = ["--drift-ppm", str(SOAK_DRIFT_PPM), "--report-s", str(SOAK_REPORT_S)]
    with LinkProcess(delay_ms=10, loss=SOAK_LOSS) as link:
        receiving = _peer(link.names[1], "receive", both)
        sending = _peer(link.names[0], "send", ["--route", "audio", "--voice", "--seconds", str(minutes * 60), *both])
        try:
            _tell(sending, _told(receiving))
            _tell(receiving, _told(sending))
            told["began_s"] = _told(sending)["connected_s"]
            while "spent_s" not in (sent := _told(sending)):
                seen = _told(receiving)
                out, back = link.count()
                row = {"minute": round((seen["at_s"] - told["began_s"]) / 60, 2), "sender": sent, "receiver": seen}
                told["rows"].append({**row, "out_bytes": out["bytes"], "back_bytes": back["bytes"]})
                _write(told, folder / "soak.json")
            told["sent"] = sent["stats"]
            while "first_face_s" not in (seen := _told(receiving)):
                pass
            told["received"] = seen
        except EndedEarlyError:
            told["broke_off"] = True
        finally:
            for peer in (sending, receiving):
                peer.kill()
                peer.communicate()
    told["summary"] = _soaked(told["rows"])
    _write(told, folder / "soak.json")
    print(json.dumps(told["summary"], indent=1))
    return told


def _soaked(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The first fifth beside the last, after a minute of settling; and the growth (least squares)."""
    rows = [row for row in rows if row["minute"] >= 1 and row["receiver"]["age_ms_p50_p95_p99"]]
    if len(rows) < 10:
        return {"minutes": rows[-1]["minute"] if rows else 0.0}
    minutes = np.array([row["minute"] for row in rows])
    series = {
        "sender_mb": [row["sender"]["rss_mb"] for row in rows],
        "receiver_mb": [row["receiver"]["rss_mb"] for row in rows],
        "age_p50_ms": [row["receiver"]["age_ms_p50_p95_p99"][0] for row in rows],
        "age_p95_ms": [row["receiver"]["age_ms_p50_p95_p99"][1] for row in rows],
        "delay_ms": [row["receiver"]["delay_ms"] for row in rows],
        "way_least_ms": [row["receiver"]["way_ms_least"] for row in rows],
        "error_percent": [row["receiver"]["error_percent_of_eye_distance"] for row in rows],
        "files": [row["sender"]["files"] + row["receiver"]["files"] for row in rows],
        "tasks": [row["sender"]["tasks"] + row["receiver"]["tasks"] for row in rows],
    }
    share = max(len(rows) // 5, 1)
    told: dict[str, Any] = {"minutes": rows[-1]["minute"], "undecodable": rows[-1]["receiver"]["undecodable"]}
    told["longest_stall_ms"] = max(row["receiver"]["longest_stall_ms"] for row in rows)
    told["live_share"] = round(float(np.mean([row["receiver"]["live_share"] for row in rows])), 4)
    for name, values in series.items():
        told[name] = {
            "first": round(float(np.mean(values[:share])), 3),
            "last": round(float(np.mean(values[-share:])), 3),
            "per_hour": round(float(np.polyfit(minutes, values, 1)[0]) * 60, 3),
        }
    return told


def _write(told: dict[str, Any], path: Path) -> None:
    path.write_text(json.dumps(told, indent=1, allow_nan=False) + "\n")


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
    parser.add_argument("--soak", type=float, metavar="MINUTES", help="one call for so long instead")
    parser.add_argument("--quality", type=int, choices=range(QUALITIES), default=DEFAULT, help=argparse.SUPPRESS)
    parser.add_argument("--drift-ppm", type=float, default=0.0, help=argparse.SUPPRESS)
    parser.add_argument("--report-s", type=float, default=0.0, help=argparse.SUPPRESS)
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
        elif options.soak is not None:
            soak(options.out, options.soak)
        else:
            run(options.out, options.seconds)
    except (ValueError, TransportError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
