"""Each factor of a rendered face from its own source: a clip, a recording, a voice, a number, or nothing at all.

`understudy render --lips voice.wav --pose a.mp4 --eyes b.mp4 --expression c.mp4`. What no source drives lives by
itself: eyes blink, and the head never keeps quite still.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from engine.avatar import Avatar
from engine.base import Base
from engine.config import Config
from engine.factors import Factors, Idle, Mixer, Sources, Splitter, eyes_of, pose_of, still
from engine.frames import Face, NoFace
from engine.motion import HeadFace, NeutralFinder
from engine.recording import Recording
from engine.renderer import Renderer, avatar_face
from engine.tracker import Smoother, Tracker
from engine.voice_lips import DELAY_S, Voice, VoiceLips, read_voice
from plugin.meter import Meter
from plugin.render import LOOKAHEAD_S, Rendered, Report, read_faces
from plugin.sinks import FileSink
from plugin.webcam import Clip

FACTORS = ("lips", "pose", "eyes", "expression")
EASE_S = 0.3
"""How softly a source goes on after a cut: it began again, or its face came back."""
SOUNDS = {".wav", ".mp3", ".m4a", ".aac", ".flac", ".ogg", ".opus", ".oga", ".wma"}
_CHUNK = 1600


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the command line asks for; each is a file, `still`, a number or `None`."""

    lips: str | None = None
    pose: str | None = None
    eyes: str | None = None
    expression: str | None = None
    loop: bool = False

    @property
    def any(self) -> bool:
        return any(getattr(self, name) is not None for name in FACTORS)


class Driven(Protocol):
    """Something that has factors at any time; times may only grow."""

    @property
    def seconds(self) -> float | None:
        """How long it lasts; `None` for ever."""
        ...

    @property
    def fps(self) -> float | None: ...

    @property
    def sound(self) -> Path | None:
        """The file with its sound, if it has any."""
        ...

    def at(self, time_s: float, /) -> Factors: ...

    def notes(self, seconds: float) -> list[str]:
        """What is to be said of it, once `seconds` were drawn."""
        ...

    def close(self) -> None: ...


class Always:
    """The same at all times, or what a function of time says."""

    seconds: float | None = None
    fps: float | None = None
    sound: Path | None = None

    def __init__(self, made: Callable[[float], Factors]) -> None:
        self.at = made

    def notes(self, seconds: float) -> list[str]:
        return []

    def close(self) -> None:
        pass


