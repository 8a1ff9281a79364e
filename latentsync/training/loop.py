"""The training loop of both trainers: validate, build, restore, step, report, save.

Stopping at any time and running the same command again gives the same weights as a run that never stopped: batches,
noise and dropout are functions of the seed and the position in the run, all else is in the checkpoint.
"""

import json
import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from diffusers.optimization import get_scheduler
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader

from latentsync.data.draws import StepBatches, collate
from latentsync.training.companions import Companions
from latentsync.training.distributed import (
    any_process,
    is_sharded,
    make_accelerator,
    release,
    save_without_prefix,
    shared_folder,
    together,
)
from latentsync.training.ema import AveragedWeights
from latentsync.training.publish import Publisher
from latentsync.training.randomness import seed_step
from latentsync.training.report import Report
from latentsync.training.settings import TrainSettings
from latentsync.training.state import CheckpointStore, Progress
from latentsync.training.stopping import StopRequest, ignore_first_signal
from latentsync.training.task import Task
from latentsync.utils.checkpoints import write_safetensors
from latentsync.utils.errors import UserError

__all__ = ["Task", "TrainSettings", "run_training"]

logger = logging.getLogger(__name__)
MAX_SKIPS_IN_A_ROW = 50
DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def run_training(task: Task, settings: TrainSettings, *, dry_run: bool = False) -> Path:
    """Train to the end of `settings`, or until asked to stop; going on from the last checkpoint where there is one.

    With `dry_run` everything is built and one step is done, saved, exported and validated, into a folder beside
    `output_dir` that is removed again.

    Returns:
        The newest export, `<output_dir>/checkpoints/<task.name>-<step>.pt`; the folder of checkpoints while there is
        none.

    Raises:
        UserError: in all processes; a setting, the data, or the disk does not allow it.
    """
    accelerator = make_accelerator(settings)
    if dry_run:
        settings = _dry(settings)
    try:
        if dry_run:
            together(accelerator, lambda: shutil.rmtree(settings.output_dir, ignore_errors=True), main_only=True)
        with StopRequest(settings.stop_after_minutes) as stop:
            trainer = Trainer(task, settings, accelerator)
            trainer.run(stop)
        accelerator.wait_for_everyone()
        newest = trainer.publisher.newest_export()
        del trainer
        return newest or settings.checkpoint_dir
    finally:
        if dry_run and accelerator.is_main_process:
            shutil.rmtree(settings.output_dir, ignore_errors=True)
        release(accelerator)


def _dry(settings: TrainSettings) -> TrainSettings:
    output = Path(settings.output_dir)
    return replace(
        settings,
        output_dir=output.with_name(f".{output.name}-dry-run"),
        max_train_steps=1,
        max_train_epochs=-1,
        save_every=1,
        log_every=1,
        stop_after_minutes=0.0,
    )


