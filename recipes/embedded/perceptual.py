"""Perceptual distance on the features of MobileNetV2 trained on ImageNet (Sandler et al. 2018).

Parameter names are those of torchvision's `mobilenet_v2`, so its published weights load. The weights are used in
training alone and are no part of the model.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentsync.utils.errors import UserError

# Expansion, channels, blocks, stride of the first block (table 2 of the paper).
STAGES = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1)]
FIRST_WIDTH = 32
DEPTHS = (1, 3, 6, 10, 13)  # index of the last block of each stage, whose output is compared
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def _convolution(before: int, after: int, kernel: int, stride: int, groups: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(before, after, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(after), nn.ReLU6())


class InvertedResidual(nn.Module):
    """Expand, filter each channel, project."""

    def __init__(self, before: int, after: int, stride: int, expansion: int) -> None:
        super().__init__()
        width = before * expansion
        layers: list[nn.Module] = [_convolution(before, width, 1, 1)] if expansion > 1 else []
        layers += [_convolution(width, width, 3, stride, groups=width)]
        layers += [nn.Conv2d(width, after, 1, bias=False), nn.BatchNorm2d(after)]
        self.conv = nn.Sequential(*layers)
        self.is_residual = stride == 1 and before == after

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.is_residual else self.conv(x)


class PerceptualDistance(nn.Module):
    """Mean over depths of the squared distance of features that are normalized over the channels.

    Args:
        weights: a state dict file of torchvision's `mobilenet_v2`.

    Raises:
        UserError: the file is missing or holds another network.
    """

    def __init__(self, weights: str | Path) -> None:
        super().__init__()
        self.features = nn.Sequential(_convolution(3, FIRST_WIDTH, 3, 2))
        width = FIRST_WIDTH
        for expansion, channels, count, stride in STAGES:
            for index in range(count):
                self.features.append(InvertedResidual(width, channels, stride if index == 0 else 1, expansion))
                width = channels
        self._load(Path(weights))
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)
        self.eval().requires_grad_(False)

    def _load(self, path: Path) -> None:
        if not path.is_file():
            raise UserError(f"{path}: no such file; give the weights of torchvision's mobilenet_v2")
        state = torch.load(path, map_location="cpu", weights_only=True)
        wanted = self.state_dict()
        if missing := wanted.keys() - state.keys():
            raise UserError(f"{path}: not torchvision's mobilenet_v2 ({sorted(missing)[0]} is missing)")
        self.load_state_dict({name: state[name] for name in wanted})

    def embed(self, images: Tensor) -> list[Tensor]:
        """(N, 3, H, W) in [-1, 1] -> unit vectors over the channels, at each depth."""
        x = ((images + 1) / 2 - self.mean) / self.std
        found = []
        for index, block in enumerate(self.features):
            x = block(x)
            if index in DEPTHS:
                found.append(F.normalize(x, dim=1))
        return found

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        """(N, 3, H, W) twice, in [-1, 1] -> scalar; gradients pass to `images`."""
        with torch.no_grad():
            wanted = self.embed(targets)
        return self.distance(self.embed(images), wanted)

    @staticmethod
    def distance(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
        """Of features from `embed`."""
        return torch.stack([(a - b).square().sum(1).mean() for a, b in zip(found, wanted, strict=True)]).mean()
