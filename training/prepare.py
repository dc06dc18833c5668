"""Videos -> head shards: the frames, landmarks and mattes from which episodes are drawn.

`python -m training.prepare SOURCE --out SHARDS`. SOURCE is one of four, told apart by what lies in it:

- square head clips with an `index.tsv` (columns `clip`, `person`, `split`, and where known `source` and `licence`);
- square pictures of heads with an `index.tsv` (columns `picture`, `person`, and where known `split`, `source` and
  `licence`): the pictures of one person, in their order, are one clip;
- VoxCeleb2's `mp4/idXXXXX/VIDEO/00001.mp4`, as it is or under `dev/` (split train) and `test/`;
- any folder of videos: the person is the first sub-folder's name, or the file's where it lies in none.

Where no split is given, a hash of the person decides. The clips of an index are taken whole; of other videos each shot
becomes a clip of its own, cut by one square that stays where it is. `training.shards` says what a shard holds. A video
whose shards are finished is not looked at again, so the same command goes on where it was stopped; a video that gives
nothing is named in `failed.tsv`.
"""

from __future__ import annotations

import argparse
import csv
import functools
import hashlib
import json
import logging
import os
import re
import signal
import sys
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import cv2
import numpy as np
from av import AudioResampler
from av.error import FFmpegError
from av.video.frame import VideoFrame
from numpy.typing import NDArray
from tqdm import tqdm

from engine.frames import Face, Frame, Image, Points
from engine.upright import upright
from training.photos import HEAD_CENTRE, HEAD_SHARE, VIDEO_SUFFIXES, PhotoError, is_head_crop, load_photo
from training.shards import SOUND_HZ, ShardWriter

if TYPE_CHECKING:
    from engine.tracker import Tracker
    from training.matte import Matter

logger = logging.getLogger(__name__)

# Limits of a shot. Within 130 of our own clips the head moves by at most 0.31 of the crop's side in 97 %, and grows
# by at most 1.53.
MAX_DRIFT = 0.3
MAX_ZOOM = 1.5
MIN_FACE_PX = 70  # forehead to chin, as in the smallest of our own clips
MAX_GAP_S = 1.0  # nobody seen for longer: another shot
CUT = 30.0  # mean change between 32 px pictures, of 255: at most 19 inside 13 of our clips, at least 45 between them
_INSIDE = 0.95  # share of the landmarks that the crop must hold


@dataclass(frozen=True, slots=True)
class Job:
    """One video to be looked at."""

    video: Path
    shard: Path
    about: dict[str, str]
    """What every shard of it records."""
    cut: bool
    """Look for shots and crop them; else the picture is a head crop already."""
    every: int
    size_px: int
    min_frames: int
    pictures: tuple[Path, ...] = ()
    """Pictures instead of a video; `video` is then the first."""
    sound: bool = False
    """Keep the sound, where there is one."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a video: so many shards and frames, or a reason in a few words (`kind`) and in a sentence."""

    video: str
    shards: int = 0
    frames: int = 0
    kind: str = ""
    why: str = ""


class UnusableError(ValueError):
    """A video that gives no shard: `kind` is what is counted, the message a sentence."""

    def __init__(self, kind: str, why: str) -> None:
        super().__init__(why)
        self.kind = kind


# --- which videos there are ---------------------------------------------------------------------------------


def split_of(person: str, test_share: float) -> str:
    """The same for a person wherever and whenever it is asked, and whoever else is there."""
    drawn = int.from_bytes(hashlib.sha256(person.encode()).digest()[:8], "big") / 2**64
    return "test" if drawn < test_share else "train"


@dataclass(frozen=True, slots=True)
class Video:
    """One video of a source."""

    path: Path
    name: str
    """Of its shard in the out folder, without `.tar`: several parts make sub-folders."""
    about: dict[str, str]
    cut: bool
    pictures: tuple[Path, ...] = ()


def find_videos(source: Path, test_share: float) -> list[Video]:
    """The videos of SOURCE in a fixed order, each with `person`, `split` and `video`. Raises `ValueError`."""
    if not source.is_dir():
        raise ValueError(f"there is no folder {source}")
    if (source / "index.tsv").exists():
        found = _in_index(source, test_share)
    else:
        found = _in_voxceleb(source, test_share) or _in_folders(source, test_share)
    if not found:
        raise ValueError(f"{source} holds no videos, no index.tsv and no mp4/idXXXXX of VoxCeleb2")
    return found


