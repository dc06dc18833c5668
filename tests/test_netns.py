"""What needs no namespaces of the emulated network: telling packets apart, delaying, losing, thinning out, counting."""

from __future__ import annotations

import asyncio
import os
import random
from pathlib import Path

import pytest

from plugin import netns
from plugin.netns import Conditions, Link, LinkProcess, _Way, kind_of


def datagram(*payload: int, protocol: int = 17) -> bytes:
    return bytes([0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol]) + bytes(10) + bytes(8) + bytes(payload) + bytes(60)


def test_packets_are_told_apart_by_their_first_byte() -> None:
    kinds = {kind_of(datagram(*first)): first for first in ((0, 1), (22, 254), (0x80, 96), (0x80, 200), (0x40, 0))}
    assert kinds == {"stun": (0, 1), "dtls": (22, 254), "rtp": (0x80, 96), "rtcp": (0x80, 200), "turn": (0x40, 0)}
    assert kind_of(datagram(22, 254, protocol=6)) == kind_of(b"\x45") == kind_of(b"") == "other"


def passed(conditions: Conditions, count: int, size: int = 100) -> tuple[Link, list[bytes], list[float]]:
    """`count` packets at once through a link without devices: what came out, and after how long."""

    async def scene() -> tuple[Link, list[bytes], list[float]]:
        out, into = os.pipe()
        os.set_blocking(out, False)
        link = Link.__new__(Link)
        link.conditions, link._deaf_until_s, link._loop = conditions, 0.0, asyncio.get_running_loop()
        way = _Way(-1, into, random.Random(3))
        link._ways = [way]
        try:
            for number in range(count):
                link._take(way, (datagram(0x80, 96) + number.to_bytes(2, "big")).ljust(size, b"\0"), 0.0)
            due = sorted(at_s for at_s, _, _ in way.pending)
            way.pending = [(0.0, number, packet) for _, number, packet in sorted(way.pending)]
            link._deliver(way)
            got = b""
            try:
                while piece := os.read(out, 65536):
                    got += piece
            except BlockingIOError:
                pass
        finally:
            os.close(out)
            os.close(into)
        return link, [got[at : at + size] for at in range(0, len(got), size)], due

    return asyncio.run(scene())


def test_every_byte_is_counted_even_of_packets_that_are_lost() -> None:
    link, came, _ = passed(Conditions(loss=0.4), 200)
    told = link.count()[0]
    assert told["bytes"] == 20_000 and told["kinds"] == {"rtp": {"bytes": 20_000, "packets": 200}}
    assert told["lost"] == 200 - len(came) == pytest.approx(80, abs=20)
    assert link.count()[0]["bytes"] == 0


def test_a_rate_spaces_packets_and_drops_what_would_wait_too_long() -> None:
    """100 bytes at 8 kbit/s take a tenth of a second; half a second may be waited."""
    _, came, due = passed(Conditions(rate_kbps=8, queue_ms=500), 20)
    assert len(came) == 6
    assert due == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])


def test_delay_and_jitter() -> None:
    _, _, due = passed(Conditions(delay_ms=50, jitter_ms=20), 100)
    assert 0.03 <= due[0] < 0.035 and 0.065 < due[-1] <= 0.07


def test_where_there_can_be_none_it_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    if netns.sys.platform == "linux" and Path("/dev/net/tun").exists():
        assert "sudo" in netns.why_not()
    with pytest.raises(ValueError, match="namespaces"), LinkProcess():
        pass
