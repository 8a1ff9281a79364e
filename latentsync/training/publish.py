"""What a run gives from time to time: weights in the published format, and measures of them."""

import logging
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn

from latentsync.training.distributed import any_process, is_sharded, together
from latentsync.training.ema import AveragedWeights
from latentsync.training.report import Report
from latentsync.training.settings import TrainSettings
from latentsync.training.task import Task
from latentsync.utils.errors import UserError

logger = logging.getLogger(__name__)


class Publisher:
    """Exports and validates the model of a run, with the averaged weights where there are such."""

    def __init__(
        self,
        task: Task,
        settings: TrainSettings,
        accelerator: Accelerator,
        model: nn.Module,
        ema: AveragedWeights | None,
        report: Report,
    ) -> None:
        self.task, self.settings, self.accelerator = task, settings, accelerator
        self.model, self.ema, self.report = model, ema, report

    def is_published(self, step: int) -> bool:
        """Whether a step was exported and validated."""
        there = self.accelerator.is_main_process and self.report.validated(step)
        return any_process(self.accelerator, there)[0]

    def publish(self, step: int) -> None:
        """Export the weights, then validate them. Raises UserError in all processes."""
        began = time.monotonic()
        path = self.settings.checkpoint_dir / f"{self.task.name}-{step}.pt"
        with self._averaged():
            state = self.accelerator.get_state_dict(self.model)
            together(self.accelerator, lambda: self.task.export(state, step, path), main_only=True)
        if self.accelerator.is_main_process:
            logger.info("exported %s", path)
            self._prune()
        self.report.pause(time.monotonic() - began)
        self.validate(step)

    def validate(self, step: int) -> None:
        """Measure the model, add the row, draw the chart. Raises UserError in all processes."""
        began = time.monotonic()
        together(self.accelerator, lambda: self._measure(step), main_only=not is_sharded(self.accelerator))
        self.report.pause(time.monotonic() - began)

    def newest_export(self) -> Path | None:
        """The export of the latest step."""
        exports = self._exports()
        return exports[-1] if exports else None

    def _measure(self, step: int) -> None:
        model = self.model if is_sharded(self.accelerator) else self.accelerator.unwrap_model(self.model)
        with ExitStack() as stack:
            folder = Path(self.settings.output_dir) / "validation" / f"step_{step:08d}"
            if not self.accelerator.is_main_process:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(f"{folder}: cannot be made ({error.strerror}); free space") from error
            stack.enter_context(self._averaged())
            stack.enter_context(evaluating(model))
            measures = self.task.validate(model, step, folder)
            if not any(folder.iterdir()):
                folder.rmdir()
        if self.accelerator.is_main_process:
            self.report.write_validation(step, measures)
            self.report.draw_chart()

    def _averaged(self) -> AbstractContextManager[None]:
        return self.ema.in_place() if self.ema is not None else nullcontext()

    def _exports(self) -> list[Path]:
        """Exported files, in order of their steps."""
        found = [
            path for path in self.settings.checkpoint_dir.glob(f"{self.task.name}-*.*") if _step_in(path) is not None
        ]
        return sorted(found, key=_step_in)

    def _prune(self) -> None:
        if not self.settings.keep_exports:
            return
        exports = self._exports()
        kept = sorted({_step_in(path) for path in exports})[-self.settings.keep_exports :]
        for path in exports:
            if _step_in(path) not in kept:
                path.unlink()


def _step_in(path: Path) -> int | None:
    """The step in the name of an export, None for other files."""
    number = path.stem.rpartition("-")[2]
    return int(number) if number.isdigit() else None


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode, no gradients; modes are as before afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training
