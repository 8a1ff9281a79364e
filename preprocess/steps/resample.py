"""Step 2: resample frames to 25 frames/s and audio to 16 kHz, on one clock, while decoding once."""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from latentsync.constants import FPS, SAMPLE_RATE
from latentsync.media.audio import decoded_frames, resampled
from latentsync.media.frame import VideoFrame
from latentsync.media.reader import DecodedFrame, VideoReader
from latentsync.media.timeline import nearest_samples
from preprocess.steps.probe import Source, source_errors

# A frame that is shown for longer than this is a gap in the recording or a slide, not a speaking person.
MAX_REPEATS = 2 * FPS


@dataclass(frozen=True)
class Sample:
    """A frame of the source, its index at 25 frames/s, and whether it starts a new shot."""

    index: int
    frame: VideoFrame
    starts_shot: bool


def resample(source: Source) -> Iterator[Sample]:
    """Frames of a source at 25 frames/s, up to its last frame, whatever duration its header states.

    A frame that is shown for more than 2 s is cut to 2 s, and the next one starts a new shot. Raises SourceError if no
    frame can be decoded.
    """
    with source_errors(), VideoReader(source.info) as reader:
        shown: DecodedFrame | None = None
        repeats = 0
        limit = 1 if source.info.is_still else None
        for index, decoded in enumerate(nearest_samples(reader.decode(), Fraction(FPS), limit)):
            was_cut = repeats > MAX_REPEATS
            repeats = repeats + 1 if decoded is shown else 1
            shown = decoded
            if repeats <= MAX_REPEATS:
                yield Sample(index, decoded.frame, index == 0 or was_cut)


class AudioReader:
    """Audio of a source: float32, mono, 16 kHz, time 0 at the first frame; zeros for a source without audio.

    Read forward with bounded memory.
    """

    def __init__(self, source: Source) -> None:
        frames = decoded_frames(source.info.path, source.audio_track)
        self._pieces = resampled(frames, "flt", "mono", SAMPLE_RATE)
        self._kept = np.zeros(0, np.float32)
        self._begin = round((source.audio_delay or 0) * SAMPLE_RATE)  # position of the first sample kept
        self._ended = not source.has_audio

    def __enter__(self) -> "AudioReader":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        self._pieces.close()

    def read(self, start: Fraction, samples: int) -> np.ndarray:
        """float32 (samples,) in [-1, 1] from `start` (seconds) on; zeros outside the recording."""
        first = round(start * SAMPLE_RATE)
        self._read_until(first + samples)
        wave = np.zeros(samples, np.float32)
        low = max(first, self._begin)
        high = min(first + samples, self._begin + len(self._kept))
        if low < high:
            wave[low - first : high - first] = self._kept[low - self._begin : high - self._begin]
        return wave

    def forget(self, start: Fraction) -> None:
        """Discard the samples before `start` (seconds)."""
        self._read_until(round(start * SAMPLE_RATE))
        self._drop(round(start * SAMPLE_RATE))

    def _read_until(self, end: int) -> None:
        have = self._begin + len(self._kept)
        arrived = [self._kept]
        while have < end and not self._ended:
            piece = next(self._pieces, None)
            if piece is None:
                self._ended = True
                break
            arrived.append(np.clip(piece.to_ndarray().reshape(-1), -1.0, 1.0))
            have += len(arrived[-1])
        if len(arrived) > 1:
            self._kept = np.concatenate(arrived)

    def _drop(self, before: int) -> None:
        count = min(max(before - self._begin, 0), len(self._kept))
        self._kept = self._kept[count:].copy()
        self._begin += count
