"""Clips of people the network never saw -> the tables: likeness, identity, motion, flicker, realism, speed.

`python -m training.evaluate FOLDER --split test --out runs/evaluate` reads a folder of square head clips with an
`index.tsv` (`training.prepare`), enrols each person of the split from eight frames, drives the avatar with other
frames of the same person, and compares every picture with the frame that drove it. Simple methods (the nearest photo,
the whole head moved) are measured on the very same frames. Every person's numbers are kept in `people/` of the output
folder and used again by the next run with the same options and bases. The pictures show whoever is in the clips.

The protocol
============
Photos and driving frames: `training.protocol`.
`--cross N`: the avatar of each person is driven by clips of the N people after them in an order drawn by the seed,
through the product's relative motion (`engine.motion.Retarget`). The driver's neutral face is found beforehand, as
after a while in a call. Every method is asked for the same landmarks.
`--factors`: in the place of the tables a matrix, `training.evaluate_factors`.
Means: over a person's frames, then over people, each counting the same; intervals from 10 000 bootstrap draws of
people.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
import torch
from av.error import FFmpegError
from numpy.typing import NDArray

from engine import avatar as avatars
from engine import config as configs
from engine import geometry
from engine.avatar import Avatar
from engine.base import Base, open_base
from engine.config import Config
from engine.frames import Face, Frame, Image, Points
from engine.renderer import Generator, Renderer, Stream
from engine.tracker import Tracker
from training import photos
from training.enrol import MAX_PHOTOS, PersonShot, build
from training.episodes import raster_tensor, to_image
from training.evaluate_factors import evaluate_factors
from training.identity import SFace
from training.matte import Matte
from training.measures import Judge, flicker, following, restlessness, stance
from training.networks.content import Content, ContentTerm, chosen_terms
from training.paper import FineTuning, TunedPortrait, develop, fine_tune_paper, load_paper
from training.photos import CheckedPhoto
from training.protocol import (
    MEASURED,
    SIZE_PX,
    STRETCH,
    Relative,
    Stretch,
    Taken,
    drivable,
    drivers,
    frame_times,
    photo_pools,
    read_index,
    stretches,
    take_photos,
    track,
)
from training.tables import DRIVER, NEAREST, OWN, TRUTH, TUNED, UNTUNED, WHOLE_HEAD, Person, Result, Which, write

logger = logging.getLogger(__name__)

PAPER = "Zakharov et al. 2019"
FORMAT = 2
"""Of a person's stored numbers: raised when a measure or the protocol changes, and old ones are no longer used."""

# --- the methods ---

Method = Callable[[Frame, Face], Image]
"""A driving frame and the face to draw (time running on from call to call) -> a picture of its own, `[256, 256, 3]`.

The face is where it shall be in the picture: the driver's own, or what the product's relative motion makes of it.
"""


@dataclass(frozen=True, slots=True)
class Made:
    """A method for one person, and how long it took to make."""

    draw: Method
    enrol_s: float | None = None


class Maker(Protocol):
    """Makes methods of a person's photos, by their names in the table; adds to `about` what is worth keeping."""

    def __call__(self, taken: Sequence[CheckedPhoto], config: Config, about: dict[str, Any]) -> dict[str, Made]: ...


def true_frame(frame: Frame, face: Face) -> Image:
    """What the measures themselves cannot tell from perfect."""
    return frame.rgb


class NearestPhoto:
    """The photo whose landmarks lie nearest, as it is; `warped`: moved onto the driver by one similarity."""

    def __init__(self, taken: Sequence[CheckedPhoto], warped: bool) -> None:
        self._rgb = [photo.rgb for photo in taken if photo.rgb is not None]
        self._points = np.stack([photo.face.points for photo in taken if photo.face is not None])
        self._warped = warped

    def __call__(self, frame: Frame, face: Face) -> Image:
        apart = np.linalg.norm(self._points[..., :2] - face.points[:, :2], axis=-1).mean(-1)
        nearest = int(apart.argmin())
        rgb = self._rgb[nearest]
        if not self._warped:
            return rgb
        size = rgb.shape[0]
        target = geometry.to_crop_units(face.points, size)
        matrix = geometry.head_similarity(target, geometry.to_crop_units(self._points[nearest : nearest + 1], size))[0]
        way = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
        moved = cv2.warpAffine(
            rgb, geometry.pixel_map(matrix, size), (size, size), flags=way, borderMode=cv2.BORDER_REPLICATE
        )
        return np.asarray(moved, np.uint8)


