"""report.html: how many were kept, why others were not, how the figures spread, what it looks like. One file."""

import base64
import dataclasses
import html
import logging
import os
from collections import Counter
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np

from latentsync.media.paths import open_input
from latentsync.utils.errors import UserError
from preprocess.settings import ProcessSettings
from preprocess.storage import open_storage
from preprocess.storages.base import Storage

logger = logging.getLogger(__name__)
REPORT = "report.html"
REASONS = 5  # of each step that are told
EXAMPLES = 18  # pictures of kept clips, and as many of dropped ones
SIDE = 128  # pixels of a picture
BINS = 24
WIDTH, HEIGHT = 300, 120  # of a histogram
# Column, what it is, and the column that says what measured it.
HISTOGRAMS = (
    ("seconds", "duration of clips (s)", ""),
    ("face_size", "width of the face (pixels of the source)", ""),
    ("offset", "offset (frames that the sound was early)", "sync_scorer"),
    ("confidence", "sync confidence", "sync_scorer"),
    ("quality", "quality", "quality_measure"),
)
STYLE = """
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:64rem;padding:0 1rem;color:#222}
table{border-collapse:collapse}td,th{padding:.2rem .8rem;text-align:left;border-bottom:1px solid #ddd}
td.n{text-align:right;font-variant-numeric:tabular-nums}
.row{display:flex;flex-wrap:wrap;gap:1rem}figure{margin:0;width:8.5rem;font-size:12px;overflow-wrap:anywhere}
figure img{width:8.5rem;height:8.5rem;object-fit:cover;border-radius:4px;background:#eee}
svg text{font:11px system-ui,sans-serif;fill:#555}
"""


def write_report(
    output_dir: str | os.PathLike, rows: list[dict], input_dir: str | os.PathLike, settings: ProcessSettings
) -> str:
    """Write report.html into the output folder; returns its place.

    rows: of manifest.csv, made with `settings`. Pictures of kept clips are read from these, of dropped ones from their
    sources; one that cannot be read is left out.

    Raises:
        UserError: it cannot be written.
    """
    output, source = open_storage(output_dir), open_storage(input_dir)
    clips = [row for row in rows if row["kind"] == "clip"]
    kept = [row for row in clips if row["status"] == "kept"]
    dropped = [row for row in clips if row["status"] == "dropped"]
    parts = [
        f"<h1>Data processing</h1><p>{_text(input_dir)} → {_text(output_dir)}</p>",
        _totals(rows, kept),
        "<h2>Why others were left out</h2>" + _drops(rows),
        "<h2>Figures</h2>" + _histograms(clips),
        "<h2>Kept</h2>" + _examples(kept, output, "clip"),
        "<h2>Left out</h2>" + _examples(dropped, source, "source"),
        "<h2>Settings</h2>" + _settings(settings),
    ]
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Data processing</title><style>{STYLE}</style>'
    output.write_text(REPORT, head + "\n".join(parts) + "</html>\n")
    return f"{output_dir}/{REPORT}"


def _totals(rows: list[dict], kept: list[dict]) -> str:
    sources = [row for row in rows if row["kind"] == "source"]
    seconds = sum(float(row["seconds"]) for row in kept)
    people = len({row["person"] for row in kept})
    clips = sum(row["kind"] == "clip" for row in rows)
    useless = sum(row["status"] == "dropped" for row in sources)
    return (
        f"<p><b>{len(kept)} of {clips} clips kept</b>, {seconds / 60:.1f} minutes, {people} people (by folder or name),"
        f" from {len(sources)} sources, {useless} of which were of no use.</p>"
    )


def _drops(rows: list[dict]) -> str:
    reasons: dict[tuple, Counter] = {}
    for row in rows:
        if row["status"] == "dropped":
            reasons.setdefault((row["kind"], row["step"]), Counter())[str(row["reason"])] += 1
    lines = [
        f'<tr><td>{_text(step)}</td><td>{kind}</td><td class="n">{sum(found.values())}</td><td>{_most_common(found)}'
        "</td></tr>"
        for (kind, step), found in sorted(reasons.items(), key=lambda item: -sum(item[1].values()))
    ]
    if not lines:
        return "<p>Nothing was.</p>"
    return f"<table><tr><th>step</th><th>what</th><th>number</th><th>why</th></tr>{''.join(lines)}</table>"


def _most_common(reasons: Counter) -> str:
    shown = [f"{count} × {_text(reason)}" for reason, count in reasons.most_common(REASONS)]
    others = sum(reasons.values()) - sum(count for _, count in reasons.most_common(REASONS))
    return "<br>".join([*shown, *([f"{others} others"] if others else [])])


