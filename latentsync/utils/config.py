"""Config files (YAML) -> validated dataclasses. A file may name a `base:` beside it and hold only the differences.

Key names are the published ones. Every mistake is a UserError that names the file, the line and the key.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, Literal, Protocol, TypeVar

from latentsync.utils.schema import SchemaError, build, require, require_positive
from latentsync.utils.yaml_files import read_yaml


class ModelSection(Protocol):
    """What the other sections need to know of a model config."""

    @property
    def max_frames(self) -> int | None: ...


Model = TypeVar("Model", bound=ModelSection)


@dataclass(frozen=True)
class DataConfig:
    """Clips and sound. resolution: side of the aligned face, pixels; audio_feat_length: Whisper frames either side."""

    syncnet_config_path: str = ""
    train_output_dir: str = "output/unet"
    train_fileslist: str = ""
    train_data_dir: str = ""
    audio_embeds_cache_dir: str = ""
    audio_mel_cache_dir: str = ""
    val_video_path: str = ""
    val_audio_path: str = ""
    batch_size: int = 1
    num_workers: int = 4
    num_frames: int = 16
    resolution: int = 256
    mask_image_path: str = ""
    audio_sample_rate: int = 16000
    video_fps: float = 25.0
    audio_feat_length: tuple[int, ...] = (2, 2)

    def __post_init__(self) -> None:
        require_positive(self, "batch_size", "num_frames", "resolution", "video_fps")
        require(self.num_workers >= 0, f"num_workers must be at least 0, got {self.num_workers}")
        require(self.resolution % 8 == 0, f"resolution {self.resolution} is not a multiple of 8; use 256 or 512")
        require(self.audio_sample_rate == 16000, "audio_sample_rate must be 16000: Whisper knows no other")
        window = self.audio_feat_length
        require(len(window) == 2 and min(window) >= 0, f"audio_feat_length {list(window)} is not [before, after]")


@dataclass(frozen=True)
class CkptConfig:
    """resume_ckpt_path: weights to start from, empty for none."""

    resume_ckpt_path: str = ""
    save_ckpt_steps: int = 10000

    def __post_init__(self) -> None:
        require_positive(self, "save_ckpt_steps")


@dataclass(frozen=True)
class RunConfig:
    """Losses and length of a run. trainable_modules: parts of parameter names that are trained, empty for all.

    train_sampled_timesteps: train mostly at the timesteps that sampling in inference_steps visits (small models).
    start_from_reference: begin as a copier of the reference frame (models that predict the clean sample).
    """

    pixel_space_supervise: bool = False
    use_syncnet: bool = False
    sync_loss_weight: float = 0.05
    perceptual_loss_weight: float = 0.1
    recon_loss_weight: float = 1.0
    guidance_scale: float = 1.5
    trepa_loss_weight: float = 10.0
    inference_steps: int = 20
    trainable_modules: tuple[str, ...] = ()
    seed: int = 1247
    use_mixed_noise: bool = True
    mixed_noise_alpha: float = 1.0
    mixed_precision_training: bool = True
    enable_gradient_checkpointing: bool = True
    max_train_steps: int = 10000000
    max_train_epochs: int = -1
    train_sampled_timesteps: bool = False
    start_from_reference: bool = False

    def __post_init__(self) -> None:
        require_positive(self, "inference_steps", "mixed_noise_alpha", "max_train_steps")
        require(self.guidance_scale >= 1, f"guidance_scale must be at least 1 (1 = off), got {self.guidance_scale}")
        require(self.max_train_epochs != 0, "max_train_epochs must be above 0, or -1 for no limit")
        require(
            self.pixel_space_supervise or not self.use_syncnet,
            "use_syncnet needs decoded frames; set pixel_space_supervise to true as well",
        )
        for name in ("sync_loss_weight", "perceptual_loss_weight", "recon_loss_weight", "trepa_loss_weight"):
            require(getattr(self, name) >= 0, f"{name} must not be negative")


@dataclass(frozen=True)
class OptimizerConfig:
    """scale_lr: multiply lr by the number of processes. lr_scheduler: one of diffusers' schedules."""

    lr: float = 1e-5
    scale_lr: bool = False
    max_grad_norm: float = 1.0
    lr_scheduler: Literal["constant", "constant_with_warmup", "linear", "cosine", "polynomial"] = "constant"
    lr_warmup_steps: int = 0

    def __post_init__(self) -> None:
        require_positive(self, "lr", "max_grad_norm")
        require(self.lr_warmup_steps >= 0, f"lr_warmup_steps must be at least 0, got {self.lr_warmup_steps}")
        if self.lr_scheduler == "constant":
            require(
                self.lr_warmup_steps == 0,
                "lr_warmup_steps has no effect with lr_scheduler constant; use constant_with_warmup",
            )


