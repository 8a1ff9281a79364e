"""Report of a comparison: tables as CSV, Markdown and JSON, and an HTML page with plots and videos.

The page loads nothing from the network. Videos are linked by relative paths.
"""

import csv
import io
import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cached_property, partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import quote

from eval.methods import Method
from eval.metrics import METRICS, ClipMetrics, Metric, MetricModels
from eval.pairs import Pair
from eval.plots import color, line_plot, strip_plot
from eval.summary import Cells, Failure, Summary, shown, summarize
from latentsync import __version__
from latentsync.utils.errors import UserError
from latentsync.utils.files import write_text
from latentsync.utils.templates import render

PAGE = "index.html"
PACKAGES = ("torch", "numpy", "mediapipe", "opencv-python", "av")
TEMPLATES = Path(__file__).parent / "templates"
TITLES = {metric.key: metric.title for metric in METRICS}


@dataclass(frozen=True)
class Report:
    """Content of a report.

    Args:
        cells: metrics by (method, id).
        about: returned by `describe`, with the inference settings of each method that is a model.
    """

    methods: Sequence[Method]
    pairs: Sequence[Pair]
    cells: Cells
    failures: Sequence[Failure]
    about: Mapping[str, Any]

    @cached_property
    def summaries(self) -> list[Summary]:
        """Summary of all clips, then of each group."""
        return summarize(self.cells, [method.name for method in self.methods], self.pairs)

    def write(self, folder: Path) -> Path:
        """Write all files; returns the path of the page. Raises UserError if a file cannot be written."""
        texts = {
            "summary.csv": self.summary_csv(),
            "summary.md": self.markdown(),
            "summary.json": self.json(),
            "clips.csv": self.clips_csv(),
            PAGE: self.page(folder),
        }
        for name, text in texts.items():
            write_text(folder / name, partial(_write, text))
        return folder / PAGE

    def summary_csv(self) -> str:
        """One line per group and method; cells are numbers or the reason for a missing value."""
        rows = []
        for summary in self.summaries:
            for method in self.methods:
                found = [item for item in summary.aggregates if item.method == method.name]
                texts = [repr(item.value) if item.value is not None else item.text for item in found]
                rows.append([method.name, summary.group, *texts])
        return _csv(["method", "group", *TITLES], rows)

    def clips_csv(self) -> str:
        """One line per clip and method: status, number of frames and faces, each value."""
        keys = [metric.key for metric in METRICS if not metric.of_set]
        rows = []
        for (method, name), clip in self.cells.items():
            texts = [repr(clip.values[key]) if key in clip.values else _missing(clip, key) for key in keys]
            rows.append([name, method, "evaluated", "", clip.frames, clip.faces, *texts])
        rows += [[item.id, item.method, "failed", item.reason, "", "", *[""] * len(keys)] for item in self.failures]
        return _csv(["id", "method", "status", "reason", "frames", "faces", *keys], rows)

    def json(self) -> str:
        """All data, for programs; settings and versions first."""
        clips = [
            {"id": name, "method": method} | {key: value for key, value in vars(clip).items() if key != "arrays"}
            for (method, name), clip in self.cells.items()
        ]
        content = {
            **self.about,
            "metrics": [asdict(metric) for metric in METRICS],
            "summaries": [asdict(summary) for summary in self.summaries],
            "clips": clips,
            "failures": [asdict(item) for item in self.failures],
        }
        return json.dumps(_without_nan(content), indent=2, allow_nan=False) + "\n"

    def markdown(self) -> str:
        """Metrics as rows and methods as columns; then paired tests, failures and conditions."""
        return render(TEMPLATES / "summary.md.j2", **self._shared())

    def page(self, folder: Path) -> str:
        """The HTML page, with links relative to `folder`."""
        colors = {method.name: color(index) for index, method in enumerate(self.methods)}
        clips = [self._clip(pair, folder, colors) for pair in self.pairs]
        return render(TEMPLATES / "index.html.j2", **self._shared(), clips=clips, colors=colors, plots=self._plots())

    def _shared(self) -> dict[str, Any]:
        return {
            "methods": self.methods,
            "pairs": self.pairs,
            "metrics": METRICS,
            "summaries": self.summaries,
            "failures": self.failures,
            "conditions": conditions_of(self.about),
            "heading": heading,
            "title": TITLES.get,
            "shown": shown,
            "about": lambda metric: "; ".join(filter(None, (metric.about, self.about["notes"].get(metric.key)))),
        }

    def _plots(self) -> list[str]:
        """A plot for each metric with a value. Bars are the means of the table."""
        plots = []
        for metric in METRICS:
            groups = {method.name: self._values(method, metric.key) for method in self.methods}
            means = {item.method: item.value for item in self.summaries[0].row(metric.key) if item.value is not None}
            if any(groups.values()):
                plots.append(strip_plot(f"{heading(metric)}, {metric.better}", groups, means))
        return plots

    def _values(self, method: Method, key: str) -> list[float]:
        clips = [self.cells[method.name, pair.id] for pair in self.pairs if (method.name, pair.id) in self.cells]
        return [clip.values[key] for clip in clips if key in clip.values]

    def _clip(self, pair: Pair, folder: Path, colors: Mapping[str, str]) -> dict[str, Any]:
        found = {name: self.cells[name, pair.id] for name in colors if (name, pair.id) in self.cells}
        key = "window_confidences"
        curves = {name: clip.arrays[key] for name, clip in found.items() if key in clip.arrays}
        return {
            "id": pair.id,
            "audio": "own audio" if pair.audio is None else f"audio: {pair.audio.name}",
            "players": [self._player(pair, method, folder) for method in self.methods],
            "plot": line_plot("sync confidence over time", curves, colors),
        }

    def _player(self, pair: Pair, method: Method, folder: Path) -> dict[str, str]:
        """Link and caption of a video; the link is empty if there is no result."""
        reasons = [item.reason for item in self.failures if (item.method, item.id) == (method.name, pair.id)]
        caption = " ".join(reasons)
        if (method.name, pair.id) in self.cells:
            values = self.cells[method.name, pair.id].values
            caption = ", ".join(f"{m.title} {shown(values[m.key])}" for m in METRICS if m.key in values)
        try:
            url = relative_url(method.result(pair), folder)
        except UserError:
            url = ""
        return {"method": method.name, "url": url, "caption": caption}


