"""The avatar on its way: a preview that is a face, and nothing believed that was not checked."""

from __future__ import annotations

import asyncio
import hashlib
import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import avatar as avatars
from engine.avatar import Avatar
from engine.base import Base
from plugin import avatar_transfer
from plugin.avatar_transfer import AvatarTransferError, Incoming, Offer, Outgoing, open_preview, pack_preview


@dataclass
class Line:
    """Keeps what is sent."""

    sent: list[tuple[str, bytes, bool]] = field(default_factory=list)

    async def send_message(self, kind: str, payload: bytes, *, background: bool = False) -> None:
        self.sent.append((kind, payload, background))


@pytest.fixture(scope="module")
def file(tiny_avatar: Avatar, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sender") / "tiny.avatar"
    avatars.save(tiny_avatar, path)
    return path


@pytest.fixture(scope="module")
def outgoing(file: Path, tiny_base: Base) -> Outgoing:
    return Outgoing(file, tiny_base)


@pytest.fixture
def incoming(tiny_base: Base, tmp_path: Path) -> Incoming:
    return Incoming(tiny_base, tmp_path / "received")


def parts(outgoing: Outgoing, want: bytes) -> list[tuple[str, bytes, bool]]:
    line = Line()
    asyncio.run(outgoing.give(line, want))
    return line.sent


# --- the preview ---


def test_a_preview_is_small_and_the_same_face(tiny_avatar: Avatar, tiny_base: Base) -> None:
    packed = pack_preview(tiny_avatar)
    assert len(packed) <= avatar_transfer.MAX_PREVIEW_BYTES
    seen = open_preview(packed, tiny_base)
    assert seen.size_px == 288 and len(seen.references) == 1
    to_side = 288 / tiny_avatar.size_px
    assert np.abs(seen.neutral - tiny_avatar.neutral * to_side).max() < 0.05
    assert np.abs(seen.references[0].points - tiny_avatar.references[0].points * to_side).max() < 0.05
    assert np.abs(seen.embedding - tiny_avatar.embedding).max() < 2e-3 * np.abs(tiny_avatar.embedding).max()
    assert seen.references[0].scale == pytest.approx(tiny_avatar.references[0].scale * to_side)


def test_a_preview_has_the_base_s_own_numbers(tiny_avatar: Avatar, tiny_base: Base) -> None:
    """An avatar that was not fine-tuned has exactly those: P e and the base's weights."""
    seen = open_preview(pack_preview(tiny_avatar), tiny_base)
    assert seen.tuned.keys() == tiny_avatar.tuned.keys()
    for name, values in tiny_avatar.tuned.items():
        assert seen.tuned[name].shape == values.shape
        assert np.allclose(seen.tuned[name], values, atol=2e-2 * max(float(np.abs(values).max()), 1e-3)), name


def test_the_neutral_face_may_be_another_than_the_photo_s(tiny_avatar: Avatar, tiny_base: Base) -> None:
    moved = replace(tiny_avatar, neutral=(tiny_avatar.neutral + np.float32(3)))
    seen = open_preview(pack_preview(moved), tiny_base)
    assert np.abs(seen.neutral - moved.neutral * 0.5625).max() < 0.05


def test_a_preview_over_another_base_or_of_the_future_is_refused(tiny_avatar: Avatar, tiny_base: Base) -> None:
    packed = pack_preview(tiny_avatar)
    with pytest.raises(AvatarTransferError, match="install the same version"):
        open_preview(packed, replace(tiny_base, sha256="0" * 64))
    with pytest.raises(AvatarTransferError, match="version 9"):
        open_preview(packed[:5] + b"\x09" + packed[6:], tiny_base)


@settings(deadline=None, max_examples=25)
@given(place=st.integers(0, 12_000), value=st.integers(0, 255), cut=st.integers(0, 12_000))
def test_a_damaged_preview_is_one_sentence(
    place: int, value: int, cut: int, tiny_avatar: Avatar, tiny_base: Base, packed_preview: bytes
) -> None:
    damaged = bytearray(packed_preview)
    damaged[place % len(damaged)] = value
    for blob in (bytes(damaged), packed_preview[: cut % len(packed_preview)]):
        try:
            seen = open_preview(blob, tiny_base)
        except AvatarTransferError as error:
            assert str(error) and "\n" not in str(error)
        else:
            assert seen.size_px == 288 and np.isfinite(seen.neutral).all()


@pytest.fixture(scope="module")
def packed_preview(tiny_avatar: Avatar) -> bytes:
    return pack_preview(tiny_avatar)


# --- the file ---


def test_the_preview_comes_first_and_the_file_after_it(outgoing: Outgoing, incoming: Incoming) -> None:
    want, kept = incoming.offered(outgoing.offer.packed())
    assert kept is None and json.loads(want) == {"sha256": outgoing.offer.sha256, "preview": True, "from": -1}
    [(kind, preview, background)] = parts(outgoing, want)
    assert kind == "avatar/preview" and not background
    assert incoming.preview(preview).size_px == 288
    rest = parts(outgoing, incoming.wanted())
    assert {kind for kind, *_ in rest} == {"avatar/part"} and all(background for *_, background in rest)
    whole = [avatar for _, part, _ in rest if (avatar := incoming.part(part)) is not None]
    assert len(whole) == 1 and whole[0].name == "tiny" and incoming.progress == 1.0
    assert incoming.complete


def test_what_is_here_already_is_not_sent_again(outgoing: Outgoing, incoming: Incoming) -> None:
    give_all(outgoing, incoming)
    again = Incoming(incoming._base, incoming._folder)
    want, kept = again.offered(outgoing.offer.packed())
    assert kept is not None and kept.name == "tiny"
    assert parts(outgoing, want) == []


def give_all(outgoing: Outgoing, incoming: Incoming) -> None:
    incoming.offered(outgoing.offer.packed())
    for _, part, _ in parts(outgoing, incoming.wanted()):
        incoming.part(part)


def test_a_line_that_broke_goes_on_where_it_was(outgoing: Outgoing, incoming: Incoming) -> None:
    want, _ = incoming.offered(outgoing.offer.packed())
    [(_, preview, _)] = parts(outgoing, want)
    incoming.preview(preview)
    first, *_ = parts(outgoing, incoming.wanted())
    incoming.part(first[1])
    want, kept = incoming.offered(outgoing.offer.packed())  # connected again
    assert kept is None
    assert json.loads(want) == {"sha256": outgoing.offer.sha256, "preview": False, "from": avatar_transfer.PART_BYTES}
    done = [incoming.part(part) for _, part, _ in parts(outgoing, want)]
    assert done[-1] is not None


def test_a_cached_file_that_was_changed_is_fetched_anew(outgoing: Outgoing, incoming: Incoming) -> None:
    give_all(outgoing, incoming)
    [path] = incoming._folder.glob("*.avatar")
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    again = Incoming(incoming._base, incoming._folder)
    _, kept = again.offered(outgoing.offer.packed())
    assert kept is None


# --- lies ---


def nothing_kept(incoming: Incoming) -> bool:
    return not list(incoming._folder.glob("*")) if incoming._folder.exists() else True


def test_a_lie_about_the_hash_is_refused_and_nothing_kept(outgoing: Outgoing, incoming: Incoming) -> None:
    lie = replace(outgoing.offer, sha256="0" * 64)
    incoming.offered(lie.packed())
    sent = parts(outgoing, json.dumps({"sha256": outgoing.offer.sha256, "preview": False, "from": 0}).encode())
    with pytest.raises(AvatarTransferError, match="not the one it offered"):
        for _, part, _ in sent:
            incoming.part(part)
    assert nothing_kept(incoming) and incoming.progress == 0
    with pytest.raises(AvatarTransferError, match="not asked for"):
        incoming.part(sent[0][1])


def test_a_lie_about_the_size_is_refused_before_it_is_kept(outgoing: Outgoing, incoming: Incoming) -> None:
    incoming.offered(replace(outgoing.offer, bytes=1000).packed())
    with pytest.raises(AvatarTransferError, match="larger than the 1000 bytes"):
        incoming.part(bytes(4) + bytes(2000))
    assert nothing_kept(incoming)


def test_a_lie_about_the_preview_is_refused(outgoing: Outgoing, incoming: Incoming) -> None:
    want, _ = incoming.offered(outgoing.offer.packed())
    [(_, preview, _)] = parts(outgoing, want)
    for lie in (preview[:-1], preview[:-1] + b"x", b""):
        with pytest.raises(AvatarTransferError, match="not the one it offered"):
            incoming.preview(lie)


def test_what_is_no_avatar_gets_no_name(incoming: Incoming, outgoing: Outgoing) -> None:
    blob = b"not an avatar" * 100
    offer = replace(outgoing.offer, sha256=hashlib.sha256(blob).hexdigest(), bytes=len(blob))
    incoming.offered(offer.packed())
    with pytest.raises(AvatarTransferError, match="no avatar that can be used"):
        incoming.part(bytes(4) + blob)
    assert nothing_kept(incoming)


@pytest.mark.parametrize(
    "message", [b"", b"\x00\x00\x00\x00", b"\x05\x00\x00\x00abc", bytes(4) + bytes(avatar_transfer.PART_BYTES + 1)]
)
def test_parts_that_do_not_fit_are_refused(outgoing: Outgoing, incoming: Incoming, message: bytes) -> None:
    incoming.offered(outgoing.offer.packed())
    with pytest.raises(AvatarTransferError, match="do not fit"):
        incoming.part(message)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"bytes": 3_000_001}, "3000000 is the most"),
        ({"bytes": 0}, "3000000 is the most"),
        ({"bytes": True}, "3000000 is the most"),
        ({"preview_bytes": 25_001}, "25000 is the most"),
        ({"sha256": "../../etc/passwd"}, "no proper hash"),
        ({"sha256": "A" * 64}, "no proper hash"),
        ({"extra": 1}, "cannot be read"),
        ({"base": "0" * 64}, "install the same version"),
    ],
)
def test_an_offer_is_checked(change: dict[str, object], told: str, outgoing: Outgoing, incoming: Incoming) -> None:
    offer = json.loads(outgoing.offer.packed()) | change
    with pytest.raises(AvatarTransferError, match=told):
        incoming.offered(json.dumps(offer).encode())


