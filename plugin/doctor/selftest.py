"""The program tries itself: loads what it needs, draws the avatar, shows it on its own virtual camera and looks at it.

The work is done by a process of its own, for what can break here takes a process with it: a library built for another
processor, a driver. It gets one JSON argument and prints one JSON line when a stage begins and one when it ends.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plugin.doctor.cameras import real
from plugin.doctor.findings import Check, Finding, Request, green, red, yellow
from plugin.doctor.installation import install_command
from plugin.doctor.machine import load as busy
from plugin.doctor.settings import read_settings, settings_path
from plugin.doctor.system import ROOT, System

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from engine.config import Config
    from engine.frames import Face, Frame, Image, NoFace
    from plugin.puppet import Settings

log = logging.getLogger(__name__)

MODULES = ("numpy", "cv2", "av", "PIL", "openvino", "mediapipe", "pyvirtualcam", "sounddevice")
_PARTS = {"pyvirtualcam": "call", "sounddevice": "voice"}
"""What comes with an extra; without the extra it is not missed here, `program.packages` tells."""
_CURES = (
    ("libGL.so.1", "sudo apt install libgl1"),
    ("libgthread-2.0", "sudo apt install libglib2.0-0"),
    ("PortAudio", "sudo apt install libportaudio2"),
    ("libEGL", "sudo apt install libegl1"),
    ("GLIBC", "use a newer Linux distribution: this one's C library is too old"),
    ("DLL load failed", "install the Visual C++ Redistributable (aka.ms/vs/17/release/vc_redist.x64.exe)"),
)
_SMALL_PX = (160, 90)
"""Pictures are compared at this size."""
_LIMIT_S = 30.0
_LIVE_S, _PATIENCE_S = 3.0, 8.0
_CAMERA_S = 1.5
_GOOD_SHARE, _USABLE_FPS = 0.9, 12.0
_MOST_DIFFERENCE = 12.0
"""Mean difference of a channel, of 255, between what was sent and what came back."""


# --- in the other process ---


def main(arguments: list[str]) -> None:
    asked = json.loads(arguments[0])
    for stage in asked["stages"]:
        _say(stage=stage, began=True)
        try:
            told = _STAGES[stage](asked)
        except Exception as error:  # it is told to the other process, which makes a finding of it
            log.debug("the stage %s failed", stage, exc_info=True)
            known = isinstance(error, ValueError | OSError)
            told = {"error": " ".join((str(error) if known else f"{type(error).__name__}: {error}").split())}
        _say(stage=stage, **told)
    sys.stdout.flush()
    os._exit(0)  # a thread that waits for a camera's picture must not keep the process


def _say(**told: object) -> None:
    print(json.dumps(told), flush=True)


def _load(asked: dict[str, Any]) -> dict[str, Any]:
    """Import each module; `_say` before each, so that a crash has a name."""
    trouble, spent_ms = {}, {}
    for name in asked["modules"]:
        _say(stage="load", began=True, module=name)
        began = time.perf_counter()
        try:
            importlib.import_module(name)
        except (ImportError, OSError, AttributeError) as error:
            if isinstance(error, ModuleNotFoundError) and error.name == name:
                trouble[name] = "missing"
            else:
                trouble[name] = " ".join(str(error).split())
        spent_ms[name] = round((time.perf_counter() - began) * 1e3)
    return {"trouble": trouble, "ms": spent_ms}


class _Pictures:
    """A camera that shows the same pictures over and over, in real time."""

    name = "drawn pictures"

    def __init__(self, pictures: list[Image], fps: float) -> None:
        self._pictures, self._step_s = pictures, 1 / fps
        self._count, self._due_s = 0, 0.0

    def open(self) -> None:
        self._due_s = time.monotonic()

    def read(self) -> Frame:
        from engine.frames import Frame

        self._due_s = max(self._due_s + self._step_s, time.monotonic() - 1.0)
        time.sleep(max(0.0, self._due_s - time.monotonic()))
        self._count += 1
        return Frame(self._pictures[self._count % len(self._pictures)], time.monotonic())

    def close(self) -> None:
        """Nothing to close."""


class _Card:
    """A puppet that needs no avatar: the test card with a white bar that wanders."""

    name = "test card"

    def __init__(self, size_px: tuple[int, int]) -> None:
        from plugin.cards import test_card

        self._card, self._count = test_card(size_px, "Understudy tests itself"), 0

    def describe(self) -> str:
        return "test card"

    def draw(self, tracked: Face | NoFace, settings: Settings) -> Image:
        picture = self._card.copy()
        width = picture.shape[1]
        self._count = (self._count + 1) % 60
        left = self._count * (width * 9 // 10) // 60
        picture[: picture.shape[0] // 8, left : left + width // 10] = 255
        return picture

    def calibrate(self, face: Face) -> None:
        """Nothing to calibrate."""


class _Cards:
    """A wardrobe with the test card alone."""

    names = ("test card",)

    def __init__(self, size_px: tuple[int, int]) -> None:
        self._size_px = size_px

    def load(self, name: str) -> _Card:
        return _Card(self._size_px)


class _Nobody:
    """A tracker that sees nobody."""

    def track(self, frame: Frame) -> Face | NoFace:
        from engine.frames import NoFace

        return NoFace(frame.time_s)

    def close(self) -> None:
        """Nothing to close."""


def _small(rgb: Image) -> NDArray[np.float32]:
    import cv2
    import numpy as np

    return np.asarray(cv2.resize(rgb, _SMALL_PX, interpolation=cv2.INTER_AREA), np.float32)


class _Witness:
    """A sink that remembers, small, what it passed on in the last seconds."""

    def __init__(self, sink: Any) -> None:
        self._sink = sink
        self.sent: deque[NDArray[np.float32]] = deque(maxlen=120)

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
        self._sink.open()

    def send(self, frame: Frame) -> None:
        self._sink.send(frame)
        self.sent.append(_small(frame.rgb))

    def close(self) -> None:
        self._sink.close()


class _Reader(threading.Thread):
    """What another program sees: opens the virtual camera as a camera and keeps, small, what comes."""

    def __init__(self, device: str) -> None:
        super().__init__(name="doctor reads back", daemon=True)
        self._device = device
        self.seen: deque[tuple[float, NDArray[np.float32]]] = deque(maxlen=240)
        self.size_px = (0, 0)
        self.trouble = ""
        self._stopping = threading.Event()

    def run(self) -> None:
        import cv2
        import numpy as np

        os.environ.setdefault("OPENCV_VIDEOIO_V4L_SELECT_TIMEOUT", "3")
        capture = self._open()
        if capture is None or not capture.isOpened():
            self.trouble = self.trouble or f"{self._device} could not be opened for reading"
            return
        try:
            while not self._stopping.is_set():
                good, bgr = capture.read()
                if not good or bgr is None:
                    self.trouble = f"{self._device} gave no picture"
                    return
                self.size_px = (bgr.shape[1], bgr.shape[0])
                rgb = np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8)
                self.seen.append((time.monotonic(), _small(rgb)))
        finally:
            capture.release()

    def _open(self) -> Any:
        import cv2

        if self._device.startswith("/dev/"):
            return cv2.VideoCapture(self._device, cv2.CAP_V4L2)
        from plugin.webcam import list_cameras

        index = next((one.index for one in list_cameras() if one.name == self._device), None)
        if index is None:
            self.trouble = f"{self._device} is not among the cameras that programs are offered"
            return None
        return cv2.VideoCapture(index, cv2.CAP_DSHOW if sys.platform == "win32" else cv2.CAP_AVFOUNDATION)

    def stop(self) -> None:
        self._stopping.set()
        self.join(5.0)


VARIANTS: dict[str, Callable[[Any], Any]] = {
    "right": lambda picture: picture,
    "upside down": lambda picture: picture[::-1],
    "mirrored": lambda picture: picture[:, ::-1],
    "turned round": lambda picture: picture[::-1, ::-1],
    "red and blue exchanged": lambda picture: picture[..., ::-1],
}


def compare(sent: list[NDArray[np.float32]], seen: list[NDArray[np.float32]]) -> tuple[str, float]:
    """How pictures `[h, w, 3]` came back: the name of the variant that fits best, and its mean difference (of 255).

    Which of the sent ones a seen one is, is not known: the nearest counts.
    """
    import numpy as np

    stack = np.stack(sent)
    differences = {
        name: float(np.mean([np.abs(stack - change(one)).mean((1, 2, 3)).min() for one in seen]))
        for name, change in VARIANTS.items()
    }
    best = min(differences, key=lambda name: differences[name])
    return best, differences[best]


def _driver_pictures(wardrobe: Any, name: str, config: Config) -> list[Image]:
    """What a webcam would see of the person: the avatar behind its desk, moved by recorded landmarks."""
    import cv2
    import numpy as np

    from plugin import demo
    from plugin.puppet import Settings
    from plugin.render import read_faces

    puppet, settings = wardrobe.load(name), Settings.from_config(config)
    faces, _ = read_faces(demo.ASSETS / "talking.npz")
    size = config.camera.asked_px
    return [
        np.asarray(cv2.resize(puppet.draw(face, settings), size, interpolation=cv2.INTER_AREA), np.uint8)
        for face in faces[:30]
    ]


def _loop(asked: dict[str, Any]) -> dict[str, Any]:
    """The loop of `understudy camera`, as it is, with drawn pictures for a webcam."""
    import numpy as np

    from engine.config import load
    from plugin.camera import Live
    from plugin.puppet import EnrolledWardrobe
    from plugin.sinks import NoCamera, SinkLostError, VirtualCamera

    config = load(Path(asked["config"]) if asked["config"] else None)
    camera, name = config.camera, _avatar(asked["avatar"] or config.camera.avatar)
    size_px, told = camera.picture_px, {"avatar": name, "wanted_fps": camera.fps, "size_px": config.render.size_px}
    sink: Any = NoCamera(size_px, camera.fps)
    if asked["virtual"]:
        sink = VirtualCamera(size_px, camera.fps, camera.device, camera.backend)
        try:
            sink.open()
        except SinkLostError as error:
            told["sink_error"] = str(error)
            sink = NoCamera(size_px, camera.fps)
    virtual = isinstance(sink, VirtualCamera)
    witness, reader = _Witness(sink), _Reader(sink.name) if virtual else None
    if name is None:
        blank = np.zeros((48, 64, 3), np.uint8)
        live = Live(config, _Pictures([blank], camera.fps), witness, _Cards(size_px), tracker=_Nobody)
    else:
        wardrobe = EnrolledWardrobe(config, name)
        pictures = _driver_pictures(wardrobe, wardrobe.names[0], config)
        live = Live(config, _Pictures(pictures, camera.fps), witness, wardrobe)
    live.set(webcam=True)  # drawn pictures, whatever the user's own camera is set to
    with live:
        until = time.monotonic() + _PATIENCE_S * asked["patience"]
        while time.monotonic() < until and not (live.status().fps > 0 and live.status().state in ("live", "no face")):
            time.sleep(0.05)
            if reader is not None and reader.ident is None and witness.sent:
                reader.start()
        time.sleep(_LIVE_S)
        status = live.status()
        if reader is not None and reader.ident is not None:
            reader.stop()
    told |= {
        "state": status.state,
        "fps": round(status.fps, 1),
        "stages_ms": {stage: round(value, 1) for stage, value in status.stages_ms.items()},
        "glass_ms": [round(value, 1) for value in (status.glass_p50_ms, status.glass_p95_ms) if value == value],
        "backend": status.backend,
        "problems": status.problems,
        "virtual": virtual,
    }
    if reader is not None:
        told["device"] = sink.name
        told |= _back(reader, list(witness.sent))
        told["takes_again"] = _takes_again(sink.name, 1.0 * asked["patience"])
    return told


def _avatar(asked: str) -> str | None:
    """The avatar that was asked for, else the last one used, else the first that can be used, else None."""
    from engine import avatar
    from engine.base import open_base
    from plugin.memory import recall

    if asked:
        return asked
    base = open_base().sha256
    usable = [one.path.stem for one in avatar.listing() if one.header is not None and one.header.base == base]
    last = recall("avatar")
    return last if last in usable else next(iter(usable), None)


def _back(reader: _Reader, sent: list[NDArray[np.float32]]) -> dict[str, Any]:
    seen = list(reader.seen)
    if len(seen) < 3 or not sent:
        return {"back": {"count": len(seen), "trouble": reader.trouble or "no picture came back"}}
    seen = seen[len(seen) // 4 :]  # while the loop started the pace was another
    step = max(1, len(seen) // 24)
    variant, difference = compare(sent, [picture for _, picture in seen[::step]])
    spent_s = seen[-1][0] - seen[0][0]
    return {
        "back": {
            "count": len(seen),
            "fps": round((len(seen) - 1) / max(spent_s, 1e-3), 1),
            "variant": variant,
            "difference": round(difference, 1),
            "size_px": reader.size_px,
            "trouble": reader.trouble,
        }
    }


def _takes_again(device: str, limit_s: float) -> bool | None:
    """Whether v4l2loopback takes a program's pictures again after we left; None elsewhere."""
    if not device.startswith("/dev/"):
        return None
    from plugin.v4l2 import capability

    until = time.monotonic() + limit_s
    while not capability(Path(device)).outputs:
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
    return True


