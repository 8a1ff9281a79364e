"""Augmented copies of a clip: faster or slower, in another room and light, recorded by another microphone.

Changes that affect lips and audio alike, or only one of them without moving it in time, leave the two in sync. A few
people in one studio thus stand for more people in more places.

Legend: n frames, T frames of a clip, T' of its copy, N audio samples, R pixels of a side.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
import torch
from scipy.signal import butter, resample_poly, sosfilt
from torch import Tensor

from latentsync.config.sections import AugmentConfig
from latentsync.constants import SAMPLE_RATE
from latentsync.data.augment import Augmentation, augment, draw_augmentation, warp
from latentsync.data.cache import file_digest
from latentsync.data.clips import Clip, read_frames, to_pixel_values
from latentsync.data.encoded_clips import BATCH_FRAMES, ClipEncoder, ClipSource, EncodedClip, EncodingJob, frame_batches
from latentsync.media.audio import load_audio

PACES = [Fraction(step, 20) for step in range(16, 26)]  # 0.8 to 1.25 times as fast; the pitch changes with it
APPEARANCE = AugmentConfig(flip=0.5, color=1.0)
POSE_FRAMES = 12  # from one pose of the head to the next
POSE_REACH = np.array([math.radians(6), 0.06, 0.08, 0.06, 0.06])  # turn, zoom, width, and shift in half sides
POSE_CHANGE = 0.3  # of the reach, how far the head moves around its pose
DECAY = 6.9  # of a room's echo, e-folds within its reverberation time: 60 dB
QUIET = 1e-6


@dataclass(frozen=True)
class AugmentedClip(EncodedClip):
    """An encoded copy of a clip; `variant` is its number, from 1."""

    variant: int = 1

    def pixels(self, indices: np.ndarray, fps: float) -> Tensor:
        frames = read_frames(self.path, paced_frames(indices, self.pace), fps=fps)
        return copy_parameters(self.path, self.variant).frames(to_pixel_values(frames), indices, self.num_frames)


def encoding_jobs(encoder: ClipEncoder, clips: Sequence[Clip], copies: int) -> list[EncodingJob]:
    """Encode each clip as it is, followed by its copies."""
    jobs: list[EncodingJob] = []
    for clip in clips:
        jobs.append(partial(encoder.encode, clip))
        jobs += [partial(encode_copy, encoder, clip, number) for number in range(1, copies + 1)]
    return jobs


def encode_copy(encoder: ClipEncoder, clip: Clip, number: int) -> AugmentedClip:
    """Encode copy `number` of a clip, or find its cache entry. Raises UserError, see `ClipEncoder.encode`."""
    # The name is the one of earlier versions, so that their caches stay valid.
    entry, frames, rows = encoder.cached(clip, f"varied{number}", partial(_copy_source, encoder, clip, number))
    pace = copy_parameters(clip.path, number).pace
    return AugmentedClip(clip.path, clip.person, frames, entry, rows, pace, number)


def _copy_source(encoder: ClipEncoder, clip: Clip, number: int) -> ClipSource:
    copy = copy_parameters(clip.path, number)
    frames = encoder.read(clip)
    length = copy.length(len(frames))
    frames = frames[paced_frames(np.arange(length), copy.pace)]
    starts = range(0, length, BATCH_FRAMES)
    batches = (
        copy.frames(batch, np.arange(start, start + len(batch)), length)
        for start, batch in zip(starts, frame_batches(frames), strict=True)
    )
    return ClipSource(batches, encoder.audio.wave2feat(copy.audio(load_audio(clip.path, SAMPLE_RATE))))


@dataclass(frozen=True)
class CopyParameters:
    """How a copy differs from its clip. Frames and audio are made separately and reproducibly.

    pace: frames of the clip per frame of the copy. head, microphone: seeds of the other random changes.
    """

    pace: Fraction
    appearance: Augmentation
    head: np.random.SeedSequence
    microphone: np.random.SeedSequence

    def length(self, num_frames: int) -> int:
        """T of the clip -> T' of the copy."""
        return int(num_frames / self.pace)

    def frames(self, frames: Tensor, indices: np.ndarray, length: int) -> Tensor:
        """Frames of the clip -> frames of the copy.

        Args:
            frames: (n, 3, R, R) in [-1, 1], those of `paced_frames`.
            indices: (n,) of them in the copy.
            length: T'.
        """
        motion = move_head(length, np.random.default_rng(self.head))
        return warp(augment(frames, self.appearance), motion[torch.from_numpy(indices)])

    def audio(self, wave: np.ndarray) -> np.ndarray:
        """(N,) mono at 16 kHz in [-1, 1] -> (about N / pace,) float32 in (-1, 1)."""
        return change_audio(change_pace(wave, self.pace), np.random.default_rng(self.microphone))


