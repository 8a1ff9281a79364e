"""The HTML page of a comparison: the table, plots, and the videos side by side. It loads nothing from elsewhere.

Videos are referred to where they lie, relative to the page.
"""

import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from urllib.parse import quote

from eval.measures import MEASURES
from eval.methods import Method
from eval.pairs import Pair
from eval.plots import colour, line_plot, strip_plot
from eval.table import Cells, Failure, Figure, heading, shown
from latentsync.utils.errors import UserError
from latentsync.utils.files import write_text

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem; color: #222; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; } h3 { font-size: 1rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; } td, th { padding: .3rem .6rem; }
td, th { text-align: right; vertical-align: top; } td { border-top: 1px solid #ddd; }
th { font-weight: 600; overflow-wrap: anywhere; min-width: 6rem; max-width: 14rem; }
small { font-weight: 400; color: #666; }
td:first-child, th:first-child, td.text, th.text { text-align: left; }
td.text { max-width: 34rem; overflow-wrap: anywhere; }
.none { color: #777; font-size: .85em; max-width: 14rem; overflow-wrap: anywhere; }
.note { display: block; color: #a33; font-size: .8em; max-width: 14rem; }
.plots { display: flex; flex-wrap: wrap; gap: 1rem; } svg { background: #fafafa; border: 1px solid #eee; }
svg text { font: 12px system-ui, sans-serif; } svg .title { font-weight: 600; } svg .faint { fill: #888; }
svg .axis { stroke: #bbb; } .players { display: flex; flex-wrap: wrap; gap: 1rem; }
figure { margin: 0; width: 320px; } video { width: 100%; background: #000; } figcaption { font-size: .85em; }
.swatch { display: inline-block; width: .8em; height: .8em; margin-right: .35em; }
.failed { color: #a33; } button { font: inherit; padding: .2rem .8rem; }
dt { font-weight: 600; } dd { margin: 0 0 .4rem 0; overflow-wrap: anywhere; }
"""
# Plays all videos of a clip together: from the beginning, the first with sound.
SCRIPT = """
for (const button of document.querySelectorAll("button")) {
  button.addEventListener("click", () => {
    const videos = [...button.closest("section").querySelectorAll("video")];
    const playing = videos.some((video) => !video.paused);
    videos.forEach((video, index) => {
      if (playing) { video.pause(); return; }
      video.currentTime = 0; video.muted = index > 0; video.play();
    });
  });
}
"""


def write_page(
    path: Path,
    methods: Sequence[Method],
    pairs: Sequence[Pair],
    rows: Sequence[Figure],
    cells: Cells,
    failures: Sequence[Failure],
    notes: Mapping[str, str],
    conditions: Mapping[str, str],
) -> None:
    """Write the page; see `eval.run` for what goes in. Raises UserError when it cannot be written."""
    names = [method.name for method in methods]
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
        "<meta name='viewport' content='width=device-width, initial-scale=1'>",
        f"<title>Lip-sync evaluation</title><style>{STYLE}</style></head><body>",
        f"<h1>Lip-sync evaluation: {len(methods)} methods, {len(pairs)} clips</h1>",
        _table(rows, names, notes),
        _failures(failures),
        "<h2>Values of the clips</h2>",
        _strips(rows, cells, names, pairs),
        "<h2>Clips</h2>",
        *(_clip(pair, methods, cells, failures, path.parent) for pair in pairs),
        _conditions(conditions),
        f"<script>{SCRIPT}</script></body></html>",
    ]
    write_text(path, lambda file: file.write("\n".join(parts) + "\n"))


def _table(rows: Sequence[Figure], names: Sequence[str], notes: Mapping[str, str]) -> str:
    """Measures down, methods across."""
    by_cell = {(row.method, row.measure): row for row in rows}
    head = "".join(f"<th>{_named(name, names)}</th>" for name in names)
    lines = [f"<tr><th>measure</th><th></th>{head}<th class='text'>what it is</th></tr>"]
    for measure in MEASURES:
        cells = _cells([by_cell[name, measure.key] for name in names])
        what = "; ".join(filter(None, (measure.about, notes.get(measure.key))))
        lines.append(
            f"<tr><td>{escape(heading(measure))}</td><td class='text'><small>{escape(measure.better)}</small></td>"
            f"{cells}<td class='text'><small>{escape(what)}</small></td></tr>"
        )
    return f"<div class='scroll'><table>{''.join(lines)}</table></div>"


def _cells(rows: Sequence[Figure]) -> str:
    """One reason for all methods is said once."""
    if len({row.text for row in rows}) == 1 and rows[0].value is None:
        return f"<td class='none' colspan='{len(rows)}'>{escape(rows[0].text)}</td>"
    return "".join(map(_cell, rows))


def _cell(row: Figure) -> str:
    if row.value is None:
        return f"<td class='none'>{escape(row.text)}</td>"
    note = f"<span class='note'>{escape(row.note)}</span>" if row.note else ""
    return f"<td title='{row.count} clips or samples'>{shown(row.value)}{note}</td>"


def _named(name: str, names: Sequence[str]) -> str:
    return f"<span class='swatch' style='background:{colour(names.index(name))}'></span>{escape(name)}"


def _failures(failures: Sequence[Failure]) -> str:
    if not failures:
        return ""
    lines = [
        f"<tr><td>{escape(item.id)}</td><td class='text'>{escape(item.method)}</td>"
        f"<td class='text'>{escape(item.reason)}</td></tr>"
        for item in failures
    ]
    return f"<h2 class='failed'>Not measured</h2><table>{''.join(lines)}</table>"


def _strips(rows: Sequence[Figure], cells: Cells, names: Sequence[str], pairs: Sequence[Pair]) -> str:
    """A plot for each measure that any clip has. The bars are the table's means."""
    plots = []
    for measure in MEASURES:
        groups = {name: _numbers(cells, name, measure.key, pairs) for name in names}
        means = {row.method: row.value for row in rows if row.measure == measure.key and row.value is not None}
        if any(groups.values()):
            plots.append(strip_plot(f"{heading(measure)}, {measure.better}", groups, means))
    return f"<div class='plots'>{''.join(plots)}</div>"


def _numbers(cells: Cells, name: str, key: str, pairs: Sequence[Pair]) -> list[float]:
    measured = [cells[name, pair.id].numbers for pair in pairs if (name, pair.id) in cells]
    return [numbers[key] for numbers in measured if key in numbers]


def _clip(pair: Pair, methods: Sequence[Method], cells: Cells, failures: Sequence[Failure], folder: Path) -> str:
    names = [method.name for method in methods]
    players = "".join(_player(pair, method, cells, failures, names, folder) for method in methods)
    curves = {
        name: cells[name, pair.id].arrays["window_confidences"]
        for name in names
        if (name, pair.id) in cells and "window_confidences" in cells[name, pair.id].arrays
    }
    plot = line_plot("sync confidence over time", curves, {name: colour(names.index(name)) for name in names})
    voice = "its own voice" if pair.audio is None else f"voice: {pair.audio.name}"
    return (
        f"<section><h3>{escape(pair.id)} <small>{escape(voice)}</small> <button>play / pause all</button></h3>"
        f"<div class='players'>{players}</div>{plot}</section>"
    )


def _player(
    pair: Pair, method: Method, cells: Cells, failures: Sequence[Failure], names: Sequence[str], folder: Path
) -> str:
    """A video with its main figures, or why there is none."""
    name = _named(method.name, names)
    reasons = [item.reason for item in failures if (item.method, item.id) == (method.name, pair.id)]
    try:
        source = relative_url(method.result(pair), folder)
    except UserError:
        reason = f"<span class='failed'>{escape(' '.join(reasons))}</span>"
        return f"<figure><figcaption>{name}<br>{reason}</figcaption></figure>"
    caption = escape(" ".join(reasons))
    if (method.name, pair.id) in cells:
        numbers = cells[method.name, pair.id].numbers
        caption = ", ".join(f"{m.title} {shown(numbers[m.key])}" for m in MEASURES if m.key in numbers)
    return (
        f"<figure><video controls preload='metadata' src='{source}'></video>"
        f"<figcaption>{name}<br>{caption}</figcaption></figure>"
    )


def _conditions(conditions: Mapping[str, str]) -> str:
    items = "".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in conditions.items())
    return f"<h2>Settings and versions</h2><dl>{items}</dl>"


def relative_url(path: Path, folder: Path) -> str:
    """A file as a link from a page in `folder`, any name quoted."""
    return quote(
        os.path.relpath(os.path.abspath(path), os.path.abspath(folder)).encode("utf-8", "surrogateescape"), safe="/"
    )
