"""Meta-learning: episodes -> the base generator. `python -m training.meta_learn --shards runs/shards --hours 2`

One command, alone or under `torchrun`, resumable anywhere: the run folder holds `options.json`, `stats.jsonl`, pictures
of a fixed batch (`samples-*.jpg`) and `checkpoint.pt` (weights, their running average, optimiser, step, time spent).
Ctrl-C and SIGTERM save it first. `--preset paper` trains the networks of Zakharov et al. 2019 (`training.paper`),
`--adversarial` sets a critic beside the live generator (`training.adversarial`), `--dry-run` says what a run costs.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Generic, Protocol, TextIO, TypeVar

import cv2
import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from training import adversarial, losses, paper
from training import ranks as across
from training.adversarial import Adversary, AdversaryOptions
from training.episodes import Episodes, Sample, Shot, load_shards, to_image
from training.networks.content import PIXELS, Content, chosen_terms
from training.networks.discriminator import CriticOptions
from training.networks.face import FaceFeatures
from training.networks.live import Drawn, LiveGenerator, LiveOptions, atlas, thumbnail
from training.networks.perceptual import LPIPS
from training.paper import FewShot, PaperState, Recipe, Videos
from training.ranks import Ranks

logger = logging.getLogger(__name__)

PRESETS = {
    "live-256": LiveOptions(),
    "tiny": LiveOptions(
        size_px=256,
        feature_channels=4,
        body_channels=4,
        deep_channels=4,
        motion_channels=4,
        head_channels=4,
        embedding_channels=8,
    ),
}
TINY_CRITIC = CriticOptions((4, 4, 4, 4, 4), (4, 4, 4, 4))
WEIGHTS = {"l1": 1.0, "warp": 0.5, "synthesis": 0.2, "matte": 0.3, "lpips": 2.0, "likeness": 1.5}


@dataclass(slots=True)
class State:
    """Everything a checkpoint holds."""

    generator: LiveGenerator
    average: LiveGenerator
    optimiser: torch.optim.Optimizer
    step: int = 0
    seconds: float = 0.0
    skipped: int = 0
    adversary: Adversary | None = None


def make_state(options: LiveOptions, rate: float, device: torch.device) -> State:
    generator = LiveGenerator(options).to(device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    average = copy.deepcopy(generator).requires_grad_(False).eval()
    return State(generator, average, torch.optim.Adam(generator.parameters(), rate, betas=(0.9, 0.99)))


def save_checkpoint(state: State, path: Path) -> None:
    content = {
        "options": asdict(state.generator.options),
        "generator": state.generator.state_dict(),
        "average": state.average.state_dict(),
        "optimiser": state.optimiser.state_dict(),
        "step": state.step,
        "seconds": state.seconds,
        "skipped": state.skipped,
    }
    if state.adversary is not None:
        content["adversary"] = state.adversary.state_dict()
    partial = path.with_suffix(".part")
    torch.save(content, partial)
    partial.replace(path)


def load_checkpoint(state: State, path: Path, device: torch.device) -> None:
    """Raises `ValueError` when the checkpoint was made with other sizes, or has an adversary and the state has none.

    An adversary of which the checkpoint knows nothing starts here, with its warm-up.
    """
    content = torch.load(path, map_location=device, weights_only=True)
    if "generator" not in content:
        raise ValueError(f"{path} is of another preset: choose another --run")
    if content["options"] != asdict(state.generator.options):
        raise ValueError(f"{path} was trained with {content['options']}, not {asdict(state.generator.options)}")
    state.generator.load_state_dict(content["generator"])
    state.average.load_state_dict(content["average"])
    state.optimiser.load_state_dict(content["optimiser"])
    state.step, state.seconds, state.skipped = content["step"], content["seconds"], content["skipped"]
    if state.adversary is None:
        if "adversary" in content:
            raise ValueError(f"{path} was trained with an adversary: add --adversarial, or choose another --run")
    elif "adversary" in content:
        state.adversary.load_state_dict(content["adversary"])
    else:
        state.adversary.born = state.step


def load_start(state: State, path: Path, device: torch.device) -> None:
    """Weights to begin a new run with: a base's `weights.safetensors`, or the running average of a `checkpoint.pt`.

    Raises `ValueError` when there is no such file.
    """
    if not path.is_file():
        raise ValueError(f"there are no weights in {path}: name a weights.safetensors or a checkpoint.pt")
    if path.suffix == ".pt":
        weights = torch.load(path, map_location=device, weights_only=True)["average"]
    else:
        weights = {name: value.float() for name, value in load_file(path).items()}
    state.generator.load_state_dict(weights)
    state.average.load_state_dict(weights)


def learning_rate(base: float, progress: float, step: int) -> float:
    """Warm up over 100 steps, hold, and fall by a cosine to 3 % over the last 40 % of the run (`progress` in 0..1)."""
    fall = min(max((progress - 0.6) / 0.4, 0.0), 1.0)
    return base * min(1.0, (step + 1) / 100) * (0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * fall)))


def draw(generator: LiveGenerator, sample: Sample) -> Drawn:
    """References and conditioning -> the picture, with everything per person computed on the way."""
    modulation = generator.modulate(generator.embed(sample.pictures, sample.rasters))
    small = generator.options.size_px // 4
    return generator(
        raster=sample.raster,
        grids=sample.grids,
        tile=sample.tile,
        detail=sample.detail,
        pictures=atlas(sample.pictures),
        thumbnails=atlas(thumbnail(sample.pictures, small)),
        reference_raster=thumbnail(sample.rasters[:, 0], small),
        features=atlas(generator.encode(sample.pictures, sample.rasters)),
        modulation=modulation,
    )


def perceptual_corner(step: int, size_px: int, crop_px: int) -> tuple[int, int] | None:
    """Every fourth step the whole picture made small, otherwise a crop that wanders over head and shoulders."""
    if step % 4 == 0:
        return None
    rng = np.random.default_rng(step)
    spare = size_px - crop_px
    return int(rng.integers(0, spare + 1)), int(rng.integers(spare // 4, spare * 3 // 4 + 1))


def perceptual_view(step: int, rgb: Tensor, sample: Sample, crop_px: int) -> tuple[Tensor, Tensor]:
    """What the perceptual loss compares in this step: by turns the whole made small, a crop, eyes and mouth, a crop."""
    goal = sample.target[:, :3]
    if step % 4 == 2:
        return losses.eyes_and_mouth_pair(rgb, goal, sample.placed, crop_px)
    weight = losses.pixel_weight(sample.target[:, 3:], sample.background, sample.focus)
    return losses.perceptual_pair(rgb, goal, weight, crop_px, perceptual_corner(step, goal.shape[-1], crop_px))


def train_step(
    state: State,
    sample: Sample,
    perceptual: LPIPS | None,
    crop_px: int,
    bf16: bool,
    face: FaceFeatures | None = None,
    ranks: Ranks | None = None,
) -> dict[str, float]:
    """One step; a step whose loss or gradient is not finite is skipped and counted, on every rank."""
    ranks = ranks or Ranks()
    device = sample.target.device
    adversary = state.adversary
    if adversary is not None and adversary.warming(state.step):
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            rgb = draw(state.generator, sample).rgb
        told, taken = teach_adversary(adversary, sample, rgb, bf16, ranks)
        state.skipped += not taken
        state.step += 1
        return told
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        drawn = draw(state.generator, sample)
        terms = losses.reconstruction(drawn, sample.target, sample.detail, sample.background, sample.focus)
        weights = dict(WEIGHTS)
        if perceptual is None:
            del weights["lpips"]
        else:
            pair = perceptual_view(state.step, drawn.rgb, sample, crop_px)
            with torch.no_grad():
                goal = perceptual.features(pair[1])
            terms["lpips"] = perceptual.distance(perceptual.features(pair[0]), goal).float().mean()
        if face is None:
            del weights["likeness"]
        else:
            terms["likeness"] = losses.likeness(drawn.rgb, sample.target[:, :3], sample.placed, face)
        if adversary is not None:
            fake = shown_to_critic(sample, drawn.rgb)
            terms |= adversarial.generator_terms(adversary, fake, sample.target[:, :3], sample.raster)
            weights |= {"adversarial": adversary.options.weight, "matching": adversary.options.matching}
    loss = losses.total(terms, weights)
    state.optimiser.zero_grad(set_to_none=True)
    loss.backward()
    across.average_gradients(state.generator.parameters(), ranks)
    norm = torch.nn.utils.clip_grad_norm_(state.generator.parameters(), 1.0)
    if across.largest([float(not (torch.isfinite(norm) and torch.isfinite(loss)))], ranks)[0] == 0:
        state.optimiser.step()
    else:
        state.skipped += 1
    decay = min(0.999, (1 + state.step) / (10 + state.step))
    with torch.no_grad():
        for mean, now in zip(state.average.parameters(), state.generator.parameters(), strict=True):
            mean.lerp_(now, 1 - decay)
    state.step += 1
    told = {"loss": float(loss.detach()), "gradient": float(norm)} | {
        name: float(value.detach()) for name, value in terms.items()
    }
    if adversary is not None:
        told |= teach_adversary(adversary, sample, drawn.rgb.detach(), bf16, ranks)[0]
    return told


def shown_to_critic(sample: Sample, rgb: Tensor) -> Tensor:
    weight = losses.pixel_weight(sample.target[:, 3:], sample.background, sample.focus)
    return adversarial.shown(rgb, sample.target[:, :3], weight)


def teach_adversary(
    adversary: Adversary, sample: Sample, rgb: Tensor, bf16: bool, ranks: Ranks
) -> tuple[dict[str, float], bool]:
    fake = shown_to_critic(sample, rgb)
    return adversarial.teach(adversary, fake, sample.target[:, :3], sample.raster, bf16, ranks)


@torch.no_grad()
def save_samples(state: State, sample: Sample, path: Path) -> None:
    """Rows: slot A's reference, slot A warped, slot B warped, synthesised, result, target, matte, weights."""
    drawn = draw(state.average, sample)
    rows = []
    for i in range(len(sample.target)):
        matte = drawn.matte[i].expand(3, -1, -1) * 2 - 1
        cells = [
            sample.pictures[i, 0, :3],
            drawn.looks[i, 0],
            drawn.looks[i, 1],
            drawn.synthesised[i],
            drawn.rgb[i],
        ]
        cells += [sample.target[i, :3], matte, drawn.weight[i] * 2 - 1]
        rows.append(np.hstack([to_image(cell) for cell in cells]))
    cv2.imwrite(str(path), np.vstack(rows)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])


