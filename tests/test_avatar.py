"""The avatar file: what goes in comes out, the bytes stay the same, nothing damaged or forged is let in."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import random
import struct
import subprocess
import sys
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pictures

from engine import avatar as avatars
from engine.avatar import Avatar, AvatarError, Reference

BASE = "ab" * 32
GOLDEN = Path(__file__).parent / "golden" / "tiny.avatar"
GOLDEN_SHA256 = "6144c9eb0136bd66517923c67334fba2c8beff753ecd27e652edf19ef748bc57"
PREAMBLE = struct.Struct("<8sB3xIII")


def drawn_reference(side: int, shift: float = 0.0) -> Reference:
    """A drawn face: an oval before a slope of colours."""
    rows, columns = np.mgrid[:side, :side].astype(np.float32) / side
    inside = np.hypot((columns - 0.5) / 0.3, (rows - 0.5) / 0.42) < 1
    rgb = np.stack([rows, columns, 1 - rows], axis=-1) * 120
    rgb[inside] = (220, 180 - 60 * shift, 150)
    turns = np.arange(478, dtype=np.float32)
    points = np.stack([np.cos(turns), np.sin(turns), np.cos(turns / 2)], axis=-1) * 0.4 + [0.5, 0.5, 0]
    return Reference(
        rgb=rgb.astype(np.uint8),
        matte=(inside * 255).astype(np.uint8),
        points=(points * side).astype(np.float32),
        rotation=np.diag([1, -1, -1]).astype(np.float32),
        translation=np.array([side / 2, side / 2, 0], np.float32),
        scale=side / 20,
    )


def drawn_avatar(side: int = 64, count: int = 2, **changes: Any) -> Avatar:
    numbers = np.random.default_rng(1)
    return replace(
        Avatar(
            name="Zoë Müller",
            created="2026-01-31T12:34:56Z",
            base=BASE,
            size_px=side,
            references=tuple(drawn_reference(side, index / 8) for index in range(count)),
            embedding=numbers.standard_normal(8).astype(np.float32),
            tuned={
                "up1/adain": numbers.standard_normal((2, 6)).astype(np.float16),
                "down/weight": numbers.standard_normal((2, 3, 1, 1)).astype(np.float32),
            },
            neutral=numbers.standard_normal((478, 3)).astype(np.float32),
            checks={"sface": {"before": 0.71, "after": 0.93}, "photos": 5},
            program="0.1.0",
        ),
        **changes,
    )


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A copy of the golden avatar: 16 px, one reference, 12 kB."""
    path = tmp_path / "tiny.avatar"
    path.write_bytes(GOLDEN.read_bytes())
    return path


# --- what goes in comes out ---


def test_grain_costs_quality_and_not_the_avatar(tmp_path: Path) -> None:
    """As many photos as there may be, each as grainy as a photo can be."""
    noise = np.random.default_rng(0)
    before = drawn_avatar(side=512, count=avatars.MAX_REFERENCES)
    grainy = [
        replace(one, rgb=np.clip(one.rgb + noise.normal(0, 40, one.rgb.shape), 0, 255).astype(np.uint8))
        for one in before.references
    ]
    path = tmp_path / "grainy.avatar"
    avatars.save(replace(before, references=tuple(grainy)), path)
    assert path.stat().st_size <= avatars.MAX_FILE_BYTES
    for one, stored in zip(grainy, avatars.load(path).references, strict=True):
        away = np.abs(cv2.blur(one.rgb, (9, 9)).astype(float) - cv2.blur(stored.rgb, (9, 9)))
        assert away.mean() < 4, "the same picture, but for its grain"


