"""No-reference image quality of a face: hyperIQA if its weights are present, else sharpness.

Legend: R side of an aligned face in pixels.
"""

import logging
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
import torch

from latentsync.checkpoints.registry import DOWNLOAD_COMMAND, HYPERIQA
from latentsync.pretrained.hyperiqa import MEAN, SIDE, STD, HyperIQA
from latentsync.utils.errors import UserError
from latentsync.utils.paths import CHECKPOINTS_DIR

logger = logging.getLogger(__name__)

QUALITY_METRICS = ("auto", "hyperiqa", "sharpness")
HYPERIQA_THRESHOLD = 40.0  # of LatentSync's data processing
# Measured on 35 real faces of 128 x 128 pixels: 0.6 to 2.6; after a Gaussian blur of one pixel 0.24 to 0.43, of two
# pixels 0.14 to 0.23.
SHARPNESS_THRESHOLD = 0.45
SHARPNESS_SIDE = 128  # pixels: faces are resized to this
NOISE_FLOOR = 1.0  # gray levels of edges below which an image is flat


class QualityMetric(Protocol):
    """`default_threshold`: lowest value of good training images."""

    name: str
    default_threshold: float

    def compute(self, image: np.ndarray) -> float:
        """Quality of a face (R, R, 3) uint8 RGB; higher is better."""


def open_quality_metric(name: str = "auto", device: str = "cpu", checkpoints: Path | None = None) -> QualityMetric:
    """Open a metric by name; "auto" is hyperIQA if its weights are present.

    Raises:
        UserError: unknown name, or hyperIQA without its weights.
    """
    if name not in QUALITY_METRICS:
        raise UserError(f"quality metric {name!r} is unknown: choose one of {', '.join(QUALITY_METRICS)}")
    path = HYPERIQA.find(checkpoints)
    if name == "hyperiqa" and path is None:
        place = (checkpoints or CHECKPOINTS_DIR) / HYPERIQA.path
        raise UserError(f"hyperIQA's weights are missing ({place}); run `{DOWNLOAD_COMMAND} auxiliary`")
    if name == "sharpness" or path is None:
        return SharpnessMetric()
    return HyperIQAMetric(path, device)


class HyperIQAMetric:
    """hyperIQA of the central 224 x 224 pixels; smaller images are enlarged."""

    name = "hyperiqa"
    default_threshold = HYPERIQA_THRESHOLD

    def __init__(self, path: str | Path, device: str = "cpu"):
        self.net = HyperIQA.from_pretrained(path).to(device)

    @torch.no_grad()
    def compute(self, image: np.ndarray) -> float:
        pixels = torch.from_numpy(center_crop(image, SIDE)).permute(2, 0, 1).float() / 255
        pixels = (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
        return float(self.net(pixels[None].to(next(self.net.parameters()))))


class SharpnessMetric:
    """Share of fine detail: energy of the Laplacian over the energy of the first derivative, times 10.

    The ratio is independent of contrast and brightness: blur reduces the second derivative faster than the first.
    Computed on the middle half of the face at 128 x 128 pixels.
    """

    name = "sharpness"
    default_threshold = SHARPNESS_THRESHOLD

    def compute(self, image: np.ndarray) -> float:
        gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        if gray.shape[0] != SHARPNESS_SIDE:
            gray = cv2.resize(gray, (SHARPNESS_SIDE, SHARPNESS_SIDE), interpolation=cv2.INTER_AREA)
        gray = gray.astype(np.float32)
        middle = slice(SHARPNESS_SIDE // 4, -SHARPNESS_SIDE // 4)
        laplacian = cv2.Laplacian(gray, cv2.CV_32F)[middle, middle]
        slope = np.hypot(cv2.Sobel(gray, cv2.CV_32F, 1, 0, scale=1 / 8), cv2.Sobel(gray, cv2.CV_32F, 0, 1, scale=1 / 8))
        slope = float(np.square(slope[middle, middle]).mean())
        return 10 * float(np.square(laplacian).mean()) / 16 / (slope + NOISE_FLOOR)


def center_crop(image: np.ndarray, side: int) -> np.ndarray:
    """Central crop (side, side, 3) of an image; a smaller image is enlarged."""
    shortest = min(image.shape[:2])
    if shortest < side:
        image = cv2.resize(image, None, fx=side / shortest, fy=side / shortest, interpolation=cv2.INTER_CUBIC)
    top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
    return np.ascontiguousarray(image[top : top + side, left : left + side])
