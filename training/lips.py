"""Clips with sound -> the network that moves lips by a voice: `python -m training.lips HEADS --out engine/assets/lips`.

HEADS is a folder of head clips with an `index.tsv` (`training.prepare`). Clips of the train split that have sound are
tracked as in a call (numbers kept in `--tracks`); what their mouths do, on the codec's mean face, is learned from what
is heard. `--measure` says what it is worth on the people of the test split. The lips of a clip may have nothing to do
with its sound (a voice-over, music), and in most they are some frames early or late: a first network finds both out,
and the second learns from clips that are in step again, without those of another's voice. Clips of the test split are
measured as they are.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from engine import config as configs
from engine.codec import shipped_basis
from engine.factors import WINDOW_S, Anatomy, Splitter, opening_of, read_anatomy, shares
from engine.frames import POINT_COUNT, Face
from engine.motion import HeadFace, NeutralFinder, to_head, transfer_shape
from engine.tracker import Tracker
from engine.voice_lips import (
    BANDS,
    DELAY_S,
    HEARD_HOPS,
    HOP,
    RATE_HZ,
    SILENT,
    STEP_HOPS,
    LogMel,
    read_voice,
)
from training.basis import importance, load_track, save_track, track
from training.export import to_onnx
from training.protocol import read_index

logger = logging.getLogger(__name__)

Floats = NDArray[np.float32]

ROWS = 10
LIVELY = 0.7
LEAST_FRAMES = 50
STEP_S = STEP_HOPS * HOP / RATE_HZ
LEAST_FIT, MOST_SLIP = 0.3, 15
"""Clips whose lips the first network follows worse than this (correlation), moved by up to so many steps, have somebody
else's voice."""
SPOKEN_CM, LEAST_SPOKEN_CM = 0.6, 0.25
"""Openings are told as if each mouth were shut at its 10th percentile and that wide at its 90th: how far apart the lips
of a tracked mouth at rest stand differs from person to person, and by up to a centimetre."""


# --- clips --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Spoken:
    """One clip: what is seen and heard."""

    name: str
    faces: list[Face]
    neutral: HeadFace
    sound: Floats


def spoken(heads: Path, kept: Path, split: str, clips: int, frames: int) -> Iterator[Spoken]:
    """Clips with sound, up to so many of each person."""
    config = configs.load().tracker
    with Tracker.from_config(config) as tracker:
        for person, paths in sorted(read_index(heads, split).items()):
            for path in paths[:clips]:
                try:
                    sound = read_voice(path).samples
                    if float(np.abs(sound).max()) < 5 * SILENT:
                        continue
                    numbers = kept / split / f"{person}_{path.stem}_{frames}.npz"
                    if not numbers.exists():
                        save_track(numbers, track(path, tracker, config, frames))
                except ValueError as error:  # no sound, or nothing that can be decoded
                    logger.info("left out: %s", error)
                    continue
                faces = [face for face in load_track(numbers) if isinstance(face, Face)]
                if len(faces) >= LEAST_FRAMES:
                    finder = NeutralFinder()
                    finder.prime(faces[::3])
                    yield Spoken(path.stem, faces, finder.look(faces[0]), sound)


def canvas() -> HeadFace:
    """The codec's mean face."""
    frontal = np.diag([1.0, -1.0, -1.0]).astype(np.float32)
    return HeadFace(shipped_basis().mean, frontal, np.array([128, 128, 0], np.float32), 9.0)


def weighing() -> Floats:
    """`[478 * 3]`: how much an error of each coordinate counts; depth half."""
    return (importance()[:, None] * np.array([1, 1, 0.5], np.float32)).ravel()


