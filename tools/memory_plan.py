"""Memory of the state of a training run, computed from the configs: `python -m tools.memory_plan`.

Weights, gradients, optimizer state and averages of the UNet and weights of the frozen networks, in each process, as
Markdown. Activations come on top: they were measured for some configs, see docs/training.md.
"""

import sys
from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL

from latentsync.config.syncnet import load_syncnet_config
from latentsync.config.unet import UNetFileConfig, load_unet_config
from latentsync.models.lora import add_lora
from latentsync.models.syncnets import SYNCNET_SCHEMAS, make_syncnet
from latentsync.models.unet import UNet3DConditionModel
from latentsync.models.unet_config import UNetConfig
from latentsync.pretrained.perceptual import VGG16Trunk
from latentsync.pretrained.videomae import VideoMAE
from latentsync.training.unet_setup import choose_trainable
from latentsync.trepa.loss import VIT_G
from latentsync.utils.paths import CONFIGS_DIR, project_path
from tools.benchmarks.full_size import VAE_LAYOUT

NAMES = ("stage1", "stage2", "stage2_efficient", "fine_tune_lora", "stage1_512", "stage2_512")
PROCESSES = 8
GIB = 2**30
FLOAT32, BFLOAT16, ADAM, ADAM_8BIT = 4, 2, 8, 2  # bytes a parameter


@dataclass(frozen=True)
class Sizes:
    """Parameters: of the UNet, those trained, and of frozen networks with weights in float32 and in bfloat16."""

    unet: int
    trained: int
    frozen_full: int
    frozen_half: int


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def sizes_of(config: UNetFileConfig[UNetConfig]) -> Sizes:
    """Counted on the meta device: no memory is used."""
    run = config.run
    with torch.device("meta"):
        unet = UNet3DConditionModel(config.model)
        size = count(unet)
        if run.lora_rank:
            add_lora(unet, run.lora_rank, run.lora_alpha, run.lora_target)
        else:
            choose_trainable(unet, run.trainable_modules)
        half, full = count(AutoencoderKL(**VAE_LAYOUT)), 0
        if run.pixel_space_supervise and run.perceptual_loss_weight:
            half += count(VGG16Trunk())
        if run.pixel_space_supervise and run.trepa_loss_weight:
            half += count(VideoMAE(VIT_G))
        if run.use_syncnet:
            syncnet = load_syncnet_config(project_path(config.data.syncnet_config_path), *SYNCNET_SCHEMAS)
            full += count(make_syncnet(syncnet.model))
    trained = sum(parameter.numel() for parameter in unet.parameters() if parameter.requires_grad)
    return Sizes(size, trained, full, half)


def state_gib(sizes: Sizes, *, shards: int = 1, optimizer: int = ADAM, average: bool = False) -> float:
    """GiB in each process; `shards`: processes that the state of the UNet is split over."""
    per_trained = FLOAT32 + optimizer + (FLOAT32 if average else 0)  # gradient, moments, average
    unet = (FLOAT32 * sizes.unet + per_trained * sizes.trained) / shards
    return (unet + FLOAT32 * sizes.frozen_full + BFLOAT16 * sizes.frozen_half) / GIB


def main() -> int:
    print("| config | UNet, trained (M) | frozen (M) | a copy each | with averages | 8-bit AdamW | FSDP, 8 GPUs |")
    print("|---|---|---|---|---|---|---|")
    for name in NAMES:
        sizes = sizes_of(load_unet_config(CONFIGS_DIR / "unet" / f"{name}.yaml", UNetConfig))
        figures = (
            state_gib(sizes),
            state_gib(sizes, average=True),
            state_gib(sizes, optimizer=ADAM_8BIT),
            state_gib(sizes, shards=PROCESSES, average=True),
        )
        frozen = sizes.frozen_full + sizes.frozen_half
        millions = f"{sizes.unet / 1e6:.0f}, {sizes.trained / 1e6:.3g} | {frozen / 1e6:.0f}"
        print(f"| `{name}.yaml` | {millions} | {' | '.join(f'{figure:.1f} GiB' for figure in figures)} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
