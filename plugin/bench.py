"""`understudy bench`: what this machine reaches, measured side by side in one run. A table, a JSON file, a picture.

Frames with a face in them are needed to measure the tracker: they are drawn first, by the avatar itself. Every size and
precision is measured in turns, a block of frames each, so that a machine that is busy for a while slows all of them
alike. Once the loop runs stage after stage, once with the tracker in a thread of its own, as a call does it.
"""

from __future__ import annotations

import gc
import json
import os
import platform
import queue
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from engine import avatar as avatars
from engine.avatar import Avatar
from engine.backends import Backend, Tensors, UnavailableError
from engine.backends.openvino import OpenVino, core, has_bf16
from engine.base import Base, open_base
from engine.compositor import to_i420
from engine.config import Config, load
from engine.frames import Face, Frame, Image, NoFace
from engine.renderer import Renderer
from engine.tracker import Smoother, Tracker
from plugin import demo as demos
from plugin import roofline
from plugin.compile import compile_avatar
from plugin.meter import Meter, rss_mb
from plugin.render import read_faces, with_options

Device = Literal["cpu", "cuda"]
Precision = Literal["auto", "int8", "bf16", "f32"]

SIZES_PX = (256, 512, 720)
_BLOCKS, _BLOCK = 6, 30
_LONG = 10_000
_PARITY_FRAMES = 50


def bench_avatar(out: Path, base: Base, config: Config) -> tuple[Avatar, Path]:
    """The demo's person, not fine-tuned (it costs the same to draw); kept while the base is the same."""
    path = out / "home" / "avatars" / "bench.avatar"
    os.environ["UNDERSTUDY_HOME"] = str((out / "home").absolute())
    if path.is_file():
        try:
            return avatars.load(path, base.sha256), path
        except avatars.AvatarError:
            path.unlink()
    from training.enrol import enrol

    untuned = replace(config, enrol=replace(config.enrol, tune_s=0.0))
    photos = demos.photos_of(demos.people()[0])[: demos.ENROLLED]
    enrol(photos, "bench", base, untuned, lambda stage, done, total: None)
    return avatars.load(path, base.sha256), path


class _Timed:
    """A backend that tells how long it takes."""

    def __init__(self, backend: Backend, meter: Meter, stage: str) -> None:
        self._backend, self._meter, self._stage = backend, meter, stage
        self.inputs = backend.inputs

    def describe(self) -> str:
        return self._backend.describe()

    def set(self, inputs: Tensors) -> None:
        self._backend.set(inputs)

    def run(self, inputs: Tensors) -> dict[str, NDArray[np.generic]]:
        with self._meter.stage(self._stage):
            return self._backend.run(inputs)


def precisions(base: Base) -> list[Precision]:
    """What this processor computes the base in, the one that "auto" takes first."""
    able: list[Precision] = ["int8"] if base.ranges else []
    if has_bf16():
        able.append("bf16")
    return [*able, "f32"]


def _renderer(
    avatar: Avatar, base: Base, config: Config, size: int, precision: Precision, device: Device = "cpu"
) -> Renderer:
    engine = replace(config.engine, device=device, precision=precision)
    renderer = Renderer(avatar, base, replace(with_options(config, size_px=size), engine=engine))
    renderer.warm_up()
    return renderer


class Eyes:
    """Tracker and smoother of one stream."""

    def __init__(self, tracker: Tracker, config: Config) -> None:
        self._tracker, self._smoother = tracker, Smoother.from_config(config.tracker)

    def __call__(self, frame: Frame) -> Face | NoFace:
        face = self._tracker.track(frame)
        return self._smoother.smooth(face) if isinstance(face, Face) else face


def _loop(frames: Iterable[Frame], eyes: Eyes, renderer: Renderer, meter: Meter, name: str) -> None:
    """Camera picture in, I420 out: the whole of what a call runs per frame, one stage after the other."""
    for frame in frames:
        began = time.perf_counter()
        with meter.stage("tracker"):
            face = eyes(frame)
        with meter.stage(f"draw {name}"):
            picture = renderer.draw(face)
        with meter.stage(f"i420 {name}"):
            to_i420(picture.rgb)
        meter.add(f"loop {name}", (time.perf_counter() - began) * 1e3)


