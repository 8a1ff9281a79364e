"""The UNet as something to train: stage 1 on latents alone, stage 2 also on decoded frames and on the sound.

Legend: B samples, K of them counted by losses on the one-step estimate, F frames, C latent channels, R pixels,
h latent cells, S audio tokens, D width.
"""

import logging
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.utils.data import Dataset

from latentsync.faces.mask import load_mask, resize_mask_to_latents
from latentsync.models.lora import add_lora, save_lora
from latentsync.models.unet import UNet3DConditionModel
from latentsync.models.vae import LatentCodec
from latentsync.pipelines.denoise import encode_frames, unet_input
from latentsync.pipelines.lipsync_pipeline import LipsyncPipeline
from latentsync.training.decode_region import decode_onto
from latentsync.training.diffusion import (
    check_one_step,
    draw_heard,
    draw_timesteps,
    one_step_estimate,
    sample_noise,
    training_target,
    visited_timesteps,
)
from latentsync.training.loss_networks import LossNetworks
from latentsync.training.loss_terms import Estimate
from latentsync.training.randomness import sample_generators
from latentsync.training.reference_copy import start_from_reference
from latentsync.training.settings import TrainSettings, settings_from
from latentsync.training.unet_losses import build_losses
from latentsync.utils.checkpoints import save_checkpoint
from latentsync.utils.config import UNetFileConfig
from latentsync.utils.errors import UserError
from latentsync.utils.light_diffusers import DDIMScheduler
from latentsync.utils.registry import project_path
from latentsync.whisper.audio2feature import Audio2Feature

logger = logging.getLogger(__name__)
Scorer = Callable[[Path], Mapping[str, float]]


@dataclass(frozen=True)
class FrozenParts:
    """What the UNet works with and is not trained."""

    codec: LatentCodec
    audio: Audio2Feature
    scheduler: DDIMScheduler


@dataclass(frozen=True)
class Noising:
    """What a step draws for its samples: noise (B, C, F, h, h), timesteps (B,) and heard (B,) bool, on the CPU."""

    noise: Tensor
    timesteps: Tensor
    heard: Tensor


def train_settings(config: UNetFileConfig) -> TrainSettings:
    """What the training loop is told of a UNet config."""
    return settings_from(config, max_train_epochs=config.run.max_train_epochs)


def build_unet(config: UNetFileConfig) -> UNet3DConditionModel:
    """The network of a run: fresh from the seed or from `ckpt.resume_ckpt_path`, what is not trained frozen.

    Raises:
        UserError: the checkpoint does not fit (see `UNet3DConditionModel.from_pretrained`), `trainable_modules` names
            no parameter, or the settings contradict each other.
    """
    run, resume = config.run, config.ckpt.resume_ckpt_path
    torch.manual_seed(run.seed)
    unet, _ = UNet3DConditionModel.from_pretrained(config.model, project_path(resume) if resume else "")
    if run.start_from_reference and not resume:
        start_from_reference(unet)
    if run.lora_rank:
        add_lora(unet, run.lora_rank, run.lora_alpha, run.lora_target)
    else:
        choose_trainable(unet, run.trainable_modules)
    unet.enable_gradient_checkpointing(run.enable_gradient_checkpointing)
    return unet.train()


def choose_trainable(unet: nn.Module, modules: tuple[str, ...]) -> None:
    """Freeze every parameter whose name holds none of `modules`; empty trains all.

    Raises:
        UserError: one of them is in no parameter's name.
    """
    names = [name for name, _ in unet.named_parameters()]
    for module in modules:
        if not any(module in name for name in names):
            raise UserError(
                f"run.trainable_modules: no parameter of this UNet has {module!r} in its name; take it off the list, "
                "or check model.use_motion_module"
            )
    for name, parameter in unet.named_parameters():
        parameter.requires_grad_(not modules or any(module in name for module in modules))


