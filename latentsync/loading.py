"""Assemble a pipeline from a name of the registry or from files."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from diffusers import DDIMScheduler

from latentsync.config.diffusers_config import build_from_config
from latentsync.config.unet import load_unet_config
from latentsync.faces.sharpen import Sharpener
from latentsync.models.enhancers import FaceEnhancer, open_enhancer
from latentsync.models.lora import load_lora
from latentsync.models.rrdbnet import CHECKPOINT as UPSCALER_WEIGHTS
from latentsync.models.unet import UNet3DConditionModel
from latentsync.models.unet_config import UNetConfig
from latentsync.models.vae import LatentCodec
from latentsync.pipelines.lipsync_pipeline import LipsyncPipeline
from latentsync.utils.errors import UserError
from latentsync.utils.registry import REGISTRY, ResolvedModel, default_name, resolve
from latentsync.whisper.audio2feature import Audio2Feature

logger = logging.getLogger(__name__)

PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")
PART_NAMES = {
    "unet": "UNet checkpoint",
    "unet_config": "UNet config",
    "vae": "autoencoder folder",
    "whisper": "Whisper checkpoint",
    "scheduler_config": "scheduler config",
}


@dataclass(frozen=True)
class ModelPaths:
    """Files to use instead of a registered model's; what is None comes from `base`.

    base: the registered model that lends the rest (autoencoder, Whisper, scheduler).
    """

    unet: str | Path | None = None
    unet_config: str | Path | None = None
    vae: str | Path | None = None
    whisper: str | Path | None = None
    scheduler_config: str | Path | None = None
    base: str | None = None


def pick_device(device: str | None = None) -> torch.device:
    """`device`, or the best there is: CUDA, Apple's MPS, the CPU.

    Raises:
        UserError: the device asked for is unknown or not available.
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


def pick_dtype(device: torch.device) -> torch.dtype:
    """float16 on CUDA and MPS; float32 on the CPU, where half precision is slower."""
    return torch.float32 if device.type == "cpu" else torch.float16


def load_pipeline(
    name_or_paths: str | ModelPaths | None = None,
    device: str | None = None,
    dtype: torch.dtype | None = None,
    *,
    deepcache: bool = False,
    low_memory: bool = False,
    match_colour: bool = False,
    upscale: bool = False,
    enhancer: str | None = None,
    lora: str | Path | None = None,
    lora_scale: float = 1.0,
    audio_cache_dir: str | Path | None = None,
) -> LipsyncPipeline:
    """Build a ready pipeline; which model runs where is logged in one line.

    Args:
        name_or_paths: a name of `latentsync.utils.registry` (latentsync-1.6, latentsync-1.5, embedded), your own
            files as `ModelPaths`, or None for the best that is present and the device can run.
        device: cuda, cuda:N, mps, cpu; None or "auto" for the best there is.
        dtype: of the UNet and the autoencoder; by default float32 on the CPU, float16 elsewhere.
        deepcache: reuse deep UNet features for two of three steps: up to twice as fast, slightly softer.
        low_memory: decode images one by one and in tiles.
        match_colour: give the new face the skin colour of the frame, whatever the model's own setting.
        upscale: enhance the regenerated faces with a network before they are pasted back.
        enhancer: which: realesrgan (four times larger) or gfpgan (restored). None for realesrgan, and for the sharpness
            filter alone where its weights are not there.
        lora: adapter from fine-tuning (`latentsync.models.lora`), merged into the UNet it was trained on.
        lora_scale: how much of it; 1 as trained, 0 nothing.
        audio_cache_dir: keep audio features of files there, named by content.

    Raises:
        UserError: unknown name, missing or unfit files, device not available.
    """
    device_ = pick_device(device)
    dtype = dtype or pick_dtype(device_)
    model, reason = _select(name_or_paths, device_)
    logger.info("model %s (%s) on %s, %s", model.name, reason, device_, str(dtype).removeprefix("torch."))
    config = load_unet_config(model.unet_config, UNetConfig)
    _check_resolution(model.unet, config.data.resolution)
    unet, _ = UNet3DConditionModel.from_pretrained(config.model, model.unet, exact=True)
    if lora is not None:
        step = load_lora(unet, lora, lora_scale).step
        logger.info("adapter %s (step %d) counts %g", lora, step, lora_scale)
    codec = LatentCodec.from_pretrained(model.vae)
    audio = Audio2Feature(
        model.whisper, device_, audio_cache_dir, config.data.num_frames, list(config.data.audio_feat_length)
    )
    pipeline = LipsyncPipeline(
        codec,
        audio,
        unet,
        load_scheduler(model.scheduler_config),
        config.data.resolution,
        num_inference_steps=model.inference_steps,
        guidance_scale=model.guidance_scale,
        blend_inset=model.blend_inset,
        match_colour=match_colour or model.match_colour,
        enhancer=pick_enhancer(enhancer) if upscale else None,
    )
    if deepcache:
        unet.enable_deepcache(interval=3)
    if low_memory:
        codec.enable_low_memory()
    return pipeline.to(device_, dtype)


