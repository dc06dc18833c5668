"""The codec on people it never saw -> rates, errors, pictures: `python -m training.measure_codec HEADS --split test`.

Clips are tracked as in a call, smoothing included, and sent packet by packet through `engine.codec`; errors are against
the tracker's own faces. With `--avatar` (more than one may be given) each person also drives an avatar: the picture
drawn from the decoded face is compared with the picture drawn from the tracked one (LPIPS, VGG16, 256 px), with the
movement taken relatively and absolutely. "Relatively" is to the neutral face of the header at both ends; "each its own"
lets either end find a neutral face in what it has. With `--thin` the lowest rung of `engine.ladder` is measured as a
sender goes by it; what it leaves out is drawn from what lies around it. Means over a person's frames, then over people;
intervals are 95 %, from 10 000 bootstrap draws of people. Headers are counted apart: they are sent once.
"""

from __future__ import annotations

import argparse
import bisect
import json
import logging
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from engine import avatar as avatars
from engine import config as configs
from engine.avatar import Avatar
from engine.base import Base, open_base
from engine.codec import DEFAULT, MAX_FRAMES, MAX_PACKET_BYTES, QUALITIES, Decoder, Encoder
from engine.frames import Face, Image, NoFace
from engine.ladder import THIN, Pace
from engine.motion import between, to_head
from engine.renderer import Renderer
from training.basis import tracks
from training.measures import lid_openings, motion_errors
from training.networks.perceptual import LPIPS
from training.tables import interval

logger = logging.getLogger(__name__)

FPS = 25
ROOM_S = 0.06
EYEBALL_CM = 1.2
"""Radius of the eyeball, in the units of the canonical face."""
SHUT = 12.0
"""Lids nearer than this share of the eye's width, %, hide the iris."""
STRETCH, SETTLING = 30, 10
"""Frames drawn in a row, and how many of them before the first that is measured."""

Scores = dict[str, float]
Clip = Sequence[Face | NoFace]


def gaze_deg(face: Face) -> NDArray[np.float64]:
    """`[2, 2]`: where each iris stands between the corners of its eye, as a turn of the eyeball."""
    shape = to_head(face).shape
    off = [shape[iris] - (shape[one] + shape[other]) / 2 for one, other, iris in ((33, 133, 468), (362, 263, 473))]
    return np.degrees(np.arcsin(np.clip(np.array(off)[:, :2] / EYEBALL_CM, -1, 1)))


def errors(found: Face, wanted: Face) -> Scores:
    """Landmarks in % of the distance between the outer eye corners, turns in degrees."""
    told = motion_errors(found, wanted)
    scores = {name: told[name] for name in ("points", "lips", "lids", "pose")}
    is_open = np.minimum(lid_openings(found.points), lid_openings(wanted.points)) >= SHUT
    if is_open.any():
        scores["gaze"] = float(np.linalg.norm(gaze_deg(found) - gaze_deg(wanted), axis=1)[is_open].mean())
    unit = np.linalg.norm(wanted.points[33] - wanted.points[263])
    scores["points3d"] = float(100 * np.linalg.norm(found.points - wanted.points, axis=1).mean() / unit)
    return scores


class Line:
    """An encoder and a decoder with nothing lost between them; keeps what was sent, and the CPU's seconds."""

    def __init__(self, quality: int = DEFAULT) -> None:
        self._encoder, self._decoder = Encoder(quality), Decoder()
        self._header_id = 0
        self.packets: list[bytes] = []
        self.headers: list[bytes] = []
        self.spent_s = 0.0

    @property
    def neutral(self) -> Face | None:
        return self._decoder.neutral

    def send(self, faces: Sequence[Face | NoFace], most_bytes: int = MAX_PACKET_BYTES) -> list[Face | NoFace]:
        """What arrives of the newest of them, as many as went; a header arrives before the packet that needs it."""
        before_s = time.thread_time()
        packet = self._encoder.encode(faces, most_bytes)
        if self._encoder.header_id != self._header_id:
            self._header_id = self._encoder.header_id
            self.headers.append(self._encoder.header())
            self._decoder.feed_header(self.headers[-1])
        coded = self._decoder.decode(packet)
        self.spent_s += time.thread_time() - before_s
        self.packets.append(packet)
        return [replace(one.face, time_s=was.time_s) for one, was in zip(coded, faces[-len(coded) :], strict=True)]

    def cost(self, span_s: float, frames: int) -> Scores:
        return {
            "kbit/s": sum(map(len, self.packets)) * 8e-3 / span_s,
            "packets/s": len(self.packets) / span_s,
            "faces/s": frames / span_s,
            "header_bytes": sum(map(len, self.headers)) / max(len(self.headers), 1),
            "headers": len(self.headers),
            "cpu_ms": 1000 * self.spent_s / frames,
        }


