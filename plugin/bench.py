"""`understudy bench`: what this machine reaches, measured side by side in one run. A table, a JSON file, a picture.

Frames with a face in them are needed to measure the tracker: they are drawn first, by the avatar itself. Every size is
measured in turns, a block of frames each, so that a machine that is busy for a while slows all of them alike.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np

from engine import avatar as avatars
from engine.avatar import Avatar
from engine.base import Base, open_base
from engine.compositor import to_i420
from engine.config import Config, load
from engine.frames import Face, Frame
from engine.renderer import Renderer
from engine.tracker import Smoother, Tracker
from plugin import demo as demos
from plugin.meter import Meter
from plugin.render import read_faces, with_options

SIZES_PX = (256, 512, 720)
_BLOCKS, _BLOCK = 6, 40
_LONG = 5000


def bench_avatar(out: Path, base: Base, config: Config) -> tuple[Avatar, Path]:
    """The demo's person, not fine-tuned (it costs the same to draw); kept while the base is the same."""
    path = out / "home" / "avatars" / "bench.avatar"
    os.environ["UNDERSTUDY_HOME"] = str((out / "home").absolute())
    if path.is_file():
        try:
            return avatars.load(path, base.sha256), path
        except avatars.AvatarError:
            path.unlink()
    from dataclasses import replace

    from training.enrol import enrol

    untuned = replace(config, enrol=replace(config.enrol, tune_s=0.0))
    photos = demos.photos_of(demos.people()[0])[: demos.ENROLLED]
    enrol(photos, "bench", base, untuned, lambda stage, done, total: None)
    return avatars.load(path, base.sha256), path


def _rss_mb() -> float:
    with Path("/proc/self/statm").open() as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def _loop(
    frames: list[Frame], tracker: Tracker, smoother: Smoother, renderer: Renderer, meter: Meter, size: int
) -> None:
    """Camera picture in, I420 out: the whole of what a call runs per frame."""
    for frame in frames:
        began = time.perf_counter()
        with meter.stage("tracker"):
            face = tracker.track(frame)
            if isinstance(face, Face):
                face = smoother.smooth(face)
        with meter.stage(f"draw {size}"):
            picture = renderer.draw(face)
        with meter.stage(f"i420 {size}"):
            to_i420(picture.rgb)
        meter.add(f"loop {size}", (time.perf_counter() - began) * 1e3)


def _webcam_frames(renderer: Renderer, count: int) -> list[Frame]:
    """Pictures as a webcam would give them: the avatar, 480 px high, in a 640 x 480 frame."""
    faces, fps = read_faces(demos.ASSETS / "talking.npz")
    frames = []
    for number in range(count):
        shot = cv2.resize(renderer.draw(faces[number % len(faces)]).rgb, (480, 480), interpolation=cv2.INTER_AREA)
        wide = cv2.copyMakeBorder(shot, 0, 0, 80, 80, cv2.BORDER_REPLICATE)
        frames.append(Frame(np.asarray(wide, np.uint8), number / fps))
    return frames


def measure(avatar: Avatar, base: Base, config: Config, long_run: int = _LONG) -> dict[str, object]:
    """Everything but the start-up times, on the cores this process may use."""
    renderers = {size: Renderer(avatar, base, with_options(config, size_px=size)) for size in SIZES_PX}
    for renderer in renderers.values():
        renderer.warm_up()
    frames = _webcam_frames(renderers[512], _BLOCKS * _BLOCK)
    meter = Meter()
    with Tracker.from_config(config.tracker) as tracker:
        smoothers = {size: Smoother.from_config(config.tracker) for size in SIZES_PX}
        _loop(frames[:_BLOCK], tracker, smoothers[256], renderers[256], Meter(), 256)
        for block in range(_BLOCKS):
            for size in SIZES_PX:
                piece = frames[block * _BLOCK : (block + 1) * _BLOCK]
                _loop(piece, tracker, smoothers[size], renderers[size], meter, size)
        before_mb = _rss_mb()
        for number in range(long_run):
            again = Frame(frames[number % len(frames)].rgb, 1e3 + number / 25)
            _loop([again], tracker, smoothers[512], renderers[512], Meter(), 512)
        after_mb = _rss_mb()
    return {
        "backend": renderers[256].describe(),
        "cores": len(os.sched_getaffinity(0)),
        "stages": meter.summary(),
        "fps": {str(size): 1e3 / float(np.median(meter.spent(f"loop {size}"))) for size in SIZES_PX},
        "memory_mb": {"before": before_mb, f"after {long_run} frames": after_mb},
    }


