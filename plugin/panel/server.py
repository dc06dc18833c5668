"""The panel's web server: one page for one person, on 127.0.0.1 only.

Who may talk to it: a browser that opened the link with the token (in the fragment, which is never sent or logged),
exchanged for a cookie that scripts cannot read. Every request must name this host (so that no foreign name can be made
to point here, "DNS rebinding") and come from this origin (so that no other page can, not even one of another port).

    GET  /                                the page; it and /static/ hold no secret
    POST /api/session                     token -> cookie
    WS   /api/live                        state out, commands in (`Panel._command`)
    WS   /api/preview?view=output         JPEG out, one for each line that comes in: {"width": 960}
    GET  /api/avatars/NAME/picture.jpg    POST /api/avatars (import)     GET /api/avatars/NAME/file (export)
    POST /api/background                  a picture to stand behind the avatar
    POST /api/enrolment/photos            one photo or video, its name in X-Name
    GET  /api/enrolment/thumbnail/FILE

Errors are JSON, {"error": "one sentence"}.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import logging
import os
import secrets
import socket
import time
import webbrowser
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import cv2
import numpy as np
from aiohttp import WSCloseCode, WSMsgType, web

from engine.avatar import MAX_FILE_BYTES
from engine.frames import Image
from plugin.panel.enrolment import Enrolment, TooLargeError
from plugin.panel.studio import Studio

log = logging.getLogger(__name__)

STATIC = Path(__file__).parent / "static"
HOST = "127.0.0.1"
MAX_BACKGROUND_BYTES = 30_000_000
_COOKIE = "understudy_panel"
_SESSION_S = 12 * 3600
_TELL_S = 0.25
"""How often the page is told the numbers; changes are told at once."""
_FRAME_S = {"output": 1 / 20, "camera": 1 / 10, "landmarks": 1 / 10}
_PREVIEW_PX = range(120, 1281)
_PREVIEW_QUALITY = 80
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self' {socket}; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def refusal(status: int, sentence: str) -> web.Response:
    return web.json_response({"error": sentence}, status=status)


class Panel:
    """The server around a `Studio`. Made and run on one event loop."""

    def __init__(self, studio: Studio, port: int) -> None:
        self.studio = studio
        self.token = secrets.token_urlsafe(24)
        self._session = secrets.token_urlsafe(32)
        self._tickets: dict[str, float] = {}
        self._hosts = {f"{HOST}:{port}", f"localhost:{port}"}
        self._origins = {f"http://{host}" for host in self._hosts}
        self._port = port
        self._enrolment: Enrolment | None = None
        self._changed = asyncio.Condition()
        self._version = 0
        self._sockets: set[web.WebSocketResponse] = set()
        self._background_tasks: set[asyncio.Task[None]] = set()
        self._files = {
            "/static/" + path.relative_to(STATIC).as_posix(): (path.read_bytes(), _TYPES[path.suffix])
            for path in STATIC.rglob("*")
            if path.suffix in _TYPES
        }
        self._page = self._files["/static/index.html"][0]
        self._pictures: dict[tuple[str, float], bytes] = {}
        self.app = web.Application(middlewares=[self._guard], client_max_size=1 << 16)
        self.app.add_routes(
            [
                web.get("/", self._get_page),
                web.get("/static/{path:.*}", self._get_static),
                web.post("/api/session", self._post_session),
                web.get("/api/live", self._live),
                web.get("/api/preview", self._preview),
                web.post("/api/avatars", self._import),
                web.get("/api/avatars/{name}/picture.jpg", self._picture),
                web.get("/api/avatars/{name}/file", self._export),
                web.post("/api/background", self._background),
                web.post("/api/enrolment/photos", self._photo),
                web.get("/api/enrolment/thumbnail/{file}", self._thumbnail),
            ]
        )
        self.app.on_shutdown.append(self._shut)

    @property
    def link(self) -> str:
        """For the person to open; good as long as the program runs."""
        return f"http://{HOST}:{self._port}/#{self.token}"

    def ticket(self) -> str:
        """A link that works once and soon: what is handed to a browser can be read by whoever lists processes."""
        ticket = secrets.token_urlsafe(24)
        self._tickets[ticket] = time.monotonic() + 60
        return f"http://{HOST}:{self._port}/#{ticket}"

    # --- who may ----------------------------------------------------------------------------------------------

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        refused = self._refused(request)
        if refused is not None:
            response: web.StreamResponse = refused
        else:
            try:
                response = await handler(request)
            except web.HTTPException as error:
                sentence = "there is nothing here" if error.status == 404 else str(error.reason)
                response = refusal(error.status, sentence)
            except TooLargeError as error:
                response = refusal(413, str(error))
            except (ValueError, OSError) as error:
                response = refusal(400, " ".join(str(error).split()))
        if not response.prepared:
            socket_origin = f"ws://{request.headers.get('Host', '')}" if refused is None else ""
            response.headers.update(
                {
                    "Content-Security-Policy": _CSP.format(socket=socket_origin),
                    "X-Content-Type-Options": "nosniff",
                    "X-Frame-Options": "DENY",
                    "Referrer-Policy": "no-referrer",
                    "Cross-Origin-Opener-Policy": "same-origin",
                    "Cross-Origin-Resource-Policy": "same-origin",
                    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
                    "Cache-Control": "no-store",
                }
            )
        return response

    def _refused(self, request: web.Request) -> web.Response | None:
        if request.headers.get("Host", "") not in self._hosts:
            return refusal(403, f"this panel answers only to http://{HOST}:{self._port}")
        if not request.path.startswith("/api/"):
            return None if request.method in ("GET", "HEAD") else refusal(405, "only reading is possible here")
        origin = request.headers.get("Origin")
        changes = request.method not in ("GET", "HEAD") or request.path in ("/api/live", "/api/preview")
        if (origin is None and changes) or (origin is not None and origin not in self._origins):
            return refusal(403, "the request comes from another page")
        if request.headers.get("Sec-Fetch-Site", "same-origin") != "same-origin":
            return refusal(403, "the request comes from another page")
        if request.path != "/api/session" and not self._known(request.cookies.get(_COOKIE, "")):
            return refusal(401, "open the link that `understudy panel` printed")
        return None

    def _known(self, cookie: str) -> bool:
        return hmac.compare_digest(cookie.encode(), self._session.encode())

    async def _post_session(self, request: web.Request) -> web.Response:
        """A cookie for the token or a ticket; without either, 204 tells that the cookie that came is good."""
        given = (await request.text()).strip()
        due = self._tickets.pop(given, 0.0)
        if not (hmac.compare_digest(given.encode(), self.token.encode()) or time.monotonic() < due):
            if not given and self._known(request.cookies.get(_COOKIE, "")):
                return web.Response(status=204)
            return refusal(401, "open the link that `understudy panel` printed")
        response = web.Response(status=204)
        # Cookies know no ports; this path keeps ours from most other servers of this machine.
        response.set_cookie(_COOKIE, self._session, max_age=_SESSION_S, path="/api", httponly=True, samesite="Strict")
        return response

    # --- page and pictures ------------------------------------------------------------------------------------

    async def _get_page(self, request: web.Request) -> web.Response:
        return web.Response(body=self._page, headers={"Content-Type": _TYPES[".html"]})

    async def _get_static(self, request: web.Request) -> web.Response:
        known = self._files.get(request.path)
        if known is None:
            raise web.HTTPNotFound
        return web.Response(body=known[0], headers={"Content-Type": known[1]})

    async def _picture(self, request: web.Request) -> web.Response:
        path = self.studio.avatar_path(request.match_info["name"])
        key = (path.stem, path.stat().st_mtime)
        if key not in self._pictures:
            rgb = await asyncio.to_thread(self.studio.portrait, path)
            self._pictures[key] = await asyncio.to_thread(encode_jpeg, rgb, 360, 88)
        return web.Response(body=self._pictures[key], content_type="image/jpeg")

    async def _export(self, request: web.Request) -> web.Response:
        path = self.studio.avatar_path(request.match_info["name"])
        body = await asyncio.to_thread(path.read_bytes)
        name = quote(path.name)
        return web.Response(
            body=body,
            content_type="application/octet-stream",
            headers={"Content-Disposition": f"attachment; filename*=UTF-8''{name}"},
        )

    async def _import(self, request: web.Request) -> web.Response:
        body = await whole(request, MAX_FILE_BYTES, f"an avatar file takes at most {MAX_FILE_BYTES // 1_000_000} MB")
        replace = request.query.get("replace") == "1"
        name = await asyncio.to_thread(self.studio.import_avatar, body, replace)
        self.tell()
        return web.json_response({"name": name})

    async def _background(self, request: web.Request) -> web.Response:
        sentence = f"a background takes at most {MAX_BACKGROUND_BYTES // 1_000_000} MB: choose a smaller picture"
        body = await whole(request, MAX_BACKGROUND_BYTES, sentence)
        await asyncio.to_thread(self.studio.set_background_picture, body)
        self.tell()
        return web.json_response({})

    async def _photo(self, request: web.Request) -> web.Response:
        if self._enrolment is None:
            raise ValueError("begin an enrolment first")
        number = await self._enrolment.add(unquote(request.headers.get("X-Name", "photo")), chunks(request))
        return web.json_response({"id": number})

    async def _thumbnail(self, request: web.Request) -> web.Response:
        if self._enrolment is None:
            raise web.HTTPNotFound
        body = await asyncio.to_thread(self._enrolment.thumbnail, request.match_info["file"])
        return web.Response(body=body, content_type="image/jpeg")

    # --- live -------------------------------------------------------------------------------------------------

    def tell(self) -> None:
        """Something changed: every page hears of it now. Called on the loop."""

        async def wake() -> None:
            async with self._changed:
                self._version += 1
                self._changed.notify_all()

        self._spawn(wake())

    def _spawn(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._background_tasks.add(task)
        task.add_done_callback(self._background_tasks.discard)

    async def _live(self, request: web.Request) -> web.WebSocketResponse:
        channel = web.WebSocketResponse(max_msg_size=1 << 16, heartbeat=20)
        await channel.prepare(request)
        self._sockets.add(channel)
        teller = asyncio.create_task(self._keep_telling(channel))
        turn = asyncio.Lock()
        try:
            async for message in channel:
                if message.type is WSMsgType.TEXT:
                    self._spawn(self._answer(channel, message.data, turn))
        finally:
            teller.cancel()
            self._sockets.discard(channel)
            if not any(not one.closed for one in self._sockets) and self._enrolment is not None:
                self._enrolment.watch_camera(False)  # nobody sees the hints
        return channel

    async def _keep_telling(self, channel: web.WebSocketResponse) -> None:
        last: dict[str, Any] = {}
        with contextlib.suppress(ConnectionResetError):
            while not channel.closed:
                version = self._version
                state = await asyncio.to_thread(self.studio.snapshot)
                state["enrolment"] = self._enrolment.state() if self._enrolment else None
                changed = {key: value for key, value in state.items() if last.get(key, last) != value}
                last = state
                if changed:
                    await channel.send_json({"state": changed})
                async with self._changed:
                    if version == self._version:
                        with contextlib.suppress(TimeoutError):
                            await asyncio.wait_for(self._changed.wait(), _TELL_S)

    async def _answer(self, channel: web.WebSocketResponse, text: str, turn: asyncio.Lock) -> None:
        """Commands are done in the order they came, but for privacy, which waits for none of them."""
        try:
            message = json.loads(text)
            number, command, value = message["id"], message["do"], message.get("value")
        except (ValueError, TypeError, KeyError, AttributeError):
            await channel.close(code=WSCloseCode.POLICY_VIOLATION, message=b"not a command")
            return
        try:
            if command == "privacy":
                answer: Any = self.studio.privacy(_yes_or_no(value))
            else:
                async with turn:
                    answer = await self._command(str(command), value)
            told: dict[str, Any] = {"id": number, "answer": answer}
        except (ValueError, OSError) as error:
            told = {"id": number, "error": " ".join(str(error).split())}
        with contextlib.suppress(ConnectionResetError):
            await channel.send_json(told)
        self.tell()

    async def _command(self, command: str, value: Any) -> Any:
        """Do what the page asks. Raises `ValueError`/`OSError` with one sentence."""
        if command.startswith("enrol "):
            return await self._enrol(command.removeprefix("enrol "), value)
        return await asyncio.to_thread(self.studio.do, command, value)

    async def _enrol(self, command: str, value: Any) -> Any:
        if command == "begin":
            if self._enrolment is not None:
                return None
            self._enrolment = Enrolment(
                self.studio.config_path, self.studio.camera_picture, self.tell, self.studio.renewed
            )
            try:
                await self._enrolment.start()
            except OSError:
                await self._end_enrolment()
                raise
            await asyncio.to_thread(self.studio.want_camera, True)
            return None
        if command == "cancel":
            await self._end_enrolment()
            return None
        if self._enrolment is None:
            raise ValueError("begin an enrolment first")
        match command:
            case "watch":
                self._enrolment.watch_camera(_yes_or_no(value))
            case "take":
                return await self._enrolment.take()
            case "by itself":
                self._enrolment.takes_by_itself = _yes_or_no(value)
            case "forget":
                self._enrolment.forget(_number(value))
            case "build":
                given = value if isinstance(value, dict) else {}
                self._enrolment.build(str(given.get("name", "")), given.get("replace") is True)
            case "use":
                name = self._enrolment.made
                await self._end_enrolment()
                if name:
                    await asyncio.to_thread(self.studio.do, "switch", name)
            case _:
                raise ValueError(f"the panel knows no command 'enrol {command}'")
        return None

    async def _end_enrolment(self) -> None:
        enrolment, self._enrolment = self._enrolment, None
        await asyncio.to_thread(self.studio.want_camera, False)
        if enrolment is not None:
            await enrolment.cancel()

    async def _preview(self, request: web.Request) -> web.WebSocketResponse:
        """A frame for each line that comes in, one on the way at most: a slow page gets fewer, not older."""
        view = request.query.get("view", "")
        if view not in _FRAME_S:
            raise ValueError(f"a view is one of {', '.join(_FRAME_S)}")
        channel = web.WebSocketResponse(max_msg_size=1 << 10, heartbeat=20)
        await channel.prepare(request)
        self._sockets.add(channel)
        due = 0.0
        try:
            async for message in channel:
                if message.type is not WSMsgType.TEXT:
                    continue
                width = _asked_width(message.data)
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                while not channel.closed:
                    due = time.monotonic() + _FRAME_S[view]
                    picture = await asyncio.to_thread(self._preview_jpeg, view, width)
                    if picture is not None:
                        await channel.send_bytes(picture)
                        break
                    await asyncio.sleep(0.25)
        except ConnectionResetError:
            pass  # the page went away
        finally:
            self._sockets.discard(channel)
        return channel

    def _preview_jpeg(self, view: str, width_px: int) -> bytes | None:
        picture = self.studio.latest(view)
        return None if picture is None else encode_jpeg(picture, width_px, _PREVIEW_QUALITY)

    # --- life -------------------------------------------------------------------------------------------------

    async def _shut(self, app: web.Application) -> None:
        for channel in list(self._sockets):
            await channel.close(code=WSCloseCode.GOING_AWAY, message=b"Understudy stopped")
        await self._end_enrolment()


def encode_jpeg(rgb: Image, most_px: int, quality: int) -> bytes:
    """At most `most_px` wide."""
    height, width = rgb.shape[:2]
    if width > most_px:
        way = cv2.INTER_LINEAR if 2 * most_px > width else cv2.INTER_AREA  # by area costs more than the JPEG
        rgb = np.asarray(
            cv2.resize(rgb, (most_px, max(1, round(height * most_px / width))), interpolation=way), np.uint8
        )
    bgr = cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR)
    return cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


async def chunks(request: web.Request) -> AsyncIterator[bytes]:
    async for part in request.content.iter_chunked(1 << 16):
        yield part


async def whole(request: web.Request, most: int, sentence: str) -> bytes:
    """The body of a request; raises `TooLargeError` with `sentence` as soon as it is over `most` bytes."""
    if (request.content_length or 0) > most:
        raise TooLargeError(sentence)
    body = bytearray()
    async for part in chunks(request):
        body += part
        if len(body) > most:
            raise TooLargeError(sentence)
    return bytes(body)


def _asked_width(text: str) -> int:
    with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError, OverflowError):
        return int(np.clip(int(json.loads(text)["width"]), _PREVIEW_PX[0], _PREVIEW_PX[-1]))
    return 640


def _yes_or_no(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{value!r} is neither true nor false")
    return value


def _number(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{value!r} is not a whole number")
    return value


async def serve(studio: Studio, port: int, show: bool, ready: Callable[[Panel], None]) -> None:
    """Serve until cancelled; `ready` is told when pages can come, `show` opens the browser.

    Raises `ValueError` when the port is taken.
    """
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    if os.name == "posix":  # a port just left is free again; on Windows this would let two share it
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
    except OSError as error:
        listener.close()
        raise ValueError(
            f"port {port} is taken: a panel may be open already; otherwise use --port 0, which takes any free one"
        ) from error
    panel = Panel(studio, listener.getsockname()[1])
    runner = web.AppRunner(panel.app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await web.SockSite(runner, listener).start()
        await asyncio.to_thread(studio.start)
        ready(panel)
        if show:
            await asyncio.to_thread(webbrowser.open, panel.ticket())
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()
        await asyncio.to_thread(studio.close)
        await asyncio.sleep(0.05)  # connections that came at the last moment are closed in the loop's next rounds
