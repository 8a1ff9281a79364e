"""LoRA adapters of a pipeline, as in diffusers: merged into the UNet, and removed again."""

import logging
from pathlib import Path
from typing import Any, Self

from torch import Tensor

from latentsync.models.lora import ALL_LAYERS, find_projections, load_lora
from latentsync.models.unet import UNet3DConditionModel
from latentsync.pipelines.sampling import few_step_schedule
from latentsync.utils.errors import UserError
from latentsync.utils.light_diffusers import DDIMScheduler

logger = logging.getLogger(__name__)


class LoraMixin:
    """Methods of `PipelineBase` that load and unload adapters.

    _original_weights: the UNet's weights by name, and _original_sampling: the pipeline's settings by name, before the
    first adapter.
    """

    unet: UNet3DConditionModel
    scheduler: DDIMScheduler
    _is_quantized: bool
    _original_weights: dict[str, Tensor]
    _original_sampling: dict[str, Any]

    def load_lora_weights(self, path: str | Path, scale: float = 1.0) -> Self:
        """Merge a LoRA adapter into the UNet. Can be called repeatedly to merge several adapters.

        An adapter of a distillation to a few steps (recipes/distill) also makes the pipeline sample in these steps.

        Raises:
            UserError: not an adapter, or an adapter of another architecture.
        """
        if self._is_quantized:
            raise UserError(f"{path}: adapters must be loaded before the model is quantized; load the model again")
        self._check_weights("given an adapter")
        weights = {name: self.unet.get_parameter(f"{name}.weight") for name in find_projections(self.unet, ALL_LAYERS)}
        original = {name: weight.data for name, weight in weights.items()}
        info = load_lora(self.unet, path, scale)
        for name, weight in original.items():  # merging replaces modified tensors
            if self.unet.get_parameter(f"{name}.weight").data_ptr() != weight.data_ptr():
                self._original_weights.setdefault(name, weight.cpu())
        logger.info("LoRA adapter %s (step %d), scale %g", path, info.step, scale)
        if info.few_steps:
            self._sample_in_few_steps(info.few_steps)
        return self

    def _sample_in_few_steps(self, steps: int) -> None:
        changed = {
            "scheduler": few_step_schedule(self.scheduler),
            "num_inference_steps": steps,
            "guidance_scale": 1.0,
            "few_steps": True,
        }
        for name, value in changed.items():
            self._original_sampling.setdefault(name, getattr(self, name))
            setattr(self, name, value)

    def unload_lora_weights(self) -> Self:
        """Restore the weights of the UNet, and its sampling, before the first `load_lora_weights`."""
        self._check_weights("restored")
        for name, weight in self._original_weights.items():
            parameter = self.unet.get_parameter(f"{name}.weight")
            parameter.data = weight.to(parameter.device, parameter.dtype)
        self._original_weights.clear()
        for name, value in self._original_sampling.items():
            setattr(self, name, value)
        self._original_sampling.clear()
        return self

    def _check_weights(self, change: str) -> None:
        """Raises UserError if the weights can no longer be changed."""
        raise NotImplementedError
