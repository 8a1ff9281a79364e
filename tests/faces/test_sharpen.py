"""Unsharp mask of a generated face, and the detail of its frame."""

import cv2
import numpy as np
import pytest
import torch

from latentsync.faces.mask import mouth_slices
from latentsync.faces.sharpen import PASTED, STRONGEST, DetailMatch, Sharpener, _luma_detail, sharpen


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


@pytest.fixture
def sharp() -> np.ndarray:
    """A face (256, 256, 3) uint8 with fine detail in all places."""
    return np.random.default_rng(0).integers(90, 160, (256, 256, 3)).astype(np.uint8)


def softened(face: np.ndarray, sigma: float) -> np.ndarray:
    return cv2.GaussianBlur(face.astype(np.float32), (0, 0), sigma)


def mouth_detail(face: np.ndarray) -> float:
    return float(_luma_detail(face)[mouth_slices(len(face))].std())


def test_a_soft_face_gets_the_detail_of_the_frame(sharp: np.ndarray):
    soft = softened(sharp, 0.45)
    assert mouth_detail(soft) < 0.9 * mouth_detail(sharp)
    assert mouth_detail(DetailMatch()(soft, sharp)) == pytest.approx(mouth_detail(sharp) / PASTED, rel=0.02)


def test_the_strength_is_limited(sharp: np.ndarray):
    blurred = softened(sharp, 1.5)
    assert mouth_detail(blurred) < 0.2 * mouth_detail(sharp)
    added = DetailMatch()(blurred, sharp) - blurred
    expected = np.repeat((STRONGEST - 1) * _luma_detail(blurred)[..., None], 3, axis=2)
    np.testing.assert_allclose(added, expected, atol=1e-3)


def test_a_face_as_sharp_as_its_frame_stays(sharp: np.ndarray):
    generated = sharp.astype(np.float32)
    assert DetailMatch()(generated, softened(sharp, 1.0).astype(np.uint8)) is generated
    flat = np.full((256, 256, 3), 100, np.float32)
    np.testing.assert_allclose(DetailMatch()(flat, sharp), flat, atol=1e-3)  # there is nothing to sharpen


def test_gray_stays_gray(sharp: np.ndarray):
    gray = np.repeat(sharp[..., :1], 3, axis=2)
    matched = DetailMatch()(softened(gray, 0.5), gray)
    assert np.ptp(matched, axis=2).max() < 1e-3


def test_the_strength_follows_slowly_and_starts_anew_after_a_cut(sharp: np.ndarray):
    soft, match = softened(sharp, 0.5), DetailMatch()
    first = match(soft, sharp)
    plain = softened(sharp, 0.5).astype(np.uint8)  # suddenly a frame without more detail than the face
    second = match(soft, plain)
    assert mouth_detail(soft) < mouth_detail(second) < mouth_detail(first)
    assert mouth_detail(match(soft, plain, starts=True)) == pytest.approx(mouth_detail(soft) / PASTED, rel=0.05)
