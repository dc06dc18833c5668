"""A face as landmarks beside the same face as video: `python -m training.compare_codecs HEADS --split test`.

Each person is enrolled from eight frames, not fine-tuned, as `training.evaluate` chooses them. A later run of frames of
the same clip is sent as faces (tracked, `engine.codec` at its default quality in packets of 60 ms and once more on the
lowest rung of the ladder, drawn by the renderer with absolute motion), and as video, by encoders set as a call sets
them: no frame waits for a later one, the rate is constant, one key frame. Video gets a ladder of rates; on the low
rungs also a smaller picture and fewer frames a second, as a call would turn to. All pictures are compared with the
frames of the clip at 256 px.

Bits are those of payload, in brackets with headers: of IP, UDP and SRTP (50 bytes a packet) for video in packets of
1200 bytes; for the face as packets of its own and as riders of a voice (plugin/routes.py). The avatar, sent once, is
told apart. "Needs" is the rate at which a ladder crosses our value, between rungs on a logarithmic axis. Written are
`compare.json`, `compare.md`, `compare.png` (the curve) and `pictures/`, which show whoever is in the clips.
`--demo AVATAR` compares on the demo's own performance drawn by an avatar, and writes one picture: nobody real is in it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from av.video.codeccontext import VideoCodecContext

from engine import avatar as avatars
from engine import config as configs
from engine.base import Base, open_base
from engine.config import Config
from engine.frames import Face, Frame, Image, NoFace
from engine.renderer import Renderer
from engine.tracker import Tracker, canonical_face, fit_pose
from training.enrol import MAX_PHOTOS, build
from training.evaluate import means
from training.identity import SFace
from training.measure_codec import Line, sent_thin
from training.measures import Judge
from training.protocol import drivable, frame_times, photo_pools, read_frames, read_index, take_photos
from training.tables import interval

logger = logging.getLogger(__name__)

SIZE_PX = 256
FPS = 25
PACKET_S = 0.06
HEADER_BYTES = 20 + 8 + 12 + 10
"""IPv4, UDP, RTP, and the tag of SRTP."""
MTU_BYTES = 1200
RIDER_BYTES, CARRIER_BYTES = 4, 7
"""What a face packet costs in the padding of a voice's Opus packet, and in one of two bytes of silence."""
SETTLING_FRAMES = 10
OURS = "Understudy"
THIN = "Understudy, thin face"
"""The same on the lowest rung of the ladder."""
MEASURES = {
    "lpips": ("LPIPS ↓", 3),
    "csim": ("CSIM ↑", 3),
    "identity": ("identity ↑", 3),
    "points": ("landmarks % ↓", 2),
    "lips": ("lips % ↓", 2),
}
"""CSIM: ArcFace's cosine to the enrolled photos; identity: to the true frame."""
NEEDED = {"lpips": -1, "csim": 1, "identity": 1, "points": -1}
"""Which way is better."""
TALKING = Path(__file__).parents[1] / "plugin" / "assets" / "demo" / "talking.npz"


@dataclass(frozen=True, slots=True)
class Rung:
    """One way to send a video."""

    kbps: int
    size_px: int = SIZE_PX
    every: int = 1
    """Every how manieth frame is sent; the others show the one before."""

    def __str__(self) -> str:
        return f"{self.kbps} kbit/s, {self.size_px} px, {FPS / self.every:.3g} fps"


LADDER = (
    *(Rung(3, 96, 3), Rung(6, 128, 3), Rung(10, 128), Rung(20, 128)),
    *(Rung(32), Rung(64), Rung(128), Rung(256)),
)


def encoder_options(name: str, kbps: int) -> dict[str, str]:
    """Settings of a call: nothing looked ahead at, constant rate within a second, one key frame."""
    if name == "libx264":
        rate = f"{kbps}k"
        return {"preset": "medium", "tune": "zerolatency", "maxrate": rate, "bufsize": rate, "g": "100000"}
    if name == "libvpx-vp9":
        rate = f"{kbps}k"
        constant = {"minrate": rate, "maxrate": rate, "bufsize": rate, "g": "100000", "lag-in-frames": "0"}
        return {"deadline": "realtime", "cpu-used": "5", "aq-mode": "3", **constant}
    return {"preset": "10", "g": "100000", "svtav1-params": "pred-struct=1:rc=2:lookahead=0"}


VIDEO = {"libx264": ("x264", "h264"), "libvpx-vp9": ("VP9", "vp9"), "libsvtav1": ("AV1", "libdav1d")}
"""Encoder: what it is called in the tables, and the decoder."""


