"""`understudy panel`: puts the camera, the way out and the web server together, and runs until stopped."""

from __future__ import annotations

import asyncio
from pathlib import Path

from engine import avatar as avatars
from plugin import memory
from plugin.everyday import configured
from plugin.listening import FileMicrophone, Microphone
from plugin.panel.server import Panel, serve
from plugin.panel.studio import Studio
from plugin.sinks import VirtualCamera
from plugin.webcam import ClipCamera, LiveSource, Webcam, list_cameras


def panel(
    config_path: Path | None,
    profile: str,
    port: int | None,
    clip: Path | None,
    browser: bool,
    voice: Path | None = None,
) -> None:
    """Serve until interrupted. `clip` plays instead of the webcam, `voice` instead of the microphone.

    Raises `ValueError`/`OSError` with one sentence.
    """
    config_path = config_path or avatars.own_config()
    config = configured(config_path, profile, None, None, None, None)
    if port is not None and not 0 <= port <= 65535:
        raise ValueError(f"--port is {port}, not between 0 and 65535")
    camera = config.camera

    def webcam(name: str) -> LiveSource:
        return Webcam(name, camera.asked_px, camera.fps, memory.recall("camera"))

    source = ClipCamera(clip) if clip is not None else webcam(camera.name)
    studio = Studio(
        config,
        config_path,
        source,
        VirtualCamera(camera.picture_px, camera.fps, camera.device, camera.backend),
        cameras=lambda: [one.name for one in list_cameras() if not one.virtual],
        open_camera=webcam if clip is None else None,
        microphone=FileMicrophone(voice) if voice is not None else Microphone(camera.microphone),
        profile=profile,
        first=memory.recall("avatar"),
    )
    if camera.avatar and camera.avatar not in studio.names:
        print(f"camera.avatar is {camera.avatar!r}, which is not among your avatars: the panel shows another one")
    port = config.panel.port if port is None else port
    try:
        asyncio.run(serve(studio, port, browser and config.panel.browser, _tell))
    finally:
        told = studio.snapshot()
        if clip is None and told["camera"]:
            memory.remember(camera=told["camera"])
        if told["chosen_avatar"]:
            memory.remember(avatar=told["chosen_avatar"])


def _tell(panel: Panel) -> None:
    print(f"panel    {panel.link}\nThe link is for you alone. Ctrl-C ends the panel and what callers see.", flush=True)
