import gc
import struct
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from av.audio.frame import AudioFrame
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from plugin import webcam
from plugin.webcam import CameraInfo, CameraLostError, Clip, ClipCamera, Webcam, choose_camera


def write_gradient_clip(
    path: Path, count: int = 10, size_px=(64, 48), rate=25, stamps_s=None, codec="libx264", pix_fmt="yuv420p"
) -> Path:
    """Frames whose left half is red, top right green, bottom right blue; `stamps_s` frees the rate."""
    width, height = size_px
    rgb = np.zeros((height, width, 3), np.uint8)
    rgb[:, : width // 2] = 220, 30, 30
    rgb[: height // 2, width // 2 :] = 30, 200, 30
    rgb[height // 2 :, width // 2 :] = 30, 30, 220
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=Fraction(rate).limit_denominator(1001))
        assert isinstance(stream, VideoStream)
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        if stamps_s is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for index in range(count):
            frame = VideoFrame.from_ndarray(rgb, "rgb24").reformat(format=pix_fmt)
            if stamps_s is not None:
                frame.pts, frame.time_base = round(stamps_s[index] * 1000), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_sound_only(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        for index in range(10):
            frame = AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            frame.sample_rate, frame.pts = 16000, index * 1024
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def set_display_matrix(path: Path, a: int, b: int, c: int, d: int) -> None:
    """Patch the track header's 3x3 matrix in place, as a phone does when it is held upright."""
    content = bytearray(path.read_bytes())
    start = content.index(b"tkhd") + 4 + 40  # after a version-0 header
    assert struct.unpack(">9i", content[start : start + 36])[0] == 1 << 16
    one = 1 << 16
    content[start : start + 36] = struct.pack(">9i", a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30)
    path.write_bytes(content)


def corner_colors(rgb: np.ndarray) -> list[str]:
    """The strongest channel at top left, top right, bottom left, bottom right."""
    corners = rgb[[2, 2, -3, -3], [2, -3, 2, -3]]
    return ["rgb"[int(corner.argmax())] for corner in corners]


def test_frames_come_in_order_with_their_stamps(tmp_path):
    clip = Clip(write_gradient_clip(tmp_path / "a.mp4"))
    frames = list(clip)
    assert (clip.fps, clip.frame_count, clip.size_px, clip.has_sound) == (25.0, 10, (64, 48), False)
    assert clip.duration_s == pytest.approx(0.4)
    assert [frame.time_s for frame in frames] == pytest.approx([index / 25 for index in range(10)])
    assert frames[0].rgb.shape == (48, 64, 3)
    assert frames[0].rgb.flags.c_contiguous
    assert corner_colors(frames[0].rgb) == ["r", "g", "r", "b"]
    assert clip.trouble is None
    assert len(list(clip)) == 10, "a second pass starts anew"


def test_odd_size_and_60_fps(tmp_path):
    path = write_gradient_clip(tmp_path / "odd.mp4", size_px=(61, 47), rate=60, pix_fmt="yuv444p")
    clip = Clip(path)
    assert (clip.size_px, clip.fps) == ((61, 47), 60.0)
    assert next(iter(clip)).rgb.shape == (47, 61, 3)
    clip.close()


def test_variable_rate_keeps_the_stamps(tmp_path):
    stamps_s = [0.0, 0.04, 0.2, 0.21, 0.5, 0.9]
    clip = Clip(write_gradient_clip(tmp_path / "v.mp4", count=6, stamps_s=stamps_s))
    assert [frame.time_s for frame in clip] == pytest.approx(stamps_s, abs=2e-3)
    assert clip.trouble is None


def test_file_without_a_declared_length_is_scanned(tmp_path):
    path = write_gradient_clip(tmp_path / "raw.h264", count=30, rate=30)
    clip = Clip(path)
    assert clip.frame_count == 30
    assert clip.duration_s == pytest.approx(30 / clip.fps, rel=0.1)
    assert len(list(clip)) == 30


@pytest.mark.parametrize(
    ("matrix", "size_px", "corners"),
    [
        pytest.param((1, 0, 0, 1), (64, 48), ["r", "g", "r", "b"], id="upright"),
        pytest.param((0, 1, -1, 0), (48, 64), ["r", "r", "b", "g"], id="quarter clockwise"),
        pytest.param((-1, 0, 0, -1), (64, 48), ["b", "r", "g", "r"], id="half turn"),
        pytest.param((0, -1, 1, 0), (48, 64), ["g", "b", "r", "r"], id="quarter counterclockwise"),
        pytest.param((-1, 0, 0, 1), (64, 48), ["g", "r", "b", "r"], id="mirrored"),
    ],
)
def test_rotation_is_honoured(tmp_path, matrix, size_px, corners):
    path = write_gradient_clip(tmp_path / "turned.mp4")
    set_display_matrix(path, *matrix)
    clip = Clip(path)
    assert clip.size_px == size_px
    assert corner_colors(next(iter(clip)).rgb) == corners


def test_colours_survive(tmp_path):
    rgb = next(iter(Clip(write_gradient_clip(tmp_path / "sd.mp4")))).rgb
    assert np.abs(rgb[20, 10].astype(int) - (220, 30, 30)).max() < 12


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("none.mp4", None, "there is no file"),
        ("empty.mp4", b"", "is empty"),
        ("text.mp4", b"dear reader, this is no film\n" * 50, "is not a video"),
        ("noise.mp4", np.random.default_rng(0).bytes(5000), "is not a video"),
        ("text.txt", b"dear reader, this is no film\n" * 50, "is not a video"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, name, content, sentence):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=sentence) as caught:
        Clip(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_folder_picture_and_sound_are_refused(tmp_path):
    with pytest.raises(ValueError, match="is a folder"):
        Clip(tmp_path)
    write_gradient_clip(tmp_path / "one.png", count=1, codec="png", pix_fmt="rgb24")
    with pytest.raises(ValueError, match="is a picture, not a video"):
        Clip(tmp_path / "one.png")
    with pytest.raises(ValueError, match="has no picture stream"):
        Clip(write_sound_only(tmp_path / "sound.m4a"))


def test_index_without_frames_is_refused(tmp_path):
    path = write_gradient_clip(tmp_path / "a.mp4")
    content = path.read_bytes()
    start = content.index(b"mdat") + 4
    size = struct.unpack(">I", content[start - 8 : start - 4])[0] - 8
    path.write_bytes(content[:start] + bytes(size) + content[start + size :])
    with pytest.raises(ValueError, match="no picture that can be decoded"):
        Clip(path)


def test_missing_end_is_refused_with_a_hint(tmp_path):
    path = write_gradient_clip(tmp_path / "a.mp4", count=100)
    path.write_bytes(path.read_bytes()[:-200])  # the index of a plain MP4 comes last
    with pytest.raises(ValueError, match="or its end is missing"):
        Clip(path)


def test_cut_short_uses_what_is_there_and_says_so(tmp_path, caplog):
    whole = write_gradient_clip(tmp_path / "whole.mkv", count=100, codec="mjpeg", pix_fmt="yuvj420p")
    content = whole.read_bytes()
    (tmp_path / "cut.mkv").write_bytes(content[: len(content) // 2])
    clip = Clip(tmp_path / "cut.mkv")
    frames = list(clip)
    assert 30 < len(frames) < 70
    assert clip.trouble is not None
    assert "cut short" in clip.trouble
    assert clip.trouble in caplog.text


def test_damage_in_the_middle_is_passed_over(tmp_path):
    path = write_gradient_clip(tmp_path / "a.mkv", count=60, codec="mjpeg", pix_fmt="yuvj420p")
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 2000] = bytes(2000)
    path.write_bytes(content)
    clip = Clip(path)
    frames = list(clip)
    assert len(frames) > 40
    assert all(a.time_s < b.time_s for a, b in pairwise(frames))


# --- live ---------------------------------------------------------------------------------------------------


CAMERAS = [
    CameraInfo(0, "Integrated Camera: Integrated C", "/dev/video0", False),
    CameraInfo(2, "Logitech BRIO", "/dev/video2", False),
    CameraInfo(9, "Understudy", "/dev/video9", True),
]


@pytest.mark.parametrize(
    ("wanted", "remembered", "index"),
    [
        ("", "", 0),
        ("", "Logitech BRIO", 2),
        ("", "a camera that is unplugged", 0),
        ("logitech brio", "", 2),
        ("brio", "Integrated Camera: Integrated C", 2),
        ("/dev/video2", "", 2),
        ("2", "", 2),
        ("Understudy", "", 9),
    ],
)
def test_cameras_are_chosen_by_name(wanted: str, remembered: str, index: int) -> None:
    assert choose_camera(wanted, remembered, CAMERAS).index == index


def test_a_virtual_camera_is_never_chosen_by_itself() -> None:
    with pytest.raises(CameraLostError, match="only cameras here are virtual ones \\('Understudy'\\)"):
        choose_camera("", "Understudy", CAMERAS[2:])


def test_wrong_and_missing_cameras_are_told() -> None:
    with pytest.raises(CameraLostError, match="no camera 'leica'; this machine has 'Integrated Camera"):
        choose_camera("leica", "", CAMERAS)
    with pytest.raises(CameraLostError, match="plug one in"):
        choose_camera("", "", [])


class FakeCapture:
    """What `cv2.VideoCapture` does, for one camera whose plug can be pulled."""

    plugged, held, stamped = True, False, True

    def __init__(self, index: int, backend: int) -> None:
        self.index, self.released, self.settings = index, False, {}

    def isOpened(self) -> bool:  # noqa: N802 - OpenCV's own name
        return FakeCapture.plugged and not FakeCapture.held

    def set(self, what: int, value: float) -> bool:
        self.settings[what] = value
        return True

    def get(self, what: int) -> float:
        return 9_990.0 if FakeCapture.stamped else 12.0

    def read(self) -> tuple[bool, np.ndarray | None]:
        if not FakeCapture.plugged:
            return False, None
        bgr = np.zeros((480, 640, 3), np.uint8)
        bgr[..., 0] = 250
        return True, bgr

    def release(self) -> None:
        self.released = True


@pytest.fixture
def fake_capture(monkeypatch: pytest.MonkeyPatch) -> type[FakeCapture]:
    monkeypatch.setattr(cv2, "VideoCapture", FakeCapture)
    monkeypatch.setattr(webcam, "list_cameras", lambda: CAMERAS if FakeCapture.plugged else CAMERAS[2:])
    for name, value in (("plugged", True), ("held", False), ("stamped", True)):
        monkeypatch.setattr(FakeCapture, name, value)
    return FakeCapture


def test_webcam_gives_rgb_with_the_time_of_capture(fake_capture: type[FakeCapture]) -> None:
    camera = Webcam("brio", clock=lambda: 10.0)
    camera.open()
    frame = camera.read()
    assert camera.name == "Logitech BRIO"
    assert frame.rgb.shape == (480, 640, 3)
    assert tuple(frame.rgb[0, 0]) == (0, 0, 250), "RGB: blue is last"
    assert frame.time_s == pytest.approx(9.99), "the driver's stamp"
    camera.close()


def test_stamps_of_another_clock_are_not_believed(fake_capture: type[FakeCapture]) -> None:
    fake_capture.stamped = False
    camera = Webcam(clock=lambda: 10.0)
    camera.open()
    assert camera.read().time_s == 10.0
    camera.close()


def test_webcam_unplugged_and_plugged_in_again(fake_capture: type[FakeCapture]) -> None:
    camera = Webcam("brio", clock=lambda: 10.0)
    camera.open()
    camera.read()
    fake_capture.plugged = False
    with pytest.raises(CameraLostError, match="'Logitech BRIO' gives no picture: it was unplugged"):
        camera.read()
    camera.close()
    with pytest.raises(CameraLostError, match="no camera 'brio'"):
        camera.open()
    with pytest.raises(CameraLostError, match="not open"):
        camera.read()
    fake_capture.plugged = True
    camera.open()
    assert camera.read().rgb.any()
    camera.close()


def test_webcam_held_by_another_program(fake_capture: type[FakeCapture]) -> None:
    fake_capture.held = True
    with pytest.raises(CameraLostError, match="another program may hold it"):
        Webcam().open()


def test_clip_plays_as_a_camera_over_and_over(tmp_path: Path) -> None:
    now = 50.0

    def clock() -> float:
        nonlocal now
        now += 0.05  # as slow as the clip is fast: no waiting
        return now

    camera = ClipCamera(write_gradient_clip(tmp_path / "clip.mp4", count=4), clock)
    with pytest.raises(CameraLostError, match="not open"):
        camera.read()
    camera.open()
    times = [camera.read().time_s for _ in range(10)]
    camera.close()
    assert all(0.039 < later - earlier < 0.041 for earlier, later in pairwise(times)), "also where it starts again"


def test_a_clip_played_over_and_over_keeps_no_picture(tmp_path: Path) -> None:
    now = iter(range(50, 10_000))
    camera = ClipCamera(write_gradient_clip(tmp_path / "clip.mp4", count=4), lambda: float(next(now)))
    gc.collect()
    gc.disable()  # what only the collector frees stays long: a picture is large, but one object
    try:
        camera.open()
        for _ in range(20):
            camera.read()
        camera.close()
        kept = [one for one in gc.get_objects() if type(one) in (VideoFrame, InputContainer)]
    finally:
        gc.enable()
    assert kept == []


def test_a_clip_that_goes_while_it_plays_is_a_lost_camera(tmp_path: Path) -> None:
    now = iter(range(50, 10_000))
    path = write_gradient_clip(tmp_path / "clip.mp4", count=4)
    whole = path.read_bytes()
    camera = ClipCamera(path, lambda: float(next(now)))
    camera.open()
    path.unlink()
    with pytest.raises(CameraLostError, match="not a video that can be read"):
        camera.read()
    path.write_bytes(whole)
    camera.open()
    assert camera.read().rgb.any(), "and it is back"
    camera.close()


def test_clip_goes_on_after_sleep_instead_of_racing(tmp_path: Path) -> None:
    now = [50.0]
    camera = ClipCamera(write_gradient_clip(tmp_path / "clip.mp4", count=4), lambda: now[0])
    camera.open()
    camera.read()
    now[0] += 3600
    assert camera.read().time_s == now[0]
    camera.close()