@torch.no_grad()
def validate(state: State, batches: list[Sample], perceptual: LPIPS | None) -> dict[str, float]:
    """The running average on fixed episodes of people kept out of training."""
    sums: dict[str, list[float]] = {}
    for sample in batches:
        drawn = draw(state.average, sample)
        terms = losses.reconstruction(drawn, sample.target, sample.detail, sample.background, sample.focus)
        if perceptual is not None:
            terms["lpips"] = perceptual(drawn.rgb, sample.target[:, :3]).mean()
            terms["lpips of slot A"] = perceptual(drawn.looks[:, 0], sample.target[:, :3]).mean()
        for name, value in terms.items():
            sums.setdefault(name, []).append(float(value))
    return {f"held out {name}": float(np.mean(values)) for name, values in sums.items()}


# --- what a run is made of ----------------------------------------------------------------------------------

People = Mapping[str, Mapping[str, Sequence[Shot]]]
Batch = TypeVar("Batch")
Clips = TypeVar("Clips")


class Counted(Protocol):
    """How far a run has come."""

    step: int
    seconds: float
    skipped: int


class Course(Protocol, Generic[Batch]):
    """What `run` needs of a preset: its state, its batches, one step of it, and how to keep and show it."""

    device: torch.device

    @property
    def state(self) -> Counted: ...

    @property
    def network(self) -> dict[str, Any]:
        """Sizes, for options.json."""
        ...

    def batches(self, first: int, workers: int) -> Iterator[Batch]: ...

    def seconds_per_episode(self) -> float: ...

    def learn(self, batch: Batch, progress: float) -> dict[str, float]: ...

    def validate(self) -> dict[str, float]: ...

    def save_samples(self, path: Path) -> None: ...

    def save(self, path: Path) -> None: ...

    def load(self, path: Path) -> None: ...


