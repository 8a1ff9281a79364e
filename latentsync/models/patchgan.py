"""PatchGAN: a discriminator that classifies every patch of an image separately (Isola et al. 2017, "pix2pix").

Legend: N images, H W pixels, h w patches.
"""

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

KERNEL = 4
LEAK = 0.2
MAX_WIDENING = 8  # width of the widest layer relative to the first
# Number of halvings -> smallest image side that leaves one patch (two more convolutions follow the halvings).
MIN_SIDES = {1: 8, 2: 16, 3: 32}


class PatchDiscriminator(nn.Module):
    """Logits of "real" for overlapping patches; with three halvings each sees 70 x 70 pixels.

    Every convolution has spectral normalization (Miyato et al. 2018), which bounds the gradient of the logits. There is
    no other norm, so that an image does not depend on the rest of its batch.
    """

    def __init__(self, width: int = 64, halvings: int = 3, channels: int = 3):
        """
        Args:
            width: channels of the first layer; each halving doubles them, up to eight-fold.
            halvings: 1, 2 or 3: patches of 16, 34 or 70 pixels.
            channels: of the images.
        """
        super().__init__()
        if halvings not in MIN_SIDES:
            raise ValueError(f"halvings must be one of {list(MIN_SIDES)}, got {halvings}")
        widths = [width * min(2**level, MAX_WIDENING) for level in range(halvings + 1)]
        strides = [2] * halvings + [1]
        self.halvings = halvings
        self.layers = nn.ModuleList(
            spectral_norm(nn.Conv2d(before, after, KERNEL, stride, padding=1))
            for before, after, stride in zip([channels, *widths], widths, strides, strict=False)
        )
        self.judge = spectral_norm(nn.Conv2d(widths[-1], 1, KERNEL, padding=1))

    @classmethod
    def for_images(cls, height: int, width: int, channels_wide: int = 64) -> "PatchDiscriminator":
        """The discriminator with the largest patches that fit into images of height x width pixels.

        Raises:
            ValueError: the image is smaller than any patch.
        """
        side = min(height, width)
        fitting = [halvings for halvings, smallest in MIN_SIDES.items() if side >= smallest]
        if not fitting:
            raise ValueError(
                f"no PatchGAN for images of {height} x {width} pixels; give at least {MIN_SIDES[1]} a side"
            )
        return cls(channels_wide, max(fitting))

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) in [-1, 1] -> logits (N, 1, h, w)."""
        if min(images.shape[-2:]) < MIN_SIDES[self.halvings]:
            smallest = MIN_SIDES[self.halvings]
            raise ValueError(f"this PatchGAN needs images of {smallest} pixels a side, got {tuple(images.shape[-2:])}")
        for layer in self.layers:
            images = F.leaky_relu(layer(images), LEAK)
        return self.judge(images)
