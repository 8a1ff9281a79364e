"""A stream of frames at another rate: exact times, frames in between made by an interpolator."""

import math
from collections.abc import Callable, Iterator
from fractions import Fraction
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

    def between(self, first: np.ndarray, second: np.ndarray, t: float) -> np.ndarray:
        """(H, W, 3) uint8 RGB at time t in (0, 1) between two pictures of that size."""


class FrameRateConverter:
    """Takes frames at `source_fps`, gives frames at `target_fps`: frame j is shown at j / target_fps.

    A frame that falls on a source frame's time is that frame, untouched. Across a cut the nearer neighbour is shown,
    between equal neighbours the first. Holds two frames. ceil(n * target / source) frames come of n.
    """

    def __init__(self, interpolator: Interpolator, source_fps: Fraction, target_fps: Fraction):
        self.interpolator = interpolator
        self.source_fps, self.target_fps = Fraction(source_fps), Fraction(target_fps)
        self.written = 0
        self._step = self.source_fps / self.target_fps
        self._taken = 0
        self._last: VideoFrame | None = None
        self._rgb_frame: VideoFrame | None = None  # whose picture `_last_rgb` is
        self._last_rgb: np.ndarray | None = None

    def push(self, frame: VideoFrame) -> Iterator[VideoFrame]:
        """Frames of the result before `frame`'s time, and the one at it if there is one."""
        index, self._taken = self._taken, self._taken + 1
        make = None
        while (time := self.written * self._step) < index:
            make = make or self._between(self._last, frame)
            yield make(time - (index - 1))
            self.written += 1
        if time == index:
            yield frame
            self.written += 1
        self._last = frame

    def flush(self) -> Iterator[VideoFrame]:
        """What is left after the last frame's time: that frame, for as long as it is shown."""
        total = math.ceil(self._taken / self._step)
        while self.written < total:
            yield self._last
            self.written += 1

    def _between(self, first: VideoFrame, second: VideoFrame) -> Callable[[Fraction], VideoFrame]:
        """What shows the time t in (0, 1) between two neighbours."""
        if first is second or cv2.norm(first.i420, second.i420, cv2.NORM_INF) <= STILL:
            return lambda t: first
        if is_cut(first, second):
            return lambda t: first if t < Fraction(1, 2) else second
        pictures = self._rgb_of_last(), second.rgb()
        self._rgb_frame, self._last_rgb = second, pictures[1]
        return lambda t: VideoFrame.from_rgb(self.interpolator.between(*pictures, float(t)), second.color)

    def _rgb_of_last(self) -> np.ndarray:
        """Converted once, where it was the second of the pair before."""
        if self._last_rgb is None or self._rgb_frame is not self._last:
            return self._last.rgb()
        return self._last_rgb


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
