"""Architecture of a StableSyncNet. Key names are those of the published configs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from latentsync.config.schema import SchemaError, build, require, section
from latentsync.utils.errors import UserError

NORM_GROUPS = 32
ATTENTION_HEADS = 8
Size = tuple[int, int]  # height, width
MAX_BLOCKS, MAX_WIDTH = 64, 2**16  # far beyond any network that can be run


def strides(factor: int | tuple[int, ...]) -> Size:
    """A downsampling factor as (height, width): 2 stands for [2, 2]."""
    return (factor, factor) if isinstance(factor, int) else (factor[0], factor[1])


def padding(factor: int | tuple[int, ...]) -> tuple[int, int, int, int]:
    """(left, right, top, bottom) zeros around the input of a strided 3x3 convolution: a halved axis only at its end."""
    height, width = strides(factor)
    return (int(width == 1), 1, int(height == 1), 1)


def downsampled(length: int, stride: int) -> int:
    """Length of one axis after the strided 3x3 convolution and its padding; 0 or less if it is too short."""
    return (length + 1 + int(stride == 1) - 3) // stride + 1


@section
class EncoderConfig:
    """One encoder: a residual block per width, each optionally followed by attention.

    in_channels: channels of the input map (frames x RGB, 1 for a mel, or stacked Whisper states).
    downsample_factors: per block, 1 for none, n for both axes, or [height, width].
    attn_blocks: per block 0 or 1; empty for none.
    """

    in_channels: int
    block_out_channels: tuple[int, ...]
    downsample_factors: tuple[int | tuple[int, ...], ...]
    attn_blocks: tuple[int, ...] = ()
    dropout: float = 0.0

    def __post_init__(self) -> None:
        require(self.in_channels >= 1, f"in_channels must be at least 1, got {self.in_channels}")
        require(0 <= self.dropout < 1, f"dropout must be in [0, 1), got {self.dropout}")
        self._check_widths()
        self._check_factors()
        require(
            len(self.attn_blocks) in (0, len(self.block_out_channels)) and set(self.attn_blocks) <= {0, 1},
            f"attn_blocks {list(self.attn_blocks)} is not one 0 or 1 for each of the"
            f" {len(self.block_out_channels)} block_out_channels",
        )

    def _check_widths(self) -> None:
        widths = self.block_out_channels
        require(bool(widths), "block_out_channels is empty; give one width per block")
        require(
            len(widths) <= MAX_BLOCKS and max(*widths, self.in_channels) <= MAX_WIDTH,
            f"no more than {MAX_BLOCKS} blocks, and {MAX_WIDTH} channels in each",
        )
        for width in widths:
            require(
                width >= 1 and width % NORM_GROUPS == 0,
                f"block_out_channels {width} is not a multiple of {NORM_GROUPS} (the groups of the norms)",
            )
        require(
            widths[-1] > NORM_GROUPS,
            f"the last of block_out_channels is {widths[-1]}: the norm of the 1x1 map would see one value a group and"
            f" give a constant; use at least {2 * NORM_GROUPS}, better {4 * NORM_GROUPS} or more",
        )

    def _check_factors(self) -> None:
        factors, count = self.downsample_factors, len(self.block_out_channels)
        require(
            len(factors) == count,
            f"downsample_factors has {len(factors)} entries, block_out_channels has {count}; make them equal",
        )
        for factor in factors:
            pair = isinstance(factor, int) or len(factor) == 2
            require(
                pair and min(strides(factor)) >= 1, f"downsample_factors entry {factor} is not n or [height, width]"
            )

    @property
    def has_attention(self) -> tuple[bool, ...]:
        """Whether attention follows, for each block."""
        return tuple(map(bool, self.attn_blocks)) or (False,) * len(self.block_out_channels)

    def map_sizes(self, size: tuple[int, ...]) -> list[Size]:
        """Size of the map after each block, for an input of `size`; stops where an axis has no cells left."""
        height, width = size
        sizes = []
        for factor in self.downsample_factors:
            if strides(factor) != (1, 1):
                height, width = downsampled(height, strides(factor)[0]), downsampled(width, strides(factor)[1])
            sizes.append((height, width))
            if min(height, width) < 1:
                break
        return sizes

    def check_input(self, channels: int, size: tuple[int, ...]) -> None:
        """Raise UserError for an input (channels, *size) that this encoder does not reduce to a 1x1 map."""
        got = f"got an input of {channels} channels, {size[0]}x{size[1]}"
        require(channels == self.in_channels, f"in_channels is {self.in_channels}, {got}")
        sizes = self.map_sizes(size)
        path = " -> ".join(f"{height}x{width}" for height, width in (size, *sizes))
        require(
            sizes[-1] == (1, 1),
            f"downsample_factors {_plain(self.downsample_factors)} must end in a 1x1 map; {got}: {path}",
        )


@dataclass(frozen=True)
class InputChannels:
    """The input of an encoder that has no `EncoderConfig`."""

    in_channels: int


@section
class StableSyncNetConfig:
    """The two encoders, whose last width is that of the embedding.

    centered_frames: number of frames stacked in the visual input, whose mean is subtracted, as is the mean of the audio
        over time, so that motion counts and not the speaker's identity. 0, as in the published networks, subtracts
        nothing.
    """

    audio_encoder: EncoderConfig
    visual_encoder: EncoderConfig
    centered_frames: int = 0
    architecture: Literal["stable_syncnet"] = "stable_syncnet"

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "StableSyncNetConfig":
        """Build from plain values (dicts and lists). Raises UserError for unknown keys, types and combinations."""
        return build(cls, values, key=("model",))

    def __post_init__(self) -> None:
        audio, vision = (encoder.block_out_channels[-1] for encoder in (self.audio_encoder, self.visual_encoder))
        require(
            audio == vision,
            f"audio_encoder ends in {audio} channels, visual_encoder in {vision}; their embeddings are compared,"
            " so make the last of block_out_channels equal",
        )
        frames, channels = self.centered_frames, self.visual_encoder.in_channels
        require(
            frames >= 0 and (frames == 0 or channels % frames == 0),
            f"centered_frames {frames} is neither 0 nor the number of frames in visual_encoder.in_channels {channels}",
        )

    @property
    def embedding_width(self) -> int:
        """Width D of both embeddings."""
        return self.audio_encoder.block_out_channels[-1]

    def check_visual_input(self, channels: int, size: tuple[int, ...]) -> None:
        """Raise SchemaError, at visual_encoder, for images (channels, *size) that do not fit."""
        _check(self.visual_encoder, "visual_encoder", channels, size)

    def check_audio_input(self, channels: int, size: tuple[int, ...]) -> None:
        """Raise SchemaError, at audio_encoder, for audio (channels, *size) that does not fit."""
        _check(self.audio_encoder, "audio_encoder", channels, size)


def _check(encoder: EncoderConfig, name: str, channels: int, size: tuple[int, ...]) -> None:
    try:
        encoder.check_input(channels, size)
    except UserError as error:
        raise SchemaError(("model", name), str(error)) from error


def _plain(factors: tuple[int | tuple[int, ...], ...]) -> list[int | list[int]]:
    return [factor if isinstance(factor, int) else list(factor) for factor in factors]
