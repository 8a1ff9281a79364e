"""Optical flow in PyTorch: known motions, and comparison with OpenCV's DIS."""

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from recipes.embedded.first_generation.flow import optical_flow, warp_grid

SIDE = 96


def texture() -> np.ndarray:
    noise = np.random.default_rng(0).uniform(0, 1, (SIDE, SIDE)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 3)
    return np.clip((smooth - 0.5) * 5 + 0.5, 0, 1)


def as_images(*images: np.ndarray) -> list[torch.Tensor]:
    return [torch.from_numpy(np.ascontiguousarray(image))[None, None] for image in images]


def moved(matrix: np.ndarray) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """An image, its transform by `matrix` (2, 3), and the true flow (2, H, W) between them."""
    other = cv2.warpAffine(texture(), matrix, (SIDE, SIDE), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)
    grid = np.stack(np.meshgrid(np.arange(SIDE), np.arange(SIDE)))
    there = np.einsum("ij,jhw->ihw", matrix[:, :2], grid) + matrix[:, 2][:, None, None]
    return *as_images(texture(), other.astype(np.float32)), there - grid


@pytest.mark.parametrize("shift", [(0.0, 0.0), (0.4, -0.3), (3.0, 1.5), (-7.0, 4.0)])
def test_translations(shift):
    image, other, true = moved(np.array([[1, 0, shift[0]], [0, 1, shift[1]]]))
    error = np.linalg.norm(optical_flow(image, other)[0].numpy() - true, axis=0)[16:-16, 16:-16]
    assert error.mean() < 0.15


def test_rotation_and_zoom():
    matrix = cv2.getRotationMatrix2D((SIDE / 2, SIDE / 2), 4, 1.04)
    image, other, true = moved(matrix)
    error = np.linalg.norm(optical_flow(image, other)[0].numpy() - true, axis=0)[16:-16, 16:-16]
    assert error.mean() < 0.25 < np.linalg.norm(true, axis=0).mean()


def test_a_warp_by_the_flow_explains_as_much_as_that_of_opencv():
    matrix = cv2.getRotationMatrix2D((SIDE / 2, SIDE / 2), -3, 0.97)
    image, other, _ = moved(matrix)
    gray = [(part[0, 0].numpy() * 255).astype(np.uint8) for part in (image, other)]
    dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM).calc(*gray, None)

    def residual(flow: torch.Tensor) -> float:
        warped = F.grid_sample(other, warp_grid(flow), padding_mode="border", align_corners=False)
        return float((warped - image).abs()[..., 16:-16, 16:-16].mean())

    ours, theirs = residual(optical_flow(image, other)), residual(torch.from_numpy(dis).permute(2, 0, 1)[None])
    assert ours < 1.2 * theirs and ours < residual(torch.zeros(1, 2, SIDE, SIDE)) / 5


def test_pairs_of_a_batch_are_independent_and_flat_images_stand_still():
    image, other, _ = moved(np.array([[1, 0, 2.0], [0, 1, 0]]))
    flat = torch.full_like(image, 0.5)
    both = optical_flow(torch.cat([image, flat]), torch.cat([other, flat]))
    assert torch.allclose(both[:1], optical_flow(image, other), atol=1e-5)
    assert both[1].abs().max() == 0
