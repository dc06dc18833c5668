"""The settings that `understudy camera` would take: named with `--config`, else the user's own, else the shipped."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from plugin.doctor.findings import Request

if TYPE_CHECKING:
    from engine.config import Config


def settings_path(request: Request) -> Path | None:
    """None: the shipped ones."""
    from engine.avatar import home

    own = home() / "config.toml"
    return request.config or (own if own.is_file() else None)


def read_settings(request: Request) -> Config:
    """Raises `ValueError` and `OSError` as `engine.config.load` does; `files.config` says what to do then."""
    from engine.config import load

    return load(settings_path(request))