class Faces:
    """A clip or a recording, taken apart as it plays; between its frames in a straight line."""

    def __init__(self, path: Path, canvas: HeadFace, config: Config, meter: Meter, loop: bool) -> None:
        """Raises `ValueError` when the file cannot be played."""
        self.path, self._canvas, self._loop = path, canvas, loop
        self._config, self._meter = config, meter
        self._clip: Clip | None = None
        self.sound: Path | None = None
        self._tracker: Tracker | None = None
        self._seen = self._unseen = self._rounds = 0
        self._trouble: str | None = None
        suffix = path.suffix.lower()
        if suffix == ".npz":
            self._recorded, self.fps = read_faces(path)
            self.seconds = self._recorded[-1].time_s - self._recorded[0].time_s + 1 / self.fps
        elif suffix == ".face":
            recording = Recording(path)
            self._recorded = list(recording)
            self._trouble = recording.trouble
            if len(self._recorded) < 2:
                raise ValueError(f"{path} holds no performance: it has fewer than two frames")
            span_s = self._recorded[-1].time_s - self._recorded[0].time_s
            self.fps = (len(self._recorded) - 1) / span_s
            self.seconds = span_s + 1 / self.fps
        else:
            self._recorded = []
            self._clip = Clip(path)
            self.sound = path if self._clip.has_sound else None
            self.fps, self.seconds = self._clip.fps, self._clip.duration_s
            self._tracker = Tracker.from_config(config.tracker, video=True)
        self._split = Splitter(canvas, NeutralFinder())
        self._moments = self._play()
        self._before = self._after = next(self._moments, None)
        if self._before is None:
            self.close()
            raise ValueError(f"no face was found in {path}")

    def _faces(self) -> Iterator[Face | NoFace]:
        if self._clip is None:
            yield from self._recorded
            return
        assert self._tracker is not None
        self._tracker.reset()
        smoother = Smoother.from_config(self._config.tracker)
        for frame in self._clip:
            with self._meter.stage("tracker"):
                face = self._tracker.track(frame)
                if isinstance(face, Face):
                    face = smoother.smooth(face)
                else:
                    smoother.reset()
            yield face

    def _play(self) -> Iterator[tuple[float, Factors]]:
        """(seconds, factors), for ever if it begins again."""
        shown: Factors | None = None
        start_s = 0.0
        while True:
            self._rounds += 1
            faces = self._faces()
            first = next(faces, None)
            if first is None:
                return
            # A clip counts from its own start, so that its sound stays in step; a recording's clock is anybody's.
            zero_s = 0.0 if self._clip is not None else first.time_s
            ahead = [first]
            for face in faces:
                ahead.append(face)
                if face.time_s - first.time_s >= LOOKAHEAD_S:
                    break
            if self._rounds == 1 and self._split.finder is not None:
                self._split.finder.prime([face for face in ahead if isinstance(face, Face)])
            cut_s, before_cut, lost = start_s, shown, False
            for face in itertools.chain(ahead, faces):
                now_s = start_s + face.time_s - zero_s
                if isinstance(face, NoFace):
                    self._unseen += 1
                    lost = True
                    continue
                self._seen += 1
                found = self._split(face)
                if lost and shown is not None:
                    cut_s, before_cut = now_s, shown
                    yield now_s - 1e-3, shown
                lost = False
                if before_cut is not None and now_s - cut_s < EASE_S:
                    found = before_cut.between(found, (now_s - cut_s) / EASE_S)
                shown = found
                yield now_s, shown
            if self._clip is not None and self._clip.trouble:
                self._trouble = self._clip.trouble
            if not self._loop or shown is None:
                return
            assert self.seconds is not None
            start_s += self.seconds

    def at(self, time_s: float) -> Factors:
        assert self._before is not None and self._after is not None
        while self._after[0] < time_s:
            following = next(self._moments, None)
            if following is None:
                return self._after[1]
            self._before, self._after = self._after, following
        (before_s, before), (after_s, after) = self._before, self._after
        if after_s <= before_s:
            return after
        return before.between(after, (time_s - before_s) / (after_s - before_s))

    def notes(self, seconds: float) -> list[str]:
        told = [self._trouble] if self._trouble else []
        if self._unseen:
            told.append(f"{self._unseen} of {self._seen + self._unseen} frames of {self.path} showed no face: held")
        if self.seconds is not None and seconds > self.seconds + 0.1:
            then = "it began again" if self._loop else "its last moment was held (--loop begins again)"
            told.append(f"{self.path} lasts {self.seconds:.1f} s of {seconds:.1f} s: {then}")
        elif self.seconds is not None and self.seconds > seconds + 0.1:
            told.append(f"{self.path} lasts {self.seconds:.1f} s: only the first {seconds:.1f} s were used")
        return told

    def close(self) -> None:
        self._moments = iter(())
        if self._clip is not None:
            self._clip.close()
        if self._tracker is not None:
            self._tracker.close()


