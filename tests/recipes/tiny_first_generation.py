"""A first generation of the embedded model with seeded weights: a linear autoencoder and an untrained UNet."""

from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from safetensors.torch import save_file

from latentsync.config.unet import load_unet_config
from latentsync.models.unet import UNet3DConditionModel
from latentsync.models.unet_config import UNetConfig
from recipes.embedded.first_generation.linear_vae import PatchCode, fit_patch_code, set_decoder, set_encoder
from recipes.embedded.teacher import CONFIG

CHANNELS = 16


def smooth_code() -> PatchCode:
    """8x8 patches of smooth random images, 16 latent channels."""
    generator = torch.Generator().manual_seed(0)
    images = torch.tanh(F.interpolate(torch.randn(16, 3, 16, 16, generator=generator), scale_factor=4, mode="bicubic"))
    return fit_patch_code(images, CHANNELS)


def linear_vae(code: PatchCode) -> AutoencoderKL:
    torch.manual_seed(0)
    vae = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=[16, 48, 48, 64],
        layers_per_block=1,
        latent_channels=len(code.basis),
        norm_num_groups=4,
        mid_block_add_attention=False,
    )
    set_encoder(vae, code)
    set_decoder(vae, code)
    return vae.eval()


def write_first_generation(folder: Path) -> None:
    """unet.safetensors and vae/ in a folder."""
    linear_vae(smooth_code()).save_pretrained(folder / "vae")
    torch.manual_seed(0)
    unet = UNet3DConditionModel(load_unet_config(CONFIG, UNetConfig).model)
    save_file(unet.state_dict(), folder / "unet.safetensors")
