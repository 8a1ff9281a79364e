"""Decode only the part of a face that the losses look at; the rest is the real frame.

Legend: K samples, F frames, C latent channels, R pixels, h latent cells.
"""

import math

from torch import Tensor

from latentsync.faces.mask import MOUTH_BOX
from latentsync.models.vae import LatentCodec
from latentsync.pipelines.denoise import decode_frames

# Parts of an aligned face as fractions of its side: top, bottom, left, right.
REGIONS = {"whole": (0.0, 1.0, 0.0, 1.0), "lower_half": (0.5, 1.0, 0.0, 1.0), "mouth": MOUTH_BOX}
MARGIN = 2  # latent cells decoded around the region, so that its edge sees its neighbours

Box = tuple[int, int, int, int]  # top, bottom, left, right; bottom and right exclusive


def region_box(region: str, size: int) -> Box:
    """The smallest box of whole cells (of `size` a side) that holds a region."""
    top, bottom, left, right = (size * fraction for fraction in REGIONS[region])
    return math.floor(top), math.ceil(bottom), math.floor(left), math.ceil(right)


def crop(images: Tensor, box: Box) -> Tensor:
    """The box of images (..., H, W)."""
    top, bottom, left, right = box
    return images[..., top:bottom, left:right]


def decode_onto(codec: LatentCodec, latents: Tensor, real: Tensor, region: str) -> Tensor:
    """Latents (K, C, F, h, h) -> frames (K, F, 3, R, R) float32, the region decoded with gradients.

    Outside the region they are the `real` frames (K, F, 3, R, R). The decoder's norms and its attention see the
    region and its margin instead of the whole face: close to, not equal to, a decode of the whole.
    """
    if region == "whole":
        return decode_frames(codec, latents).float()
    size = latents.shape[-1]
    box = region_box(region, size)
    wide = tuple(min(max(edge + shift, 0), size) for edge, shift in zip(box, (-MARGIN, MARGIN) * 2, strict=True))
    decoded = decode_frames(codec, crop(latents, wide)).float()
    inner = [codec.factor * (edge - wide[axis]) for edge, axis in zip(box, (0, 0, 2, 2), strict=True)]
    top, bottom, left, right = (codec.factor * edge for edge in box)
    frames = real.float().clone()
    frames[..., top:bottom, left:right] = crop(decoded, tuple(inner))
    return frames
