"""One training step of the UNet: stage 1 on latents alone, stage 2 also on decoded frames and on the audio.

Legend: B samples, K of them counted by losses on the one-step estimate, F frames, C latent channels, R pixels,
h latent cells, S audio tokens, D width.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from einops import rearrange
from torch import Tensor, nn

from latentsync.checkpoints.loading import save_checkpoint
from latentsync.config.unet import UNetFileConfig
from latentsync.data.clip_dataset import ClipDataset
from latentsync.data.sampler import sample_generators
from latentsync.data.unet_dataset import whisper_tokens
from latentsync.faces.mask import load_mask, resize_mask_to_latents
from latentsync.models.lora import save_lora
from latentsync.models.unet import UNet3DConditionModel
from latentsync.models.vae import LatentCodec
from latentsync.pipelines.denoise import decode_frames, encode_frames, unet_input
from latentsync.pipelines.lipsync_pipeline import LipsyncPipeline
from latentsync.training.losses import Estimate, LossNetworks, build_losses, crop, region_box
from latentsync.training.recipe import last_timestep_sampler, recipe_of
from latentsync.training.task import Share, ValidateExport
from latentsync.training.unet_setup import FrozenComponents, build_unet
from latentsync.training.unet_validation import UNetValidation, ValidationVideo
from latentsync.utils.errors import UserError
from latentsync.utils.light_diffusers import DDIMScheduler

DECODE_MARGIN = 2  # latent cells decoded around a region, so that its edge sees its neighbors


@dataclass(frozen=True)
class Noising:
    """The random numbers of a step: noise (B, C, F, h, h), timesteps (B,) and has_audio (B,) bool, on the CPU."""

    noise: Tensor
    timesteps: Tensor
    has_audio: Tensor


class UNetTask:
    """`latentsync.training.task.Task` of the UNet.

    Args:
        config: a whole UNet config.
        components: autoencoder, audio encoder and scheduler.
        networks: frozen networks of the losses, see `load_loss_networks`.
        make_dataset: builds the dataset when it is first needed, see `build_dataset`.
        validations: the validation videos.
        validate_export: see `Task`.

    Raises:
        UserError: components and config do not fit each other, or the checkpoint to start from does not.
    """

    name = "unet"

    def __init__(
        self,
        config: UNetFileConfig,
        components: FrozenComponents,
        networks: LossNetworks,
        make_dataset: Callable[[], ClipDataset],
        validations: Sequence[ValidationVideo] = (),
        validate_export: ValidateExport | None = None,
    ):
        self.config, self.run = config, config.run
        self.codec, self.audio, self.scheduler = components.codec, components.audio, components.scheduler
        recipe = recipe_of(config)
        self.model = build_unet(config)
        # Checks that the components fit together.
        LipsyncPipeline(self.codec, self.audio, self.model, self.scheduler, config.data.resolution)
        self.codec.vae.train(False)
        if self.run.enable_gradient_checkpointing and self.run.pixel_space_supervise:
            self.codec.enable_gradient_checkpointing()
        pixel_mask = load_mask(config.data.resolution, config.data.mask_image_path or None)
        side = config.data.resolution // self.codec.factor
        self.mask = resize_mask_to_latents(pixel_mask, (side, side)).unsqueeze(2)
        extra = recipe.extra_losses(config, networks, self.mask)
        self.losses = build_losses(self.run, networks, recipe.recon_weights(self.mask), extra)
        self.sync_audio = networks.sync_audio
        self.discriminators: dict[str, Any] = {
            name: loss.discriminator for name, loss in extra.discriminator_losses.items()
        }
        self.needs_estimate = (
            self.run.pixel_space_supervise
            or bool(networks.sync)
            or any(not term.whole_batch for term in self.losses.terms.values())
        )
        if self.needs_estimate:
            check_one_step(self.scheduler)
        if self.run.one_step:
            self._draw_timesteps = last_timestep_sampler(self.scheduler)
        else:
            own = recipe.timestep_sampler(self.scheduler, self.run.inference_steps)
            self._draw_timesteps = own or partial(uniform_timesteps, self.scheduler.config.num_train_timesteps)
        self._make_dataset = make_dataset
        self._dataset: ClipDataset | None = None
        self._validation = UNetValidation(config, components, validations)
        self.validate_export = validate_export
        self._device, self._dtype = torch.device("cpu"), torch.float32

    def dataset(self) -> ClipDataset:
        if self._dataset is None:
            self._dataset = self._make_dataset()
        return self._dataset

    def sample_weights(self) -> Tensor | None:
        return self.dataset().person_weights() if self.config.data.balance_people else None

    def place(self, device: torch.device, dtype: torch.dtype) -> None:
        """Frozen networks to `device`. They compute in `dtype` by autocast; the large ones keep weights of bfloat16 if
        it is that: the autoencoder, VideoMAE and the convolutions of VGG16."""
        self._device, self._dtype = device, dtype
        if dtype == torch.bfloat16:
            self.codec.to(dtype)
            self.losses.shrink(dtype)
        self.codec.to(device)
        self.audio.to(device)
        self.losses.to(device)
        self.mask = self.mask.to(device)

    def step(self, model: nn.Module, batch: dict[str, Any], step: int) -> dict[str, Tensor]:
        """Losses of a batch of `UNetDataset` (pixels) or `LatentClipDataset` (latents), see there for the keys."""
        batch = self._with_tokens(batch)
        latents, masked, reference = self._latents(batch)
        drawn = self._draw(latents.shape, batch["key"])
        noise, timesteps = drawn.noise.to(latents), drawn.timesteps.to(latents.device)
        noisy = self.scheduler.add_noise(latents, noise, timesteps)
        tokens = batch["audio"] * drawn.has_audio.to(batch["audio"]).view(-1, 1, 1, 1)
        prediction = predict(model, unet_input(noisy, self.mask, masked, reference), timesteps, tokens)
        target = training_target(self.scheduler, latents, noise, timesteps)
        with self._autocast():
            return self.losses(self._estimate(prediction, target, noisy, latents, drawn, batch))

    def _with_tokens(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch with `audio`, also where the dataset leaves the audio encoder to the training step."""
        if "whisper_mel" not in batch:
            return batch
        tokens = whisper_tokens(self.audio, batch["whisper_mel"], batch["whisper_rows"])
        return {**batch, "audio": tokens.to(batch["start_idx"].device)}

    def _draw(self, shape: torch.Size, keys: Tensor) -> Noising:
        """Each sample from its own generator, so that its process and batch do not matter."""
        generators = sample_generators(self.run.seed, keys)
        alpha = self.run.mixed_noise_alpha if self.run.use_mixed_noise else 0.0
        timesteps = self._draw_timesteps(generators)
        has_audio = draw_audio_mask(self.run.audio_dropout, generators)
        return Noising(sample_noise(shape, alpha, generators), timesteps, has_audio)

    def _latents(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Clean, masked and reference latents (B, C, F, h, h), float32."""
        if "latents" in batch:
            names = ("latents", "masked_latents", "ref_latents")
            clean, masked, reference = (rearrange(batch[name], "b f c h w -> b c f h w").float() for name in names)
            return clean, masked, reference
        names = ("gt_pixel_values", "masked_pixel_values", "ref_pixel_values")
        with self._autocast(), torch.no_grad():
            clean, masked, reference = (encode_frames(self.codec, batch[name]).float() for name in names)
        return clean, masked, reference

    def _estimate(
        self,
        prediction: Tensor,
        target: Tensor,
        noisy: Tensor,
        clean: Tensor,
        drawn: Noising,
        batch: Mapping[str, Tensor],
    ) -> Estimate:
        if not self.needs_estimate:
            return Estimate(prediction, target, prediction[:0])
        # Selected on the CPU, without waiting for the device.
        counted = (drawn.timesteps <= self.run.sync_max_timestep).nonzero().flatten()
        picked = counted.to(prediction.device)
        timesteps = drawn.timesteps.to(prediction.device)[picked]
        latents = one_step_estimate(self.scheduler, prediction[picked], noisy[picked], timesteps)
        frames = real = None
        if self.run.pixel_space_supervise and len(counted):
            shown = self._decoded_frames(latents.shape[2], batch["key"][counted]).to(prediction.device)
            real = take_frames(batch["gt_pixel_values"][picked], shown)
            chosen = take_frames(latents.transpose(1, 2), shown).transpose(1, 2)
            frames = decode_onto(self.codec, chosen, real, self.run.decode_region)
        audio = batch[self.sync_audio][picked] if self.sync_audio is not None else None
        has_audio = drawn.has_audio[counted]
        if "has_speech" in batch:  # a mouth at rest cannot be in sync
            has_audio &= batch["has_speech"][counted].to(has_audio.device) == 1
        return Estimate(prediction, target, latents, frames, real, has_audio, audio, clean[picked])

    def _decoded_frames(self, total: int, keys: Tensor) -> Tensor:
        """(K, F') frames to decode: all, or evenly spaced ones starting at one that each sample's key chooses."""
        count = self.run.decode_frames or total
        stride = total // count
        return keys[:, None] % stride + stride * torch.arange(count)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self._device.type, self._dtype, enabled=self._dtype != torch.float32)

    def validate(self, model: nn.Module, step: int, folder: Path, share: Share) -> dict[str, list[float]]:
        """See `UNetValidation.measure`."""
        return self._validation.measure(cast(UNet3DConditionModel, model), step, folder, share)

    def export(self, state_dict: dict[str, Tensor], step: int, path: Path) -> None:
        """Published format; of a LoRA run the adapter alone, as safetensors with the same stem."""
        if self.run.lora_rank:
            base = self.config.ckpt.resume_ckpt_path
            few_steps = self.run.inference_steps if self.run.few_steps else 0
            save_lora(self.model, path.with_suffix(".safetensors"), base, step, state_dict, few_steps)
            return
        save_checkpoint(path, state_dict, step)

    def advise(self, step: int, means: Mapping[str, float]) -> str | None:
        return None


def predict(model: nn.Module, sample: Tensor, timesteps: Tensor, tokens: Tensor) -> Tensor:
    """The UNet's prediction (B, C, F, h, h), with gradients; see `UNet3DConditionModel.forward`."""
    if sample.device.type == "cpu":
        # torch 2.13 crashes in the backward of a channels-last group norm that is trained itself while its input
        # needs no gradient, as where everything before the first motion module is frozen.
        sample.requires_grad_()
    return model(sample, timesteps, tokens).sample


def uniform_timesteps(total: int, generators: Sequence[torch.Generator]) -> Tensor:
    """(B,) timesteps below `total`, one from each generator."""
    return torch.stack([torch.randint(0, total, (), generator=generator) for generator in generators])


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


def draw_audio_mask(dropout: float, generators: Sequence[torch.Generator]) -> Tensor:
    """(B,) bool: samples that keep their audio. The others train the unconditional branch of guidance."""
    return torch.cat([torch.rand(1, generator=generator) >= dropout for generator in generators])


def training_target(scheduler: DDIMScheduler, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """The target of the UNet's prediction, by the scheduler's prediction type."""
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        return noise
    if kind == "v_prediction":
        return scheduler.get_velocity(latents, noise, timesteps)
    if kind == "sample":
        return latents
    raise _unknown(kind)


def one_step_estimate(scheduler: DDIMScheduler, prediction: Tensor, noisy: Tensor, timesteps: Tensor) -> Tensor:
    """Clean latents x0 as one prediction at timestep t implies them, in float32.

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
            "scheduler: with rescale_betas_zero_snr the noise at the last step says nothing about the clean frame;"
            " set prediction_type to sample or v_prediction, or pixel_space_supervise and use_syncnet to false"
        )


def decode_onto(codec: LatentCodec, latents: Tensor, real: Tensor, region: str) -> Tensor:
    """Latents (K, C, F, h, h) -> frames (K, F, 3, R, R) float32, the region decoded with gradients.

    Outside the region they are the `real` frames (K, F, 3, R, R). The decoder's norms and attention see the region and
    its margin instead of the whole face: the result is close to, not equal to, a decode of the whole.
    """
    if region == "whole":
        return decode_frames(codec, latents).float()
    size = latents.shape[-1]
    top, bottom, left, right = region_box(region, size)
    above, before = max(top - DECODE_MARGIN, 0), max(left - DECODE_MARGIN, 0)
    wide = (above, min(bottom + DECODE_MARGIN, size), before, min(right + DECODE_MARGIN, size))
    decoded = decode_frames(codec, crop(latents, wide)).float()
    factor = codec.factor
    inner = (factor * (top - above), factor * (bottom - above), factor * (left - before), factor * (right - before))
    frames = real.float().clone()
    crop(frames, (factor * top, factor * bottom, factor * left, factor * right)).copy_(crop(decoded, inner))
    return frames


def take_frames(frames: Tensor, shown: Tensor) -> Tensor:
    """(K, F, ...) and indices (K, F') -> (K, F', ...)."""
    return frames[torch.arange(len(frames), device=frames.device)[:, None], shown]


def _unknown(kind: str) -> UserError:
    return UserError(f"scheduler: prediction_type {kind!r} is not one of epsilon, v_prediction, sample")
