"""Augmentation of training clips, the same for every frame of a sample, target and reference.

Drawing the parameters (`draw_augmentation`) and applying them (`augment`) are separate, so that frames read at
different times match.

Legend: F frames, R side in pixels.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from latentsync.config.sections import AugmentConfig

MAX_DEGREES, MAX_ZOOM, MAX_SHIFT = 5.0, 0.05, 0.03  # at strength 1; the shift as a share of the side


@dataclass(frozen=True)
class ColorShift:
    """Change of colors: [0, 1] to the power `gamma`, times `gain` and `tint` around mid gray, plus `level`."""

    gamma: float
    gain: float
    tint: tuple[float, float, float]
    level: float


@dataclass(frozen=True)
class Placement:
    """Rotation (radians), zoom and shift (shares of the half side, right and down) about the center of the frame."""

    angle: float
    zoom: float
    shift: tuple[float, float]


@dataclass(frozen=True)
class Augmentation:
    """The augmentation of all frames of one sample; None leaves a part out."""

    mirrored: bool = False
    colors: ColorShift | None = None
    placement: Placement | None = None


def draw_augmentation(config: AugmentConfig, rng: np.random.Generator) -> Augmentation:
    """Draw the parameters. The same count of random numbers is used whatever is switched on."""
    flip, (angle, zoom, right, down) = rng.random(), rng.uniform(-1, 1, 4)
    gamma, gain, red, green, blue, level = rng.uniform(-1, 1, 6)
    colors = placement = None
    if config.color:
        amount = config.color
        tint = tuple(1 + 0.1 * amount * part for part in (red, green, blue))
        colors = ColorShift(2 ** (0.4 * amount * gamma), 1 + 0.25 * amount * gain, tint, 0.15 * amount * level)
    if config.affine:
        amount = config.affine
        shift = (2 * MAX_SHIFT * amount * right, 2 * MAX_SHIFT * amount * down)
        placement = Placement(math.radians(MAX_DEGREES * amount * angle), 1 + MAX_ZOOM * amount * zoom, shift)
    return Augmentation(bool(flip < config.flip), colors, placement)


def augment(frames: Tensor, augmentation: Augmentation) -> Tensor:
    """Apply to float frames (F, 3, R, R) in [-1, 1]; same shape and range, not in place."""
    if augmentation.mirrored:
        frames = frames.flip(-1)
    if augmentation.placement:
        frames = _place(frames, augmentation.placement)
    if augmentation.colors:
        frames = _recolor(frames, augmentation.colors)
    return frames


def _recolor(frames: Tensor, colors: ColorShift) -> Tensor:
    bright = ((frames + 1) / 2).clamp(0, 1) ** colors.gamma
    tint = frames.new_tensor(colors.tint).view(1, 3, 1, 1)
    return ((bright * 2 - 1) * colors.gain * tint + colors.level).clamp(-1, 1)


def _place(frames: Tensor, placement: Placement) -> Tensor:
    cos, sin = math.cos(placement.angle) / placement.zoom, math.sin(placement.angle) / placement.zoom
    right, down = placement.shift
    inverse = frames.new_tensor([[cos, sin, -cos * right - sin * down], [-sin, cos, sin * right - cos * down]])
    return warp(frames, inverse.expand(len(frames), 2, 3))


def warp(frames: Tensor, inverse: Tensor) -> Tensor:
    """Move the pixels of each frame; pixels from outside are reflected, so that no edge shows.

    Args:
        frames: (F, 3, R, R) float in [-1, 1].
        inverse: (F, 2, 3), which maps a point of the result (right, down, 1), from -1 to 1, to where it comes from.
    """
    grid = F.affine_grid(inverse, list(frames.shape), align_corners=False)
    return F.grid_sample(frames, grid, mode="bicubic", padding_mode="reflection", align_corners=False).clamp(-1, 1)
