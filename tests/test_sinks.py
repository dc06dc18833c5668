from __future__ import annotations

import errno
import subprocess
import sys
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import ClassVar

import av
import cv2
import numpy as np
import pytest
import pyvirtualcam.camera
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from engine.frames import Frame, Image
from plugin.sinks import (
    FileSink,
    FolderSink,
    NoCamera,
    NullSink,
    Sink,
    SinkLostError,
    VirtualCamera,
    what_to_do,
)
from plugin.webcam import Clip

CLICK_S = 1.0


def picture(index: int, size_px=(64, 48)) -> Frame:
    rgb = np.full((size_px[1], size_px[0], 3), (200, 40, 60), np.uint8)
    return Frame(rgb, index / 25)


def write_talking_clip(path: Path, codec: str, seconds: float = 2.0) -> Path:
    """A clip whose picture turns white, and whose silence breaks into a tone, at `CLICK_S`."""
    rate_hz = 48_000
    layout = "mono"
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=25)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        sound = container.add_stream(codec, rate=rate_hz, layout=layout)
        assert isinstance(sound, AudioStream)
        for index in range(round(seconds * 25)):
            rgb = np.full((48, 64, 3), 255 if index / 25 >= CLICK_S else 0, np.uint8)
            container.mux(video.encode(VideoFrame.from_ndarray(rgb, "rgb24")))
        container.mux(video.encode(None))
        time_s = np.arange(round(seconds * rate_hz)) / rate_hz
        tone = np.where(time_s >= CLICK_S, 8000 * np.sin(2 * np.pi * 440 * time_s), 0).astype(np.int16)
        frame = AudioFrame.from_ndarray(tone[None], "s16", layout)
        frame.sample_rate, frame.pts, frame.time_base = rate_hz, 0, Fraction(1, rate_hz)
        resampler = av.AudioResampler(sound.codec_context.format, layout, rate_hz, frame_size=sound.frame_size)
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(sound.encode(part))
        container.mux(sound.encode(None))
    return path


def sound_begins_s(path: Path) -> float:
    """When the tone starts, on the file's own clock."""
    with av.open(str(path)) as container:
        for frame in container.decode(audio=0):
            loud = np.abs(frame.to_ndarray().astype(float)).max(axis=0)
            loud = loud / (1.0 if frame.format.name.startswith("flt") else 32768.0)
            if (loud > 0.05).any():
                assert frame.time is not None
                return frame.time + int(np.argmax(loud > 0.05)) / frame.sample_rate
    raise AssertionError("the tone is missing")


def sound_packets(path: Path) -> list[bytes]:
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(audio=0) if packet.size]


def pump(clip: Clip, sink: Sink, from_s: float = 0.0) -> None:
    for frame in clip:
        if frame.time_s >= from_s:
            sink.send(frame)


def test_file_comes_back_as_it_went_in(tmp_path):
    with FileSink(tmp_path / "out.mp4", (64, 48), 25) as sink:
        for index in range(10):
            sink.send(picture(index))
    clip = Clip(tmp_path / "out.mp4")
    frames = list(clip)
    assert len(frames) == sink.count == 10
    assert clip.fps == 25
    assert [frame.time_s for frame in frames] == pytest.approx([index / 25 for index in range(10)], abs=1e-4)
    assert np.abs(frames[5].rgb.astype(int) - (200, 40, 60)).max() < 6
    content = (tmp_path / "out.mp4").read_bytes()
    assert content.index(b"moov") < content.index(b"mdat"), "playable while it downloads"
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert container.streams.video[0].codec_context.pix_fmt == "yuv420p"
        assert container.streams.video[0].codec_context.name == "h264"
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]


def test_odd_sizes_gain_a_row_and_a_column(tmp_path):
    with FileSink(tmp_path / "odd.mp4", (61, 47), 30) as sink:
        for index in range(3):
            sink.send(picture(index, (61, 47)))
    clip = Clip(tmp_path / "odd.mp4")
    assert clip.size_px == (62, 48)
    assert np.abs(next(iter(clip)).rgb[-1, -1].astype(int) - (200, 40, 60)).max() < 6


