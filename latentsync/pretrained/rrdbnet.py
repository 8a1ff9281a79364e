"""RealESRGAN x4plus: the RRDB network (Wang et al. 2021, "Real-ESRGAN"), with the parameter names of its checkpoint.

Legend: N images, C feature channels, H W pixels.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentsync.checkpoints import registry
from latentsync.checkpoints.loading import load_checkpoint, load_into
from latentsync.utils.paths import CHECKPOINTS_DIR

CHECKPOINT = CHECKPOINTS_DIR / registry.REALESRGAN.path
RESIDUAL_SCALE = 0.2
ENLARGED = 4
TILE, CONTEXT = 256, 16  # pixels of a tile and of the context around it; larger images are processed in tiles


class ResidualDenseBlock(nn.Module):
    """Five convolutions, each of which takes all earlier features; (N, C, H, W) in and out."""

    def __init__(self, width: int, growth: int):
        super().__init__()
        for index in range(1, 5):
            setattr(self, f"conv{index}", nn.Conv2d(width + (index - 1) * growth, growth, 3, padding=1))
        self.conv5 = nn.Conv2d(width + 4 * growth, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for index in range(1, 5):
            conv = self.get_submodule(f"conv{index}")
            features.append(F.leaky_relu(conv(torch.cat(features, dim=1)), 0.2))
        return x + RESIDUAL_SCALE * self.conv5(torch.cat(features, dim=1))


class RRDB(nn.Module):
    """Three residual dense blocks with a residual connection."""

    def __init__(self, width: int, growth: int):
        super().__init__()
        self.rdb1, self.rdb2, self.rdb3 = (ResidualDenseBlock(width, growth) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return x + RESIDUAL_SCALE * self.rdb3(self.rdb2(self.rdb1(x)))


class RRDBNet(nn.Module):
    """Fourfold super-resolution: (N, 3, H, W) in [0, 1] -> (N, 3, 4H, 4W), not clamped."""

    def __init__(self, width: int = 64, blocks: int = 23, growth: int = 32):
        super().__init__()
        self.conv_first = nn.Conv2d(3, width, 3, padding=1)
        self.body = nn.Sequential(*(RRDB(width, growth) for _ in range(blocks)))
        self.conv_body, self.conv_up1, self.conv_up2, self.conv_hr = (
            nn.Conv2d(width, width, 3, padding=1) for _ in range(4)
        )
        self.conv_last = nn.Conv2d(width, 3, 3, padding=1)

    @classmethod
    def from_pretrained(cls, path: str | Path) -> "RRDBNet":
        """Load `RealESRGAN_x4plus.pth`.

        Raises:
            UserError: the file is missing or holds other weights.
        """
        net = load_into(cls, load_checkpoint(path), exact=True, network="RealESRGAN x4plus")
        return net.eval().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        features = self.conv_first(x)
        features = features + self.conv_body(self.body(features))
        for conv in (self.conv_up1, self.conv_up2):
            features = F.leaky_relu(conv(F.interpolate(features, scale_factor=2, mode="nearest")), 0.2)
        return self.conv_last(F.leaky_relu(self.conv_hr(features), 0.2))


class FaceUpscaler:
    """Upscales faces four times, one at a time and in tiles, which bounds the memory."""

    name = "realesrgan"

    def __init__(self, net: RRDBNet):
        self.net = net

    @classmethod
    def from_pretrained(cls, path: str | Path = CHECKPOINT) -> "FaceUpscaler":
        """Raises UserError when the checkpoint is missing or holds other weights."""
        without = "use the sharpness filter, which needs no weights (--sharpness_factor 1.5)"
        registry.require_file(path, "realesrgan", without)
        return cls(RRDBNet.from_pretrained(path))

    def to(self, device: str | torch.device, dtype: torch.dtype | None = None) -> "FaceUpscaler":
        self.net.to(device, dtype)
        return self

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> Tensor:
        """(N, 3, R, R) in [-1, 1] -> (N, 3, 4R, 4R)."""
        images = (pixels.to(self.net.conv_first.weight) + 1) / 2
        return torch.cat([self._enlarge(image[None]).clamp(0, 1) for image in images]) * 2 - 1

    def _enlarge(self, image: Tensor) -> Tensor:
        """(1, 3, H, W) -> (1, 3, 4H, 4W)."""
        rows = [self._row(image, top) for top in range(0, image.shape[-2], TILE)]
        return torch.cat(rows, dim=-2)

    def _row(self, image: Tensor, top: int) -> Tensor:
        tiles = []
        for left in range(0, image.shape[-1], TILE):
            above, before = min(top, CONTEXT), min(left, CONTEXT)
            seen = image[..., top - above : top + TILE + CONTEXT, left - before : left + TILE + CONTEXT]
            height, width = min(TILE, image.shape[-2] - top), min(TILE, image.shape[-1] - left)
            rows = slice(ENLARGED * above, ENLARGED * (above + height))
            columns = slice(ENLARGED * before, ENLARGED * (before + width))
            tiles.append(self.net(seen)[..., rows, columns])
        return torch.cat(tiles, dim=-1)
