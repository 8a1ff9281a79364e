"""The sections that UNet and SyncNet training share: `data`, `ckpt`, `run`, `optimizer`.

Key names are the published ones. `latentsync.config.unet` and `latentsync.config.syncnet` extend the sections.
"""

import importlib
import re
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Any, Literal

from latentsync.config.schema import SchemaError, build, require, require_not_negative, require_positive, section
from latentsync.constants import DEFAULT_SEED, FPS, LATENT_FACTOR, SAMPLE_RATE

Precision = Literal["auto", "no", "fp16", "bf16"]
BestBy = Literal["balanced", "sync", "mouth", "identity", "silence", "sharpness", "accuracy"]
RECIPE_MODULE = re.compile(r"recipes(\.[a-z_0-9]+)+")


@section
class AugmentConfig:
    """Random changes of training clips; all off by default.

    flip: probability of a mirrored clip. color: strength in [0, 1] of a change of brightness, contrast and tint.
    affine: strength in [0, 1] of rotation, zoom and shift; 1 means up to 5 degrees, 5% and 3% of the side.
    """

    flip: float = 0.0
    color: float = 0.0
    affine: float = 0.0

    def __post_init__(self) -> None:
        for name in ("flip", "color", "affine"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"{name} must be between 0 (off) and 1, got {value:g}")


@section
class DataSection:
    """Clips and where results go.

    train_output_dir: checkpoints, charts and logs. A run resumes from the checkpoints it finds there.
    train_fileslist: list of clips, see `tools.write_fileslist`. train_data_dir: folder its relative paths start from.
    audio_embeds_cache_dir, audio_mel_cache_dir: caches of audio features.
    latent_cache_dir: cache of encoded clips; empty for a folder in train_output_dir. Entries are named by content, so
        runs may share one.
    batch_size: samples per process and forward pass. num_workers: processes that read clips, per training process.
    num_frames: frames per sample. resolution: side of the aligned face in pixels.
    balance_people: weight each person by the square root of their number of clips instead of by the number.
    windows_per_clip: consecutive samples taken from the same clip.
    augment: random changes of the clips as they are read.
    """

    train_output_dir: str = "output/training"
    train_fileslist: str = ""
    train_data_dir: str = ""
    audio_embeds_cache_dir: str = ""
    audio_mel_cache_dir: str = ""
    latent_cache_dir: str = ""
    batch_size: int = 1
    num_workers: int = 4
    num_frames: int = 16
    resolution: int = 256
    audio_sample_rate: int = SAMPLE_RATE
    video_fps: float = float(FPS)
    balance_people: bool = False
    windows_per_clip: int = 1
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def __post_init__(self) -> None:
        require_positive(self, "batch_size", "num_frames", "resolution", "video_fps", "windows_per_clip")
        require_not_negative(self, "num_workers")
        require(
            self.resolution % LATENT_FACTOR == 0,
            f"resolution {self.resolution} is not a multiple of {LATENT_FACTOR}; use 256 or 512",
        )
        require(
            self.audio_sample_rate == SAMPLE_RATE,
            f"audio_sample_rate must be {SAMPLE_RATE}, the rate of Whisper and SyncNet",
        )

    @property
    def latent_cache(self) -> Path:
        """Where encoded clips are kept."""
        return Path(self.latent_cache_dir or Path(self.train_output_dir) / "encoded")

    @property
    def audio_embeds_cache(self) -> Path:
        """Where Whisper states of clips are kept."""
        return Path(self.audio_embeds_cache_dir or Path(self.train_output_dir) / "audio_embeds")


@section
class CkptSection:
    """resume_ckpt_path: weights to start from, empty for none.
    base_model: registered model whose autoencoder, audio encoder and noise schedule are used.
    save_ckpt_steps: optimizer steps between checkpoints, each with an export and a validation.
    """

    resume_ckpt_path: str = ""
    base_model: str = "latentsync-1.6"
    save_ckpt_steps: int = 10000

    def __post_init__(self) -> None:
        require_positive(self, "save_ckpt_steps")


