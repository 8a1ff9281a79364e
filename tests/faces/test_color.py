"""Color of the generated face: large areas as in the frame, brightness and detail as generated."""

import pytest
import torch

from latentsync.faces.color import LUMA, _blur, _gaussian, match_color
from tests.conformance.seeded import seeded_input

SIDE = 64


def luma(pixels: torch.Tensor) -> torch.Tensor:
    return torch.einsum("nchw,c->nhw", pixels, torch.tensor(LUMA))


@pytest.fixture
def given() -> torch.Tensor:
    return torch.tanh(seeded_input("given", (2, 3, SIDE, SIDE)))


def test_equal_faces_stay(given):
    torch.testing.assert_close(match_color(given, given), given)


def test_a_tint_is_taken_away_and_brightness_is_not(given):
    tint = torch.tensor([0.2, -0.1, 0.05])[:, None, None]
    brightness = luma(tint[None].expand(1, 3, 1, 1)).item()
    matched = match_color(given + tint, given)
    torch.testing.assert_close(luma(matched), luma(given + tint))
    torch.testing.assert_close(matched, given + brightness)


def test_detail_keeps_its_color(given):
    lips = torch.zeros(1, 3, SIDE, SIDE)
    lips[:, 0, 30:32, 20:44] = 0.5  # red, two pixels high
    change = match_color(given + lips, given) - given
    assert change[:, 0, 30:32, 30:34].mean() > 0.85 * 0.5
    wide = torch.zeros(1, 3, SIDE, SIDE)
    wide[:, 0, 20:] = 0.5
    change = match_color(given + wide, given) - given
    left = change[:, 0] - change[:, 1]  # all but gray
    assert left[:, 40:, 20:44].abs().max() < 0.05 * 0.5


def test_half_precision_and_small_faces():
    small = torch.rand(1, 3, 4, 4, dtype=torch.float16)
    matched = match_color(small, torch.zeros_like(small), reach=5.0)
    assert matched.shape == small.shape and matched.dtype == torch.float32 and matched.isfinite().all()


@pytest.mark.parametrize("sigma", [5.0, 12.8, 25.6])
def test_a_blur_on_a_reduced_image_equals_a_gaussian(sigma):
    pixels = seeded_input("blurred", (2, 3, 16, 24)).repeat_interleave(16, 2).repeat_interleave(16, 3)  # blocks
    error = (_blur(pixels, sigma) - _gaussian(pixels, sigma)).abs() / pixels.abs().max()
    assert error[..., 80:-80, 80:-80].max() < 0.005
    assert error.max() < 0.05  # the borders are reflected at the reduced pixels
