"""Video4Linux devices: what they are, what they deliver, and a virtual one made to take pictures a second time.

The few calls of `linux/videodev2.h` for that. Asking starts no stream, so a device that is in use can be asked as well.
"""

from __future__ import annotations

import logging
import os
import re
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger(__name__)

CAPTURE = 0x1
OUTPUT = 0x2
CAPTURE_PLANES = 0x1000
LOOPBACK_DRIVER = "v4l2 loopback"
LABEL = "Understudy"
NUMBER = 10
"""The first /dev/videoN that is proposed: high enough not to take the number of a webcam that is plugged in later."""

_DEVICE_CAPS = 0x8000_0000  # V4L2_CAP_DEVICE_CAPS: the device tells its own capabilities apart from its driver's
_BUFFER_CAPTURE, _BUFFER_OUTPUT = 1, 2  # V4L2_BUF_TYPE_VIDEO_...
_WRITE, _READ = 1, 2  # of `asm-generic/ioctl.h`, as the program sees it
_DISCRETE = 1
_MOST = 128  # of anything: a driver that never ends its list must not hang the doctor


@dataclass(frozen=True, slots=True)
class Capability:
    """What a device says of itself."""

    driver: str
    card: str
    caps: int

    @property
    def captures(self) -> bool:
        """Programs can take pictures from it."""
        return bool(self.caps & (CAPTURE | CAPTURE_PLANES))

    @property
    def outputs(self) -> bool:
        """Programs can put pictures into it."""
        return bool(self.caps & OUTPUT)

    @property
    def left(self) -> bool:
        """A v4l2loopback device that neither takes nor gives since a program left it: see `take_again`."""
        return self.loopback and not self.captures and not self.outputs

    @property
    def loopback(self) -> bool:
        return self.driver == LOOPBACK_DRIVER


@dataclass(frozen=True, slots=True)
class Mode:
    """One size a camera delivers; `fps` is the fastest rate at that size, 0 where the driver does not say."""

    fourcc: str
    width: int
    height: int
    fps: float


def _call(handle: int, number: int, argument: bytearray, direction: int = _WRITE | _READ) -> bool:
    """False where the driver says that there is no more, or that it does not know the question."""
    import fcntl

    request = (direction << 30) | (len(argument) << 16) | (ord("V") << 8) | number
    try:
        fcntl.ioctl(handle, request, argument)
    except OSError:
        return False
    return True


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("utf-8", "replace")


def capability(device: Path) -> Capability:
    """VIDIOC_QUERYCAP. Raises `OSError` where the device cannot be opened or is none."""
    if sys.platform == "win32":
        raise OSError("there is no Video4Linux on Windows")
    handle = os.open(device, os.O_RDWR | os.O_NONBLOCK)
    try:
        told = bytearray(104)
        if not _call(handle, 0, told, _READ):
            raise OSError(f"{device} is not a Video4Linux device")
    finally:
        os.close(handle)
    driver, card, _, _, whole, own = struct.unpack_from("16s32s32sIII", told)
    return Capability(_text(driver), _text(card), own if whole & _DEVICE_CAPS else whole)


def modes(device: Path) -> list[Mode]:
    """Every size it delivers. Raises `OSError` where the device cannot be opened."""
    if sys.platform == "win32":
        raise OSError("there is no Video4Linux on Windows")
    handle = os.open(device, os.O_RDWR | os.O_NONBLOCK)
    try:
        return [
            Mode(struct.pack("<I", fourcc).decode("ascii", "replace"), *size, _fastest(handle, fourcc, *size))
            for fourcc in _formats(handle)
            for size in _sizes(handle, fourcc)
        ]
    finally:
        os.close(handle)


def _formats(handle: int) -> Iterator[int]:
    for index in range(_MOST):  # v4l2_fmtdesc, VIDIOC_ENUM_FMT
        told = bytearray(64)
        struct.pack_into("II", told, 0, index, _BUFFER_CAPTURE)
        if not _call(handle, 2, told):
            return
        yield struct.unpack_from("I", told, 44)[0]


def _sizes(handle: int, fourcc: int) -> Iterator[tuple[int, int]]:
    for index in range(_MOST):  # v4l2_frmsizeenum, VIDIOC_ENUM_FRAMESIZES
        told = bytearray(44)
        struct.pack_into("II", told, 0, index, fourcc)
        if not _call(handle, 74, told):
            return
        kind, *numbers = struct.unpack_from("7I", told, 8)
        if kind != _DISCRETE:  # a range, told once: smallest, largest and step of the width, then of the height
            yield numbers[1], numbers[4]
            return
        yield numbers[0], numbers[1]


def _fastest(handle: int, fourcc: int, width: int, height: int) -> float:
    fastest = 0.0
    for index in range(_MOST):  # v4l2_frmivalenum, VIDIOC_ENUM_FRAMEINTERVALS
        told = bytearray(52)
        struct.pack_into("4I", told, 0, index, fourcc, width, height)
        if not _call(handle, 75, told):
            break
        kind, numerator, denominator = struct.unpack_from("3I", told, 16)
        if numerator:
            fastest = max(fastest, denominator / numerator)
        if kind != _DISCRETE:  # the first interval of a range is the shortest
            break
    return fastest


# --- v4l2loopback -------------------------------------------------------------------------------------------


def options(number: int = NUMBER) -> str:
    """The module's options: one device under our name, that browsers take for a camera."""
    return f"devices=1 video_nr={number} card_label={LABEL} exclusive_caps=1"


def modprobe(number: int = NUMBER) -> str:
    """What to type to load the module."""
    return f"sudo modprobe v4l2loopback {options(number)}"


def reload() -> str:
    """The same for a module that is loaded in another way."""
    return f"sudo modprobe -r v4l2loopback && {modprobe()}"


def video_devices() -> list[Path]:
    """Every `/dev/videoN`, by number."""
    found = [path for path in Path("/dev").glob("video*") if re.fullmatch(r"video\d+", path.name)]
    return sorted(found, key=lambda path: int(path.name.removeprefix("video")))


def take_again(device: Path, ours: bool = False) -> None:
    """Let a v4l2loopback device take pictures once more, after a program that fed it left; others stay as they are.

    With `exclusive_caps=1`, v4l2loopback (0.12.5 to 0.12.7 at least) knows a feeding program by its VIDIOC_STREAMON and
    makes room for the next when that one closes. pyvirtualcam only writes; when it closes, the device would take
    nothing more until the module is loaded anew. So somebody opens the device, says STREAMON, and closes it.

    `ours`: it was this process that fed the device. Otherwise one from which programs still read is left alone, for
    another program may be feeding it.
    """
    try:
        told = capability(device)
        if not told.loopback or told.outputs or (told.captures and not ours):
            return
        handle = os.open(device, os.O_RDWR | os.O_NONBLOCK)
    except OSError as error:
        log.debug("%s cannot be asked: %s", device, error)
        return
    try:
        # VIDIOC_STREAMON. Without a format it is refused, and the device has its feeding program all the same.
        _call(handle, 18, bytearray(struct.pack("i", _BUFFER_OUTPUT)), _WRITE)
    finally:
        os.close(handle)
