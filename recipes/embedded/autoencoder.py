"""Train the autoencoder: the encoder is fitted (see `basis`), the decoder is trained on crops of faces."""

import logging
from contextlib import closing
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from latentsync.models.patch_autoencoder import PatchAutoencoder
from latentsync.models.vae import LatentCodec
from recipes.embedded.basis import PATCH, enlarged_basis, linear_patches, residual_basis, set_linear
from recipes.embedded.crops import CropSampler
from recipes.embedded.pack import Pack
from recipes.embedded.perceptual import PerceptualDistance
from recipes.embedded.training import Machine, Meter, Stage, random_states

logger = logging.getLogger("train")

FITTED_FACES = 600


@dataclass(frozen=True)
class AutoencoderSettings:
    """Of the training."""

    channels: int = 96
    crop: int = 128
    batch: int = 8
    lr: float = 1.5e-3
    perceptual_weight: float = 0.15
    edge_weight: float = 1.0
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
    pack: Pack,
    first_generation: Path,
    trunk: Path,
    output: Path,
    seconds: float,
    settings: AutoencoderSettings,
    machine: Machine,
) -> PatchAutoencoder:
    """Train for `seconds` of wall time in all; a second call resumes. Returns the averaged autoencoder.

    Args:
        first_generation: folder of the 128 px model's autoencoder.
        trunk: weights of the perceptual distance.
        output: the autoencoder's folder is `output`/vae, the checkpoint `output`/autoencoder.pt.
        machine: what to run on.
    """
    torch.manual_seed(settings.seed)
    autoencoder = build(pack, first_generation, settings.channels, settings.seed).to(machine.device)
    autoencoder.encoder.requires_grad_(False)
    autoencoder.decoder.linear.requires_grad_(False)  # noise on the latents would make it softer
    perceptual = PerceptualDistance(trunk).to(machine.device)
    trained = [parameter for parameter in autoencoder.decoder.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, settings.lr, (0.9, 0.99), weight_decay=1e-4)
    modules, optimizers = {"autoencoder": autoencoder}, {"decoder": optimizer}
    stage = Stage(output / "autoencoder.pt", seconds, modules, optimizers, ("autoencoder",))
    sampler, meter = CropSampler(pack, settings.crop), Meter(stage)
    if not stage.path.is_file():
        stage.save()

    def draw(step: int) -> tuple[Tensor, Tensor]:
        """Crops, and noise for their latents."""
        rng, generator = random_states(settings.seed, step + 1)
        target = sampler.draw(settings.batch * machine.batch_scale, rng)
        cells = settings.crop // PATCH
        level = settings.latent_noise * torch.rand(len(target), 1, 1, 1, generator=generator)
        return target, level * torch.randn(len(target), settings.channels, cells, cells, generator=generator)

    with closing(machine.draw_ahead(draw, count(stage.step))) as draws:
        for _ in stage.steps():
            target, noise = (x.to(machine.device, non_blocking=True) for x in next(draws))
            with torch.no_grad():
                latents = autoencoder.encoder(target) + noise
            with machine.autocast():
                result = autoencoder.decoder(latents).float()
                features = perceptual(result, target)
            l1, sharp = (result - target).abs().mean(), (edges(result) - edges(target)).abs().mean()
            stage.update("decoder", l1 + settings.edge_weight * sharp + settings.perceptual_weight * features)
            stage.average()
            error = F.mse_loss(result.detach(), target)
            psnr = -10 * torch.log10(error / 4)
            meter.add(l1=l1.detach(), edges=sharp.detach(), perceptual=features.detach(), psnr=psnr)
    autoencoder.load_state_dict(stage.averaged_state("autoencoder"))
    autoencoder.save_pretrained(output / "vae")
    return autoencoder.cpu().eval()
