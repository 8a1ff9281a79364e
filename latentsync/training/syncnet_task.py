"""SyncNet as something to train: pairs judged in or out of sync, or all pairs of a large batch told apart.

Legend: B samples of a process, N of all processes, F frames, C channels, H W pixels or latent cells, D width.
"""

import logging
import math
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from latentsync.data.draws import Draw, collate
from latentsync.data.syncnet_dataset import MIN_SHIFT, SyncNetDataset
from latentsync.models.syncnet_input import audio_input, visual_input
from latentsync.models.syncnets import make_syncnet
from latentsync.models.vae import LatentCodec
from latentsync.training.distributed import gather_with_gradient
from latentsync.training.gradient_cache import GradientCache
from latentsync.training.plateau import PlateauWatch, explain_small_batch
from latentsync.training.settings import TrainSettings, settings_from
from latentsync.training.sync_loss import contrastive_loss, cosine_loss, pair_accuracy, similarity
from latentsync.training.syncnet_data import SyncNetData
from latentsync.utils.checkpoints import load_checkpoint, load_into, save_checkpoint
from latentsync.utils.errors import UserError
from latentsync.utils.registry import project_path
from latentsync.utils.syncnet_config import SyncNetFileConfig

logger = logging.getLogger(__name__)
PREFIX = "network."  # of the network's names within GradientCache
JUDGED_AT_ONCE = 64
ENCODED_AT_ONCE = 64


def train_settings(config: SyncNetFileConfig) -> TrainSettings:
    """What the training loop is told of a SyncNet config."""
    return settings_from(config, repeats=config.data.windows_per_clip, validate_every=config.run.validation_steps)


def build_syncnet(config: SyncNetFileConfig) -> nn.Module:
    """Fresh from the seed, or `ckpt.resume_ckpt_path`. Raises UserError when that does not fit."""
    torch.manual_seed(config.run.seed)
    if config.ckpt.resume_ckpt_path:
        checkpoint = load_checkpoint(project_path(config.ckpt.resume_ckpt_path))
        return load_into(lambda: make_syncnet(config.model), checkpoint, exact=True)
    return make_syncnet(config.model)


def windows_per_run(config: SyncNetFileConfig) -> int:
    """How many windows, samples of the contrastive loss, one item of the dataset holds."""
    beyond = (config.data.run_frames or config.data.num_frames) - config.data.num_frames
    return beyond // config.model.window_stride + 1 if beyond else 1


