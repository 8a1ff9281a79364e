"""VideoMAEv2 vision transformer (Wang et al. 2023, "VideoMAE V2"), with the tensor names of its published checkpoints.

Legend: B clips, F frames, H W pixels, S tokens (tubelets in time x patches), D width, Q heads.
"""

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from latentsync.checkpoints.loading import load_checkpoint, load_into

NORM_EPS = 1e-6
POSITION_BASE = 10000  # of the sinusoidal position table (Vaswani et al. 2017)


@dataclass(frozen=True)
class VideoMAEConfig:
    """Shape of the network; the defaults are ViT-g/14 fine-tuned on Something-Something V2 (174 classes)."""

    img_size: int = 224
    patch_size: int = 14
    num_frames: int = 16
    tubelet_size: int = 2
    embed_dim: int = 1408
    depth: int = 40
    num_heads: int = 16
    mlp_ratio: Fraction = Fraction(48, 11)
    num_classes: int = 174

    def __post_init__(self) -> None:
        if self.img_size % self.patch_size or self.num_frames % self.tubelet_size:
            raise ValueError("img_size must be a multiple of patch_size, num_frames one of tubelet_size")
        if self.embed_dim % (2 * self.num_heads):
            raise ValueError(f"embed_dim {self.embed_dim} does not divide into {self.num_heads} heads of even width")

    @property
    def num_tokens(self) -> int:
        """S: tubelets of one clip."""
        return self.num_frames // self.tubelet_size * (self.img_size // self.patch_size) ** 2

    @property
    def hidden_dim(self) -> int:
        """Width inside the feed-forward part."""
        return int(self.embed_dim * self.mlp_ratio)


class PatchEmbed(nn.Module):
    """One token for each tubelet of `tubelet_size` frames by `patch_size` squared pixels."""

    def __init__(self, config: VideoMAEConfig):
        super().__init__()
        size = (config.tubelet_size, config.patch_size, config.patch_size)
        self.proj = nn.Conv3d(3, config.embed_dim, kernel_size=size, stride=size)

    def forward(self, videos: Tensor) -> Tensor:
        """(B, 3, F, H, W) -> (B, S, D)."""
        return rearrange(self.proj(videos), "b d t h w -> b (t h w) d")


class Attention(nn.Module):
    """Multi-head self-attention over all tokens; queries and values have a bias, keys do not."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, S, D) -> (B, S, D)."""
        bias = torch.cat([self.q_bias, torch.zeros_like(self.v_bias), self.v_bias])
        projected = F.linear(x, self.qkv.weight, bias)
        query, key, value = rearrange(projected, "b s (three q d) -> three b q s d", three=3, q=self.heads)
        attended = F.scaled_dot_product_attention(query, key, value)
        return self.proj(rearrange(attended, "b q s d -> b s (q d)"))


class MLP(nn.Module):
    """Linear, GELU, linear."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Pre-norm transformer block; (B, S, D) in and out."""

    def __init__(self, config: VideoMAEConfig):
        super().__init__()
        self.norm1 = nn.LayerNorm(config.embed_dim, eps=NORM_EPS)
        self.attn = Attention(config.embed_dim, config.num_heads)
        self.norm2 = nn.LayerNorm(config.embed_dim, eps=NORM_EPS)
        self.mlp = MLP(config.embed_dim, config.hidden_dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class VideoMAE(nn.Module):
    """The fine-tuned encoder. The classifier `head` belongs to the published file; features are its input."""

    def __init__(self, config: VideoMAEConfig = VideoMAEConfig(), with_cp: bool = False):
        """`with_cp`: gradient checkpointing of the blocks."""
        super().__init__()
        self.config = config
        self.with_cp = with_cp
        self.patch_embed = PatchEmbed(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.fc_norm = nn.LayerNorm(config.embed_dim, eps=NORM_EPS)
        self.head = nn.Linear(config.embed_dim, config.num_classes)
        table = sinusoid_table(config.num_tokens, config.embed_dim)
        self.register_buffer("pos_embed", table, persistent=False)

    @classmethod
    def from_pretrained(
        cls, path: str | Path, config: VideoMAEConfig = VideoMAEConfig(), with_cp: bool = False
    ) -> "VideoMAE":
        """Load a published file (weights under `module` or `model`, often half precision) as float32, frozen.

        Raises:
            UserError: the file is missing, damaged, or holds another network.
        """
        checkpoint = load_checkpoint(path)
        net = load_into(lambda: cls(config, with_cp), checkpoint, exact=True, network="VideoMAEv2 ViT-g")
        return net.eval().requires_grad_(False)

    def forward_features(self, videos: Tensor) -> Tensor:
        """(B, 3, F, H, W) in [0, 1] -> (B, D): mean over the tokens, layer-normalized."""
        x = self.patch_embed(videos)
        x = x + self.pos_embed.to(x.dtype)
        for block in self.blocks:
            if self.with_cp and torch.is_grad_enabled():
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        return self.fc_norm(x.mean(dim=1))

    def forward(self, videos: Tensor) -> Tensor:
        """(B, 3, F, H, W) in [0, 1] -> class scores (B, num_classes)."""
        return self.head(self.forward_features(videos))


def sinusoid_table(positions: int, width: int) -> Tensor:
    """Fixed position table (1, positions, width): sine in the even columns, cosine in the odd ones.

    Computed with NumPy, so that it has data even if the model is built on the meta device; it is not in the checkpoint.
    """
    wavelengths = np.power(float(POSITION_BASE), 2 * (np.arange(width) // 2) / width)
    angles = np.arange(positions)[:, None] / wavelengths
    table = np.where(np.arange(width) % 2 == 0, np.sin(angles), np.cos(angles))
    return torch.from_numpy(table.astype(np.float32))[None]
