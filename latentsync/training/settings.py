"""What both trainers are told alike: lengths, precision, optimizer, how often to save; filled from either config."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from latentsync.utils.schema import require, require_positive

Precision = Literal["auto", "no", "fp16", "bf16"]
Schedule = Literal["constant", "constant_with_warmup", "linear", "cosine", "polynomial"]


@dataclass(frozen=True)
class TrainSettings:
    """Settings of a run. Counts are per process where nothing else is said.

    Args:
        output_dir: of checkpoints, charts and logs; what lies there under `checkpoints` is gone on from.
        batch_size: samples of one process in one forward pass.
        repeats: neighbouring samples that are made of the same clip.
        num_workers: processes that read clips, per training process.
        seed: everything random is a function of it and of the position in the run.
        max_train_steps: optimizer steps in all, not counting skipped ones.
        max_train_epochs: a second limit, in passes over the dataset; -1 for none.
        save_every: optimizer steps between checkpoints; each comes with an export and a validation.
        validate_every: optimizer steps between validations besides those at the saves, 0 for none.
        keep_last: checkpoints to go on from that are kept.
        keep_exports: exported weights that are kept, 0 for all.
        log_every: optimizer steps that a logged value is the mean of.
        lr: learning rate after warm-up; with scale_lr multiplied by the number of processes.
        betas, epsilon, weight_decay: of AdamW.
        max_grad_norm: longer gradients are shortened to it.
        mixed_precision: auto is bf16 on a GPU that has it, fp16 on another, and no on a CPU.
        gradient_accumulation_steps: forward passes whose mean gradient makes one optimizer step.
        ema_decay: of the averaged weights that are validated and exported, 0 for none.
        compile: torch.compile of the model; the first steps then take minutes.
        tf32: let matrix products of float32 on a GPU round to TF32.
        find_unused_parameters: for a model some parameters of which get no gradient, with several processes.
        resume: auto goes on from the newest good checkpoint; never refuses a folder that has some.
        stop_after_minutes: save and leave after that time, 0 for no limit; for machines lent by the hour.
        dataloader_timeout: seconds after which a worker counts as hung, 0 for never.

    Raises:
        UserError: a value is out of range.
    """

    output_dir: Path
    batch_size: int = 1
    repeats: int = 1
    num_workers: int = 4
    seed: int = 1247
    max_train_steps: int = 10_000_000
    max_train_epochs: int = -1
    save_every: int = 10_000
    validate_every: int = 0
    keep_last: int = 3
    keep_exports: int = 0
    log_every: int = 10
    lr: float = 1e-5
    scale_lr: bool = False
    lr_scheduler: Schedule = "constant"
    lr_warmup_steps: int = 0
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    weight_decay: float = 1e-2
    max_grad_norm: float = 1.0
    mixed_precision: Precision = "auto"
    gradient_accumulation_steps: int = 1
    ema_decay: float = 0.0
    compile: bool = False
    tf32: bool = True
    find_unused_parameters: bool = False
    resume: Literal["auto", "never"] = "auto"
    stop_after_minutes: float = 0.0
    dataloader_timeout: float = 0.0

    def __post_init__(self) -> None:
        require_positive(self, "batch_size", "repeats", "max_train_steps", "save_every", "keep_last", "log_every", "lr")
        require_positive(self, "max_grad_norm", "gradient_accumulation_steps")
        for name in ("num_workers", "validate_every", "keep_exports", "lr_warmup_steps", "stop_after_minutes"):
            require(getattr(self, name) >= 0, f"{name} must be at least 0, got {getattr(self, name)}")
        require(0 <= self.ema_decay < 1, f"ema_decay must be at least 0 and below 1, got {self.ema_decay}")
        require(
            self.max_train_epochs == -1 or self.max_train_epochs > 0,
            f"max_train_epochs must be above 0, or -1 for no limit, got {self.max_train_epochs}",
        )

    @property
    def checkpoint_dir(self) -> Path:
        return Path(self.output_dir) / "checkpoints"

    def total_steps(self, num_items: int, num_processes: int) -> int:
        """Optimizer steps of the run: the smaller of both limits, for a dataset of `num_items` clips."""
        if self.max_train_epochs == -1:
            return self.max_train_steps
        samples = self.batch_size * num_processes * self.gradient_accumulation_steps
        return min(self.max_train_steps, -(-self.max_train_epochs * num_items // samples))


def settings_from(config: Any, **own: Any) -> TrainSettings:
    """Settings of a config file of either trainer, `own` being what the other has no key for.

    Args:
        config: a UNetFileConfig or SyncNetFileConfig.
    """
    data, run, optimizer = config.data, config.run, config.optimizer
    return TrainSettings(
        output_dir=Path(data.train_output_dir),
        batch_size=data.batch_size,
        num_workers=data.num_workers,
        seed=run.seed,
        max_train_steps=run.max_train_steps,
        save_every=config.ckpt.save_ckpt_steps,
        keep_last=run.keep_last,
        lr=optimizer.lr,
        scale_lr=optimizer.scale_lr,
        lr_scheduler=optimizer.lr_scheduler,
        lr_warmup_steps=optimizer.lr_warmup_steps,
        betas=(optimizer.adam_beta1, optimizer.adam_beta2),
        epsilon=optimizer.adam_epsilon,
        weight_decay=optimizer.adam_weight_decay,
        max_grad_norm=optimizer.max_grad_norm,
        mixed_precision=run.mixed_precision if run.mixed_precision_training else "no",
        gradient_accumulation_steps=run.gradient_accumulation_steps,
        ema_decay=run.ema_decay,
        compile=run.compile,
        tf32=run.tf32,
        stop_after_minutes=run.stop_after_minutes,
        **own,
    )


def choose_precision(wanted: Precision) -> Literal["no", "fp16", "bf16"]:
    """What `auto` means on this machine."""
    if wanted != "auto":
        return wanted
    if not torch.cuda.is_available():
        return "no"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
