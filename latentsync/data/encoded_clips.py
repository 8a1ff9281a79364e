"""Clips encoded once: latents of the faces and audio states, in cache files that are read window by window.

Legend: T frames of a clip, C latent channels, h latent cells of a side, R pixels of a side.
"""

import hashlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from latentsync.constants import FPS
from latentsync.data.cache import DIGEST_DIGITS, CacheWriteError, entry_shapes, fetch_rows, file_digest, store
from latentsync.data.clips import Clip, read_frames, some, to_pixel_values
from latentsync.data.table import Table, write_table
from latentsync.models.vae import WEIGHTS_NAMES, LatentCodec
from latentsync.utils.errors import UserError
from latentsync.whisper.audio2feature import Audio2Feature

logger = logging.getLogger(__name__)

BATCH_FRAMES = 16
KEY_DIGITS = 16
TENSORS = {"latents", "masked_latents", "audio_states"}


@dataclass(frozen=True)
class EncodedClip(Clip):
    """A clip and its cache entry: latents, masked_latents (T, C, h, h); audio_states (50 rows a second, layers, D).

    num_rows: rows of audio_states. pace: frames of the original clip per frame, for copies at another speed.
    """

    entry: Path = Path()
    num_rows: int = 0
    pace: Fraction = Fraction(1)

    def read(self, **rows: range) -> dict[str, Tensor]:
        """Consecutive rows of the named tensors as float32, for example `read(latents=range(3, 19))`.

        Raises:
            UserError: the cache entry is damaged or gone.
        """
        return fetch_rows(self.entry, rows)

    def pixels(self, indices: np.ndarray, fps: float) -> Tensor:
        """Frames as they were encoded: (n,) of them -> float32 (n, 3, R, R) in [-1, 1].

        Raises:
            UserError: see `read_frames`.
        """
        with self.local() as path:
            return to_pixel_values(read_frames(path, indices, fps=fps))


@dataclass(frozen=True)
class ClipSource:
    """The input of an encoder: batches of consecutive frames, (n, 3, R, R) in [-1, 1], and the audio states."""

    batches: Iterator[Tensor]
    audio_states: Tensor


EncodingJob = Callable[[], EncodedClip]


class ClipEncoder:
    """Encodes clips with a codec and an audio encoder, and keeps the result in `cache_dir`.

    Several processes may share the directory. Latents are computed on the device of the codec.

    Args:
        codec: autoencoder.
        audio: audio encoder.
        mask: (1, 1, R, R), 1 keeps a pixel.
        cache_dir: created if it does not exist.
        key: identifies codec, audio encoder and mask, see `cache_key`; other keys have other entries.
        fps: frame rate that clips must have.
    """

    def __init__(
        self, codec: LatentCodec, audio: Audio2Feature, mask: Tensor, cache_dir: str | Path, key: str, fps: float = FPS
    ) -> None:
        self.codec, self.audio, self.mask, self.fps = codec, audio, mask, fps
        self.cache_dir, self.key = Path(cache_dir), key

    def encode(self, clip: Clip) -> EncodedClip:
        """Encode a clip, or find its cache entry.

        Raises:
            UserError: the clip cannot be read, does not have the mask's resolution and `fps`, or the entry cannot be
                written.
        """

        def source() -> ClipSource:
            with clip.local() as path:
                return ClipSource(frame_batches(self.read(clip)), self.audio.audio2feat(path, clip.digest))

        entry, frames, rows = self.cached(clip, "0", source)
        encoded = EncodedClip(clip.path, clip.person, frames, entry, rows)
        return replace(encoded, digest=clip.digest, offset=clip.offset, size=clip.size)

    def read(self, clip: Clip) -> np.ndarray:
        """All frames of a clip, (T, R, R, 3) uint8. Raises UserError."""
        with clip.local() as path:
            return read_frames(path, resolution=self.mask.shape[-1], fps=self.fps)

    def cached(self, clip: Clip, name: str, source: Callable[[], ClipSource]) -> tuple[Path, int, int]:
        """The cache entry `name` of a clip, its frames and audio rows; encoded from `source` if it does not exist."""
        entry = self.cache_dir / f"{clip.content_digest[:DIGEST_DIGITS]}_{self.key}_{name}.safetensors"
        shapes = entry_shapes(entry)
        if shapes is None or not TENSORS <= shapes.keys():
            tensors = self._compute(source())
            store(entry, tensors)
            shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        return entry, shapes["latents"][0], shapes["audio_states"][0]

    def jobs(self, clips: Sequence[Clip]) -> list[EncodingJob]:
        """The default jobs of `encode_all`: clips without augmentation."""
        return [partial(self.encode, clip) for clip in clips]

    @torch.no_grad()
    def _compute(self, source: ClipSource) -> dict[str, Tensor]:
        latents, masked = [], []
        for pixels in source.batches:
            latents.append(self.codec.encode(pixels).cpu())
            masked.append(self.codec.encode(pixels * self.mask).cpu())
        tensors = {"latents": torch.cat(latents), "masked_latents": torch.cat(masked)}
        tensors["audio_states"] = source.audio_states
        return {name: tensor.half().contiguous() for name, tensor in tensors.items()}


