"""`understudy camera`: puts webcam, avatar and virtual camera together and attends to them until somebody quits."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from engine import avatar as avatars
from engine.config import Config, load
from plugin import memory
from plugin.camera import Live
from plugin.listening import FileMicrophone, LiveMicrophone, Microphone
from plugin.microphone import DelayedMicrophone, advice
from plugin.puppet import EnrolledWardrobe
from plugin.sinks import LiveSink, NoCamera, VirtualCamera
from plugin.webcam import CameraLostError, ClipCamera, LiveSource, Webcam, choose_camera, list_cameras
from plugin.window import attend, can_show

log = logging.getLogger(__name__)


def first_avatar(wanted: str) -> str:
    """The avatar to show: the one named, else the last used, else the only one.

    Raises `ValueError` with the names there are.
    """
    if wanted:
        return wanted
    names = [one.path.stem for one in avatars.listing() if one.header is not None]
    if (last := memory.recall("avatar")) in names:
        return last
    if len(names) == 1:
        return names[0]
    if not names:
        raise ValueError(f"there is no avatar in {avatars.home()} yet: understudy enrol PHOTOS... --name me")
    raise ValueError(f"which avatar? --avatar {', --avatar '.join(names)}")


def list_webcams() -> None:
    """Print them, one a line."""
    there = list_cameras()
    for one in there:
        print(f"{one.index:>3}  {one.name}{'  (virtual)' if one.virtual else ''}  {one.path}")
    if not there:
        print("no camera was found")


def configured(
    path: Path | None, profile: str, avatar: str | None, webcam: str | None, size: str | None, device: str | None
) -> Config:
    """The configuration with what the command line says of `[camera]`; without `path` the user's own, if there is."""
    config = load(path or avatars.own_config(), profile)
    given = {"avatar": avatar, "name": webcam, "size_px": size, "device": device}
    changed: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    return replace(config, camera=replace(config.camera, **changed))


def camera(
    path: Path | None,
    *,
    profile: str = "",
    avatar: str | None = None,
    webcam: str | None = None,
    clip: Path | None = None,
    size: str | None = None,
    render: dict[str, Any] | None = None,
    device: str | None = None,
    preview_only: bool = False,
    window: bool = True,
    delay_voice: bool = False,
    voice: str | None = None,
) -> None:
    """Run until somebody quits. Raises `ValueError`/`OSError` with a sentence for what cannot work from the start.

    What fails later is told on the way, and tried again. `voice`: "" lets the microphone move the lips while no face is
    seen, the name of a sound file lets that do it, None leaves it to the configuration.
    """
    config = configured(path, profile, avatar, webcam, size, device)
    config = replace(config, render=replace(config.render, **(render or {})))
    if voice is not None:
        config = replace(config, camera=replace(config.camera, voice_lips=True))
    if webcam is not None or clip is not None:  # named, so wanted
        config = replace(config, camera=replace(config.camera, webcam=True))
    ear: LiveMicrophone = FileMicrophone(Path(voice)) if voice else Microphone(config.camera.microphone)
    wardrobe = EnrolledWardrobe(config, first_avatar(config.camera.avatar))
    source = _source(config, clip)
    sink = _sink(config, preview_only)
    sink.open()
    refusal = can_show()
    if window and refusal:
        print(f"{refusal}: going on without; stop with Ctrl-C")
    microphone = DelayedMicrophone() if delay_voice else None
    told_s = time.monotonic()
    live = Live(config, source, sink, wardrobe, microphone=ear)

    def every() -> None:
        nonlocal told_s
        if time.monotonic() - told_s < 10:
            return
        told_s = float("inf") if microphone is None else time.monotonic()
        late_ms = live.status().glass_p50_ms
        if late_ms != late_ms:  # nan: nothing was shown yet
            told_s = time.monotonic() - 9
        elif microphone is None:
            print(f"\n{advice(late_ms)}")
        else:
            microphone.delay(late_ms)

    try:
        with live:
            where = "the preview only" if preview_only else f"{sink.name}: choose it as the camera in your call"
            print(f"{wardrobe.names[0]} appears in {where}")
            attend(live, window and not refusal, every)
    except KeyboardInterrupt:
        pass  # the usual end of a program without a window
    finally:
        if microphone is not None:
            microphone.close()
        shown = live.status().avatar
        if clip is None and source.name:
            memory.remember(camera=source.name)
        if shown:
            memory.remember(avatar=shown)


def _source(config: Config, clip: Path | None) -> LiveSource:
    if clip is not None:
        return ClipCamera(clip)
    last = memory.recall("camera")
    try:
        if config.camera.webcam and not config.camera.voice_lips:  # a voice does without a camera
            choose_camera(config.camera.name, last)
    except CameraLostError as error:
        raise ValueError(str(error)) from error
    return Webcam(config.camera.name, config.camera.asked_px, config.camera.fps, last)


def _sink(config: Config, preview_only: bool) -> LiveSink:
    camera = config.camera
    if preview_only:
        return NoCamera(camera.picture_px, camera.fps)
    return VirtualCamera(camera.picture_px, camera.fps, camera.device, camera.backend)
