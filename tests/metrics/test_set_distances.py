"""Frechet distances of normal distributions whose distance is known; kernel distances by another library."""

import numpy as np
import pytest
from scipy.linalg import sqrtm
from sklearn.metrics.pairwise import polynomial_kernel

from latentsync.metrics import set_distances
from latentsync.metrics.set_distances import frechet_distance, kernel_distance


def with_moments(mean: np.ndarray, covariance: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    """Samples (count, D) with exactly this mean and unbiased covariance."""
    noise = np.random.default_rng(seed).standard_normal((count, len(mean)))
    noise -= noise.mean(axis=0)
    white = noise @ np.linalg.inv(np.linalg.cholesky(np.cov(noise.T))).T
    return mean + white @ np.linalg.cholesky(covariance).T


def test_two_gaussians_of_known_distance():
    # Covariances that commute: |m1 - m2|^2 + sum (sqrt(l1) - sqrt(l2))^2 = (9 + 16) + (4 + 1 + 0).
    first = with_moments(np.zeros(3), np.diag([9.0, 1.0, 4.0]), 50)
    second = with_moments(np.array([3.0, 4.0, 0.0]), np.diag([1.0, 4.0, 4.0]), 80, seed=1)
    assert frechet_distance(first, second) == pytest.approx(30, rel=1e-9)
    assert frechet_distance(second, first) == pytest.approx(30, rel=1e-9)


def test_covariances_that_do_not_commute():
    one, two = np.array([[2.0, 1.0], [1.0, 2.0]]), np.array([[5.0, 0.0], [0.0, 1.0]])
    product = one @ two
    root_trace = np.sqrt(np.trace(product) + 2 * np.sqrt(np.linalg.det(product)))  # of a 2 x 2 matrix
    expected = np.trace(one) + np.trace(two) - 2 * root_trace
    mean = np.zeros(2)
    found = frechet_distance(with_moments(mean, one, 30), with_moments(mean, two, 40, seed=1))
    assert found == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("count", [5, 300])  # fewer samples than features, and more
def test_equal_sets_are_at_0_and_a_shift_is_its_square(count):
    features = np.random.default_rng(0).standard_normal((count, 64)).astype(np.float32)
    assert frechet_distance(features, features) == pytest.approx(0, abs=1e-5)
    assert frechet_distance(features, features.astype(float) + 0.5) == pytest.approx(64 * 0.25, rel=1e-6)


@pytest.mark.parametrize(
    ("bad", "message"), [(np.zeros((1, 4)), "two or more"), (np.full((3, 4), np.nan), "finite"), (np.zeros(4), "two")]
)
def test_invalid_features_are_refused(bad, message):
    with pytest.raises(ValueError, match=message):
        frechet_distance(bad, np.zeros((3, 4)))


def test_widths_must_match():
    with pytest.raises(ValueError, match="equal width"):
        frechet_distance(np.zeros((3, 4)), np.zeros((3, 5)))


def test_frechet_distance_by_the_matrix_root_of_scipy():
    rng = np.random.default_rng(3)
    first, second = rng.standard_normal((200, 12)) @ rng.standard_normal((12, 12)), rng.standard_normal((150, 12)) + 1
    shift = first.mean(axis=0) - second.mean(axis=0)
    one, two = np.cov(first.T), np.cov(second.T)
    expected = shift @ shift + np.trace(one + two - 2 * np.real(sqrtm(one @ two)))
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-6)


def test_kernel_distance_by_scikit_learn(monkeypatch):
    monkeypatch.setattr(set_distances, "BLOCK", 4)  # the rows are taken in several parts
    rng = np.random.default_rng(4)
    first, second = rng.standard_normal((7, 5)), rng.standard_normal((9, 5)) + 0.5
    own = [polynomial_kernel(x, degree=3, gamma=1 / 5, coef0=1) for x in (first, second)]
    across = polynomial_kernel(first, second, degree=3, gamma=1 / 5, coef0=1)
    expected = sum(k[~np.eye(len(k), dtype=bool)].mean() for k in own) - 2 * across.mean()
    assert kernel_distance(first, second) == pytest.approx(expected, rel=1e-12)


def test_kernel_distance_has_no_bias():
    """Zero on average for few samples of one distribution; positive for two."""
    rng = np.random.default_rng(5)
    same = [kernel_distance(*rng.standard_normal((2, 10, 8))) for _ in range(400)]
    assert abs(np.mean(same)) < 4 * np.std(same) / 20 and min(same) < 0
    assert kernel_distance(rng.standard_normal((50, 8)), rng.standard_normal((50, 8)) + 2) > 1
    with pytest.raises(ValueError, match="equal width"):
        kernel_distance(np.zeros((3, 4)), np.zeros((3, 5)))