def encode_all(encoder: ClipEncoder, jobs: Sequence[EncodingJob]) -> list[EncodedClip]:
    """Run encoding jobs; training processes share the work. Unreadable clips are left out and named in a warning.

    Args:
        encoder: its codec is moved to this process's GPU where there is one.

    Raises:
        UserError: none can be encoded, or an entry cannot be written.
    """
    if torch.cuda.is_available():
        encoder.codec.to(f"cuda:{os.environ.get('LOCAL_RANK', 0)}")
    encoded, failed = [], []
    for job in _own_share_first(jobs):
        try:
            encoded.append(job())
        except CacheWriteError:
            raise
        except UserError as error:
            logger.debug("%s", error)
            failed.append(error)
    if not encoded:
        raise failed[0] if failed else UserError("there are no clips to encode; give a file list that is not empty")
    if failed:
        names = some([str(error) for error in failed])
        logger.warning("%d clips cannot be encoded and are left out: %s", len(failed), names)
    return encoded


def encode_once(
    encoder: ClipEncoder, clips: Table[Clip], make_jobs: Callable[[Sequence[Clip]], list[EncodingJob]], identity: str
) -> Sequence[EncodedClip]:
    """`encode_all`, whose result is kept in an index beside that of the clips: later starts open no cache entry.

    Args:
        make_jobs: gives the encoding jobs of the clips.
        identity: of everything but clips and encoder that the result depends on.

    Raises:
        UserError: see `encode_all`; or the index cannot be written.
    """
    key = hashlib.sha256(repr((clips.path.name, encoder.key, os.path.abspath(encoder.cache_dir), identity)).encode())
    index = clips.path.with_name(f"encoded-{key.hexdigest()[:KEY_DIGITS]}.npy")
    if index.is_file():
        found = Table(index, EncodedClip)
        present = {os.fsencode(entry.path) for entry in os.scandir(encoder.cache_dir)}
        if all(entry in present for entry in found.column("entry").tolist()):
            return found
    encoded = encode_all(encoder, make_jobs(clips))
    if any(type(clip) is not EncodedClip for clip in encoded):  # a recipe's own kinds
        return encoded
    return write_table(index, EncodedClip, encoded)


def _own_share_first(jobs: Sequence[EncodingJob]) -> tqdm:
    """Of several training processes each first encodes every n-th clip, so that they share the work."""
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    for job in jobs[rank::world] if world > 1 else ():
        try:
            job()
        except UserError as error:  # reported by the pass over all clips, in every process alike
            logger.debug("%s", error)
    return tqdm(jobs, desc="encoding clips", disable=rank > 0)


def cache_key(vae_path: Path, whisper_path: Path, mask: Tensor) -> str:
    """Identifies everything but the clip that an encoded clip depends on."""
    weights = next((vae_path / name for name in WEIGHTS_NAMES if (vae_path / name).is_file()), vae_path)
    digest = hashlib.sha256(f"{file_digest(weights)} {file_digest(whisper_path)}".encode())
    digest.update(mask.numpy().tobytes())
    return digest.hexdigest()[:KEY_DIGITS]


def frame_batches(frames: np.ndarray) -> Iterator[Tensor]:
    """(T, R, R, 3) uint8 -> float32 (n, 3, R, R) in [-1, 1], at most 16 frames at a time."""
    for start in range(0, len(frames), BATCH_FRAMES):
        yield to_pixel_values(frames[start : start + BATCH_FRAMES])
