"""Resolves and loads the components of a pipeline: by name, from a folder, the Hugging Face Hub or single files."""

import logging
import re
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from latentsync.checkpoints.files import REVISIONS
from latentsync.checkpoints.registry import REGISTRY, ResolvedModel, default_name, identify, resolve
from latentsync.config.diffusers_config import build_from_config
from latentsync.config.unet import RunConfig, load_unet_config
from latentsync.faces.sharpen import Sharpener
from latentsync.models.unet import UNet3DConditionModel
from latentsync.models.unet_config import UNetConfig
from latentsync.models.vae import LatentCodec
from latentsync.pretrained.enhancers import FaceEnhancer, open_enhancer
from latentsync.pretrained.rrdbnet import CHECKPOINT as UPSCALER_WEIGHTS
from latentsync.utils.errors import UserError, one_line
from latentsync.utils.light_diffusers import DDIMScheduler
from latentsync.whisper.audio2feature import Audio2Feature

logger = logging.getLogger(__name__)

BFLOAT16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16")
PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
# Glob patterns of each component in a folder or hub repository, in order of preference.
FOLDER_LAYOUT = {
    "unet": ("unet.safetensors", "unet.pt", "latentsync_unet.pt"),
    "unet_config": ("unet_config.yaml", "config.yaml"),
    "vae": ("vae",),
    "whisper": ("whisper*.safetensors", "whisper*.pt", "whisper/*.pt"),
    "scheduler_config": ("scheduler_config.json",),
}
COMPONENT_NAMES = {
    "unet": "UNet checkpoint",
    "unet_config": "UNet config",
    "vae": "autoencoder folder",
    "whisper": "Whisper checkpoint",
    "scheduler_config": "scheduler config",
}


@dataclass(frozen=True)
class ModelPaths:
    """Files that replace those of a registered model. Those that are None are taken from the model named `base`."""

    unet: str | Path | None = None
    unet_config: str | Path | None = None
    vae: str | Path | None = None
    whisper: str | Path | None = None
    scheduler_config: str | Path | None = None
    base: str | None = None


