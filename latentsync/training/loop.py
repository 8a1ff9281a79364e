"""The training loop of both trainers: build, restore, step, report, save.

A run that is stopped at any time and resumed gives the same weights as one that never stopped: batches, noise and
dropout are functions of the seed and the position in the run, everything else is in the checkpoint.
"""

import argparse
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Sequence, Sized
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from diffusers.optimization import get_scheduler
from torch import Tensor, nn
from torch.utils.data import DataLoader

from latentsync.config.sections import OptimizerSection, TrainingConfig
from latentsync.data.sampler import StepBatchSampler, collate, seed_step
from latentsync.training.checkpoints import CheckpointStore, Progress
from latentsync.training.discriminators import Discriminators
from latentsync.training.distributed import (
    any_process,
    as_float,
    load_without_prefix,
    make_accelerator,
    no_gradient_exchange,
    release,
    shard,
    shared_folder,
    together,
)
from latentsync.training.export import AveragedWeights, Exporter
from latentsync.training.report import Report
from latentsync.training.state import RunState, describe_settings
from latentsync.training.stopping import StopRequest, ignore_first_signal
from latentsync.training.task import Task
from latentsync.utils.errors import UserError
from latentsync.utils.locks import exclusive_folder

logger = logging.getLogger(__name__)
MAX_SKIPS_IN_A_ROW = 50
FUSED = ("cpu", "cuda")
DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def train_and_report(train: Callable[[argparse.Namespace], Path], args: argparse.Namespace) -> int:
    """The body of a training command line: log to the terminal, run `train(args)`, log the path it returns.

    Returns:
        The exit code.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    path = train(args)
    logger.info("%s", "dry run: no errors" if args.dry_run else f"saved to {path}")
    return 0


def run_training(task: Task, config: TrainingConfig, *, dry_run: bool = False) -> Path:
    """Train to the end of `config`, or until a stop is requested; resumes from the last checkpoint if there is one.

    With `dry_run` everything is built and one step is done, saved, exported and validated, in a folder beside
    `data.train_output_dir` that is removed afterwards.

    Returns:
        The newest export, `<train_output_dir>/checkpoints/<task.name>-<step>.pt`; the folder of checkpoints if
        there is none.

    Raises:
        UserError: in all processes; a setting, the data or the disk does not allow it, or another run uses the folder.
    """
    accelerator = make_accelerator(config.run)
    if dry_run:
        config = _dry(config)
    output = Path(config.data.train_output_dir)
    try:
        if dry_run:
            together(accelerator, lambda: shutil.rmtree(output, ignore_errors=True), main_only=True)
        with _locked(accelerator, output), StopRequest(config.run.stop_after_minutes) as stop:
            trainer = Trainer(task, config, accelerator)
            trainer.run(stop)
            accelerator.wait_for_everyone()
        newest = trainer.exporter.newest_export()
        del trainer
        return newest or config.checkpoint_dir
    finally:
        if dry_run and accelerator.is_main_process:
            shutil.rmtree(output, ignore_errors=True)
        release(accelerator)


def _dry(config: TrainingConfig) -> TrainingConfig:
    output = Path(config.data.train_output_dir)
    return replace(
        config,
        data=replace(config.data, train_output_dir=str(output.with_name(f".{output.name}-dry-run"))),
        ckpt=replace(config.ckpt, save_ckpt_steps=1),
        run=replace(config.run, max_train_steps=1, max_train_epochs=-1, log_steps=1, stop_after_minutes=0.0),
    )


def _locked(accelerator: Accelerator, folder: Path) -> AbstractContextManager:
    """Keep a second trainer out of an output folder: the two would delete each other's checkpoints."""
    stack = ExitStack()

    def lock() -> None:
        try:
            stack.enter_context(exclusive_folder(folder, folder / ".lock"))
        except OSError as error:
            raise UserError(f"{folder}: cannot be written ({error.strerror}); choose another output folder") from error

    shared_folder(accelerator, folder)
    together(accelerator, lock, main_only=True)
    return stack


