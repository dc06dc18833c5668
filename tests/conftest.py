"""The fakes: photographs of people who do not exist, and faces made of the canonical model, pose known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image as Pillow

from engine.avatar import Avatar, Reference
from engine.backends.cuda import has_driver
from engine.base import Base
from engine.frames import Face, Image, Points
from engine.tracker import canonical_face, fit_pose

FACES = Path(__file__).parent / "faces"


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("needs_gpu") and not has_driver():
        pytest.skip("there is no NVIDIA driver here")


def photo(name: str) -> Image:
    """A picture from `tests/faces`, `[256, 256, 3]`: man_still, man_speaking or woman_turned."""
    with Pillow.open(FACES / f"{name}.jpg") as opened:
        return np.asarray(opened.convert("RGB"))


@pytest.fixture(scope="session")
def face_photo() -> Image:
    """A man who does not exist, looking at the camera, mouth closed; read-only."""
    return photo("man_still")


@pytest.fixture(scope="session")
def speaking_photo() -> Image:
    """The same man with his mouth open."""
    return photo("man_speaking")


@pytest.fixture(scope="session")
def turned_photo() -> Image:
    """A woman who does not exist, her head turned and tilted."""
    return photo("woman_turned")


def rotation_from_euler(yaw_deg: float, pitch_deg: float, roll_deg: float) -> NDArray[np.float64]:
    """The `Face.rotation` that `engine.tracker.euler_deg` reads as these angles, built axis by axis."""
    yaw, pitch, roll = np.radians([-yaw_deg, -pitch_deg, roll_deg])
    about_x, about_y, about_z = (np.eye(3, dtype=np.float64) for _ in range(3))
    about_x[1:, 1:] = [[np.cos(pitch), -np.sin(pitch)], [np.sin(pitch), np.cos(pitch)]]
    about_y[::2, ::2] = [[np.cos(yaw), np.sin(yaw)], [-np.sin(yaw), np.cos(yaw)]]
    about_z[:2, :2] = [[np.cos(roll), -np.sin(roll)], [np.sin(roll), np.cos(roll)]]
    frontal = np.diag(np.array([1.0, -1.0, -1.0]))
    return about_z @ about_y @ about_x @ frontal


def _canonical_points_cm(mouth_open_cm: float) -> NDArray[np.float64]:
    """478 points in the canonical model's axes: its 468, and irises in the middle of the eyes."""
    canonical = canonical_face().vertices_cm.astype(np.float64)
    lower_lip = [14, 17, 84, 87, 178, 181, 314, 317, 402, 405, 152, 148, 377, 175, 199, 200]
    canonical[lower_lip, 1] -= mouth_open_cm
    irises = []
    for corners in ((33, 133), (362, 263)):
        middle = canonical[list(corners)].mean(axis=0)
        ring = np.array([[0, 0, 0], [0.6, 0, 0], [0, 0.6, 0], [-0.6, 0, 0], [0, -0.6, 0]])
        irises.append(middle + ring)
    return np.concatenate([canonical, *irises])


@pytest.fixture(scope="session")
def make_face() -> Callable[..., Face]:
    """`make_face(yaw_deg=, pitch_deg=, roll_deg=, center_px=, scale=, mouth_open_cm=, time_s=)` -> `Face`."""

    def make(
        yaw_deg: float = 0.0,
        pitch_deg: float = 0.0,
        roll_deg: float = 0.0,
        center_px: tuple[float, float] = (128.0, 128.0),
        scale: float = 8.0,
        mouth_open_cm: float = 0.0,
        time_s: float = 0.0,
        size_px: tuple[int, int] = (256, 256),
    ) -> Face:
        rotation = rotation_from_euler(yaw_deg, pitch_deg, roll_deg)
        translation = np.array([*center_px, 0.0])
        points: Points = (scale * _canonical_points_cm(mouth_open_cm) @ rotation.T + translation).astype(np.float32)
        return Face(
            points=points,
            rotation=rotation.astype(np.float32),
            translation=translation.astype(np.float32),
            scale=scale,
            visibility=1.0,
            size_px=size_px,
            time_s=time_s,
        )

    return make


# --- a network, a base and an avatar, all tiny --------------------------------------------------------------


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    """A base with a tiny network of random weights: it copies its references about, and says nothing sensible."""
    import torch

    from training.export import write_base
    from training.meta_learn import PRESETS
    from training.networks.live import LiveGenerator

    torch.manual_seed(0)
    generator = LiveGenerator(PRESETS["tiny"])
    with torch.no_grad():
        torch.nn.init.normal_(generator.motion.leave.weight, std=0.02)  # so that the motion depends on what is seen
    return write_base(generator, tmp_path_factory.mktemp("base"), {"note": "tiny, random"})


def landmarks(name: str) -> Points:
    """What the tracker sees in a picture of `tests/faces`, `[478, 3]` pixels of it."""
    with np.load(FACES / "landmarks.npz", allow_pickle=False) as stored:
        return stored[name]


def reference_of(name: str) -> Reference:
    """A picture of `tests/faces` as an enrolled reference of 512 px, its person an ellipse."""
    large = np.asarray(cv2.resize(photo(name), (512, 512), interpolation=cv2.INTER_CUBIC), np.uint8)
    points = landmarks(name) * np.float32(2)
    matte = np.zeros((512, 512), np.uint8)
    cv2.ellipse(matte, (256, 290), (150, 220), 0, 0, 360, [255], -1)
    matte = np.asarray(cv2.GaussianBlur(matte, (0, 0), 6), np.uint8)
    return Reference(large, matte, points, *fit_pose(points, canonical_face()))


@pytest.fixture(scope="session")
def tiny_references() -> tuple[Reference, ...]:
    """A man silent, speaking, and a woman turned aside: pictures that cannot be mistaken for one another."""
    return tuple(reference_of(name) for name in ("man_still", "man_speaking", "woman_turned"))


def untuned(name: str, base: Base, references: tuple[Reference, ...]) -> Avatar:
    """An avatar of references of 512 px, not fine-tuned."""
    from training.enrol import Person, to_shots
    from training.export import load_generator

    person = Person(load_generator(base.weights), to_shots(references, base.size_px))
    return Avatar(
        name=name,
        created="2026-01-31T12:34:56Z",
        base=base.sha256,
        size_px=512,
        references=references,
        embedding=person.embedding[0].numpy(),
        tuned=person.tuned(),
        neutral=references[0].points,
        checks={},
    )


@pytest.fixture(scope="session")
def tiny_avatar(tiny_base: Base, tiny_references: tuple[Reference, ...]) -> Avatar:
    """An avatar over `tiny_base`."""
    return untuned("tiny", tiny_base, tiny_references)
