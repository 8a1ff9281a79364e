"""Training of a SyncNet: classifying pairs as in or out of sync, or contrasting all pairs of a large batch.

Legend: B samples of a process, N of all processes, F frames, C channels, H W pixels or latent cells, D width.
"""

import logging
import math
import zlib
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, Subset

from latentsync.checkpoints.loading import load_checkpoint, load_into, save_checkpoint
from latentsync.config.syncnet import SyncNetFileConfig
from latentsync.data.sampler import SampleId, collate
from latentsync.data.syncnet_dataset import MIN_SHIFT, SyncNetDataset
from latentsync.models.syncnet_input import audio_input, visual_input
from latentsync.models.syncnets import make_syncnet
from latentsync.models.vae import LatentCodec
from latentsync.training.distributed import gather_with_gradient
from latentsync.training.sync_losses import IN_SYNC_THRESHOLD, contrastive_loss, cosine_loss, pair_accuracy, similarity
from latentsync.training.syncnet_setup import SyncNetData
from latentsync.training.task import Share
from latentsync.utils.errors import UserError
from latentsync.utils.paths import project_path

logger = logging.getLogger(__name__)
PREFIX = "network."  # of the network's parameter names within GradientCache
VALIDATION_BATCH = 64
ENCODING_BATCH = 64
GUESS = math.log(2)  # binary cross-entropy of the answer 0.5 for every pair
NEAR = 0.015
WINDOW = 20  # logged rows
GOOD_BATCH, BEST_BATCH = 256, 1024

CAUSES = (
    "Check the data first: faces aligned (the mouth in the same place in every clip), the audio offset measured and "
    "corrected, audio and video of the same recording. "
    f"Then the batch: {BEST_BATCH} works best, {GOOD_BATCH} oscillates, 128 stays at the plateau (run.contrastive with "
    "run.gradient_cache_chunk brings 1024 onto one GPU). Networks on 25 frames stall where 16 do not. "
    "Some hundred to a few thousand steps on the plateau are usual; far more are not."
)


def build_syncnet(config: SyncNetFileConfig) -> nn.Module:
    """Fresh from the seed, or `ckpt.resume_ckpt_path`. Raises UserError when that does not fit."""
    torch.manual_seed(config.run.seed)
    if config.ckpt.resume_ckpt_path:
        checkpoint = load_checkpoint(project_path(config.ckpt.resume_ckpt_path))
        return load_into(lambda: make_syncnet(config.model), checkpoint, exact=True)
    return make_syncnet(config.model)


def windows_per_item(config: SyncNetFileConfig) -> int:
    """Windows, samples of the contrastive loss, per item of the dataset."""
    beyond = (config.data.run_frames or config.data.num_frames) - config.data.num_frames
    return beyond // config.model.window_stride + 1 if beyond else 1


class GradientCache(nn.Module):
    """A SyncNet for large contrastive batches on one device: it computes in chunks, the loss takes the whole batch.

    Gradient caching (Gao et al. 2021): all chunks are embedded without a graph; the loss of all embeddings gives a
    gradient for each of them; then each chunk is embedded once more, with a graph, and takes its share of that
    gradient. This is activation checkpointing with chunks of the batch as segments instead of layers, so that is what
    is used: the gradient of the whole batch, the memory of one chunk, for a second forward pass.

    Args:
        network: the SyncNet.
        chunk: samples per chunk, 0 for all at once.

    Raises:
        UserError: `chunk` is set and the network normalizes over the batch, which then depends on the chunks.
    """

    def __init__(self, network: nn.Module, chunk: int = 0) -> None:
        super().__init__()
        if chunk and any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules()):
            raise UserError("gradient_cache_chunk cannot be used with batch norm; set it to 0")
        self.network, self.chunk = network, chunk

    def forward(self, image_sequences: Tensor, audio_sequences: Tensor) -> tuple[Tensor, Tensor]:
        """The network's own: (B, ...), (B, ...) -> (B, D), (B, D)."""
        if not self.chunk or not torch.is_grad_enabled() or len(image_sequences) <= self.chunk:
            return self.network(image_sequences, audio_sequences)
        chunks = zip(image_sequences.split(self.chunk), audio_sequences.split(self.chunk), strict=True)
        embeds = [checkpoint(self.network, *chunk, use_reentrant=False) for chunk in chunks]
        vision, audio = zip(*embeds, strict=True)
        return torch.cat(vision), torch.cat(audio)