def pipelined(
    frames: Sequence[Frame], eyes: Callable[[Frame], Face | NoFace], draw: Callable[[Face | NoFace], None]
) -> tuple[float, float]:
    """The same with `eyes` in a thread of its own, one frame ahead and none dropped.

    -> frames per second, and the median milliseconds from taking a frame up to having drawn it.
    """
    seen: queue.Queue[tuple[float, Face | NoFace] | None] = queue.Queue(maxsize=1)

    def look() -> None:
        try:
            for frame in frames:
                taken = time.perf_counter()
                seen.put((taken, eyes(frame)))
        finally:
            seen.put(None)

    waited_ms: list[float] = []
    with ThreadPoolExecutor(1, "tracker") as pool:
        began = time.perf_counter()
        looking = pool.submit(look)
        while (one := seen.get()) is not None:
            draw(one[1])
            waited_ms.append((time.perf_counter() - one[0]) * 1e3)
        looking.result()  # whatever went wrong there is raised here
    return len(waited_ms) / (time.perf_counter() - began), float(np.median(waited_ms))


def as_webcam(rgb: Image) -> Image:
    """The avatar as a webcam would see it: 480 px high, in a 640 x 480 frame."""
    shot = cv2.resize(rgb, (480, 480), interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.copyMakeBorder(shot, 0, 0, 80, 80, cv2.BORDER_REPLICATE), np.uint8)


def _webcam_frames(renderer: Renderer, count: int) -> list[Frame]:
    faces, fps = read_faces(demos.ASSETS / "talking.npz")
    return [Frame(as_webcam(renderer.draw(faces[number % len(faces)]).rgb), number / fps) for number in range(count)]


def _later(frames: Sequence[Frame], begin_s: float, count: int) -> Iterable[Frame]:
    """The same pictures over and over, at times that go on."""
    return (Frame(frames[number % len(frames)].rgb, begin_s + number / 25) for number in range(count))


def measure(
    avatar: Avatar,
    base: Base,
    config: Config,
    sizes: Sequence[int] = SIZES_PX,
    blocks: int = _BLOCKS,
    block: int = _BLOCK,
    long_run: int = _LONG,
) -> dict[str, Any]:
    """Everything but start-up, parity and the machine's ceiling, on the cores this process may use."""
    best, *slower = precisions(base)
    renderers, built_s, notes = {}, {}, []
    wanted: list[tuple[str, int, Precision, Device]] = [
        *((f"{size} {best}", size, best, "cpu") for size in sizes),
        *((f"{sizes[0]} {one}", sizes[0], one, "cpu") for one in slower),
        *((f"{size} card", size, "auto", "cuda") for size in sizes),
    ]
    for name, size, precision, device in wanted:
        began = time.perf_counter()
        try:
            renderers[name] = _renderer(avatar, base, config, size, precision, device)
        except UnavailableError as error:
            notes.append(str(error))
            break
        built_s[name] = time.perf_counter() - began
    frames = _webcam_frames(renderers[f"{sizes[-1]} {best}"], blocks * block)
    meter = Meter()
    told: dict[str, Any] = {"backends": {name: one.describe() for name, one in renderers.items()}, "notes": notes}
    told["built_s"] = built_s
    with Tracker.from_config(config.tracker) as tracker:
        eyes = {name: Eyes(tracker, config) for name in renderers}
        for name, renderer in renderers.items():
            _loop(frames[:block], eyes[name], renderer, Meter(), name)
            renderer.generator.backend = _Timed(renderer.generator.backend, meter, f"generator {name}")
        for turn in range(blocks):
            piece = frames[turn * block : (turn + 1) * block]
            for name, renderer in renderers.items():
                _loop(_later(piece, 1e3 + turn * 10, block), eyes[name], renderer, meter, name)
        told["stages"] = meter.summary()
        told["fps"] = {name: 1e3 / float(np.median(meter.spent(f"loop {name}"))) for name in renderers}
        told["piped"] = {}
        for name, renderer in renderers.items():

            def draw(face: Face | NoFace, renderer: Renderer = renderer) -> None:
                to_i420(renderer.draw(face).rgb)

            runs = [pipelined(list(_later(frames, begin_s, 2 * block)), eyes[name], draw) for begin_s in (2e3, 3e3)]
            fps, waited_ms = max(runs)
            told["piped"][name] = {"fps": fps, "latency_ms": waited_ms}
        name = f"{sizes[0]} {best}"
        before_mb = rss_mb()
        _loop(_later(frames, 1e5, long_run), eyes[name], renderers[name], Meter(), name)
        told["memory"] = {"frames": long_run, "before_mb": before_mb, "after_mb": rss_mb()}
    told["cores"] = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    other = _renderer(avatar, base, config, sizes[0], best)
    told["switch_ms"] = _switch_ms(renderers[name], other)
    told["memory"]["python_growth_kb"] = allocated_kb(other, long_run)
    return told


