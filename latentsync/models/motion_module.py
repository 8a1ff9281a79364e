"""Motion modules: attention along time, one sequence of frames per pixel (AnimateDiff, Guo et al. 2023).

Legend: B batch, F frames, N = B * F images, C channels, K inner width, H W latent map, P = B * H * W sequences.
"""

import math

import torch
from einops import rearrange
from torch import Tensor, nn

from latentsync.models.attention import TRANSFORMER_NORM_EPS, Attention, FeedForward
from latentsync.models.unet_config import MotionModuleConfig
from latentsync.utils.errors import UserError

# Attention kernels map the batch to a CUDA grid axis of at most 65535; one sequence per pixel can exceed that.
MAX_SEQUENCES = 32768


class PositionalEncoding(nn.Module):
    """Adds the sinusoidal position table of Vaswani et al. 2017; the table is part of the published weights."""

    def __init__(self, width: int, max_len: int):
        super().__init__()
        cpu = torch.device("cpu")  # on the meta device this arithmetic would import torch._dynamo, which takes a second
        position = torch.arange(max_len, device=cpu).unsqueeze(1)
        frequency = torch.exp(torch.arange(0, width, 2, device=cpu) * (-math.log(10000.0) / width))
        table = torch.zeros(1, max_len, width, device=cpu)
        table[0, :, 0::2] = torch.sin(position * frequency)
        table[0, :, 1::2] = torch.cos(position * frequency)
        self.register_buffer("pe", table)

    def forward(self, x: Tensor) -> Tensor:
        """(P, F, K) -> same shape; raises UserError when F exceeds the table."""
        if x.shape[1] > self.pe.shape[1]:
            raise UserError(
                f"num_frames {x.shape[1]} exceeds the {self.pe.shape[1]} frames of this UNet's position tables;"
                " lower num_frames"
            )
        return x + self.pe[:, : x.shape[1]]


class TemporalAttention(Attention):
    """Self-attention over the frames, with their positions."""

    def __init__(self, width: int, heads: int, max_len: int | None):
        super().__init__(width, heads)
        self.pos_encoder = nn.Identity() if max_len is None else PositionalEncoding(width, max_len)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """(P, F, K) -> (P, F, K)."""
        x = self.pos_encoder(x)
        if len(x) <= MAX_SEQUENCES:
            return super().forward(x, context)
        return torch.cat([super(TemporalAttention, self).forward(part, context) for part in x.split(MAX_SEQUENCES)])


class TemporalTransformerBlock(nn.Module):
    """Temporal attentions, each with its LayerNorm, then a feed-forward; all residual."""

    def __init__(self, width: int, config: MotionModuleConfig):
        super().__init__()
        max_len = config.temporal_position_encoding_max_len if config.temporal_position_encoding else None
        heads, count = config.num_attention_heads, len(config.attention_block_types)
        self.attention_blocks = nn.ModuleList([TemporalAttention(width, heads, max_len) for _ in range(count)])
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(count)])
        self.ff = FeedForward(width)
        self.ff_norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """(P, F, K) -> (P, F, K)."""
        for attention, norm in zip(self.attention_blocks, self.norms, strict=True):
            x = attention(norm(x)) + x
        return self.ff(self.ff_norm(x)) + x


class TemporalTransformer3DModel(nn.Module):
    """Norm of each frame, linear in, temporal blocks, linear out, residual."""

    def __init__(self, channels: int, groups: int, config: MotionModuleConfig):
        super().__init__()
        inner = config.inner_width(channels)
        self.norm = nn.GroupNorm(groups, channels, eps=TRANSFORMER_NORM_EPS)
        self.proj_in = nn.Linear(channels, inner)
        self.transformer_blocks = nn.ModuleList(
            [TemporalTransformerBlock(inner, config) for _ in range(config.num_transformer_block)]
        )
        self.proj_out = nn.Linear(inner, channels)
        if config.zero_initialize:  # a new module has no effect: training starts from the image model
            nn.init.zeros_(self.proj_out.weight)
            nn.init.zeros_(self.proj_out.bias)

    def forward(self, x: Tensor, frames: int) -> Tensor:
        """(N, C, H, W) -> same shape; N = B * `frames`."""
        height, width = x.shape[-2:]
        tokens = self.proj_in(rearrange(self.norm(x), "(b f) c h w -> (b h w) f c", f=frames))
        for block in self.transformer_blocks:
            tokens = block(tokens)
        return rearrange(self.proj_out(tokens), "(b h w) f c -> (b f) c h w", h=height, w=width) + x


class MotionModule(nn.Module):
    """The published name of a temporal transformer (type "Vanilla")."""

    def __init__(self, channels: int, groups: int, config: MotionModuleConfig):
        super().__init__()
        self.temporal_transformer = TemporalTransformer3DModel(channels, groups, config)

    def forward(self, x: Tensor, frames: int) -> Tensor:
        """(N, C, H, W) -> same shape; N = B * `frames`."""
        return self.temporal_transformer(x, frames)
