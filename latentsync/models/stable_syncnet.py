"""StableSyncNet: scores whether audio and lips are in sync. Parameter names are those of the published checkpoint.

Legend: B batch, C channels, H W map, L = H * W, D embedding width. Inputs come from `syncnet_input`.
"""

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from latentsync.models.attention import Attention, FeedForward
from latentsync.models.syncnet_config import (
    ATTENTION_HEADS,
    NORM_GROUPS,
    EncoderConfig,
    StableSyncNetConfig,
    padding,
    strides,
)

NORM_EPS = 1e-6


def group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(NORM_GROUPS, channels, eps=NORM_EPS)


class ResnetBlock2D(nn.Module):
    """Norm, SiLU, 3x3 convolution, twice, with a shortcut; then a strided convolution unless `factor` is 1."""

    def __init__(self, in_channels: int, out_channels: int, factor: int | tuple[int, ...], dropout: float):
        super().__init__()
        self.norm1 = group_norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = group_norm(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None
        self.padding = padding(factor)
        stride = strides(factor)
        self.downsample_conv = nn.Conv2d(out_channels, out_channels, 3, stride) if stride != (1, 1) else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C_out, about H / factor, about W / factor)."""
        hidden = self.conv1(F.silu(self.norm1(x)))
        hidden = self.conv2(self.dropout(F.silu(self.norm2(hidden))))
        hidden = hidden + (x if self.conv_shortcut is None else self.conv_shortcut(x))
        return hidden if self.downsample_conv is None else self.downsample_conv(F.pad(hidden, self.padding))


class AttentionBlock2D(nn.Module):
    """Self-attention over all cells of the map and a feed-forward, between two 1x1 convolutions, residual."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm1 = group_norm(channels)
        self.norm2 = nn.LayerNorm(channels)
        self.norm3 = nn.LayerNorm(channels)
        self.attn = Attention(channels, ATTENTION_HEADS, bias=True)
        self.ff = FeedForward(channels)
        self.conv_in = nn.Conv2d(channels, channels, 1)
        self.conv_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> same shape."""
        height = x.shape[-2]
        tokens = rearrange(self.conv_in(self.norm1(x)), "b c h w -> b (h w) c")
        tokens = self.attn(self.norm2(tokens)) + tokens
        tokens = self.ff(self.norm3(tokens)) + tokens
        return self.conv_out(rearrange(tokens, "b (h w) c -> b c h w", h=height)) + x


class DownEncoder2D(nn.Module):
    """Downsamples a map to a single cell: (B, C, H, W) -> (B, D), non-negative, not normalized."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        width = config.block_out_channels[0]
        self.conv_in = nn.Conv2d(config.in_channels, width, 3, padding=1)
        self.down_blocks = nn.ModuleList()
        parts = zip(config.block_out_channels, config.downsample_factors, config.has_attention, strict=True)
        for out_width, factor, with_attention in parts:
            self.down_blocks.append(ResnetBlock2D(width, out_width, factor, config.dropout))
            if with_attention:
                self.down_blocks.append(AttentionBlock2D(out_width))
            width = out_width
        self.norm_out = group_norm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        return F.relu(self.norm_out(x)).flatten(1)


class StableSyncNet(nn.Module):
    """Embeds frames and audio so that synchronized pairs are similar (LatentSync, section 3.3).

    Args:
        config: a StableSyncNetConfig, or the `model` section of a SyncNet config as plain values.

    Raises:
        UserError: the config is invalid, or (in `forward`) an input is not reduced to a 1x1 map.
    """

    def __init__(self, config: StableSyncNetConfig | Mapping[str, Any]):
        super().__init__()
        self.config = config if isinstance(config, StableSyncNetConfig) else StableSyncNetConfig.from_dict(config)
        self.audio_encoder = DownEncoder2D(self.config.audio_encoder)
        self.visual_encoder = DownEncoder2D(self.config.visual_encoder)

    def forward(self, image_sequences: Tensor, audio_sequences: Tensor) -> tuple[Tensor, Tensor]:
        """Unit vectors (vision_embeds, audio_embeds), both (B, D) in [0, 1]: their dot product is in [0, 1] too.

        Args:
            image_sequences: (B, C, H, W), the frames stacked along the channels; (B, 48, 128, 256) for 16 lower halves.
            audio_sequences: (B, C, H, W), a mel (B, 1, 80, 52) or stacked Whisper states (B, L * D, 1, 2F).
        """
        return self.embed_images(image_sequences), self.embed_audio(audio_sequences)

    def embed_images(self, image_sequences: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D) unit vectors."""
        self.config.check_visual_input(image_sequences.shape[1], tuple(image_sequences.shape[2:]))
        if self.config.centered_frames:
            frames = image_sequences.unflatten(1, (self.config.centered_frames, -1))
            image_sequences = (frames - frames.mean(1, keepdim=True)).flatten(1, 2)
        return F.normalize(self.visual_encoder(image_sequences), dim=1)

    def embed_audio(self, audio_sequences: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D) unit vectors."""
        self.config.check_audio_input(audio_sequences.shape[1], tuple(audio_sequences.shape[2:]))
        if self.config.centered_frames:
            audio_sequences = audio_sequences - audio_sequences.mean(-1, keepdim=True)
        return F.normalize(self.audio_encoder(audio_sequences), dim=1)
