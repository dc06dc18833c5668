"""Whom this machine met: what lets two find each other again without a code, in one file only its owner can read."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from engine.avatar import home
from plugin.pairing import SessionKey

Role = Literal["sender", "receiver"]
"""What this machine was in that meeting."""

_MOST = 16


@dataclass(frozen=True, slots=True)
class Meeting:
    """One meeting, as this end remembers it."""

    secret_hex: str
    role: Role
    until_s: float
    """Unix time after which it is forgotten."""
    address: str = ""
    """Where the rendezvous was, for a sender."""
    code: str = ""
    """The code that was used up: who types it again means this meeting."""

    @property
    def session(self) -> SessionKey:
        return SessionKey(bytes.fromhex(self.secret_hex))


class Known:
    """The meetings in a file. A file that is damaged counts as empty: the two only need a new code."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path or home() / "meetings.json"

    def all(self, role: Role) -> list[Meeting]:
        """Those still valid, the latest first."""
        return [one for one in self._read() if one.role == role]

    def remember(self, meeting: Meeting) -> None:
        """Raises `ValueError` when the file cannot be written."""
        others = [one for one in self._read() if one.secret_hex != meeting.secret_hex]
        part = self._path.with_suffix(f".{os.getpid()}.part")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump([asdict(one) for one in [meeting, *others][:_MOST]], file, indent=1)
            part.replace(self._path)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise ValueError(f"the meeting cannot be kept in {self._path}: {error.strerror}") from error

    def _read(self) -> list[Meeting]:
        try:
            told: Any = json.loads(self._path.read_text(encoding="utf-8"))
            found = [Meeting(**one) for one in told]
            return [one for one in found if len(one.session.secret) == 32 and one.until_s > time.time()]
        except (OSError, ValueError, TypeError, AttributeError):
            return []
