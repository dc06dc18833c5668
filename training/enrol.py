"""Photos -> checked photos -> a fine-tuned person -> the avatar file, and a contact sheet to judge it by.

Fine-tuning follows Zakharov et al. 2019, section 3.3, for the live generator: the person's AdaIN constants start as
P e and become free numbers, tuned together with the layers that turn features into pixels and motion. Every photo is
drawn from the others; those held back decide when to stop, and the better of before and after is kept.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from engine import avatar as avatars
from engine import geometry
from engine.avatar import Avatar, Reference
from engine.base import Base
from engine.config import Config
from engine.frames import Face, Frame, Image, Points
from engine.motion import HeadFace, neutrality, to_head
from engine.references import ReferenceChooser
from engine.renderer import Generator, avatar_face, resized
from engine.tracker import Tracker, canonical_face, fit_pose
from training import losses, photos
from training.borrowed import borrow
from training.episodes import Episodes, Sample, collate, picture_tensor, raster_tensor
from training.export import load_generator
from training.identity import SFace
from training.matte import Matter
from training.networks.face import FaceFeatures, alignment, cut_faces
from training.networks.live import TUNED, Drawn, LiveGenerator, atlas, thumbnail
from training.networks.perceptual import LPIPS
from training.photos import CheckedPhoto, PhotoError

logger = logging.getLogger(__name__)

CROP_PX = 512
MAX_PHOTOS = 8
"""So many photos an avatar holds; of more, those least alike."""
Report = Callable[[str, int, int], None]
"""Told as work goes on: stage, done, of how many."""

_WEIGHTS = {"l1": 0.5, "synthesis": 0.2, "matte": 0.1, "lpips": 1.0, "likeness": 0.5}
_LEAST_TO_TUNE = 3
_ENOUGH_FOR_TWO = 6
_PATIENCE = 4
_RATE = 1e-3
_BATCH = 2
_SAME_SCENE_LEVELS = 14.0
_SHEET_SUFFIXES = (".png", ".jpg", ".jpeg")


@dataclass(frozen=True, slots=True, eq=False)
class PersonShot:
    """A photo of the person at the network's size, in the shape `Episodes` draws from."""

    clip: str
    """Photos with the same background share it."""
    number: int
    picture: Image
    mask: NDArray[np.uint8]
    points: Points

    def rgb(self) -> Image:
        return self.picture

    def matte(self, size_px: int) -> NDArray[np.uint8]:
        return np.asarray(cv2.resize(self.mask, (size_px, size_px), interpolation=cv2.INTER_LINEAR), np.uint8)


@dataclass(slots=True)
class Enrolment:
    """What came of it."""

    photos: list[CheckedPhoto]
    advice: list[str]
    avatar: Avatar
    path: Path
    contact: Path | None = None
    seconds: dict[str, float] = field(default_factory=dict)


def check_photos(
    paths: Sequence[Path], open_clip: Callable[[Path], Iterable[Frame]] | None, most: int, report: Report
) -> list[CheckedPhoto]:
    """Every photo (and the best frames of every video) with its verdict, in the order given.

    Raises `PhotoError` with one sentence when none can be used.
    """
    found = photos.gather(paths)
    with Tracker(video=False, max_faces=4) as tracker:
        checked = []
        for number, path in enumerate(found):
            report("checking photos", number, len(found))
            checked.extend(photos.open_all([path], tracker, open_clip))
    judged = photos.compare(checked, SFace() if len(checked) > 1 else None)
    usable = [photo for photo in judged if photo.verdict != "refused"]
    report("checking photos", len(found), len(found))
    if not usable:
        reasons = "; ".join(f"{photo.name}: {photo.reasons[0]}" for photo in judged[:8])
        raise PhotoError(f"no photo can be used ({reasons})")
    for photo in spread(usable, len(usable))[most:]:
        judged[judged.index(photo)] = photo.refused(f"more than {most} photos: this one adds the least")
    return judged


