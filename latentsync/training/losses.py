"""Losses of the trainers. What one UNet step offers them (`Estimate`), the losses on it, and how they are weighted; the
losses on SyncNet embeddings, which both trainers use.

Legend: B samples of a batch, K of them counted by losses on the one-step estimate, C latent channels, F frames,
h latent cells, R pixels, N images, D embedding width, T audio columns.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from latentsync.config.unet import RunConfig
from latentsync.constants import RGB
from latentsync.faces.mask import MOUTH_BOX, mouth_slices
from latentsync.models.syncnet_input import AudioFeatures, audio_input, visual_input, whisper_rows

# Parts of an aligned face as fractions of its side: top, bottom, left, right.
REGIONS = {"whole": (0.0, 1.0, 0.0, 1.0), "lower_half": (0.5, 1.0, 0.0, 1.0), "mouth": MOUTH_BOX}
PROBABILITY_MARGIN = 1e-6  # keeps the logarithms, and the gradient of a confident mistake, finite
IN_SYNC_THRESHOLD = 0.5

Box = tuple[int, int, int, int]  # top, bottom, left, right; bottom and right exclusive


@dataclass(frozen=True)
class Estimate:
    """One step of the UNet as the losses see it.

    prediction, target (B, C, F, h, h). The rest covers the K samples that count, none when K is 0: latents
    (K, C, F, h, h), the one-step estimate, and real_latents, its target; frames and real_frames (K, F', 3, R, R) in
    about [-1, 1], all or some of the F frames, None where nothing is decoded; has_audio (K,) bool, whether the sample
    was conditioned on audio (audio dropout); audio, the input of a SyncNet: mel (K, 1, 80, T) or audio tokens
    (K, F, S, D), None without one.
    """

    prediction: Tensor
    target: Tensor
    latents: Tensor
    frames: Tensor | None = None
    real_frames: Tensor | None = None
    has_audio: Tensor | None = None
    audio: Tensor | None = None
    real_latents: Tensor | None = None

    @property
    def share(self) -> float:
        """K / B: the weight of a mean over the counted samples in a mean over the batch."""
        return len(self.latents) / len(self.prediction)


@dataclass(frozen=True)
class Term:
    """A loss with its weight, a mean over the K counted samples or, with `whole_batch`, over all."""

    weight: float
    loss: Callable[[Estimate], Tensor]
    whole_batch: bool = False


@dataclass
class LossNetworks:
    """The frozen networks of a run's losses; None where the run does not use them."""

    lpips: nn.Module | None = None
    trepa: nn.Module | None = None
    sync: "SyncSupervision | None" = None

    @property
    def needs_mel(self) -> bool:
        """Whether batches must have the SyncNet mel."""
        return self.sync is not None and self.sync.batch_key == "mel"


@dataclass
class ExtraLosses:
    """What a recipe adds: terms, and discriminators, modules (made, real frames) -> loss with a `discriminator`."""

    terms: dict[str, Term] = field(default_factory=dict)
    discriminator_losses: dict[str, nn.Module] = field(default_factory=dict)


class UNetLosses(nn.Module):
    """The terms of a run by name. Their networks are frozen and not part of any checkpoint.

    Calling it gives every term unweighted, as a mean over the whole batch (a sample that a term does not count adds
    zero, so that two processes agree with one that has both their samples), and `loss`, their weighted sum. A
    discriminator NAME has its own loss, `NAME_loss`, which is not part of the sum.
    """

    def __init__(self, terms: dict[str, Term], discriminator_losses: Mapping[str, nn.Module] | None = None):
        super().__init__()
        self.terms = terms
        self.discriminator_losses = nn.ModuleDict(discriminator_losses or {})
        self.networks = nn.ModuleDict(
            {name: term.loss for name, term in terms.items() if isinstance(term.loss, nn.Module)}
        )

    def forward(self, estimate: Estimate) -> dict[str, Tensor]:
        values = {name: self._value(term, estimate) for name, term in self.terms.items()}
        loss = sum(term.weight * values[name] for name, term in self.terms.items())
        for name, discriminator_loss in self.discriminator_losses.items():
            values[f"{name}_loss"] = self._discriminate(discriminator_loss, estimate)
        return {"loss": loss, **values, "mouth_mse": mouth_mse(estimate)}

    @staticmethod
    def _discriminate(loss: nn.Module, estimate: Estimate) -> Tensor:
        """The discriminator's own loss; a zero with gradients where no sample counts."""
        if not len(estimate.latents):
            return sum(parameter.sum() * 0 for parameter in loss.parameters())
        return loss(estimate.frames, estimate.real_frames) * estimate.share

    @staticmethod
    def _value(term: Term, estimate: Estimate) -> Tensor:
        if term.whole_batch:
            return term.loss(estimate)
        if not len(estimate.latents):
            return estimate.prediction.new_zeros((), dtype=torch.float32)
        return term.loss(estimate) * estimate.share


def build_losses(
    run: RunConfig, networks: LossNetworks, recon_weights: Tensor | None = None, extra: ExtraLosses | None = None
) -> UNetLosses:
    """The terms of a run; the one place where weights meet losses. For `recon_weights` see `ReconstructionLoss`."""
    terms = {"recon": Term(run.recon_loss_weight, ReconstructionLoss(recon_weights), whole_batch=True)}
    if networks.lpips is not None:
        terms["perceptual"] = Term(run.perceptual_loss_weight, PerceptualLoss(networks.lpips, run.decode_region))
    if networks.trepa is not None:
        terms["trepa"] = Term(run.trepa_loss_weight, TemporalLoss(networks.trepa))
    if networks.sync is not None and run.sync_loss_weight:
        terms["sync"] = Term(run.sync_loss_weight, SyncLoss(networks.sync))
    extra = extra or ExtraLosses()
    return UNetLosses(terms | extra.terms, extra.discriminator_losses)


class ReconstructionLoss(nn.Module):
    """Mean squared error of the prediction. weights: (1, 1, 1, h, h) of mean 1 for its cells; None: all alike."""

    def __init__(self, weights: Tensor | None = None):
        super().__init__()
        self.register_buffer("weights", weights, persistent=False)

    def forward(self, estimate: Estimate) -> Tensor:
        error = (estimate.prediction.float() - estimate.target.float()) ** 2
        return (error if self.weights is None else error * self.weights).mean()


class PerceptualLoss(nn.Module):
    """LPIPS of the lower half of the face, or of the part of it that was decoded.

    `lpips` takes two stacks of images (N, 3, H, W) in [-1, 1] and gives one distance per image.
    """

    def __init__(self, lpips: nn.Module, region: str = "whole"):
        super().__init__()
        self.lpips, self.region = lpips.eval().requires_grad_(False), region

    def forward(self, estimate: Estimate) -> Tensor:
        made, real = (self._compared(frames) for frames in (estimate.frames, estimate.real_frames))
        return self.lpips(made, real).float().mean()

    def _compared(self, frames: Tensor) -> Tensor:
        box = region_box("lower_half" if self.region == "whole" else self.region, frames.shape[-1])
        return rearrange(crop(frames, box), "k f c h w -> (k f) c h w")


class TemporalLoss(nn.Module):
    """TREPA: distance between the features of a video network for the generated and the real frames, whole faces.

    `trepa` takes two clips (K, 3, F, R, R) in [-1, 1].
    """

    def __init__(self, trepa: Callable[[Tensor, Tensor], Tensor]):
        super().__init__()
        self.trepa = trepa  # registered where it is a module

    def forward(self, estimate: Estimate) -> Tensor:
        made, real = (rearrange(frames, "k f c h w -> k c f h w") for frames in (estimate.frames, estimate.real_frames))
        return self.trepa(made, real).float()


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
        audio_feat_length: tuple[int, int] = (2, 2),
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

    def images(self, estimate: Estimate) -> Tensor:
        """The estimated latents (K, C, F, h, h) or frames (K, F, 3, R, R) as input of the visual encoder."""
        if self.latent_space:
            return visual_input(estimate.latents.transpose(1, 2), self.lower_half)
        frames = estimate.frames
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


class SyncLoss(nn.Module):
    """Binary cross-entropy against "in sync", mean over the K samples; those without audio count as 0.

    Samples longer than the SyncNet's window are judged in half-overlapping windows.

    Args:
        supervision: the SyncNet.
        scales: see `WindowedSyncLoss`.
    """

    def __init__(self, supervision: SyncSupervision, scales: Sequence[int] = (1,)):
        super().__init__()
        self.supervision = supervision
        self.judge = WindowedSyncLoss(
            {supervision.num_frames: supervision.syncnet}, supervision.columns_per_frame, supervision.channels, scales
        )

    def forward(self, estimate: Estimate) -> Tensor:
        if not estimate.has_audio.any():
            return estimate.latents.new_zeros(())
        picked = estimate.has_audio.nonzero().flatten().to(estimate.latents.device)
        images = self.supervision.images(estimate)[picked]
        audio = self.supervision.audio(estimate.audio[picked])
        return self.judge(images, audio) * (len(picked) / len(estimate.has_audio))


class WindowedSyncLoss(nn.Module):
    """Sync loss over several window lengths and image scales.

    Every SyncNet judges all half-overlapping windows of its own length: short windows pin the moment, long ones the
    rhythm. At scale s the frames are blurred to remove detail finer than s pixels, which rewards the opening and shape
    of the mouth instead of textures that a frozen network happens to like.

    Args:
        nets: window length in frames -> trained SyncNet of that length; all take the same kind of audio.
        columns_per_frame: audio columns per frame: 80 / 25 of the mel, 2 of Whisper.
        channels: of one frame: 3, or those of the latents.
        scales: 1 leaves the frames as they are.
    """

    def __init__(
        self,
        nets: Mapping[int, nn.Module],
        columns_per_frame: Fraction,
        channels: int = RGB,
        scales: Sequence[int] = (1,),
    ):
        super().__init__()
        if not nets or not scales or min(scales) < 1:
            raise ValueError("the sync loss needs at least one SyncNet and scales of at least 1")
        self.nets = nn.ModuleDict({str(length): net.eval().requires_grad_(False) for length, net in nets.items()})
        self.columns_per_frame, self.channels, self.scales = columns_per_frame, channels, tuple(scales)

    def forward(self, images: Tensor, audio: Tensor) -> Tensor:
        """Mean over nets, windows and scales of the cross-entropy against "in sync": a scalar.

        Args:
            images: stacked frames (B, F * C, H, W), the input of a SyncNet's visual encoder.
            audio: (B, ..., T), the input of its audio encoder for all F frames.

        Raises:
            ValueError: there are fewer frames than the shortest window has.
        """
        views = [blur(images, scale) for scale in self.scales]
        frames = images.shape[1] // self.channels
        losses = []
        for length, net in ((int(name), net) for name, net in self.nets.items()):
            for start in half_overlapping(frames, length):
                columns = self._columns(audio, start, length)
                channels = slice(start * self.channels, (start + length) * self.channels)
                for view in views:
                    vision, voice = net(view[:, channels], columns)
                    losses.append(cosine_loss(vision, voice, torch.ones(len(vision), device=vision.device)))
        if not losses:
            raise ValueError(f"{frames} frames are fewer than every SyncNet's window ({', '.join(self.nets)})")
        return torch.stack(losses).mean()

    def _columns(self, audio: Tensor, start: int, length: int) -> Tensor:
        """The audio columns of a window, of the same width wherever it starts."""
        width = min(math.ceil(length * self.columns_per_frame), audio.shape[-1])
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
        excluded: (B, B) bool, pairs that are no negatives (the same moment twice in a batch); its diagonal is ignored.

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


def mouth_mse(estimate: Estimate) -> Tensor:
    """Unweighted squared error of the cells of the lips, without gradients: to watch, not to minimize."""
    error = F.mse_loss(estimate.prediction.detach().float(), estimate.target.float(), reduction="none")
    return error[..., *mouth_slices(error.shape[-1])].mean()


def region_box(region: str, size: int) -> Box:
    """The smallest box of whole cells (of `size` per side) that contains a region."""
    top, bottom, left, right = (size * fraction for fraction in REGIONS[region])
    return math.floor(top), math.ceil(bottom), math.floor(left), math.ceil(right)


def crop(images: Tensor, box: Box) -> Tensor:
    """The box of images (..., H, W)."""
    top, bottom, left, right = box
    return images[..., top:bottom, left:right]
