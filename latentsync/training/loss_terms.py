"""What one training step offers the losses, and the losses of it, one small module each.

Legend: B samples of a batch, K of them that losses on the one-step estimate count, C latent channels, F frames,
h latent cells, R pixels, N images.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from latentsync.training.decode_region import crop, region_box
from latentsync.training.diffusion import mouth_cells


@dataclass(frozen=True)
class Estimate:
    """One step as the losses see it.

    prediction, target (B, C, F, h, h). The rest is of the K samples that count and of nobody when K is 0: latents
    (K, C, F, h, h), the one-step estimate, and real_latents, what it should be; frames and real_frames
    (K, F', 3, R, R) in about [-1, 1], all or some of the F frames, None where nothing is decoded; heard (K,) bool,
    whether the sample was made with sound; sound, what a SyncNet is given of it: mel (K, 1, 80, T) or audio tokens
    (K, F, S, D), None without one.
    """

    prediction: Tensor
    target: Tensor
    latents: Tensor
    frames: Tensor | None = None
    real_frames: Tensor | None = None
    heard: Tensor | None = None
    sound: Tensor | None = None
    real_latents: Tensor | None = None

    @property
    def share(self) -> float:
        """K / B: what a mean over the counted samples counts in a mean over the batch."""
        return len(self.latents) / len(self.prediction)


class ReconstructionLoss(nn.Module):
    """Mean squared error of the prediction. weights: (1, 1, 1, h, h) of mean 1 for its places; None: all alike."""

    def __init__(self, weights: Tensor | None = None):
        super().__init__()
        self.register_buffer("weights", weights, persistent=False)

    def forward(self, estimate: Estimate) -> Tensor:
        error = (estimate.prediction.float() - estimate.target.float()) ** 2
        return (error if self.weights is None else error * self.weights).mean()


class MotionLoss(nn.Module):
    """Mean squared error of the change from each frame's latents to the next one's; `weights` as above.

    A mean of what might be said is nearly right in every frame and nearly still: this is what it gets wrong.
    """

    def __init__(self, weights: Tensor | None = None):
        super().__init__()
        self.register_buffer("weights", weights, persistent=False)

    def forward(self, estimate: Estimate) -> Tensor:
        error = (estimate.latents.float().diff(dim=2) - estimate.real_latents.float().diff(dim=2)) ** 2
        return (error if self.weights is None else error * self.weights).mean()


class PerceptualLoss(nn.Module):
    """LPIPS of the lower half of the face, or of the part of it that was decoded.

    `lpips` takes two stacks of images (N, 3, H, W) in [-1, 1] and gives one distance an image.
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
    """TREPA: distance between what a video network sees in the made and in the real frames, whole faces.

    `trepa` takes two clips (K, 3, F, R, R) in [-1, 1].
    """

    def __init__(self, trepa: Callable[[Tensor, Tensor], Tensor]):
        super().__init__()
        self.trepa = trepa  # registered where it is a module

    def forward(self, estimate: Estimate) -> Tensor:
        made, real = (rearrange(frames, "k f c h w -> k c f h w") for frames in (estimate.frames, estimate.real_frames))
        return self.trepa(made, real).float()


class FramesLoss(nn.Module):
    """A loss (made, real) -> scalar on frames (K, F, 3, R, R) in [-1, 1]."""

    def __init__(self, compare: Callable[[Tensor, Tensor], Tensor]):
        super().__init__()
        self.compare = compare

    def forward(self, estimate: Estimate) -> Tensor:
        return self.compare(estimate.frames, estimate.real_frames).float()


def mouth_mse(estimate: Estimate) -> Tensor:
    """Unweighted squared error of the cells of the lips, without gradients: to watch, not to minimise."""
    error = F.mse_loss(estimate.prediction.detach().float(), estimate.target.float(), reduction="none")
    return error[mouth_cells(error.shape[-1])].mean()
