"""`python -m plugin.bench_camera`: glass to glass of the live loop on this machine. A table, a JSON file, a picture.

The demo's person, not fine-tuned, is driven by a clip of herself, which plays as a camera at 30 pictures a second; the
virtual camera is left out (it costs about a millisecond more, see `send` of a real run). The loop is a process of its
own, so that start-up, CPU time and memory are those of `understudy camera`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from engine.base import open_base
from engine.config import load
from engine.frames import Frame
from engine.renderer import Renderer
from plugin import demo as demos
from plugin.bench import as_webcam, bench_avatar
from plugin.meter import rss_mb
from plugin.render import read_faces, with_options
from plugin.sinks import FileSink

FPS = 30.0
_CLIP_S = 20.0


def driving_clip(out: Path) -> tuple[str, Path]:
    """The avatar's name and a 640 x 480 clip of her talking, 30 pictures a second; kept between runs."""
    base, config = open_base(), load()
    avatar, _ = bench_avatar(out, base, config)
    clip = out / f"driving-{base.sha256[:8]}.mp4"
    if not clip.is_file():
        faces, _ = read_faces(demos.ASSETS / "talking.npz")
        renderer = Renderer(avatar, base, with_options(config, size_px=512, motion="relative"))
        with FileSink(clip, (640, 480), FPS) as sink:
            for number in range(round(_CLIP_S * FPS)):
                # There and back, so that the clip can start again without a jump.
                place = number % (2 * len(faces) - 2)
                face = faces[min(place, 2 * len(faces) - 2 - place)]
                sink.send(Frame(as_webcam(renderer.draw(face).rgb), number / FPS))
    return avatar.name, clip


def run(avatar: str, clip: Path, seconds: float, size: str, began_s: float) -> dict[str, object]:
    """The loop itself, in this process: a row a second, and what came of it. `began_s` is the start, `time.time()`."""
    from plugin.camera import Live
    from plugin.everyday import configured
    from plugin.puppet import EnrolledWardrobe
    from plugin.sinks import NoCamera
    from plugin.webcam import ClipCamera

    config = configured(None, "", avatar, None, size, None)
    sink = NoCamera(config.camera.picture_px, config.camera.fps)
    rows: list[dict[str, object]] = []
    first_s = None
    with Live(config, ClipCamera(clip), sink, EnrolledWardrobe(config, avatar)) as live:
        live.set(webcam=True)
        while live.status().fps == 0 and time.time() - began_s < 60:
            time.sleep(0.01)
        first_s = time.time() - began_s
        time.sleep(3)  # the first seconds are those of caches and of growing memory
        cpu, wall, count = time.process_time(), time.monotonic(), sink.count
        while (passed_s := time.monotonic() - wall) < seconds:
            time.sleep(1)
            status = live.status()
            rows.append(
                {
                    "at_s": round(passed_s, 1),
                    "fps": status.fps,
                    "p50_ms": status.glass_p50_ms,
                    "p95_ms": status.glass_p95_ms,
                    "stages_ms": status.stages_ms,
                    "queue_ms": status.queue_ms,
                    "memory_mb": rss_mb(),
                }
            )
        passed_s = time.monotonic() - wall
        cores = (time.process_time() - cpu) / passed_s
        status = live.status()
        return {
            "backend": status.backend,
            "size": size,
            "seconds": passed_s,
            "first_live_frame_s": first_s,
            "cores": cores,
            "sent_fps": (sink.count - count) / passed_s,
            "drops": status.drops,
            "rows": rows,
        }


def table(told: dict) -> str:
    """What was measured, for a person to read."""
    rows = told["rows"]
    p50, p95 = (np.array([row[name] for row in rows]) for name in ("p50_ms", "p95_ms"))
    fps, memory = np.array([row["fps"] for row in rows]), [row["memory_mb"] for row in rows]
    stages = {name: np.median([row["stages_ms"][name] for row in rows]) for name in rows[-1]["stages_ms"]}
    waits = {name: np.median([row["queue_ms"][name] for row in rows]) for name in rows[-1]["queue_ms"]}
    lines = [
        f"{told['machine']}; {told['backend']}; {told['size']}, {told['seconds']:.0f} s",
        f"glass to glass   median of p50 {np.median(p50):.0f} ms, of p95 {np.median(p95):.0f} ms, "
        f"worst p95 {p95.max():.0f} ms",
        f"pace             {told['sent_fps']:.1f} pictures a second sent; with news {np.median(fps):.1f}, "
        f"least {fps.min():.1f}; dropped {told['drops']}",
        "stages           " + ", ".join(f"{name} {value:.1f} ms" for name, value in stages.items()),
        "waiting          " + ", ".join(f"{name} {value:.1f} ms" for name, value in waits.items()),
        f"processor        {told['cores']:.2f} cores",
        f"memory           {memory[0]:.0f} MB, at the end {memory[-1]:.0f} MB",
        f"first live frame {told['first_live_frame_s']:.2f} s after the start",
    ]
    return "\n".join(lines)


def picture(told: dict, path: Path) -> None:
    """Glass to glass, pace and memory over time."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = told["rows"]
    at = [row["at_s"] for row in rows]
    figure, (above, middle, below) = pyplot.subplots(3, 1, figsize=(8, 7), sharex=True)
    above.fill_between(at, [row["p50_ms"] for row in rows], [row["p95_ms"] for row in rows], color="#d98c5f", alpha=0.4)
    above.plot(at, [row["p50_ms"] for row in rows], color="#b0603a", label="median (shaded: up to 95 %)")
    above.set_ylabel("glass to glass, ms")
    colours = iter(["#7aa6c2", "#8fb58a", "#b0603a", "#888888"])
    for name in rows[-1]["stages_ms"]:
        middle.plot(at, [row["stages_ms"].get(name, np.nan) for row in rows], label=name, color=next(colours))
    middle.set_ylabel("stages, ms")
    below.plot(at, [row["fps"] for row in rows], color="#4a7d99", label="pictures with news a second")
    below.set_ylabel("pictures a second")
    twin = below.twinx()
    twin.plot(at, [row["memory_mb"] for row in rows], color="#888888", linestyle=":")
    twin.set_ylabel("memory, MB (dotted)")
    twin.set_ylim(0)
    below.set_xlabel("seconds")
    for axis in (above, middle, below):
        axis.set_ylim(0)
        axis.legend(loc="lower left", frameon=False, ncols=4, fontsize=8)
    figure.suptitle(f"{told['size']} from a recorded clip, {told['cores']:.2f} cores of {os.cpu_count()}")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m plugin.bench_camera", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("bench"), help="folder for the results")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--size", default="1280x720")
    parser.add_argument("--inside", nargs=3, metavar=("AVATAR", "CLIP", "BEGAN"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        avatar, clip, began_s = options.inside
        print(json.dumps(run(avatar, Path(clip), options.seconds, options.size, float(began_s))))
        return
    options.out.mkdir(parents=True, exist_ok=True)
    name, clip = driving_clip(options.out)
    command = [sys.executable, "-m", "plugin.bench_camera", "--seconds", str(options.seconds), "--size", options.size]
    command += ["--inside", name, str(clip), str(time.time())]
    environment = os.environ | {"UNDERSTUDY_HOME": str((options.out / "home").absolute())}
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    told = json.loads(done.stdout.splitlines()[-1])
    told["machine"] = f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}"
    (options.out / "camera.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    picture(told, options.out / "camera.png")
    print(table(told))


if __name__ == "__main__":
    main()
