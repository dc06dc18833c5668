"""Who may talk to whom: a short code becomes keys, through SPAKE2 bound to both DTLS fingerprints. Bytes in, bytes out.

`Caller` is the sender's side of the conversation and `Host` the receiver's; neither knows sockets or clocks. What
they say, whoever carries it (`plugin.signaling`):

    caller -> host   HELLO     1, version, mode, share    mode 0: a SPAKE2 message (RFC 9382 over Ed25519, `spake2`)
    host -> caller   HELLO     1, version, mode, share    mode 1: 32 random bytes, between two that met before
    caller -> host   SEALED    2, box of the offer        who can open it knows that the caller has the code
    host -> caller   SEALED    2, box of the answer       ... and that the host has it
    caller -> host   FINISH    3, HMAC-SHA256 over all of it and both fingerprints
    either           REFUSED   4, version                 and nothing else: not why

The first byte is the kind. T0 = SHA-256 of label, mode, room and both shares; T1 adds the box of the offer; T2 adds
the box of the answer and the DTLS fingerprints of both session descriptions. Keys are HKDF-SHA256 of SPAKE2's key (or
of the session key and both shares) with T0 as salt, one for each purpose. A box is ChaCha20-Poly1305 over the
zlib-packed session description, T0 or T1 its associated data: each key seals once, so the nonce is zero. Whoever sits
in the middle without the code opens neither box, so sees no address and can put in no fingerprint of its own; what
DTLS then shows must be the fingerprint that was sealed. The host tells nothing that depends on the code before the
caller's box has opened: a caller learns by one attempt whether one guess was right, and the host learns that it was
made.

From T2 comes the key of the session, with which the two find each other again without a code.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import hmac
import re
import secrets
import unicodedata
import zlib
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from mnemonic import Mnemonic
from spake2 import SPAKE2_A, SPAKE2_B, SPAKEError

VERSION = 1
HELLO, SEALED, FINISH, REFUSED = 1, 2, 3, 4
MAX_MESSAGE_BYTES = 16_384
MAX_DESCRIPTION_BYTES = 32_768
ROOMS = range(100, 1000)
_LABEL = b"understudy pairing 1"
_BY_CODE, _BY_SESSION = 0, 1
_SHARE_BYTES = {_BY_CODE: 33, _BY_SESSION: 32}
_NONCE = bytes(12)


class PairingError(ValueError):
    """The two do not come together; the message is one sentence."""


class WrongCodeError(PairingError):
    """The caller does not have the code: an attempt is used up."""


class NobodyError(PairingError):
    """Nobody there answers to that room: no attempt was made."""


# --- the code ---


@dataclass(frozen=True, slots=True)
class Code:
    """ "372-crystal-orbit": where to meet, and what only the two know (two of 2048 words, 22 bits)."""

    room: str
    words: str

    def __str__(self) -> str:
        return f"{self.room}-{self.words}"


@functools.cache
def words() -> tuple[str, ...]:
    """The English words of BIP 39: 2048 common ones, told apart by their first four letters."""
    return tuple(Mnemonic("english").wordlist)


def new_code(room: str) -> Code:
    return Code(room, "-".join(secrets.choice(words()) for _ in range(2)))


def parse_code(text: str) -> Code:
    """A code as it was heard or typed: any case, spaces for dashes, four letters for a word. Raises `PairingError`."""
    parts = re.split(r"[\s\-–_.,]+", unicodedata.normalize("NFKC", text).strip().lower())
    if len(parts) != 3 or not (parts[0].isascii() and parts[0].isdigit() and int(parts[0]) in ROOMS):
        raise PairingError(f"{text[:60]!r} is not a pairing code: it looks like 372-crystal-orbit")
    return Code(str(int(parts[0])), "-".join(_word(part) for part in parts[1:]))


def _word(heard: str) -> str:
    fitting = [word for word in words() if word == heard or (len(heard) >= 4 and word.startswith(heard))]
    if len(fitting) == 1 or heard in fitting:
        return heard if heard in fitting else fitting[0]
    near = difflib.get_close_matches(heard, words(), n=1, cutoff=0.6)
    raise PairingError(
        f"{heard[:20]!r} is not a word that occurs in codes" + (f"; is it {near[0]!r}?" if near else "; listen again")
    )


# --- the session that comes of it ---


@dataclass(frozen=True, slots=True)
class SessionKey:
    """What two that met keep of it. 32 bytes, secret."""

    secret: bytes

    @property
    def room(self) -> str:
        """Where they meet again: it says nothing about the secret."""
        return hmac.digest(self.secret, b"understudy room", "sha256").hex()[:24]


def fingerprint_of(description: str) -> str:
    """The DTLS certificate's SHA-256 in a session description (RFC 8122), upper case, the same in all its parts.

    Raises `PairingError` when there is none or more than one.
    """
    found = {
        one.upper() for one in re.findall(r"(?im)^a=fingerprint:sha-256[ \t]+([0-9a-f:]{95})[ \t]*\r?$", description)
    }
    if len(found) != 1:
        raise PairingError(f"a session description names {len(found)} certificates, not one: update the program")
    return found.pop()


# --- the conversation ---


def kind_of(message: bytes) -> int:
    """The kind of a message, which has at least one byte and is not too long. Raises `PairingError`."""
    if not 1 <= len(message) <= MAX_MESSAGE_BYTES:
        raise PairingError(f"the other end sent a message of {len(message)} bytes, not 1 to {MAX_MESSAGE_BYTES}")
    return message[0]


def _expect(message: bytes, kind: int) -> bytes:
    got = kind_of(message)
    if got == REFUSED:
        version = message[1] if len(message) == 2 else VERSION
        if version != VERSION:
            raise PairingError(_other_version(version))
        raise PairingError("the other end refused: the code is wrong, used or too old; ask for a new one")
    if got != kind:
        raise PairingError("the other end does not speak this program's language: is it Understudy?")
    return message[1:]


def _other_version(version: int) -> str:
    older, newer = ("this program", "the other end") if version > VERSION else ("the other end", "this program")
    versions = f"{max(version, VERSION)} and {min(version, VERSION)}"
    return f"{newer} is too new for {older} (link version {versions}): update {older}"


def refusal() -> bytes:
    return bytes([REFUSED, VERSION])


class _Side:
    """What both sides compute in the same way."""

    def __init__(self, room: str, secret: Code | SessionKey, is_caller: bool) -> None:
        self._room, self._secret = room, secret
        self._mode = _BY_CODE if isinstance(secret, Code) else _BY_SESSION
        if isinstance(secret, Code):
            kind = SPAKE2_A if is_caller else SPAKE2_B
            self._pake = kind(secret.words.encode(), idA=b"understudy caller", idB=b"understudy host")
            self._share: bytes = self._pake.start()
        else:
            self._pake, self._share = None, secrets.token_bytes(_SHARE_BYTES[_BY_SESSION])
        self._is_caller = is_caller
        self._key = self._transcript = b""
        self.local_fingerprint = self.remote_fingerprint = ""

    def _hello(self) -> bytes:
        return bytes([HELLO, VERSION, self._mode]) + self._share

    def _meet(self, hello: bytes) -> None:
        """The other's HELLO: from here on both have a key, the same if they have the same code."""
        if hello == refusal():
            raise NobodyError("nobody there answers to that code: it is wrong, used or too old; ask for a new one")
        told = _expect(hello, HELLO)
        if not told or told[0] != VERSION:
            raise PairingError(_other_version(told[0] if told else 0))
        if len(told) != 2 + _SHARE_BYTES[self._mode] or told[1] != self._mode:
            raise PairingError("the other end does not speak this program's language: is it Understudy?")
        other = told[2:]
        shares = (self._share, other) if self._is_caller else (other, self._share)
        if self._pake is not None:
            try:
                self._key = self._pake.finish(other)
            except (SPAKEError, ValueError) as error:
                raise WrongCodeError("the other end sent no proper key share") from error
        else:
            assert isinstance(self._secret, SessionKey)
            self._key = hmac.digest(self._secret.secret, b"".join(shares), "sha256")
        self._transcript = b""
        self._absorb(_LABEL, bytes([self._mode]), self._room.encode(), *shares)
        self._salt = self._transcript

    def _absorb(self, *parts: bytes) -> None:
        joined = b"".join(len(part).to_bytes(4, "big") + part for part in (self._transcript, *parts))
        self._transcript = hashlib.sha256(joined).digest()

    def _derive(self, purpose: bytes, salt: bytes | None = None) -> bytes:
        return HKDF(SHA256(), 32, salt or self._salt, _LABEL + b" " + purpose).derive(self._key)

    def _seal(self, purpose: bytes, description: str) -> bytes:
        self.local_fingerprint = fingerprint_of(description)
        packed = zlib.compress(description.encode(), 9)
        box = ChaCha20Poly1305(self._derive(purpose)).encrypt(_NONCE, packed, self._transcript)
        self._absorb(box)
        return bytes([SEALED]) + box

    def _open(self, purpose: bytes, message: bytes) -> str:
        box = _expect(message, SEALED)
        try:
            packed = ChaCha20Poly1305(self._derive(purpose)).decrypt(_NONCE, box, self._transcript)
        except InvalidTag:
            raise WrongCodeError("the other end does not have the code") from None
        self._absorb(box)
        unpacking = zlib.decompressobj()
        try:
            description = unpacking.decompress(packed, MAX_DESCRIPTION_BYTES).decode()
        except (zlib.error, UnicodeDecodeError):
            raise PairingError("the other end's session description is damaged") from None
        if not unpacking.eof:
            raise PairingError(
                f"the other end's session description is cut short or over {MAX_DESCRIPTION_BYTES} bytes"
            )
        self.remote_fingerprint = fingerprint_of(description)
        return description

    def _finished(self) -> bytes:
        ends = (self.local_fingerprint, self.remote_fingerprint)
        self._absorb(*(end.encode() for end in (ends if self._is_caller else ends[::-1])))
        return hmac.digest(self._derive(b"finish", self._transcript), self._transcript, "sha256")

    @property
    def session(self) -> SessionKey:
        """The key with which they meet again; call it when the conversation is over."""
        if isinstance(self._secret, SessionKey):
            return self._secret
        return SessionKey(self._derive(b"session", self._transcript))