class UNetTask:
    """`latentsync.training.task.Task` of the UNet.

    Args:
        config: a whole UNet config.
        parts: autoencoder, audio encoder and scheduler.
        networks: what the losses look through, see `load_loss_networks`.
        make_dataset: builds the clips' dataset when it is asked for, see `build_dataset`.
        scorer: measures of the validation video, by name; None for none.

    Raises:
        UserError: parts and config do not fit each other, or the checkpoint to start from does not.
    """

    name = "unet"

    def __init__(
        self,
        config: UNetFileConfig,
        parts: FrozenParts,
        networks: LossNetworks,
        make_dataset: Callable[[], Dataset],
        scorer: Scorer | None = None,
    ):
        self.config, self.run = config, config.run
        self.codec, self.audio, self.scheduler = parts.codec, parts.audio, parts.scheduler
        self.model = build_unet(config)
        # Refuses parts that do not belong together, and is what validation runs.
        LipsyncPipeline(self.codec, self.audio, self.model, self.scheduler, config.data.resolution)
        self.needs_estimate = (
            self.run.pixel_space_supervise or networks.sync is not None or self.run.motion_loss_weight > 0
        )
        if self.needs_estimate:
            check_one_step(self.scheduler)
        self.codec.vae.train(False)
        if self.run.enable_gradient_checkpointing and self.run.pixel_space_supervise:
            self.codec.enable_gradient_checkpointing()
        pixel_mask = load_mask(config.data.resolution, config.data.mask_image_path or None)
        side = config.data.resolution // self.codec.factor
        self.mask = resize_mask_to_latents(pixel_mask, (side, side)).unsqueeze(2)
        self.losses = build_losses(self.run, networks, self.mask)
        self.sync = networks.sync
        self.companions = {"discriminator": networks.discriminator} if networks.discriminator is not None else {}
        self._visited = self._sampled_timesteps()
        self._make_dataset, self._dataset = make_dataset, None
        self._scorer = scorer
        self._device, self._dtype = torch.device("cpu"), torch.float32
        self._validation = self._validation_files()

    def _sampled_timesteps(self) -> Tensor | None:
        return visited_timesteps(self.scheduler, self.run.inference_steps) if self.run.train_sampled_timesteps else None

    def _validation_files(self) -> tuple[Path, Path] | None:
        data = self.config.data
        if not (self.run.validate and data.val_video_path and data.val_audio_path):
            logger.info("no validation videos: run.validate is off, or data.val_video_path or val_audio_path is empty")
            return None
        video, audio = project_path(data.val_video_path), project_path(data.val_audio_path)
        for key, path in (("val_video_path", video), ("val_audio_path", audio)):
            if not path.is_file():
                raise UserError(f"data.{key}: {path} does not exist; give a file, or set run.validate to false")
        return video, audio

    def dataset(self) -> Dataset:
        if self._dataset is None:
            self._dataset = self._make_dataset()
        return self._dataset

    def sample_weights(self) -> Tensor | None:
        return self.dataset().person_weights() if self.config.data.balance_people else None

    def place(self, device: torch.device, dtype: torch.dtype) -> None:
        """Frozen networks to `device`. They keep float32 weights and compute in `dtype` by autocast."""
        self._device, self._dtype = device, dtype
        self.codec.to(device)
        self.audio.to(device)
        self.losses.to(device)
        self.mask = self.mask.to(device)

    def step(self, model: nn.Module, batch: dict[str, Any], step: int) -> dict[str, Tensor]:
        """Losses of a batch of `UNetDataset` (pixels) or `LatentClipDataset` (latents), see there for the keys."""
        latents, masked, reference = self._latents(batch)
        drawn = self._draw(latents.shape, batch["key"])
        noise, timesteps = drawn.noise.to(latents), drawn.timesteps.to(latents.device)
        noisy = self.scheduler.add_noise(latents, noise, timesteps)
        tokens = batch["audio"] * drawn.heard.to(batch["audio"]).view(-1, 1, 1, 1)
        sample = unet_input(noisy, self.mask, masked, reference)
        if sample.device.type == "cpu":
            # torch 2.13 crashes in the backward of a channels-last group norm that is trained itself while its input
            # needs no gradient, as where everything before the first motion module is frozen.
            sample.requires_grad_()
        prediction = model(sample, timesteps, tokens).sample
        target = training_target(self.scheduler, latents, noise, timesteps)
        with self._autocast():
            return self.losses(self._estimate(prediction, target, noisy, latents, drawn, batch))

    def _draw(self, shape: torch.Size, keys: Tensor) -> Noising:
        """Each sample from its own generator, so that it does not matter which process or batch it is in."""
        generators = sample_generators(self.run.seed, keys)
        alpha = self.run.mixed_noise_alpha if self.run.use_mixed_noise else 0.0
        timesteps = draw_timesteps(self.scheduler.config.num_train_timesteps, self._visited, generators)
        heard = draw_heard(self.run.audio_dropout, generators)
        return Noising(sample_noise(shape, alpha, generators), timesteps, heard)

    def _latents(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Clean, masked and reference latents (B, C, F, h, h), float32."""
        if "latents" in batch:
            names = ("latents", "masked_latents", "ref_latents")
            return tuple(rearrange(batch[name], "b f c h w -> b c f h w").float() for name in names)
        names = ("gt_pixel_values", "masked_pixel_values", "ref_pixel_values")
        with self._autocast(), torch.no_grad():
            return tuple(encode_frames(self.codec, batch[name]).float() for name in names)

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
        # Chosen on the CPU, so that a device need not be waited for.
        counted = (drawn.timesteps <= self.run.sync_max_timestep).nonzero().flatten()
        picked = counted.to(prediction.device)
        timesteps = drawn.timesteps.to(prediction.device)[picked]
        latents = one_step_estimate(self.scheduler, prediction[picked], noisy[picked], timesteps)
        frames = real = None
        if self.run.pixel_space_supervise and len(counted):
            shown = self._shown_frames(latents.shape[2], batch["key"][counted]).to(prediction.device)
            real = _take_frames(batch["gt_pixel_values"][picked], shown)
            chosen = _take_frames(latents.transpose(1, 2), shown).transpose(1, 2)
            frames = decode_onto(self.codec, chosen, real, self.run.decode_region)
        sound = batch[self.sync.batch_key][picked] if self.sync is not None else None
        heard = drawn.heard[counted]
        if "silent" in batch:  # a mouth at rest has nothing that could be in sync
            heard &= batch["silent"][counted].to(heard.device) == 0
        return Estimate(prediction, target, latents, frames, real, heard, sound, clean[picked])

    def _shown_frames(self, total: int, keys: Tensor) -> Tensor:
        """(K, F') frames to decode: all, or evenly spaced ones from one on that each sample's key chooses."""
        count = self.run.decode_frames or total
        stride = total // count
        return keys[:, None] % stride + stride * torch.arange(count)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self._device.type, self._dtype, enabled=self._dtype != torch.float32)

    def validate(self, model: nn.Module, step: int, folder: Path) -> dict[str, float]:
        """Make the validation video speak: `folder`/step_N.mp4, and what the scorer says of it."""
        if self._validation is None:
            return {}
        video, audio = self._validation
        result = folder / f"step_{step}.mp4"
        pipeline = LipsyncPipeline(
            self.codec,
            self.audio,
            model,
            deepcopy(self.scheduler),
            self.config.data.resolution,
            num_inference_steps=self.run.inference_steps,
            guidance_scale=self.run.guidance_scale,
        )
        try:
            pipeline(
                video,
                audio,
                result,
                num_frames=self.config.data.num_frames,
                video_fps=self.config.data.video_fps,
                generator=torch.Generator().manual_seed(self.run.seed),
            )
            return dict(self._scorer(result)) if self._scorer is not None else {}
        except UserError as error:  # a young model's faces may be none: no reason to end the training
            logger.error("validation at step %d failed: %s", step, error)
            return {}

    def export(self, state_dict: dict[str, Tensor], step: int, path: Path) -> None:
        """Published format; of a LoRA run the adapter alone, as safetensors with the same stem."""
        if self.run.lora_rank:
            base = self.config.ckpt.resume_ckpt_path
            save_lora(self.model, path.with_suffix(".safetensors"), base, step, state_dict)
            return
        save_checkpoint(path, state_dict, step)

    def advise(self, step: int, means: Mapping[str, float]) -> str | None:
        return None


def _take_frames(frames: Tensor, shown: Tensor) -> Tensor:
    """(K, F, ...) and indices (K, F') -> (K, F', ...)."""
    return frames[torch.arange(len(frames), device=frames.device)[:, None], shown]