def test_round_trip(tmp_path: Path) -> None:
    before = drawn_avatar(side=512, count=3)
    path = tmp_path / "zoe.avatar"
    avatars.save(before, path)
    after = avatars.load(path, BASE)
    for key in ("name", "created", "base", "size_px", "checks", "program"):
        assert getattr(after, key) == getattr(before, key)
    np.testing.assert_array_equal(after.embedding, before.embedding)
    np.testing.assert_array_equal(after.neutral, before.neutral)
    assert list(after.tuned) == ["down/weight", "up1/adain"]
    for name, values in after.tuned.items():
        assert values.dtype == np.float16
        np.testing.assert_array_equal(values, before.tuned[name].astype(np.float16))
    assert len(after.references) == 3
    for ours, theirs in zip(before.references, after.references, strict=True):
        assert np.abs(theirs.points - ours.points).max() <= 0.02
        np.testing.assert_array_equal(theirs.rotation, ours.rotation)
        np.testing.assert_array_equal(theirs.translation, ours.translation)
        assert theirs.scale == pytest.approx(ours.scale, rel=1e-6)
        assert np.abs(theirs.rgb.astype(int) - ours.rgb).mean() < 1
        assert np.abs(theirs.matte.astype(int) - ours.matte).mean() < 3
    assert path.stat().st_size < 200_000


def test_saving_again_loses_nothing_and_a_changed_picture_is_written_anew(tmp_path: Path) -> None:
    first, second = tmp_path / "1.avatar", tmp_path / "2.avatar"
    avatars.save(drawn_avatar(), first)
    once = avatars.load(first)
    avatars.save(once, second)
    assert second.read_bytes() == first.read_bytes()
    repainted = replace(once.references[0], rgb=255 - once.references[0].rgb)
    avatars.save(replace(once, references=(repainted,)), second)
    assert np.abs(avatars.load(second).references[0].rgb.astype(int) - repainted.rgb).mean() < 3


def test_golden_bytes_of_version_1(tmp_path: Path) -> None:
    """The first file reads the same for ever and is written the same, its pictures taken over as they are."""
    assert hashlib.sha256(GOLDEN.read_bytes()).hexdigest() == GOLDEN_SHA256
    avatar = avatars.load(GOLDEN, BASE)
    assert (avatar.name, avatar.size_px, len(avatar.references)) == ("Zoë Müller", 16, 1)
    np.testing.assert_allclose(avatar.references[0].points[0], [14.4, 8, 6.4], atol=1e-3)
    assert avatar.tuned["up1/adain"].shape == (2, 6)
    avatars.save(avatar, tmp_path / "again.avatar")
    assert (tmp_path / "again.avatar").read_bytes() == GOLDEN.read_bytes()


def test_the_header_alone_for_lists(tiny: Path) -> None:
    header = avatars.header(tiny)
    assert (header.name, header.base, header.size_px) == ("Zoë Müller", BASE, 16)
    assert header.checks["sface"] == {"before": 0.71, "after": 0.93}
    assert [entry.name for entry in header.entries][-1] == "tuned/up1/adain"


