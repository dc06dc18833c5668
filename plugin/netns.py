"""A bad network on one machine: two network namespaces joined by a process that delays, loses, thins out and counts.

    python -m plugin.netns usA usB [loss=0.1] [delay_ms=150] [rate_kbps=32] ...      (root, Linux, /dev/net/tun)

makes the namespaces of the two names (10.77.0.1 and 10.77.0.2 in them), prints "ready", then obeys each line it reads:
`loss=0.3 delay_ms=20` changes settings, `burst_ms=500` loses everything for so long, `count` prints what passed since
the last `count` as JSON, the end of input removes the namespaces. It is netem in user space: TUN devices need no kernel
module. Every IP byte is counted as it enters, both ways, by what it is: STUN, DTLS (with the SCTP in it), RTP, RTCP.
"""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import heapq
import itertools
import json
import os
import random
import signal
import struct
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ADDRESSES = ("10.77.0.1", "10.77.0.2")
_CLONE_NEWNET = 0x40000000
_TUNSETIFF = 0x400454CA
_IFF_TUN_NO_PI = 0x1001
_numbers = itertools.count()


@dataclass(slots=True)
class Conditions:
    loss: float = 0.0
    """Share of packets that vanish, each way, each by itself."""
    delay_ms: float = 0.0
    """One way."""
    jitter_ms: float = 0.0
    """Up to so much more or less, each packet by itself: packets may overtake each other."""
    rate_kbps: float = 0.0
    """0: as fast as it goes."""
    queue_ms: float = 1000.0
    """What would wait longer for the rate is lost."""


def kind_of(packet: bytes) -> str:
    """What an IPv4 packet carries, told by its first byte of payload (RFC 7983)."""
    if len(packet) < 29 or packet[9] != 17:
        return "other"
    at = (packet[0] & 15) * 4 + 8
    if len(packet) <= at + 1:
        return "other"
    first, second = packet[at], packet[at + 1]
    if first < 4:
        return "stun"
    if 19 < first < 64:
        return "dtls"
    if 64 <= first < 80:
        return "turn"
    if 127 < first < 192:
        return "rtcp" if 192 <= second <= 223 else "rtp"
    return "other"


@dataclass(slots=True)
class _Way:
    source: int
    sink: int
    random: random.Random
    free_s: float = 0.0
    pending: list[tuple[float, int, bytes]] = field(default_factory=list)
    number: int = 0
    counted: dict[str, list[int]] = field(default_factory=dict)
    lost: int = 0


class Link:
    """The process between the two namespaces; runs on the event loop."""

    def __init__(self, names: list[str], conditions: Conditions, seed: int = 0) -> None:
        self.conditions = conditions
        self._deaf_until_s = 0.0
        first, second = (_open_tun(*pair) for pair in zip(names, ADDRESSES, reversed(ADDRESSES), strict=True))
        self._ways = [_Way(first, second, random.Random(seed)), _Way(second, first, random.Random(seed + 1))]
        self._loop = asyncio.get_running_loop()
        for way in self._ways:
            self._loop.add_reader(way.source, self._read, way)

    def _read(self, way: _Way) -> None:
        now_s = time.monotonic()
        while True:
            try:
                packet = os.read(way.source, 2048)
            except BlockingIOError:
                return
            self._take(way, packet, now_s)

    def _take(self, way: _Way, packet: bytes, now_s: float) -> None:
        if packet[0] >> 4 != 4:
            return  # IPv6's own chatter is no part of the call
        counted = way.counted.setdefault(kind_of(packet), [0, 0])
        counted[0] += len(packet)
        counted[1] += 1
        conditions = self.conditions
        if way.random.random() < conditions.loss or now_s < self._deaf_until_s:
            way.lost += 1
            return
        at_s = now_s
        if conditions.rate_kbps:
            begins_s = max(now_s, way.free_s)
            if begins_s - now_s > conditions.queue_ms / 1e3:
                way.lost += 1
                return
            at_s = way.free_s = begins_s + len(packet) * 8e-3 / conditions.rate_kbps
        at_s += max(0.0, conditions.delay_ms + way.random.uniform(-1, 1) * conditions.jitter_ms) / 1e3
        way.number += 1
        heapq.heappush(way.pending, (at_s, way.number, packet))
        self._loop.call_at(at_s, self._deliver, way)

    def _deliver(self, way: _Way) -> None:
        now_s = time.monotonic() + 5e-4
        while way.pending and way.pending[0][0] <= now_s:
            packet = heapq.heappop(way.pending)[2]
            try:
                os.write(way.sink, packet)
            except OSError:
                pass  # the other side's device is going down

    def burst(self, ms: float) -> None:
        self._deaf_until_s = time.monotonic() + ms / 1e3

    def count(self) -> list[dict[str, Any]]:
        """Per way (A to B, B to A): bytes and packets by kind since the last call."""
        told = []
        for way in self._ways:
            kinds = {kind: {"bytes": both[0], "packets": both[1]} for kind, both in sorted(way.counted.items())}
            told.append({"kinds": kinds, "bytes": sum(both[0] for both in way.counted.values()), "lost": way.lost})
            way.counted, way.lost = {}, 0
        return told

    def close(self) -> None:
        for way in self._ways:
            self._loop.remove_reader(way.source)
            os.close(way.source)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def _open_tun(name: str, address: str, other: str) -> int:
    """A TUN device inside a new namespace; its file stays here."""
    subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
    _ip("netns", "add", name)
    _ip("-n", name, "link", "set", "lo", "up")
    libc = ctypes.CDLL(None, use_errno=True)
    ours = os.open("/proc/self/ns/net", os.O_RDONLY)
    theirs = os.open(f"/run/netns/{name}", os.O_RDONLY)
    if libc.setns(theirs, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "entering a network namespace takes root")
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH", b"us0", _IFF_TUN_NO_PI))
    libc.setns(ours, _CLONE_NEWNET)
    os.close(ours)
    os.close(theirs)
    _ip("-n", name, "addr", "add", f"{address}/24", "dev", "us0")
    _ip("-n", name, "link", "set", "us0", "mtu", "1400", "up")
    _ip("-n", name, "route", "add", "default", "via", other, "dev", "us0")
    return device


