"""Train the SyncNet that trains the UNet: on the old latent channels of the lower half of a face, and Whisper states.

The SyncNet that scores the model is another one, see `configs/syncnet/embedded.yaml`.
Legend: B runs, F frames of a run, T frames of a clip, C old latent channels.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from latentsync.models.framewise_syncnet import FramewiseSyncNet, FramewiseSyncNetConfig
from latentsync.models.patch_autoencoder import PatchAutoencoder
from latentsync.models.syncnet_input import audio_input, lower_half, stack_frames
from latentsync.training.sync_losses import contrastive_loss
from recipes.embedded.denoiser import OLD_CHANNELS
from recipes.embedded.pack import Pack, PackedClip
from recipes.embedded.training import Machine, Meter, Stage, random_states

logger = logging.getLogger("train")

APART = 6  # frames: windows of a clip that are closer are no negatives of each other
GAIN, OFFSET, STATE_NOISE = 0.15, 0.15, 0.1


@dataclass(frozen=True)
class SyncNetSettings:
    """Of the training; see `FramewiseSyncNetConfig` for the network."""

    frame_widths: tuple[int, int, int] = (48, 64, 96)
    run_frames: int = 32
    batch: int = 12
    lr: float = 1.5e-3
    temperature: float = 0.07
    seed: int = 99

    @property
    def network(self) -> FramewiseSyncNetConfig:
        return FramewiseSyncNetConfig(frame_widths=self.frame_widths, window_stride=2)


class Runs:
    """Latents of the clips with audio, in memory, mirrored and not."""

    @torch.no_grad()
    def __init__(self, pack: Pack, autoencoder: PatchAutoencoder, shortest: int) -> None:
        self.pack = pack
        people = [[c for c in clips if c.has_audio and c.length >= shortest] for _, clips in pack.by_person()]
        self.people = [clips for clips in people if clips]
        self.latents = {clip.name: self._encode(autoencoder, clip) for clips in self.people for clip in clips}

    def _encode(self, autoencoder: PatchAutoencoder, clip: PackedClip) -> Tensor:
        """(2, T, C, 8, 16) float16."""
        parts = []
        for start in range(0, clip.length, 32):
            frames = range(clip.first + start, clip.first + min(start + 32, clip.length))
            faces = self.pack.faces(frames).float() / 127.5 - 1
            latents = [autoencoder.encode(x).latent_dist.mean[:, :OLD_CHANNELS] for x in (faces, faces.flip(-1))]
            parts.append(lower_half(torch.stack(latents)).half())
        return torch.cat(parts, dim=1)

    def draw(self, count: int, frames: int, rng: np.random.Generator) -> tuple[Tensor, Tensor, list[tuple[str, int]]]:
        """Images (B, F * C, 8, 16), audio (B, L * D, 1, 2F), and the clip and first frame of each run."""
        people = np.array([len(clips) for clips in self.people]) ** 0.5
        images, states, places = [], [], []
        for index in rng.choice(len(people), count, p=people / people.sum()):
            clip = self.people[index][rng.integers(len(self.people[index]))]
            start = int(rng.integers(clip.length - frames + 1))
            latents = self.latents[clip.name][rng.integers(2), start : start + frames].float()
            gain = 1 + GAIN * torch.from_numpy(rng.uniform(-1, 1, (1, OLD_CHANNELS, 1, 1))).float()
            offset = OFFSET * torch.from_numpy(rng.standard_normal((1, OLD_CHANNELS, 1, 1))).float()
            images.append(latents * gain + offset)
            states.append(self.pack.states(clip)[2 * start : 2 * (start + frames)].float())
            places.append((clip.name, start))
        audio = audio_input(torch.stack(states), "whisper")
        noise = torch.from_numpy(rng.standard_normal(audio.shape, dtype=np.float32))
        return stack_frames(torch.stack(images)), audio + STATE_NOISE * noise, places


def close_windows(places: list[tuple[str, int]], windows: int, stride: int) -> Tensor:
    """(n, n) bool of all windows of the runs: those of one clip less than `APART` frames apart."""
    clips = np.repeat([hash(name) for name, _ in places], windows)
    starts = np.array([start + stride * index for _, start in places for index in range(windows)])
    near = np.abs(starts[:, None] - starts) < APART
    return torch.from_numpy(near & (clips[:, None] == clips))


def train(
    pack: Pack, autoencoder: PatchAutoencoder, path: Path, seconds: float, settings: SyncNetSettings, machine: Machine
) -> FramewiseSyncNet:
    """Train for `seconds` in all; returns the averaged network."""
    torch.manual_seed(settings.seed)
    syncnet = FramewiseSyncNet(settings.network).to(machine.device)
    optimizer = torch.optim.AdamW(syncnet.parameters(), settings.lr, (0.9, 0.99), weight_decay=0.05)
    stage = Stage(path, seconds, {"syncnet": syncnet}, {"syncnet": optimizer}, ("syncnet",), 0.97)
    runs, meter = Runs(pack, autoencoder, settings.run_frames), Meter(stage)
    stride = settings.network.window_stride
    for step in stage.steps():
        rng, _ = random_states(settings.seed, step)
        images, audio, places = runs.draw(settings.batch * machine.batch_scale, settings.run_frames, rng)
        with machine.autocast():
            vision_embeds, audio_embeds = syncnet(images.to(machine.device), audio.to(machine.device))
        excluded = close_windows(places, len(vision_embeds) // len(places), stride).to(machine.device)
        loss = contrastive_loss(vision_embeds, audio_embeds, settings.temperature, excluded)
        stage.update("syncnet", loss)
        stage.average()
        own = torch.arange(len(vision_embeds), device=machine.device)
        others = excluded & (own[:, None] != own)
        correct = (vision_embeds @ audio_embeds.T).masked_fill(others, -1).argmax(1)
        meter.add(loss=loss.detach(), matched=(correct == own).float().mean())
    syncnet.load_state_dict(stage.averaged_state("syncnet"))
    return syncnet.eval().requires_grad_(False)