@settings(max_examples=40, deadline=None)
@given(
    name=st.text(min_size=1, max_size=64),
    values=st.lists(st.floats(-6e4, 6e4, width=16), max_size=9),
    checks=st.dictionaries(st.text(max_size=5), st.integers() | st.floats(allow_nan=False, allow_infinity=False)),
)
def test_any_fit_name_and_any_numbers_survive(
    name: str, values: list[float], checks: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    try:
        avatars.check_name(name)
    except AvatarError:
        return
    path = tmp_path_factory.getbasetemp() / "any.avatar"
    tuned = {"x": np.array(values, np.float16)}
    avatars.save(replace(avatars.load(GOLDEN), name=name, tuned=tuned, checks=checks), path)
    again = avatars.load(path)
    assert (again.name, again.checks) == (name, checks)
    np.testing.assert_array_equal(again.tuned["x"], tuned["x"])


# --- damage ---


def test_every_truncation_is_refused(tiny: Path) -> None:
    blob = tiny.read_bytes()
    for length in range(len(blob) - 1, -1, -1):
        os.truncate(tiny, length)
        with pytest.raises(AvatarError, match=r"^tiny\.avatar: it is (cut short|not an avatar)"):
            avatars.load(tiny)
    os.truncate(tiny, 0)
    tiny.write_bytes(blob + b"\0")
    with pytest.raises(AvatarError, match="1 bytes too many"):
        avatars.load(tiny)


def refuses_flipped(path: Path, bits: Iterator[int]) -> None:
    blob = path.read_bytes()
    with path.open("r+b", buffering=0) as file:
        for bit in bits:
            file.seek(bit // 8)
            file.write(bytes([blob[bit // 8] ^ 1 << bit % 8]))
            try:
                avatars.load(path)
            except AvatarError:
                pass
            else:
                pytest.fail(f"bit {bit % 8} of byte {bit // 8} flipped and nobody noticed")
            file.seek(bit // 8)
            file.write(blob[bit // 8 : bit // 8 + 1])
    avatars.load(path)


def test_one_flipped_bit_is_refused(tiny: Path) -> None:
    """Every bit outside the payload, and one of every byte in it."""
    blob = tiny.read_bytes()
    payload = PREAMBLE.size + PREAMBLE.unpack_from(blob)[2]
    chance = random.Random(1)
    refuses_flipped(tiny, iter(range(8 * payload)))
    refuses_flipped(tiny, (8 * byte + chance.randrange(8) for byte in range(payload, len(blob) - 32)))
    refuses_flipped(tiny, iter(range(8 * (len(blob) - 32), 8 * len(blob))))


@pytest.mark.slow
def test_every_flipped_bit_is_refused(tiny: Path) -> None:
    refuses_flipped(tiny, iter(range(8 * tiny.stat().st_size)))


def test_a_flipped_bit_in_the_header_does_not_reach_a_list(tiny: Path) -> None:
    blob = bytearray(tiny.read_bytes())
    blob[PREAMBLE.size + 300] ^= 4
    tiny.write_bytes(blob)
    with pytest.raises(AvatarError, match="header does not match its checksum"):
        avatars.header(tiny)


# --- forgery: files whose sums are right and whose words are not ---


def sealed(header: bytes | dict[str, Any], payload: bytes, version: int = 1) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header, ensure_ascii=False).encode()
    blob = PREAMBLE.pack(avatars.MAGIC, version, len(text), len(payload), zlib.crc32(text)) + text + payload
    return blob + hashlib.sha256(blob).digest()


def opened() -> tuple[dict[str, Any], bytes]:
    blob = GOLDEN.read_bytes()
    _, _, header_bytes, payload_bytes, _ = PREAMBLE.unpack_from(blob)
    start = PREAMBLE.size + header_bytes
    return json.loads(blob[PREAMBLE.size : start]), blob[start : start + payload_bytes]


def forged(change: Callable[[dict[str, Any]], object], path: Path) -> Path:
    header, payload = opened()
    change(header)
    path.write_bytes(sealed(header, payload))
    return path


def entry(header: dict[str, Any], name: str) -> dict[str, Any]:
    return next(one for one in header["entries"] if one["name"] == name)


def with_content(name: str, content: bytes, **changes: Any) -> bytes:
    """The golden avatar with another content in one entry, everything around it put right."""
    header, payload = opened()
    parts = {e["name"]: payload[e["offset"] : e["offset"] + e["length"]] for e in header["entries"]}
    parts[name] = content
    offset = 0
    for one in header["entries"]:
        part = parts[one["name"]]
        one |= {"offset": offset, "length": len(part), "sha256": hashlib.sha256(part).hexdigest()}
        offset += len(part)
    entry(header, name).update(changes)
    return sealed(header, b"".join(parts.values()))


def test_forgery_starts_from_a_file_that_is_accepted(tmp_path: Path) -> None:
    assert avatars.load(forged(lambda header: None, tmp_path / "same.avatar")).size_px == 16


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda h: h.pop("base"), "its header lacks base"),
        (lambda h: h.update(extra=1), "its header has an unknown key, 'extra'"),
        (lambda h: h.update(name="a/b"), "'/' does not belong in a file name"),
        (lambda h: h.update(name=5), "name in its header is not text"),
        (lambda h: h.update(created="yesterday"), "its time of creation is 'yesterday'"),
        (lambda h: h.update(program="\x1b[2J"), "the version of its program is"),
        (lambda h: h.update(base="AB" * 32), "not a sha256 of 64 hex digits"),
        (lambda h: h.update(size_px=17), "its references are to be 17 px a side"),
        (lambda h: h.update(size_px=10**40), "its references are to be 1000"),
        (lambda h: h.update(size_px=True), "its references are to be True px"),
        (lambda h: h.update(size_px=32), r"rgb is jpeg uint8 \[16, 16, 3\], not jpeg uint8 \[32, 32, 3\]"),
        (lambda h: h.update(checks=[]), "of the wrong kind"),
        (lambda h: h.update(entries=[]), "its entries make 0 bytes and its payload has"),
        (lambda h: h["entries"].append(5), "an entry is not an object"),
        (lambda h: h["entries"][0].pop("sha256"), "an entry lacks sha256"),
        (lambda h: h["entries"][0].update(name="../x y"), "is no name for an entry"),
        (lambda h: h["entries"][0].update(kind="pickle"), "is of an unknown kind, 'pickle'"),
        (lambda h: h["entries"][0].update(kind="png"), r"rgb is a picture of uint8 \[16, 16, 3\]"),
        (lambda h: h["entries"][0].update(dtype="object"), "has an unknown dtype, 'object'"),
        (lambda h: h["entries"][0].update(dtype="int16"), "is a picture of int16"),
        (lambda h: h["entries"][0].update(shape=[16, 16]), r"is a picture of uint8 \[16, 16\]"),
        (lambda h: h["entries"][0].update(shape=[16, -16, 3]), "has an absurd shape"),
        (lambda h: h["entries"][0].update(shape=[10**30, 16, 3]), "has an absurd shape"),
        (lambda h: h["entries"][0].update(shape="16"), "has no proper shape"),
        (lambda h: h["entries"][0].update(length=-1), "has no proper place"),
        (lambda h: h["entries"][0].update(length=10**30), "overlaps another or lies outside the file"),
        (lambda h: h["entries"][1].update(offset=0), "overlaps another or lies outside the file"),
        (lambda h: h["entries"][0].update(sha256="00" * 32), "reference/0/rgb does not match its sha256"),
        (lambda h: entry(h, "embedding").update(shape=[9]), r"float32 \[9\] and its 32 bytes do not fit"),
        (lambda h: entry(h, "embedding").update(shape=[4, 2]), r"its embedding has shape \[4, 2\]"),
        (lambda h: entry(h, "embedding").update(name="who"), "it lacks the entry embedding"),
        (lambda h: entry(h, "neutral").update(dtype="int16", shape=[956, 3]), "neutral is array int16"),
        (lambda h: entry(h, "tuned/up1/adain").update(name="zoo"), "it has an unknown entry, zoo"),
        (lambda h: entry(h, "tuned/up1/adain").update(name="tuned/a"), "not sorted by name"),
        (lambda h: entry(h, "tuned/up1/adain").update(name="tuned/down/weight"), "weight is there twice"),
        (lambda h: entry(h, "reference/0/matte").update(name="reference/1/matte"), "lacks the entry"),
    ],
)  # fmt: skip
def test_each_lie_in_the_header_has_its_sentence(
    change: Callable[[dict[str, Any]], object], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(AvatarError, match=sentence) as refusal:
        avatars.load(forged(change, tmp_path / "forged.avatar"))
    assert str(refusal.value).startswith("forged.avatar: ")
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 300


@pytest.mark.parametrize(
    ("header", "sentence"),
    [
        (b"\xff\xfe", "not JSON as it should be"),
        (b"[1, 2]", "its header is not an object"),
        (b'{"name": 1, "name": 2}', "a key stands twice"),
        (b'{"checks": NaN}', "NaN is no number"),
        (b"[" * 100_000, "not JSON as it should be"),
        (b'{"size_px": ' + b"9" * 10_000 + b"}", "not JSON as it should be"),
    ],
)
def test_a_header_that_is_no_proper_json(header: bytes, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "forged.avatar"
    path.write_bytes(sealed(header, b""))
    with pytest.raises(AvatarError, match=sentence):
        avatars.load(path)


def picture(mode: str, size: tuple[int, int], form: str) -> bytes:
    with io.BytesIO() as sink:
        Pictures.new(mode, size).save(sink, form)
        return sink.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("reference/0/rgb", b"", "cannot be decoded"),
        ("reference/0/rgb", picture("RGB", (16, 16), "PNG"), "cannot be decoded"),
        ("reference/0/rgb", picture("RGB", (16, 16), "JPEG")[:-40], "cannot be decoded"),
        ("reference/0/rgb", picture("L", (16, 16), "JPEG"), "is 16 x 16 L, not 16 x 16 RGB"),
        ("reference/0/rgb", picture("RGB", (24, 16), "JPEG"), "is 24 x 16 RGB, not 16 x 16 RGB"),
        ("reference/0/matte", picture("L", (8, 4), "PNG"), "is 8 x 4 L, not 4 x 4 L"),
        ("reference/0/matte", picture("L", (4, 4), "PNG")[:-30], "cannot be decoded"),
        ("neutral", np.full((478, 3), np.nan, "<f4").tobytes(), "holds numbers that are not finite"),
        ("reference/0/pose", np.zeros(13, "<f4").tobytes(), "scale of a reference is 0.0"),
        ("reference/0/points", np.full((478, 3), 32767, "<i2").tobytes(), "over twice the side"),
        ("tuned/up1/adain", np.full((2, 6), np.inf, "<f2").tobytes(), "are not all finite"),
    ],
)  # fmt: skip
def test_contents_that_do_not_fit(name: str, content: bytes, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "forged.avatar"
    path.write_bytes(with_content(name, content))
    with pytest.raises(AvatarError, match=sentence):
        avatars.load(path)


def test_pixels_beyond_reason_are_refused_before_there_is_room_made_for_them(tmp_path: Path) -> None:
    """A small PNG that says it is 60000 x 60000, a shape of 9e12 values, a header of 4 GB, a file of 1 TB."""
    bomb = bytearray(picture("L", (4, 4), "PNG"))
    bomb[16:24] = struct.pack(">II", 60_000, 60_000)
    bomb[29:33] = struct.pack(">I", zlib.crc32(bomb[12:29]))
    sea = tmp_path / "sea.avatar"
    with sea.open("wb") as file:
        file.write(GOLDEN.read_bytes())
        file.truncate(1 << 40)
    files = {
        "bomb.avatar": (with_content("reference/0/matte", bytes(bomb)), "cannot be decoded as png"),
        "shape.avatar": (with_content("neutral", b"", shape=[3_000_000, 3_000_000]), "do not fit"),
        "header.avatar": (PREAMBLE.pack(avatars.MAGIC, 1, 2**32 - 1, 5, 0), "header of 4294967295 bytes"),
        "payload.avatar": (PREAMBLE.pack(avatars.MAGIC, 1, 5, 2**32 - 1, 0), "over the 3000000 an"),
    }  # fmt: skip
    for name, (blob, _) in files.items():
        (tmp_path / name).write_bytes(blob)
    tracemalloc.start()
    try:
        for name, (_, sentence) in files.items():
            with pytest.raises(AvatarError, match=sentence):
                avatars.load(tmp_path / name)
        with pytest.raises(AvatarError, match="over the 3000000 an avatar may take"):
            avatars.load(sea)
        assert tracemalloc.get_traced_memory()[1] < 8_000_000
    finally:
        tracemalloc.stop()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=200, deadline=None)
@given(choice=st.integers(0, 10_000), value=JSON)
def test_any_json_in_any_place_is_refused_or_read(
    choice: int, value: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever stands where, there is an avatar or a sentence: no other exception."""
    header, payload = opened()
    places: list[tuple[dict[str, Any], str]] = [(header, key) for key in header]
    places += [(one, key) for one in header["entries"] for key in one]
    holder, key = places[choice % len(places)]
    holder[key] = value
    path = tmp_path_factory.getbasetemp() / "any-json.avatar"
    try:
        path.write_bytes(sealed(header, payload))
    except ValueError:  # an infinite number, or half a character: no JSON to begin with
        return
    try:
        avatars.load(path)
    except AvatarError as refusal:
        assert "\n" not in str(refusal)


# --- refusals of whole files ---


def test_what_is_not_an_avatar(tmp_path: Path) -> None:
    path = tmp_path / "photo.avatar"
    path.write_bytes(picture("RGB", (64, 64), "PNG"))
    with pytest.raises(AvatarError, match=r"^photo\.avatar: it is not an avatar$"):
        avatars.load(path)
    with pytest.raises(AvatarError, match="it is not a file"):
        avatars.load(tmp_path)
    with pytest.raises(AvatarError, match=r"none\.avatar cannot be read: No such file"):
        avatars.load(tmp_path / "none.avatar")


def test_a_newer_version(tmp_path: Path) -> None:
    path = tmp_path / "new.avatar"
    path.write_bytes(sealed({}, b"", version=2))
    with pytest.raises(AvatarError, match="it has format 2 and this program reads 1; update the program"):
        avatars.header(path)


def test_an_avatar_of_another_base(tiny: Path) -> None:
    with pytest.raises(AvatarError, match=r"base model abababababab and .* cdcdcdcdcdcd; enrol again, or install"):
        avatars.load(tiny, "cd" * 32)


def test_what_is_borrowed_is_kept_apart(tmp_path: Path) -> None:
    avatar = drawn_avatar()
    lent = [replace(avatar.references[0], borrowed=zone) for zone in ("eyes", "mouth")]
    path = tmp_path / "lent.avatar"
    avatars.save(replace(avatar, references=(*avatar.references, *lent)), path)
    read = avatars.load(path)
    own = len(avatar.references)
    assert [one.borrowed for one in read.references] == [""] * own + ["eyes", "mouth"]
    assert len(read.photos) == own


def test_what_cannot_be_an_avatar_cannot_be_made_or_saved(tmp_path: Path) -> None:
    avatar = drawn_avatar()
    reference = avatar.references[0]
    for change, sentence in (
        ({"references": ()}, "0 references, not 1 to 12"),
        ({"references": (reference,) * 13}, "13 references, not 1 to 12"),
        ({"references": (replace(reference, borrowed="eyes"), reference)}, "borrows stands before one that does not"),
        ({"size_px": 128}, "64 px a side and the avatar 128 px"),
        ({"embedding": np.zeros(4)}, "its embedding is float64"),
        ({"tuned": {"a b": np.zeros(1, np.float16)}}, "'a b' is no name"),
        ({"tuned": {"a": np.full(1, 1e6, np.float32)}}, "too much for float16"),
    ):
        with pytest.raises(AvatarError, match=sentence):
            replace(avatar, **change)
    for change, sentence in (
        ({"rgb": reference.rgb[:60]}, r"is uint8 \[60, 64, 3\], not|not a square"),
        ({"rgb": reference.rgb.astype(np.float32)}, "a reference is float32"),
        ({"points": reference.points * 9}, "over twice the side"),
        ({"borrowed": "hair"}, "may borrow eyes or mouth, not 'hair'"),
        ({"points": reference.points[:468]}, r"\[468, 3\], not float32 \[478, 3\]"),
    ):
        with pytest.raises(AvatarError, match=sentence):
            replace(reference, **change)
    path = tmp_path / "x.avatar"
    with pytest.raises(AvatarError, match="plain values that JSON can hold"):
        avatars.save(replace(avatar, checks={"when": object()}), path)
    with pytest.raises(AvatarError, match="plain values that JSON can hold"):
        avatars.save(replace(avatar, checks={"lpips": float("nan")}), path)
    with pytest.raises(AvatarError, match="over the 3000000 allowed; use fewer references"):
        avatars.save(replace(avatar, tuned={"all": np.zeros(1_500_000, np.float16)}), path)
    assert not list(tmp_path.iterdir())


# --- a full disk ---


def test_a_write_that_fails_leaves_the_old_avatar(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = tiny.read_bytes()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for broken in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, broken, full)
            with pytest.raises(AvatarError, match="unharmed: there is no room on the disk; free some"):
                avatars.save(drawn_avatar(), tiny)
        assert tiny.read_bytes() == before
        assert [path.name for path in tiny.parent.iterdir()] == ["tiny.avatar"]


@pytest.mark.skipif(sys.platform == "win32", reason="has no limit on the size of files")
def test_a_file_that_may_not_grow_leaves_the_old_avatar(tiny: Path) -> None:
    import resource

    before = tiny.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(AvatarError, match="there is no room on the disk"):
            avatars.save(drawn_avatar(), tiny)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert tiny.read_bytes() == before
    assert [path.name for path in tiny.parent.iterdir()] == ["tiny.avatar"]


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounts a small disk")
def test_a_disk_that_is_really_full_leaves_the_old_avatar(tmp_path: Path) -> None:
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "understudy-test", str(tmp_path)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        path = tmp_path / "tiny.avatar"
        path.write_bytes(GOLDEN.read_bytes())
        with pytest.raises(AvatarError, match="there is no room on the disk"):
            avatars.save(drawn_avatar(side=512, count=8), path)
        assert path.read_bytes() == GOLDEN.read_bytes()
        assert [path.name for path in tmp_path.iterdir()] == ["tiny.avatar"]
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


# --- where avatars live ---


def test_names() -> None:
    for name in ("Anna", "Zoë Müller", "姓名", "a" * 64, "v1.2", "Conny"):
        assert avatars.check_name(name) == name
    for name in (
        "",
        " a",
        "a ",
        ".a",
        "a.",
        "a" * 65,
        "a/b",
        "a\\b",
        "..",
        "a\nb",
        "a\0",
        "x:y",
        "con",
        "NUL.x",
    ):
        with pytest.raises(AvatarError, match="an avatar cannot be called"):
            avatars.check_name(name)


def test_finding_and_listing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNDERSTUDY_HOME", str(tmp_path))
    assert avatars.home() == tmp_path
    assert avatars.listing() == []
    with pytest.raises(AvatarError, match="no avatar called 'anna'; there is none yet: enrol one first"):
        avatars.find("anna")
    avatars.save(drawn_avatar(name="anna"), avatars.place("anna"))
    avatars.place("broken").write_bytes(b"?")
    assert avatars.find("anna") == tmp_path / "avatars" / "anna.avatar"
    assert avatars.find(str(GOLDEN)) == GOLDEN
    with pytest.raises(AvatarError, match="no avatar called 'bob'; there are 'anna', 'broken'"):
        avatars.find("bob")
    with pytest.raises(AvatarError, match="there is no avatar at"):
        avatars.find("somewhere/bob.avatar")
    anna, broken = avatars.listing()
    assert anna.header is not None and anna.header.name == "anna"
    assert broken.header is None and broken.problem == "broken.avatar: it is not an avatar"


def test_home_without_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UNDERSTUDY_HOME", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    for platform in ("linux", "darwin", "win32"):
        monkeypatch.setattr(sys, "platform", platform)
        assert avatars.home().name == "understudy"


def test_loading_needs_no_torch() -> None:
    code = "import sys, engine.avatar; print('torch' in sys.modules, 'pickle' in engine.avatar.__dict__)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False False\n"