@pytest.mark.parametrize("garbage", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 5000])
def test_garbage_is_one_sentence(garbage: bytes, outgoing: Outgoing, incoming: Incoming) -> None:
    with pytest.raises(AvatarTransferError):
        incoming.offered(garbage)
    with pytest.raises(AvatarTransferError):
        parts(outgoing, garbage)


@pytest.mark.parametrize("start", [-2, 10_000_000, "0", None, True])
def test_only_what_was_offered_is_given(outgoing: Outgoing, start: object) -> None:
    with pytest.raises(AvatarTransferError, match="not offered"):
        parts(outgoing, json.dumps({"sha256": "0" * 64, "preview": True, "from": 0}).encode())
    with pytest.raises(AvatarTransferError, match="not offered"):
        parts(outgoing, json.dumps({"sha256": outgoing.offer.sha256, "preview": True, "from": start}).encode())


def test_old_avatars_make_room(
    outgoing: Outgoing, incoming: Incoming, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(avatar_transfer, "KEPT", 2)
    folder = tmp_path / "received"
    folder.mkdir()
    import os

    for number in range(3):
        (folder / f"{number}.avatar").write_bytes(b"old")
        os.utime(folder / f"{number}.avatar", (1000 + number, 1000 + number))
    give_all(outgoing, incoming)
    assert sorted(path.name for path in folder.glob("*")) == sorted(["2.avatar", f"{outgoing.offer.sha256}.avatar"])


def test_an_offer_survives_the_way(outgoing: Outgoing) -> None:
    assert Offer.read(outgoing.offer.packed()) == outgoing.offer