def _camera(asked: dict[str, Any]) -> dict[str, Any]:
    """A moment with the real camera; its pictures are measured and forgotten."""
    import numpy as np

    from engine.config import load
    from plugin.memory import recall
    from plugin.webcam import Webcam

    settings = load(Path(asked["config"]) if asked["config"] else None).camera
    camera = Webcam(settings.name, settings.asked_px, settings.fps, recall("camera"))
    camera.open()
    try:
        pictures, times = [], []
        camera.read()
        until = time.monotonic() + _CAMERA_S
        while time.monotonic() < until:
            pictures.append(_small(camera.read().rgb))
            times.append(time.monotonic())
    finally:
        camera.close()
    stack = np.stack(pictures)
    return {
        "name": camera.name,
        "wanted_fps": settings.fps,
        "fps": round((len(times) - 1) / max(times[-1] - times[0], 1e-3), 1) if len(times) > 1 else 0.0,
        "brightness": round(float(stack.mean()), 1),
        "contrast": round(float(stack.std((1, 2)).mean()), 1),
        "change": round(float(np.abs(np.diff(stack, axis=0)).max(initial=0.0)), 2),
    }


def _card_stage(asked: dict[str, Any]) -> dict[str, Any]:
    """The NVIDIA card as the renderer would open it, and OpenVINO's devices."""
    from engine.backends import UnavailableError, cuda
    from engine.backends.openvino import core

    told: dict[str, Any] = {"openvino": core().available_devices}
    try:
        card = cuda.open_card()
        from engine.backends.tensorrt import flavour_for

        told |= {"card": card.name, "capability": card.capability, "tensorrt": flavour_for(card.capability).described}
    except UnavailableError as error:
        told["why"] = str(error)
    return told