def _in_index(source: Path, test_share: float) -> list[Video]:
    path = source / "index.tsv"
    try:
        with path.open(newline="", encoding="utf-8") as index:
            table = csv.DictReader(index, delimiter="\t")
            rows, columns = list(table), table.fieldnames or ()
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is no table ({error}): save it as UTF-8 text, a tab between columns") from error
    if not rows:
        raise ValueError(f"{path} names no clip and no picture")
    if "picture" in columns:
        return _pictures(source, rows, test_share)
    found = []
    for number, row in enumerate(rows, 2):
        if missing := [key for key in ("clip", "person", "split") if not row.get(key)]:
            raise ValueError(f"{path}, line {number}, has no {missing[0]}")
        about = {key: row[key] for key in ("person", "split", "source", "licence") if row.get(key)}
        clip = source / row["clip"]
        found.append(Video(clip, clip.stem, {**about, "video": clip.stem}, cut=False))
    return found


def _pictures(source: Path, rows: Iterable[dict[str, str]], test_share: float) -> list[Video]:
    """One `Video` for each person of an index of pictures."""
    people: dict[str, list[dict[str, str]]] = {}
    for number, row in enumerate(rows, 2):
        if missing := [key for key in ("picture", "person") if not row.get(key)]:
            raise ValueError(f"{source / 'index.tsv'}, line {number}, has no {missing[0]}")
        if Path(row["person"]).name != row["person"]:  # it names the shard
            raise ValueError(f"{source / 'index.tsv'}, line {number}: the person {row['person']!r} is no file name")
        people.setdefault(row["person"], []).append(row)
    found = []
    for person, theirs in people.items():
        about = {key: theirs[0][key] for key in ("source", "licence") if theirs[0].get(key)}
        about |= {"person": person, "split": theirs[0].get("split") or split_of(person, test_share), "video": person}
        pictures = tuple(source / row["picture"] for row in theirs)
        found.append(Video(pictures[0], person, about, cut=False, pictures=pictures))
    return found


def _in_voxceleb(source: Path, test_share: float) -> list[Video]:
    found = []
    for folder in (source / "dev" / "mp4", source / "test" / "mp4", source / "mp4", source):
        people = [one for one in sorted(folder.glob("id*")) if re.fullmatch(r"id\d{5}", one.name)]
        split = {"dev": "train", "test": "test"}.get(folder.absolute().parent.name)
        for person in people if folder.name == "mp4" else []:
            for path in sorted(person.glob("*/*.mp4")):
                about = {"person": person.name, "split": split or split_of(person.name, test_share)}
                name = path.relative_to(folder).with_suffix("").as_posix()
                found.append(Video(path, name, {**about, "video": path.parent.name}, cut=True))
    return found


def _in_folders(source: Path, test_share: float) -> list[Video]:
    found = []
    for path in sorted(source.rglob("*")):
        inside = path.relative_to(source)
        if path.suffix.lower() not in VIDEO_SUFFIXES or any(part.startswith(".") for part in inside.parts):
            continue
        name = inside.as_posix().removesuffix(path.suffix)
        person = inside.parts[0] if len(inside.parts) > 1 else path.stem
        about = {"person": person, "split": split_of(person, test_share), "video": path.stem}
        found.append(Video(path, name, about, cut=True))
    return found


def find_licence(folder: Path, source: Path) -> str | None:
    """What the nearest `licence.txt` says, from the clip's own folder up to SOURCE."""
    for one in (folder, *folder.parents):
        for name in ("licence.txt", "license.txt"):
            if (one / name).is_file():
                return (one / name).read_text(encoding="utf-8", errors="replace").strip()
        if one == source:
            return None
    return None


# --- one video ----------------------------------------------------------------------------------------------


def _decode(path: Path) -> Generator[tuple[VideoFrame, float]]:
    """The pictures, each with the width of its pixels over their height. Raises `UnusableError`."""
    try:
        with av.open(str(path), metadata_errors="replace") as container:
            if not container.streams.video:
                raise UnusableError("broken", "it has no picture stream")
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1  # a worker has one core
            aspect = float(stream.sample_aspect_ratio or 1) or 1.0
            for picture in container.decode(stream):
                yield picture, aspect
    except (FFmpegError, OSError) as error:
        raise UnusableError("broken", f"it cannot be decoded ({error.strerror or error})") from error


