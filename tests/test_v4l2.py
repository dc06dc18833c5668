"""Video4Linux without a device: what is refused, and which v4l2loopback devices are asked to take pictures again."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from plugin import v4l2
from plugin.v4l2 import CAPTURE, LOOPBACK_DRIVER, OUTPUT, Capability, Mode

STREAMON = 0x40045612  # VIDIOC_STREAMON, as the kernel's headers have it on x86 and ARM


def test_what_is_no_device_says_so(tmp_path: Path) -> None:
    (tmp_path / "video0").touch()
    with pytest.raises(OSError, match="not a Video4Linux device"):
        v4l2.capability(tmp_path / "video0")
    with pytest.raises(FileNotFoundError):
        v4l2.capability(tmp_path / "video1")
    assert v4l2.modes(tmp_path / "video0") == []


class Driver:
    """Answers ioctl as a camera does that has two formats, one with two sizes, one with a range of them."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, bytes]] = []

    def ioctl(self, handle: int, request: int, argument: bytearray) -> int:
        self.asked.append((request, bytes(argument)))
        number, (index,) = request & 0xFF, struct.unpack_from("I", argument)
        assert len(argument) == request >> 16 & 0x3FFF
        if number == 0:
            struct.pack_into("16s32s32sIII", argument, 0, b"uvcvideo", b"Test\0rest", b"usb", 1, 0x84A00001, 0x04200001)
        elif number == 2 and index < 2:
            argument[44:48] = (b"MJPG", b"YUYV")[index]
        elif number == 74 and argument[4:8] == b"MJPG" and index < 2:
            struct.pack_into("3I", argument, 8, 1, *((640, 480), (1280, 720))[index])
        elif number == 74 and argument[4:8] == b"YUYV" and index == 0:
            struct.pack_into("7I", argument, 8, 3, 16, 1920, 8, 16, 1080, 8)
        elif number == 75 and argument[4:8] == b"MJPG" and index < 2:
            struct.pack_into("3I", argument, 16, 1, 1, (15, 30)[index])
        else:
            raise OSError(22, "Invalid argument")
        return 0


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    driver = Driver()
    monkeypatch.setattr("fcntl.ioctl", driver.ioctl)
    return driver


def test_a_camera_is_asked_for_itself_and_its_modes(driver: Driver, tmp_path: Path) -> None:
    (tmp_path / "video0").touch()
    told = v4l2.capability(tmp_path / "video0")
    assert (told.driver, told.card, told.captures, told.outputs) == ("uvcvideo", "Test", True, False)
    assert driver.asked[0][0] == 0x80685600  # VIDIOC_QUERYCAP
    assert v4l2.modes(tmp_path / "video0") == [
        Mode("MJPG", 640, 480, 30.0),
        Mode("MJPG", 1280, 720, 30.0),
        Mode("YUYV", 1920, 1080, 0.0),
    ]


@pytest.mark.parametrize(
    ("told", "ours", "asked"),
    [
        (Capability(LOOPBACK_DRIVER, "left", 0), False, True),
        (Capability(LOOPBACK_DRIVER, "left", 0), True, True),
        (Capability(LOOPBACK_DRIVER, "fed or read", CAPTURE), True, True),
        (Capability(LOOPBACK_DRIVER, "fed or read", CAPTURE), False, False),
        (Capability(LOOPBACK_DRIVER, "free", OUTPUT), True, False),
        (Capability(LOOPBACK_DRIVER, "exclusive_caps=0", CAPTURE | OUTPUT), True, False),
        (Capability("uvcvideo", "webcam", CAPTURE), True, False),
    ],
)
def test_only_a_device_that_was_left_is_asked_to_take_again(
    driver: Driver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: Capability, ours: bool, asked: bool
) -> None:
    (tmp_path / "video10").touch()
    monkeypatch.setattr(v4l2, "capability", lambda device: told)
    v4l2.take_again(tmp_path / "video10", ours)
    assert driver.asked == ([(STREAMON, struct.pack("i", 2))] if asked else [])


def test_a_device_that_is_gone_is_nobodys_trouble(tmp_path: Path) -> None:
    v4l2.take_again(tmp_path / "video10", ours=True)