_STAGES: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "load": _load,
    "card": _card_stage,
    "loop": _loop,
    "camera": _camera,
}


# --- in the doctor's ---


def ask(system: System, stages: list[str], limit_s: float, **asked: object) -> dict[str, dict[str, Any]]:
    """What each stage told; for one that did not end `{"error": ...}`, for one that was not reached nothing."""
    start = (
        "import runpy, sys; sys.path.insert(0, sys.argv.pop(1)); "
        "runpy.run_module('plugin.doctor.selftest', run_name='__main__')"
    )
    command = [
        sys.executable,
        "-c",
        start,
        str(ROOT),
        json.dumps({"stages": stages, "patience": system.patience, **asked}, default=str),
    ]
    done = system.run(command, limit_s * system.patience)
    if done is None:
        return {stages[0]: {"error": f"{sys.executable} could not be started"}}
    told: dict[str, dict[str, Any]] = {}
    begun: dict[str, Any] = {}
    for line in done.out.splitlines():
        try:
            said = json.loads(line)
            stage = said.pop("stage")
        except (ValueError, KeyError, TypeError, AttributeError):
            continue  # a library that talks to itself
        if said.pop("began", False):
            begun = {"stage": stage, **said}
        else:
            told[stage] = said
            begun = {}
    if begun or not told:
        where = f" while loading {begun['module']}" if "module" in begun else ""
        how = _how(done.status) if done.ended else f"did not end within {limit_s * system.patience:.0f} s"
        told[str(begun.get("stage", stages[0]))] = {"error": f"it {how}{where}", **begun}
    return told


