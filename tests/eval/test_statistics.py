"""Bootstrap intervals and paired tests against computations written out."""

from itertools import product

import numpy as np
import pytest

from eval.statistics import bootstrap_interval, paired_test


@pytest.mark.parametrize(("count", "share"), [(6, 0.86), (30, 0.95)])
def test_coverage_of_intervals(count, share):
    """Of 60 samples of normal numbers so many cover the mean, within four standard deviations."""
    rng = np.random.default_rng(0)
    intervals = [bootstrap_interval(rng.normal(3, 1, count)) for _ in range(60)]
    covered = np.mean([low <= 3 <= high for low, high in intervals])
    assert covered == pytest.approx(share, abs=4 * np.sqrt(share * (1 - share) / 60))
    if count == 30:
        widths = [high - low for low, high in intervals]
        assert np.mean(widths) == pytest.approx(2 * 1.96 / np.sqrt(count), rel=0.15)


def test_intervals_are_deterministic_and_need_six_values():
    values = [1.0, 4.0, 2.0, 8.0, 3.0, 5.0]
    assert bootstrap_interval(values) == bootstrap_interval(values)
    assert bootstrap_interval(values[:5]) is None
    assert bootstrap_interval([2.0] * 6) == (2.0, 2.0)


def test_p_of_the_signed_rank_test_by_enumeration():
    """Two-sided exact p: share of the sign patterns whose rank sum is at least as extreme."""
    differences = np.array([0.3, -0.1, 0.8, 0.5, -0.2, 0.9, 0.7])
    ranks = np.abs(differences).argsort().argsort() + 1
    observed = abs((np.sign(differences) * ranks).sum())
    sums = [abs(np.dot(signs, ranks)) for signs in product((-1, 1), repeat=7)]
    found = paired_test("x", ("a", "b"), differences + 5, np.full(7, 5.0))
    assert found.p == pytest.approx(np.mean([value >= observed for value in sums]))
    assert found.difference == pytest.approx(differences.mean())


def test_equal_methods_and_few_clips():
    assert paired_test("x", ("a", "b"), [1.0] * 6, [1.0] * 6).p == 1
    assert paired_test("x", ("a", "b"), [1.0] * 5, [2.0] * 5) is None


def test_values_that_differ_by_rounding_have_an_interval_without_width():
    low, high = bootstrap_interval([100.0, 100.00000000000001, 99.99999999999999, 100.0, 100.0, 100.0])
    assert low == high == 100.0
