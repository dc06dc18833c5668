import io
import struct
import sys
import zlib
from collections.abc import Iterator
from dataclasses import replace

import cv2
import numpy as np
import pytest
from PIL import Image as Pillow
from PIL import ImageCms

from engine.frames import Face, Frame, Image
from engine.tracker import Tracker
from training import photos as photos_module
from training.photos import (
    CheckedPhoto,
    Look,
    PhotoError,
    advice,
    check,
    compare,
    crop,
    gather,
    load_photo,
    open_all,
    pick_frames,
)


@pytest.fixture(scope="module")
def tracker() -> Iterator[Tracker]:
    with Tracker(video=False) as one:
        yield one


class Told:
    """A tracker that sees the faces it was told of."""

    def __init__(self, *faces: Face) -> None:
        self.faces = list(faces)

    def track_all(self, rgb: Image, time_s: float = 0.0) -> list[Face]:
        return self.faces


def quadrants(height: int = 120, width: int = 160) -> Image:
    """Red, green / blue, white: shows every turn and swap."""
    rgb = np.zeros((height, width, 3), np.uint8)
    rgb[: height // 2, : width // 2] = 200, 30, 30
    rgb[: height // 2, width // 2 :] = 30, 200, 30
    rgb[height // 2 :, : width // 2] = 30, 30, 200
    rgb[height // 2 :, width // 2 :] = 230, 230, 230
    return rgb


def is_quadrants(rgb: Image, tolerance: int = 14) -> bool:
    want = quadrants(*rgb.shape[:2]).astype(int)
    spots = [(y, x) for y in (0.2, 0.8) for x in (0.2, 0.8)]
    return all(
        np.abs(
            rgb[int(y * rgb.shape[0]), int(x * rgb.shape[1])] - want[int(y * len(want)), int(x * want.shape[1])]
        ).max()
        <= tolerance
        for y, x in spots
    )


def noise(height: int = 256, width: int = 256) -> Image:
    """Something sharp and evenly lit, for faces that are only told of."""
    return np.random.default_rng(0).integers(90, 190, (height, width, 3), np.uint8)


# --- reading ------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp", "tif", "gif", "avif"])
def test_formats(tmp_path, suffix):
    Pillow.fromarray(quadrants()).save(tmp_path / f"a.{suffix}")
    rgb = load_photo(tmp_path / f"a.{suffix}")
    assert rgb.shape == (120, 160, 3)
    assert rgb.dtype == np.uint8
    assert is_quadrants(rgb, tolerance=30 if suffix == "gif" else 14)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "CMYK", "I;16", "I", "F"])
def test_every_kind_of_picture_becomes_rgb(tmp_path, mode):
    gray = np.full((80, 100), 180, np.uint8)
    if mode in {"I;16", "I", "F"}:
        deep = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
        picture = Pillow.fromarray((gray * (1 / 255 if mode == "F" else 257.0)).astype(deep))
    else:
        picture = Pillow.fromarray(np.dstack([gray] * 3)).convert(mode)
    suffix = "tif" if mode in {"CMYK", "F", "I"} else "png"
    picture.save(tmp_path / f"a.{suffix}")
    rgb = load_photo(tmp_path / f"a.{suffix}")
    assert rgb.shape == (80, 100, 3)
    if mode != "1":
        assert abs(float(rgb.mean()) - 180) < 4


def test_transparency_is_laid_on_white(tmp_path):
    rgba = np.zeros((80, 80, 4), np.uint8)
    rgba[:40] = 10, 20, 30, 255
    Pillow.fromarray(rgba).save(tmp_path / "a.png")
    rgb = load_photo(tmp_path / "a.png")
    assert tuple(rgb[0, 0]) == (10, 20, 30)
    assert tuple(rgb[-1, -1]) == (255, 255, 255)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(tmp_path, orientation):
    stored = {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: lambda a: np.rot90(np.fliplr(a), 1),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: np.rot90(np.fliplr(a), -1),
        8: lambda a: np.rot90(a, -1),
    }[orientation](quadrants())
    exif = Pillow.Exif()
    exif[0x0112] = orientation
    Pillow.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "a.jpg", exif=exif, quality=95)
    rgb = load_photo(tmp_path / "a.jpg")
    assert rgb.shape == (120, 160, 3)
    assert is_quadrants(rgb)


def test_embedded_profile_is_honoured(tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = profile.replace(b"rXYZ", b"????", 1).replace(b"gXYZ", b"rXYZ", 1).replace(b"????", b"gXYZ", 1)
    Pillow.fromarray(quadrants()).save(tmp_path / "swapped.png", icc_profile=swapped)
    assert np.abs(load_photo(tmp_path / "swapped.png")[20, 20].astype(int) - (30, 200, 30)).max() < 12
    Pillow.fromarray(quadrants()).save(tmp_path / "broken.png", icc_profile=b"not a profile")
    assert is_quadrants(load_photo(tmp_path / "broken.png"))


def png_that_claims(width: int, height: int) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"0")) + chunk(b"IEND", b"")


