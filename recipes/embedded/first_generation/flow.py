"""Optical flow on the device of its input, without waiting for it: pyramidal Lucas and Kanade 1981 (Bouguet 2001).

Legend: N pairs of images, H W pixels. Images are gray in [0, 1], (N, 1, H, W). Flows are in pixels, x before y.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

SMALLEST = 16  # pixels: shorter side of the coarsest level
ITERATIONS = 6  # on each level
WINDOW = 9  # pixels: motion is constant in it
STIFFNESS = 1e-4  # added to the squared gradients: flat areas do not move
LARGEST_STEP = 1.0  # pixels of a level in one iteration


@torch.no_grad()
def optical_flow(image: Tensor, other: Tensor) -> Tensor:
    """Flow (N, 2, H, W) from `image` to `other`: `other` at x + flow(x) matches `image` at x."""
    levels = [(image.float(), other.float())]
    while min(levels[-1][0].shape[-2:]) >= 2 * SMALLEST:
        levels.append(tuple(F.avg_pool2d(_blur(side), 2, ceil_mode=True) for side in levels[-1]))
    flow = torch.zeros_like(levels[-1][0]).expand(-1, 2, -1, -1)
    for one, two in reversed(levels):
        height, width = one.shape[-2:]
        scale = flow.new_tensor([width / flow.shape[-1], height / flow.shape[-2]]).view(1, 2, 1, 1)
        flow = F.interpolate(flow, size=(height, width), mode="bilinear", align_corners=False) * scale
        for _ in range(ITERATIONS):
            flow = _blur(flow + _step(one, two, flow))
    return flow


def warp_grid(flow: Tensor) -> Tensor:
    """(N, H, W, 2) for `F.grid_sample` with `align_corners=False`, of the pixels that a flow (N, 2, H, W) leads to."""
    height, width = flow.shape[-2:]
    rows = torch.arange(height, device=flow.device, dtype=flow.dtype).view(1, -1, 1).expand(len(flow), -1, width)
    columns = torch.arange(width, device=flow.device, dtype=flow.dtype).view(1, 1, -1).expand(len(flow), height, -1)
    x, y = columns + flow[:, 0], rows + flow[:, 1]
    return torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], dim=-1)


def _step(image: Tensor, other: Tensor, flow: Tensor) -> Tensor:
    """The change of the flow that least squares over a window propose."""
    moved = F.grid_sample(other, warp_grid(flow), padding_mode="border", align_corners=False)
    padded = F.pad(moved, (1, 1, 1, 1), mode="replicate")
    slope_x = (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]) / 2
    slope_y = (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]) / 2
    missing = image - moved
    products = (slope_x * slope_x, slope_x * slope_y, slope_y * slope_y, slope_x * missing, slope_y * missing)
    xx, xy, yy, xm, ym = _mean(torch.cat(products, dim=1), WINDOW).split(1, dim=1)
    xx, yy = xx + STIFFNESS, yy + STIFFNESS
    determinant = xx * yy - xy * xy
    step = torch.cat([yy * xm - xy * ym, xx * ym - xy * xm], dim=1) / determinant
    return step.clamp(-LARGEST_STEP, LARGEST_STEP)


def _blur(x: Tensor) -> Tensor:
    return _mean(x, 3)


def _mean(x: Tensor, side: int) -> Tensor:
    return F.avg_pool2d(x, side, stride=1, padding=side // 2, count_include_pad=False)
