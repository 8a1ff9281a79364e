import cv2
import numpy as np
import pytest

from latentsync.faces.paste import soft_mask
from latentsync.faces.resample import resize_lanczos, warp_rgb


def _picture(height, width, seed=0):
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return cv2.GaussianBlur(noise, (0, 0), 0.7)


@pytest.mark.parametrize(("height", "width", "side"), [(280, 210, 256), (100, 75, 64), (60, 40, 90), (33, 70, 20)])
def test_resize_lanczos_is_that_of_opencv(height, width, side):
    image = _picture(height, width)
    expected = cv2.resize(image, (side, side), interpolation=cv2.INTER_LANCZOS4)
    difference = np.abs(resize_lanczos(image, (side, side)).astype(int) - expected)
    assert difference.max() <= 1  # rounding
    assert (difference > 0).mean() < 0.01


def test_warp_rgb_is_warp_affine():
    image = _picture(80, 120)
    matrix = np.array([[1.3, 0.2, -20.0], [-0.2, 1.3, 11.0]])
    for pixels, tolerance in ((image, 1), (image.astype(np.float32), 1e-3)):
        expected = cv2.warpAffine(pixels, matrix, (150, 100), flags=cv2.INTER_LINEAR, borderValue=(127,) * 3)
        warped = warp_rgb(pixels, matrix, (150, 100), value=127)
        assert warped.dtype == expected.dtype
        np.testing.assert_allclose(warped.astype(np.float32), expected.astype(np.float32), atol=tolerance)


@pytest.mark.parametrize("angle", [0.0, 4.0, 40.0])
def test_soft_mask_far_inside_equals_that_of_a_complete_blur(angle, monkeypatch):
    to_box = cv2.getRotationMatrix2D((105, 140), angle, 1.5)
    to_box[:, 2] += (100, 110)
    size, box_size, part = (210, 280), (420, 520), (60, 150, 290, 190)
    quick = soft_mask(to_box, size, box_size, part)
    monkeypatch.setattr(np, "flatnonzero", lambda values: np.zeros(0, int))  # no column is skipped
    np.testing.assert_allclose(quick, soft_mask(to_box, size, box_size, part), atol=1e-5)
