"""The mask: built-in shape, files of all kinds."""

import cv2
import numpy as np
import pytest
import torch

from latentsync.faces.mask import blend_weight, draw_mask, load_mask, resize_mask_to_latents
from latentsync.utils.errors import UserError


@pytest.mark.parametrize("resolution", [64, 128, 256, 512])
def test_built_in_mask(resolution):
    mask = load_mask(resolution)
    assert mask.shape == (1, 1, resolution, resolution) and mask.dtype == torch.float32
    assert mask.min() == 0 and mask.max() == 1
    unit = resolution / 256
    kept = [(128, 110), (20, 60), (128, 250), (2, 200)]  # nose, temple, below the chin, beside the jaw
    regenerated = [(128, 180), (40, 120), (216, 120), (128, 230)]  # mouth, both cheeks, chin
    assert [mask[0, 0, int(y * unit), int(x * unit)] for x, y in kept] == [1] * 4
    assert [mask[0, 0, int(y * unit), int(x * unit)] for x, y in regenerated] == [0] * 4


def test_256_is_the_drawing_itself():
    assert set(np.unique(draw_mask())) == {0, 255}
    np.testing.assert_array_equal(load_mask(256)[0, 0].numpy() * 255, draw_mask())


@pytest.mark.parametrize("name", ["mask.png", "mask with space ü.png"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_mask_from_a_file(tmp_path, name, channels):
    image = draw_mask()[..., None].repeat(channels, -1)
    if channels == 4:
        image[..., 3] = 255
    cv2.imencode(".png", image)[1].tofile(tmp_path / name)
    assert torch.equal(load_mask(256, tmp_path / name), load_mask(256))
    assert torch.equal(load_mask(64, str(tmp_path / name)), load_mask(64))


def test_file_of_another_size_is_resized(tmp_path):
    cv2.imwrite(str(tmp_path / "wide.png"), np.pad(np.zeros((10, 30), np.uint8), 10, constant_values=255))
    assert load_mask(128, tmp_path / "wide.png").shape == (1, 1, 128, 128)


def test_bad_files_are_user_errors(tmp_path):
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("not an image")
    cv2.imwrite(str(tmp_path / "white.png"), np.full((8, 8), 255, np.uint8))
    cv2.imwrite(str(tmp_path / "black.png"), np.zeros((8, 8), np.uint8))
    for name in ("missing.png", ".", "empty.png", "text.png", "white.png", "black.png"):
        with pytest.raises(UserError, match="mask image") as caught:
            load_mask(256, tmp_path / name)
        assert "\n" not in str(caught.value)


def test_latent_mask_takes_every_eighth_pixel():
    mask = load_mask(256)
    latents = resize_mask_to_latents(mask, (32, 32))
    assert torch.equal(latents, mask[:, :, ::8, ::8])


@pytest.mark.parametrize("resolution", [128, 256])
def test_blend_weight_covers_the_region_and_leaves_the_eyes(resolution):
    mask = load_mask(resolution)
    weight = blend_weight(mask)
    mouth, eyes = resolution * 7 // 10, resolution // 4
    middle = resolution // 2
    assert weight.shape == (resolution, resolution)
    assert weight[mouth, middle] == pytest.approx(1, abs=1e-3)
    assert (weight[:eyes] == 0).all()
    assert weight.min() >= 0
    assert weight.max() <= 1 + 1e-6


def test_inset_leaves_the_outline_and_keeps_the_mouth():
    mask = load_mask(128)
    plain, inset = blend_weight(mask), blend_weight(mask, 0.07)
    assert inset[90, 64] > 0.99
    assert inset[60, 6] < 0.05 < plain[60, 6]
    assert (inset <= plain + 1e-3).mean() > 0.97
    assert np.abs(np.diff(inset, axis=0)).max() < np.abs(np.diff(plain, axis=0)).max()