def explain_small_batch(batch: int) -> str | None:
    """A warning for a batch (over all processes and accumulation) that is known to be too small."""
    if batch >= GOOD_BATCH:
        return None
    return (
        f"a batch of {batch} pairs is small for a SyncNet: below {GOOD_BATCH} the loss tends to stay at 0.69, the value"
        f" of a guess; {GOOD_BATCH} to {BEST_BATCH} is better (more GPUs, gradient accumulation, or run.contrastive)"
    )


class PlateauWatch:
    """Detects a loss that stays at the value of random guessing.

    Args:
        guess: ln 2 for pairs judged 0 or 1; ln B for a contrastive batch of B.
        from_step: earlier steps are ignored.
    """

    def __init__(self, guess: float = GUESS, from_step: int = 500) -> None:
        self.guess, self.from_step = guess, from_step
        self.losses: deque[float] = deque(maxlen=WINDOW)
        self.next_warning = from_step

    def update(self, step: int, loss: float) -> str | None:
        """Record a logged loss; returns an explanation when it is stuck, again each time the step has doubled."""
        self.losses.append(loss)
        stuck = len(self.losses) == WINDOW and abs(sum(self.losses) / WINDOW - self.guess) < NEAR * self.guess / GUESS
        if not stuck or step < self.next_warning:
            return None
        self.next_warning = 2 * step
        return (
            f"the loss has stayed at {sum(self.losses) / WINDOW:.2f} up to step {step}: {self._guess_meaning()},"
            f" nothing is learned yet. {CAUSES}"
        )

    def _guess_meaning(self) -> str:
        if math.isclose(self.guess, GUESS):
            return "0.69 = ln 2 is the loss of answering 0.5 to every pair"
        return f"ln B = {self.guess:.2f} is the loss of a random guess among the B samples of the batch"


