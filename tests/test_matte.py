import cv2
import numpy as np
import pytest

from training.matte import Matter, refine


@pytest.fixture(scope="module")
def matter():
    with Matter() as one:
        yield one


def test_the_face_is_person_and_the_upper_corners_are_not(matter, face_photo):
    matte = matter.matte(face_photo)
    assert matte.shape == (256, 256)
    assert matte.dtype == np.uint8
    assert matte[100:180, 90:170].min() > 250
    assert matte[:20, :15].max() < 20
    assert matte[:20, -15:].max() < 20


def test_size_and_order_of_pictures_do_not_matter(matter, face_photo, turned_photo):
    first = matter.matte(face_photo)
    matter.matte(turned_photo)
    assert np.array_equal(matter.matte(face_photo), first), "nothing is carried over"
    large = np.asarray(cv2.resize(face_photo, (1200, 1200), interpolation=cv2.INTER_CUBIC), np.uint8)
    small_again = cv2.resize(matter.matte(large), (256, 256), interpolation=cv2.INTER_AREA)
    assert np.abs(small_again.astype(int) - first).mean() < 6
    assert matter.matte(large[:801, :603]).shape == (801, 603)


def test_refining_moves_a_coarse_edge_to_the_pictures_edge():
    rgb = np.zeros((128, 128, 3), np.uint8)
    rgb[:, 66:] = 200
    coarse = np.zeros((128, 128), np.float32)
    coarse[:, 64:] = 1
    coarse = np.asarray(cv2.GaussianBlur(coarse, (0, 0), 2), np.float32)
    refined = refine(rgb, coarse)
    assert refined[:, :60].max() < 0.02
    assert refined[:, 70:].min() > 0.98
