"""Pixels <-> latents: the only place that knows the latent scale.

Legend: N images, C latent channels, H W pixels, h w latent cells.
"""

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from latentsync.utils.errors import UserError


class LatentCodec(nn.Module):
    """Wraps diffusers' `AutoencoderKL` (the sd-vae-ft-mse layout, any channel count).

    Encoding takes the mean of the posterior, so equal pixels give equal latents. Latents are
    `(mean - shift) * scale`; scale and shift come from the autoencoder's own config
    (0.18215 and 0 for Stable Diffusion 1.5).
    """

    def __init__(self, vae: AutoencoderKL):
        super().__init__()
        self.vae = vae.eval().requires_grad_(False)
        self.scale = float(vae.config.scaling_factor)
        self.shift = float(vae.config.shift_factor or 0.0)

    @classmethod
    def from_pretrained(cls, path: str | Path, dtype: torch.dtype = torch.float32) -> "LatentCodec":
        """Load a folder with `config.json` and `diffusion_pytorch_model.safetensors` (no network access)."""
        path = Path(path)
        if not (path / "config.json").is_file():
            raise UserError(f"{path}: no autoencoder here (config.json is missing); give a diffusers VAE folder")
        try:
            vae = AutoencoderKL.from_pretrained(path, torch_dtype=dtype, local_files_only=True)
        except (OSError, ValueError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"{path}: the autoencoder's weights do not load ({reason}); download them again") from error
        return cls(vae)

    @property
    def channels(self) -> int:
        """Latent channels C."""
        return self.vae.config.latent_channels

    @property
    def factor(self) -> int:
        """Pixels per latent cell along one side (8 for Stable Diffusion 1.5)."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def dtype(self) -> torch.dtype:
        return self.vae.dtype

    @property
    def device(self) -> torch.device:
        return self.vae.device

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """(N, 3, H, W) in [-1, 1] -> (N, C, h, w), about unit variance."""
        mean = self.vae.encode(pixels.to(self.device, self.dtype)).latent_dist.mean
        return (mean - self.shift) * self.scale

    def decode(self, latents: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, 3, H, W), about [-1, 1], not clamped. Gradients pass to the latents."""
        return self.vae.decode(latents.to(self.device, self.dtype) / self.scale + self.shift).sample

    def enable_low_memory(self) -> None:
        """One image at a time, and tiles for large ones: slower, less device memory."""
        self.vae.enable_slicing()
        self.vae.enable_tiling()
