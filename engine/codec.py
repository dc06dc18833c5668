"""Face <-> bytes: a performance in two or three kilobits a second; every packet can be decoded alone.

The wire format, version 1
==========================
A stream is *headers* (what changes seldom: sent once, reliably) and *packets* (1 to 16 frames each: sent as they come,
lost as they may be). Numbers are big-endian. Everything below is integer arithmetic up to the last step, so that two
machines agree on every bit; the tables it names are arrays of `assets/codec/basis.npz` (`training.basis` learns them),
and a header names the file by its sha256.

Parameters. A frame is P = 7 + K levels (integers); a level times `steps[quality, p]` is a parameter:
    0..2    rotation from the header's neutral pose, a rotation vector in degrees, axes of the picture
    3..5    translation from the neutral pose, centimetres of the neutral face: pixels / neutral scale
    6       ln(scale / neutral scale)
    7..     how the face differs from the neutral face: weights of the rows of `expression` `[K, 478 * 3]`,
            centimetres in the head's own frame. Lips, lids and irises weigh more in it, so they are the last to suffer.
With R the rotation of that vector times the neutral rotation, the points are
`scale * (neutral + weights @ expression) @ R.T + translation`.

Packet
    byte 0      version (2 bits, 1; 3 says that the version follows elsewhere) | quality (3 bits) | header id (3 bits)
    byte 1..    one integer X, without leading zero bytes: an asymmetric numeral system (Duda 2013, arXiv 1311.2540)
                whose state is never cut into words, as no packet is long. To decode a symbol from cumulative counts
                `c[0] = 0 .. c[n] = 2**14`:  slot = X mod 2**14, s such that c[s] <= slot < c[s + 1],
                X = (c[s + 1] - c[s]) * (X div 2**14) + slot - c[s].  n raw bits: X mod 2**n, X = X div 2**n.
                After the last symbol X is 2**24 + sequence * 2**16 + time: the sequence number of the first frame
                (8 bits) and its time in ms of the sender's clock (16 bits). Anything else there is a damaged packet.
    Symbols of X, in this order:
        the number of frames, `COUNTS`
        for each frame: a visibility level, 0 = nobody, 1..15 = visibility (level - 1) / 14. The first by `SEEN`;
            each other by `SAME` (1 = as the frame before), and by `SEEN` if not the same
        for each frame but the first: ms since the frame before it, as a difference (below, table `TIMES_TABLE`)
            from the interval before that, the first from 40
        for each frame with a face, in the order of `frame_order`: P differences from the level predicted, with table
            `models[quality, mode, p]`
    Differences. Table t holds the cumulative counts `counts[t, 0..2 * reach[t] + 2]`: symbol 0 is the escape, symbol
        s > 0 the difference s - 1 - reach. After an escape: 5 raw bits n (at most 17), n raw bits m, one raw bit sign;
        the difference is (2**n - 1 + m + reach + 1), negative if sign.
    Order and prediction (`frame_order`). The n frames with a face, whatever lies between them: the first by itself,
        the last from the first, then the middle m = (a + b) div 2 of two known frames a and b: of the whole, of its
        halves from left to right, of their halves, and so on, where there is a frame between. With
        mean = `means[quality, p]`, leak = `leaks[d, p]`, d = m - a, and >> the arithmetic shift:
        alone           mode 0            mean
        from a          mode d            mean + ((leak * (level_a - mean) + 128) >> 8)
        between a, b    mode 14 + b - a   (2 * (level_a * (b - m) + level_b * (m - a)) + b - a) div (2 * (b - a))

Header
    byte 0      version (8 bits)
    byte 1      header id, 1 to 7. Id 0 is no header: the mean face, frontal, in the middle of 256 x 256 pixels
    2..5        the first four bytes of the sha256 of `basis.npz`
    6..9        width and height of the picture in which the face was tracked, pixels
    10..15      rotation of the neutral pose from a frontal one, a rotation vector, three i16, 1/10000 rad
    16..27      translation, three i32, 1/64 px
    28..31      scale, u32, 1/65536 px per cm
    32..        X as above; at its end it is 0x1FACE. Its symbols are differences from 0: the weights of `identity`
                `[I, 478 * 3]` (times `identity_step`, tables `identity_models`), then what is left of each coordinate
                (times `rest_step`, tables `rest_models` for x, y, z). `mean` plus both is the neutral face, cm.
"""

from __future__ import annotations