def _switch_ms(shown: Renderer, other: Renderer) -> float:
    """The longest that the first picture of another avatar took that was open already."""
    faces, _ = read_faces(demos.ASSETS / "talking.npz")
    longest = 0.0
    for number in range(10):
        shown.draw(replace(faces[number], time_s=1e6 + number))
        began = time.perf_counter()
        other.draw(replace(faces[number], time_s=1e6 + number))
        longest = max(longest, (time.perf_counter() - began) * 1e3)
        shown, other = other, shown
    return longest


def allocated_kb(renderer: Renderer, frames: int) -> float:
    """How much more Python holds after drawing that many frames than after the first hundred, kilobytes."""
    faces, fps = read_faces(demos.ASSETS / "talking.npz")

    def draw(begin: int, end: int) -> None:
        for number in range(begin, end):
            renderer.draw(replace(faces[number % len(faces)], time_s=1e7 + number / fps))
        gc.collect()

    tracemalloc.start()
    try:
        draw(0, 100)
        before = tracemalloc.get_traced_memory()[0]
        draw(100, 100 + frames)
        return (tracemalloc.get_traced_memory()[0] - before) / 1e3
    finally:
        tracemalloc.stop()


def _roofline(avatar: Avatar, base: Base, config: Config, told: dict[str, Any]) -> dict[str, Any]:
    """Operations and bytes of one frame beside the machine's ceiling; `told` as `measure` gives it."""
    size, able = SIZES_PX[0], precisions(base)
    limit = roofline.ceiling(able, int(told["cores"]))
    cost = roofline.gflop(core().read_model(str(base.processor)))
    rows = {}
    for precision in able:
        backend = _renderer(avatar, base, config, size, precision).generator.backend
        assert isinstance(backend, OpenVino), "so it was asked for"
        spent_ms = told["stages"][f"generator {size} {precision}"]["median_ms"]
        rows[precision] = {
            "gflop": cost,
            "megabytes": roofline.megabytes(backend.running()),
            "ms": spent_ms,
            "gflop_per_s": cost / spent_ms * 1e3,
            "share_of_ceiling": cost / spent_ms * 1e3 / limit.gflop_per_s[precision],
        }
    return {"ceiling": asdict(limit), "frame": rows}


