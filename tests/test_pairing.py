"""The code, and what it proves: both ends have it, nobody in between changed a word, each attempt is one guess."""

from __future__ import annotations

import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plugin import pairing
from plugin.pairing import Caller, Code, Host, PairingError, SessionKey, WrongCodeError

CODE = Code("372", "crystal-orbit")


def description(end: str) -> str:
    """A session description with a fingerprint of its own, `end` being one hex digit."""
    fingerprint = ":".join([end * 2] * 32)
    return f"v=0\r\nm=application 9 UDP/DTLS/SCTP webrtc-datachannel\r\na=fingerprint:sha-256 {fingerprint}\r\n"


def meet(caller: Caller, host: Host) -> None:
    hello = host.hello(caller.hello())
    offer = host.offer(caller.offer(hello, description("A")))
    assert offer == description("A")
    assert caller.answer(host.answer(description("B"))) == description("B")
    host.finish(caller.finish())


def test_two_with_the_code_meet_and_share_a_key() -> None:
    caller, host = Caller("372", CODE), Host("372", CODE)
    meet(caller, host)
    assert caller.session == host.session and len(caller.session.secret) == 32
    assert caller.remote_fingerprint == host.local_fingerprint == ":".join(["BB"] * 32)
    assert host.remote_fingerprint == caller.local_fingerprint == ":".join(["AA"] * 32)


def test_they_meet_again_without_it_and_nothing_repeats() -> None:
    key = SessionKey(bytes(range(32)))
    first, second = Caller(key.room, key), Caller(key.room, key)
    meet(first, Host(key.room, key))
    meet(second, Host(key.room, key))
    assert first.session == key
    assert first.hello() != second.hello()
    assert key.room != SessionKey(bytes(32)).room and key.secret.hex()[:24] != key.room


@pytest.mark.parametrize(
    ("room", "secret"), [("372", Code("372", "crystal-orange")), ("373", CODE), ("372", SessionKey(bytes(32)))]
)
def test_another_code_room_or_kind_opens_nothing(room: str, secret: Code | SessionKey) -> None:
    caller, host = Caller(room, secret), Host("372", CODE)
    with pytest.raises(PairingError):
        host.offer(caller.offer(host.hello(caller.hello()), description("A")))


def test_host_shows_nothing_of_the_code_before_the_caller_proved_it() -> None:
    """An attacker who has one conversation can test one guess in it, and only by being caught."""
    caller, host = Caller("372", Code("372", "abandon-ability")), Host("372", CODE)
    hello = host.hello(caller.hello())
    with pytest.raises(WrongCodeError):
        host.offer(caller.offer(hello, description("E")))
    with pytest.raises(WrongCodeError):  # and there is no second guess against the same share
        host.hello(Caller("372", CODE).hello())


def test_a_man_in_the_middle_who_swaps_fingerprints_is_caught() -> None:
    """He passes the shares through, and tries to put his certificate in either description."""
    caller, host = Caller("372", CODE), Host("372", CODE)
    sealed = caller.offer(host.hello(caller.hello()), description("A"))
    with pytest.raises(WrongCodeError):
        host.offer(bytes([pairing.SEALED]) + zlib.compress(description("E").encode()))
    for place in range(1, len(sealed), 7):
        flipped = bytearray(sealed)
        flipped[place] ^= 1
        with pytest.raises(WrongCodeError):
            host.offer(bytes(flipped))
    host.offer(sealed)
    answer = host.answer(description("B"))
    with pytest.raises(WrongCodeError):
        caller.answer(answer[:-1] + bytes([answer[-1] ^ 1]))


def test_a_man_in_the_middle_with_shares_of_his_own_is_caught() -> None:
    """He plays host to the caller and caller to the host, without the code: each side has one guess at him."""
    guess = Code("372", "zebra-zoo")
    caller, host = Caller("372", CODE), Host("372", CODE)
    fake_host, fake_caller = Host("372", guess), Caller("372", guess)
    box = caller.offer(fake_host.hello(caller.hello()), description("A"))
    with pytest.raises(WrongCodeError):
        fake_host.offer(box)
    with pytest.raises(WrongCodeError):
        host.offer(fake_caller.offer(host.hello(fake_caller.hello()), description("E")))


