import cv2
import numpy as np
import pytest

from engine.compositor import Compositor, Plate, clean_plate, cover, foreground, parse_color, to_i420

SIZE_PX = 128


def disc_matte(size_px: int = SIZE_PX, radius_share: float = 0.25) -> np.ndarray:
    """A soft-edged disc, the stand-in for a person."""
    y, x = np.mgrid[:size_px, :size_px] - size_px / 2
    return np.clip(128 + (radius_share * size_px - np.hypot(x, y)) * 64, 0, 255).astype(np.uint8)


def slope(size_px: int = SIZE_PX) -> np.ndarray:
    """A background that is easy to continue: brighter to the right, bluer downwards."""
    ramp = np.linspace(60, 180, size_px).astype(np.uint8)
    scene = np.full((size_px, size_px, 3), 100, np.uint8)
    scene[..., 0], scene[..., 2] = ramp[None], ramp[:, None]
    return scene


def test_blend_is_exact_within_one_level():
    noise = np.random.default_rng(0)
    rgb = noise.integers(0, 256, (SIZE_PX, SIZE_PX, 3), np.uint8)
    plate = noise.integers(0, 256, (SIZE_PX, SIZE_PX, 3), np.uint8)
    matte = noise.integers(0, 256, (SIZE_PX, SIZE_PX), np.uint8)
    matte[:20], matte[-20:] = 0, 255
    picture = Compositor("photo", SIZE_PX, plate=Plate(plate, np.full(plate.shape[:2], 255, np.uint8))).compose(
        rgb, matte
    )
    alpha = matte[..., None] / 255
    assert np.abs(picture - (rgb * alpha + plate * (1 - alpha))).max() <= 1.0
    assert np.array_equal(picture[:20], plate[:20]), "the background stands still"
    assert np.array_equal(picture[-20:], rgb[-20:])


def test_calls_do_not_share_their_pictures_unless_told_to():
    compositor = Compositor("color", SIZE_PX, color="#102030")
    rgb, matte = slope(), disc_matte()
    first = compositor.compose(rgb, matte)
    kept = first.copy()
    compositor.compose(255 - rgb, matte)
    assert np.array_equal(first, kept)
    assert compositor.compose(rgb, matte, out=first) is first


def test_backgrounds(tmp_path):
    empty = np.zeros((SIZE_PX, SIZE_PX), np.uint8)
    rgb = slope()
    color = Compositor("color", SIZE_PX, color="#336699").compose(rgb, empty)
    assert (color == (0x33, 0x66, 0x99)).all()
    checks = np.kron(np.indices((16, 16)).sum(0) % 2 * 255, np.ones((8, 8))).astype(np.uint8)
    plate = np.dstack([checks] * 3)
    blurred = Compositor("blur", SIZE_PX, plate=Plate(plate, np.full(plate.shape[:2], 255, np.uint8))).compose(
        rgb, empty
    )
    assert blurred[16:-16, 16:-16].std() < 0.3 * plate.std()
    assert abs(float(blurred.mean()) - float(plate.mean())) < 4
    wide = np.zeros((40, 120, 3), np.uint8)
    wide[:, 40:80] = 0, 0, 255  # blue in the middle, as OpenCV reads it: red
    cv2.imwrite(str(tmp_path / "wide.png"), wide)
    image = Compositor("image", SIZE_PX, image=tmp_path / "wide.png").compose(rgb, empty)
    assert image.shape == (SIZE_PX, SIZE_PX, 3)
    assert (image[:, 4:-4] == (255, 0, 0)).all()


def test_tight_edge_draws_the_matte_in():
    rgb = np.full((SIZE_PX, SIZE_PX, 3), 255, np.uint8)
    faint = np.full((SIZE_PX, SIZE_PX), 30, np.uint8)
    assert Compositor("color", SIZE_PX, color="#000").compose(rgb, faint).max() == 30
    assert Compositor("color", SIZE_PX, color="#000", edge="tight").compose(rgb, faint).max() == 0


