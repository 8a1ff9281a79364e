"""report.html: number of clips kept, reasons for dropping others, histograms of figures, examples. One file."""

import base64
import dataclasses
import logging
import os
import re
from collections import Counter
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from latentsync.media.probe import probe_video
from latentsync.media.reader import VideoReader
from latentsync.utils.errors import UserError
from latentsync.utils.figures import STYLE, inline_svg
from latentsync.utils.templates import render
from preprocess.settings import ProcessSettings
from preprocess.storage import open_storage
from preprocess.storages.base import Storage

logger = logging.getLogger(__name__)
REPORT = "report.html"
TEMPLATE = Path(__file__).parent / "templates" / "report.html.j2"
REASONS = 5  # shown for each step
PEOPLE = 50  # shown with their hours
MEASURED = re.compile(r"[+-]?\d+(\.\d+)?")
EXAMPLES = 18  # of kept clips, and of dropped ones
SIDE = 128  # pixels of an example
BINS = 24
WIDTH, HEIGHT = 3.2, 1.5  # inches, of a histogram
COLORS = ("#22aa77", "#cc7766")  # of kept clips and of dropped ones
# Column, title, and the column that names the scorer or metric.
HISTOGRAMS = (
    ("seconds", "duration (s)", ""),
    ("face_size", "face width (pixels of the source)", ""),
    ("offset", "offset (frames, positive: the audio was early)", "sync_scorer"),
    ("confidence", "sync confidence", "sync_scorer"),
    ("preference", "sync preference", "sync_scorer"),
    ("quality", "quality", "quality_measure"),
)
# Errors of the sync step with default settings, by scorer, measured with `eval.sync_roc`.
GATE_FIGURES = {
    "embedded": (
        "Of 119 clips in sync the defaults of the embedded SyncNet keep 99.2%, of 952 clips dubbed with the audio of "
        "another one 6.1%; docs/data_processing.md has the details."
    ),
}
UNKNOWN_GATE = (
    "The errors of the scorer {} have not been measured: run `python -m eval.sync_roc` on clips that are certainly in "
    "sync."
)
Row = dict[str, Any]


def write_report(
    output_dir: str | os.PathLike, rows: list[Row], input_dir: str | os.PathLike, settings: ProcessSettings
) -> str:
    """Write report.html to the output folder; returns its path.

    Args:
        rows: of manifest.csv, made with `settings`. Examples of kept clips are read from them, of dropped ones from
            their sources; unreadable ones are shown without an image.

    Raises:
        UserError: it cannot be written.
    """
    output, source = open_storage(output_dir), open_storage(input_dir)
    clips = [row for row in rows if row["kind"] == "clip"]
    sources = [row for row in rows if row["kind"] == "source"]
    kept, dropped = ([row for row in clips if row["status"] == status] for status in ("kept", "dropped"))
    people = _people(clips)
    shown = dataclasses.asdict(settings) | {"steps": ", ".join(settings.steps)}
    text = render(
        TEMPLATE,
        input_dir=os.fspath(input_dir),
        output_dir=os.fspath(output_dir),
        kept=len(kept),
        clips=len(clips),
        minutes=sum(float(row["seconds"]) for row in kept) / 60,
        people=people[:PEOPLE],
        num_people=len(people),
        num_kept_people=sum(person.kept > 0 for person in people),
        sources=len(sources),
        dropped_sources=sum(row["status"] == "dropped" for row in sources),
        drops=_drops(rows),
        charts=_charts(clips),
        gate=_gate(clips),
        kept_examples=_examples(kept, output, "clip"),
        dropped_examples=_examples(dropped, source, "source"),
        settings={name: "default" if value is None else value for name, value in shown.items()},
    )
    output.write_text(REPORT, text)
    return f"{output_dir}/{REPORT}"


def _drops(rows: list[Row]) -> list[Row]:
    """For each kind and step, the most frequent reasons; the steps that drop most come first.

    Reasons that differ only in their numbers count as one.
    """
    counters: dict[tuple[str, str], Counter] = {}
    seconds: Counter[tuple[str, str]] = Counter()
    for row in rows:
        if row["status"] == "dropped":
            group = row["kind"], row["step"]
            counters.setdefault(group, Counter())[MEASURED.sub("…", str(row["reason"]), count=1)] += 1
            seconds[group] += float(row.get("seconds") or row.get("source_seconds") or 0)
    found = []
    for (kind, step), counter in sorted(counters.items(), key=lambda item: -item[1].total()):
        reasons = counter.most_common(REASONS)
        others = counter.total() - sum(count for _, count in reasons)
        lost = {"hours": seconds[kind, step] / 3600, "reasons": reasons, "others": others}
        found.append({"kind": kind, "step": step, "count": counter.total(), **lost})
    return found


