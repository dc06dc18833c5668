"""The process that looks at photos and makes the avatar, so that neither slows the call nor outlives a cancel.

`plugin.panel.enrolment` starts it with a scratch folder and talks to it in lines of JSON:

    to it    {"do": "check", "id": 3, "path": "...", "name": "IMG_1.jpg"}      a photo, or a short video
             {"do": "look", "path": "..."}                                    a camera frame, for the live hint
             {"do": "forget", "id": 3}
             {"do": "build", "name": "me", "path": "..."}
    from it  {"ready": true}
             {"photos": [{"id", "part", "name", "verdict", "reasons", "thumbnail"}, ...], "advice": [...]}
             {"hint": "turn your head ...", "fits": false}
             {"progress": {"stage", "done", "total"}}
             {"made": {"path", "checks", "advice"}}
             {"error": "one sentence"}                                        the request before it failed

Whatever it writes lies in the scratch folder. When its input ends, because the program is gone, it removes the folder.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from engine.frames import Image, Points

if TYPE_CHECKING:
    from training.photos import CheckedPhoto

THUMBNAIL_PX = 192
_KEPT_SIDE_PX = 1920
_KEPT_FACE_PX = 500
"""A crop of 512 px shows a face of 245: twice that loses nothing, and 32 photos must fit in memory."""

_INSTRUCTIONS = (
    ("from the front", "Look straight into the camera, eyes open, lips together"),
    ("shows the teeth", "Smile so that your teeth show"),
    ("turned a little to the left, and one", "Turn your head a little to one side"),
    ("nose pointing to the left", "Turn your head a little to your right"),
    ("nose pointing to the right", "Turn your head a little to your left"),
    ("mouth wide open", "Open your mouth wide, as in “aah”"),
    ("eyes shut", "Shut your eyes for a moment"),
    ("up or down", "Raise or lower your chin a little"),
    ("closer by", "Come closer to the camera"),
)
"""What `training.photos.advice` wishes for, said to somebody who sits before the camera."""


def instruction(wish: str) -> str:
    """A wish for a photo as something to do; a wish nobody thought of here is passed on as it is."""
    return next((told for mark, told in _INSTRUCTIONS if mark in wish), f"Wanted: {wish}")


class RememberingEmbedder:
    """SFace, asked once about each picture: the group is judged anew with every photo that comes."""

    def __init__(self) -> None:
        from training.identity import SFace

        self._sface = SFace()
        self._known: dict[int, NDArray[np.float32]] = {}

    def embed(self, rgb: Image, points: Points) -> NDArray[np.float32]:
        if id(rgb) not in self._known:
            self._known[id(rgb)] = self._sface.embed(rgb, points)
        return self._known[id(rgb)]

    def forget(self, photo: CheckedPhoto) -> None:
        self._known.pop(id(photo.rgb), None)


def shrunk(photo: CheckedPhoto) -> CheckedPhoto:
    """The same photo with no more pixels than an avatar can use."""
    rgb, face, look = photo.rgb, photo.face, photo.look
    if rgb is None or face is None or look is None:
        return photo
    scale = max(_KEPT_SIDE_PX / max(rgb.shape), _KEPT_FACE_PX / look.face_px)
    if scale >= 1:
        return photo
    small = np.asarray(cv2.resize(rgb, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), np.uint8)
    height, width = small.shape[:2]
    across = np.array([width / rgb.shape[1], height / rgb.shape[0], scale], np.float32)
    moved = replace(
        face,
        points=face.points * across,
        translation=face.translation * across,
        scale=face.scale * scale,
        size_px=(width, height),
    )
    return replace(photo, rgb=small, face=moved)


def thumbnail(photo: CheckedPhoto) -> Image | None:
    """The face with some room around it, `[THUMBNAIL_PX, THUMBNAIL_PX, 3]`; the whole picture where there is none."""
    if photo.rgb is None:
        return None
    height, width = photo.rgb.shape[:2]
    side, middle = float(min(height, width)), np.array([width / 2, height / 2])
    if photo.face is not None and photo.look is not None:
        side = min(side, 2.2 * photo.look.face_px)
        middle = (photo.face.points[10, :2] + photo.face.points[152, :2]) / 2
    half = side / 2
    left, top = (int(np.clip(at - half, 0, limit - side)) for at, limit in zip(middle, (width, height), strict=True))
    cut = photo.rgb[top : top + max(1, int(side)), left : left + max(1, int(side))]
    return np.asarray(cv2.resize(cut, (THUMBNAIL_PX, THUMBNAIL_PX), interpolation=cv2.INTER_AREA), np.uint8)


def write_jpeg(path: Path, rgb: Image, quality: int = 88) -> None:
    """Raises `OSError` when the disk will not take it."""
    bgr = cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR)
    path.write_bytes(cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes())


def hint(usable: Iterable[CheckedPhoto], now: CheckedPhoto) -> tuple[str, bool]:
    """What to tell the person whose camera shows `now`, and whether this very moment is a photo that is missing."""
    from training import photos

    have = list(usable)
    missing = photos.advice(have)
    if not missing:
        return "All poses are there. Make the avatar, or add more if you like", False
    if now.verdict == "refused":
        reason = now.reasons[0]
        return reason[0].upper() + reason[1:], False
    left = photos.advice([*have, now])
    fits = len(left) < len(missing) if have else not any("from the front" in wish for wish in left)
    return ("Hold still: this one is missing" if fits else instruction(missing[0])), fits


@dataclass(frozen=True, slots=True)
class _Kept:
    id: int
    part: int
    photo: CheckedPhoto
    """As checked on its own; the group's judgement is made anew each time."""
    thumbnail: str


