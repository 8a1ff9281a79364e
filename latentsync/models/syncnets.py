"""The SyncNets that can be trained, by the `architecture` of their config."""

from torch import nn

from latentsync.models.framewise_syncnet import FramewiseSyncNet, FramewiseSyncNetConfig
from latentsync.models.stable_syncnet import StableSyncNet
from latentsync.models.syncnet_config import StableSyncNetConfig
from latentsync.models.wav2lip_syncnet import Wav2LipSyncNet, Wav2LipSyncNetConfig

SyncNetConfig = StableSyncNetConfig | FramewiseSyncNetConfig | Wav2LipSyncNetConfig
# The first is the default of configs that name no architecture.
SYNCNET_SCHEMAS: tuple[type[SyncNetConfig], ...] = (StableSyncNetConfig, FramewiseSyncNetConfig, Wav2LipSyncNetConfig)


def make_syncnet(config: SyncNetConfig) -> nn.Module:
    """A new network; all have `forward(image_sequences, audio_sequences)`, `embed_images` and `embed_audio`."""
    if isinstance(config, FramewiseSyncNetConfig):
        return FramewiseSyncNet(config)
    return Wav2LipSyncNet(config) if isinstance(config, Wav2LipSyncNetConfig) else StableSyncNet(config)
