"""Likeness of pictures, whole or on a region.

Legend: N images, H W pixels. Pictures are (N, 3, H, W) in [-1, 1]; a region is (H, W), its values weights >= 0.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from latentsync.faces.mask import mouth_slices

PEAK = 2.0  # of pictures in [-1, 1]
WINDOW, SIGMA = 11, 1.5
K1, K2 = 0.01, 0.03


def psnr(first: Tensor, second: Tensor, region: Tensor | None = None) -> Tensor:
    """Peak signal-to-noise ratio in dB, (N,); infinite for equal pictures.

    Raises:
        ValueError: the pictures differ in shape, or the region is empty or of another size.
    """
    _check(first, second)
    error = (first.double() - second.double()).square().mean(dim=1)
    return 10 * torch.log10(PEAK**2 / _mean(error, region))


def ssim(first: Tensor, second: Tensor, region: Tensor | None = None) -> Tensor:
    """Structural similarity (Wang et al. 2004), (N,), 1 for equal pictures.

    The paper's index: Gaussian window of 11 pixels, sigma 1.5, K1 = 0.01, K2 = 0.03, only where the window fits in
    the picture. Taken of each colour channel and averaged; with `region` the map is averaged over the windows whose
    centres lie in it.

    Raises:
        ValueError: as `psnr`, or the pictures are smaller than the window.
    """
    _check(first, second)
    if min(first.shape[-2:]) < WINDOW:
        raise ValueError(f"pictures of {tuple(first.shape[-2:])} pixels are smaller than the window of {WINDOW}")
    index = ssim_map(first.double(), second.double()).mean(dim=1)
    border = WINDOW // 2
    return _mean(index, None if region is None else region[border:-border, border:-border])


def ssim_map(first: Tensor, second: Tensor) -> Tensor:
    """The index of every window: (N, C, H, W) -> (N, C, H - 10, W - 10)."""
    stabiliser1, stabiliser2 = (K1 * PEAK) ** 2, (K2 * PEAK) ** 2
    mean1, mean2 = _blur(first), _blur(second)
    variance1 = _blur(first * first) - mean1**2
    variance2 = _blur(second * second) - mean2**2
    covariance = _blur(first * second) - mean1 * mean2
    luminance = (2 * mean1 * mean2 + stabiliser1) / (mean1**2 + mean2**2 + stabiliser1)
    return luminance * (2 * covariance + stabiliser2) / (variance1 + variance2 + stabiliser2)


def gaussian_window(size: int = WINDOW, sigma: float = SIGMA) -> Tensor:
    """One side of the separable window: (size,) float64, sum 1."""
    offsets = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    weights = torch.exp(-offsets.square() / (2 * sigma**2))
    return weights / weights.sum()


def mouth_region(resolution: int) -> Tensor:
    """The lips of an aligned face: (R, R) float32, 1 inside."""
    region = torch.zeros(resolution, resolution)
    region[mouth_slices(resolution)] = 1
    return region


def crop_region(pictures: Tensor, region: Tensor, smallest: int = 64) -> Tensor:
    """The rectangle around a region, enlarged so that its shorter side has at least `smallest` pixels (bilinear).

    For LPIPS, which was calibrated on patches of 64 pixels: (N, 3, H, W) -> (N, 3, h, w).
    """
    rows, columns = region.any(dim=1).nonzero(), region.any(dim=0).nonzero()
    cut = pictures[..., int(rows.min()) : int(rows.max()) + 1, int(columns.min()) : int(columns.max()) + 1]
    scale = smallest / min(cut.shape[-2:])
    if scale <= 1:
        return cut
    size = [round(side * scale) for side in cut.shape[-2:]]
    return F.interpolate(cut, size=size, mode="bilinear", align_corners=False)


def _blur(pictures: Tensor) -> Tensor:
    """Weighted mean of every window that fits: (N, C, H, W) -> (N, C, H - 10, W - 10)."""
    window = gaussian_window().to(pictures)
    flat = pictures.flatten(0, 1).unsqueeze(1)
    blurred = F.conv2d(F.conv2d(flat, window.view(1, 1, -1, 1)), window.view(1, 1, 1, -1))
    return blurred.squeeze(1).unflatten(0, pictures.shape[:2])


def _mean(values: Tensor, region: Tensor | None) -> Tensor:
    """(N, h, w) -> (N,), weighted by the region (h, w)."""
    if region is None:
        return values.mean(dim=(-2, -1))
    if region.shape != values.shape[-2:]:
        raise ValueError(f"region {tuple(region.shape)} does not fit pictures of {tuple(values.shape[-2:])}")
    weights = region.to(values)
    if not weights.sum() > 0:
        raise ValueError("the region is empty")
    return (values * weights).sum(dim=(-2, -1)) / weights.sum()


def _check(first: Tensor, second: Tensor) -> None:
    if first.ndim != 4 or first.shape != second.shape:
        raise ValueError(f"two equal (N, 3, H, W) are needed, not {tuple(first.shape)} and {tuple(second.shape)}")
