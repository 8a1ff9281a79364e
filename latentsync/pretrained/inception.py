"""Inception-v3 as FID uses it: the network of 2015 ported from TensorFlow, 2048 features of its last pooling.

Parameter names are those of the published port, `pt_inception-2015-12-05-6726825d.pth` (torchvision's names, a
classifier of 1008). It differs from the usual Inception-v3: average pooling does not count the padding, and the last
block has max pooling.

Legend: N images, C channels, H W pixels.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentsync.checkpoints import registry
from latentsync.checkpoints.loading import load_checkpoint, load_into
from latentsync.utils.paths import CHECKPOINTS_DIR

CHECKPOINT = CHECKPOINTS_DIR / registry.INCEPTION.path
NETWORK = "FID's Inception-v3"
SIDE = 299
FEATURES, CLASSES = 2048, 1008


class Conv(nn.Module):
    """Convolution without bias, batch norm, ReLU."""

    def __init__(self, channels: int, width: int, kernel: int | tuple[int, int], stride: int = 1, padding=0):
        super().__init__()
        self.conv = nn.Conv2d(channels, width, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(width, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


def average_pool(x: Tensor) -> Tensor:
    """3 x 3, same size; padding is not counted."""
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


def max_pool(x: Tensor) -> Tensor:
    """3 x 3, same size."""
    return F.max_pool2d(x, 3, stride=1, padding=1)


class BlockA(nn.Module):
    """35 x 35: 1x1, 5x5, 3x3 twice, pooling."""

    def __init__(self, channels: int, pooled: int):
        super().__init__()
        self.branch1x1 = Conv(channels, 64, 1)
        self.branch5x5_1, self.branch5x5_2 = Conv(channels, 48, 1), Conv(48, 64, 5, padding=2)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = Conv(channels, 64, 1), Conv(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = Conv(96, 96, 3, padding=1)
        self.branch_pool = Conv(channels, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        five = self.branch5x5_2(self.branch5x5_1(x))
        return torch.cat([self.branch1x1(x), five, double, self.branch_pool(average_pool(x))], dim=1)


class BlockB(nn.Module):
    """35 x 35 -> 17 x 17."""

    def __init__(self, channels: int):
        super().__init__()
        self.branch3x3 = Conv(channels, 384, 3, stride=2)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = Conv(channels, 64, 1), Conv(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = Conv(96, 96, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, F.max_pool2d(x, 3, stride=2)], dim=1)


class BlockC(nn.Module):
    """17 x 17: 1x1, 7x7 and 7x7 twice as rows and columns, pooling."""

    def __init__(self, width: int):
        super().__init__()
        row, column = {"kernel": (1, 7), "padding": (0, 3)}, {"kernel": (7, 1), "padding": (3, 0)}
        self.branch1x1 = Conv(768, 192, 1)
        self.branch7x7_1, self.branch7x7_2 = Conv(768, width, 1), Conv(width, width, **row)
        self.branch7x7_3 = Conv(width, 192, **column)
        self.branch7x7dbl_1, self.branch7x7dbl_2 = Conv(768, width, 1), Conv(width, width, **column)
        self.branch7x7dbl_3, self.branch7x7dbl_4 = Conv(width, width, **row), Conv(width, width, **column)
        self.branch7x7dbl_5 = Conv(width, 192, **row)
        self.branch_pool = Conv(768, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        single = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat([self.branch1x1(x), single, double, self.branch_pool(average_pool(x))], dim=1)


class BlockD(nn.Module):
    """17 x 17 -> 8 x 8."""

    def __init__(self):
        super().__init__()
        self.branch3x3_1, self.branch3x3_2 = Conv(768, 192, 1), Conv(192, 320, 3, stride=2)
        self.branch7x7x3_1, self.branch7x7x3_2 = Conv(768, 192, 1), Conv(192, 192, (1, 7), padding=(0, 3))
        self.branch7x7x3_3, self.branch7x7x3_4 = Conv(192, 192, (7, 1), padding=(3, 0)), Conv(192, 192, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        seven = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
        return torch.cat([self.branch3x3_2(self.branch3x3_1(x)), seven, F.max_pool2d(x, 3, stride=2)], dim=1)


class BlockE(nn.Module):
    """8 x 8: 1x1, 3x3 and 3x3 twice, each ending in a row and a column side by side, pooling by `pool`."""

    def __init__(self, channels: int, pool):
        super().__init__()
        row, column = {"kernel": (1, 3), "padding": (0, 1)}, {"kernel": (3, 1), "padding": (1, 0)}
        self.pool = pool
        self.branch1x1 = Conv(channels, 320, 1)
        self.branch3x3_1 = Conv(channels, 384, 1)
        self.branch3x3_2a, self.branch3x3_2b = Conv(384, 384, **row), Conv(384, 384, **column)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = Conv(channels, 448, 1), Conv(448, 384, 3, padding=1)
        self.branch3x3dbl_3a, self.branch3x3dbl_3b = Conv(384, 384, **row), Conv(384, 384, **column)
        self.branch_pool = Conv(channels, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        three = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        parts = [self.branch1x1(x), self.branch3x3_2a(three), self.branch3x3_2b(three)]
        parts += [self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double), self.branch_pool(self.pool(x))]
        return torch.cat(parts, dim=1)


class FIDInception(nn.Module):
    """(N, 3, H, W) RGB in [-1, 1] -> (N, 2048). Images of another size are resized to 299 x 299."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3, self.Conv2d_2a_3x3 = Conv(3, 32, 3, stride=2), Conv(32, 32, 3)
        self.Conv2d_2b_3x3 = Conv(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1, self.Conv2d_4a_3x3 = Conv(64, 80, 1), Conv(80, 192, 3)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = BlockA(192, 32), BlockA(256, 64), BlockA(288, 64)
        self.Mixed_6a = BlockB(288)
        self.Mixed_6b, self.Mixed_6c, self.Mixed_6d, self.Mixed_6e = (BlockC(width) for width in (128, 160, 160, 192))
        self.Mixed_7a = BlockD()
        self.Mixed_7b, self.Mixed_7c = BlockE(1280, average_pool), BlockE(2048, max_pool)
        self.fc = nn.Linear(FEATURES, CLASSES)  # part of the file; features are taken before it

    @classmethod
    def from_pretrained(cls, path: str | Path = CHECKPOINT) -> "FIDInception":
        """Raises UserError when the file is missing or damaged, or holds other weights."""
        registry.require_file(path, "inception")
        found = load_checkpoint(path)
        with torch.device("meta"):
            names = [name for name in cls().state_dict() if name.endswith("num_batches_tracked")]
        counters = dict.fromkeys(names, torch.zeros((), dtype=torch.long))  # not in old files, and never read
        net = load_into(cls, replace(found, state_dict=counters | found.state_dict), exact=True, network=NETWORK)
        return net.eval().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        # TensorFlow's graph took 0..255 and computed (x - 128) / 128.
        x = (resize_tf1((x + 1) * 127.5, SIDE) - 128) / 128
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, stride=2)))
        x = F.max_pool2d(x, 3, stride=2)
        for block in self._blocks():
            x = block(x)
        return x.mean(dim=(2, 3))

    def _blocks(self) -> Sequence[nn.Module]:
        mixed = (module for name, module in self.named_children() if name.startswith("Mixed_"))
        return list(mixed)


def resize_tf1(x: Tensor, side: int) -> Tensor:
    """Bilinear as TensorFlow 1 did: output pixel i is at i * in / out, without half-pixel centers. (N, C, H, W)."""
    for dim in (2, 3):
        size = x.shape[dim]
        if size == side:
            continue
        places = torch.arange(side, dtype=torch.float64) * (size / side)
        low = places.long()
        share = (places - low).to(x).view([-1, 1] if dim == 2 else [-1])
        low, high = low.to(x.device), (low + 1).clamp(max=size - 1).to(x.device)
        x = torch.lerp(x.index_select(dim, low), x.index_select(dim, high), share)
    return x