def test_stamps_of_a_variable_rate_survive_and_a_repeated_stamp_is_nudged(tmp_path):
    stamps_s = [5.0, 5.04, 5.04, 5.3, 5.9]
    with FileSink(tmp_path / "v.mp4", (64, 48), 25) as sink:
        for time_s in stamps_s:
            sink.send(Frame(picture(0).rgb, time_s))
    times_s = [frame.time_s for frame in Clip(tmp_path / "v.mp4")]
    assert times_s == pytest.approx([0, 0.04, 0.04, 0.3, 0.9], abs=1e-3)
    assert all(earlier < later for earlier, later in pairwise(times_s))


@pytest.mark.parametrize("name", ["in.mp4", "in.mkv", "in.ts"])
def test_aac_is_copied_bit_for_bit_and_in_sync(tmp_path, name):
    source = write_talking_clip(tmp_path / name, "aac")
    clip = Clip(source)
    with FileSink(tmp_path / "out.mp4", clip.size_px, clip.fps, audio_from=source) as sink:
        pump(clip, sink)
    assert sink.notes == [f"sound copied from {name} (aac)"]
    packets = sound_packets(source)
    if name != "in.ts":  # a transport stream wraps each packet in a header MP4 does without
        assert sound_packets(tmp_path / "out.mp4") == packets
    assert len(sound_packets(tmp_path / "out.mp4")) == len(packets)
    result = Clip(tmp_path / "out.mp4")
    white_s = next(frame.time_s for frame in result if frame.rgb.mean() > 128)
    assert sound_begins_s(tmp_path / "out.mp4") == pytest.approx(white_s, abs=0.045)
    assert white_s == pytest.approx(CLICK_S, abs=0.045)


@pytest.mark.parametrize(("name", "codec"), [("in.mkv", "libopus"), ("in.mov", "pcm_s16le")])
def test_other_sound_is_re_encoded_and_said_so(tmp_path, name, codec):
    source = write_talking_clip(tmp_path / name, codec)
    clip = Clip(source)
    with FileSink(tmp_path / "out.mp4", clip.size_px, clip.fps, audio_from=source) as sink:
        pump(clip, sink)
    assert "re-encoded" in sink.notes[0]
    assert "to AAC" in sink.notes[0]
    assert sound_begins_s(tmp_path / "out.mp4") == pytest.approx(CLICK_S, abs=0.06)


def test_sound_follows_a_late_start(tmp_path):
    source = write_talking_clip(tmp_path / "in.mp4", "aac")
    clip = Clip(source)
    with FileSink(tmp_path / "out.mp4", clip.size_px, clip.fps, audio_from=source) as sink:
        pump(clip, sink, from_s=0.6)
    assert sound_begins_s(tmp_path / "out.mp4") == pytest.approx(CLICK_S - 0.6, abs=0.045)


def test_sound_ends_with_the_picture(tmp_path):
    source = write_talking_clip(tmp_path / "in.mp4", "aac")
    with FileSink(tmp_path / "out.mp4", (64, 48), 25, audio_from=source) as sink:
        for index in range(20):
            sink.send(picture(index))
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert container.duration is not None
        assert container.duration / 1e6 == pytest.approx(0.8, abs=0.05)


def test_silent_source_is_said_so(tmp_path):
    with FileSink(tmp_path / "silent.mp4", (64, 48), 25) as sink:
        sink.send(picture(0))
    with FileSink(tmp_path / "out.mp4", (64, 48), 25, audio_from=tmp_path / "silent.mp4") as sink:
        sink.send(picture(0))
    assert sink.notes == ["silent.mp4 has no sound, so the output has none"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_left_by_an_error_nothing_is_left_and_the_old_file_stays(tmp_path, error):
    (tmp_path / "out.mp4").write_bytes(b"the old one")

    def interrupted() -> None:
        with FileSink(tmp_path / "out.mp4", (64, 48), 25) as sink:
            sink.send(picture(0))
            assert len(list(tmp_path.iterdir())) == 2
            raise error

    with pytest.raises(error):
        interrupted()
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]
    assert (tmp_path / "out.mp4").read_bytes() == b"the old one"


