"""A photo turned as a rigid head: untouched where nothing turns, and its points go where they should."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np

from engine.frames import Face
from engine.motion import head_rotation
from engine.tracker import euler_deg
from tests.conftest import reference_of
from training.rigid import posed_like, rigid_picture

PHOTO = reference_of("man_still")
SHARE = np.float32(0.5)
FACE = Face(PHOTO.points * SHARE, PHOTO.rotation, PHOTO.translation * SHARE, PHOTO.scale * 0.5, 1.0, (256, 256), 0.0)


def test_a_head_that_is_where_it_was_is_the_photo() -> None:
    small = cv2.resize(PHOTO.rgb, (256, 256), interpolation=cv2.INTER_LINEAR)
    apart = np.abs(rigid_picture(PHOTO, FACE, 256).astype(int) - small)
    assert apart.mean() < 1.5
    assert np.abs(posed_like(PHOTO, FACE) - FACE.points).max() < 1e-2


def test_a_mark_on_the_cheek_turns_with_the_head() -> None:
    yaw, pitch, roll = euler_deg(FACE.rotation)
    turned = replace(FACE, rotation=head_rotation(yaw + 15, pitch - 8, roll + 10))
    marked = PHOTO.rgb.copy()
    x, y = PHOTO.points[50, :2]
    cv2.circle(marked, (round(float(x)), round(float(y))), 8, [255, 0, 255], -1)
    drawn = rigid_picture(replace(PHOTO, rgb=marked), turned, 256).astype(int)
    rows, cols = np.nonzero((drawn[..., 0] > 200) & (drawn[..., 1] < 60) & (drawn[..., 2] > 200))
    wanted = posed_like(PHOTO, turned)[50, :2]
    assert len(rows) > 10
    assert np.abs(np.array([cols.mean(), rows.mean()]) + 0.5 - wanted).max() < 1.5
    assert np.linalg.norm(wanted - FACE.points[50, :2]) > 5, "it did turn"
