"""Likeness of pictures: known identities, and the definitions written out."""

import math

import pytest
import torch

from latentsync.metrics.image import crop_region, gaussian_window, mouth_region, psnr, ssim


@pytest.fixture
def pictures() -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    first = torch.rand(2, 3, 24, 30, generator=rng) * 2 - 1
    return first, (first + 0.2 * torch.randn(first.shape, generator=rng)).clamp(-1, 1)


def test_equal_pictures_are_alike(pictures):
    first, _ = pictures
    assert torch.isinf(psnr(first, first)).all()
    torch.testing.assert_close(ssim(first, first), torch.ones(2, dtype=torch.float64))


def test_psnr_of_a_known_error():
    """An error of 0.2 in a range of 2: 20 dB."""
    assert psnr(torch.zeros(1, 3, 4, 4), torch.full((1, 3, 4, 4), 0.2)).item() == pytest.approx(20)


def test_psnr_on_a_region_sees_nothing_else(pictures):
    first, second = pictures
    region = torch.zeros(24, 30)
    region[5:9, 3:20] = 1
    spoilt = second.clone()
    spoilt[..., 12:, :] = 1
    torch.testing.assert_close(psnr(first, spoilt, region), psnr(first, second, region))
    torch.testing.assert_close(psnr(first, second, region), psnr(first[..., 5:9, 3:20], second[..., 5:9, 3:20]))


def test_ssim_of_flat_pictures_is_the_luminance_term():
    """Without structure (2 a b + C1) / (a^2 + b^2 + C1) remains, C1 = (0.01 * 2)^2."""
    value = ssim(torch.full((1, 3, 16, 16), 0.5), torch.full((1, 3, 16, 16), 0.3)).item()
    assert value == pytest.approx((2 * 0.15 + 0.0004) / (0.25 + 0.09 + 0.0004), abs=1e-6)


def test_ssim_of_one_window_by_its_definition(pictures):
    """A picture as large as the window has one index, worked out with weighted sums."""
    one, other = (picture[:1, :1, :11, :11].double() for picture in pictures)
    weights = torch.outer(gaussian_window(), gaussian_window())
    mean1, mean2 = (one * weights).sum(), (other * weights).sum()
    variance1, variance2 = ((one - mean1) ** 2 * weights).sum(), ((other - mean2) ** 2 * weights).sum()
    covariance = ((one - mean1) * (other - mean2) * weights).sum()
    c1, c2 = 0.02**2, 0.06**2
    expected = (2 * mean1 * mean2 + c1) * (2 * covariance + c2)
    expected /= (mean1**2 + mean2**2 + c1) * (variance1 + variance2 + c2)
    assert ssim(one.expand(1, 3, 11, 11), other.expand(1, 3, 11, 11)).item() == pytest.approx(expected.item(), abs=1e-9)


def test_ssim_of_a_negative_is_negative(pictures):
    first, _ = pictures
    assert (ssim(0.5 + 0.2 * first, 0.5 - 0.2 * first) < 0).all()


def test_ssim_is_symmetric_and_falls_with_noise(pictures):
    first, second = pictures
    torch.testing.assert_close(ssim(first, second), ssim(second, first))
    assert (ssim(first, second) < 0.99).all()


def test_ssim_on_a_region_is_that_of_its_windows(pictures):
    first, second = pictures
    region = torch.zeros(24, 30)
    region[10, 12] = 1
    around = (..., slice(5, 16), slice(7, 18))
    torch.testing.assert_close(ssim(first, second, region), ssim(first[around], second[around]))


def test_unfit_input_is_refused(pictures):
    first, second = pictures
    with pytest.raises(ValueError, match="two equal"):
        psnr(first, second[:1])
    with pytest.raises(ValueError, match="empty"):
        psnr(first, second, torch.zeros(24, 30))
    with pytest.raises(ValueError, match="does not fit"):
        ssim(first, second, torch.ones(20, 20))
    with pytest.raises(ValueError, match="smaller than the window"):
        ssim(first[..., :10, :], second[..., :10, :])


def test_the_mouth_is_cut_out_and_enlarged():
    region = mouth_region(100)
    assert (region.sum(), region[56, 28], region[84, 71], region[85, 71]) == (29 * 44, 1, 1, 0)
    picture = torch.linspace(-1, 1, 100).expand(2, 3, 100, 100)
    cut = crop_region(picture, region)
    assert cut.shape == (2, 3, 64, round(44 * 64 / 29))
    assert cut.mean().item() == pytest.approx(picture[..., 28:72].mean().item(), abs=1e-3)
    assert crop_region(picture, region, smallest=16).shape == (2, 3, 29, 44)
    assert math.isfinite(psnr(picture, -picture, region)[0])