def anatomy_of(clips: Sequence[Spoken]) -> Anatomy:
    """What an opening mouth moves, and how mouths move fast beside it."""
    _, mouth = shares()
    ground = canvas()
    moved, opened, clip_of = [], [], []
    for number, clip in enumerate(clips):
        for face in clip.faces:
            shape = transfer_shape(to_head(face).shape, clip.neutral.shape, ground.shape)
            moved.append((mouth * (shape - ground.shape)).ravel())
            opened.append(opening_of(shape))
            clip_of.append(number)
    points, open_cm, owner = np.array(moved, np.float32), np.array(opened, np.float32), np.array(clip_of)
    for number in range(len(clips)):  # how a clip holds its mouth in the mean is not opening
        own = owner == number
        points[own] -= points[own].mean(0)
        open_cm[own] -= open_cm[own].mean()
    opening = (open_cm @ points / (open_cm @ open_cm)).reshape(POINT_COUNT, 3)
    opening /= opening_of(opening)
    fast = points - open_cm[:, None] * opening.ravel()
    for number, clip in enumerate(clips):
        own = owner == number
        slow = np.zeros(POINT_COUNT * 3, np.float32)
        share = np.float32(1 - np.exp(-np.median(np.diff([face.time_s for face in clip.faces])) / WINDOW_S))
        for index in np.flatnonzero(own):
            slow += share * (fast[index] - slow)
            fast[index] -= slow
    weights = weighing()
    weighed = fast * weights
    values, vectors = np.linalg.eigh((weighed.T @ weighed).astype(np.float64) / len(weighed))
    rows = (
        (vectors[:, ::-1][:, :ROWS].T * np.sqrt(values[::-1][:ROWS, None]) / weights)
        .astype(np.float16)
        .astype(np.float32)
    )
    logger.info("rows hold %.0f %% of the fast movement", 100 * values[::-1][:ROWS].sum() / values.sum())
    return read_anatomy(opening.astype(np.float16).astype(np.float32), rows)


