"""The denoiser: Stable Diffusion 1.5's UNet applied per frame, with audio cross-attention and motion modules.

Legend: B batch, F frames, N = B * F images, C channels, H W latent map, E time embedding, S audio tokens,
D audio width.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from einops import rearrange
from torch import Tensor, nn

from latentsync.checkpoints.loading import load_checkpoint, load_into
from latentsync.models.compiled import Compiled
from latentsync.models.deepcache import DeepCache
from latentsync.models.lora import LoraSettings, is_adapter
from latentsync.models.resnet import ACTIVATIONS, FrameGroupNorm
from latentsync.models.unet_blocks import (
    Block3D,
    Condition,
    DownBlock3D,
    UNetMidBlock3DCrossAttn,
    UpBlock3D,
    frames_to_images,
    time_embedding_width,
)
from latentsync.models.unet_config import UNetConfig
from latentsync.utils.errors import UserError

MAX_PERIOD = 10000.0
NO_BRANCH = -1  # all layers are deep: none runs without the others


@dataclass
class UNet3DConditionOutput:
    """`sample`: the prediction (noise, v or clean latents, as the scheduler says), (B, C_out, F, H, W)."""

    sample: Tensor


class TimestepEmbedding(nn.Module):
    """Sinusoidal features of the timestep, then two linear layers."""

    activation: Callable[[Tensor], Tensor]

    def __init__(self, config: UNetConfig):
        super().__init__()
        self.features, width = config.block_out_channels[0], time_embedding_width(config)
        self.flip, self.shift = config.flip_sin_to_cos, config.freq_shift
        self.activation = ACTIVATIONS[config.act_fn]
        self.linear_1 = nn.Linear(self.features, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, timesteps: Tensor) -> Tensor:
        """(B,) timesteps -> (B, E)."""
        half = self.features // 2
        exponent = torch.arange(half, dtype=torch.float32, device=timesteps.device) / (half - self.shift)
        angles = timesteps.float()[:, None] * torch.exp(-math.log(MAX_PERIOD) * exponent)
        waves = (angles.cos(), angles.sin()) if self.flip else (angles.sin(), angles.cos())
        features = torch.cat(waves, dim=-1).to(self.linear_1.weight.dtype)
        return self.linear_2(self.activation(self.linear_1(features)))


class UNet3DConditionModel(nn.Module):
    """UNet over chunks of frames. Parameter names and shapes are those of the published checkpoints."""

    activation: Callable[[Tensor], Tensor]

    def __init__(self, config: UNetConfig):
        super().__init__()
        self.config = config
        self.activation = ACTIVATIONS[config.act_fn]
        self._deepcache: DeepCache | None = None
        self._compiled: tuple[Compiled, Compiled] | None = None
        self.lora_settings: LoraSettings | None = None  # of the adapter in training
        widths = config.block_out_channels
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.time_embedding = TimestepEmbedding(config)

        self.down_blocks, skips = nn.ModuleList(), [widths[0]]
        for level, width in enumerate(widths):
            self.down_blocks.append(DownBlock3D(config, level, in_channels=skips[-1]))
            has_downsampler = level < len(widths) - 1
            skips += [width] * (config.layers_per_block + has_downsampler)

        self.up_blocks, channels = nn.ModuleList(), widths[-1]
        for index, width in enumerate(reversed(widths)):
            taken = [skips.pop() for _ in range(config.layers_per_block + 1)]
            self.up_blocks.append(UpBlock3D(config, index, channels, taken))
            channels = width

        self.mid_block = UNetMidBlock3DCrossAttn(config)
        self.conv_norm_out = FrameGroupNorm(
            config.norm_num_groups, channels, config.norm_eps, config.use_inflated_groupnorm
        )
        self.conv_out = nn.Conv2d(channels, config.out_channels, 3, padding=1)
        self.conv_gate = nn.Conv2d(channels, config.out_channels, 3, padding=1) if config.reference_gate else None
        for convolution in (self.conv_in, self.conv_out) if config.zero_initialize_conv_in else (self.conv_out,):
            for parameter in convolution.parameters():
                nn.init.zeros_(parameter)

    @classmethod
    def from_config(cls, config: Mapping[str, Any] | UNetConfig) -> "UNet3DConditionModel":
        """Build from the `model` section of a UNet config, with fresh weights. Raises UserError if it is invalid."""
        return cls(config if isinstance(config, UNetConfig) else UNetConfig.from_dict(config))

    @classmethod
    def from_pretrained(
        cls,
        model_config: Mapping[str, Any] | UNetConfig,
        ckpt_path: str | Path,
        device: str | torch.device = "cpu",
        exact: bool = False,
    ) -> tuple["UNet3DConditionModel", int]:
        """Build, load weights strictly and move to `device`; returns (unet in float32, global step, 0 if not recorded).

        Differences that training may start from (see `checkpoints.loading.load_into`) are patched and logged; with
        `exact`, for inference, they are errors as well. An empty `ckpt_path` gives fresh weights. Raises UserError for
        a bad config or file and for weights of another architecture. The resolution that a checkpoint was trained at
        does not show in its shapes and cannot be checked.
        """
        config = model_config if isinstance(model_config, UNetConfig) else UNetConfig.from_dict(model_config)
        if not str(ckpt_path):
            return cls(config).to(device), 0
        checkpoint = load_checkpoint(ckpt_path)
        if is_adapter(checkpoint.state_dict):
            raise UserError(
                f"{ckpt_path}: is a LoRA adapter, not a UNet; give it as --lora beside the UNet it belongs to"
            )
        unet = load_into(lambda: cls(config), checkpoint, exact=exact)
        return unet.to(device), checkpoint.global_step

    @property
    def dtype(self) -> torch.dtype:
        return self.conv_in.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.conv_in.weight.device

    def compile(self, **options: Any) -> None:
        """Compile the complete step and the step with cached features; see `compiled`. Names of parameters stay."""
        self._compiled = Compiled(self._predict, **options), Compiled(self._predict_from, **options)

    def __getstate__(self) -> dict[str, Any]:
        """A copy is not compiled: the compiled functions belong to this instance."""
        return {**super().__getstate__(), "_compiled": None}

    def enable_gradient_checkpointing(self, enabled: bool = True) -> None:
        """Trade time for memory in training: activations within a layer are recomputed in the backward pass."""
        for module in self.modules():
            if isinstance(module, Block3D):
                module.gradient_checkpointing = enabled

    def disable_gradient_checkpointing(self) -> None:
        self.enable_gradient_checkpointing(False)

    def enable_deepcache(self, interval: int = 3, branch: int = 0) -> None:
        """Run only the outermost layers on all but every `interval`-th step, see `deepcache`.

        Call `reset_deepcache` before each sampling run. Steps with gradients always run completely.
        """
        if branch > self.config.layers_per_block:
            raise UserError(f"deepcache branch must be 0 to {self.config.layers_per_block}, got {branch}")
        self._deepcache = DeepCache(interval, branch)

    def disable_deepcache(self) -> None:
        self._deepcache = None

    @property
    def uses_deepcache(self) -> bool:
        return self._deepcache is not None

    def reset_deepcache(self) -> None:
        """Start a sampling run: the next step runs completely. Does nothing if the cache is off."""
        if self._deepcache is not None:
            self._deepcache.reset()

    @contextmanager
    def deepcache(self, interval: int = 3, branch: int = 0) -> Iterator[None]:
        """Enable the cache for one sampling run."""
        previous = self._deepcache
        self.enable_deepcache(interval, branch)
        try:
            yield
        finally:
            self._deepcache = previous

    def forward(
        self, sample: Tensor, timestep: Tensor | float, encoder_hidden_states: Tensor | None = None
    ) -> UNet3DConditionOutput:
        """One denoising prediction.

        sample (B, C_in, F, H, W); timestep a number, a scalar tensor or (B,); encoder_hidden_states
        (B, F, S, D) audio tokens of each frame; None, like zeros, for no audio.
        """
        batch, _, frames, _, _ = sample.shape
        timesteps = torch.as_tensor(timestep, device=sample.device).expand(batch)
        if encoder_hidden_states is None:
            encoder_hidden_states = sample.new_zeros(batch, frames, 1, self.config.cross_attention_dim)
        self._check_inputs(sample, encoder_hidden_states)
        complete, outer = self._compiled or (self._predict, self._predict_from)
        cache = None if torch.is_grad_enabled() else self._deepcache
        features = cache.lookup(sample) if cache else None
        branch = cache.branch if cache else NO_BRANCH
        if features is not None:
            return UNet3DConditionOutput(outer(sample, timesteps, encoder_hidden_states, features, branch))
        prediction, features = complete(sample, timesteps, encoder_hidden_states, branch)
        if cache:
            cache.store(features)
        return UNet3DConditionOutput(prediction)

    def _predict(self, sample: Tensor, timesteps: Tensor, tokens: Tensor, branch: int) -> tuple[Tensor, Tensor]:
        """All layers: the prediction (B, C_out, F, H, W), and the input of the layers outside of `branch` (N, C, H, W).

        sample (B, C_in, F, H, W), timesteps (B,), tokens (B, F, S, D).
        """
        images, condition = self._inputs(sample, timesteps, tokens)
        first_outer = self._first_outer(branch)
        features, skips = self._deep_features(self.conv_in(images), condition, first_outer)
        return self._outer_layers(first_outer, features, skips, images, condition), features

    def _predict_from(self, sample: Tensor, timesteps: Tensor, tokens: Tensor, features: Tensor, branch: int) -> Tensor:
        """The layers outside of `branch` only; see `_predict`, which gave the features in an earlier step."""
        images, condition = self._inputs(sample, timesteps, tokens)
        skips = self._outer_skips(self.conv_in(images), condition, branch)
        return self._outer_layers(self._first_outer(branch), features, skips, images, condition)

    def _inputs(self, sample: Tensor, timesteps: Tensor, tokens: Tensor) -> tuple[Tensor, Condition]:
        """Images (N, C_in, H, W) and condition from the arguments of `_predict`."""
        condition = Condition(
            self.time_embedding(timesteps), rearrange(tokens, "b f s d -> (b f) s d"), sample.shape[2]
        )
        return frames_to_images(2 * sample - 1 if self.config.center_input_sample else sample), condition

    def _first_outer(self, branch: int) -> int:
        """The first layer of the last up block that runs in every step."""
        return len(cast(UpBlock3D, self.up_blocks[-1]).resnets) - branch - 1

    def _outer_layers(self, first: int, x: Tensor, skips: list[Tensor], images: Tensor, condition: Condition) -> Tensor:
        """The layers from `first` on of the last up block, and the output: (N, C, H, W) -> (B, C_out, F, H, W)."""
        last = cast(UpBlock3D, self.up_blocks[-1])
        x = last.layers(range(first, len(last.resnets)), x, skips, condition)
        x = self.activation(self.conv_norm_out(x, condition.frames))
        if self.conv_gate is None:
            x = self.conv_out(x)
        else:
            x = self.conv_out(x) + self.conv_gate(x).sigmoid() * images[:, -self.config.out_channels :]
        return rearrange(x, "(b f) c h w -> b c f h w", f=condition.frames)

    def _deep_features(self, x: Tensor, condition: Condition, first_outer: int) -> tuple[Tensor, list[Tensor]]:
        """The input of layer `first_outer` of the last up block, and the skip connections of the remaining layers."""
        skips = [x]
        for block in self.down_blocks:
            x, maps = block(x, condition)
            skips += maps
        x = self.mid_block(x, condition)
        for block in self.up_blocks[:-1]:
            x = block(x, skips, condition)
        return cast(UpBlock3D, self.up_blocks[-1]).layers(range(first_outer), x, skips, condition), skips

    def _outer_skips(self, x: Tensor, condition: Condition, branch: int) -> list[Tensor]:
        """The skip connections of the outermost layers: the first convolution and the first `branch` layers."""
        skips = [x]
        for index in range(branch):
            skips.append(cast(DownBlock3D, self.down_blocks[0]).layer(index, skips[-1], condition))
        return skips

    def _check_inputs(self, sample: Tensor, tokens: Tensor) -> None:
        batch, channels, frames = sample.shape[:3]
        if channels != self.config.in_channels:
            raise UserError(f"this UNet takes {self.config.in_channels} input channels, got {channels}")
        if tokens.shape[:2] != (batch, frames):
            raise ValueError(f"audio tokens {tuple(tokens.shape)} do not match {batch} samples of {frames} frames")
        if self.config.add_audio_layer and tokens.shape[-1] != self.config.cross_attention_dim:
            raise UserError(
                f"this UNet takes audio features of width {self.config.cross_attention_dim}, got {tokens.shape[-1]};"
                " use the Whisper encoder that belongs to it"
            )