def _how(status: int) -> str:
    if status < 0:
        try:
            return f"ended by {signal.Signals(-status).name}"
        except ValueError:
            return f"ended by signal {-status}"
    return f"ended with status {status}"


def loads(system: System, request: Request) -> Finding:
    """Whether every library that a call needs can be loaded on this machine at all."""
    told = ask(system, ["load"], 30.0, modules=MODULES).get("load", {})
    if "error" in told:
        illegal = "SIGILL" in str(told["error"])
        return red(
            f"{told['error']}" + (": this processor lacks what it was built for" if illegal else ""),
            "use a newer computer" if illegal else install_command(system),
            **told,
        )
    trouble = {name: why for name, why in told.get("trouble", {}).items() if not (name in _PARTS and why == "missing")}
    if trouble:
        name, why = next(iter(trouble.items()))
        cure = next((cure for mark, cure in _CURES if mark in why), install_command(system, _PARTS.get(name, "")))
        return (yellow if name in _PARTS and len(trouble) == 1 else red)(f"{name} does not load: {why}", cure, **told)
    return green(f"all load ({sum(told['ms'].values()) / 1e3:.1f} s)", **told)


def _has_nvidia_card(system: System) -> bool:
    """By its number on the PCI bus, so a card without a driver counts."""
    devices = [f"/sys/bus/pci/devices/{name}" for name in system.names("/sys/bus/pci/devices")]
    return any(
        system.text(f"{one}/vendor") == "0x10de" and system.text(f"{one}/class").startswith("0x03") for one in devices
    )


