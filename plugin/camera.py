"""The local loop: webcam -> tracker -> avatar -> virtual camera, with its controls.

Three threads: one reads the camera, one tracks, one draws and sends; a fourth listens, where a microphone is to move
the lips of a face that is not seen. Between two of them lies a slot of length one in which the newest wins. Whatever
fails becomes a state with a picture (a card, the avatar at rest), a sentence in `LiveStatus.problems`, and another
attempt; nothing is thrown out of the loop.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Generic, Literal, Protocol, TypeVar

import cv2
import numpy as np

from engine.config import Config
from engine.frames import Face, Frame, Image, NoFace
from plugin import cards
from plugin.framing import cover
from plugin.listening import Ear, LiveMicrophone, MicrophoneLostError
from plugin.meter import Rolling
from plugin.puppet import Puppet, Settings, Wardrobe
from plugin.sinks import LiveSink, SinkLostError
from plugin.speaking import CLEAR, Spoken
from plugin.webcam import CameraLostError, LiveSource

log = logging.getLogger(__name__)

Clock = Callable[[], float]
State = Literal[
    "starting", "live", "voice", "no face", "no camera", "held", "private", "pass-through", "failed", "stopped"
]
"""Of "live" the camera moves the face; of "voice" the microphone does, as no face is to be seen."""
View = Literal["camera", "landmarks", "output"]

_RETRY_S = 1.0
"""Between two attempts to open what is not there."""
_CARD_FPS = 10.0
"""A picture that does not change is sent this often, so that whoever reads the virtual camera goes on reading."""
_WAKE_S = 0.2
"""The longest a stage sleeps before it looks whether it is to stop."""
_STALE_S = 2.0
"""A camera that has given nothing for so long counts as lost."""

_Item = TypeVar("_Item")


class Slot(Generic[_Item]):
    """What lies between two threads: one thing, the newest; what it replaces is counted as dropped."""

    def __init__(self) -> None:
        self._there = threading.Condition()
        self._item: _Item | None = None
        self.drops = 0
        """How many were replaced before anybody took them."""

    def put(self, item: _Item) -> None:
        with self._there:
            self.drops += self._item is not None
            self._item = item
            self._there.notify()

    def take(self, timeout_s: float) -> _Item | None:
        """The newest, removed; None when nothing comes in time."""
        with self._there:
            if self._item is None:
                self._there.wait(timeout_s)
            item, self._item = self._item, None
            return item

    def wake(self) -> None:
        """Let whoever waits look around."""
        with self._there:
            self._there.notify()


class TracksFaces(Protocol):
    """What the tracker thread runs; made and closed in that thread."""

    def track(self, frame: Frame) -> Face | NoFace: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class _Shot:
    """A frame on its way to the tracker; times on the loop's clock."""

    frame: Frame
    ready_s: float


@dataclass(frozen=True, slots=True)
class _Seen:
    """A tracked frame on its way to the generator; times on the loop's clock."""

    frame: Frame
    face: Face | NoFace
    ready_s: float


@dataclass(frozen=True, slots=True)
class LiveStatus:
    """One moment of the loop, for the meter's line, the panel and the doctor."""

    state: State
    avatar: str
    """The one that is shown; "" before the first is there."""
    fps: float
    """Pictures with news in them that left in the last second, a second."""
    stages_ms: dict[str, float]
    """stage -> median of the last seconds: camera, tracker, draw, send."""
    drops: dict[str, int]
    """slot -> pictures that a newer one replaced, since the start."""
    queue_ms: dict[str, float]
    """slot -> how long the median picture waited in it."""
    glass_p50_ms: float
    glass_p95_ms: float
    """From the camera's capture stamp until the virtual camera has the picture; nan before the first.

    In the state "voice": from the sound that the lips belong to.
    """
    camera: str
    sink: str
    backend: str
    """Which device draws, in one line."""
    settings: Settings
    problems: list[str] = field(default_factory=list)
    """What is wrong now, each with what to do about it."""

    def line(self) -> str:
        """All of it on one line."""
        stages = " ".join(f"{name} {value:.1f}" for name, value in self.stages_ms.items())
        waits = " ".join(f"{name} {value:.1f}" for name, value in self.queue_ms.items())
        drops = " ".join(f"{name} {count}" for name, count in self.drops.items())
        return (
            f"{self.state:<8} {self.avatar} {self.fps:4.1f} fps | glass {self.glass_p50_ms:.0f}/"
            f"{self.glass_p95_ms:.0f} ms | {stages} ms | waited {waits} ms | dropped {drops}"
            + (f" | {self.problems[0]}" if self.problems else "")
        )