def jpeg() -> bytes:
    file = io.BytesIO()
    Pillow.fromarray(noise()).save(file, "JPEG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        pytest.param("none.jpg", None, "there is no file", id="missing"),
        pytest.param("a.jpg", b"", r"is empty \(0 bytes\)", id="empty"),
        pytest.param("a.jpg", b"just a letter, no photo\n" * 9, "is not a picture", id="text"),
        pytest.param("a.jpg", jpeg()[:3000], "damaged or cut off", id="truncated"),
        pytest.param("a.jpg", jpeg()[:12], "is not a picture|damaged or cut off", id="header only"),
        pytest.param("a.png", png_that_claims(20_000, 20_000), "more pixels than can safely", id="20000 px"),
        pytest.param("a.png", png_that_claims(10_000, 10_000), "more pixels than can safely", id="10000 px"),
        pytest.param("a.png", png_that_claims(16, 16), "is only 16 x 16 pixels", id="16 px"),
        pytest.param("a.png", png_that_claims(0, 100), "not a picture|damaged|is only", id="no width"),
        pytest.param("a.mp4", b"\0\0\0\x18ftypmp42" + bytes(100), "is not a picture", id="video"),
    ],
)
def test_bad_file_is_one_sentence(tmp_path, name, content, sentence):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(PhotoError, match=sentence) as caught:
        load_photo(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_folder_is_no_photo(tmp_path):
    with pytest.raises(PhotoError, match="is a folder"):
        load_photo(tmp_path)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_large_picture_is_decoded_small(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(photos_module, "MAX_SIDE_PX", 400)
    Pillow.fromarray(quadrants(600, 1000)).save(tmp_path / f"a.{suffix}")
    rgb = load_photo(tmp_path / f"a.{suffix}")
    assert rgb.shape == (240, 400, 3)
    assert is_quadrants(rgb)


def test_heic_without_its_reader_tells_what_to_do(tmp_path, monkeypatch):
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200))
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(PhotoError, match="export it as JPEG"):
        load_photo(tmp_path / "a.heic")


def test_heic_with_its_reader(tmp_path):
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    Pillow.fromarray(quadrants()).save(tmp_path / "a.heic", quality=95)
    assert is_quadrants(load_photo(tmp_path / "a.heic"))


# --- gathering ----------------------------------------------------------------------------------


def test_gather_sorts_by_number_and_skips_the_rest(tmp_path):
    for name in ("photo10.jpg", "photo2.JPG", "clip.mp4", "notes.txt", ".hidden.jpg", "Thumbs.db"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "deeper").mkdir()
    (tmp_path / "deeper" / "inner.jpg").write_bytes(b"x")
    found = gather([tmp_path / "photo10.jpg", tmp_path])
    assert [path.name for path in found] == ["photo10.jpg", "clip.mp4", "photo2.JPG"]
    assert gather([tmp_path / "notes.txt"]) == [tmp_path / "notes.txt"], "named outright: reading will tell"


