"""The audio of a clip as SyncNet and the UNet take it, window by window: SyncNet mel, Whisper states, audio tokens.

The mel is Wav2Lip's, with librosa's default filters: the mel scale of Slaney's Auditory Toolbox (1998), linear below
1 kHz and logarithmic above, each triangle of equal area. Its settings are in `configs/audio.yaml`.

Legend: N audio samples, M mel bands, F frames of a window, T columns of a mel or rows of a whole clip, L layers,
S tokens of a frame, D width.
"""

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from latentsync.config.audio import SyncNetMelConfig, syncnet_mel_config
from latentsync.constants import FPS, WHISPER_ROWS_PER_SECOND
from latentsync.data.cache import DIGEST_DIGITS, fetch, store
from latentsync.data.clips import Clip
from latentsync.data.encoded_clips import EncodedClip
from latentsync.media.audio import load_audio
from latentsync.utils.errors import UserError
from latentsync.whisper.audio2feature import Audio2Feature
from latentsync.whisper.windows import frame_rows

MEL_VERSION = 1  # raise when the same audio gives another mel, so that old cache entries are ignored

Rows = Callable[[range], Tensor]


class AudioTrack(ABC):
    """The audio of one clip. num_frames: whole video frames that it covers."""

    num_frames: int

    @abstractmethod
    def window(self, start: int, num_frames: int) -> Tensor:
        """SyncNet's input for the frames from `start` on."""


class AudioReader(ABC):
    """Opens the audio of clips in one representation. fps: video frames per second."""

    fps: float

    @abstractmethod
    def open(self, clip: Clip) -> AudioTrack:
        """Raises UserError when the clip has no readable audio."""


class MelReader(AudioReader):
    """SyncNet mel, windows (1, 80, columns): 52 columns for 16 frames at 25 frames/s.

    Args:
        cache_dir: keeps the mel of whole files, named by their content; empty or None computes it each time.
        fps: video frames per second.
        config: None for `configs/audio.yaml`.
    """

    def __init__(
        self, cache_dir: str | Path | None = None, fps: float = FPS, config: SyncNetMelConfig | None = None
    ) -> None:
        self.cache_dir, self.fps = Path(cache_dir) if cache_dir else None, fps
        self.config = config or syncnet_mel_config()
        self._key = hashlib.sha256(repr((MEL_VERSION, self.config)).encode()).hexdigest()[:8]

    def open(self, clip: Clip) -> "MelTrack":
        return MelTrack(self.mel(clip), self.fps, self.config)

    def mel(self, clip: Clip) -> Tensor:
        """(80, columns) float32 of a whole clip."""
        if self.cache_dir is None:
            return self._compute(clip)
        entry = self.cache_dir / f"{clip.content_digest[:DIGEST_DIGITS]}_{self._key}.safetensors"
        tensors = fetch(entry)
        if tensors is None or "mel" not in tensors:
            tensors = {"mel": self._compute(clip)}
            store(entry, tensors)
        return tensors["mel"]

    def _compute(self, clip: Clip) -> Tensor:
        with clip.local() as path:
            return syncnet_mel(load_audio(path, self.config.sample_rate), self.config).contiguous()


class MelTrack(AudioTrack):
    """SyncNet mel of one clip: (80, columns)."""

    def __init__(self, mel: Tensor, fps: float, config: SyncNetMelConfig) -> None:
        self.mel, self.fps, self.config = mel, fps, config
        self.num_frames = int(mel.shape[1] * fps * config.hop_size / config.sample_rate)

    def window(self, start: int, num_frames: int) -> Tensor:
        return mel_window(self.mel, start, num_frames, self.fps, self.config)


class WhisperReader(AudioReader):
    """Whisper states, windows (2F, L, D): the two rows of each frame. Those of an encoded clip come from its cache.

    `audio` computes those of other clips; None takes encoded clips only.
    """

    def __init__(self, audio: Audio2Feature | None = None, fps: float = FPS) -> None:
        self.audio, self.fps = audio, fps

    def open(self, clip: Clip) -> "WhisperTrack":
        if isinstance(clip, EncodedClip):
            return WhisperTrack(lambda rows: clip.read(audio_states=rows)["audio_states"], clip.num_rows, self.fps)
        if self.audio is None:
            raise ValueError("clips that are not encoded need an audio encoder")
        with clip.local() as path:
            states = self.audio.audio2feat(path, clip.digest)
        return WhisperTrack(lambda rows: states[rows.start : rows.stop], len(states), self.fps)


class WhisperTrack(AudioTrack):
    """Whisper states of one clip, `num_rows` of them, read on demand."""

    def __init__(self, read_rows: Rows, num_rows: int, fps: float) -> None:
        self._read, self._num_rows, self._fps = read_rows, num_rows, fps
        self.num_frames = int(num_rows * fps / WHISPER_ROWS_PER_SECOND)

    def window(self, start: int, num_frames: int) -> Tensor:
        rows = window_rows(self._read, self._num_rows, range(start, start + num_frames), self._fps, (0, 0))
        return rearrange(rows, "f t l d -> (f t) l d")


