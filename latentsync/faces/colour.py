"""The skin of a regenerated face in the colour of the frame's own.

Legend: N faces, R pixels of a side. Faces are RGB in [-1, 1].
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
REACH = 0.1  # of the face's side: wider than the lips are high, whose colour is mostly left as it was made


def match_colour(made: Tensor, given: Tensor, reach: float = REACH) -> Tensor:
    """Take from `made` what its colour differs from that of `given` on the large.

    Hue and saturation of wide areas are then the frame's; brightness, and colour in finer detail, stay as they were
    made. What the mouth does in the frame is detail in this sense.

    Args:
        made, given: (N, 3, R, R), the new face and the one in the frame.
        reach: standard deviation of the Gaussian that parts the large from the fine, as a share of R.

    Returns:
        (N, 3, R, R) float32, a little outside [-1, 1] where the correction leads there.
    """
    made = made.float()
    return made + _blur(_chroma(given.float() - made), reach * made.shape[-1])


def _chroma(pixels: Tensor) -> Tensor:
    """What is left of RGB without its luma: (N, 3, H, W), grey is 0."""
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
