"""Charts of metrics as PNG files, drawn without a display."""

from collections.abc import Mapping
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from latentsync.metrics.sync import SyncScore

SIZE, DPI = (7.0, 4.0), 110  # inches; dots per inch


def plot_offsets(scores: Mapping[str, SyncScore], path: str | Path, title: str) -> Path:
    """Mean audio-visual distance over the offset, one line per score; returns `path`."""
    figure = Figure(figsize=SIZE, dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for name, score in scores.items():
        label = f"{name}: confidence {score.confidence:.2f}, offset {score.offset:+d}"
        (line,) = axes.plot(score.offsets, score.distances, label=label)
        axes.plot(score.offset, score.distances.min(), "o", color=line.get_color())
    axes.axvline(0, color="0.7", linewidth=0.8, zorder=0)
    axes.set(title=title, xlabel="offset in frames (positive: the audio is early)", ylabel="mean distance")
    axes.legend(fontsize="small")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path
