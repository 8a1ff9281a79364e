"""report.html: how many were kept, why others were not, how the figures spread, what it looks like. One file."""

import base64
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

from latentsync.media.paths import file_url
from latentsync.utils.errors import UserError
from preprocess.storage import open_storage
from preprocess.storages.base import Storage

logger = logging.getLogger(__name__)
REPORT = "report.html"
EXAMPLES = 18  # pictures of kept clips, and as many of dropped ones
SIDE = 128  # pixels of a picture
BINS = 24
WIDTH, HEIGHT = 300, 120  # of a histogram
HISTOGRAMS = (
    ("seconds", "duration of clips (s)"),
    ("face_size", "width of the face (pixels of the source)"),
    ("offset", "offset (frames that the sound was early)"),
    ("confidence", "sync confidence"),
    ("quality", "quality"),
)
STYLE = """
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:64rem;padding:0 1rem;color:#222}
table{border-collapse:collapse}td,th{padding:.2rem .8rem;text-align:left;border-bottom:1px solid #ddd}
td.n{text-align:right;font-variant-numeric:tabular-nums}
.row{display:flex;flex-wrap:wrap;gap:1rem}figure{margin:0;width:8.5rem;font-size:12px;overflow-wrap:anywhere}
figure img{width:8.5rem;height:8.5rem;object-fit:cover;border-radius:4px;background:#eee}
svg text{font:11px system-ui,sans-serif;fill:#555}
"""


def write_report(output_dir: str | os.PathLike, rows: list[dict], input_dir: str | os.PathLike) -> str:
    """Write report.html into the output folder; returns its place.

    rows: of manifest.csv. Pictures of kept clips are read from these, of dropped ones from their sources; one that
    cannot be read is left out.

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
        "<h2>Kept</h2>" + _examples(kept, output, "clip", output_dir),
        "<h2>Left out</h2>" + _examples(dropped, source, "source", output_dir),
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
    counts = Counter((row["kind"], row["step"]) for row in rows if row["status"] == "dropped")
    if not counts:
        return "<p>Nothing was.</p>"
    example = {(row["kind"], row["step"]): row["reason"] for row in reversed(rows) if row["status"] == "dropped"}
    lines = [
        f'<tr><td>{_text(step)}</td><td>{kind}</td><td class="n">{count}</td><td>{_text(example[kind, step])}</td></tr>'
        for (kind, step), count in counts.most_common()
    ]
    return f"<table><tr><th>step</th><th>what</th><th>number</th><th>for example</th></tr>{''.join(lines)}</table>"


def _histograms(clips: list[dict]) -> str:
    charts = []
    for name, title in HISTOGRAMS:
        values = [(float(row[name]), row["status"] == "kept") for row in clips if row.get(name) not in (None, "")]
        if values:
            charts.append(f"<div>{_text(title)}<br>{histogram(values)}</div>")
    legend = '<p><span style="color:#2a7">■</span> kept <span style="color:#c76">■</span> left out</p>'
    return f'{legend}<div class="row">{"".join(charts)}</div>'


def histogram(values: list[tuple[float, bool]]) -> str:
    """SVG of stacked bars: (value, kept) pairs."""
    numbers = np.array([value for value, _ in values])
    low, high = float(numbers.min()), float(numbers.max())
    if low == high:
        low, high = low - 0.5, high + 0.5
    flags = np.array([kept for _, kept in values])
    edges = np.linspace(low, high, BINS + 1)
    kept, lost = (np.histogram(numbers[chosen], edges)[0] for chosen in (flags, ~flags))
    scale = (HEIGHT - 20) / max((kept + lost).max(), 1)
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
    )
    return f'<svg width="{WIDTH}" height="{HEIGHT}" role="img">{"".join(bars)}{ends}</svg>'


def _examples(rows: list[dict], storage: Storage, column: str, output_dir: str | os.PathLike) -> str:
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
    names = [name for name, _ in HISTOGRAMS if row.get(name) not in (None, "")]
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
    with av.open(file_url(path)) as container:
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