import functools
import hashlib
import io
import itertools
import math
import struct
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import resources
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from engine import geometry
from engine.frames import POINT_COUNT, Face, NoFace, Points
from engine.motion import HeadFace, neutrality, to_head

Floats = NDArray[np.float32]
Levels = NDArray[np.int64]

VERSION = 1
MAX_FRAMES = 16
"""The most frames one packet holds."""
MAX_PACKET_BYTES = 4352
"""More than sixteen of the strangest faces take."""
MAX_HEADER_BYTES = 8192
SEQUENCE_WRAP = 1 << 8
"""Sequence numbers count frames and wrap here."""
TIME_WRAP_S = 65.536
"""Times are the sender's clock modulo this; `unwrap` undoes it."""
QUALITIES = 8
DEFAULT = 5
"""Quality: 0 (least) to `QUALITIES - 1` (best)."""

POSE = 7
"""How many of the parameters are the pose."""
MODES = 30
COUNT_BITS = 14
_ONE = 1 << COUNT_BITS
LEVEL_LIMIT = 32767
_LOG_SCALE_LIMIT = 4.0
_VISIBLE = 14
_FIRST_INTERVAL_MS = 40
_HEADER_END = 0x1FACE
_HEADER_IDS = 7
_HEADER = struct.Struct(">BB4sHH3h3iI")
_FRONTAL = np.diag([1.0, -1.0, -1.0])

COUNTS = (0, 4096, 8192, *(8192 + 585 * k for k in range(1, 14)), _ONE)
"""Cumulative counts of the number of frames, 1 to 16."""
SEEN = (0, 512, *(512 + 128 * k for k in range(1, 15)), _ONE)
"""Of visibility levels."""
SAME = (0, 256, _ONE)
"""Of whether the visibility is as before."""
TIMES_TABLE = 17


class CodecError(ValueError):
    """A packet or header that cannot be read, in one sentence."""


@dataclass(frozen=True, slots=True, eq=False)
class Coded:
    """One decoded frame."""

    sequence: int
    """0 to `SEQUENCE_WRAP - 1`; `unwrap(sequence, near, SEQUENCE_WRAP)` makes it grow."""
    time_s: float
    """The sender's clock, 0 to `TIME_WRAP_S`; `face.time_s` is the same."""
    face: Face | NoFace
    header_known: bool
    """False: the header that the packet asks for has not come; drawn from an older one or from the mean face."""


def unwrap(value: float, near: float, wrap: float) -> float:
    """The number nearest to `near` that equals `value` modulo `wrap`."""
    return value + wrap * round((near - value) / wrap)


# --- the learned numbers ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Basis:
    """What `training.basis` learned; shapes as in the wire format."""

    mean: Floats
    expression: Floats
    weights: Floats
    """`[478]`: how much an error of each point counts."""
    steps: Floats
    means: Levels
    leaks: Levels
    models: NDArray[np.uint8]
    counts: NDArray[np.uint16]
    reach: NDArray[np.uint16]
    identity: Floats
    identity_step: float
    identity_models: NDArray[np.uint8]
    rest_step: float
    rest_models: NDArray[np.uint8]
    sha256: bytes

    @property
    def parameter_count(self) -> int:
        return self.steps.shape[1]

    def analysis(self, rows: Floats, weights_xyz: Floats) -> Floats:
        """`[478 * 3, R]`: times a difference of shapes it gives the weights of `rows` (least squares, weighted)."""
        scaled = (rows * weights_xyz).astype(np.float64)
        solved = np.linalg.solve(scaled @ scaled.T, scaled * weights_xyz)
        return np.ascontiguousarray(solved.T, np.float32)

    @property
    def weights_xyz(self) -> Floats:
        """`[478 * 3]`: depth, which the tracker guesses and the picture hardly shows, counts half."""
        return (self.weights[:, None] * np.array([1, 1, 0.5], np.float32)).ravel()


def read_basis(content: bytes) -> Basis:
    """The basis in the bytes of an npz file."""
    with np.load(io.BytesIO(content), allow_pickle=False) as stored:
        got: dict[str, Any] = {name: stored[name] for name in stored.files}
    for name in ("mean", "expression", "weights", "steps", "identity"):
        got[name] = got[name].astype(np.float32)
    for name in ("means", "leaks"):
        got[name] = got[name].astype(np.int64)
    for name in ("identity_step", "rest_step"):
        got[name] = float(got[name])
    return Basis(**got, sha256=hashlib.sha256(content).digest())