def sent(clip: Clip, quality: int, packet_frames: int) -> tuple[list[Face | NoFace], Scores, Face | None]:
    """What arrives of a clip, what it cost, and the neutral face."""
    line = Line(quality)
    arrived = [
        face for start in range(0, len(clip), packet_frames) for face in line.send(clip[start : start + packet_frames])
    ]
    return arrived, line.cost(len(clip) / FPS, len(clip)), line.neutral


def sent_thin(clip: Clip) -> tuple[list[Face | NoFace], Scores, Line]:
    """The same on the lowest rung, beside voice packets of `ROOM_S`; what arrives has what lies between, too."""
    line, pace = Line(), Pace()
    got: dict[int, Face | NoFace] = {}
    begun_s, now_s, at = clip[0].time_s, clip[0].time_s, 0
    while at < len(clip):
        now_s += ROOM_S
        come = [number for number in range(at, len(clip)) if clip[number].time_s <= now_s]
        most_bytes = pace.most_bytes(THIN, now_s) if come else 0
        if not most_bytes:
            continue
        at = come[-1] + 1
        chosen = pace.chosen(THIN, [clip[number] for number in come[-MAX_FRAMES:]])
        number_of = {clip[number].time_s: number for number in come}
        got |= {number_of[face.time_s]: face for face in line.send(chosen, most_bytes)}
        pace.sent(THIN, len(line.packets[-1]), chosen[-1].time_s, now_s)
    numbers = sorted(got)
    arrived = [drawn_between(got, numbers, number, face.time_s) for number, face in enumerate(clip)]
    return arrived, line.cost(now_s - begun_s, len(got)), line


def drawn_between(got: dict[int, Face | NoFace], numbers: Sequence[int], number: int, time_s: float) -> Face | NoFace:
    """Frame `number`: as it came, or what lies between those around it."""
    place = bisect.bisect_left(numbers, number)
    if place == len(numbers) or (place == 0 and numbers[0] != number):
        return NoFace(time_s)
    after = got[numbers[place]]
    before = got[numbers[place - 1]] if numbers[place] != number else after
    if not isinstance(before, Face) or not isinstance(after, Face) or before is after:
        return replace(after, time_s=time_s)
    share = (number - numbers[place - 1]) / (numbers[place] - numbers[place - 1])
    head = between(to_head(before), to_head(after), share)
    return Face(head.to_picture(), head.rotation, head.translation, head.scale, 1.0, after.size_px, time_s)


def mean(scores: Iterable[Scores]) -> Scores:
    """Of each name, over those that have it."""
    columns: dict[str, list[float]] = defaultdict(list)
    for one in scores:
        for name, value in one.items():
            columns[name].append(value)
    return {name: float(np.mean(values)) for name, values in columns.items()}


def measure_rates(people: dict[str, list[Clip]], quality: int | None, packet_frames: int = 0) -> list[Scores]:
    """One row a person; without a quality of the lowest rung."""
    rows = []
    for clips in people.values():
        told: list[Scores] = []
        for clip in clips:
            arrived, cost, _ = sent_thin(clip) if quality is None else sent(clip, quality, packet_frames)
            pairs = zip(arrived[::3], clip[::3], strict=True)
            off = [errors(a, b) for a, b in pairs if isinstance(a, Face) and isinstance(b, Face)]
            told.append(cost | mean(off))
        rows.append(mean(told))
    return rows


def pictures(renderer: Renderer, clip: Clip, neutral: Face | None) -> list[Image]:
    """Drawn relative to `neutral`, or to the most neutral face of the clip itself."""
    if neutral is None:
        renderer.retarget.finder.prime([face for face in clip if isinstance(face, Face)])
    else:
        renderer.retarget.finder.pin(neutral)
    return [renderer.draw(face).rgb.copy() for face in clip]


