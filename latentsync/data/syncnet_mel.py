"""The mel spectrogram that SyncNet hears (Wav2Lip's), in torch. Legend: N samples, T columns, M mel bands.

Filters as librosa's defaults: the mel scale of Slaney's Auditory Toolbox (1998), linear below 1 kHz and logarithmic
above, each triangle of equal area.
"""

import math
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from latentsync.utils.config import SyncNetMelConfig
from latentsync.utils.errors import UserError
from latentsync.utils.syncnet_config import mel_width

HERTZ_PER_MEL = 200 / 3
KNEE_HERTZ = 1000.0
KNEE_MEL = KNEE_HERTZ / HERTZ_PER_MEL
LOG_STEP = math.log(6.4) / 27  # 27 mels from 1 to 6.4 kHz
PUBLISHED_MEL = SyncNetMelConfig()


def syncnet_mel(wave: Tensor | np.ndarray, config: SyncNetMelConfig = PUBLISHED_MEL) -> Tensor:
    """Normalised log-mel of a whole signal.

    Args:
        wave: (N,) mono at `config.sample_rate`, float in [-1, 1] or int16; at least one sample.
        config: the `syncnet` section of `configs/audio.yaml`.

    Returns:
        (M, T) float32 in [-4, 4] (`max_abs_value`), T = N // hop_size + 1; column t is centred on sample t * hop_size.

    Raises:
        UserError: the signal is empty, or holds NaN or infinite samples.
    """
    samples = _as_float(torch.as_tensor(wave))
    if samples.ndim != 1:
        raise ValueError(f"expected a mono wave of shape (N,), got {tuple(samples.shape)}")
    if not len(samples) or not samples.isfinite().all():
        raise UserError("the audio is empty or holds NaN or infinite samples; re-export it as 16-bit PCM")
    emphasised = torch.cat([samples[:1], samples[1:] - config.preemphasis * samples[:-1]])
    levels = mel_filters(config) @ _amplitudes(emphasised, config)
    floor = 10 ** (config.min_level_db / 20)
    decibels = 20 * levels.clamp(min=floor).log10() - config.ref_level_db
    share = (decibels - config.min_level_db) / -config.min_level_db
    return (2 * config.max_abs_value * share - config.max_abs_value).clamp(-config.max_abs_value, config.max_abs_value)


def mel_window(
    mel: Tensor, start_frame: int, num_frames: int = 16, fps: float = 25.0, config: SyncNetMelConfig = PUBLISHED_MEL
) -> Tensor:
    """The columns of `mel` (M, T) heard during a run of video frames: (1, M, ceil(80 * num_frames / fps)).

    They begin at column int(80 * start_frame / fps). Columns before the begin or after the end of the signal are
    silence, the lowest level of the scale.
    """
    width = mel_width(num_frames, fps, config)
    start = math.floor(config.sample_rate / config.hop_size * start_frame / fps)
    inside = mel[:, max(start, 0) : max(start + width, 0)]
    before = min(max(-start, 0), width)
    return F.pad(inside, (before, width - before - inside.shape[1]), value=-config.max_abs_value)[None]


def mel_filters(config: SyncNetMelConfig = PUBLISHED_MEL) -> Tensor:
    """(M, n_fft // 2 + 1) float32 triangles over the frequencies of an STFT."""
    return _mel_filters(config.sample_rate, config.n_fft, config.num_mels, config.fmin, config.fmax)


@lru_cache(maxsize=4)
def _mel_filters(sample_rate: int, n_fft: int, bands: int, fmin: float, fmax: float) -> Tensor:
    frequencies = torch.linspace(0, sample_rate / 2, n_fft // 2 + 1, dtype=torch.float64)
    corners = _mel_to_hertz(torch.linspace(_hertz_to_mel(fmin), _hertz_to_mel(fmax), bands + 2, dtype=torch.float64))
    lower, centre, upper = corners[:-2, None], corners[1:-1, None], corners[2:, None]
    rising, falling = (frequencies - lower) / (centre - lower), (upper - frequencies) / (upper - centre)
    triangles = torch.minimum(rising, falling).clamp(min=0)
    return (triangles * 2 / (upper - lower)).float()


def _hertz_to_mel(hertz: float) -> float:
    return hertz / HERTZ_PER_MEL if hertz < KNEE_HERTZ else KNEE_MEL + math.log(hertz / KNEE_HERTZ) / LOG_STEP


def _mel_to_hertz(mel: Tensor) -> Tensor:
    above = KNEE_HERTZ * torch.exp(LOG_STEP * (mel - KNEE_MEL))
    return torch.where(mel < KNEE_MEL, mel * HERTZ_PER_MEL, above)


def _amplitudes(samples: Tensor, config: SyncNetMelConfig) -> Tensor:
    """(N,) -> (n_fft // 2 + 1, T): magnitudes of an STFT, centred, zeros outside the signal."""
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
