"""Frame rate conversion of a stream, with exact times and interpolated frames."""

import math
from collections import deque
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import cached_property
from itertools import repeat
from typing import Protocol

import cv2
import numpy as np

from latentsync.media.frame import VideoFrame

THUMBNAIL = 32  # side of the images that cuts are detected on, in pixels
CUT_SIMILARITY = 0.35  # structural similarity of neighboring frames below which there is a cut between them
STILL = 2  # largest difference of samples between two frames that count as equal


class Interpolator(Protocol):
    """A method of frame interpolation. `name` identifies it."""

    name: str

    def between(
        self,
        first: np.ndarray,
        second: np.ndarray,
        t: float,
        before: np.ndarray | None = None,
        after: np.ndarray | None = None,
    ) -> np.ndarray:
        """Interpolate between two frames.

        Args:
            first, second: (H, W, 3) uint8 RGB.
            t: time between them, in (0, 1).
            before, after: the frame before the first and the one after the second, if any; they show whether motion
                accelerates.

        Returns:
            (H, W, 3) uint8 RGB.
        """


class FrameRateConverter:
    """Converts frames at `source_fps` to frames at `target_fps`: output frame j is due at j / target_fps.

    An output frame that is due with a source frame is that frame, unchanged. Across a cut the nearer neighbor is
    repeated, between equal neighbors the first. Keeps four frames and has a delay of one, because motion is estimated
    from both sides. n source frames give ceil(n * target / source) output frames.
    """

    def __init__(self, interpolator: Interpolator, source_fps: Fraction, target_fps: Fraction):
        self.interpolator = interpolator
        self.source_fps, self.target_fps = Fraction(source_fps), Fraction(target_fps)
        self.written = 0
        self._step = self.source_fps / self.target_fps
        self._taken = 0
        self._held: deque[_Held] = deque([_Held()] * 3, maxlen=4)

    def push(self, frame: VideoFrame) -> Iterator[VideoFrame]:
        """Add a source frame; yield the output frames that are due up to the source frame before it."""
        self._taken += 1
        self._held.append(_Held(frame, self._held[-1].frame))
        if self._taken > 1:
            before, first, second, after = self._held
            yield from self._show(before, first, second, after, self._taken - 2)

    def flush(self) -> Iterator[VideoFrame]:
        """Yield the remaining output frames; the last source frame is repeated for its duration."""
        if not self._taken:
            return
        _, before, first, last = self._held
        yield from self._show(before, first, last, _Held(), self._taken - 1)
        total = math.ceil(self._taken / self._step)
        yield from repeat(last.image, total - self.written)
        self.written = total

    def _show(
        self, before: "_Held", first: "_Held", second: "_Held", after: "_Held", index: int
    ) -> Iterator[VideoFrame]:
        """Output frames up to and including the time of `second`, the source frame with that index."""
        make = None
        while (time := self.written * self._step) < index:
            make = make or self._between(before, first, second, after)
            yield make(time - (index - 1))
            self.written += 1
        if time == index:
            yield second.image
            self.written += 1

    def _between(
        self, before: "_Held", first: "_Held", second: "_Held", after: "_Held"
    ) -> Callable[[Fraction], VideoFrame]:
        """A function from the time t in (0, 1) between two neighbors to the frame due then."""
        a, b = first.image, second.image
        if a is b or cv2.norm(a.i420, b.i420, cv2.NORM_INF) <= STILL:
            return lambda t: a
        if second.opens_scene:
            return lambda t: a if t < Fraction(1, 2) else b
        earlier, later = None if first.opens_scene else before.rgb, None if after.opens_scene else after.rgb
        interpolate = self.interpolator.between
        return lambda t: VideoFrame.from_rgb(interpolate(first.rgb, second.rgb, float(t), earlier, later), b.color)


class _Held:
    """A source frame with values that are computed once, although three pairs of frames use them.

    Args:
        frame: None before the first and after the last frame.
        previous: the frame before it.
    """

    def __init__(self, frame: VideoFrame | None = None, previous: VideoFrame | None = None) -> None:
        self.frame, self._previous = frame, previous

    @property
    def image(self) -> VideoFrame:
        if self.frame is None:
            raise ValueError("there is no frame beyond the ends of the stream")
        return self.frame

    @cached_property
    def rgb(self) -> np.ndarray:
        """Always the same array, so that interpolators can cache by identity."""
        return self.image.rgb()

    @cached_property
    def opens_scene(self) -> bool:
        """Whether there is no frame before it in its scene: it is the first one, after the last one, or after a cut."""
        return self.frame is None or self._previous is None or is_cut(self._previous, self.frame)


def is_cut(first: VideoFrame, second: VideoFrame) -> bool:
    """Whether two neighbors show different scenes, by structural similarity (Wang et al. 2004) of thumbnails."""
    a, b = _thumbnail(first), _thumbnail(second)

    def mean(values: np.ndarray) -> np.ndarray:
        return cv2.GaussianBlur(values, (7, 7), 1.5)

    mean_a, mean_b = mean(a), mean(b)
    variance = mean(a * a) - mean_a**2 + mean(b * b) - mean_b**2
    covariance = mean(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    index = (2 * mean_a * mean_b + c1) * (2 * covariance + c2) / ((mean_a**2 + mean_b**2 + c1) * (variance + c2))
    return float(index.mean()) < CUT_SIMILARITY


def _thumbnail(frame: VideoFrame) -> np.ndarray:
    """Luma, (32, 32) float32."""
    return cv2.resize(frame.planes[0], (THUMBNAIL, THUMBNAIL), interpolation=cv2.INTER_AREA).astype(np.float32)