@dataclass(frozen=True)
class UNetFileConfig(Generic[Model]):
    """A whole `configs/unet/*.yaml`. `model` is the schema the caller gave, beside the model it describes."""

    model: Model
    data: DataConfig = field(default_factory=DataConfig)
    ckpt: CkptConfig = field(default_factory=CkptConfig)
    run: RunConfig = field(default_factory=RunConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    def __post_init__(self) -> None:
        limit = self.model.max_frames
        require(
            limit is None or self.data.num_frames <= limit,
            f"data.num_frames {self.data.num_frames} exceeds the {limit} of the model's motion modules"
            " (temporal_position_encoding_max_len); lower num_frames",
        )


@dataclass(frozen=True)
class WhisperMelConfig:
    """The log-mel of openai-whisper; lengths in samples at 16 kHz."""

    sample_rate: Literal[16000] = 16000
    n_fft: Literal[400] = 400
    hop_size: Literal[160] = 160
    num_mels: Literal[80] = 80


@dataclass(frozen=True)
class SyncNetMelConfig:
    """The mel of SyncNet (Wav2Lip's); lengths in samples, levels in dB, frequencies in Hz."""

    sample_rate: int = 16000
    n_fft: int = 800
    hop_size: int = 200
    win_size: int = 800
    num_mels: int = 80
    fmin: float = 55.0
    fmax: float = 7600.0
    preemphasis: float = 0.97
    ref_level_db: float = 20.0
    min_level_db: float = -100.0
    max_abs_value: float = 4.0

    def __post_init__(self) -> None:
        require_positive(self, "sample_rate", "n_fft", "hop_size", "win_size", "num_mels", "max_abs_value")
        require(self.win_size <= self.n_fft, f"win_size {self.win_size} exceeds n_fft {self.n_fft}")
        require(
            0 <= self.fmin < self.fmax <= self.sample_rate / 2,
            f"fmin {self.fmin} and fmax {self.fmax} must rise and stay below half of sample_rate",
        )
        require(self.min_level_db < 0, "min_level_db must be below 0")


@dataclass(frozen=True)
class AudioConfig:
    """`configs/audio.yaml`: what the UNet hears and what SyncNet hears."""

    whisper: WhisperMelConfig = field(default_factory=WhisperMelConfig)
    syncnet: SyncNetMelConfig = field(default_factory=SyncNetMelConfig)


def load_unet_config(path: str | Path, model_schema: type[Model]) -> UNetFileConfig[Model]:
    """Read a UNet config; `model_schema` is the dataclass of its `model` section (`UNetConfig`)."""
    file = read_yaml(path)
    with file.named_errors():
        if "model" not in file.values:
            raise SchemaError((), "missing section model; copy one from configs/unet, or name such a file as base")
        model = build(model_schema, file.values["model"], ("model",))
        return build(UNetFileConfig, {**file.values, "model": model})


def load_audio_config(path: str | Path) -> AudioConfig:
    """Read `configs/audio.yaml`."""
    file = read_yaml(path)
    with file.named_errors():
        return build(AudioConfig, file.values)
