"""Pipelines with random weights, which affect neither speed nor memory, and their arithmetic."""

from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from latentsync.checkpoints.registry import SCHEDULER_CONFIG, resolve
from latentsync.config.diffusers_config import build_from_config
from latentsync.faces.mask import load_mask
from latentsync.models.unet import UNet3DConditionModel
from latentsync.models.unet_config import UNetConfig
from latentsync.models.vae import LatentCodec
from latentsync.pipelines.denoise import regenerate_faces
from latentsync.utils.light_diffusers import AutoencoderKL, DDIMScheduler
from latentsync.utils.paths import PROJECT_ROOT
from tools.benchmarks import CROP_WIDTHS, RESOLUTIONS, SIZES

if TYPE_CHECKING:
    from latentsync.pipelines.lipsync_pipeline import LipsyncPipeline
    from latentsync.pipelines.run import Run

LATENT_SCALE = 0.18215
AUDIO_TOKENS = 50
# Dense float16 peaks with float32 accumulation in TFLOP/s, from the vendor's data sheets; the first match counts.
DENSE_PEAKS = {
    "H200": 989, "H100 PCIe": 756, "H100": 989, "A100": 312, "L40S": 362, "L40": 181, "RTX 4090": 165, "RTX 3090": 71,
    "L4": 121, "A10": 125, "T4": 65, "V100": 125,
}  # fmt: skip
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
        model: the UNet.
        resolution: side of the faces in pixels.
        vae: arguments of the autoencoder.
        frame: width and height of the video in pixels.
        crop_width: of the aligned face, in pixels of the video.
    """

    model: UNetConfig
    resolution: int
    vae: dict[str, Any] = field(default_factory=lambda: VAE_LAYOUT)
    frame: tuple[int, int] = SIZES["1080p"]
    crop_width: int = CROP_WIDTHS["1080p"]


# Those of configs/unet/stage2.yaml and stage2_512.yaml, which need more packages to be read.
FULL_SIZE = {side: Layout(UNetConfig(sample_size=side // 8, use_motion_module=True), side) for side in RESOLUTIONS}


@cache
def tiny() -> Layout:
    """That of configs/unet/debug.yaml."""
    from latentsync.config.unet import load_unet_config

    model = load_unet_config(PROJECT_ROOT / "configs" / "unet" / "debug.yaml", UNetConfig).model
    return Layout(model, 64, {**SMALL_VAE, "latent_channels": model.out_channels}, (320, 240), 120)


def scheduler() -> DDIMScheduler:
    """The schedule of the released models."""
    return build_from_config(DDIMScheduler, SCHEDULER_CONFIG)


def share_of_peak(device: torch.device, speed: float) -> str:
    """`speed` in TFLOP/s as a share of the device's dense peak, in words."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    peak = next((peak for known, peak in DENSE_PEAKS.items() if known in name), None)
    return f"{name}: dense peak unknown" if peak is None else f"{100 * speed / peak:.1f} % of {peak} ({name})"


def meta_networks(layout: Layout) -> tuple[UNet3DConditionModel, LatentCodec]:
    """UNet and autoencoder without weights."""
    with torch.device("meta"):
        unet, codec = UNet3DConditionModel(layout.model), LatentCodec(AutoencoderKL(**layout.vae))
    return unet.to("meta").eval(), codec  # the UNet makes its position tables on the CPU


def random_networks(
    layout: Layout, device: torch.device, dtype: torch.dtype
) -> tuple[UNet3DConditionModel, LatentCodec]:
    """UNet and autoencoder with random weights."""
    unet, codec = (_randomized(network, device, dtype) for network in meta_networks(layout))
    return unet, codec


def random_pipeline(layout: Layout, device: torch.device, dtype: torch.dtype) -> "LipsyncPipeline":
    """A pipeline with random weights and the audio encoder of the embedded model."""
    from latentsync.pipelines.lipsync_pipeline import LipsyncPipeline
    from latentsync.whisper.audio2feature import Audio2Feature

    unet, codec = random_networks(layout, device, dtype)
    audio = Audio2Feature(resolve("embedded").whisper, device)
    pipeline = LipsyncPipeline(codec, audio, unet, scheduler(), layout.resolution)
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


def operations_per_frame(layout: Layout, run: "Run") -> float:
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
            run.sampling.scheduler(scheduler()),
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