def test_gather_refuses_nothing_with_a_sentence(tmp_path):
    with pytest.raises(PhotoError, match="no pictures in"):
        gather([tmp_path])
    with pytest.raises(PhotoError, match="there is no file"):
        gather([tmp_path / "none.jpg"])
    with pytest.raises(PhotoError, match="no photos were given"):
        gather([])


def test_open_all_goes_on_after_a_bad_file(tmp_path, face_photo, tracker):
    Pillow.fromarray(face_photo).save(tmp_path / "good.png")
    (tmp_path / "bad.jpg").write_text("a letter")
    (tmp_path / "clip.mp4").write_bytes(b"")
    photos = list(open_all(gather([tmp_path]), tracker))
    assert [(photo.name, photo.verdict) for photo in photos] == [
        ("bad.jpg", "refused"),
        ("clip.mp4", "refused"),
        ("good.png", "accepted"),
    ]
    assert "is not a picture" in photos[0].reasons[0]


def test_video_gives_frames_that_differ(tmp_path, face_photo, speaking_photo, tracker):
    still = [face_photo, speaking_photo]
    blurred = np.asarray(cv2.GaussianBlur(face_photo, (0, 0), 5), np.uint8)
    frames = [Frame(blurred if n < 10 else still[n >= 30], n / 20) for n in range(60)]
    (tmp_path / "a.mov").write_bytes(b"x")
    photos = list(open_all([tmp_path / "a.mov"], tracker, lambda path: frames, frames_per_clip=2))
    assert len(photos) == 2
    mouths = sorted(photo.look.mouth for photo in photos if photo.look)
    assert mouths[1] - mouths[0] > 0.1
    assert all(photo.name.startswith("a.mov at ") for photo in photos)
    nobody = [Frame(noise(), n / 4) for n in range(4)]
    (none,) = open_all([tmp_path / "a.mov"], tracker, lambda path: nobody)
    assert (none.verdict, "shows no face" in none.reasons[0]) == ("refused", True)


def test_video_is_sampled_every_quarter_second(make_face):
    frames = [Frame(noise(), n / 60) for n in range(120)]
    assert len(pick_frames(frames, Told(make_face(scale=9)), "clip", count=50)) == 8


# --- checking -----------------------------------------------------------------------------------


def test_good_photos_pass(face_photo, speaking_photo, turned_photo, tracker):
    for rgb in (face_photo, speaking_photo, turned_photo):
        photo = check(rgb, tracker)
        assert photo.verdict == "accepted", photo.reasons
        assert photo.face is not None


def test_no_face(tracker):
    photo = check(noise(), tracker)
    assert photo.verdict == "refused"
    assert "no face was found" in photo.reasons[0]


def test_several_faces(face_photo, turned_photo, tracker, make_face):
    both = np.hstack([face_photo, turned_photo])
    photo = check(both, tracker)
    assert photo.verdict == "refused"
    assert "2 faces are in the picture" in photo.reasons[0]
    passer_by = check(noise(), Told(make_face(scale=9), make_face(scale=2, center_px=(20, 20))))
    assert passer_by.verdict == "warned"
    assert "in the background" in passer_by.reasons[0]


@pytest.mark.parametrize(
    ("pose", "sentence"),
    [
        ({"yaw_deg": 50}, "turned 50 degrees aside"),
        ({"yaw_deg": -60}, "turned 60 degrees aside"),
        ({"pitch_deg": 35}, "looks 35 degrees up"),
        ({"pitch_deg": -35}, "looks 35 degrees down"),
        ({"roll_deg": 90}, "turn it upright"),
        ({"roll_deg": -178}, "turn it upright"),
        ({"scale": 3}, "pixels high, at least 90 are needed"),
        ({"center_px": (240, 128)}, "outside the picture"),
    ],
)
def test_refused_by_pose_and_size(make_face, pose, sentence):
    photo = check(noise(), Told(make_face(**{"scale": 9, **pose})))
    assert photo.verdict == "refused"
    assert sentence in photo.reasons[0]