class Trainer:
    """A run of a task: everything with state that is not in the task (`progress`, optimizers, averages, files)."""

    def __init__(self, task: Task, config: TrainingConfig, accelerator: Accelerator) -> None:
        """Wrap the model and make the optimizers; nothing is restored yet."""
        self.task, self.config, self.accelerator = task, config, accelerator
        self.progress, self.saved_step = Progress(), 0
        self.skips_in_a_row, self.bad_files = 0, set[str]()
        self.waited = 0.0  # seconds that the last step waited for batches
        shared_folder(accelerator, Path(config.data.train_output_dir))
        self.store = CheckpointStore(
            config.checkpoint_dir, config.run.keep_last, accelerator, background=config.run.background_saves
        )
        self.dataset = task.dataset()
        self.num_clips = len(cast(Sized, self.dataset))
        self.total_steps = config.total_steps(self.num_clips, accelerator.num_processes)
        if accelerator.num_processes > 1 and accelerator.device.type == "cuda":
            task.model = nn.SyncBatchNorm.convert_sync_batchnorm(task.model)
        self.trained = trained(task.model)
        if not self.trained:
            raise UserError("no parameter is trained; check trainable_modules")
        self._prepare()
        modules = task.discriminators
        self.discriminators = Discriminators(modules, config, accelerator.device) if modules else None
        decay = config.run.ema_decay
        self.ema = AveragedWeights(accelerator.unwrap_model(self.model), decay) if decay else None
        settings = describe_settings(config, self.num_clips, accelerator.num_processes)
        self.state = RunState(accelerator, self.model, self.optimizer, self.ema, self.discriminators, settings)
        task.place(accelerator.device, DTYPES[accelerator.mixed_precision])

    def _prepare(self) -> None:
        """Make the optimizer and its schedule; wrap model and optimizer for processes and precision."""
        settings, accelerator = self.config.optimizer, self.accelerator
        lr = settings.lr * (accelerator.num_processes if settings.scale_lr else 1)
        schedule = get_scheduler(
            settings.lr_scheduler,
            torch.optim.SGD([torch.zeros(1)], lr),
            num_warmup_steps=settings.lr_warmup_steps,
            num_training_steps=self.total_steps,
        ).lr_lambdas[0]
        self.lr_at = lambda step: lr * schedule(step)
        if self.config.run.compile:
            self.task.model.compile()  # in place: names of parameters stay
        if accelerator.distributed_type == DistributedType.DEEPSPEED:
            deepspeed = accelerator.state.deepspeed_plugin.deepspeed_config
            deepspeed["train_micro_batch_size_per_gpu"] = self.config.data.batch_size
        if self.config.run.fsdp:
            shard(self.task.model, accelerator, DTYPES[accelerator.mixed_precision])
            self.model = accelerator.prepare_model(self.task.model, evaluation_mode=True)  # no DDP around it
            self.optimizer = accelerator.prepare_optimizer(make_optimizer(trained(self.model), lr, settings))
        else:
            optimizer = make_optimizer(self.trained, lr, settings)
            self.model, self.optimizer = accelerator.prepare(self.task.model, optimizer)
        self.trained = trained(self.model)
        load_without_prefix(accelerator)

    def run(self, stop: StopRequest) -> None:
        """Restore, then step, report and save to the end, or until a stop is requested."""
        self._restore()
        self.report = Report(self.accelerator, Path(self.config.data.train_output_dir), self.progress.step)
        self.exporter = Exporter(self.task, self.config, self.accelerator, self.model, self.ema, self.report)
        self._describe()
        try:
            if self.progress.step and self._is_milestone() and not self.exporter.is_exported(self.progress.step):
                self.exporter.export(self.progress.step)  # the last run ended between saving and exporting
            batches = iter(self._loader())
            while self.progress.step < self.total_steps:
                if any_process(self.accelerator, stop.requested)[0]:
                    self._save()
                    logger.info("stopped at step %d; run the same command to resume", self.progress.step)
                    break
                values = self._train_step(batches)
                self.report.add(values, self.waited)
                self._log_and_save()
            self.store.wait()
            self.exporter.collect(wait=True)
        finally:
            self.exporter.close()
            self.report.close()

    def _restore(self) -> None:
        """Resume from the newest checkpoint that can be loaded, if there is one."""
        failure, folder = None, self.store.newest()
        while folder is not None:
            try:
                together(self.accelerator, partial(self._load, folder))
            except UserError as error:
                failure = failure or error
                folder = self.store.newest(before=folder)
                continue
            if failure is not None:
                logger.warning("%s; resuming from the previous checkpoint", failure)
            self.saved_step = self.progress.step
            logger.info("resuming from %s", folder)
            for change in self.state.changes_since(folder):
                logger.warning("changed since then: %s", change)
            return
        if failure is not None:
            raise failure

    def _load(self, folder: Path) -> None:
        self.progress = self.state.load(folder)

    def _describe(self) -> None:
        trained = sum(parameter.numel() for parameter in self.trained)
        count = self.accelerator.num_processes
        logger.info(
            "%s: %.2f M trained parameters, %d clips, %d processes x batch %d x accumulation %d, %s, step %d of %d",
            *(self.task.name, trained / 1e6, self.num_clips, count, self.config.data.batch_size),
            *(self.config.run.gradient_accumulation_steps, self.accelerator.mixed_precision),
            *(self.progress.step, self.total_steps),
        )

    def _loader(self) -> DataLoader:
        data, accelerator = self.config.data, self.accelerator
        sampler = StepBatchSampler(
            self.num_clips,
            data.batch_size,
            self.config.run.seed,
            weights=self.task.sample_weights(),
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
            start=self.progress.position,
            repeats=data.windows_per_clip,
        )
        return DataLoader(
            self.dataset,
            batch_sampler=sampler,
            num_workers=data.num_workers,
            collate_fn=collate,
            pin_memory=accelerator.device.type == "cuda",
            worker_init_fn=ignore_first_signal,
        )

    def _train_step(self, batches: Iterator[dict[str, Any]]) -> dict[str, Tensor | float]:
        """One optimizer step; its logged values. Batches that cannot be used are replaced by the next ones."""
        self.waited = 0.0
        lr, count = self.lr_at(self.progress.step), self.config.run.gradient_accumulation_steps
        set_lr(self.optimizer, lr)
        while True:
            values = [self._backward(batches, last=index == count - 1) for index in range(count)]
            norm = self._apply_gradients()
            if norm is not None:
                break
            if self.discriminators is not None:
                self.discriminators.drop()
            self._skip("the gradient is not finite")
        if self.discriminators is not None:
            self.discriminators.step(lr)
        self.progress.step += 1
        self.skips_in_a_row = 0
        if self.ema is not None:
            self.ema.update(self.progress.step)
        means = {name: sum(value[name] for value in values) / count for name in values[0]}
        return {**means, "grad_norm": norm, "lr": lr}

    def _backward(self, batches: Iterator[dict[str, Any]], last: bool) -> dict[str, Tensor]:
        """Add the gradients of one batch and return its losses. `last` of an optimizer step: average over processes."""
        self.accelerator.sync_gradients = last
        while True:
            batch = self._next_batch(batches)
            with nullcontext() if last else no_gradient_exchange(self.accelerator, self.model):
                losses = self.task.step(self.model, batch, self.progress.step)
                finite = bool(torch.isfinite(losses["loss"].detach()))
                if not any_process(self.accelerator, not finite)[0]:
                    self.accelerator.backward(losses["loss"])
                    if self.discriminators is not None:
                        self.discriminators.backward(losses)
                    return {name: loss.detach() for name, loss in losses.items()}
            self._skip("the loss is not finite" if not finite else "the loss of another process is not finite")

    def _next_batch(self, batches: Iterator[dict[str, Any]]) -> dict[str, Any]:
        """The next batch that all processes could read, on the device; the global generators are seeded for it."""
        while True:
            began = time.monotonic()
            try:
                batch = next(batches)
            except UserError as error:
                batch = {"error": str(error)}
            self.waited += time.monotonic() - began
            problem = batch.get("error")
            self.progress.position += 1
            self._note_bad_files(batch.get("failed_paths", []))
            if not any_process(self.accelerator, problem is not None)[0]:
                break
            self._skip(problem or "another process could not read its batch")
        seed_step(self.config.run.seed, self.progress.position, self.accelerator.process_index)
        device = self.accelerator.device
        return {
            name: value.to(device, non_blocking=True) if isinstance(value, Tensor) and name != "key" else value
            for name, value in batch.items()
        }

    def _apply_gradients(self) -> float | None:
        """Clip and step; the norm before clipping, or None where it is not finite and the step is skipped."""
        norm = as_float(self.accelerator.clip_grad_norm_(self.trained, self.config.optimizer.max_grad_norm))
        finite = norm < float("inf")
        if finite or self.accelerator.scaler is not None:  # the scaler must see an overflow to lower its scale
            self.optimizer.step()
            finite = finite and not self.accelerator.optimizer_step_was_skipped
        self.optimizer.zero_grad()
        return norm if finite else None

    def _skip(self, reason: str) -> None:
        """Count a skipped batch; all processes skip together."""
        self.progress.skipped += 1
        self.skips_in_a_row += 1
        logger.warning("step %d: skipping a batch: %s", self.progress.step, reason)
        if self.skips_in_a_row >= MAX_SKIPS_IN_A_ROW:
            raise UserError(f"{MAX_SKIPS_IN_A_ROW} batches in a row could not be used; the last one: {reason}")

    def _note_bad_files(self, failed_paths: list) -> None:
        names = {str(path) for entry in failed_paths for path in ([entry] if isinstance(entry, str) else entry)}
        for name in sorted(names - self.bad_files):
            self.bad_files.add(name)
            logger.warning("unreadable clip %d: %s", len(self.bad_files), name)

    def _is_milestone(self) -> bool:
        step = self.progress.step
        return step % self.config.ckpt.save_ckpt_steps == 0 or step == self.total_steps

    def _log_and_save(self) -> None:
        """After each step: a logged row, a checkpoint, a validation, each when it is due."""
        step, run = self.progress.step, self.config.run
        due = self._is_milestone()
        if due or step % run.log_steps == 0:
            self.exporter.collect()
            advice = self.task.advise(step, self.report.write_row(step))
            if advice and self.accelerator.is_main_process:
                logger.warning("%s", advice)
        if due:
            self._save()
            self.exporter.export(step)
        elif run.validation_steps and step % run.validation_steps == 0:
            self.exporter.validate(step)

    def _save(self) -> None:
        """Write a checkpoint, unless this step's exists or no step was done."""
        step = self.progress.step
        if step == self.saved_step:
            return
        began = time.monotonic()
        self.report.write_row(step)
        self.store.save(step, self.state.snapshot(self.progress, copied=self.config.run.background_saves).write)
        self.saved_step = step
        self.report.pause(time.monotonic() - began)


def trained(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that are trained."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate; compiled optimizers keep it in a tensor."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr


def make_optimizer(parameters: Sequence[nn.Parameter], lr: float, settings: OptimizerSection) -> torch.optim.Optimizer:
    """The optimizer of the config; AdamW in one kernel for all parameters (fused), where the device has it.

    Raises:
        UserError: torchao, for 8 bits, is not installed.
    """
    if settings.name == "adamw_8bit":
        try:
            from torchao.optim import AdamW8bit
        except ImportError as error:
            raise UserError("optimizer.name adamw_8bit needs torchao: run `pip install '.[lowbit]'`") from error
        return AdamW8bit(parameters, lr, **settings.adamw)
    fused = all(parameter.device.type in FUSED for parameter in parameters)
    return torch.optim.AdamW(parameters, lr, fused=fused, **settings.adamw)