def test_finish_speaks_for_the_whole_conversation() -> None:
    caller, host = Caller("372", CODE), Host("372", CODE)
    host.offer(caller.offer(host.hello(caller.hello()), description("A")))
    caller.answer(host.answer(description("B")))
    tag = caller.finish()
    with pytest.raises(PairingError, match="changed"):
        host.finish(tag[:-1] + bytes([tag[-1] ^ 1]))


def test_a_reflected_share_is_refused() -> None:
    host = Host("372", CODE)
    mirrored = host._hello()
    with pytest.raises(WrongCodeError):
        host.hello(mirrored)


def test_a_newer_version_is_told_from_a_wrong_code() -> None:
    host = Host("372", CODE)
    hello = bytearray(Caller("372", CODE).hello())
    hello[1] = 2
    with pytest.raises(PairingError, match=r"the other end is too new for this program .* update this program"):
        host.hello(bytes(hello))
    with pytest.raises(PairingError, match=r"this program is too new for the other end .* update the other end"):
        Caller("372", CODE).offer(bytes([pairing.REFUSED, 0]), description("A"))
    with pytest.raises(pairing.NobodyError, match="wrong, used or too old"):
        Caller("372", CODE).offer(pairing.refusal(), description("A"))


@settings(deadline=None, max_examples=60)
@given(garbage=st.binary(max_size=200), stage=st.integers(0, 2))
def test_garbage_at_any_stage_is_one_sentence(garbage: bytes, stage: int) -> None:
    caller, host = Caller("372", CODE), Host("372", CODE)
    with pytest.raises(PairingError) as told:
        if stage == 0:
            host.hello(garbage)
        sealed = caller.offer(host.hello(caller.hello()), description("A"))
        if stage == 1:
            host.offer(garbage)
        host.offer(sealed)
        caller.answer(host.answer(description("B")))
        host.finish(garbage)
    assert "\n" not in str(told.value)


def test_a_description_that_unpacks_to_much_is_refused() -> None:
    caller, host = Caller("372", CODE), Host("372", CODE)
    bomb = description("A") + "a" * 200_000
    with pytest.raises(PairingError, match="cut short or over"):
        host.offer(caller.offer(host.hello(caller.hello()), bomb))


def test_a_description_has_one_certificate() -> None:
    with pytest.raises(PairingError, match="2 certificates"):
        pairing.fingerprint_of(description("A") + description("B"))
    with pytest.raises(PairingError, match="0 certificates"):
        pairing.fingerprint_of("v=0\r\n")
    assert pairing.fingerprint_of(description("a") + description("A")) == ":".join(["AA"] * 32)


@pytest.mark.parametrize("typed", ["372-crystal-orbit", " 372 Crystal  ORBIT ", "372–crys–orbi", "372.crystal,orbit"])
def test_a_code_is_read_as_people_write_it(typed: str) -> None:
    assert pairing.parse_code(typed) == CODE


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("", "looks like"),
        ("37-crystal-orbit", "looks like"),
        ("372-crystal", "looks like"),
        ("372-cristal-orbit", "is it 'crystal'"),
        ("372-crystal-xqzw", "not a word that occurs in codes"),
        ("³72-crystal-orbit-x", "looks like"),
    ],
)
def test_a_mistyped_code_is_told_before_an_attempt_is_spent(typed: str, told: str) -> None:
    with pytest.raises(PairingError, match=told):
        pairing.parse_code(typed)


def test_codes_are_drawn_from_all_words() -> None:
    assert len(pairing.words()) == 2048 and len({word[:4] for word in pairing.words()}) == 2048
    drawn = {pairing.new_code("372").words for _ in range(200)}
    assert len(drawn) > 195
    assert all(str(pairing.parse_code(f"372-{words}")) == f"372-{words}" for words in drawn)
