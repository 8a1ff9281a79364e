"""Train the autoencoder: the encoder is fitted (see `basis`), the decoder is trained on crops of faces."""

import logging
import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from latentsync.models.patch_autoencoder import PatchAutoencoder
from latentsync.models.patchgan import PatchDiscriminator
from latentsync.models.vae import LatentCodec
from recipes.embedded.basis import PATCH, enlarged_basis, linear_patches, residual_basis, set_linear
from recipes.embedded.crops import CropSampler
from recipes.embedded.pack import Pack
from recipes.embedded.perceptual import PerceptualDistance
from recipes.embedded.training import Meter, Stage, random_states

logger = logging.getLogger("train")

FITTED_FACES = 600


@dataclass(frozen=True)
class AutoencoderSettings:
    """Of the training. The adversarial term begins when `adversarial_from` of the budget is spent."""

    channels: int = 96
    crop: int = 128
    batch: int = 8
    lr: float = 1.5e-3
    discriminator_lr: float = 4e-4
    perceptual_weight: float = 0.15
    edge_weight: float = 1.0
    adversarial_weight: float = 0.01
    adversarial_from: float = 2.0
    latent_noise: float = 0.03
    seed: int = 1247


@torch.no_grad()
def build(pack: Pack, first_generation: Path, channels: int, seed: int) -> PatchAutoencoder:
    """An autoencoder whose encoder is fitted to the faces, and whose decoder is the encoder's linear inverse."""
    codec = LatentCodec.from_pretrained(first_generation)
    base, base_bias = enlarged_basis(linear_patches(codec.vae, codec.factor), codec.scale, codec.shift)
    sampler, (rng, _) = CropSampler(pack, pack.resolution // 2), random_states(seed, 0)
    faces = torch.cat([sampler.draw(8, rng) for _ in range(-(-FITTED_FACES // 8))])
    weight, bias = residual_basis(faces, base, channels - len(base), codec.scale)
    autoencoder = PatchAutoencoder(latent_channels=channels, patch_size=PATCH, sample_size=pack.resolution)
    set_linear(autoencoder, torch.cat([base, weight]), torch.cat([base_bias, bias]))
    return autoencoder.to(memory_format=torch.channels_last)


def edges(x: Tensor) -> Tensor:
    """The residual of a 3x3 blur: doubles the weight of L1 for fine texture."""
    return x - F.avg_pool2d(x, 3, 1, 1)


def hinge(real: Tensor, fake: Tensor) -> Tensor:
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


def train(
    pack: Pack, first_generation: Path, trunk: Path, output: Path, seconds: float, settings: AutoencoderSettings
) -> PatchAutoencoder:
    """Train for `seconds` of wall time in all; a second call resumes. Returns the averaged autoencoder.

    Args:
        first_generation: folder of the 128 px model's autoencoder.
        trunk: weights of the perceptual distance.
        output: the autoencoder's folder is `output`/vae, the checkpoint `output`/autoencoder.pt.
    """
    torch.manual_seed(settings.seed)
    autoencoder = build(pack, first_generation, settings.channels, settings.seed)
    autoencoder.encoder.requires_grad_(False)
    autoencoder.decoder.linear.requires_grad_(False)  # noise on the latents would make it softer
    discriminator = PatchDiscriminator(32, 2)
    perceptual = PerceptualDistance(trunk)
    trained = [parameter for parameter in autoencoder.decoder.parameters() if parameter.requires_grad]
    optimizers = {
        "decoder": torch.optim.AdamW(trained, settings.lr, (0.9, 0.99), weight_decay=1e-4),
        "discriminator": torch.optim.AdamW(discriminator.parameters(), settings.discriminator_lr, (0.5, 0.99)),
    }
    modules = {"autoencoder": autoencoder, "discriminator": discriminator}
    stage = Stage(output / "autoencoder.pt", seconds, modules, optimizers, ("autoencoder",))
    sampler, meter = CropSampler(pack, settings.crop), Meter(stage)
    if not stage.path.is_file():
        stage.save()
    for step in stage.steps():
        rng, generator = random_states(settings.seed, step + 1)
        target = sampler.draw(settings.batch, rng)
        with torch.no_grad():
            latents = autoencoder.encoder(target)
            noise = settings.latent_noise * torch.rand(len(latents), 1, 1, 1, generator=generator)
            latents = latents + noise * torch.randn(latents.shape, generator=generator)
        result = autoencoder.decoder(latents)
        l1, sharp = (result - target).abs().mean(), (edges(result) - edges(target)).abs().mean()
        features = perceptual(result, target)
        loss = l1 + settings.edge_weight * sharp + settings.perceptual_weight * features
        is_adversarial = stage.progress >= settings.adversarial_from
        if is_adversarial:
            loss = loss - settings.adversarial_weight * discriminator(result).mean()
        stage.update("decoder", loss)
        if is_adversarial:
            stage.update("discriminator", hinge(discriminator(target), discriminator(result.detach())))
        stage.average()
        error = F.mse_loss(result.detach(), target)
        meter.add(
            l1=l1.detach(), edges=sharp.detach(), perceptual=features.detach(), psnr=-10 * math.log10(float(error) / 4)
        )
    autoencoder.load_state_dict(stage.averaged_state("autoencoder"))
    autoencoder.save_pretrained(output / "vae")
    return autoencoder.eval()
