"""A puppet: an enrolled avatar answers to a driver's face with a wide picture, and to settings with another one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from engine import avatar as avatars
from engine.avatar import Avatar
from engine.base import Base
from engine.config import Config, load
from engine.frames import Face, NoFace
from plugin import puppet as puppets
from plugin.puppet import EnrolledPuppet, EnrolledWardrobe, Settings
from plugin.speaking import Spoken


@pytest.fixture(scope="module")
def config() -> Config:
    shipped = load()
    return dataclasses.replace(
        shipped,
        camera=dataclasses.replace(shipped.camera, size_px="640x360"),
        render=dataclasses.replace(shipped.render, size_px=256),
    )


@pytest.fixture(scope="module")
def puppet(tiny_avatar: Avatar, tiny_base: Base, config: Config) -> EnrolledPuppet:
    return EnrolledPuppet(tiny_avatar, tiny_base, config)


def test_a_face_becomes_a_wide_picture(puppet: EnrolledPuppet, make_face: Callable[..., Face]) -> None:
    settings = Settings(background="color", color="#102030")
    first = puppet.draw(make_face(time_s=0.0), settings)
    assert first.shape == (360, 640, 3)
    assert tuple(first[5, 5]) == (0x10, 0x20, 0x30)
    assert np.abs(first[300, 320].astype(int) - (0x10, 0x20, 0x30)).max() > 20, "the person is in the middle"
    kept = first.copy()
    puppet.draw(make_face(yaw_deg=15, time_s=0.04), settings)
    puppet.draw(NoFace(0.08), settings)
    assert np.array_equal(first, kept), "a picture stays what it was for two more calls"
    assert puppet.describe()


def test_settings_change_the_picture(puppet: EnrolledPuppet, make_face: Callable[..., Face], tmp_path: Path) -> None:
    backdrop = tmp_path / "sea.png"
    cv2.imwrite(str(backdrop), np.full((90, 120, 3), (200, 100, 0), np.uint8))
    corners = {}
    for number, settings in enumerate(
        [Settings(background="green"), Settings(background="blur"), Settings(background="image", image=backdrop)]
    ):
        corners[settings.background] = tuple(puppet.draw(make_face(time_s=1 + number / 25), settings)[3, 3])
    assert corners["green"] == (0, 255, 0)
    assert corners["image"] == (0, 100, 200)
    assert corners["blur"] not in (corners["green"], corners["image"])


def test_a_voice_moves_what_a_missing_face_leaves_still(
    tiny_avatar: Avatar, tiny_base: Base, config: Config, make_face: Callable[..., Face]
) -> None:
    puppet, settings = EnrolledPuppet(tiny_avatar, tiny_base, config), Settings(background="color", steadiness=1.0)
    shut, wide = np.zeros(11, np.float32), np.zeros(11, np.float32)
    wide[0] = 0.6

    def shown(codes: np.ndarray, start_s: float, settings: Settings = settings) -> np.ndarray:
        made = [puppet.draw(Spoken(start_s + k / 25, codes), settings) for k in range(25)]
        return made[-1].astype(int)

    puppet.draw(make_face(time_s=0.0), settings)
    silent = shown(shut, 0.1).copy()
    speaking = shown(wide, 1.1).copy()
    smiling = shown(wide, 2.1, dataclasses.replace(settings, mood=1.0)).copy()
    assert np.abs(silent - speaking).max() > 3
    assert np.abs(speaking - smiling).max() > 3
    for k in range(50):
        puppet.draw(NoFace(3.2 + k / 25), settings)
    assert np.abs(puppet.draw(NoFace(5.3), settings).astype(int) - speaking).max() > 3, "without a voice it rests"


def test_calibration_sets_the_neutral_face(puppet: EnrolledPuppet, make_face: Callable[..., Face]) -> None:
    turned = make_face(yaw_deg=20, mouth_open_cm=1.0, time_s=5.0)
    puppet.calibrate(turned)
    settings = Settings(background="color")
    resting = puppet.draw(turned, settings).copy()
    puppet.calibrate(make_face(time_s=5.1))
    moved = puppet.draw(dataclasses.replace(turned, time_s=5.1), settings)
    assert np.abs(resting.astype(int) - moved).mean() > 0.2


def test_wardrobe_knows_every_avatar_that_can_be_read(
    tiny_avatar: Avatar, tiny_base: Base, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNDERSTUDY_HOME", str(tmp_path))
    monkeypatch.setattr(puppets, "open_base", lambda: tiny_base)
    for name in ("one", "two"):
        path = avatars.place(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        avatars.save(dataclasses.replace(tiny_avatar, name=name), path)
    avatars.place("broken").write_bytes(b"not an avatar")
    wardrobe = EnrolledWardrobe(config, "two")
    assert list(wardrobe.names) == ["two", "one"]
    assert wardrobe.load("two").name == "two"
    avatars.place("one").write_bytes(b"damaged meanwhile")
    with pytest.raises(ValueError, match="one"):
        wardrobe.load("one")
    with pytest.raises(ValueError, match="no avatar called 'three'"):
        EnrolledWardrobe(config, "three")
