"""Decoded frames as they come -> the face to draw at any moment. Pure: time is an argument, nothing here waits.

Frames come late, in the wrong order, twice or not at all, in bundles of a packet. `Jitter` estimates the shortest way
between the two clocks and how far frames lag behind it, shows every frame by that much later, and so at even pace:

- between two frames it draws what lies between (turns by slerp, shape and place linearly, in the head's own frame);
- a frame that comes after its moment is dropped; when too many do, the delay grows, and shrinks again when none does;
- in a gap motion is carried on and dies away, then the face is held, then there is `NoFace`, on which the renderer
  eases to rest; when frames are back, the way back is a short blend and no jump;
- a sender that starts anew, a clock that jumps on either side, and a sleep start it anew within a few frames.
"""

from __future__ import annotations

import bisect
import math
from collections import deque
from dataclasses import dataclass
from typing import Literal, TypeGuard

import cv2
import numpy as np
from numpy.typing import NDArray

from engine.codec import SEQUENCE_WRAP, TIME_WRAP_S, Coded, unwrap
from engine.frames import POINT_COUNT, Face, NoFace
from engine.motion import HeadFace, between, to_head

Showing = Literal["waiting", "live", "carried", "held", "away", "lost"]
"""waiting: nothing came yet; live: drawn from frames; carried: motion carried on through a gap; held: still, the gap
lasts; away: the sender sees no face; lost: the gap is long, the avatar rests."""

MAX_FRAMES = 128
"""Frames kept, whatever is poured in."""
STRANGE_S = 1.0
"""A frame so far from where the clocks say it belongs is another clock's."""
FADE_S = 0.06
_LEAST_EVERY_S = 0.05
_MOST_STEPS = 4
"""Motion is carried on by so many of the last steps, however short they were."""
_MOST_LOG_SCALE = 0.5
_EASE = 3
"""The way back from what was guessed lasts so many times as long as the guess went; twice that beyond `ahead_s`."""
STRANGE_FRAMES = 3
"""So many of them in a row, and that clock is the one from now on."""


@dataclass(frozen=True, slots=True)
class Shown:
    face: Face | NoFace | None
    """What to draw; its time is the `now_s` that was asked about. None while waiting."""
    showing: Showing
    gap_ms: float
    """How old the newest frame is that this is drawn from, beyond the delay: 0 while live."""
    delay_ms: float
    """How much later than possible frames are shown."""


@dataclass(slots=True)
class Counts:
    came: int = 0
    late: int = 0
    twice: int = 0
    missing: int = 0
    """By the sequence numbers: sent, and not come (yet)."""
    strange: int = 0
    """Not finite, or of another clock."""
    restarts: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class _Kept:
    time_s: float
    face: Face | None
    head: HeadFace | None


@dataclass(frozen=True, slots=True, eq=False)
class _Offset:
    """What one face differs from another by."""

    turn: NDArray[np.float64]
    shape: NDArray[np.float32]
    translation: NDArray[np.float32]
    scale_log: float

    @classmethod
    def of(cls, face: HeadFace, base: HeadFace) -> _Offset:
        return cls(
            np.asarray(cv2.Rodrigues((face.rotation @ base.rotation.T).astype(np.float64))[0], np.float64),
            face.shape - base.shape,
            face.translation - base.translation,
            math.log(face.scale / base.scale),
        )

    def added(self, base: HeadFace, share: float) -> HeadFace:
        return HeadFace(
            base.shape + np.float32(share) * self.shape,
            (cv2.Rodrigues(self.turn * share)[0] @ base.rotation).astype(np.float32),
            base.translation + np.float32(share) * self.translation,
            base.scale * math.exp(share * self.scale_log),
        )


@dataclass(frozen=True, slots=True, eq=False)
class _Guess:
    """Motion after the last frame: carried on, after `ahead_s` dying away with the time constant `FADE_S`, still after
    `until_s`."""

    last: HeadFace
    time_s: float
    ahead_s: float
    until_s: float
    earlier: HeadFace | None = None
    interval_s: float = 1.0

    def at(self, at_s: float) -> HeadFace:
        if self.earlier is None:
            return self.last
        gap_s = min(max(at_s - self.time_s, 0.0), self.until_s)
        beyond_s = max(gap_s - self.ahead_s, 0.0)
        further_s = min(gap_s, self.ahead_s) + FADE_S * (1 - math.exp(-beyond_s / FADE_S))
        return between(self.earlier, self.last, 1 + min(further_s / self.interval_s, _MOST_STEPS))


