"""Shards -> episodes: K support frames of a person and one target frame that is never among them.

An episode already holds what the generator is conditioned on: which reference stands in slot A and which ones serve the
rest, the eyes and the mouth, chosen by the rule of the live renderer (`engine.geometry.misfit`) or, now and then, by
chance, so that the network learns to distrust a reference that does not fit.
"""

from __future__ import annotations

import functools
import logging
import tarfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from engine import geometry
from engine.frames import Image, Points
from engine.tracker import canonical_face
from training.networks.face import alignment
from training.ranks import Stacked
from training.shards import KeptFrame as KeptFrame
from training.shards import NewerShardError, read_shard

logger = logging.getLogger(__name__)

UNAIDED = 0.2
"""Share of episodes without a reference that has the target's eyes, or mouth: a blink from open eyes, teeth from shut
lips. Some of them have few references, too."""


class Shot(Protocol):
    """A picture of somebody, with what is known of it."""

    @property
    def clip(self) -> str: ...

    @property
    def number(self) -> int: ...

    @property
    def points(self) -> Points: ...

    def rgb(self) -> Image: ...

    def matte(self, size_px: int) -> NDArray[np.uint8]: ...


def load_shards(folder: Path, split: str) -> dict[str, dict[str, list[Shot]]]:
    """person -> clip -> its shots in order; a clip's name is its shard's path in the folder.

    Raises `ValueError` when the folder has no shard of that split, or one that is damaged or of a newer format.
    """
    people: dict[str, dict[str, list[Shot]]] = defaultdict(dict)
    for path in sorted(folder.rglob("*.tar")):
        clip = path.relative_to(folder).as_posix().removesuffix(".tar")
        try:
            person, frames = read_shard(path, split, clip)
        except NewerShardError as error:
            raise ValueError(str(error)) from error
        except (tarfile.TarError, OSError, EOFError, KeyError, TypeError, ValueError) as error:
            why = " ".join(str(error).split())
            remedy = "delete it and run python -m training.prepare again"
            raise ValueError(f"{path} is damaged ({why}): {remedy}") from error
        if frames:
            people[person][clip] = [*frames]
    if not people:
        raise ValueError(f"{folder} holds no shard of the split {split!r}: run python -m training.prepare first")
    return dict(people)


@dataclass(slots=True)
class Sample:
    """One episode, tensors without a batch dimension; S = 256, shapes as `LiveGenerator.forward` names them."""

    target: Tensor
    """`[4, S, S]`: RGB in -1..1 and matte in 0..1."""
    pictures: Tensor
    """`[4, 4, S, S]`: slot A, then rest, eyes, mouth."""
    rasters: Tensor
    """`[4, 3, S/2, S/2]`, of the same references."""
    raster: Tensor
    grids: Tensor
    tile: Tensor
    detail: Tensor
    background: Tensor
    """`[]`: 1 when target and slot A share a background that stands still, else near 0."""
    focus: Tensor
    """`[1, S, S]`: 1 on eyes and mouth of the target."""
    placed: Tensor
    """`[2, 3]`: where the target's aligned face lies (`training.networks.face.alignment`)."""


def collate(samples: list[Sample]) -> Sample:
    return Sample(**Stacked(Sample)(samples))


def to_image(rgb: Tensor) -> Image:
    """`[3, H, W]`, cut to -1..1 -> `[H, W, 3]`."""
    levels = ((rgb.float().clamp(-1, 1) + 1) * 127.5).round().byte()
    return np.asarray(levels.permute(1, 2, 0).cpu().numpy(), np.uint8)


def picture_tensor(rgb: Image, matte: NDArray[np.uint8]) -> Tensor:
    """-> `[4, S, S]`: RGB in -1..1 and matte in 0..1."""
    stacked = np.dstack([rgb.astype(np.float32) / 127.5 - 1, matte.astype(np.float32) / 255])
    return torch.from_numpy(np.ascontiguousarray(stacked.transpose(2, 0, 1)))


