"""SyncNet config files (`configs/syncnet/*.yaml`) -> validated dataclasses, and the sizes that follow from them.

Key names are the published ones. Every mistake is a UserError that names the file, the line and the key.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Generic, Literal, Protocol, TypeVar

from latentsync.utils.augment_config import AugmentConfig
from latentsync.utils.config import CkptConfig, OptimizerConfig, SyncNetMelConfig
from latentsync.utils.schema import SchemaError, build, require, require_positive
from latentsync.utils.yaml_files import read_yaml

COLOURS = 3
LATENT_FACTOR = 8  # pixels a side of one latent cell
WHISPER_ROWS_PER_FRAME = 2
WHISPER_FPS = 25.0
Shape = tuple[int, int, int]  # channels, height, width


class EncoderSection(Protocol):
    """What the other sections need to know of an encoder."""

    @property
    def in_channels(self) -> int: ...


class ModelSection(Protocol):
    """What the other sections need to know of a model config."""

    @property
    def architecture(self) -> str: ...

    @property
    def audio_encoder(self) -> EncoderSection: ...

    @property
    def visual_encoder(self) -> EncoderSection: ...

    def check_visual_input(self, channels: int, size: tuple[int, int]) -> None: ...

    def check_audio_input(self, channels: int, size: tuple[int, int]) -> None: ...


Model = TypeVar("Model", bound=ModelSection)


def mel_width(num_frames: int, fps: float, mel: SyncNetMelConfig | None = None) -> int:
    """Mel columns of a run of frames: the columns its duration touches, ceil(80 * F / fps); 52 for 16, 16 for 5."""
    mel = mel or SyncNetMelConfig()
    return math.ceil(Fraction(mel.sample_rate, mel.hop_size) * num_frames / Fraction(fps))


@dataclass(frozen=True)
class SyncNetDataConfig:
    """Clips and sound.

    resolution: side of the aligned face, pixels. lower_half: show only the half with the mouth.
    latent_space: show VAE latents instead of pixels; cache_latents: encode each clip once and keep the result.
    audio_features: mel, or whisper for the encoder states that the UNet hears.
    num_val_samples: pairs of one validation, the same ones each time.
    other_clip_negatives: share of the pairs out of sync whose sound is from another clip; the rest is from the same
        clip at another time.
    latent_cache_dir: where encoded clips are kept, empty for a folder in train_output_dir; runs may share one.
    balance_people: a person counts with the square root of the clips there are of them, not with their number.
    augment: variations of the clips as they are read, on pixels alone.
    run_frames: frames of a clip that are shown at once, all windows of which are samples of a contrastive batch; 0 for
        one window. For framewise_syncnet, which encodes each frame once for all of them.
    windows_per_clip: neighbouring samples of a batch that are taken from one clip; a contrastive batch should hold
        several, since only they tell the moment and not the speaker.
    varied_copies: how many copies of each cached clip are trained on besides it, of another pace, look and sound.
    """

    train_output_dir: str = "output/syncnet"
    train_fileslist: str = ""
    train_data_dir: str = ""
    val_fileslist: str = ""
    val_data_dir: str = ""
    audio_mel_cache_dir: str = ""
    audio_embeds_cache_dir: str = ""
    num_val_samples: int = 2048
    batch_size: int = 256
    num_workers: int = 8
    num_frames: int = 16
    resolution: int = 256
    audio_sample_rate: int = 16000
    video_fps: float = 25.0
    lower_half: bool = True
    latent_space: bool = False
    cache_latents: bool = False
    audio_features: Literal["mel", "whisper"] = "mel"
    other_clip_negatives: float = 0.0
    latent_cache_dir: str = ""
    balance_people: bool = False
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    run_frames: int = 0
    windows_per_clip: int = 1
    varied_copies: int = 0

    def __post_init__(self) -> None:
        require_positive(self, "windows_per_clip")
        require_positive(self, "num_val_samples", "batch_size", "num_frames", "resolution", "video_fps")
        require(self.num_workers >= 0, f"num_workers must be at least 0, got {self.num_workers}")
        require(self.resolution % 8 == 0, f"resolution {self.resolution} is not a multiple of 8; use 256")
        require(self.audio_sample_rate == 16000, "audio_sample_rate must be 16000: the models know no other")
        require(
            self.run_frames == 0 or self.run_frames >= self.num_frames,
            f"run_frames must be 0 or at least num_frames ({self.num_frames}), got {self.run_frames}",
        )
        share = self.other_clip_negatives
        require(0 <= share <= 1, f"other_clip_negatives is a share of 1, from 0 to 1; got {share}")
        require(
            self.latent_space or not self.cache_latents,
            "cache_latents has no effect on pixels; set latent_space to true as well",
        )
        require(self.varied_copies >= 0, f"varied_copies must be at least 0, got {self.varied_copies}")
        require(
            not self.varied_copies or (self.cache_latents and self.audio_features == "whisper"),
            "varied_copies are made where clips are encoded once and heard by Whisper; set cache_latents to true and"
            " audio_features to whisper, or use augment",
        )
        require(
            not self.cache_latents or self.augment == AugmentConfig(),
            "augment has no effect on latents encoded once (cache_latents); set one of them off",
        )
        require(
            self.audio_features == "mel" or self.video_fps == WHISPER_FPS,
            f"audio_features whisper needs video_fps {WHISPER_FPS:g}: two encoder states a frame; got {self.video_fps}",
        )

    def visual_shape(self, in_channels: int) -> Shape:
        """Stacked frames as the visual encoder is shown them; latents have `in_channels` / num_frames channels."""
        cells = self.resolution // LATENT_FACTOR if self.latent_space else self.resolution
        height = cells - cells // 2 if self.lower_half else cells
        return (in_channels if self.latent_space else self.num_frames * COLOURS, height, cells)

    def audio_shape(self, in_channels: int) -> Shape:
        """Sound as the audio encoder is shown it: a mel, or stacked Whisper states of `in_channels` values a row."""
        if self.audio_features == "whisper":
            return (in_channels, 1, WHISPER_ROWS_PER_FRAME * self.num_frames)
        return (1, SyncNetMelConfig().num_mels, mel_width(self.num_frames, self.video_fps))


@dataclass(frozen=True)
class SyncNetCkptConfig(CkptConfig):
    """inference_ckpt_path: trained weights, for the sync loss of the UNet and for evaluation."""

    inference_ckpt_path: str = ""


@dataclass(frozen=True)
class SyncNetRunConfig:
    """Length and manner of a run.

    validation_steps: steps between two validations.
    mixed_precision: what mixed_precision_training computes in; auto is bf16 where the device has it, else fp16, and
        float32 on a CPU.
    contrastive: compare every picture of a batch with every sound (InfoNCE at `temperature`) instead of judging pairs;
        all pairs of the dataset are then in sync.
    gradient_cache_chunk: samples that are differentiated at a time, so that a large contrastive batch fits on one
        device; 0 for all at once.
    ema_decay: average of the weights that is exported and validated, 0 for none.
    keep_last: states to go on from that are kept.
    stop_after_minutes: save and leave after that time, 0 for no limit; the same command goes on.
    """

    max_train_steps: int = 10000000
    validation_steps: int = 2500
    mixed_precision_training: bool = True
    mixed_precision: Literal["auto", "bf16", "fp16"] = "auto"
    seed: int = 1247
    contrastive: bool = False
    temperature: float = 0.07
    gradient_cache_chunk: int = 0
    gradient_accumulation_steps: int = 1
    ema_decay: float = 0.0
    compile: bool = False
    tf32: bool = True
    keep_last: int = 3
    stop_after_minutes: float = 0.0

    def __post_init__(self) -> None:
        require_positive(self, "max_train_steps", "validation_steps", "temperature", "keep_last")
        require_positive(self, "gradient_accumulation_steps")
        require(0 <= self.ema_decay < 1, f"ema_decay must be at least 0 (off) and below 1, got {self.ema_decay}")
        minutes, chunk = self.stop_after_minutes, self.gradient_cache_chunk
        require(minutes >= 0, f"stop_after_minutes must be at least 0 (no limit), got {minutes:g}")
        require(chunk >= 0, f"gradient_cache_chunk must be at least 0 (off), got {chunk}")
        require(
            self.contrastive or not chunk,
            "gradient_cache_chunk is for contrastive training; use gradient_accumulation_steps, or set contrastive",
        )


@dataclass(frozen=True)
class SyncNetFileConfig(Generic[Model]):
    """A whole `configs/syncnet/*.yaml`. `model` is the schema the caller gave, beside the model it describes."""

    model: Model
    ckpt: SyncNetCkptConfig = field(default_factory=SyncNetCkptConfig)
    data: SyncNetDataConfig = field(default_factory=SyncNetDataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    run: SyncNetRunConfig = field(default_factory=SyncNetRunConfig)

    def __post_init__(self) -> None:
        self._check_visual()
        channels, *size = self.data.audio_shape(self.model.audio_encoder.in_channels)
        self.model.check_audio_input(channels, tuple(size))
        require(
            not self.run.contrastive or self.data.batch_size >= 2,
            "run.contrastive compares the samples of a batch; data.batch_size must be at least 2",
        )
        require(
            not self.data.run_frames or (self.run.contrastive and self.model.architecture == "framewise_syncnet"),
            "data.run_frames is for contrastive training of a framewise_syncnet; set it to 0",
        )
        require(
            not self.run.contrastive or self.data.other_clip_negatives == 0,
            "data.other_clip_negatives has no effect with run.contrastive: all samples of a batch are its negatives",
        )

    def _check_visual(self) -> None:
        in_channels = self.model.visual_encoder.in_channels
        require(
            in_channels % self.data.num_frames == 0,
            f"model.visual_encoder.in_channels {in_channels} is not a multiple of data.num_frames"
            f" {self.data.num_frames}; it is frames x channels of a frame",
        )
        channels, *size = self.data.visual_shape(in_channels)
        self.model.check_visual_input(channels, tuple(size))


def load_syncnet_config(path: str | Path, *model_schemas: type[Model]) -> SyncNetFileConfig[Model]:
    """Read a SyncNet config.

    Args:
        path: the YAML file.
        model_schemas: dataclasses that its `model` section may be, each with an `architecture` of its own; the first
            (`StableSyncNetConfig`) is meant where the file names none.
    """
    file = read_yaml(path)
    with file.named_errors():
        if "model" not in file.values:
            raise SchemaError((), "missing section model; copy one from configs/syncnet, or name such a file as base")
        values = file.values["model"]
        model = build(_schema_of(values, model_schemas), values, ("model",))
        return build(SyncNetFileConfig, {**file.values, "model": model})


def _schema_of(values: object, schemas: tuple[type[Model], ...]) -> type[Model]:
    """The schema whose architecture a model section names."""
    name = values.get("architecture") if isinstance(values, Mapping) else None
    known = {schema.architecture: schema for schema in schemas}
    if name is not None and name not in known:
        raise SchemaError(("model", "architecture"), f"{name!r} is not one of {', '.join(map(repr, known))}")
    return schemas[0] if name is None else known[name]
