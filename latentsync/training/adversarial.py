"""Adversarial supervision: a PatchGAN that separates generated from real mouths, and losses on pairs of frames."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentsync.config.unet import UNetFileConfig
from latentsync.models.patchgan import PatchDiscriminator
from latentsync.training.losses import Estimate, ExtraLosses, Term, crop, region_box


class FramesLoss(nn.Module):
    """A loss (made, real) -> scalar on the frames of an estimate, (K, F, 3, R, R) in [-1, 1]."""

    def __init__(self, compare: Callable[[Tensor, Tensor], Tensor]):
        super().__init__()
        self.compare = compare

    def forward(self, estimate: Estimate) -> Tensor:
        return self.compare(*estimate.decoded).float()


class AdversarialLoss(nn.Module):
    """The generator's loss: a PatchGAN should take the mouth for real (hinge loss, Lim and Ye 2017).

    `AdversarialLoss(discriminator)(made)` = -mean of the logits. The discriminator gets no gradient here; it is
    trained on `DiscriminatorLoss` with an optimizer of its own.
    """

    def __init__(self, discriminator: PatchDiscriminator):
        super().__init__()
        self.discriminator = discriminator

    def forward(self, made: Tensor, real: Tensor | None = None) -> Tensor:
        """Frames (B, F, 3, R, R) -> scalar. `real` is ignored: all losses on frames have the same arguments."""
        with frozen(self.discriminator):
            return -self.discriminator(mouths(made)).float().mean()


class DiscriminatorLoss(nn.Module):
    """The discriminator's loss: mean of relu(1 - logits) of real mouths and of relu(1 + logits) of made ones.

    A trainer on several devices wraps this module (not the discriminator), so that its one call sees both.
    """

    def __init__(self, discriminator: PatchDiscriminator):
        super().__init__()
        self.discriminator = discriminator

    def forward(self, made: Tensor, real: Tensor) -> Tensor:
        """Frames (B, F, 3, R, R) twice -> scalar, 2 when untrained, 0 when perfect. No gradient to the frames."""
        images = torch.cat([mouths(real), mouths(made.detach())]).detach()
        real_logits, made_logits = self.discriminator(images).float().chunk(2)
        return F.relu(1 - real_logits).mean() + F.relu(1 + made_logits).mean()


def add_adversarial(extra: ExtraLosses, discriminator: PatchDiscriminator, weight: float) -> None:
    """Add the term `adversarial` and the discriminator it comes from."""
    extra.terms["adversarial"] = Term(weight, FramesLoss(AdversarialLoss(discriminator)))
    extra.discriminator_losses["discriminator"] = DiscriminatorLoss(discriminator)


def build_discriminator(config: UNetFileConfig) -> PatchDiscriminator:
    """Fresh from the seed, for mouths at the config's resolution."""
    top, bottom, left, right = region_box("mouth", config.data.resolution)
    torch.manual_seed(config.run.seed)
    return PatchDiscriminator.for_images(bottom - top, right - left)


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Calls inside leave no gradient in the module's parameters; requires_grad is restored afterwards."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    module.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


def mouths(frames: Tensor) -> Tensor:
    """Aligned faces (B, F, 3, R, R) -> their mouths (B * F, 3, H, W)."""
    return crop(frames, region_box("mouth", frames.shape[-1])).flatten(0, 1)
