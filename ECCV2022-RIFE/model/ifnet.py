"""IFNet of RIFE ("HDv3" layout): interpolates the middle of two frames by refining flow and mask three times,
from coarse to fine. Huang et al. 2022, "Real-Time Intermediate Flow Estimation for Video Frame Interpolation".

Huang et al. 2022, "Real-Time Intermediate Flow Estimation for Video Frame Interpolation". Parameter names are those of
the published `flownet.pkl`. Letters: B pairs, H W pixels, multiples of 32 / scale.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SCALES = (4.0, 2.0, 1.0)
WIDTH = 90
FLOW, MASK = 4, 1  # channels: x and y to both frames; blending weight


def _conv(channels: int, width: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, width, 3, stride, 1), nn.PReLU(width))


def _enlarge(width: int, channels: int) -> nn.Sequential:
    """Upsample by a factor of four."""
    half = width // 2
    return nn.Sequential(
        nn.ConvTranspose2d(width, half, 4, 2, 1), nn.PReLU(half), nn.ConvTranspose2d(half, channels, 4, 2, 1)
    )


def _resize(x: Tensor, factor: float) -> Tensor:
    return x if factor == 1 else F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)


class IFBlock(nn.Module):
    """Computes an update of flow and mask. `channels`: of the input without the flow."""

    def __init__(self, channels: int, width: int = WIDTH):
        super().__init__()
        self.conv0 = nn.Sequential(_conv(channels + FLOW, width // 2, 2), _conv(width // 2, width, 2))
        for index in range(4):
            setattr(self, f"convblock{index}", nn.Sequential(_conv(width, width), _conv(width, width)))
        self.conv1, self.conv2 = _enlarge(width, FLOW), _enlarge(width, MASK)

    def forward(self, x: Tensor, flow: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """x (B, C, H, W), flow (B, 4, H, W), processed at 1 / scale of the size -> (B, 4, H, W), (B, 1, H, W)."""
        features = self.conv0(torch.cat([_resize(x, 1 / scale), _resize(flow, 1 / scale) / scale], dim=1))
        for index in range(4):
            features = getattr(self, f"convblock{index}")(features) + features
        return _resize(self.conv1(features), scale) * scale, _resize(self.conv2(features), scale)


class IFNet(nn.Module):
    """Interpolates the middle of two frames. `block_tea`, the teacher, is used in training only."""

    def __init__(self, width: int = WIDTH, teacher: bool = True):
        super().__init__()
        self.block0, self.block1, self.block2 = (IFBlock(7, width) for _ in SCALES)
        if teacher:
            self.block_tea = IFBlock(10, width)

    @torch.no_grad()
    def forward(self, first: Tensor, second: Tensor, scale: float = 1.0) -> Tensor:
        """Two frames (B, 3, H, W) in [0, 1] -> (B, 3, H, W). `scale` 0.5 halves the resolution of the flow, for 4K."""
        flow = first.new_zeros(len(first), FLOW, *first.shape[-2:])
        mask = first.new_zeros(len(first), MASK, *first.shape[-2:])
        early, late = first, second
        for block, size in zip((self.block0, self.block1, self.block2), SCALES, strict=True):
            # Averaged over both orders of the frames, so that the result does not depend on the order.
            flow1, mask1 = block(torch.cat([early, late, mask], dim=1), flow, size / scale)
            flow2, mask2 = block(torch.cat([late, early, -mask], dim=1), flow.roll(2, dims=1), size / scale)
            flow = flow + (flow1 + flow2.roll(2, dims=1)) / 2
            mask = mask + (mask1 - mask2) / 2
            early, late = warp(first, flow[:, :2]), warp(second, flow[:, 2:])
        return torch.lerp(late, early, mask.sigmoid())


def warp(frame: Tensor, flow: Tensor) -> Tensor:
    """Sample a frame (B, 3, H, W) at positions displaced by the flow (B, 2, H, W) in pixels; edges are replicated."""
    height, width = frame.shape[-2:]
    rows = torch.arange(height, device=flow.device, dtype=flow.dtype).view(1, -1, 1)
    columns = torch.arange(width, device=flow.device, dtype=flow.dtype).view(1, 1, -1)
    x = (columns + flow[:, 0]) * (2 / max(width - 1, 1)) - 1
    y = (rows + flow[:, 1]) * (2 / max(height - 1, 1)) - 1
    grid = torch.stack([x, y], dim=-1).to(frame.dtype)
    return F.grid_sample(frame, grid, mode="bilinear", padding_mode="border", align_corners=True)
