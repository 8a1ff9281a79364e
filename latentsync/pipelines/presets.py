"""Presets: how many evaluations of the UNet a frame costs, as one option."""

from dataclasses import dataclass
from pathlib import Path

from latentsync.checkpoints.registry import few_step_adapter
from latentsync.options import GenerationOptions, Solver
from latentsync.pipelines.sampling import DDIM, DPM_PLUS_PLUS


@dataclass(frozen=True)
class Preset:
    """Values for options that are not given; None stands for the model's own.

    guidance_share: share of the steps that use guidance, in the middle of the schedule; see `denoise.guidance_steps`.
    few_steps: load the model's adapter for a few steps, where it is present; see `registry.few_step_adapter`.
    """

    inference_steps: int | None = None
    guidance_scale: float | None = None
    solver: Solver = DDIM
    guidance_share: float = 1.0
    enable_deepcache: bool = False
    few_steps: bool = False


PRESETS = {
    "best": Preset(),
    "balanced": Preset(10, solver=DPM_PLUS_PLUS, guidance_share=0.5),
    "fast": Preset(8, solver=DPM_PLUS_PLUS, guidance_share=0.5, enable_deepcache=True),
    "realtime": Preset(4, guidance_scale=1.0, solver=DPM_PLUS_PLUS, few_steps=True),
}


def preset_adapter(preset: str, model: str) -> Path | None:
    """The adapter that a preset merges into a model; None for none."""
    return few_step_adapter(model) if PRESETS[preset].few_steps else None


def apply_preset(options: GenerationOptions, steps: int, guidance_scale: float) -> tuple[GenerationOptions, float]:
    """Resolve the options that a preset sets; those that are given take precedence.

    Args:
        steps, guidance_scale: the model's own. A preset does nothing for a model that needs no more steps than it.

    Returns:
        Options with inference_steps, guidance_scale and solver set, and the preset's guidance_share.
    """
    preset = PRESETS[options.preset]
    if preset.inference_steps is not None and steps <= preset.inference_steps:
        preset = Preset()
    own = {"inference_steps": steps, "guidance_scale": guidance_scale}
    values = {name: value for name in own if (value := getattr(preset, name)) is not None}
    given = {name: value for name in (*own, "solver") if (value := getattr(options, name)) is not None}
    switches = {"enable_deepcache": options.enable_deepcache or preset.enable_deepcache}
    resolved = options.model_copy(update={**own, "solver": preset.solver, **values, **given, **switches})
    return resolved, preset.guidance_share
