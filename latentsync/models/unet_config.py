"""Architecture of a UNet. Key names are those of the published configs (from diffusers; motion: from AnimateDiff)."""

from collections.abc import Mapping
from dataclasses import field
from typing import Any, Literal

from latentsync.config.schema import build, require, section

DownBlockType = Literal["CrossAttnDownBlock3D", "DownBlock3D"]
UpBlockType = Literal["CrossAttnUpBlock3D", "UpBlock3D"]
# Far beyond any practical UNet; building a larger one would not finish.
MAX_LAYERS, MAX_BLOCKS, MAX_WIDTH = 64, 16, 2**16


@section
class MotionModuleConfig:
    """One motion module: `num_transformer_block` blocks, each with one temporal attention per listed type.

    temporal_position_encoding_max_len: largest number of frames in a chunk.
    temporal_attention_dim_div: divisor of the attention's width.
    """

    num_attention_heads: int = 8
    num_transformer_block: int = 1
    attention_block_types: tuple[Literal["Temporal_Self"], ...] = ("Temporal_Self", "Temporal_Self")
    temporal_position_encoding: bool = True
    temporal_position_encoding_max_len: int = 24
    temporal_attention_dim_div: int = 1
    zero_initialize: bool = True

    def __post_init__(self) -> None:
        for name in ("num_attention_heads", "num_transformer_block", "temporal_attention_dim_div"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1")
        require(self.temporal_position_encoding_max_len >= 1, "temporal_position_encoding_max_len must be at least 1")
        for name, most in (("num_transformer_block", MAX_LAYERS), ("temporal_position_encoding_max_len", MAX_WIDTH)):
            require(getattr(self, name) <= most, f"{name} must be at most {most}, got {getattr(self, name)}")
        require(len(self.attention_block_types) <= MAX_LAYERS, f"attention_block_types has over {MAX_LAYERS} entries")
        require(bool(self.attention_block_types), "attention_block_types is empty; give at least one 'Temporal_Self'")

    def inner_width(self, channels: int) -> int:
        """Width of the temporal attention on a map of `channels` channels."""
        return channels // self.temporal_attention_dim_div


@section
class UNetConfig:
    """The whole UNet. Defaults are stage 1 of the published system (Stable Diffusion 1.5 with audio attention).

    sample_size: side of the latent map that the model is trained for, in cells; other sizes run as well.
    attention_head_dim: number of heads (despite the name not their width), one for all blocks or one per block.
    use_inflated_groupnorm: true normalizes each frame separately in the resnets, false all frames of a chunk together.
    motion_module_resolutions: downsampling factors (1, 2, 4, ...) of the blocks that get motion modules.
    zero_initialize_conv_in: initialize the first convolution with zeros, for training that starts from a model with
        other input channels; use false to train from scratch.
    whole_condition: the channels of the masked frame hold the whole frame, mouth included. For models fine-tuned on
        pairs of a frame and its altered twin (`tools.make_pairs`), which edit a frame without hiding anything.
    reference_gate: add the reference's latents (the last input channels) to the prediction, weighted per cell and
        channel by a gate in (0, 1). For one-step models that predict the clean sample: fine texture need not pass
        through the layers.
    """

    sample_size: int = 64
    in_channels: int = 13
    out_channels: int = 4
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    down_block_types: tuple[DownBlockType, ...] = ("CrossAttnDownBlock3D",) * 3 + ("DownBlock3D",)
    mid_block_type: Literal["UNetMidBlock3DCrossAttn"] = "UNetMidBlock3DCrossAttn"
    up_block_types: tuple[UpBlockType, ...] = ("UpBlock3D",) + ("CrossAttnUpBlock3D",) * 3
    layers_per_block: int = 2
    attention_head_dim: int | tuple[int, ...] = 8
    cross_attention_dim: int = 384
    add_audio_layer: bool = True
    act_fn: Literal["silu", "swish", "gelu", "relu", "mish"] = "silu"
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    use_inflated_groupnorm: bool = False
    center_input_sample: bool = False
    flip_sin_to_cos: bool = True
    freq_shift: int = 0
    downsample_padding: Literal[1] = 1
    mid_block_scale_factor: float = 1.0
    resnet_time_scale_shift: Literal["default"] = "default"
    unet_use_cross_frame_attention: Literal[False] = False
    unet_use_temporal_attention: Literal[False] = False
    zero_initialize_conv_in: bool = True
    reference_gate: bool = False
    whole_condition: bool = False
    use_motion_module: bool = False
    motion_module_resolutions: tuple[int, ...] = (1, 2, 4, 8)
    motion_module_mid_block: bool = False
    motion_module_decoder_only: bool = False
    motion_module_type: Literal["Vanilla"] = "Vanilla"
    motion_module_kwargs: MotionModuleConfig = field(default_factory=MotionModuleConfig)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "UNetConfig":
        """Build from plain values (dicts and lists). Raises UserError for unknown keys, types and combinations."""
        return build(cls, values, key=("model",))

    def __post_init__(self) -> None:
        self._check_sizes()
        self._check_blocks()
        if self.use_motion_module:
            self._check_motion()

    def _check_sizes(self) -> None:
        names = ("sample_size", "in_channels", "out_channels", "layers_per_block", "cross_attention_dim")
        for name in (*names, "norm_num_groups"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}")
        most = {"layers_per_block": MAX_LAYERS} | dict.fromkeys(("sample_size", "cross_attention_dim"), MAX_WIDTH)
        for name, limit in (most | dict.fromkeys(("in_channels", "out_channels"), MAX_WIDTH)).items():
            require(getattr(self, name) <= limit, f"{name} must be at most {limit}, got {getattr(self, name)}")
        require(self.norm_eps > 0, f"norm_eps must be above 0, got {self.norm_eps}")
        require(self.mid_block_scale_factor != 0, "mid_block_scale_factor must not be 0")

    def _check_blocks(self) -> None:
        widths = self.block_out_channels
        require(bool(widths), "block_out_channels is empty; give one width per block")
        require(len(widths) <= MAX_BLOCKS, f"block_out_channels has {len(widths)} entries; at most {MAX_BLOCKS} blocks")
        require(max(widths) <= MAX_WIDTH, f"block_out_channels {max(widths)} is more than {MAX_WIDTH}")
        for name in ("down_block_types", "up_block_types"):
            count = len(getattr(self, name))
            require(
                count == len(widths),
                f"{name} has {count} entries, block_out_channels has {len(widths)}; make them equal",
            )
        if isinstance(self.attention_head_dim, tuple):
            count = len(self.attention_head_dim)
            require(count == len(widths), f"attention_head_dim has {count} entries for {len(widths)} blocks")
        for width, heads in zip(widths, self.heads_per_block, strict=True):
            require(width >= 1 and width % self.norm_num_groups == 0, self._not_divisible(width, "norm_num_groups"))
            require(
                heads >= 1 and width % heads == 0,
                f"block_out_channels {width} is not divisible by the {heads} heads of attention_head_dim; change one",
            )
        require(widths[0] % 2 == 0, f"block_out_channels[0] is {widths[0]}; the sin/cos time embedding needs it even")

    def _check_motion(self) -> None:
        motion, levels = self.motion_module_kwargs, [2**i for i in range(len(self.block_out_channels))]
        unknown = [r for r in self.motion_module_resolutions if r < 1 or r & (r - 1)]
        require(not unknown, f"motion_module_resolutions {unknown} are not powers of two; use some of {levels}")
        placed = self.motion_module_mid_block or any(r in levels for r in self.motion_module_resolutions)
        require(placed, f"use_motion_module is true but motion_module_resolutions names no block; use some of {levels}")
        for width in self.block_out_channels:
            heads, divisor = motion.num_attention_heads, motion.temporal_attention_dim_div
            require(
                width % (heads * divisor) == 0,
                f"block_out_channels {width} is not divisible by the {heads} heads of motion_module_kwargs"
                f".num_attention_heads (times temporal_attention_dim_div {divisor}); change one",
            )
            require(
                not motion.temporal_position_encoding or motion.inner_width(width) % 2 == 0,
                f"the sinusoidal position table needs an even width, {width} / {divisor} is odd",
            )

    def _not_divisible(self, width: int, name: str) -> str:
        return f"block_out_channels {width} is not divisible by {name} {getattr(self, name)}; change one"

    @property
    def heads_per_block(self) -> tuple[int, ...]:
        """Number of attention heads of each block."""
        heads = self.attention_head_dim
        return heads if isinstance(heads, tuple) else (heads,) * len(self.block_out_channels)

    def motion_at(self, level: int, decoder: bool) -> MotionModuleConfig | None:
        """The motion module of the blocks at downsampling factor 2**level; None for none."""
        wanted = self.use_motion_module and 2**level in self.motion_module_resolutions
        return self.motion_module_kwargs if wanted and (decoder or not self.motion_module_decoder_only) else None

    @property
    def mid_motion(self) -> MotionModuleConfig | None:
        """The motion module of the middle block, or None."""
        wanted = self.use_motion_module and self.motion_module_mid_block and not self.motion_module_decoder_only
        return self.motion_module_kwargs if wanted else None

    @property
    def max_frames(self) -> int | None:
        """Largest number of frames in one forward pass; None for no limit (no position table)."""
        motion = self.motion_module_kwargs
        limited = self.use_motion_module and motion.temporal_position_encoding
        return motion.temporal_position_encoding_max_len if limited else None