class Caller(_Side):
    """The sender's side: `hello`, `offer`, `answer`, `finish`, in this order."""

    def __init__(self, room: str, secret: Code | SessionKey) -> None:
        super().__init__(room, secret, is_caller=True)

    def hello(self) -> bytes:
        return self._hello()

    def offer(self, hello: bytes, description: str) -> bytes:
        """The host's HELLO and our session description -> our SEALED."""
        self._meet(hello)
        return self._seal(b"offer", description)

    def answer(self, sealed: bytes) -> str:
        """The host's SEALED -> its session description. Raises `WrongCodeError` when it does not have the code."""
        return self._open(b"answer", sealed)

    def finish(self) -> bytes:
        return bytes([FINISH]) + self._finished()


class Host(_Side):
    """The receiver's side: `hello`, `offer`, `answer`, `finish`, in this order."""

    def __init__(self, room: str, secret: Code | SessionKey) -> None:
        super().__init__(room, secret, is_caller=False)

    def hello(self, hello: bytes) -> bytes:
        """The caller's HELLO -> ours. From here on an attempt counts."""
        self._meet(hello)
        return self._hello()

    def offer(self, sealed: bytes) -> str:
        """The caller's SEALED -> its session description. Raises `WrongCodeError` when it does not have the code."""
        return self._open(b"offer", sealed)

    def answer(self, description: str) -> bytes:
        return self._seal(b"answer", description)

    def finish(self, message: bytes) -> None:
        """Raises `PairingError` unless the caller saw the same conversation as we did."""
        if not hmac.compare_digest(_expect(message, FINISH), self._finished()):
            raise PairingError("somebody changed what the two ends said to each other; nothing was sent")