class Jitter:
    """One sender's stream; not thread-safe."""

    def __init__(
        self,
        *,
        start_delay_s: float = 0.1,
        most_delay_s: float = 0.8,
        ahead_s: float = 0.03,
        carry_s: float = 0.15,
        hold_s: float = 0.7,
        back_s: float = 0.15,
    ) -> None:
        """`ahead_s`: how far beyond the newest frame motion is guessed rather than waited for, which saves as much
        delay; `carry_s`: until when motion dies away in a gap; `hold_s`: until when the face is held; `back_s`: how
        long the way back takes.
        """
        self._start_delay_s, self._most_delay_s = start_delay_s, most_delay_s
        self._ahead_s, self._carry_s, self._hold_s, self._back_s = ahead_s, carry_s, hold_s, back_s
        self.floor_s = 0.0
        """The delay never goes below this: what the voice needs, so that lips wait for it."""
        self.counts = Counts()
        self._now_s = self._asked_s = -math.inf
        self._forget()

    def _forget(self) -> None:
        self._kept: list[_Kept] = []
        self._least: deque[tuple[float, float]] = deque()
        self._lags_s: deque[float] = deque(maxlen=120)
        self._gaps_s: deque[float] = deque(maxlen=32)
        self._base_s: float | None = None
        self._shift_s = 0.0
        self._target_s = self._start_delay_s
        self._measured_s = self._came_s = -math.inf
        self._at_s = -math.inf
        self._newest_sequence: int | None = None
        self._strange_in_row = 0
        self._offset: _Offset | None = None
        self._offset_since_s = self._offset_lasts_s = 0.0
        self._guess: _Guess | None = None
        self._gone = False

    @property
    def delay_s(self) -> float:
        """How much later than the fastest frame could be, frames are shown."""
        return self._shift_s - self._base_s if self._base_s is not None else self._start_delay_s

    def sender_s(self, now_s: float) -> float | None:
        """The moment on the sender's clock that is shown at `now_s`; None before the first frame.

        It counts from the first frame's time and goes on where that time wraps: compare modulo `TIME_WRAP_S`.
        """
        return None if self._base_s is None else now_s - self._shift_s

    def put(self, coded: Coded, now_s: float) -> bool:
        """Takes one frame; False when it was of no use (late, a double, not finite, of another clock)."""
        self._tick(now_s)
        self.counts.came += 1
        if not _sound(coded):
            self.counts.strange += 1
            return False
        near_s = coded.time_s if self._base_s is None else now_s - self._base_s
        time_s = unwrap(coded.time_s, near_s, TIME_WRAP_S)
        way_s = now_s - time_s
        if self._base_s is not None and abs(way_s - self._base_s) > STRANGE_S + self._most_delay_s:
            self.counts.strange += 1
            self._strange_in_row += 1
            if self._strange_in_row < STRANGE_FRAMES:
                return False
            self._restart()
            time_s, way_s = coded.time_s, now_s - coded.time_s
        self._strange_in_row = 0
        self._learn(time_s, way_s, now_s)
        self._count(coded.sequence)
        if time_s <= self._at_s:
            self.counts.late += 1
            return False
        place = bisect.bisect_left(self._kept, time_s, key=lambda kept: kept.time_s)
        for near in self._kept[max(place - 1, 0) : place + 1]:
            if abs(near.time_s - time_s) < 1e-3:
                self.counts.twice += 1
                return False
        face = coded.face if isinstance(coded.face, Face) else None
        self._kept.insert(place, _Kept(time_s, face, to_head(face) if face is not None else None))
        if place:
            self._gaps_s.append(time_s - self._kept[place - 1].time_s)
        if len(self._kept) > MAX_FRAMES:
            del self._kept[0]
        return True

    def at(self, now_s: float) -> Shown:
        """What to draw now. `now_s` is the clock of `put`."""
        self._tick(now_s)
        since_s = min(max(now_s - self._asked_s, 0.0), STRANGE_S)
        self._asked_s = now_s
        if self._base_s is None:
            return Shown(None, "waiting", 0.0, self._start_delay_s * 1e3)
        self._slew(since_s, now_s)
        at_s = self._at_s = max(now_s - self._shift_s, self._at_s)
        while len(self._kept) > 2 and self._kept[2].time_s <= at_s:
            del self._kept[0]
        place = bisect.bisect_right(self._kept, at_s, key=lambda kept: kept.time_s)
        before = self._kept[place - 1] if place else None
        after = self._kept[place] if place < len(self._kept) else None
        earlier = self._kept[place - 2] if place > 1 else None
        return self._draw(earlier, before, after, at_s, now_s)

    def _draw(
        self, earlier: _Kept | None, before: _Kept | None, after: _Kept | None, at_s: float, now_s: float
    ) -> Shown:
        delay_ms = max(self.delay_s, 0.0) * 1e3  # below zero for a moment after the line or a clock grew slower
        if before is None:  # the first frame's moment is still to come: somebody who joined sees a face at once
            if after is None:
                return Shown(None, "waiting", 0.0, delay_ms)
            before, after = after, None
        gap_s = max(at_s - before.time_s, 0.0)
        if before.face is None or before.head is None:
            showing: Showing = "away" if after is not None or gap_s <= self._hold_s else "lost"
            self._guess = self._offset = None
            self._gone = True
            return Shown(NoFace(now_s), showing, 0.0 if showing == "away" else gap_s * 1e3, delay_ms)
        guess = None
        if after is not None and after.head is not None and after.time_s - before.time_s <= self._hold_s:
            head, showing = between(before.head, after.head, gap_s / (after.time_s - before.time_s)), "live"
        elif gap_s <= self._hold_s:
            guess = _Guess(before.head, before.time_s, self._ahead_s, self._carry_s)
            if earlier is not None and _moves(earlier.head, before.head, before.time_s - earlier.time_s):
                interval_s = before.time_s - earlier.time_s
                guess = _Guess(before.head, before.time_s, self._ahead_s, self._carry_s, earlier.head, interval_s)
            head = guess.at(at_s)
            showing = "live" if gap_s <= self._ahead_s + 1e-9 else "carried" if gap_s <= self._carry_s else "held"
        else:
            self._guess = self._offset = None
            self._gone = True
            return Shown(NoFace(now_s), "lost", gap_s * 1e3, delay_ms)
        head = self._eased(head, guess, at_s, now_s)
        gap_ms = 0.0 if showing == "live" else gap_s * 1e3
        return Shown(_as_face(head, before.face, now_s), showing, gap_ms, delay_ms)

    def _eased(self, head: HeadFace, guess: _Guess | None, at_s: float, now_s: float) -> HeadFace:
        """What was guessed and what then came differ: the difference dies away instead of being jumped over."""
        if guess is None and self._guess is not None:
            guessed = self._guess.at(at_s)
            if self._offset is not None:
                guessed = self._offset.added(guessed, self._offset_left(now_s))
            gap_s = at_s - self._guess.time_s
            lasts_s = _EASE * (gap_s + max(gap_s - self._ahead_s, 0.0))
            self._offset = _Offset.of(guessed, head) if _alike(guessed, head) else None
            self._offset_since_s, self._offset_lasts_s = now_s, min(self._back_s, max(lasts_s, 0.03))
        self._guess = guess
        left = self._offset_left(now_s)
        if self._offset is None or left <= 0:
            self._offset = None
            return head
        return self._offset.added(head, left)

    def _offset_left(self, now_s: float) -> float:
        share = (now_s - self._offset_since_s) / self._offset_lasts_s if self._offset_lasts_s > 0 else 1.0
        share = min(max(share, 0.0), 1.0)
        return 1 - share * share * (3 - 2 * share)

    # --- clocks ------------------------------------------------------------------------------------------------

    def _tick(self, now_s: float) -> None:
        """Our own clock that went back starts everything anew."""
        if not math.isfinite(now_s):
            raise ValueError(f"the time must be a finite number of seconds, not {now_s}")
        if now_s < self._now_s - STRANGE_S:
            self._restart()
            self._now_s = self._asked_s = now_s
        self._now_s = max(now_s, self._now_s)

    def _restart(self) -> None:
        self._forget()
        self.counts.restarts += 1

    def _learn(self, time_s: float, way_s: float, now_s: float) -> None:
        """`way_s`: arrival minus sending, each on its own clock. Its least over ten seconds is the fastest way, and
        follows clocks that drift; what frames take longer than that is what the delay must cover."""
        while self._least and self._least[-1][1] >= way_s:
            self._least.pop()
        if not self._least or now_s - self._least[-1][0] >= _LEAST_EVERY_S:  # so that a flood fills no memory
            self._least.append((now_s, way_s))
        while self._least[0][0] < now_s - 10.0:
            self._least.popleft()
        if self._base_s is None:
            self._shift_s = way_s + max(self._start_delay_s, self.floor_s)
        self._base_s = self._least[0][1]
        # What comes together counts once: after a line that stood still for a second, all of that second's frames do,
        # and waiting for the next such second would not be worth the delay.
        lag_s = way_s - self._base_s
        if self._lags_s and now_s - self._came_s < 0.005:
            self._lags_s[-1] = max(self._lags_s[-1], lag_s)
        else:
            self._lags_s.append(lag_s)
        self._came_s = now_s
        if now_s - self._measured_s > 0.1:
            self._measured_s = now_s
            lag_s = float(np.quantile(np.fromiter(self._lags_s, np.float64), 0.96))
            interval_s = float(np.median(np.fromiter(self._gaps_s, np.float64))) if self._gaps_s else 0.04
            wait_s = max(min(interval_s, 0.2) - self._ahead_s, 0.0)
            self._target_s = min(max(lag_s + wait_s + 0.005, self.floor_s), self._most_delay_s)

    def _slew(self, since_s: float, now_s: float) -> None:
        """The delay moves to its target by playing a little slower or faster; far from it, at once."""
        assert self._base_s is not None
        missing_s = self._base_s + max(self._target_s, self.floor_s) - self._shift_s
        if abs(missing_s) > STRANGE_S or (missing_s > 0 and self._gone):
            self._shift_s += missing_s
        elif missing_s > 0:
            self._shift_s += min(missing_s, 0.25 * since_s)
        else:
            self._shift_s += max(missing_s, -0.1 * since_s)
        self._gone = False

    def _count(self, sequence: int) -> None:
        if self._newest_sequence is None:
            self._newest_sequence = sequence
            return
        number = round(unwrap(sequence, self._newest_sequence, SEQUENCE_WRAP))
        if number > self._newest_sequence:
            self.counts.missing += number - self._newest_sequence - 1
            self._newest_sequence = number
        elif number < self._newest_sequence and self.counts.missing:
            self.counts.missing -= 1


