"""Shared by tests of UNet training: a tiny config, clips with audio, tiny loss networks."""

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from latentsync.checkpoints.loading import save_checkpoint
from latentsync.config.unet import UNetFileConfig, load_unet_config
from latentsync.loading import load_scheduler
from latentsync.models.stable_syncnet import StableSyncNet
from latentsync.models.syncnet_config import StableSyncNetConfig
from latentsync.models.unet_config import UNetConfig
from latentsync.models.vae import LatentCodec
from latentsync.pretrained.videomae import VideoMAE, VideoMAEConfig
from latentsync.training.sync_losses import SyncSupervision
from latentsync.training.unet_setup import FrozenComponents
from latentsync.trepa.loss import TREPALoss
from latentsync.utils.errors import UserError
from latentsync.whisper.audio2feature import Audio2Feature
from tests.conformance.seeded import fill_
from tests.media.synthetic import write_clip
from tests.tiny_model import PROJECT_ROOT, RESOLUTION, UNET, TinyFiles

FRAMES = 4
LAYERS = 3  # of the tiny Whisper: two blocks and the input
VIDEO_MAE = VideoMAEConfig(28, 14, FRAMES, 2, 24, 1, 2, Fraction(2), 3)
VISUAL = {
    False: {"in_channels": 3 * FRAMES, "block_out_channels": [32, 64], "downsample_factors": [[4, 8], 8]},
    True: {"in_channels": 4 * FRAMES, "block_out_channels": [32, 64], "downsample_factors": [2, 4]},
}
AUDIO = {
    "mel": {"in_channels": 1, "block_out_channels": [32, 64], "downsample_factors": [[8, 4], [10, 3]]},
    "whisper": {"in_channels": 32 * LAYERS, "block_out_channels": [64], "downsample_factors": [[1, 8]]},
}


class TinyPerceptual(nn.Module):
    """Stands for LPIPS: two maps of random features."""

    def __init__(self):
        super().__init__()
        layers = [nn.Conv2d(3, 6, 3, 2), nn.Sequential(nn.ReLU(), nn.Conv2d(6, 6, 3, 2))]
        self.layers = fill_(nn.ModuleList(layers)).requires_grad_(False)

    def features(self, pixels: Tensor) -> list[Tensor]:
        first = self.layers[0](pixels)
        return [first, self.layers[1](first)]

    def forward(self, made: Tensor, real: Tensor) -> Tensor:
        pairs = zip(self.features(made), self.features(real), strict=True)
        return sum((a - b).square().mean(dim=(1, 2, 3), keepdim=True) for a, b in pairs)


