"""hyperIQA: no-reference image quality, 0 to 100. Su et al. 2020, "Blindly Assess Image Quality in the Wild Guided by
a Self-Adaptive Hyper Network".

From the features of a ResNet-50, a hyper network computes the weights of a small network that predicts the quality.
Parameter names follow from the published architecture and have not been compared with the public KonIQ-10k checkpoint:
loading it reports every difference. Legend: N images, C channels.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from latentsync.checkpoints.loading import load_checkpoint, load_into

SIDE = 224  # pixels of the input
GRID = 7  # of the last features
STAGES = ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2))  # width, blocks, stride
LOCAL = 16  # features taken from each of the first three stages
HYPER = 112  # channels of the hyper network
TARGET = (224, 112, 56, 28, 14)  # widths of the quality network
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's


class Bottleneck(nn.Module):
    """Bottleneck block of ResNet (He et al. 2016), stride in the 3 x 3 convolution."""

    def __init__(self, channels: int, width: int, stride: int):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width)
        self.relu = nn.ReLU()
        self.downsample = None
        if stride != 1 or channels != 4 * width:
            shortcut = nn.Conv2d(channels, 4 * width, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(4 * width))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        return self.relu(self.bn3(self.conv3(x)) + shortcut)


class ResNetBackbone(nn.Module):
    """ResNet-50 with local features of all stages: (N, 3, 224, 224) -> (N, 224), (N, 2048, 7, 7)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        self.relu, self.maxpool = nn.ReLU(), nn.MaxPool2d(3, 2, 1)
        channels = 64
        for number, (width, blocks, stride) in enumerate(STAGES, start=1):
            layers = [Bottleneck(channels, width, stride)]
            channels = 4 * width
            layers += [Bottleneck(channels, width, 1) for _ in range(blocks - 1)]
            setattr(self, f"layer{number}", nn.Sequential(*layers))
        for number, (channels, width, cells) in enumerate(((256, 16, 64), (512, 32, 16), (1024, 64, 4)), start=1):
            setattr(self, f"lda{number}_pool", nn.Sequential(nn.Conv2d(channels, width, 1), nn.AvgPool2d(7, 7)))
            setattr(self, f"lda{number}_fc", nn.Linear(width * cells, LOCAL))
        self.lda4_pool = nn.AvgPool2d(7, 7)
        self.lda4_fc = nn.Linear(2048, TARGET[0] - 3 * LOCAL)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        local = []
        for number in range(1, 5):
            x = getattr(self, f"layer{number}")(x)
            pooled = getattr(self, f"lda{number}_pool")(x).flatten(1)
            local.append(getattr(self, f"lda{number}_fc")(pooled))
        return torch.cat(local, dim=1), x


class HyperIQA(nn.Module):
    """Quality of images (N, 3, 224, 224), normalized with ImageNet's mean and deviation: (N,), about 0 to 100."""

    def __init__(self) -> None:
        super().__init__()
        self.res = ResNetBackbone()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.conv1 = nn.Sequential(
            nn.Conv2d(2048, 1024, 1), nn.ReLU(), nn.Conv2d(1024, 512, 1), nn.ReLU(), nn.Conv2d(512, HYPER, 1), nn.ReLU()
        )
        for number, (width, wider) in enumerate(zip(TARGET[1:], TARGET[:-1], strict=True), start=1):
            setattr(self, f"fc{number}w_conv", nn.Conv2d(HYPER, wider * width // GRID**2, 3, padding=1))
            setattr(self, f"fc{number}b_fc", nn.Linear(HYPER, width))
        self.fc5w_fc, self.fc5b_fc = nn.Linear(HYPER, TARGET[-1]), nn.Linear(HYPER, 1)

    @classmethod
    def from_pretrained(cls, path: str | Path) -> "HyperIQA":
        """The public weights, for inference. Raises UserError if the file is missing or holds other weights."""
        return load_into(cls, load_checkpoint(path), exact=True, network="hyperIQA").eval()

    def forward(self, images: Tensor) -> Tensor:
        values, features = self.res(images)
        features = self.conv1(features)
        pooled = self.pool(features).flatten(1)
        for number, (width, wider) in enumerate(zip(TARGET[1:], TARGET[:-1], strict=True), start=1):
            weight = getattr(self, f"fc{number}w_conv")(features).view(-1, width, wider)
            bias = getattr(self, f"fc{number}b_fc")(pooled)
            values = (torch.einsum("nij,nj->ni", weight, values) + bias).sigmoid()
        return (self.fc5w_fc(pooled) * values).sum(dim=1) + self.fc5b_fc(pooled)[:, 0]
