"""Step 2: pictures at 25 frames/s and sound at 16 kHz, on one clock, decoded once and in step."""

from collections.abc import Iterator
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from latentsync.constants import FPS, SAMPLE_RATE
from latentsync.media.audio import decoded_frames, resampled
from latentsync.media.frame import VideoFrame
from latentsync.media.reader import Picture, VideoReader
from latentsync.media.timeline import nearest_samples
from preprocess.steps.probe import Source, source_errors

# A picture that stands longer than this is a hole in the recording or a slide, nobody who speaks.
MAX_STANDING_FRAMES = 2 * FPS


class Sample(NamedTuple):
    """A frame of the source: its number at 25 frames/s, and whether a new shot begins with it."""

    index: int
    frame: VideoFrame
    starts_shot: bool


def resample(source: Source) -> Iterator[Sample]:
    """The frames of a source at 25 frames/s, to its real end, whatever its header says.

    Of a picture that stands for more than 2 s the rest is left out, and what follows is a new shot. Raises SourceError
    when not one picture can be decoded.
    """
    with source_errors(), VideoReader(source.info) as reader:
        shown: Picture | None = None
        standing = 0
        limit = 1 if source.info.is_still else None
        for index, picture in enumerate(nearest_samples(reader.pictures(), Fraction(FPS), limit)):
            was_left_out = standing > MAX_STANDING_FRAMES
            standing = standing + 1 if picture is shown else 1
            shown = picture
            if standing <= MAX_STANDING_FRAMES:
                yield Sample(index, picture.frame, index == 0 or was_left_out)


class SoundReader:
    """The sound of a source: float32, mono, 16 kHz, time 0 at the first picture. Read forward, a stretch in memory.

    Of a source without sound: zeros.
    """

    def __init__(self, source: Source) -> None:
        frames = decoded_frames(source.info.path, source.audio_track)
        self._pieces = resampled(frames, "flt", "mono", SAMPLE_RATE)
        self._kept = np.zeros(0, np.float32)
        self._begin = round((source.sound_delay or 0) * SAMPLE_RATE)  # place of the first sample kept
        self._ended = not source.has_sound

    def __enter__(self) -> "SoundReader":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        self._pieces.close()

    def read(self, start: Fraction, samples: int) -> np.ndarray:
        """float32 (samples,) in [-1, 1] from `start` (seconds) on; zeros before the first and after the last one."""
        first = round(start * SAMPLE_RATE)
        self._read_until(first + samples)
        wave = np.zeros(samples, np.float32)
        low = max(first, self._begin)
        high = min(first + samples, self._begin + len(self._kept))
        if low < high:
            wave[low - first : high - first] = self._kept[low - self._begin : high - self._begin]
        return wave

    def forget(self, start: Fraction) -> None:
        """Nothing before `start` (seconds) will be asked for any more."""
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
