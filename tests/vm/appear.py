"""Inside the machine: the live loop sends recorded pictures of an avatar; ffmpeg, OpenCV and Chromium look at them.

Prints a line for each thing that was looked at and leaves what was seen in $VM_OUT. Exit status 0: all of it was right.
"""

from __future__ import annotations

import base64
import http.server
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import cv2
import numpy as np

from engine.config import load
from engine.frames import Face, Frame, Image, NoFace
from plugin.camera import Live
from plugin.puppet import Settings
from plugin.sinks import SinkLostError, VirtualCamera
from plugin.webcam import CameraLostError, Webcam, list_cameras

SIZE_PX, FPS = (640, 360), 10.0
HERE, OUT = Path(__file__).parent, Path(os.environ["VM_OUT"])
FRAMES = [
    np.asarray(cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB), np.uint8)
    for path in sorted((HERE / "frames").glob("*.jpg"))
]
PAGE = """<!doctype html><video id=v autoplay muted playsinline></video><canvas id=c></canvas><script>
const next = () => new Promise(done => v.requestVideoFrameCallback(done));
(async () => {
  const out = {};
  try {
    const stream = await navigator.mediaDevices.getUserMedia({video: {width: 640, height: 360}});
    out.label = stream.getVideoTracks()[0].label;
    v.srcObject = stream; await v.play(); await next(); await next();
    let count = 0; const began = performance.now();
    while (performance.now() - began < 4000) { await next(); count++; }
    out.fps = count / (performance.now() - began) * 1000;
    c.width = v.videoWidth; c.height = v.videoHeight;
    c.getContext('2d').drawImage(v, 0, 0);
    out.picture = c.toDataURL('image/png');
  } catch (error) { out.error = String(error); }
  await fetch('/seen', {method: 'POST', body: JSON.stringify(out)});
})();
</script>"""


class Room:
    """A camera in front of which nothing happens."""

    name = "an empty room"

    def open(self) -> None:
        """Always there."""

    def read(self) -> Frame:
        time.sleep(1 / FPS)
        return Frame(np.zeros((48, 64, 3), np.uint8), time.monotonic())

    def close(self) -> None:
        """Nothing to close."""


class Nobody:
    def track(self, frame: Frame) -> Face | NoFace:
        return NoFace(frame.time_s)

    def close(self) -> None:
        """Nothing to close."""