@pytest.mark.parametrize(
    ("pose", "sentence"),
    [
        ({"yaw_deg": 40}, "turned far aside"),
        ({"pitch_deg": -25}, "looks far down"),
        ({"roll_deg": 35}, "tilted by 35 degrees"),
        ({"scale": 6}, "pixels high; from"),
    ],
)
def test_warned_by_pose_and_size(make_face, pose, sentence):
    photo = check(noise(), Told(make_face(**{"scale": 9, **pose})))
    assert photo.verdict == "warned"
    assert any(sentence in reason for reason in photo.reasons)


def blurred(rgb: Image, sigma: float) -> Image:
    return np.asarray(cv2.GaussianBlur(rgb, (0, 0), sigma), np.uint8)


def test_blur_is_refused_whatever_the_size(face_photo, tracker):
    larger = np.asarray(cv2.resize(blurred(face_photo, 3), (1024, 1024), interpolation=cv2.INTER_CUBIC), np.uint8)
    for rgb in (blurred(face_photo, 3), larger):
        photo = check(rgb, tracker)
        assert photo.verdict == "refused"
        assert "blurred" in photo.reasons[0]
    assert check(blurred(face_photo, 1.3), tracker).verdict == "warned"


def test_blur_is_judged_apart_from_contrast(face_photo, tracker):
    flat = (face_photo * 0.5 + 70).astype(np.uint8)
    photo = check(flat, tracker)
    assert not any("blur" in reason or "soft" in reason for reason in photo.reasons)


def test_light(face_photo, tracker):
    dark = (face_photo * 0.22).astype(np.uint8)
    dim = (face_photo * 0.42).astype(np.uint8)
    bright = np.clip(face_photo.astype(int) * 3 + 40, 0, 255).astype(np.uint8)
    face = tracker.track_all(face_photo)[0]
    assert "too dark" in check(dark, Told(face)).reasons[0]
    assert any("rather dark" in reason for reason in check(dim, Told(face)).reasons)
    assert "overexposed" in " ".join(check(bright, Told(face)).reasons)
    ramp = np.linspace(1.3, 0.25, 256)[None, :, None]
    one_sided = np.clip(face_photo * ramp, 0, 255).astype(np.uint8)
    assert any("from one side" in reason for reason in check(one_sided, Told(face)).reasons)


def test_dark_glasses(face_photo, tracker):
    face = tracker.track_all(face_photo)[0]
    shaded = face_photo.copy()
    for x, y in face.points[[468, 473], :2]:
        cv2.circle(shaded, (int(x), int(y)), 20, (25, 25, 30), -1)
    assert any("dark glasses" in reason for reason in check(shaded, Told(face)).reasons)


def test_mask_over_the_mouth(face_photo, tracker):
    face = tracker.track_all(face_photo)[0]
    for color in ((90, 150, 210), (235, 235, 240), (25, 25, 28)):
        masked = face_photo.copy()
        outline = face.points[[197, 116, 132, 172, 150, 152, 379, 397, 361, 345], :2].astype(np.int32)
        cv2.fillPoly(masked, [outline], color)
        photo = check(masked, Told(face))
        assert any("mouth seems covered" in reason for reason in photo.reasons), color
    assert not any("covered" in reason for reason in check(face_photo, tracker).reasons)


def test_black_and_white_is_pointed_out(face_photo, tracker):
    gray = np.repeat(cv2.cvtColor(face_photo, cv2.COLOR_RGB2GRAY)[..., None], 3, 2)
    photo = check(gray, tracker)
    assert photo.verdict == "warned"
    assert photo.reasons[0] == "it is black and white, and so the avatar will be"
    assert check(face_photo, tracker).verdict == "accepted"


# --- the group ----------------------------------------------------------------------------------


