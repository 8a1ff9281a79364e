"""Losses beyond the published recipe, all off by default: adversarial, optical flow, multi-scale sync, identity.

Each is a module whose call gives a scalar. Frames are (B, F, 3, R, R), RGB in about [-1, 1], aligned faces.

Legend: B clips, F frames, C channels, H W and R pixels, N images, T audio columns.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fractions import Fraction

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from latentsync.models.patchgan import PatchDiscriminator
from latentsync.models.syncnet_input import ROWS_PER_FRAME
from latentsync.training.decode_region import crop, region_box
from latentsync.training.sync_loss import cosine_loss

MEL_COLUMNS_PER_FRAME = Fraction(80, 25)
WHISPER_COLUMNS_PER_FRAME = Fraction(ROWS_PER_FRAME)
VISIBILITY_FALLOFF = 50.0  # of the squared error of pixels in [0, 1] (Lai et al. 2018)
CHARBONNIER_EPS = 1e-3


class AdversarialLoss(nn.Module):
    """What the generator pays: the mouth shall pass for real before a PatchGAN (hinge loss, Lim and Ye 2017).

    `AdversarialLoss(discriminator)(made)` = -mean of the logits. The discriminator gets no gradient here; it learns by
    `DiscriminatorLoss`, in a step and with an optimizer of its own.
    """

    def __init__(self, discriminator: PatchDiscriminator):
        super().__init__()
        self.discriminator = discriminator

    def forward(self, made: Tensor, real: Tensor | None = None) -> Tensor:
        """Frames (B, F, 3, R, R) -> scalar. `real` is not looked at: all losses on frames are called alike."""
        with frozen(self.discriminator):
            return -self.discriminator(mouths(made)).float().mean()


class DiscriminatorLoss(nn.Module):
    """What the discriminator pays: mean of relu(1 - logits) of real mouths and of relu(1 + logits) of made ones.

    A trainer on several devices wraps this module (not the discriminator), so that its one call sees both.
    """

    def __init__(self, discriminator: PatchDiscriminator):
        super().__init__()
        self.discriminator = discriminator

    def forward(self, made: Tensor, real: Tensor) -> Tensor:
        """Frames (B, F, 3, R, R) twice -> scalar, 2 where it knows nothing, 0 where it is sure. No gradient to them."""
        images = torch.cat([mouths(real), mouths(made.detach())]).detach()
        real_logits, made_logits = self.discriminator(images).float().chunk(2)
        return F.relu(1 - real_logits).mean() + F.relu(1 + made_logits).mean()


class FlowConsistencyLoss(nn.Module):
    """The mouth shall change from frame to frame as the real one does, along the real motion.

    Optical flow of neighbouring real frames (DIS, Kroeger et al. 2016) carries frame t to frame t + 1. What is left
    between the carried and the next frame is compared between made and real frames: flicker adds to it, a mouth that
    stands still while the real one opens misses some of it. Comparing with the real remainder instead of with zero
    keeps the loss from rewarding smooth, motionless mouths. Pixels that the real flow does not explain (occluded,
    uncovered, outside) are left out by degrees (Lai et al. 2018, "Learning Blind Video Temporal Consistency").
    """

    def forward(self, made: Tensor, real: Tensor) -> Tensor:
        """Frames (B, F, 3, R, R) twice, F at least 2 -> scalar, 0 for equal clips. No gradient to `real`.

        Raises:
            ValueError: a single frame has no neighbour.
        """
        if made.shape[1] < 2:
            raise ValueError("flow consistency compares neighbouring frames: give at least 2 of them")
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


class MultiScaleSyncLoss(nn.Module):
    """Sync loss over several window lengths and picture scales.

    Every SyncNet of `nets` judges all half-overlapping windows of its own length in the run: short windows pin the
    moment, long ones the rhythm. At scale s the pictures are shown without detail finer than s pixels: what is
    rewarded there is the opening and shape of the mouth, and not a texture that a frozen network happens to like.
    """

    def __init__(
        self,
        nets: Mapping[int, nn.Module],
        columns_per_frame: Fraction = MEL_COLUMNS_PER_FRAME,
        channels: int = 3,
        scales: Sequence[int] = (1, 2, 4),
    ):
        """
        Args:
            nets: window length in frames -> trained SyncNet of that length; all hear the same kind of sound.
            columns_per_frame: audio columns a frame: `MEL_COLUMNS_PER_FRAME` or `WHISPER_COLUMNS_PER_FRAME`.
            channels: of one frame: 3, or those of the latents.
            scales: 1 shows the pictures as they are.
        """
        super().__init__()
        if not nets or not scales or min(scales) < 1:
            raise ValueError("multi-scale sync needs at least one SyncNet and scales of at least 1")
        self.nets = nn.ModuleDict({str(length): net.eval().requires_grad_(False) for length, net in nets.items()})
        self.columns_per_frame, self.channels, self.scales = columns_per_frame, channels, tuple(scales)

    def forward(self, pictures: Tensor, sound: Tensor) -> Tensor:
        """Mean over nets, windows and scales of the cross-entropy against "in sync": a scalar.

        Args:
            pictures: frames side by side (B, F * C, H, W), as a SyncNet's visual encoder takes them.
            sound: (B, ..., T), as its audio encoder takes the sound of the whole run.

        Raises:
            ValueError: the run is shorter than the shortest window.
        """
        views = [coarser(pictures, scale) for scale in self.scales]
        frames = pictures.shape[1] // self.channels
        losses = []
        for length, net in ((int(name), net) for name, net in self.nets.items()):
            for start in windows(frames, length):
                heard = self._hear(sound, start, length)
                seen = slice(start * self.channels, (start + length) * self.channels)
                for view in views:
                    vision, audio = net(view[:, seen], heard)
                    losses.append(cosine_loss(vision, audio, torch.ones(len(vision), device=vision.device)))
        if not losses:
            raise ValueError(
                f"runs of {frames} frames are shorter than every SyncNet's window ({', '.join(self.nets)})"
            )
        return torch.stack(losses).mean()

    def _hear(self, sound: Tensor, start: int, length: int) -> Tensor:
        """The columns of the frames from `start`; the width is that of the window wherever it starts."""
        width = min(math.ceil(length * self.columns_per_frame), sound.shape[-1])
        first = min(int(start * self.columns_per_frame), sound.shape[-1] - width)
        return sound[..., first : first + width]


class IdentityLoss(nn.Module):
    """One minus the cosine similarity of face embeddings, mean over frames: the person shall stay the same.

    `embedder` takes faces (N, 3, R, R) in [-1, 1] and gives embeddings (N, D) that gradients pass through:
    `FaceEmbedder` (InsightFace's recognition network), or `TrunkEmbedding` where that file is not at hand.
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
    """Appearance of a face by the VGG16 of LPIPS: the mean and the spread of its features over the picture.

    These statistics tell skin, lips and beard apart and not where they are, so that the mouth may move freely. They
    are no identity in the sense of face recognition: two people of like complexion are close.
    """

    def __init__(self, lpips: nn.Module):
        """`lpips.features(images)` gives maps (N, C, h, w), as `latentsync.models.perceptual.LPIPS` does."""
        super().__init__()
        self.lpips = lpips

    def forward(self, faces: Tensor) -> Tensor:
        """(N, 3, R, R) in [-1, 1] -> (N, 2944), every stage with the same norm."""
        parts = []
        for map_ in self.lpips.features(faces):
            variance, mean = torch.var_mean(map_.flatten(2), dim=2, correction=0)
            parts.append(F.normalize(torch.cat([mean, (variance + CHARBONNIER_EPS**2).sqrt()], dim=1), dim=1))
        return torch.cat(parts, dim=1)


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Calls inside leave no gradient in the module's parameters; what needed gradients before needs them after."""
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


def windows(frames: int, length: int) -> list[int]:
    """First frames of half-overlapping windows that cover a run, the last flush with its end; [] if it is shorter."""
    if frames < length:
        return []
    return sorted({*range(0, frames - length, max(length // 2, 1)), frames - length})


def coarser(pictures: Tensor, scale: int) -> Tensor:
    """(B, C, H, W) without detail finer than `scale` pixels, same size."""
    if scale == 1:
        return pictures
    height, width = pictures.shape[-2:]
    small = F.interpolate(pictures, size=(max(height // scale, 1), max(width // scale, 1)), mode="area")
    return F.interpolate(small, size=(height, width), mode="bilinear")


def charbonnier(x: Tensor) -> Tensor:
    """|x|, smooth at 0."""
    return (x.square() + CHARBONNIER_EPS**2).sqrt() - CHARBONNIER_EPS


def motion_grid(frames: Tensor) -> Tensor:
    """Where each pixel of frame t + 1 was in frame t: (B, F, 3, R, R) -> (B * (F - 1), R, R, 2), for `grid_sample`.

    In [-1, 1] from edge to edge, x before y; beyond it for what came from outside.
    """
    grey = ((frames.detach().float().mean(dim=2).clamp(-1, 1) + 1) * 127.5).round().byte().cpu().numpy()
    estimator = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    flows = [
        estimator.calc(after, before, None) for clip in grey for before, after in zip(clip[:-1], clip[1:], strict=True)
    ]
    height, width = frames.shape[-2:]
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    came_from = np.stack(flows) + np.stack([columns, rows], axis=-1)
    grid = (2 * came_from + 1) / np.array([width, height], dtype=np.float32) - 1
    return torch.from_numpy(grid).to(frames.device)


def _change(frames: Tensor, grid: Tensor) -> Tensor:
    """Each frame less the one before it carried along `grid`: (B * (F - 1), 3, R, R)."""
    before, after = (rearrange(part, "b f c h w -> (b f) c h w") for part in (frames[:, :-1], frames[:, 1:]))
    return after - F.grid_sample(before, grid, mode="bilinear", padding_mode="border", align_corners=False)
