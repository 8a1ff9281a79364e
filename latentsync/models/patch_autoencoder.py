"""An autoencoder of image patches: a linear encoder, and a small convolutional decoder that suits a CPU.

It has the interface of diffusers' `AutoencoderKL`. The encoder is a single convolution of non-overlapping patches. The
decoder adds the output of a convolutional network to the linear reconstruction of each patch. Neither has norms or
attention, so a crop decodes as the whole image does, up to the receptive field.

Legend: N images, C latent channels, P patch side, H W pixels, h w latent cells.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from latentsync.utils.light_diffusers import AutoencoderKLOutput, ConfigMixin, DecoderOutput, register_to_config

WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"
COLORS = 3
STEP = 2  # enlargement of each level
SILU_GAIN = 1.7  # keeps the variance of a signal of unit variance through SiLU and a convolution
BRANCH = 0.5  # share of a residual block's branch at the start


class PointDistribution:
    """The posterior of a deterministic encoder; named as diffusers' `DiagonalGaussianDistribution`."""

    def __init__(self, mean: Tensor) -> None:
        self.mean = mean

    def mode(self) -> Tensor:
        return self.mean

    def sample(self, generator: object = None) -> Tensor:
        return self.mean


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside an identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.silu(self.conv1(F.silu(x))))


class PatchDecoder(nn.Module):
    """(N, C, h, w) -> (N, 3, P h, P w). `widths` and `blocks` of each level, which has twice the cells of the last."""

    def __init__(self, channels: int, patch: int, widths: Sequence[int], blocks: Sequence[int]) -> None:
        super().__init__()
        shuffle = patch // STEP ** (len(widths) - 1)
        self.linear = nn.ConvTranspose2d(channels, COLORS, patch, patch)
        self.conv_in = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.levels = nn.ModuleList()
        for level, (width, count) in enumerate(zip(widths, blocks, strict=True)):
            layers: list[nn.Module] = []
            if level:
                layers += [nn.Conv2d(widths[level - 1], STEP**2 * width, 1), nn.PixelShuffle(STEP)]
            self.levels.append(nn.Sequential(*layers, *(ResidualBlock(width) for _ in range(count))))
        self.conv_out = nn.Conv2d(widths[-1], COLORS * shuffle**2, 3, padding=1)
        self.shuffle = nn.PixelShuffle(shuffle)
        if not self.linear.weight.is_meta:  # weights are loaded; this arithmetic would import torch._dynamo
            self._initialize()

    def _initialize(self) -> None:
        """Without norms, the layers have to keep the variance of their inputs. The output starts at zero."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
                nn.init.zeros_(module.get_parameter("bias"))
            if isinstance(module, ResidualBlock):
                module.conv1.weight.data.mul_(SILU_GAIN)
                module.conv2.weight.data.mul_(SILU_GAIN * BRANCH)
        nn.init.zeros_(self.conv_out.weight)

    def cast_convolutions(self, dtype: torch.dtype) -> None:
        """Compute the convolutions in `dtype`. The linear part, which is most of the image, keeps its own."""
        for module in (self.conv_in, self.levels, self.conv_out):
            module.to(dtype)

    def forward(self, latents: Tensor) -> Tensor:
        x = self.conv_in(latents.to(self.conv_in.weight.dtype))
        for level in self.levels:
            x = level(x)
        return self._reconstruct(latents) + self.shuffle(self.conv_out(F.silu(x))).to(latents.dtype)

    def _reconstruct(self, latents: Tensor) -> Tensor:
        """`linear`, whose patches do not overlap, as a matrix product and a shuffle: two and a half times as fast."""
        weight = self.linear.weight.flatten(1).T[:, :, None, None]
        patches = F.conv2d(latents, weight)
        assert self.linear.bias is not None
        return F.pixel_shuffle(patches, self.linear.stride[0]) + self.linear.bias[:, None, None]


class PatchAutoencoder(nn.Module, ConfigMixin):
    """See the module's docstring.

    Args:
        latent_channels: C.
        patch_size: P, a power of two of at least 2 ** (len(decoder_widths) - 1).
        decoder_widths, decoder_blocks: channels and residual blocks of each level of the decoder.
        sample_size: side in pixels of the images it was trained on.
        scaling_factor, shift_factor: latents of a diffusion model are `(mean - shift_factor) * scaling_factor`.
    """

    config_name = "config.json"

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 96,
        patch_size: int = 16,
        decoder_widths: tuple[int, ...] = (128, 96, 64, 32),
        decoder_blocks: tuple[int, ...] = (1, 1, 1, 1),
        sample_size: int = 256,
        scaling_factor: float = 1.0,
        shift_factor: float = 0.0,
    ) -> None:
        super().__init__()
        self.use_slicing = False  # decode one image at a time
        self.use_tiling = False  # has no effect: the memory for one image is small
        self.encoder = nn.Conv2d(COLORS, latent_channels, patch_size, patch_size)
        self.decoder = PatchDecoder(latent_channels, patch_size, decoder_widths, decoder_blocks)

    def encode(self, images: Tensor) -> AutoencoderKLOutput:
        """(N, 3, H, W) in [-1, 1] -> `latent_dist`, whose `mean` is (N, C, h, w)."""
        return AutoencoderKLOutput(latent_dist=PointDistribution(self.encoder(images)))

    def decode(self, latents: Tensor) -> DecoderOutput:
        """(N, C, h, w) -> `sample` (N, 3, H, W), about [-1, 1], not clamped."""
        parts = latents.split(1 if self.use_slicing else len(latents))
        return DecoderOutput(sample=torch.cat([self.decoder(part) for part in parts]))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `config.json` and the weights, as diffusers does."""
        ConfigMixin.save_config(self, folder)  # creates the folder
        state = {name: tensor.contiguous() for name, tensor in self.state_dict().items()}
        save_file(state, Path(folder) / WEIGHTS_NAME, metadata={"format": "pt"})

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) -> the same, encoded and decoded."""
        return self.decode(self.encode(images).latent_dist.mean).sample
