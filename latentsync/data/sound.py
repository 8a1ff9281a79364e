"""The sound of a clip as SyncNet and the UNet take it, run by run: SyncNet mel, Whisper states, audio tokens.

Legend: F frames of a run, T rows of a whole clip (50 a second), L layers, S tokens of a frame, D width.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor

from latentsync.data.cache import fetch, file_digest, store
from latentsync.data.clips import Clip
from latentsync.data.encoded_clips import EncodedClip
from latentsync.data.syncnet_mel import PUBLISHED_MEL, mel_window, syncnet_mel
from latentsync.media.audio import load_audio
from latentsync.utils.config import SyncNetMelConfig
from latentsync.whisper.audio2feature import Audio2Feature
from latentsync.whisper.windows import ROWS_PER_SECOND, frame_rows

MEL_VERSION = 1  # raise when the same sound gives another mel, so that old cache entries are left alone

Rows = Callable[[range], Tensor]


class SoundTrack(ABC):
    """The sound of one clip, opened. num_frames: whole video frames that it covers."""

    num_frames: int

    @abstractmethod
    def window(self, start: int, num_frames: int) -> Tensor:
        """What SyncNet hears of the run of frames from `start` on."""


class SoundReader(ABC):
    """Opens the sound of clips in one form. fps: video frames a second."""

    fps: float

    @abstractmethod
    def open(self, clip: Clip) -> SoundTrack:
        """Raises UserError when the clip has no readable sound."""


class MelReader(SoundReader):
    """SyncNet mel, windows (1, 80, columns): 52 columns for 16 frames at 25 frames/s.

    `cache_dir` keeps the mel of whole files, named by their content; empty or None computes it each time.
    """

    def __init__(
        self, cache_dir: str | Path | None = None, fps: float = 25.0, config: SyncNetMelConfig = PUBLISHED_MEL
    ) -> None:
        self.cache_dir, self.fps, self.config = Path(cache_dir) if cache_dir else None, fps, config
        self._key = hashlib.sha256(repr((MEL_VERSION, config)).encode()).hexdigest()[:8]

    def open(self, clip: Clip) -> "MelTrack":
        return MelTrack(self.mel(clip.path), self.fps, self.config)

    def mel(self, path: str | Path) -> Tensor:
        """(80, columns) float32 of a whole file."""
        if self.cache_dir is None:
            return self._compute(path)
        entry = self.cache_dir / f"{file_digest(path)}_{self._key}.safetensors"
        tensors = fetch(entry)
        if tensors is None or "mel" not in tensors:
            tensors = {"mel": self._compute(path)}
            store(entry, tensors)
        return tensors["mel"]

    def _compute(self, path: str | Path) -> Tensor:
        return syncnet_mel(load_audio(path, self.config.sample_rate), self.config).contiguous()


class MelTrack(SoundTrack):
    """SyncNet mel of one clip: (80, columns)."""

    def __init__(self, mel: Tensor, fps: float, config: SyncNetMelConfig) -> None:
        self.mel, self.fps, self.config = mel, fps, config
        self.num_frames = int(mel.shape[1] * fps * config.hop_size / config.sample_rate)

    def window(self, start: int, num_frames: int) -> Tensor:
        return mel_window(self.mel, start, num_frames, self.fps, self.config)


class WhisperReader(SoundReader):
    """Whisper states, windows (2F, L, D): the two rows of each frame. Of an encoded clip they are read from its cache.

    `audio` computes those of other clips; None takes encoded clips alone.
    """

    def __init__(self, audio: Audio2Feature | None = None, fps: float = 25.0) -> None:
        self.audio, self.fps = audio, fps

    def open(self, clip: Clip) -> "WhisperTrack":
        if isinstance(clip, EncodedClip):
            return WhisperTrack(lambda rows: clip.read(audio_states=rows)["audio_states"], clip.num_rows, self.fps)
        if self.audio is None:
            raise ValueError("clips that are not encoded need an audio encoder")
        states = self.audio.audio2feat(clip.path)
        return WhisperTrack(lambda rows: states[rows.start : rows.stop], len(states), self.fps)


class WhisperTrack(SoundTrack):
    """Whisper states of one clip, `num_rows` of them, read on demand."""

    def __init__(self, read_rows: Rows, num_rows: int, fps: float) -> None:
        self._read, self._num_rows, self._fps = read_rows, num_rows, fps
        self.num_frames = int(num_rows * fps / ROWS_PER_SECOND)

    def window(self, start: int, num_frames: int) -> Tensor:
        rows = run_rows(self._read, self._num_rows, range(start, start + num_frames), self._fps, (0, 0))
        return rearrange(rows, "f t l d -> (f t) l d")


def frame_tokens(read_rows: Rows, num_rows: int, frames: range, fps: float, audio_feat_length: Sequence[int]) -> Tensor:
    """Audio tokens (F, S, D) of a run as `Audio2Feature.crop_overlap_audio_window` gives them, reading no more.

    Args:
        read_rows: gives rows of the clip's states, (rows, L, D).
        num_rows: T.
        frames: consecutive video frames.
        fps: video frames a second.
        audio_feat_length: (l, r), the frames heard before and after.
    """
    return rearrange(run_rows(read_rows, num_rows, frames, fps, audio_feat_length), "f t l d -> f (t l) d")


def run_rows(read_rows: Rows, num_rows: int, frames: range, fps: float, audio_feat_length: Sequence[int]) -> Tensor:
    """States of a run, (F, 2(l + r + 1), L, D); arguments as in `frame_tokens`."""
    left, right = audio_feat_length
    indices = torch.stack([frame_rows(frame, fps, (left, right), num_rows) for frame in frames])
    first, last = int(indices.min()), int(indices.max())
    return read_rows(range(first, last + 1))[indices - first]