def drawing_seconds(draw_one: Callable[[int], object], count: int = 4) -> float:
    """How long one process takes to draw an episode."""
    draw_one(0)
    began = time.perf_counter()
    for number in range(1, count + 1):
        draw_one(number)
    return (time.perf_counter() - began) / count


class LiveCourse:
    """The live generator, with or without an adversary."""

    def __init__(
        self, options: argparse.Namespace, learning: People, kept: People, device: torch.device, ranks: Ranks
    ) -> None:
        self.options, self.device, self.ranks = options, device, ranks
        self.state = make_state(PRESETS[options.preset], options.rate, device)
        across.spread(self.state.generator, ranks)
        if options.adversarial:
            wishes = AdversaryOptions(
                options.adversarial_weight, options.matching_weight, options.critic_rate or 2e-4, options.critic_warm_up
            )
            sizes = TINY_CRITIC if options.preset == "tiny" else None
            self.state.adversary = adversarial.make_adversary(wishes, device, sizes, ranks)
        also = load_shards(options.also, "train") if options.also else {}
        if twice := sorted(also.keys() & (learning.keys() | kept.keys())):
            raise ValueError(f"{twice[0]!r} is in --shards and in --also: the people of --also must be others")
        self.episodes = Episodes(learning, seed=options.seed, also=also, also_share=options.also_share)
        validation = Episodes(kept, seed=1, augment=False)
        self.held = list(islice(across.batches(validation, Sample, options.batch, device), 4)) if ranks.first else []
        self.perceptual = self.face = None
        if options.preset != "tiny":
            self.face = FaceFeatures().to(device)
            self.perceptual = LPIPS("vgg").eval().to(device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    @property
    def network(self) -> dict[str, Any]:
        return asdict(self.state.generator.options)

    def batches(self, first: int, workers: int) -> Iterator[Sample]:
        return across.batches(self.episodes, Sample, self.options.batch, self.device, first, workers, self.ranks)

    def seconds_per_episode(self) -> float:
        return drawing_seconds(self.episodes.__getitem__)

    def learn(self, batch: Sample, progress: float) -> dict[str, float]:
        state, adversary = self.state, self.state.adversary
        step = state.step
        if adversary is not None:
            for group in adversary.optimiser.param_groups:
                group["lr"] = learning_rate(adversary.options.rate, progress, state.step - adversary.born)
            step = max(state.step - adversary.born - adversary.options.warm_up, 0)
        for group in state.optimiser.param_groups:
            group["lr"] = learning_rate(self.options.rate, progress, step)
        crop_px = self.options.crop_px
        return train_step(state, batch, self.perceptual, crop_px, bf16=True, face=self.face, ranks=self.ranks)

    def validate(self) -> dict[str, float]:
        return validate(self.state, self.held, self.perceptual)

    def save_samples(self, path: Path) -> None:
        save_samples(self.state, self.held[0], path)

    def save(self, path: Path) -> None:
        if self.ranks.first:
            save_checkpoint(self.state, path)

    def load(self, path: Path) -> None:
        load_checkpoint(self.state, path, self.device)

    def start(self, path: Path) -> None:
        load_start(self.state, path, self.device)


class PaperCourse:
    """The system of Zakharov et al. 2019."""

    def __init__(
        self, options: argparse.Namespace, learning: People, kept: People, device: torch.device, ranks: Ranks
    ) -> None:
        self.options, self.device, self.ranks = options, device, ranks
        sizes = paper.PRESETS[options.preset]
        self.recipe = Recipe(options.rate, options.critic_rate or Recipe().critic_rate, options.critic_steps)
        self.videos = Videos(learning, options.shots, sizes.size_px, options.seed)
        self.state: PaperState = paper.make_state(sizes, self.videos.names, self.recipe, device, ranks)
        terms = (PIXELS,) if options.preset == "paper-tiny" else chosen_terms(options.vgg19, options.vggface)
        self.content = Content(terms)
        self.content.to(device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.bf16 = device.type == "cuda"
        validation = Videos(kept, options.shots, sizes.size_px, seed=1)
        self.held = list(islice(across.batches(validation, FewShot, options.batch, device), 4)) if ranks.first else []

    @property
    def network(self) -> dict[str, Any]:
        return asdict(self.state.portrait.options) | {"videos": len(self.videos.names), "recipe": asdict(self.recipe)}

    def batches(self, first: int, workers: int) -> Iterator[FewShot]:
        return across.batches(self.videos, FewShot, self.options.batch, self.device, first, workers, self.ranks)

    def seconds_per_episode(self) -> float:
        return drawing_seconds(self.videos.__getitem__)

    def learn(self, batch: FewShot, progress: float) -> dict[str, float]:
        """The paper's rates do not change."""
        return paper.train_step(self.state, batch, self.content, self.recipe, self.bf16, self.ranks)

    def validate(self) -> dict[str, float]:
        return paper.validate(self.state, self.held, self.content)

    def save_samples(self, path: Path) -> None:
        sheet = paper.sample_sheet(self.state, self.held[0])
        cv2.imwrite(str(path), sheet[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])

    def save(self, path: Path) -> None:
        paper.save_checkpoint(self.state, path)

    def load(self, path: Path) -> None:
        paper.load_checkpoint(self.state, path, self.device)
        rates = (self.recipe.rate, self.recipe.critic_rate, self.recipe.critic_rate)
        optimisers = (self.state.optimiser, self.state.critic_optimiser, self.state.column_optimiser)
        for optimiser, rate in zip(optimisers, rates, strict=True):  # what is asked for now, not what was then
            for group in optimiser.param_groups:
                group["lr"] = rate


# --- the command --------------------------------------------------------------------------------------------


def read_options(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=Path, default=Path("runs/shards"))
    parser.add_argument("--also", type=Path, help="shards of more people to learn from; none of them is kept out")
    parser.add_argument("--also-share", type=float, default=0.2, help="of the episodes that are theirs")
    parser.add_argument("--run", type=Path, help="run folder (runs/<preset>); an existing one is resumed")
    parser.add_argument("--preset", choices=sorted([*PRESETS, *paper.PRESETS]), default="live-256")
    parser.add_argument("--hours", type=float, default=2.0, help="length of the run, earlier parts counted in")
    parser.add_argument("--steps", type=int, help="stop after so many steps, whatever the hours")
    parser.add_argument("--batch", type=int, default=8, help="episodes a step, over all processes")
    parser.add_argument("--rate", type=float, help="learning rate (live 4e-4, paper 5e-5)")
    parser.add_argument("--crop-px", type=int, default=144, help="side of what the perceptual loss sees")
    parser.add_argument("--workers", type=int, default=1, help="processes that draw episodes, for each rank")
    parser.add_argument("--threads", type=int, default=0, help="torch threads, 0 = all")
    parser.add_argument("--save-s", type=float, default=240.0, help="seconds between checkpoints")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--hold-out", type=int, default=12, help="training people kept for validation")
    parser.add_argument("--start", type=Path, help="weights.safetensors or checkpoint.pt to start a new live run from")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dry-run", action="store_true", help="measure a few steps, say what the run would cost")
    critic = parser.add_argument_group("adversarial training of the live generator")
    critic.add_argument("--adversarial", action="store_true", help="set a critic beside it")
    critic.add_argument("--adversarial-weight", type=float, default=AdversaryOptions().weight)
    critic.add_argument("--matching-weight", type=float, default=AdversaryOptions().matching)
    critic.add_argument("--critic-rate", type=float, help="learning rate of the critic (2e-4)")
    critic.add_argument("--critic-warm-up", type=int, default=AdversaryOptions().warm_up, help="steps it learns alone")
    first = parser.add_argument_group("the paper's system")
    first.add_argument("--shots", type=int, default=8, help="K, support frames of an episode")
    first.add_argument("--critic-steps", type=int, default=Recipe().critic_steps, help="for one of the generator")
    first.add_argument("--vgg19", type=Path, help="safetensors for the content loss (training.networks.content)")
    first.add_argument("--vggface", type=Path, help="the same for VGGFace")
    options = parser.parse_args(arguments)
    if options.adversarial and options.preset in paper.PRESETS:
        parser.error("the paper's system is adversarial by itself: --adversarial is for the live generator")
    if options.start and options.preset in paper.PRESETS:
        parser.error("--start is for the live generator: a run of the paper's goes on from its own folder")
    for name in ("batch", "hold_out", "shots", "critic_steps"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    if options.hours <= 0:
        parser.error("--hours must be more than 0")
    if not 0 < options.also_share < 1:
        parser.error("--also-share must lie between 0 and 1")
    options.run = options.run or Path("runs") / options.preset
    options.rate = options.rate or (Recipe().rate if options.preset in paper.PRESETS else 4e-4)
    return options


def main(arguments: list[str] | None = None) -> None:
    command(read_options(arguments), learn)


def command(options: argparse.Namespace, work: Callable[[argparse.Namespace, Ranks, torch.device], None]) -> None:
    """Ranks, threads and seed for `work`; what it refuses (`ValueError`) ends the program with its sentence."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        ranks, device = across.join(options.device)
        if not ranks.first:
            logging.getLogger().setLevel(logging.WARNING)
        if device.type == "cuda":
            torch.backends.cudnn.benchmark = True
            torch.set_float32_matmul_precision("high")
        torch.manual_seed(options.seed)
        work(options, ranks, device)
    except ValueError as error:
        sys.exit(str(error))
    across.leave(ranks)


def learn(options: argparse.Namespace, ranks: Ranks, device: torch.device) -> None:
    learning, kept = hold_out(load_shards(options.shards, "train"), options.hold_out)
    live = options.preset in PRESETS
    course = (LiveCourse if live else PaperCourse)(options, learning, kept, device, ranks)
    logger.info("%d people to learn from, %d kept out, on %s", len(learning), len(kept), device)
    if not options.dry_run:
        checkpoint = options.run / "checkpoint.pt"
        if checkpoint.exists():
            course.load(checkpoint)
            logger.info("resumed at step %d", course.state.step)
        elif options.start and isinstance(course, LiveCourse):
            course.start(options.start)
            logger.info("started from the weights in %s", options.start)
    run(course, options, ranks)


def hold_out(people: Mapping[str, Clips], count: int) -> tuple[dict[str, Clips], dict[str, Clips]]:
    """Those to learn from and, spread over all names, `count` who are kept out. `ValueError` when none would learn."""
    held = sorted(people)[:: max(len(people) // max(count, 1), 1)][:count]
    if len(held) == len(people):
        raise ValueError(f"there are {len(people)} people, and --hold-out {count} leaves none to learn from: say less")
    return {name: clips for name, clips in people.items() if name not in held}, {name: people[name] for name in held}


def run(course: Course[Any], options: argparse.Namespace, ranks: Ranks) -> None:
    """Learn until the hours or the steps are over or somebody says stop; the first rank writes the run folder.

    With `--dry-run` what that would cost is printed instead.
    """
    if options.dry_run:
        text = cost(course, options, ranks)
        if ranks.first:
            print(text)
        return
    checkpoint = options.run / "checkpoint.pt"
    options.run.mkdir(parents=True, exist_ok=True)
    if ranks.first:
        recorded = {name: str(value) for name, value in vars(options).items()} | {"network": course.network}
        (options.run / "options.json").write_text(json.dumps(recorded, indent=1))
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):  # finish the step, save, leave
        signal.signal(number, lambda *_: stop.set())
    state = course.state
    began, before = time.monotonic(), state.seconds
    saved = asked = began
    waited = worked = 0.0
    recent: list[dict[str, float]] = []
    with (options.run / "stats.jsonl" if ranks.first else Path(os.devnull)).open("a") as stats:
        # Batch and step go by one number, so that a run that was resumed sees what it would have seen.
        for batch in course.batches(state.step, options.workers):
            drawn = time.monotonic()
            waited += drawn - asked
            progress = state.seconds / (options.hours * 3600)
            if options.steps:
                progress = max(progress, state.step / options.steps)
            due = float(drawn - saved >= options.save_s or state.step == 50)
            progress, over, due = across.largest([progress, float(stop.is_set()), due], ranks)
            if due and state.step:
                saved = time.monotonic()
                keep(course, checkpoint, stats if ranks.first else None, options.run)
            if progress >= 1 or over:
                break
            told = course.learn(batch, progress)
            if all(map(math.isfinite, told.values())):
                recent.append(told)
            asked = time.monotonic()
            worked += asked - drawn
            state.seconds = before + asked - began
            if state.step % 20 == 0:
                means = averaged(recent)
                now_at = {"step": state.step, "seconds": state.seconds, "skipped": state.skipped}
                waiting = {"waiting": round(waited / max(waited + worked, 1e-9), 3)}
                stats.write(json.dumps(now_at | waiting | means) + "\n")
                stats.flush()
                recent.clear()
                waited = worked = 0.0
                text = " ".join(f"{name} {value:.4f}" for name, value in means.items())
                logger.info("step %d, %.0f s, %s", state.step, state.seconds, text)
    course.save(checkpoint)
    logger.info("done: step %d, %.0f s, %d steps skipped", state.step, state.seconds, state.skipped)


def averaged(told: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each number over the steps that told it."""
    sums: dict[str, list[float]] = {}
    for one in told:
        for name, value in one.items():
            sums.setdefault(name, []).append(value)
    return {name: float(np.mean(values)) for name, values in sums.items()}


def keep(course: Course[Any], checkpoint: Path, stats: TextIO | None, folder: Path) -> None:
    """Checkpoint (every rank has its part in it), and from the first rank validation and pictures."""
    course.save(checkpoint)
    if stats is not None:
        measured = course.validate()
        stats.write(json.dumps({"step": course.state.step, "seconds": course.state.seconds} | measured) + "\n")
        logger.info("  ".join(f"{name} {value:.4f}" for name, value in measured.items()))
        course.save_samples(folder / f"samples-{course.state.step:06d}.jpg")


def cost(course: Course[Any], options: argparse.Namespace, ranks: Ranks, steps: int = 6) -> str:
    """What a run would cost, measured: computing on one batch again and again, drawing episodes by themselves."""
    batch = next(course.batches(0, 0))
    if isinstance(course.state, State) and course.state.adversary is not None:
        course.state.adversary.born = -course.state.adversary.options.warm_up  # what most of the run will be
    spent = []
    for _ in range(steps + 2):
        began = time.perf_counter()
        course.learn(batch, 0.0)
        if course.device.type == "cuda":
            torch.cuda.synchronize(course.device)
        spent.append(time.perf_counter() - began)
    computing = float(np.mean(spent[2:]))
    drawing = course.seconds_per_episode() * ranks.share(options.batch) / max(options.workers, 1)
    # Workers draw while the step is computed; without any the two follow each other.
    step = max(computing, drawing) if options.workers else computing + drawing
    if course.device.type == "cuda":
        memory = f"{torch.cuda.max_memory_allocated(course.device) / 2**30:.2f} GiB on the GPU at most"
    else:
        import resource  # not on Windows

        memory = f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB at most"
    wanted = options.steps or int(options.hours * 3600 / step)
    slower = f"drawing episodes: give more than {options.workers} workers" if drawing > computing else "computing"
    return "\n".join(
        [
            f"{options.preset}, batch {options.batch} over {ranks.count} process(es), on {course.device}",
            f"{1 / step:.3f} steps/s, {memory}",
            f"{wanted} steps take {wanted * step / 3600:.2f} hours",
            f"a step computes {computing * 1e3:.0f} ms and needs {drawing * 1e3:.0f} ms of drawing "
            f"({options.workers} worker(s)): the bottleneck is {slower}",
        ]
    )


if __name__ == "__main__":
    main()