def test_bad_outputs_are_one_sentence(tmp_path):
    with pytest.raises(ValueError, match="there is no folder"):
        FileSink(tmp_path / "missing" / "out.mp4", (64, 48), 25)
    with pytest.raises(ValueError, match=r"ending in \.mp4"):
        FileSink(tmp_path / "out.avi", (64, 48), 25)
    with pytest.raises(ValueError, match="got 0"):
        FileSink(tmp_path / "out.mp4", (64, 48), 0)
    with pytest.raises(ValueError, match="got 0 x 48"):
        FileSink(tmp_path / "out.mp4", (0, 48), 25)
    with pytest.raises(ValueError, match="cannot take the sound"):
        FileSink(tmp_path / "out.mp4", (64, 48), 25, audio_from=tmp_path / "none.wav")
    sink = FileSink(tmp_path / "out.mp4", (64, 48), 25)
    with pytest.raises(ValueError, match="takes pictures of 48 x 64"):
        sink.send(picture(0, (32, 32)))
    with pytest.raises(ValueError, match="no frame arrived"):
        sink.close()
    with pytest.raises(ValueError, match="already closed"):
        sink.send(picture(0))
    assert list(tmp_path.iterdir()) == []


FILL_THE_DISK = """
import resource, sys
import numpy as np
from engine.frames import Frame
from plugin.sinks import FileSink
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
noise = np.random.default_rng(0)
try:
    with FileSink(sys.argv[1], (320, 240), 25) as sink:
        for index in range(200):
            sink.send(Frame(noise.integers(0, 256, (240, 320, 3), np.uint8), index / 25))
except OSError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="file size limits are a Unix thing")
def test_full_disk_is_one_sentence_and_leaves_nothing(tmp_path):
    result = subprocess.run(
        [sys.executable, "-c", FILL_THE_DISK, str(tmp_path / "out.mp4")],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent.parent,
        timeout=60,
        check=True,
    )
    assert result.stdout.startswith("no space left on the disk for")
    assert result.stdout.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_failing_rename_is_reported(tmp_path, monkeypatch):
    def refuse(self: Path, target: Path) -> None:
        raise OSError(errno.EACCES, "Permission denied")

    sink = FileSink(tmp_path / "out.mp4", (64, 48), 25)
    sink.send(picture(0))
    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(OSError, match=r"cannot write .*: Permission denied"):
        sink.close()
    assert list(tmp_path.iterdir()) == []


def test_folder_and_null(tmp_path):
    with FolderSink(tmp_path / "frames") as folder:
        folder.send(picture(0))
        folder.send(picture(1))
    stored = cv2.imread(str(tmp_path / "frames" / "frame_000002.png"))
    assert stored is not None
    assert tuple(stored[0, 0]) == (60, 40, 200)
    with NullSink() as null:
        null.send(picture(0))
    assert null.count == 1
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot make the folder"):
        FolderSink(tmp_path / "file")


# --- virtual cameras ----------------------------------------------------------------------------------------


class RecordingBackend:
    """What `pyvirtualcam.register_backend` takes; keeps what it is sent."""

    made: ClassVar[list[RecordingBackend]] = []
    fault: ClassVar[str] = ""

    def __init__(self, *, width: int, height: int, fps: float, fourcc: int, device: str | None) -> None:
        if RecordingBackend.fault:
            raise RuntimeError(RecordingBackend.fault)
        self.size_px, self.fps, self.name = (width, height), fps, device or "recorder"
        self.frames: list[NDArray[np.uint8]] = []
        self.closed = 0
        RecordingBackend.made.append(self)

    def close(self) -> None:
        self.closed += 1

    def send(self, frame: NDArray[np.uint8]) -> None:
        if RecordingBackend.fault:
            raise RuntimeError(RecordingBackend.fault)
        self.frames.append(frame.copy())

    def device(self) -> str:
        return self.name

    def native_fourcc(self) -> int | None:
        return None


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> type[RecordingBackend]:
    monkeypatch.setattr(RecordingBackend, "made", [])
    monkeypatch.setattr(RecordingBackend, "fault", "")
    monkeypatch.setitem(pyvirtualcam.camera.BACKENDS, "recording", RecordingBackend)
    return RecordingBackend


def test_virtual_camera_sends_what_it_is_given(recorder: type[RecordingBackend]) -> None:
    camera = VirtualCamera((64, 36), 30.0, backend="recording")
    camera.open()
    camera.open()
    picture = np.zeros((36, 64, 3), np.uint8)
    picture[:18, :, 0] = 200
    camera.send(Frame(picture, 0.0))
    (made,) = recorder.made
    assert (made.size_px, made.fps, camera.name) == ((64, 36), 30.0, "recorder")
    assert np.array_equal(made.frames[0].reshape(36, 64, 3), picture)
    camera.close()
    camera.close()
    assert made.closed == 1
    with pytest.raises(SinkLostError, match="not open"):
        camera.send(Frame(picture, 0.0))


def test_virtual_camera_that_fails_is_let_go_and_opens_again(recorder: type[RecordingBackend]) -> None:
    camera = VirtualCamera((64, 36), 30.0, backend="recording", device="mine")
    camera.open()
    assert camera.name == "mine"
    recorder.fault = "VIDIOC went away"
    with pytest.raises(SinkLostError):
        camera.send(Frame(np.zeros((36, 64, 3), np.uint8), 0.0))
    assert recorder.made[0].closed == 1
    recorder.fault = ""
    camera.open()
    camera.send(Frame(np.zeros((36, 64, 3), np.uint8), 0.0))
    assert len(recorder.made) == 2
    camera.close()


def test_unknown_backend_is_told() -> None:
    with pytest.raises(SinkLostError, match=r"no virtual camera backend 'obz'.*camera\.backend"):
        VirtualCamera(backend="obz").open()


@pytest.mark.parametrize(
    ("system", "message", "words"),
    [
        (
            "Linux",
            "'v4l2loopback' backend: No v4l2 loopback device found at /dev/video[0-99]. Did you run 'modprobe "
            "v4l2loopback'? See also pyvirtualcam's documentation.",
            ["modprobe v4l2loopback", "exclusive_caps=1", "card_label=Understudy"],
        ),
        ("Linux", "'v4l2loopback' backend: Device /dev/video7 does not exist.", ["/dev/video7", "modprobe"]),
        ("Linux", "Device /dev/video3 could not be opened: Permission denied", ["usermod -aG video", "log in again"]),
        (
            "Linux",
            "'v4l2loopback' backend: Device /dev/video3 could not be opened: Device or resource busy",
            ["in use"],
        ),
        ("Linux", "Virtual camera device /dev/video0 is not a video output device.", ["/dev/video0", "--device"]),
        ("Windows", "'obs' backend: OBS Virtual Camera device not found! Did you install OBS?", ["install OBS"]),
        ("Windows", "'obs' backend: virtual camera output could not be started", ["in use", "Unity Capture"]),
        ("Windows", "'unitycapture' backend: Unity Capture device not responding", ["Install.bat"]),
        ("Darwin", "'obs' backend: OBS Virtual Camera is not installed in your system.", ["OBS 30", "System Settings"]),
        ("Darwin", "'obs' backend: error: stream already running", ["stop it in OBS"]),
        ("Linux", "something\nnobody has seen", ["something nobody has seen", "understudy doctor"]),
        ("Plan 9", "no such thing", ["understudy doctor"]),
    ],
)
def test_every_refusal_says_what_to_do(system: str, message: str, words: list[str]) -> None:
    sentence = what_to_do(message, system)
    assert all(word in sentence for word in words), sentence
    assert "\n" not in sentence


def test_nowhere_counts(face_photo: Image) -> None:
    sink = NoCamera((64, 36), 25.0)
    sink.open()
    sink.send(Frame(face_photo, 0.0))
    sink.close()
    assert (sink.count, sink.size_px, sink.fps) == (1, (64, 36), 25.0)
