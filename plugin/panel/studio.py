"""What the panel controls: the live loop, its camera and its way out, the avatars, and the user's config file.

Nothing here knows of the web. Methods may be called from any thread; those that write are done one at a time.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, cast

import numpy as np
import tomlkit
from PIL import Image as Pillow
from PIL import ImageOps
from tomlkit.exceptions import TOMLKitError

from engine import avatar as avatars
from engine.avatar import AvatarError
from engine.base import Base, open_base
from engine.config import Config, load
from engine.frames import Frame, Image
from plugin.camera import Live, View
from plugin.listening import LiveMicrophone
from plugin.puppet import EnrolledPuppet, Puppet, Settings
from plugin.sinks import LiveSink
from plugin.webcam import CameraLostError, LiveSource

_BACKGROUND_PX = 1920
_MOST_PIXELS = 90_000_000
_IN_RENDER = ("background", "color", "image")
_HEADER = (
    "# Settings of Understudy that differ from the shipped ones; every knob there is: config.toml of the program.\n"
)


class TappedSource:
    """A camera that also keeps its newest frame, and that can be exchanged for another while the loop runs."""

    def __init__(self, source: LiveSource) -> None:
        self._source = source
        self._next: LiveSource | None = None
        self._lock = threading.Lock()
        self.frame: Frame | None = None

    @property
    def name(self) -> str:
        return (self._next or self._source).name

    def exchange(self, source: LiveSource) -> None:
        """From the next opening on, which is asked for at once."""
        with self._lock:
            self._next = source

    def open(self) -> None:
        with self._lock:
            self._source, self._next = self._next or self._source, None
        self._source.open()

    def read(self) -> Frame:
        if self._next is not None:
            raise CameraLostError(f"changing to the camera {self._next.name or 'that is there'}")
        self.frame = self._source.read()
        return self.frame

    def close(self) -> None:
        self.frame = None
        self._source.close()


class Gate:
    """Before the virtual camera: open, pictures pass; shut, they are dropped and the virtual camera is let go."""

    def __init__(self, sink: LiveSink) -> None:
        self._sink = sink
        self.sending = False
        """Whether the virtual camera is open."""
        self.wanted = False

    @property
    def name(self) -> str:
        return self._sink.name

    @property
    def size_px(self) -> tuple[int, int]:
        return self._sink.size_px

    @property
    def fps(self) -> float:
        return self._sink.fps

    def open(self) -> None:
        """Harmless when it is open already. Raises `SinkLostError` as the virtual camera does."""
        if self.wanted and not self.sending:
            self._sink.open()
            self.sending = True

    def send(self, frame: Frame) -> None:
        if not self.wanted:
            self.close()
            return
        self.open()
        self._sink.send(frame)

    def close(self) -> None:
        if self.sending:
            self.sending = False
            self._sink.close()


class Closet:
    """The user's avatars as they are at the moment: enrolled, imported and deleted while the loop runs."""

    def __init__(self, config: Config, base: Base, first: str) -> None:
        self._config, self._base, self.first = config, base, first

    @property
    def names(self) -> Sequence[str]:
        """Those that can be shown, the first one first."""
        there = [one.path.stem for one in avatars.listing() if one.header and one.header.base == self._base.sha256]
        return sorted(there, key=lambda name: name != self.first)

    def load(self, name: str) -> Puppet:
        puppet = EnrolledPuppet(avatars.load(avatars.place(name), self._base.sha256), self._base, self._config)
        puppet.name = name  # a file may have been renamed: its name is what the loop asks for
        return puppet


