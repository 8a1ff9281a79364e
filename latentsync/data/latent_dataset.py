"""Stage-1 training data, encoded once: latents of a clip's faces beside the audio states of its sound.

Legend: T frames of a clip, F frames of a run, C latent channels, h latent cells, S audio tokens, D width.
"""

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from latentsync.data.clips import Clip, read_frames
from latentsync.models.vae import LatentCodec
from latentsync.utils.errors import UserError
from latentsync.whisper.audio2feature import Audio2Feature

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EncodedClip:
    """latents, masked_latents (T, C, h, h); audio_states (50 rows a second, layers, D); all float16."""

    person: str
    latents: Tensor
    masked_latents: Tensor
    audio_states: Tensor


def jitter_clip(frames: Tensor, seed: int) -> Tensor:
    """Mirror a clip and shift its colours, the same way in every frame: a cheap second person.

    frames float (T, 3, R, R) in [-1, 1]; returns the same shape and range.
    """
    rng = torch.Generator().manual_seed(seed)
    gain = 0.75 + 0.5 * torch.rand(1, 1, 1, 1, generator=rng)
    tint = 1 + 0.2 * (torch.rand(1, 3, 1, 1, generator=rng) - 0.5)
    level = 0.3 * (torch.rand(1, 1, 1, 1, generator=rng) - 0.5)
    gamma = 0.75 + 0.6 * torch.rand(1, 1, 1, 1, generator=rng)
    bright = ((frames.flip(-1) + 1) / 2).clamp(0, 1) ** gamma
    return ((bright * 2 - 1) * gain * tint + level).clamp(-1, 1)


def file_digest(path: str | Path) -> str:
    """First 16 hex digits of the file's SHA-256: caches follow the content, never the name."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


class ClipEncoder:
    """Encodes clips with a codec and the audio encoder, keeping the result in `cache_dir`."""

    def __init__(self, codec: LatentCodec, audio: Audio2Feature, mask: Tensor, cache_dir: str | Path, key: str):
        self.codec, self.audio, self.mask = codec, audio, mask
        self.cache_dir, self.key = Path(cache_dir), key
        self.cache_dir.mkdir(parents=True, exist_ok=True)

    def encode(self, clip: Clip, variant: int = 0) -> EncodedClip:
        """`variant` 0 is the clip as it is; any other number seeds `jitter_clip`."""
        cached = self.cache_dir / f"{file_digest(clip.path)}_{self.key}_{variant}.safetensors"
        if not cached.is_file():
            temporary = cached.with_suffix(".tmp")
            save_file(self._compute(clip, variant), temporary)
            temporary.replace(cached)
        tensors = load_file(cached)
        return EncodedClip(clip.person, tensors["latents"], tensors["masked_latents"], tensors["audio_states"])

    @torch.no_grad()
    def _compute(self, clip: Clip, variant: int) -> dict[str, Tensor]:
        frames = torch.from_numpy(read_frames(clip.path)).permute(0, 3, 1, 2).float() / 127.5 - 1
        if variant:
            frames = jitter_clip(frames, variant)
        parts = frames.split(16)
        latents = torch.cat([self.codec.encode(part) for part in parts])
        masked = torch.cat([self.codec.encode(part * self.mask) for part in parts])
        tensors = {"latents": latents, "masked_latents": masked, "audio_states": self.audio.audio2feat(clip.path)}
        return {name: tensor.half().contiguous() for name, tensor in tensors.items()}


class LatentClipDataset(torch.utils.data.Dataset):
    """Runs of `num_frames` frames with a reference run of the same clip that does not overlap them.

    The index picks the clip; where the run starts is drawn from `seed` and the number of times the
    clip was asked for, so a restarted run sees fresh windows and equal seeds see equal ones.
    """

    def __init__(self, clips: list[EncodedClip], audio: Audio2Feature, num_frames: int, seed: int = 1247):
        self.clips = [clip for clip in clips if len(clip.latents) >= 2 * num_frames]
        if not self.clips:
            raise UserError(f"no clip is long enough: {2 * num_frames} frames are needed for a run and its reference")
        if len(self.clips) < len(clips):
            logger.warning(
                "%d clips are shorter than %d frames: left out", len(clips) - len(self.clips), 2 * num_frames
            )
        self.audio, self.num_frames = audio, num_frames
        self.rng = np.random.default_rng(seed)

    def __len__(self) -> int:
        return len(self.clips)

    def person_weights(self) -> Tensor:
        """Sampling weight of each clip so that a person counts with the square root of the clips there are."""
        people = [clip.person for clip in self.clips]
        return torch.tensor([people.count(person) ** -0.5 for person in people], dtype=torch.double)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        clip, run = self.clips[index], self.num_frames
        total = len(clip.latents)
        starts = range(total - run + 1)
        start = int(self.rng.choice([s for s in starts if s >= run or s <= total - 2 * run]))
        reference = int(self.rng.choice([s for s in starts if abs(s - start) >= run]))
        return {
            "latents": clip.latents[start : start + run].float(),
            "masked_latents": clip.masked_latents[start : start + run].float(),
            "ref_latents": clip.latents[reference : reference + run].float(),
            "audio": self.audio.crop_overlap_audio_window(clip.audio_states, start).float(),
        }
