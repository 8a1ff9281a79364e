"""UNet config files (`configs/unet/*.yaml`): the model and, for training, everything else.

Key names are the published ones. Every mistake is a UserError that names the file, the line and the key.
"""

from dataclasses import field
from pathlib import Path
from typing import Generic, Literal, Protocol, TypeVar

from pydantic import SkipValidation

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


class ModelSection(Protocol):
    """The interface of a model config that the other sections use."""

    @property
    def max_frames(self) -> int | None: ...

    @property
    def whole_condition(self) -> bool: ...


Model = TypeVar("Model", bound=ModelSection)


@section
class DataConfig(DataSection):
    """See `DataSection`.

    syncnet_config_path: the SyncNet of the sync loss and of validation.
    more_syncnet_config_paths: further SyncNets of the sync loss with windows of other lengths, at most num_frames.
    val_video_path, val_audio_path: video and audio of the validation video.
    val_pairs: list of further validation videos, a CSV with the columns video and audio as for the evaluation.
    mask_image_path: empty for the mask of the released checkpoints.
    pairs_dir: altered twins of the clips from `tools.make_pairs`, for a model with whole_condition.
    audio_feat_length: [before, after], frames of audio context around each frame.
    whisper_on_device: run the audio encoder in the training step, on the GPU, instead of keeping its states in
        audio_embeds_cache_dir (0.7 TB for 1000 hours); for clips of up to 30 s.
    """

    train_output_dir: str = "output/unet"
    syncnet_config_path: str = ""
    more_syncnet_config_paths: tuple[str, ...] = ()
    val_video_path: str = ""
    val_audio_path: str = ""
    val_pairs: str = ""
    mask_image_path: str = ""
    pairs_dir: str = ""
    audio_feat_length: tuple[int, ...] = (2, 2)
    whisper_on_device: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        window = self.audio_feat_length
        require(len(window) == 2 and min(window) >= 0, f"audio_feat_length {list(window)} is not [before, after]")


@section
class UNetCkptConfig(CkptSection):
    """See `CkptSection`. The others: networks that losses need, empty for their places under checkpoints/."""

    perceptual_ckpt_path: str = ""
    trepa_ckpt_path: str = ""
    identity_ckpt_path: str = ""


LOSS_WEIGHTS = ("recon_loss_weight", "perceptual_loss_weight", "trepa_loss_weight", "sync_loss_weight")


