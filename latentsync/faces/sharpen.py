"""Sharpening of generated faces."""

import cv2
import numpy as np
import torch
from torch import Tensor

_BLUR_SIGMA = 1.0


def sharpen(pixels: np.ndarray, factor: float) -> np.ndarray:
    """Unsharp mask: `blurred + factor (pixels - blurred)`, so 1 is the identity, 0 blurs and 2 doubles fine detail.

    Args:
        pixels: (h, w, 3) float32 in 0..255.
        factor: 0 or more.

    Returns:
        same shape and range; the input itself if `factor` is 1.
    """
    if factor < 0:
        raise ValueError(f"factor must be 0 or more, got {factor}")
    if factor == 1:
        return pixels
    blurred = cv2.GaussianBlur(pixels, (0, 0), _BLUR_SIGMA)
    return np.clip(blurred + factor * (pixels - blurred), 0, 255)


class Sharpener:
    """Sharpness filter with the interface of `latentsync.pretrained.enhancers.FaceEnhancer`; does not upscale."""

    name = "sharpness filter"

    def __init__(self, factor: float = 1.5) -> None:
        self.factor = factor

    def to(self, device: str | torch.device, dtype: torch.dtype | None = None) -> "Sharpener":
        """No-op: the filter has no weights."""
        return self

    def __call__(self, pixels: Tensor) -> Tensor:
        """(N, 3, R, R) in [-1, 1] -> the same, on the CPU."""
        faces = ((pixels.float().cpu() + 1) * 127.5).permute(0, 2, 3, 1).numpy()
        sharp = torch.from_numpy(np.stack([sharpen(face, self.factor) for face in faces]))
        return sharp.permute(0, 3, 1, 2) / 127.5 - 1
