"""Losses on SyncNet embeddings, which both trainers use, and the frozen SyncNet that supervises the UNet.

Legend: B samples of a batch, K of them counted by losses on the one-step estimate, F frames, C channels, H W pixels or
latent cells, R pixels, S audio tokens, D embedding width, T audio columns.
"""

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentsync.constants import RGB
from latentsync.models.syncnet_input import AudioFeatures, audio_input, visual_input, whisper_rows

PROBABILITY_MARGIN = 1e-6  # keeps the logarithms, and the gradient of a confident mistake, finite
IN_SYNC_THRESHOLD = 0.5


class SyncSupervision(nn.Module):
    """A frozen SyncNet with a description of its inputs.

    Args:
        syncnet: takes stacked frames and audio, gives two unit vectors per sample.
        num_frames: length of its windows.
        channels: of one frame: 3, or those of the latents.
        latent_space: its input is latents instead of pixels.
        lower_half: its input is the lower half of a face.
        resolution: side of the faces it was trained on, pixels; others are resized to it.
        audio_features: mel, or whisper for the UNet's own audio tokens.
        num_layers: Whisper states per row (`Audio2Feature.num_layers`).
        audio_feat_length: frames of context before and after, of the UNet's tokens.
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
        columns_per_frame: Fraction,
        channels: int = RGB,
        audio_feat_length: tuple[int, ...] = (2, 2),
    ):
        super().__init__()
        self.syncnet = syncnet.eval().requires_grad_(False)
        self.num_frames, self.channels, self.columns_per_frame = num_frames, channels, columns_per_frame
        self.latent_space, self.lower_half, self.resolution = latent_space, lower_half, resolution
        self.audio_features, self.num_layers = audio_features, num_layers
        self.audio_feat_length = audio_feat_length

    @property
    def batch_key(self) -> str:
        """The entry of a batch that `Estimate.audio` must be."""
        return "audio" if self.audio_features == "whisper" else "mel"

    def images(self, latents: Tensor, frames: Tensor | None) -> Tensor:
        """Latents (K, C, F, h, h) or, for a SyncNet on pixels, frames (K, F, 3, R, R) -> visual encoder input."""
        if self.latent_space:
            return visual_input(latents.transpose(1, 2), self.lower_half)
        assert frames is not None
        if frames.shape[-1] != self.resolution:
            size = (self.resolution, self.resolution)
            resized = F.interpolate(frames.flatten(0, 1), size, mode="bilinear", antialias=True)
            frames = resized.unflatten(0, frames.shape[:2])
        return visual_input(frames, self.lower_half)

    def audio(self, audio: Tensor) -> Tensor:
        """Mel (K, 1, 80, T) or the UNet's tokens (K, F, S, D) as input of the audio encoder."""
        if self.audio_features == "whisper":
            audio = whisper_rows(audio, self.num_layers, self.audio_feat_length)
        return audio_input(audio, self.audio_features)


class WindowedSyncLoss(nn.Module):
    """Sync loss over all half-overlapping windows of a SyncNet's length, at several image scales.

    At scale s the frames are blurred to remove detail finer than s pixels, so that the gradient changes the
    opening and shape of the mouth instead of textures (adversarial patterns of the frozen network).

    Args:
        net: a trained SyncNet.
        length: of its window, frames.
        columns_per_frame: audio columns per frame: 80 / 25 of the mel, 2 of Whisper.
        channels: of one frame: 3, or those of the latents.
        scales: 1 leaves the frames as they are.
    """

    def __init__(
        self,
        net: nn.Module,
        length: int,
        columns_per_frame: Fraction,
        channels: int = RGB,
        scales: Sequence[int] = (1,),
    ):
        super().__init__()
        if not scales or min(scales) < 1:
            raise ValueError("the sync loss needs scales of at least 1")
        self.net, self.length = net.eval().requires_grad_(False), length
        self.columns_per_frame, self.channels, self.scales = columns_per_frame, channels, tuple(scales)

    def forward(self, images: Tensor, audio: Tensor) -> Tensor:
        """Mean over windows and scales of the cross-entropy against "in sync": a scalar.

        Args:
            images: stacked frames (B, F * C, H, W), the input of a SyncNet's visual encoder.
            audio: (B, ..., T), the input of its audio encoder for all F frames.

        Raises:
            ValueError: there are fewer frames than a window has.
        """
        views = [blur(images, scale) for scale in self.scales]
        frames = images.shape[1] // self.channels
        losses = []
        for start in half_overlapping(frames, self.length):
            columns = self._columns(audio, start)
            channels = slice(start * self.channels, (start + self.length) * self.channels)
            for view in views:
                vision_embeds, audio_embeds = self.net(view[:, channels], columns)
                losses.append(cosine_loss(vision_embeds, audio_embeds, torch.ones(len(view), device=view.device)))
        if not losses:
            raise ValueError(f"{frames} frames are fewer than the SyncNet's window of {self.length}")
        return torch.stack(losses).mean()

    def _columns(self, audio: Tensor, start: int) -> Tensor:
        """The audio columns of a window, of the same width wherever it starts."""
        width = min(math.ceil(self.length * self.columns_per_frame), audio.shape[-1])
        first = min(int(start * self.columns_per_frame), audio.shape[-1] - width)
        return audio[..., first : first + width]


