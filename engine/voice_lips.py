"""Sound -> lips: a voice becomes the `lips` of `engine.factors`, on the CPU, 80 to 120 ms behind what is said.

`LogMel` makes of 16 kHz sound what the network hears, `VoiceCodes` runs it (`training.lips` trains it), `CodedLips`
puts what it says onto a face, `VoiceLips` does both, and `read_voice` reads a file. What comes in pieces gives what the
whole would give at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

import av
import numpy as np
from av.audio.resampler import AudioResampler
from av.error import FFmpegError
from numpy.typing import NDArray

from engine.backends.openvino import OpenVino
from engine.factors import Factors, gaps_of, opening_of, shipped_anatomy, still
from engine.motion import HeadFace

Floats = NDArray[np.float32]

RATE_HZ = 16_000
HOP = 160
"""10 ms."""
BANDS = 40
STEP_HOPS = 4
"""The network runs once for each 40 ms of sound ..."""
HEARD_HOPS = 12
"""... hears the last 120 ms afresh, remembers the rest ..."""
DELAY_S = 0.08
"""... and says what the lips did so long before the last of it: a vowel is seen before it is heard."""
_WINDOW = 400
_FFT = 512
_FAINTEST = 1e-6
_LEVEL_FLOOR, _LEVEL_FALL, _SPREAD = -9.0, 0.003, 4.0


def mel_filters(bands: int, fft: int, low_hz: float, high_hz: float) -> Floats:
    """`[bands, fft / 2 + 1]` for sound at `RATE_HZ`: triangles, evenly spaced in mel (2595 log10(1 + f / 700))."""
    low_mel, high_mel = (2595 * math.log10(1 + hz / 700) for hz in (low_hz, high_hz))
    edges_hz = 700 * (10 ** (np.linspace(low_mel, high_mel, bands + 2) / 2595) - 1)
    at_hz = np.fft.rfftfreq(fft, 1 / RATE_HZ)
    low, middle, high = (edges_hz[k : k + bands, None] for k in range(3))
    return np.clip(np.minimum((at_hz - low) / (middle - low), (high - at_hz) / (high - middle)), 0, None).astype("f4")


class LogMel:
    """Sound in pieces of any length -> logarithms of the power in mel bands, about zero mean, whatever the level.

    Frame k is of the 25 ms that end at `(k + 1) * 10 ms`. The level follows the loudest of late: at once upwards, by
    3 a second (13 dB) downwards, and not below the noise of a quiet room.
    """

    def __init__(self) -> None:
        self._filters = mel_filters(BANDS, _FFT, 60, 7600).T.copy()
        self._taper = np.hanning(_WINDOW).astype(np.float32)
        self._kept = np.zeros(_WINDOW - HOP, np.float32)
        self._level = _LEVEL_FLOOR

    def feed(self, samples: Floats) -> Floats:
        """`[n]` in -1..1 -> `[frames, BANDS]`."""
        self._kept = np.concatenate([self._kept, samples.astype(np.float32, copy=False)])
        count = (len(self._kept) - _WINDOW) // HOP + 1
        if count <= 0:
            return np.zeros((0, BANDS), np.float32)
        windows = np.lib.stride_tricks.sliding_window_view(self._kept, _WINDOW)[::HOP][:count]
        power = np.abs(np.fft.rfft(windows * self._taper, _FFT)) ** 2
        self._kept = self._kept[count * HOP :].copy()
        found = np.log(power.astype(np.float32) @ self._filters + _FAINTEST)
        for frame in found:
            self._level = max(float(frame.mean()), self._level - _LEVEL_FALL, _LEVEL_FLOOR)
            frame -= self._level
        return found / np.float32(_SPREAD)


def shipped_network() -> Path:
    with resources.as_file(resources.files("engine") / "assets" / "lips" / "lips.onnx") as path:
        return path


class VoiceCodes:
    """A voice in pieces -> codes of the lips, the same for every face. Not thread-safe."""

    def __init__(self, network: Path | None = None) -> None:
        """Raises `ValueError` when the network cannot be read."""
        self._network = OpenVino(network or shipped_network(), device="CPU", precision="f32", threads=1)
        self._mel = LogMel()
        self._heard = np.full((HEARD_HOPS, BANDS), (np.log(_FAINTEST) - _LEVEL_FLOOR) / _SPREAD, np.float32)
        self._waiting = np.zeros((0, BANDS), np.float32)
        self._memory = np.zeros(self._network.inputs["memory"], np.float32)
        self._steps = 0

    def feed(self, samples: Floats) -> Iterator[tuple[float, Floats]]:
        """16 kHz, `[n]` in -1..1 -> (seconds since the first sample, codes), one for each 40 ms that are complete.

        Codes `[1 + R]`: how much further than at rest the mouth is open (centimetres), and weights of `Anatomy.rows`.
        """
        self._waiting = np.concatenate([self._waiting, self._mel.feed(samples)])
        while len(self._waiting) >= STEP_HOPS:
            self._heard = np.concatenate([self._heard[STEP_HOPS:], self._waiting[:STEP_HOPS]])
            self._waiting = self._waiting[STEP_HOPS:]
            drawn = self._network.run({"heard": self._heard[None], "memory": self._memory})
            self._memory = drawn["remembered"].astype(np.float32)
            self._steps += 1
            yield self._steps * STEP_HOPS * HOP / RATE_HZ - DELAY_S, drawn["codes"][0].astype(np.float32)


class CodedLips:
    """Codes of the lips -> lips on the canvas."""

    def __init__(self, canvas: HeadFace) -> None:
        self._anatomy = shipped_anatomy()
        self._canvas = canvas
        self._rest = still(canvas)
        self._rest_opening = opening_of(canvas.shape)

    def __call__(self, codes: Floats) -> Factors:
        """Of codes as `VoiceCodes` gives them; lips that would cross touch."""
        open_cm = max(float(codes[0]), -self._rest_opening)
        moved = open_cm * self._anatomy.opening + np.tensordot(codes[1:], self._anatomy.rows, 1)
        gaps = np.maximum(gaps_of(self._canvas.shape + moved), 0)
        return Factors(self._rest.pose, self._rest.eyes, moved.astype(np.float32), gaps, self._rest.expression)


class VoiceLips:
    """A voice in pieces -> lips on the canvas. Not thread-safe."""

    def __init__(self, canvas: HeadFace, network: Path | None = None) -> None:
        """Raises `ValueError` when the network cannot be read."""
        self._codes = VoiceCodes(network)
        self.lips = CodedLips(canvas)

    def feed(self, samples: Floats) -> Iterator[tuple[float, Factors]]:
        """16 kHz, `[n]` in -1..1 -> (seconds since the first sample, lips), one for each 40 ms that are complete."""
        for time_s, codes in self._codes.feed(samples):
            yield time_s, self.lips(codes)


# --- files --------------------------------------------------------------------------------------------------

SILENT = 0.003
"""Sound that never gets beyond this share of full scale (-50 dB) is silence."""
_CLIPPED = 0.002
_TELEPHONE_HZ = 12_000


@dataclass(frozen=True, slots=True, eq=False)
class Voice:
    """A sound file's voice."""

    samples: Floats
    """16 kHz, mono, -1..1; begins at the file's own time 0."""
    notes: list[str] = field(default_factory=list)
    """What is wrong with it, each in one sentence."""

    @property
    def seconds(self) -> float:
        return len(self.samples) / RATE_HZ


