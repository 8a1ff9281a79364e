"""Log-mel spectrogram of openai-whisper, computed block by block.

The values are those of `whisper.audio.log_mel_spectrogram` over the whole signal, but only one block is in memory.
"""

import numpy as np
import torch

from latentsync.media.samples import Samples
from latentsync.utils.errors import UserError
from latentsync.utils.light_whisper import HOP_LENGTH, N_FFT, SAMPLE_RATE, exact_div, mel_filters

FRAMES_PER_SECOND = exact_div(SAMPLE_RATE, HOP_LENGTH)
HALF_FFT = exact_div(N_FFT, 2)
BLOCK_FRAMES = 30 * FRAMES_PER_SECOND
POWER_FLOOR = 1e-10
DYNAMIC_RANGE = 8.0  # decades below the loudest point of the signal
# Reflect padding needs more samples than half a window, and one feature row needs two mel frames.
MIN_SAMPLES = max(N_FFT, 2 * HOP_LENGTH)


class LogMel:
    """Log-mel frames of a signal, 100 per second, computed on demand.

    Args:
        wave: (N,) mono at 16 kHz; float32 in [-1, 1] or int16. Kept by reference, never copied as a whole,
            so that it may be read from a file (see `latentsync.media.samples`). Fewer than 400 samples are padded with
            silence.
        n_mels: number of mel bands, 80 for the Whisper sizes used here.

    Raises:
        UserError: the signal contains NaN or infinite samples.
    """

    def __init__(self, wave: np.ndarray | Samples, n_mels: int = 80) -> None:
        if wave.ndim != 1:
            raise ValueError(f"expected a mono wave of shape (N,), got {wave.shape}")
        if len(wave) < MIN_SAMPLES:
            wave = np.pad(wave[:], (0, MIN_SAMPLES - len(wave)))
        self.wave = wave
        self.num_frames = len(wave) // HOP_LENGTH  # the last, incomplete STFT frame is dropped
        self._filters = mel_filters(torch.device("cpu"), n_mels)
        self._window = torch.hann_window(N_FFT)
        self._floor = self._maximum() - DYNAMIC_RANGE

    def frames(self, start: int, stop: int) -> torch.Tensor:
        """Normalized log-mel of frames `start` to `stop - 1`: (n_mels, stop - start) float32."""
        log_mel = self._log_power(start, stop).clamp_(min=self._floor)
        return log_mel.add_(4.0).div_(4.0)

    def _maximum(self) -> float:
        starts = range(0, self.num_frames, BLOCK_FRAMES)
        # Floats, not tensors: small tensors between the large ones of each block would fragment the heap.
        maxima = [self._log_power(s, min(s + BLOCK_FRAMES, self.num_frames)).max().item() for s in starts]
        maximum = float(np.max(maxima))
        if not np.isfinite(maximum):
            raise UserError("the audio contains NaN or infinite samples; re-export it as 16-bit PCM")
        return maximum

    def _log_power(self, start: int, stop: int) -> torch.Tensor:
        samples = self._samples(start * HOP_LENGTH - HALF_FFT, (stop - 1) * HOP_LENGTH + HALF_FFT)
        stft = torch.stft(samples, N_FFT, HOP_LENGTH, window=self._window, center=False, return_complex=True)
        return (self._filters @ stft.abs().square()).clamp_(min=POWER_FLOOR).log10_()

    def _samples(self, start: int, stop: int) -> torch.Tensor:
        """Samples [start, stop), reflected at both ends of the signal, float32 in [-1, 1]."""
        inner = self.wave[max(start, 0) : stop]
        before = self.wave[1 : 1 + max(-start, 0)][::-1]
        missing = max(stop - len(self.wave), 0)
        after = self.wave[len(self.wave) - 1 - missing : len(self.wave) - 1][::-1]
        samples = np.concatenate([before, inner, after])
        if samples.dtype == np.int16:
            return torch.from_numpy(samples).float().div_(32768.0)
        return torch.from_numpy(samples.astype(np.float32, copy=False))