def spread(usable: list[CheckedPhoto], count: int) -> list[CheckedPhoto]:
    """Up to `count` photos, each the one least like those before it, the most neutral first (farthest-point order)."""
    told = [geometry.describe(photo.face.points) for photo in usable if photo.face is not None]
    first = int(np.argmin([neutrality(photo.face) for photo in usable if photo.face is not None]))
    chosen = [first]
    distance = np.full(len(usable), np.inf)
    while len(chosen) < min(count, len(usable)):
        last = told[chosen[-1]]
        distance = np.minimum(
            distance, [sum(float(np.linalg.norm(last[part] - one[part])) for part in last) for one in told]
        )
        distance[chosen] = -1
        chosen.append(int(distance.argmax()))
    return [usable[index] for index in chosen]


def to_reference(photo: CheckedPhoto, matter: Matter) -> Reference:
    """Crop, matte and pose of one usable photo."""
    assert photo.rgb is not None and photo.face is not None
    cropped = photos.crop(photo.rgb, photo.face, CROP_PX)
    rotation, translation, scale = fit_pose(cropped.points, canonical_face())
    return Reference(cropped.rgb, matter.matte(cropped.rgb), cropped.points, rotation, translation, scale)


def to_shots(references: Sequence[Reference], size_px: int) -> list[PersonShot]:
    """References at the network's size, those with the same background marked as one clip."""
    shots: list[PersonShot] = []
    for number, one in enumerate(references):
        side = one.rgb.shape[0]
        picture, mask = resized(one.rgb, size_px), resized(one.matte, size_px)
        scene = next((shot.clip for shot in shots if _same_scene(shot, picture, mask)), f"scene {number}")
        shots.append(PersonShot(scene, number, picture, mask, one.points * np.float32(size_px / side)))
    return shots


def _same_scene(shot: PersonShot, picture: Image, mask: NDArray[np.uint8]) -> bool:
    free = (shot.mask < 8) & (mask < 8)
    if free.mean() < 0.05:
        return False
    return float(np.median(np.abs(shot.picture[free].astype(np.int16) - picture[free]))) < _SAME_SCENE_LEVELS


class Person:
    """What is tuned: the AdaIN constants and the weights of `TUNED`, over a base that stays as it is."""

    def __init__(self, generator: LiveGenerator, shots: Sequence[PersonShot]) -> None:
        self.generator = generator.requires_grad_(False)
        pictures, rasters = _references(shots, generator.options.size_px)
        with torch.no_grad():
            self.embedding = generator.embed(pictures, rasters)
            self.modulation = generator.modulate(self.embedding).clone().requires_grad_(True)
        self.weights = [weight.detach().clone().requires_grad_(True) for weight in generator.tuned_weights()]

    def parameters(self) -> list[Tensor]:
        return [self.modulation, *self.weights]

    def draw(self, sample: Sample) -> Drawn:
        """As in a call: references encoded by the base, everything else by the person's own numbers."""
        small = self.generator.options.size_px // 4
        return self.generator(
            sample.raster,
            sample.grids,
            sample.tile,
            sample.detail,
            atlas(sample.pictures),
            atlas(thumbnail(sample.pictures, small)),
            thumbnail(sample.rasters[:, 0], small),
            atlas(self.generator.encode(sample.pictures, sample.rasters)),
            self.modulation.expand(len(sample.raster), -1),
            tuned=self.weights,
        )

    def snapshot(self) -> list[Tensor]:
        return [value.detach().clone() for value in self.parameters()]

    def restore(self, snapshot: Sequence[Tensor]) -> None:
        with torch.no_grad():
            for value, kept in zip(self.parameters(), snapshot, strict=True):
                value.copy_(kept)

    def tuned(self) -> dict[str, NDArray[np.float16] | NDArray[np.float32]]:
        values = [value.detach().numpy().astype(np.float32) for value in self.parameters()]
        return dict(zip(("modulation", *TUNED), values, strict=True))


