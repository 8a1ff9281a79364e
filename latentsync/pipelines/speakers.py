"""The speech of each person, and its frames in the output. Letters: T frames."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from latentsync.constants import SAMPLE_RATE
from latentsync.media.audio import is_silent
from latentsync.media.samples import GatedSamples, Samples
from latentsync.options import Silence
from latentsync.pretrained.voice_activity import Interval, speech_intervals
from latentsync.whisper.audio2feature import Audio2Feature
from latentsync.whisper.windows import AudioFeatureStream

logger = logging.getLogger(__name__)

FADE_FRAMES = 4  # of a crossfade between original and generated faces, and of closing lips
BLOCK = 60 * SAMPLE_RATE  # samples read at once


@dataclass(frozen=True)
class Speaker:
    """A person to edit.

    Args:
        face: see the option `face`.
        features: audio tokens of each frame of the output.
        weights: (T,) share of the generated face in each frame; 0 keeps the frame.
        closed: (T,) how far the lips are closed in each frame, 0 as generated to 1.
    """

    face: str
    features: AudioFeatureStream
    weights: np.ndarray
    closed: np.ndarray


def make_speaker(
    face: str, wave: Samples, encoder: Audio2Feature, fps: Fraction, silence: Silence, weights: np.ndarray
) -> Speaker:
    """A speaker whose mouth rests where the wave (N,) at 16 kHz has no speech; see the option `silence`."""
    count = len(weights)
    intervals = [] if silence == "model" else speech_intervals(wave)
    rests = silence == "rest"
    if not intervals:  # singing, or nothing but noise: better all of it than nothing
        closed = np.full(count, rests and _is_silent(wave), np.float32)
        if silence != "model" and not closed.any():
            logger.info("no speech was found in the audio: all of it drives the mouth")
        return Speaker(face, encoder.stream(wave, fps, count), weights, closed)
    speaks = fade_out(spoken_frames(intervals, fps, count))
    if silence == "original":
        weights = np.minimum(weights, speaks)
    gated = GatedSamples(wave, intervals, SAMPLE_RATE)
    return Speaker(face, encoder.stream(gated, fps, count), weights, rests * (1 - speaks))


def _is_silent(wave: Samples) -> bool:
    return all(is_silent(wave[start : start + BLOCK]) for start in range(0, len(wave), BLOCK))


def spoken_frames(intervals: Sequence[Interval], fps: Fraction, count: int) -> np.ndarray:
    """(count,) bool: frames that overlap an interval of samples at 16 kHz."""
    spoken = np.zeros(count, bool)
    for start, end in intervals:
        first, last = (int(Fraction(sample, SAMPLE_RATE) * fps) for sample in (start, end - 1))
        spoken[first : last + 1] = True
    return spoken


def fade_out(frames: np.ndarray) -> np.ndarray:
    """Weights (T,) float32: 1 in `frames` (T,) bool, falling to 0 in the 4 frames before and after them."""
    weights = frames.astype(np.float32)
    for distance in range(1, FADE_FRAMES + 1):
        share = 1 - distance / (FADE_FRAMES + 1)
        weights[:-distance] = np.maximum(weights[:-distance], share * frames[distance:])
        weights[distance:] = np.maximum(weights[distance:], share * frames[:-distance])
    return weights


def fade_in(frames: np.ndarray) -> np.ndarray:
    """Weights (T,) float32: 0 outside `frames` (T,) bool, rising to 1 in the first and last 4 of them."""
    return np.where(frames, 1 - fade_out(~frames), 0).astype(np.float32)