def read_sound(path: Path) -> tuple[NDArray[np.int16], float] | None:
    """The sound `[n]`, mono at `SOUND_HZ`, and the second of the video at which it begins; None where there is none.

    Raises `UnusableError` when it cannot be decoded.
    """
    parts: list[NDArray[np.int16]] = []
    from_s = 0.0
    try:
        with av.open(str(path), metadata_errors="replace") as container:
            if not container.streams.audio:
                return None
            resampler = AudioResampler(format="s16", layout="mono", rate=SOUND_HZ)
            for frame in container.decode(container.streams.audio[0]):
                if not parts:
                    from_s = float(frame.time or 0.0)
                parts += [np.asarray(one.to_ndarray(), np.int16).reshape(-1) for one in resampler.resample(frame)]
            parts += [np.asarray(one.to_ndarray(), np.int16).reshape(-1) for one in resampler.resample(None)]
    except (FFmpegError, OSError) as error:
        raise UnusableError("broken", f"its sound cannot be decoded ({error.strerror or error})") from error
    return (np.concatenate(parts), from_s) if parts else None


def sound_of(shot: list[Sighting], sound: tuple[NDArray[np.int16], float]) -> tuple[NDArray[np.int16], float]:
    """The part of a video's sound that a shot needs: half a second more at either end, as far as there is any."""
    samples, from_s = sound
    first, last = ((one.time_s - from_s) * SOUND_HZ for one in (shot[0], shot[-1]))
    start = min(max(round(first - SOUND_HZ / 2), 0), len(samples))
    end = max(round(last + SOUND_HZ / 2), start)
    return samples[start:end], from_s + start / SOUND_HZ


@dataclass(frozen=True, slots=True, eq=False)
class Sighting:
    """A face in a frame of a video."""

    number: int
    time_s: float
    points: Points
    """In pixels of the frame."""
    visibility: float

    @property
    def face_px(self) -> float:
        return float(np.linalg.norm(self.points[10] - self.points[152]))

    @property
    def middle(self) -> tuple[float, float]:
        x, y = (self.points[10, :2] + self.points[152, :2]) / 2
        return float(x), float(y)


@dataclass(frozen=True, slots=True)
class Square:
    """Where a shot is cut, in whole pixels of the frame."""

    left: int
    top: int
    side: int

    def cut(self, rgb: Image, size_px: int) -> Image:
        part = rgb[self.top : self.top + self.side, self.left : self.left + self.side]
        way = cv2.INTER_AREA if self.side > size_px else cv2.INTER_CUBIC
        return np.asarray(cv2.resize(part, (size_px, size_px), interpolation=way), np.uint8)

    def place(self, points: Points, size_px: int) -> Points:
        return ((points - np.array([self.left, self.top, 0], np.float32)) * np.float32(size_px / self.side)).astype(
            np.float32
        )


def _is_head_crop(shot: list[Sighting], size_px: tuple[int, int]) -> bool:
    return is_head_crop(float(np.median([one.face_px for one in shot])), size_px)