def _alike(one: HeadFace, other: HeadFace) -> bool:
    """Whether they may be the same head a moment later; otherwise there is no motion between them."""
    return abs(math.log(one.scale / other.scale)) < _MOST_LOG_SCALE


def _moves(earlier: HeadFace | None, last: HeadFace, interval_s: float) -> TypeGuard[HeadFace]:
    return earlier is not None and 0 < interval_s <= 0.2 and _alike(earlier, last)


def _as_face(head: HeadFace, like: Face | None, now_s: float) -> Face:
    assert like is not None
    rotation: NDArray[np.float32] = head.rotation
    return Face(head.to_picture(), rotation, head.translation, head.scale, like.visibility, like.size_px, now_s)


def _sound(coded: Coded) -> bool:
    face = coded.face
    if not 0 <= coded.time_s < TIME_WRAP_S or not 0 <= coded.sequence < SEQUENCE_WRAP:
        return False
    if isinstance(face, NoFace):
        return True
    return bool(
        face.points.shape == (POINT_COUNT, 3)
        and 1e-6 < face.scale < 1e6
        and np.abs(face.points).max() < 1e6  # false for what is not a number, too
        and np.abs(face.translation).max() < 1e6
        and np.abs(face.rotation).max() < 2
        and np.abs(face.rotation @ face.rotation.T - np.eye(3)).max() < 0.01
    )
