"""Sharpening of a regenerated face before it is pasted back."""

import cv2
import numpy as np

_BLUR_SIGMA = 1.0


def sharpen(pixels: np.ndarray, factor: float) -> np.ndarray:
    """Unsharp mask: `blurred + factor (pixels - blurred)`, so 1 changes nothing, 0 blurs, 2 doubles fine detail.

    Args:
        pixels: (h, w, 3) float32 in 0..255.
        factor: 0 or more.

    Returns:
        same shape and range; the input itself when `factor` is 1.
    """
    if factor < 0:
        raise ValueError(f"factor must be 0 or more, got {factor}")
    if factor == 1:
        return pixels
    blurred = cv2.GaussianBlur(pixels, (0, 0), _BLUR_SIGMA)
    return np.clip(blurred + factor * (pixels - blurred), 0, 255)
