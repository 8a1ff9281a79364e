"""Logs of a run: CSV tables, a chart, TensorBoard, log lines. Only the main process writes."""

import csv
import logging
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator
from torch import Tensor

from latentsync.utils.errors import UserError
from latentsync.utils.files import replaced

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

logger = logging.getLogger(__name__)
TIMINGS = ("data_wait", "steps_per_second")
CHART_POINTS = 2000


class ValueTable:
    """Rows of named numbers by step, in a CSV file that is appended to. The first column is `step`."""

    def __init__(self, path: Path, last_step: int) -> None:
        """Continue an existing file without its rows after `last_step`, which the interrupted run had not saved."""
        self.path, self.names = path, ["step"]
        self.rows: list[dict[str, float]] = []
        if path.is_file():
            try:
                self._read(last_step)
            except (OSError, ValueError, TypeError, KeyError) as error:
                raise UserError(f"{path}: is not a table of this program; move it elsewhere") from error
            self._rewrite()

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Append a row; a new name adds a column. A row of the same step is replaced."""
        replaces = bool(self.rows) and self.rows[-1]["step"] >= step
        self.rows = [row for row in self.rows if row["step"] < step] if replaces else self.rows
        row = {"step": step, **values}
        self.rows.append(row)
        new = [name for name in row if name not in self.names]
        self.names += new
        if new or replaces or len(self.rows) == 1:
            self._rewrite()
        else:
            with self.path.open("a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, self.names).writerow(row)

    def column(self, name: str) -> tuple[list[int], list[float]]:
        """Steps and values of the rows that have a finite one."""
        rows = [row for row in self.rows if math.isfinite(row.get(name, math.nan))]
        return [int(row["step"]) for row in rows], [row[name] for row in rows]

    def _read(self, last_step: int) -> None:
        with self.path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            self.names = list(reader.fieldnames or ["step"])
            for row in reader:
                values = {name: float(value) for name, value in row.items() if value not in ("", None)}
                if values["step"] <= last_step:
                    self.rows.append({**values, "step": int(values["step"])})

    def _rewrite(self) -> None:
        with replaced(self.path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.names)
            writer.writeheader()
            writer.writerows(self.rows)


class Report:
    """Means of the logged values since the last row, over all processes, and the speed of the steps.

    Files in `folder`: train.csv, validation.csv, loss_chart.png, tensorboard/ where that package is installed.
    """

    def __init__(self, accelerator: Accelerator, folder: Path, step: int) -> None:
        self.accelerator, self.folder = accelerator, folder
        self.writes = accelerator.is_main_process
        self.train = ValueTable(folder / "train.csv", step) if self.writes else None
        self.validation = ValueTable(folder / "validation.csv", step) if self.writes else None
        self.board = _open_tensorboard(folder / "tensorboard", step + 1) if self.writes else None
        self._restart()

    def pause(self, seconds: float) -> None:
        """Exclude time spent on saving or validating from the speed."""
        self._began += seconds

    def add(self, values: Mapping[str, Tensor | float], waited: float = 0.0) -> None:
        """Values of one step, and the seconds it waited for batches; tensors stay on their device until the row."""
        self._count += 1
        self._waited += waited
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0) + value

    def write_row(self, step: int) -> dict[str, float]:
        """Average the added values, write and return them. All processes must call this; {} when nothing was added."""
        if not self._count:
            return {}
        elapsed = max(time.monotonic() - self._began, 1e-9)
        device = self.accelerator.device
        kind = torch.float32 if device.type == "mps" else torch.float64
        values = [torch.as_tensor(value).to(device, kind) for value in self._sums.values()]
        row = torch.stack(values) / self._count
        row = torch.cat([row, row.new_tensor([self._waited / elapsed, self._count / elapsed])])
        means = self.accelerator.reduce(row, reduction="mean").tolist()
        means = dict(zip([*self._sums, *TIMINGS], means, strict=True))
        self._restart()
        if self.train is not None:
            self._write(self.train, step, means)
            self._show("train", step, means)
            shown = "  ".join(f"{name} {value:.4g}" for name, value in means.items())
            logger.info("step %d  %s", step, shown)
        return means

    def write_validation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add a row of metrics; in the main process."""
        assert self.validation is not None
        self._write(self.validation, step, metrics)
        self._show("validation", step, metrics)
        if metrics:
            shown = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
            logger.info("validation at step %d  %s", step, shown)

    def validated(self, step: int) -> bool:
        """Whether there is a row of metrics for a step; in the main process."""
        assert self.validation is not None
        return any(row["step"] == step for row in self.validation.rows)

    @property
    def validation_rows(self) -> list[dict[str, float]]:
        """Metrics by step, with the column `step`; in the main process."""
        assert self.validation is not None
        return self.validation.rows

    def draw_chart(self) -> None:
        """Plot losses and metrics against steps, one panel each; in the main process."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        tables = [table for table in (self.train, self.validation) if table is not None]
        panels = [(table, name) for table in tables for name in table.names]
        panels = [(table, name) for table, name in panels if name not in ("step", *TIMINGS)]
        panels = [panel for panel in panels if panel[0].column(panel[1])[0]]
        if not panels:
            return
        columns = min(3, len(panels))
        rows = -(-len(panels) // columns)
        figure = Figure(figsize=(5 * columns, 3 * rows))
        figure.subplots_adjust(0.12 / columns + 0.02, 0.1 / rows, 0.98, 1 - 0.12 / rows, 0.2, 0.35)
        FigureCanvasAgg(figure)
        for place, (table, name) in enumerate(panels):
            steps, values = _thinned(*table.column(name))
            axes = figure.add_subplot(rows, columns, place + 1)
            axes.plot(steps, values, marker="o" if table is self.validation else "", markersize=3, linewidth=1)
            axes.set_title(name if table is self.train else f"{name} (validation)", fontsize=9)
            axes.grid(alpha=0.3)
        path = self.folder / "loss_chart.png"
        try:
            with replaced(path) as temporary:
                figure.savefig(temporary, format="png", dpi=90)
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror}); free space") from error

    def close(self) -> None:
        if self.board is not None:
            self.board.close()

    def _restart(self) -> None:
        self._sums: dict[str, Tensor | float] = {}
        self._count, self._waited, self._began = 0, 0.0, time.monotonic()

    def _write(self, table: ValueTable, step: int, values: Mapping[str, float]) -> None:
        try:
            table.add(step, values)
        except OSError as error:
            raise UserError(f"{table.path}: cannot be written ({error.strerror}); free space") from error

    def _show(self, group: str, step: int, values: Mapping[str, float]) -> None:
        if self.board is not None:
            for name, value in values.items():
                self.board.add_scalar(f"{group}/{name}", value, step)


def _open_tensorboard(folder: Path, first_step: int) -> "SummaryWriter | None":
    """A writer that discards an earlier run's entries from `first_step` on; None without the package."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        logger.info(
            "TensorBoard is not installed (pip install tensorboard); train.csv and loss_chart.png are written anyway"
        )
        return None
    return SummaryWriter(str(folder), purge_step=first_step)


def _thinned(steps: list[int], values: list[float]) -> tuple[list[int], list[float]]:
    """At most CHART_POINTS points, each the mean of its neighbors."""
    size = -(-len(steps) // CHART_POINTS)
    groups = range(0, len(steps), size)
    means = [sum(values[first : first + size]) / len(values[first : first + size]) for first in groups]
    return [steps[first] for first in groups], means
