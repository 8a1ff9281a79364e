"""Residual blocks and resampling of the UNet: 2-D convolutions on every frame.

Legend: B batch, F frames, N = B * F images (the frames of a sample are consecutive), C channels, H W latent map,
E time embedding. Maps are (N, C, H, W) in channels-last memory format: convolutions are fastest in it, and the norm
over all frames and the token view of the attention layers are then views of the same memory, not copies.
"""

import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

ACTIVATIONS = {"silu": F.silu, "swish": F.silu, "gelu": F.gelu, "relu": F.relu, "mish": F.mish}


class FrameGroupNorm(nn.GroupNorm):
    """GroupNorm whose statistics span channels, pixels and (unless `per_frame`) all frames of a sample."""

    def __init__(self, groups: int, channels: int, eps: float, per_frame: bool = False):
        super().__init__(groups, channels, eps)
        self.per_frame = per_frame

    def forward(self, x: Tensor, frames: int) -> Tensor:
        """(N, C, H, W) -> same shape; N = B * `frames`."""
        if self.per_frame or frames == 1:
            return super().forward(x)
        x = super().forward(rearrange(x, "(b f) c h w -> b c (f h) w", f=frames))
        return rearrange(x, "b c (f h) w -> (b f) c h w", f=frames)


class ResnetBlock3D(nn.Module):
    """Norm, activation, 3x3 convolution, twice; the time embedding is added after the first convolution."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embedding: int,
        groups: int,
        eps: float,
        act_fn: str = "silu",
        output_scale: float = 1.0,
        per_frame_norm: bool = False,
    ):
        super().__init__()
        self.activation = ACTIVATIONS[act_fn]
        self.output_scale = output_scale
        self.norm1 = FrameGroupNorm(groups, in_channels, eps, per_frame_norm)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_emb_proj = nn.Linear(embedding, out_channels)
        self.norm2 = FrameGroupNorm(groups, out_channels, eps, per_frame_norm)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        if in_channels != out_channels:
            self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1)
        else:
            self.conv_shortcut = None

    def forward(self, x: Tensor, time_embedding: Tensor, frames: int) -> Tensor:
        """x (N, C_in, H, W), time_embedding (B, E) -> (N, C_out, H, W)."""
        hidden = self.conv1(self.activation(self.norm1(x, frames)))
        shift = self.time_emb_proj(self.activation(time_embedding))
        hidden = hidden + repeat(shift, "b c -> (b f) c 1 1", f=frames)
        hidden = self.conv2(self.activation(self.norm2(hidden, frames)))
        shortcut = x if self.conv_shortcut is None else self.conv_shortcut(x)
        hidden = shortcut + hidden
        return hidden if self.output_scale == 1 else hidden / self.output_scale


class Downsample3D(nn.Module):
    """Halve H and W (rounded up) with a strided convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Upsample3D(nn.Module):
    """Nearest-neighbor upsampling to `size`, then a convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """(N, C, h, w) -> (N, C, *size); `size` is the map's size before it was halved."""
        return self.conv(F.interpolate(x, size=size, mode="nearest"))