def write_clips(folder: Path, count: int = 2, frames: int = 10) -> Path:
    """Clips of a moving bright square, with audio, of two people; returns their list."""
    lines = []
    for index in range(count):
        rng = np.random.default_rng(index)
        still = rng.integers(0, 200, (RESOLUTION // 8, RESOLUTION // 8, 3)).repeat(8, 0).repeat(8, 1).astype(np.uint8)
        images = []
        for frame in range(frames):
            image = still.copy()
            image[36:52, 4 + 4 * (frame % 10) : 20 + 4 * (frame % 10)] = 250
            images.append(image)
        path = folder / f"clip{index}.mp4"
        write_clip(path, frames, size=(RESOLUTION, RESOLUTION), images=images, tone_seconds=frames / 25)
        lines.append(f"{path.name}\tperson{index % 2}")
    listed = folder / "train.txt"
    listed.write_text("\n".join(lines))
    return listed


def tiny_config(folder: Path, **run) -> UNetFileConfig[UNetConfig]:
    """configs/unet/debug.yaml with the sizes of `tests.tiny_model`, clips in `folder`, and `run` in its section."""
    config = load_unet_config(PROJECT_ROOT / "configs" / "unet" / "debug.yaml", UNetConfig)
    off = ("pixel_space_supervise", "use_syncnet", "perceptual_random_trunk", "trepa_random_network")
    options = {name: False for name in (*off, "enable_gradient_checkpointing")} | run
    return replace(
        config,
        model=UNetConfig.from_dict(UNET),
        data=replace(
            config.data,
            train_output_dir=str(folder / "out"),
            train_fileslist=str(folder / "train.txt"),
            resolution=RESOLUTION,
            num_frames=FRAMES,
            batch_size=2,
            num_workers=0,
            val_video_path="",
            val_audio_path="",
        ),
        run=replace(config.run, **options),
        optimizer=replace(config.optimizer, lr=2e-3),
    )


def frozen_components(files: TinyFiles) -> FrozenComponents:
    audio = Audio2Feature(files.whisper, "cpu", None, FRAMES)
    return FrozenComponents(LatentCodec.from_pretrained(files.vae), audio, load_scheduler(files.scheduler_config))


def tiny_syncnet(latent: bool = False, features: str = "mel") -> StableSyncNet:
    config = StableSyncNetConfig.from_dict({"audio_encoder": AUDIO[features], "visual_encoder": VISUAL[latent]})
    return fill_(StableSyncNet(config), seed=3)


def tiny_sync(latent: bool = False, features: str = "mel") -> SyncSupervision:
    return SyncSupervision(
        tiny_syncnet(latent, features),
        num_frames=FRAMES,
        channels=4 if latent else 3,
        latent_space=latent,
        lower_half=not latent,
        resolution=RESOLUTION,
        audio_features=features,
        num_layers=LAYERS,
        columns_per_frame=Fraction(2) if features == "whisper" else Fraction(80, 25),
    )


def short_sync() -> SyncSupervision:
    """A SyncNet on latents and Whisper states with windows of half the length."""
    frames = FRAMES // 2
    visual = VISUAL[True] | {"in_channels": 4 * frames}
    audio = AUDIO["whisper"] | {"downsample_factors": [[1, 2 * frames]]}
    config = StableSyncNetConfig.from_dict({"audio_encoder": audio, "visual_encoder": visual})
    return SyncSupervision(
        fill_(StableSyncNet(config), seed=5),
        num_frames=frames,
        channels=4,
        latent_space=True,
        lower_half=False,
        resolution=RESOLUTION,
        audio_features="whisper",
        num_layers=LAYERS,
        columns_per_frame=Fraction(2),
    )


def tiny_trepa(folder: Path) -> TREPALoss:
    save_checkpoint(folder / "videomae.pt", fill_(VideoMAE(VIDEO_MAE)).state_dict())
    return TREPALoss("cpu", folder / "videomae.pt", with_cp=False, config=VIDEO_MAE)


def fixed_batch(seed: int = 0, pixels: bool = True, keys: tuple[int, ...] = (0, 1)) -> dict:
    """Smooth random frames, mel and audio tokens, as `UNetDataset` collates them, or latents."""
    rows = [_item(seed, key, pixels) for key in keys]
    batch = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    return {**batch, "key": torch.tensor(keys)}


def _item(seed: int, key: int, pixels: bool) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(100 * seed + key)
    coarse = torch.rand(2 * FRAMES, 3, 8, 8, generator=rng) * 2 - 1
    frames = torch.nn.functional.interpolate(coarse, size=(RESOLUTION, RESOLUTION), mode="bilinear")
    item = {
        "mel": torch.randn(1, 80, 13, generator=rng),
        "audio": torch.randn(FRAMES, 10 * LAYERS, 32, generator=rng),
        "gt_pixel_values": frames[:FRAMES],
    }
    if pixels:
        return item | {"masked_pixel_values": frames[:FRAMES] * 0.5, "ref_pixel_values": frames[FRAMES:]}
    latents = torch.randn(3, FRAMES, 4, 8, 8, generator=rng)
    return item | dict(zip(("latents", "masked_latents", "ref_latents"), latents, strict=True))


class Watched:
    """A validation video whose metrics are whether its result exists, and a constant of its own."""

    def __init__(self, video: Path, audio: Path, quality: float):
        self.video, self.audio, self.quality = video, audio, quality

    def result_metrics(self, pipeline, result: Path) -> dict[str, float]:
        return {"made": float(result.is_file())}

    def reconstruction_metrics(self, pipeline) -> dict[str, float]:
        if self.quality < 0:
            raise UserError("no face in view")
        return {"psnr_mouth": self.quality}
