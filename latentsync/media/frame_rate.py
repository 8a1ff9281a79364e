"""A stream of frames at another rate: exact times, frames in between made by an interpolator."""

import math
from collections import deque
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import cached_property
from typing import Protocol

import cv2
import numpy as np

from latentsync.media.frame import VideoFrame

THUMBNAIL = 32  # pixels of a side, on which cuts are seen
CUT_SIMILARITY = 0.35  # structural similarity of neighbours below which there is a cut between them
STILL = 2  # grey levels that no sample of two equal pictures differs by more than


class Interpolator(Protocol):
    """Makes the picture between two. `name` says which method it is."""

    name: str

    def between(
        self,
        first: np.ndarray,
        second: np.ndarray,
        t: float,
        before: np.ndarray | None = None,
        after: np.ndarray | None = None,
    ) -> np.ndarray:
        """(H, W, 3) uint8 RGB at time t in (0, 1) between two pictures of that size.

        `before` and `after`, where there are such, lie one step before the first and one after the second: from them
        a method may tell motion that speeds up or slows down.
        """


class FrameRateConverter:
    """Takes frames at `source_fps`, gives frames at `target_fps`: frame j is shown at j / target_fps.

    A frame that falls on a source frame's time is that frame, untouched. Across a cut the nearer neighbour is shown,
    between equal neighbours the first. Holds four frames and lags one behind, as motion is judged from both sides.
    ceil(n * target / source) frames come of n.
    """

    def __init__(self, interpolator: Interpolator, source_fps: Fraction, target_fps: Fraction):
        self.interpolator = interpolator
        self.source_fps, self.target_fps = Fraction(source_fps), Fraction(target_fps)
        self.written = 0
        self._step = self.source_fps / self.target_fps
        self._taken = 0
        self._held: deque[_Held] = deque([_Held()] * 3, maxlen=4)

    def push(self, frame: VideoFrame) -> Iterator[VideoFrame]:
        """Frames of the result after the last but two's time, up to the last but one's: `frame` is only looked at."""
        self._taken += 1
        self._held.append(_Held(frame, self._held[-1].frame))
        yield from self._show(*self._held, self._taken - 2)

    def flush(self) -> Iterator[VideoFrame]:
        """What is left: frames up to the last one's time, then that frame, for as long as it is shown."""
        if not self._taken:
            return
        _, before, first, last = self._held
        yield from self._show(before, first, last, _Held(), self._taken - 1)
        total = math.ceil(self._taken / self._step)
        while self.written < total:
            yield last.frame
            self.written += 1

    def _show(
        self, before: "_Held", first: "_Held", second: "_Held", after: "_Held", index: int
    ) -> Iterator[VideoFrame]:
        """Frames before the time of `second`, the source's frame of that index, and the one at it if there is one."""
        make = None
        while (time := self.written * self._step) < index:
            make = make or self._between(before, first, second, after)
            yield make(time - (index - 1))
            self.written += 1
        if time == index:
            yield second.frame
            self.written += 1

    def _between(
        self, before: "_Held", first: "_Held", second: "_Held", after: "_Held"
    ) -> Callable[[Fraction], VideoFrame]:
        """What shows the time t in (0, 1) between two neighbours."""
        a, b = first.frame, second.frame
        if a is b or cv2.norm(a.i420, b.i420, cv2.NORM_INF) <= STILL:
            return lambda t: a
        if second.opens_scene:
            return lambda t: a if t < Fraction(1, 2) else b
        pictures = first.rgb, second.rgb
        around = None if first.opens_scene else before.rgb, None if after.opens_scene else after.rgb
        return lambda t: VideoFrame.from_rgb(self.interpolator.between(*pictures, float(t), *around), b.color)


class _Held:
    """A frame, None beyond either end, and what is found out of it once, though three pairs in turn ask for it.

    Args:
        previous: the frame before it.
    """

    def __init__(self, frame: VideoFrame | None = None, previous: VideoFrame | None = None) -> None:
        self.frame, self._previous = frame, previous

    @cached_property
    def rgb(self) -> np.ndarray:
        """Always the same array: interpolators know pictures again."""
        return self.frame.rgb()

    @cached_property
    def opens_scene(self) -> bool:
        """Whether it goes on from no frame: it is the first one, beyond the last one, or behind a cut."""
        return self.frame is None or self._previous is None or is_cut(self._previous, self.frame)


def is_cut(first: VideoFrame, second: VideoFrame) -> bool:
    """Whether two neighbours show different scenes: structural similarity (Wang et al. 2004) of their thumbnails."""
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
