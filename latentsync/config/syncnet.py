"""SyncNet config files (`configs/syncnet/*.yaml`), and the input sizes that follow from them.

Key names are the published ones. Every mistake is a UserError that names the file, the line and the key.
"""

from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Generic, Literal, Protocol, TypeVar

from pydantic import SkipValidation

from latentsync.config.audio import syncnet_mel_config
from latentsync.config.schema import SchemaError, build, require, require_not_negative, require_positive, section
from latentsync.config.sections import (
    AugmentConfig,
    CkptSection,
    DataSection,
    RunSection,
    TrainingConfig,
    build_sections,
)
from latentsync.config.yaml_files import read_yaml
from latentsync.constants import FPS, LATENT_FACTOR, RGB, WHISPER_ROWS_PER_FRAME

Shape = tuple[int, int, int]  # channels, height, width


class EncoderSection(Protocol):
    """The interface of an encoder config that the other sections use."""

    @property
    def in_channels(self) -> int: ...


class ModelSection(Protocol):
    """The interface of a model config that the other sections use."""

    @property
    def architecture(self) -> str: ...

    @property
    def audio_encoder(self) -> EncoderSection: ...

    @property
    def visual_encoder(self) -> EncoderSection: ...

    def check_visual_input(self, channels: int, size: tuple[int, ...]) -> None: ...

    def check_audio_input(self, channels: int, size: tuple[int, ...]) -> None: ...


Model = TypeVar("Model", bound=ModelSection)


@section
class SyncNetDataConfig(DataSection):
    """See `DataSection`.

    val_fileslist, val_data_dir: clips of held-out people. num_val_samples: pairs of one validation, always the same.
    lower_half: use only the half of the face with the mouth.
    latent_space: use latents instead of pixels. latent_factor: pixels along each side of a latent cell.
    cache_latents: encode each clip once and keep the result.
    audio_features: mel, or whisper for the encoder states that the UNet is conditioned on.
    other_clip_negatives: share of the out-of-sync pairs with audio of another clip; the others have audio of the same
        clip at another time.
    run_frames: consecutive frames per item, all windows of which are samples of a contrastive batch; 0 for one window.
        For framewise_syncnet, which encodes each frame once for all windows.
    """

    train_output_dir: str = "output/syncnet"
    val_fileslist: str = ""
    val_data_dir: str = ""
    num_val_samples: int = 2048
    batch_size: int = 256
    num_workers: int = 8
    lower_half: bool = True
    latent_space: bool = False
    latent_factor: int = LATENT_FACTOR
    cache_latents: bool = False
    audio_features: Literal["mel", "whisper"] = "mel"
    other_clip_negatives: float = 0.0
    run_frames: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "num_val_samples", "latent_factor")
        require(
            self.run_frames == 0 or self.run_frames >= self.num_frames,
            f"run_frames must be 0 or at least num_frames ({self.num_frames}), got {self.run_frames}",
        )
        share = self.other_clip_negatives
        require(0 <= share <= 1, f"other_clip_negatives must be between 0 and 1, got {share}")
        require(
            self.latent_space or not self.cache_latents,
            "cache_latents has no effect on pixels; set latent_space to true as well",
        )
        require(
            not self.cache_latents or self.augment == AugmentConfig(),
            "augment has no effect on cached latents; set cache_latents to false, or remove augment",
        )
        require(
            self.audio_features == "mel" or self.video_fps == FPS,
            f"audio_features whisper needs video_fps {FPS}: {WHISPER_ROWS_PER_FRAME} encoder states per frame;"
            f" got {self.video_fps}",
        )

    def visual_shape(self, in_channels: int) -> Shape:
        """Stacked frames, the input of the visual encoder; latents have `in_channels` / num_frames channels."""
        cells = self.resolution // self.latent_factor if self.latent_space else self.resolution
        height = cells - cells // 2 if self.lower_half else cells
        return (in_channels if self.latent_space else self.num_frames * RGB, height, cells)

    def audio_shape(self, in_channels: int) -> Shape:
        """The input of the audio encoder: a mel, or stacked Whisper states of `in_channels` values a row."""
        if self.audio_features == "whisper":
            return (in_channels, 1, WHISPER_ROWS_PER_FRAME * self.num_frames)
        mel = syncnet_mel_config()
        return (1, mel.num_mels, mel.width(self.num_frames, self.video_fps))


@section
class SyncNetCkptConfig(CkptSection):
    """See `CkptSection`. inference_ckpt_path: trained weights, for the sync loss of the UNet and for evaluation."""

    inference_ckpt_path: str = ""


@section
class SyncNetRunConfig(RunSection):
    """See `RunSection`.

    contrastive: compare every window of a batch with every audio window (InfoNCE at `temperature`) instead of
        classifying pairs; all pairs of the dataset are then in sync.
    gradient_cache_chunk: samples that are differentiated at a time, so that a large contrastive batch fits on one
        device; 0 for all at once.
    """

    validation_steps: int = 2500
    contrastive: bool = False
    temperature: float = 0.07
    gradient_cache_chunk: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "validation_steps", "temperature")
        require_not_negative(self, "gradient_cache_chunk")
        require(
            self.contrastive or not self.gradient_cache_chunk,
            "gradient_cache_chunk is for contrastive training; use gradient_accumulation_steps, or set contrastive",
        )


@section
class SyncNetFileConfig(TrainingConfig, Generic[Model]):
    """A complete SyncNet config. The schema of `model` is passed by the caller and defined next to the network."""

    model: SkipValidation[Model]
    data: SyncNetDataConfig = field(default_factory=SyncNetDataConfig)
    ckpt: SyncNetCkptConfig = field(default_factory=SyncNetCkptConfig)
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
        if self.recipe is not None:
            self.recipe.check_syncnet_config(self)

    def _check_visual(self) -> None:
        in_channels = self.model.visual_encoder.in_channels
        require(
            in_channels % self.data.num_frames == 0,
            f"model.visual_encoder.in_channels {in_channels} is not a multiple of data.num_frames"
            f" {self.data.num_frames}; it is frames x channels per frame",
        )
        channels, *size = self.data.visual_shape(in_channels)
        self.model.check_visual_input(channels, tuple(size))


def load_syncnet_config(path: str | Path, *model_schemas: type[Model]) -> SyncNetFileConfig[Model]:
    """Read a SyncNet config. Raises UserError.

    Args:
        path: the YAML file.
        model_schemas: schemas that its `model` section may have, each with an `architecture` of its own; the first
            (`StableSyncNetConfig`) is the default where the file names none.
    """
    file = read_yaml(path)
    with file.named_errors():
        if "model" not in file.values:
            raise SchemaError((), "missing section model; copy one from configs/syncnet, or name such a file as base")
        values = file.values["model"]
        model = build(_schema_of(values, model_schemas), values, ("model",))
        return build_sections(SyncNetFileConfig, file.values, model)


def _schema_of(values: object, schemas: tuple[type[Model], ...]) -> type[Model]:
    """The schema of the architecture that a model section names."""
    name = values.get("architecture") if isinstance(values, Mapping) else None
    known = {schema.architecture: schema for schema in schemas}
    if name is not None and name not in known:
        raise SchemaError(("model", "architecture"), f"{name!r} is not one of {', '.join(map(repr, known))}")
    return schemas[0] if name is None else known[name]
