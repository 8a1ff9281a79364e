"""SyncNet's audio features: the log-mel spectrogram of Wav2Lip. Legend: N samples, T columns, M mel bands."""

import math
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from latentsync.utils.config import SyncNetMelConfig
from latentsync.utils.errors import UserError
from latentsync.utils.syncnet_config import mel_width

PUBLISHED_MEL = SyncNetMelConfig()


def syncnet_mel(wave: Tensor | np.ndarray, config: SyncNetMelConfig = PUBLISHED_MEL) -> Tensor:
    """Normalized log-mel spectrogram of a whole signal.

    Args:
        wave: (N,) mono at `config.sample_rate`, float in [-1, 1] or int16; at least one sample.
        config: the `syncnet` section of `configs/audio.yaml`.

    Returns:
        (M, T) float32 in [-4, 4] (`max_abs_value`), T = N // hop_size + 1; column t is centered on sample t * hop_size.

    Raises:
        UserError: the signal is empty, or holds NaN or infinite samples.
    """
    samples = _as_float(torch.as_tensor(wave))
    if samples.ndim != 1:
        raise ValueError(f"expected a mono wave of shape (N,), got {tuple(samples.shape)}")
    if not len(samples) or not samples.isfinite().all():
        raise UserError("the audio is empty or holds NaN or infinite samples; re-export it as 16-bit PCM")
    emphasized = torch.cat([samples[:1], samples[1:] - config.preemphasis * samples[:-1]])
    levels = mel_filters(config) @ _amplitudes(emphasized, config)
    floor = 10 ** (config.min_level_db / 20)
    decibels = 20 * levels.clamp(min=floor).log10() - config.ref_level_db
    share = (decibels - config.min_level_db) / -config.min_level_db
    return (2 * config.max_abs_value * share - config.max_abs_value).clamp(-config.max_abs_value, config.max_abs_value)


def mel_window(
    mel: Tensor, start_frame: int, num_frames: int = 16, fps: float = 25.0, config: SyncNetMelConfig = PUBLISHED_MEL
) -> Tensor:
    """The columns of `mel` (M, T) that belong to consecutive video frames: (1, M, ceil(80 * num_frames / fps)).

    The first is column int(80 * start_frame / fps). Columns outside the signal are padded with silence, the lowest
    level of the scale.
    """
    width = mel_width(num_frames, fps, config)
    start = math.floor(config.sample_rate / config.hop_size * start_frame / fps)
    inside = mel[:, max(start, 0) : max(start + width, 0)]
    before = min(max(-start, 0), width)
    return F.pad(inside, (before, width - before - inside.shape[1]), value=-config.max_abs_value)[None]


def mel_filters(config: SyncNetMelConfig = PUBLISHED_MEL) -> Tensor:
    """The mel filter bank: (M, n_fft // 2 + 1) float32, Slaney's scale and equal-area normalization."""
    return _mel_filters(config.sample_rate, config.n_fft, config.num_mels, config.fmin, config.fmax)


@lru_cache(maxsize=4)
def _mel_filters(sample_rate: int, n_fft: int, bands: int, fmin: float, fmax: float) -> Tensor:
    from librosa.filters import mel  # importing librosa takes seconds, and only SyncNet needs it

    return torch.from_numpy(mel(sr=sample_rate, n_fft=n_fft, n_mels=bands, fmin=fmin, fmax=fmax))


def _amplitudes(samples: Tensor, config: SyncNetMelConfig) -> Tensor:
    """(N,) -> (n_fft // 2 + 1, T): magnitudes of a centered STFT, zero-padded outside the signal."""
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


def _as_float(wave: Tensor) -> Tensor:
    return wave.float() / 32768.0 if wave.dtype == torch.int16 else wave.float()