class Spoken:
    """A voice that moves lips; after its end they rest."""

    fps: float | None = None

    def __init__(self, path: Path, canvas: HeadFace, meter: Meter) -> None:
        """Raises `ValueError` when it cannot be heard."""
        self.path = self.sound = path
        self._voice: Voice = read_voice(path)
        self.seconds: float | None = self._voice.seconds
        self._meter, self._rest = meter, still(canvas)
        self._silent = any("is silent" in note for note in self._voice.notes)
        self._moments = self._speak(VoiceLips(canvas))
        self._before = self._after = (-DELAY_S, self._rest)

    def _speak(self, lips: VoiceLips) -> Iterator[tuple[float, Factors]]:
        samples = np.concatenate([self._voice.samples, np.zeros(8000, np.float32)])
        for start in range(0, len(samples), _CHUNK):
            with self._meter.stage("voice"):
                found = list(lips.feed(samples[start : start + _CHUNK]))
            yield from found

    def at(self, time_s: float) -> Factors:
        if self._silent:
            return self._rest
        while self._after[0] < time_s:
            following = next(self._moments, None)
            if following is None:
                return self._rest
            self._before, self._after = self._after, following
        (before_s, before), (after_s, after) = self._before, self._after
        return before.between(after, (time_s - before_s) / (after_s - before_s)) if after_s > before_s else after

    def notes(self, seconds: float) -> list[str]:
        told = list(self._voice.notes)
        if self.seconds is not None and seconds > self.seconds + 0.1:
            told.append(f"{self.path} lasts {self.seconds:.1f} s of {seconds:.1f} s: the lips rest from there")
        elif self.seconds is not None and self.seconds > seconds + 0.1:
            told.append(f"{self.path} lasts {self.seconds:.1f} s: only the first {seconds:.1f} s were used")
        return told

    def close(self) -> None:
        pass


def _numbers(text: str) -> list[float] | None:
    """`10,-5` -> the numbers; `None` if it is none such. Raises `ValueError` for numbers that are none."""
    try:
        found = [float(one) for one in text.split(",")]
    except ValueError:
        return None
    if not all(map(math.isfinite, found)):
        raise ValueError(f"{text!r} holds a number that is none")
    return found


_LIMITS = {
    "pose": (("yaw", -40.0, 40.0), ("pitch", -30.0, 30.0), ("roll", -40.0, 40.0)),
    "eyes": (("open", 0.0, 1.5), ("aside", -30.0, 30.0), ("up", -25.0, 25.0)),
}


def fixed(name: str, text: str, canvas: HeadFace) -> Factors | None:
    """`still` or numbers as factors, `None` for anything else. Raises `ValueError` with a sentence."""
    rest = still(canvas)
    if text == "still":
        return rest
    numbers = _numbers(text)
    if numbers is None:
        return None
    limits = _LIMITS.get(name)
    if limits is None:
        raise ValueError(f"--{name} takes a file or 'still', not a number")
    if len(numbers) > len(limits):
        raise ValueError(f"--{name} takes at most {len(limits)} numbers ({', '.join(one for one, *_ in limits)})")
    for (what, least, most), number in zip(limits, numbers, strict=False):
        if not least <= number <= most:
            raise ValueError(f"--{name}: {what} is {number:g}, not between {least:g} and {most:g}")
    if name == "pose":
        return Factors(pose_of(*numbers), rest.eyes, rest.lips, rest.gaps, rest.expression)
    return Factors(rest.pose, eyes_of(canvas, *numbers), rest.lips, rest.gaps, rest.expression)


