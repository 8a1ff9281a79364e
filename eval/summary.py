"""Summary of a comparison: one value for each method and metric, with confidence intervals and paired tests.

A metric is averaged over the clips for which every method has a value, so that no method gains by failing on hard
clips. Methods without any value do not restrict this set.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean

import numpy as np

from eval.methods import GROUND_TRUTH
from eval.metrics import METRICS, ClipMetrics
from eval.pairs import Pair
from eval.statistics import PairedTest, bootstrap_interval, paired_test
from latentsync.metrics.set_distances import frechet_distance, kernel_distance

# Distances of sets: metric -> features (in `ClipMetrics.arrays`) and function.
SET_DISTANCES = {
    "fid": ("fid", frechet_distance),
    "fid_mouth": ("fid_mouth", frechet_distance),
    "kid": ("fid", kernel_distance),
    "kid_mouth": ("fid_mouth", kernel_distance),
    "fvd": ("fvd", frechet_distance),
}
FEW_SAMPLES = {"fid": 2048, "fid_mouth": 2048, "fvd": 400}  # widths; with fewer samples the distance is biased upward
Cells = Mapping[tuple[str, str], ClipMetrics]  # (method, id) -> metrics; failed clips are absent


@dataclass(frozen=True)
class Failure:
    """A clip that could not be evaluated."""

    id: str
    method: str
    reason: str


@dataclass(frozen=True)
class Aggregate:
    """A metric of a method over all clips.

    Args:
        value: None if there is none; `note` gives the reason.
        count: number of clips; for FID and FVD, of samples.
        low, high: 95% bootstrap interval of a mean.
    """

    method: str
    metric: str
    value: float | None
    count: int = 0
    note: str = ""
    low: float | None = None
    high: float | None = None

    @property
    def text(self) -> str:
        """Text of a table cell."""
        if self.value is None:
            return f"n/a ({self.note})" if self.note else "n/a"
        has_interval = self.low is not None and self.high is not None
        return shown(self.value) + (f" [{shown(self.low)}, {shown(self.high)}]" if has_interval else "")


@dataclass(frozen=True)
class Summary:
    """Aggregates and tests over the clips of one group; `group` is empty for all clips."""

    group: str
    count: int
    aggregates: list[Aggregate]
    tests: list[PairedTest]

    def row(self, metric: str) -> list[Aggregate]:
        """Aggregates of a metric, one per method."""
        return [item for item in self.aggregates if item.metric == metric]


def shown(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.4g}"


def summarize(cells: Cells, methods: Sequence[str], pairs: Sequence[Pair]) -> list[Summary]:
    """Summary of all clips, then of each group if there are several."""
    groups = list(dict.fromkeys(pair.group for pair in pairs))
    members = {"": [pair.id for pair in pairs]}
    if len(groups) > 1:
        members |= {group or "other": [pair.id for pair in pairs if pair.group == group] for group in groups}
    return [
        Summary(group, len(ids), aggregate(cells, methods, ids), paired_tests(cells, methods, ids))
        for group, ids in members.items()
    ]


def aggregate(cells: Cells, methods: Sequence[str], ids: Sequence[str]) -> list[Aggregate]:
    """One aggregate per method and metric, ordered by method, then by metric."""
    columns = {
        metric.key: _distances(cells, methods, ids, metric.key)
        if metric.of_set
        else _means(cells, methods, ids, metric.key)
        for metric in METRICS
    }
    return [columns[metric.key][method] for method in methods for metric in METRICS]


def paired_tests(cells: Cells, methods: Sequence[str], ids: Sequence[str]) -> list[PairedTest]:
    """Compare each pair of methods, except the ground truth, on each metric that both have for at least six clips."""
    names = [method for method in methods if method != GROUND_TRUTH]
    tests = []
    for metric in METRICS:
        values = {name: _values(cells, name, ids, metric.key) for name in names}
        for first, second in combinations(names, 2):
            common = [i for i in ids if i in values[first] and i in values[second]]
            sides = [[values[name][i] for i in common] for name in (first, second)]
            tests.append(paired_test(metric.key, (first, second), *sides))
    return [test for test in tests if test is not None]


def _values(cells: Cells, method: str, ids: Sequence[str], key: str) -> dict[str, float]:
    return {i: cells[method, i].values[key] for i in ids if (method, i) in cells and key in cells[method, i].values}


def _means(cells: Cells, methods: Sequence[str], ids: Sequence[str], key: str) -> dict[str, Aggregate]:
    values = {method: _values(cells, method, ids, key) for method in methods}
    common = set(ids).intersection(*(some for some in values.values() if some))
    result = {}
    for method in methods:
        chosen = [values[method][i] for i in ids if i in common and i in values[method]]
        if chosen:
            low, high = bootstrap_interval(chosen) or (None, None)
            result[method] = Aggregate(method, key, fmean(chosen), len(chosen), low=low, high=high)
        else:
            reason = "no clip that all methods have" if values[method] else _reason(cells, method, ids, key)
            result[method] = Aggregate(method, key, None, note=reason)
    return result


def _distances(cells: Cells, methods: Sequence[str], ids: Sequence[str], key: str) -> dict[str, Aggregate]:
    """Distance between the features of each method and the ground truth, on the clips that all methods have."""
    name, _ = SET_DISTANCES[key]
    have = {m: {i for i in ids if (m, i) in cells and len(cells[m, i].arrays.get(name, ()))} for m in methods}
    common = set(ids).intersection(*(some for some in have.values() if some))
    features = {
        m: np.concatenate([cells[m, i].arrays[name] for i in ids if i in common]) if common and have[m] else np.zeros(0)
        for m in methods
    }
    real = features.get(GROUND_TRUTH, np.zeros(0))
    return {method: _distance(method, key, features[method], real, cells, ids) for method in methods}


def _distance(
    method: str, key: str, features: np.ndarray, real: np.ndarray, cells: Cells, ids: Sequence[str]
) -> Aggregate:
    if min(len(features), len(real)) < 2:
        return Aggregate(method, key, None, note=_reason(cells, method, ids, key, "too few frames with a face"))
    if method == GROUND_TRUTH:
        return Aggregate(method, key, None, len(real), "is the reference")
    count = len(features)
    few = f"only {count} samples: biased upward" if count < FEW_SAMPLES.get(key, 0) else ""
    distance = SET_DISTANCES[key][1]
    return Aggregate(method, key, distance(features, real), count, few)


def _reason(cells: Cells, method: str, ids: Sequence[str], key: str, otherwise: str = "") -> str:
    """Reason for a missing metric, taken from the first clip without it."""
    evaluated = [cells[method, i] for i in ids if (method, i) in cells]
    reasons = [metrics.missing[key] for metrics in evaluated if key in metrics.missing]
    return next(iter(reasons), otherwise) if evaluated else "no clip was evaluated"
