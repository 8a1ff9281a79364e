"""Variations of training clips, the same in every frame of a sample: its target and its reference alike.

Drawing (`draw_augmentation`) and applying (`augment`) are apart, so that frames read at different times match.
Legend: F frames, R side in pixels.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from latentsync.utils.augment_config import AugmentConfig

MAX_DEGREES, MAX_ZOOM, MAX_SHIFT = 5.0, 0.05, 0.03  # at strength 1; the shift as a share of the side


@dataclass(frozen=True)
class Colours:
    """Change of colours: [0, 1] to the power `gamma`, times `gain` and `tint` about mid grey, plus `level`."""

    gamma: float
    gain: float
    tint: tuple[float, float, float]
    level: float


@dataclass(frozen=True)
class Placement:
    """Turn (radians), zoom and shift (shares of the half side, right and down) of the picture about its centre."""

    angle: float
    zoom: float
    shift: tuple[float, float]


@dataclass(frozen=True)
class Augmentation:
    """What is done to all frames of one sample; None leaves it out."""

    mirrored: bool = False
    colours: Colours | None = None
    placement: Placement | None = None


def draw_augmentation(config: AugmentConfig, rng: np.random.Generator) -> Augmentation:
    """Draw one variation. The same count of random numbers is taken whatever is switched on."""
    flip, (angle, zoom, right, down) = rng.random(), rng.uniform(-1, 1, 4)
    gamma, gain, red, green, blue, level = rng.uniform(-1, 1, 6)
    colours = placement = None
    if config.colour:
        amount = config.colour
        tint = tuple(1 + 0.1 * amount * part for part in (red, green, blue))
        colours = Colours(2 ** (0.4 * amount * gamma), 1 + 0.25 * amount * gain, tint, 0.15 * amount * level)
    if config.affine:
        amount = config.affine
        shift = (2 * MAX_SHIFT * amount * right, 2 * MAX_SHIFT * amount * down)
        placement = Placement(math.radians(MAX_DEGREES * amount * angle), 1 + MAX_ZOOM * amount * zoom, shift)
    return Augmentation(bool(flip < config.flip), colours, placement)


def augment(frames: Tensor, augmentation: Augmentation) -> Tensor:
    """Apply to float frames (F, 3, R, R) in [-1, 1]; same shape and range, the input is left alone."""
    if augmentation.mirrored:
        frames = frames.flip(-1)
    if augmentation.placement:
        frames = _place(frames, augmentation.placement)
    if augmentation.colours:
        frames = _recolour(frames, augmentation.colours)
    return frames


def _recolour(frames: Tensor, colours: Colours) -> Tensor:
    bright = ((frames + 1) / 2).clamp(0, 1) ** colours.gamma
    tint = frames.new_tensor(colours.tint).view(1, 3, 1, 1)
    return ((bright * 2 - 1) * colours.gain * tint + colours.level).clamp(-1, 1)


def _place(frames: Tensor, placement: Placement) -> Tensor:
    cos, sin = math.cos(placement.angle) / placement.zoom, math.sin(placement.angle) / placement.zoom
    right, down = placement.shift
    inverse = frames.new_tensor([[cos, sin, -cos * right - sin * down], [-sin, cos, sin * right - cos * down]])
    return warp(frames, inverse.expand(len(frames), 2, 3))


def warp(frames: Tensor, inverse: Tensor) -> Tensor:
    """Move the pixels of each frame; what comes from outside the picture is its mirror image, so that no edge shows.

    Args:
        frames: (F, 3, R, R) float in [-1, 1].
        inverse: (F, 2, 3), which maps a place in the result (right, down, 1), from -1 to 1, to where it comes from.
    """
    grid = F.affine_grid(inverse, list(frames.shape), align_corners=False)
    return F.grid_sample(frames, grid, mode="bicubic", padding_mode="reflection", align_corners=False).clamp(-1, 1)
