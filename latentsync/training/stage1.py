"""Stage 1: teach the UNet to rebuild the mouth region in latent space from the sound. No pixels are decoded.

Legend: B clips, F frames of a run, C latent channels, h latent cells, S audio tokens, D width.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import DDIMScheduler
from diffusers.training_utils import EMAModel
from einops import rearrange
from torch import Tensor, nn

from latentsync.pipelines.denoise import unet_input
from latentsync.utils.errors import UserError

AUDIO_DROPOUT = 0.1  # share of samples trained without sound: the unconditional branch of guidance
KEPT_WEIGHT = 0.05  # loss weight of cells the pipeline takes from the original frame anyway
MOUTH_WEIGHT = 3.0  # loss weight of the lips, where sound shows
FEW_STEP_SHARE = 0.75  # of the timesteps drawn from those that sampling visits
# Where the lips are in an aligned face, as fractions of the crop (top, bottom, left, right).
MOUTH_BOX = (0.56, 0.85, 0.28, 0.72)


def mouth_cells(size: int) -> tuple:
    """Index of the lips in a map whose last two sides are `size` cells."""
    top, bottom, left, right = (round(size * fraction) for fraction in MOUTH_BOX)
    return ..., slice(top, bottom), slice(left, right)


def loss_weights(mask: Tensor) -> Tensor:
    """(1, 1, 1, h, h) latent mask (1 = keep) -> weights of the reconstruction loss, mean 1, same shape."""
    weights = torch.where(mask > 0.5, KEPT_WEIGHT, 1.0)
    weights[mouth_cells(mask.shape[-1])] = MOUTH_WEIGHT
    return weights / weights.mean()


def mixed_noise(shape: torch.Size, alpha: float, generator: torch.Generator) -> Tensor:
    """Noise (B, C, F, h, h) with a part shared by all frames: variance alpha^2 / (1 + alpha^2) of 1.

    Ge et al. 2023, "Preserve Your Own Correlation" (PYoCo), mixed noise model.
    """
    batch, channels, _, height, width = shape
    shared = torch.randn(batch, channels, 1, height, width, generator=generator)
    own = torch.randn(shape, generator=generator)
    return shared * (alpha**2 / (1 + alpha**2)) ** 0.5 + own * (1 / (1 + alpha**2)) ** 0.5


def draw_timesteps(scheduler: DDIMScheduler, size: int, sampled_steps: int, generator: torch.Generator) -> Tensor:
    """(size,) timesteps: uniform; with `sampled_steps` three of four are those that sampling in that many steps visits.

    A small model that will be run in a few steps need not spend its training on the noise levels between them.
    """
    uniform = torch.randint(0, scheduler.config.num_train_timesteps, (size,), generator=generator)
    if not sampled_steps:
        return uniform
    scheduler.set_timesteps(sampled_steps)
    visited = scheduler.timesteps.cpu()[torch.randint(0, sampled_steps, (size,), generator=generator)]
    return torch.where(torch.rand(size, generator=generator) < FEW_STEP_SHARE, visited, uniform)


def training_target(scheduler: DDIMScheduler, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """What the UNet should predict, by the scheduler's prediction type."""
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        return noise
    if kind == "v_prediction":
        return scheduler.get_velocity(latents, noise, timesteps)
    if kind == "sample":
        return latents
    raise UserError(f"scheduler: prediction_type {kind!r} is not one of epsilon, v_prediction, sample")


def stage1_loss(
    unet: nn.Module,
    scheduler: DDIMScheduler,
    batch: dict[str, Tensor],
    mask: Tensor,
    weights: Tensor,
    noise_alpha: float,
    generator: torch.Generator,
    sampled_steps: int = 0,
) -> dict[str, Tensor]:
    """Named losses of one batch: latents, masked_latents, ref_latents (B, F, C, h, h); audio (B, F, S, D).

    `sampled_steps`: see `draw_timesteps`.
    """
    latents, masked, reference = (
        rearrange(batch[name], "b f c h w -> b c f h w") for name in ("latents", "masked_latents", "ref_latents")
    )
    size = len(latents)
    noise = mixed_noise(latents.shape, noise_alpha, generator)
    timesteps = draw_timesteps(scheduler, size, sampled_steps, generator)
    noisy = scheduler.add_noise(latents, noise, timesteps)
    kept = torch.rand(size, 1, 1, 1, generator=generator) >= AUDIO_DROPOUT
    prediction = unet(unet_input(noisy, mask, masked, reference), timesteps, batch["audio"] * kept).sample
    error = (prediction - training_target(scheduler, latents, noise, timesteps)) ** 2
    return {
        "loss": (error * weights).mean(),
        "mouth_mse": error[mouth_cells(mask.shape[-1])].detach().mean(),
    }


@dataclass
class TrainState:
    """All that a resumed run needs to go on as if it had never stopped."""

    unet: nn.Module
    ema: EMAModel
    optimizer: torch.optim.Optimizer
    generator: torch.Generator
    step: int = 0

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        torch.save(
            {
                "unet": self.unet.state_dict(),
                "ema": self.ema.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "generator": self.generator.get_state(),
                "step": self.step,
            },
            temporary,
        )
        temporary.replace(path)

    def restore(self, path: Path) -> None:
        state = torch.load(path, map_location="cpu", weights_only=True)
        self.unet.load_state_dict(state["unet"])
        self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])
        self.step = state["step"]