def _parity(avatar: Avatar, base: Base, config: Config) -> dict[str, Any]:
    """Every precision against torch, on landmarks of a real person talking."""
    from training import parity
    from training.fetch import FetchError

    try:
        perceptual, note = parity.lpips(), ""
    except FetchError as error:
        perceptual, note = None, f"LPIPS was not measured: {error}"
    faces, _ = read_faces(demos.ASSETS / "talking.npz")
    size = SIZES_PX[0]
    reference = _renderer(avatar, base, config, size, "f32")
    reference.generator.draw_with(parity.TorchBackend.of(avatar, base))
    others = {str(one): _renderer(avatar, base, config, size, one) for one in precisions(base)}
    with Tracker.from_config(config.tracker, video=False) as tracker:
        step = max(len(faces) // _PARITY_FRAMES, 1)
        found = parity.measure(reference, others, faces[::step][:_PARITY_FRAMES], perceptual, tracker)
    return {"rows": {name: asdict(one) | {"holds": one.holds} for name, one in found.items()}, "note": note}


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


def _compiled(avatar: Avatar, base: Base, config: Config) -> list[str]:
    """A line for each engine that can be compiled here, with its seconds; or why none can."""
    try:
        return list(compile_avatar(avatar, base, config, SIZES_PX, ""))
    except UnavailableError as error:
        return [str(error)]


def bench(out: Path, config_path: Path | None) -> None:
    """Measure on every core and on one; write `bench.json` and `bench.png` into `out`, print the table."""
    out.mkdir(parents=True, exist_ok=True)
    base, config = open_base(), load(config_path)
    avatar, path = bench_avatar(out, base, config)
    whole = measure(avatar, base, config)
    told = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "base": base.sha256,
        "all cores": whole,
        "one core": _on_one_core(out, config_path) if hasattr(os, "sched_setaffinity") else None,
        "start": _first_frame_s(path, out),
        "roofline": _roofline(avatar, base, config, whole),
        "parity": _parity(avatar, base, config),
        "TensorRT": _compiled(avatar, base, config),
    }
    (out / "bench.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    _picture(told, out / "bench.png")
    print(_table(told))


def _on_one_core(out: Path, config_path: Path | None) -> dict[str, Any]:
    """The same in a process that may use one core only."""
    code = (
        "import os, sys, json; from pathlib import Path; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from plugin import bench; from engine.base import open_base; from engine.config import load\n"
        "config = load(Path(sys.argv[2]) if sys.argv[2] else None); base = open_base()\n"
        "avatar, _ = bench.bench_avatar(Path(sys.argv[1]), base, config)\n"
        "print(json.dumps(bench.measure(avatar, base, config, long_run=0)))"
    )
    command = [sys.executable, "-c", code, str(out), str(config_path or "")]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def _runs(told: dict[str, Any]) -> list[dict[str, Any]]:
    return [told[run] for run in ("all cores", "one core") if told[run] is not None]


def _table(told: dict[str, Any]) -> str:
    whole = told["all cores"]
    lines = [told["machine"], *(f"{name}: {one}" for name, one in whole["backends"].items()), *whole["notes"]]
    lines.append(f"{'stage':<22}{'cores':>6}{'median ms':>11}{'p95 ms':>9}{'p95/median':>12}")
    for run in _runs(told):
        for name, one in run["stages"].items():
            ratio = one["p95_ms"] / one["median_ms"]
            lines.append(f"{name:<22}{run['cores']:>6}{one['median_ms']:>11.2f}{one['p95_ms']:>9.2f}{ratio:>12.2f}")
        for name, fps in run["fps"].items():
            piped = run["piped"][name]
            lines.append(
                f"whole loop {name} on {run['cores']} core(s): {fps:.0f} fps one after the other; with the tracker in "
                f"its own thread {piped['fps']:.0f} fps, {piped['latency_ms']:.1f} ms from camera to picture"
            )
    built = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in whole["built_s"].items())
    lines += [f"graphs compiled and warmed up: {built}", *(f"TensorRT: {one}" for one in told["TensorRT"])]
    memory = whole["memory"]
    lines.append(
        f"memory: {memory['before_mb']:.0f} MB, after {memory['frames']} frames {memory['after_mb']:.0f} MB; Python "
        f"grew by {memory['python_growth_kb']:.1f} kB; start to first frame: {told['start']['first_frame_s']:.2f} s; "
        f"another open avatar after {whole['switch_ms']:.0f} ms"
    )
    limit = told["roofline"]["ceiling"]
    for name, one in told["roofline"]["frame"].items():
        lines.append(
            f"{name}: {one['gflop']:.2f} GFLOP and {one['megabytes']:.0f} MB a frame, {one['gflop_per_s']:.0f} GFLOP/s,"
            f" {100 * one['share_of_ceiling']:.0f} % of the measured {limit['gflop_per_s'][name]:.0f}"
            f" ({limit['gigabyte_per_s']:.0f} GB/s)"
        )
    for name, one in told["parity"]["rows"].items():
        seen = "" if one["lpips"] is None else f", LPIPS {one['lpips']:.4f} (worst {one['worst_lpips']:.4f})"
        drift = "" if one["drift"] is None else f", landmarks {one['drift']:.3f} % off"
        lines.append(
            f"{name} against torch f32, {one['frames']} frames: mean {one['mean_levels']:.3f} and at most "
            f"{one['max_levels']:.0f} levels{seen}{drift}: {'holds' if one['holds'] else 'DOES NOT HOLD'}"
        )
    if told["parity"]["note"]:
        lines.append(told["parity"]["note"])
    return "\n".join(lines)


def _picture(told: dict[str, Any], path: Path) -> None:
    """Stacked bars: where the milliseconds of a frame go, by size, precision and number of cores."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [(run, name) for run in _runs(told) for name in run["fps"]]
    figure, axis = pyplot.subplots(figsize=(9, 0.42 * len(rows) + 1.4))
    parts = {"tracker": "#7aa6c2", "generator": "#d98c5f", "maps and composition": "#e3c16f", "I420": "#8fb58a"}
    for place, (run, name) in enumerate(rows):
        stages = run["stages"]
        drawn, network = stages[f"draw {name}"]["median_ms"], stages[f"generator {name}"]["median_ms"]
        widths = (stages["tracker"]["median_ms"], network, max(drawn - network, 0), stages[f"i420 {name}"]["median_ms"])
        left = 0.0
        for width, (label, colour) in zip(widths, parts.items(), strict=True):
            axis.barh(place, width, left=left, color=colour, label=label if place == 0 else None)
            left += width
        fps, piped = run["fps"][name], run["piped"][name]["fps"]
        axis.text(left, place, f" {fps:.0f} fps, {piped:.0f} in two threads", va="center")
    for fps in (60, 30):
        axis.axvline(1000 / fps, color="#888", linestyle=":", linewidth=1)
    axis.set_yticks(range(len(rows)), [f"{name}, {run['cores']} core(s)" for run, name in rows])
    axis.invert_yaxis()
    axis.set_xlim(right=axis.get_xlim()[1] * 1.3)
    axis.set_xlabel("median ms per frame (dotted: 60 and 30 frames a second)")
    axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4, frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
