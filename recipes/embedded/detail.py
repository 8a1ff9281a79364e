"""How much of the fine detail of a face survives. Legend: N images, R pixels of a side."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from latentsync.faces.mask import mouth_slices

WINDOW = 5
LUMA = (0.299, 0.587, 0.114)
LAPLACIAN = torch.tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]])[None, None]


def mouth(images: Tensor) -> Tensor:
    """(N, 3, R, R) -> the mouth box."""
    rows, columns = mouth_slices(images.shape[-1])
    return images[..., rows, columns]


def _gray(images: Tensor) -> Tensor:
    return (images * images.new_tensor(LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)


def detail(images: Tensor) -> float:
    """Standard deviation of the luma less its 5x5 mean."""
    gray = _gray(images)
    low = F.avg_pool2d(gray, WINDOW, 1)
    edge = WINDOW // 2
    return float((gray[..., edge:-edge, edge:-edge] - low).std())


def laplacian(images: Tensor) -> float:
    """Mean absolute Laplacian of the luma."""
    return float(F.conv2d(_gray(images), LAPLACIAN.to(images)).abs().mean())


def psnr(images: Tensor, targets: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of images in [-1, 1], means of the images' own."""
    errors = (images - targets).square().flatten(1).mean(1)
    return float((-10 * torch.log10(errors / 4)).mean())


def compare(images: Tensor, targets: Tensor) -> dict[str, float]:
    """Of the mouth boxes of (N, 3, R, R): dB, and the shares of detail and of the Laplacian that are kept."""
    ours, real = mouth(images.clamp(-1, 1)), mouth(targets)
    kept, edges = detail(ours) / detail(real), laplacian(ours) / laplacian(real)
    return {"psnr": psnr(ours, real), "detail": kept if math.isfinite(kept) else 0.0, "laplacian": edges}