@dataclass
class Person:
    """Clips of a person, kept and dropped: their number, their hours, and the steps that dropped them with numbers."""

    name: str
    kept: int = 0
    dropped: int = 0
    hours_kept: float = 0.0
    hours_dropped: float = 0.0
    steps: Counter[str] = field(default_factory=Counter)


def _people(clips: list[Row]) -> list[Person]:
    """Those with the most hours kept come first."""
    found: dict[str, Person] = {}
    for row in clips:
        name, hours = str(row["person"]), float(row["seconds"]) / 3600
        person = found.setdefault(name, Person(name))
        if row["status"] == "kept":
            person.kept += 1
            person.hours_kept += hours
        else:
            person.dropped += 1
            person.hours_dropped += hours
            person.steps[str(row["step"])] += 1
    return sorted(found.values(), key=lambda person: -person.hours_kept)


def _gate(clips: list[Row]) -> str | None:
    """Estimated errors of the sync step; None if it did not run."""
    scorers = {str(row["sync_scorer"]) for row in clips if row.get("sync_scorer")}
    return " ".join(GATE_FIGURES.get(name, UNKNOWN_GATE.format(name)) for name in sorted(scorers)) or None


def _charts(clips: list[Row]) -> list[tuple[str, str]]:
    """Title and histogram of each figure that any clip has."""
    charts = []
    for name, title, named_by in HISTOGRAMS:
        having = [row for row in clips if row.get(name) not in (None, "")]
        if having:
            by = ", ".join(sorted({str(row[named_by]) for row in having})) if named_by else ""
            values = [(float(row[name]), row["status"] == "kept") for row in having]
            title = f"{title}, by {by}" if by else title
            charts.append((title, histogram(title, values)))
    return charts


def histogram(title: str, values: list[tuple[float, bool]]) -> str:
    """Stacked bars as SVG, from pairs (value, kept)."""
    groups = [[value for value, kept in values if kept is chosen] for chosen in (True, False)]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
        axes = figure.subplots()
        axes.hist(groups, bins=BINS, stacked=True, color=COLORS)
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylabel("clips")
        return inline_svg(figure, title)


def _examples(rows: list[Row], storage: Storage, column: str) -> list[Row]:
    """Images and captions of rows spread over the list."""
    count = min(EXAMPLES, len(rows))
    examples = []
    for row in (rows[index * len(rows) // count] for index in range(count)):
        start = float(row["start_seconds"]) if column == "source" else 0.0
        image = _image(storage, row[column], start)
        examples.append({"image": image, "source": row["source"], "caption": row["reason"] or _caption(row)})
    return examples


def _caption(row: Row) -> str:
    names = [name for name, *_ in HISTOGRAMS if row.get(name) not in (None, "")]
    return ", ".join(f"{name} {float(row[name]):.3g}" for name in names)


def _image(storage: Storage, name: str, start: float) -> str | None:
    """A frame as the data URL of a JPEG; None if the file cannot be read."""
    try:
        with storage.fetched(name, storage.scratch_root(None)) as path:
            frame = _frame_at(path, Fraction(start).limit_denominator(1000))
    except (UserError, OSError, av.error.FFmpegError) as error:
        logger.debug("%s: no image for the report (%s)", name, error)
        return None
    scale = SIDE / min(frame.shape[:2])
    small = cv2.resize(frame, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    data = cv2.imencode(".jpg", small[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 80])[1]
    return f"data:image/jpeg;base64,{base64.b64encode(data.tobytes()).decode()}"


def _frame_at(path: Path, start: Fraction) -> np.ndarray:
    """(H, W, 3) uint8 RGB: the first frame at or after `start` (seconds), or the last one."""
    with VideoReader(probe_video(path)) as reader:
        last = None
        for last in reader.decode(start or None):
            if last.time >= start:
                break
        if last is None:
            raise UserError(f"{path}: has no frame at {float(start):g} s")
        return last.frame.rgb()
