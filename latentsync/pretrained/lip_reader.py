"""The encoder of Auto-AVSR's visual speech recognizer (Ma et al. 2023, "Auto-AVSR: Audio-Visual Speech Recognition with
Automatic Labels"): a 3-D convolution, a ResNet-18 of each frame, and a conformer. Its features describe the spoken
words.

Parameter names are those of the published `vsr_*_base.pth`; the files of 2023 have other names for the same tensors.
The published file was not at hand: loading it reports every difference. Legend: B clips, T frames, C channels.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentsync.checkpoints import registry
from latentsync.checkpoints.loading import load_checkpoint, load_into
from latentsync.utils.paths import CHECKPOINTS_DIR

CHECKPOINT = CHECKPOINTS_DIR / registry.LIP_READER.path
SIDE = 88  # pixels of the input
MEAN, STD = 0.421, 0.165  # of gray values in [0, 1]
FRONTEND, WIDTH, HIDDEN, HEADS, BLOCKS, KERNEL = 512, 768, 3072, 12, 12, 31
UNUSED = ("decoder.", "ctc.", "criterion.")  # of the recognizer: the text decoders
OLD_NAMES = {"encoder.frontend.": "frontend.", "encoder.embed.0.": "proj_encoder."}
LAYER_NORM_EPS = 1e-12


class BasicBlock(nn.Module):
    """Basic block of ResNet (He et al. 2016) with SiLU."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        self.downsample = None
        if stride != 1 or channels != width:
            shortcut = nn.Conv2d(channels, width, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        return F.silu(self.bn2(self.conv2(F.silu(self.bn1(self.conv1(x))))) + shortcut)


class Trunk(nn.Module):
    """ResNet-18 without its stem: (N, 64, H, W) -> (N, 512)."""

    def __init__(self) -> None:
        super().__init__()
        channels = 64
        for number, width in enumerate((64, 128, 256, FRONTEND), start=1):
            blocks = [BasicBlock(channels, width, 1 if number == 1 else 2), BasicBlock(width, width, 1)]
            setattr(self, f"layer{number}", nn.Sequential(*blocks))
            channels = width

    def forward(self, x: Tensor) -> Tensor:
        for number in range(1, 5):
            x = getattr(self, f"layer{number}")(x)
        return x.mean(dim=(2, 3))


class Frontend(nn.Module):
    """(B, 1, T, 88, 88) -> (B, T, 512)."""

    def __init__(self) -> None:
        super().__init__()
        self.frontend3D = nn.Sequential(
            nn.Conv3d(1, 64, (5, 7, 7), (1, 2, 2), (2, 3, 3), bias=False),
            nn.BatchNorm3d(64),
            nn.SiLU(),
            nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)),
        )
        self.trunk = Trunk()

    def forward(self, x: Tensor) -> Tensor:
        x = self.frontend3D(x).transpose(1, 2)
        return self.trunk(x.flatten(0, 1)).unflatten(0, x.shape[:2])


def layer_norm() -> nn.LayerNorm:
    return nn.LayerNorm(WIDTH, LAYER_NORM_EPS)


