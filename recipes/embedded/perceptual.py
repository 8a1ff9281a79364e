"""Perceptual distance on the features of MobileNetV2 trained on ImageNet (Sandler et al. 2018).

Parameter names are those of torchvision's `mobilenet_v2`, so its published weights load. The weights are used in
training alone and are no part of the model.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentsync.pretrained.mobilenet import IMAGENET_MEAN, IMAGENET_STD, STAGES, STEM, InvertedResidual, conv_bn
from latentsync.utils.errors import UserError

DEPTHS = (1, 3, 6, 10, 13)  # index of the last block of each stage, whose output is compared
COMPARED_STAGES = STAGES[: len(DEPTHS)]


class PerceptualDistance(nn.Module):
    """Mean over depths of the squared distance of features that are normalized over the channels.

    Args:
        weights: a state dict file of torchvision's `mobilenet_v2`.

    Raises:
        UserError: the file is missing or holds another network.
    """

    def __init__(self, weights: str | Path) -> None:
        super().__init__()
        self.features = nn.Sequential(conv_bn(3, STEM, 3, 2))
        width = STEM
        for expansion, channels, count, stride in COMPARED_STAGES:
            for index in range(count):
                self.features.append(InvertedResidual(width, channels, stride if index == 0 else 1, expansion))
                width = channels
        self._load(Path(weights))
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)
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
