"""Spatial attention of the UNet: self-attention within a frame and cross-attention to its audio tokens.

Legend: N images (batch * frames), C channels, H W latent map, L sequence length, S audio tokens, D audio width,
Q heads.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

TRANSFORMER_NORM_EPS = 1e-6


class Attention(nn.Module):
    """Multi-head attention. bias: whether queries, keys and values have a bias (not in the UNet)."""

    def __init__(self, width: int, heads: int, context_width: int | None = None, bias: bool = False):
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias=bias)
        self.to_k = nn.Linear(context_width or width, width, bias=bias)
        self.to_v = nn.Linear(context_width or width, width, bias=bias)
        self.to_out = nn.Sequential(nn.Linear(width, width))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """x (N, L, C), context (N, S, D) or None for self-attention -> (N, L, C)."""
        context = x if context is None else context
        query, key, value = (
            rearrange(projected, "n l (q d) -> n q l d", q=self.heads)
            for projected in (self.to_q(x), self.to_k(context), self.to_v(context))
        )
        attended = _attend(query, key, value)
        return self.to_out(rearrange(attended, "n q l d -> n l (q d)"))


def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention (N, Q, L, D). Its gradient on a CPU takes PyTorch twenty times as long in bfloat16 as in float32."""
    if query.device.type != "cpu" or query.dtype == torch.float32 or not torch.is_grad_enabled():
        return F.scaled_dot_product_attention(query, key, value)
    with torch.autocast("cpu", enabled=False):
        return F.scaled_dot_product_attention(query.float(), key.float(), value.float()).to(query.dtype)


class GEGLU(nn.Module):
    """Linear layer gated by GELU of its second half (Shazeer 2020, "GLU Variants Improve Transformer")."""

    def __init__(self, width: int, inner: int):
        super().__init__()
        self.proj = nn.Linear(width, 2 * inner)

    def forward(self, x: Tensor) -> Tensor:
        values, gate = self.proj(x).chunk(2, dim=-1)
        return values * F.gelu(gate)


class FeedForward(nn.Module):
    """GEGLU and a linear layer, with four times the width inside; (..., C) -> (..., C)."""

    def __init__(self, width: int, expansion: int = 4):
        super().__init__()
        inner = width * expansion
        self.net = nn.Sequential(GEGLU(width, inner), nn.Identity(), nn.Linear(inner, width))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class BasicTransformerBlock(nn.Module):
    """Self-attention, audio cross-attention (none if `context_width` is None), feed-forward; each after a LayerNorm."""

    def __init__(self, width: int, heads: int, context_width: int | None):
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn1 = Attention(width, heads)
        self.attn2: Attention | None = None
        if context_width is not None:
            self.norm2 = nn.LayerNorm(width)
            self.attn2 = Attention(width, heads, context_width)
        self.ff = FeedForward(width)
        self.norm3 = nn.LayerNorm(width)

    def forward(self, x: Tensor, context: Tensor | None) -> Tensor:
        """x (N, L, C), context (N, S, D) -> (N, L, C)."""
        x = self.attn1(self.norm1(x)) + x
        if self.attn2 is not None:
            x = self.attn2(self.norm2(x), context) + x
        return self.ff(self.norm3(x)) + x


class Transformer3DModel(nn.Module):
    """Spatial transformer of one frame: norm, 1x1 convolution in, one block, 1x1 convolution out, residual."""

    def __init__(self, channels: int, heads: int, context_width: int | None, groups: int):
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=TRANSFORMER_NORM_EPS)
        self.proj_in = nn.Conv2d(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList([BasicTransformerBlock(channels, heads, context_width)])
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, context: Tensor | None) -> Tensor:
        """x (N, C, H, W), context (N, S, D) -> (N, C, H, W)."""
        height = x.shape[-2]
        tokens = rearrange(self.proj_in(self.norm(x)), "n c h w -> n (h w) c")
        for block in self.transformer_blocks:
            tokens = block(tokens, context)
        return self.proj_out(rearrange(tokens, "n (h w) c -> n c h w", h=height)) + x
