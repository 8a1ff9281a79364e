"""CSIM with a linear stand-in for the recognition network."""

import numpy as np
import pytest
import torch
from torch import nn

from latentsync.metrics.identity import identity_similarity
from latentsync.pretrained.face_embedding import FaceEmbedder


class Mean(nn.Module):
    """Mean color: (N, 3, 112, 112) -> (N, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("place", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = x[..., 40:80, 40:80]
        return inner.mean(dim=(2, 3))


def painted(*colors: tuple[int, int, int]) -> np.ndarray:
    return np.stack([np.full((64, 64, 3), color, np.uint8) for color in colors])


def test_1_for_the_same_and_the_cosine_for_others():
    embedder = FaceEmbedder(Mean())
    first = painted((255, 128, 128), (255, 255, 128), (255, 128, 128))
    second = painted((255, 128, 128), (255, 128, 128), (0, 128, 128))
    found = identity_similarity(embedder, first, second)
    assert found == pytest.approx([1, np.sqrt(0.5), -1], abs=0.01)
    assert identity_similarity(embedder, first, first) == pytest.approx(np.ones(3), abs=1e-6)


def test_shapes_must_match():
    with pytest.raises(ValueError, match="of equal shape"):
        identity_similarity(FaceEmbedder(Mean()), painted((0, 0, 0)), painted((0, 0, 0), (1, 1, 1)))
