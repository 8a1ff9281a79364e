"""Plots of the evaluation's reports, as inline SVG."""

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from latentsync.constants import FPS
from latentsync.utils.figures import STYLE, inline_svg

COLORS = ("#555555", "#1f77b4", "#d95f02", "#1b9e77", "#7b5ea7", "#b8860b", "#c2185b", "#2f4f4f")
WIDTH, ROW, LINE_WIDTH, LINE_HEIGHT = 4.4, 0.28, 6.6, 1.5  # inches


def color(index: int) -> str:
    """Color of the method with this index, the same in all plots."""
    return COLORS[index % len(COLORS)]


def strip_plot(title: str, groups: Mapping[str, Sequence[float]], means: Mapping[str, float]) -> str:
    """One row per method: a dot for each clip, and a bar from 0 to the mean."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 0.7 + ROW * len(groups)), layout="constrained")
        axes = figure.subplots()
        axes.axvline(0, color="#999999", linewidth=0.8)
        labels = []
        for row, (name, group) in enumerate(groups.items()):
            if name in means:
                axes.barh(row, means[name], height=0.7, color=color(row), alpha=0.35)
            axes.scatter(group, [row] * len(group), s=9, color=color(row))
            value = f"{means[name]:.4g}" if name in means else "n/a" if not len(group) else ""
            labels.append(f"{_short(name)}  {value}")
        axes.set_yticks(range(len(groups)), labels)
        axes.set_ylim(len(groups) - 0.5, -0.5)
        axes.set_title(title, loc="left", weight="bold")
        return inline_svg(figure, title)


def line_plot(title: str, lines: Mapping[str, Sequence[float]], colors: Mapping[str, str], fps: float = FPS) -> str:
    """Values over time, one line per method; NaN leaves a gap."""
    arrays = {name: np.asarray(line, float) for name, line in lines.items() if np.isfinite(line).any()}
    if not arrays:
        return ""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(LINE_WIDTH, LINE_HEIGHT), layout="constrained")
        axes = figure.subplots()
        axes.axhline(0, color="#bbbbbb", linewidth=0.8)
        for name, array in arrays.items():
            axes.plot(np.arange(len(array)) / fps, array, color=colors[name], linewidth=1.2)
        axes.margins(x=0)
        axes.set_xlabel("s")
        axes.set_title(title, loc="left", weight="bold")
        return inline_svg(figure, title)


def _short(name: str, limit: int = 18) -> str:
    return name if len(name) <= limit else f"{name[: limit - 1]}…"
