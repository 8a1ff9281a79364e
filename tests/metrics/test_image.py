"""Image similarity and sharpness: known identities, and scikit-image on whole images."""

import math

import cv2
import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from latentsync.faces.mask import mouth_slices
from latentsync.metrics.image import crop_box, detail_ratio, laplacian_ratio, mean_difference, psnr, ssim


def flat(level: int, side: int = 16) -> np.ndarray:
    return np.full((1, side, side, 3), level, np.uint8)


@pytest.fixture
def images() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    first = rng.integers(0, 256, (2, 24, 30, 3))
    return first.astype(np.uint8), (first + rng.normal(0, 25, first.shape)).clip(0, 255).astype(np.uint8)


def test_equal_images_are_alike(images):
    first, _ = images
    assert np.isinf(psnr(first, first)).all()
    np.testing.assert_allclose(ssim(first, first), 1)


def test_psnr_of_a_known_error():
    """An error of a tenth of the range: 20 dB."""
    assert psnr(flat(100), flat(151))[0] == pytest.approx(10 * math.log10(25), abs=1e-9)


def test_whole_images_agree_with_scikit_image(images):
    first, second = images
    for index in range(2):
        one, other = first[index] / 255, second[index] / 255  # the [0, 1] range of the published definition
        expected = structural_similarity(
            one, other, data_range=1, channel_axis=-1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        assert ssim(first, second)[index] == pytest.approx(expected, abs=1e-6)
        assert psnr(first, second)[index] == pytest.approx(peak_signal_noise_ratio(one, other, data_range=1), abs=1e-6)


def test_psnr_in_a_box_ignores_the_rest(images):
    first, second = images
    spoilt = second.copy()
    spoilt[:, 12:] = 255
    box = (slice(5, 9), slice(3, 20))
    np.testing.assert_allclose(psnr(first, spoilt, box), psnr(first, second, box))
    np.testing.assert_allclose(psnr(first, second, box), psnr(first[:, 5:9, 3:20], second[:, 5:9, 3:20]))


def test_ssim_of_flat_images_is_the_luminance_term():
    """Without structure (2 a b + C1) / (a^2 + b^2 + C1) remains, C1 = (0.01 * 255)^2: brightness counts from black."""
    value = ssim(flat(124), flat(132))[0]
    c1 = 2.55**2
    assert value == pytest.approx((2 * 124 * 132 + c1) / (124**2 + 132**2 + c1), abs=1e-6)
    assert value > 0.997  # two mid-gray images eight levels apart are nearly the same


def test_ssim_of_one_window_by_its_definition(images):
    """An image as large as the window has one index, computed here with weighted sums."""
    one, other = (image[:1, :11, :11, :1].astype(float) for image in images)
    offsets = np.exp(-np.square(np.arange(-5, 6)) / (2 * 1.5**2))
    weights = np.outer(offsets, offsets)[None, :, :, None] / offsets.sum() ** 2
    mean1, mean2 = (one * weights).sum(), (other * weights).sum()
    variance1, variance2 = ((one - mean1) ** 2 * weights).sum(), ((other - mean2) ** 2 * weights).sum()
    covariance = ((one - mean1) * (other - mean2) * weights).sum()
    c1, c2 = 2.55**2, 7.65**2
    expected = (2 * mean1 * mean2 + c1) * (2 * covariance + c2)
    expected /= (mean1**2 + mean2**2 + c1) * (variance1 + variance2 + c2)
    gray = [np.repeat(image[:1, :11, :11, :1], 3, axis=3) for image in images]
    assert ssim(*gray)[0] == pytest.approx(expected, abs=1e-9)


def test_ssim_of_a_negative_is_negative(images):
    first, _ = images
    assert (ssim(first, 255 - first) < 0).all()


def test_ssim_is_symmetric_and_falls_with_noise(images):
    first, second = images
    np.testing.assert_allclose(ssim(first, second), ssim(second, first))
    assert (ssim(first, second) < 0.99).all()


def test_ssim_in_a_box_is_that_of_its_windows(images):
    first, second = images
    around = (slice(None), slice(5, 16), slice(7, 18))
    one_pixel = (slice(10, 11), slice(12, 13))
    np.testing.assert_allclose(ssim(first, second, one_pixel), ssim(first[around], second[around]))


def test_invalid_input_is_refused(images):
    first, second = images
    with pytest.raises(ValueError, match="of equal shape"):
        psnr(first, second[:1])
    with pytest.raises(ValueError, match="expected two uint8 arrays"):
        psnr(first / 255, second / 255)
    with pytest.raises(ValueError, match="empty"):
        psnr(first, second, (slice(3, 3), slice(None)))
    with pytest.raises(ValueError, match="smaller than the window"):
        ssim(first[:, :10], second[:, :10])


def test_sharpness_of_equal_and_blurred_images(images):
    first, _ = images
    blurred = np.stack([cv2.GaussianBlur(image, (0, 0), 1) for image in first])
    for ratio in (detail_ratio, laplacian_ratio):
        np.testing.assert_allclose(ratio(first, first), 1)
        assert (ratio(blurred, first) < 0.5).all() and (ratio(first, blurred) > 2).all()
        assert np.isnan(ratio(first[:1, :16, :16], flat(90))).all()


def test_sharpness_is_proportional_to_contrast_and_keeps_to_the_box():
    rng = np.random.default_rng(1)
    noise = rng.integers(-60, 61, (1, 32, 32, 1)).repeat(3, axis=3)
    source, half = (np.uint8(128 + noise * share) for share in (1.0, 0.5))
    half[:, :8] = 0
    box = (slice(14, 28), slice(4, 28))
    assert detail_ratio(half, source, box)[0] == pytest.approx(0.5, abs=0.02)
    assert laplacian_ratio(half, source, box)[0] == pytest.approx(0.5, abs=0.02)


def test_detail_is_the_difference_to_a_local_mean():
    """Against scipy's uniform filter."""
    from scipy.ndimage import uniform_filter

    rng = np.random.default_rng(2)
    made, real = (rng.integers(0, 256, (1, 20, 20, 1)).astype(np.uint8).repeat(3, axis=3) for _ in range(2))
    box = (slice(4, 16), slice(4, 16))
    expected = [
        float((luma - uniform_filter(luma, 5))[box].std()) for luma in (made[0, ..., 0] * 1.0, real[0, ..., 0] * 1.0)
    ]
    assert detail_ratio(made, real, box)[0] == pytest.approx(expected[0] / expected[1], rel=1e-5)


def test_laplacian_is_that_of_the_exact_luma():
    """Against scipy, on a smooth image, whose luma in whole gray levels would be full of edges."""
    from scipy.ndimage import laplace

    ramp = np.linspace(90, 130, 40)[:, None, None] + np.linspace(0, 8, 40)[:, None] * np.array([1.0, 0.5, 0.2])
    bent = ramp + 20 * np.square(np.linspace(-1, 1, 40))[:, None]
    box = (slice(4, 36), slice(4, 36))
    made, real = (np.round(image).astype(np.uint8)[None] for image in (ramp, bent))
    weights = np.array([0.299, 0.587, 0.114])
    expected = [np.abs(laplace(image[0] @ weights)[box]).mean() for image in (made, real)]
    assert laplacian_ratio(made, real, box)[0] == pytest.approx(expected[0] / expected[1], rel=1e-4)


def test_difference_counts_the_chosen_pixels_only():
    first, second = np.full((2, 4, 4, 3), 100, np.uint8), np.full((2, 4, 4, 3), 100, np.uint8)
    where = np.zeros((4, 4), bool)
    where[1:3, 1:3] = True
    second[1, 0] = 255  # not counted
    second[1, 1, 1] = [90, 130, 100]
    assert mean_difference(first, second, where).tolist() == [0, pytest.approx((10 + 30) / 12)]


def test_the_mouth_is_cut_out_and_enlarged():
    box = mouth_slices(100)
    assert box == (slice(56, 85), slice(28, 72))
    pixels = torch.linspace(-1, 1, 100).expand(2, 3, 100, 100)
    cut = crop_box(pixels, box)
    assert cut.shape == (2, 3, 64, round(44 * 64 / 29))
    assert cut.mean().item() == pytest.approx(pixels[..., 28:72].mean().item(), abs=1e-3)
    assert crop_box(pixels, box, smallest=16).shape == (2, 3, 29, 44)