class Studio:
    """Holds a `Live` as long as there is an avatar to show; before that, and while enrolling, just the camera."""

    def __init__(
        self,
        config: Config,
        config_path: Path | None,
        source: LiveSource,
        sink: LiveSink,
        cameras: Callable[[], list[str]] = list,
        open_camera: Callable[[str], LiveSource] | None = None,
        base: Base | None = None,
        make_live: Callable[..., Live] = Live,
        microphone: LiveMicrophone | None = None,
        profile: str = "",
        first: str = "",
    ) -> None:
        """`config_path`: the user's own file, which need not exist; saved into its `profile` if one is named.

        `cameras` names those that `open_camera` opens; `microphone` is open only while it is to move the lips; `first`
        is the avatar shown where the configuration names none.
        """
        self.config_path = config_path if config_path and config_path.exists() else None
        self._save_path = config_path or avatars.home() / "config.toml"
        self._config = config
        self._saved = Settings.from_config(config)
        self._settings = self._saved
        self._saved_names = self._names = {"avatar": config.camera.avatar, "name": config.camera.name}
        self._source, self._gate = TappedSource(source), Gate(sink)
        self._cameras, self._open_camera = cameras, open_camera
        self._base = base or open_base()
        self._closet = Closet(config, self._base, config.camera.avatar or first)
        self._profile = profile
        self._make_live, self._microphone = make_live, microphone
        self._live: Live | None = None
        self._chosen_avatar = ""
        self._alone: _Pump | None = None
        self._camera_wanted = False
        self._lock = threading.RLock()

    @property
    def names(self) -> Sequence[str]:
        """The avatars that can be shown."""
        return self._closet.names

    def start(self) -> None:
        """Show the first avatar there is; without one, wait for it to be made."""
        with self._lock:
            names = self._closet.names
            if self._live is None and names:
                self._pump(False)
                self._live = self._make_live(
                    self._config, self._source, self._gate, self._closet, microphone=self._microphone
                )
                self._live.set(**_changes(self._settings))
                self._chosen_avatar = names[0]
                self._live.start()
            elif self._live is None:
                self._pump(self._camera_wanted)

    def close(self) -> None:
        with self._lock:
            self._gate.wanted = False
            self._stop_live()
            self._pump(False)

    # --- what it says -----------------------------------------------------------------------------------------

    def snapshot(self) -> dict[str, Any]:
        """Everything the page shows, apart from pictures."""
        live = self._live
        status = live.status() if live is not None else None
        numbers: dict[str, Any] = {}
        if status is not None:
            numbers = {
                "fps": round(status.fps, 1),
                "glass_p50_ms": _finite(status.glass_p50_ms),
                "glass_p95_ms": _finite(status.glass_p95_ms),
                "stages_ms": {name: round(value, 2) for name, value in status.stages_ms.items()},
                "queue_ms": {name: round(value, 2) for name, value in status.queue_ms.items()},
                "drops": status.drops,
                "backend": status.backend,
            }
        alone = self._alone
        return {
            "state": status.state if status else "no avatar",
            "on_air": self._gate.wanted,
            "sending": self._gate.sending,
            "problems": status.problems if status else ([alone.problem] if alone and alone.problem else []),
            "avatar": status.avatar if status else "",
            "chosen_avatar": self._chosen_avatar,
            "avatars": self._avatars(),
            "camera": self._source.name,
            "cameras_can_change": self._open_camera is not None,
            "chosen_camera": self._names["name"],
            "microphone": self._microphone.name if self._microphone is not None else "",
            "sink": self._gate.name,
            "settings": _plain(self._settings),
            "pass_through_asks": live.pass_through_asks if live is not None else True,
            "unsaved": self._unsaved() != {},
            "config_path": str(self._save_path),
            "config_exists": self.config_path is not None,
            "numbers": numbers,
        }

    def _avatars(self) -> list[dict[str, Any]]:
        told = []
        for one in avatars.listing():
            problem = one.problem
            if one.header and one.header.base != self._base.sha256:
                problem = "made by another version of Understudy: enrol again"
            created = one.header.created if one.header else ""
            told.append({"name": one.path.stem, "created": created, "problem": problem})
        return told

    def latest(self, view: str) -> Image | None:
        """A picture for a preview, `[H, W, 3]`; None while there is none."""
        live = self._live
        if live is not None:
            return live.latest(cast(View, view))
        picture = self.camera_picture() if view == "camera" else None
        if picture is not None and self._settings.mirror_preview:
            picture = np.ascontiguousarray(picture[:, ::-1])
        return picture

    def camera_picture(self) -> Image | None:
        """What the camera shows now, never mirrored."""
        frame = self._source.frame
        return None if frame is None else frame.rgb

    # --- what it does -----------------------------------------------------------------------------------------

    def do(self, command: str, value: Any) -> Any:
        """A command of the page. Raises `ValueError`/`OSError` with one sentence."""
        with self._lock:
            match command:
                case "live":
                    return self._go_live(_flag(value))
                case "hold":
                    return self._must().hold(_flag(value))
                case "calibrate":
                    return self._must().calibrate()
                case "pass-through":
                    given = value if isinstance(value, dict) else {}
                    return self._must().pass_through(_flag(given.get("on")), given.get("sure") is True)
                case "switch":
                    return self._switch(str(value))
                case "set":
                    return self._set(value)
                case "cameras":
                    return self._cameras()
                case "camera":
                    return self._choose_camera(str(value))
                case "delete":
                    return self._delete(str(value))
                case "save":
                    return self._save()
                case _:
                    raise ValueError(f"the panel knows no command {command!r}")

    def privacy(self, on: bool) -> bool:
        """At once: waits for no other command."""
        return self._must().privacy(on)

    def want_camera(self, on: bool) -> None:
        """Whether somebody enrols: then the camera runs even without an avatar."""
        with self._lock:
            self._camera_wanted = on
            if self._live is None:
                self._pump(on)

    def _must(self) -> Live:
        live = self._live
        if live is None:
            raise ValueError("there is no avatar yet: make or import one first")
        return live

    def _go_live(self, on: bool) -> bool:
        self._must()
        self._gate.wanted = on
        return on

    def _switch(self, name: str) -> str:
        if name not in self._closet.names:
            self.avatar_path(name)
            raise ValueError(f"{name} cannot be shown: it was made by another version of Understudy; enrol again")
        if self._live is None:
            self._closet.first = name
            self.start()
        else:
            self._live.switch(name)
        self._chosen_avatar = name
        self._names = self._names | {"avatar": name}
        return name

    def _set(self, value: object) -> None:
        if not isinstance(value, dict):
            raise ValueError("settings come by name")
        if "image" in value:
            raise ValueError("a background picture is uploaded, not named")
        self._apply({str(name): one for name, one in value.items()})

    def _apply(self, changes: dict[str, Any]) -> None:
        self._settings = self._settings.changed(**changes)
        if self._live is not None:
            self._live.set(**changes)

    def _choose_camera(self, name: str) -> None:
        if self._open_camera is None:
            raise ValueError("this panel was started with a camera of its own: start it without --clip to choose one")
        if name and name not in self._cameras():
            raise ValueError(f"there is no camera {name!r} any more: plug it in again")
        self._names = self._names | {"name": name}
        self._source.exchange(self._open_camera(name))

    def _pump(self, on: bool) -> None:
        """The camera without the loop."""
        if on and self._alone is None:
            self._alone = _Pump(self._source)
        elif not on and self._alone is not None:
            self._alone.stop()
            self._alone = None

    def _stop_live(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live.join()
            self._live = None
            self._gate.close()

    # --- avatars ----------------------------------------------------------------------------------------------

    def avatar_path(self, name: str) -> Path:
        """The file of one of the user's avatars; by name only. Raises `AvatarError` for any other."""
        for one in avatars.listing():
            if one.path.stem == name:
                return one.path
        raise AvatarError(f"there is no avatar called {name!r}")

    def portrait(self, path: Path) -> Image:
        """The most neutral of its pictures, `[S, S, 3]`."""
        avatar = avatars.load(path)
        apart = [float(np.abs(one.points - avatar.neutral).mean()) for one in avatar.references]
        return avatar.references[int(np.argmin(apart))].rgb

    def import_avatar(self, content: bytes, replace: bool) -> str:
        """Keep an avatar file from elsewhere, checked as any other; returns its name. Raises `AvatarError`."""
        with tempfile.TemporaryDirectory(prefix="understudy-import-") as folder:
            path = Path(folder) / ("imported" + avatars.SUFFIX)
            path.write_bytes(content)
            try:
                avatar = avatars.load(path, self._base.sha256)
            except AvatarError as error:
                raise AvatarError(str(error).replace(path.name, "this file")) from error
            with self._lock:
                place = avatars.place(avatar.name)
                if place.exists() and not replace:
                    raise AvatarError(
                        f"there is already an avatar called {avatar.name!r}: delete it first, or replace it"
                    )
                avatars.save(avatar, place)
        self.renewed(avatar.name)
        return avatar.name

    def renewed(self, name: str) -> None:
        """The file of an avatar is new: show it, where it is the one that is shown, or the first there is."""
        with self._lock:
            if self._live is not None and name == self._chosen_avatar:
                private = self._live.status().state == "private"
                self._stop_live()
                self._closet.first = name
                self.start()
                if private:
                    self._must().privacy(True)
        self.start()

    def _delete(self, name: str) -> None:
        path = self.avatar_path(name)
        if name == self._chosen_avatar:
            others = [one for one in self._closet.names if one != name]
            if others:
                self._switch(others[0])
            else:
                self._gate.wanted = False
                self._stop_live()
                self._chosen_avatar = ""
        path.unlink()
        for beside in (".png", ".jpg", ".jpeg"):  # the contact sheet shows the same person
            path.with_suffix(beside).unlink(missing_ok=True)
        self.start()

    def set_background_picture(self, content: bytes) -> None:
        """Put a picture behind the avatar; a copy is kept in the program's own folder. Raises `ValueError`."""
        sentence = "this is not a picture that can be read: choose a JPEG, PNG or WebP"
        try:
            with Pillow.open(io.BytesIO(content)) as picture:
                if picture.width * picture.height > _MOST_PIXELS:
                    raise ValueError("this picture has too many pixels: save a copy of at most 8000 x 8000")
                upright = ImageOps.exif_transpose(picture).convert("RGB")
        except (OSError, SyntaxError, EOFError, Pillow.DecompressionBombError) as error:
            raise ValueError(sentence) from error
        upright.thumbnail((_BACKGROUND_PX, _BACKGROUND_PX), Pillow.Resampling.LANCZOS)
        path = avatars.home() / "backgrounds" / f"{hashlib.sha256(content).hexdigest()[:16]}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        upright.save(path, "JPEG", quality=92)
        with self._lock:
            self._apply({"background": "image", "image": path})

    # --- the config file --------------------------------------------------------------------------------------

    def _unsaved(self) -> dict[tuple[str, str], Any]:
        """(section, key) -> value of everything that differs from the file."""
        found: dict[tuple[str, str], Any] = {}
        saved, now = _plain(self._saved), _plain(self._settings)
        for name, value in now.items():
            if value != saved[name]:
                found["render" if name in _IN_RENDER else "camera", name] = value
        changed = {("camera", name): value for name, value in self._names.items() if value != self._saved_names[name]}
        found |= changed
        return found

    def _save(self) -> str:
        """Write what differs into the user's file, whose comments and order stay; returns its path."""
        changes = self._unsaved()
        path = self._save_path
        try:
            before = path.read_text(encoding="utf-8") if path.exists() else _HEADER
            document = tomlkit.parse(before)
        except (TOMLKitError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is not a TOML file any more ({error}): mend it, then save again") from error
        place: Any = document
        for name in ("profiles", self._profile) if self._profile else ():
            if name not in place:
                place[name] = tomlkit.table(is_super_table=True)
            place = place[name]
        for (section, key), value in changes.items():
            if section not in place:
                place[section] = tomlkit.table()
            place[section][key] = value
        write_checked(path, tomlkit.dumps(document))
        self._saved = self._settings
        self._saved_names = self._names
        self.config_path = path
        return str(path)


class _Pump:
    """Reads a camera so that its newest frame can be seen, until stopped; opens it again when it goes away."""

    def __init__(self, source: LiveSource) -> None:
        self._source = source
        self._stopping = threading.Event()
        self.problem = ""
        self._thread = threading.Thread(target=self._run, name="understudy-enrol-camera", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join(5.0)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._source.open()
                while not self._stopping.is_set():
                    self._source.read()
                    self.problem = ""
            except CameraLostError as lost:
                self.problem = str(lost)
                self._stopping.wait(1.0)
            finally:
                self._source.close()


def write_checked(path: Path, text: str) -> None:
    """Replace a config file, whole or not at all, and only by one the program would read."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=".", suffix=".part", dir=path.parent)
    except OSError as error:
        raise OSError(f"{path} cannot be written: {error.strerror or error}") from error
    part = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
            file.write(text)
        load(part)
        part.replace(path)
    except OSError as error:
        raise OSError(f"{path} cannot be written: {error.strerror or error}") from error
    except ValueError as error:
        raise ValueError(f"{path} was left as it is: {str(error).replace(str(part), path.name)}") from error
    finally:
        part.unlink(missing_ok=True)


def _changes(settings: Settings) -> dict[str, Any]:
    return {one.name: getattr(settings, one.name) for one in fields(settings)}


def _plain(settings: Settings) -> dict[str, Any]:
    """As JSON and TOML have it."""
    told = asdict(settings)
    return told | {"image": str(settings.image) if settings.image else ""}


def _finite(value: float) -> float | None:
    return round(value, 1) if math.isfinite(value) else None


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{value!r} is neither true nor false")
    return value