def copy_parameters(path: str | Path, number: int) -> CopyParameters:
    """The parameters of copy `number` of a clip, a function of the number and the clip's content.

    Raises:
        UserError: the clip cannot be read.
    """
    first, head, microphone = np.random.SeedSequence([int(file_digest(path), 16), number]).spawn(3)
    rng = np.random.default_rng(first)
    return CopyParameters(draw_pace(rng), draw_augmentation(APPEARANCE, rng), head, microphone)


def draw_pace(rng: np.random.Generator) -> Fraction:
    """Seconds of the clip per second of the copy."""
    return PACES[int(rng.integers(len(PACES)))]


def paced_frames(indices: np.ndarray, pace: Fraction) -> np.ndarray:
    """The frame of the clip in the middle of each of these frames of the copy: (n,) int -> (n,) int."""
    return (2 * indices + 1) * pace.numerator // (2 * pace.denominator)


def paced_span(start: int, end: int, pace: Fraction, length: int) -> tuple[int, int]:
    """The frames [start, end) of a clip in its copy of T' = `length` frames."""
    first, last = (min(math.ceil(edge / pace - Fraction(1, 2)), length) for edge in (start, end))
    return first, last


def move_head(num_frames: int, rng: np.random.Generator) -> Tensor:
    """Another pose of the head with slight motion: `inverse` (T, 2, 3) of `warp`.

    The people in the training clips sit still in front of the camera. A narrower face stands for one in half profile.
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
    """(N,) -> (about N / pace,), resampled: faster speech has a higher pitch, as of a smaller person."""
    return resample_poly(wave, pace.denominator, pace.numerator)


def change_audio(wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The same speech through another microphone, in another room, with noise, at another level.

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
    """Up to 9 dB of gain or loss below, and above, a frequency between 400 and 3000 Hz."""
    low = _filter(wave, 1, 400 * 7.5 ** rng.random(), "lowpass")
    below, above = 10 ** (rng.uniform(-9, 9, 2) / 20)
    return low * below + (wave - low) * above


def _narrow(wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The band of a telephone, or a wider one."""
    return _filter(wave, 2, (rng.uniform(60, 300), rng.uniform(3000, 7000)), "bandpass")


def _echo(wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A room of 0.05 to 0.3 s: noise that decays, 0.1 to 0.6 times as loud as the audio itself."""
    samples = int(SAMPLE_RATE * rng.uniform(0.05, 0.3))
    room = rng.standard_normal(samples) * np.exp(-DECAY * np.arange(samples) / samples)
    echo = np.convolve(wave, room / np.linalg.norm(room))[: len(wave)]
    return wave + rng.uniform(0.1, 0.6) * echo


def _add_noise(wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Hiss or rumble, 8 to 40 dB below the audio."""
    noise = rng.standard_normal(len(wave))
    if rng.random() < 0.5:
        noise = _filter(noise, 1, 500, "lowpass")
    level = np.sqrt(np.mean(wave**2)) * 10 ** (-rng.uniform(8, 40) / 20)
    return wave + noise / (noise.std() + QUIET) * level