@section
class RunConfig(RunSection):
    """Losses of a run; for the rest see `RunSection`.

    trainable_modules: train only parameters with one of these in their name; empty for all.
    pixel_space_supervise: decode the one-step estimate and compare frames (perceptual, trepa).
    use_syncnet: compare with the audio by data.syncnet_config_path; a SyncNet on latents needs no decoded frames.
    guidance_scale, inference_steps: defaults of inference, and of the validation video.
    cpu_bfloat16: inference runs UNet and decoder in bfloat16 on CPUs with instructions for it; see `cast_networks`.
    one_step: the UNet is trained and evaluated at the last timestep only, without guidance.
    few_steps: the UNet is distilled to inference_steps evaluations without guidance, see recipes/distill.
    enable_gradient_checkpointing: less memory for a third more time; of the UNet and of the decoder.
    cache_latents: encode every clip once, see data.latent_cache_dir; otherwise frames are encoded in each step.
    audio_dropout: share of samples trained without audio, which classifier-free guidance needs.
    validate: lip-sync data.val_video_path to data.val_audio_path, and data.val_pairs, at every checkpoint.
    validation_device: cpu, cuda or cuda:N, on which a process of its own validates while training continues; empty to
        let the training processes validate, each its share, while training waits.
    decode_region: part of the face that is decoded for the losses on frames; the rest is the real frame.
    decode_frames: frames of a sample that are decoded, evenly spaced; 0 for all, as losses over time need.
    sync_max_timestep: losses on the one-step estimate count only samples at or below this timestep.
    perceptual_random_trunk: LPIPS on a seeded random VGG16, where the trained one is not available.
    trepa_random_network: TREPA on a tiny seeded random VideoMAE, to try out a config without the trained one.
    lora_rank: train low-rank additions to the layers named by lora_target instead of the weights; 0 for none.
    lora_alpha: the additions are scaled by alpha / rank.
    """

    pixel_space_supervise: bool = False
    use_syncnet: bool = False
    recon_loss_weight: float = 1.0
    perceptual_loss_weight: float = 0.1
    trepa_loss_weight: float = 10.0
    sync_loss_weight: float = 0.05
    guidance_scale: float = 1.5
    inference_steps: int = 20
    one_step: bool = False
    cpu_bfloat16: bool = False
    few_steps: bool = False
    trainable_modules: tuple[str, ...] = ()
    use_mixed_noise: bool = True
    mixed_noise_alpha: float = 1.0
    enable_gradient_checkpointing: bool = True
    cache_latents: bool = False
    audio_dropout: float = 0.1
    validate: bool = True
    validation_device: str = ""
    decode_region: Literal["whole", "lower_half", "mouth"] = "whole"
    decode_frames: int = 0
    sync_max_timestep: int = 1000
    perceptual_random_trunk: bool = False
    trepa_random_network: bool = False
    lora_rank: int = 0
    lora_alpha: float = 16.0
    lora_target: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "inference_steps", "mixed_noise_alpha", "lora_alpha")
        require_not_negative(self, "sync_max_timestep", "decode_frames", "lora_rank", *LOSS_WEIGHTS)
        require(self.guidance_scale >= 1, f"guidance_scale must be at least 1 (1 = off), got {self.guidance_scale}")
        require(
            not self.one_step or (self.inference_steps, self.guidance_scale) == (1, 1),
            "one_step needs inference_steps 1 and guidance_scale 1",
        )
        require(not self.few_steps or self.guidance_scale == 1, "few_steps needs guidance_scale 1")
        require(0 <= self.audio_dropout < 1, f"audio_dropout must be at least 0 and below 1, got {self.audio_dropout}")
        require(
            not (self.validation_device and self.validation_steps),
            "validation_device validates exports, and between checkpoints there is none; set validation_steps to 0",
        )
        require(self.recon_loss_weight > 0, "recon_loss_weight must be above 0: the other losses only refine it")
        require(
            not (self.decode_frames and self.pixel_space_supervise and self.trepa_loss_weight),
            "decode_frames leaves gaps that trepa cannot compare across; set it, or trepa_loss_weight, to 0",
        )
        require(
            not (self.lora_rank and self.trainable_modules),
            "lora_rank trains additions to the weights and no weights; set trainable_modules to [], or lora_rank to 0",
        )
        require(bool(self.lora_target) or not self.lora_rank, "lora_target is empty; name layers such as to_q")


@section
class UNetFileConfig(TrainingConfig, Generic[Model]):
    """A complete UNet config. The schema of `model` is passed by the caller and defined next to the network."""

    model: SkipValidation[Model]
    data: DataConfig = field(default_factory=DataConfig)
    ckpt: UNetCkptConfig = field(default_factory=UNetCkptConfig)
    run: RunConfig = field(default_factory=RunConfig)

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
        require(
            not self.run.cache_latents or self.data.augment == AugmentConfig(),
            "data.augment has no effect on cached latents; set run.cache_latents to false, or remove augment",
        )
        require(
            not (self.run.cache_latents and self.data.whisper_on_device),
            "data.whisper_on_device has no effect on cached latents, which have the audio beside them; set it to false",
        )
        require(
            not (self.run.cache_latents and self.data.pairs_dir),
            "data.pairs_dir has no effect on cached latents; set run.cache_latents to false",
        )
        require(
            self.model.whole_condition or not self.data.pairs_dir,
            "data.pairs_dir is for models that see the whole frame; set model.whole_condition to true, or remove it",
        )
        if self.recipe is not None:
            self.recipe.check_unet_config(self)


def load_unet_config(path: str | Path, model_schema: type[Model]) -> UNetFileConfig[Model]:
    """Read a UNet config; `model_schema` is the schema of its `model` section (`UNetConfig`). Raises UserError."""
    file = read_yaml(path)
    with file.named_errors():
        if "model" not in file.values:
            raise SchemaError((), "missing section model; copy one from configs/unet, or name such a file as base")
        return build_sections(UNetFileConfig, file.values, build(model_schema, file.values["model"], ("model",)))
