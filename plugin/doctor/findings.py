"""What a check found, and how it is told: to people line by line, to programs as JSON."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TextIO

from plugin.doctor.system import System

Level = Literal["green", "yellow", "red"]
_ORDER: tuple[Level, ...] = ("green", "yellow", "red")
_WORDS = {"green": "fine", "yellow": "look", "red": "mend"}
_SYMBOLS = {"green": "✔", "yellow": "!", "red": "✘"}
_PLAIN_SYMBOLS = {"green": "+", "yellow": "!", "red": "x"}
_COLOURS = {"green": "\x1b[32m", "yellow": "\x1b[33m", "red": "\x1b[31m"}
_WIDTH = 110
_INDENT = 26


@dataclass(frozen=True, slots=True)
class Finding:
    """One answer: how bad, one sentence, and for yellow and red the one thing to type or do next."""

    level: Level
    told: str
    next: str = ""
    facts: Mapping[str, object] = field(default_factory=dict)
    """Numbers and names behind the sentence, for `--json`."""


def green(told: str, **facts: object) -> Finding:
    return Finding("green", told, "", facts)


def yellow(told: str, next: str, **facts: object) -> Finding:
    """It works, but not as well as it could; or it cannot be told from here."""
    return Finding("yellow", told, next, facts)


def red(told: str, next: str, **facts: object) -> Finding:
    """A call cannot work, or not with what was asked for."""
    return Finding("red", told, next, facts)


@dataclass(frozen=True, slots=True)
class Request:
    """What the user asked the doctor to look at."""

    config: Path | None = None
    avatar: str | None = None


Examine = Callable[[System, Request], Finding | None]
"""A check; None where it has no meaning on this machine."""


@dataclass(frozen=True, slots=True)
class Check:
    id: str
    """Stable: programs that read `--json` may rely on it. "section.what"."""
    title: str
    examine: Examine
    limit_s: float = 10.0


@dataclass(frozen=True, slots=True)
class Result:
    id: str
    title: str
    finding: Finding
    spent_ms: float


def worst(results: Sequence[Result]) -> Level:
    return _ORDER[max((_ORDER.index(one.finding.level) for one in results), default=0)]


def as_json(results: Sequence[Result], about: Mapping[str, object]) -> str:
    """`{"format": 1, ..., "level": worst, "checks": [{"id", "title", "level", "told", "next", "facts", "ms"}]}`."""
    checks = [
        {
            "id": one.id,
            "title": one.title,
            "level": one.finding.level,
            "told": one.finding.told,
            "next": one.finding.next,
            "facts": dict(one.finding.facts),
            "ms": round(one.spent_ms, 1),
        }
        for one in results
    ]
    told = {"format": 1, **about, "level": worst(results), "checks": checks}
    return json.dumps(told, indent=1, ensure_ascii=False, default=str)


class Writer:
    """Prints findings as they come; colour only on a terminal, and never colour alone."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._colour = stream.isatty()
        self._section = ""
        try:
            "".join(_SYMBOLS.values()).encode(stream.encoding or "ascii")
            self._symbols = _SYMBOLS
        except (UnicodeEncodeError, LookupError):
            self._symbols = _PLAIN_SYMBOLS

    def write(self, result: Result) -> None:
        finding = result.finding
        section = result.id.partition(".")[0]
        if section != self._section:
            self._line(f"\n{_SECTIONS.get(section, section)}")
            self._section = section
        mark = f"{self._symbols[finding.level]} {_WORDS[finding.level]}"
        if self._colour:
            mark = f"{_COLOURS[finding.level]}{mark}\x1b[0m"
        self._wrapped(f"  {mark}  {result.title:<15} ", finding.told)
        if finding.next:
            # Not wrapped: it is there to be copied.
            self._line(" " * _INDENT + f"-> {finding.next}")

    def close(self, results: Sequence[Result], spent_s: float) -> None:
        counts = {level: sum(one.finding.level == level for one in results) for level in _ORDER}
        told = ", ".join(f"{counts[level]} {_COUNTED[level]}" for level in reversed(_ORDER))
        self._line(f"\n{told} ({spent_s:.1f} s)")

    def _wrapped(self, head: str, told: str) -> None:
        first, *others = textwrap.wrap(told, _WIDTH - _INDENT, break_on_hyphens=False, break_long_words=False) or [""]
        self._line(head + first)
        for line in others:
            self._line(" " * _INDENT + line)

    def _line(self, line: str) -> None:
        encoding = self._stream.encoding or "ascii"
        print(line.encode(encoding, "replace").decode(encoding), file=self._stream, flush=True)


_COUNTED = {"green": "fine", "yellow": "to look at", "red": "to mend"}
_SECTIONS = {
    "program": "The program",
    "machine": "This machine",
    "files": "Files",
    "webcam": "Your webcam",
    "virtual": "The virtual camera",
    "around": "Around it",
    "selftest": "Self-test",
}
