"""What the line bears: rungs of voice and face, and which faces leave when. Pure: time is an argument.

All rungs speak one wire format (`engine.codec`), so whoever reads one reads them all. `THIN`, the lowest, sends fewer
faces, coarser, in fewer packets, within a budget; the receiver draws what lies between, as ever.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from engine.codec import DEFAULT, MAX_PACKET_BYTES
from engine.frames import Face, NoFace

LEAST_VOICE_KBPS = 6.0
_BURST_S = 0.3
"""So much of a budget may be saved up: a blink, a word, after a calm moment."""
_LEAST_S = 0.1
"""A packet waits until it may be so much of the budget: about what two faces take at the worst quality."""
_UP_S = 8
_LOSS = 0.1

FaceRung = Literal["auto", "thin"]
"""`link.face`: the ladder, or its lowest rung at all times."""


@dataclass(frozen=True, slots=True)
class Rung:
    quality: int
    """The best quality of `engine.codec`."""
    face_interval_s: float = 0.0
    """From face to face, at least; on average where faces come at other times."""
    packet_interval_s: float = 0.0
    """From packet to packet, at least."""
    kbps: float = math.inf
    """What the packets may take, without headers; 0.3 s of it may have been saved up."""


THIN = Rung(DEFAULT, face_interval_s=0.06, packet_interval_s=0.11, kbps=1.4)
"""At most 1.5 kbit/s over any ten seconds: two faces in every second voice packet of 60 ms, as fine as that allows."""
RUNGS = (THIN, Rung(2), Rung(4), Rung(DEFAULT))
"""From the worst line to the best. Never a better quality: a lively face would take more than 5 kbit/s beside the
voice."""


class Ladder:
    """Less of the voice and of the face's finer parts while the line is slow or loses much, more again when not."""

    def __init__(self, most_voice_kbps: float, face: FaceRung = "auto") -> None:
        self._most_kbps = most_voice_kbps
        self._top = 0 if face == "thin" else len(RUNGS) - 1
        self._at = self._top
        self.voice_kbps = LEAST_VOICE_KBPS
        self._least_rtt_ms = math.inf
        self._good = 0

    @property
    def rung(self) -> Rung:
        return RUNGS[self._at]

    def begin(self) -> None:
        """The avatar's preview is through: the voice need not make room for it any longer."""
        if self._least_rtt_ms < 150:
            self.voice_kbps = max(self.voice_kbps, min(12.0, self._most_kbps))

    def learn(self, rtt_ms: float | None, loss: float | None) -> float:
        """Once a second, of the line as it is; the voice's rate from now on.

        The lowest rung is for a line that is bad though voice and face take the least they can otherwise. Slowness and
        loss count alike: a line that is too narrow shows itself by either.
        """
        if rtt_ms is not None:
            self._least_rtt_ms = min(self._least_rtt_ms * 1.002, rtt_ms)
        slow = rtt_ms is not None and rtt_ms > 1.5 * self._least_rtt_ms + 80
        if slow or (loss is not None and loss > _LOSS):
            self._good = 0
            if self._at > 1 or self.voice_kbps <= LEAST_VOICE_KBPS:
                self._at = max(self._at - 1, 0)
            self.voice_kbps = max(self.voice_kbps * 0.7, LEAST_VOICE_KBPS)
        else:
            self._good += 1
            if self._good % _UP_S == 0:
                self.voice_kbps = min(self.voice_kbps + 2.0, self._most_kbps)
                self._at = min(self._at + 1, self._top)
        self.voice_kbps = round(self.voice_kbps)
        return self.voice_kbps


class Pace:
    """Which faces leave in which packet, on any rung: asked whenever the route has room, told what was sent."""

    def __init__(self) -> None:
        self._sent_s = self._face_s = -math.inf
        self._filled_s = -math.inf
        self._bits = 0.0

    def most_bytes(self, rung: Rung, now_s: float) -> int:
        """How many bytes a packet may have now; 0: none may leave yet."""
        if now_s - self._sent_s < rung.packet_interval_s:
            return 0
        if math.isinf(rung.kbps):
            return MAX_PACKET_BYTES
        rate = 1000 * rung.kbps
        self._bits = min(self._bits + rate * min(now_s - self._filled_s, _BURST_S), rate * _BURST_S)
        self._filled_s = now_s
        return int(self._bits / 8) if self._bits >= rate * _LEAST_S else 0

    def chosen(self, rung: Rung, faces: Sequence[Face | NoFace]) -> list[Face | NoFace]:
        """The newest face, and of those since the last that was sent as many as the rung has room for, evenly."""
        if not rung.face_interval_s:
            return list(faces)
        newest_s = faces[-1].time_s
        since_s = min(newest_s - self._face_s, rung.face_interval_s * len(faces))
        count = min(max(round(since_s / rung.face_interval_s), 1), len(faces))
        wanted_s = [newest_s - since_s * back / count for back in range(count)][::-1]
        nearest = {min(range(len(faces)), key=lambda at: abs(faces[at].time_s - one_s)) for one_s in wanted_s}
        return [faces[at] for at in sorted(nearest)]

    def sent(self, rung: Rung, size_bytes: int, newest_s: float, now_s: float) -> None:
        """A packet left, and `newest_s` is the time of its newest face."""
        self._sent_s, self._face_s = now_s, newest_s
        if math.isfinite(rung.kbps):
            self._bits -= 8 * size_bytes
