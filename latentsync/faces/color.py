"""Color matching between generated and original faces.

Legend: N faces, R side in pixels. Faces are RGB in [-1, 1].
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
REACH = 0.1  # of the face's side; larger than the height of the lips, so their generated color mostly remains
REDUCED_SIGMA = 4.0  # pixels; of a blur on a reduced image, at least
BOX_VARIANCE, TRIANGLE_VARIANCE = 1 / 12, 1 / 6  # of the reduction and the enlargement, in reduced pixels squared


def match_color(generated: Tensor, original: Tensor, reach: float = REACH) -> Tensor:
    """Remove the low-frequency chroma difference between a generated and the original face.

    Large areas take the hue and saturation of the frame. Luma and fine color detail, such as the mouth, stay as
    generated.

    Args:
        generated, original: (N, 3, R, R), the generated and the original faces.
        reach: standard deviation of the Gaussian that separates low from high frequencies, as a fraction of R.

    Returns:
        (N, 3, R, R) float32, may slightly exceed [-1, 1].
    """
    generated = generated.float()
    return generated + _blur(_chroma(original.float() - generated), reach * generated.shape[-1])


def _chroma(pixels: Tensor) -> Tensor:
    """RGB minus luma: (N, 3, H, W); 0 for gray."""
    red, green, blue = pixels.split(1, dim=1)
    # Numbers, not a tensor, for whose upload the host would wait until a GPU has finished all that is queued.
    return pixels - (LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue)


def _blur(pixels: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of (N, 3, H, W) with reflection padding.

    A wide blur has no fine detail: it is computed on an image reduced by a whole factor, at least `REDUCED_SIGMA` wide.
    The averages of the reduction and the linear enlargement blur too, which the Gaussian leaves out.
    """
    height, width = pixels.shape[-2:]
    factor = max((f for f in range(1, 1 + int(sigma / REDUCED_SIGMA)) if height % f == width % f == 0), default=1)
    if factor == 1:
        return _gaussian(pixels, sigma)
    reduced = F.avg_pool2d(pixels, factor)
    blurred = _gaussian(reduced, math.sqrt(sigma**2 / factor**2 - BOX_VARIANCE - TRIANGLE_VARIANCE))
    return F.interpolate(blurred, scale_factor=factor, mode="bilinear", align_corners=False)


def _gaussian(pixels: Tensor, sigma: float) -> Tensor:
    radius = min(math.ceil(3 * sigma), pixels.shape[-1] - 1, pixels.shape[-2] - 1)
    taps = torch.arange(-radius, radius + 1, dtype=pixels.dtype, device=pixels.device)
    kernel = torch.exp(-((taps / sigma) ** 2) / 2)
    kernel = (kernel / kernel.sum()).expand(3, 1, -1)
    padded = F.pad(pixels, (radius,) * 4, mode="reflect")
    return F.conv2d(F.conv2d(padded, kernel[:, :, None], groups=3), kernel[..., None], groups=3)
