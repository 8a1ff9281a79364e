"""Step 4: split shots into segments of equal length while they are decoded."""

from collections.abc import Iterator
from fractions import Fraction

from latentsync.constants import FPS
from latentsync.media.frame import VideoFrame
from preprocess.clip import Segment
from preprocess.steps.resample import AudioReader, Sample

KEPT_SECONDS = 1  # audio kept from before a segment, for steps that shift it


def segments(
    samples: Iterator[Sample], source: str, audio: AudioReader, length: int, is_still: bool = False
) -> Iterator[Segment]:
    """Segments of at most `length` frames of one shot, in order, numbered from 0.

    Use each segment before taking the next one, which decodes and discards the frames that were not read.
    """
    cutter = _Cutter(samples)
    index = 0
    while cutter.next is not None:
        start = Fraction(cutter.next.index, FPS)
        audio.forget(start - KEPT_SECONDS)
        segment = Segment(source, index, start, cutter.take(length), audio.read, is_still)
        yield segment
        for _ in segment:
            pass
        index += 1


class _Cutter:
    """Iterates over samples with a lookahead of one, to find the end of a shot."""

    def __init__(self, samples: Iterator[Sample]) -> None:
        self._samples = samples
        self.next = next(samples, None)

    def take(self, length: int) -> Iterator[VideoFrame]:
        """The next frames, at most `length`, up to the end of the shot."""
        for taken in range(length):
            sample = self.next
            if sample is None or (taken and sample.starts_shot):
                return
            self.next = next(self._samples, None)
            yield sample.frame
