"""Train the decoder on what the UNet predicts, with a discriminator.

Where a mouth is not determined by what is seen and heard, the UNet predicts the mean of what it could be. The decoder
learns to draw texture from it. The discriminator's gradient must not reach the UNet: it then writes patterns of the
decoder's linear part into teeth. Without the UNet a step is cheap, so the decoder sees many more frames than before.

Legend: B runs, F frames, C latent channels, h w cells of the mouth and its margin, H W its pixels without the margin.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from latentsync.models.patch_autoencoder import PatchAutoencoder
from latentsync.models.patchgan import PatchDiscriminator
from recipes.embedded.autoencoder import hinge
from recipes.embedded.denoiser import OneStep, pixel_distance
from recipes.embedded.perceptual import PerceptualDistance
from recipes.embedded.samples import SampleMaker
from recipes.embedded.training import Meter, Stage, random_states

logger = logging.getLogger("train")

RUNS_PER_FILE = 20
SHARES = {"teacher": 0.25, "real": 0.37, "retrieved": 0.25, "silent": 0.13}


@dataclass(frozen=True)
class SharpenSettings:
    """Of the training. exact_weight: of the decoder's error on true latents, of one run of each batch.

    The adversarial term grows to its weight in the first `adversarial_from` of the budget.
    """

    runs: int = 4
    frames: int = 4
    lr: float = 4e-4
    discriminator_lr: float = 3e-4
    pixel_weight: float = 1.0
    perceptual_weight: float = 0.6
    temporal_weight: float = 1.0
    exact_weight: float = 0.3
    adversarial_weight: float = 0.06
    adversarial_from: float = 0.1
    decay: float = 0.995
    seed: int = 35


@torch.no_grad()
def make_runs(model: OneStep, samples: SampleMaker, folder: Path, count: int, seed: int = 37) -> None:
    """Write `count` runs of 16 frames, some to a file: the prediction and the true face of the mouth with its margin.

    Files that are there are left alone.
    """
    folder.mkdir(parents=True, exist_ok=True)
    kinds = [kind for kind in samples.kinds if SHARES.get(kind)]
    shares = np.array([SHARES[kind] for kind in kinds])
    for number in range(-(-count // RUNS_PER_FILE)):
        path = folder / f"runs-{number:03d}.safetensors"
        if path.is_file():
            continue
        rng = np.random.default_rng([seed, number])
        tensors = {}
        for index in range(min(RUNS_PER_FILE, count - number * RUNS_PER_FILE)):
            sample = samples.draw(kinds[rng.choice(len(kinds), p=shares / shares.sum())], rng)
            prediction, _ = model(sample.target[None], sample.reference[None], sample.tokens[None])
            pixels = model.crop_mouth(sample.target, margin=True)
            tensors[f"{index}.{sample.kind}.latents"] = (
                model.crop_cells(prediction[0].transpose(0, 1)).half().contiguous()
            )
            tensors[f"{index}.{sample.kind}.pixels"] = ((pixels + 1) * 127.5).round().byte().contiguous()
        save_file(tensors, path)
        logger.info("sharpen: %s", path.name)


@dataclass(frozen=True)
class Run:
    """Predicted latents (F, C, h, w) float16 and true pixels of the same part (F, 3, P h, P w) uint8.

    is_paired: the prediction should look like the pixels.
    """

    latents: Tensor
    pixels: Tensor
    is_paired: bool


def read_runs(folder: Path) -> list[Run]:
    """All of `make_runs`, memory-mapped."""
    runs = []
    for path in sorted(folder.glob("runs-*.safetensors")):
        tensors = load_file(path)
        for name in sorted(name for name in tensors if name.endswith(".latents")):
            stem = name.removesuffix(".latents")
            runs.append(Run(tensors[name], tensors[f"{stem}.pixels"], ".teacher" not in stem))
    return runs


class SharpenTraining:
    """The stage: train the decoder of `model` in place."""

    def __init__(
        self,
        model: OneStep,
        runs: list[Run],
        perceptual: PerceptualDistance,
        path: Path,
        seconds: float,
        settings: SharpenSettings,
    ) -> None:
        self.model, self.runs, self.perceptual, self.settings = model, runs, perceptual, settings
        autoencoder: PatchAutoencoder = model.autoencoder.requires_grad_(False)
        decoder = autoencoder.decoder.requires_grad_(True)
        decoder.linear.requires_grad_(False)
        self.discriminator = PatchDiscriminator(32, 3)
        trained = [parameter for parameter in decoder.parameters() if parameter.requires_grad]
        optimizers = {
            "decoder": torch.optim.AdamW(trained, settings.lr, (0.9, 0.99), weight_decay=1e-4),
            "discriminator": torch.optim.AdamW(self.discriminator.parameters(), settings.discriminator_lr, (0.5, 0.99)),
        }
        modules = {"autoencoder": autoencoder, "discriminator": self.discriminator}
        self.stage = Stage(path, seconds, modules, optimizers, ("autoencoder",), settings.decay)

    def run(self, max_steps: int | None = None) -> None:
        """Train until the budget is spent, then load the averages into the model."""
        meter = Meter(self.stage)
        for step in self.stage.steps(max_steps):
            rng, _ = random_states(self.settings.seed, step)
            meter.add(**self._step(rng))
        self.model.autoencoder.load_state_dict(self.stage.averaged_state("autoencoder"))

    def _draw(self, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Latents (B * F, C, h, w), true pixels with the margin (B * F, 3, P h, P w), paired (B * F,)."""
        frames, latents, pixels, paired = self.settings.frames, [], [], []
        for index in rng.choice(len(self.runs), self.settings.runs, replace=len(self.runs) < self.settings.runs):
            run = self.runs[index]
            start = int(rng.integers(len(run.latents) - frames + 1))
            latents.append(run.latents[start : start + frames].float())
            pixels.append(run.pixels[start : start + frames].float() / 127.5 - 1)
            paired += [run.is_paired] * frames
        layout = torch.channels_last
        return torch.cat(latents).contiguous(memory_format=layout), torch.cat(pixels), torch.tensor(paired)

    def _step(self, rng: np.random.Generator) -> dict[str, float]:
        settings, model = self.settings, self.model
        latents, wide, paired = self._draw(rng)
        real = model.trim(wide)
        with torch.no_grad():
            true = model.autoencoder.encoder(wide[: settings.frames])
        decoded = model.trim(model.autoencoder.decoder(torch.cat([latents, true])))
        result, exact = decoded[: len(latents)], decoded[len(latents) :]
        terms = self._terms(result, real, paired)
        terms["exact"] = settings.exact_weight * pixel_distance(exact, real[: settings.frames])
        ramp = min(1.0, self.stage.progress / settings.adversarial_from)
        terms["adversarial"] = -ramp * settings.adversarial_weight * self.discriminator(result).mean()
        self.stage.update("decoder", sum(terms.values()))
        judged = hinge(self.discriminator(real), self.discriminator(result.detach()))
        self.stage.update("discriminator", judged)
        self.stage.average()
        return {name: float(term.detach()) for name, term in {**terms, "discriminator": judged}.items()}

    def _terms(self, result: Tensor, real: Tensor, paired: Tensor) -> dict[str, Tensor]:
        """Of the frames whose result should equal the real one."""
        if not paired.any():
            return {}
        settings, result, real = self.settings, result[paired], real[paired]
        share = len(result) / len(paired)
        change = [x.unflatten(0, (-1, settings.frames)).diff(dim=1) for x in (result, real)]
        return {
            "pixels": settings.pixel_weight * share * pixel_distance(result, real),
            "perceptual": settings.perceptual_weight * share * self.perceptual(result, real),
            "temporal": settings.temporal_weight * share * F.l1_loss(*change),
        }