def card(system: System, request: Request) -> Finding | None:
    """Whether what `engine.device` asks for is there, and whether an NVIDIA card that is there can be used."""
    wanted = read_settings(request).engine.device
    if wanted == "cpu" or system.platform == "darwin":
        return None
    absent = system.linux and not _has_nvidia_card(system)
    if wanted == "auto" and absent:
        return green("no NVIDIA card: the processor draws", wanted=wanted)
    if wanted == "cuda" and absent:
        return red('engine.device = "cuda", and there is no NVIDIA card', 'set engine.device = "auto"', wanted=wanted)
    told = ask(system, ["card"], 20.0).get("card", {})
    if "error" in told:
        return red(f"asking the graphics card: {told['error']}", 'set engine.device = "cpu"', **told)
    if wanted in ("gpu", "npu"):
        found = [one for one in told["openvino"] if one.startswith(wanted.upper())]
        if not found:
            return red(
                f"engine.device = {wanted!r}, and OpenVINO finds only {', '.join(told['openvino'])}",
                'set engine.device = "auto", or install the driver that OpenVINO\'s page on this device names',
                **told,
            )
        return green(f"OpenVINO finds {', '.join(found)}", **told)
    if "why" in told:
        cause, _, cure = told["why"].partition("; to use it: ")
        if wanted == "auto" and not system.linux and "no NVIDIA driver" in cause:
            return green("no NVIDIA driver: the processor draws", **told)
        level = red if wanted == "cuda" else yellow
        return level(f"the NVIDIA card cannot be used: {cause}", cure or "see the message", **told)
    return green(f"{told['card']}, {told['tensorrt']}", **told)