def head_square(shot: list[Sighting], size_px: tuple[int, int]) -> Square:
    """One square for a whole shot, with the room that `training.photos.crop` gives a head; never outside the frame.

    It lies in the middle between the outermost places of the head. A frame that is a head crop already stays whole.
    """
    width, height = size_px
    room = min(width, height)
    faces = [one.face_px for one in shot]
    face_px = (min(faces) + max(faces)) / 2
    side = min(round(face_px / HEAD_SHARE), room)
    if _is_head_crop(shot, size_px):
        return Square((width - room) // 2, (height - room) // 2, room)
    columns, rows = zip(*(one.middle for one in shot), strict=True)
    left = round((min(columns) + max(columns)) / 2 - HEAD_CENTRE[0] * side)
    top = round((min(rows) + max(rows)) / 2 - HEAD_CENTRE[1] * side)
    return Square(min(max(left, 0), width - side), min(max(top, 0), height - side), side)


def cut_shots(seen: Iterable[Sighting | None], steady: bool = True) -> list[list[Sighting]]:
    """Sightings in order, `None` where the picture is cut -> shots, each unbroken.

    `steady`: one square must be able to hold the head all through the shot.
    """
    shots: list[list[Sighting]] = []
    low = high = np.zeros(3)  # of the shot so far: where the head's middle was, and the logarithm of its height
    open_shot = False
    for one in seen:
        if one is None:
            open_shot = False
            continue
        here = np.array([*one.middle, np.log(one.face_px)])
        if open_shot and one.time_s - shots[-1][-1].time_s <= MAX_GAP_S:
            lower, higher = np.minimum(low, here), np.maximum(high, here)
            zoom = float(np.exp(higher[2] - lower[2]))
            side = float(np.exp(lower[2])) * (1 + zoom) / 2 / HEAD_SHARE
            if not steady or (zoom <= MAX_ZOOM and (higher - lower)[:2].max() <= MAX_DRIFT * side):
                shots[-1].append(one)
                low, high = lower, higher
                continue
        shots.append([one])
        low = high = here
        open_shot = True
    return shots


def _look(job: Job, networks: Networks) -> tuple[list[Sighting | None], tuple[int, int]]:
    """The face in every so many frames, `None` at cuts; width and height of the frames. Raises `UnusableError`."""
    seen: list[Sighting | None] = []
    size_px = (0, 0)
    before = None
    with closing(_decode(job.video)) as pictures:
        for number, (picture, aspect) in enumerate(pictures):
            if job.cut:
                small = picture.reformat(width=32, height=32, format="rgb24", interpolation="AREA").to_ndarray()
                small = small.astype(np.float32)
                if before is not None and np.abs(small - before).mean() > CUT:
                    seen.append(None)
                    networks.tracker.reset()
                before = small
            if number % job.every:
                continue
            rgb = _shown(picture, aspect, job)
            if size_px not in ((0, 0), rgb.shape[1::-1]):
                raise UnusableError("broken", "its pictures change their size on the way")
            size_px = rgb.shape[1], rgb.shape[0]
            time_s = float(picture.time or 0.0)
            face = networks.tracker.track(Frame(rgb, time_s))
            if isinstance(face, Face):
                seen.append(Sighting(number, time_s, face.points, face.visibility))
            else:
                networks.strayed = True
    if size_px == (0, 0):
        raise UnusableError("broken", "it holds no picture that can be decoded")
    return seen, size_px


def _shown(picture: VideoFrame, aspect: float, job: Job) -> Image:
    """The frame as it is tracked and cut: a head crop at its final size, another video as it is."""
    rgb = upright(picture, aspect)
    if job.cut or rgb.shape[:2] == (job.size_px, job.size_px):
        return rgb
    return np.asarray(cv2.resize(rgb, (job.size_px, job.size_px), interpolation=cv2.INTER_AREA), np.uint8)


def _shots_of(job: Job, networks: Networks) -> list[tuple[Square, list[Sighting]]]:
    """The shots worth keeping, and where each is cut. Raises `UnusableError` when there is none."""
    seen, size_px = _look(job, networks)
    sightings = [one for one in seen if one is not None]
    if not sightings:
        raise UnusableError("no face", "nobody's face is to be seen in it")
    if not job.cut:
        found = [(Square(0, 0, job.size_px), sightings)]
    else:
        large = [one for one in seen if one is None or one.face_px >= MIN_FACE_PX]
        shots = cut_shots(large, steady=not _is_head_crop(sightings, size_px))
        found = [(head_square(shot, size_px), shot) for shot in shots]
        if not found:
            tallest = max(one.face_px for one in sightings)
            raise UnusableError(
                "too small", f"its largest face is {tallest:.0f} px high, at least {MIN_FACE_PX} are needed"
            )
        found = [(square, [one for one in shot if _is_inside(square, one)]) for square, shot in found]
    kept = [(square, shot) for square, shot in found if len(shot) >= job.min_frames]
    if not kept:
        longest = max(len(shot) for _, shot in found)
        raise UnusableError(
            "too short",
            f"its longest shot of a face has {longest} frames to keep, at least {job.min_frames} are needed",
        )
    return kept


def _is_inside(square: Square, one: Sighting) -> bool:
    places = one.points[:, :2] - np.array([square.left, square.top], np.float32)
    return float(((places >= 0) & (places <= square.side)).all(axis=1).mean()) >= _INSIDE


def shard_of(shard: Path, shot: int) -> Path:
    """Where shot number `shot` of a video goes: the first carries the video's own name."""
    return shard if shot == 0 else shard.with_name(f"{shard.name.removesuffix('.tar')}.shot-{shot + 1}.tar")


def prepare_video(job: Job, networks: Networks) -> tuple[int, int]:
    """Writes the shards of one video; returns how many, and the frames in them.

    The first shot's shard is named last: when it is there, so are the others. Raises `UnusableError` for the video, and
    `OSError` when the shards cannot be written.
    """
    shots = _shots_of(job, networks)
    wanted = {one.number: (shot, one) for shot, (_, sightings) in enumerate(shots) for one in sightings}
    sound = read_sound(job.video) if job.sound else None
    writers: list[ShardWriter] = []

    def close(writer: ShardWriter, sightings: list[Sighting]) -> None:
        if sound is not None:
            samples, from_s = sound_of(sightings, sound)
            if len(samples):  # else it is over before the shot begins
                writer.add_sound(samples, from_s)
        writer.close()

    with ExitStack() as stack, closing(_decode(job.video)) as pictures:
        for number, (picture, aspect) in enumerate(pictures):
            if number not in wanted:
                continue
            shot, one = wanted[number]
            square = shots[shot][0]
            if shot == len(writers):  # shots follow one another: one file is open at a time
                for writer in writers[-1:]:
                    close(writer, shots[shot - 1][1])
                about = {**job.about, "shot": shot, **asdict(square)}
                writers.append(stack.enter_context(ShardWriter(shard_of(job.shard, shot), about)))
            rgb = _shown(picture, aspect, job)
            if job.cut:
                rgb = square.cut(rgb, job.size_px)
            matte = networks.matter.matte(rgb)
            writers[shot].add(number, rgb, square.place(one.points, job.size_px), matte, one.time_s, one.visibility)
        close(writers[-1], shots[-1][1])
        for writer in reversed(writers):
            writer.finish()
    return len(writers), sum(writer.kept for writer in writers)


def prepare_pictures(job: Job, networks: Networks) -> tuple[int, int]:
    """Writes the shard of one person's pictures, those in which a face is found; returns 1 and how many they are.

    Numbered in hundreds: none is another's neighbour in time. Raises as `prepare_video`.
    """
    with ShardWriter(job.shard, {**job.about, "shot": 0}) as writer:
        for place, path in enumerate(job.pictures):
            try:
                rgb = load_photo(path)
            except PhotoError as error:
                raise UnusableError("broken", str(error)) from error
            if rgb.shape[0] != rgb.shape[1]:
                raise UnusableError("broken", f"{path.name} is {rgb.shape[1]} x {rgb.shape[0]}, not square")
            if rgb.shape[0] != job.size_px:
                way = cv2.INTER_AREA if rgb.shape[0] > job.size_px else cv2.INTER_CUBIC
                rgb = np.asarray(cv2.resize(rgb, (job.size_px, job.size_px), interpolation=way), np.uint8)
            networks.tracker.reset()
            face = networks.tracker.track(Frame(rgb, float(place)))
            if isinstance(face, Face):
                matte = networks.matter.matte(rgb)
                writer.add(100 * place, rgb, face.points, matte, float(place), face.visibility)
        if writer.kept < job.min_frames:
            why = f"a face is to be seen in {writer.kept} of its pictures, at least {job.min_frames} are needed"
            raise UnusableError("too short", why)
        writer.close()
        writer.finish()
    return 1, writer.kept


@dataclass(slots=True, eq=False)
class Networks:
    """One tracker and one matter for a process: making them takes longer than a short clip."""

    tracker: Tracker
    matter: Matter
    strayed: bool = False
    """The tracker searched: it remembers where it left off, and the next video must not depend on that."""


@functools.cache
def _networks() -> Networks:
    from engine.tracker import Tracker
    from training.matte import Matter

    return Networks(Tracker(video=True), Matter())


def work(job: Job) -> Outcome:
    """One video, whatever it is like; only a shard that cannot be written raises (`OSError`)."""
    networks = _networks()
    if networks.strayed:
        networks.tracker.close()
        networks.matter.close()
        _networks.cache_clear()
        networks = _networks()
    networks.tracker.reset()
    try:
        shards, frames = (prepare_pictures if job.pictures else prepare_video)(job, networks)
    except (UnusableError, MemoryError, RuntimeError, cv2.error) as error:
        kind = error.kind if isinstance(error, UnusableError) else "broken"
        return Outcome(str(job.video), kind=kind, why=" ".join(str(error).split()) or type(error).__name__)
    return Outcome(str(job.video), shards, frames)


# --- many videos --------------------------------------------------------------------------------------------


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which lets running videos end
    cv2.setNumThreads(1)


def in_processes(jobs: Iterable[Job], workers: int, work: Callable[[Job], Outcome] = work) -> Iterator[Outcome]:
    """The outcomes as they come. A video that takes its process down is found by trying its suspects alone."""
    waiting, suspects = deque(jobs), deque[Job]()
    while waiting or suspects:
        alone = bool(suspects)
        queue, most = (suspects, 1) if alone else (waiting, 2 * workers)
        running: dict[Future[Outcome], Job] = {}
        pool = ProcessPoolExecutor(min(workers, most), mp_context=get_context("spawn"), initializer=_start_worker)
        try:
            while queue or running:
                while queue and len(running) < most:
                    running[pool.submit(work, queue[0])] = queue[0]
                    queue.popleft()
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    yield future.result()
                    del running[future]
        except BrokenProcessPool:
            if alone:
                for job in running.values():
                    yield Outcome(str(job.video), kind="broken", why="the process that read it died")
            else:
                suspects.extend(running.values())
        finally:
            pool.shutdown(cancel_futures=True)


def on_ray(jobs: list[Job], address: str) -> Iterator[Outcome]:
    """The same on a cluster; source and out folder must be reachable under the same paths from every node.

    Raises `ValueError` when ray is not installed or there is no cluster at the address.
    """
    try:
        import ray  # pyright: ignore[reportMissingImports]
        import ray.data  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        remedy = "pip install 'understudy[cluster]' here and on the nodes"
        raise ValueError(f"--ray needs Ray Data ({error}): {remedy}") from error
    joined = not ray.is_initialized()
    try:
        ray.init(address, ignore_reinit_error=True, log_to_driver=False)
    except ConnectionError as error:
        raise ValueError(f"there is no Ray cluster at {address}: {' '.join(str(error).split())}") from error
    # By its full name: what belongs to __main__ would travel by value, caches and all.
    from training.prepare import _work_row as on_node

    context = ray.data.DataContext.get_current()
    context.max_errored_blocks = -1  # whatever a node takes down with it is named below
    context.enable_progress_bars = False
    rows = [{"job": json.dumps(asdict(job), default=str)} for job in jobs]
    dataset = ray.data.from_items(rows, override_num_blocks=min(len(rows), 10_000)).map(on_node)
    missing = {str(job.video) for job in jobs}
    try:
        for row in dataset.iter_rows():
            missing.discard(row["video"])
            yield Outcome(**row)
    finally:
        if joined:
            ray.shutdown()
    for video in sorted(missing):
        yield Outcome(video, kind="broken", why="nothing came back from the cluster: run again")


def _work_row(row: dict[str, Any]) -> dict[str, Any]:
    told = json.loads(row["job"])
    pictures = tuple(map(Path, told["pictures"]))
    job = Job(**{**told, "video": Path(told["video"]), "shard": Path(told["shard"]), "pictures": pictures})
    cv2.setNumThreads(1)
    return asdict(work(job))


def plan(options: argparse.Namespace) -> tuple[list[Job], list[Outcome], int]:
    """What is to be done, what cannot be, and how many videos are finished already. Raises `ValueError`."""
    source: Path = options.source_folder.absolute()
    out: Path = options.out.absolute()
    jobs: list[Job] = []
    failed: list[Outcome] = []
    finished = 0
    taken: dict[str, Path] = {}
    licences: dict[Path, str | None] = {}
    for video in find_videos(source, options.test_share)[: options.limit]:
        if video.name in taken:
            other = taken[video.name]
            failed.append(Outcome(str(video.path), kind="twice", why=f"its shard would have the name of {other}'s"))
            continue
        taken[video.name] = video.path
        folder = video.path.parent
        if folder not in licences:
            licences[folder] = find_licence(folder, source)
        about = {"licence": licences[folder] or options.licence, "source": options.source, **video.about}
        shard = out / f"{video.name}.tar"
        if shard.exists():
            finished += 1
        else:
            limits = options.every, options.size_px, options.min_frames
            jobs.append(Job(video.path, shard, about, video.cut, *limits, video.pictures, options.sound))
    return jobs, failed, finished


_FIXED = ("every", "size_px", "min_frames", "test_share", "sound")


def _keep_to(options: argparse.Namespace) -> None:
    """Shards of one folder are made alike: another choice than the first run's is refused by a `ValueError`."""
    path = options.out / "options.json"
    chosen = {name: getattr(options, name) for name in _FIXED}
    if path.exists():
        try:
            before = {"sound": False} | json.loads(path.read_text(encoding="utf-8"))
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{path} is damaged ({error}): delete it, and ask for what the shards beside it are"
            ) from error
        for name, value in chosen.items():
            if before.get(name, value) != value:
                flag = "--" + name.replace("_", "-")
                raise ValueError(
                    f"{options.out} was begun with {flag} {before[name]}, not {value}: take that, or another --out"
                )
    else:
        path.write_text(json.dumps(chosen, indent=1), encoding="utf-8")


