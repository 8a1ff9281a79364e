"""Exports of a run: averaged weights, files in the published format, and their validation."""

import logging
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import cast

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.tensor import DTensor

from latentsync.config.sections import TrainingConfig
from latentsync.training.background import BackgroundValidation
from latentsync.training.distributed import any_process, from_all, is_sharded, together
from latentsync.training.report import Report
from latentsync.training.selection import keep_best
from latentsync.training.task import Share, Task
from latentsync.utils.errors import UserError

logger = logging.getLogger(__name__)


class AveragedWeights:
    """Exponential moving average, in float32, of the parameters that are trained.

    The decay grows to its final value as 1 - (1 + step)^(-3/4), so that the random initial weights fade quickly.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        # Of a sharded model each process averages its shard.
        self.average = {name: p.detach().float().clone() for name, p in self.parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After optimizer step number `step` (from 1)."""
        decay = min(self.decay, 1 - (1 + step) ** -0.75)
        for name, parameter in self.parameters.items():
            _local(self.average[name]).lerp_(_local(parameter).float(), 1 - decay)

    @contextmanager
    @torch.no_grad()
    def in_place(self) -> Iterator[None]:
        """The model has the averaged weights inside the `with` block."""
        own = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}
        try:
            for name, parameter in self.parameters.items():
                _local(parameter).copy_(_local(self.average[name]))
            yield
        finally:
            for name, parameter in self.parameters.items():
                _local(parameter).copy_(_local(own[name]))

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Raises KeyError when the model trains other parameters than the one that was saved."""
        for name, average in self.average.items():
            average.copy_(state[name])


def _local(tensor: Tensor) -> Tensor:
    """This process's shard."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


class Exporter:
    """Exports and validates the model of a run, with the averaged weights where there are any.

    Where the task has a `validate_export`, a process of its own validates, and `collect` adds the rows. Otherwise the
    training processes validate, each its share, and training waits.
    """

    def __init__(
        self,
        task: Task,
        config: TrainingConfig,
        accelerator: Accelerator,
        model: nn.Module,
        ema: AveragedWeights | None,
        report: Report,
    ) -> None:
        self.task, self.config, self.accelerator = task, config, accelerator
        self.model, self.ema, self.report = model, ema, report
        validate = task.validate_export
        self.in_background = validate is not None
        self.background = BackgroundValidation(validate) if validate and accelerator.is_main_process else None

    def is_exported(self, step: int) -> bool:
        """Whether a step has been exported and validated."""
        validated = self.accelerator.is_main_process and self.report.validated(step)
        return any_process(self.accelerator, validated)[0]

    def export(self, step: int) -> None:
        """Export the weights, then validate them. Raises UserError in all processes."""
        began = time.monotonic()
        path = self.config.checkpoint_dir / f"{self.task.name}-{step}.pt"
        with self._averaged():
            state = self._whole_state()
            together(self.accelerator, lambda: self.task.export(state, step, path), main_only=True)
        if self.accelerator.is_main_process:
            logger.info("exported %s", path)
        self.report.pause(time.monotonic() - began)
        if self.in_background:
            together(self.accelerator, lambda: self._start(path, step), main_only=True)
        else:
            self.validate(step)

    def _start(self, path: Path, step: int) -> None:
        assert self.background is not None
        folder = self._folder(step)
        _create(folder)
        self.background.start(path, step, folder)

    def collect(self, *, wait: bool = False) -> None:
        """Add the rows of validations in the background that have ended, or with `wait` of all.

        Raises:
            UserError: in all processes, when the disk is full or fails.
        """
        if self.in_background:
            together(self.accelerator, lambda: self._collect(wait), main_only=True)

    def _collect(self, wait: bool) -> None:
        assert self.background is not None
        for step, folder, metrics in self.background.finished(wait=wait):
            self._write_validation(step, metrics, folder)

    def close(self) -> None:
        """End the process of the background."""
        if self.background is not None:
            self.background.close()

    def _whole_state(self) -> dict[str, Tensor]:
        """All weights in the main process, with the bare model's names."""
        if self.accelerator.distributed_type == DistributedType.DEEPSPEED:
            return self.accelerator.get_state_dict(self.model)
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        return cast(dict[str, Tensor], get_model_state_dict(self.model, options=options))

    def validate(self, step: int) -> None:
        """Compute the task's metrics, each process its share, add the row, draw the chart.

        Raises:
            UserError: in all processes.
        """
        began = time.monotonic()
        folder = self._folder(step)
        together(self.accelerator, lambda: _create(folder), main_only=True)
        values = together(self.accelerator, lambda: self._values(step, folder))
        found = from_all(self.accelerator, values or {})
        metrics = means(found[:1] if is_sharded(self.model) else found)
        together(self.accelerator, lambda: self._write_validation(step, metrics, folder), main_only=True)
        self.report.pause(time.monotonic() - began)

    def newest_export(self) -> Path | None:
        """The export of the latest step."""
        found = self.config.checkpoint_dir.glob(f"{self.task.name}-*.*")
        return max(
            (path for path in found if _step_in(path) is not None), key=lambda path: _step_in(path) or 0, default=None
        )

    def _folder(self, step: int) -> Path:
        """Where the videos of a validation are."""
        return Path(self.config.data.train_output_dir) / "validation" / f"step_{step:08d}"

    def _values(self, step: int, folder: Path) -> dict[str, list[float]]:
        """Metrics of this process's share of the validation."""
        sharded, accelerator = is_sharded(self.model), self.accelerator
        model = self.model if sharded else accelerator.unwrap_model(self.model)
        share = Share() if sharded else Share(accelerator.process_index, accelerator.num_processes)
        with ExitStack() as stack:
            if sharded and not accelerator.is_main_process:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            stack.enter_context(self._averaged())
            stack.enter_context(evaluating(model))
            return self.task.validate(model, step, folder, share)

    def _write_validation(self, step: int, metrics: Mapping[str, float], folder: Path) -> None:
        if not any(folder.iterdir()):
            folder.rmdir()
        self.report.write_validation(step, metrics)
        self.report.draw_chart()
        keep_best(self.config.checkpoint_dir, self.task.name, self.report.validation_rows, self.config.run.best_by)

    def _averaged(self) -> AbstractContextManager[None]:
        return self.ema.in_place() if self.ema is not None else nullcontext()


def means(values: Sequence[Mapping[str, Sequence[float]]]) -> dict[str, float]:
    """Mean by name of the values of all processes, in the order in which the names come up."""
    names = dict.fromkeys(name for each in values for name in each)
    return {name: float(np.mean([value for each in values for value in each.get(name, ())])) for name in names}


def _create(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be created ({error.strerror}); free space") from error


def _step_in(path: Path) -> int | None:
    """The step in the name of an export; None for other files."""
    number = path.stem.rpartition("-")[2]
    return int(number) if number.isdigit() else None


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode without gradients; afterwards modes are restored."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training
