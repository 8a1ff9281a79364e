"""Training clips encoded once: which copies of them, under which names, and how processes share the work."""

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from latentsync.data.cache import file_digest
from latentsync.data.clips import Clip
from latentsync.data.encoded_clips import ClipEncoder, EncodedClip
from latentsync.models.vae import WEIGHTS_NAMES, LatentCodec
from latentsync.utils.config import DataConfig
from latentsync.utils.errors import UserError
from latentsync.utils.syncnet_config import SyncNetDataConfig
from latentsync.whisper.audio2feature import Audio2Feature

logger = logging.getLogger(__name__)

PLENTY = 40  # clips of one person from which on a mirrored, recoloured copy of each is not added
KEY_DIGITS = 16


def cache_key(vae_path: Path, whisper_path: Path, mask: Tensor) -> str:
    """Name of everything but the clip that an encoded clip depends on."""
    weights = next((vae_path / name for name in WEIGHTS_NAMES if (vae_path / name).is_file()), vae_path)
    digest = hashlib.sha256(f"{file_digest(weights)} {file_digest(whisper_path)}".encode())
    digest.update(mask.numpy().tobytes())
    return digest.hexdigest()[:KEY_DIGITS]


def latent_cache_dir(data: DataConfig | SyncNetDataConfig) -> Path:
    """Where a trainer keeps what it has found out about clips."""
    return Path(data.latent_cache_dir or Path(data.train_output_dir) / "encoded")


def variants(clips: Sequence[Clip], recoloured_copies: bool) -> list[tuple[Clip, int]]:
    """Clips with the variants of them to encode, see `ClipEncoder.encode`; 0 is the clip as it is."""
    if not recoloured_copies:
        return [(clip, 0) for clip in clips]
    per_person = Counter(clip.person for clip in clips)
    wanted = []
    for index, clip in enumerate(clips):
        rare = per_person[clip.person] < PLENTY
        wanted += [(clip, variant) for variant in ((0, index + 1) if rare else (index + 1 if index % 2 else 0,))]
    return wanted


def encode_clips(
    clips: Sequence[Clip],
    data: DataConfig | SyncNetDataConfig,
    codec: LatentCodec,
    audio: Audio2Feature,
    mask: Tensor,
    key: str,
    recoloured_copies: bool,
) -> list[EncodedClip]:
    """Clips with the copies asked for, encoded where the cache does not hold them; processes share the work.

    Args:
        data: of either trainer's config: where the cache is, and the frame rate.
        codec: moved to this process's GPU where there is one.
        key: see `cache_key`.

    Raises:
        UserError: see `ClipEncoder.encode_all`.
    """
    if torch.cuda.is_available():
        codec.to(f"cuda:{os.environ.get('LOCAL_RANK', 0)}")
    encoder = ClipEncoder(codec, audio, mask, latent_cache_dir(data), key, data.video_fps)
    return encoder.encode_all(_own_share_first(variants(clips, recoloured_copies), encoder))


def _own_share_first(wanted: list[tuple[Clip, int]], encoder: ClipEncoder) -> tqdm:
    """Where several processes train, each first encodes every n-th clip, so that they share the work."""
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    for clip, variant in wanted[rank::world] if world > 1 else ():
        try:
            encoder.encode(clip, variant)
        except UserError as error:  # told by the pass over all clips, in every process alike
            logger.debug("%s", error)
    return tqdm(wanted, desc="encoding clips", disable=rank > 0)
