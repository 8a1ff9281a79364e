"""Sampling settings of a run, and the available solvers."""

from collections.abc import Callable
from dataclasses import dataclass
from inspect import signature
from typing import Any, Final

import torch
from torch import Tensor

from latentsync.utils.errors import UserError
from latentsync.utils.light_diffusers import DDIMScheduler, DPMSolverMultistepScheduler, SchedulerMixin

Callback = Callable[[int, int, Tensor], None]
StepEndCallback = Callable[[int, int, dict[str, Any]], dict[str, Any] | None]
PipelineCallback = Callable[[Any, int, int, dict[str, Any]], dict[str, Any] | None]
DDIM: Final = "ddim"
DPM_PLUS_PLUS: Final = "dpm++"


def few_step_schedule(trained: DDIMScheduler) -> DDIMScheduler:
    """The schedule of a distilled model: evenly spaced timesteps, the first of pure noise (Lin et al. 2024, "Common
    Diffusion Noise Schedules and Sample Steps Are Flawed"); the last step returns its estimate of the clean latents."""
    schedule = {"timestep_spacing": "trailing", "steps_offset": 0, "set_alpha_to_one": True}
    return DDIMScheduler.from_config(trained.config, **schedule)


@dataclass(frozen=True)
class Sampling:
    """Sampling settings of a run; see `LipsyncPipeline.__call__`. `callback_on_step_end` has its pipeline bound.

    Raises:
        UserError: value out of range, or conflicting settings.
    """

    num_inference_steps: int
    guidance_scale: float
    eta: float = 0.0
    generator: torch.Generator | None = None
    callback: Callback | None = None
    callback_steps: int = 1
    solver: str = DDIM
    callback_on_step_end: StepEndCallback | None = None
    guidance_share: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise UserError(f"eta must be between 0 and 1, not {self.eta}")
        if self.callback_steps < 1:
            raise UserError(f"callback_steps must be 1 or more, not {self.callback_steps}")
        if self.eta > 0 and self.solver != DDIM:
            raise UserError(f"eta requires the ddim solver; set it to 0 with {self.solver}, or use ddim")

    def on_step(self, step: int, timestep: int, latents: Tensor) -> Tensor:
        """Run the callbacks after a step; returns the latents to continue with."""
        if self.callback is not None and step % self.callback_steps == 0:
            self.callback(step, timestep, latents)
        if self.callback_on_step_end is not None:
            changed = self.callback_on_step_end(step, timestep, {"latents": latents}) or {}
            latents = changed.get("latents", latents)
        return latents

    def scheduler(self, trained: DDIMScheduler) -> SchedulerMixin:
        """Return the solver, with the noise schedule that the UNet was trained with.

        `dpm++` is DPM-Solver++(2M) (Lu et al. 2022): second order, deterministic, fewer steps for the same quality.

        Raises:
            UserError: more inference steps than training timesteps.
        """
        if self.num_inference_steps > (longest := trained.config.num_train_timesteps):
            raise UserError(
                f"inference_steps must not exceed the {longest} training timesteps, got {self.num_inference_steps}"
            )
        if self.solver == DDIM:
            return trained
        # Copy the whole config: betas, zero terminal SNR, prediction type, timestep spacing and offset.
        known = signature(DPMSolverMultistepScheduler.__init__).parameters
        config = {name: value for name, value in trained.config.items() if name in known}
        return DPMSolverMultistepScheduler(
            **config, algorithm_type="dpmsolver++", solver_order=2, lower_order_final=True
        )
