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
MARGIN = 64  # pixels around the part of a frame that moves, or a quarter of its side if that is more
WHOLE = 0.6  # share of the frame from which on all of it is interpolated
ROOMY = 2.0  # the part of the last interval is kept, with its motion, if it is at most this much larger than needed

Box = tuple[int, int, int, int]  # x0, y0, x1, y1, end exclusive


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
    repeated, between equal neighbors the first. Between others, the part that moves is interpolated, and the rest is
    that of the first. Keeps four frames and has a delay of one, because motion is estimated from both sides. n source
    frames give ceil(n * target / source) output frames.
    """

    def __init__(self, interpolator: Interpolator, source_fps: Fraction, target_fps: Fraction):
        self.interpolator = interpolator
        self.source_fps, self.target_fps = Fraction(source_fps), Fraction(target_fps)
        self.written = 0
        self._step = self.source_fps / self.target_fps
        self._taken = 0
        self._box: Box = (0, 0, 0, 0)  # the part that was interpolated last
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
        box = self._box = steady_box(moving_box(a, b), self._box)
        one, other = first.rgb(box), second.rgb(box)
        earlier, later = None if first.opens_scene else before.rgb(box), None if after.opens_scene else after.rgb(box)
        interpolate, everywhere = self.interpolator.between, np.ones(one.shape[:2], np.float32)
        return lambda t: a.blend_rgb(*box[:2], interpolate(one, other, float(t), earlier, later), everywhere)


class _Held:
    """A source frame with values that are computed once, although three pairs of frames use them.

    Args:
        frame: None before the first and after the last frame.
        previous: the frame before it.
    """

    def __init__(self, frame: VideoFrame | None = None, previous: VideoFrame | None = None) -> None:
        self.frame, self._previous = frame, previous
        self._box: Box | None = None

    @property
    def image(self) -> VideoFrame:
        if self.frame is None:
            raise ValueError("there is no frame beyond the ends of the stream")
        return self.frame

    def rgb(self, box: Box) -> np.ndarray:
        """A part of the frame: the same array for the same box, so that interpolators can cache by identity."""
        if self._box != box:
            self._box, self._pixels = box, self.image.crop_rgb(*box)
        return self._pixels

    @cached_property
    def opens_scene(self) -> bool:
        """Whether there is no frame before it in its scene: it is the first one, after the last one, or after a cut."""
        return self.frame is None or self._previous is None or is_cut(self._previous, self.frame)


def moving_box(first: VideoFrame, second: VideoFrame) -> Box:
    """The part in which two frames differ, with a margin; the whole frame if that is most of it. Sides are even."""
    width, height = first.width, first.height
    x0, y0, x1, y1 = width, height, 0, 0
    for scale, (one, other) in zip((1, 2, 2), zip(first.planes, second.planes, strict=True), strict=True):
        left, top, across, down = cv2.boundingRect((cv2.absdiff(one, other) > STILL).view(np.uint8))
        if across:
            x0, y0 = min(x0, scale * left), min(y0, scale * top)
            x1, y1 = max(x1, scale * (left + across)), max(y1, scale * (top + down))
    right, down = max(MARGIN, (x1 - x0) // 4), max(MARGIN, (y1 - y0) // 4)
    x0, y0 = max(x0 - right, 0) & ~1, max(y0 - down, 0) & ~1
    x1, y1 = min(x1 + right + 1, width) & ~1, min(y1 + down + 1, height) & ~1
    return (0, 0, width, height) if _area((x0, y0, x1, y1)) > WHOLE * width * height else (x0, y0, x1, y1)


def steady_box(needed: Box, last: Box) -> Box:
    """Reuse the last box if it contains the needed one and is not much larger, so that motion estimates stay cached."""
    contains = last[0] <= needed[0] and last[1] <= needed[1] and last[2] >= needed[2] and last[3] >= needed[3]
    return last if contains and _area(last) <= ROOMY * _area(needed) else needed


def _area(box: Box) -> int:
    return (box[2] - box[0]) * (box[3] - box[1])


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