class Shipped:
    """The engine as a call runs it."""

    def __init__(self, avatar: Avatar, base: Base, config: Config) -> None:
        self.avatar = avatar
        self.renderer = Renderer(avatar, base, config)
        self.renderer.warm_up()

    def __call__(self, frame: Frame, face: Face) -> Image:
        return self.renderer.draw(face).rgb.copy()


class OwnBackground:
    """The same network and choice of references, its picture taken whole: nothing laid over the photo's background."""

    def __init__(self, generator: Generator) -> None:
        self._stream = Stream(generator)

    def __call__(self, frame: Frame, face: Face) -> Image:
        target = geometry.to_crop_units(face.points, face.size_px[0])
        return self._stream.draw(target, face.time_s)[0].copy()


def understudy(base: Base, name: str, own: bool = False) -> Maker:
    """A maker: a base without and with fine-tuning; `own`: also its picture with its own background."""

    def make(taken: Sequence[CheckedPhoto], config: Config, about: dict[str, Any]) -> dict[str, Made]:
        def enrolled(tune_s: float) -> tuple[Shipped, float]:
            began = time.monotonic()
            enrol = replace(config.enrol, tune_s=tune_s)
            avatar, _, tuning = build(list(taken), "evaluated", base, replace(config, enrol=enrol), lambda *_: None)
            took_s = time.monotonic() - began
            if tuning is not None:
                told = {"steps": tuning.steps, "before": asdict(tuning.before), "after": asdict(tuning.after)}
                about.setdefault("tuning", {})[name] = told
            with tempfile.TemporaryDirectory() as folder:  # as a call gets it: through JPEG and float16
                path = Path(folder) / f"evaluated{avatars.SUFFIX}"
                avatars.save(avatar, path)
                return Shipped(avatars.load(path), base, config), took_s

        methods = {f"{name}, not tuned": Made(*enrolled(0.0))}
        tuned, took_s = enrolled(config.enrol.tune_s)
        methods[name] = Made(tuned, took_s)
        if own:
            methods[OWN] = Made(OwnBackground(tuned.renderer.generator))
        return methods

    return make


def zakharov(checkpoint: Path, terms: Sequence[ContentTerm], epochs: int) -> Maker:
    """A maker: the preset `paper` (`training.paper`) feed-forward and fine-tuned, on CUDA where there is one.

    Raises `ValueError` when the checkpoint is another preset's.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    portrait, discriminator = load_paper(checkpoint, device)
    content = Content(terms).to(device)
    size = portrait.options.size_px

    def make(taken: Sequence[CheckedPhoto], config: Config, about: dict[str, Any]) -> dict[str, Made]:
        began = time.monotonic()
        shots = []
        for number, photo in enumerate(taken):
            assert photo.rgb is not None and photo.face is not None
            cropped = photos.crop(photo.rgb, photo.face, size)
            shots.append(PersonShot("photos", number, cropped.rgb, np.zeros((size, size), np.uint8), cropped.points))
        told = [develop(shot, size) for shot in shots]
        pictures, rasters, placed = (torch.stack(part).to(device) for part in zip(*told, strict=True))
        with torch.no_grad():
            generator = portrait.generator
            plain = TunedPortrait(generator, generator.project(portrait.embedder(pictures[None], rasters[None])))
        plain_s = time.monotonic() - began
        tuning = FineTuning(epochs=epochs)
        bf16 = device.type == "cuda"
        tuned = fine_tune_paper(portrait, discriminator, pictures, rasters, placed, content, tuning, bf16)
        about.setdefault("tuning", {})[PAPER] = {"epochs": epochs, "device": str(device)}

        def method(own: TunedPortrait) -> Method:
            def draw(frame: Frame, face: Face) -> Image:
                target = geometry.to_crop_units(face.points, face.size_px[0])
                drawn = own.draw(raster_tensor(geometry.raster(target))[None].to(device))[0]
                rgb = to_image(drawn)
                return rgb if size == SIZE_PX else np.asarray(cv2.resize(rgb, (SIZE_PX, SIZE_PX)), np.uint8)

            return draw

        return {
            f"{PAPER}, feed-forward": Made(method(plain), plain_s),
            PAPER: Made(method(tuned), time.monotonic() - began),
        }

    return make


def make_methods(
    taken: Sequence[CheckedPhoto], makers: Sequence[Maker], config: Config, about: dict[str, Any]
) -> dict[str, Made]:
    """Every method for one person; what enrolment measured goes into `about`. The first maker is the product's."""
    made = {
        TRUTH: Made(true_frame),
        NEAREST: Made(NearestPhoto(taken, warped=False)),
        WHOLE_HEAD: Made(NearestPhoto(taken, warped=True)),
    }
    for maker in makers:
        made |= maker(taken, config, about)
    return made


