"""Data passed between the steps: segments of a source, and the clips made from them.

Legend: T frames of a clip, R side of an aligned face in pixels.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction

import numpy as np

from latentsync.constants import FPS, SAMPLES_PER_FRAME
from latentsync.media.frame import VideoFrame

Figure = float | int | str


@dataclass(frozen=True)
class Drop:
    """Why a source or a clip is not used: the step that dropped it, and the reason in one line."""

    step: str
    reason: str


class Segment:
    """Consecutive frames of one shot at 25 frames/s, decoded while they are read and never all in memory.

    Can be iterated over once. `num_frames` counts the frames read so far, since a shot may end before the segment's
    full length.
    """

    def __init__(
        self,
        source: str,
        index: int,
        start: Fraction,
        frames: Iterator[VideoFrame],
        read_audio: Callable[[Fraction, int], np.ndarray],
        is_still: bool = False,
    ) -> None:
        """
        Args:
            start: time in the source, in seconds.
            read_audio: (start, samples) -> float32 (samples,) of the source, from that time on.
            is_still: the source is a still image, to which no minimum length applies.
        """
        self.source = source
        self.index = index
        self.start = start
        self.num_frames = 0
        self.is_still = is_still
        self.frames = self._counted(frames)
        self._read_audio = read_audio

    def __iter__(self) -> Iterator[VideoFrame]:
        return self.frames

    def audio(self, num_frames: int | None = None, first: int = 0) -> np.ndarray:
        """Audio of `num_frames` frames (default: all read so far) from frame `first` on: float32 (num_frames * 640,).

        Mono at 16 kHz, zeros where the source has no audio. Available until the next segment is started.
        """
        count = self.num_frames - first if num_frames is None else num_frames
        return self._read_audio(self.start + Fraction(first, FPS), count * SAMPLES_PER_FRAME)

    def _counted(self, frames: Iterator[VideoFrame]) -> Iterator[VideoFrame]:
        for frame in frames:
            self.num_frames += 1
            yield frame


@dataclass(frozen=True)
class Clip:
    """One person in a segment. Steps return changed copies (`dataclasses.replace`).

    Args:
        source: name of the source.
        segment: index of the segment in the source.
        person: index of the face in the segment.
        start: time of the first frame in the source, in seconds.
        faces: aligned, uint8 (T, R, R, 3) RGB; None for a dropped clip.
        wave: float32 (T * 640,) at 16 kHz; None for a dropped clip or a source without audio.
        figures: values computed by the steps, by name; they become columns of the manifest.
        drop: None for a clip to keep.
        length: number of frames of a dropped clip.
        is_gap: it has frames of a segment in which nobody could be tracked; it is always dropped.
    """

    source: str
    segment: int
    person: int
    start: Fraction
    faces: np.ndarray | None
    wave: np.ndarray | None
    figures: dict[str, Figure] = field(default_factory=dict)
    drop: Drop | None = None
    length: int = 0
    is_gap: bool = False

    @property
    def num_frames(self) -> int:
        return self.length if self.faces is None else len(self.faces)

    @property
    def kept_faces(self) -> np.ndarray:
        """`faces` of a clip that is not dropped."""
        if self.faces is None:
            raise ValueError("a dropped clip has no faces")
        return self.faces

    def dropped(self, step: str, reason: str) -> "Clip":
        """The clip without its frames and audio, with the reason."""
        return replace(self, faces=None, wave=None, drop=Drop(step, reason), length=self.num_frames)