def test_bad_backgrounds_are_one_sentence(tmp_path):
    (tmp_path / "text.jpg").write_text("no picture")
    (tmp_path / "empty.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match="one of photo, blur, color, image, green, got 'sea'"):
        Compositor("sea", SIZE_PX)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="needs the avatar's own plate"):
        Compositor("photo", SIZE_PX)
    with pytest.raises(ValueError, match="needs a picture file"):
        Compositor("image", SIZE_PX)
    with pytest.raises(ValueError, match="there is no picture"):
        Compositor("image", SIZE_PX, image=tmp_path / "none.jpg")
    for name in ("text.jpg", "empty.jpg"):
        with pytest.raises(ValueError, match="is not a picture"):
            Compositor("image", SIZE_PX, image=tmp_path / name)
    for color in ("blue", "#12345", "#gggggg"):
        with pytest.raises(ValueError, match="#rrggbb"):
            parse_color(color)
    with pytest.raises(ValueError, match=r"got \(64, 64, 3\)"):
        Compositor("color", SIZE_PX).compose(slope(64), disc_matte())


def test_plate_continues_the_scene_behind_the_person():
    scene, matte = slope(), disc_matte()
    photo = np.where(matte[..., None] > 0, np.uint8(255), scene)
    plate = clean_plate(photo, matte).picture
    assert np.abs(plate.astype(int) - scene).max() < 16
    assert np.array_equal(plate[:16], scene[:16]), "what was visible is kept"


def test_plate_takes_what_another_photo_shows():
    scene = slope()
    scene[56:72, 56:72] = 250, 10, 10  # hidden in the first photo only
    matte, elsewhere = disc_matte(), np.roll(disc_matte(radius_share=0.1), 45, axis=1)
    photos = [np.where(mask[..., None] > 0, np.uint8(255), scene) for mask in (matte, elsewhere)]
    darker = (photos[1] * 0.9).astype(np.uint8)
    alone = clean_plate(photos[0], matte).picture
    together = clean_plate([photos[0], darker], [matte, elsewhere]).picture
    centre = (slice(60, 68), slice(60, 68))
    assert np.abs(alone[centre].astype(int) - scene[centre]).max() > 60
    assert np.abs(together[centre].astype(int) - scene[centre]).max() < 12


def test_plate_ignores_photos_of_other_places():
    matte = disc_matte()
    noise = np.random.default_rng(0).integers(0, 256, (SIZE_PX, SIZE_PX, 3), np.uint8)
    smaller = slope(64)
    alone = clean_plate(slope(), matte).picture
    together = clean_plate([slope(), noise, smaller], [matte, disc_matte(radius_share=0.1), disc_matte(64)]).picture
    assert np.array_equal(alone, together)


def test_plate_of_a_person_who_fills_the_picture_is_still_a_picture():
    plate = clean_plate(slope(), np.full((SIZE_PX, SIZE_PX), 255, np.uint8)).picture
    assert plate.shape == (SIZE_PX, SIZE_PX, 3)
    with pytest.raises(ValueError, match="do not belong together"):
        clean_plate(slope(), disc_matte(64))


def test_foreground_loses_the_old_background():
    matte = np.asarray(cv2.GaussianBlur(disc_matte(), (0, 0), 3), np.uint8)
    alpha = matte[..., None] / 255
    mixed = np.rint(np.array([200, 80, 60]) * alpha + np.array([0, 255, 0]) * (1 - alpha)).astype(np.uint8)
    rim = (matte > 60) & (matte < 200)
    before = np.abs(mixed[rim].astype(int) - (200, 80, 60)).mean()
    after = np.abs(foreground(mixed, matte)[rim].astype(int) - (200, 80, 60)).mean()
    assert after < 0.5 * before


def test_cover_crops_the_middle():
    assert cover(slope(64), (128, 128)).shape == (128, 128, 3)
    tall = np.zeros((300, 100, 3), np.uint8)
    tall[100:200] = 255
    assert (cover(tall, (50, 50)) == 255).all()


def test_i420_planes():
    rgb = np.full((SIZE_PX, SIZE_PX, 3), (255, 0, 0), np.uint8)
    planes = to_i420(rgb)
    assert planes.shape == (SIZE_PX * 3 // 2, SIZE_PX)
    luma, chroma_blue = planes[0, 0], planes[SIZE_PX, 0]
    assert (int(luma), int(chroma_blue)) == pytest.approx((81, 90), abs=2)  # BT.601's red
    with pytest.raises(ValueError, match="even sides"):
        to_i420(rgb[:-1])
