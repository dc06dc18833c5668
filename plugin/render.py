"""`understudy render`: an avatar driven by a clip (or by recorded landmarks), written to a file."""

from __future__ import annotations

import itertools
import logging
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from engine.avatar import Avatar
from engine.base import Base
from engine.config import Config
from engine.frames import Face, Frame, NoFace
from engine.renderer import Renderer
from engine.tracker import Smoother, Tracker, canonical_face, fit_pose
from plugin.meter import Meter
from plugin.sinks import FileSink
from plugin.webcam import Clip

log = logging.getLogger(__name__)

LOOKAHEAD_S = 4.0
"""How much of a clip is looked at for a neutral face before the first picture is drawn."""

Report = Callable[[str, int, int], None]


@dataclass(slots=True)
class Rendered:
    """What a run did."""

    path: Path
    frames: int
    faceless: int
    seconds: float
    first_frame_s: float
    backend: str
    meter: Meter
    notes: list[str] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    """One line for each factor, where each has its own (`plugin.mix`)."""


def read_faces(path: Path) -> tuple[list[Face], float]:
    """A recorded stream of landmarks (`training.record`), and its frames per second.

    Raises `ValueError` when the file is not one.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            points, times, size = stored["points"].astype(np.float32), stored["time_s"], stored["size_px"]
    except FileNotFoundError:
        raise ValueError(f"there is no file {path}") from None
    except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is not a recorded stream of landmarks ({error})") from None
    if points.ndim != 3 or points.shape[1:] != (478, 3) or len(points) != len(times) or len(points) < 2:
        raise ValueError(f"{path} holds points of shape {list(points.shape)}, not [frames, 478, 3]")
    if not np.isfinite(points).all() or size.shape != (2,) or not (np.diff(times) > 0).all():
        raise ValueError(f"{path} is no stream of landmarks: its numbers or its times make no sense")
    canonical = canonical_face()
    width, height = (int(value) for value in size)
    faces = [
        Face(p, *fit_pose(p, canonical), 1.0, (width, height), float(t)) for p, t in zip(points, times, strict=True)
    ]
    return faces, float((len(times) - 1) / (times[-1] - times[0]))


class Crowd:
    """Looks now and then whether the one who is followed is alone in the picture."""

    def __init__(self, tracker: Tracker, every_s: float = 2.0) -> None:
        self._tracker, self._every_s, self._due_s = tracker, every_s, -np.inf
        self.most = 0
        """The most faces that were seen at once."""

    def look(self, frame: Frame) -> None:
        if self.most < 2 and frame.time_s >= self._due_s:
            self._due_s = frame.time_s + self._every_s
            self.most = max(self.most, len(self._tracker.track_all(frame.rgb)))


def track(
    frames: Iterable[Frame], tracker: Tracker, smoother: Smoother | None, meter: Meter, crowd: Crowd | None = None
) -> Iterator[Face | NoFace]:
    """Frames -> faces, smoothed unless `smoother` is None."""
    for frame in frames:
        if crowd is not None:
            crowd.look(frame)
        with meter.stage("tracker"):
            face = tracker.track(frame)
            if smoother is not None:
                if isinstance(face, Face):
                    face = smoother.smooth(face)
                else:
                    smoother.reset()
        yield face


def find_neutral(
    faces: Iterator[Face | NoFace], renderer: Renderer, neutral_s: float | None
) -> Iterator[Face | NoFace]:
    """Look ahead for the driver's neutral face, set it, and give the same stream back.

    `neutral_s` names the moment to take it from; `ValueError` when there is no face within half a second of it.
    """
    seen: list[Face | NoFace] = []
    until_s = LOOKAHEAD_S if neutral_s is None else neutral_s + 0.5
    first_s: float | None = None
    for face in faces:
        seen.append(face)
        first_s = face.time_s if first_s is None else first_s
        if face.time_s - first_s >= until_s:
            break
    known = [face for face in seen if isinstance(face, Face)]
    if neutral_s is None:
        renderer.retarget.finder.prime(known)
    else:
        near = [face for face in known if abs(face.time_s - (first_s or 0.0) - neutral_s) <= 0.5]
        if not near:
            raise ValueError(f"there is no face in the clip at {neutral_s:g} s to take as neutral")
        renderer.retarget.finder.pin(min(near, key=lambda face: abs(face.time_s - (first_s or 0.0) - neutral_s)))
    return itertools.chain(seen, faces)


def render(
    avatar: Avatar,
    base: Base,
    config: Config,
    drive: Path,
    out: Path,
    report: Report,
    neutral_s: float | None = None,
) -> Rendered:
    """Draw `avatar` driven by the clip (or `.npz` of landmarks) `drive` into the MP4 `out`, with the clip's sound.

    Raises `ValueError`/`OSError` with one sentence; `out` then stays as it was.
    """
    began = time.perf_counter()
    meter = Meter()
    if out.exists() and drive.exists() and out.samefile(drive):
        raise ValueError(f"{out} is the clip that drives: give the result another name")
    if drive.suffix.lower() == ".npz":
        recorded, fps = read_faces(drive)
        total = len(recorded)
        audio = None
        clip = tracker = crowd = None
        stream: Iterator[Face | NoFace] = iter(recorded)
    else:
        clip = Clip(drive)
        fps, total = clip.fps, clip.frame_count
        audio = drive if clip.has_sound else None
        tracker = Tracker.from_config(config.tracker, video=True)
        # Absolute drawing is for measuring: the landmarks shall be those of the frame, not of its past.
        smoother = None if config.render.motion == "absolute" else Smoother.from_config(config.tracker)
        crowd = Crowd(tracker)
        stream = track(clip, tracker, smoother, meter, crowd)
    size = config.render.size_px
    count = faceless = 0
    first_frame_s = 0.0
    try:
        with FileSink(out, (size, size), fps, audio_from=audio) as sink:
            renderer = Renderer(avatar, base, config)
            renderer.warm_up()
            for face in find_neutral(stream, renderer, neutral_s):
                with meter.stage("renderer"):
                    frame = renderer.draw(face)
                if count == 0:
                    first_frame_s = time.perf_counter() - began
                with meter.stage("file"):
                    sink.send(frame)
                count += 1
                faceless += isinstance(face, NoFace)
                report("rendering", count, max(total, count))
            if count and faceless == count:
                raise ValueError(f"no face was found in {drive}")
    finally:
        if tracker is not None:
            tracker.close()
        if clip is not None:
            clip.close()
    notes = list(sink.notes)
    if clip is not None and clip.trouble:
        notes.append(clip.trouble)
    if (
        config.render.motion == "absolute"
        and renderer.absolute_square
        and clip is not None
        and clip.size_px[0] != clip.size_px[1]
    ):
        left, top, side = renderer.absolute_square
        notes.append(f"the picture is the square of the clip at x {left:.1f}, y {top:.1f}, side {side:.1f} px")
    if crowd is not None and crowd.most > 1:
        notes.append(f"{crowd.most} faces are in the clip: the largest one drives the avatar")
    if faceless:
        notes.append(f"{faceless} of {count} frames showed no face: the avatar held still, then rested")
    return Rendered(out, count, faceless, time.perf_counter() - began, first_frame_s, renderer.describe(), meter, notes)


def with_options(config: Config, **options: object) -> Config:
    """`config` with what the command line says of `[render]`; None leaves the configured value."""
    given = {name: value for name, value in options.items() if value is not None}
    return replace(config, render=replace(config.render, **given))
