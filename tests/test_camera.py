"""The live loop: what is shown when, the newest wins, and every fault ends in a picture and in coming back."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from engine.config import load
from engine.frames import Face, Frame, Image, NoFace
from plugin import camera as cameras
from plugin.camera import Live, Slot
from plugin.listening import Heard, MicrophoneLostError
from plugin.puppet import Settings
from plugin.sinks import SinkLostError
from plugin.speaking import Spoken
from plugin.webcam import CameraLostError

SIZE_PX = (64, 36)
SPEAKING = 30
"""The shade of a puppet that a voice moves."""


def flat(value: int) -> Image:
    return np.full((SIZE_PX[1], SIZE_PX[0], 3), value, np.uint8)


class FakeCamera:
    """Counts its frames into their pixels; faults are switched on from outside."""

    name = "fake camera"

    def __init__(self, fps: float = 100.0) -> None:
        self.fps, self.count, self.opened = fps, 0, 0
        self.fault: Exception | None = None
        self.silent = threading.Event()
        self.ahead_s = 0.0

    def open(self) -> None:
        if self.fault is not None:
            raise self.fault
        self.opened += 1

    def read(self) -> Frame:
        time.sleep(1 / self.fps)
        while self.silent.is_set():
            time.sleep(0.005)
        if self.fault is not None:
            raise self.fault
        self.count += 1
        return Frame(np.full((48, 64, 3), self.count % 200, np.uint8), time.monotonic() + self.ahead_s)

    def close(self) -> None:
        """Nothing to close."""


class RecordingSink:
    name = "recording sink"
    size_px = SIZE_PX

    def __init__(self, fps: float = 100.0) -> None:
        self.fps = fps
        self.sent: list[Image] = []
        self.fault: Exception | None = None
        self.opened = 0
        self._open = False

    def open(self) -> None:
        if self.fault is not None:
            raise self.fault
        self.opened += not self._open
        self._open = True

    def send(self, frame: Frame) -> None:
        if self.fault is not None:
            raise self.fault
        assert self._open
        assert frame.rgb.shape == (SIZE_PX[1], SIZE_PX[0], 3)
        self.sent.append(frame.rgb.copy())

    def close(self) -> None:
        self._open = False

    def last(self) -> int:
        return int(self.sent[-1][0, 0, 0]) if self.sent else -1


class FakeTracker:
    """Finds a face in every frame, unless told otherwise."""

    def __init__(self, make_face: Callable[..., Face]) -> None:
        self._make_face = make_face
        self.absent = False
        self.fault: Exception | None = None
        self.visibility = 1.0
        self.made = self.closed = 0

    def __call__(self) -> FakeTracker:
        self.made += 1
        return self

    def track(self, frame: Frame) -> Face | NoFace:
        if self.fault is not None:
            fault, self.fault = self.fault, None
            raise fault
        if self.absent:
            return NoFace(frame.time_s)
        face = self._make_face(center_px=(32.0, 24.0), scale=1.5, time_s=frame.time_s, size_px=(64, 48))
        return dataclasses.replace(face, visibility=self.visibility)

    def close(self) -> None:
        self.closed += 1


class FakePuppet:
    """A flat picture: its shade for a face, half of it for none."""

    def __init__(self, name: str, shade: int) -> None:
        self.name, self.shade = name, shade
        self.spoken: list[Spoken] = []
        self.last_s = float("-inf")
        self.calibrated: list[Face] = []
        self.fault: Exception | None = None
        self.gate = threading.Event()
        self.gate.set()
        self.drawing = threading.Event()
        self.settings = Settings()

    def describe(self) -> str:
        return "paint"

    def draw(self, tracked: Face | NoFace, settings: Settings) -> Image:
        self.drawing.set()
        self.gate.wait(5)
        if self.fault is not None:
            raise self.fault
        self.settings = settings
        assert tracked.time_s >= self.last_s or tracked.time_s < self.last_s - 1, "time goes on"
        self.last_s = tracked.time_s
        if isinstance(tracked, Spoken):
            self.spoken.append(tracked)
            return flat(SPEAKING)
        picture = flat(self.shade if isinstance(tracked, Face) else self.shade // 2)
        picture[:, : SIZE_PX[0] // 2, 1] = 255
        return picture

    def calibrate(self, face: Face) -> None:
        self.calibrated.append(face)


class FakeMicrophone:
    """Noise that comes in bursts, twice a second."""

    name = "fake microphone"

    def __init__(self) -> None:
        self.opened = self.closed = self.count = 0
        self.fault: Exception | None = None

    def open(self) -> None:
        if self.fault is not None:
            raise self.fault
        self.opened += 1

    def read(self) -> Heard:
        if self.fault is not None:
            raise self.fault
        time.sleep(0.01)
        loud = 0.001 if self.count % 50 < 25 else 0.3
        self.count += 1
        sound = np.random.default_rng(self.count).normal(0, loud, (480, 2)).astype(np.float32)
        return Heard(sound, 48_000, time.monotonic())

    def close(self) -> None:
        self.closed += 1


class FakeWardrobe:
    def __init__(self) -> None:
        self.puppets = {"one": FakePuppet("one", 100), "two": FakePuppet("two", 200)}
        self.names = tuple(self.puppets)
        self.fault: Exception | None = None
        self.gate = threading.Event()
        self.gate.set()
        self.loaded = 0

    def load(self, name: str) -> FakePuppet:
        self.gate.wait(5)
        self.loaded += 1
        if self.fault is not None:
            raise self.fault
        return self.puppets[name]


class Rig:
    """A loop with everything fake around it."""

    def __init__(self, make_face: Callable[..., Face]) -> None:
        self.camera, self.sink = FakeCamera(), RecordingSink()
        self.tracker, self.wardrobe = FakeTracker(make_face), FakeWardrobe()
        self.microphone = FakeMicrophone()
        shipped = load()
        config = dataclasses.replace(shipped, render=dataclasses.replace(shipped.render, hold_s=0.2))
        self.live = Live(
            config, self.camera, self.sink, self.wardrobe, tracker=self.tracker, microphone=self.microphone
        )

    def until(self, there: Callable[[], object], limit_s: float = 5.0) -> None:
        until_s = time.monotonic() + limit_s
        while not there():
            assert time.monotonic() < until_s, self.live.status()
            time.sleep(0.003)

    def shows(self, shade: int) -> Callable[[], bool]:
        return lambda: self.sink.last() == shade

    def comes(self, shade: int) -> None:
        """A picture of this shade is sent from now on."""
        before = len(self.sink.sent)
        self.until(lambda: any(int(one[0, 0, 0]) == shade for one in self.sink.sent[before:]))


@pytest.fixture
def rig(make_face: Callable[..., Face], monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    monkeypatch.setattr(cameras, "_RETRY_S", 0.02)
    monkeypatch.setattr(cameras, "_STALE_S", 0.15)
    rig = Rig(make_face)
    yield rig
    rig.wardrobe.gate.set()
    for puppet in rig.wardrobe.puppets.values():
        puppet.gate.set()
    rig.camera.silent.clear()
    rig.live.stop()
    assert rig.live.join(5.0)
    assert rig.tracker.closed == rig.tracker.made


def test_slot_keeps_the_newest_and_counts_the_rest() -> None:
    slot: Slot[int] = Slot()
    for number in range(5):
        slot.put(number)
    assert slot.take(0.0) == 4
    assert slot.take(0.0) is None
    assert slot.drops == 4


def test_test_card_then_the_avatar(rig: Rig) -> None:
    rig.wardrobe.gate.clear()
    rig.live.start()
    rig.until(lambda: len(rig.sink.sent) >= 2)
    assert rig.live.status().state == "starting"
    assert np.unique(rig.sink.sent[0].reshape(-1, 3), axis=0).shape[0] >= 7, "the card has seven bars"
    rig.wardrobe.gate.set()
    rig.until(rig.shows(100))
    rig.until(lambda: rig.live.status().fps > 0)
    status = rig.live.status()
    assert (status.state, status.avatar, status.backend) == ("live", "one", "paint")
    assert (status.camera, status.sink, status.problems) == ("fake camera", "recording sink", [])


def test_status_says_where_the_time_goes(rig: Rig) -> None:
    rig.live.start()
    rig.until(lambda: rig.live.status().fps > 0)
    status = rig.live.status()
    assert set(status.stages_ms) == {"camera", "tracker", "draw", "send"}
    assert set(status.queue_ms) == set(status.drops) == {"frames", "faces"}
    assert 0 <= status.glass_p50_ms <= status.glass_p95_ms < 5000
    line = status.line()
    assert "\n" not in line
    assert all(word in line for word in ("live", "one", "fps", "glass", "tracker", "dropped frames"))


def test_newest_wins_when_drawing_is_slow(rig: Rig) -> None:
    rig.live.start()
    rig.until(rig.shows(100))
    rig.wardrobe.puppets["one"].gate.clear()
    dropped = rig.live.status().drops["faces"]
    seen = rig.camera.count
    rig.until(lambda: rig.camera.count > seen + 8)
    assert rig.live.status().drops["faces"] >= dropped + 3


def test_no_more_pictures_than_the_sink_wants(rig: Rig) -> None:
    rig.sink.fps = 20.0
    rig.live.start()
    rig.until(rig.shows(100))
    count, began = len(rig.sink.sent), time.monotonic()
    rig.until(lambda: time.monotonic() - began > 0.5)
    assert len(rig.sink.sent) - count <= 0.5 * 20 / 0.8 + 3


def test_privacy_comes_before_a_picture_that_is_being_drawn(rig: Rig) -> None:
    rig.live.start()
    rig.until(rig.shows(100))
    puppet = rig.wardrobe.puppets["one"]
    puppet.gate.clear()
    puppet.drawing.clear()
    assert puppet.drawing.wait(5)
    count = len(rig.sink.sent)
    assert rig.live.privacy(True)
    puppet.gate.set()
    rig.until(lambda: len(rig.sink.sent) > count + 2)
    assert not any(int(one[0, 0, 0]) == 100 for one in rig.sink.sent[count:]), "the very next picture is the card"
    assert rig.live.status().state == "private"
    rig.live.privacy(False)
    rig.comes(100)


def test_privacy_is_at_once_even_while_pictures_stand_still(rig: Rig) -> None:
    rig.live.start()
    rig.until(rig.shows(100))
    rig.live.hold(True)
    rig.live.privacy()
    rig.until(lambda: rig.sink.last() not in (100, -1), 1.0)
    rig.live.privacy()
    rig.comes(100)
    assert rig.live.status().state == "held"


def test_hold_freezes_and_goes_on(rig: Rig) -> None:
    rig.live.start()
    rig.until(rig.shows(100))
    assert rig.live.hold()
    rig.wardrobe.puppets["one"].shade = 150
    count = len(rig.sink.sent)
    rig.until(lambda: len(rig.sink.sent) > count + 2)
    assert rig.sink.last() == 100
    assert rig.live.status().state == "held"
    assert not rig.live.hold()
    rig.until(rig.shows(150))


def test_pass_through_asks_once(rig: Rig) -> None:
    rig.live.start()
    rig.until(rig.shows(100))
    assert rig.live.pass_through_asks
    assert not rig.live.pass_through(True)
    count = len(rig.sink.sent)
    rig.until(lambda: len(rig.sink.sent) > count + 3)
    assert all(int(one[0, 0, 1]) == 255 for one in rig.sink.sent[count:]), "still the avatar"
    assert rig.live.pass_through(True, sure=True)
    rig.until(lambda: rig.sink.sent[-1].std() == 0)
    assert rig.live.status().state == "pass-through"
    assert not rig.live.pass_through(False)
    rig.comes(100)
    assert rig.live.pass_through(True), "it does not ask again"


def test_switch_keeps_the_old_one_until_the_new_one_is_there(rig: Rig) -> None:
    rig.live.start()
    rig.until(rig.shows(100))
    rig.wardrobe.gate.clear()
    assert rig.live.switch() == "two"
    count = len(rig.sink.sent)
    rig.until(lambda: len(rig.sink.sent) > count + 3)
    assert {int(one[0, 0, 0]) for one in rig.sink.sent[count:]} == {100}
    rig.wardrobe.gate.set()
    rig.until(rig.shows(200))
    assert rig.live.status().avatar == "two"
    assert rig.live.switch() == "one"
    with pytest.raises(ValueError, match="no avatar 'three' here, only one, two"):
        rig.live.switch("three")


def test_an_avatar_whose_file_was_given_another_name_is_loaded_once(rig: Rig) -> None:
    rig.wardrobe.puppets["one"].name = "its name at enrolment"
    rig.live.start()
    rig.until(rig.shows(100))
    seen = rig.camera.count
    rig.until(lambda: rig.camera.count > seen + 10)
    assert rig.wardrobe.loaded == 1
    assert rig.live.status().avatar == "one"


def test_calibration_waits_for_a_face_that_is_clearly_seen(rig: Rig) -> None:
    rig.tracker.visibility = 0.3
    rig.live.start()
    rig.until(rig.shows(100))
    rig.live.calibrate()
    count = len(rig.sink.sent)
    rig.until(lambda: len(rig.sink.sent) > count + 3)
    assert rig.wardrobe.puppets["one"].calibrated == []
    rig.tracker.visibility = 0.9
    rig.until(lambda: rig.wardrobe.puppets["one"].calibrated)


def test_settings_reach_the_puppet_and_mistakes_change_nothing(rig: Rig) -> None:
    rig.live.start()
    rig.until(rig.shows(100))
    rig.live.set(expression=1.5, steadiness=0.5, background="blur")
    rig.until(lambda: rig.wardrobe.puppets["one"].settings.expression == 1.5)
    before = rig.live.status().settings
    for wrong, words in (
        ({"expresion": 1.0}, "no setting 'expresion'"),
        ({"blink": 7}, "between 0 and 1.5"),
        ({"gaze": float("nan")}, "between 0 and 1.5"),
        ({"mirror_output": 1}, "true or false"),
        ({"background": "sea"}, "one of photo"),
        ({"background": "image"}, "needs a picture"),
        ({"background": "image", "image": "/no/such.png"}, "no picture"),
        ({"color": "red"}, "#rrggbb"),
    ):
        with pytest.raises(ValueError, match=words):
            rig.live.set(**wrong)
        assert rig.live.status().settings == before


def test_mirrored_output(rig: Rig) -> None:
    rig.live.start()
    rig.until(rig.shows(100))
    assert rig.sink.sent[-1][0, 0, 1] == 255
    rig.live.set(mirror_output=True)
    rig.until(lambda: rig.sink.sent[-1][0, 0, 1] == 100 and rig.sink.sent[-1][0, -1, 1] == 255)


def test_previews(rig: Rig) -> None:
    assert rig.live.latest("camera") is rig.live.latest("landmarks") is rig.live.latest("output") is None
    rig.live.start()
    rig.until(rig.shows(100))
    camera, landmarks, output = (rig.live.latest(view) for view in ("camera", "landmarks", "output"))
    assert camera is not None and landmarks is not None and output is not None
    assert camera.shape == landmarks.shape == (48, 64, 3)
    assert landmarks.std() > 0, "points are drawn"
    output[:] = 7
    assert not (rig.live.latest("output") == 7).all(), "the caller's own copy"
    with pytest.raises(ValueError, match="camera, landmarks or output"):
        rig.live.latest("feelings")  # pyright: ignore[reportArgumentType]


# --- a voice in the place of a face -------------------------------------------------------------------------


def test_the_microphone_is_open_only_while_it_is_asked_for(rig: Rig) -> None:
    rig.live.start()
    rig.until(rig.shows(100))
    assert rig.microphone.opened == 0
    rig.live.set(voice_lips=True)
    rig.until(lambda: rig.microphone.count > 2)
    rig.live.set(voice_lips=False)
    rig.until(lambda: rig.microphone.closed == 1)
    count = rig.microphone.count
    rig.tracker.absent = True
    rig.until(rig.shows(50))
    assert rig.microphone.count == count


def test_the_voice_speaks_while_there_is_no_face(rig: Rig) -> None:
    rig.live.set(voice_lips=True)
    rig.live.start()
    rig.until(rig.shows(100))
    rig.until(lambda: rig.microphone.count > 10)
    assert rig.live.status().state == "live", "a face that is there is followed"
    rig.tracker.absent = True
    rig.until(rig.shows(SPEAKING))
    spoken = rig.wardrobe.puppets["one"].spoken
    rig.until(lambda: len(spoken) > 10 and np.ptp([one.codes[0] for one in spoken]) > 0.02)
    status = rig.live.status()
    assert status.state == "voice"
    assert status.line().startswith("voice")
    assert status.fps > 5, "its pictures are news"
    assert np.isfinite(np.stack([one.codes for one in spoken])).all()
    rig.tracker.absent = False
    rig.until(rig.shows(100))
    rig.until(lambda: rig.live.status().state == "live")


@pytest.mark.parametrize("why", ["unplugged", "silent", "unsure", "switched off"])
def test_whatever_took_the_face_away(rig: Rig, why: str) -> None:
    rig.live.set(voice_lips=True)
    rig.live.start()
    rig.until(rig.shows(100))
    if why == "unplugged":
        rig.camera.fault = CameraLostError("the camera was unplugged")
    elif why == "silent":
        rig.camera.silent.set()
    elif why == "unsure":
        rig.tracker.visibility = 0.3
    else:
        rig.live.set(webcam=False)
    rig.until(rig.shows(SPEAKING))
    rig.until(lambda: rig.live.status().state == "voice")
    rig.camera.fault = None
    rig.camera.silent.clear()
    rig.tracker.visibility = 1.0
    rig.live.set(webcam=True)
    rig.comes(100)


def test_a_webcam_that_is_switched_off_is_let_go(rig: Rig) -> None:
    rig.live.start()
    rig.until(rig.shows(100))
    rig.live.set(webcam=False)
    rig.until(lambda: rig.live.status().state == "no camera")
    rig.until(rig.shows(50))
    count = rig.camera.count
    assert rig.live.latest("camera") is rig.live.latest("landmarks") is None
    sent = len(rig.sink.sent)
    rig.until(lambda: len(rig.sink.sent) > sent + 3)
    assert rig.camera.count == count
    assert rig.live.status().problems == []
    rig.live.set(webcam=True)
    rig.comes(100)


def test_privacy_and_hold_come_before_the_voice(rig: Rig) -> None:
    rig.live.set(voice_lips=True)
    rig.tracker.absent = True
    rig.live.start()
    rig.until(rig.shows(SPEAKING))
    rig.live.privacy(True)
    rig.until(lambda: rig.sink.last() != SPEAKING)
    said, sent = len(rig.wardrobe.puppets["one"].spoken), len(rig.sink.sent)
    rig.until(lambda: len(rig.sink.sent) > sent + 2)
    assert rig.live.status().state == "private"
    assert len(rig.wardrobe.puppets["one"].spoken) <= said + 1
    rig.live.privacy(False)
    rig.comes(SPEAKING)
    rig.live.hold(True)
    rig.until(lambda: rig.live.status().state == "held")
    sent = len(rig.sink.sent)
    rig.until(lambda: len(rig.sink.sent) > sent + 2)
    said = len(rig.wardrobe.puppets["one"].spoken)
    sent = len(rig.sink.sent)
    rig.until(lambda: len(rig.sink.sent) > sent + 2)
    assert len(rig.wardrobe.puppets["one"].spoken) == said
    rig.live.hold(False)
    rig.comes(SPEAKING)


def test_a_microphone_that_goes_and_comes_back(rig: Rig) -> None:
    rig.live.set(voice_lips=True)
    rig.tracker.absent = True
    rig.live.start()
    rig.until(rig.shows(SPEAKING))
    rig.microphone.fault = MicrophoneLostError("the microphone was unplugged")
    rig.until(rig.shows(50))
    status = rig.live.status()
    assert status.state == "no face"
    assert status.problems == ["the microphone was unplugged"]
    rig.microphone.fault = None
    rig.comes(SPEAKING)
    rig.until(lambda: rig.live.status().problems == [])
    rig.microphone.fault = MicrophoneLostError("the microphone was unplugged")
    rig.until(lambda: rig.live.status().problems != [])
    rig.live.set(voice_lips=False)
    rig.until(lambda: rig.live.status().problems == [])


def test_a_loop_without_a_microphone_says_so(rig: Rig, make_face: Callable[..., Face]) -> None:
    live = Live(load(), FakeCamera(), RecordingSink(), FakeWardrobe(), tracker=FakeTracker(make_face))
    with pytest.raises(ValueError, match="without a microphone"):
        live.set(voice_lips=True)
    assert not live.status().settings.voice_lips


# --- faults -------------------------------------------------------------------------------------------------


def test_no_face_is_a_state_with_a_picture(rig: Rig) -> None:
    rig.live.start()
    rig.until(rig.shows(100))
    rig.tracker.absent = True
    rig.until(rig.shows(50))
    assert rig.live.status().state == "no face"
    rig.tracker.absent = False
    rig.until(rig.shows(100))


def test_camera_unplugged_and_plugged_in_again(rig: Rig) -> None:
    rig.live.start()
    rig.until(rig.shows(100))
    rig.camera.fault = CameraLostError("the camera was unplugged")
    rig.until(rig.shows(50))
    status = rig.live.status()
    assert status.state == "no camera"
    assert status.problems == ["the camera was unplugged"]
    count = len(rig.sink.sent)
    rig.until(lambda: len(rig.sink.sent) > count + 3)
    rig.camera.fault = None
    rig.until(rig.shows(100))
    rig.until(lambda: rig.live.status().problems == [])
    assert rig.camera.opened == 2


def test_another_program_holds_the_camera_at_the_start(rig: Rig) -> None:
    rig.camera.fault = CameraLostError("another program may hold it")
    rig.live.start()
    rig.until(lambda: rig.live.status().state == "no camera")
    assert rig.live.status().problems == ["another program may hold it"]
    rig.camera.fault = None
    rig.until(lambda: rig.live.status().state == "live")


def test_a_camera_that_falls_silent(rig: Rig) -> None:
    rig.live.start()
    rig.until(rig.shows(100))
    rig.camera.silent.set()
    rig.until(rig.shows(50))
    assert rig.live.status().state == "no camera"
    rig.camera.silent.clear()
    rig.until(rig.shows(100))
    assert rig.live.status().state == "live"


def test_after_sleep_time_has_jumped(rig: Rig) -> None:
    rig.live.start()
    rig.until(rig.shows(100))
    rig.camera.silent.set()
    rig.camera.ahead_s = 3600.0
    rig.camera.silent.clear()
    seen = rig.camera.count
    rig.until(lambda: rig.camera.count > seen + 5)
    rig.comes(100)
    assert rig.live.status().problems == []


def test_virtual_camera_goes_and_comes_back(rig: Rig) -> None:
    rig.live.start()
    rig.until(rig.shows(100))
    rig.sink.fault = SinkLostError("the module was unloaded")
    rig.until(lambda: rig.live.status().problems == ["the module was unloaded"])
    assert rig.live.status().state == "live", "the preview goes on"
    rig.wardrobe.puppets["one"].shade = 120
    rig.until(lambda: (view := rig.live.latest("output")) is not None and view[0, 0, 0] == 120)
    rig.sink.fault = None
    rig.until(rig.shows(120))
    rig.until(lambda: rig.live.status().problems == [])
    assert rig.sink.opened == 2


@pytest.mark.parametrize("fault", [RuntimeError("graph\nbroke"), MemoryError(), ZeroDivisionError("x")])
def test_tracker_dies_and_is_made_again(rig: Rig, fault: Exception) -> None:
    rig.live.start()
    rig.until(rig.shows(100))
    rig.tracker.fault = fault
    rig.until(lambda: rig.tracker.made == 2)
    rig.until(lambda: rig.live.status().problems == [])
    rig.comes(100)


def test_an_avatar_that_cannot_be_drawn_is_loaded_again(rig: Rig) -> None:
    rig.live.start()
    rig.until(rig.shows(100))
    rig.wardrobe.puppets["one"].fault = RuntimeError("the device was lost")
    rig.until(lambda: any("the device was lost" in one for one in rig.live.status().problems))
    rig.until(lambda: rig.sink.last() not in (100, 50))
    rig.wardrobe.puppets["one"].fault = None
    rig.until(rig.shows(100))
    rig.until(lambda: rig.live.status().problems == [])


def test_an_avatar_that_cannot_be_loaded(rig: Rig) -> None:
    rig.wardrobe.fault = ValueError("the file is damaged")
    rig.live.start()
    rig.until(lambda: rig.live.status().state == "failed")
    assert any("'one' cannot be shown: the file is damaged" in one for one in rig.live.status().problems)
    rig.until(lambda: len(rig.sink.sent) > 3)
    rig.wardrobe.fault = None
    rig.until(rig.shows(100))
    rig.wardrobe.fault = ValueError("the file is damaged")
    rig.live.switch("two")
    rig.until(lambda: any("'two' cannot be shown" in one for one in rig.live.status().problems))
    rig.comes(100)


def test_stop_before_anything_was_there(rig: Rig) -> None:
    rig.wardrobe.gate.clear()
    rig.camera.fault = CameraLostError("nothing")
    rig.live.start()
    rig.live.stop()
    assert rig.live.join(5.0)
    assert rig.live.status().state == "stopped"


def test_settings_come_from_the_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('[camera]\nblink = 0.5\nmirror_output = true\n[render]\nbackground = "green"\n')
    settings = Settings.from_config(load(path))
    assert (settings.blink, settings.mirror_output, settings.background) == (0.5, True, "green")
