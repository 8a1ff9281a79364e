"""Pipelines with random weights, which affect neither speed nor memory, and their arithmetic."""

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from latentsync.checkpoints.registry import SCHEDULER_CONFIG, resolve
from latentsync.config.unet import load_unet_config
from latentsync.faces.mask import load_mask
from latentsync.loading import load_scheduler
from latentsync.models.unet import UNet3DConditionModel
from latentsync.models.unet_config import UNetConfig
from latentsync.models.vae import LatentCodec
from latentsync.pipelines.denoise import regenerate_faces
from latentsync.pipelines.lipsync_pipeline import LipsyncPipeline
from latentsync.pipelines.run import Run
from latentsync.utils.paths import PROJECT_ROOT
from latentsync.whisper.audio2feature import Audio2Feature
from tools.benchmarks.inputs import CROP_WIDTHS, SIZES

LATENT_SCALE = 0.18215
AUDIO_TOKENS = 50
WEIGHT_SCALE = 0.02  # small enough that half precision does not overflow
# The autoencoder of Stable Diffusion 1.5 (sd-vae-ft-mse).
VAE_LAYOUT = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 256,
    "scaling_factor": LATENT_SCALE,
}
SMALL_VAE = {**VAE_LAYOUT, "block_out_channels": (8,) * 4, "layers_per_block": 1, "norm_num_groups": 4}


@dataclass(frozen=True)
class Layout:
    """Sizes of the networks and of the video.

    Args:
        config: of configs/unet/.
        resolution: side of the faces in pixels.
        vae: arguments of the autoencoder.
        frame: width and height of the video in pixels.
        crop_width: of the aligned face, in pixels of the video.
    """

    config: str
    resolution: int
    vae: dict[str, Any]
    frame: tuple[int, int] = SIZES["1080p"]
    crop_width: int = CROP_WIDTHS["1080p"]


FULL_SIZE = {256: Layout("stage2", 256, VAE_LAYOUT), 512: Layout("stage2_512", 512, VAE_LAYOUT)}
TINY = Layout("debug", 64, {**SMALL_VAE, "latent_channels": 16}, (320, 240), 120)  # the channels of the debug config


def meta_networks(layout: Layout) -> tuple[UNet3DConditionModel, LatentCodec]:
    """UNet and autoencoder without weights."""
    config = load_unet_config(PROJECT_ROOT / "configs" / "unet" / f"{layout.config}.yaml", UNetConfig)
    with torch.device("meta"):
        unet, codec = UNet3DConditionModel(config.model), LatentCodec(AutoencoderKL(**layout.vae))
    return unet.to("meta").eval(), codec  # the UNet makes its position tables on the CPU


def random_pipeline(layout: Layout, device: torch.device, dtype: torch.dtype) -> LipsyncPipeline:
    """A pipeline with random weights and the audio encoder of the embedded model."""
    unet, codec = (_randomized(network, device, dtype) for network in meta_networks(layout))
    audio = Audio2Feature(resolve("embedded").whisper, device)
    pipeline = LipsyncPipeline(codec, audio, unet, load_scheduler(SCHEDULER_CONFIG), layout.resolution)
    return pipeline.to(device, dtype)


def _randomized(network: nn.Module, device: torch.device, dtype: torch.dtype) -> Any:
    """The same weights for every precision."""
    network = network.to_empty(device=device)
    generator = torch.Generator(device).manual_seed(0)
    for parameter in network.parameters():
        parameter.data.normal_(0, WEIGHT_SCALE, generator=generator)
    for buffer in network.buffers():
        buffer.zero_()
    return network.to(dtype)


def operations_per_frame(layout: Layout, run: Run) -> float:
    """Floating-point operations of UNet and autoencoder for a frame, counted on a chunk with the settings of `run`.

    The frames that the next chunk delivers are denoised in both and decoded once.
    """
    unet, codec = meta_networks(layout)
    frames, side = run.num_frames, layout.resolution
    delivered = frames - run.overlap
    if run.options.enable_deepcache:
        unet.enable_deepcache()
    counter = FlopCounterMode(display=False)
    with counter:
        regenerate_faces(
            unet,
            codec,
            run.sampling.scheduler(load_scheduler(SCHEDULER_CONFIG)),
            torch.zeros(1, frames, 3, side, side, device="meta"),
            torch.zeros(1, frames, AUDIO_TOKENS, unet.config.cross_attention_dim),
            load_mask(side),
            run.noise.to("meta"),
            run.sampling.num_inference_steps,
            run.sampling.guidance_scale,
            guidance_share=run.sampling.guidance_share,
            still=False,
            join=lambda latents: latents[:, :, :delivered],
        )
    return counter.get_total_flops() / delivered
