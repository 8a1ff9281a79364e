"""Plot the training curves of SyncNets: `python -m eval.draw_syncnet_lines RUN_DIR ... --output lines.png`

Reads train.csv and validation.csv from the folder of each run.
"""

import argparse
import csv
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from latentsync.utils.commands import command
from latentsync.utils.errors import UserError

SMOOTHING = 0.9  # decay of the moving average of the training curve
Curve = tuple[list[float], list[float]]


def read_curve(path: Path, column: str) -> Curve:
    """Steps and finite values of a column; both empty if the file or the column is missing.

    Raises:
        UserError: the file was not written by the trainer.
    """
    if not path.is_file():
        return [], []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [(float(row["step"]), float(row.get(column) or math.nan)) for row in csv.DictReader(file)]
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise UserError(f"{path}: was not written by the trainer") from error
    kept = [row for row in rows if math.isfinite(row[1])]
    return [step for step, _ in kept], [value for _, value in kept]


def smooth(values: list[float], share: float = SMOOTHING) -> list[float]:
    """Exponential moving average with bias correction."""
    mean, weight, result = 0.0, 0.0, []
    for value in values:
        mean, weight = share * mean + (1 - share) * value, share * weight + (1 - share)
        result.append(mean / weight)
    return result


def draw(runs: list[Path], output: Path) -> None:
    """Plot the loss (training smoothed, validation dashed) and, below it, the validation accuracy.

    Raises:
        UserError: a folder is not the output of a run, or the chart cannot be written.
    """
    figure = Figure(figsize=(8, 7), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True)
    for number, run in enumerate(runs):
        steps, losses = read_curve(run / "train.csv", "loss")
        if not steps:
            raise UserError(f"{run}: no train.csv with a loss in it; give the output folder of a run")
        color = f"C{number}"
        above.plot(steps, smooth(losses), color=color, label=run.name)
        above.plot(*read_curve(run / "validation.csv", "loss"), color=color, linestyle="--", marker=".")
        below.plot(*read_curve(run / "validation.csv", "accuracy"), color=color, marker=".", label=run.name)
    above.set(ylabel="loss (dashed: validation)")
    below.set(xlabel="step", ylabel="validation accuracy")
    above.legend()
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(output)
    except OSError as error:
        raise UserError(f"{output}: cannot be written ({error.strerror})") from error


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m eval.draw_syncnet_lines", description=__doc__.split("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path, help="output folders of SyncNet runs")
    parser.add_argument("--output", type=Path, default=Path("outputs/syncnet_lines.png"), help="image to write")
    args = parser.parse_args(argv)
    draw(args.runs, args.output)
    print(args.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
