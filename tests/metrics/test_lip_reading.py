"""LipScore with a linear stand-in for the lip reader."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from latentsync.metrics import lip_reading
from latentsync.metrics.lip_reading import LipScore, crop_mouth


class Halves(nn.Module):
    """Features of a frame: the mean of its left and of its right half, minus a half. Remembers how much it read."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.lengths: list[int] = []

    def forward(self, mouths: Tensor) -> Tensor:
        self.lengths.append(mouths.shape[1])
        return torch.stack([part.mean(dim=(-2, -1)) for part in mouths.chunk(2, dim=-1)], dim=-1) - 0.5


def faces(left: int, right: int, count: int) -> np.ndarray:
    image = np.full((128, 128, 3), left, np.uint8)
    image[:, 64:] = right
    return np.repeat(image[None], count, axis=0)


def starts(count: int, *at: int) -> np.ndarray:
    return np.isin(np.arange(count), at)


def test_the_cosine_of_the_features_over_all_frames():
    bright, dark = faces(255, 255, 6), faces(0, 0, 6)
    score = LipScore(Halves())
    score.update(bright, bright, starts(6, 0))
    score.update(bright, dark, starts(6))
    assert score.compute() == pytest.approx(0, abs=1e-6)  # 1 in the first half, -1 in the second
    score = LipScore(Halves())
    score.update(faces(255, 0, 6), bright, starts(6, 0))
    assert score.compute() == pytest.approx(0, abs=0.01)


def test_no_reading_spans_a_cut_and_long_tracks_are_split(monkeypatch):
    monkeypatch.setattr(lip_reading, "WINDOW", 8)
    reader = Halves()
    score, same = LipScore(reader), faces(200, 90, 25)
    score.update(same, same, starts(25, 0, 3))  # three frames are too few
    assert score.compute() == pytest.approx(1) and reader.lengths == [8, 8, 6]


def test_nothing_to_read():
    score = LipScore(Halves())
    score.update(faces(9, 9, 3), faces(9, 9, 3), starts(3, 0))
    assert math.isnan(score.compute())


def test_the_crop_is_the_lower_face():
    face = np.zeros((256, 256, 3), np.uint8)
    face[:101] = 255  # above the crop
    face[:, :24] = face[:, 232:] = 255  # beside it
    assert crop_mouth(face).shape == (88, 88) and crop_mouth(face).max() == 0
    face[255, 128] = 255
    assert crop_mouth(face)[-1].max() > 0
