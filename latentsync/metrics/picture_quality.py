"""How good a picture of a face is, by itself: hyperIQA where its weights are, sharpness elsewhere.

Legend: R side of an aligned face in pixels.
"""

import logging
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
import torch

from latentsync.models.hyperiqa import MEAN, SIDE, STD, HyperIQA
from latentsync.utils.errors import UserError
from latentsync.utils.registry import CHECKPOINTS_DIR, DOWNLOAD_COMMAND, HYPERIQA

logger = logging.getLogger(__name__)

MEASURES = ("auto", "hyperiqa", "sharpness")
HYPERIQA_THRESHOLD = 40.0  # as the reference's data processing has it
# Measured at 128 pixels a side: 35 real faces 0.6 to 2.6; the same blurred by a Gaussian of one pixel 0.24 to 0.43, of
# two pixels 0.14 to 0.23.
SHARPNESS_THRESHOLD = 0.45
SHARPNESS_SIDE = 128  # pixels at which all faces are compared
NOISE_FLOOR = 1.0  # grey levels of edges below which a picture is flat


class QualityMeter(Protocol):
    """`default_threshold`: what training pictures should have."""

    name: str
    default_threshold: float

    def measure(self, picture: np.ndarray) -> float:
        """Of a face (R, R, 3) uint8 RGB; more is better."""


def open_quality_meter(name: str = "auto", device: str = "cpu", checkpoints: Path | None = None) -> QualityMeter:
    """The measure of that name; "auto" is hyperIQA where its weights are.

    Raises:
        UserError: unknown name, or hyperIQA without its weights.
    """
    if name not in MEASURES:
        raise UserError(f"quality measure {name!r} is unknown: choose one of {', '.join(MEASURES)}")
    path = HYPERIQA.find(checkpoints)
    if name == "hyperiqa" and path is None:
        place = (checkpoints or CHECKPOINTS_DIR) / HYPERIQA.path
        raise UserError(f"hyperIQA's weights are missing ({place}); run `{DOWNLOAD_COMMAND} auxiliary`")
    if name == "sharpness" or path is None:
        return SharpnessMeter()
    return HyperIQAMeter(path, device)


class HyperIQAMeter:
    """hyperIQA of the centre, 224 x 224; smaller pictures are enlarged to that."""

    name = "hyperiqa"
    default_threshold = HYPERIQA_THRESHOLD

    def __init__(self, path: str | Path, device: str = "cpu"):
        self.net = HyperIQA.from_pretrained(path).to(device)

    @torch.no_grad()
    def measure(self, picture: np.ndarray) -> float:
        pixels = torch.from_numpy(centre_crop(picture, SIDE)).permute(2, 0, 1).float() / 255
        pixels = (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
        return float(self.net(pixels[None].to(next(self.net.parameters()))))


class SharpnessMeter:
    """Share of fine detail: energy of the Laplacian over the energy of the first derivative, times 10.

    A ratio, so that neither contrast nor light counts: blur takes away the second derivative faster than the first.
    Measured on the middle half of the face, at 128 pixels a side whatever the resolution.
    """

    name = "sharpness"
    default_threshold = SHARPNESS_THRESHOLD

    def measure(self, picture: np.ndarray) -> float:
        grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
        if grey.shape[0] != SHARPNESS_SIDE:
            grey = cv2.resize(grey, (SHARPNESS_SIDE, SHARPNESS_SIDE), interpolation=cv2.INTER_AREA)
        grey = grey.astype(np.float32)
        middle = slice(SHARPNESS_SIDE // 4, -SHARPNESS_SIDE // 4)
        laplacian = cv2.Laplacian(grey, cv2.CV_32F)[middle, middle]
        slope = np.hypot(cv2.Sobel(grey, cv2.CV_32F, 1, 0, scale=1 / 8), cv2.Sobel(grey, cv2.CV_32F, 0, 1, scale=1 / 8))
        slope = float(np.square(slope[middle, middle]).mean())
        return 10 * float(np.square(laplacian).mean()) / 16 / (slope + NOISE_FLOOR)


def centre_crop(picture: np.ndarray, side: int) -> np.ndarray:
    """The middle (side, side, 3) of a picture; a smaller one is enlarged until it fits."""
    shortest = min(picture.shape[:2])
    if shortest < side:
        picture = cv2.resize(picture, None, fx=side / shortest, fy=side / shortest, interpolation=cv2.INTER_CUBIC)
    top, left = (picture.shape[0] - side) // 2, (picture.shape[1] - side) // 2
    return np.ascontiguousarray(picture[top : top + side, left : left + side])
