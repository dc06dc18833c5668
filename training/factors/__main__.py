"""`python -m training.factors --stage reader`, then `--stage 1`, `2` and `3`: the system of Wang et al. 2023.

Shards come from `python -m training.prepare SOURCE --out runs/voices --every 1 --sound`. Each stage has a run folder of
its own (`runs/factors-<preset>/<stage>`), as `training.meta_learn` describes it, is resumed from there, runs under
`torchrun`, and finds the one before in the folder beside its own. The reader comes first: stages 1 and 3 are told by it
what a face does. `--dry-run` says what a run would cost.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

import torch

from training.factors.clips import find_clips
from training.factors.stages import (
    PRESETS,
    FactorCourse,
    MomentStage,
    ReaderStage,
    Recipe,
    SketchStage,
    Stage,
    StepsStage,
    changed,
    load_reader,
)
from training.meta_learn import command, hold_out, run
from training.networks.content import PIXELS, Content, chosen_terms
from training.ranks import Ranks

logger = logging.getLogger("training.factors")
FOLDERS = {"reader": "reader", "1": "stage-1", "2": "stage-2", "3": "stage-3"}


def read_options(arguments: list[str] | None = None) -> argparse.Namespace:
    usual = Recipe()
    parser = argparse.ArgumentParser(
        "python -m training.factors", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stage", choices=sorted(FOLDERS), required=True)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="paper")
    parser.add_argument("--shards", type=Path, default=Path("runs/voices"))
    parser.add_argument(
        "--run", type=Path, help="run folder (runs/factors-<preset>/<stage>); an existing one is resumed"
    )
    parser.add_argument("--start", type=Path, help="checkpoint of the stage before (in the folder beside --run)")
    parser.add_argument("--reader", type=Path, help="checkpoint of the face reader (in the folder beside --run)")
    parser.add_argument("--hours", type=float, default=24.0, help="length of the run, earlier parts counted in")
    parser.add_argument("--steps", type=int, help="stop after so many steps, whatever the hours")
    parser.add_argument("--batch", type=int, default=8, help="episodes a step, over all processes")
    parser.add_argument("--rate", type=float, help=f"learning rate ({usual.rate:g})")
    parser.add_argument("--critic-rate", type=float, help=f"the same for the critic ({usual.critic_rate:g})")
    parser.add_argument("--shots", type=int, help=f"K, pictures of the person in stages 1 and 3 ({usual.shots})")
    parser.add_argument("--moments", type=int, help=f"of a clip in stage 2, out of step ({usual.moments})")
    parser.add_argument("--window", type=int, help=f"frames of the expression's window, odd ({usual.window})")
    parser.add_argument("--bank", type=int, help=f"past moments that stage 3 correlates over ({usual.bank})")
    parser.add_argument("--temperature", type=float, help=f"of the contrastive losses ({usual.temperature:g})")
    parser.add_argument("--vgg19", type=Path, help="safetensors for the content loss (training.networks.content)")
    parser.add_argument("--workers", type=int, default=2, help="processes that draw episodes, for each rank")
    parser.add_argument("--threads", type=int, default=0, help="torch threads, 0 = all")
    parser.add_argument("--save-s", type=float, default=600.0, help="seconds between checkpoints")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--hold-out", type=int, default=12, help="training people kept for validation")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dry-run", action="store_true", help="measure a few steps, say what the run would cost")
    options = parser.parse_args(arguments)
    options.run = options.run or Path("runs") / f"factors-{options.preset}" / FOLDERS[options.stage]
    for name, least in (("batch", 1), ("shots", 1), ("moments", 2), ("window", 1), ("bank", 1)):
        value = getattr(options, name)
        if value is not None and value < least:
            parser.error(f"--{name} must be at least {least}")
    return options


def stage_of(options: argparse.Namespace, device: torch.device) -> Stage[Any]:
    """The stage with all it needs. Raises `ValueError` when there is no reader yet."""
    sizes = PRESETS[options.preset]
    asked = ("rate", "critic_rate", "shots", "moments", "window", "bank", "temperature")
    recipe = changed(Recipe(), **{name: getattr(options, name) for name in asked})
    if options.stage == "reader":
        return ReaderStage(sizes, recipe)
    if options.stage == "2":
        return StepsStage(sizes, recipe)
    path = options.reader or options.run.parent / FOLDERS["reader"] / "checkpoint.pt"
    if not path.exists():
        raise ValueError(f"there is no face reader at {path}: run --stage reader first, or say --reader")
    reader = load_reader(path, device)
    terms = (PIXELS,) if options.preset == "tiny" else chosen_terms(options.vgg19)[:1]  # VGG alone, as in the paper
    content = Content(terms).to(device)
    return (SketchStage if options.stage == "1" else MomentStage)(sizes, recipe, reader, content)


def learn(options: argparse.Namespace, ranks: Ranks, device: torch.device) -> None:
    stage = stage_of(options, device)
    learning, kept = hold_out(find_clips(options.shards, "train"), options.hold_out)
    course = FactorCourse(stage, learning, kept, options.batch, options.seed, device, ranks)
    logger.info("%d people to learn from, %d kept out, on %s", len(learning), len(kept), device)
    checkpoint = options.run / "checkpoint.pt"
    if checkpoint.exists():
        course.load(checkpoint)
        logger.info("resumed at step %d", course.state.step)
    elif stage.before is not None:
        start = options.start or options.run.parent / stage.before / "checkpoint.pt"
        if not start.exists():
            raise ValueError(f"there is no {start}: run {stage.before} first, or say --start")
        course.begin(start)
        logger.info("begun with %s", start)
    run(course, options, ranks)


def main(arguments: list[str] | None = None) -> None:
    command(read_options(arguments), learn)


if __name__ == "__main__":
    main()
