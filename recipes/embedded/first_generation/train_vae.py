"""Train the autoencoder of the embedded model: `python -m recipes.embedded.first_generation.train_vae`.

The full-size system uses the published sd-vae-ft-mse. The small one is an `AutoencoderKL` whose encoder is set by
hand to the principal components of color patches (`linear_vae`) and whose decoder is trained: L1 on a Laplacian
pyramid, all levels weighted equally, so that teeth and lips count as much as skin.
"""

import argparse
import logging
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from latentsync.config.schema import build, section
from latentsync.config.yaml_files import read_yaml
from latentsync.constants import DEFAULT_SEED
from latentsync.data.clips import read_fileslist, read_frames
from latentsync.utils.commands import command
from recipes.embedded.first_generation.linear_vae import fit_patch_code, set_decoder, set_encoder

logger = logging.getLogger("train_vae")
CONFIG = Path(__file__).parent / "configs" / "vae.yaml"


@section
class VaeTrainingConfig:
    """The keys of `configs/vae.yaml`. Random crops for `crop_share` of the time, whole faces for the rest."""

    fileslist: str
    output_dir: str
    block_out_channels: tuple[int, ...]
    latent_channels: int
    layers_per_block: int = 1
    norm_num_groups: int = 8
    resolution: int = 128
    whitening: float = 0.5
    latent_noise: float = 0.03
    crop: int = 64
    crop_batch: int = 6
    full_batch: int = 2
    max_seconds: float = 1200.0
    crop_share: float = 0.8
    frames_per_person: int = 900
    lr: float = 1e-3
    seed: int = DEFAULT_SEED
    log_steps: int = 50


def load_config(path: str | Path) -> VaeTrainingConfig:
    """Read a config. Raises UserError."""
    file = read_yaml(path)
    with file.named_errors():
        return build(VaeTrainingConfig, file.values)


def build_autoencoder(config: VaeTrainingConfig) -> AutoencoderKL:
    levels = len(config.block_out_channels)
    return AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * levels,
        up_block_types=["UpDecoderBlock2D"] * levels,
        block_out_channels=list(config.block_out_channels),
        layers_per_block=config.layers_per_block,
        latent_channels=config.latent_channels,
        norm_num_groups=config.norm_num_groups,
        sample_size=config.resolution,
        scaling_factor=1.0,
        mid_block_add_attention=False,
    )


