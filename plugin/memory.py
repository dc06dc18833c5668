"""What was used last, so that the next start takes it again: `last.json` beside the avatars."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from pathlib import Path

from engine import avatar as avatars

log = logging.getLogger(__name__)


def _path() -> Path:
    return avatars.home() / "last.json"


def recall(what: str) -> str:
    """ "camera" or "avatar" as it was remembered, "" when it was not. A damaged file is as good as none."""
    try:
        told = json.loads(_path().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""
    value = told.get(what) if isinstance(told, dict) else None
    return value if isinstance(value, str) else ""


def remember(**used: str) -> None:
    """Keep these beside what is remembered already; a disk that refuses is only logged."""
    path = _path()
    told = {name: recall(name) for name in ("camera", "avatar")} | used
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(told) + "\n", encoding="utf-8")
        part.replace(path)
    except OSError as error:
        log.warning("what was used last cannot be kept: %s", error)
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
