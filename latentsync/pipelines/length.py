"""Length of the output where video and voice differ: the option `length_mode`."""

import math
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, islice

from latentsync.media.frame import VideoFrame
from latentsync.media.frame_rate import FrameRateConverter
from latentsync.media.interpolation import open_interpolator
from latentsync.media.sources import FrameStream, VideoSource
from latentsync.media.timeline import frame_count
from latentsync.options import LengthMode
from latentsync.utils.errors import UserError

ON_SHORT = ("bounce", "loop", "freeze", "error")  # modes that only say how to continue a video
KEEP_TAIL, REST_TAIL = "keep_tail", "silence"
SLOWEST, FASTEST = Fraction(1, 2), Fraction(2)  # speeds of remap; beyond, the video bounces or is cut


@dataclass(frozen=True)
class Fit:
    """Frames of the output.

    Args:
        count: number of frames.
        spoken: the first ones, which the voice covers; those after it are the tail.
        open: opens the frames.
    """

    count: int
    spoken: int
    open: Callable[[], FrameStream]


def fit_length(source: VideoSource, seconds: Fraction, fps: Fraction, mode: LengthMode, most: Fraction | None) -> Fit:
    """Fit a video to a voice.

    Args:
        source: the video.
        seconds: duration of the voice.
        fps: frame rate of the output.
        mode: see docs/dubbing.md.
        most: maximum duration of the output.

    Raises:
        UserError: the video's length is not known, and the mode needs it.
    """
    spoken = frame_count(seconds, fps)
    if mode in ON_SHORT or source.info.is_still:
        on_short = mode if mode in ON_SHORT else "bounce"
        return Fit(spoken, spoken, lambda: source.open(spoken / fps, fps, on_short))
    length = source.available(fps)
    if length is None:
        raise UserError(f"length_mode {mode} needs a video of known length, not an iterator; choose freeze")
    if mode == "remap":
        return Fit(spoken, spoken, lambda: remapped(source, Fraction(length, spoken), spoken, fps))
    count = min(spoken, length) if mode == "cut" else max(spoken, length)
    if most is not None:
        count = min(count, frame_count(most, fps))
    return Fit(count, min(spoken, count), lambda: source.open(count / fps, fps, "bounce"))


def whole_video(source: VideoSource, seconds: Fraction, fps: Fraction, most: Fraction | None) -> Fit:
    """All frames of a video, or `seconds` of a still image."""
    length = None if source.info.is_still else source.available(fps)
    if length is None and not source.info.is_still:
        raise UserError("a script needs a video of known length, not an iterator")
    count = frame_count(seconds, fps) if length is None else length
    if most is not None:
        count = min(count, frame_count(most, fps))
    return Fit(count, count, lambda: source.open(count / fps, fps, "freeze"))


def remapped(source: VideoSource, speed: Fraction, count: int, fps: Fraction) -> Generator[VideoFrame, None, None]:
    """`count` frames of a video at another speed within limits, with interpolated motion."""
    speed = min(max(speed, SLOWEST), FASTEST)
    with closing(source.open(math.ceil(count * speed) / fps, fps, "bounce")) as frames:
        if speed == 1:
            yield from frames
            return
        converter = FrameRateConverter(open_interpolator("auto", "cpu"), fps * speed, fps)
        shown = chain.from_iterable(converter.push(frame) for frame in frames)
        yield from islice(chain(shown, converter.flush()), count)
