"""Sound -> what the audio encoder sees: a log mel spectrogram of 0.2 s around the moment of a frame."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.voice_lips import mel_filters
from training.shards import SOUND_HZ

HOP = SOUND_HZ // 100
"""10 ms: four columns for each frame at 25 a second."""
WINDOW = SOUND_HZ // 40
FFT = 512
MEL_BANDS = 80
COLUMNS = 20
"""Five frames at 25 a second, the middle one the frame's own."""
_NEEDED = (COLUMNS - 1) * HOP + WINDOW
_FILTERS = torch.from_numpy(mel_filters(MEL_BANDS, FFT, 20, 7600))


class Sound(Protocol):
    """Mono sound at `SOUND_HZ` on the clock of a clip's frames."""

    def samples(self, from_s: float, count: int) -> NDArray[np.float32]:
        """`[count]` in -1..1; silence before its beginning and after its end."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Waveform:
    """Sound in memory, `[n]` in -1..1."""

    wave: NDArray[np.float32]
    from_s: float = 0.0

    def samples(self, from_s: float, count: int) -> NDArray[np.float32]:
        start = round((from_s - self.from_s) * SOUND_HZ)
        cut = self.wave[max(start, 0) : max(start + count, 0)]
        return _placed(cut, start, count)


@dataclass(frozen=True, slots=True, eq=False)
class StoredSound:
    """The sound of a shard, read piece by piece: 16-bit samples that lie `offset` bytes into the file."""

    shard: Path
    offset: int
    length: int
    """In samples."""
    from_s: float

    def samples(self, from_s: float, count: int) -> NDArray[np.float32]:
        start = round((from_s - self.from_s) * SOUND_HZ)
        first, last = (min(max(place, 0), self.length) for place in (start, start + count))
        read = np.fromfile(self.shard, "<i2", last - first, offset=self.offset + 2 * first)
        return _placed(read.astype(np.float32) / 32768, start, count)


def _placed(cut: NDArray[np.float32], start: int, count: int) -> NDArray[np.float32]:
    filled = np.zeros(count, np.float32)
    begin = max(-start, 0)
    filled[begin : begin + len(cut)] = cut
    return filled


def mel(samples: Tensor) -> Tensor:
    """`[..., n]` -> log mel energies `[..., MEL_BANDS, columns]`, silence at -1 and a loud voice near 1.

    Never normalised by the piece itself: how loud a fifth of a second is says much about the mouth.
    """
    pieces = samples.unfold(-1, WINDOW, HOP) * torch.hann_window(WINDOW)
    power = torch.fft.rfft(pieces, FFT).abs().square()
    energy = (power @ _FILTERS.T).transpose(-1, -2)
    return (energy.clamp(min=1e-6).log10() + 2) / 4


def heard(sound: Sound, time_s: float) -> Tensor:
    """`[1, MEL_BANDS, COLUMNS]`: what is to be heard around a moment."""
    half_s = _NEEDED / 2 / SOUND_HZ
    return mel(torch.from_numpy(sound.samples(time_s - half_s, _NEEDED)))[None]
