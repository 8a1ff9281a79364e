"""LMD and jitter of made-up points, and points of the demo's portrait."""

import numpy as np
import pytest

from latentsync.faces.mediapipe_detector import EYE_CORNERS
from latentsync.faces.mouth import CHIN, FOREHEAD, INNER_LIPS
from latentsync.metrics.landmarks import LIPS, NUM_POINTS, STILL, FaceMesh, JitterMetric, landmark_distance, openings
from tests.metrics.faces import aligned_portrait


@pytest.fixture
def points() -> np.ndarray:
    """(6, 468, 2): a face whose eyes are 50 pixels apart, not moving."""
    face = np.random.default_rng(0).uniform(20, 100, (NUM_POINTS, 2))
    face[EYE_CORNERS[0]], face[EYE_CORNERS[1]] = (30, 40), (80, 40)
    return np.tile(face, (6, 1, 1))


def jitter(made: np.ndarray, real: np.ndarray, chunk: int = 6, starts: tuple[int, ...] = (0,)) -> float:
    metric = JitterMetric(STILL)
    begins = np.isin(np.arange(len(made)), starts)
    for first in range(0, len(made), chunk):
        part = slice(first, first + chunk)
        metric.update(made[part], real[part], begins[part])
    return metric.compute()


def test_shifted_landmarks_are_as_far_as_they_were_shifted(points):
    assert landmark_distance(points, points).tolist() == [0.0] * 6
    assert landmark_distance(points + [3, 4], points) == pytest.approx([10.0] * 6)  # 5 of 50 pixels
    lips = points.copy()
    lips[:, LIPS] += [0, 2]
    assert landmark_distance(lips, points, LIPS) == pytest.approx([4.0] * 6)
    assert landmark_distance(lips, points, STILL) == pytest.approx([0.0] * 6)
    lips[2] = np.nan
    assert np.isnan(landmark_distance(lips, points)).tolist() == [False, False, True, False, False, False]


def test_still_faces_and_uniform_motion_have_no_jitter(points):
    noise = np.random.default_rng(1).standard_normal((6, NUM_POINTS, 2))
    assert jitter(points, points + noise) == 0
    moving = points + np.arange(6)[:, None, None] * [2.0, -1.0]
    assert jitter(moving, points + noise) == pytest.approx(0, abs=1e-12)


def test_noise_counts_at_its_level(points):
    noise = np.random.default_rng(1).standard_normal((6, NUM_POINTS, 2))
    assert jitter(points + 3 * noise, points + noise) == pytest.approx(3)
    assert jitter(points + noise, points + noise) == 1
    assert np.isnan(jitter(points + noise, points))  # a still image: nothing to compare with


@pytest.mark.parametrize("chunk", [1, 2, 4])
def test_chunks_do_not_matter(points, chunk):
    first, second = np.random.default_rng(2).standard_normal((2, 6, NUM_POINTS, 2))
    assert jitter(points + first, points + second, chunk) == pytest.approx(jitter(points + first, points + second))


def test_jitter_does_not_span_cuts_and_missing_faces(points):
    first, second = np.random.default_rng(2).standard_normal((2, 6, NUM_POINTS, 2))
    made, real = points + first, points + second
    expected = jitter(made[3:], real[3:])
    jumped = made.copy()
    jumped[:3] += 1000
    assert jitter(jumped, real, starts=(0, 3)) != pytest.approx(expected)  # both stretches count
    jumped[:3] = np.nan
    assert jitter(jumped, real) == pytest.approx(expected)
    assert np.isnan(jitter(made, real, starts=(0, 2, 4)))  # no three in a row


def test_openings_follow_the_lips(points):
    points[:, FOREHEAD], points[:, CHIN] = (50, 0), (50, 100)
    for upper, lower in INNER_LIPS:
        points[:, upper], points[:, lower] = (50, 70), (50, 70)
    points[3:5, [lower for _, lower in INNER_LIPS]] += [0, 8]
    points[5] = np.nan
    assert openings(points)[:5] == pytest.approx([0, 0, 0, 0.08, 0.08])
    assert np.isnan(openings(points)[5])


def test_mesh_of_a_portrait_and_of_no_face():
    face = aligned_portrait(128)
    mesh = FaceMesh()
    found = mesh.points(np.stack([face, np.zeros_like(face), face]))
    with pytest.raises(ValueError, match="uint8"):
        mesh.points(face[None].astype(float))
    assert mesh.points(np.zeros((0, 128, 128, 3), np.uint8)).shape == (0, NUM_POINTS, 2)
    mesh.close()
    assert np.isnan(found[1]).all() and np.array_equal(found[0], found[2])
    left, right = found[0][list(EYE_CORNERS)]
    assert 0 < left[0] < right[0] < 128 and abs(left[1] - right[1]) < 10
    assert found[0][CHIN][1] > found[0][LIPS][:, 1].max() > found[0][LIPS][:, 1].min() > left[1]
