"""GFPGAN 1.4: face restoration by a face generator that is modulated with U-Net features (Wang et al. 2021, "Towards
Real-World Blind Face Restoration with Generative Facial Prior"), with the parameter names of its checkpoint.

Legend: N images, C feature channels, H W pixels, R side of the aligned face in pixels.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentsync.checkpoints import registry
from latentsync.checkpoints.loading import load_checkpoint, load_into
from latentsync.pretrained.stylegan2_clean import SLOPE, SMALLEST, StyleGAN2Generator, resize
from latentsync.utils.paths import CHECKPOINTS_DIR

CHECKPOINT = CHECKPOINTS_DIR / registry.GFPGAN.path
SIDE = 512  # of the training images, framed as in FFHQ: they show more of the head than the aligned faces here
STYLE_WIDTH = 512
GENERATOR_CHANNELS = {4: 512, 8: 512, 16: 512, 32: 512, 64: 512, 128: 256, 256: 128, 512: 64}
# Box of an aligned face in such an image. Fitted to eyes, nose and mouth corners of 37 aligned faces from 30 clips
# (height 400, left 106, top 123 pixels; standard deviation between people 17, 7 and 5) and moved up to be inside.
TOP, LEFT, HEIGHT, WIDTH = 112, 106, 400, 300


class ResBlock(nn.Module):
    """Two convolutions with resizing by `factor` between them; (N, C, H, W) -> (N, C', fH, fW)."""

    def __init__(self, channels: int, out_channels: int, factor: float):
        super().__init__()
        self.factor = factor
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.skip = nn.Conv2d(channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out = resize(F.leaky_relu(self.conv1(x), SLOPE), self.factor)
        return F.leaky_relu(self.conv2(out), SLOPE) + self.skip(resize(x, self.factor))


class GFPGAN(nn.Module):
    """Restores degraded faces; their side is the largest key of `channels`.

    Args:
        channels: of the generator at each resolution; the U-Net has half of them.
        style_width: width of a style code.
    """

    def __init__(self, channels: dict[int, int] | None = None, style_width: int = STYLE_WIDTH):
        super().__init__()
        channels = channels or GENERATOR_CHANNELS
        unet = {side: count // 2 for side, count in channels.items()}
        sides = sorted(unet)
        self.side = sides[-1]
        self.conv_body_first = nn.Conv2d(3, unet[self.side], 1)
        self.conv_body_down = nn.ModuleList(
            ResBlock(unet[large], unet[small], 0.5) for large, small in zip(sides[:0:-1], sides[-2::-1], strict=True)
        )
        self.final_conv = nn.Conv2d(unet[SMALLEST], unet[SMALLEST], 3, padding=1)
        self.conv_body_up = nn.ModuleList(
            ResBlock(unet[small], unet[large], 2) for small, large in zip(sides, sides[1:], strict=False)
        )
        self.toRGB = nn.ModuleList(nn.Conv2d(unet[side], 3, 1) for side in sides[1:])  # used in training only
        self.stylegan_decoder = StyleGAN2Generator(channels, style_width)
        self.final_linear = nn.Linear(unet[SMALLEST] * SMALLEST**2, self.stylegan_decoder.num_codes * style_width)
        self.condition_scale, self.condition_shift = (
            nn.ModuleList(_condition(unet[side]) for side in sides[1:]) for _ in range(2)
        )

    @classmethod
    def from_pretrained(cls, path: str | Path) -> "GFPGAN":
        """Load `GFPGANv1.4.pth`, strictly.

        Raises:
            UserError: the file is missing or holds other weights; the differing tensors are named.
        """
        return (
            load_into(cls, load_checkpoint(path), exact=True, network="GFPGAN 1.4").float().eval().requires_grad_(False)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) in [-1, 1] -> same shape, not clamped."""
        features = F.leaky_relu(self.conv_body_first(x), SLOPE)
        skips = []
        for block in self.conv_body_down:
            features = block(features)
            skips.append(features)
        features = F.leaky_relu(self.final_conv(features), SLOPE)
        codes = self.final_linear(features.flatten(1)).unflatten(1, (self.stylegan_decoder.num_codes, -1))
        scales, shifts = [], []
        for block, scale, shift in zip(self.conv_body_up, self.condition_scale, self.condition_shift, strict=True):
            features = block(features + skips.pop())
            scales.append(scale(features))
            shifts.append(shift(features))
        return self.stylegan_decoder(codes, scales, shifts)


def _condition(channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=1), nn.LeakyReLU(SLOPE), nn.Conv2d(channels, channels, 3, padding=1)
    )


class FaceRestorer:
    """Restores faces one at a time; the results are at least as large as the inputs."""

    name = "gfpgan"

    def __init__(self, net: GFPGAN):
        self.net = net

    @classmethod
    def from_pretrained(cls, path: str | Path = CHECKPOINT) -> "FaceRestorer":
        """Raises UserError when the checkpoint is missing or holds other weights."""
        without = "use the sharpness filter, which needs no weights (--sharpness_factor 1.5)"
        registry.require_file(path, "gfpgan", without)
        return cls(GFPGAN.from_pretrained(path))

    def to(self, device: str | torch.device, dtype: torch.dtype | None = None) -> "FaceRestorer":
        self.net.to(device, dtype)
        return self

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> Tensor:
        """(N, 3, R, R) in [-1, 1] -> (N, 3, R', R'), R' the larger of R and 400."""
        images = pixels.to(self.net.conv_body_first.weight)
        return torch.cat([self._restore(image[None]) for image in images])

    def _restore(self, face: Tensor) -> Tensor:
        top, left, height, width = (round(length * self.net.side / SIDE) for length in (TOP, LEFT, HEIGHT, WIDTH))
        below, right = self.net.side - top - height, self.net.side - left - width
        # The area around the face is unknown: repeat the border pixels.
        framed = F.pad(_sized(face, height, width), (left, right, top, below), mode="replicate")
        restored = self.net(framed)[..., top : top + height, left : left + width].clamp(-1, 1)
        side = max(face.shape[-1], height)
        return _sized(restored, side, side)


def _sized(images: Tensor, height: int, width: int) -> Tensor:
    if images.shape[-2:] == (height, width):
        return images
    return F.interpolate(images, (height, width), mode="bilinear", antialias=True)