def half_overlapping(frames: int, length: int) -> list[int]:
    """First frames of half-overlapping windows that cover all frames, the last flush with the end; [] if too short."""
    if frames < length:
        return []
    return sorted({*range(0, frames - length, max(length // 2, 1)), frames - length})


def blur(images: Tensor, scale: int) -> Tensor:
    """(B, C, H, W) without detail finer than `scale` pixels, same size."""
    if scale == 1:
        return images
    height, width = images.shape[-2:]
    small = F.interpolate(images, size=(max(height // scale, 1), max(width // scale, 1)), mode="area")
    return F.interpolate(small, size=(height, width), mode="bilinear")


def similarity(vision: Tensor, audio: Tensor) -> Tensor:
    """Cosine similarity of (B, D) and (B, D): (B,) float32, in [0, 1] for the non-negative embeddings of a SyncNet."""
    return F.cosine_similarity(vision.float(), audio.float(), dim=1)


def cosine_loss(vision: Tensor, audio: Tensor, y: Tensor, reduction: Literal["mean", "sum", "none"] = "mean") -> Tensor:
    """Binary cross-entropy of the cosine similarity, read as the probability of being in sync (Wav2Lip); in float32.

    Args:
        vision: (B, D), audio: (B, D).
        y: (B,) or (B, 1), 1 for a pair in sync and 0 for one that is not.

    Returns:
        A scalar, or (B,) with `reduction="none"`.
    """
    with torch.autocast(vision.device.type, enabled=False):
        probability = similarity(vision, audio).clamp(PROBABILITY_MARGIN, 1 - PROBABILITY_MARGIN)
        y = y.reshape(-1).float()
        # F.binary_cross_entropy ends the process on a NaN; the loop must see it and skip the batch.
        losses = -(y * probability.log() + (1 - y) * (-probability).log1p())
        return losses if reduction == "none" else getattr(losses, reduction)()


def contrastive_loss(vision: Tensor, audio: Tensor, temperature: float, excluded: Tensor | None = None) -> Tensor:
    """Symmetric InfoNCE over the batch: row i of one side belongs to row i of the other (CLIP, Radford et al. 2021).

    Args:
        vision: (B, D) unit vectors, audio: (B, D) unit vectors; B at least 2.
        temperature: divides the similarities, above 0; 0.07 is usual.
        excluded: (B, B) bool, pairs that are not negatives (the same moment twice in a batch); its diagonal is ignored.

    Returns:
        A scalar in float32; ln B for an untrained network.
    """
    with torch.autocast(vision.device.type, enabled=False):
        logits = vision.float() @ audio.float().T / temperature
        if excluded is not None:
            own = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
            logits = logits.masked_fill(excluded & ~own, float("-inf"))
        target = torch.arange(len(logits), device=logits.device)
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def pair_accuracy(vision: Tensor, audio: Tensor, y: Tensor) -> Tensor:
    """Share of pairs where (similarity > 0.5) agrees with y (B,) or (B, 1): a scalar in [0, 1]."""
    predicted = similarity(vision, audio) > IN_SYNC_THRESHOLD
    return (predicted == (y.reshape(-1) > 0.5)).float().mean()
