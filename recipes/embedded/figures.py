"""Figures of faces, by the functions of the evaluation suite. Legend: N images, R pixels of a side."""

import numpy as np
from torch import Tensor

from latentsync.faces.mask import mouth_slices
from latentsync.metrics.image import detail_ratio, laplacian_ratio, psnr


def to_images(faces: Tensor) -> np.ndarray:
    """(N, 3, R, R) in [-1, 1] -> (N, R, R, 3) uint8 RGB."""
    return ((faces.permute(0, 2, 3, 1) + 1) * 127.5).round().byte().numpy()


def mouth(faces: Tensor) -> Tensor:
    """(N, 3, R, R) -> the mouth box."""
    rows, columns = mouth_slices(faces.shape[-1])
    return faces[..., rows, columns]


def compare(faces: Tensor, targets: Tensor) -> dict[str, float]:
    """Of the mouth boxes of (N, 3, R, R) in [-1, 1], means: PSNR in dB, and the shares of detail and Laplacian."""
    result, source, box = to_images(faces), to_images(targets), mouth_slices(faces.shape[-1])
    metrics = {"psnr": psnr, "detail": detail_ratio, "laplacian": laplacian_ratio}
    return {name: float(metric(result, source, box).mean()) for name, metric in metrics.items()}