def run(options: argparse.Namespace) -> None:
    """The whole command. Raises `ValueError` with a sentence, and `OSError` when the shards cannot be written."""
    jobs, failed, finished = plan(options)
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise ValueError(f"{options.out} is a file: --out is a folder") from error
    _keep_to(options)
    logger.info("%d videos to do, %d finished before", len(jobs), finished)
    if not jobs:
        outcomes: Iterator[Outcome] = iter(())
    elif options.ray:
        outcomes = on_ray(jobs, options.ray)
    elif options.workers == 1:
        outcomes = map(work, jobs)
    else:
        outcomes = in_processes(jobs, min(options.workers, len(jobs)))
    shards = frames = 0
    with tqdm(outcomes, total=len(jobs), unit="video", mininterval=0.2 if sys.stderr.isatty() else 30) as progress:
        for outcome in progress:
            shards, frames = shards + outcome.shards, frames + outcome.frames
            if outcome.kind:
                failed.append(outcome)
            progress.set_postfix(frames=frames, failed=len(failed), refresh=False)
    failed.sort(key=lambda one: one.video)
    with (options.out / "failed.tsv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, delimiter="\t", lineterminator="\n")
        rows.writerow(["video", "kind", "why"])
        rows.writerows([one.video, one.kind, one.why] for one in failed)
    logger.info("%d shards with %d frames written to %s", shards, frames, options.out)
    if failed:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(Counter(one.kind for one in failed).items()))
        logger.warning("%d videos gave nothing (%s), all named in %s", len(failed), kinds, options.out / "failed.tsv")
        for one in failed[:10]:
            logger.warning("  %s: %s", one.video, one.why)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    layouts = "folder of videos or pictures, in one of four layouts"
    parser.add_argument("source_folder", metavar="SOURCE", type=Path, help=layouts)
    parser.add_argument("--out", type=Path, default=Path("runs/shards"))
    parser.add_argument("--every", type=int, default=5, help="keep one frame in so many")
    parser.add_argument("--size-px", type=int, default=256)
    parser.add_argument("--min-frames", type=int, default=4, help="a shot with fewer frames to keep is left out")
    parser.add_argument("--limit", type=int, help="only the first so many videos of SOURCE")
    parser.add_argument("--sound", action="store_true", help="keep the sound too; with --every 1 the shards serve "
                        "python -m training.factors")  # fmt: skip
    parser.add_argument("--test-share", type=float, default=0.1, help="of the people, where SOURCE gives no split")
    parser.add_argument("--licence", default="unstated", help="recorded in every shard; a licence.txt beside or above "
                        "the clip, or the index, knows better")  # fmt: skip
    parser.add_argument("--source", default="unstated", help="where the videos are from, recorded likewise")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes on this machine")
    parser.add_argument("--ray", metavar="ADDRESS", help="work on this Ray cluster instead (auto, local, HOST:PORT)")
    options = parser.parse_args(arguments)
    for name in ("every", "size_px", "min_frames", "workers"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    if options.limit is not None and options.limit < 1:
        parser.error("--limit must be at least 1")
    if not 0 <= options.test_share <= 1:
        parser.error("--test-share must lie between 0 and 1")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        run(options)
    except (ValueError, OSError) as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on from here")


if __name__ == "__main__":
    main()