class SyncNetTask:
    """`latentsync.training.task.Task` of a SyncNet.

    Args:
        config: a whole SyncNet config.
        data: builds its datasets.
        codec: autoencoder, for data.latent_space; else None.
        world_size: training processes, for the warnings about the batch.

    Raises:
        UserError: the weights to start from, or the clips, are not fit.
    """

    name = "syncnet"

    def __init__(
        self, config: SyncNetFileConfig, data: SyncNetData, codec: LatentCodec | None = None, world_size: int = 1
    ) -> None:
        self.config, self.codec = config, codec
        self.model = GradientCache(build_syncnet(config), config.run.gradient_cache_chunk).train()
        self.companions: dict[str, nn.Module] = {}
        self._data, self._dataset = data, None
        self.judged = data.validation()
        if self.judged is None:
            logger.warning("data.val_fileslist is empty: there will be no accuracy on clips that are not trained on")
        self._device, self._dtype = torch.device("cpu"), torch.float32
        self._watch = self._watch_batch(world_size)

    def _watch_batch(self, world_size: int) -> PlateauWatch:
        """Warn of a batch that is known to be too small, and know what a guess costs."""
        batch, run = self.config.data.batch_size * world_size, self.config.run
        if run.contrastive:
            return PlateauWatch(math.log(batch * windows_per_run(self.config)))
        warning = explain_small_batch(batch * run.gradient_accumulation_steps)
        if warning:
            logger.warning("%s", warning)
        return PlateauWatch()

    def dataset(self) -> SyncNetDataset:
        if self._dataset is None:
            self._dataset = self._data.train()
        return self._dataset

    def sample_weights(self) -> Tensor | None:
        return self.dataset().person_weights() if self.config.data.balance_people else None

    def place(self, device: torch.device, dtype: torch.dtype) -> None:
        """The autoencoder to `device`; it keeps float32 weights and computes in `dtype` by autocast."""
        self._device, self._dtype = device, dtype
        if self.codec is not None:
            self.codec.to(device)

    def step(self, model: nn.Module, batch: dict[str, Any], step: int) -> dict[str, Tensor]:
        """Loss and accuracy of a batch of `SyncNetDataset`. Contrastive: of the batches of all processes together."""
        vision, audio = model(self._images(batch["frames"]), self._sound(batch["audio_samples"]))
        if not self.config.run.contrastive:
            y = batch["y"]
            return {
                "loss": cosine_loss(vision, audio, y),
                "accuracy": pair_accuracy(vision.detach(), audio.detach(), y),
            }
        vision, audio = gather_with_gradient(vision), gather_with_gradient(audio)
        same = self._same_moment(batch)
        loss = contrastive_loss(vision, audio, self.config.run.temperature, same)
        return {"loss": loss, "accuracy": _found(vision.detach(), audio.detach(), same)}

    def _images(self, frames: Tensor) -> Tensor:
        """Frames or latents of a dataset, (B, F, C, H, W) -> what the visual encoder takes, (B, F * C, H', W')."""
        data = self.config.data
        if not data.latent_space or data.cache_latents:
            return visual_input(frames, halve=False)  # the dataset has halved them where asked
        autocast = torch.autocast(self._device.type, self._dtype, enabled=self._dtype != torch.float32)
        with autocast, torch.no_grad():
            pieces = rearrange(frames, "b f c h w -> (b f) c h w").split(ENCODED_AT_ONCE)
            latents = torch.cat([self.codec.encode(piece) for piece in pieces]).float()
        return visual_input(rearrange(latents, "(b f) c h w -> b f c h w", b=len(frames)), data.lower_half)

    def _sound(self, samples: Tensor) -> Tensor:
        return audio_input(samples, self.config.data.audio_features)

    def _same_moment(self, batch: Mapping[str, Any]) -> Tensor:
        """(N, N) bool: windows of one clip less than 6 frames apart, which are not out of sync enough to be told so.

        N counts the windows of all processes; those of a run follow each other.
        """
        names = [zlib.crc32(path.encode()) for path in batch["video_path"]]
        clips = gather_with_gradient(torch.tensor(names, device=self._device))
        starts, paces = gather_with_gradient(batch["start_idx"]), gather_with_gradient(batch["pace"])
        per_run = windows_per_run(self.config)
        if per_run > 1:
            later = self.config.model.window_stride * torch.arange(per_run, device=starts.device)
            clips, paces = clips.repeat_interleave(per_run), paces.repeat_interleave(per_run)
            starts = (starts[:, None] + later).flatten()
        moments = starts * paces
        return (clips[:, None] == clips) & ((moments[:, None] - moments).abs() < MIN_SHIFT)

    def validate(self, model: nn.Module, step: int, folder: Path) -> dict[str, float]:
        """On held-out clips: accuracy, the share of pairs, half of them in sync, where (similarity > 0.5) is right;
        preference, the share of windows closer to their own sound than to sound at least 6 frames off; loss, the
        cross-entropy of those pairs."""
        if self.judged is None:
            return {}
        own, other = [], []
        for batch in self._judged_batches():
            images = self._images(batch["frames"].to(self._device))
            vision, audio = model(images, self._sound(batch["audio_samples"].to(self._device)))
            _, wrong = model(images, self._sound(batch["other_samples"].to(self._device)))
            own.append(similarity(vision, audio).cpu())
            other.append(similarity(vision, wrong).cpu())
        return judge(torch.cat(own), torch.cat(other))

    def _judged_batches(self) -> Iterator[dict[str, Any]]:
        """The same samples each time, in batches on the CPU; those that cannot be read are named and left out."""
        draws = [Draw(key % len(self.judged), key) for key in range(self.config.data.num_val_samples)]
        loader = DataLoader(
            Subset(self.judged, draws),
            JUDGED_AT_ONCE,
            num_workers=self.config.data.num_workers,
            collate_fn=collate,
        )
        usable = 0
        for batch in loader:
            if "error" in batch:
                logger.warning("validation leaves out %d pairs: %s", JUDGED_AT_ONCE, batch["error"])
                continue
            usable += 1
            yield batch
        if not usable:
            raise UserError(f"{self.config.data.val_fileslist}: none of the clips can be read; process them again")

    def export(self, state_dict: dict[str, Tensor], step: int, path: Path) -> None:
        weights = {name.removeprefix(PREFIX): tensor for name, tensor in state_dict.items()}
        save_checkpoint(path, weights, step)

    def advise(self, step: int, means: Mapping[str, float]) -> str | None:
        return self._watch.look(step, means["loss"]) if "loss" in means else None


def judge(own: Tensor, other: Tensor) -> dict[str, float]:
    """Measures of cosine similarities, (N,) of windows with their own sound and (N,) with sound that is off."""
    right = (own > 0.5).float().mean() + (other <= 0.5).float().mean()
    loss = -(own.clamp(1e-6, 1).log().mean() + (1 - other).clamp(1e-6, 1).log().mean()) / 2
    return {
        "accuracy": float(right / 2),
        "preference": float((own > other).float().mean()),
        "loss": float(loss),
        "similarity_in_sync": float(own.mean()),
        "similarity_off": float(other.mean()),
    }


def _found(vision: Tensor, audio: Tensor, same: Tensor) -> Tensor:
    """Share of the windows whose own sound is the closest of the batch's: a scalar in [0, 1]."""
    alike = vision.float() @ audio.float().T
    own = torch.eye(len(alike), dtype=torch.bool, device=alike.device)
    alike = alike.masked_fill(same & ~own, float("-inf"))
    return (alike.argmax(1) == torch.arange(len(alike), device=alike.device)).float().mean()
