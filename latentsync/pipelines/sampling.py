"""How one run denoises: the settings of the sampler, checked, and the solvers there are."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from latentsync.utils.errors import UserError

Callback = Callable[[int, int, Tensor], None]
DDIM, DPM_PLUS_PLUS = "ddim", "dpm++"
SOLVERS = (DDIM, DPM_PLUS_PLUS)
# What the other solvers take over from the schedule a UNet was trained with.
SHARED_CONFIG = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "prediction_type",
    "timestep_spacing",
    "steps_offset",
)


@dataclass(frozen=True)
class Sampling:
    """How one run denoises; see `LipsyncPipeline.__call__`.

    Raises:
        UserError: a value out of its range, or settings that exclude each other.
    """

    num_inference_steps: int
    guidance_scale: float
    eta: float = 0.0
    generator: torch.Generator | None = None
    callback: Callback | None = None
    callback_steps: int = 1
    solver: str = DDIM

    def __post_init__(self) -> None:
        if self.num_inference_steps < 1:
            raise UserError(f"inference steps must be 1 or more, not {self.num_inference_steps}")
        if not math.isfinite(self.guidance_scale) or self.guidance_scale < 0:
            raise UserError(f"guidance scale must be a number from 1 (off) to about 3, not {self.guidance_scale}")
        if not 0 <= self.eta <= 1:
            raise UserError(f"eta must lie between 0 and 1, not {self.eta}")
        if self.callback_steps < 1:
            raise UserError(f"callback_steps must be 1 or more, not {self.callback_steps}")
        if self.solver not in SOLVERS:
            raise UserError(f"solver must be one of {', '.join(SOLVERS)}, not {self.solver!r}")
        if self.eta > 0 and self.solver != DDIM:
            raise UserError(f"eta is DDIM's share of noise; leave it at 0 with {self.solver}, or use ddim")

    def on_step(self, step: int, timestep: int, latents: Tensor) -> None:
        if self.callback is not None and step % self.callback_steps == 0:
            self.callback(step, timestep, latents)

    def scheduler(self, trained: DDIMScheduler) -> SchedulerMixin:
        """The solver on the noise schedule that the UNet was trained with.

        `dpm++` is DPM-Solver++(2M) (Lu et al. 2022): second order, deterministic, the same end point in fewer steps.

        Raises:
            UserError: more steps than the schedule has.
        """
        if self.num_inference_steps > (longest := trained.config.num_train_timesteps):
            raise UserError(
                f"inference steps must be at most {longest}, the scheduler's, not {self.num_inference_steps}"
            )
        if self.solver == DDIM:
            return trained
        shared = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type")
        spacing = ("timestep_spacing", "steps_offset")
        config = {key: trained.config[key] for key in shared + spacing}
        return DPMSolverMultistepScheduler(
            **config, algorithm_type="dpmsolver++", solver_order=2, lower_order_final=True
        )
