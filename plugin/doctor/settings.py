"""The settings that `understudy camera` would take: named with `--config`, else the user's own, else the shipped."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from plugin.doctor.findings import Request

if TYPE_CHECKING:
    from engine.config import Config


class UnreadableError(ValueError):
    """The settings cannot be read, so what depends on them cannot be looked at."""


def settings_path(request: Request) -> Path | None:
    """None: the shipped ones."""
    from engine.avatar import own_config

    return request.config or own_config()


def read_settings(request: Request) -> Config:
    """Raises `UnreadableError`; `files.config` says what to do then."""
    from engine.config import load

    try:
        return load(settings_path(request))
    except (ValueError, OSError) as error:
        raise UnreadableError(str(error)) from error