def can_upscale() -> bool:
    """Whether RealESRGAN's weights are there."""
    return UPSCALER_WEIGHTS.is_file()


def pick_enhancer(name: str | None = None) -> FaceEnhancer:
    """The enhancer of that name, strictly; without a name RealESRGAN, or what works without its weights.

    Raises:
        UserError: the named one is unknown or has no weights.
    """
    if name is not None or can_upscale():
        return open_enhancer(name or "realesrgan")
    enhancer = Sharpener()
    logger.warning(
        "RealESRGAN's weights are not at %s: new faces are not enlarged, only sharpened by a filter (factor %g)",
        UPSCALER_WEIGHTS,
        enhancer.factor,
    )
    return enhancer


def load_scheduler(path: str | Path) -> DDIMScheduler:
    """DDIM from a diffusers scheduler JSON. Raises UserError for another scheduler's, and values DDIM does not know."""
    scheduler = build_from_config(DDIMScheduler, path)
    if scheduler.config.prediction_type not in PREDICTION_TYPES:
        raise UserError(f"{path}: prediction_type must be one of {', '.join(PREDICTION_TYPES)}")
    try:
        scheduler.set_timesteps(1)  # what checks the other values
    except ValueError as error:
        raise UserError(f"{path}: {' '.join(str(error).split())}") from error
    return scheduler


def _select(name_or_paths: str | ModelPaths | None, device: torch.device) -> tuple[ResolvedModel, str]:
    if isinstance(name_or_paths, ModelPaths):
        return _own_files(name_or_paths, device), "your files"
    if name_or_paths is None:
        name, reason = default_name(device)
        return resolve(name), reason
    return resolve(name_or_paths), "as asked"


def _own_files(paths: ModelPaths, device: torch.device) -> ResolvedModel:
    """A registered model with the given files in place of its own. Which one lends the rest is told by the config."""
    base = paths.base or _base_of(paths.unet_config, device)
    given = {field: Path(value) for field in PART_NAMES if (value := getattr(paths, field)) is not None}
    for field, path in given.items():
        if not path.exists():
            raise UserError(f"{path}: no such {PART_NAMES[field]}")
    return replace(resolve(base, own=given), name=str(given.get("unet", base)))


def _check_resolution(unet: Path, resolution: int) -> None:
    """Refuse a released UNet with the config of another resolution: shapes do not tell, but sizes in bytes do."""
    size = unet.stat().st_size if unet.is_file() else None
    for name, entry in REGISTRY.items():
        if entry.model and size == entry.model.unet.size is not None and resolution != entry.model.resolution:
            raise UserError(
                f"{unet}: this is {name}, made for {entry.model.resolution} px faces, the config is for {resolution}; "
                f"give {entry.model.unet_config}"
            )


def _base_of(unet_config: str | Path | None, device: torch.device) -> str:
    if unet_config is None:
        return default_name(device)[0]
    wanted = Path(unet_config).resolve()
    for name, entry in REGISTRY.items():
        if entry.model and wanted.name == Path(entry.model.unet_config).name:
            return name
    return default_name(device)[0]