class Trainer:
    """A run of a task. Everything with state that is not in the task: `progress`, optimizers, averages, files."""

    def __init__(self, task: Task, settings: TrainSettings, accelerator: Accelerator) -> None:
        """Build: wrap the model, make the optimizers, open the files; nothing is restored yet."""
        self.task, self.settings, self.accelerator = task, settings, accelerator
        self.progress, self.saved_step = Progress(), 0
        self.skips_in_a_row, self.bad_files = 0, set()
        shared_folder(accelerator, Path(settings.output_dir))
        self.store = CheckpointStore(settings.checkpoint_dir, settings.keep_last, accelerator)
        self.dataset = task.dataset()
        self.total_steps = settings.total_steps(len(self.dataset), accelerator.num_processes)
        if accelerator.num_processes > 1 and accelerator.device.type == "cuda":
            task.model = nn.SyncBatchNorm.convert_sync_batchnorm(task.model)
        self.trained = [parameter for parameter in task.model.parameters() if parameter.requires_grad]
        if not self.trained:
            raise UserError("no parameter is trained; check trainable_modules")
        self._prepare()
        self.companions = Companions(task.companions, settings, accelerator.device)
        self.ema = (
            AveragedWeights(accelerator.unwrap_model(self.model), settings.ema_decay) if settings.ema_decay else None
        )
        task.place(accelerator.device, DTYPES[accelerator.mixed_precision])

    def _prepare(self) -> None:
        """The optimizer, its schedule, and both wrapped for the processes and the precision at hand."""
        settings, accelerator = self.settings, self.accelerator
        lr = settings.lr * (accelerator.num_processes if settings.scale_lr else 1)
        optimizer = torch.optim.AdamW(
            self.trained, lr, betas=settings.betas, eps=settings.epsilon, weight_decay=settings.weight_decay
        )
        schedule = get_scheduler(
            settings.lr_scheduler,
            torch.optim.SGD([torch.zeros(1)], lr),
            num_warmup_steps=settings.lr_warmup_steps,
            num_training_steps=self.total_steps,
        ).lr_lambdas[0]
        self.lr_at = lambda step: lr * schedule(step)
        if settings.compile:
            self.task.model.compile()  # in place: names of parameters stay
        if accelerator.distributed_type == DistributedType.DEEPSPEED:
            config = accelerator.state.deepspeed_plugin.deepspeed_config
            config["train_micro_batch_size_per_gpu"] = settings.batch_size
        self.model, self.optimizer = accelerator.prepare(self.task.model, optimizer)
        self.trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        if not is_sharded(accelerator):
            save_without_prefix(accelerator)

    def run(self, stop: StopRequest) -> None:
        """Restore, then step, report and save to the end, or until asked to stop."""
        self._restore()
        self.report = Report(self.accelerator, Path(self.settings.output_dir), self.progress.step)
        self.publisher = Publisher(self.task, self.settings, self.accelerator, self.model, self.ema, self.report)
        self._describe()
        try:
            if self.progress.step and self._is_milestone() and not self.publisher.is_published(self.progress.step):
                self.publisher.publish(self.progress.step)  # the last run ended between saving and publishing
            batches = iter(self._loader())
            while self.progress.step < self.total_steps:
                if any_process(self.accelerator, stop.asked)[0]:
                    self._save()
                    logger.info("stopped at step %d; run the same command to go on", self.progress.step)
                    break
                self._train_step(batches)
                self._log_and_save()
        finally:
            self.report.close()

    def _restore(self) -> None:
        """Go on from the newest good checkpoint, if there is one."""
        settings, newest = self.settings, self.store.newest()
        if settings.resume == "never":
            occupied = self.accelerator.is_main_process and not self.store.is_empty()
            if any_process(self.accelerator, occupied)[0]:
                raise UserError(
                    f"{self.store.folder}: holds checkpoints; choose another output_dir or set resume: auto"
                )
        if newest is None:
            return
        together(self.accelerator, lambda: self._load(newest))
        self.saved_step = self.progress.step
        logger.info("going on from %s", newest)

    def _load(self, folder: Path) -> None:
        try:
            self.accelerator.load_state(str(folder))
            self.progress = Progress.from_json(json.loads((folder / "progress.json").read_text(encoding="utf-8")))
            if self.ema is not None:
                self.ema.load_state_dict(load_file(folder / "ema.safetensors"))
            if self.companions.modules:
                state = torch.load(folder / "companions.pt", map_location=self.accelerator.device, weights_only=True)
                self.companions.load_state_dict(state)
        except (RuntimeError, ValueError, KeyError, FileNotFoundError) as error:
            raise UserError(
                f"{folder}: is of another model or other options ({str(error).strip()[:300]});"
                " restore the config it was made with, or choose another output_dir"
            ) from error

    def _describe(self) -> None:
        trained = sum(parameter.numel() for parameter in self.trained)
        settings, count = self.settings, self.accelerator.num_processes
        logger.info(
            "%s: %.2f M trained parameters, %d clips, %d processes x batch %d x accumulation %d, %s, step %d of %d",
            *(self.task.name, trained / 1e6, len(self.dataset), count, settings.batch_size),
            *(settings.gradient_accumulation_steps, self.accelerator.mixed_precision),
            *(self.progress.step, self.total_steps),
        )

    def _loader(self) -> DataLoader:
        settings, accelerator = self.settings, self.accelerator
        sampler = StepBatches(
            len(self.dataset),
            settings.batch_size,
            settings.seed,
            weights=self.task.sample_weights(),
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
            start=self.progress.position,
            repeats=settings.repeats,
        )
        return DataLoader(
            self.dataset,
            batch_sampler=sampler,
            num_workers=settings.num_workers,
            collate_fn=collate,
            pin_memory=accelerator.device.type == "cuda",
            worker_init_fn=ignore_first_signal,
            timeout=settings.dataloader_timeout if settings.num_workers else 0,
        )

    def _train_step(self, batches: Iterator[dict[str, Any]]) -> None:
        """Change the weights once. Batches that cannot be used are replaced by the next ones."""
        lr, count = self.lr_at(self.progress.step), self.settings.gradient_accumulation_steps
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        while True:
            values = [self._backward(batches, last=index == count - 1) for index in range(count)]
            norm = self._apply_gradients()
            if norm is not None:
                break
            self.companions.drop()
            self._skip("the gradient is not finite")
        self.companions.step(lr)
        self.progress.step += 1
        self.skips_in_a_row = 0
        if self.ema is not None:
            self.ema.update(self.progress.step)
        means = {name: sum(value[name] for value in values) / count for name in values[0]}
        self.report.add({**means, "grad_norm": norm, "lr": lr})

    def _backward(self, batches: Iterator[dict[str, Any]], last: bool) -> dict[str, Tensor]:
        """Add the gradients of one batch; its losses. `last` of an optimizer step: average over processes."""
        self.accelerator.sync_gradients = last
        while True:
            batch = self._next_batch(batches)
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                losses = self.task.step(self.model, batch, self.progress.step)
                finite = bool(torch.isfinite(losses["loss"].detach()))
                if not any_process(self.accelerator, not finite)[0]:
                    self.accelerator.backward(losses["loss"])
                    self.companions.backward(losses)
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
            self.report.waited(time.monotonic() - began)
            problem = batch.get("error")
            self.progress.position += 1
            self._note_bad_files(batch.get("failed_paths", []))
            if not any_process(self.accelerator, problem is not None)[0]:
                break
            self._skip(problem or "another process could not read its batch")
        seed_step(self.settings.seed, self.progress.position, self.accelerator.process_index)
        device = self.accelerator.device
        return {
            name: value.to(device, non_blocking=True) if isinstance(value, Tensor) and name != "key" else value
            for name, value in batch.items()
        }

    def _apply_gradients(self) -> float | None:
        """Clip and step; the norm before clipping, or None where it is not finite and the weights stay."""
        norm = self.accelerator.clip_grad_norm_(self.trained, self.settings.max_grad_norm)
        norm = float(norm) if norm is not None else 0.0  # DeepSpeed has stepped by now and may not tell
        finite = norm < float("inf")
        if finite or self.accelerator.scaler is not None:  # the scaler must see an overflow to lower its scale
            self.optimizer.step()
            finite = finite and not self.accelerator.optimizer_step_was_skipped
        self.optimizer.zero_grad()
        return norm if finite else None

    def _skip(self, reason: str) -> None:
        """Count a skip, which all processes do at once."""
        self.progress.skipped += 1
        self.skips_in_a_row += 1
        logger.warning("step %d: a batch is skipped: %s", self.progress.step, reason)
        if self.skips_in_a_row >= MAX_SKIPS_IN_A_ROW:
            raise UserError(f"{MAX_SKIPS_IN_A_ROW} batches in a row could not be used; the last one: {reason}")

    def _note_bad_files(self, failed_paths: list) -> None:
        names = {str(path) for entry in failed_paths for path in ([entry] if isinstance(entry, str) else entry)}
        for name in sorted(names - self.bad_files):
            self.bad_files.add(name)
            logger.warning("unreadable clip %d: %s", len(self.bad_files), name)

    def _is_milestone(self) -> bool:
        step = self.progress.step
        return step % self.settings.save_every == 0 or step == self.total_steps

    def _log_and_save(self) -> None:
        """After each step: a row, a checkpoint, a validation, each where it is due."""
        step, settings = self.progress.step, self.settings
        due = self._is_milestone()
        if due or step % settings.log_every == 0:
            advice = self.task.advise(step, self.report.write_row(step))
            if advice and self.accelerator.is_main_process:
                logger.warning("%s", advice)
        if due:
            self._save()
            self.publisher.publish(step)
        elif settings.validate_every and step % settings.validate_every == 0:
            self.publisher.validate(step)

    def _save(self) -> None:
        """Write a checkpoint; nothing when this step's is there or no step was done."""
        if self.progress.step == self.saved_step:
            return
        began = time.monotonic()
        self.report.write_row(self.progress.step)
        folder = self.store.save(self.progress.step, self._write_state)
        self.saved_step = self.progress.step
        self.report.pause(time.monotonic() - began)
        logger.info("saved %s", folder)

    def _write_state(self, folder: Path) -> None:
        self.accelerator.save_state(str(folder))
        if self.accelerator.is_main_process:
            (folder / "progress.json").write_text(json.dumps(self.progress.to_json()), encoding="utf-8")
            if self.ema is not None:
                write_safetensors(folder / "ema.safetensors", self.ema.state_dict())
            if self.companions.modules:
                torch.save(self.companions.state_dict(), folder / "companions.pt")
