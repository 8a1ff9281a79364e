"""Losses of the UNet: their input (`Estimate`), the losses on it, and their weights.

Legend: B samples of a batch, K of them counted by losses on the one-step estimate, C latent channels, F frames,
h latent cells, R pixels, N images, S audio tokens, D width, T audio columns.
"""

import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from latentsync.config.unet import RunConfig
from latentsync.faces.mask import MOUTH_BOX, mouth_slices
from latentsync.training.sync_losses import SyncSupervision, WindowedSyncLoss

# Parts of an aligned face as fractions of its side: top, bottom, left, right.
REGIONS = {"whole": (0.0, 1.0, 0.0, 1.0), "lower_half": (0.5, 1.0, 0.0, 1.0), "mouth": MOUTH_BOX}

KEPT_WEIGHT = 0.05  # loss weight of cells that the pipeline takes from the original frame anyway
MOUTH_WEIGHT = 3.0  # loss weight of the lips, which the audio determines

Box = tuple[int, int, int, int]  # top, bottom, left, right; bottom and right exclusive


@dataclass(frozen=True)
class Estimate:
    """The result of one step of the UNet, input of the losses.

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
    def decoded(self) -> tuple[Tensor, Tensor]:
        """frames and real_frames; for losses of runs that decode frames."""
        assert self.frames is not None and self.real_frames is not None
        return self.frames, self.real_frames

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
    """The frozen networks of a run's losses; None where the run does not use them.

    sync: SyncNets of different window lengths, all with the same kind of audio.
    """

    lpips: nn.Module | None = None
    trepa: nn.Module | None = None
    sync: Sequence[SyncSupervision] = ()

    @property
    def sync_audio(self) -> str | None:
        """The entry of a batch that `Estimate.audio` must be; None without a sync loss."""
        return self.sync[0].batch_key if self.sync else None

    @property
    def needs_mel(self) -> bool:
        """Whether batches must have the SyncNet mel."""
        return self.sync_audio == "mel"


@dataclass
class ExtraLosses:
    """Additions of a recipe: terms, and discriminators, modules (made, real frames) -> loss with a `discriminator`."""

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
        loss = reduce(operator.add, (term.weight * values[name] for name, term in self.terms.items()))
        for name, discriminator_loss in self.discriminator_losses.items():
            values[f"{name}_loss"] = self._discriminate(discriminator_loss, estimate)
        return {"loss": loss, **values, "mouth_mse": mouth_mse(estimate)}

    def shrink(self, dtype: torch.dtype) -> None:
        """Keep the weights of the large frozen networks in `dtype`."""
        if "trepa" in self.networks:
            self.networks["trepa"].to(dtype)
        if "perceptual" in self.networks:  # without its statistics of pixels
            for module in self.networks["perceptual"].modules():
                if isinstance(module, nn.Conv2d):
                    module.to(dtype)

    @staticmethod
    def _discriminate(loss: nn.Module, estimate: Estimate) -> Tensor:
        """The discriminator's own loss; a zero with gradients where no sample counts."""
        if not len(estimate.latents):
            return reduce(operator.add, (parameter.sum() * 0 for parameter in loss.parameters()))
        return loss(*estimate.decoded) * estimate.share

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
    if networks.sync and run.sync_loss_weight:
        terms["sync"] = Term(run.sync_loss_weight, SyncLoss(networks.sync))
    extra = extra or ExtraLosses()
    return UNetLosses(terms | extra.terms, extra.discriminator_losses)


class ReconstructionLoss(nn.Module):
    """Mean squared error of the prediction. weights: (1, 1, 1, h, h) of mean 1, one per cell; None for equal ones."""

    weights: Tensor | None

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
        made, real = (self._compared(frames) for frames in estimate.decoded)
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
        made, real = (rearrange(frames, "k f c h w -> k c f h w") for frames in estimate.decoded)
        return self.trepa(made, real).float()


class SyncLoss(nn.Module):
    """Binary cross-entropy against "in sync", mean over the K samples; those without audio count as 0.

    With several SyncNets it is their mean: short windows locate single sounds, long ones the rhythm. Samples longer
    than a SyncNet's window are split into half-overlapping windows. For `scales` see `WindowedSyncLoss`.
    """

    def __init__(self, supervisions: Sequence[SyncSupervision], scales: Sequence[int] = (1,)):
        super().__init__()
        self.supervisions = nn.ModuleList(supervisions)
        self.windowed_losses = nn.ModuleList(
            WindowedSyncLoss(each.syncnet, each.num_frames, each.columns_per_frame, each.channels, scales)
            for each in supervisions
        )

    def forward(self, estimate: Estimate) -> Tensor:
        assert estimate.has_audio is not None and estimate.audio is not None
        if not estimate.has_audio.any():
            return estimate.latents.new_zeros(())
        picked = estimate.has_audio.nonzero().flatten().to(estimate.latents.device)
        losses = []
        pairs = cast(
            Iterable[tuple[SyncSupervision, WindowedSyncLoss]],
            zip(self.supervisions, self.windowed_losses, strict=True),
        )
        for supervision, loss in pairs:
            images = supervision.images(estimate.latents, estimate.frames)[picked]
            losses.append(loss(images, supervision.audio(estimate.audio[picked])))
        return torch.stack(losses).mean() * (len(picked) / len(estimate.has_audio))


def mouth_mse(estimate: Estimate) -> Tensor:
    """Unweighted squared error of the latent cells of the mouth, without gradients: logged, not minimized."""
    error = F.mse_loss(estimate.prediction.detach().float(), estimate.target.float(), reduction="none")
    return error[..., *mouth_slices(error.shape[-1])].mean()


def mouth_weights(mask: Tensor) -> Tensor:
    """(1, 1, 1, h, h) latent mask (1 = keep) -> weights of the reconstruction loss, mean 1, same shape."""
    weights = torch.where(mask > 0.5, KEPT_WEIGHT, 1.0)
    weights[..., *mouth_slices(mask.shape[-1])] = MOUTH_WEIGHT
    return weights / weights.mean()


def region_box(region: str, size: int) -> Box:
    """The smallest box of whole cells (of `size` per side) that contains a region."""
    top, bottom, left, right = (size * fraction for fraction in REGIONS[region])
    return math.floor(top), math.ceil(bottom), math.floor(left), math.ceil(right)


def crop(images: Tensor, box: Box) -> Tensor:
    """The box of images (..., H, W)."""
    top, bottom, left, right = box
    return images[..., top:bottom, left:right]
