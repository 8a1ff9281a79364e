"""From values of clips to one figure for each method and measure, and how the figures are written.

A measure is averaged over the clips for which every method has it, so that no method gains by failing at hard clips;
methods without a single value are passed over in this.
"""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

import numpy as np

from eval.measures import MEASURES, Measure, Values
from eval.methods import GROUND_TRUTH
from latentsync.metrics.frechet import frechet_distance

FEW_SAMPLES = {"fid": 2048, "fvd": 400}  # fewer than the features' width: the distance is well above its limit
Cells = Mapping[tuple[str, str], Values]  # (method, id) -> values; failed clips are absent


@dataclass(frozen=True)
class Failure:
    """A clip that could not be measured."""

    id: str
    method: str
    reason: str


@dataclass(frozen=True)
class Figure:
    """`value` is None where there is none, and `note` says why; `count`: clips (samples for a set's distance)."""

    method: str
    measure: str
    value: float | None
    count: int = 0
    note: str = ""

    @property
    def text(self) -> str:
        """For a cell of a table."""
        return shown(self.value) if self.value is not None else f"n/a ({self.note})" if self.note else "n/a"


def shown(value: float) -> str:
    return f"{value:.4g}"


def figures(cells: Cells, methods: Sequence[str], ids: Sequence[str]) -> list[Figure]:
    """A figure for each method and measure, methods in their order, within it the measures in theirs."""
    columns = {
        measure.key: _distances(cells, methods, ids, measure.key)
        if measure.of_set
        else _means(cells, methods, ids, measure.key)
        for measure in MEASURES
    }
    return [columns[measure.key][method] for method in methods for measure in MEASURES]


def _means(cells: Cells, methods: Sequence[str], ids: Sequence[str], key: str) -> dict[str, Figure]:
    have = {m: {i for i in ids if (m, i) in cells and key in cells[m, i].numbers} for m in methods}
    common = set(ids).intersection(*(some for some in have.values() if some))
    result = {}
    for method in methods:
        numbers = [cells[method, i].numbers[key] for i in ids if i in common & have[method]]
        if numbers:
            result[method] = Figure(method, key, fmean(numbers), len(numbers))
        else:
            reason = "no clip that all methods have" if have[method] else _reason(cells, method, ids, key)
            result[method] = Figure(method, key, None, note=reason)
    return result


def _distances(cells: Cells, methods: Sequence[str], ids: Sequence[str], key: str) -> dict[str, Figure]:
    """Frechet distance of each method's features to the ground truth's, on the clips that all have."""
    have = {m: {i for i in ids if (m, i) in cells and len(cells[m, i].arrays.get(key, ()))} for m in methods}
    common = set(ids).intersection(*(some for some in have.values() if some))
    features = {
        m: np.concatenate([cells[m, i].arrays[key] for i in ids if i in common]) if common and have[m] else np.zeros(0)
        for m in methods
    }
    real = features.get(GROUND_TRUTH, np.zeros(0))
    return {method: _distance(method, key, features[method], real, cells, ids) for method in methods}


def _distance(method: str, key: str, made: np.ndarray, real: np.ndarray, cells: Cells, ids: Sequence[str]) -> Figure:
    if min(len(made), len(real)) < 2:
        return Figure(method, key, None, note=_reason(cells, method, ids, key, "too few frames with a face"))
    if method == GROUND_TRUTH:
        return Figure(method, key, None, len(real), "is what the others are compared with")
    few = f"only {len(made)} samples: far above its limit" if len(made) < FEW_SAMPLES[key] else ""
    return Figure(method, key, frechet_distance(made, real), len(made), few)


def _reason(cells: Cells, method: str, ids: Sequence[str], key: str, otherwise: str = "") -> str:
    """Why a measure is missing, as the first clip that lacks it says."""
    measured = [cells[method, i] for i in ids if (method, i) in cells]
    reasons = [values.missing[key] for values in measured if key in values.missing]
    return next(iter(reasons), otherwise) if measured else "no clip was measured"


def heading(measure: Measure) -> str:
    return f"{measure.title} ({measure.unit})" if measure.unit else measure.title


def as_markdown(
    rows: Sequence[Figure], failures: Sequence[Failure], notes: Mapping[str, str], about: Mapping[str, str]
) -> str:
    """Measures down, methods across; below it remarks, what failed, and the conditions."""
    by_cell = {(row.method, row.measure): row for row in rows}
    methods = list(dict.fromkeys(row.method for row in rows))
    lines = [_line("measure", "", *methods, "clips or samples", "what")]
    lines.append("|---" * (len(methods) + 4) + "|")
    for measure in MEASURES:
        found = [by_cell[method, measure.key] for method in methods]
        counts = ", ".join(dict.fromkeys(str(row.count) for row in found if row.value is not None))
        what = "; ".join(filter(None, (measure.about, notes.get(measure.key))))
        lines.append(_line(heading(measure), measure.better, *(row.text for row in found), counts, what))
    titles = {measure.key: measure.title for measure in MEASURES}
    remarks = [row for row in rows if row.value is not None and row.note]
    lines += ["", *(_escaped(f"- {row.method}, {titles[row.measure]}: {row.note}") for row in remarks)]
    lines += [_escaped(f"- FAILED {item.method}, {item.id}: {item.reason}") for item in failures]
    return "\n".join([*lines, "", *(_escaped(f"- {key}: {value}") for key, value in about.items())]) + "\n"


def as_csv(rows: Sequence[Figure]) -> str:
    """One line a method; the cells are numbers, or why there is none."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["method", *(measure.key for measure in MEASURES)])
    by_method: dict[str, list[str]] = {}
    for row in rows:
        by_method.setdefault(row.method, []).append(repr(row.value) if row.value is not None else row.text)
    writer.writerows([method, *texts] for method, texts in by_method.items())
    return file.getvalue()


def clips_as_csv(cells: Cells, failures: Sequence[Failure]) -> str:
    """One line a clip and method: status, frames, frames with a face, and each value."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    keys = [measure.key for measure in MEASURES if not measure.of_set]
    writer.writerow(["id", "method", "status", "reason", "frames", "faces", *keys])
    for (method, name), values in cells.items():
        texts = [repr(values.numbers[key]) if key in values.numbers else _missing(values, key) for key in keys]
        writer.writerow([name, method, "measured", "", values.frames, values.faces, *texts])
    for item in failures:
        writer.writerow([item.id, item.method, "failed", item.reason, "", ""] + [""] * len(keys))
    return file.getvalue()


def as_json(rows: Sequence[Figure], cells: Cells, failures: Sequence[Failure], about: Mapping[str, Any]) -> str:
    """Everything for programs: settings and versions first."""
    clips = [
        {"id": name, "method": method, "frames": v.frames, "faces": v.faces, "numbers": v.numbers, "missing": v.missing}
        for (method, name), v in cells.items()
    ]
    content = {
        **about,
        "measures": [asdict(measure) for measure in MEASURES],
        "figures": [asdict(row) for row in rows],
        "clips": clips,
        "failures": [asdict(item) for item in failures],
    }
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def _missing(values: Values, key: str) -> str:
    return f"n/a ({values.missing[key]})" if key in values.missing else "n/a"


def _line(*cells: str) -> str:
    return f"| {' | '.join(map(_escaped, cells))} |"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
