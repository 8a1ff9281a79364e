"""Losses beyond the published ones: motion, optical flow, identity.

Frames are (B, F, 3, R, R), RGB in about [-1, 1], aligned faces.

Legend: B samples, K of them counted, F frames, H W and R pixels, N images.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from latentsync.training.losses import Estimate, crop, region_box
from recipes.embedded.first_generation.flow import optical_flow, warp_grid

VISIBILITY_FALLOFF = 50.0  # of the squared error of pixels in [0, 1] (Lai et al. 2018)
CHARBONNIER_EPS = 1e-3


class MotionLoss(nn.Module):
    """Mean squared error of the change from each frame's latents to the next; for `weights` see `ReconstructionLoss`.

    The mean of all plausible mouths is nearly right in every frame and nearly still: this loss penalizes that.
    """

    def __init__(self, weights: Tensor | None = None):
        super().__init__()
        self.register_buffer("weights", weights, persistent=False)

    def forward(self, estimate: Estimate) -> Tensor:
        error = (estimate.latents.float().diff(dim=2) - estimate.real_latents.float().diff(dim=2)) ** 2
        return (error if self.weights is None else error * self.weights).mean()


class FlowConsistencyLoss(nn.Module):
    """The mouth should change from frame to frame as the real one does, along the real motion.

    Optical flow of neighboring real frames, computed on their device, warps frame t to frame t + 1. The residual
    between the warped and the next frame is compared between made and real frames: flicker adds to it, a mouth that
    is still while the real one opens lacks some of it. Comparing with the real residual instead of with zero keeps the
    loss from rewarding smooth, motionless mouths. Pixels that the real flow does not explain (occluded, uncovered,
    outside) are weighted down (Lai et al. 2018, "Learning Blind Video Temporal Consistency").
    """

    def forward(self, made: Tensor, real: Tensor) -> Tensor:
        """Frames (B, F, 3, R, R) twice, F at least 2 -> scalar, 0 for equal clips. No gradient to `real`.

        Raises:
            ValueError: there is only one frame.
        """
        if made.shape[1] < 2:
            raise ValueError("flow consistency compares neighboring frames: give at least 2 of them")
        made, real = made.float(), real.detach().float()
        grid = motion_grid(real)
        real_change = _change(real, grid)
        weight = torch.exp(-VISIBILITY_FALLOFF * (real_change / 2).square().sum(dim=1, keepdim=True))
        weight = weight * (grid.abs() <= 1).all(dim=-1)[:, None]
        difference = charbonnier(_change(made, grid) - real_change).mean(dim=1, keepdim=True)
        box = region_box("mouth", made.shape[-1])
        # by clip, so that the loss of a batch is the mean of the losses of its clips
        counted, error = (crop(part, box).unflatten(0, (len(real), -1)).flatten(1) for part in (weight, difference))
        return ((error * counted).sum(dim=1) / counted.sum(dim=1).clamp_min(1)).mean()


class IdentityLoss(nn.Module):
    """One minus the cosine similarity of face embeddings, mean over frames: the identity should be preserved.

    `embedder` takes faces (N, 3, R, R) in [-1, 1] and gives embeddings (N, D) that gradients pass through:
    `FaceEmbedder` (InsightFace's recognition network), or `TrunkEmbedding` where that file is not available.
    """

    def __init__(self, embedder: nn.Module):
        super().__init__()
        self.embedder = embedder.eval().requires_grad_(False)

    def forward(self, made: Tensor, real: Tensor) -> Tensor:
        """Frames (B, F, 3, R, R) twice -> scalar in [0, 2], 0 for equal faces. No gradient to `real`."""
        with torch.no_grad():
            wanted = self.embedder(real.flatten(0, 1))
        return 1 - F.cosine_similarity(self.embedder(made.flatten(0, 1)).float(), wanted.float()).mean()


class TrunkEmbedding(nn.Module):
    """Appearance of a face by the VGG16 of LPIPS: mean and standard deviation of its features over the image.

    These statistics describe skin, lips and beard but not where they are, so that the mouth may move freely. They are
    no identity in the sense of face recognition: two people of similar complexion are close.
    """

    def __init__(self, lpips: nn.Module):
        """`lpips.features(images)` gives maps (N, C, h, w), as `latentsync.pretrained.perceptual.LPIPS` does."""
        super().__init__()
        self.lpips = lpips

    def forward(self, faces: Tensor) -> Tensor:
        """(N, 3, R, R) in [-1, 1] -> (N, 2944), every stage with the same norm."""
        parts = []
        for map_ in self.lpips.features(faces):
            variance, mean = torch.var_mean(map_.flatten(2), dim=2, correction=0)
            parts.append(F.normalize(torch.cat([mean, (variance + CHARBONNIER_EPS**2).sqrt()], dim=1), dim=1))
        return torch.cat(parts, dim=1)


def charbonnier(x: Tensor) -> Tensor:
    """|x|, smooth at 0."""
    return (x.square() + CHARBONNIER_EPS**2).sqrt() - CHARBONNIER_EPS


def motion_grid(frames: Tensor) -> Tensor:
    """The position in frame t of each pixel of frame t + 1, as `grid_sample` takes it.

    (B, F, 3, R, R) -> (B * (F - 1), R, R, 2).

    In [-1, 1] from edge to edge, x before y; beyond that for pixels from outside.
    """
    gray = (frames.detach().float().mean(dim=2, keepdim=True).clamp(-1, 1) + 1) / 2
    before, after = (part.flatten(0, 1) for part in (gray[:, :-1], gray[:, 1:]))
    return warp_grid(optical_flow(after, before))


def _change(frames: Tensor, grid: Tensor) -> Tensor:
    """Each frame minus the previous one warped along `grid`: (B * (F - 1), 3, R, R)."""
    before, after = (rearrange(part, "b f c h w -> (b f) c h w") for part in (frames[:, :-1], frames[:, 1:]))
    return after - F.grid_sample(before, grid, mode="bilinear", padding_mode="border", align_corners=False)
