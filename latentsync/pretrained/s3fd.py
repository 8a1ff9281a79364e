"""S3FD, the face detector of the published SyncNet evaluation (Zhang et al. 2017).

Single shot, six feature maps with one anchor each, max-out background on the finest. Parameter names are those of the
published `sfd_face.pth`. Letters: H W pixels, A anchors.
"""

from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentsync.checkpoints.loading import load_checkpoint, load_into

STRIDES = (4, 8, 16, 32, 64, 128)
ANCHOR_SIDES = (16, 32, 64, 128, 256, 512)
VARIANCES = (0.1, 0.2)  # of the encoding of centers and sides
MEAN_RGB = (123.0, 117.0, 104.0)
VGG16 = (64, 64, "pool", 128, 128, "pool", 256, 256, 256, "pool", 512, 512, 512, "pool", 512, 512, 512, "pool")
TAPS = (15, 22, 29)  # layers after which conv3_3, conv4_3 and conv5_3 are taken
CANDIDATES = 750
OVERLAP = 0.3  # boxes that overlap more are merged into the one with the highest score


class L2Norm(nn.Module):
    """Scale each position's features to a learned length."""

    def __init__(self, channels: int, scale: float):
        super().__init__()
        self.weight = nn.Parameter(torch.full((channels,), float(scale)))

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=1, eps=1e-10) * self.weight.view(1, -1, 1, 1)


class S3FD(nn.Module):
    """Boxes and scores of faces."""

    def __init__(self) -> None:
        super().__init__()
        self.vgg = nn.ModuleList(_trunk())
        self.L2Norm3_3, self.L2Norm4_3, self.L2Norm5_3 = L2Norm(256, 10), L2Norm(512, 8), L2Norm(512, 5)
        self.extras = nn.ModuleList(
            [
                nn.Conv2d(1024, 256, 1),
                nn.Conv2d(256, 512, 3, stride=2, padding=1),
                nn.Conv2d(512, 128, 1),
                nn.Conv2d(128, 256, 3, stride=2, padding=1),
            ]
        )
        widths = (256, 512, 512, 1024, 512, 256)
        self.loc = nn.ModuleList(nn.Conv2d(width, 4, 3, padding=1) for width in widths)
        # Max-out background: the largest of three background scores on the finest map.
        self.conf = nn.ModuleList(nn.Conv2d(width, 4 if i == 0 else 2, 3, padding=1) for i, width in enumerate(widths))

    @classmethod
    def from_pretrained(cls, path: str | Path) -> "S3FD":
        """The published weights, for inference. Raises UserError if the file is missing or holds other weights."""
        return load_into(cls, load_checkpoint(path), exact=True, network="S3FD").eval()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) RGB minus `MEAN_RGB` -> boxes (B, A, 4) as fractions of W and H, face probabilities (B, A)."""
        boxes, scores = [], []
        for index, features in enumerate(self._features(images)):
            offsets = self.loc[index](features).flatten(2).transpose(1, 2)
            logits = self.conf[index](features).flatten(2).transpose(1, 2)
            background = logits[..., :-1].amax(dim=-1)
            scores.append(torch.stack([background, logits[..., -1]], dim=-1).softmax(dim=-1)[..., 1])
            boxes.append(_decode(offsets, _anchors(index, features.shape[-2:], images.shape[-2:]).to(offsets)))
        return torch.cat(boxes, dim=1), torch.cat(scores, dim=1)

    def _features(self, x: Tensor) -> list[Tensor]:
        found = []
        norms = iter((self.L2Norm3_3, self.L2Norm4_3, self.L2Norm5_3))
        for index, layer in enumerate(self.vgg):
            x = layer(x)
            if index in TAPS:
                found.append(next(norms)(x))
        found.append(x)
        for index, layer in enumerate(self.extras):
            x = F.relu(layer(x))
            if index % 2:
                found.append(x)
        return found

    @torch.no_grad()
    def detect(self, image: np.ndarray, min_score: float = 0.9, scale: float = 0.25) -> np.ndarray:
        """Faces of an RGB image (H, W, 3) uint8, detected at `scale` times its size: (n, 5) x0, y0, x1, y1, score.

        Boxes are in pixels of the original image.
        """
        height, width = image.shape[:2]
        small = cv2.resize(image, (max(1, round(width * scale)), max(1, round(height * scale))))
        pixels = torch.from_numpy(small).permute(2, 0, 1).float() - torch.tensor(MEAN_RGB).view(3, 1, 1)
        boxes, scores = self(pixels[None].to(self.loc[0].weight))
        boxes, scores = boxes[0].float().cpu(), scores[0].float().cpu()
        best = scores.topk(min(CANDIDATES, len(scores))).indices
        boxes = (boxes[best] * torch.tensor([width, height, width, height])).numpy()
        scores = scores[best].numpy()
        sides = [[x0, y0, x1 - x0, y1 - y0] for x0, y0, x1, y1 in boxes.tolist()]
        kept = np.asarray(cv2.dnn.NMSBoxes(sides, scores.tolist(), min_score, OVERLAP), dtype=int).reshape(-1)
        return np.concatenate([boxes[kept], scores[kept, None]], axis=1)


def _trunk() -> list[nn.Module]:
    """VGG16's convolutions, then fc6 (dilated by 6) and fc7 as convolutions."""
    layers: list[nn.Module] = []
    channels = 3
    for width in VGG16:
        if width == "pool":
            layers.append(nn.MaxPool2d(2, 2, ceil_mode=len(layers) == 16))
        else:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
    fc6 = nn.Conv2d(channels, 1024, 3, padding=6, dilation=6)
    return [*layers, fc6, nn.ReLU(), nn.Conv2d(1024, 1024, 1), nn.ReLU()]


def _anchors(index: int, size: torch.Size, image: torch.Size) -> Tensor:
    """Centers and sides of the anchors of a feature map (A, 4), as fractions of the image."""
    rows, columns = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
    x, y = (columns.flatten() + 0.5) * STRIDES[index] / image[1], (rows.flatten() + 0.5) * STRIDES[index] / image[0]
    width, height = ANCHOR_SIDES[index] / image[1], ANCHOR_SIDES[index] / image[0]
    return torch.stack([x, y, torch.full_like(x, width), torch.full_like(y, height)], dim=1)


def _decode(offsets: Tensor, anchors: Tensor) -> Tensor:
    """Offsets in SSD's encoding (Liu et al. 2016) -> box corners."""
    centers = anchors[:, :2] + offsets[..., :2] * VARIANCES[0] * anchors[:, 2:]
    sides = anchors[:, 2:] * torch.exp(offsets[..., 2:] * VARIANCES[1])
    return torch.cat([centers - sides / 2, centers + sides / 2], dim=-1)
