"""What no photo shows: borrowed, where it belongs, and only when it is missing."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest

from engine import geometry
from engine.avatar import Reference
from engine.frames import Face, Frame
from engine.tracker import Tracker, canonical_face, fit_pose
from plugin.demo import photos_of
from training import borrowed
from training.borrowed import DONORS, EXPRESSIONS, borrow, donors, missing, square_of
from training.photos import load_photo

SIZE = 360


@pytest.fixture(scope="module")
def tracker() -> Tracker:
    return Tracker(video=False)


@pytest.fixture(scope="module")
def photos(tracker: Tracker) -> list[Reference]:
    """Jun at rest, smiling, with an open mouth, with shut eyes."""
    return [photo(tracker, number) for number in (0, 1, 4, 5)]


def photo(tracker: Tracker, number: int) -> Reference:
    rgb = cv2.resize(load_photo(photos_of("jun")[number]), (SIZE, SIZE), interpolation=cv2.INTER_AREA)
    face = tracker.track(Frame(np.asarray(rgb, np.uint8), 0.0))
    assert isinstance(face, Face)
    rotation, translation, scale = fit_pose(face.points, canonical_face())
    return Reference(
        np.asarray(rgb, np.uint8), np.full((SIZE, SIZE), 255, np.uint8), face.points, rotation, translation, scale
    )


def test_donors_can_lend_everything() -> None:
    for expression in EXPRESSIONS:
        there = donors(expression)
        assert len(there) >= 6
        tones = np.array([one.tone[0] for one in there])
        assert np.ptp(tones) > 40, "dark skins and fair ones"
    assert sum(path.stat().st_size for path in DONORS.iterdir()) < 1e6


def test_what_is_missing_is_found(photos: list[Reference]) -> None:
    told = [geometry.describe(one.points) for one in photos]
    rest, smile, opened = told[:3]
    assert missing([rest]) == ["eyes shut", "teeth", "mouth open"]
    assert missing([rest, smile]) == ["eyes shut", "mouth open"]
    assert missing([rest, opened]) == ["eyes shut"]
    assert missing(told) == []
    assert borrow(photos) == []


def test_the_expressions_are_really_there(photos: list[Reference], tracker: Tracker) -> None:
    """The tracker finds in the made pictures what they are said to show, and where they say it is."""
    plain, found = photos[0], borrow(photos[:1])
    assert [one.expression for one in found] == list(EXPRESSIONS)
    for lent in found:
        made = lent.reference
        assert made.borrowed == EXPRESSIONS[lent.expression]
        face = tracker.track(Frame(made.rgb, 0.0))
        assert isinstance(face, Face)
        told, before = geometry.describe(face.points), geometry.describe(plain.points)
        if made.borrowed == "eyes":
            assert told["eyes"][:2].mean() < 0.6 * before["eyes"][:2].mean()
            part = geometry.EYE_RIGHT + geometry.EYE_LEFT
        else:
            assert told["mouth"][0] > before["mouth"][0] + (0.3 if lent.expression == "teeth" else 0.9)
            part = geometry.LIPS_OUTER
        across = np.linalg.norm(plain.points[33] - plain.points[263])
        off = np.linalg.norm(face.points[part, :2] - made.points[part, :2], axis=1).mean() / across
        assert off < 0.06, lent.expression
        elsewhere = np.abs(made.rgb[:60].astype(int) - plain.rgb[:60]).mean()
        assert elsewhere < 2, "hair and background are the person's"


def test_who_lends_has_a_skin_like_the_borrower_s(photos: list[Reference], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []
    real = borrowed._mouth

    def watched(plain: Reference, donor: borrowed.Donor, tone: borrowed.Floats) -> Reference:
        asked.append(float(donor.tone[0]))
        return real(plain, donor, tone)

    monkeypatch.setattr(borrowed, "_mouth", watched)
    rest = photos[0]
    dark = Reference((rest.rgb * 0.5).astype(np.uint8), rest.matte, rest.points, rest.rotation, rest.translation, 1.0)
    borrow([rest])
    borrow([dark])
    assert max(asked[2:]) < min(asked[:2])


def test_what_a_black_and_white_photo_borrows_has_no_colour_either(photos: list[Reference]) -> None:
    levels = cv2.cvtColor(photos[0].rgb, cv2.COLOR_RGB2GRAY)
    gray = replace(photos[0], rgb=np.repeat(levels[..., None], 3, 2))
    lent = borrow([gray])
    assert len(lent) == len(EXPRESSIONS)
    for one in lent:
        assert np.ptp(one.reference.rgb, axis=2).max() == 0
        assert np.abs(one.reference.rgb.astype(int) - gray.rgb).max() > 40, "and something was borrowed"


def test_a_square_beyond_the_edge_keeps_its_scale() -> None:
    picture = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
    assert np.array_equal(square_of(picture, 1, 0, 3), picture[:3, 1:4])
    over = square_of(picture, -2, -1, 6)
    assert over.shape == (6, 6, 3)
    assert np.array_equal(over[1:5, 2:], picture[:, :4])
    assert np.array_equal(over[0], over[1]) and np.array_equal(over[:, 0], over[:, 2])