class RelativeAttention(nn.Module):
    """Self-attention with relative positions (Dai et al. 2019, Transformer-XL)."""

    def __init__(self) -> None:
        super().__init__()
        self.linear_q, self.linear_k, self.linear_v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.linear_out, self.linear_pos = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH, bias=False)
        self.pos_bias_u = nn.Parameter(torch.zeros(HEADS, WIDTH // HEADS))
        self.pos_bias_v = nn.Parameter(torch.zeros(HEADS, WIDTH // HEADS))

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        """x (B, T, C), positions (2 T - 1, C) of the distances T - 1 to 1 - T, see `relative_positions`."""
        query, key, value = (linear(x) for linear in (self.linear_q, self.linear_k, self.linear_v))
        query, key, value = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in (query, key, value))
        place = self.linear_pos(positions).unflatten(-1, (HEADS, -1)).transpose(0, 1)
        by_distance = (query + self.pos_bias_v[:, None]) @ place.transpose(-2, -1)  # (B, heads, T, 2 T - 1)
        frames = torch.arange(x.shape[1], device=x.device)
        column = x.shape[1] - 1 - (frames[:, None] - frames)  # of the distance of a query (row) from a key
        bias = by_distance.gather(-1, column.expand(*by_distance.shape[:2], -1, -1)) / math.sqrt(WIDTH / HEADS)
        found = F.scaled_dot_product_attention(query + self.pos_bias_u[:, None], key, value, attn_mask=bias)
        return self.linear_out(found.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w_1, self.w_2 = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.w_2(F.relu(self.w_1(x)))


class ConvolutionModule(nn.Module):
    """Gated pointwise, then depthwise convolution along time: (B, T, C) -> (B, T, C)."""

    def __init__(self) -> None:
        super().__init__()
        self.pointwise_cov1, self.pointwise_cov2 = nn.Conv1d(WIDTH, 2 * WIDTH, 1), nn.Conv1d(WIDTH, WIDTH, 1)
        self.depthwise_conv = nn.Conv1d(WIDTH, WIDTH, KERNEL, padding=KERNEL // 2, groups=WIDTH)
        self.norm = nn.BatchNorm1d(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = self.depthwise_conv(F.glu(self.pointwise_cov1(x.transpose(1, 2)), dim=1))
        return self.pointwise_cov2(F.silu(self.norm(x))).transpose(1, 2)


class ConformerBlock(nn.Module):
    """A block of the conformer (Gulati et al. 2020)."""

    def __init__(self) -> None:
        super().__init__()
        self.feed_forward_macaron, self.self_attn = FeedForward(), RelativeAttention()
        self.conv_module, self.feed_forward = ConvolutionModule(), FeedForward()
        self.norm_ff_macaron, self.norm_mha = layer_norm(), layer_norm()
        self.norm_conv, self.norm_ff, self.norm_final = layer_norm(), layer_norm(), layer_norm()

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        x = x + self.feed_forward_macaron(self.norm_ff_macaron(x)) / 2
        x = x + self.self_attn(self.norm_mha(x), positions)
        x = x + self.conv_module(self.norm_conv(x))
        return self.norm_final(x + self.feed_forward(self.norm_ff(x)) / 2)


class Conformer(nn.Module):
    """(B, T, C) -> (B, T, C)."""

    def __init__(self) -> None:
        super().__init__()
        self.encoders = nn.ModuleList(ConformerBlock() for _ in range(BLOCKS))
        self.after_norm = layer_norm()

    def forward(self, x: Tensor) -> Tensor:
        positions = relative_positions(x.shape[1]).to(x)
        x = x * math.sqrt(WIDTH)
        for block in self.encoders:
            x = block(x, positions)
        return self.after_norm(x)


class LipReader(nn.Module):
    """Features of mouths: (B, T, 88, 88) gray in [0, 1] -> (B, T, 768), each with the context of the whole clip."""

    def __init__(self) -> None:
        super().__init__()
        self.frontend, self.proj_encoder, self.encoder = Frontend(), nn.Linear(FRONTEND, WIDTH), Conformer()

    @classmethod
    def from_pretrained(cls, path: str | Path = CHECKPOINT) -> "LipReader":
        """The published weights, for inference. Raises UserError if the file is missing or holds other weights."""
        found = load_checkpoint(path)
        return load_into(
            cls, replace(found, state_dict=_encoder_of(found.state_dict)), exact=True, network="Auto-AVSR's encoder"
        ).eval()

    def forward(self, mouths: Tensor) -> Tensor:
        return self.encoder(self.proj_encoder(self.frontend(((mouths - MEAN) / STD)[:, None])))


def relative_positions(frames: int) -> Tensor:
    """Sinusoidal encodings (2 T - 1, C) of the distances T - 1, ..., 0, ..., 1 - T of a query from a key."""
    distance = torch.arange(frames - 1, -frames, -1.0)
    angles = distance[:, None] * torch.exp(torch.arange(0, WIDTH, 2) * (-math.log(10000.0) / WIDTH))
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)


def _encoder_of(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the encoder under their present names."""
    renamed = {}
    for name, tensor in state.items():
        old = next((prefix for prefix in OLD_NAMES if name.startswith(prefix)), "")
        renamed[OLD_NAMES.get(old, "") + name.removeprefix(old)] = tensor
    return {name: tensor for name, tensor in renamed.items() if not name.startswith(UNUSED)}
