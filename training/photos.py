"""Photos in, checked and cropped photos out: the first step of enrolment, the one that talks back."""

from __future__ import annotations

import re
import struct
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import ImageCms, ImageOps

from engine.frames import Face, Frame, Image, Points
from engine.tracker import euler_deg

# fmt: off
PHOTO_SUFFIXES = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif",
                  ".heic", ".heif", ".jp2", ".ppm"}
VIDEO_SUFFIXES = {".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".3gp"}
# fmt: on

MAX_SIDE_PX = 4096  # larger photos are shrunk to this: a face that fills one is still 8 times what is used
_MAX_PIXELS = 179_000_000  # beyond this Pillow itself takes a file for an attack
_MAX_PIXELS_IN_FULL = 90_000_000  # formats that cannot be decoded small (all but JPEG) must stay below
_MIN_SIDE_PX = 64

# Limits, and how they were found. "Sharp set": 350 pictures of 50 invented people and 218 frames of webcam
# and broadcast clips, of which 1 to 2 % are truly bad.
MIN_FACE_PX = 90  # forehead to chin; below, a crop would need more than 2.8-fold enlargement
GOOD_FACE_PX = 140  # from 245 on, a crop of 512 loses nothing at all
BLURRED = 0.015  # sharp set: least 0.031; all faces blurred by 1/64 of their height fall below
SOFT = 0.032  # sharp set: 1 % lie below; half of those blurred by 1/128 of their height too
TOO_DARK, DARK = 60, 100  # 95th percentile of the face's luma, so that dark skin in good light passes
BURNT_OUT, BRIGHT = 0.6, 0.25  # share of the face with a channel at its end
ONE_SIDED = 2.2  # factors of two between the cheeks, in linear light; 2 % of the sharp set reach it
DARK_EYES = 0.4  # of 250 invented faces only three in dark glasses and one in hard shadow lie below
MAX_YAW_DEG, FAR_YAW_DEG = 45.0, 35.0
MAX_PITCH_DEG, FAR_PITCH_DEG = 30.0, 23.0
MAX_ROLL_DEG, FAR_ROLL_DEG = 60.0, 30.0  # beyond, it is the photo that lies on its side
SHUT = 0.125  # lid gap over eye width; open eyes have about 0.28, a squinting laugh 0.10 to 0.18
SHOWS_TEETH = 0.12
COVERED_CHROMA, COVERED_LIPS = 12.0, 3.0  # CIELAB: chin unlike brow, and lips unlike lips
GRAY = 2.0  # CIELAB chroma that 95 % of a face stay below; of 149 clips the palest has 3.1, 144 have more than 11
OTHER_PERSON, DOUBTFUL_PERSON = (
    0.33,
    0.42,
)  # SFace cosine; 0.3 % of strangers and 98 % of own photos pass 0.33
_OTHER_FACE_SHARE = 0.4  # of the largest face's height: smaller ones are passers-by

Verdict = Literal["accepted", "warned", "refused"]


class PhotoError(ValueError):
    """A file that cannot be used as a photo; the message is one sentence for its owner."""


class FaceFinder(Protocol):
    """What is needed of `engine.tracker.Tracker(video=False)`."""

    def track_all(self, rgb: Image, time_s: float = 0.0) -> list[Face]: ...


class Embedder(Protocol):
    """What is needed of `training.identity.SFace`."""

    def embed(self, rgb: Image, points: Points) -> NDArray[np.float32]: ...


# --- reading ------------------------------------------------------------------------------------------------


def load_photo(path: str | Path) -> Image:
    """The picture as a viewer would show it: `[H, W, 3]` uint8 sRGB, at most `MAX_SIDE_PX` a side.

    Turned as its EXIF says, colours brought to sRGB by the embedded profile, transparency laid on white,
    the first picture of several. Raises `PhotoError` with one sentence.
    """
    path = Path(path)
    if not path.exists():
        raise PhotoError(f"there is no file {path}")
    if path.is_dir():
        raise PhotoError(f"{path} is a folder, not a photo")
    if path.stat().st_size == 0:
        raise PhotoError(f"{path} is empty (0 bytes)")
    _allow_heif(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of large or untidy files; both are judged here
            with Pillow.open(path) as picture:
                _check_size(path, picture)
                if max(picture.size) > MAX_SIDE_PX:
                    picture.draft("RGB", (MAX_SIDE_PX, MAX_SIDE_PX))  # JPEG only: decoded at 1/2, 1/4 or 1/8
                picture.load()
                rgb = _to_srgb(ImageOps.exif_transpose(picture))
    except PhotoError:
        raise
    except Pillow.UnidentifiedImageError as error:
        raise PhotoError(f"{path} is not a picture that can be read") from error
    except Pillow.DecompressionBombError as error:
        raise PhotoError(_too_many_pixels(path)) from error
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, struct.error) as error:
        raise PhotoError(f"{path} is damaged or cut off and cannot be read to its end") from error
    if max(rgb.size) > MAX_SIDE_PX:
        rgb.thumbnail((MAX_SIDE_PX, MAX_SIDE_PX), Pillow.Resampling.LANCZOS)
    return np.array(rgb, np.uint8)


def gather(paths: Sequence[str | Path]) -> list[Path]:
    """The photos and videos meant by files and folders, in the order given; each once.

    A folder gives what it holds directly, by name (2 before 10), and hides nothing but dot files. A file
    named outright is kept whatever its suffix: reading it will tell. Raises `PhotoError`.
    """
    found: dict[Path, Path] = {}
    for entry in map(Path, paths):
        if entry.is_dir():
            known = PHOTO_SUFFIXES | VIDEO_SUFFIXES
            inside = [
                one
                for one in entry.iterdir()
                if one.is_file() and one.suffix.lower() in known and not one.name.startswith(".")
            ]
            if not inside:
                raise PhotoError(f"no pictures in {entry}")
            for one in sorted(inside, key=_by_number):
                found.setdefault(one.resolve(), one)
        elif entry.exists():
            found.setdefault(entry.resolve(), entry)
        else:
            raise PhotoError(f"there is no file {entry}")
    if not found:
        raise PhotoError("no photos were given")
    return list(found.values())


def is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_SUFFIXES


def open_all(
    paths: Iterable[Path],
    tracker: FaceFinder,
    open_clip: Callable[[Path], Iterable[Frame]] | None = None,
    frames_per_clip: int = 12,
) -> Iterator[CheckedPhoto]:
    """Each photo checked, and the best frames of each video; a file that cannot be read comes out refused.

    `open_clip` turns a video's path into frames (`plugin.webcam.Clip`); without it videos are refused.
    """
    for path in paths:
        try:
            if not is_video(path):
                yield check(load_photo(path), tracker, path.name)
            elif open_clip is None:
                raise PhotoError(f"{path} is a video; give photos")
            else:
                chosen = pick_frames(open_clip(path), tracker, path.name, frames_per_clip)
                if not chosen:
                    raise PhotoError(f"{path} shows no face well enough to use")
                yield from chosen
        except ValueError as error:
            yield CheckedPhoto(name=path.name, verdict="refused", reasons=(str(error),))


def pick_frames(
    frames: Iterable[Frame], tracker: FaceFinder, name: str, count: int = 12, every_s: float = 0.25
) -> list[CheckedPhoto]:
    """Up to `count` usable frames that differ most in pose and expression, in order of time."""
    kept: list[tuple[float, CheckedPhoto]] = []
    due_s = -np.inf
    for frame in frames:
        if frame.time_s < due_s:
            continue
        due_s = frame.time_s + every_s
        rgb = frame.rgb
        if max(rgb.shape) > 1920:
            scale = 1920 / max(rgb.shape)
            rgb = np.asarray(cv2.resize(rgb, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), np.uint8)
        photo = check(rgb, tracker, f"{name} at {frame.time_s:.2f} s")
        if photo.look is None or photo.verdict == "refused":
            continue
        kept.append((frame.time_s, photo))
        if len(kept) > 3 * count:  # bounds the memory of a long video
            del kept[_most_redundant([one for _, one in kept])]
    # A hand before the mouth differs from everything else, and would be picked for that.
    judged = compare([photo for _, photo in kept])
    clear = [pair for pair, after in zip(kept, judged, strict=True) if after is pair[1]]
    kept = clear or kept
    while len(kept) > count:
        del kept[_most_redundant([one for _, one in kept])]
    return [photo for _, photo in kept]


# --- checking -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Look:
    """What was measured on a face. Angles as `engine.tracker.euler_deg`."""

    face_px: float
    """Forehead to chin (points 10 and 152), in space, so that a bowed head counts in full."""
    yaw_deg: float
    pitch_deg: float
    roll_deg: float
    sharpness: float
    """Energy of the finest detail over that of the features, whatever contrast and size: 0.06 to 0.25."""
    light: float
    """95th percentile of the face's luma, 0..255."""
    burnt: float
    """Share of the face with a channel of 250 or more."""
    side_light: float
    """Factors of two by which the cheek on the right of the picture outshines the other, in linear light."""
    eye_light: float
    """Luma of the brighter eye socket over that of the cheek below; 0.73 as a rule."""
    lids: float
    """Gap between the lids over the width of the eye, mean of both; about 0.28 open, below `SHUT` shut."""
    mouth: float
    """Gap between the lips over the width of the mouth."""
    smile: float
    """Width of the mouth over that between the outer eye corners: 0.58 at rest, above 0.66 in a smile."""
    teeth: float
    """Share of the opened mouth that is bright and colourless, 0 when it is shut."""
    lip_red: float
    """CIELAB a* of the lips minus that of the skin around them."""
    chin_chroma: float
    """CIELAB chroma distance between the skin around the mouth and that between the eyes."""
    chroma: float
    """95th percentile of the face's CIELAB chroma: below `GRAY` the photo is black and white."""


@dataclass(frozen=True, slots=True, eq=False)
class CheckedPhoto:
    """A photo and what was found. `rgb`, `face` and `look` are `None` where there was nothing to look at."""

    name: str
    verdict: Verdict
    reasons: tuple[str, ...] = ()
    """Sentences for the person, without the name; those of a refused photo start with what was decisive."""
    rgb: Image | None = None
    face: Face | None = None
    look: Look | None = None
    blink: bool = False
    """The eyes are shut: worth having once, of no use alone."""

    def refused(self, reason: str) -> CheckedPhoto:
        return replace(self, verdict="refused", reasons=(reason, *self.reasons))

    def warned(self, reason: str) -> CheckedPhoto:
        verdict: Verdict = "refused" if self.verdict == "refused" else "warned"
        return replace(self, verdict=verdict, reasons=(*self.reasons, reason))


def check(rgb: Image, tracker: FaceFinder, name: str = "photo") -> CheckedPhoto:
    """One photo on its own; `compare` then judges the group."""
    height, width = rgb.shape[:2]
    photo = CheckedPhoto(name=name, verdict="accepted", rgb=rgb)
    faces = tracker.track_all(rgb)
    if not faces:
        return photo.refused("no face was found: look towards the camera, with the whole face in the picture")
    faces = sorted(faces, key=lambda one: -_face_px(one.points))
    face = faces[0]
    look = measure(rgb, face)
    photo = replace(photo, face=face, look=look, blink=look.lids < SHUT)
    others = [one for one in faces[1:] if _face_px(one.points) > _OTHER_FACE_SHARE * look.face_px]
    refusals: list[str] = []
    cautions: list[str] = []
    if others:
        refusals.append(f"{len(others) + 1} faces are in the picture: crop it so that only yours is")
    elif len(faces) > 1:
        cautions.append("somebody else is in the background; the largest face was taken")
    if look.face_px < MIN_FACE_PX:
        refusals.append(
            f"the face is only {look.face_px:.0f} pixels high, at least {MIN_FACE_PX} are needed: "
            "come closer or send the original file"
        )
    elif look.face_px < GOOD_FACE_PX:
        cautions.append(f"the face is {look.face_px:.0f} pixels high; from {GOOD_FACE_PX} on it gets sharper")
    low, high = face.points[:468, :2].min(axis=0), face.points[:468, :2].max(axis=0)
    over = max(-low[0], -low[1], high[0] - width, high[1] - height) / look.face_px
    if over > 0.08:
        refusals.append("part of the face lies outside the picture")
    elif face.points[10, 1] < 0.1 * look.face_px:
        cautions.append("the top of the head is cut off")
    if abs(look.yaw_deg) > MAX_YAW_DEG:
        refusals.append(f"the head is turned {abs(look.yaw_deg):.0f} degrees aside, more than {MAX_YAW_DEG:.0f}")
    elif abs(look.yaw_deg) > FAR_YAW_DEG:
        cautions.append(f"the head is turned far aside ({abs(look.yaw_deg):.0f} degrees)")
    if abs(look.pitch_deg) > MAX_PITCH_DEG:
        way = "up" if look.pitch_deg > 0 else "down"
        refusals.append(f"the head looks {abs(look.pitch_deg):.0f} degrees {way}, more than {MAX_PITCH_DEG:.0f}")
    elif abs(look.pitch_deg) > FAR_PITCH_DEG:
        cautions.append(f"the head looks far {'up' if look.pitch_deg > 0 else 'down'}")
    if abs(look.roll_deg) > MAX_ROLL_DEG:
        refusals.append("the photo lies on its side, or upside down: turn it upright")
    elif abs(look.roll_deg) > FAR_ROLL_DEG:
        cautions.append(f"the head is tilted by {abs(look.roll_deg):.0f} degrees")
    if look.light < TOO_DARK:
        refusals.append("the face is too dark: turn towards a window or a lamp")
    elif look.light < DARK:
        cautions.append("the face is rather dark")
    if look.burnt > BURNT_OUT:
        refusals.append("the face is overexposed: avoid flash and direct sun")
    elif look.burnt > BRIGHT:
        cautions.append("parts of the face are overexposed")
    if look.sharpness < BLURRED:
        refusals.append("the face is blurred: hold still, wipe the lens, or tap the face to focus")
    elif look.sharpness < SOFT:
        cautions.append("the face is a little soft")
    if abs(look.side_light) > ONE_SIDED and abs(look.yaw_deg) < 20:
        cautions.append("the light comes strongly from one side; facing a window is better")
    if look.eye_light < DARK_EYES:
        cautions.append("dark glasses or a deep shadow hide the eyes")
    if look.chin_chroma > COVERED_CHROMA and look.lip_red < COVERED_LIPS:
        cautions.append("the mouth seems covered (a mask, a scarf, a hand?)")
    if look.chroma < GRAY:
        cautions.append("it is black and white, and so the avatar will be")
    for reason in reversed(refusals):
        photo = photo.refused(reason)
    for caution in cautions:
        photo = photo.warned(caution)
    return photo


def compare(photos: Sequence[CheckedPhoto], embedder: Embedder | None = None) -> list[CheckedPhoto]:
    """The same photos after what only the group tells: another person, no colour, a covered mouth, eyes always shut."""
    judged = list(photos)
    if embedder is not None:
        judged = _without_strangers(judged, embedder)
    gray = [photo for photo in _usable(judged) if photo.look and photo.look.chroma < GRAY]
    if len(gray) < len(_usable(judged)):  # the two would be pieced together in one face
        for photo in gray:
            refused = replace(photo, reasons=()).refused("it is black and white, and other photos of yours are not")
            judged[judged.index(photo)] = refused
    usable = _usable(judged)
    if len(usable) >= 3:
        usual = float(np.median([photo.look.lip_red for photo in usable if photo.look]))
        for index, photo in enumerate(judged):
            if photo in usable and photo.look and usual > 4 and photo.look.lip_red < 0.4 * usual:
                judged[index] = photo.warned("the mouth may be covered: its colour is unlike your other photos")
    if not any(not photo.blink for photo in usable):
        for index, photo in enumerate(judged):
            if photo.blink and photo.verdict != "refused":
                judged[index] = photo.refused("the eyes are shut, and no other photo shows them open")
    return judged


def advice(photos: Iterable[CheckedPhoto]) -> list[str]:
    """Which photos would help most to add, the most helpful first; empty when nothing is missing."""
    looks = [photo.look for photo in _usable(photos) if photo.look]
    if not looks:
        return ["one from the front, eyes open, mouth relaxed, facing a window"]
    yaws = np.array([look.yaw_deg for look in looks])
    pitches = np.array([look.pitch_deg for look in looks])
    wishes: list[str] = []
    if not any(abs(look.yaw_deg) < 12 and look.lids > 1.5 * SHUT and look.mouth < 0.08 for look in looks):
        wishes.append("one from the front, eyes open, lips together")
    if not any(look.teeth > SHOWS_TEETH for look in looks):
        wishes.append("one with a smile that shows the teeth")
    wide_left, wide_right = yaws.min() < -10, yaws.max() > 10
    if not wide_left and not wide_right:
        wishes.append("one with the head turned a little to the left, and one to the right")
    elif not (wide_left and wide_right):
        side = "left" if wide_right else "right"
        wishes.append(f"one with the nose pointing to the {side} of the picture: so far none is turned that way")
    if not any(look.mouth > 0.3 for look in looks):
        wishes.append("one with the mouth wide open, as in 'aah'")
    if not any(look.lids < SHUT for look in looks):
        wishes.append("one with the eyes shut")
    # A camera above or below the eyes shifts all pitches alike, so their spread counts, not their sign.
    if pitches.max() - pitches.min() < 8:
        wishes.append("one looking slightly up or down")
    if all(look.face_px < GOOD_FACE_PX for look in looks):
        wishes.append("one from closer by: no face is large enough for full detail")
    return wishes


def _usable(photos: Iterable[CheckedPhoto]) -> list[CheckedPhoto]:
    return [photo for photo in photos if photo.verdict != "refused" and photo.face is not None]


def _without_strangers(photos: list[CheckedPhoto], embedder: Embedder) -> list[CheckedPhoto]:
    """Refuses who is unlike the medoid: the photo that is most like all the others."""
    places = [index for index, photo in enumerate(photos) if photo in _usable(photos)]
    if len(places) < 2:
        return photos
    vectors = []
    for index in places:
        rgb, face = photos[index].rgb, photos[index].face
        assert rgb is not None
        assert face is not None
        vectors.append(embedder.embed(rgb, face.points))
    likeness = np.stack(vectors) @ np.stack(vectors).T
    medoid = int(likeness.sum(axis=1).argmax())
    judged = list(photos)
    for row, index in enumerate(places):
        cosine = float(likeness[medoid, row])
        like = f"{photos[places[medoid]].name} (likeness {cosine:.2f})"
        if cosine < OTHER_PERSON:
            judged[index] = photos[index].refused(f"this does not look like the same person as {like}")
        elif cosine < DOUBTFUL_PERSON:
            judged[index] = photos[index].warned(f"this is not much like {like}")
    return judged


def _most_redundant(photos: Sequence[CheckedPhoto]) -> int:
    """Of the two most alike, the less sharp one."""
    features = np.array([_features(photo.look) for photo in photos if photo.look])
    apart = np.linalg.norm(features[:, None] - features[None], axis=-1)
    np.fill_diagonal(apart, np.inf)
    one, other = np.unravel_index(int(apart.argmin()), apart.shape)
    sharp = [photo.look.sharpness - 0.02 * len(photo.reasons) for photo in photos if photo.look]
    return int(one if sharp[one] < sharp[other] else other)


def _features(look: Look) -> tuple[float, ...]:
    """Pose and expression on scales on which a difference of 1 is plain to see."""
    return (
        look.yaw_deg / 12,
        look.pitch_deg / 10,
        look.roll_deg / 20,
        look.mouth / 0.15,
        look.smile / 0.08,
        min(look.lids, 0.3) / 0.12,
    )


# --- measuring ----------------------------------------------------------------------------------------------

# fmt: off
_OVAL = (10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377, 152, 148,
         176, 149, 150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109)
_LIPS = (61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291, 409, 270, 269, 267, 0, 37, 39, 40, 185)
_MOUTH = (78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308, 415, 310, 311, 312, 13, 82, 81, 80, 191)
_BETWEEN_EYES = (151, 108, 107, 55, 193, 122, 196, 197, 419, 351, 417, 285, 336, 337)
_EYE_SOCKETS = ((226, 113, 225, 224, 223, 222, 221, 189, 244, 233, 232, 231, 230, 229, 228, 31),
                (446, 342, 445, 444, 443, 442, 441, 413, 464, 453, 452, 451, 450, 449, 448, 261))
_CHEEKS = (50, 280)
_AROUND_MOUTH = (207, 214, 210, 211, 32, 208, 199, 428, 262, 431, 430, 434, 427, 164)
# fmt: on
_MEASURED_PX = 256  # height to which larger faces are shrunk first: finer detail than this is never used


def measure(rgb: Image, face: Face) -> Look:
    """All the numbers of `Look`, from the part of the picture around the face."""
    points = face.points
    yaw_deg, pitch_deg, roll_deg = euler_deg(face.rotation)
    face_px = _face_px(points)
    part, marks, height = _face_part(rgb, points)
    gray = np.asarray(cv2.cvtColor(part, cv2.COLOR_RGB2GRAY), np.float32)
    skin = _filled(gray.shape, cv2.convexHull(marks[list(_OVAL)]))
    if not skin.any():
        skin[:] = True
    lab = np.asarray(cv2.cvtColor(part.astype(np.float32) / 255, cv2.COLOR_RGB2LAB))
    lips, mouth = marks[list(_LIPS)], marks[list(_MOUTH)]
    middle = lips.mean(axis=0)
    on_lips = _filled(gray.shape, lips) & ~_filled(gray.shape, mouth)
    near_lips = _filled(gray.shape, (lips - middle) * 1.5 + middle)
    beside_lips = near_lips & ~_filled(gray.shape, (lips - middle) * 1.2 + middle)
    chin = _filled(gray.shape, cv2.convexHull(marks[list(_AROUND_MOUTH)])) & ~near_lips
    brow = _filled(gray.shape, cv2.convexHull(marks[list(_BETWEEN_EYES)]))
    inside = _filled(gray.shape, mouth)
    gap = _apart(points, 13, 14) / _apart(points, 61, 291)
    white = (lab[..., 0] > 0.75 * np.percentile(lab[..., 0][skin], 75)) & (lab[..., 1] < 18)
    chroma = _median(lab, chin)[1:] - _median(lab, brow)[1:]
    return Look(
        face_px=face_px,
        yaw_deg=yaw_deg,
        pitch_deg=pitch_deg,
        roll_deg=roll_deg,
        sharpness=_sharpness(gray, skin, height),
        light=float(np.percentile(gray[skin], 95)),
        burnt=float((part[skin].max(axis=-1) >= 250).mean()),
        side_light=_side_light(gray, marks, height),
        eye_light=_eye_light(gray, marks, height),
        lids=(_apart(points, 159, 145) / _apart(points, 33, 133) + _apart(points, 386, 374) / _apart(points, 263, 362))
        / 2,
        mouth=gap,
        smile=_apart(points, 61, 291) / _apart(points, 33, 263),
        teeth=float(white[inside].mean()) if gap > 0.05 and inside.sum() > 8 else 0.0,
        lip_red=float((_median(lab, on_lips) - _median(lab, beside_lips))[1]),
        chin_chroma=float(np.hypot(*chroma)),
        chroma=float(np.percentile(np.hypot(lab[..., 1], lab[..., 2])[skin], 95)),
    )


def _apart(points: Points, one: int, other: int) -> float:
    return max(1e-3, float(np.linalg.norm(points[one] - points[other])))


def _face_px(points: Points) -> float:
    return _apart(points, 10, 152)


def _face_part(rgb: Image, points: Points) -> tuple[Image, NDArray[np.float32], float]:
    """The face's bounding box, at most `_MEASURED_PX` high; its marks `[478, 2]` and face height there."""
    height, width = rgb.shape[:2]
    low, high = points[:468, :2].min(axis=0), points[:468, :2].max(axis=0)
    left, top = (int(np.clip(low[axis], 0, limit - 2)) for axis, limit in ((0, width), (1, height)))
    right = int(np.clip(high[0] + 1, left + 2, width))
    bottom = int(np.clip(high[1] + 1, top + 2, height))
    part = rgb[top:bottom, left:right]
    marks = points[:, :2] - np.array([left, top], np.float32)
    face_px = _face_px(points)
    scale = _MEASURED_PX / face_px
    if scale < 1:
        part = cv2.resize(part, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        marks, face_px = marks * scale, face_px * scale
    return np.ascontiguousarray(part, np.uint8), marks.astype(np.float32), face_px


def _filled(shape: tuple[int, ...], outline: Any) -> NDArray[np.bool_]:
    mask = np.zeros(shape[:2], np.uint8)
    cv2.fillPoly(mask, [np.rint(np.asarray(outline, np.float32)).astype(np.int32)], [1])
    return mask.astype(bool)


def _median(lab: NDArray[Any], where: NDArray[np.bool_]) -> NDArray[np.float64]:
    return np.median(lab[where], axis=0) if where.sum() > 5 else np.zeros(3)


def _sharpness(gray: NDArray[np.float32], skin: NDArray[np.bool_], height: float) -> float:
    """Variance of the Laplacian over the variance of the features, both inside the face.

    The Laplacian is taken after a light blur against sensor noise. The features are what remains after
    light and shade are removed, so that contrast, exposure and size of the face cancel.
    """
    inner = cv2.erode(skin.astype(np.uint8), np.ones((5, 5), np.uint8), iterations=2).astype(bool)
    inner = inner if inner.any() else skin
    finest = cv2.Laplacian(cv2.GaussianBlur(gray, (0, 0), 0.7), cv2.CV_32F)
    features = gray - cv2.GaussianBlur(gray, (0, 0), max(1.0, height / 16))
    return float(finest[inner].var() / max(4.0, float(features[inner].var())))


def _cheek_patches(gray: NDArray[np.float32], marks: NDArray[np.float32], height: float) -> list[NDArray[np.float32]]:
    """A small square of each cheek, the one on the left of the picture first; empty where out of sight."""
    reach = max(2, round(height * 0.05))
    patches = []
    for cheek in _CHEEKS:
        x, y = (int(value) for value in marks[cheek])
        patches.append(gray[max(0, y - reach) : max(0, y + reach), max(0, x - reach) : max(0, x + reach)])
    return patches


def _side_light(gray: NDArray[np.float32], marks: NDArray[np.float32], height: float) -> float:
    left, right = _cheek_patches((gray / 255) ** 2.2, marks, height)
    if not left.size or not right.size:
        return 0.0
    return float(np.log2((right.mean() + 1e-3) / (left.mean() + 1e-3)))


def _eye_light(gray: NDArray[np.float32], marks: NDArray[np.float32], height: float) -> float:
    shares = []
    for socket, cheek in zip(_EYE_SOCKETS, _cheek_patches(gray, marks, height), strict=True):
        around = gray[_filled(gray.shape, marks[list(socket)])]
        if around.size and cheek.size:
            shares.append(float(np.median(around)) / max(1.0, float(np.median(cheek))))
    return max(shares, default=1.0)


# --- cropping -----------------------------------------------------------------------------------------------

HEAD_SHARE = 0.48  # face height over the side of the picture
KEPT_SHARE = 0.33  # a square picture whose face is at least that large is kept whole
HEAD_CENTRE = (0.5, 0.51)  # where the middle between forehead and chin comes to lie
_SQUARE_ENOUGH = 0.03


@dataclass(frozen=True, slots=True, eq=False)
class HeadCrop:
    """A square around a head."""

    rgb: Image
    """`[size, size, 3]`."""
    points: Points
    """The face's points in pixels of the crop."""
    transform: NDArray[np.float32]
    """`[2, 3]`: pixels of the photo to pixels of the crop; a scale and a shift, never a turn."""
    detail: float
    """Pixels of the photo per pixel of the crop, at most 1; below, it shows less than its size promises."""


def is_head_crop(face_px: float, size_px: tuple[int, int]) -> bool:
    """Whether a picture (width, height) with a face so high shows little more than the head, and is to stay whole."""
    squarish = abs(size_px[0] - size_px[1]) <= _SQUARE_ENOUGH * max(size_px)
    return squarish and face_px / min(size_px) >= KEPT_SHARE


def crop(rgb: Image, face: Face, size_px: int = 512) -> HeadCrop:
    """The standard head picture: upright as taken, face about half its height, hair and shoulders in.

    A square picture with a head in it is only resized, so that clips cut this way stay aligned to the pixel. The
    square never leaves the photo: where a tight selfie has no room to give, the head comes out larger. Pixels that
    nobody photographed would move with the hair and the shoulders, and look it.
    """
    height, width = rgb.shape[:2]
    face_px = _face_px(face.points)
    room = min(height, width)
    if is_head_crop(face_px, (width, height)):
        side: float = room
        left, top = (width - side) / 2, (height - side) / 2
    else:
        side = min(face_px / HEAD_SHARE, room)
        middle = (face.points[10, :2] + face.points[152, :2]) / 2
        left = float(np.clip(middle[0] - HEAD_CENTRE[0] * side, 0, width - side))
        top = float(np.clip(middle[1] - HEAD_CENTRE[1] * side, 0, height - side))
    scale = size_px / side
    # Pixel centres: the photo's (left - 0.5) falls on the crop's -0.5.
    transform = np.array([[scale, 0, (0.5 - left) * scale - 0.5], [0, scale, (0.5 - top) * scale - 0.5]], np.float32)
    picture = _cut(rgb, left, top, side, size_px)
    # Landmarks count from the picture's edge (x = 0), not from the middle of its first pixel.
    points = (face.points - np.array([left, top, 0], np.float32)) * np.float32(scale)
    return HeadCrop(picture, points.astype(np.float32), transform, detail=float(min(1.0, 1 / scale)))


def _cut(rgb: Image, left: float, top: float, side: float, size_px: int) -> Image:
    height, width = rgb.shape[:2]
    if (left, top) == (0, 0) and side == height == width:
        if side == size_px:
            return rgb.copy()
        way = cv2.INTER_AREA if side > size_px else cv2.INTER_CUBIC
        return np.asarray(cv2.resize(rgb, (size_px, size_px), interpolation=way), np.uint8)
    # The part of the photo that is needed, in whole pixels.
    x0, y0 = max(0, int(np.floor(left)) - 2), max(0, int(np.floor(top)) - 2)
    part = rgb[y0 : int(np.ceil(top + side)) + 2, x0 : int(np.ceil(left + side)) + 2]
    scale = size_px / side
    fold = max(1, int(1 / scale))  # averaged by whole pixels first, or fine detail would alias
    if fold > 1:
        folded = (part.shape[1] // fold, part.shape[0] // fold)
        part = cv2.resize(part[: folded[1] * fold, : folded[0] * fold], folded, interpolation=cv2.INTER_AREA)
    # Edges, not centres, correspond: (crop + 0.5) = ((part + 0.5) * fold + x0 - left) * scale.
    step = scale * fold
    matrix = np.array([[step, 0, (x0 - left) * scale + step / 2 - 0.5], [0, step, (y0 - top) * scale + step / 2 - 0.5]])
    way = cv2.INTER_CUBIC if step > 1 else cv2.INTER_LINEAR
    picture = cv2.warpAffine(part, matrix, (size_px, size_px), flags=way, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(picture, np.uint8)


# --- odds and ends of reading -------------------------------------------------------------------------------


def _allow_heif(path: Path) -> None:
    """Teaches Pillow HEIC when the plug-in is installed, and says what to do when it is not but needed."""
    with path.open("rb") as file:
        start = file.read(32)
    brands = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
    if start[4:8] != b"ftyp" or start[8:12] not in brands or b"avif" in start:
        return
    try:
        import pillow_heif
    except ImportError as error:
        raise PhotoError(
            f"{path} is a HEIC photo: `pip install pillow-heif`, or export it as JPEG "
            "(iPhone: Settings, Camera, Formats, Most Compatible)"
        ) from error
    pillow_heif.register_heif_opener()


def _check_size(path: Path, picture: Pillow.Image) -> None:
    width, height = picture.size
    if min(width, height) < _MIN_SIDE_PX:
        raise PhotoError(f"{path} is only {width} x {height} pixels; a photo needs at least {_MIN_SIDE_PX} a side")
    decodes_small = picture.format in {"JPEG", "MPO"}
    if width * height > (_MAX_PIXELS if decodes_small else _MAX_PIXELS_IN_FULL):
        raise PhotoError(_too_many_pixels(path))


def _too_many_pixels(path: Path) -> str:
    return f"{path} has more pixels than can safely be opened: save a copy of at most 8000 x 8000"


def _to_srgb(picture: Pillow.Image) -> Pillow.Image:
    """RGB in sRGB, whatever the picture's own kind."""
    profile = picture.info.get("icc_profile")
    if picture.mode.startswith("I") or picture.mode == "F":
        return _from_deep(picture)
    if picture.mode in {"RGBA", "LA", "PA", "RGBa", "La"} or "transparency" in picture.info:
        clear = picture.convert("RGBA")
        white = Pillow.new("RGBA", clear.size, (255, 255, 255, 255))
        picture = Pillow.alpha_composite(white, clear).convert("RGB")
    elif picture.mode in {"P", "1", "YCbCr", "HSV"}:
        picture = picture.convert("RGB")
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(BytesIO(profile))
            converted = ImageCms.profileToProfile(picture, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
            if converted is not None:
                return converted
        except (ImageCms.PyCMSError, OSError, ValueError):
            pass  # a broken profile, or one for another kind of picture: the plain numbers guess better
    return picture.convert("RGB")


def _from_deep(picture: Pillow.Image) -> Pillow.Image:
    """16-bit, 32-bit and float grey to 8 bits: by their nominal range, or by their own without one."""
    values = np.asarray(picture).astype(np.float32)
    finite = np.nan_to_num(values)
    if picture.mode.startswith("I;16") or (picture.mode == "I" and 255 < finite.max() <= 65535):
        top = 65535.0
    elif picture.mode == "F" and finite.min() >= 0 and finite.max() <= 1:
        top = 1.0
    else:
        top = max(255.0, float(finite.max()))
    gray = np.clip(finite * (255 / top) + 0.5, 0, 255).astype(np.uint8)
    return Pillow.fromarray(gray).convert("RGB")


def _by_number(path: Path) -> list[tuple[int, int | str]]:
    """Sorts photo2 before photo10."""
    parts = re.split(r"(\d+)", path.name.lower())
    return [(0, int(part)) if part.isdigit() else (1, part) for part in parts if part]