def measure_pictures(
    people: dict[str, list[Clip]], chosen: Sequence[Avatar], base: Base, quality: int, packet_frames: int
) -> dict[str, list[Scores]]:
    """For each motion one row a person; each person drives one of the avatars."""
    lpips = LPIPS("vgg").eval()
    shipped = configs.load()
    rows: dict[str, list[Scores]] = defaultdict(list)
    for number, clips in enumerate(people.values()):
        arrived, _, neutral = sent(clips[0], quality, packet_frames)
        start = max(0, (len(arrived) - STRETCH) // 2)
        for motion in ("relative", "absolute", "each its own"):
            how = "absolute" if motion == "absolute" else "relative"
            config = replace(shipped, render=replace(shipped.render, size_px=256, motion=how))
            known = None if motion == "each its own" else neutral
            drawn = [
                pictures(Renderer(chosen[number % len(chosen)], base, config), clip[start : start + STRETCH], known)
                for clip in (arrived, clips[0])
            ]
            ours, theirs = (
                torch.from_numpy(np.stack(rgb[SETTLING::5])).permute(0, 3, 1, 2).float() / 127.5 - 1 for rgb in drawn
            )
            with torch.inference_mode():
                apart = lpips(ours, theirs)
            rows[motion].append({"lpips": float(apart.mean()), "lpips_worst": float(apart.max())})
        logger.info("%d of %d people drawn", number + 1, len(people))
    return rows


def cell(rows: Sequence[Scores], name: str, digits: int) -> str:
    values = [row[name] for row in rows if name in row]
    low, high = interval(values)
    return f"{np.mean(values):.{digits}f} ({low:.{digits}f}…{high:.{digits}f})"


COLUMNS = {"kbit/s": 2, "points": 2, "lips": 2, "lids": 2, "pose": 2, "gaze": 2, "points3d": 2, "cpu_ms": 2}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m training.measure_codec", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("heads", type=Path, help="folder of head clips with index.tsv")
    parser.add_argument("--split", default="test")
    parser.add_argument("--tracks", type=Path, default=Path("runs/tracks"), help="where tracked clips are kept")
    parser.add_argument("--people", type=int, default=1000)
    parser.add_argument("--frames", type=int, default=400, help="of each clip")
    parser.add_argument("--clips", type=int, default=2, help="of each person")
    parser.add_argument("--qualities", type=int, nargs="*", default=list(range(QUALITIES)))
    parser.add_argument("--packet-frames", type=int, nargs="+", default=[1, 2, 5, 10])
    parser.add_argument("--thin", action="store_true", help="measure the lowest rung as well")
    parser.add_argument("--avatar", type=Path, nargs="*", default=[], help="avatar files to draw")
    parser.add_argument("--picture-quality", type=int, default=DEFAULT)
    parser.add_argument("--out", type=Path, help="a JSON file for all of it")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    people: dict[str, list[Clip]] = defaultdict(list)
    for person, clip in tracks(
        options.heads, options.tracks, options.split, options.people, options.frames, options.clips
    ):
        people[person].append(clip)
    told: dict[str, list[Scores]] = {}
    print(f"| quality | frames | {' | '.join(COLUMNS)} | header |\n|{'---|' * (len(COLUMNS) + 3)}")
    for quality in options.qualities:
        for packet_frames in options.packet_frames:
            rows = told[f"{quality}/{packet_frames}"] = measure_rates(people, quality, packet_frames)
            cells = [cell(rows, name, digits) for name, digits in COLUMNS.items()]
            header = f"{mean(rows)['headers']:.1f} x {mean(rows)['header_bytes']:.0f} bytes"
            print(f"| {quality} | {packet_frames} | {' | '.join(cells)} | {header} |", flush=True)
    if options.thin:
        rows = told["thin"] = measure_rates(people, None)
        columns = {"faces/s": 1, "packets/s": 1} | COLUMNS
        print("thin: " + ", ".join(f"{name} {cell(rows, name, digits)}" for name, digits in columns.items()))
        print(f"at most {max(row['kbit/s'] for row in rows):.2f} kbit/s for one of them", flush=True)
    if options.avatar:
        base = open_base()
        chosen = [avatars.load(path, base.sha256) for path in options.avatar]
        for motion, rows in measure_pictures(people, chosen, base, options.picture_quality, 2).items():
            told[f"lpips/{motion}"] = rows
            print(f"LPIPS, quality {options.picture_quality}, 2 frames, {motion}: {cell(rows, 'lpips', 4)}", flush=True)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(told, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
