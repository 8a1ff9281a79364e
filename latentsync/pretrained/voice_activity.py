"""Where speech is in an audio signal: Silero VAD, or the signal's energy where that package is not installed.

Letters: N samples at 16 kHz.
"""

import importlib.util
import logging
from functools import cache
from typing import Any

import numpy as np
import torch

from latentsync.constants import FPS, SAMPLE_RATE
from latentsync.media.samples import Samples
from latentsync.media.silence import runs_of, silence_and_speech

logger = logging.getLogger(__name__)

PACKAGE = "silero_vad"
THRESHOLD = 0.5  # probability of speech
WINDOW = 512  # samples of one probability
BLOCK_SECONDS = 60  # processed at once
LEAD_SECONDS = 2  # before a block, for the network's state
SHORTEST_PAUSE = SAMPLE_RATE // 2  # samples; shorter ones are stops and breaths between words
SHORTEST_SPEECH = 0.1  # seconds
MARGIN = 3 * SAMPLE_RATE // FPS  # samples around speech that belong to it: lips open before a word

Interval = tuple[int, int]


def speech_intervals(wave: Samples | np.ndarray) -> list[Interval]:
    """Intervals [start, end) of speech in samples, in order and disjoint. Empty where there is no speech.

    Pauses of less than half a second belong to the speech around them, and so do 0.12 s before and after it.

    Args:
        wave: (N,) mono at 16 kHz in [-1, 1], as an array or read slice by slice.
    """
    if importlib.util.find_spec(PACKAGE) is None:
        logger.info("the package silero-vad is not installed: pauses are found by their level")
        found = _loud_intervals(wave)
    else:
        found = _speech_of(_probabilities(wave), len(wave))
    return _widened(found, len(wave))


def _probabilities(wave: Samples | np.ndarray) -> np.ndarray:
    """Probability of speech in each window of 512 samples."""
    block, lead = (seconds * SAMPLE_RATE // WINDOW * WINDOW for seconds in (BLOCK_SECONDS, LEAD_SECONDS))
    parts = []
    for start in range(0, len(wave), block):
        first = max(0, start - lead)
        found = _network().audio_forward(np.ascontiguousarray(wave[first : start + block]))
        parts.append(found[(start - first) // WINDOW :])
    return np.concatenate(parts) if parts else np.zeros(0, np.float32)


@cache
def _network() -> Any:
    threads = torch.get_num_threads()
    try:
        from silero_vad import load_silero_vad  # sets the number of threads to 1

        return load_silero_vad(sequence=True)
    finally:
        torch.set_num_threads(threads)


def _speech_of(probabilities: np.ndarray, length: int) -> list[Interval]:
    from silero_vad import get_speech_timestamps_from_probs

    found = get_speech_timestamps_from_probs(
        probabilities,
        threshold=THRESHOLD,
        sampling_rate=SAMPLE_RATE,
        min_speech_duration_ms=round(1000 * SHORTEST_SPEECH),
        min_silence_duration_ms=1000 * SHORTEST_PAUSE // SAMPLE_RATE,
        speech_pad_ms=0,
        audio_length_samples=length,
    )
    return [(int(part["start"]), int(part["end"])) for part in found]


def _loud_intervals(wave: Samples | np.ndarray) -> list[Interval]:
    samples = SAMPLE_RATE // FPS
    num_frames = -(-len(wave) // samples)
    _, speech = silence_and_speech(wave[:], num_frames)
    return [(start * samples, end * samples) for start, end in runs_of(speech)]


def _widened(intervals: list[Interval], length: int) -> list[Interval]:
    """Add the margin on both sides, and join intervals with a short pause between them."""
    joined: list[Interval] = []
    for start, end in intervals:
        start, end = max(0, start - MARGIN), min(length, end + MARGIN)
        if joined and start - joined[-1][1] < SHORTEST_PAUSE - 2 * MARGIN:
            start = joined.pop()[0]
        joined.append((start, end))
    return joined