def read_voice(path: Path) -> Voice:
    """The first sound of a file, of any rate and number of channels. Raises `ValueError` with one sentence."""
    if not path.exists():
        raise ValueError(f"there is no file {path}")
    notes: list[str] = []
    pieces: list[Floats] = []
    start_s, rate_hz = 0.0, 0
    try:
        with av.open(str(path), metadata_errors="replace") as container:
            if not container.streams.audio:
                raise ValueError(f"{path} has no sound")
            stream = container.streams.audio[0]
            rate_hz = stream.codec_context.sample_rate
            begins_s = (container.start_time or 0) / av.time_base
            # Channels are averaged here: FFmpeg's own way to mono is 3 dB louder, and clips.
            resampler = AudioResampler("fltp", rate=RATE_HZ)
            try:
                for decoded in container.decode(stream):
                    if not pieces:
                        start_s = max((decoded.time or 0.0) - begins_s, 0.0)
                    pieces += [one.to_ndarray().mean(0) for one in resampler.resample(decoded)]
            except FFmpegError as error:
                notes.append(f"the sound of {path} stops being readable part-way ({error.strerror})")
            if pieces:
                pieces += [one.to_ndarray().mean(0) for one in resampler.resample(None)]
    except FFmpegError as error:
        raise ValueError(f"{path} is no sound that can be read ({error.strerror})") from None
    if not pieces:
        raise ValueError(f"{path} holds no sound that can be decoded")
    sound = np.concatenate([np.zeros(round(start_s * RATE_HZ), np.float32), *pieces])
    sound = np.nan_to_num(sound, nan=0.0, posinf=1.0, neginf=-1.0).clip(-1, 1).astype(np.float32)
    if float(np.abs(sound).max()) < SILENT:
        notes.append(f"{path} is silent: the lips stay as they are at rest")
    elif (share := float((np.abs(sound) > 0.985).mean())) > _CLIPPED:
        notes.append(f"{path} is clipped ({100 * share:.1f} % of it at full scale): record it more quietly")
    if rate_hz < _TELEPHONE_HZ:
        notes.append(f"{path} was recorded at {rate_hz / 1000:g} kHz, as telephones do: its hissing sounds are missing")
    return Voice(sound, notes)
