"""Meta-learning: episodes -> the base generator. `python -m training.meta_learn --shards runs/shards --hours 2`

One process, one command, resumable anywhere: the run folder holds `options.json`, `stats.jsonl`, pictures of a fixed
batch (`samples-*.jpg`) and `checkpoint.pt` (weights, their running average, optimiser, step and time spent). Ctrl-C
and SIGTERM save it first.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import math
import signal
import threading
import time
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from training import losses
from training.episodes import Episodes, Sample, batches, load_shards
from training.networks.face import FaceFeatures
from training.networks.live import Drawn, LiveGenerator, LiveOptions, atlas, thumbnail
from training.networks.perceptual import LPIPS

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
WEIGHTS = {"l1": 1.0, "warp": 0.5, "synthesis": 0.2, "matte": 0.3, "residual": 0.1, "lpips": 2.0, "likeness": 1.5}


@dataclass(slots=True)
class State:
    """Everything a checkpoint holds."""

    generator: LiveGenerator
    average: LiveGenerator
    optimiser: torch.optim.Optimizer
    step: int = 0
    seconds: float = 0.0
    skipped: int = 0


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
    partial = path.with_suffix(".part")
    torch.save(content, partial)
    partial.replace(path)


def load_checkpoint(state: State, path: Path, device: torch.device) -> None:
    """Raises `ValueError` when the checkpoint was made with other sizes."""
    content = torch.load(path, map_location=device, weights_only=True)
    if content["options"] != asdict(state.generator.options):
        raise ValueError(f"{path} was trained with {content['options']}, not {asdict(state.generator.options)}")
    state.generator.load_state_dict(content["generator"])
    state.average.load_state_dict(content["average"])
    state.optimiser.load_state_dict(content["optimiser"])
    state.step, state.seconds, state.skipped = content["step"], content["seconds"], content["skipped"]


def learning_rate(base: float, progress: float, step: int) -> float:
    """Warm up over 100 steps, hold, and fall by a cosine to 3 % over the last 40 % of the run (`progress` in 0..1)."""
    fall = min(max((progress - 0.6) / 0.4, 0.0), 1.0)
    return base * min(1.0, (step + 1) / 100) * (0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * fall)))


def to_device(sample: Sample, device: torch.device) -> Sample:
    return Sample(**{name: getattr(sample, name).to(device, non_blocking=True) for name in Sample.__slots__})


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


def train_step(
    state: State, sample: Sample, perceptual: LPIPS | None, crop_px: int, bf16: bool, face: FaceFeatures | None = None
) -> dict[str, float]:
    """One step; a step whose loss or gradient is not finite is skipped and counted."""
    device = sample.target.device
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        drawn = draw(state.generator, sample)
        terms = losses.reconstruction(drawn, sample.target, sample.detail, sample.background, sample.focus)
        weights = dict(WEIGHTS)
        if perceptual is None:
            del weights["lpips"]
        else:
            corner = perceptual_corner(state.step, sample.target.shape[-1], crop_px)
            weight = losses.pixel_weight(sample.target[:, 3:], sample.background, sample.focus)
            pair = losses.perceptual_pair(drawn.rgb, sample.target[:, :3], weight, crop_px, corner)
            with torch.no_grad():
                goal = perceptual.features(pair[1])
            terms["lpips"] = perceptual.distance(perceptual.features(pair[0]), goal).float().mean()
        if face is None:
            del weights["likeness"]
        else:
            terms["likeness"] = losses.likeness(drawn.rgb, sample.target[:, :3], sample.placed, face)
    loss = losses.total(terms, weights)
    state.optimiser.zero_grad(set_to_none=True)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(state.generator.parameters(), 1.0)
    if torch.isfinite(norm) and torch.isfinite(loss):
        state.optimiser.step()
    else:
        state.skipped += 1
    decay = min(0.999, (1 + state.step) / (10 + state.step))
    with torch.no_grad():
        for mean, now in zip(state.average.parameters(), state.generator.parameters(), strict=True):
            mean.lerp_(now, 1 - decay)
    state.step += 1
    return {"loss": float(loss.detach()), "gradient": float(norm)} | {
        name: float(value.detach()) for name, value in terms.items()
    }


def to_image(tensor: Tensor) -> np.ndarray:
    return ((tensor.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy()


@torch.no_grad()
def save_samples(state: State, sample: Sample, path: Path) -> None:
    """Rows: slot A's reference, slot A warped, slot B warped, synthesised, residual, result, target, matte, weights."""
    drawn = draw(state.average, sample)
    rows = []
    for i in range(len(sample.target)):
        matte = drawn.matte[i].expand(3, -1, -1) * 2 - 1
        cells = [
            sample.pictures[i, 0, :3],
            drawn.looks[i, 0],
            drawn.looks[i, 1],
            drawn.synthesised[i],
            drawn.residual[i] * 2,
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


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=Path, default=Path("runs/shards"))
    parser.add_argument(
        "--run", type=Path, default=Path("runs/live-256"), help="run folder; an existing one is resumed"
    )
    parser.add_argument("--preset", choices=sorted(PRESETS), default="live-256")
    parser.add_argument("--hours", type=float, default=2.0, help="length of the run, earlier parts counted in")
    parser.add_argument("--steps", type=int, help="stop after so many steps, whatever the hours")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rate", type=float, default=4e-4)
    parser.add_argument("--crop-px", type=int, default=144, help="side of what the perceptual loss sees")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--threads", type=int, default=0, help="torch threads, 0 = all")
    parser.add_argument("--save-s", type=float, default=240.0, help="seconds between checkpoints")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--hold-out", type=int, default=12, help="training people kept for validation")
    parser.add_argument("--start", type=Path, help="weights.safetensors of a base to start a new run from")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    if options.threads:
        torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    torch.manual_seed(options.seed)

    people = load_shards(options.shards, "train")
    kept = set(sorted(people)[:: max(len(people) // max(options.hold_out, 1), 1)][: options.hold_out])
    learning = {name: clips for name, clips in people.items() if name not in kept}
    state = make_state(PRESETS[options.preset], options.rate, device)
    options.run.mkdir(parents=True, exist_ok=True)
    checkpoint = options.run / "checkpoint.pt"
    if checkpoint.exists():
        load_checkpoint(state, checkpoint, device)
        logger.info("resumed at step %d", state.step)
    elif options.start:
        weights = {name: value.float() for name, value in load_file(options.start).items()}
        state.generator.load_state_dict(weights)
        state.average.load_state_dict(weights)
        logger.info("started from the weights in %s", options.start)
    recorded = {name: str(value) for name, value in vars(options).items()} | {
        "network": asdict(state.generator.options)
    }
    (options.run / "options.json").write_text(json.dumps(recorded, indent=1))
    logger.info("%d people to learn from, %d kept out, on %s", len(learning), len(kept), device)

    validation = Episodes({name: people[name] for name in kept}, seed=1, augment=False)
    held = [to_device(sample, device) for sample in islice(batches(validation, options.batch), 4)]
    perceptual = face = None
    if options.preset != "tiny":
        face = FaceFeatures().to(device)
        perceptual = LPIPS("vgg").eval().to(device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):  # finish the step, save, leave
        signal.signal(number, lambda *_: stop.set())
    began, before = time.monotonic(), state.seconds
    saved = began
    recent: list[dict[str, float]] = []
    with (options.run / "stats.jsonl").open("a") as stats:
        # Batch and step go by one number, so that a run that was resumed sees what it would have seen.
        for sample in batches(Episodes(learning, seed=options.seed), options.batch, state.step, options.workers):
            progress = state.seconds / (options.hours * 3600)
            if options.steps:
                progress = max(progress, state.step / options.steps)
            if progress >= 1 or stop.is_set():
                break
            for group in state.optimiser.param_groups:
                group["lr"] = learning_rate(options.rate, progress, state.step)
            told = train_step(state, to_device(sample, device), perceptual, options.crop_px, bf16=True, face=face)
            if all(map(math.isfinite, told.values())):
                recent.append(told)
            now = time.monotonic()
            state.seconds = before + now - began
            if state.step % 20 == 0:
                means = {name: float(np.mean([one[name] for one in recent])) for name in recent[-1]} if recent else {}
                recent.clear()
                now_at = {"step": state.step, "seconds": state.seconds, "skipped": state.skipped}
                stats.write(json.dumps(now_at | means) + "\n")
                stats.flush()
                text = " ".join(f"{name} {value:.4f}" for name, value in means.items())
                logger.info("step %d, %.0f s, %s", state.step, state.seconds, text)
            if now - saved >= options.save_s or state.step == 50:
                saved = now
                save_checkpoint(state, checkpoint)
                measured = validate(state, held, perceptual)
                stats.write(json.dumps({"step": state.step, "seconds": state.seconds} | measured) + "\n")
                logger.info("  ".join(f"{name} {value:.4f}" for name, value in measured.items()))
                save_samples(state, held[0], options.run / f"samples-{state.step:06d}.jpg")
    save_checkpoint(state, checkpoint)
    logger.info("done: step %d, %.0f s, %d steps skipped", state.step, state.seconds, state.skipped)


if __name__ == "__main__":
    main()