def frame_tokens(read_rows: Rows, num_rows: int, frames: range, fps: float, audio_feat_length: Sequence[int]) -> Tensor:
    """Audio tokens (F, S, D) of a window as `Audio2Feature.crop_overlap_audio_window` gives them, reading no more.

    Args:
        read_rows: gives rows of the clip's states, (rows, L, D).
        num_rows: T.
        frames: consecutive video frames.
        fps: video frames per second.
        audio_feat_length: (l, r), frames of context before and after.
    """
    return rearrange(window_rows(read_rows, num_rows, frames, fps, audio_feat_length), "f t l d -> f (t l) d")


def window_rows(read_rows: Rows, num_rows: int, frames: range, fps: float, audio_feat_length: Sequence[int]) -> Tensor:
    """States of a window, (F, 2(l + r + 1), L, D); arguments as in `frame_tokens`."""
    left, right = audio_feat_length
    indices = torch.stack([frame_rows(frame, fps, (left, right), num_rows) for frame in frames])
    first, last = int(indices.min()), int(indices.max())
    return read_rows(range(first, last + 1))[indices - first]


def syncnet_mel(wave: Tensor | np.ndarray, config: SyncNetMelConfig | None = None) -> Tensor:
    """Normalized log-mel of a whole signal.

    Args:
        wave: (N,) mono at `config.sample_rate`, float in [-1, 1] or int16; at least one sample.
        config: None for `configs/audio.yaml`.

    Returns:
        (M, T) float32 in [-4, 4] (`max_abs_value`), T = N // hop_size + 1; column t is centered on sample t * hop_size.

    Raises:
        UserError: the signal is empty, or has NaN or infinite samples.
    """
    config = config or syncnet_mel_config()
    samples = torch.as_tensor(wave)
    samples = samples.float() / 32768.0 if samples.dtype == torch.int16 else samples.float()
    if samples.ndim != 1:
        raise ValueError(f"expected a mono wave of shape (N,), got {tuple(samples.shape)}")
    if not len(samples) or not samples.isfinite().all():
        raise UserError("the audio is empty or has NaN or infinite samples; re-export it as 16-bit PCM")
    emphasized = torch.cat([samples[:1], samples[1:] - config.preemphasis * samples[:-1]])
    levels = mel_filters(config) @ _amplitudes(emphasized, config)
    floor = 10 ** (config.min_level_db / 20)
    decibels = 20 * levels.clamp(min=floor).log10() - config.ref_level_db
    share = (decibels - config.min_level_db) / -config.min_level_db
    return (2 * config.max_abs_value * share - config.max_abs_value).clamp(-config.max_abs_value, config.max_abs_value)


def mel_window(
    mel: Tensor, start_frame: int, num_frames: int = 16, fps: float = FPS, config: SyncNetMelConfig | None = None
) -> Tensor:
    """The columns of `mel` (M, T) that belong to a window of video frames: (1, M, ceil(80 * num_frames / fps)).

    They begin at column int(80 * start_frame / fps). Columns before the start or after the end of the signal are
    silence, the lowest level of the scale.
    """
    config = config or syncnet_mel_config()
    width = config.width(num_frames, fps)
    start = math.floor(config.sample_rate / config.hop_size * start_frame / fps)
    inside = mel[:, max(start, 0) : max(start + width, 0)]
    before = min(max(-start, 0), width)
    return F.pad(inside, (before, width - before - inside.shape[1]), value=-config.max_abs_value)[None]


def mel_filters(config: SyncNetMelConfig) -> Tensor:
    """(M, n_fft // 2 + 1) float32 triangles over the frequencies of an STFT."""
    return _mel_filters(config.sample_rate, config.n_fft, config.num_mels, config.fmin, config.fmax)


@lru_cache(maxsize=4)
def _mel_filters(sample_rate: int, n_fft: int, bands: int, fmin: float, fmax: float) -> Tensor:
    from librosa.filters import mel  # importing librosa takes seconds, and only SyncNet needs it

    return torch.from_numpy(mel(sr=sample_rate, n_fft=n_fft, n_mels=bands, fmin=fmin, fmax=fmax))


def _amplitudes(samples: Tensor, config: SyncNetMelConfig) -> Tensor:
    """(N,) -> (n_fft // 2 + 1, T): magnitudes of a centered STFT, zeros outside the signal."""
    window = torch.hann_window(config.win_size)
    spectrum = torch.stft(
        samples,
        config.n_fft,
        config.hop_size,
        config.win_size,
        window,
        center=True,
        pad_mode="constant",
        return_complex=True,
    )
    return spectrum.abs()