@functools.cache
def shipped_basis() -> Basis:
    return read_basis((resources.files("engine") / "assets" / "codec" / "basis.npz").read_bytes())


# --- integers <-> bytes -------------------------------------------------------------------------------------


class Symbols:
    """Symbols on their way into one integer. They are collected in the order of decoding, and coded backwards."""

    def __init__(self) -> None:
        self._coded: list[tuple[int, int]] = []  # (start, count); of raw bits (value, -how many)

    def put(self, symbol: int, counts: Sequence[int]) -> None:
        self._coded.append((counts[symbol], counts[symbol + 1] - counts[symbol]))

    def put_raw(self, value: int, bits: int) -> None:
        self._coded.append((value, -bits))

    def put_differences(self, differences: Sequence[int], tables: Sequence[Table]) -> None:
        coded = self._coded
        for difference, (counts, reach) in zip(differences, tables, strict=True):
            if -reach <= difference <= reach:
                start = counts[difference + reach + 1]
                coded.append((start, counts[difference + reach + 2] - start))
            else:
                beyond = abs(difference) - reach
                bits = beyond.bit_length() - 1
                coded.append((0, counts[1]))
                coded.append((bits, -5))
                coded.append((beyond - (1 << bits), -bits))
                coded.append((int(difference < 0), -1))

    def integer(self, state: int) -> int:
        """All of it, on top of what `state` holds (at least 1)."""
        for start, count in reversed(self._coded):
            if count > 0:
                whole, rest = divmod(state, count)
                state = (whole << COUNT_BITS) + start + rest
            else:
                state = (state << -count) | start
        return state


Table = tuple[list[int], int]
"""Cumulative counts and reach."""


class Unpacker:
    """The integer of a packet, symbol by symbol; never fails, `state` tells at the end."""

    def __init__(self, state: int) -> None:
        self.state = state

    def get(self, counts: Sequence[int]) -> int:
        slot = self.state & (_ONE - 1)
        symbol = bisect_right(counts, slot) - 1
        start = counts[symbol]
        self.state = (counts[symbol + 1] - start) * (self.state >> COUNT_BITS) + slot - start
        return symbol

    def get_raw(self, bits: int) -> int:
        value = self.state & ((1 << bits) - 1)
        self.state >>= bits
        return value

    def get_differences(self, tables: Sequence[Table]) -> list[int]:
        """Raises `CodecError` on a difference that no encoder writes."""
        state, mask, found = self.state, _ONE - 1, []
        for counts, reach in tables:
            slot = state & mask
            symbol = bisect_right(counts, slot) - 1
            start = counts[symbol]
            state = (counts[symbol + 1] - start) * (state >> COUNT_BITS) + slot - start
            if symbol:
                found.append(symbol - 1 - reach)
                continue
            self.state = state
            bits = self.get_raw(5)
            if bits > 17:
                raise CodecError("this face packet is damaged: it holds a number that is too large")
            beyond = (1 << bits) + self.get_raw(bits) + reach
            found.append(-beyond if self.get_raw(1) else beyond)
            state = self.state
        self.state = state
        return found


@functools.cache
def frame_order(count: int) -> tuple[tuple[int, int, int], ...]:
    """(frame, a, b) in the order of coding: `a` and `b` are the frames it is predicted from, -1 where there is none."""
    if count == 0:
        return ()
    order = [(0, -1, -1)]
    if count > 1:
        order.append((count - 1, 0, -1))
    spans = [(0, count - 1)]
    for a, b in spans:  # grows while it is walked through
        if b - a > 1:
            middle = (a + b) // 2
            order.append((middle, a, b))
            spans += [(a, middle), (middle, b)]
    return tuple(order)


def mode_of(order: tuple[int, int, int]) -> int:
    """The kind of prediction, 0 to `MODES - 1`."""
    frame, a, b = order
    if a < 0:
        return 0
    return frame - a if b < 0 else 14 + b - a


def predict(basis: Basis, levels: Levels, quality: int, order: tuple[int, int, int]) -> Levels:
    """What `levels[frame]` is expected to be: `[..., P]` for levels `[N, ..., P]`."""
    frame, a, b = order
    mean = basis.means[quality]
    if a < 0:
        return np.broadcast_to(mean, levels.shape[1:])
    if b < 0:
        return mean + ((basis.leaks[frame - a] * (levels[a] - mean) + 128) >> 8)
    span = b - a
    return (2 * (levels[a] * (b - frame) + levels[b] * (frame - a)) + span) // (2 * span)