class SelfTest:
    """Three checks over one run of the other process, which the first of them starts."""

    def __init__(self) -> None:
        self._told: dict[str, dict[str, Any]] | None = None

    def checks(self) -> tuple[Check, ...]:
        return (
            Check("selftest.draw", "drawing", self.draw, _LIMIT_S + 5),
            Check("selftest.virtual", "read back", self.virtual, 5),
            Check("selftest.webcam", "camera picture", self.camera, 5),
        )

    def _ask(self, system: System, request: Request) -> dict[str, dict[str, Any]]:
        if self._told is None:
            there = real(system) if system.linux else True
            stages = ["loop", "camera"] if there else ["loop"]
            self._told = ask(
                system, stages, _LIMIT_S, virtual=True, config=settings_path(request), avatar=request.avatar
            )
        return self._told

    def draw(self, system: System, request: Request) -> Finding:
        read_settings(request)
        told = self._ask(system, request).get("loop", {"error": "it was not reached"})
        if "error" in told:
            slow = "did not end" in told["error"]
            advice = (
                "understudy doctor --patience 10   (if this machine is slow)" if slow else "understudy --verbose camera"
            )
            return red(f"the loop does not run: {told['error']}", advice, **told)
        if told["avatar"] is None:
            return yellow("not tested: there is no avatar", "understudy enrol my-selfies/ --name me", **told)
        if told["fps"] == 0 or not told["glass_ms"]:
            why = told["problems"][0] if told["problems"] else "no picture was drawn in time"
            return red(
                f"the loop does not run: {why}", "understudy doctor --patience 10   (if this machine is slow)", **told
            )
        wanted, fps = told["wanted_fps"], told["fps"]
        middle, late = told["glass_ms"]
        what = (
            f"{fps:g} of {wanted:g} pictures a second at {told['size_px']} px, {middle:.0f} ms late (95 %: {late:.0f})"
        )
        what += f"; {told['backend'].partition(' (TensorRT:')[0]}"
        elsewhere = busy(system, request)
        if elsewhere is not None and elsewhere.level != "green":
            advice = elsewhere.next
        elif told["size_px"] > 256:
            advice = "set render.size_px = 256 in your settings"
        else:
            advice = "use a computer with more cores, or with an NVIDIA card"
        if told["state"] == "no face":
            return red(
                f"the tracker sees no face in pictures of the avatar; {what}",
                f"understudy enrol PHOTOS... --name {told['avatar']}   (makes it anew)",
                **told,
            )
        if fps < _USABLE_FPS:
            return red(what, advice, **told)
        if fps < _GOOD_SHARE * wanted:
            return yellow(what, advice, **told)
        return green(what, **told)

    def virtual(self, system: System, request: Request) -> Finding | None:
        read_settings(request)
        told = self._ask(system, request).get("loop", {})
        if "sink_error" in told:
            cause = told["sink_error"].partition(":")[0]
            return red(f"not tested: {cause}", "mend the virtual camera above first", sink_error=told["sink_error"])
        if "back" not in told:
            return None  # `draw` said that the loop did not run
        back, device = told["back"], told["device"]
        if "variant" not in back:
            return red(
                f"nothing came back from {device}: {back['trouble']}",
                "see the virtual camera above; close other programs that use it",
                **back,
            )
        if back["variant"] != "right":
            return red(f"{device} comes back {back['variant']}", "report this with --json", **back)
        if back["difference"] > _MOST_DIFFERENCE:
            return red(
                f"{device} shows something else than what was sent (off by {back['difference']:.0f} of 255)",
                "close the other program that feeds it",
                **back,
            )
        width, height = back["size_px"]
        what = (
            f"{device}: {width} x {height}, upright, colours right (off by {back['difference']:.1f} of 255), "
            f"{back['fps']:g} pictures a second"
        )
        if told["takes_again"] is False:
            return yellow(
                f"{what}; but afterwards it takes no pictures any more",
                "reload it before each call (see above)",
                **back,
            )
        if back["fps"] < _GOOD_SHARE * min(told["wanted_fps"], max(told["fps"], _USABLE_FPS)):
            return yellow(what, "close other programs: what was drawn did not arrive in time", **back)
        return green(what, **back)

    def camera(self, system: System, request: Request) -> Finding | None:
        read_settings(request)
        told = self._ask(system, request).get("camera")
        if told is None:
            return None
        if "error" in told:
            return red(
                str(told["error"]),
                {
                    "darwin": "open 'x-apple.systempreferences:com.apple.preference.security?Privacy_Camera'",
                    "win32": "start ms-settings:privacy-webcam",
                }.get(system.platform, "close other programs that use the camera, then try again"),
                **told,
            )
        name, fps = told["name"], told["fps"]
        if told["brightness"] < 8:
            return red(f"{name} gives black pictures", "open its shutter or key; turn a light on", **told)
        if told["contrast"] < 3:
            return red(
                f"{name} gives pictures of one colour",
                "choose another camera (camera.name): this one may belong to a program that is not running",
                **told,
            )
        if told["change"] == 0 and fps > 0:
            return yellow(
                f"{name} gives a still picture", "start the program behind it, or choose another camera", **told
            )
        if fps < min(20.0, 0.7 * told["wanted_fps"]):
            return yellow(
                f"{name} gives {fps:g} pictures a second", "turn on more light: cameras slow down in the dark", **told
            )
        return green(f"{name}: {fps:g} pictures a second, brightness {told['brightness']:.0f} of 255", **told)


if __name__ == "__main__":
    main(sys.argv[1:])
