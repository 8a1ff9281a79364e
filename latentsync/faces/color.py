"""Match the skin color of a regenerated face to that of the frame.

Legend: N faces, R pixels of a side. Faces are RGB in [-1, 1].
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
REACH = 0.1  # of the face's side: wider than the lips are high, so their color is mostly left as generated


def match_color(made: Tensor, given: Tensor, reach: float = REACH) -> Tensor:
    """Remove the low-frequency chroma difference between a generated face and the one in the frame.

    Hue and saturation of large areas become those of the frame. Brightness and finer color detail, such as the mouth,
    stay as generated.

    Args:
        made, given: (N, 3, R, R), the generated face and the one in the frame.
        reach: standard deviation of the Gaussian that separates low from high frequencies, as a share of R.

    Returns:
        (N, 3, R, R) float32, values may lie slightly outside [-1, 1].
    """
    made = made.float()
    return made + _blur(_chroma(given.float() - made), reach * made.shape[-1])


def _chroma(pixels: Tensor) -> Tensor:
    """RGB minus its luma: (N, 3, H, W); gray is 0."""
    luma = torch.tensor(LUMA, dtype=pixels.dtype, device=pixels.device)
    return pixels - torch.einsum("nchw,c->nhw", pixels, luma)[:, None]


def _blur(pixels: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of (N, 3, H, W), mirrored at the edges."""
    radius = min(math.ceil(3 * sigma), pixels.shape[-1] - 1)
    taps = torch.arange(-radius, radius + 1, dtype=pixels.dtype, device=pixels.device)
    kernel = torch.exp(-((taps / sigma) ** 2) / 2)
    kernel = (kernel / kernel.sum()).expand(3, 1, -1)
    padded = F.pad(pixels, (radius,) * 4, mode="reflect")
    return F.conv2d(F.conv2d(padded, kernel[:, :, None], groups=3), kernel[..., None], groups=3)