def pick_device(device: str | None = None) -> torch.device:
    """Parse a device; None and "auto" select the best available one: CUDA, MPS or CPU.

    Raises:
        UserError: unknown or unavailable device.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device in (None, "auto"):
        return torch.device(next(name for name, present in available.items() if present))
    try:
        picked = torch.device(device)
    except RuntimeError as error:
        raise UserError(f"unknown device {device!r}; use cuda, cuda:N, mps or cpu") from error
    if not available.get(picked.type, False):
        raise UserError(
            f"device {device!r} is not available here; use {' or '.join(k for k, v in available.items() if v)}"
        )
    if picked.type == "cuda" and (picked.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device {device!r}: there are {torch.cuda.device_count()} CUDA devices, counted from 0")
    return picked


def pick_devices(devices: str | None = None) -> list[torch.device]:
    """Parse devices separated by commas; see `pick_device`."""
    return [pick_device(name.strip()) for name in (devices or "auto").split(",")]


def pick_dtype(device: torch.device) -> torch.dtype:
    """Default data type: float16 on CUDA and MPS, float32 on the CPU."""
    return torch.float32 if device.type == "cpu" else torch.float16


def multiplies_bfloat16() -> bool:
    """Whether the CPU has instructions for bfloat16, which are twice as fast as those for float32. Others emulate them
    and are slower."""
    found: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()  # not in all versions
    return any(found.get(name, False) for name in BFLOAT16_INSTRUCTIONS)


@dataclass(frozen=True)
class Components:
    """Networks (float32, on the CPU) and settings of a model. `reason` says why it was selected; `run` holds its
    defaults of inference."""

    model: ResolvedModel
    reason: str
    resolution: int
    unet: UNet3DConditionModel
    codec: LatentCodec
    audio_encoder: Audio2Feature
    scheduler: DDIMScheduler
    run: RunConfig


def load_components(
    source: str | Path | ModelPaths | None, device: torch.device, audio_cache_dir: str | Path | None = None
) -> Components:
    """Load the model given to `LipsyncPipeline.from_pretrained`.

    Raises:
        UserError: unknown name, or missing or incompatible files.
    """
    model, reason = _select(source, device)
    config = load_unet_config(model.unet_config, UNetConfig)
    _check_resolution(model.unet, config.data.resolution)
    unet, _ = UNet3DConditionModel.from_pretrained(config.model, model.unet, exact=True)
    audio = Audio2Feature(
        model.whisper, "cpu", audio_cache_dir, config.data.num_frames, list(config.data.audio_feat_length)
    )
    codec = LatentCodec.from_pretrained(model.vae)
    scheduler = load_scheduler(model.scheduler_config)
    return Components(model, reason, config.data.resolution, unet, codec, audio, scheduler, config.run)


def check_compatibility(unet: UNet3DConditionModel, codec: LatentCodec, audio_encoder: Audio2Feature) -> None:
    """Raises UserError if UNet, autoencoder and audio encoder are incompatible."""
    channels, config = codec.channels, unet.config
    if (config.in_channels, config.out_channels) != (3 * channels + 1, channels):
        raise UserError(
            f"UNet ({config.in_channels} input, {config.out_channels} output channels) and autoencoder ({channels} "
            f"latent channels) are incompatible: expected {3 * channels + 1} input, {channels} output channels; "
            "check the config and the checkpoints"
        )
    if audio_encoder.width != config.cross_attention_dim:
        raise UserError(
            f"the UNet expects audio features of width {config.cross_attention_dim}, but those of the Whisper "
            f"checkpoint have width {audio_encoder.width}: use Whisper tiny for 384, small for 768"
        )


def find_components(folder: Path, base: str | None = None) -> ModelPaths:
    """Find the components of a model in a folder; see `FOLDER_LAYOUT`. Missing ones are taken from the model `base`.

    Raises:
        UserError: no UNet in the folder.
    """
    found = {
        component: next((path for pattern in patterns for path in sorted(folder.glob(pattern))), None)
        for component, patterns in FOLDER_LAYOUT.items()
    }
    if found["unet"] is None:
        raise UserError(f"{folder}: no UNet in this folder; expected one of {', '.join(FOLDER_LAYOUT['unet'])}")
    return ModelPaths(**found, base=base)


def download_folder(repo: str) -> Path:
    """Download the components of a model to the Hugging Face cache; interrupted downloads are resumed.

    Raises:
        UserError: the repository does not exist or is unreachable.
    """
    from huggingface_hub import snapshot_download  # only for hub ids

    patterns = [
        pattern + ("/*" if component == "vae" else "")
        for component, names in FOLDER_LAYOUT.items()
        for pattern in names
    ]
    try:
        return Path(snapshot_download(repo, revision=REVISIONS.get(repo), allow_patterns=patterns))
    except (OSError, ValueError) as error:  # huggingface_hub raises OSErrors, and ValueErrors for invalid names
        reason = one_line(error)
        raise UserError(f"{repo}: download from the Hugging Face Hub failed ({reason})") from error


def can_upscale() -> bool:
    """Whether the RealESRGAN weights are present."""
    return UPSCALER_WEIGHTS.is_file()


def pick_enhancer(name: str | None = None) -> FaceEnhancer:
    """Load an enhancer by name; None selects RealESRGAN, or the sharpness filter if its weights are missing.

    Raises:
        UserError: unknown enhancer or missing weights.
    """
    if name is not None or can_upscale():
        return open_enhancer(name or "realesrgan")
    enhancer = Sharpener()
    logger.warning(
        "RealESRGAN weights not found at %s: using a sharpness filter instead (factor %g)",
        UPSCALER_WEIGHTS,
        enhancer.factor,
    )
    return enhancer


def load_scheduler(path: str | Path) -> DDIMScheduler:
    """Load DDIM from a diffusers scheduler JSON. Raises UserError for other schedulers and invalid values."""
    scheduler = build_from_config(DDIMScheduler, path)
    if scheduler.config.prediction_type not in PREDICTION_TYPES:
        raise UserError(f"{path}: prediction_type must be one of {', '.join(PREDICTION_TYPES)}")
    try:
        scheduler.set_timesteps(1)  # validates the other values
    except ValueError as error:
        raise UserError(f"{path}: {' '.join(str(error).split())}") from error
    return scheduler


def _select(source: str | Path | ModelPaths | None, device: torch.device) -> tuple[ResolvedModel, str]:
    """Resolve the files of a model, with the reason for the selection."""
    if isinstance(source, ModelPaths):
        return _own_files(source, device), "your files"
    if source is None:
        name, reason = default_name(device)
        return resolve(name), reason
    name = str(source)
    if name in REGISTRY:
        return resolve(name), "requested"
    if Path(source).is_dir():
        return _own_files(find_components(Path(source)), device), "your folder"
    if isinstance(source, str) and HUB_ID.fullmatch(source):
        components = find_components(download_folder(source), _registered_as(source))
        return _own_files(components, device), "from the Hugging Face Hub"
    return resolve(name), "requested"  # raises an error that lists the names


def _registered_as(repo: str) -> str | None:
    """Name of the registered model whose UNet is in this hub repository."""
    return next((name for name, item in REGISTRY.items() if item.model and item.model.unet.repo == repo), None)


def _own_files(paths: ModelPaths, device: torch.device) -> ResolvedModel:
    """A registered model with the given files replaced. By default the UNet config determines the model."""
    given = {field: Path(value) for field in COMPONENT_NAMES if (value := getattr(paths, field)) is not None}
    for field, path in given.items():
        if not path.exists():
            raise UserError(f"{path}: no such {COMPONENT_NAMES[field]}")
    base = paths.base or _base_of(paths.unet_config, device)
    return replace(resolve(base, own=given), name=str(given.get("unet", base)))


def _check_resolution(unet: Path, resolution: int) -> None:
    """Reject a released UNet with a config of another resolution; the weight shapes do not reveal the mismatch."""
    name = identify(unet)
    model = REGISTRY[name].model if name else None
    if model and resolution != model.resolution:
        raise UserError(
            f"{unet}: {name} was trained on {model.resolution} px faces, but the config is for {resolution} px; "
            f"use {model.unet_config}"
        )


def _base_of(unet_config: str | Path | None, device: torch.device) -> str:
    """The model whose components a config is for, `ckpt.base_model`."""
    if unet_config is None:
        return default_name(device)[0]
    return load_unet_config(unet_config, UNetConfig).ckpt.base_model
