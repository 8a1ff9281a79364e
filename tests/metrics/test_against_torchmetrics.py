"""Image and set metrics against torchmetrics, which shares no code with them."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from latentsync.metrics.image import psnr, ssim
from latentsync.metrics.set_distances import frechet_distance, kernel_distance

SIDE = 24


def random_images(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, SIDE, SIDE + 6, 3)).astype(np.uint8)


def as_torch(images: np.ndarray) -> Tensor:
    """(N, 3, H, W) float64 in [0, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).double() / 255


def test_psnr_and_ssim():
    first = random_images(3, 0)
    noise = np.random.default_rng(1).normal(0, [[[[8]]], [[[25]]], [[[60]]]], first.shape)
    second = (first + noise).clip(0, 255).astype(np.uint8)
    one, other = as_torch(first), as_torch(second)
    expected = peak_signal_noise_ratio(one, other, data_range=1.0, reduction="none", dim=(1, 2, 3))
    np.testing.assert_allclose(psnr(first, second), expected, atol=1e-6)
    _, maps = structural_similarity_index_measure(one, other, data_range=1.0, sigma=1.5, return_full_image=True)
    inside = maps[..., 5:-5, 5:-5]  # its own mean counts windows that reach beyond the image, by reflection
    np.testing.assert_allclose(ssim(first, second), inside.mean(dim=(1, 2, 3)), atol=1e-6)


class Means(nn.Module):
    """Features of images: means of 12 blocks of each color, between 0 and 1."""

    num_features = 36

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.adaptive_avg_pool2d(images.double() / 255, (3, 4)).flatten(1)


@pytest.fixture
def two_sets() -> tuple[Tensor, Tensor]:
    """50 images each, (N, 3, H, W) uint8, the second ones brighter."""
    first, second = (torch.from_numpy(random_images(50, seed)).permute(0, 3, 1, 2) for seed in (2, 3))
    return first, second // 2 + 100


def features(images: Tensor) -> np.ndarray:
    return Means()(images).numpy()


def test_frechet_distance(two_sets):
    metric = FrechetInceptionDistance(feature=Means()).set_dtype(torch.float64)
    for images, real in zip(two_sets, (True, False), strict=True):
        metric.update(images, real=real)
    found = frechet_distance(*map(features, two_sets))
    assert found == pytest.approx(metric.compute().item(), rel=1e-6) and found > 0.1


def test_kernel_distance(two_sets):
    """One subset of all images: what torchmetrics averages over random subsets."""
    metric = KernelInceptionDistance(feature=Means(), subsets=1, subset_size=50)
    for images, real in zip(two_sets, (True, False), strict=True):
        metric.update(images, real=real)
    mean, _ = metric.compute()
    found = kernel_distance(*map(features, two_sets))
    assert found == pytest.approx(mean.item(), rel=1e-6) and found > 0.1