def raster_tensor(raster: NDArray[np.uint8]) -> Tensor:
    """`[h, h, 3]` uint8 -> `[3, h, h]` in 0..1."""
    return torch.from_numpy(np.ascontiguousarray(raster.transpose(2, 0, 1)).astype(np.float32) / 255)


def conditioning_tensors(conditioning: geometry.Conditioning) -> dict[str, Tensor]:
    """What `LiveGenerator.forward` takes per frame, without a batch dimension."""
    return {
        "raster": raster_tensor(conditioning.raster),
        "grids": torch.from_numpy(conditioning.grids),
        "tile": torch.from_numpy(conditioning.tile),
        "detail": torch.from_numpy(conditioning.detail)[None],
    }


def _similarity(
    rng: np.random.Generator, zoom: tuple[float, float], shift: float, turn_deg: float, size_px: int
) -> NDArray[np.float32]:
    """A random similarity about the picture's centre, `[2, 3]`, in pixels; `zoom` bounds the size's logarithm."""
    factor = float(np.exp(rng.uniform(*zoom)))
    matrix = cv2.getRotationMatrix2D((size_px / 2, size_px / 2), float(rng.uniform(-turn_deg, turn_deg)), factor)
    matrix[:, 2] += rng.uniform(-shift, shift, 2) * size_px
    return matrix.astype(np.float32)


@functools.cache
def mirror_table() -> NDArray[np.int64]:
    """Which point of a mirrored face each of the 478 becomes."""
    vertices = canonical_face().vertices_cm
    mesh = np.linalg.norm(vertices[:, None] * [-1, 1, 1] - vertices[None], axis=-1).argmin(1)
    return np.concatenate([mesh, [473, 476, 475, 474, 477, 468, 471, 470, 469, 472]])


def _mirrored(
    rgb: Image, matte: NDArray[np.uint8], points: Points, table: NDArray[np.int64]
) -> tuple[Image, NDArray[np.uint8], Points]:
    points = points[table]
    points[:, 0] = rgb.shape[1] - points[:, 0]
    return np.ascontiguousarray(rgb[:, ::-1]), np.ascontiguousarray(matte[:, ::-1]), points


def _moved(
    rgb: Image, matte: NDArray[np.uint8], points: Points, matrix: NDArray[np.float32]
) -> tuple[Image, NDArray[np.uint8], Points]:
    size = (rgb.shape[1], rgb.shape[0])
    points = points.copy()
    points[:, :2] = points[:, :2] @ matrix[:, :2].T + matrix[:, 2]
    points[:, 2] *= float(np.sqrt(abs(np.linalg.det(matrix[:, :2]))))
    pixel = matrix.copy()
    pixel[:, 2] += matrix[:, :2] @ np.full(2, 0.5, np.float32) - 0.5
    rgb, matte = (
        np.asarray(
            cv2.warpAffine(one, pixel, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101), np.uint8
        )
        for one in (rgb, matte)
    )
    return rgb, matte, points


def choose(
    target: dict[str, NDArray[np.float32]], references: list[dict[str, NDArray[np.float32]]]
) -> NDArray[np.int64]:
    """The reference that fits each zone best, `[3]` in the order of `geometry.ZONES`."""
    return np.stack([geometry.misfit(target, reference) for reference in references]).argmin(0)


def rarity(shots: Sequence[Shot]) -> NDArray[np.float64]:
    """How often each shot of a clip is to be a target, summing to one: a shut eye or an open mouth up to four times
    as often as the usual face, since both are rare and nothing is harder to draw from other pictures."""
    told = [geometry.describe(shot.points) for shot in shots]
    lids = np.array([one["eyes"][:2].mean() for one in told])
    opening = np.array([one["mouth"][0] for one in told])
    shut = np.clip(1 - lids / max(float(np.median(lids)), 1e-3), 0, 1)
    wide = np.clip(np.abs(opening - np.median(opening)) / 1.5, 0, 1)
    odds = 1 + 3 * np.maximum(np.clip(2 * shut, 0, 1), wide)
    return odds / odds.sum()


