"""One step of the distillation: the student's estimate at one of its timesteps, compared with the teacher's result.

Legend: B samples, K steps of the student, F frames, C latent channels, R pixels, h latent cells, S audio tokens,
D width.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from latentsync.config.unet import UNetFileConfig
from latentsync.data.sampler import SampleId, collate, sample_generators
from latentsync.models.unet import UNet3DConditionModel
from latentsync.pipelines.denoise import decode_frames, denoise_latents, unet_input
from latentsync.pipelines.sampling import few_step_schedule
from latentsync.training.losses import Estimate, LossNetworks
from latentsync.training.task import Share
from latentsync.training.unet_setup import FrozenComponents
from latentsync.training.unet_task import (
    UNetTask,
    decode_onto,
    one_step_estimate,
    predict,
    take_frames,
)


class DistillTask(UNetTask):
    """`latentsync.training.task.Task` of a distillation.

    A student of K steps is trained at its K timesteps, on the latents that its own earlier steps lead to, so that a
    later step repairs what an earlier one got wrong (backward simulation, Kohler et al. 2024, "Imagine Flash"). At each
    of them its estimate of the clean latents should be what the teacher, with guidance and many steps, makes of the
    same noise (Luhman and Luhman 2021, "Knowledge Distillation in Iterative Generative Models"; Meng et al. 2023, "On
    Distillation of Guided Diffusion Models"). DDIM without added noise makes that a function of noise and condition, so
    regression does not average over different results.

    Args:
        dataset, held_out: samples to train on and to validate with, see `samples.TeacherSamples`; None before they are
            made, when the task is used to make them.
        config, components, networks: see `UNetTask`.
    """

    def __init__(
        self,
        config: UNetFileConfig,
        components: FrozenComponents,
        networks: LossNetworks,
        dataset: Dataset | None = None,
        held_out: Any = None,
    ) -> None:
        super().__init__(config, components, networks, cast(Callable[[], Any], lambda: dataset))
        self.teacher_schedule = components.scheduler
        self.scheduler = few_step_schedule(components.scheduler)
        self.scheduler.set_timesteps(self.run.inference_steps)
        self._held_out = held_out

    def sample_weights(self) -> Tensor | None:
        return None

    def inputs_of_inference(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
        """Clean and masked latents (B, C, F, h, h) and tokens (B, F, S, D) of clips, as inference has them."""
        clean, masked, _ = self._latents(batch)
        tokens = self._with_tokens(batch)["audio"]
        return clean, clean if self.config.model.whole_condition else masked, tokens

    def step(self, model: nn.Module, batch: dict[str, Any], step: int) -> dict[str, Tensor]:
        """Losses of a batch of `samples.TeacherSamples`."""
        target, masked, reference = self._latents(batch)
        generators = sample_generators(self.run.seed, batch["key"])
        steps = self.run.inference_steps
        stages = torch.cat([torch.randint(0, steps, (1,), generator=generator) for generator in generators])
        noisy = self._student_latents(model, batch, stages)
        timesteps = self.scheduler.timesteps[stages].to(noisy.device)
        prediction = predict(model, unet_input(noisy, self.mask, masked, reference), timesteps, batch["audio"])
        with self._autocast():
            estimate = one_step_estimate(self.scheduler, prediction, noisy, timesteps)
            return self.losses(self._compared(estimate, target, batch))

    @torch.no_grad()
    def _student_latents(self, model: nn.Module, batch: Mapping[str, Tensor], stages: Tensor) -> Tensor:
        """(B, C, F, h, h): each sample after as many steps of the student as its entry of `stages` (B,) on the CPU."""
        target, masked, reference = self._latents(batch)
        latents = batch["noise"].to(target).expand_as(target) * self.scheduler.init_noise_sigma
        reached = latents.clone()
        # set_timesteps again: validation uses the same scheduler.
        self.scheduler.set_timesteps(self.run.inference_steps)
        for index in range(int(stages.max())):
            timestep = self.scheduler.timesteps[index]
            sample = unet_input(latents, self.mask, masked, reference)
            batched = timestep.expand(len(latents)).to(latents.device)
            prediction = model(sample, batched, batch["audio"]).sample.float()
            latents = self.scheduler.step(prediction, timestep, latents).prev_sample
            arrived = (stages == index + 1).to(latents.device).view(-1, 1, 1, 1, 1)
            reached = torch.where(arrived, latents, reached)
        return reached

    def _compared(self, estimate: Tensor, target: Tensor, batch: Mapping[str, Tensor]) -> Estimate:
        """Input of the losses; the teacher's result takes the place of the real frames."""
        frames = real = None
        if self.run.pixel_space_supervise:
            shown = self._decoded_frames(target.shape[2], batch["key"]).to(target.device)
            made, wanted = (take_frames(part.transpose(1, 2), shown).transpose(1, 2) for part in (estimate, target))
            region = self.run.decode_region
            with torch.no_grad():
                real = decode_frames(self.codec, wanted).float()
                real = real if region == "whole" else decode_onto(self.codec, wanted, real, region)
            frames = decode_onto(self.codec, made, real, region)
        audio = batch[self.sync_audio] if self.sync_audio is not None else None
        has_audio = batch["has_speech"].cpu() == 1
        return Estimate(estimate, target, estimate, frames, real, has_audio, audio, target)

    def validate(self, model: nn.Module, step: int, folder: Path, share: Share) -> dict[str, list[float]]:
        """`teacher_distance` of the held-out samples, and the metrics of `UNetTask`."""
        count = 0 if self._held_out is None else len(self._held_out)
        distances = [self.teacher_distance(model, index) for index in share.of(list(range(count)))]
        own = {"teacher_distance": distances} if distances else {}
        return {**own, **super().validate(model, step, folder, share)}

    @torch.no_grad()
    def teacher_distance(self, model: nn.Module, index: int) -> float:
        """Root of the mean squared difference between the results of student and teacher inside the mask, in units of
        what the teacher changes there; of one of the held-out samples."""
        assert self._held_out is not None
        batch = self._on_device(collate([self._held_out[SampleId(index, index)]]))
        target, masked, reference = self._latents(batch)
        with self._autocast():
            found = denoise_latents(
                cast(UNet3DConditionModel, model),
                self.scheduler,
                batch["noise"],
                self.mask,
                masked,
                reference,
                batch["audio"],
                self.run.inference_steps,
                1.0,
            ).float()
        inside = self.mask < 0.5
        difference, change = (float(((part - target) * inside).square().sum()) for part in (found, reference))
        return (difference / max(change, 1e-12)) ** 0.5

    def _on_device(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        return {name: value.to(self._device) if isinstance(value, Tensor) else value for name, value in batch.items()}