def _references(shots: Sequence[PersonShot], size_px: int) -> tuple[Tensor, Tensor]:
    pictures = torch.stack([picture_tensor(shot.rgb(), shot.matte(size_px)) for shot in shots])
    rasters = [raster_tensor(geometry.raster(geometry.to_crop_units(shot.points, size_px))) for shot in shots]
    return pictures[None], torch.stack(rasters)[None]


@dataclass(frozen=True, slots=True)
class Score:
    """How well a held-back photo is drawn."""

    lpips: float
    identity: float
    """SFace cosine to the photo itself."""

    @property
    def total(self) -> float:
        """What decides: lower is better."""
        return self.lpips + 0.5 * (1 - self.identity)

    @staticmethod
    def mean(scores: Sequence[Score]) -> Score:
        return Score(float(np.mean([one.lpips for one in scores])), float(np.mean([one.identity for one in scores])))


@dataclass(frozen=True, slots=True)
class Tuning:
    """How fine-tuning went. `after` is the better of the two, and the numbers that reached it were kept."""

    steps: int
    before: Score
    after: Score


def still_episode(target: PersonShot, support: Sequence[PersonShot], size_px: int) -> Sample:
    """`target` drawn from `support` as a call would: best references, nothing moved, all faded in. A batch of one."""
    chooser = ReferenceChooser([geometry.to_crop_units(shot.points, size_px) for shot in support])
    chosen, fade = chooser.choose(geometry.to_crop_units(target.points, size_px), 0.0)
    return collate([Episodes.assemble(target, [support[index] for index in chosen], fade, size_px)])


def _embedding(shot: PersonShot, size_px: int, face: FaceFeatures) -> Tensor:
    """`[1, E]`."""
    rgb = picture_tensor(shot.rgb(), shot.matte(size_px))[None, :3]
    return face(cut_faces(rgb, torch.from_numpy(alignment(shot.points, size_px))[None]))[0]


def join(samples: Sequence[Sample]) -> Sample:
    """Batches -> one batch."""
    return Sample(**{name: torch.cat([getattr(one, name) for one in samples]) for name in Sample.__slots__})


