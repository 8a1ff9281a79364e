"""Face enhancers: networks that upscale or restore a generated face before it is pasted back."""

import logging
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from latentsync.options import ENHANCERS
from latentsync.pretrained.gfpgan import FaceRestorer
from latentsync.pretrained.rrdbnet import FaceUpscaler
from latentsync.utils.errors import UserError

logger = logging.getLogger(__name__)


class FaceEnhancer(Protocol):
    """Enhances aligned faces independently of each other."""

    name: str

    def to(self, device: str | torch.device, dtype: torch.dtype | None = None) -> "FaceEnhancer":
        """Move the network; returns self."""

    def __call__(self, pixels: Tensor) -> Tensor:
        """(N, 3, R, R) in [-1, 1] -> (N, 3, R', R') in [-1, 1], R' no smaller than R."""


_OPENERS: dict[str, Callable[[], FaceEnhancer]] = {
    "realesrgan": FaceUpscaler.from_pretrained,
    "gfpgan": FaceRestorer.from_pretrained,
}


def open_enhancer(name: str) -> FaceEnhancer:
    """The enhancer of that name with its published weights.

    Raises:
        UserError: the name is unknown or the weights are missing. `latentsync.faces.sharpen.Sharpener` needs none.
    """
    if name not in _OPENERS:
        raise UserError(f"enhancer {name!r} is unknown: choose one of {', '.join(ENHANCERS)}")
    enhancer = _OPENERS[name]()
    logger.info("face enhancer: %s", name)
    return enhancer
