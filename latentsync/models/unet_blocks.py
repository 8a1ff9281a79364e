"""The blocks of the UNet: resnets, each optionally followed by spatial attention and a motion module.

Legend: B batch, F frames, N = B * F images, C channels, H W latent map, E time embedding, S audio tokens,
D audio width.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from latentsync.models.attention import Transformer3DModel
from latentsync.models.motion_module import MotionModule
from latentsync.models.resnet import Downsample3D, ResnetBlock3D, Upsample3D
from latentsync.models.unet_config import MotionModuleConfig, UNetConfig


class Condition(NamedTuple):
    """Inputs of every layer besides the feature map: time embedding (B, E), audio tokens (N, S, D), frames F."""

    time_embedding: Tensor
    context: Tensor
    frames: int


class Block3D(nn.Module):
    """Layers named as in the published weights, with gradient checkpointing of each layer."""

    def __init__(self) -> None:
        super().__init__()
        self.gradient_checkpointing = False

    def build_layers(
        self,
        config: UNetConfig,
        in_channels: Iterable[int],
        channels: int,
        heads: int | None,
        motion: MotionModuleConfig | None,
        output_scale: float = 1.0,
    ) -> None:
        """One layer per entry of `in_channels`; `heads` None: no attention, `motion` None: no motion modules."""
        groups, in_channels = config.norm_num_groups, tuple(in_channels)
        if heads is not None:
            context_width = config.cross_attention_dim if config.add_audio_layer else None
            self.attentions = nn.ModuleList(
                [Transformer3DModel(channels, heads, context_width, groups) for _ in in_channels]
            )
        self.resnets = nn.ModuleList([build_resnet(config, width, channels, output_scale) for width in in_channels])
        if motion is not None:
            self.motion_modules = nn.ModuleList([MotionModule(channels, groups, motion) for _ in in_channels])
        self.has_attention, self.has_motion = heads is not None, motion is not None

    def layer(self, index: int, x: Tensor, condition: Condition) -> Tensor:
        """Resnet, attention and motion module number `index`: (N, C_in, H, W) -> (N, C, H, W)."""
        return self._checkpointed(self._layer, index, x, condition)

    def _layer(self, index: int, x: Tensor, condition: Condition) -> Tensor:
        x = self.resnets[index](x, condition.time_embedding, condition.frames)
        if self.has_attention:
            x = self.attentions[index](x, condition.context)
        if self.has_motion:
            x = self.motion_modules[index](x, condition.frames)
        return x

    def _checkpointed(self, function: Callable[..., Tensor], *arguments: Any) -> Tensor:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(function, *arguments, use_reentrant=False)
        return function(*arguments)


def build_resnet(config: UNetConfig, in_channels: int, channels: int, output_scale: float) -> ResnetBlock3D:
    """A resnet with the norm, activation and embedding width of `config`."""
    return ResnetBlock3D(
        in_channels,
        channels,
        time_embedding_width(config),
        config.norm_num_groups,
        config.norm_eps,
        config.act_fn,
        output_scale,
        config.use_inflated_groupnorm,
    )


def time_embedding_width(config: UNetConfig) -> int:
    """E: four times the first block's width."""
    return 4 * config.block_out_channels[0]


class DownBlock3D(Block3D):
    """`layers_per_block` layers, then a strided convolution unless this is the last block."""

    def __init__(self, config: UNetConfig, level: int, in_channels: int):
        super().__init__()
        channels = config.block_out_channels[level]
        heads = config.heads_per_block[level] if config.down_block_types[level].startswith("CrossAttn") else None
        widths = [in_channels] + [channels] * (config.layers_per_block - 1)
        self.build_layers(config, widths, channels, heads, config.motion_at(level, decoder=False))
        is_last = level == len(config.block_out_channels) - 1
        self.downsamplers = nn.ModuleList([] if is_last else [Downsample3D(channels)])

    def forward(self, x: Tensor, condition: Condition) -> tuple[Tensor, list[Tensor]]:
        """(N, C_in, H, W) -> the output and the skip connections of the up blocks, in order."""
        skips = []
        for index in range(len(self.resnets)):
            x = self.layer(index, x, condition)
            skips.append(x)
        for downsampler in self.downsamplers:
            x = downsampler(x)
            skips.append(x)
        return x, skips


class UpBlock3D(Block3D):
    """`layers_per_block` + 1 layers, each with one skip connection; an upsampler unless this is the last block."""

    def __init__(self, config: UNetConfig, index: int, in_channels: int, skip_channels: list[int]):
        super().__init__()
        level = len(config.block_out_channels) - 1 - index
        channels = config.block_out_channels[level]
        heads = config.heads_per_block[level] if config.up_block_types[index].startswith("CrossAttn") else None
        inputs = [in_channels] + [channels] * (len(skip_channels) - 1)
        widths = [width + skip for width, skip in zip(inputs, skip_channels, strict=True)]
        self.build_layers(config, widths, channels, heads, config.motion_at(level, decoder=True))
        self.upsamplers = nn.ModuleList([] if level == 0 else [Upsample3D(channels)])

    def forward(self, x: Tensor, skips: list[Tensor], condition: Condition) -> Tensor:
        """(N, C_in, H, W) -> (N, C, H', W'); pops its inputs from `skips`, whose next entry gives H' and W'."""
        x = self.layers(range(len(self.resnets)), x, skips, condition)
        for upsampler in self.upsamplers:
            x = upsampler(x, skips[-1].shape[-2:])
        return x

    def layers(self, indices: range, x: Tensor, skips: list[Tensor], condition: Condition) -> Tensor:
        """Some of the layers, without the upsampler."""
        for index in indices:
            x = self.layer(index, torch.cat([x, skips.pop()], dim=1), condition)
        return x


class UNetMidBlock3DCrossAttn(Block3D):
    """Resnet, attention, optionally a motion module, and a second resnet."""

    def __init__(self, config: UNetConfig):
        super().__init__()
        channels, scale = config.block_out_channels[-1], config.mid_block_scale_factor
        self.build_layers(config, [channels], channels, config.heads_per_block[-1], config.mid_motion, scale)
        self.resnets.append(build_resnet(config, channels, channels, scale))

    def forward(self, x: Tensor, condition: Condition) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        x = self.layer(0, x, condition)
        return self._checkpointed(self.resnets[1], x, condition.time_embedding, condition.frames)


def frames_to_images(x: Tensor) -> Tensor:
    """(B, C, F, H, W) -> (N, C, H, W), channels-last in memory."""
    return rearrange(x, "b c f h w -> (b f) c h w").contiguous(memory_format=torch.channels_last)