def _first_frame_s(avatar: Path, out: Path) -> dict[str, float]:
    """`understudy render` as its own process: from its start to its first frame, and in all."""
    command = [sys.executable, "-m", "plugin.cli", "render", "--avatar", str(avatar), "--size", "512"]
    command += ["--drive", str(demos.ASSETS / "talking.npz"), "--out", str(out / "bench.mp4")]
    began = time.perf_counter()
    told = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ).stdout
    whole = time.perf_counter() - began
    rendering, first = told.split(" frames in ")[1].split(" s, the first after ")
    # The process counts from the moment its modules are there; what came before is added here.
    return {"first_frame_s": whole - float(rendering) + float(first.split(" s")[0]), "whole_s": whole}


def bench(out: Path, config_path: Path | None) -> None:
    """Measure on every core and on one; write `bench.json` and `bench.png` into `out`, print the table."""
    out.mkdir(parents=True, exist_ok=True)
    base, config = open_base(), load(config_path)
    avatar, path = bench_avatar(out, base, config)
    whole = measure(avatar, base, config)
    alone = _on_one_core(out, config_path) if hasattr(os, "sched_setaffinity") else None
    told = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "base": base.sha256,
        "all cores": whole,
        "one core": alone,
        "start": _first_frame_s(path, out),
    }
    (out / "bench.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    _picture(told, out / "bench.png")
    print(_table(told))


def _on_one_core(out: Path, config_path: Path | None) -> dict[str, object]:
    """The same in a process that may use one core only."""
    code = (
        "import os, sys, json; from pathlib import Path; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from plugin import bench; from engine.base import open_base; from engine.config import load\n"
        "config = load(Path(sys.argv[2]) if sys.argv[2] else None); base = open_base()\n"
        "avatar, _ = bench.bench_avatar(Path(sys.argv[1]), base, config)\n"
        "print(json.dumps(bench.measure(avatar, base, config, 0)))"
    )
    command = [sys.executable, "-c", code, str(out), str(config_path or "")]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def _table(told: dict) -> str:
    lines = [f"{told['machine']}; {told['all cores']['backend']}"]
    lines.append(f"{'stage':<12}{'cores':>6}{'median ms':>11}{'p95 ms':>9}{'p95/median':>12}")
    for run in ("all cores", "one core"):
        if told[run] is None:
            continue
        for name, one in told[run]["stages"].items():
            ratio = one["p95_ms"] / one["median_ms"]
            lines.append(
                f"{name:<12}{told[run]['cores']:>6}{one['median_ms']:>11.2f}{one['p95_ms']:>9.2f}{ratio:>12.2f}"
            )
        fps = ", ".join(f"{value:.0f} fps at {size} px" for size, value in told[run]["fps"].items())
        lines.append(f"whole loop on {told[run]['cores']} core(s): {fps}")
    memory = ", ".join(f"{name} {value:.0f} MB" for name, value in told["all cores"]["memory_mb"].items())
    lines.append(f"memory: {memory}; start to first frame: {told['start']['first_frame_s']:.2f} s")
    return "\n".join(lines)


def _picture(told: dict, path: Path) -> None:
    """Stacked bars: where the milliseconds of a frame go, by size and number of cores."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    runs = [run for run in ("all cores", "one core") if told[run] is not None]
    figure, axis = pyplot.subplots(figsize=(8, 0.6 * len(runs) * len(SIZES_PX) + 1.2))
    labels, place = [], 0
    for run in runs:
        for size in SIZES_PX:
            left = 0.0
            for stage, colour in (("tracker", "#7aa6c2"), (f"draw {size}", "#d98c5f"), (f"i420 {size}", "#8fb58a")):
                width = told[run]["stages"][stage]["median_ms"]
                axis.barh(place, width, left=left, color=colour, label=stage.split()[0] if place == 0 else None)
                left += width
            labels.append(f"{size} px, {told[run]['cores']} core(s)")
            place += 1
    axis.axvline(1000 / 30, color="#888", linestyle=":", linewidth=1)
    axis.set_yticks(range(place), labels)
    axis.invert_yaxis()
    axis.set_xlabel("median ms per frame (dotted: 30 frames a second)")
    axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
