"""Wav2Lip's SyncNet (Prajwal et al. 2020) for 128x256 half faces, a baseline for StableSyncNet.

Legend: B batch, C channels, H W map, D embedding width (1024). Parameter names are Wav2Lip's `{i}.conv_block.{0,1}`.
"""

from typing import ClassVar, Literal, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from latentsync.config.schema import SchemaError, section
from latentsync.models.syncnet_config import InputChannels

VISUAL_INPUT = (15, 128, 256)  # 5 frames x RGB
AUDIO_INPUT = (1, 80, 16)
EMBEDDING_WIDTH = 1024
NEGATIVE_SLOPE = 0.2


class Layer(NamedTuple):
    """A convolution, followed by `residuals` 3x3 convolutions that keep width and size."""

    channels: int
    kernel: int = 3
    stride: int | tuple[int, int] = 1
    padding: int = 1
    residuals: int = 0


VISUAL_LAYERS = (
    Layer(32, kernel=7, padding=3),
    Layer(64, kernel=5, stride=(1, 2), residuals=2),
    Layer(128, stride=2, residuals=3),
    Layer(256, stride=3, residuals=2),
    Layer(512, stride=2, residuals=2),
    Layer(1024, stride=2, residuals=2),
    Layer(1024, stride=2),
    Layer(1024, padding=0),
    Layer(1024, kernel=1, padding=0),
)
AUDIO_LAYERS = (
    Layer(32, residuals=2),
    Layer(64, stride=(3, 1), residuals=2),
    Layer(128, stride=3, residuals=2),
    Layer(256, stride=(3, 2), residuals=2),
    Layer(512, residuals=2),
    Layer(1024, padding=0),
    Layer(1024, kernel=1, padding=0),
)
# Number of convolutions at the end with a ReLU instead of a leaky ReLU.
PLAIN_VISUAL, PLAIN_AUDIO = 3, 2


@section
class Wav2LipSyncNetConfig:
    """`model` section of a config file for this network; it has no options."""

    architecture: Literal["wav2lip_syncnet"] = "wav2lip_syncnet"
    visual_encoder: ClassVar[InputChannels] = InputChannels(VISUAL_INPUT[0])
    audio_encoder: ClassVar[InputChannels] = InputChannels(AUDIO_INPUT[0])
    embedding_width: ClassVar[int] = EMBEDDING_WIDTH

    def check_visual_input(self, channels: int, size: tuple[int, int]) -> None:
        """Raise SchemaError for images of another shape."""
        _check("lower halves of 5 frames of 256 px", VISUAL_INPUT, (channels, *size))

    def check_audio_input(self, channels: int, size: tuple[int, int]) -> None:
        """Raise SchemaError for audio of another shape."""
        _check("a mel of 5 frames at 25 fps", AUDIO_INPUT, (channels, *size))


def _check(what: str, expected: tuple[int, int, int], got: tuple[int, ...]) -> None:
    if got != expected:
        shapes = ["x".join(map(str, shape)) for shape in (expected, got)]
        raise SchemaError(("model",), f"wav2lip_syncnet takes {what}, {shapes[0]}; got {shapes[1]}")


class ConvBlock(nn.Module):
    """Convolution, batch norm, the input if `residual`, and a leaky ReLU of negative slope `slope`."""

    def __init__(self, in_channels: int, layer: Layer, residual: bool, slope: float):
        super().__init__()
        self.residual, self.slope = residual, slope
        conv = nn.Conv2d(in_channels, layer.channels, layer.kernel, layer.stride, layer.padding)
        self.conv_block = nn.Sequential(conv, nn.BatchNorm2d(layer.channels))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.conv_block(x)
        return F.leaky_relu(hidden + x if self.residual else hidden, self.slope)


def make_encoder(in_channels: int, layers: tuple[Layer, ...], plain: int) -> nn.Sequential:
    """The convolutions of `layers` in sequence; the last `plain` of them have a ReLU."""
    flat: list[tuple[Layer, bool]] = []
    for layer in layers:
        flat += [(layer, False)] + [(Layer(layer.channels), True)] * layer.residuals
    blocks = []
    for index, (layer, residual) in enumerate(flat):
        slope = 0.0 if index >= len(flat) - plain else NEGATIVE_SLOPE
        blocks.append(ConvBlock(in_channels, layer, residual, slope))
        in_channels = layer.channels
    return nn.Sequential(*blocks)


class Wav2LipSyncNet(nn.Module):
    """Embeds 5 lower half faces and their mel; same interface as StableSyncNet.

    Because of batch norm, a training sample depends on its batch and on how the batch is split over processes.
    """

    def __init__(self, config: Wav2LipSyncNetConfig | None = None):
        super().__init__()
        self.config = config or Wav2LipSyncNetConfig()
        self.visual_encoder = make_encoder(VISUAL_INPUT[0], VISUAL_LAYERS, PLAIN_VISUAL)
        self.audio_encoder = make_encoder(AUDIO_INPUT[0], AUDIO_LAYERS, PLAIN_AUDIO)

    def forward(self, image_sequences: Tensor, audio_sequences: Tensor) -> tuple[Tensor, Tensor]:
        """Unit vectors (vision_embeds, audio_embeds), both (B, 1024) in [0, 1].

        Args:
            image_sequences: (B, 15, 128, 256), the frames stacked along the channels.
            audio_sequences: (B, 1, 80, 16) mel.

        Raises:
            UserError: an input of another shape.
        """
        return self.embed_images(image_sequences), self.embed_audio(audio_sequences)

    def embed_images(self, image_sequences: Tensor) -> Tensor:
        """(B, 15, 128, 256) -> (B, 1024) unit vectors."""
        self.config.check_visual_input(image_sequences.shape[1], tuple(image_sequences.shape[2:]))
        return F.normalize(self.visual_encoder(image_sequences).flatten(1), dim=1)

    def embed_audio(self, audio_sequences: Tensor) -> Tensor:
        """(B, 1, 80, 16) -> (B, 1024) unit vectors."""
        self.config.check_audio_input(audio_sequences.shape[1], tuple(audio_sequences.shape[2:]))
        return F.normalize(self.audio_encoder(audio_sequences).flatten(1), dim=1)