def looked(name: str, face: Face | None = None, **changes: object) -> CheckedPhoto:
    """A photo with nothing to complain of, but for what is said."""
    look = Look(
        face_px=250,
        yaw_deg=0,
        pitch_deg=0,
        roll_deg=0,
        sharpness=0.12,
        light=190,
        burnt=0,
        side_light=0,
        eye_light=0.7,
        lids=0.28,
        mouth=0.02,
        smile=0.58,
        teeth=0,
        lip_red=12,
        chin_chroma=3,
        chroma=25,
    )
    look = replace(look, **changes)
    return CheckedPhoto(name, "accepted", rgb=noise(), face=face, look=look, blink=look.lids < 0.125)


def test_a_blink_is_welcome_beside_open_eyes_and_refused_alone(make_face):
    face = make_face()
    shut, opened = looked("shut", face, lids=0.05), looked("open", face)
    assert [photo.verdict for photo in compare([shut, opened])] == ["accepted", "accepted"]
    alone = compare([shut, opened.refused("blurred")])
    assert "the eyes are shut" in alone[0].reasons[0]
    assert alone[0].verdict == "refused"


class Names:
    """An embedder that tells people apart by the brightness of their photo."""

    def embed(self, rgb: Image, points: np.ndarray) -> np.ndarray:
        angle = float(rgb.mean()) / 255 * np.pi / 2
        return np.array([np.cos(angle), np.sin(angle)], np.float32)


def test_a_stranger_is_refused_and_a_doubtful_one_warned(make_face):
    face = make_face()
    tones = {"one": 10, "two": 12, "three": 14, "stranger": 250, "doubtful": 180}
    photos = [replace(looked(name, face), rgb=np.full((64, 64, 3), tone, np.uint8)) for name, tone in tones.items()]
    verdicts = {photo.name: photo for photo in compare(photos, Names())}
    assert "same person as" in verdicts["stranger"].reasons[0]
    assert [verdicts[name].verdict for name in tones] == [
        "accepted",
        "accepted",
        "accepted",
        "refused",
        "accepted" if np.cos((180 - 12) / 255 * np.pi / 2) > 0.38 else "warned",
    ]
    assert compare(photos[:1], Names())[0].verdict == "accepted", "one photo is like itself"


def test_a_mouth_unlike_the_others_is_pointed_out(make_face):
    face = make_face()
    photos = [looked(str(index), face, lip_red=red) for index, red in enumerate((12, 9, 15, 1))]
    judged = compare(photos)
    assert [photo.verdict for photo in judged] == ["accepted"] * 3 + ["warned"]
    assert "may be covered" in judged[3].reasons[0]


def test_black_and_white_is_refused_beside_colour(make_face):
    face = make_face()
    gray = [looked(name, face, chroma=0.5).warned("it is black and white") for name in ("one", "two")]
    assert [photo.verdict for photo in compare(gray)] == ["warned", "warned"], "all of them may be"
    judged = compare([*gray, looked("three", face)])
    assert [photo.verdict for photo in judged] == ["refused", "refused", "accepted"]
    assert judged[0].reasons == ("it is black and white, and other photos of yours are not",)
    assert compare([gray[0], looked("three", face).refused("blurred")])[0].verdict == "warned", "no colour is left"


def test_advice_names_what_is_missing_and_stops_when_nothing_is(make_face):
    face = make_face()
    assert advice([]) == ["one from the front, eyes open, mouth relaxed, facing a window"]
    neutral = looked("neutral", face)
    wishes = advice([neutral])
    assert "teeth" in wishes[0]
    assert any("to the left, and one to the right" in wish for wish in wishes)
    turned = looked("turned", face, yaw_deg=20)
    assert any("nose pointing to the left" in wish for wish in advice([neutral, turned]))
    full = [
        neutral,
        turned,
        looked("other side", face, yaw_deg=-18, pitch_deg=9),
        looked("smile", face, teeth=0.4, mouth=0.15, smile=0.7),
        looked("aah", face, mouth=0.5),
        looked("blink", face, lids=0.05),
    ]
    assert advice(full) == []
    assert advice([photo.refused("blurred") for photo in full]) == advice([])


# --- cropping -----------------------------------------------------------------------------------


