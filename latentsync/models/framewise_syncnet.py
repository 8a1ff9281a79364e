"""A small SyncNet that encodes each frame separately, then the sequence of frame features.

StableSyncNet stacks the frames of a window along the channels, so its first convolution must learn the appearance of
a mouth for each position in the window. Here one encoder is shared by all frames, and a second one encodes how its
features change. In a sequence longer than a window, each frame is encoded once for all windows that contain it. This
network learns from less data and in fewer steps.

Legend: B sequences, R frames of a sequence, F frames of a window, W windows of a sequence, C channels, H W map,
D widths, A values of an audio row.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from latentsync.config.schema import SchemaError, require, require_positive, section
from latentsync.constants import WHISPER_ROWS_PER_FRAME
from latentsync.models.syncnet_config import InputChannels

NORM_GROUPS = 8
FRAME_STRIDES = ((1, 2), (2, 2), (2, 2))  # of a lower half, 8 x 16 cells, to 2 x 2
STEPS = 3  # halvings of a window of frames; a window of audio rows is halved once more


@section
class FramewiseSyncNetConfig:
    """`model` section of a config file for this network.

    num_frames: F. window_stride: frames between the windows of a sequence longer than F.
    frame_channels, frame_size: C and (H, W) of one frame as the network sees it.
    latent_channels: channels of an input frame, of which the first C are used; by default C. The first channels of the
        embedded model's latents are those of the face at half the size, which is all that lips need.
    audio_channels: A, all Whisper states of a row.
    frame_widths: of the three blocks of the frame encoder. feature_width: of the features of a frame or an audio row.
    window_widths: of the blocks of the window encoder, the last one repeated. embedding_width: D of the output.
    """

    num_frames: int = 16
    window_stride: int = 1
    frame_channels: int = 16
    latent_channels: int | None = None
    frame_size: tuple[int, int] = (8, 16)
    audio_channels: int = 1920
    frame_widths: tuple[int, int, int] = (64, 96, 128)
    feature_width: int = 128
    window_widths: tuple[int, int] = (192, 256)
    embedding_width: int = 256
    dropout: float = 0.1
    architecture: Literal["framewise_syncnet"] = "framewise_syncnet"

    def __post_init__(self) -> None:
        require_positive(self, "window_stride", "frame_channels", "audio_channels", "embedding_width")
        shortest = 2 ** (STEPS - 1) + 1  # else a block would halve a single value
        require(self.num_frames >= shortest, f"num_frames must be at least {shortest}, got {self.num_frames}")
        for name, count in (("frame_size", 2), ("frame_widths", len(FRAME_STRIDES)), ("window_widths", 2)):
            require(len(getattr(self, name)) == count, f"{name} must be {count} numbers, got {getattr(self, name)}")
        for width in (*self.frame_widths, *self.window_widths, self.feature_width):
            require(
                width > 0 and width % NORM_GROUPS == 0, f"width {width} is not a multiple of {NORM_GROUPS} (the norms)"
            )
        require(0 <= self.dropout < 1, f"dropout must be at least 0 and below 1, got {self.dropout}")
        require(
            self.input_channels >= self.frame_channels,
            f"latent_channels must be at least frame_channels ({self.frame_channels}), got {self.latent_channels}",
        )

    @property
    def input_channels(self) -> int:
        """Channels of one input frame."""
        return self.frame_channels if self.latent_channels is None else self.latent_channels

    @property
    def visual_encoder(self) -> InputChannels:
        """Frames of a window, stacked along the channels."""
        return InputChannels(self.num_frames * self.input_channels)

    @property
    def audio_encoder(self) -> InputChannels:
        return InputChannels(self.audio_channels)

    def check_visual_input(self, channels: int, size: tuple[int, ...]) -> None:
        """Raise SchemaError for images (channels, *size) that are not a window or a longer sequence of frames."""
        frames, rest = divmod(channels, self.input_channels)
        if rest or frames < self.num_frames or tuple(size) != tuple(self.frame_size):
            wanted = f"{self.num_frames} or more frames of {self.input_channels} x {_by(self.frame_size)}"
            raise SchemaError(("model",), f"framewise_syncnet takes {wanted}; got {channels} x {_by(size)}")

    def check_audio_input(self, channels: int, size: tuple[int, ...]) -> None:
        """Raise SchemaError for audio (channels, *size) that is not a sequence of Whisper states."""
        if channels != self.audio_channels or size[0] != 1 or size[1] < WHISPER_ROWS_PER_FRAME * self.num_frames:
            wanted = f"{self.audio_channels} x 1 x {WHISPER_ROWS_PER_FRAME * self.num_frames} or more (Whisper states)"
            raise SchemaError(("model",), f"framewise_syncnet takes audio of {wanted}; got {channels} x {_by(size)}")


def _by(size: Sequence[int]) -> str:
    return " x ".join(map(str, size))


class ResBlock(nn.Module):
    """Two convolutions of kernel size 3, each with norm and SiLU, and a shortcut; the first one is strided.

    Args:
        conv: nn.Conv1d or nn.Conv2d.
    """

    def __init__(
        self,
        conv: Callable[..., nn.Module],
        in_channels: int,
        out_channels: int,
        stride: int | tuple[int, int],
        dropout: float = 0.0,
    ):
        super().__init__()
        self.conv1 = conv(in_channels, out_channels, 3, stride, padding=1)
        self.norm1 = nn.GroupNorm(NORM_GROUPS, out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = conv(out_channels, out_channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(NORM_GROUPS, out_channels)
        self.conv_shortcut = conv(in_channels, out_channels, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.dropout(F.silu(self.norm1(self.conv1(x))))
        return F.silu(self.norm2(self.conv2(hidden)) + self.conv_shortcut(x))


class FrameEncoder(nn.Module):
    """Encodes single frames: (N, C, H, W) -> (N, feature_width)."""

    def __init__(self, config: FramewiseSyncNetConfig):
        super().__init__()
        width = config.frame_widths[0]
        self.conv_in = nn.Conv2d(config.frame_channels, width, 3, padding=1)
        self.blocks = nn.Sequential()
        height, cells = config.frame_size
        for out_width, stride in zip(config.frame_widths, FRAME_STRIDES, strict=True):
            self.blocks.append(ResBlock(nn.Conv2d, width, out_width, stride))
            width, height, cells = out_width, -(-height // stride[0]), -(-cells // stride[1])
        self.dropout = nn.Dropout(config.dropout)
        self.proj_out = nn.Linear(width * height * cells, config.feature_width)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj_out(self.dropout(self.blocks(self.conv_in(x)).flatten(1)))


class WindowEncoder(nn.Module):
    """Encodes the features of a window: (N, feature_width, length) -> (N, embedding_width), non-negative unit vectors.

    The mean over the window is subtracted first, so that motion counts and not the speaker's identity.
    """

    def __init__(self, config: FramewiseSyncNetConfig, length: int, steps: int):
        super().__init__()
        first, last = config.window_widths
        widths = [config.feature_width] + [first] * (steps - 2) + [last] * 2
        self.blocks = nn.Sequential()
        for in_width, out_width in zip(widths[:-1], widths[1:], strict=True):
            self.blocks.append(ResBlock(nn.Conv1d, in_width, out_width, 2, config.dropout))
            length = -(-length // 2)
        self.proj_out = nn.Linear(last * length, config.embedding_width)

    def forward(self, x: Tensor) -> Tensor:
        x = x - x.mean(-1, keepdim=True)
        return F.normalize(F.relu(self.proj_out(self.blocks(x).flatten(1))), dim=1)


class FramewiseSyncNet(nn.Module):
    """Embeds mouth frames and Whisper states so that synchronized pairs are similar; same interface as StableSyncNet.

    Args:
        config: layer sizes.

    Raises:
        UserError: an input has another shape (in `forward`).
    """

    def __init__(self, config: FramewiseSyncNetConfig | None = None):
        super().__init__()
        self.config = config = config or FramewiseSyncNetConfig()
        self.frame_encoder = FrameEncoder(config)
        self.frame_order = WindowEncoder(config, config.num_frames, STEPS)
        self.row_dropout = nn.Dropout(config.dropout)
        self.row_encoder = nn.Conv1d(config.audio_channels, config.feature_width, 1)
        self.row_order = WindowEncoder(config, WHISPER_ROWS_PER_FRAME * config.num_frames, STEPS + 1)

    def forward(self, image_sequences: Tensor, audio_sequences: Tensor) -> tuple[Tensor, Tensor]:
        """Unit vectors (vision_embeds, audio_embeds), both (B * W, D) in [0, 1].

        The windows of a sequence are consecutive and start at frames 0, window_stride, 2 * window_stride, ...; W is 1
        if R = F.

        Args:
            image_sequences: (B, R * input_channels, H, W), the frames stacked along the channels.
            audio_sequences: (B, A, 1, 2R) stacked Whisper states of the same frames.
        """
        return self.embed_images(image_sequences), self.embed_audio(audio_sequences)

    def embed_images(self, image_sequences: Tensor, stride: int | None = None) -> Tensor:
        """(B, R * C, H, W) -> (B * W, D) unit vectors; `stride` replaces window_stride."""
        self.config.check_visual_input(image_sequences.shape[1], tuple(image_sequences.shape[2:]))
        frames = rearrange(image_sequences, "b (r c) h w -> (b r) c h w", c=self.config.input_channels)
        features = rearrange(
            self.frame_encoder(frames[:, : self.config.frame_channels]), "(b r) d -> b d r", b=len(image_sequences)
        )
        return self.frame_order(self._windows(features, stride or self.config.window_stride))

    def embed_audio(self, audio_sequences: Tensor) -> Tensor:
        """(B, A, 1, 2R) -> (B * W, D) unit vectors."""
        self.config.check_audio_input(audio_sequences.shape[1], tuple(audio_sequences.shape[2:]))
        rows = self.row_encoder(self.row_dropout(audio_sequences.squeeze(2)))
        return self.row_order(self._windows(rows, self.config.window_stride, WHISPER_ROWS_PER_FRAME))

    def _windows(self, features: Tensor, stride: int, rows: int = 1) -> Tensor:
        """(B, D, R * rows) -> (B * W, D, F * rows), with `rows` features per frame."""
        windows = features.unfold(-1, self.config.num_frames * rows, stride * rows)
        return rearrange(windows, "b d w t -> (b w) d t")
