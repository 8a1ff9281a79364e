"""Train the UNet: one evaluation from no noise to the clean latents of 16 frames.

Legend: B samples, F frames, C latent channels, h cells of a side, R pixels of a side.
"""

import logging
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from latentsync.faces.mask import load_mask, resize_mask_to_latents
from latentsync.models.patch_autoencoder import PatchAutoencoder
from latentsync.models.patchgan import PatchDiscriminator
from latentsync.models.syncnet_input import audio_input, visual_input, whisper_rows
from latentsync.models.unet import UNet3DConditionModel
from latentsync.pipelines.denoise import unet_input
from latentsync.training.losses import mouth_weights
from latentsync.training.sync_losses import cosine_loss
from recipes.embedded.autoencoder import edges, hinge
from recipes.embedded.perceptual import PerceptualDistance
from recipes.embedded.samples import Sample, SampleMaker
from recipes.embedded.training import Machine, Meter, Stage, random_states

logger = logging.getLogger("train")

OLD_CHANNELS = 16
WHISPER_LAYERS = 5
LAST_TIMESTEP = 999
OUTSIDE_WEIGHT = 0.1  # of pixels that the pipeline takes from the frame anyway, in distillation
SAME_MOUTH = 0.06  # squared error of the old channels up to which a cell's texture is taken to be the reference's
DECODED_CELLS = (7, 15, 2, 14)  # top, bottom, left, right: the region of the losses on pixels, of 16 cells a side
MARGIN = 1
DECODED_FRAMES = 6  # neighbors, of each sample
DISCRIMINATED = 2  # every second of them, for the discriminator


@dataclass(frozen=True)
class DenoiserSettings:
    """Of one stage of the training.

    shares: of the kinds of samples, see `samples.KINDS`.
    teacher_weight, latent_weight: of the distillation and of the squared error of the latents.
    detail_weight: of the new channels in both.
    pixel_weight, perceptual_weight, adversarial_weight, temporal_weight: of the losses on decoded frames, all 0 for
        none. The gradient of the adversarial term does not reach the detail that the UNet predicts: patterns of the
        decoder's linear part in teeth are the easiest way to deceive a discriminator.
    decoder_lr: 0 for a decoder that stays as it is. exact_weight: of its error on true latents. sync_weight: of the
        SyncNet's.
    """

    shares: Mapping[str, float]
    batch: int = 2
    lr: float = 2e-4
    decoder_lr: float = 0.0
    discriminator_lr: float = 2e-4
    teacher_weight: float = 1.0
    latent_weight: float = 1.0
    detail_weight: float = 2.0
    motion_weight: float = 1.0
    sync_weight: float = 0.0
    pixel_weight: float = 0.0
    exact_weight: float = 0.0
    perceptual_weight: float = 0.0
    adversarial_weight: float = 0.0
    temporal_weight: float = 0.0
    decay: float = 0.99
    seed: int = 31

    @property
    def is_decoded(self) -> bool:
        return self.pixel_weight > 0


