"""The UNet's training clips: read as pixels, or encoded once into a cache."""

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
from latentsync.data.clips import Clip, read_fileslist
from latentsync.data.encoded_clips import ClipEncoder
from latentsync.data.latent_dataset import LatentClipDataset
from latentsync.data.sound import MelReader
from latentsync.data.unet_dataset import UNetDataset
from latentsync.faces.mask import load_mask
from latentsync.models.vae import WEIGHTS_NAMES, LatentCodec
from latentsync.utils.config import UNetFileConfig
from latentsync.utils.errors import UserError
from latentsync.utils.registry import project_path
from latentsync.whisper.audio2feature import Audio2Feature

logger = logging.getLogger(__name__)

PLENTY = 40  # clips of one person from which on a mirrored, recoloured copy of each is not added
KEY_DIGITS = 16


def build_dataset(
    config: UNetFileConfig, codec: LatentCodec, vae_path: Path, whisper_path: Path, with_mel: bool
) -> UNetDataset | LatentClipDataset:
    """What `config` asks for: pixels, or with `run.cache_latents` latents (and pixels where losses need them).

    Args:
        codec: encodes the clips that are not in the cache yet; on this process's GPU where there is one.
        vae_path, whisper_path: where its and the audio encoder's weights are; they are part of the cache's names.
        with_mel: whether the sync loss hears the SyncNet mel.

    Raises:
        UserError: the file list or its clips are not fit, see `read_fileslist`, `UNetDataset`, `ClipEncoder`.
    """
    data, run = config.data, config.run
    if not data.train_fileslist:
        raise UserError("data.train_fileslist is empty; write a list of clips with `python -m tools.write_fileslist`")
    clips = read_fileslist(project_path(data.train_fileslist), data.train_data_dir or None)
    mask = load_mask(data.resolution, data.mask_image_path or None)
    # Of its own and on the CPU: worker processes use it.
    states = data.audio_embeds_cache_dir or Path(data.train_output_dir) / "audio_embeds"
    audio = Audio2Feature(whisper_path, "cpu", states, data.num_frames, data.audio_feat_length)
    if not run.cache_latents:
        return UNetDataset(
            clips,
            audio,
            mask,
            run.seed,
            fps=data.video_fps,
            mel_cache_dir=data.audio_mel_cache_dir,
            augmentation=data.augment,
        )
    if torch.cuda.is_available():
        codec.to(f"cuda:{os.environ.get('LOCAL_RANK', 0)}")
    key = cache_key(vae_path, whisper_path, mask)
    cache = Path(data.latent_cache_dir or Path(data.train_output_dir) / "encoded")
    encoder = ClipEncoder(codec, audio, mask, cache, key, data.video_fps)
    return LatentClipDataset(
        encoder.encode_all(_own_share_first(variants(clips, data.recoloured_copies), encoder)),
        data.audio_feat_length,
        data.num_frames,
        run.seed,
        fps=data.video_fps,
        mels=MelReader(data.audio_mel_cache_dir, data.video_fps) if with_mel else None,
        with_pixels=run.pixel_space_supervise,
    )


def cache_key(vae_path: Path, whisper_path: Path, mask: Tensor) -> str:
    """Name of everything but the clip that an encoded clip depends on."""
    weights = next((vae_path / name for name in WEIGHTS_NAMES if (vae_path / name).is_file()), vae_path)
    digest = hashlib.sha256(f"{file_digest(weights)} {file_digest(whisper_path)}".encode())
    digest.update(mask.numpy().tobytes())
    return digest.hexdigest()[:KEY_DIGITS]


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


def _own_share_first(wanted: list[tuple[Clip, int]], encoder: ClipEncoder) -> tqdm:
    """Where several processes train, each first encodes every n-th clip, so that they share the work."""
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    for clip, variant in wanted[rank::world] if world > 1 else ():
        try:
            encoder.encode(clip, variant)
        except UserError as error:  # told by the pass over all clips, in every process alike
            logger.debug("%s", error)
    return tqdm(wanted, desc="encoding clips", disable=rank > 0)
