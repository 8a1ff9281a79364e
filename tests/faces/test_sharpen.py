"""Unsharp mask of a regenerated face."""

import cv2
import numpy as np
import pytest
import torch

from latentsync.faces.sharpen import Sharpener, sharpen


@pytest.fixture
def edge() -> np.ndarray:
    pixels = np.full((16, 16, 3), 100, np.float32)
    pixels[:, 8:] = 150
    return pixels


def test_one_changes_nothing(edge):
    assert sharpen(edge, 1.0) is edge


def test_zero_blurs(edge):
    assert np.allclose(sharpen(edge, 0.0), cv2.GaussianBlur(edge, (0, 0), 1.0))


def test_two_overshoots_at_edges_only(edge):
    before = edge.copy()
    sharp = sharpen(edge, 2.0)
    assert sharp.max() > 150 and sharp.min() < 100
    assert np.allclose(sharp[:, :4], 100) and np.allclose(sharp[:, 12:], 150)
    assert sharp.dtype == np.float32 and np.array_equal(edge, before)


def test_stays_in_range(edge):
    sharp = sharpen(np.where(edge > 120, 255, 0).astype(np.float32), 10.0)
    assert sharp.min() == 0 and sharp.max() == 255


def test_negative_is_refused(edge):
    with pytest.raises(ValueError, match="0 or more"):
        sharpen(edge, -0.1)


def test_the_filter_in_the_place_of_a_network(edge):
    faces = torch.from_numpy(np.stack([edge, edge[:, ::-1]])).permute(0, 3, 1, 2) / 127.5 - 1
    made = Sharpener(2.0).to("cpu", torch.float32)(faces.half())
    assert made.shape == faces.shape and made.abs().max() <= 1
    expected = torch.from_numpy(sharpen(edge, 2.0)).permute(2, 0, 1) / 127.5 - 1
    assert torch.allclose(made[0], expected, atol=2e-3) and torch.allclose(made[1], expected.flip(-1), atol=2e-3)
