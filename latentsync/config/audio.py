"""`configs/audio.yaml`: the log-mel of Whisper and the mel of SyncNet. The file is where the numbers are."""

import functools
import math
from fractions import Fraction
from pathlib import Path
from typing import Literal

from latentsync.config.schema import build, require, require_positive, section
from latentsync.config.yaml_files import read_yaml
from latentsync.utils.paths import CONFIGS_DIR

AUDIO_CONFIG = CONFIGS_DIR / "audio.yaml"


@section
class WhisperMelConfig:
    """The log-mel of openai-whisper, whose settings are fixed; lengths in samples."""

    sample_rate: Literal[16000]
    n_fft: Literal[400]
    hop_size: Literal[160]
    num_mels: Literal[80]


@section
class SyncNetMelConfig:
    """The mel of SyncNet (Wav2Lip's); lengths in samples, levels in dB, frequencies in Hz."""

    sample_rate: int
    n_fft: int
    hop_size: int
    win_size: int
    num_mels: int
    fmin: float
    fmax: float
    preemphasis: float
    ref_level_db: float
    min_level_db: float
    max_abs_value: float

    def __post_init__(self) -> None:
        require_positive(self, "sample_rate", "n_fft", "hop_size", "win_size", "num_mels", "max_abs_value")
        require(self.win_size <= self.n_fft, f"win_size {self.win_size} exceeds n_fft {self.n_fft}")
        require(
            0 <= self.fmin < self.fmax <= self.sample_rate / 2,
            f"fmin {self.fmin} and fmax {self.fmax} must rise and stay below half of sample_rate",
        )
        require(self.min_level_db < 0, "min_level_db must be below 0")

    @property
    def columns_per_second(self) -> Fraction:
        return Fraction(self.sample_rate, self.hop_size)

    def width(self, num_frames: int, fps: float) -> int:
        """Columns of `num_frames` video frames, ceil(80 * F / fps) as published: 52 for 16 frames, 16 for 5."""
        return math.ceil(self.columns_per_second * num_frames / Fraction(fps))


@section
class AudioConfig:
    """A complete audio config."""

    whisper: WhisperMelConfig
    syncnet: SyncNetMelConfig


def load_audio_config(path: str | Path) -> AudioConfig:
    """Read an audio config. Raises UserError."""
    file = read_yaml(path)
    with file.named_errors():
        return build(AudioConfig, file.values)


@functools.cache
def syncnet_mel_config() -> SyncNetMelConfig:
    """The `syncnet` section of `configs/audio.yaml`. Raises UserError."""
    return load_audio_config(AUDIO_CONFIG).syncnet