def load_faces(config: VaeTrainingConfig) -> Tensor:
    """A balanced pool of faces, uint8 (N, 3, R, R): at most `frames_per_person` of each person."""
    people: dict[str, list[Path]] = {}
    for clip in read_fileslist(config.fileslist):
        people.setdefault(clip.person, []).append(clip.path)
    pool = []
    for paths in people.values():
        share = max(1, config.frames_per_person // len(paths))
        for path in paths:
            frames = read_frames(path)
            picked = np.linspace(0, len(frames) - 1, min(share, len(frames))).astype(int)
            pool.append(torch.from_numpy(frames[picked]).permute(0, 3, 1, 2))
    return torch.cat(pool)


def augment(faces: Tensor, crop: int, generator: torch.Generator) -> Tensor:
    """uint8 (N, 3, R, R) -> float [-1, 1] (N, 3, crop, crop): flip, crop, brightness, contrast and tint."""
    n, _, size, _ = faces.shape
    x = faces.float() / 127.5 - 1
    flip = torch.rand(n, generator=generator) < 0.5
    x = torch.where(flip[:, None, None, None], x.flip(-1), x)
    if crop < size:
        top, left = (8 * int(torch.randint(0, (size - crop) // 8 + 1, (1,), generator=generator)) for _ in range(2))
        x = x[..., top : top + crop, left : left + crop]
    gain = 1 + 0.3 * (torch.rand(n, 3, 1, 1, generator=generator) - 0.5) * torch.tensor([1.0, 0.6, 1.0]).view(
        1, 3, 1, 1
    )
    level = 0.9 * (torch.rand(n, 1, 1, 1, generator=generator) - 0.5) * 0.5
    return (x * gain + level).clamp(-1, 1)


def laplacian_l1(output: Tensor, target: Tensor, levels: int = 3) -> Tensor:
    """Mean over the levels of the L1 distance between Laplacian pyramids (Burt & Adelson 1983)."""
    error = output - target
    total = error.abs().mean()
    for _ in range(levels):
        coarse = F.avg_pool2d(error, 2)
        detail = error - F.interpolate(coarse, scale_factor=2, mode="bilinear")
        total = total + detail.abs().mean()
        error = coarse
    return total + error.abs().mean()


def cosine_with_warmup(progress: float, warmup: float = 0.02, floor: float = 0.02) -> float:
    """Factor on the base learning rate at `progress` in [0, 1]: linear warm-up, then half a cosine to `floor`."""
    if progress < warmup:
        return max(progress / warmup, 1e-3)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


def train(config: VaeTrainingConfig) -> AutoencoderKL:
    """Fit the encoder, then train the decoder for `max_seconds` of wall time."""
    torch.manual_seed(config.seed)
    generator = torch.Generator().manual_seed(config.seed)
    faces = load_faces(config)
    vae = build_autoencoder(config).requires_grad_(False)
    sample = faces[torch.randperm(len(faces), generator=generator)[:1000]]
    code = fit_patch_code(augment(sample, config.resolution, generator), config.latent_channels, config.whitening)
    set_encoder(vae, code)
    set_decoder(vae, code)
    vae.register_to_config(**measure_scale(vae, sample[:256]))
    vae.to(memory_format=torch.channels_last)
    noise = config.latent_noise / vae.config.scaling_factor
    parameters = [p.requires_grad_() for module in (vae.post_quant_conv, vae.decoder) for p in module.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=config.lr, betas=(0.9, 0.99), weight_decay=1e-4)
    logger.info("%d faces, %.2f M decoder parameters", len(faces), sum(p.numel() for p in parameters) / 1e6)
    start, step, errors = time.monotonic(), 0, []
    while (progress := (time.monotonic() - start) / config.max_seconds) < 1:
        cropped = progress < config.crop_share
        size, batch = (config.crop, config.crop_batch) if cropped else (config.resolution, config.full_batch)
        picked = torch.randint(0, len(faces), (batch,), generator=generator)
        target = augment(faces[picked], size, generator).contiguous(memory_format=torch.channels_last)
        latents = vae.encode(target).latent_dist.mean
        # A little noise makes the decoder robust to the UNet's errors.
        output = vae.decode(latents + noise * torch.randn(latents.shape, generator=generator)).sample
        loss = laplacian_l1(output, target)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for group in optimizer.param_groups:
            group["lr"] = config.lr * cosine_with_warmup(progress)
        optimizer.step()
        step += 1
        errors.append(F.mse_loss(output.detach(), target).item())
        if step % config.log_steps == 0:
            logger.info("step %d  %.0f%%  loss %.4f  psnr %.2f dB", step, 100 * progress, loss.detach(), psnr(errors))
            errors = []
        if step % (4 * config.log_steps) == 0:
            vae.save_pretrained(config.output_dir)
    return vae.eval()


def psnr(errors: list[float]) -> float:
    """Peak signal-to-noise ratio in dB of mean squared errors on [-1, 1]."""
    return -10 * math.log10(sum(errors) / len(errors) / 4)


@torch.no_grad()
def measure_scale(vae: AutoencoderKL, faces: Tensor) -> dict[str, float]:
    """Shift and scale that give latents of faces mean 0 and variance 1, like the noise of diffusion."""
    mean = torch.cat([vae.encode(part.float() / 127.5 - 1).latent_dist.mean for part in faces.split(16)])
    return {"shift_factor": round(mean.mean().item(), 5), "scaling_factor": round(1 / mean.std().item(), 5)}


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--config", default=CONFIG, help="config file, see VaeTrainingConfig (default: %(default)s)")
    parser.add_argument("--max_seconds", type=float, help="training time in seconds, instead of that of the config")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    config = load_config(args.config)
    if args.max_seconds:
        config = replace(config, max_seconds=args.max_seconds)
    train(config).half().save_pretrained(config.output_dir)
    logger.info("saved to %s", config.output_dir)
    return 0


if __name__ == "__main__":
    sys.exit(main())
