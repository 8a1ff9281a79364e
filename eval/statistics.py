"""Confidence intervals of means, and paired tests between methods."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

LEVEL = 0.95
RESAMPLES = 9999
SEED = 0
MIN_CLIPS = 6  # with fewer, Wilcoxon's p cannot fall below 0.05, and the intervals are much too narrow


@dataclass(frozen=True)
class PairedTest:
    """Two methods compared on the clips that both have.

    Args:
        metric, first, second: the compared metric and methods.
        count: number of clips.
        difference: mean of first minus second.
        low, high: 95% bootstrap interval of the difference.
        p: of Wilcoxon's signed-rank test, two-sided, not corrected for the number of tests.
    """

    metric: str
    first: str
    second: str
    count: int
    difference: float
    low: float
    high: float
    p: float


def bootstrap_interval(values: Sequence[float] | np.ndarray) -> tuple[float, float] | None:
    """95% bootstrap interval (BCa; Efron 1987) of the mean; None for fewer than six values. Deterministic."""
    values = np.asarray(values, float)
    if len(values) < MIN_CLIPS:
        return None
    if np.allclose(values, values[0], rtol=1e-9, atol=0):  # BCa divides by their skewness: NaN for rounding errors
        return float(values[0]), float(values[0])
    found = stats.bootstrap(
        (values,), np.mean, n_resamples=RESAMPLES, confidence_level=LEVEL, rng=np.random.default_rng(SEED)
    ).confidence_interval
    return float(found.low), float(found.high)


def paired_test(
    metric: str, names: tuple[str, str], first: Sequence[float], second: Sequence[float]
) -> PairedTest | None:
    """Compare paired values of two methods; None for fewer than six pairs."""
    differences = np.asarray(first, float) - np.asarray(second, float)
    interval = bootstrap_interval(differences)
    if interval is None:
        return None
    p = float(stats.wilcoxon(differences).pvalue) if differences.any() else 1.0
    return PairedTest(metric, *names, len(differences), float(differences.mean()), *interval, p)