def test_a_head_picture_is_kept_whole_and_aligned(face_photo, tracker):
    face = tracker.track_all(face_photo)[0]
    same = crop(face_photo, face, 256)
    assert np.array_equal(same.rgb, face_photo)
    assert np.allclose(same.points, face.points)
    assert np.allclose(same.transform, [[1, 0, 0], [0, 1, 0]])
    assert same.detail == 1
    doubled = crop(face_photo, face, 512)
    assert doubled.rgb.shape == (512, 512, 3)
    assert doubled.detail == 0.5


def test_a_face_in_a_scene_comes_to_the_middle_at_half_height(make_face):
    face = make_face(center_px=(700, 500), scale=16, size_px=(1400, 1000), roll_deg=15)
    head = crop(noise(1000, 1400), face, 512)
    middle = (head.points[10, :2] + head.points[152, :2]) / 2
    height = np.linalg.norm(head.points[10] - head.points[152])
    assert middle == pytest.approx((256, 0.51 * 512), abs=1)
    assert height / 512 == pytest.approx(0.48, abs=0.01)
    level = head.points[263, :2] - head.points[33, :2]
    assert np.degrees(np.arctan2(level[1], level[0])) == pytest.approx(15, abs=1), "roll is kept"


@pytest.mark.parametrize("scale", [5, 9, 16, 40])
def test_crop_pixels_lie_where_the_transform_says(make_face, scale):
    size_px = (2000, 1600)
    face = make_face(center_px=(1003.3, 801.7), scale=scale, size_px=size_px)
    photo = np.zeros((size_px[1], size_px[0], 3), np.uint8)
    dots = np.rint(face.points[[4, 33, 263, 152], :2]).astype(int)
    for x, y in dots:
        cv2.circle(photo, (int(x), int(y)), scale // 2 + 2, (255, 255, 255), -1)
    head = crop(photo, face, 512)
    for x, y in dots:
        u, v = head.transform @ (x, y, 1)
        window = head.rgb[round(v) - 14 : round(v) + 15, round(u) - 14 : round(u) + 15, 0].astype(float)
        rows, columns = np.mgrid[round(v) - 14 : round(v) + 15, round(u) - 14 : round(u) + 15]
        found = np.array([(columns * window).sum(), (rows * window).sum()]) / window.sum()
        assert found == pytest.approx((u, v), abs=0.35)


def test_a_small_face_is_enlarged_and_says_so(make_face):
    face = make_face(scale=5, center_px=(200, 200), size_px=(400, 400))
    head = crop(noise(400, 400), face, 512)
    assert head.detail == pytest.approx(1 / head.transform[0, 0])
    assert head.detail < 0.5


@pytest.mark.parametrize("size_px", [(300, 300), (300, 400), (500, 300)])
def test_a_tight_selfie_is_never_left(make_face, size_px):
    """Every pixel of the crop was photographed: its corners lie inside the photo."""
    face = make_face(scale=16, center_px=(size_px[0] / 2, size_px[1] / 2 - 20), size_px=size_px)
    head = crop(noise(size_px[1], size_px[0]), face, 256)
    inverse = np.linalg.inv(np.vstack([head.transform, [0, 0, 1]]))
    for corner in ((-0.5, -0.5), (255.5, 255.5)):
        x, y, _ = inverse @ (*corner, 1)
        assert -0.5 - 1e-3 <= x <= size_px[0] - 0.5 + 1e-3
        assert -0.5 - 1e-3 <= y <= size_px[1] - 0.5 + 1e-3


@pytest.mark.parametrize("center_px", [(-20, 10), (310, 300), (150, -40)])
def test_crop_at_the_very_edge_is_still_a_picture(make_face, center_px):
    head = crop(noise(300, 300), make_face(center_px=center_px, scale=9, size_px=(300, 300)), 256)
    assert head.rgb.shape == (256, 256, 3)
    assert np.isfinite(head.points).all()


def test_a_plain_photo_is_read_bit_for_bit(tmp_path, face_photo):
    Pillow.fromarray(face_photo).save(tmp_path / "a.png")
    assert np.array_equal(load_photo(tmp_path / "a.png"), face_photo)
