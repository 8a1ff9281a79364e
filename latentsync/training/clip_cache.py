"""Training clips encoded once: which copies of them, under which names, and how processes share the work."""

import hashlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from latentsync.data.cache import file_digest
from latentsync.data.clips import Clip
from latentsync.data.encoded_clips import ClipEncoder, EncodedClip
from latentsync.models.vae import WEIGHTS_NAMES
from latentsync.utils.config import DataConfig
from latentsync.utils.errors import UserError
from latentsync.utils.syncnet_config import SyncNetDataConfig

logger = logging.getLogger(__name__)

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


def encode_clips(encoder: ClipEncoder, clips: Sequence[Clip], copies: int = 0) -> list[EncodedClip]:
    """Clips, each followed by so many copies of it; processes share the work of encoding what the cache does not hold.

    Args:
        encoder: its codec is moved to this process's GPU where there is one.

    Raises:
        UserError: see `ClipEncoder.encode_all`.
    """
    if torch.cuda.is_available():
        encoder.codec.to(f"cuda:{os.environ.get('LOCAL_RANK', 0)}")
    wanted = [(clip, variant) for clip in clips for variant in range(copies + 1)]
    return encoder.encode_all(_own_share_first(wanted, encoder))


def _own_share_first(wanted: Sequence[tuple[Clip, int]], encoder: ClipEncoder) -> tqdm:
    """Where several processes train, each first encodes every n-th clip, so that they share the work."""
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    for clip, variant in wanted[rank::world] if world > 1 else ():
        try:
            encoder.encode(clip, variant)
        except UserError as error:  # told by the pass over all clips, in every process alike
            logger.debug("%s", error)
    return tqdm(wanted, desc="encoding clips", disable=rank > 0)
