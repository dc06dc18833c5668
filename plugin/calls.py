"""`understudy send`, `receive` and `rendezvous`: builds what the options name, runs it, says what happens."""

from __future__ import annotations

import asyncio
import signal
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from engine import avatar as avatars
from engine.base import open_base
from engine.config import Config
from engine.frames import Frame
from plugin import signaling
from plugin.audio import join
from plugin.avatar_transfer import Incoming
from plugin.known import Known
from plugin.meter import Rolling
from plugin.receiver import Hears, Receiver, Screen, Takes
from plugin.render import with_options
from plugin.sender import Sender, Voice, Wanted, Watches, Watching, open_drive
from plugin.signaling import Rendezvous
from plugin.sinks import FileSink, NullSink, VirtualCamera
from plugin.viewer import WindowSink
from plugin.webcam import Webcam


class Teller:
    """Sentences on lines of their own; one that begins with a carriage return replaces the status line before it."""

    def __init__(self) -> None:
        self._status = 0
        self._in_place = sys.stdout.isatty()

    def __call__(self, text: str) -> None:
        if text.startswith("\r") and self._in_place:
            line = text[1:]
            print("\r" + line + " " * max(self._status - len(line), 0), end="", flush=True)
            self._status = len(line)
            return
        if self._status:
            print()
            self._status = 0
        print(text.lstrip("\r"), flush=True)


@dataclass(frozen=True, slots=True)
class SendOptions:
    code: str | None
    avatar: str
    drive: Path | None = None
    camera: str = ""
    voice: Voice | None = None
    """None: the clip's own sound if it has one, the microphone beside a camera."""
    seconds: float | None = None


def send(options: SendOptions, config: Config) -> None:
    """Raises `ValueError`/`OSError` with one sentence when it cannot begin."""
    known, meter, base = Known(), Rolling(), open_base()
    wanted = Wanted.choose(options.code, known)
    path = avatars.find(options.avatar)
    clip: Path | None = None
    clip_s = 0.0
    voice = options.voice
    if options.drive is not None:
        watches, opened = open_drive(options.drive, config, meter)
        has_sound = opened is not None and opened.has_sound
        if opened is not None:
            clip, clip_s = opened.path, opened.duration_s
        if voice == "clip" and not has_sound:
            raise ValueError(f"{options.drive} has no sound: take --voice microphone or none")
        voice = voice or ("clip" if has_sound else "none")
    else:
        watches = _webcam(options.camera, config, meter)
        if voice == "clip":
            raise ValueError("--voice clip needs a clip with sound: name it with --drive")
        voice = voice or "microphone"

    async def run() -> str:
        sender = Sender(config, base, path, watches, meter, Teller(), known, clip, clip_s, voice or "none")
        loop = asyncio.get_running_loop()
        _on_signals(loop, sender.stop)
        if options.seconds is not None:
            loop.call_later(options.seconds, sender.stop)
        return await sender.run(wanted)

    print(asyncio.run(run()))


def _webcam(wanted: str, config: Config, meter: Rolling) -> Watches:
    camera = config.camera
    return Watching(Webcam(wanted or camera.name, camera.asked_px, camera.fps), config, meter)


@dataclass(frozen=True, slots=True)
class ReceiveOptions:
    out: Path | None = None
    """An MP4, with the voice in it."""
    virtual_camera: bool = False
    null: bool = False
    size_px: int | None = None
    fps: float = 30.0
    seconds: float | None = None
    qr: Path | None = None
    port: int | None = None
    once: bool = False
    silent: bool = False


def receive(options: ReceiveOptions, config: Config) -> None:
    """Raises `ValueError`/`OSError` with one sentence when it cannot begin, or the sink fails."""
    config = with_options(config, size_px=options.size_px)
    if options.port is not None:
        config = replace(config, link=replace(config.link, port=options.port))
    meter, base, teller = Rolling(), open_base(), Teller()
    size = config.render.size_px
    with ExitStack() as stack:
        voice_file: Path | None = None
        hears: Hears = "none" if options.silent or options.null else "loudspeaker"
        sink: Takes
        if options.out is not None:
            sink = stack.enter_context(FileSink(options.out, (size, size), options.fps))
            if not options.silent:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="understudy-")))
                voice_file, hears = folder / "voice.wav", "file"
        elif options.null:
            sink = stack.enter_context(NullSink())
        elif options.virtual_camera:
            camera = VirtualCamera((size, size), options.fps, config.camera.device, config.camera.backend)
            camera.open()
            stack.callback(camera.close)
            sink = camera
        else:
            sink = stack.enter_context(WindowSink())
        screen = Screen(size, options.fps, sink, meter, stamps=options.out is not None)

        async def run() -> float:
            receiver = Receiver(
                config,
                screen,
                base,
                meter,
                teller,
                Known(),
                Incoming(base),
                hears,
                voice_file,
                qr_file=options.qr,
                stay=not options.once,
            )
            _on_signals(asyncio.get_running_loop(), receiver.stop)
            await receiver.run(options.seconds)
            return receiver.voice_s

        voice_s = asyncio.run(run())
        if isinstance(sink, FileSink):
            if sink.count == 0:
                sink.send(Frame(screen.blank(), 0.0))
            sink.close()
            if voice_file is not None and voice_s > 0:
                join(sink.path, voice_file)
            teller(f"video    {sink.path} ({sink.count} pictures, {voice_s:.1f} s of voice)")


def rendezvous(host: str, port: int, certificate: Path | None, key: Path | None, plain: bool) -> None:
    """A rendezvous of its own, until it is stopped. Raises `ValueError`."""
    if plain == (certificate is not None) or (certificate is None) != (key is None):
        raise ValueError("give --certificate and --key, or --plain behind a proxy that speaks TLS")
    tls = signaling.server_tls(certificate, key) if certificate and key else None

    async def run() -> None:
        server = Rendezvous()
        await server.start(host, port, tls)
        ended = asyncio.Event()
        _on_signals(asyncio.get_running_loop(), ended.set)
        print(f"meeting place at {'https' if tls else 'http'}://{host}:{server.port} (Ctrl-C ends it)", flush=True)
        try:
            await ended.wait()
        finally:
            await server.stop()

    asyncio.run(run())


def _on_signals(loop: asyncio.AbstractEventLoop, stop: Callable[[], object]) -> None:
    """Ctrl-C and SIGTERM end a call in order: the other end is told, the file is finished."""
    for number in (signal.SIGINT, signal.SIGTERM):
        try:
            loop.add_signal_handler(number, stop)
        except NotImplementedError:  # Windows: Ctrl-C arrives as KeyboardInterrupt
            return


__all__ = ["ReceiveOptions", "SendOptions", "receive", "rendezvous", "send"]