def fine_tune(
    person: Person,
    shots: Sequence[PersonShot],
    perceptual: LPIPS,
    face: FaceFeatures,
    budget_s: float,
    report: Report,
    seed: int = 0,
) -> Tuning | None:
    """Tune `person` on all shots but two (of few: one) held back. `None` when there are too few to learn from.

    What is judged, and kept, is the running mean of the numbers: two photos a step make every single step a noisy one.
    It is kept only when every photo held back is drawn better with it.
    """
    if len(shots) < _LEAST_TO_TUNE or budget_s <= 0:
        return None
    size = person.generator.options.size_px
    # Shots come in farthest-point order: the last ones are the easiest, so those from the middle are held back.
    learning = list(shots)
    held = [learning.pop(len(shots) // 2) for _ in range(2 if len(shots) >= _ENOUGH_FOR_TWO else 1)]
    still = join([still_episode(shot, learning, size) for shot in held])
    goal = still.target[:, :3]
    scored = losses.pixel_weight(still.target[:, 3:], still.background, still.focus)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        goal_features = perceptual.features(goal)

    def held_out() -> list[Score]:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            rgb = person.draw(still).rgb
            mixed, _ = losses.perceptual_pair(rgb, goal, scored, size, (0, 0))
            distances = perceptual.distance(perceptual.features(mixed), goal_features)
            return [
                Score(float(distance), 1 - float(losses.likeness(rgb[[k]], goal[[k]], still.placed[[k]], face)))
                for k, distance in enumerate(distances)
            ]

    # What the photos have in common is nearer to the next one than any of them is: 0.88 against 0.78 (ArcFace).
    with torch.no_grad():
        identity = F.normalize(torch.cat([_embedding(shot, size, face) for shot in learning]).mean(0), dim=0)
    rng = np.random.default_rng(seed)
    optimiser = torch.optim.Adam(
        [{"params": [person.modulation], "lr": _RATE}, {"params": person.weights, "lr": 0.5 * _RATE}],
        betas=(0.9, 0.99),
    )
    before = best = held_out()
    best_numbers, worse, step = person.snapshot(), 0, 0
    mean = person.snapshot()
    began = time.monotonic()
    while (spent := time.monotonic() - began) < budget_s and worse < _PATIENCE:
        report("fine-tuning", min(int(100 * spent / budget_s), 99), 100)
        batch = []
        for index in rng.permutation(len(learning))[:_BATCH]:
            others = [shot for shot in learning if shot is not learning[index]]
            support = [others[k] for k in rng.permutation(len(others))[: max(2, int(0.7 * len(others)))]]
            batch.append(still_episode(learning[index], support, size))
        sample = join(batch)
        with torch.autocast("cpu", torch.bfloat16):
            drawn = person.draw(sample)
            terms = losses.reconstruction(drawn, sample.target, sample.detail, sample.background, sample.focus)
            del terms["warp"]  # what each slot shows alone is of no account here, only the picture
            crop = 160
            corner = (
                int(rng.integers(0, size - crop + 1)),
                int(rng.integers((size - crop) // 4, (size - crop) * 3 // 4 + 1)),
            )
            weight = losses.pixel_weight(sample.target[:, 3:], sample.background, sample.focus)
            pair = losses.perceptual_pair(drawn.rgb, sample.target[:, :3], weight, crop, corner)
            with torch.no_grad():
                wanted = perceptual.features(pair[1])
            terms["lpips"] = perceptual.distance(perceptual.features(pair[0]), wanted).mean()
            embedding, _ = face(cut_faces(drawn.rgb, sample.placed))
            terms["likeness"] = (1 - embedding @ identity).mean()
        optimiser.zero_grad(set_to_none=True)
        losses.total(terms, _WEIGHTS).backward()
        if torch.isfinite(torch.nn.utils.clip_grad_norm_(person.parameters(), 1.0)):
            optimiser.step()
        step += 1
        for kept, value in zip(mean, person.snapshot(), strict=True):
            kept.lerp_(value, 1 / min(step + 1, 10))
        if step % 8 == 0 or time.monotonic() - began >= budget_s:
            running = person.snapshot()
            person.restore(mean)
            now = held_out()
            better = all(one.total < first.total - 5e-4 for one, first in zip(now, before, strict=True))
            if better and sum(one.total for one in now) < sum(one.total for one in best):
                best, best_numbers, worse = now, person.snapshot(), 0
            else:
                worse += 1
            person.restore(running)
    person.restore(best_numbers)
    report("fine-tuning", 100, 100)
    return Tuning(step, Score.mean(before), Score.mean(best))


def most_neutral(references: Sequence[Reference]) -> int:
    return int(np.argmin([neutrality(_as_face(one)) for one in references]))


def _as_face(one: Reference) -> Face:
    side = one.rgb.shape[0]
    return Face(one.points, one.rotation, one.translation, one.scale, 1.0, (side, side), 0.0)


def build(
    usable: list[CheckedPhoto], name: str, base: Base, config: Config, report: Report
) -> tuple[Avatar, list[Reference], Tuning | None]:
    """The avatar of checked photos, not yet written."""
    chosen = spread(usable, MAX_PHOTOS)
    with Matter() as matter:
        references = []
        for number, photo in enumerate(chosen):
            report("cropping and matting", number, len(chosen))
            references.append(to_reference(photo, matter))
    report("cropping and matting", len(chosen), len(chosen))
    lent = borrow(references) if config.enrol.borrow else []
    shots = to_shots(references, base.size_px)
    person = Person(load_generator(base.weights), shots)
    tuning = None
    if len(shots) >= _LEAST_TO_TUNE and config.enrol.tune_s > 0:
        tuning = fine_tune(person, shots, LPIPS("vgg").eval(), FaceFeatures(), config.enrol.tune_s, report)
    checks: dict[str, object] = {"photos": len(usable), "references": len(references)}
    if lent:
        checks["borrowed"] = [one.expression for one in lent]
    if tuning is not None:
        checks["steps"] = tuning.steps
        for when, score in (("before", tuning.before), ("after", tuning.after)):
            checks[f"lpips_{when}"] = round(score.lpips, 4)
            checks[f"identity_{when}"] = round(score.identity, 4)
    made = Avatar(
        name=name,
        created=avatars.now(),
        base=base.sha256,
        size_px=CROP_PX,
        references=(*references, *(one.reference for one in lent)),
        embedding=person.embedding[0].numpy().astype(np.float32),
        tuned=person.tuned(),
        neutral=references[most_neutral(references)].points,
        checks=checks,
    )
    return made, references, tuning


def avatar_of(paths: Sequence[Path], name: str, base: Base, config: Config) -> Avatar:
    """The avatar of some photos (or a folder of them), not written; nothing is told on the way. Raises `PhotoError`."""

    def quiet(stage: str, done: int, total: int) -> None:
        pass

    checked = check_photos(paths, None, config.enrol.max_photos, quiet)
    return build([photo for photo in checked if photo.verdict != "refused"], name, base, config, quiet)[0]


def enrol(
    paths: Sequence[Path],
    name: str,
    base: Base,
    config: Config,
    report: Report,
    open_clip: Callable[[Path], Iterable[Frame]] | None = None,
    contact: Path | None = None,
) -> Enrolment:
    """The whole of it: from files to a written avatar. An avatar of that name is replaced only at the very end.

    Raises `PhotoError`/`ValueError` with one sentence for input, `OSError` with one for the disk.
    """
    path = avatars.place(name)
    if contact is not None and contact.suffix.lower() not in _SHEET_SUFFIXES:
        raise ValueError(f"a contact sheet is a {' or '.join(_SHEET_SUFFIXES)}: {contact} does not end like that")
    seconds: dict[str, float] = {}
    clock = _Clock(seconds)
    checked = check_photos(paths, open_clip, config.enrol.max_photos, report)
    clock("check")
    usable = [photo for photo in checked if photo.verdict != "refused"]
    made, _, _ = build(usable, name, base, config, report)
    clock("fine-tune")
    report("writing", 0, 2)
    with _beside(contact, made, base, config):
        report("writing", 1, 2)
        avatars.save(made, path)
    report("writing", 2, 2)
    clock("write")
    return Enrolment(checked, photos.advice(checked), made, path, contact, seconds)


@contextmanager
def _beside(contact: Path | None, made: Avatar, base: Base, config: Config) -> Iterator[None]:
    """The contact sheet takes its place when the block has gone well; until then an older one stays."""
    if contact is None:
        yield
        return
    sheet = cv2.cvtColor(contact_sheet(made, base, config), cv2.COLOR_RGB2BGR)
    part = contact.with_name(f".{contact.name}.part")
    try:
        contact.parent.mkdir(parents=True, exist_ok=True)
        part.touch()
    except OSError as error:
        raise _unwritten(contact, error) from error
    try:
        try:
            part.write_bytes(cv2.imencode(contact.suffix, sheet)[1].tobytes())
        except OSError as error:
            raise _unwritten(contact, error) from error
        yield
        part.replace(contact)
    finally:
        part.unlink(missing_ok=True)


def _unwritten(contact: Path, error: OSError) -> OSError:
    return OSError(f"{contact} could not be written, and nothing was changed: {error.strerror}")


class _Clock:
    def __init__(self, seconds: dict[str, float]) -> None:
        self._seconds, self._last = seconds, time.monotonic()

    def __call__(self, name: str) -> None:
        now = time.monotonic()
        self._seconds[name] = now - self._last
        self._last = now


# --- contact sheet ------------------------------------------------------------------------------------------


def turned(face: HeadFace, yaw_deg: float, pitch_deg: float = 0.0) -> HeadFace:
    """The face turned aside or up about the middle of the head; signs as in `engine.tracker.euler_deg`."""
    turn = cv2.Rodrigues(np.radians(np.array([-pitch_deg, -yaw_deg, 0.0])))[0].astype(np.float32)
    return replace(face, rotation=turn @ face.rotation)


def new_poses(avatar: Avatar) -> Iterator[tuple[str, Points]]:
    """Poses and expressions nobody photographed, in crop units: turned, raised, speaking, blinking."""
    rest = to_head(avatar_face(avatar))

    def placed(face: HeadFace) -> Points:
        return geometry.to_crop_units(face.to_picture(), avatar.size_px)

    def shaped(change: Callable[[Points], None]) -> Points:
        shape = rest.shape.copy()
        change(shape)
        return placed(replace(rest, shape=shape))

    def speak(shape: Points) -> None:
        drop = 1.1
        shape[sorted(set(geometry.LOWER_LIP[4:])), 1] -= drop
        shape[sorted(set(geometry.JAW)), 1] -= 0.8 * drop

    def blink(shape: Points) -> None:
        for eye in (geometry.EYE_RIGHT, geometry.EYE_LEFT):
            for upper, lower in zip(eye[1:8], reversed(eye[9:]), strict=True):
                shape[upper, 1] = shape[lower, 1] + 0.05

    yield "turned left", placed(turned(rest, -18))
    yield "turned right", placed(turned(rest, 18))
    yield "looking up", placed(turned(rest, 0, 12))
    yield "looking down", placed(turned(rest, 0, -12))
    yield "speaking", shaped(speak)
    yield "blinking", shaped(blink)


def contact_sheet(avatar: Avatar, base: Base, config: Config, cell_px: int = 256) -> Image:
    """Three rows, drawn by the engine itself: the photos, each of them drawn from the others, and new poses.

    With a single photo the second row draws it from itself. What is borrowed stands at the end of the first row.
    """
    generator = Generator(avatar, base, config, base.size_px)
    borrowed = [one.borrowed for one in avatar.references]
    count = len(avatar.photos)
    everyone = range(len(borrowed))
    columns = max(len(borrowed), 6)
    sheet = np.full((3 * (cell_px + 26), columns * cell_px, 3), 255, np.uint8)

    def put(row: int, column: int, picture: Image, caption: str) -> None:
        top, left = row * (cell_px + 26), column * cell_px
        sheet[top : top + cell_px, left : left + cell_px] = cv2.resize(
            picture, (cell_px, cell_px), interpolation=cv2.INTER_AREA
        )
        place = (left + 6, top + cell_px + 18)
        cv2.putText(sheet, caption, place, cv2.FONT_HERSHEY_SIMPLEX, 0.5, (60, 60, 60), 1, cv2.LINE_AA)

    def drawn(points: Points, allowed: Sequence[int]) -> Image:
        known, zones = [generator.prepared[index].points for index in allowed], [borrowed[index] for index in allowed]
        chosen, fade = ReferenceChooser(known, borrowed=zones).choose(points, 0.0)
        return generator.draw(points, np.asarray(allowed)[chosen], fade)[0]

    for index, reference in enumerate(avatar.references):
        if reference.borrowed:
            put(0, index, reference.rgb, f"borrowed {reference.borrowed}")
            continue
        others = [other for other in everyone if other != index] if count > 1 else [*everyone]
        put(0, index, reference.rgb, f"photo {index + 1}")
        put(
            1,
            index,
            drawn(generator.prepared[index].points, others),
            "drawn from the others" if count > 1 else "drawn from itself",
        )
    for column, (caption, points) in enumerate(new_poses(avatar)):
        put(2, column, drawn(points, everyone), caption)
    return sheet