class OneStep(nn.Module):
    """The encoder, the UNet and the decoder as inference runs them."""

    def __init__(self, unet: UNet3DConditionModel, autoencoder: PatchAutoencoder) -> None:
        super().__init__()
        self.unet, self.autoencoder = unet, autoencoder
        mask = load_mask(autoencoder.config.sample_size)
        self.register_buffer("mask", mask, persistent=False)
        cells = autoencoder.config.sample_size // autoencoder.config.patch_size
        self.register_buffer("cell_mask", resize_mask_to_latents(mask, (cells, cells))[:, :, None], persistent=False)

    @torch.no_grad()
    def encode(self, faces: Tensor) -> Tensor:
        """(B, F, 3, R, R) -> (B, C, F, h, h)."""
        latents = self.autoencoder.encode(faces.flatten(0, 1)).latent_dist.mean
        return rearrange(latents, "(b f) c h w -> b c f h w", b=len(faces))

    def forward(self, target: Tensor, reference: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Faces (B, F, 3, R, R) twice and tokens (B, F, S, D) -> prediction and true latents (B, C, F, h, h)."""
        latents, masked, seen = self.encode(target), self.encode(target * self.mask), self.encode(reference)
        sample = unet_input(torch.zeros_like(latents), self.cell_mask, masked, seen)
        return self.unet(sample, LAST_TIMESTEP, tokens).sample, latents

    def decode_mouth(self, latents: Tensor) -> Tensor:
        """(N, C, h, h) -> the pixels of `DECODED_CELLS`."""
        top, bottom, left, right = DECODED_CELLS
        wide = latents[..., top - MARGIN : bottom + MARGIN, left - MARGIN : right + MARGIN]
        inner = MARGIN * self.autoencoder.config.patch_size
        return self.autoencoder.decode(wide).sample[..., inner:-inner, inner:-inner].float()

    def crop_mouth(self, faces: Tensor) -> Tensor:
        """(..., R, R) -> the same part."""
        top, bottom, left, right = (self.autoencoder.config.patch_size * edge for edge in DECODED_CELLS)
        return faces[..., top:bottom, left:right]


def pixel_distance(images: Tensor, targets: Tensor) -> Tensor:
    """Mean absolute difference of (N, 3, H, W), and of their edges."""
    return (images - targets).abs().mean() + (edges(images) - edges(targets)).abs().mean()


def channel_weights(channels: int, detail_weight: float) -> Tensor:
    """(1, C, 1, 1, 1)."""
    weights = torch.ones(channels)
    weights[OLD_CHANNELS:] = detail_weight
    return weights.view(1, -1, 1, 1, 1)


def distillation_loss(prediction: Tensor, latents: Tensor, teacher: Tensor, mask: Tensor, weights: Tensor) -> Tensor:
    """(C, F, h, h) each: as the frame where the teacher moves nothing, for it is the sharper of the two; else the old
    channels as the teacher's, the others free."""
    inside = torch.where(mask[0] > 0.5, OUTSIDE_WEIGHT, 1.0)
    moved = (teacher - latents[:OLD_CHANNELS]).square().mean(0, keepdim=True)
    same = torch.where(mask[0] > 0.5, 1.0, torch.exp(-moved / SAME_MOUTH))
    wanted = torch.lerp(teacher, latents[:OLD_CHANNELS], same)
    old = (inside * (prediction[:OLD_CHANNELS] - wanted).square()).mean()
    detail = (same * inside * weights[0, OLD_CHANNELS:] * (prediction - latents)[OLD_CHANNELS:].square()).mean()
    return old + detail


def reconstruction_loss(
    prediction: Tensor, latents: Tensor, cells: Tensor, weights: Tensor, motion_weight: float
) -> Tensor:
    """(C, F, h, h) each: squared error, and that of the change between frames."""
    error = (prediction - latents) * (cells[0] * weights[0]).sqrt()
    return error.square().mean() + motion_weight * error.diff(dim=1).square().mean()


class DenoiserTraining:
    """One stage.

    Args:
        model: changed in place.
        samples: where they come from.
        syncnet: sees the old channels; None for no sync loss.
        perceptual: for the losses on decoded frames.
        path: checkpoint file.
        seconds: budget of wall time.
        machine: what to run on.
    """

    def __init__(
        self,
        model: OneStep,
        samples: SampleMaker,
        syncnet: nn.Module | None,
        perceptual: PerceptualDistance,
        path: Path,
        seconds: float,
        settings: DenoiserSettings,
        machine: Machine,
    ) -> None:
        self.model, self.samples, self.perceptual = model.to(machine.device), samples, perceptual.to(machine.device)
        self.syncnet = syncnet and syncnet.to(machine.device)
        self.settings, self.machine = settings, machine
        self.discriminator = PatchDiscriminator(32, 3).to(machine.device)
        model.autoencoder.requires_grad_(False)
        groups = [{"params": list(model.unet.parameters()), "lr": settings.lr}]
        modules: dict[str, nn.Module] = {"unet": model.unet}
        if settings.is_decoded:
            modules["discriminator"] = self.discriminator
        if settings.decoder_lr:
            # The linear part stays the encoder's inverse: else it learns to sharpen the UNet's blur, and
            # also oversharpens sharp regions.
            decoder = model.autoencoder.decoder.requires_grad_(True)
            decoder.linear.requires_grad_(False)
            trained = [parameter for parameter in decoder.parameters() if parameter.requires_grad]
            groups.append({"params": trained, "lr": settings.decoder_lr})
            modules["autoencoder"] = model.autoencoder
        optimizers = {
            "model": torch.optim.AdamW(groups, settings.lr, (0.9, 0.99), weight_decay=1e-3),
            "discriminator": torch.optim.AdamW(self.discriminator.parameters(), settings.discriminator_lr, (0.5, 0.99)),
        }
        averaged = tuple(name for name in modules if name != "discriminator")
        self.stage = Stage(path, seconds, modules, optimizers, averaged, settings.decay)
        cells = model.cell_mask
        self.cells, self.weights = (
            mouth_weights(cells),
            channel_weights(model.unet.config.out_channels, settings.detail_weight).to(machine.device),
        )

    def run(self, max_steps: int | None = None) -> None:
        """Train until the budget is spent, then load the averages into the model."""
        meter = Meter(self.stage)
        with closing(self.machine.draw_ahead(self._draw, count(self.stage.step))) as draws:
            for _ in self.stage.steps(max_steps):
                began = time.monotonic()
                samples, rng = next(draws)
                waited = time.monotonic() - began
                meter.add(**self._step([sample.to(self.machine.device) for sample in samples], rng), waited=waited)
        for name in self.stage.averaged:
            self.stage.modules[name].load_state_dict(self.stage.averaged_state(name))

    def _draw(self, step: int) -> tuple[list[Sample], np.random.Generator]:
        """Samples of a step, and the generator of its other random numbers."""
        kinds = [kind for kind in self.samples.kinds if self.settings.shares.get(kind)]
        shares = np.array([self.settings.shares[kind] for kind in kinds])
        rng, _ = random_states(self.settings.seed, step)
        drawn = rng.choice(len(kinds), self.settings.batch * self.machine.batch_scale, p=shares / shares.sum())
        return [self.samples.draw(kinds[index], rng) for index in drawn], rng

    def _step(self, samples: list[Sample], rng: np.random.Generator) -> dict[str, float]:
        target = torch.stack([sample.target for sample in samples])
        reference = torch.stack([sample.reference for sample in samples])
        tokens = torch.stack([sample.tokens for sample in samples])
        with self.machine.autocast():
            prediction, latents = self.model(target, reference, tokens)
        prediction = prediction.float()
        terms: dict[str, Tensor] = {}
        for index, sample in enumerate(samples):
            if sample.teacher is not None:
                teacher = sample.teacher.transpose(0, 1)
                loss = self.settings.teacher_weight * distillation_loss(
                    prediction[index], latents[index], teacher, self.model.cell_mask[0], self.weights
                )
            else:
                weight = self.settings.latent_weight * sample.weight
                loss = weight * reconstruction_loss(
                    prediction[index], latents[index], self.cells[0], self.weights, self.settings.motion_weight
                )
            terms[sample.kind] = terms.get(sample.kind, 0) + loss / len(samples)
        if self.syncnet is not None and self.settings.sync_weight:
            terms["sync"] = self.settings.sync_weight * self._sync_loss(prediction, tokens, samples)
        shown = {}
        if self.settings.is_decoded:
            with self.machine.autocast():
                shown = self._decode(prediction, latents, target, samples, rng)
                terms |= self._pixel_terms(shown)
        self.stage.update("model", sum(terms.values()))
        if shown:
            with self.machine.autocast():
                real, fake = (self.discriminator(shown[name].detach()) for name in ("real", "result"))
            self.stage.update("discriminator", hinge(real, fake))
        self.stage.average()
        return {name: float(term.detach()) for name, term in terms.items()}

    def _sync_loss(self, prediction: Tensor, tokens: Tensor, samples: list[Sample]) -> Tensor:
        own_audio = [index for index, sample in enumerate(samples) if sample.has_own_audio]
        if not own_audio:
            return prediction.new_zeros(())
        images = visual_input(prediction[own_audio, :OLD_CHANNELS].transpose(1, 2), True)
        audio = audio_input(whisper_rows(tokens[own_audio], WHISPER_LAYERS), "whisper")
        with self.machine.autocast():
            vision_embeds, audio_embeds = self.syncnet(images, audio)
        share = len(own_audio) / len(samples)
        return share * cosine_loss(vision_embeds, audio_embeds, vision_embeds.new_ones(len(vision_embeds)))

    def _decode(
        self,
        prediction: Tensor,
        true: Tensor,
        target: Tensor,
        samples: list[Sample],
        rng: np.random.Generator,
    ) -> dict[str, Tensor]:
        """Mouths of a few neighboring frames of each sample, (B * n, 3, H, W): `result`, `real` and, if it counts,
        `exact` from the true latents; `discriminated`, some of `result` for the adversarial term; `paired` (B * n):
        whose result should equal the real one."""
        start = int(rng.integers(prediction.shape[2] - DECODED_FRAMES + 1))
        frames = slice(start, start + DECODED_FRAMES)
        latents = prediction[:, :, frames].transpose(1, 2).flatten(0, 1)
        result = self.model.decode_mouth(latents)
        real = self.model.crop_mouth(target[:, frames]).flatten(0, 1)
        paired = torch.tensor([sample.teacher is None for sample in samples], device=result.device)
        paired = paired.repeat_interleave(DECODED_FRAMES)
        shown = {"result": result, "real": real, "paired": paired}
        if self.settings.exact_weight:
            shown["exact"] = self.model.decode_mouth(true[:, :, frames].transpose(1, 2).flatten(0, 1))
        coarse, fine = latents[::DISCRIMINATED].split([OLD_CHANNELS, latents.shape[1] - OLD_CHANNELS], dim=1)
        return shown | {"discriminated": self.model.decode_mouth(torch.cat([coarse, fine.detach()], dim=1))}

    def _pixel_terms(self, shown: Mapping[str, Tensor]) -> dict[str, Tensor]:
        settings, paired = self.settings, shown["paired"]
        terms = {
            "adversarial": -settings.adversarial_weight * self.discriminator(shown["discriminated"]).mean(),
        }
        if "exact" in shown:
            terms["exact"] = settings.exact_weight * pixel_distance(shown["exact"], shown["real"])
        if paired.any():
            result, real = shown["result"][paired], shown["real"][paired]
            share = len(result) / len(paired)
            terms["pixels"] = settings.pixel_weight * share * pixel_distance(result, real)
            terms["perceptual"] = settings.perceptual_weight * share * self.perceptual(result, real)
            change = [x.unflatten(0, (-1, DECODED_FRAMES)).diff(dim=1) for x in (result, real)]
            terms["temporal"] = settings.temporal_weight * share * F.l1_loss(*change)
        return terms