def describe(command: str, models: MetricModels) -> dict[str, Any]:
    """Command, date, versions, device, settings and notes of a comparison."""
    return {
        "command": command,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "device": models.device,
        "settings": models.identity(),
        "notes": models.notes(),
        "inference": {},
    }


def versions() -> dict[str, str]:
    """Versions of this project, its libraries and the machine."""
    found = {"latentsync": __version__, "Python": platform.python_version(), "machine": platform.machine()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "unknown"
    return found


def conditions_of(about: Mapping[str, Any]) -> dict[str, str]:
    """Settings and versions as short texts by heading."""
    settings = {key: value for key, value in about["settings"].items() if key != "weights"}
    return {
        "Command": about["command"],
        "Date": about["date"],
        "Settings": _listed(settings),
        "Weights": ", ".join(about["settings"]["weights"]) or "only those in the repository",
        "Inference": "; ".join(f"{name}: {_listed(values)}" for name, values in about["inference"].items()) or "none",
        "Versions": f"{_listed(about['versions'])}, on {about['device']}",
    }


def _listed(values: dict[str, Any]) -> str:
    """Comma-separated texts; None is shown as "default"."""
    return ", ".join(f"{key} {'default' if value is None else value}" for key, value in values.items())


def heading(metric: Metric) -> str:
    """Title and unit."""
    return f"{metric.title} ({metric.unit})" if metric.unit else metric.title


def relative_url(path: Path, folder: Path) -> str:
    """Quoted URL of a file, relative to `folder`."""
    return quote(
        os.path.relpath(os.path.abspath(path), os.path.abspath(folder)).encode("utf-8", "surrogateescape"), safe="/"
    )


def _write(text: str, file: TextIO) -> None:
    file.write(text)


def _missing(clip: ClipMetrics, key: str) -> str:
    return f"n/a ({clip.missing[key]})" if key in clip.missing else "n/a"


def _csv(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return file.getvalue()


def _without_nan(value: Any) -> Any:
    """JSON has no NaN: values that could not be computed, such as a test between equal results, are null."""
    if isinstance(value, dict):
        return {name: _without_nan(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