class Recorded:
    """A puppet that plays pictures which an avatar drew elsewhere: the machine is too slow for the network."""

    name = "recorded"

    def __init__(self) -> None:
        self._count = 0

    def describe(self) -> str:
        return "recorded pictures"

    def draw(self, tracked: Face | NoFace, settings: Settings) -> Image:
        self._count += 1
        return FRAMES[self._count // 3 % len(FRAMES)]

    def calibrate(self, face: Face) -> None:
        """Nothing to calibrate."""


class Counting(VirtualCamera):
    """Knows how many pictures left: an emulated machine is slower than what was asked for."""

    def __init__(self, size_px: tuple[int, int], fps: float, device: str) -> None:
        super().__init__(size_px, fps, device)
        self.count = 0

    def send(self, frame: Frame) -> None:
        super().send(frame)
        self.count += 1


class Box:
    names = ("recorded",)

    def load(self, name: str) -> Recorded:
        return Recorded()


def say(words: str) -> None:
    print(words, flush=True)


def distance(seen: Image, shown: Image) -> float:
    """Mean difference in levels of 255, all three colours."""
    small = np.asarray(cv2.resize(seen, SIZE_PX, interpolation=cv2.INTER_AREA), np.float32)
    return float(np.abs(small - shown.astype(np.float32)).mean())


def judge(who: str, seen: Image) -> bool:
    """Whether a picture is one of those sent: right colours, upright, not mirrored."""
    cv2.imwrite(str(OUT / f"{who}.png"), cv2.cvtColor(seen, cv2.COLOR_RGB2BGR))
    right = min(distance(seen, frame) for frame in FRAMES)
    turned = {
        "upside down": seen[::-1],
        "mirrored": seen[:, ::-1],
        "red and blue exchanged": seen[..., ::-1],
    }
    wrong = {how: min(distance(np.ascontiguousarray(one), frame) for frame in FRAMES) for how, one in turned.items()}
    good = right < 4 and all(right < 0.7 * other for other in wrong.values())
    rest = ", ".join(f"{how} {value:.1f}" for how, value in wrong.items())
    say(f"{who}: {seen.shape[1]} x {seen.shape[0]}, {right:.1f} levels off ({rest}): {'right' if good else 'WRONG'}")
    return good


def ffmpeg_sees(device: str) -> bool:
    command = ["ffmpeg", "-v", "error", "-f", "v4l2", "-i", device, "-frames:v", "1"]
    done = subprocess.run(
        [*command, "-pix_fmt", "rgb24", "-f", "rawvideo", "-"], capture_output=True, timeout=120, check=False
    )
    if done.returncode:
        say(f"ffmpeg: {done.stderr.decode()[:300]}")
        return False
    width, height = SIZE_PX
    return judge("ffmpeg", np.frombuffer(done.stdout, np.uint8).reshape(height, width, 3))


def opencv_sees(name: str, sink: Counting) -> bool:
    """Through our own webcam: found by name, pictures stamped by the driver, at the pace they are sent."""
    webcam = Webcam(name, SIZE_PX, FPS)
    webcam.open()
    try:
        frames = [webcam.read() for _ in range(3)]
        began, sent = time.monotonic(), sink.count
        ages = []
        while time.monotonic() - began < 4:
            frames = [webcam.read()]
            ages.append(time.monotonic() - frames[0].time_s)
        pace = len(ages) / (time.monotonic() - began)
        due = (sink.count - sent) / (time.monotonic() - began)
    finally:
        webcam.close()
    age_ms = float(np.median(ages)) * 1e3
    say(f"opencv: {pace:.1f} pictures a second of {due:.1f} sent; stamped {age_ms:.0f} ms before they arrived")
    return judge("opencv", frames[0].rgb) and 0.7 * due < pace < 1.4 * due


def chromium_sees(sink: Counting, limit_s: float) -> bool:
    seen: dict[str, object] = {}
    answered = threading.Event()

    class Page(http.server.BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            """Quiet."""

        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-type", "text/html")
            self.end_headers()
            self.wfile.write(PAGE.encode() if self.path == "/" else b"")

        def do_POST(self) -> None:
            seen.update(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()
            answered.set()

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    profile = Path(tempfile.mkdtemp())
    browser = shutil.which("chromium-headless-shell") or "chromium"
    command = [browser, "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    command += ["--disable-extensions", "--disable-background-networking", "--disable-component-update", "--mute-audio"]
    command += [
        "--use-fake-ui-for-media-stream",
        f"--user-data-dir={profile}",
        f"http://127.0.0.1:{server.server_port}/",
    ]
    with (profile / "log").open("w") as log:
        # In a session of its own: the browser's children would outlive it.
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        began, sent = time.monotonic(), sink.count
        there = answered.wait(limit_s)
        due = (sink.count - sent) / (time.monotonic() - began)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if not there or "error" in seen:
        say(f"chromium: {seen.get('error', 'no answer')}\n{(profile / 'log').read_text()[-2000:]}")
        return False
    content = base64.b64decode(str(seen["picture"]).partition(",")[2])
    picture = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    pace = float(str(seen["fps"]))
    say(f"chromium: {seen['label']!r}, {pace:.1f} pictures a second of {due:.1f} sent")
    right = judge("chromium", np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), np.uint8))
    return right and str(seen["label"]).startswith("Understudy") and pace > 0.4 * due


def refusals() -> bool:
    """What the real driver says when something is wrong becomes what to do."""
    good = True
    for device, words in (
        ("/dev/video9", "there is no device /dev/video9"),
        ("/dev/null", "not a virtual camera"),
        ("/dev/video0", "in use"),
    ):
        other = VirtualCamera((320, 240), FPS, device)
        try:
            other.open()
            other.send(Frame(np.zeros((240, 320, 3), np.uint8), 0.0))
            told = "nothing: it worked"
        except SinkLostError as error:
            told = f"{error}  <- {error.__cause__}"
        finally:
            other.close()
        good &= words in told
        say(f"{device}: {told}")
    return good


def comes_back() -> bool:
    """A camera whose pictures stop is lost within seconds, and is found again when they come back."""
    feed = VirtualCamera(SIZE_PX, FPS, "/dev/video1")
    feeding = threading.Event()
    feeding.set()
    done = threading.Event()

    def run() -> None:
        feed.open()
        while not done.is_set():
            if feeding.is_set():
                feed.send(Frame(FRAMES[0], 0.0))
            time.sleep(1 / FPS)
        feed.close()

    thread = threading.Thread(target=run)
    thread.start()
    time.sleep(0.5)
    webcam = Webcam("Plain", SIZE_PX, FPS)
    good = True
    try:
        webcam.open()
        webcam.read()
        feeding.clear()
        began = time.monotonic()
        try:
            while time.monotonic() - began < 20:
                webcam.read()
            good = False
            say("camera: it was never lost")
        except CameraLostError as lost:
            say(f"camera: lost after {time.monotonic() - began:.1f} s ({lost})")
        webcam.close()
        feeding.set()
        webcam.open()
        good &= distance(webcam.read().rgb, FRAMES[0]) < 4
        say("camera: back")
    finally:
        webcam.close()
        done.set()
        thread.join()
    return good


def main() -> int:
    began = time.monotonic()
    for one in list_cameras():
        say(f"listed: {one}")
    sink = Counting(SIZE_PX, FPS, "/dev/video0")
    results = {}
    with Live(load(), Room(), sink, Box(), tracker=Nobody) as live:
        while live.status().fps == 0 and time.monotonic() - began < 200:
            time.sleep(0.2)
        say(live.status().line())
        results["ffmpeg"] = ffmpeg_sees("/dev/video0")
        results["opencv"] = opencv_sees("Understudy", sink)
        results["chromium"] = chromium_sees(sink, 400)
        results["refusals"] = refusals()
        say(live.status().line())
        live.privacy(True)
        time.sleep(1.0)
        webcam = Webcam("Understudy", SIZE_PX, FPS)
        webcam.open()
        seen = [webcam.read().rgb for _ in range(4)][-1]
        webcam.close()
        cv2.imwrite(str(OUT / "private.png"), cv2.cvtColor(seen, cv2.COLOR_RGB2BGR))
        results["privacy"] = min(distance(seen, one) for one in FRAMES) > 30
    results["stopped"] = live.join()
    results["comes back"] = comes_back()
    say(f"{results} in {time.monotonic() - began:.0f} s")
    return 0 if all(results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