# --- one person ---


class LeftOutError(ValueError):
    """Somebody whose clips do not allow the protocol; the message says why."""


@dataclass(frozen=True, slots=True)
class Options:
    split: str
    people: int
    """0: everybody."""
    frames: int
    clips: int
    """How many of a person's clips, the longest first; 0: all."""
    seed: int
    shots: tuple[int, ...] = (MAX_PHOTOS,)
    cross: int = 0
    """How many others drive each person."""


@dataclass(slots=True)
class Bench:
    """What one table of one person is measured with."""

    judge: Judge
    made: dict[str, Made]
    enrolled: NDArray[np.float32]
    """ArcFace embeddings of the eight photos, `[8, 512]`."""
    photo: Image


def measure(bench: Bench, driven: Sequence[Stretch], relative: Sequence[Relative] | None = None) -> Result:
    """Draw everything and measure it. With `relative`, one for each stretch, somebody else drives: no true frames."""
    judge = bench.judge
    made = {name: one for name, one in bench.made.items() if relative is None or name != TRUTH}
    kept: dict[str, list[dict[str, float]]] = {name: [] for name in made}
    stances: dict[str, list[tuple[dict[str, float], dict[str, float]]]] = {name: [] for name in made}
    spent_s: dict[str, list[float]] = {name: [] for name in made}
    flickers: dict[str, list[float]] = {name: [] for name in made}
    restless: dict[str, list[float]] = {name: [] for name in (DRIVER, *made)}
    pictures: list[dict[str, Image]] = []
    for number, stretch in enumerate(driven):
        asked = stretch.faces if relative is None else [relative[number](face) for face in stretch.faces]
        true = [frame.rgb for frame in stretch.frames]
        drawn: dict[str, list[Image]] = {DRIVER: true}
        for name, one in made.items():
            drawn[name] = []
            for frame, face in zip(stretch.frames, asked, strict=True):
                began = time.perf_counter()
                drawn[name].append(one.draw(frame, face))
                spent_s[name].append(time.perf_counter() - began)
        mattes: dict[str, Matte] = {}
        for place in MEASURED:
            shown = {name: drawn[name][place] for name in made}
            mattes[DRIVER] = judge.matte(true[place])
            scores: dict[str, dict[str, float]] = {name: {} for name in made}
            identity = None
            if relative is None:
                scores = judge.likeness(true[place], shown, mattes[DRIVER])
                identity = judge.identity(true[place], stretch.faces[place].points)
            for name, picture in shown.items():
                told, posture = judge.face(picture, asked[place], bench.enrolled, identity)
                kept[name].append(scores[name] | told)
                if posture is not None:
                    stances[name].append((posture, stance(stretch.faces[place])))
                mattes[name] = mattes[DRIVER] if relative is None else judge.matte(picture)
            for name, stream in drawn.items():
                for now in range(max(place - 4, MEASURED[0]), place):
                    restless[name].append(restlessness(stream[now - 1], stream[now], stream[now + 1], mattes[name]))
            pictures.append({DRIVER: true[place], **shown})
        if relative is None:
            for name in made:
                steps = zip(range(MEASURED[0] - 1, STRETCH - 1), range(MEASURED[0], STRETCH), strict=True)
                flickers[name] += [flicker(drawn[name][a], drawn[name][b], true[a], true[b]) for a, b in steps]
    real = float(np.mean(restless[DRIVER]))
    scores = {}
    for name, one in made.items():
        scores[name] = means(kept[name]) | {"ms": float(np.median(spent_s[name])) * 1000}
        scores[name] |= {"flicker": float(np.mean(flickers[name]))} if flickers[name] else {}
        scores[name] |= {"restless": float(np.mean(restless[name])) / real} if real > 0 else {}
        scores[name] |= {"enrol_s": one.enrol_s} if one.enrol_s is not None else {}
        if relative is not None and stances[name]:
            scores[name] |= following(*zip(*stances[name], strict=True))
    features = {name: judge.describe([shown[name] for shown in pictures]) for name in made}
    order = np.argsort([one.get("lpips", -one.get("csim", -1.0)) for one in kept[TUNED]])
    rows = []
    for index in (order[0], order[len(order) // 2], order[-1]):
        shown = [picture for name, picture in pictures[index].items() if name != TRUTH]
        rows.append(np.hstack([bench.photo, *shown]))
    true_features = features[TRUTH] if relative is None else np.zeros((0, 0), np.float32)
    return Result(len(pictures), scores, features, true_features, np.vstack(rows))


def evaluate_person(
    name: str,
    clips: dict[str, list[Path]],
    others: Sequence[str],
    makers: Sequence[Maker],
    config: Config,
    judge: Judge,
    options: Options,
) -> Person:
    """Enrol, draw, measure. `others` drive for cross-reenactment. Raises `LeftOutError`."""
    skipped: dict[str, str] = {}
    own = clips[name]
    times = [frame_times(clip) for clip in own]
    pools = photo_pools(times)
    with Tracker(video=False, max_faces=4) as tracker:
        embedder = SFace()
        taken = take_photos(own, pools, tracker, embedder)
        if len(taken) < MAX_PHOTOS:
            raise LeftOutError(f"{len(taken)} photos instead of {MAX_PHOTOS}")
        sets: dict[int, list[Taken]] = {}
        for shots in options.shots:
            if shots <= MAX_PHOTOS:
                sets[shots] = taken[:shots]
                continue
            more = take_photos(own, pools, tracker, embedder, shots, 3 * shots)
            if len(more) == shots:
                sets[shots] = more
            else:
                skipped[f"T = {shots}"] = f"{len(more)} photos instead of {shots}"

    def free(all_sets: Sequence[list[Taken]]) -> list[tuple[int, int]]:
        places = [(one.clip, one.number) for one in (*taken, *(one for chosen in all_sets for one in chosen))]
        return stretches(drivable(times, places), options.frames)

    chosen = free(list(sets.values()))
    if not chosen:
        for shots in [shots for shots in sets if shots > MAX_PHOTOS]:
            del sets[shots]
            skipped[f"T = {shots}"] = f"no stretch far enough from {shots} photos"
        chosen = free([])
    if not chosen or not sets:
        raise LeftOutError("no stretch far enough from the photos" if sets else "; ".join(skipped.values()))
    driven = track(own, chosen, config)
    if not driven:
        raise LeftOutError("no stretch in which a face was tracked throughout")
    foreign: list[tuple[str, list[Stretch]]] = []
    clock_s = driven[-1].faces[-1].time_s
    for other in others:
        everywhere = [np.ones(len(frame_times(clip)), bool) for clip in clips[other]]
        found = track(clips[other], stretches(everywhere, options.frames) if everywhere else [], config, clock_s)
        if found:
            foreign.append((other, found))
            clock_s = found[-1].faces[-1].time_s
        else:
            skipped[f"cross, {other}"] = f"{other} has no stretch in which a face was tracked throughout"

    enrolled = np.stack([judge.identity(*_rgb_points(one.photo)) for one in taken])
    results: dict[Which, Result] = {}
    for shots, photo_set in sets.items():
        about: dict[str, Any] = {"photos": [f"{own[one.clip].stem} {one.number}" for one in photo_set]}
        about["stretches"] = [f"{own[clip].stem} {start}" for clip, start in chosen]
        about["stretches without a face"] = len(chosen) - len(driven)
        made = make_methods([one.photo for one in photo_set], makers, config, about)
        bench = Bench(judge, made, enrolled, _rgb_points(photo_set[0].photo)[0])
        result = results[Which(False, shots)] = measure(bench, driven)
        result.about = about
        if foreign:
            tuned = made[TUNED].draw
            assert isinstance(tuned, Shipped)
            asking = [
                Relative(tuned.avatar, [face for stretch in found for face in stretch.faces]) for _, found in foreign
            ]
            flat = [(stretch, asks) for (_, found), asks in zip(foreign, asking, strict=True) for stretch in found]
            crossed = measure(bench, [stretch for stretch, _ in flat], [asks for _, asks in flat])
            crossed.real = result.real
            told = {key: about[key] for key in ("photos", "tuning") if key in about}
            crossed.about = told | {"drivers": [other for other, _ in foreign]}
            results[Which(True, shots)] = crossed
    return Person(name, results, skipped)


def _rgb_points(photo: CheckedPhoto) -> tuple[Image, Points]:
    assert photo.rgb is not None and photo.face is not None
    return photo.rgb, photo.face.points


def means(scores: Sequence[dict[str, float]]) -> dict[str, float]:
    """Each measure's mean over the frames that have it."""
    keys = dict.fromkeys(key for one in scores for key in one)
    return {key: float(np.mean([one[key] for one in scores if key in one])) for key in keys}


# --- everybody ---


class Store:
    """Numbers of people that are done, in `people/`: used again when everything they depend on is the same."""

    def __init__(self, folder: Path, depends_on: dict[str, Any]) -> None:
        self._folder = folder / "people"
        self._folder.mkdir(parents=True, exist_ok=True)
        told = json.dumps({"format": FORMAT, **depends_on}, sort_keys=True, default=str)
        self.fingerprint = hashlib.sha256(told.encode()).hexdigest()[:16]

    def _path(self, name: str, suffix: str) -> Path:
        return self._folder / f"{name}{suffix}"

    def save(self, name: str, person: Person | str) -> None:
        """A person, or why there is none; the JSON comes last, so that what it tells of is there."""
        content: dict[str, Any] = {"fingerprint": self.fingerprint}
        if isinstance(person, str):
            content["left out"] = person
        else:
            content["skipped"] = person.skipped
            content["results"] = {}
            arrays: dict[str, NDArray[Any]] = {}
            for which, one in person.results.items():
                told = {"frames": one.frames, "scores": one.scores, "about": one.about}
                content["results"][str(which)] = told
                arrays |= {f"{which}/real": one.real, f"{which}/strip": one.strip}
                arrays |= {f"{which}/of {method}": features for method, features in one.features.items()}
            part = self._path(name, ".part.npz")
            with part.open("wb") as file:
                np.savez_compressed(file, **arrays)
            part.replace(self._path(name, ".npz"))
        part = self._path(name, ".json.part")
        part.write_text(json.dumps(content), encoding="utf-8")
        part.replace(self._path(name, ".json"))

    def load(self, name: str) -> Person | str | None:
        """The person, or why they were left out, or `None` where nothing fitting is stored."""
        try:
            content = json.loads(self._path(name, ".json").read_text(encoding="utf-8"))
            if content.get("fingerprint") != self.fingerprint:
                return None
            if "left out" in content:
                return str(content["left out"])
            results: dict[Which, Result] = {}
            with np.load(self._path(name, ".npz"), allow_pickle=False) as stored:
                for title, told in content["results"].items():
                    features = {method: stored[f"{title}/of {method}"] for method in told["scores"]}
                    results[Which.parse(title)] = Result(
                        told["frames"],
                        told["scores"],
                        features,
                        stored[f"{title}/real"],
                        stored[f"{title}/strip"],
                        told["about"],
                    )
            return Person(name, results, content["skipped"])
        except (OSError, ValueError, KeyError):
            return None


def evaluate(
    folder: Path, bases: dict[str, Base], config: Config, out: Path, options: Options, makers: Sequence[Maker] = ()
) -> list[Person]:
    """Everybody of the split (or as many, drawn by the seed); the files are rewritten after each person.

    `bases`: the product's first (by the name `TUNED`), then those to compare with. `makers` add further methods, and
    are not known to what is stored: take another `out` when they change.
    """
    index = {name: clips[: options.clips or None] for name, clips in read_index(folder, options.split).items()}
    names = [sorted(index)[place] for place in np.random.default_rng(options.seed).permutation(len(index))]
    ours = bases[TUNED]
    record = json.loads((ours.folder / "base.json").read_text(encoding="utf-8")).get("record", {})
    told = {"base": ours.sha256[:12], "steps": record.get("steps"), "tune_s": config.enrol.tune_s, **asdict(options)}
    if len(bases) > 1:
        told["compared"] = {name: base.sha256[:12] for name, base in bases.items() if base is not ours}
    shared = {key: value for key, value in asdict(options).items() if key != "people"}
    hashes = {name: base.sha256 for name, base in bases.items()}
    store = Store(out, {"folder": folder.resolve(), "bases": hashes, "config": asdict(config), **shared})
    everyone = [*(understudy(base, name, own=base is ours) for name, base in bases.items()), *makers]
    done: list[Person] = []
    left_out: dict[str, str] = {}
    judge: Judge | None = None
    for name in names[: options.people or len(names)]:
        began = time.monotonic()
        person = store.load(name)
        if person is None:
            judge = judge or Judge()
            others = drivers(name, names, options.cross)
            try:
                person = evaluate_person(name, index, others, everyone, config, judge, options)
            except (LeftOutError, FFmpegError) as error:
                person = str(error)
            store.save(name, person)
        if isinstance(person, str):
            left_out[name] = person
            logger.info("%s is left out: %s", name, person)
            continue
        done.append(person)
        first = next(iter(person.results.values()))
        summary = ", ".join(f"{method} {scores['lpips']:.3f}" for method, scores in first.scores.items())
        logger.info("%s, %d frames, %.0f s: LPIPS %s", name, first.frames, time.monotonic() - began, summary)
        write(done, left_out, told, MAX_PHOTOS, out, final=False)
    if judge is not None:
        judge.close()
    if not done:
        raise ValueError(f"nobody of the split {options.split!r} could be evaluated: {left_out}")
    write(done, left_out, told, MAX_PHOTOS, out, final=True)
    return done


def read_bases(shipped: Path | None, compared: Sequence[str]) -> dict[str, Base]:
    """Bases by their names in the table: `FOLDER` or `FOLDER=NAME` each. Raises `ValueError`."""
    bases = {TUNED: open_base(shipped)}
    for one in compared:
        folder, _, name = one.partition("=")
        name = name or Path(folder).name
        taken = {TRUTH, NEAREST, WHOLE_HEAD, UNTUNED, OWN, *bases}
        if {name, f"{name}, not tuned"} & taken:
            raise ValueError(f"there is a method named {name!r} already: give another one, --compare {folder}=NAME")
        bases[name] = open_base(Path(folder))
    if wrong := [name for name, base in bases.items() if base.size_px != SIZE_PX]:
        raise ValueError(f"the base {wrong[0]!r} draws {bases[wrong[0]].size_px} px; measured is at {SIZE_PX} px")
    return bases


def _shots(text: str) -> tuple[int, ...]:
    shots = tuple(sorted({int(one) for one in text.split(",")}))
    if shots[0] < 1:
        raise ValueError(text)
    return shots


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "folder", type=Path, nargs="?", default=Path("heads"), help="clips, with index.tsv; heads if left out"
    )
    parser.add_argument("--split", default="test")
    parser.add_argument("--base", type=Path, help="folder of a base (training.export); the shipped one if left out")
    parser.add_argument(
        "--compare", action="append", default=[], metavar="FOLDER[=NAME]", help="another base; may be repeated"
    )
    parser.add_argument("--paper", type=Path, help="checkpoint of the preset paper: two more rows")
    parser.add_argument("--paper-epochs", type=int, default=40, help="of its fine-tuning")
    parser.add_argument("--out", type=Path, default=Path("runs/evaluate"))
    parser.add_argument("--people", type=int, default=0, help="how many, drawn by the seed; 0 = all")
    parser.add_argument("--frames", type=int, default=40, help="measured frames of each person (and of each driver)")
    parser.add_argument("--clips", type=int, default=0, help="of each person, the longest first; 0 = all")
    parser.add_argument("--shots", type=_shots, default=(MAX_PHOTOS,), help="photos, e.g. 1,8,32")
    parser.add_argument("--cross", type=int, nargs="?", const=1, default=0, help="others that drive each person")
    parser.add_argument(
        "--factors", action="store_true", help="instead: does each factor follow its own source? (evaluate_factors.py)"
    )
    parser.add_argument("--tune-s", type=float, help="seconds of fine-tuning; config.toml's if left out")
    parser.add_argument("--seed", type=int, default=0)
    told = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    config = configs.load()
    tune_s = config.enrol.tune_s if told.tune_s is None else told.tune_s
    render = replace(config.render, size_px=SIZE_PX, background="photo", motion="absolute")
    config = replace(config, render=render, enrol=replace(config.enrol, tune_s=tune_s))
    try:
        bases = read_bases(told.base, told.compare)
        if told.factors:
            if told.compare or told.paper or told.cross or told.shots != (MAX_PHOTOS,):
                raise ValueError(
                    "--factors measures one base from eight photos: without --compare, --paper, --cross, --shots"
                )
            evaluate_factors(
                told.folder, bases[TUNED], config, told.out, told.split, told.people, told.frames, told.clips, told.seed
            )
            logger.info("%s", (told.out / "factors.md").read_text(encoding="utf-8"))
            return
        options = Options(told.split, told.people, told.frames, told.clips, told.seed, told.shots, told.cross)
        makers = [zakharov(told.paper, chosen_terms(), told.paper_epochs)] if told.paper else []
        evaluate(told.folder, bases, config, told.out, options, makers)
    except (ValueError, OSError) as error:
        parser.exit(1, f"{error}\n")
    logger.info("%s", (told.out / "evaluate.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
