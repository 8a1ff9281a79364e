"""Edges painted along the outline of the regenerated region."""

import cv2
import numpy as np
import pytest

from latentsync.faces.mask import MASK_SIDE, REGENERATED_OUTLINE
from latentsync.metrics.boundary import BoundaryMetric, sampled_outline

SIDE = 128


@pytest.fixture
def faces() -> np.ndarray:
    """(3, SIDE, SIDE, 3): smooth texture."""
    noise = np.random.default_rng(0).uniform(60, 190, (3, SIDE, SIDE, 3)).astype(np.float32)
    return np.stack([cv2.GaussianBlur(face, (0, 0), 2) for face in noise]).astype(np.uint8)


def inside(grow: float = 1.0) -> np.ndarray:
    """(SIDE, SIDE, 1) bool: the regenerated region."""
    corners = REGENERATED_OUTLINE * (SIDE / MASK_SIDE)
    middle = corners.mean(axis=0)
    region = cv2.fillPoly(
        np.zeros((SIDE, SIDE), np.uint8), [np.round(middle + grow * (corners - middle)).astype(int)], 1
    )
    return region[..., None].astype(bool)


def visibility(results: np.ndarray, sources: np.ndarray) -> float:
    metric = BoundaryMetric(SIDE)
    metric.update(results, sources)
    return metric.compute()


def brightened(faces: np.ndarray, levels: int, region: np.ndarray) -> np.ndarray:
    return np.where(region, np.clip(faces.astype(int) + levels, 0, 255), faces).astype(np.uint8)


def test_equal_images_have_no_boundary(faces):
    assert visibility(faces, faces) == 0


def test_a_stronger_edge_has_a_higher_value(faces):
    found = [visibility(brightened(faces, levels, inside()), faces) for levels in (4, 8, 16, 32)]
    assert found[0] > 0.5 and all(after > 1.8 * before for before, after in zip(found, found[1:], strict=False))
    assert found[-1] == pytest.approx(2 * found[-2], rel=0.1)  # the texture hides weak edges, not strong ones


def test_an_edge_near_the_outline_is_found(faces):
    exact = visibility(brightened(faces, 20, inside()), faces)
    assert visibility(brightened(faces, 20, inside(0.93)), faces) > 0.4 * exact


def test_global_changes_of_brightness_or_texture_are_no_boundary(faces):
    edge = visibility(brightened(faces, 8, inside()), faces)
    assert visibility(brightened(faces, 8, np.ones((1, 1, 1), bool)), faces) < 0.05 * edge
    blurred = np.stack([cv2.GaussianBlur(face, (0, 0), 3) for face in faces])
    assert visibility(np.where(inside(), blurred, faces), faces) < 0.5 * edge


def test_the_outline_is_sampled_evenly_with_normals_outwards():
    square = np.array([[10, 10], [50, 10], [50, 50], [10, 50]])
    for corners in (square, square[::-1]):
        points, normals = sampled_outline(corners, 40)
        assert np.linalg.norm(normals, axis=1) == pytest.approx(np.ones(40))
        assert ((points - 30) * normals).sum(axis=1) == pytest.approx(np.full(40, 20))


def test_no_frames_give_nan_and_shapes_must_match(faces):
    assert np.isnan(BoundaryMetric(SIDE).compute())
    with pytest.raises(ValueError, match="of equal shape"):
        BoundaryMetric(SIDE).update(faces, faces[:2])