@dataclass(frozen=True, slots=True, eq=False)
class Sent:
    """What arrived, frame by frame, and the bytes of each packet."""

    pictures: list[Image]
    packets: list[int]

    def kbps(self, seconds: float) -> float:
        return sum(self.packets) * 8e-3 / seconds

    def wire_kbps(self, seconds: float) -> float:
        split = sum(HEADER_BYTES * math.ceil(size / MTU_BYTES) for size in self.packets)
        return (sum(self.packets) + split) * 8e-3 / seconds


def as_video(pictures: Sequence[Image], name: str, rung: Rung) -> Sent:
    """Through an encoder and a decoder, at the rung's size and rate. Raises `ValueError` for a lost frame."""
    codec = av.CodecContext.create(name, "w")
    assert isinstance(codec, VideoCodecContext)
    codec.width = codec.height = rung.size_px
    codec.pix_fmt = "yuv420p"
    codec.framerate = Fraction(FPS, rung.every)
    codec.time_base = 1 / codec.framerate
    codec.bit_rate = rung.kbps * 1000
    codec.thread_count = 1
    codec.options = encoder_options(name, rung.kbps)
    shown = pictures[:: rung.every]
    packets: list[av.Packet] = []
    for number, rgb in enumerate(shown):
        small = np.asarray(cv2.resize(rgb, (rung.size_px, rung.size_px), interpolation=cv2.INTER_AREA), np.uint8)
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(small), format="rgb24").reformat(format="yuv420p")
        frame.pts = number
        packets += codec.encode(frame)
    packets += codec.encode(None)
    decoder = av.CodecContext.create(VIDEO[name][1], "r")
    assert isinstance(decoder, VideoCodecContext)
    decoded: dict[int, Image] = {}
    for packet in [*packets, None]:
        for frame in decoder.decode(packet):
            rgb = np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)
            if rung.size_px != SIZE_PX:
                rgb = np.asarray(cv2.resize(rgb, (SIZE_PX, SIZE_PX), interpolation=cv2.INTER_CUBIC), np.uint8)
            decoded[len(decoded)] = rgb
    if len(decoded) != len(shown):
        raise ValueError(f"{name} gave {len(decoded)} of {len(shown)} frames at {rung}")
    sizes = [packet.size for packet in packets if packet.size]
    return Sent([decoded[number // rung.every] for number in range(len(pictures))], sizes)


@dataclass(frozen=True, slots=True, eq=False)
class Coded:
    """Faces that arrived, and the bytes of their packets and headers."""

    faces: list[Face | NoFace]
    packets: list[bytes]
    headers: list[bytes]

    def rates_kbps(self, seconds: float) -> dict[str, float]:
        def rate(count: int) -> float:
            return count * 8e-3 / seconds

        payload, count = sum(map(len, self.packets)), len(self.packets)
        riding, alone = payload + RIDER_BYTES * count, payload + (CARRIER_BYTES + HEADER_BYTES) * count
        return {"kbps": rate(payload), "beside_voice_kbps": rate(riding), "wire_kbps": rate(alone)}


def as_faces(faces: Sequence[Face]) -> Coded:
    """Through `engine.codec`, in packets of `PACKET_S`; the headers arrive with the packets that follow them."""
    line = Line()
    groups = itertools.groupby(faces, key=lambda face: int((face.time_s + 1e-6) / PACKET_S))
    arrived = [face for _, group in groups for face in line.send(list(group))]
    return Coded(arrived, line.packets, line.headers)


def as_thin_faces(faces: Sequence[Face]) -> Coded:
    """On the lowest rung of `engine.ladder`, fewer faces, with what the receiver draws between them."""
    arrived, _, line = sent_thin(faces)
    return Coded(arrived, line.packets, line.headers)


# --- one person ---


def free_run(clips: Sequence[Path], taken: Sequence[tuple[int, int]], frames: int) -> tuple[int, int, int]:
    """Clip, first frame and count of the longest run that is far from all photos, at most `frames` of it."""
    best = (0, 0, 0)
    for clip, mask in enumerate(drivable([frame_times(path) for path in clips], taken)):
        for allowed, run in itertools.groupby(enumerate(mask), key=lambda one: bool(one[1])):
            numbers = [number for number, _ in run]
            if allowed and len(numbers) > best[2]:
                best = clip, numbers[0], len(numbers)
    clip, start, count = best
    return clip, start, min(count, frames)


def track_all(frames: Sequence[Frame], config: Config) -> list[Face]:
    """The driver's faces, times counted from the first. Raises `ValueError` where one is not found."""
    with Tracker.from_config(config.tracker) as tracker:
        found = [tracker.track(frame) for frame in frames]
    faces = [replace(face, time_s=1.0 + number / FPS) for number, face in enumerate(found) if isinstance(face, Face)]
    if len(faces) < len(frames):
        raise ValueError(f"a face in {len(faces)} of {len(frames)} frames")
    return faces


def draw(renderer: Renderer, faces: Sequence[Face | NoFace]) -> list[Image]:
    return [renderer.draw(face).rgb.copy() for face in faces]


@dataclass(frozen=True, slots=True, eq=False)
class Compared:
    """One person: of each way of sending its rates and scores, and the pictures of one moment."""

    scores: dict[str, dict[str, float]]
    moment: dict[str, Image]


def compare_person(clips: Sequence[Path], base: Base, config: Config, judge: Judge, options: Options) -> Compared:
    """Raises `ValueError` with the reason why somebody is left out."""
    with Tracker(video=False, max_faces=4) as finder:
        taken = take_photos(clips, photo_pools([frame_times(clip) for clip in clips]), finder, SFace())
    if len(taken) < MAX_PHOTOS:
        raise ValueError(f"{len(taken)} photos instead of {MAX_PHOTOS}")
    clip, start, count = free_run(clips, [(one.clip, one.number) for one in taken], round(options.seconds * FPS))
    if count < FPS * 2:
        raise ValueError("no two seconds far enough from the photos")
    frames = [frame for _, frame in sorted(read_frames(clips[clip], range(start, start + count)).items())]
    faces = track_all(frames, config)
    coded = {OURS: as_faces(faces), THIN: as_thin_faces(faces)}
    avatar, _, _ = build([one.photo for one in taken], "compared", base, config, lambda *_: None)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"compared{avatars.SUFFIX}"
        avatars.save(avatar, path)
        avatar_bytes = path.stat().st_size
        stored = avatars.load(path)
        drawn = {name: draw(Renderer(stored, base, config), one.faces) for name, one in coded.items()}
    true = [frame.rgb for frame in frames]
    enrolled = np.stack(
        [judge.identity(one.photo.rgb, one.photo.face.points) for one in taken if one.photo.rgb is not None
         and one.photo.face is not None]
    )  # fmt: skip
    sent, rates = all_ways(true, coded, drawn)
    rates[OURS] |= {"avatar_bytes": avatar_bytes, "header_bytes": sum(map(len, coded[OURS].headers))}
    places = np.linspace(SETTLING_FRAMES, count - 1, options.frames).round().astype(int).tolist()
    kept: dict[str, list[dict[str, float]]] = {name: [] for name in sent}
    for place in places:
        shown = {name: pictures[place] for name, pictures in sent.items()}
        likeness = judge.likeness(true[place], shown, judge.matte(true[place]))
        identity = judge.identity(true[place], faces[place].points)
        for name, picture in shown.items():
            told, _ = judge.face(picture, faces[place], enrolled, identity)
            kept[name].append(likeness[name] | told)
    middle = places[len(places) // 2]
    moment = {"sent": true[middle]} | {name: pictures[middle] for name, pictures in sent.items()}
    return Compared({name: rates[name] | means(scores) for name, scores in kept.items()}, moment)


def all_ways(
    true: Sequence[Image], coded: dict[str, Coded], drawn: dict[str, list[Image]]
) -> tuple[dict[str, list[Image]], dict[str, dict[str, float]]]:
    """Pictures and rates of the face, both ways, and of every rung of every encoder."""
    seconds = len(true) / FPS
    sent, rates = dict(drawn), {name: one.rates_kbps(seconds) for name, one in coded.items()}
    for name, (title, _) in VIDEO.items():
        for rung in LADDER:
            video = as_video(true, name, rung)
            told = f"{title}, {rung}"
            sent[told] = video.pictures
            rates[told] = {"kbps": video.kbps(seconds), "wire_kbps": video.wire_kbps(seconds)}
    return sent, rates


# --- everybody ---


def ladder_of(scores: dict[str, dict[str, float]], title: str) -> list[dict[str, float]]:
    """An encoder's rungs, from the lowest rate that it really took."""
    mine = [told for name, told in scores.items() if name.startswith(f"{title}, ")]
    return sorted(mine, key=lambda told: told["kbps"])


def needed_kbps(ladder: Sequence[dict[str, float]], measure: str, ours: float, better: int) -> float | None:
    """Where a ladder first is as good as `ours`; None where it never is, its lowest rate where it always is."""
    before: dict[str, float] | None = None
    for told in ladder:
        if measure not in told:
            continue
        if better * (told[measure] - ours) >= 0:
            if before is None:
                return told["kbps"]
            share = (ours - before[measure]) / (told[measure] - before[measure])
            return float(before["kbps"] ** (1 - share) * told["kbps"] ** share)
        before = told
    return None


def nearest_rung(scores: dict[str, dict[str, float]], title: str, kbps: float) -> str:
    """The name of an encoder's rung that really took the rate nearest to `kbps`."""
    mine = [name for name in scores if name.startswith(f"{title}, ")]
    return min(mine, key=lambda name: abs(math.log(scores[name]["kbps"] / kbps)))


@dataclass(frozen=True, slots=True)
class Options:
    split: str = "test"
    people: int = 5
    seconds: float = 8.0
    frames: int = 10
    """Measured frames of each person."""
    seed: int = 0


def compare(folder: Path, base: Base, config: Config, out: Path, options: Options) -> dict[str, Any]:
    index = read_index(folder, options.split)
    names = [sorted(index)[place] for place in np.random.default_rng(options.seed).permutation(len(index))]
    people: dict[str, dict[str, dict[str, float]]] = {}
    left_out: dict[str, str] = {}
    told: dict[str, Any] = {}
    judge = Judge()
    (out / "pictures").mkdir(parents=True, exist_ok=True)
    for name in names:
        if len(people) == options.people:
            break
        began_s = time.monotonic()
        try:
            one = compare_person(index[name][:1], base, config, judge, options)
        except ValueError as error:
            left_out[name] = str(error)
            continue
        people[name] = one.scores
        cv2.imwrite(str(out / "pictures" / f"{name}.png"), strip(one)[..., ::-1])
        logger.info("%s, %.0f s: %s", name, time.monotonic() - began_s, one.scores[OURS])
        told = {"options": str(options), "people": people, "left out": left_out, "summary": summary(people)}
        (out / "compare.json").write_text(json.dumps(told, indent=1), encoding="utf-8")
        (out / "compare.md").write_text(markdown(people, left_out), encoding="utf-8")
        curve(people, out / "compare.png")
    judge.close()
    if not people:
        raise ValueError(f"nobody of the split {options.split!r} could be compared: {left_out}")
    return told


def summary(people: dict[str, dict[str, dict[str, float]]]) -> dict[str, Any]:
    """Of each of our ways its numbers, and per encoder: what it needs for our values (median over people), and its
    numbers at the rate nearest to ours."""
    told: dict[str, Any] = {}
    for ours in (OURS, THIN):
        told[ours] = means([scores[ours] for scores in people.values()])
        for title, _ in VIDEO.values():
            nearest = [scores[nearest_rung(scores, title, scores[ours]["kbps"])] for scores in people.values()]
            needs = {measure: needed(people, ours, title, measure) for measure in NEEDED}
            told.setdefault(title, {})[ours] = {"needs": needs, "at our rate": means(nearest)}
    return told


def needed(people: dict[str, dict[str, dict[str, float]]], ours: str, title: str, measure: str) -> dict[str, Any]:
    """What an encoder needs for the value that we reach: kbit/s, times ours, and for how many it is none."""
    rates, ratios, never, always = [], [], 0, 0
    for scores in people.values():
        if measure not in scores[ours]:
            continue
        ladder = ladder_of(scores, title)
        need = needed_kbps(ladder, measure, scores[ours][measure], NEEDED[measure])
        never, always = never + (need is None), always + (need == ladder[0]["kbps"])
        rates.append(math.inf if need is None else need)
        ratios.append(rates[-1] / scores[ours]["kbps"])
    kbps, times = _finite(float(np.median(rates))), _finite(float(np.median(ratios)))
    return {"kbps": kbps, "times": times, "never": never, "always": always}


def _finite(value: float) -> float | None:
    return round(value, 2) if math.isfinite(value) else None


def markdown(people: dict[str, dict[str, dict[str, float]]], left_out: dict[str, str]) -> str:
    """The two tables, and where video wins."""
    told = summary(people)
    heads = " | ".join(title for title, _ in MEASURES.values())
    lines = [
        f"{len(people)} people, {SIZE_PX} px, {FPS} fps, enrolled from {MAX_PHOTOS} frames, not fine-tuned; means.",
        "",
        f"| at about our rate | kbit/s (with headers) | {heads} | no face found |",
        "|" + "---|" * (len(MEASURES) + 3),
    ]
    rows = []
    for name in (OURS, THIN):
        ours = told[name]
        riding = f"{ours['kbps']:.2f} ({ours['beside_voice_kbps']:.2f} beside a voice, {ours['wire_kbps']:.1f} alone)"
        rows.append((name, ours, riding))
    for title, _ in VIDEO.values():
        video = told[title][OURS]["at our rate"]
        rows.append((title, video, f"{video['kbps']:.2f} ({video['wire_kbps']:.1f})"))
    for title, row, rate in rows:
        cells = [f"{row[key]:.{digits}f}" if key in row else "-" for key, (_, digits) in MEASURES.items()]
        lines.append(f"| {title} | {rate} | {' | '.join(cells)} | {row['lost']:.0%} |")
    values = [scores[OURS]["lpips"] for scores in people.values()]
    low, high = interval(values)
    lines += ["", f"Our LPIPS {np.mean(values):.3f} ({low:.3f}…{high:.3f}, 95 % over people). One avatar: "
              f"{told[OURS]['avatar_bytes'] / 1e6:.2f} MB, sent once; headers {told[OURS]['header_bytes']:.0f} "
              "bytes."]  # fmt: skip
    for name in (OURS, THIN):
        heads = " | ".join(MEASURES[key][0][:-2] for key in NEEDED)
        lines += ["", f"| kbit/s needed for what {name} reaches in | {heads} |", "|" + "---|" * (len(NEEDED) + 1)]
        for title, _ in VIDEO.values():
            cells = (_need(told[title][name]["needs"][key], len(people)) for key in NEEDED)
            lines.append(f"| {title} | {' | '.join(cells)} |")
    lines += ["", WHERE_VIDEO_WINS, ""]
    lines += [f"Left out: {name} ({why})" for name, why in left_out.items()]
    return "\n".join(lines) + "\n"


def _need(told: dict[str, Any], people: int) -> str:
    notes = []
    if told["always"]:
        notes.append(f"{told['always']} of {people}: its lowest rate already")
    if told["never"]:
        notes.append(f"{told['never']} of {people}: never on this ladder")
    note = f" ({'; '.join(notes)})" if notes else ""
    return f"{told['kbps']:.1f}, {told['times']:.1f} times ours{note}" if told["kbps"] is not None else f"more{note}"


WHERE_VIDEO_WINS = (
    "Video shows what is there. From about the rates above on it is nearer to the truth in every measure, and at any "
    "rate it shows what a face's landmarks do not hold: hands, props, a second person, a head turned away, clothes, "
    "hair and backgrounds that move, light that changes. It needs no enrolment, and no avatar "
    "sent before the first picture."
)


def curve(people: dict[str, dict[str, dict[str, float]]], path: Path) -> None:
    """LPIPS over the rate: each person thin, the mean of each rung thick, ours as a dot."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(8, 5))
    for (title, _), colour in zip(VIDEO.values(), ("#7aa6c2", "#8fb58a", "#b59ac2"), strict=True):
        for scores in people.values():
            ladder = ladder_of(scores, title)
            axis.plot(
                [one["kbps"] for one in ladder], [one["lpips"] for one in ladder], color=colour, lw=0.5, alpha=0.6
            )
        rungs = [[scores[f"{title}, {rung}"] for scores in people.values()] for rung in LADDER]
        rates = [float(np.exp(np.mean([math.log(one["kbps"]) for one in rung]))) for rung in rungs]
        distances = [float(np.mean([one["lpips"] for one in rung])) for rung in rungs]
        rates, distances = zip(*sorted(zip(rates, distances, strict=True)), strict=True)
        axis.plot(rates, distances, color=colour, lw=2, marker="o", ms=4, label=title)
    for name, colour in ((OURS, "#d98c5f"), (THIN, "#c2554d")):
        ours = [scores[name] for scores in people.values()]
        axis.scatter([one["kbps"] for one in ours], [one["lpips"] for one in ours], s=12, color=colour)
        mean = means(ours)
        axis.scatter([mean["kbps"]], [mean["lpips"]], s=90, color=colour, marker="D", label=name, zorder=3)
    axis.set_xscale("log")
    axis.set_xlabel("kbit/s of payload")
    axis.set_ylabel(f"LPIPS from the true frames, {SIZE_PX} px")
    axis.set_ylim(bottom=0)
    axis.legend(frameon=False)
    axis.grid(alpha=0.3, which="both")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


# --- pictures ---


def strip(one: Compared) -> Image:
    """What was sent, ours, and each encoder at the rate nearest to ours and at four and sixteen times of it."""
    rate = one.scores[OURS]["kbps"]
    rows = []
    for times in (1, 4, 16):
        named = [nearest_rung(one.scores, title, times * rate) for title, _ in VIDEO.values()]
        cells = [captioned(one.moment["sent"], "sent"), captioned(one.moment[OURS], f"{OURS}: {rate:.1f} kbit/s")]
        for name, (title, _) in zip(named, VIDEO.values(), strict=True):
            cells.append(captioned(one.moment[name], f"{title}: {one.scores[name]['kbps']:.1f} kbit/s"))
        rows.append(np.hstack(cells))
    return np.vstack(rows)


def captioned(picture: Image, text: str) -> Image:
    bar = np.full((26, picture.shape[1], 3), 255, np.uint8)
    cv2.putText(bar, text, (6, 18), cv2.FONT_HERSHEY_SIMPLEX, 0.48, (30, 30, 30), 1, cv2.LINE_AA)
    return np.vstack([bar, picture])


def demo_picture(path: Path, base: Base, config: Config, out: Path, seconds: float) -> None:
    """The demo's performance drawn by an avatar is the clip; it is sent as faces and as video."""
    avatar = avatars.load(path, base.sha256)
    with np.load(TALKING, allow_pickle=False) as stored:
        points, (width, height) = stored["points"].astype(np.float32), stored["size_px"].tolist()
    canonical = canonical_face()
    faces = [
        Face(one, *fit_pose(one, canonical), 1.0, (width, height), 1.0 + number / FPS)
        for number, one in enumerate(points[: round(seconds * FPS)])
    ]
    # Relative motion: the performance is another person's.
    relative = replace(config, render=replace(config.render, motion="relative"))

    def drawn(shown: Sequence[Face | NoFace]) -> list[Image]:
        renderer = Renderer(avatar, base, relative)
        renderer.retarget.finder.prime(faces)
        return draw(renderer, shown)

    coded = {OURS: as_faces(faces), THIN: as_thin_faces(faces)}
    true = drawn(faces)
    sent, rates = all_ways(true, coded, {name: drawn(one.faces) for name, one in coded.items()})
    opened = [float(np.linalg.norm(face.points[13] - face.points[14])) for face in faces[FPS:]]
    moment = FPS + int(np.argsort(opened)[int(0.9 * len(opened))])
    shown = {"sent": true[moment]} | {name: pictures[moment] for name, pictures in sent.items()}
    out.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(out), strip(Compared(rates, shown))[..., ::-1])


def main(arguments: list[str] | None = None) -> None:
    usual = Options()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="clips, with index.tsv")
    parser.add_argument("--split", default=usual.split)
    parser.add_argument("--people", type=int, default=usual.people, help="how many, drawn by the seed")
    parser.add_argument("--seconds", type=float, default=usual.seconds, help="of each person, at most")
    parser.add_argument("--frames", type=int, default=usual.frames, help="measured ones of each person")
    parser.add_argument("--seed", type=int, default=usual.seed)
    parser.add_argument("--demo", type=Path, metavar="AVATAR", help="one picture of somebody invented instead")
    parser.add_argument("--out", type=Path, default=Path("runs/compare"), help="a folder; with --demo a PNG file")
    told = parser.parse_args(arguments)
    if (told.folder is None) == (told.demo is None):
        parser.error("name a folder of clips, or --demo with an avatar file")
    if told.demo is not None and told.out.suffix.lower() != ".png":
        parser.error("--demo writes a picture: give --out a name that ends in .png")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    config = configs.load()
    render = replace(config.render, size_px=SIZE_PX, background="photo", motion="absolute")
    config = replace(config, render=render, enrol=replace(config.enrol, tune_s=0.0))
    try:
        base = open_base()
        if told.demo is not None:
            demo_picture(told.demo, base, config, told.out, told.seconds)
            return
        options = Options(told.split, told.people, told.seconds, told.frames, told.seed)
        compare(told.folder, base, config, told.out, options)
    except (ValueError, OSError) as error:
        parser.exit(1, f"{error}\n")
    logger.info("%s", (told.out / "compare.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
