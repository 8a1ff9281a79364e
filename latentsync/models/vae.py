"""Pixels <-> latents, with the scale and shift of the latents.

Legend: N images, C latent channels, H W pixels, h w latent cells.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from latentsync.checkpoints.formats import Checkpoint
from latentsync.checkpoints.loading import load_into, load_state_dict
from latentsync.config.diffusers_config import build_from_config, read_config
from latentsync.models.compiled import compile_module
from latentsync.models.patch_autoencoder import PatchAutoencoder
from latentsync.utils.errors import UserError
from latentsync.utils.light_diffusers import AutoencoderKL

MAX_UNTILED = 512  # pixels; one such image needs less memory than a step of the UNet, so tiles would save nothing
WEIGHTS_NAMES = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
# Attention layers in files from before diffusers 0.18, sd-vae-ft-mse among them.
OLD_ATTENTION_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
CPU_IMAGES = 4  # encoded or decoded together on a CPU: their feature maps fit into its cache, a third faster
DEVICE_PIXELS = 4 * 512 * 512  # encoded or decoded together elsewhere: enough to fill a GPU, a quarter of the memory
CHECKPOINTED_PIXELS = 2 * 256 * 256  # decoded together under gradient checkpointing


class LatentCodec(nn.Module):
    """Wraps diffusers' `AutoencoderKL` (the sd-vae-ft-mse layout, any channel count).

    Encoding takes the mean of the posterior, so equal pixels give equal latents. Latents are
    `(mean - shift) * scale`; scale and shift come from the autoencoder's own config
    (0.18215 and 0 for Stable Diffusion 1.5).
    """

    def __init__(self, vae: AutoencoderKL | PatchAutoencoder):
        super().__init__()
        self.vae: Any = vae.eval().requires_grad_(False)
        config: Any = vae.config
        self.scale, self.shift = float(config.scaling_factor), float(config.shift_factor or 0.0)
        self.gradient_checkpointing = False

    @classmethod
    def from_pretrained(cls, path: str | Path, dtype: torch.dtype = torch.float32) -> "LatentCodec":
        """Load a folder in diffusers' layout: `config.json` and `diffusion_pytorch_model.safetensors` (or `.bin`).

        Raises:
            UserError: a file is missing or damaged, or the weights do not fit the config.
        """
        path = Path(path)
        if not (path / "config.json").is_file():
            raise UserError(f"{path}: no autoencoder here (config.json is missing); give a diffusers VAE folder")
        weights = next((path / name for name in WEIGHTS_NAMES if (path / name).is_file()), path / WEIGHTS_NAMES[0])
        state = {_current_name(name): tensor for name, tensor in load_state_dict(weights).items()}
        kind = autoencoder_class(path / "config.json")
        vae = load_into(
            lambda: build_from_config(kind, path / "config.json"),
            Checkpoint(weights, state),
            exact=True,
            config="the config.json beside it",
        )
        return cls(vae).to(dtype)

    @property
    def channels(self) -> int:
        """Latent channels C."""
        return self.vae.config.latent_channels

    @property
    def factor(self) -> int:
        """Pixels per latent cell along one side (8 for Stable Diffusion 1.5)."""
        if self.is_local:
            return self.vae.config.patch_size
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def is_local(self) -> bool:
        """Whether a crop of the latents decodes as the whole does, but for a few cells at its edges."""
        return "patch_size" in self.vae.config  # only `PatchAutoencoder` has it

    @property
    def dtype(self) -> torch.dtype:
        return self._weight.dtype

    @property
    def device(self) -> torch.device:
        return self._weight.device

    @property
    def _weight(self) -> nn.Parameter:
        """Any weight. (`vae.device` and `vae.dtype` import diffusers' offloading, which takes a second.)"""
        return next(self.vae.encoder.parameters())

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """(N, 3, H, W) in [-1, 1] -> (N, C, h, w), about unit variance."""
        pixels = pixels.to(self.device, self.dtype)
        parts = pixels.split(self._images_at_once(pixels.shape[-2] * pixels.shape[-1]))
        mean = torch.cat([self.vae.encode(part).latent_dist.mean for part in parts])
        return (mean - self.shift) * self.scale

    def decode(self, latents: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, 3, H, W), about [-1, 1], not clamped. Gradients pass to the latents."""
        latents = latents.to(self.device, self.dtype) / self.scale + self.shift
        checkpointed = self.gradient_checkpointing and torch.is_grad_enabled() and latents.requires_grad
        pixels = latents.shape[-2] * latents.shape[-1] * self.factor**2
        at_once = self._images_at_once(pixels)
        if not checkpointed:
            return torch.cat([self._decode(part) for part in latents.split(at_once)])
        parts = latents.split(min(at_once, max(1, CHECKPOINTED_PIXELS // pixels)))
        return torch.cat([checkpoint(self._decode, part, use_reentrant=False) for part in parts])

    def _images_at_once(self, pixels: int) -> int:
        """Images of so many pixels to encode or decode together."""
        return CPU_IMAGES if self.device.type == "cpu" else max(1, DEVICE_PIXELS // pixels)

    def _decode(self, latents: Tensor) -> Tensor:
        return self.vae.decode(latents).sample

    def enable_gradient_checkpointing(self) -> None:
        """Recompute the activations of the decoder in the backward pass, a few images at a time: in training on decoded
        frames they take most of the memory."""
        self.gradient_checkpointing = True

    def compile(self, **options: Any) -> None:
        """Compile encoder and decoder; see `compiled`."""
        compile_module(self.vae.decoder, **options)
        if not self.is_local:  # else the encoder is one convolution
            compile_module(self.vae.encoder, **options)

    def enable_slicing(self) -> None:
        """Encode and decode one image at a time: slower, less device memory."""
        self.vae.use_slicing = True

    def disable_slicing(self) -> None:
        self.vae.use_slicing = False

    def enable_tiling(self) -> None:
        """Encode and decode images beyond 512 pixels in overlapping tiles: slower, less memory, another result."""
        # diffusers' own limit follows `sample_size`, which is 32 pixels in many configs: far too small a tile.
        self.vae.tile_sample_min_size = MAX_UNTILED
        self.vae.tile_latent_min_size = MAX_UNTILED // self.factor
        self.vae.use_tiling = True

    def disable_tiling(self) -> None:
        self.vae.use_tiling = False

    @contextmanager
    def low_memory(self) -> Iterator[None]:
        """Slicing and tiling inside the block."""
        sliced, tiled = self.vae.use_slicing, self.vae.use_tiling
        self.enable_slicing()
        self.enable_tiling()
        try:
            yield
        finally:
            self.vae.use_slicing, self.vae.use_tiling = sliced, tiled


def autoencoder_class(config: Path) -> type[AutoencoderKL] | type[PatchAutoencoder]:
    """The class that a config.json names: `PatchAutoencoder`, or else diffusers' `AutoencoderKL`."""
    return PatchAutoencoder if read_config(config).get("_class_name") == "PatchAutoencoder" else AutoencoderKL


def _current_name(name: str) -> str:
    """`encoder.mid_block.attentions.0.query.weight` -> `encoder.mid_block.attentions.0.to_q.weight`."""
    module, _, parameter = name.rpartition(".")
    parent, _, layer = module.rpartition(".")
    if ".attentions." not in name or layer not in OLD_ATTENTION_NAMES:
        return name
    return f"{parent}.{OLD_ATTENTION_NAMES[layer]}.{parameter}"