class Live:
    """The loop. Every method may be called from any thread; `start` and `stop` once each.

    `source` and `sink` are opened and closed by the loop itself (and opened again when they fail). `avatars` loads
    what is shown; its first name comes first. `tracker` makes the tracker, in the thread that uses it. `microphone` is
    open only while the setting `voice_lips` is on.
    """

    def __init__(
        self,
        config: Config,
        source: LiveSource,
        sink: LiveSink,
        avatars: Wardrobe,
        clock: Clock = time.monotonic,
        tracker: Callable[[], TracksFaces] | None = None,
        microphone: LiveMicrophone | None = None,
    ) -> None:
        self._config, self._source, self._sink, self._avatars, self._clock = config, source, sink, avatars, clock
        self._tracker = tracker or (lambda: SmoothTracker(config))
        self._microphone = microphone
        self._ear: Ear | None = None
        self._clear_s = self._drawn_s = float("-inf")
        self._speaking = False
        self._frames: Slot[_Shot] = Slot()
        self._faces: Slot[_Seen] = Slot()
        self._meter = Rolling(clock)
        self._lock = threading.Lock()
        self._settings = Settings.from_config(config)
        self._stopping = threading.Event()
        self._private = self._held = self._passing = self._asked = False
        self._wanted = avatars.names[0]
        self._loading: str | None = None
        self._shown = ""
        self._puppet: Puppet | None = None
        self._calibrate = False
        self._problems: dict[str, str] = {}
        self._camera_frame: Frame | None = None
        self._seen: _Seen | None = None
        self._output: Image | None = None
        self._card = cards.test_card(sink.size_px)
        self._private_card = cards.private_card(sink.size_px)
        self._face_now = False
        self._drawn: Image | None = None
        self._passed: Frame | None = None
        self._flipped: Image = np.empty_like(self._card)
        self._sent_s = self._taken_s = self._sink_due_s = self._load_due_s = float("-inf")
        self._ended = False
        bodies = {"camera": self._run_camera, "tracker": self._run_tracker, "generator": self._run_generator}
        if microphone is not None:
            bodies["voice"] = self._run_voice
        self._threads = [
            threading.Thread(target=self._supervise, args=(name, body), name=f"understudy-{name}", daemon=True)
            for name, body in bodies.items()
        ]

    # --- life -----------------------------------------------------------------------------------------------

    def start(self) -> None:
        # Three threads and the network share the cores already: OpenCV's own threads cost 6 % more processor time.
        cv2.setNumThreads(1)
        self._clear_s = self._clock()
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Asks the loop to end; `join` waits for it."""
        self._stopping.set()
        self._frames.wake()
        self._faces.wake()

    def join(self, timeout_s: float | None = 5.0) -> bool:
        """Whether every thread has ended within the time."""
        until = None if timeout_s is None else time.monotonic() + timeout_s
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(None if until is None else max(until - time.monotonic(), 0.0))
        self._ended = not any(thread.is_alive() for thread in self._threads)
        return self._ended

    def __enter__(self) -> Live:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self.join()

    # --- controls -------------------------------------------------------------------------------------------

    def calibrate(self) -> None:
        """The next face that is clearly seen is the driver's neutral one."""
        self._calibrate = True

    def hold(self, on: bool | None = None) -> bool:
        """Freeze the picture, or go on; None turns it over. Returns what it is now."""
        with self._lock:
            self._held = not self._held if on is None else on
            return self._held

    def privacy(self, on: bool | None = None) -> bool:
        """A still card instead of everything, from the next picture on; None turns it over."""
        with self._lock:
            self._private = not self._private if on is None else on
            now = self._private
        self._faces.wake()
        return now

    def pass_through(self, on: bool | None = None, sure: bool = False) -> bool:
        """The real camera instead of the avatar; None turns it over. Returns whether it is on now.

        The first time it stays off until `sure` is given: ask, then call again. Once is enough for this loop.
        """
        with self._lock:
            wanted = not self._passing if on is None else on
            self._asked = self._asked or sure
            self._passing = wanted and self._asked
            return self._passing

    @property
    def pass_through_asks(self) -> bool:
        """Whether `pass_through` still wants to be told `sure`."""
        return not self._asked

    def switch(self, name: str | None = None) -> str:
        """Show another avatar as soon as it is loaded; None takes the next in the row. Returns its name.

        Raises `ValueError` for a name that is not there.
        """
        names = self._avatars.names
        with self._lock:
            if name is None:
                here = names.index(self._wanted) if self._wanted in names else -1
                name = names[(here + 1) % len(names)]
            elif name not in names:
                raise ValueError(f"there is no avatar {name!r} here, only {', '.join(names)}")
            self._wanted = name
        self._faces.wake()
        return name

    def set(self, **settings: object) -> Settings:
        """Change settings by name, as in `plugin.puppet.Settings`.

        Raises `ValueError` with a sentence for an unknown name or a value out of range; nothing is changed then.
        """
        if settings.get("voice_lips") is True and self._microphone is None:
            raise ValueError("this loop was started without a microphone: start it anew with voice_lips = true")
        with self._lock:
            self._settings = self._settings.changed(**settings)
            return self._settings

    # --- what it says ---------------------------------------------------------------------------------------

    def status(self) -> LiveStatus:
        told = self._meter.summary()
        with self._lock:
            puppet, problems, settings = self._puppet, list(self._problems.values()), self._settings
        return LiveStatus(
            state=self._state(),
            avatar=self._shown if puppet else "",
            fps=self._meter.rate("news"),
            stages_ms={name: told[name][0] for name in ("camera", "tracker", "draw", "send") if name in told},
            drops={"frames": self._frames.drops, "faces": self._faces.drops},
            queue_ms={name: told[name][0] for name in ("frames", "faces") if name in told},
            glass_p50_ms=told.get("glass", (float("nan"),) * 2)[0],
            glass_p95_ms=told.get("glass", (float("nan"),) * 2)[1],
            camera=self._source.name,
            sink=self._sink.name,
            backend=puppet.describe() if puppet else "",
            settings=settings,
            problems=problems,
        )

    def latest(self, view: View) -> Image | None:
        """A picture for a preview, `[H, W, 3]`, the caller's own; None while there is none.

        "camera" and "landmarks" are turned over like a mirror when `mirror_preview` is set.
        """
        if view == "output":
            output = self._output
            return None if output is None else output.copy()
        if view == "camera":
            frame = self._camera_frame
            picture = None if frame is None else frame.rgb.copy()
        elif view == "landmarks":
            seen = self._seen if self._settings.webcam else None
            picture = None if seen is None else draw_landmarks(seen.frame, seen.face)
        else:
            raise ValueError(f"a view is camera, landmarks or output, not {view!r}")
        if picture is not None and self._settings.mirror_preview:
            picture = np.ascontiguousarray(picture[:, ::-1])
        return picture

    def _state(self) -> State:
        if self._ended or self._stopping.is_set():
            return "stopped"
        if self._private:
            return "private"
        if self._passing:
            return "pass-through"
        if self._held:
            return "held"
        if self._puppet is None:
            return "failed" if "avatar" in self._problems else "starting"
        if "generator" in self._problems or "tracker" in self._problems:
            return "failed"
        if self._speaking:
            return "voice"
        silent = (self._seen is not None or not self._settings.webcam) and self._camera_is_silent()
        if "camera" in self._problems or silent:
            return "no camera"
        if self._seen is None:
            return "starting"
        return "live" if self._face_now else "no face"

    def _problem(self, stage: str, sentence: str | None) -> None:
        with self._lock:
            if sentence is None:
                self._problems.pop(stage, None)
            elif self._problems.get(stage) != sentence:
                self._problems[stage] = sentence
                log.warning("%s", sentence)

    # --- the three threads ----------------------------------------------------------------------------------

    def _supervise(self, name: str, body: Callable[[], None]) -> None:
        """Runs a stage until the loop stops, again whenever it fails."""
        while not self._stopping.is_set():
            try:
                body()
            except Exception as error:  # a stage that dies must leave a picture, whatever it died of
                log.debug("the %s stage failed", name, exc_info=True)
                self._problem(name, f"the {name} failed ({' '.join(str(error).split())}) and is started again")
                self._stopping.wait(_RETRY_S)

    def _run_camera(self) -> None:
        if not self._settings.webcam:
            self._camera_frame = None
            self._problem("camera", None)
            self._stopping.wait(_WAKE_S)
            return
        try:
            self._source.open()
            while not self._stopping.is_set() and self._settings.webcam:
                frame = self._source.read()
                now = self._clock()
                self._meter.add("camera", (now - frame.time_s) * 1e3)
                self._camera_frame = frame
                self._frames.put(_Shot(frame, now))
                self._problem("camera", None)
        except CameraLostError as lost:
            self._problem("camera", str(lost))
            self._stopping.wait(_RETRY_S)
        finally:
            self._source.close()

    def _run_tracker(self) -> None:
        tracker = self._tracker()
        try:
            while not self._stopping.is_set():
                shot = self._frames.take(_WAKE_S)
                if shot is None:
                    continue
                began = self._clock()
                self._meter.add("frames", (began - shot.ready_s) * 1e3)
                face = tracker.track(shot.frame)
                ready = self._clock()
                self._meter.add("tracker", (ready - began) * 1e3)
                self._problem("tracker", None)
                self._faces.put(_Seen(shot.frame, face, ready))
        finally:
            tracker.close()

    def _run_voice(self) -> None:
        assert self._microphone is not None
        if not self._settings.voice_lips:
            self._problem("voice", None)
            self._stopping.wait(_WAKE_S)
            return
        try:
            ear = Ear()
            self._microphone.open()
            while not self._stopping.is_set() and self._settings.voice_lips:
                ear.hear(self._microphone.read())
                self._ear = ear
                self._problem("voice", ear.problem)
        except MicrophoneLostError as lost:
            self._problem("voice", str(lost))
            self._stopping.wait(5 * _RETRY_S)
        finally:
            self._ear = None
            self._microphone.close()

    def _run_generator(self) -> None:
        try:
            while not self._stopping.is_set():
                self._load_what_is_wanted()
                seen = self._next_face()
                if self._stopping.is_set():
                    return
                picture, taken_s = self._picture(seen)
                if self._private:  # pressed while the picture was drawn
                    picture, taken_s = self._private_card, None
                self._send(picture, taken_s)
                self._problem("generator", None)
        finally:
            self._sink.close()

    def _next_face(self) -> _Seen | None:
        """The newest face, not sooner than the sink wants a picture; None when it wants one and there is none."""
        step_s = 1 / self._sink.fps
        # From one beginning to the next: what drawing takes is not waited for a second time.
        early_s = self._taken_s + 0.8 * step_s - self._clock()
        if early_s > 0:
            self._stopping.wait(min(early_s, step_s))
        still = self._private or self._puppet is None or self._held
        patience_s = (1 / _CARD_FPS if still else 1.5 * step_s) - (self._clock() - self._sent_s)
        if self._speaking and not still:  # a voice waits for no camera
            patience_s = step_s - (self._clock() - self._taken_s)
        seen = self._faces.take(min(max(patience_s, 1e-3), _WAKE_S))
        self._taken_s = self._clock()
        if seen is not None:
            self._seen = seen
            self._face_now = isinstance(seen.face, Face)
            if isinstance(seen.face, Face) and seen.face.visibility >= CLEAR:
                self._clear_s = self._taken_s
            self._meter.add("faces", (self._clock() - seen.ready_s) * 1e3)
        return seen

    def _picture(self, seen: _Seen | None) -> tuple[Image, float | None]:
        """What is to be shown now, and when what it shows was taken (None: nothing new)."""
        if self._private:
            return self._private_card, None
        if self._passing:
            frame = self._camera_frame
            if frame is None:
                return self._card, None
            news = frame is not self._passed
            self._passed = frame
            return cover(frame.rgb, self._sink.size_px), frame.time_s if news else None
        if self._held and self._drawn is not None:
            return self._drawn, None
        puppet = self._puppet
        if puppet is None:
            return self._card, None
        taken_s: float | None = None
        spoken = self._spoken()
        self._speaking = spoken is not None
        if spoken is not None:
            taken_s, tracked = spoken
        elif seen is not None:
            tracked, taken_s = seen.face, seen.face.time_s
        elif self._drawn is not None and not self._camera_is_silent():
            return self._drawn, None
        else:
            tracked = NoFace(self._clock())
        if 0 < self._drawn_s - tracked.time_s < 1:  # a face that comes back was taken before the last word
            tracked = replace(tracked, time_s=self._drawn_s)
        self._drawn_s = tracked.time_s
        began = self._clock()
        try:
            if self._calibrate and isinstance(tracked, Face) and tracked.visibility > 0.6:
                self._calibrate = False
                puppet.calibrate(tracked)
            picture = puppet.draw(tracked, self._settings)
        except Exception as error:  # whatever an avatar cannot draw, the call shall see a card
            log.debug("drawing failed", exc_info=True)
            told = " ".join(str(error).split())
            self._problem("avatar", f"the avatar {puppet.name!r} cannot be drawn ({told}); it is loaded again")
            self._card = cards.telling_card(self._sink.size_px, "Understudy: the avatar is loaded again")
            self._puppet = self._drawn = None
            return self._card, None
        if self._settings.mirror_output:
            picture = np.asarray(cv2.flip(picture, 1, dst=self._flipped), np.uint8)
        self._drawn = picture
        self._meter.add("draw", (self._clock() - began) * 1e3)
        return picture, taken_s

    def _spoken(self) -> tuple[float, Spoken] | None:
        """What the voice does, and when it did: while it is to drive the face, and is heard."""
        ear, now = self._ear, self._clock()
        if ear is None or now - self._clear_s <= self._config.render.hold_s:
            return None
        heard = ear.at(now)
        return None if heard is None else (heard[0], Spoken(now, heard[1]))

    def _camera_is_silent(self) -> bool:
        frame = self._camera_frame
        return frame is None or self._clock() - frame.time_s > _STALE_S

    def _send(self, picture: Image, taken_s: float | None) -> None:
        now = self._clock()
        self._output = picture
        if now >= self._sink_due_s:
            try:
                self._sink.open()
                self._sink.send(Frame(picture, now))
                self._problem("sink", None)
            except SinkLostError as lost:
                self._problem("sink", str(lost))
                self._sink.close()
                self._sink_due_s = now + _RETRY_S
        self._sent_s = self._clock()
        self._meter.add("send", (self._sent_s - now) * 1e3)
        if taken_s is not None:
            self._meter.add("news")
            self._meter.add("glass", (self._sent_s - taken_s) * 1e3)

    def _load_what_is_wanted(self) -> None:
        """Starts loading beside the loop when another avatar is wanted than the one that is shown."""
        wanted = self._wanted
        there = self._puppet is not None and self._shown == wanted
        if there or self._loading is not None or self._clock() < self._load_due_s:
            return
        self._loading = wanted
        threading.Thread(target=self._load, args=(wanted,), name="understudy-loader", daemon=True).start()

    def _load(self, name: str) -> None:
        try:
            # By the wardrobe's name: a file that was given another one still bears the old name inside.
            self._puppet, self._shown = self._avatars.load(name), name
            self._problem("avatar", None)
        except Exception as error:  # an avatar that cannot be loaded is told, the one before stays
            log.debug("loading failed", exc_info=True)
            self._problem("avatar", f"the avatar {name!r} cannot be shown: {' '.join(str(error).split())}")
            self._card = cards.telling_card(self._sink.size_px, f"Understudy: the avatar {name} cannot be shown")
            if self._puppet is not None and self._wanted == name:
                self._wanted = self._shown
            self._load_due_s = self._clock() + 5 * _RETRY_S
        finally:
            self._loading = None
            self._faces.wake()


class SmoothTracker:
    """The tracker with its smoothing, as the loop runs it."""

    def __init__(self, config: Config) -> None:
        from engine.tracker import Smoother, Tracker

        self._tracker, self._smoother = Tracker.from_config(config.tracker), Smoother.from_config(config.tracker)

    def track(self, frame: Frame) -> Face | NoFace:
        face = self._tracker.track(frame)
        if isinstance(face, Face):
            return self._smoother.smooth(face)
        self._smoother.reset()
        return face

    def close(self) -> None:
        self._tracker.close()


def draw_landmarks(frame: Frame, face: Face | NoFace) -> Image:
    """The camera's picture with the tracked points on it, a copy."""
    picture = frame.rgb.copy()
    if isinstance(face, Face):
        radius = max(1, round(picture.shape[0] / 480))
        for x, y in np.rint(face.points[:, :2] * 8).astype(int):
            cv2.circle(picture, (int(x), int(y)), radius * 8, (80, 240, 120), -1, cv2.LINE_AA, 3)
    return picture
