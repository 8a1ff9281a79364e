"""What travels between the steps: stretches of a source, and the clips made from them.

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
    """A stretch of one shot of a source at 25 frames/s, decoded while it is read; never all in memory.

    Iterating over it gives its frames, once. How many there are is known when the last one has been taken
    (`num_frames`): a shot may end before the segment's full length.
    """

    def __init__(
        self,
        source: str,
        index: int,
        start: Fraction,
        frames: Iterator[VideoFrame],
        sound: Callable[[Fraction, int], np.ndarray],
        is_still: bool = False,
    ) -> None:
        """`start`: seconds in the source. `sound(start, samples)`: float32 (samples,) of the source, from a time on.
        is_still: one picture, which is long enough whatever the settings say."""
        self.source = source
        self.index = index
        self.start = start
        self.num_frames = 0
        self.is_still = is_still
        self.frames = self._counted(frames)
        self._sound = sound

    def __iter__(self) -> Iterator[VideoFrame]:
        return self.frames

    def sound(self, num_frames: int | None = None, first: int = 0) -> np.ndarray:
        """float32 (num_frames * 640,) at 16 kHz, mono, from frame `first` on: what is heard while the frames are shown.

        num_frames: by default all those read so far. Where the source has no sound (any more) there are zeros. May be
        asked for as often as wanted, until the next segment is asked for.
        """
        count = self.num_frames - first if num_frames is None else num_frames
        return self._sound(self.start + Fraction(first, FPS), count * SAMPLES_PER_FRAME)

    def _counted(self, frames: Iterator[VideoFrame]) -> Iterator[VideoFrame]:
        for frame in frames:
            self.num_frames += 1
            yield frame


@dataclass(frozen=True)
class Clip:
    """One person's stretch of a segment. Steps return changed copies (`dataclasses.replace`).

    source: name of the source. segment: its number in the source. person: number of the face in the segment, 0 first.
    start: seconds in the source of the first frame. faces: uint8 (T, R, R, 3) RGB, aligned. wave: float32 (T * 640,) at
    16 kHz, None where the source has no sound. Both are None once dropped: nothing will be written.
    figures: what the steps measured, by name; they become columns of the manifest. drop: None for a clip to be kept.
    length: frames of a clip that was dropped.
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

    @property
    def num_frames(self) -> int:
        return self.length if self.faces is None else len(self.faces)

    def dropped(self, step: str, reason: str) -> "Clip":
        """The clip without its pictures and sound, and why."""
        return replace(self, faces=None, wave=None, drop=Drop(step, reason), length=self.num_frames)