@section
class RunSection:
    """Length, precision and bookkeeping of a run.

    max_train_steps: optimizer steps in all, skipped ones not counted. max_train_epochs: a second limit, in passes over
        the dataset; -1 for none.
    validation_steps: steps between validations besides those at checkpoints; 0 for none.
    log_steps: steps averaged in one logged row.
    mixed_precision: precision of mixed_precision_training; auto is bf16 on a GPU that has it, fp16 on another GPU, and
        float32 on a CPU.
    gradient_accumulation_steps: forward passes per optimizer step.
    ema_decay: decay of the averaged weights that are exported and validated, 0 for none.
    fsdp: split weights, gradients, optimizer state and averaged weights over the processes (FSDP2) instead of copying
        them, for models that do not fit one GPU.
    background_saves: write checkpoints while training continues; needs host memory for a copy of the state.
    compile: torch.compile the model; the first steps then take minutes. tf32: allow TF32 in float32 matrix products.
    keep_last: number of checkpoints to keep.
    best_by: rule that names the best export, see `latentsync.training.selection`.
    stop_after_minutes: save and exit after this time, 0 for no limit; the same command resumes.
    """

    seed: int = DEFAULT_SEED
    max_train_steps: int = 10_000_000
    max_train_epochs: int = -1
    validation_steps: int = 0
    log_steps: int = 10
    mixed_precision_training: bool = True
    mixed_precision: Literal["auto", "bf16", "fp16"] = "auto"
    gradient_accumulation_steps: int = 1
    ema_decay: float = 0.0
    fsdp: bool = False
    background_saves: bool = False
    compile: bool = False
    tf32: bool = True
    keep_last: int = 3
    best_by: BestBy = "balanced"
    stop_after_minutes: float = 0.0

    def __post_init__(self) -> None:
        require_positive(self, "max_train_steps", "log_steps", "keep_last", "gradient_accumulation_steps")
        require_not_negative(self, "validation_steps", "stop_after_minutes")
        require(0 <= self.ema_decay < 1, f"ema_decay must be at least 0 (off) and below 1, got {self.ema_decay}")
        require(
            self.max_train_epochs == -1 or self.max_train_epochs > 0,
            f"max_train_epochs must be above 0, or -1 for no limit, got {self.max_train_epochs}",
        )

    @property
    def precision(self) -> Precision:
        return self.mixed_precision if self.mixed_precision_training else "no"


@section
class OptimizerSection:
    """AdamW, or AdamW with 8-bit state (torchao; a quarter of the optimizer's memory).

    scale_lr: multiply lr by the number of processes. lr_scheduler: one of diffusers' schedules.
    """

    name: Literal["adamw", "adamw_8bit"] = "adamw"
    lr: float = 1e-5
    scale_lr: bool = False
    max_grad_norm: float = 1.0
    lr_scheduler: Literal["constant", "constant_with_warmup", "linear", "cosine", "polynomial"] = "constant"
    lr_warmup_steps: int = 0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_weight_decay: float = 1e-2
    adam_epsilon: float = 1e-8

    def __post_init__(self) -> None:
        require_positive(self, "lr", "max_grad_norm", "adam_epsilon")
        require_not_negative(self, "adam_weight_decay", "lr_warmup_steps")
        for name in ("adam_beta1", "adam_beta2"):
            require(0 <= getattr(self, name) < 1, f"{name} must be at least 0 and below 1, got {getattr(self, name)}")
        if self.lr_scheduler == "constant":
            require(
                self.lr_warmup_steps == 0,
                "lr_warmup_steps has no effect with lr_scheduler constant; use constant_with_warmup",
            )

    @property
    def adamw(self) -> dict[str, Any]:
        """Keyword arguments of `torch.optim.AdamW` besides the learning rate."""
        return {
            "betas": (self.adam_beta1, self.adam_beta2),
            "eps": self.adam_epsilon,
            "weight_decay": self.adam_weight_decay,
        }


@section
class TrainingConfig:
    """The sections of every training config, which the training loop uses.

    recipe: a `latentsync.training.recipe.Recipe`, changes to training that are not part of the core; None for none.
    """

    data: DataSection = field(default_factory=DataSection)
    ckpt: CkptSection = field(default_factory=CkptSection)
    run: RunSection = field(default_factory=RunSection)
    optimizer: OptimizerSection = field(default_factory=OptimizerSection)
    recipe: Any = None

    @property
    def checkpoint_dir(self) -> Path:
        return Path(self.data.train_output_dir) / "checkpoints"

    def total_steps(self, num_items: int, num_processes: int) -> int:
        """Optimizer steps of the run: the smaller of both limits, for a dataset of `num_items` clips."""
        if self.run.max_train_epochs == -1:
            return self.run.max_train_steps
        samples = self.data.batch_size * num_processes * self.run.gradient_accumulation_steps
        return min(self.run.max_train_steps, -(-self.run.max_train_epochs * num_items // samples))


def build_recipe(values: object) -> Any:
    """The recipe of a `recipe` section: `name`, a module under `recipes` with a section `Recipe`, and its options."""
    if not isinstance(values, Mapping) or not isinstance(values.get("name"), str):
        raise SchemaError(("recipe",), "expected a group of keys with the name of a recipe")
    options = dict(values)
    name = options.pop("name")
    if not RECIPE_MODULE.fullmatch(name):
        raise SchemaError(("recipe", "name"), f"{name!r} is not the name of a recipe, such as recipes.embedded")
    try:
        schema = importlib.import_module(name).Recipe
    except (ModuleNotFoundError, AttributeError) as error:
        raise SchemaError(("recipe", "name"), f"there is no recipe {name!r} ({error})") from error
    return build(schema, options, ("recipe",))


def build_sections(schema: type, values: Mapping[str, Any], model: Any) -> Any:
    """A training config from plain values and the validated model section. Raises SchemaError."""
    recipe = build_recipe(values["recipe"]) if values.get("recipe") is not None else None
    return build(schema, {**values, "model": model, "recipe": recipe})