class SyncNetTask:
    """`latentsync.training.task.Task` of a SyncNet.

    Args:
        config: a whole SyncNet config.
        data: builds its datasets.
        codec: autoencoder, for data.latent_space; else None.
        world_size: training processes, for the warnings about the batch.

    Raises:
        UserError: the weights to start from, or the clips, cannot be used.
    """

    name = "syncnet"
    validate_export = None

    def __init__(
        self, config: SyncNetFileConfig, data: SyncNetData, codec: LatentCodec | None = None, world_size: int = 1
    ) -> None:
        self.config, self.codec = config, codec
        self.model = GradientCache(build_syncnet(config), config.run.gradient_cache_chunk).train()
        self.discriminators: dict[str, nn.Module] = {}
        self._data = data
        self._dataset: SyncNetDataset | None = None
        self.validation_pairs = data.validation()
        if self.validation_pairs is None:
            logger.warning("data.val_fileslist is empty: there will be no accuracy on held-out clips")
        self._device, self._dtype = torch.device("cpu"), torch.float32
        self._watch = self._watch_batch(world_size)

    def _watch_batch(self, world_size: int) -> PlateauWatch:
        """Watches for the plateau; warns of a batch that is known to be too small."""
        batch, run = self.config.data.batch_size * world_size, self.config.run
        if run.contrastive:
            return PlateauWatch(math.log(batch * windows_per_item(self.config)))
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
        vision, audio = model(self._images(batch["frames"]), self._audio(batch["audio_samples"]))
        if not self.config.run.contrastive:
            y = batch["y"]
            return {
                "loss": cosine_loss(vision, audio, y),
                "accuracy": pair_accuracy(vision.detach(), audio.detach(), y),
            }
        vision, audio = gather_with_gradient(vision), gather_with_gradient(audio)
        same = self._same_moment(batch)
        loss = contrastive_loss(vision, audio, self.config.run.temperature, same)
        return {"loss": loss, "accuracy": _retrieval_accuracy(vision.detach(), audio.detach(), same)}

    def _images(self, frames: Tensor) -> Tensor:
        """Frames or latents of a dataset, (B, F, C, H, W) -> input of the visual encoder, (B, F * C, H', W')."""
        data = self.config.data
        if not data.latent_space or data.cache_latents:
            return visual_input(frames, halve=False)  # halved by the dataset if asked for
        assert self.codec is not None
        autocast = torch.autocast(self._device.type, self._dtype, enabled=self._dtype != torch.float32)
        with autocast, torch.no_grad():
            batches = rearrange(frames, "b f c h w -> (b f) c h w").split(ENCODING_BATCH)
            latents = torch.cat([self.codec.encode(batch) for batch in batches]).float()
        return visual_input(rearrange(latents, "(b f) c h w -> b f c h w", b=len(frames)), data.lower_half)

    def _audio(self, samples: Tensor) -> Tensor:
        return audio_input(samples, self.config.data.audio_features)

    def _same_moment(self, batch: Mapping[str, Any]) -> Tensor:
        """(N, N) bool: windows of one clip less than 6 frames apart, too close to be negatives.

        N counts the windows of all processes; those of an item are consecutive.
        """
        names = [zlib.crc32(path.encode()) for path in batch["video_path"]]
        clips = gather_with_gradient(torch.tensor(names, device=self._device))
        starts, paces = gather_with_gradient(batch["start_idx"]), gather_with_gradient(batch["pace"])
        per_item = windows_per_item(self.config)
        if per_item > 1:
            later = self.config.model.window_stride * torch.arange(per_item, device=starts.device)
            clips, paces = clips.repeat_interleave(per_item), paces.repeat_interleave(per_item)
            starts = (starts[:, None] + later).flatten()
        moments = starts * paces
        return (clips[:, None] == clips) & ((moments[:, None] - moments).abs() < MIN_SHIFT)

    def validate(self, model: nn.Module, step: int, folder: Path, share: Share) -> dict[str, list[float]]:
        """On held-out clips: accuracy, the share of pairs, half of them in sync, where (similarity > 0.5) is right;
        preference, the share of windows closer to their own audio than to audio at least 6 frames off; loss, the
        cross-entropy of those pairs."""
        if self.validation_pairs is None:
            return {}
        own, other = [], []
        for batch in self._validation_batches(share):
            images = self._images(batch["frames"].to(self._device))
            vision, audio = model(images, self._audio(batch["audio_samples"].to(self._device)))
            _, wrong = model(images, self._audio(batch["other_samples"].to(self._device)))
            own.append(similarity(vision, audio).cpu())
            other.append(similarity(vision, wrong).cpu())
        return pair_values(torch.cat(own), torch.cat(other)) if own else {}

    def _validation_batches(self, share: Share) -> Iterator[dict[str, Any]]:
        """The same samples each time, in batches on the CPU; unreadable ones are logged and left out."""
        pairs = self.validation_pairs
        assert pairs is not None
        samples = share.of([SampleId(key % len(pairs), key) for key in range(self.config.data.num_val_samples)])
        loader = DataLoader(
            Subset(pairs, samples),  # type: ignore[arg-type]  # indexed by SampleId
            VALIDATION_BATCH,
            num_workers=self.config.data.num_workers,
            collate_fn=collate,
        )
        usable = 0
        for batch in loader:
            if "error" in batch:
                logger.warning("validation leaves out %d pairs: %s", VALIDATION_BATCH, batch["error"])
                continue
            usable += 1
            yield batch
        if samples and not usable:
            raise UserError(f"{self.config.data.val_fileslist}: none of the clips can be read; process them again")

    def export(self, state_dict: dict[str, Tensor], step: int, path: Path) -> None:
        weights = {name.removeprefix(PREFIX): tensor for name, tensor in state_dict.items()}
        save_checkpoint(path, weights, step)

    def advise(self, step: int, means: Mapping[str, float]) -> str | None:
        return self._watch.update(step, means["loss"]) if "loss" in means else None


def pair_values(own: Tensor, other: Tensor) -> dict[str, list[float]]:
    """Values whose means are the metrics, of cosine similarities (N,) of windows with their own audio and (N,) with
    audio that is off."""
    right = torch.cat([own > IN_SYNC_THRESHOLD, other <= IN_SYNC_THRESHOLD])
    losses = torch.cat([-own.clamp(1e-6, 1).log(), -(1 - other).clamp(1e-6, 1).log()])
    return {
        "accuracy": right.float().tolist(),
        "preference": (own > other).float().tolist(),
        "loss": losses.tolist(),
        "similarity_in_sync": own.tolist(),
        "similarity_off": other.tolist(),
    }


def _retrieval_accuracy(vision: Tensor, audio: Tensor, same: Tensor) -> Tensor:
    """Share of the windows whose own audio is the closest in the batch: a scalar in [0, 1]."""
    similarities = vision.float() @ audio.float().T
    own = torch.eye(len(similarities), dtype=torch.bool, device=similarities.device)
    similarities = similarities.masked_fill(same & ~own, float("-inf"))
    return (similarities.argmax(1) == torch.arange(len(similarities), device=similarities.device)).float().mean()