class Worker:
    """Holds the photos of one enrolment. One thread."""

    def __init__(self, scratch: Path, config_path: Path | None) -> None:
        from engine.config import load
        from engine.tracker import Tracker

        self._scratch = scratch
        self._config = load(config_path)
        self._tracker = Tracker(video=False, max_faces=4)
        self._embedder: RememberingEmbedder | None = None
        self._kept: list[_Kept] = []
        self._judged: list[CheckedPhoto] = []

    def answer(self, request: dict[str, Any]) -> None:
        """Do what one line asks; errors that are sentences are told, others end the process."""
        try:
            match request["do"]:
                case "check":
                    self._check(int(request["id"]), Path(request["path"]), str(request["name"]))
                case "look":
                    self._look(Path(request["path"]))
                case "forget":
                    self._forget(int(request["id"]))
                case "build":
                    self._build(str(request["name"]), Path(request["path"]))
        except ModuleNotFoundError as error:
            if error.name not in ("torch", "safetensors"):
                raise
            tell({"error": "enrolling needs the training parts: pip install 'understudy[train]'"})
        except (ValueError, OSError) as error:
            tell({"error": " ".join(str(error).split())})
        except RuntimeError as error:
            from training.fetch import FetchError

            if not isinstance(error, FetchError):
                raise
            tell({"error": str(error)})

    def _check(self, number: int, path: Path, name: str) -> None:
        from plugin.webcam import Clip
        from training import photos

        for part, photo in enumerate(photos.open_all([path], self._tracker, Clip)):
            told = replace(
                photo,
                name=photo.name.replace(path.name, name),
                reasons=tuple(reason.replace(str(path), name).replace(path.name, name) for reason in photo.reasons),
            )
            small = shrunk(told)
            picture = thumbnail(small)
            file = ""
            if picture is not None:
                file = f"thumbnail-{number}-{part}.jpg"
                write_jpeg(self._scratch / file, picture)
            if small.verdict == "refused":
                small = replace(small, rgb=None, face=None, look=None)
            self._kept.append(_Kept(number, part, small, file))
        path.unlink(missing_ok=True)  # all that is still needed of it is in memory now
        self._tell_photos()

    def _forget(self, number: int) -> None:
        for gone in [one for one in self._kept if one.id == number]:
            self._kept.remove(gone)
            if self._embedder is not None:
                self._embedder.forget(gone.photo)
            if gone.thumbnail:
                (self._scratch / gone.thumbnail).unlink(missing_ok=True)
        self._tell_photos()

    def _tell_photos(self) -> None:
        from training import photos

        own = [one.photo for one in self._kept]
        if self._embedder is None and sum(photo.verdict != "refused" for photo in own) > 1:
            self._embedder = RememberingEmbedder()
        self._judged = photos.compare(own, self._embedder)
        tell(
            {
                "photos": [
                    {
                        "id": one.id,
                        "part": one.part,
                        "name": photo.name,
                        "verdict": photo.verdict,
                        "reasons": list(photo.reasons),
                        "thumbnail": one.thumbnail,
                    }
                    for one, photo in zip(self._kept, self._judged, strict=True)
                ],
                "advice": photos.advice(self._judged) if self._judged else [],
            }
        )

    def _usable(self) -> list[CheckedPhoto]:
        return [photo for photo in self._judged if photo.verdict != "refused"]

    def _look(self, path: Path) -> None:
        from training import photos

        said, fits = hint(self._usable(), photos.check(photos.load_photo(path), self._tracker, "camera"))
        tell({"hint": said, "fits": fits})

    def _build(self, name: str, path: Path) -> None:
        from engine import avatar as avatars
        from engine.base import open_base

        usable = self._usable()
        if not usable:
            raise ValueError("no photo can be used yet: add one from the front, facing a window")
        tell({"progress": {"stage": "getting ready", "done": 0, "total": 1}})  # importing torch takes seconds
        from training import photos
        from training.enrol import build, spread

        usable = spread(usable, self._config.enrol.max_photos)
        made, _, _ = build(usable, name, open_base(), self._config, report)
        avatars.save(made, path)
        tell({"made": {"path": str(path), "checks": made.checks, "advice": photos.advice(usable)}})


def report(stage: str, done: int, total: int) -> None:
    tell({"progress": {"stage": stage, "done": done, "total": total}})


def tell(message: dict[str, Any]) -> None:
    print(json.dumps(message), file=_ANSWERS, flush=True)


_ANSWERS = sys.stdout


def main(arguments: list[str]) -> int:
    """`python -m plugin.panel.worker SCRATCH [CONFIG]`."""
    global _ANSWERS
    # Native libraries print to file 1 as they please: it becomes stderr, and the answers go out by another one.
    _ANSWERS = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    if hasattr(os, "nice"):
        os.nice(5)  # a call may be going on
    scratch = Path(arguments[0])
    worker = Worker(scratch, Path(arguments[1]) if len(arguments) > 1 else None)
    tell({"ready": True})
    try:
        with suppress(KeyboardInterrupt, BrokenPipeError):
            for line in sys.stdin:
                worker.answer(json.loads(line))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
