"""The arithmetic of a diffusion training step: noise, timesteps, targets, weights, the one-step estimate.

Pure functions of tensors. Legend: B samples, C latent channels, F frames, h latent cells.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from latentsync.faces.mask import mouth_slices
from latentsync.utils.errors import UserError
from latentsync.utils.light_diffusers import DDIMScheduler

KEPT_WEIGHT = 0.05  # loss weight of cells the pipeline takes from the original frame anyway
MOUTH_WEIGHT = 3.0  # loss weight of the lips, where sound shows
FEW_STEP_SHARE = 0.75  # of the timesteps drawn from those that sampling visits


def mouth_cells(size: int) -> tuple:
    """Index of the lips in a map whose last two sides are `size` cells."""
    return ..., *mouth_slices(size)


def loss_weights(mask: Tensor) -> Tensor:
    """(1, 1, 1, h, h) latent mask (1 = keep) -> weights of the reconstruction loss, mean 1, same shape."""
    weights = torch.where(mask > 0.5, KEPT_WEIGHT, 1.0)
    weights[mouth_cells(mask.shape[-1])] = MOUTH_WEIGHT
    return weights / weights.mean()


def mixed_noise(shape: Sequence[int], alpha: float, generator: torch.Generator) -> Tensor:
    """Noise (B, C, F, h, h) with a part shared by all frames: variance alpha^2 / (1 + alpha^2) of 1.

    Ge et al. 2023, "Preserve Your Own Correlation" (PYoCo), mixed noise model.
    """
    batch, channels, _, height, width = shape
    shared = torch.randn(batch, channels, 1, height, width, generator=generator)
    own = torch.randn(*shape, generator=generator)
    return shared * (alpha**2 / (1 + alpha**2)) ** 0.5 + own * (1 / (1 + alpha**2)) ** 0.5


def sample_noise(shape: Sequence[int], alpha: float, generators: Sequence[torch.Generator]) -> Tensor:
    """`mixed_noise` (B, C, F, h, h), each sample from its own generator: the same in a batch of any size."""
    return torch.cat([mixed_noise((1, *shape[1:]), alpha, generator) for generator in generators])


def visited_timesteps(scheduler: DDIMScheduler, num_inference_steps: int) -> Tensor:
    """(num_inference_steps,) timesteps that sampling visits; the scheduler given is left as it is."""
    own = DDIMScheduler.from_config(scheduler.config)
    own.set_timesteps(num_inference_steps)
    return own.timesteps.cpu()


def draw_timesteps(num_train_timesteps: int, visited: Tensor | None, generators: Sequence[torch.Generator]) -> Tensor:
    """(B,) timesteps, one from each generator: uniform; with `visited` three of four are drawn from those.

    A small model that will be run in a few steps need not spend its training on the noise levels between them.
    """
    return torch.stack([_draw_timestep(num_train_timesteps, visited, generator) for generator in generators])


def _draw_timestep(num_train_timesteps: int, visited: Tensor | None, generator: torch.Generator) -> Tensor:
    uniform = torch.randint(0, num_train_timesteps, (), generator=generator)
    if visited is None:
        return uniform
    chosen = visited[torch.randint(0, len(visited), (), generator=generator)]
    return torch.where(torch.rand((), generator=generator) < FEW_STEP_SHARE, chosen, uniform)


def draw_heard(dropout: float, generators: Sequence[torch.Generator]) -> Tensor:
    """(B,) bool: whose sound is heard. The others are trained on silence, the unconditional branch of guidance."""
    return torch.cat([torch.rand(1, generator=generator) >= dropout for generator in generators])


def training_target(scheduler: DDIMScheduler, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """What the UNet should predict, by the scheduler's prediction type."""
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        return noise
    if kind == "v_prediction":
        return scheduler.get_velocity(latents, noise, timesteps)
    if kind == "sample":
        return latents
    raise _unknown(kind)


def one_step_estimate(scheduler: DDIMScheduler, prediction: Tensor, noisy: Tensor, timesteps: Tensor) -> Tensor:
    """Clean latents x0 as one prediction at noise level t implies them, in float32.

    prediction, noisy (B, C, F, h, h), timesteps (B,). With a = cumulative alpha of t, x0 is
    (x_t - sqrt(1 - a) eps) / sqrt(a) for epsilon, sqrt(a) x_t - sqrt(1 - a) v for v_prediction (Salimans and Ho
    2022), the prediction itself for sample.
    """
    kind = scheduler.config.prediction_type
    if kind == "sample":
        return prediction.float()
    alpha = scheduler.alphas_cumprod.to(noisy.device)[timesteps].float().view(-1, 1, 1, 1, 1)
    signal, noise_level = alpha.sqrt(), (1 - alpha).sqrt()
    if kind == "epsilon":
        return (noisy.float() - noise_level * prediction.float()) / signal
    if kind == "v_prediction":
        return signal * noisy.float() - noise_level * prediction.float()
    raise _unknown(kind)


def check_one_step(scheduler: DDIMScheduler) -> None:
    """Refuse a schedule whose last step is pure noise together with epsilon: its x0 would be divided by zero.

    Raises:
        UserError: the scheduler's config combines the two.
    """
    if scheduler.config.prediction_type == "epsilon" and float(scheduler.alphas_cumprod[-1]) < 1e-6:
        raise UserError(
            "scheduler: with rescale_betas_zero_snr the noise at the last step says nothing about the picture;"
            " set prediction_type to sample or v_prediction, or pixel_space_supervise and use_syncnet to false"
        )


def _unknown(kind: str) -> UserError:
    return UserError(f"scheduler: prediction_type {kind!r} is not one of epsilon, v_prediction, sample")