def _histograms(clips: list[dict]) -> str:
    charts = []
    for name, title, measured_by in HISTOGRAMS:
        having = [row for row in clips if row.get(name) not in (None, "")]
        if having:
            by = ", ".join(sorted({str(row[measured_by]) for row in having})) if measured_by else ""
            values = [(float(row[name]), row["status"] == "kept") for row in having]
            charts.append(f"<div>{_text(title)}{_text(f', by {by}') if by else ''}<br>{histogram(values)}</div>")
    legend = '<p><span style="color:#2a7">■</span> kept <span style="color:#c76">■</span> left out</p>'
    return f'{legend}<div class="row">{"".join(charts)}</div>'


def histogram(values: list[tuple[float, bool]]) -> str:
    """SVG of stacked bars: (value, kept) pairs. Below them the ends of the range, above them the highest count."""
    numbers = np.array([value for value, _ in values])
    low, high = float(numbers.min()), float(numbers.max())
    if low == high:
        low, high = low - 0.5, high + 0.5
    flags = np.array([kept for _, kept in values])
    edges = np.linspace(low, high, BINS + 1)
    kept, lost = (np.histogram(numbers[chosen], edges)[0] for chosen in (flags, ~flags))
    most = int((kept + lost).max())
    scale = (HEIGHT - 40) / most
    width = WIDTH / BINS
    bars = []
    for index, (good, bad) in enumerate(zip(kept, lost, strict=True)):
        x, y = index * width, HEIGHT - 20 - good * scale
        bars.append(f'<rect x="{x:.1f}" y="{y:.1f}" width="{width - 1:.1f}" height="{good * scale:.1f}" fill="#2a7"/>')
        top = y - bad * scale
        bars.append(f'<rect x="{x:.1f}" y="{top:.1f}" width="{width - 1:.1f}" height="{bad * scale:.1f}" fill="#c76"/>')
    ends = (
        f'<text x="0" y="{HEIGHT - 5}">{low:.3g}</text>'
        f'<text x="{WIDTH}" y="{HEIGHT - 5}" text-anchor="end">{high:.3g}</text>'
        f'<text x="0" y="12">at most {most} clips a bar</text>'
    )
    return f'<svg width="{WIDTH}" height="{HEIGHT}" role="img">{"".join(bars)}{ends}</svg>'


def _settings(settings: ProcessSettings) -> str:
    shown = dataclasses.asdict(settings) | {"steps": ", ".join(settings.steps)}
    lines = [
        f"<tr><td>{name}</td><td>{_text('default' if value is None else value)}</td></tr>"
        for name, value in shown.items()
    ]
    return f"<table>{''.join(lines)}</table>"


def _examples(rows: list[dict], storage: Storage, column: str) -> str:
    """Pictures spread over the rows, with what is to say about them."""
    if not rows:
        return "<p>None.</p>"
    chosen = [rows[index * len(rows) // min(EXAMPLES, len(rows))] for index in range(min(EXAMPLES, len(rows)))]
    figures = []
    for row in chosen:
        start = float(row["start_seconds"]) if column == "source" else 0.0
        picture = _picture(storage, row[column], start, storage.scratch_root(None))
        image = f'<img src="{picture}" alt="">' if picture else '<img alt="no picture">'
        said = row["reason"] or _said(row)
        figures.append(f"<figure>{image}<figcaption>{_text(row['source'])}<br>{_text(said)}</figcaption></figure>")
    return f'<div class="row">{"".join(figures)}</div>'


def _said(row: dict) -> str:
    names = [name for name, *_ in HISTOGRAMS if row.get(name) not in (None, "")]
    return ", ".join(f"{name} {float(row[name]):.3g}" for name in names)


def _picture(storage: Storage, name: str, start: float, scratch: Path) -> str | None:
    """A JPEG as a data address, None where the file gives none."""
    try:
        with storage.fetched(name, scratch) as path:
            frame = _frame_at(path, Fraction(start).limit_denominator(1000))
    except (UserError, OSError, av.error.FFmpegError) as error:
        logger.debug("%s: no picture for the report (%s)", name, error)
        return None
    if frame is None:
        return None
    scale = SIDE / min(frame.shape[:2])
    small = cv2.resize(frame, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    data = cv2.imencode(".jpg", small[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 80])[1]
    return f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"


def _frame_at(path: Path, start: Fraction) -> np.ndarray | None:
    """(H, W, 3) uint8 RGB: the first frame from the keyframe before `start` (seconds) on that is not earlier."""
    with open_input(path) as container:
        stream = container.streams.video[0]
        if start > 0:
            container.seek(int(start / stream.time_base), stream=stream)
        last = None
        for frame in _first(container.decode(stream), 500):
            last = frame
            if frame.pts is None or frame.pts * frame.time_base >= start:
                break
        return None if last is None else last.to_ndarray(format="rgb24")


def _first(frames: Iterable[av.VideoFrame], count: int) -> Iterable[av.VideoFrame]:
    for _, frame in zip(range(count), frames, strict=False):
        yield frame


def _text(value: object) -> str:
    return html.escape(os.fspath(value) if isinstance(value, os.PathLike) else str(value))