def least_alike(target: Shot, pool: Sequence[Shot], part: str) -> list[Shot]:
    """The half of the pool whose eyes, or mouth, are least like the target's (`geometry.describe`)."""
    wanted = geometry.describe(target.points)[part]
    far = [float(np.linalg.norm(geometry.describe(shot.points)[part] - wanted)) for shot in pool]
    order = np.argsort(far)[len(pool) // 2 :]
    return [pool[index] for index in order]


class Episodes(Dataset[Sample]):
    """Endless and numbered: episode n depends on the seed and on n alone, whoever draws it and whenever."""

    def __init__(
        self,
        people: Mapping[str, Mapping[str, Sequence[Shot]]],
        shots: int = 8,
        size_px: int = 256,
        seed: int = 0,
        augment: bool = True,
        also: Mapping[str, Mapping[str, Sequence[Shot]]] | None = None,
        also_share: float = 0.0,
    ) -> None:
        """`also`: more people, none of `people`, in `also_share` of the episodes."""
        people = {**people, **(also or {})}
        self.people = {person: clips for person, clips in people.items() if sum(map(len, clips.values())) > 1}
        self.names = sorted(self.people)
        if not self.names:
            raise ValueError("nobody here has two pictures, and an episode takes two")
        frames = np.array([sum(map(len, self.people[name].values())) for name in self.names], np.float64)
        self.odds = np.sqrt(frames) / np.sqrt(frames).sum()
        if also:
            more = np.array([name in also for name in self.names])
            if more.all() or not more.any():
                raise ValueError("nobody of the one shards or of the other has two pictures, and an episode takes two")
            self.odds *= np.where(more, also_share / self.odds[more].sum(), (1 - also_share) / self.odds[~more].sum())
        self.rarity = {
            person: {name: rarity(shots_) for name, shots_ in clips.items()} for person, clips in self.people.items()
        }
        self.shots, self.size_px, self.seed, self.augment = shots, size_px, seed, augment

    def __getitem__(self, number: int) -> Sample:
        return self.draw(np.random.default_rng([self.seed, number]))

    def draw(self, rng: np.random.Generator) -> Sample:
        person = self.names[rng.choice(len(self.names), p=self.odds)]
        clips = self.people[person]
        names = sorted(clips)
        lengths = np.array([len(clips[name]) for name in names], np.float64)
        home = names[rng.choice(len(names), p=lengths / lengths.sum())]
        target = clips[home][rng.choice(len(clips[home]), p=self.rarity[person][home] if self.augment else None)]
        pool = [shot for shot in clips[home] if shot is not target]
        others = [shot for name in names if name != home for shot in clips[name]]
        if others and (not pool or rng.random() < 0.2):
            pool = others
        # Neighbours in time would make it too easy: leave them out while enough others remain.
        distant = [shot for shot in pool if shot.clip != target.clip or abs(shot.number - target.number) > 12]
        pool = distant if len(distant) >= 2 else pool
        count = self.shots
        if self.augment and len(pool) >= 4 and rng.random() < UNAIDED:
            part = "eyes" if rng.random() < 0.5 else "mouth"
            pool = least_alike(target, pool, part)
            count = int(rng.integers(1, self.shots + 1))
        support = [pool[index] for index in rng.permutation(len(pool))[:count]]
        return self.episode(target, support, rng)

    def episode(self, target: Shot, support: Sequence[Shot], rng: np.random.Generator) -> Sample:
        wanted = geometry.describe(target.points)
        offered = [geometry.describe(shot.points) for shot in support]
        best = choose(wanted, offered)
        random = rng.integers(len(support), size=3)
        zones = np.where(rng.random(3) < 0.65, best, random)
        placed = [geometry.to_crop_units(shot.points, self.size_px) for shot in (target, *support)]
        whole = int(geometry.whole_misfit(wanted, offered, placed[0], np.stack(placed[1:])).argmin())
        slot_a = int(rng.choice([whole, best[0], random[0]], p=[0.6, 0.15, 0.25]))
        fade = np.ones(3, np.float32)
        if rng.random() < 0.3:
            fade = (rng.random(3) * rng.integers(0, 2, 3)).astype(np.float32)
        chosen = [support[slot_a], *(support[index] for index in zones)]
        return self.assemble(target, chosen, fade, self.size_px, rng if self.augment else None)

    @staticmethod
    def assemble(
        target: Shot,
        chosen: Sequence[Shot],
        fade: NDArray[np.float32],
        size: int,
        rng: np.random.Generator | None = None,
    ) -> Sample:
        """One episode of a target and its four references (slot A, rest, eyes, mouth); augmented when there is a `rng`.

        Augmentation mirrors, moves and tints all pictures together, and now and then each reference by itself.
        """
        together = np.eye(2, 3, dtype=np.float32)
        apart = mirrored = False
        gain, offset = np.ones(3, np.float32), np.zeros(3, np.float32)
        if rng is not None:
            if rng.random() < 0.5:
                together = _similarity(rng, (-0.15, 0.3), 0.06, 8.0, size)
            apart = bool(rng.random() < 0.2)
            mirrored = bool(rng.random() < 0.5)
            gain = (np.exp(rng.uniform(-0.2, 0.2)) * np.exp(rng.uniform(-0.06, 0.06, 3))).astype(np.float32)
            offset = np.full(3, rng.uniform(-12, 12), np.float32)

        def develop(shot: Shot, alone: bool) -> tuple[Tensor, Points]:
            rgb, matte, points = shot.rgb(), shot.matte(size), shot.points
            if rng is not None:
                matrix = together
                if alone:
                    own = np.vstack([_similarity(rng, (-0.08, 0.08), 0.04, 6.0, size), [0, 0, 1]])
                    matrix = (own @ np.vstack([together, [0, 0, 1]]))[:2].astype(np.float32)
                if mirrored:
                    rgb, matte, points = _mirrored(rgb, matte, points, mirror_table())
                rgb, matte, points = _moved(rgb, matte, points, matrix)
                rgb = np.clip(rgb * gain + offset, 0, 255).astype(np.uint8)
            return picture_tensor(rgb, matte), geometry.to_crop_units(points, size)

        target_picture, target_points = develop(target, False)
        developed: dict[int, tuple[Tensor, Points]] = {}
        for shot in chosen:
            if id(shot) not in developed:
                developed[id(shot)] = develop(shot, apart)
        references = [developed[id(shot)] for shot in chosen]
        points = np.stack([one[1] for one in references])
        trust = None
        if rng is None or rng.random() < 0.7:  # as a call draws it
            told = [geometry.describe(one) for one in points]
            trust = geometry.trust(geometry.describe(target_points), told[0], told[1:])
        focus = np.zeros((size, size), np.uint8)
        for part in (geometry.LIPS_OUTER, geometry.EYE_LEFT, geometry.EYE_RIGHT):
            outline = cv2.convexHull(np.round((target_points[part, :2] + 1) * size / 2).astype(np.int32))
            cv2.fillConvexPoly(focus, outline, [255])
        focus = cv2.blur(cv2.dilate(focus, np.ones((5, 5), np.uint8)), (5, 5))
        still = target.clip == chosen[0].clip and not apart
        return Sample(
            target=target_picture,
            pictures=torch.stack([one[0] for one in references]),
            rasters=torch.stack([raster_tensor(geometry.raster(one[1])) for one in references]),
            **conditioning_tensors(geometry.condition(target_points, points, fade, trust)),
            background=torch.tensor(1.0 if still else 0.05),
            focus=torch.from_numpy(focus[None].astype(np.float32) / 255),
            placed=torch.from_numpy(alignment((target_points + np.array([1, 1, 0], np.float32)) * (size / 2), size)),
        )
