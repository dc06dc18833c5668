"""`understudy panel`: puts the camera, the way out and the web server together, and runs until stopped."""

from __future__ import annotations

import asyncio
from pathlib import Path

from engine import avatar as avatars
from engine.config import load
from plugin.panel.server import serve
from plugin.panel.studio import Studio
from plugin.sinks import VirtualCamera
from plugin.webcam import ClipCamera, LiveSource, Webcam, list_cameras


def panel(config_path: Path | None, port: int | None, clip: Path | None, browser: bool) -> None:
    """Serve until interrupted. `clip` plays instead of the webcam. Raises `ValueError`/`OSError` with one sentence."""
    own = avatars.home() / "config.toml"
    config_path = config_path or (own if own.exists() else None)
    config = load(config_path)
    if port is not None and not 0 <= port <= 65535:
        raise ValueError(f"--port is {port}, not between 0 and 65535")
    camera = config.camera

    def webcam(name: str) -> LiveSource:
        return Webcam(name, camera.asked_px, camera.fps)

    studio = Studio(
        config,
        config_path,
        ClipCamera(clip) if clip is not None else webcam(camera.name),
        VirtualCamera(camera.picture_px, camera.fps, camera.device, camera.backend),
        cameras=lambda: [one.name for one in list_cameras() if not one.virtual],
        open_camera=webcam if clip is None else None,
    )
    port = config.panel.port if port is None else port
    asyncio.run(serve(studio, port, browser and config.panel.browser, say))


def say(link: str) -> None:
    print(f"panel    {link}\nThe link is for you alone. Ctrl-C ends the panel and what callers see.", flush=True)
