"""What the UNet is trained to make small: the one place where weights meet losses."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from latentsync.models.patchgan import PatchDiscriminator
from latentsync.training.diffusion import loss_weights
from latentsync.training.extra_losses import AdversarialLoss, DiscriminatorLoss, FlowConsistencyLoss, IdentityLoss
from latentsync.training.loss_networks import LossNetworks
from latentsync.training.loss_terms import (
    Estimate,
    FramesLoss,
    MotionLoss,
    PerceptualLoss,
    ReconstructionLoss,
    TemporalLoss,
    mouth_mse,
)
from latentsync.utils.config import RunConfig

SYNC_SCALES = (1, 2, 4)  # pixels of detail that multi-scale sync leaves

Loss = Callable[[Estimate], Tensor]


@dataclass(frozen=True)
class Term:
    """A loss of the K counted samples (their mean) or, with `whole_batch`, of all; `weight` is what it counts."""

    weight: float
    loss: Loss
    whole_batch: bool = False


class UNetLosses(nn.Module):
    """The terms of a run by name. Their networks are frozen and no part of any checkpoint.

    Calling it gives every term unweighted, as a mean over the whole batch (a sample that a term does not count is a
    zero in it, so that two processes agree with one that has both their samples), and `loss`, their weighted sum.
    With a discriminator there is its own loss as well, `discriminator_loss`, which is no part of the sum.
    """

    def __init__(self, terms: dict[str, Term], discriminator: PatchDiscriminator | None = None):
        super().__init__()
        self.terms = terms
        self.discriminator_loss = DiscriminatorLoss(discriminator) if discriminator is not None else None
        self.networks = nn.ModuleDict(
            {name: term.loss for name, term in terms.items() if isinstance(term.loss, nn.Module)}
        )

    def forward(self, estimate: Estimate) -> dict[str, Tensor]:
        values = {name: self._value(term, estimate) for name, term in self.terms.items()}
        loss = sum(term.weight * values[name] for name, term in self.terms.items())
        if self.discriminator_loss is not None:
            values["discriminator_loss"] = self._discriminate(estimate)
        return {"loss": loss, **values, "mouth_mse": mouth_mse(estimate)}

    def _discriminate(self, estimate: Estimate) -> Tensor:
        """What the discriminator itself is trained on; of nobody it is a zero that has gradients all the same."""
        if not len(estimate.latents):
            return sum(parameter.sum() * 0 for parameter in self.discriminator_loss.parameters())
        return self.discriminator_loss(estimate.frames, estimate.real_frames) * estimate.share

    @staticmethod
    def _value(term: Term, estimate: Estimate) -> Tensor:
        if term.whole_batch:
            return term.loss(estimate)
        if not len(estimate.latents):
            return estimate.prediction.new_zeros((), dtype=torch.float32)
        return term.loss(estimate) * estimate.share


def build_losses(run: RunConfig, networks: LossNetworks, mask: Tensor) -> UNetLosses:
    """The terms that a run asks for; `mask` (1, 1, 1, h, h) on the latent cells, 1 = keep."""
    stress = loss_weights(mask) if run.weigh_mouth else None
    terms = {"recon": Term(run.recon_loss_weight, ReconstructionLoss(stress), whole_batch=True)}
    if run.motion_loss_weight:
        terms["motion"] = Term(run.motion_loss_weight, MotionLoss(stress))
    if networks.lpips is not None:
        terms["perceptual"] = Term(run.perceptual_loss_weight, PerceptualLoss(networks.lpips, run.decode_region))
    if networks.trepa is not None:
        terms["trepa"] = Term(run.trepa_loss_weight, TemporalLoss(networks.trepa))
    if networks.sync is not None and run.sync_loss_weight:
        terms["sync"] = Term(run.sync_loss_weight, networks.sync.at_scales((1,)))
    if networks.sync is not None and run.multi_scale_sync_loss_weight:
        terms["multi_scale_sync"] = Term(run.multi_scale_sync_loss_weight, networks.sync.at_scales(SYNC_SCALES))
    if networks.discriminator is not None:
        terms["adversarial"] = Term(run.adversarial_loss_weight, FramesLoss(AdversarialLoss(networks.discriminator)))
    if run.flow_loss_weight:
        terms["flow"] = Term(run.flow_loss_weight, FramesLoss(FlowConsistencyLoss()))
    if networks.embedder is not None:
        terms["identity"] = Term(run.identity_loss_weight, FramesLoss(IdentityLoss(networks.embedder)))
    return UNetLosses(terms, networks.discriminator)
