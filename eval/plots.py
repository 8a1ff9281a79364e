"""Plots as inline SVG, without scripts or external files."""

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

from latentsync.constants import FPS

COLORS = ("#555555", "#1f77b4", "#d95f02", "#1b9e77", "#7b5ea7", "#b8860b", "#c2185b", "#2f4f4f")
WIDTH, ROW, LEFT, RIGHT = 420, 24, 120, 62
LINE_WIDTH, LINE_HEIGHT, MARGIN = 640, 130, 34


def color(index: int) -> str:
    """Color of the method with this index, the same in all plots."""
    return COLORS[index % len(COLORS)]


def strip_plot(title: str, groups: Mapping[str, Sequence[float]], means: Mapping[str, float]) -> str:
    """One row per method: a dot for each clip, and a bar from 0 to the mean."""
    values = [*(value for group in groups.values() for value in group), *means.values()]
    low, high = min(0.0, *values), max(0.0, *values)
    span = (high - low) or 1.0
    height = 30 + ROW * len(groups)

    def x(value: float) -> float:
        return LEFT + (value - low) / span * (WIDTH - LEFT - RIGHT)

    parts = [f'<text x="4" y="15" class="title">{escape(title)}</text>']
    parts.append(f'<line x1="{x(0):.1f}" y1="24" x2="{x(0):.1f}" y2="{height - 4}" class="axis"/>')
    for index, (name, group) in enumerate(groups.items()):
        y = 36 + ROW * index
        parts.append(f'<text x="4" y="{y + 4}">{escape(_short(name))}</text>')
        if not len(group):
            parts.append(f'<text x="{LEFT}" y="{y + 4}" class="faint">n/a</text>')
            continue
        parts += [f'<circle cx="{x(value):.1f}" cy="{y}" r="3" fill="{color(index)}"/>' for value in group]
        if name in means:
            left, width = min(x(0), x(means[name])), abs(x(means[name]) - x(0))
            parts.append(
                f'<rect x="{left:.1f}" y="{y - 7}" width="{width:.1f}" height="14" fill="{color(index)}" '
                'opacity="0.35"/>'
            )
            parts.append(f'<text x="{WIDTH - RIGHT + 8}" y="{y + 4}">{means[name]:.4g}</text>')
    return _svg(WIDTH, height, title, parts)


def line_plot(title: str, lines: Mapping[str, Sequence[float]], colors: Mapping[str, str], fps: float = FPS) -> str:
    """Values over time, one line per method; NaN leaves a gap."""
    arrays = {name: np.asarray(line, float) for name, line in lines.items() if np.isfinite(line).any()}
    if not arrays:
        return ""
    low, high = (float(pick([pick(a[np.isfinite(a)]) for a in arrays.values()])) for pick in (min, max))
    low, high = min(low, 0.0), high if high > low else low + 1.0
    longest = max(len(array) for array in arrays.values())

    def point(index: int, value: float) -> str:
        x = MARGIN + index / max(longest - 1, 1) * (LINE_WIDTH - MARGIN - 8)
        y = 22 + (high - value) / (high - low) * (LINE_HEIGHT - 40)
        return f"{x:.1f},{y:.1f}"

    zero = point(0, 0.0).split(",")[1]
    parts = [f'<text x="{MARGIN}" y="13" class="title">{escape(title)}</text>']
    parts.append(f'<line x1="{MARGIN}" y1="{zero}" x2="{LINE_WIDTH - 8}" y2="{zero}" class="axis"/>')
    for value in (low, high):
        parts.append(f'<text x="2" y="{float(point(0, value).split(",")[1]) + 4:.1f}" class="faint">{value:.2g}</text>')
    parts.append(f'<text x="{MARGIN}" y="{LINE_HEIGHT - 4}" class="faint">0 s</text>')
    end = (
        f'<text x="{LINE_WIDTH - 8}" y="{LINE_HEIGHT - 4}" class="faint" text-anchor="end">{longest / fps:.1f} s</text>'
    )
    parts.append(end)
    for name, array in arrays.items():
        for indices in _finite_ranges(array):
            points = " ".join(point(index, array[index]) for index in indices)
            parts.append(f'<polyline points="{points}" fill="none" stroke="{colors[name]}" stroke-width="1.5"/>')
    return _svg(LINE_WIDTH, LINE_HEIGHT, title, parts)


def _finite_ranges(array: np.ndarray) -> list[range]:
    """Index ranges of consecutive finite values."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], np.isfinite(array).astype(int), [0]])))
    return [range(start, end) for start, end in edges.reshape(-1, 2)]


def _short(name: str, limit: int = 18) -> str:
    return name if len(name) <= limit else f"{name[: limit - 1]}…"


def _svg(width: int, height: int, label: str, parts: Sequence[str]) -> str:
    return (
        f'<svg width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{escape(label, quote=True)}">{"".join(parts)}</svg>'
    )
