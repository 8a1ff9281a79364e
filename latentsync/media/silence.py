"""Classifies video frames as silence or speech by the audio alone. Letters: T frames, N samples."""

import numpy as np

from latentsync.constants import FPS, SAMPLE_RATE

LOUD_PERCENTILE = 95  # of the RMS of frames: the level of speech
SILENCE_BELOW_SPEECH = 10 ** (-20 / 20)  # recordings of real rooms are rarely quieter
SILENCE_FLOOR = 10 ** (-60 / 20)  # of full scale: always silent
SHORTEST_SILENCE = 8  # frames; shorter gaps are stops and breaths between words
SETTLE = 4  # frames next to speech that count as neither, because lips open before a word and close after it


def silence_and_speech(wave: np.ndarray, num_frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Video frames (25 per second) in silence and in speech: two disjoint masks (num_frames,) bool.

    Silence is a run of at least 8 frames at 20 dB below the speech (or 60 dB below full scale), without the 4 frames
    next to speech. Speech is everything outside such runs, including shorter pauses.

    Args:
        wave: (N,) mono at 16 kHz in [-1, 1]; padded with silence to the length of the video.
    """
    levels = frame_rms(wave, num_frames)
    threshold = max(SILENCE_FLOOR, SILENCE_BELOW_SPEECH * float(np.percentile(levels, LOUD_PERCENTILE)))
    silence, speech = np.zeros(num_frames, bool), np.ones(num_frames, bool)
    for start, end in runs_of(levels < threshold):
        if end - start < SHORTEST_SILENCE:
            continue
        speech[start:end] = False
        silence[start + SETTLE * (start > 0) : end - SETTLE * (end < num_frames)] = True
    return silence, speech


def frame_rms(wave: np.ndarray, num_frames: int) -> np.ndarray:
    """Root mean square of the audio of each video frame: (num_frames,)."""
    samples = SAMPLE_RATE // FPS
    padded = np.zeros(num_frames * samples)
    count = min(len(wave), len(padded))
    padded[:count] = wave[:count]
    return np.sqrt((padded.reshape(num_frames, samples) ** 2).mean(axis=1))


def runs_of(flags: np.ndarray) -> list[tuple[int, int]]:
    """[start, end) of each run of True in flags (T,) bool, in order."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8)))
    return [(int(start), int(end)) for start, end in edges.reshape(-1, 2)]