class LevelCoder:
    """Levels `[N, P]` <-> symbols: prediction and tables, all in integers."""

    def __init__(self, basis: Basis) -> None:
        self._basis = basis
        tables: list[Table] = [
            (row[: 2 * int(reach) + 3].tolist(), int(reach))
            for row, reach in zip(basis.counts, basis.reach, strict=True)
        ]
        self.times = tables[TIMES_TABLE]
        self.rows = [[[tables[t] for t in row] for row in modes] for modes in basis.models.tolist()]
        """`[quality][mode]`: the tables of the parameters."""
        self.identity = [tables[t] for t in basis.identity_models.tolist()]
        self.rest = [tables[t] for t in basis.rest_models.tolist()] * POINT_COUNT
        self._bits = np.array([_bits_of(table) for table in tables], np.float32)

    def bits(self, quality: int, mode: int) -> Floats:
        """`[P, 2 * WEIGHED + 1]`: what differences from `-WEIGHED` to `WEIGHED` cost, bits."""
        return self._bits[self._basis.models[quality, mode]]

    def put(self, symbols: Symbols, levels: Levels, quality: int) -> None:
        for order in frame_order(len(levels)):
            differences = levels[order[0]] - predict(self._basis, levels, quality, order)
            symbols.put_differences(differences.tolist(), self.rows[quality][mode_of(order)])

    def get(self, unpacker: Unpacker, count: int, quality: int) -> Levels:
        """`[count, P]`. Raises `CodecError` on levels beyond `LEVEL_LIMIT`."""
        levels = np.zeros((count, self._basis.parameter_count), np.int64)
        for order in frame_order(count):
            if unpacker.state >> 24 == 0:
                raise CodecError("this face packet is damaged: it ends too early")
            differences = unpacker.get_differences(self.rows[quality][mode_of(order)])
            now = levels[order[0]] = predict(self._basis, levels, quality, order) + differences
            if not -LEVEL_LIMIT <= now.min() <= now.max() <= LEVEL_LIMIT:
                raise CodecError("this face packet is damaged: it holds a level that is too large")
        return levels


WEIGHED = 60
"""Differences up to this many steps have a price."""


def _bits_of(table: Table) -> list[float]:
    counts, reach = table
    escape = COUNT_BITS - math.log2(counts[1]) + 6
    return [
        COUNT_BITS - math.log2(counts[off + reach + 2] - counts[off + reach + 1])
        if abs(off) <= reach
        else escape + math.floor(math.log2(abs(off) - reach))
        for off in range(-WEIGHED, WEIGHED + 1)
    ]


@functools.cache
def shipped_coder() -> LevelCoder:
    return LevelCoder(shipped_basis())