def _set(conditions: Conditions, words: list[str]) -> dict[str, float]:
    """Applies `name=value` words; returns those that are no condition."""
    others = {}
    for word in words:
        name, _, value = word.partition("=")
        if hasattr(conditions, name):
            setattr(conditions, name, float(value))
        else:
            others[name] = float(value or 0)
    return others


async def _serve(names: list[str], words: list[str]) -> None:
    conditions = Conditions()
    others = _set(conditions, words)
    link = Link(names, conditions, int(others.get("seed", 0)))
    loop = asyncio.get_running_loop()
    over = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, over.set)

    def obey() -> None:
        line = sys.stdin.readline()
        if not line:
            loop.remove_reader(sys.stdin)
            over.set()
        elif line.strip() == "count":
            print(json.dumps(link.count()), flush=True)
        else:
            burst_ms = _set(conditions, line.split()).get("burst_ms")
            if burst_ms:
                link.burst(burst_ms)

    loop.add_reader(sys.stdin, obey)
    print("ready", flush=True)
    await over.wait()
    link.close()


class LinkProcess:
    """The above as a child process; a context manager. Raises `ValueError` where it cannot be."""

    def __init__(self, **conditions: float) -> None:
        # Two of them may be at work at once.
        self.names = [f"us{os.getpid()}-{next(_numbers)}{letter}" for letter in "AB"]
        self._words = [*self.names, *(f"{name}={value}" for name, value in conditions.items())]

    def __enter__(self) -> LinkProcess:
        why = why_not()
        if why:
            raise ValueError(why)
        command = [sys.executable, "-m", "plugin.netns", *self._words]
        self._child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._child.stdout is not None
        if self._child.stdout.readline().strip() != "ready":
            raise ValueError("the network namespaces could not be made; see the message above")
        return self

    def say(self, **conditions: float) -> None:
        assert self._child.stdin is not None
        self._child.stdin.write(" ".join(f"{name}={value}" for name, value in conditions.items()) + "\n")
        self._child.stdin.flush()

    def count(self) -> list[dict[str, Any]]:
        assert self._child.stdin is not None and self._child.stdout is not None
        self._child.stdin.write("count\n")
        self._child.stdin.flush()
        return json.loads(self._child.stdout.readline())

    def __exit__(self, *_: object) -> None:
        assert self._child.stdin is not None and self._child.stdout is not None
        self._child.stdin.close()
        self._child.wait(10)
        self._child.stdout.close()


def why_not() -> str:
    """Why there can be no namespaces here, in a sentence; "" when there can."""
    if sys.platform != "linux" or not Path("/dev/net/tun").exists():
        return "a bad network is made of Linux network namespaces and /dev/net/tun; there are none here"
    if os.geteuid() != 0:
        return "making network namespaces takes root; type sudo before the command"
    if subprocess.run(["ip", "-V"], capture_output=True, check=False).returncode != 0:
        return "making network namespaces takes the ip command; install iproute2"
    return ""


def main() -> None:
    names = sys.argv[1:3]
    try:
        asyncio.run(_serve(names, sys.argv[3:]))
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


if __name__ == "__main__":
    main()