class Mix:
    """The stream of faces that the command line asks for, on the avatar's own neutral face."""

    def __init__(self, wanted: Wanted, drive: Path | None, canvas: Face, config: Config, meter: Meter) -> None:
        """Raises `ValueError`, `OSError` with a sentence; then nothing is left open."""
        self._mixer = Mixer(canvas)
        self.lines: list[str] = []
        """Where each factor comes from."""
        self._sources: dict[str, Driven] = {}
        head = self._mixer.canvas
        idle, rest = Idle(head), still(head)
        opened: dict[str, Driven] = {}
        self._opened = opened
        by_itself: dict[str, tuple[Driven, str]] = {
            "lips": (Always(lambda _: rest), "still"),
            "expression": (Always(lambda _: rest), "still"),
            "pose": (
                Always(lambda t: Factors(idle.pose(t), rest.eyes, rest.lips, rest.gaps, rest.expression)),
                "by itself: slight motion",
            ),
            "eyes": (
                Always(lambda t: Factors(rest.pose, idle.eyes(t), rest.lips, rest.gaps, rest.expression)),
                "by itself: blinks",
            ),
        }
        try:
            for name in FACTORS:
                text = getattr(wanted, name)
                if text is None and drive is None:
                    self._sources[name], told = by_itself[name]
                elif text is not None and (factors := fixed(name, text, head)) is not None:
                    self._sources[name], told = Always(lambda _, it=factors: it), text
                else:
                    path = drive if text is None else Path(text)
                    assert path is not None
                    told = str(path)
                    if told not in opened:
                        opened[told] = self._open(name, path, config, meter, wanted.loop)
                    self._sources[name] = opened[told]
                self.lines.append(f"{name:<10} {told}")
        except (ValueError, OSError):
            self.close()
            raise
        lengths = [one.seconds for one in opened.values() if one.seconds is not None]
        if not lengths:
            self.close()
            raise ValueError("nothing here lasts any time: name a clip, a recording or a voice for one of the factors")
        lips = self._sources["lips"]
        self.seconds = lips.seconds if lips.seconds is not None else max(lengths)
        self.fps = next((one.fps for one in opened.values() if one.fps is not None), 25.0)
        self.total = max(round(self.seconds * self.fps), 1)
        self.audio = lips.sound

    def _open(self, name: str, path: Path, config: Config, meter: Meter, loop: bool) -> Driven:
        canvas = self._mixer.canvas
        try:
            if path.suffix.lower() in SOUNDS:
                if name != "lips":
                    raise ValueError(f"{path} is sound, which drives lips alone: give --{name} a clip")
                return Spoken(path, canvas, meter)
            return Faces(path, canvas, config, meter, loop)
        except ValueError as error:
            raise ValueError(f"--{name}: {error}") from error

    def __iter__(self) -> Iterator[Face]:
        for number in range(self.total):
            now_s = number / self.fps
            given = {name: source.at(now_s) for name, source in self._sources.items()}
            yield self._mixer(Sources(given["pose"], given["eyes"], given["lips"], given["expression"]), now_s)

    def notes(self) -> list[str]:
        """What is to be said of the sources, once all was drawn."""
        seconds = self.total / self.fps
        return [note for one in self._opened.values() for note in one.notes(seconds)]

    def close(self) -> None:
        for one in self._opened.values():
            one.close()


def render_mixed(
    avatar: Avatar, base: Base, config: Config, wanted: Wanted, drive: Path | None, out: Path, report: Report
) -> Rendered:
    """Draw `avatar` into the MP4 `out`, each factor from its own source; `drive` has those that `wanted` leaves open.

    It lasts as long as what moves the lips, or else as the longest source, and has the sound of what moves the lips.
    Raises `ValueError`/`OSError` with one sentence; `out` then stays as it was.
    """
    began = time.perf_counter()
    meter = Meter()
    if config.render.motion == "absolute":
        raise ValueError("--motion absolute draws one driver's own shape: leave it out to mix factors")
    named = [Path(text) for text in (wanted.lips, wanted.pose, wanted.eyes, wanted.expression) if text is not None]
    if any(one.is_file() and out.exists() and out.samefile(one) for one in (*named, *([drive] if drive else []))):
        raise ValueError(f"{out} is a clip that drives: give the result another name")
    neutral = avatar_face(avatar)
    mix = Mix(wanted, drive, neutral, config, meter)
    size = config.render.size_px
    first_frame_s, count = 0.0, 0
    try:
        with FileSink(out, (size, size), mix.fps, audio_from=mix.audio) as sink:
            renderer = Renderer(avatar, base, config)
            renderer.retarget.finder.pin(neutral)
            renderer.warm_up()
            for count, face in enumerate(mix, 1):
                with meter.stage("renderer"):
                    frame = renderer.draw(face)
                if count == 1:
                    first_frame_s = time.perf_counter() - began
                with meter.stage("file"):
                    sink.send(frame)
                report("rendering", count, mix.total)
    finally:
        mix.close()
    notes = [*sink.notes, *mix.notes()]
    spent_s = time.perf_counter() - began
    return Rendered(out, count, 0, spent_s, first_frame_s, renderer.describe(), meter, notes, mix.lines)
