"""Config files (YAML) -> validated dataclasses. A file may name a `base:` beside it and hold only the differences.

Key names are the published ones. Every mistake is a UserError that names the file, the line and the key.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, Literal, Protocol, TypeVar

from latentsync.utils.augment_config import AugmentConfig
from latentsync.utils.schema import SchemaError, build, require, require_positive
from latentsync.utils.yaml_files import read_yaml


class ModelSection(Protocol):
    """What the other sections need to know of a model config."""

    @property
    def max_frames(self) -> int | None: ...


Model = TypeVar("Model", bound=ModelSection)


@dataclass(frozen=True)
class DataConfig:
    """Clips and sound. resolution: side of the aligned face, pixels; audio_feat_length: Whisper frames either side.

    latent_cache_dir: where encoded clips are kept (run.cache_latents), empty for a folder in train_output_dir. Entries
        go by content, so that several runs may share one.
    balance_people: a person counts with the square root of the clips there are of them, not with their number.
    augment: variations of the clips as they are read.
    varied_copies: how many copies of each clip encoded once (run.cache_latents) are trained on besides it, of another
        pace, look and sound.
    silent_share: of the samples of clips encoded once, how many show a mouth at rest in silence while the reference
        frames speak, in [0, 1]; see `SilentRuns`.
    """

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
    latent_cache_dir: str = ""
    balance_people: bool = False
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    varied_copies: int = 0
    silent_share: float = 0.0

    def __post_init__(self) -> None:
        require_positive(self, "batch_size", "num_frames", "resolution", "video_fps")
        require(self.varied_copies >= 0, f"varied_copies must be at least 0, got {self.varied_copies}")
        require(0 <= self.silent_share <= 1, f"silent_share must be between 0 and 1, got {self.silent_share:g}")
        require(not self.silent_share or self.video_fps == 25, "silent_share needs clips at 25 frames/s (video_fps)")
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
class UNetCkptConfig(CkptConfig):
    """The others: networks that losses need, empty for their places under checkpoints/."""

    perceptual_ckpt_path: str = ""
    trepa_ckpt_path: str = ""
    identity_ckpt_path: str = ""


LOSS_WEIGHTS = (
    "recon_loss_weight",
    "perceptual_loss_weight",
    "trepa_loss_weight",
    "sync_loss_weight",
    "motion_loss_weight",
    "adversarial_loss_weight",
    "flow_loss_weight",
    "multi_scale_sync_loss_weight",
    "identity_loss_weight",
)
PIXEL_LOSS_WEIGHTS = ("adversarial_loss_weight", "flow_loss_weight", "identity_loss_weight")


@dataclass(frozen=True)
class RunConfig:
    """Losses and length of a run. trainable_modules: parts of parameter names that are trained, empty for all.

    pixel_space_supervise: decode the one-step estimate and compare frames (perceptual, trepa and the optional losses).
    use_syncnet: compare with the sound through data.syncnet_config_path; one for latents needs no decoded frames.
    guidance_scale, inference_steps: of the validation video.
    mixed_precision: what mixed_precision_training computes in; auto is bf16 where the device has it, else fp16, and
        float32 on a CPU.
    enable_gradient_checkpointing: less memory, a third more time; of the UNet and of the decoder.
    train_sampled_timesteps: train mostly at the timesteps that sampling in inference_steps visits (small models).
    start_from_reference: begin as a copier of the reference frame (models that predict the clean sample).
    cache_latents: encode every clip once, into train_output_dir; else frames are encoded in each step.
    audio_dropout: share of samples trained without sound, which guidance needs.
    weigh_mouth: the reconstruction loss stresses the lips and hardly counts what inference does not replace.
    ema_decay: average of the weights that is exported and validated, 0 for none.
    keep_last: states to go on from that are kept.
    stop_after_minutes: save and leave after that time, 0 for no limit; the same command goes on.
    validate: make data.val_video_path speak data.val_audio_path at every save.
    decode_region: part of the face that is decoded for the losses on frames; the rest is the real frame.
    decode_frames: frames of a run that are decoded, evenly spaced; 0 for all, as losses over time need.
    motion_loss_weight: of the error of the change between neighbouring frames' latents.
    sync_max_timestep: losses on the one-step estimate count only samples at or below this noise level.
    perceptual_random_trunk: LPIPS on a seeded random VGG16, for want of the trained one.
    identity_embedding: face is a recognition network, appearance the network of LPIPS.
    lora_rank: train low-rank additions to the layers named by lora_target instead of the weights; 0 for none.
    lora_alpha: they count alpha / rank.
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
    mixed_precision: Literal["auto", "bf16", "fp16"] = "auto"
    enable_gradient_checkpointing: bool = True
    max_train_steps: int = 10000000
    max_train_epochs: int = -1
    train_sampled_timesteps: bool = False
    start_from_reference: bool = False
    cache_latents: bool = False
    audio_dropout: float = 0.1
    weigh_mouth: bool = False
    ema_decay: float = 0.0
    gradient_accumulation_steps: int = 1
    compile: bool = False
    tf32: bool = True
    keep_last: int = 3
    stop_after_minutes: float = 0.0
    validate: bool = True
    decode_region: Literal["whole", "lower_half", "mouth"] = "whole"
    decode_frames: int = 0
    motion_loss_weight: float = 0.0
    sync_max_timestep: int = 1000
    perceptual_random_trunk: bool = False
    adversarial_loss_weight: float = 0.0
    flow_loss_weight: float = 0.0
    multi_scale_sync_loss_weight: float = 0.0
    identity_loss_weight: float = 0.0
    identity_embedding: Literal["face", "appearance"] = "face"
    lora_rank: int = 0
    lora_alpha: float = 16.0
    lora_target: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")

    def __post_init__(self) -> None:
        require_positive(self, "inference_steps", "mixed_noise_alpha", "max_train_steps", "keep_last", "lora_alpha")
        require_positive(self, "gradient_accumulation_steps")
        require(self.guidance_scale >= 1, f"guidance_scale must be at least 1 (1 = off), got {self.guidance_scale}")
        require(
            self.max_train_epochs == -1 or self.max_train_epochs > 0,
            "max_train_epochs must be above 0, or -1 for no limit",
        )
        require(0 <= self.audio_dropout < 1, f"audio_dropout must be at least 0 and below 1, got {self.audio_dropout}")
        require(0 <= self.ema_decay < 1, f"ema_decay must be at least 0 (off) and below 1, got {self.ema_decay}")
        minutes = self.stop_after_minutes
        require(minutes >= 0, f"stop_after_minutes must be at least 0 (no limit), got {minutes:g}")
        require(self.sync_max_timestep >= 0, f"sync_max_timestep must be at least 0, got {self.sync_max_timestep}")
        require(self.decode_frames >= 0, f"decode_frames must be at least 0 (all), got {self.decode_frames}")
        require(
            not (
                self.decode_frames and self.pixel_space_supervise and (self.trepa_loss_weight or self.flow_loss_weight)
            ),
            "decode_frames leaves gaps that trepa and flow cannot look across; set it, or their weights, to 0",
        )
        for name in LOSS_WEIGHTS:
            require(getattr(self, name) >= 0, f"{name} must not be negative")
        require(self.recon_loss_weight > 0, "recon_loss_weight must be above 0: the other losses only refine it")
        for name in PIXEL_LOSS_WEIGHTS:
            require(
                self.pixel_space_supervise or not getattr(self, name),
                f"{name} needs decoded frames; set pixel_space_supervise to true as well",
            )
        require(
            self.use_syncnet or not self.multi_scale_sync_loss_weight,
            "multi_scale_sync_loss_weight needs a SyncNet; set use_syncnet to true as well",
        )
        self._check_lora()

    def _check_lora(self) -> None:
        require(self.lora_rank >= 0, f"lora_rank must be at least 0 (off), got {self.lora_rank}")
        require(
            not (self.lora_rank and self.trainable_modules),
            "lora_rank trains additions to the weights and no weights; set trainable_modules to [], or lora_rank to 0",
        )
        require(bool(self.lora_target) or not self.lora_rank, "lora_target is empty; name layers such as to_q")


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW. scale_lr: multiply lr by the number of processes. lr_scheduler: one of diffusers' schedules."""

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
        for name in ("adam_beta1", "adam_beta2"):
            require(0 <= getattr(self, name) < 1, f"{name} must be at least 0 and below 1, got {getattr(self, name)}")
        require(self.adam_weight_decay >= 0, f"adam_weight_decay must not be negative, got {self.adam_weight_decay}")
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
    ckpt: UNetCkptConfig = field(default_factory=UNetCkptConfig)
    run: RunConfig = field(default_factory=RunConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    def __post_init__(self) -> None:
        limit = self.model.max_frames
        require(
            self.run.decode_frames <= self.data.num_frames,
            f"run.decode_frames {self.run.decode_frames} exceeds data.num_frames {self.data.num_frames}",
        )
        require(
            limit is None or self.data.num_frames <= limit,
            f"data.num_frames {self.data.num_frames} exceeds the {limit} of the model's motion modules"
            " (temporal_position_encoding_max_len); lower num_frames",
        )
        if self.run.cache_latents:
            require(
                self.data.augment == AugmentConfig(),
                "data.augment has no effect on latents encoded once (run.cache_latents); use data.varied_copies",
            )
        else:
            require(not self.data.varied_copies, "data.varied_copies is for run.cache_latents; use data.augment")
            require(not self.data.silent_share, "data.silent_share needs run.cache_latents; set it to 0 or true")


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
