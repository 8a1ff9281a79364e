"""Sharpening of generated faces."""

import cv2
import numpy as np
import torch
from torch import Tensor

from latentsync.faces.mask import mouth_slices

_BLUR_SIGMA = 1.0
DETAIL_SIGMA = 1.5 / 256  # of the side of a face: a Gaussian of this width removes the detail
STRONGEST = 2.0  # of the detail; with more, teeth begin to glint
PASTED = 0.83  # share of the detail that a face keeps when it is resized into its frame and encoded
MEMORY = 0.9  # weight of the frames before: about half a second


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


class DetailMatch:
    """Sharpens the generated faces of a person until their mouth, pasted, has as much detail as in the frames.

    What a small network cannot know averages out, so its faces are softer than a sharp video. The strength follows the
    frames slowly, or else the sharpness would flicker with every glimpse of teeth.
    """

    def __init__(self) -> None:
        self._products = np.zeros(4)

    def __call__(self, generated: np.ndarray, original: np.ndarray, starts: bool = False) -> np.ndarray:
        """The faces of consecutive frames, one after another.

        Args:
            generated: (R, R, 3) float32 in 0..255.
            original: the aligned face of the frame, (R, R, 3) uint8.
            starts: whether this is the first frame after a cut.

        Returns:
            (R, R, 3) float32 in 0..255. The same brightness is added to all colors.
        """
        detail, mouth = _luma_detail(generated), mouth_slices(len(generated))
        wanted, own, added = (part[mouth] for part in (_luma_detail(original), detail, _detail(detail)))
        products = np.array(
            [np.square(wanted / PASTED).mean(), np.square(own).mean(), (own * added).mean(), np.square(added).mean()]
        )
        known = self._products.any() and not starts
        self._products = MEMORY * self._products + (1 - MEMORY) * products if known else products
        strength = _strength(*self._products)
        if strength <= 0:
            return generated
        return np.clip(generated + np.float32(strength) * detail[..., None], 0, 255)


def _strength(wanted: float, own: float, mixed: float, added: float) -> float:
    """Unsharp mask amount that gives a face the mean squared detail `wanted`; at most `STRONGEST - 1`.

    Adding s times the detail d to a face changes its detail to d + s d', where d' is the detail of d. The amount is the
    root of `own + 2 s mixed + s^2 added = wanted`, with own, mixed and added the means of d^2, d d' and d'^2.
    """
    if own >= wanted or added <= 0:
        return 0.0
    return min(float((np.sqrt(mixed**2 + added * (wanted - own)) - mixed) / added), STRONGEST - 1)


def _luma_detail(face: np.ndarray) -> np.ndarray:
    """(R, R, 3) RGB -> (R, R) float32, the luma minus its blur."""
    return _detail(cv2.cvtColor(face, cv2.COLOR_RGB2GRAY).astype(np.float32))


def _detail(image: np.ndarray) -> np.ndarray:
    return image - cv2.GaussianBlur(image, (0, 0), DETAIL_SIGMA * len(image))


class Sharpener:
    """Sharpness filter with the interface of `latentsync.pretrained.enhancers.FaceEnhancer`; does not upscale."""

    name = "sharpness filter"

    def __init__(self, factor: float = 1.5) -> None:
        self.factor = factor

    def to(self, device: str | torch.device, dtype: torch.dtype | None = None) -> "Sharpener":
        """No-op: the filter has no weights."""
        return self

    def __call__(self, pixels: Tensor) -> Tensor:
        """(N, 3, R, R) in [-1, 1] -> the same, computed on the CPU."""
        faces = ((pixels.float().cpu() + 1) * 127.5).permute(0, 2, 3, 1).numpy()
        sharp = torch.from_numpy(np.stack([sharpen(face, self.factor) for face in faces]))
        return (sharp.permute(0, 3, 1, 2) / 127.5 - 1).to(pixels.device)
