"""Copies of a clip to learn from: quicker or slower, in another room and light, by another microphone.

What changes lips and sound alike, or only one of them without touching when it happens, leaves the two in sync. A few
people in one studio thus stand for more people in more places.
Legend: n frames, T frames of a clip, T' of its copy, N samples of its sound, R pixels of a side.
"""

import math
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from scipy.signal import butter, resample_poly, sosfilt
from torch import Tensor

from latentsync.data.augment import Augmentation, augment, draw_augmentation, warp
from latentsync.data.cache import file_digest
from latentsync.utils.augment_config import AugmentConfig

SAMPLE_RATE = 16000
PACES = [Fraction(step, 20) for step in range(16, 26)]  # 0.8 to 1.25 times as quick; the pitch goes with it
LOOK = AugmentConfig(flip=0.5, colour=1.0)
POSE_FRAMES = 12  # from one pose of the head to the next
POSE_REACH = np.array([math.radians(6), 0.06, 0.08, 0.06, 0.06])  # turn, zoom, width, and shift in half sides
POSE_CHANGE = 0.3  # of the reach, how far the head moves about its place
DECAY = 6.9  # of a room's echo, e-folds within its reverberation time: 60 dB
QUIET = 1e-6


@dataclass(frozen=True)
class Variation:
    """How a copy differs from its clip. Its pictures and its sound can be had apart, and again.

    pace: frames of the clip that pass in one of the copy. head, microphone: what the rest is drawn from.
    """

    pace: Fraction
    look: Augmentation
    head: np.random.SeedSequence
    microphone: np.random.SeedSequence

    def length(self, num_frames: int) -> int:
        """T of the clip -> T' of the copy."""
        return int(num_frames / self.pace)

    def show(self, frames: Tensor, indices: np.ndarray, length: int) -> Tensor:
        """Frames of the clip as the copy shows them.

        Args:
            frames: (n, 3, R, R) in [-1, 1], those of `paced_frames`.
            indices: (n,) of them in the copy.
            length: T'.
        """
        motion = move_head(length, np.random.default_rng(self.head))
        return warp(augment(frames, self.look), motion[torch.from_numpy(indices)])

    def sound(self, wave: np.ndarray) -> np.ndarray:
        """(N,) mono at 16 kHz in [-1, 1] -> (about N / pace,) float32 in (-1, 1)."""
        return vary_sound(change_pace(wave, self.pace), np.random.default_rng(self.microphone))


def draw_variation(path: str | Path, number: int) -> Variation:
    """The variation of that number of a clip; it follows from the number and the clip's content.

    Raises:
        UserError: the clip cannot be read.
    """
    first, head, microphone = np.random.SeedSequence([int(file_digest(path), 16), number]).spawn(3)
    rng = np.random.default_rng(first)
    return Variation(draw_pace(rng), draw_augmentation(LOOK, rng), head, microphone)


def draw_pace(rng: np.random.Generator) -> Fraction:
    """Seconds of the clip that pass in one of the copy."""
    return PACES[int(rng.integers(len(PACES)))]


def paced_frames(indices: np.ndarray, pace: Fraction) -> np.ndarray:
    """Which frame of the clip is seen in the middle of each of these of the copy: (n,) int -> (n,) int."""
    return (2 * indices + 1) * pace.numerator // (2 * pace.denominator)


def paced_span(start: int, end: int, pace: Fraction, length: int) -> tuple[int, int]:
    """The frames [start, end) of a clip in its copy of T' = `length` frames: those that show one of them."""
    first, last = (min(math.ceil(edge / pace - Fraction(1, 2)), length) for edge in (start, end))
    return first, last


def move_head(num_frames: int, rng: np.random.Generator) -> Tensor:
    """A head that is held otherwise and moves a little: `inverse` (T, 2, 3) of `warp`.

    The people one learns from sit still before the camera. A narrower face stands for one that looks aside.
    """
    poses = num_frames // POSE_FRAMES + 2
    values = rng.uniform(-1, 1, 5) + POSE_CHANGE * rng.standard_normal((poses, 5))
    when = np.arange(num_frames) / POSE_FRAMES
    turn, zoom, width, right, down = (
        reach * np.interp(when, np.arange(poses), pose) for reach, pose in zip(POSE_REACH, values.T, strict=True)
    )
    cos, sin = np.cos(turn), np.sin(turn)
    rows = np.stack([np.stack([cos / (1 + width), sin], 1), np.stack([-sin / (1 + width), cos], 1)], 1)
    rows /= (1 + zoom)[:, None, None]
    return torch.from_numpy(np.concatenate([rows, -rows @ np.stack([right, down], 1)[..., None]], 2)).float()


def change_pace(wave: np.ndarray, pace: Fraction) -> np.ndarray:
    """(N,) -> (about N / pace,), resampled: quicker speech is higher speech, as of a smaller person."""
    return resample_poly(wave, pace.denominator, pace.numerator)


def vary_sound(wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The same words through another microphone, in another room, with noise, at another level.

    wave (N,) mono at 16 kHz in [-1, 1]; returns (N,) float32 in (-1, 1).
    """
    wave = wave.astype(np.float64)
    for chance, change in ((0.8, _tilt), (0.3, _narrow), (0.4, _echo), (0.7, _add_noise)):
        if rng.random() < chance:
            wave = change(wave, rng)
    return (wave / (np.abs(wave).max() + QUIET) * rng.uniform(0.1, 0.95)).astype(np.float32)


def _filter(wave: np.ndarray, order: int, hertz: float | tuple[float, float], kind: str) -> np.ndarray:
    return sosfilt(butter(order, hertz, kind, fs=SAMPLE_RATE, output="sos"), wave)


def _tilt(wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Up to 9 dB more or less below, and above, a frequency between 400 and 3000 Hz."""
    low = _filter(wave, 1, 400 * 7.5 ** rng.random(), "lowpass")
    below, above = 10 ** (rng.uniform(-9, 9, 2) / 20)
    return low * below + (wave - low) * above


def _narrow(wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The band of a telephone, or a wider one."""
    return _filter(wave, 2, (rng.uniform(60, 300), rng.uniform(3000, 7000)), "bandpass")


def _echo(wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A room of 0.05 to 0.3 s: noise that dies away, as loud as 0.1 to 0.6 of the sound itself."""
    samples = int(SAMPLE_RATE * rng.uniform(0.05, 0.3))
    room = rng.standard_normal(samples) * np.exp(-DECAY * np.arange(samples) / samples)
    echo = np.convolve(wave, room / np.linalg.norm(room))[: len(wave)]
    return wave + rng.uniform(0.1, 0.6) * echo


def _add_noise(wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Hiss or rumble, 8 to 40 dB below the sound."""
    noise = rng.standard_normal(len(wave))
    if rng.random() < 0.5:
        noise = _filter(noise, 1, 500, "lowpass")
    level = np.sqrt(np.mean(wave**2)) * 10 ** (-rng.uniform(8, 40) / 20)
    return wave + noise / (noise.std() + QUIET) * level
