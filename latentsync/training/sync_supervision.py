"""A frozen SyncNet judges whether the estimated lips fit the sound.

Legend: K samples, F frames, C latent channels, h latent cells, R pixels, S audio tokens, D width.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from latentsync.models.syncnet_input import AudioFeatures, audio_input, visual_input, whisper_rows
from latentsync.training.extra_losses import MEL_COLUMNS_PER_FRAME, WHISPER_COLUMNS_PER_FRAME, MultiScaleSyncLoss
from latentsync.training.loss_terms import Estimate

COLOURS = 3


class SyncSupervision(nn.Module):
    """A SyncNet with what it must be shown: the sync loss of an estimate.

    Runs longer than its own are judged in half-overlapping windows.

    Args:
        syncnet: takes stacked frames and sound, gives two unit vectors a sample.
        num_frames: length of a run that it was trained on.
        channels: of one frame: 3, or those of the latents.
        latent_space: it looks at latents instead of pixels.
        lower_half: it looks at the lower half of a face.
        resolution: side of the faces it was trained on, pixels; others are resized to it.
        audio_features: mel, or whisper for the UNet's own audio tokens.
        num_layers: Whisper states of a row (`Audio2Feature.num_layers`).
        audio_feat_length: frames heard before and after, of the UNet's tokens.
    """

    def __init__(
        self,
        syncnet: nn.Module,
        *,
        num_frames: int,
        latent_space: bool,
        lower_half: bool,
        resolution: int,
        audio_features: AudioFeatures,
        num_layers: int,
        channels: int = COLOURS,
        audio_feat_length: tuple[int, int] = (2, 2),
    ):
        super().__init__()
        self.syncnet = syncnet.eval().requires_grad_(False)
        self.num_frames, self.channels = num_frames, channels
        self.latent_space, self.lower_half, self.resolution = latent_space, lower_half, resolution
        self.audio_features, self.num_layers = audio_features, num_layers
        self.audio_feat_length = audio_feat_length

    @property
    def batch_key(self) -> str:
        """What of a batch `Estimate.sound` must be."""
        return "audio" if self.audio_features == "whisper" else "mel"

    def at_scales(self, scales: Sequence[int]) -> "SyncLoss":
        """The loss with pictures at several scales, see `MultiScaleSyncLoss`; 1 shows them as they are."""
        return SyncLoss(self, scales)

    def pictures(self, estimate: Estimate) -> Tensor:
        """The estimated latents (K, C, F, h, h) or frames (K, F, 3, R, R) as the visual encoder takes them."""
        if self.latent_space:
            return visual_input(estimate.latents.transpose(1, 2), self.lower_half)
        frames = estimate.frames
        if frames.shape[-1] != self.resolution:
            size = (self.resolution, self.resolution)
            resized = F.interpolate(frames.flatten(0, 1), size, mode="bilinear", antialias=True)
            frames = resized.unflatten(0, frames.shape[:2])
        return visual_input(frames, self.lower_half)

    def sound(self, sound: Tensor) -> Tensor:
        """Mel (K, 1, 80, T) or the UNet's tokens (K, F, S, D), as the audio encoder takes them."""
        if self.audio_features == "whisper":
            sound = whisper_rows(sound, self.num_layers, self.audio_feat_length)
        return audio_input(sound, self.audio_features)


class SyncLoss(nn.Module):
    """Binary cross-entropy against "in sync", mean over the K samples; those made without sound count 0."""

    def __init__(self, supervision: SyncSupervision, scales: Sequence[int] = (1,)):
        super().__init__()
        self.supervision = supervision
        is_whisper = supervision.audio_features == "whisper"
        self.judge = MultiScaleSyncLoss(
            {supervision.num_frames: supervision.syncnet},
            WHISPER_COLUMNS_PER_FRAME if is_whisper else MEL_COLUMNS_PER_FRAME,
            supervision.channels,
            scales,
        )

    def forward(self, estimate: Estimate) -> Tensor:
        heard = estimate.heard
        if not heard.any():
            return estimate.latents.new_zeros(())
        picked = heard.nonzero().flatten().to(estimate.latents.device)
        pictures = self.supervision.pictures(estimate)[picked]
        sound = self.supervision.sound(estimate.sound[picked])
        return self.judge(pictures, sound) * (len(picked) / len(heard))
