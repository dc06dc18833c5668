"""Enrolling from the panel: photos dropped or taken with the webcam, verdicts as they come, an avatar at the end.

The heavy part runs in `plugin.panel.worker`, a process of its own; everything on the way lies in one scratch folder
which only the user can read. Cancelling ends the process and removes the folder: nothing else was ever written.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import cv2

from engine import avatar as avatars
from engine.frames import Image
from plugin.panel.worker import write_jpeg

log = logging.getLogger(__name__)

MAX_PHOTO_BYTES = 60_000_000
MAX_VIDEO_BYTES = 300_000_000
MAX_FILES = 64
_VIDEOS = {".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".3gp"}
_LINE_BYTES = 1 << 20
_LOOK_S = 0.4
_FITS_BEFORE_TAKING = 2
"""Looks in a row that must find the missing pose before the photo is taken by itself: nobody is caught in passing."""

_ROOT = Path(__file__).parents[2]


class TooLargeError(ValueError):
    """An upload over the limit; the message is one sentence."""


class Enrolment:
    """One enrolment, from the first photo to the avatar. Lives on the event loop; `changed` is called on it.

    `camera` gives the newest camera picture, or None while there is none; `kept` is told, in a thread, the name of the
    avatar that is now in the user's folder.
    """

    def __init__(
        self,
        config_path: Path | None,
        camera: Callable[[], Image | None],
        changed: Callable[[], None],
        kept: Callable[[str], None],
    ) -> None:
        self._config_path, self._camera, self._changed, self._kept = config_path, camera, changed, kept
        self._scratch = Path(tempfile.mkdtemp(prefix="understudy-enrol-"))  # 0700
        self._worker: asyncio.subprocess.Process | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._next = 1
        self._waiting: dict[int, str] = {}
        """Photos that are not judged yet: id -> name."""
        self._photos: list[dict[str, Any]] = []
        self._advice: list[str] = []
        self._hint = ""
        self._fits = 0
        self._taken_by_itself = 0
        self._looking = False
        self._looks_back = asyncio.Event()
        self._progress: dict[str, Any] | None = None
        self._name = ""
        self._replace = False
        self._error = ""
        self._made: str | None = None
        self._closed = False
        self.takes_by_itself = True

    # --- life -----------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start the worker; it reads photos from the first moment on, though it takes seconds to be ready."""
        arguments = [str(self._scratch), *([str(self._config_path)] if self._config_path else [])]
        self._worker = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "plugin.panel.worker", *arguments),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=None if log.isEnabledFor(logging.INFO) else asyncio.subprocess.DEVNULL,
            limit=_LINE_BYTES,
            env=os.environ | {"PYTHONPATH": os.pathsep.join([str(_ROOT), *filter(None, [os.getenv("PYTHONPATH")])])},
        )
        self._tasks.append(asyncio.create_task(self._listen(self._worker)))

    async def cancel(self) -> None:
        """End the worker and remove every trace. Harmless when already done."""
        self._closed = True
        for task in self._tasks:
            task.cancel()
        if self._worker is not None and self._worker.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._worker.kill()
            await self._worker.wait()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.to_thread(shutil.rmtree, self._scratch, ignore_errors=True)

    def watch_camera(self, on: bool) -> None:
        """Give live hints about the camera's picture, or stop it."""
        if on == self._looking or self._closed:
            return
        self._looking, self._hint, self._fits = on, "", 0
        if on:
            self._tasks.append(asyncio.create_task(self._look_on()))
        self._changed()

    # --- photos ---------------------------------------------------------------------------------------------

    async def add(self, name: str, body: AsyncIterator[bytes]) -> int:
        """A dropped file; returns its id. Raises `TooLargeError`, or `ValueError` when there are too many."""
        name = Path(name.replace("\\", "/")).name[:100] or "photo"
        suffix = Path(name).suffix.lower()
        number = self._reserve()
        limit = MAX_VIDEO_BYTES if suffix in _VIDEOS else MAX_PHOTO_BYTES
        path = self._scratch / f"upload-{number}{suffix if suffix in _VIDEOS else '.photo'}"
        taken = 0
        try:
            with path.open("wb") as file:
                async for part in body:
                    taken += len(part)
                    if taken > limit:
                        raise TooLargeError(f"{name} is larger than {limit // 1_000_000} MB: send a smaller copy")
                    await asyncio.to_thread(file.write, part)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        self._check(number, path, name)
        return number

    async def take(self) -> int:
        """What the camera shows now, as a photo. Raises `ValueError` when it shows nothing."""
        picture = self._camera()
        if picture is None:
            raise ValueError("the camera gives no picture: look at what the camera box says")
        number = self._reserve()
        path = self._scratch / f"upload-{number}.photo"
        bgr = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
        png = await asyncio.to_thread(cv2.imencode, ".png", bgr, [cv2.IMWRITE_PNG_COMPRESSION, 1])
        await asyncio.to_thread(path.write_bytes, png[1].tobytes())
        self._check(number, path, f"Webcam {number}")
        return number

    def _reserve(self) -> int:
        self._must_be_open()
        count = len({photo["id"] for photo in self._photos} | self._waiting.keys())
        if count >= MAX_FILES:
            raise ValueError(f"{MAX_FILES} files are the most: remove some first")
        self._next += 1
        return self._next - 1

    def _check(self, number: int, path: Path, name: str) -> None:
        self._waiting[number] = name
        self._ask({"do": "check", "id": number, "path": str(path), "name": name})
        self._changed()

    def forget(self, number: int) -> None:
        self._must_be_open()
        self._ask({"do": "forget", "id": number})

    def thumbnail(self, file: str) -> bytes:
        """The little picture of a photo. Raises `ValueError` for a name that the worker did not give."""
        if not any(photo["thumbnail"] == file for photo in self._photos) or not file:
            raise ValueError("there is no such photo")
        return (self._scratch / file).read_bytes()

    # --- making ---------------------------------------------------------------------------------------------

    def build(self, name: str, replace: bool = False) -> None:
        """Begin to make the avatar. Raises `ValueError`: a name that cannot be, or that is taken."""
        self._must_be_open()
        name = name.strip()
        path = avatars.place(name)
        if path.exists() and not replace:
            raise ValueError(f"there is already an avatar called {name!r}: choose another name, or tick replace")
        if self._progress is not None:
            raise ValueError("the avatar is being made already")
        if self._waiting:
            raise ValueError("some photos are still being looked at: wait a moment")
        self.watch_camera(False)
        self._name, self._replace, self._error, self._made = name, replace, "", None
        self._progress = {"stage": "getting ready", "done": 0, "total": 1}
        self._ask({"do": "build", "name": name, "path": str(self._scratch / ("made" + avatars.SUFFIX))})
        self._changed()

    @property
    def made(self) -> str | None:
        """The name of the finished avatar; None before."""
        return self._made

    def state(self) -> dict[str, Any]:
        """For the page."""
        waiting = [{"id": number, "name": name, "verdict": "waiting"} for number, name in self._waiting.items()]
        return {
            "photos": [*self._photos, *waiting],
            "advice": self._advice[:3],
            "hint": self._hint,
            "fits": self._fits > 0,
            "watching": self._looking,
            "takes_by_itself": self.takes_by_itself,
            "progress": self._progress,
            "name": self._name,
            "made": self._made,
            "error": self._error,
        }

    # --- the worker's side ----------------------------------------------------------------------------------

    def _must_be_open(self) -> None:
        if self._closed or self._worker is None or self._worker.returncode is not None:
            raise ValueError("this enrolment is over: begin again")

    def _ask(self, request: dict[str, Any]) -> None:
        assert self._worker is not None and self._worker.stdin is not None
        self._worker.stdin.write(json.dumps(request).encode() + b"\n")

    async def _listen(self, worker: asyncio.subprocess.Process) -> None:
        assert worker.stdout is not None
        async for line in worker.stdout:
            await self._hear(json.loads(line))
            self._changed()
        code = await worker.wait()
        if not self._closed:
            self._error = f"the enrolment stopped by itself (exit {code}): begin again, with fewer or smaller photos"
            self._progress, self._looking = None, False
            self._waiting.clear()
            self._looks_back.set()
            self._changed()

    async def _hear(self, said: dict[str, Any]) -> None:
        if "photos" in said:
            self._photos, self._advice = said["photos"], said["advice"]
            if any(one["id"] == self._taken_by_itself and one["verdict"] == "refused" for one in self._photos):
                self.takes_by_itself, self._taken_by_itself = False, 0  # it would be taken again and again
            self._waiting = {
                k: v for k, v in self._waiting.items() if k > max((p["id"] for p in self._photos), default=0)
            }
        elif "hint" in said:
            self._hint = said["hint"]
            self._fits = self._fits + 1 if said["fits"] else 0
            self._looks_back.set()
        elif "progress" in said:
            self._progress = said["progress"]
        elif "made" in said:
            await self._keep(Path(said["made"]["path"]))
        elif "error" in said:
            self._error, self._progress = said["error"], None
            if self._waiting:
                self._waiting.pop(min(self._waiting))
            self._looks_back.set()

    async def _keep(self, made: Path) -> None:
        """The finished avatar takes its place; until here the user's folder was not touched."""
        try:
            path = avatars.place(self._name)
            if path.exists() and not self._replace:
                raise ValueError(f"there is meanwhile an avatar called {self._name!r}: choose another name")
            await asyncio.to_thread(lambda: avatars.save(avatars.load(made), path))
            await asyncio.to_thread(self._kept, self._name)
        except (ValueError, OSError) as error:
            self._error = str(error)
        else:
            self._made = self._name
        self._progress = None

    async def _look_on(self) -> None:
        path = self._scratch / "look.photo"
        while self._looking and not self._closed:
            picture = self._camera()
            if picture is None:
                self._hint, self._fits = "The camera gives no picture yet", 0
                self._changed()
            elif not self._waiting and self._progress is None:
                await asyncio.to_thread(write_jpeg, path, picture, 92)
                self._looks_back.clear()
                self._ask({"do": "look", "path": str(path)})
                await self._looks_back.wait()
                if self._fits >= _FITS_BEFORE_TAKING and self.takes_by_itself and self._looking:
                    self._fits = 0
                    with contextlib.suppress(ValueError):  # the camera went away, or there are photos enough
                        self._taken_by_itself = await self.take()
            await asyncio.sleep(_LOOK_S)