def codes_of(clip: Spoken, anatomy: Anatomy) -> tuple[Floats, Floats]:
    """Seconds `[N]` and codes `[N, 1 + ROWS]`: how far the mouth is open (cm), and weights of the rows, about 1."""
    finder = NeutralFinder()
    finder.prime(clip.faces[::3])
    split = Splitter(canvas(), finder, anatomy=anatomy)
    weights = weighing()
    rows = anatomy.rows.reshape(ROWS, -1) * weights
    analysis = (np.linalg.solve(rows @ rows.T, rows) * weights).astype(np.float32)
    found = []
    for face in clip.faces:
        lips = split(face)
        open_cm = float(lips.gaps[3:6].mean())
        rest = lips.lips - (open_cm - opening_of(canvas().shape)) * anatomy.opening
        found.append([open_cm, *(analysis @ rest.ravel())])
    return np.array([face.time_s for face in clip.faces], np.float32), np.array(found, np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class Lesson:
    """A clip as the network meets it, one row for each 40 ms of sound."""

    name: str
    heard: Floats
    """`[T, STEP_HOPS, BANDS]`."""
    codes: Floats
    """`[T, 1 + ROWS]`."""
    seen: NDArray[np.bool_]
    """`[T]`: whether a face was there."""
    loud: Floats
    """`[T]`: the logarithm of the sound's power, for the baseline."""


def lesson(clip: Spoken, anatomy: Anatomy) -> Lesson:
    mel = LogMel().feed(clip.sound)
    steps = len(mel) // STEP_HOPS
    times, codes = codes_of(clip, anatomy)
    wanted = (np.arange(steps) + 1) * STEP_S - DELAY_S
    shut, wide = np.percentile(codes[:, 0], [10, 90])
    codes[:, 0] = (codes[:, 0] - shut) * (SPOKEN_CM / max(wide - shut, LEAST_SPOKEN_CM))
    told = np.stack([np.interp(wanted, times, column) for column in codes.T], 1).astype(np.float32)
    nearest = np.abs(times[np.clip(np.searchsorted(times, wanted), 0, len(times) - 1)] - wanted)
    # The loudness of the 40 ms about the moment the codes are of.
    power = np.convolve(clip.sound**2, np.ones(640, np.float32) / 640, "same")
    loud = np.log(np.interp(wanted, np.arange(len(power)) / RATE_HZ, power) + 1e-7)
    return Lesson(
        clip.name,
        mel[: steps * STEP_HOPS].reshape(steps, STEP_HOPS, BANDS),
        told,
        nearest < 0.1,
        loud.astype(np.float32),
    )


def in_step(one: Lesson, late: int) -> Lesson:
    """The clip without the steps by which its lips come after (before, if negative) its sound."""
    at = np.arange(len(one.codes)) + late
    there = (at >= 0) & (at < len(at))
    at = at.clip(0, len(at) - 1)
    return replace(one, codes=one.codes[at], seen=one.seen[at] & there)


# --- the network --------------------------------------------------------------------------------------------


class LipNet(nn.Module):
    """120 ms of log-mel at each step, then a memory: `[B, T, HEARD_HOPS, BANDS]` -> `[B, T, codes]`."""

    def __init__(self, width: int = 256, dropout: float = 0.1) -> None:
        super().__init__()
        self.hear = nn.Sequential(
            nn.Flatten(),
            nn.Linear(HEARD_HOPS * BANDS, width),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Dropout(dropout),
        )
        self.memory = nn.GRU(width, width, batch_first=True)
        self.say = nn.Sequential(nn.Dropout(dropout), nn.Linear(width, 1 + ROWS))

    def forward(self, heard: Tensor) -> Tensor:
        batch, steps = heard.shape[:2]
        features = self.hear(heard.flatten(0, 1)).reshape(batch, steps, -1)
        return self.say(self.memory(features)[0])


class LipStep(nn.Module):
    """`LipNet` one step at a time, as the engine runs it; gives centimetres and weights of the rows.

    In: `heard [1, HEARD_HOPS, BANDS]`, `memory [1, width]`. Out: `codes [1, 1 + ROWS]`, `remembered [1, width]`.
    """

    def __init__(self, network: LipNet, scale: Tensor, offset: Tensor) -> None:
        super().__init__()
        self.network, self.scale, self.offset = network, nn.Parameter(scale), nn.Parameter(offset)

    def forward(self, heard: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        features = self.network.hear(heard)
        said, remembered = self.network.memory(features[:, None], memory[None])
        return self.network.say(said[:, 0]) * self.scale + self.offset, remembered[0]


def windowed(heard: Tensor) -> Tensor:
    """`[B, T, STEP_HOPS, BANDS]` -> `[B, T, HEARD_HOPS, BANDS]`: each step with those before it."""
    before = HEARD_HOPS // STEP_HOPS - 1
    quiet = heard.new_full((heard.shape[0], before, *heard.shape[2:]), float(heard.min()))
    padded = torch.cat([quiet, heard], 1)
    return torch.cat([padded[:, k : k + heard.shape[1]] for k in range(before + 1)], 2)


def disturbed(heard: Tensor, random: np.random.Generator) -> Tensor:
    """Other voices and other rooms: bands shifted and tilted, a few hidden, noise."""
    shift = int(random.integers(-2, 3))
    heard = torch.roll(heard, shift, -1)
    tilt = torch.linspace(-1, 1, BANDS) * float(random.normal(0, 0.15)) + float(random.normal(0, 0.15))
    heard = heard + tilt
    floor = float(random.uniform(-1.2, -0.5)) if random.random() < 0.5 else -9.0
    heard = torch.maximum(heard, torch.tensor(floor) + 0.1 * torch.randn_like(heard))
    start, wide = int(random.integers(0, BANDS - 6)), int(random.integers(0, 6))
    heard = heard.clone()
    heard[..., start : start + wide] = heard.mean()
    return heard


def correlation(one: Tensor, other: Tensor, seen: Tensor) -> Tensor:
    """Pearson's, over the second dimension where `seen [B, T]`: `[B, codes]`."""
    weight = seen[..., None].float()
    count = weight.sum(1, keepdim=True).clamp(min=1)
    one = (one - (one * weight).sum(1, keepdim=True) / count) * weight
    other = (other - (other * weight).sum(1, keepdim=True) / count) * weight
    return (one * other).sum(1) / ((one * one).sum(1) * (other * other).sum(1) + 1e-4).sqrt()


IMPORTANCE = torch.tensor([4.0, *[1.0] * ROWS])


def train(
    lessons: Sequence[Lesson],
    epochs: int,
    scale: Tensor,
    offset: Tensor,
    seed: int = 0,
    steps: int = 100,
) -> LipNet:
    """Windows of 4 s. L1 on the codes, what is missing from a correlation of one, and L1 on how they change."""
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    network = LipNet()
    optimiser = torch.optim.AdamW(network.parameters(), 3e-3, weight_decay=0.02)
    per_epoch = max(sum(len(one.codes) for one in lessons) // (steps * 16), 1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=epochs * per_epoch)
    chance = np.array([len(one.codes) for one in lessons], np.float64)
    chance /= chance.sum()
    weight = IMPORTANCE / IMPORTANCE.sum()
    network.train()
    for _ in range(epochs):
        for _ in range(per_epoch):
            heard, codes, seen = [], [], []
            for index in random.choice(len(lessons), 16, p=chance):
                one = lessons[index]
                start = int(random.integers(0, max(len(one.codes) - steps, 0) + 1))
                cut = slice(start, start + steps)
                short = steps - len(one.codes[cut])
                heard.append(disturbed(torch.from_numpy(np.pad(one.heard[cut], ((0, short), (0, 0), (0, 0)))), random))
                codes.append(torch.from_numpy(np.pad(one.codes[cut], ((0, short), (0, 0)))))
                seen.append(torch.from_numpy(np.pad(one.seen[cut], (0, short))))
            wanted = ((torch.stack(codes) - offset) / scale).clamp(-5, 5)
            mask = torch.stack(seen)
            mask[:, :5] = False  # the memory is still empty
            said = network(windowed(torch.stack(heard)))
            off = ((said - wanted).abs() * weight)[mask].sum(-1).mean()
            change = (((said[:, 1:] - said[:, :-1]) - (wanted[:, 1:] - wanted[:, :-1])).abs() * weight)[mask[:, 1:]]
            alike = (correlation(said, wanted, mask) * weight).sum(-1).mean()
            loss = off + 0.5 * change.sum(-1).mean() + (1 - alike)
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimiser.step()
            schedule.step()
    return network.eval()


@torch.no_grad()
def follow(network: LipNet, one: Lesson) -> Floats:
    """`[T, 1 + ROWS]` normalised codes for a whole clip."""
    network.eval()
    return network(windowed(torch.from_numpy(one.heard)[None]))[0].numpy()


# --- what it is worth ---------------------------------------------------------------------------------------


def pearson(one: Floats, other: Floats) -> float:
    return float(np.corrcoef(one, other)[0, 1]) if one.std() > 1e-6 and other.std() > 1e-6 else 0.0


def best_offset(said: Floats, real: Floats, most: int = 6) -> tuple[int, float]:
    """By how many steps `said` comes late (early if negative) where the two agree best, and their correlation there."""
    at = range(-min(most, len(said) // 4), min(most, len(said) // 4) + 1)
    scores = [pearson(said[max(k, 0) : len(said) + min(k, 0)], real[max(-k, 0) : len(real) - max(k, 0)]) for k in at]
    return int(at[int(np.argmax(scores))]), max(scores)


def retrieval(said: Floats, real: Floats, window: int = 50, others: int = 49) -> tuple[int, int]:
    """(found, tried): windows of 2 s whose own sound fits best among 49 others of the clip, at least 0.2 s away.

    `said`, `real` `[T, codes]`. How well they fit: the mean correlation of the codes.
    """
    found = tried = 0
    starts = np.arange(0, len(said) - window + 1, 5)
    if len(starts) <= others:
        return 0, 0

    def normal(values: Floats) -> Floats:
        values = values - values.mean(0)
        return values / np.maximum(np.linalg.norm(values, axis=0), 1e-4)

    sounds = np.stack([normal(said[k : k + window]) for k in starts])
    random = np.random.default_rng(0)
    for own in range(0, len(starts), 5):
        seen = normal(real[starts[own] : starts[own] + window])
        rest = np.delete(np.arange(len(starts)), own)
        among = np.array([own, *random.choice(rest, others, replace=False)])
        scores = (sounds[among] * seen).sum(1).mean(1)
        found, tried = found + int(scores.argmax() == 0), tried + 1
    return found, tried


def report(network: LipNet, lessons: Sequence[Lesson], scale: Tensor, offset: Tensor) -> dict[str, object]:
    """Over clips: correlation of the opening, offset in steps, the correlation there, retrieval; loudness alone.

    Offsets and what is found there are the clips' as much as the network's: many were cut or coded out of step.
    """
    rows, hits = [], np.zeros(4, int)
    for one in lessons:
        said, real = follow(network, one), (one.codes - offset.numpy()) / scale.numpy()
        mask = one.seen
        says, was, loud = said[mask], real[mask].astype(np.float32), one.loud[mask]
        late, there = best_offset(says[:, 0], was[:, 0], MOST_SLIP)
        rows.append(
            {
                "clip": one.name,
                "seconds": round(len(was) * STEP_S, 1),
                "moved_cm": round(float(one.codes[mask, 0].std()), 3),
                "opening": round(pearson(says[:, 0], was[:, 0]), 3),
                "rows": [round(pearson(says[:, k], was[:, k]), 2) for k in range(1, 1 + ROWS)],
                "offset": late,
                "opening_moved": round(there, 3),
                "loudness": round(pearson(loud, was[:, 0]), 3),
            }
        )
        hits += [*retrieval(says, was), *retrieval(loud[:, None], was[:, :1])]
    return {
        "clips": rows,
        "opening": float(np.mean([row["opening"] for row in rows])),
        "opening_moved": float(np.mean([row["opening_moved"] for row in rows])),
        "loudness": float(np.mean([row["loudness"] for row in rows])),
        "offsets": [row["offset"] for row in rows],
        "retrieval": float(hits[0] / max(hits[1], 1)),
        "retrieval_loudness": float(hits[2] / max(hits[3], 1)),
        "windows": int(hits[1]),
    }


def teach(lessons: Sequence[Lesson], epochs: int) -> tuple[LipNet, list[Lesson], Tensor, Tensor]:
    """The network, what it learned from, and scale and offset of its codes. Raises `ValueError` if nothing fits."""
    told = np.concatenate([one.codes[one.seen] for one in lessons])
    offset = torch.from_numpy(np.median(told, 0))
    scale = torch.from_numpy(np.percentile(np.abs(told - offset.numpy()), 80, 0).astype(np.float32) + 1e-3)
    first = train(lessons, max(epochs // 4, 1), scale, offset)
    slips = [best_offset(follow(first, one)[one.seen, 0], one.codes[one.seen, 0], MOST_SLIP) for one in lessons]
    good = [in_step(one, -late) for one, (late, fit) in zip(lessons, slips, strict=True) if fit >= LEAST_FIT]
    found = [late for late, fit in slips if fit >= LEAST_FIT]
    logger.info("%d of %d clips speak for themselves, %d of them in step", len(good), len(lessons), found.count(0))
    if not good:
        raise ValueError("in none of the clips do the lips go with the sound: give more, or more epochs")
    return train(good, epochs, scale, offset), good, scale, offset


@torch.no_grad()
def hush(step: LipStep) -> Tensor:
    """`[1 + ROWS]`: what the network says after four seconds of silence; that shall be the face at rest."""
    silence = torch.from_numpy(LogMel().feed(np.zeros(RATE_HZ // 4, np.float32))[:HEARD_HOPS])[None]
    codes, memory = torch.zeros(1, 1 + ROWS), torch.zeros(1, step.network.memory.hidden_size)
    for _ in range(100):
        codes, memory = step(silence, memory)
    return codes[0]


def liveliness(network: LipNet, lessons: Sequence[Lesson], scale: Tensor) -> Tensor:
    """`[1 + ROWS]`: what brings what is said up to `LIVELY` of the spread of real mouths: L1 makes the unsure timid."""
    said = np.mean([follow(network, one)[one.seen].std(0) for one in lessons], 0)
    real = np.mean([one.codes[one.seen].std(0) for one in lessons], 0) / scale.numpy()
    return torch.from_numpy((LIVELY * real / said).clip(1, 3).astype(np.float32))


def save(network: LipNet, anatomy: Anatomy, scale: Tensor, offset: Tensor, gain: Tensor, folder: Path) -> None:
    """`mouth.npz` and `lips.onnx`; silence is the face at rest, and the rest is `gain` times what was learned."""
    folder.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        folder / "mouth.npz", opening=anatomy.opening.astype(np.float16), rows=anatomy.rows.astype(np.float16)
    )
    quiet = hush(LipStep(network.eval(), scale, offset))
    step = LipStep(network, scale * gain, (offset - quiet) * gain).eval()
    given = {"heard": torch.zeros(1, HEARD_HOPS, BANDS), "memory": torch.zeros(1, network.memory.hidden_size)}
    to_onnx(step, given, ("codes", "remembered"), folder / "lips.onnx")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m training.lips", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("heads", type=Path, help="folder of head clips with index.tsv")
    parser.add_argument("--out", type=Path, required=True, help="folder for mouth.npz and lips.onnx")
    parser.add_argument("--tracks", type=Path, default=Path("runs/tracks"), help="where tracked clips are kept")
    parser.add_argument("--clips", type=int, default=50, help="of each person, at most")
    parser.add_argument("--frames", type=int, default=500, help="of each clip, at most")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--measure", type=Path, metavar="JSON", help="measure on the test split, and write it here")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        learn(options)
    except (ValueError, OSError) as error:
        parser.exit(1, f"{error}\n")


def learn(options: argparse.Namespace) -> None:
    clips = list(spoken(options.heads, options.tracks, "train", options.clips, options.frames))
    if not clips:
        raise ValueError(f"no clip of the train split in {options.heads} has a sound and a face that speaks")
    logger.info("%d clips with sound, %d frames", len(clips), sum(len(clip.faces) for clip in clips))
    anatomy = anatomy_of(clips)
    lessons = [lesson(clip, anatomy) for clip in clips]
    network, good, scale, offset = teach(lessons, options.epochs)
    save(network, anatomy, scale, offset, liveliness(network, good, scale), options.out)
    if options.measure:
        unseen = [
            lesson(clip, anatomy)
            for clip in spoken(options.heads, options.tracks, "test", options.clips, options.frames)
        ]
        told = report(network, unseen, scale, offset)
        options.measure.write_text(json.dumps(told, indent=1))
        logger.info("%s", {key: value for key, value in told.items() if key != "clips"})


if __name__ == "__main__":
    main()
