"""Clips encoded once: latents of the faces beside the audio states of the sound, in cache files read run by run.

Legend: T frames of a clip, F frames of a run, C latent channels, h latent cells of a side, R pixels of a side.
"""

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from latentsync.data.cache import CacheWriteError, entry_shapes, fetch_rows, file_digest, store
from latentsync.data.clips import Clip, read_frames, some, to_pixel_values
from latentsync.data.varied_copies import SAMPLE_RATE, draw_variation, paced_frames
from latentsync.media.audio import load_audio
from latentsync.models.vae import LatentCodec
from latentsync.utils.errors import UserError
from latentsync.whisper.audio2feature import Audio2Feature

logger = logging.getLogger(__name__)

FRAMES_AT_ONCE = 16
TENSORS = {"latents", "masked_latents", "audio_states"}


@dataclass(frozen=True)
class EncodedClip(Clip):
    """A clip and its cache entry: latents, masked_latents (T, C, h, h); audio_states (50 rows a second, layers, D).

    num_rows: rows of audio_states. variant: 0 for the clip as it is, else the number of a copy, see `draw_variation`.
    pace: frames of the clip that pass in one of the latents.
    """

    entry: Path = Path()
    num_rows: int = 0
    variant: int = 0
    pace: Fraction = Fraction(1)

    def read(self, **rows: range) -> dict[str, Tensor]:
        """Consecutive rows of the named tensors as float32, for example `read(latents=range(3, 19))`.

        Raises:
            UserError: the cache entry is damaged or gone.
        """
        return fetch_rows(self.entry, rows)

    def pictures(self, indices: np.ndarray, fps: float) -> Tensor:
        """Frames as they were encoded: (n,) of them -> float32 (n, 3, R, R) in [-1, 1].

        Raises:
            UserError: see `read_frames`.
        """
        if not self.variant:
            return to_pixel_values(read_frames(self.path, indices, fps=fps))
        frames = read_frames(self.path, paced_frames(indices, self.pace), fps=fps)
        return draw_variation(self.path, self.variant).show(to_pixel_values(frames), indices, self.num_frames)


@dataclass(frozen=True)
class ClipSource:
    """What an encoder encodes: pieces of the pictures in their order, (n, 3, R, R) in [-1, 1]; states of the sound."""

    pieces: Iterator[Tensor]
    audio_states: Tensor


class ClipEncoder:
    """Encodes clips with a codec and the audio encoder, keeping the result in `cache_dir`.

    Several processes may share the directory. Latents follow the device of the codec.

    Args:
        codec: autoencoder.
        audio: audio encoder.
        mask: (1, 1, R, R), 1 keeps a pixel.
        cache_dir: where the entries go; made if need be.
        key: names codec, audio encoder and mask; other keys find other entries.
        fps: frames a second that clips must have.
    """

    def __init__(
        self, codec: LatentCodec, audio: Audio2Feature, mask: Tensor, cache_dir: str | Path, key: str, fps: float = 25.0
    ) -> None:
        self.codec, self.audio, self.mask, self.fps = codec, audio, mask, fps
        self.cache_dir, self.key = Path(cache_dir), key

    def encode(self, clip: Clip, variant: int = 0) -> EncodedClip:
        """`variant` 0 is the clip as it is; any other is the number of a copy, see `draw_variation`.

        Raises:
            UserError: the clip cannot be read, is not what the mask's resolution and `fps` ask for, or the entry
                cannot be written.
        """
        entry = self.cache_dir / f"{file_digest(clip.path)}_{self.key}_{_name(variant)}.safetensors"
        shapes = entry_shapes(entry)
        if shapes is None or not TENSORS <= shapes.keys():
            tensors = self._compute(clip, variant)
            store(entry, tensors)
            shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        frames, rows = shapes["latents"][0], shapes["audio_states"][0]
        pace = draw_variation(clip.path, variant).pace if variant else Fraction(1)
        return EncodedClip(clip.path, clip.person, frames, entry, rows, variant, pace)

    def encode_all(self, wanted: Iterable[tuple[Clip, int]]) -> list[EncodedClip]:
        """Encode (clip, variant) pairs; those that cannot be read are left out, counted and named in a warning.

        Let `examine_clips` look at the clips before: it is quick to find those of another size or rate.

        Raises:
            UserError: none can be encoded, or an entry cannot be written.
        """
        encoded, failed = [], []
        for clip, variant in wanted:
            try:
                encoded.append(self.encode(clip, variant))
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

    def _source(self, clip: Clip, variant: int) -> ClipSource:
        frames = read_frames(clip.path, resolution=self.mask.shape[-1], fps=self.fps)
        if not variant:
            return ClipSource(_pieces(frames), self.audio.audio2feat(clip.path))
        variation = draw_variation(clip.path, variant)
        length = variation.length(len(frames))
        frames = frames[paced_frames(np.arange(length), variation.pace)]
        starts = range(0, length, FRAMES_AT_ONCE)
        shown = (
            variation.show(piece, np.arange(start, start + len(piece)), length)
            for start, piece in zip(starts, _pieces(frames), strict=True)
        )
        return ClipSource(shown, self.audio.wave2feat(variation.sound(load_audio(clip.path, SAMPLE_RATE))))

    @torch.no_grad()
    def _compute(self, clip: Clip, variant: int) -> dict[str, Tensor]:
        parts = {"latents": [], "masked_latents": []}
        source = self._source(clip, variant)
        for pixels in source.pieces:
            parts["latents"].append(self.codec.encode(pixels).cpu())
            parts["masked_latents"].append(self.codec.encode(pixels * self.mask).cpu())
        tensors = {name: torch.cat(latents) for name, latents in parts.items()}
        tensors["audio_states"] = source.audio_states
        return {name: tensor.half().contiguous() for name, tensor in tensors.items()}


def _name(variant: int) -> str:
    """Of a variant, in the names of cache entries."""
    return f"varied{variant}" if variant else "0"


def _pieces(frames: np.ndarray) -> Iterator[Tensor]:
    """(T, R, R, 3) uint8 -> float32 (n, 3, R, R) in [-1, 1], at most 16 frames at a time."""
    for start in range(0, len(frames), FRAMES_AT_ONCE):
        yield to_pixel_values(frames[start : start + FRAMES_AT_ONCE])
