"""TREPA (temporal representation alignment): a loss on clip features of a self-supervised video model.

Legend: B clips, F frames, H W pixels, D feature width.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from latentsync.checkpoints import registry
from latentsync.pretrained.videomae import VideoMAE, VideoMAEConfig
from latentsync.utils.errors import UserError
from latentsync.utils.paths import CHECKPOINTS_DIR

VIT_G = VideoMAEConfig()
TINY = VideoMAEConfig(img_size=56, embed_dim=48, depth=2, num_heads=4)
NUM_FRAMES = VIT_G.num_frames
CHECKPOINT = CHECKPOINTS_DIR / registry.VIDEOMAE.path
WITHOUT_TREPA = "set run.trepa_loss_weight to 0 to train without this loss"


class TREPALoss(nn.Module):
    """Mean squared error between L2-normalized VideoMAEv2 features of two clips (Li et al. 2024, "LatentSync", 3.4).

    `loss(videos_fake, videos_real)` is a scalar; only the fake clips receive gradients. The network is frozen.
    """

    def __init__(
        self,
        device: str | torch.device = "cuda",
        ckpt_path: str | Path | None = CHECKPOINT,
        with_cp: bool = True,
        config: VideoMAEConfig = VIT_G,
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
    ):
        """
        Args:
            device: device of the network and the loss.
            ckpt_path: VideoMAEv2 checkpoint; None for random weights.
            with_cp: use gradient checkpointing: far less memory, a third more time.
            config: architecture of the checkpoint.
            dtype: data type of the weights (4 GB in float32).
            seed: of random weights.

        Raises:
            UserError: missing, damaged or incompatible checkpoint.
        """
        super().__init__()
        if ckpt_path is None:
            with torch.random.fork_rng([]):
                torch.manual_seed(seed)
                network = VideoMAE(config, with_cp).eval().requires_grad_(False)
        else:
            registry.require_file(ckpt_path, "videomae", WITHOUT_TREPA)
            network = VideoMAE.from_pretrained(ckpt_path, config, with_cp)
        self.model = network.to(device, dtype)

    def forward(self, videos_fake: Tensor, videos_real: Tensor) -> Tensor:
        """Compute the loss of clips (B, 3, F, H, W), RGB in [-1, 1], F = 16: a scalar in [0, 4 / D].

        Raises:
            UserError: the number of frames is not that of the network.
        """
        with torch.no_grad():
            real = self.features(videos_real)
        return F.mse_loss(self.features(videos_fake), real)

    def features(self, videos: Tensor) -> Tensor:
        """Encode clips (B, 3, F, H, W) in [-1, 1] to unit vectors (B, D), float32."""
        frames, expected = videos.shape[2], self.model.config.num_frames
        if frames != expected:
            raise UserError(
                f"the TREPA loss requires clips of {expected} frames, not {frames}; "
                f"set data.num_frames to {expected}, or {WITHOUT_TREPA}"
            )
        weight = self.model.fc_norm.weight
        features = self.model.forward_features(self._prepare(videos.to(weight.device)).to(weight.dtype))
        return F.normalize(features.float(), dim=1)

    def _prepare(self, videos: Tensor) -> Tensor:
        """Resize to the input size and map [-1, 1] to [0, 1], as in the training of the network."""
        batch, side = videos.shape[0], self.model.config.img_size
        frames = rearrange(videos.float(), "b c f h w -> (b f) c h w")
        resized = F.interpolate(frames, size=(side, side), mode="bicubic")
        return rearrange((resized / 2 + 0.5).clamp(0, 1), "(b f) c h w -> b c f h w", b=batch)