def to_bytes(state: int) -> bytes:
    return state.to_bytes((state.bit_length() + 7) // 8, "big")


# --- headers ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Header:
    """The neutral face and its pose, as the far end knows it."""

    number: int
    neutral: HeadFace
    size_px: tuple[int, int]


def mean_header(basis: Basis) -> Header:
    neutral = HeadFace(basis.mean, _FRONTAL.astype(np.float32), np.array([128, 128, 0], np.float32), 9.0)
    return Header(0, neutral, (256, 256))


class HeaderCoder:
    """`Header` <-> bytes."""

    def __init__(self, basis: Basis, coder: LevelCoder) -> None:
        self._basis, self._coder = basis, coder
        self._analysis = basis.analysis(basis.identity, np.ones(POINT_COUNT * 3, np.float32))

    def encode(self, number: int, neutral: HeadFace, size_px: tuple[int, int]) -> bytes:
        basis = self._basis
        off = (neutral.shape - basis.mean).reshape(-1)
        weights = np.rint(off @ self._analysis / basis.identity_step).astype(np.int64)
        rest = np.rint((off - (weights * basis.identity_step) @ basis.identity) / basis.rest_step).astype(np.int64)
        symbols = Symbols()
        limit = LEVEL_LIMIT
        symbols.put_differences(np.clip(weights, -limit, limit).tolist(), self._coder.identity)
        symbols.put_differences(np.clip(rest, -limit, limit).tolist(), self._coder.rest)
        turn = cv2.Rodrigues(neutral.rotation.astype(np.float64) @ _FRONTAL.T)[0][:, 0]
        fixed = _HEADER.pack(
            VERSION,
            number,
            basis.sha256[:4],
            *size_px,
            *np.rint(np.clip(turn, -3.2, 3.2) * 10_000).astype(int).tolist(),
            *np.rint(np.clip(neutral.translation * 64, -(2**30), 2**30)).astype(int).tolist(),
            min(max(round(neutral.scale * 65536), 1), 2**31),
        )
        return fixed + to_bytes(symbols.integer(_HEADER_END))

    def decode(self, packet: bytes) -> Header:
        """Raises `CodecError`."""
        basis = self._basis
        if packet and packet[0] != VERSION:
            raise CodecError(f"the face stream has format {packet[0]}, this version reads {VERSION}: update Understudy")
        if not _HEADER.size < len(packet) <= MAX_HEADER_BYTES:
            raise CodecError(f"{len(packet)} bytes are no header of a face stream")
        _, number, sha, width, height, *pose, scale = _HEADER.unpack_from(packet)
        if sha != basis.sha256[:4]:
            raise CodecError("the face stream was made with another basis: update Understudy at both ends")
        if not (1 <= number <= _HEADER_IDS and width and height and scale and packet[_HEADER.size]):
            raise CodecError("this header of a face stream is damaged")
        unpacker = Unpacker(int.from_bytes(packet[_HEADER.size :], "big"))
        weights = unpacker.get_differences(self._coder.identity)
        rest = unpacker.get_differences(self._coder.rest)
        if unpacker.state != _HEADER_END:
            raise CodecError("this header of a face stream is damaged")
        off = np.array(weights, np.float32) * basis.identity_step @ basis.identity
        off += np.array(rest, np.float32) * basis.rest_step
        rotation = cv2.Rodrigues(np.array(pose[:3], np.float64) / 10_000)[0] @ _FRONTAL
        neutral = HeadFace(
            basis.mean + off.reshape(POINT_COUNT, 3).astype(np.float32),
            rotation.astype(np.float32),
            np.array(pose[3:], np.float32) / 64,
            scale / 65536,
        )
        return Header(number, neutral, (width, height))


# --- the stream ---------------------------------------------------------------------------------------------


def parameters(seen: Sequence[Face], neutral: HeadFace, analysis: Floats) -> NDArray[np.float64]:
    """`[N, P]`: the faces as the wire format sees them, before they are rounded."""
    rotations = np.stack([face.rotation for face in seen])
    translations = np.stack([face.translation for face in seen])
    scales = np.array([face.scale for face in seen])
    points = np.stack([face.points for face in seen])
    shapes = np.matmul(points - translations[:, None], rotations) / scales[:, None, None].astype(np.float32)
    turns = rotations.astype(np.float64) @ neutral.rotation.T
    wanted = np.empty((len(seen), POSE + analysis.shape[1]))
    wanted[:, :3] = np.degrees([cv2.Rodrigues(turn)[0][:, 0] for turn in turns])
    wanted[:, 3:6] = (translations - neutral.translation) / neutral.scale
    wanted[:, 6] = np.clip(np.log(scales / neutral.scale), -_LOG_SCALE_LIMIT, _LOG_SCALE_LIMIT)
    wanted[:, POSE:] = (shapes - neutral.shape).reshape(len(seen), -1) @ analysis
    return wanted


_DEAD = 0.1
_MISFIT_CM = 0.12
_OUTLINE = [*geometry.OVAL, *geometry.FOREHEAD, *geometry.JAW]
_OUTLINE_WEIGHT, _FEATURES_WEIGHT = 3.0, 1.5
"""How much more errors of the outline, and of lips, lids and irises, count to the encoder, beside `Basis.weights`. Hair
and background move with the outline: nearly all that is seen of the codec in a picture comes from there."""
_BIT_WORTH = 0.3
"""The squared error, in squares of an expression's finest step, that is as bad as a bit more."""


def nearest(wanted: NDArray[np.float64], predicted: Levels) -> Levels:
    """The levels to send: the nearest, but the one predicted (or next to it) where that is nearly as near."""
    off = wanted - predicted
    size = np.abs(off)
    return predicted + (np.sign(off) * np.floor(size + 0.5 - _DEAD * (size < 1.5))).astype(np.int64)


class Encoder:
    """One stream; not thread-safe.

    The neutral face in the header is the most neutral one seen so far, or the one that is given. A better one, or any
    one once the old does not fit (somebody else sat down), is offered as a new header at most every `renew_s`, and
    packets use it from `renew_s` after, when it has arrived; the first one is used at once, and so is one for pictures
    of another size. So: whenever `header_id` has changed after `encode`, send `header`, and then the packet.
    A receiver that comes late needs `header` as well; until packets use the newest, its faces are a little off.
    `quality` may be set between packets.
    """

    def __init__(self, quality: int = DEFAULT, neutral: Face | None = None, renew_s: float = 2.0) -> None:
        self.quality = quality
        self._basis, self._coder = shipped_basis(), shipped_coder()
        self._headers = HeaderCoder(self._basis, self._coder)
        weights = self._basis.weights_xyz.reshape(POINT_COUNT, 3).copy()
        weights[sorted(set(_OUTLINE)), :2] *= _OUTLINE_WEIGHT
        weights[self._basis.weights > 1] *= _FEATURES_WEIGHT
        self._analysis = self._basis.analysis(self._basis.expression, weights.ravel())
        weighed = (self._basis.expression * weights.ravel()).astype(np.float64)
        self._metric = weighed @ weighed.T
        self._renew_s = renew_s
        self._now = self._next = mean_header(self._basis)
        self._next_packet = b""
        self._offered_s = -math.inf
        self._looked_s = -math.inf
        self._score = math.inf
        self._sequence = 0
        self._misfits = 0
        self._pinned = neutral
        if neutral is not None:
            self._offer(neutral)
            self._now = self._next

    @property
    def header_id(self) -> int:
        """Changes when `header` should be sent again; 0 until a face was seen."""
        return self._next.number

    def header(self) -> bytes:
        """The newest header: to be sent once, reliably, and again whenever `header_id` changes.

        Raises `ValueError` before any face was seen: there is none, and packets need none.
        """
        if not self._next_packet:
            raise ValueError("there is no header yet: no face was seen")
        return self._next_packet

    def encode(self, faces: Sequence[Face | NoFace], most_bytes: int = MAX_PACKET_BYTES) -> bytes:
        """One packet of 1 to `MAX_FRAMES` frames that follow each other.

        One of no more than `most_bytes`, if that can be: at the best quality up to `quality` that fits, and where none
        does, of the newest half of the frames, and so on; at the least the newest frame alone at quality 0.
        Raises `ValueError` on times that do not grow, and on numbers that no face has.
        """
        if not 1 <= len(faces) <= MAX_FRAMES:
            raise ValueError(f"a packet holds 1 to {MAX_FRAMES} frames, not {len(faces)}")
        if not 0 <= self.quality < QUALITIES:
            raise ValueError(f"quality = {self.quality} must lie between 0 and {QUALITIES - 1}")
        times = [round(face.time_s * 1000) for face in faces]
        intervals = [after - before for before, after in itertools.pairwise(times)]
        if intervals and not 0 <= min(intervals) <= max(intervals) < 1 << 15:
            raise ValueError(f"the times of a packet's frames must grow by less than 32 s, not by {intervals} ms")
        seen = [face for face in faces if isinstance(face, Face)]
        for face in seen:
            numbers = face.points, face.rotation, face.translation
            if not (1e-3 < face.scale < 1e6 and all(np.abs(array).max() < 1e6 for array in numbers)):
                raise ValueError(f"a face of scale {face.scale} holds numbers that no face has")
            if not all(0 < side_px < 1 << 16 for side_px in face.size_px):
                raise ValueError(f"a picture of {face.size_px} pixels has no place in a header")
        if seen:
            self._look(seen)
        packet = self._smallest(faces, most_bytes)
        while len(packet) > most_bytes and len(faces) > 1:
            faces = faces[len(faces) // 2 :]
            packet = self._smallest(faces, most_bytes)
        self._sequence = (self._sequence + len(faces)) % SEQUENCE_WRAP
        return packet

    def _smallest(self, faces: Sequence[Face | NoFace], most_bytes: int) -> bytes:
        """At the best quality that keeps within `most_bytes`, or at the worst."""
        for quality in range(self.quality, 0, -1):
            packet = self._packet(faces, quality)
            if len(packet) <= most_bytes:
                return packet
        return self._packet(faces, 0)

    def _packet(self, faces: Sequence[Face | NoFace], quality: int) -> bytes:
        symbols = Symbols()
        symbols.put(len(faces) - 1, COUNTS)
        before = -1
        for face in faces:
            level = 1 + round(_VISIBLE * min(max(face.visibility, 0.0), 1.0)) if isinstance(face, Face) else 0
            if before >= 0:
                symbols.put(int(level == before), SAME)
            if level != before:
                symbols.put(level, SEEN)
            before = level
        times = [round(face.time_s * 1000) for face in faces]
        intervals = [after - before for before, after in itertools.pairwise(times)]
        expected = [_FIRST_INTERVAL_MS, *intervals]
        changes = [now - then for then, now in zip(expected, intervals, strict=False)]
        symbols.put_differences(changes, [self._coder.times] * len(changes))
        seen = [face for face in faces if isinstance(face, Face)]
        if seen:
            self._coder.put(symbols, self._quantised(seen, quality), quality)
        fixed = 1 << 24 | self._sequence << 16 | times[0] % (1 << 16)
        first = VERSION << 6 | quality << 3 | self._now.number
        return bytes([first]) + to_bytes(symbols.integer(fixed))

    def _look(self, seen: list[Face]) -> None:
        """Whether there is a better neutral face, or one whose turn has come."""
        face, time_s = seen[-1], seen[0].time_s
        if self._next.number == 0 or face.size_px != self._next.size_px:
            self._score = neutrality(face)
            self._offer(face if self._pinned is None else replace(self._pinned, size_px=face.size_px))
            self._now = self._next
            return
        if self._now is not self._next:
            if 0 <= time_s - self._offered_s < self._renew_s:
                return
            self._now = self._next
        if self._pinned is not None or 0 <= time_s - self._looked_s < self._renew_s / 10:
            return
        self._looked_s = time_s
        self._misfits = self._misfits + 1 if self._misfit_cm(face) > _MISFIT_CM else 0
        score = neutrality(face)
        if score < self._score - 0.05 or self._misfits > 5:
            self._score, self._offered_s, self._misfits = score, time_s, 0
            self._offer(face)

    def _misfit_cm(self, face: Face) -> float:
        """How far the points are, on average, from the nearest face that can be told over this header."""
        off = (to_head(face).shape - self._now.neutral.shape).reshape(-1)
        left = off - (off @ self._analysis) @ self._basis.expression
        return float(np.linalg.norm(left.reshape(POINT_COUNT, 3)[:, :2], axis=1).mean())

    def _offer(self, face: Face) -> None:
        number = self._next.number % _HEADER_IDS + 1
        self._next_packet = self._headers.encode(number, to_head(face), face.size_px)
        self._next = self._headers.decode(self._next_packet)

    def _quantised(self, seen: list[Face], quality: int) -> Levels:
        """`[N, P]`: closed-loop, each frame on the grid around its prediction."""
        basis, neutral = self._basis, self._now.neutral
        wanted = parameters(seen, neutral, self._analysis) / basis.steps[quality]
        wanted = np.clip(wanted, -LEVEL_LIMIT, LEVEL_LIMIT)
        levels = np.zeros(wanted.shape, np.int64)
        for order in frame_order(len(seen)):
            predicted = predict(basis, levels, quality, order)
            now = nearest(wanted[order[0]], predicted)
            self._economise(now[POSE:], wanted[order[0], POSE:], predicted[POSE:], quality, mode_of(order))
            levels[order[0]] = np.clip(now, -LEVEL_LIMIT, LEVEL_LIMIT)
        return levels

    def _economise(
        self, levels: Levels, wanted: NDArray[np.float64], predicted: Levels, quality: int, mode: int
    ) -> None:
        """Moves an expression's levels `[K]` one by one, for as long as that makes error and bits together less.

        The error is that of all points, so that what one level is off by, others may make good: the lattice's nearest
        point, not each number's; and the bits are the tables' own (rate-distortion optimised quantisation).
        """
        steps = self._basis.steps[quality, POSE:].astype(np.float64)
        metric = self._metric * steps[:, None] * steps
        worth = _BIT_WORTH * float(steps.min()) ** 2
        bits = worth * self._coder.bits(quality, mode)[POSE:]
        every = np.arange(len(levels))
        pull = 2 * metric @ (levels - wanted)
        for _ in range(2 * len(levels)):
            place = np.clip(levels - predicted + WEIGHED, 1, 2 * WEIGHED - 1)
            now = bits[every, place] - np.diag(metric)
            gains = np.stack([now - bits[every, place + 1] - pull, now - bits[every, place - 1] + pull])
            down, best = divmod(int(gains.argmax()), len(levels))
            if gains[down, best] <= 1e-9:
                break
            levels[best] += 1 - 2 * down
            pull += (1 - 2 * down) * 2 * metric[best]


class Decoder:
    """One stream; not thread-safe. Knows the mean face until a header comes."""

    def __init__(self) -> None:
        self._basis, self._coder = shipped_basis(), shipped_coder()
        self._header_coder = HeaderCoder(self._basis, self._coder)
        self._headers = {0: mean_header(self._basis)}
        self._newest = self._headers[0]

    @property
    def neutral(self) -> Face | None:
        """The driver's neutral face as the newest header says, at time 0; `None` before the first header."""
        header = self._newest
        if header.number == 0:
            return None
        head = header.neutral
        return Face(head.to_picture(), head.rotation, head.translation, head.scale, 1.0, header.size_px, 0.0)

    def feed_header(self, packet: bytes) -> None:
        """Raises `CodecError`; what was known before stays known."""
        header = self._header_coder.decode(packet)
        self._headers[header.number] = self._newest = header

    def decode(self, packet: bytes) -> list[Coded]:
        """The frames of one packet, in order. Raises `CodecError`."""
        if not 2 <= len(packet) <= MAX_PACKET_BYTES:
            raise CodecError(f"{len(packet)} bytes are no packet of a face stream")
        version, quality, number = packet[0] >> 6, packet[0] >> 3 & 7, packet[0] & 7
        if version != VERSION:
            raise CodecError("this face packet is of another version: update Understudy at both ends")
        if not packet[1]:
            raise CodecError("this face packet is damaged: it starts with a zero")
        unpacker = Unpacker(int.from_bytes(packet[1:], "big"))
        count = unpacker.get(COUNTS) + 1
        seen = [unpacker.get(SEEN)]
        for _ in range(count - 1):
            seen.append(seen[-1] if unpacker.get(SAME) else unpacker.get(SEEN))
        times = [0]
        interval = _FIRST_INTERVAL_MS
        for change in unpacker.get_differences([self._coder.times] * (count - 1)):
            interval += change
            if not 0 <= interval < 1 << 15:
                raise CodecError("this face packet is damaged: its times do not grow")
            times.append(times[-1] + interval)
        levels = self._coder.get(unpacker, count - seen.count(0), quality)
        if unpacker.state >> 24 != 1:
            raise CodecError("this face packet is damaged: it does not end where it should")
        sequence, start_ms = unpacker.state >> 16 & 0xFF, unpacker.state & 0xFFFF
        times_s = [(start_ms + time_ms) % (1 << 16) / 1000 for time_ms in times]
        header = self._headers.get(number, self._newest)
        faces = iter(self._faces(header, levels, quality))
        frames = []
        for place, (level, time_s) in enumerate(zip(seen, times_s, strict=True)):
            face: Face | NoFace = NoFace(time_s)
            if level:
                points, rotation, translation, scale = next(faces)
                visibility = (level - 1) / _VISIBLE
                face = Face(points, rotation, translation, scale, visibility, header.size_px, time_s)
            known = number in self._headers
            frames.append(Coded((sequence + place) % SEQUENCE_WRAP, time_s, face, known))
        return frames

    def _faces(self, header: Header, levels: Levels, quality: int) -> list[tuple[Points, Floats, Floats, float]]:
        """Points, rotation, translation and scale of each face."""
        neutral = header.neutral
        values = (levels * self._basis.steps[quality]).astype(np.float32)
        if len(values) and float(np.abs(values[:, 6]).max()) > _LOG_SCALE_LIMIT + 1:
            raise CodecError("this face packet is damaged: its face has an impossible size")
        shapes = neutral.shape + (values[:, POSE:] @ self._basis.expression).reshape(-1, POINT_COUNT, 3)
        turns = [cv2.Rodrigues(vector)[0] for vector in np.radians(values[:, :3].astype(np.float64))]
        rotations = (np.array(turns).reshape(-1, 3, 3) @ neutral.rotation).astype(np.float32)
        translations = neutral.translation + values[:, 3:6] * np.float32(neutral.scale)
        scales = np.exp(values[:, 6]) * np.float32(neutral.scale)
        points = np.matmul(shapes * scales[:, None, None], rotations.transpose(0, 2, 1)) + translations[:, None]
        return list(zip(points, rotations, translations, scales.tolist(), strict=True))
