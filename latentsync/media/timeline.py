"""Frames of a video at a constant rate and for an exact duration, whatever the source's rate and length."""

import logging
import math
import os
from bisect import bisect_left, bisect_right
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, groupby, repeat
from typing import Generic, Protocol, TypeVar

from latentsync.media.frame import VideoFrame
from latentsync.media.probe import VideoInfo, packet_times, probe_video
from latentsync.media.reader import DecodedFrame, VideoReader
from latentsync.utils.errors import UserError

logger = logging.getLogger(__name__)

HALF = Fraction(1, 2)
ON_SHORT_CHOICES = ("bounce", "loop", "freeze", "error")

# Frames kept in memory while playing backward: this many bytes of 4:2:0 samples, within these counts.
_WINDOW_BYTES = 128 * 2**20
_WINDOW_FRAMES = (12, 128)
SEARCHED_SECONDS = 2  # frames that precede a part by less are decoded, not skipped


class Timed(Protocol):
    """An item that is due at `time` and lasts for `duration` (seconds)."""

    time: Fraction
    duration: Fraction


T = TypeVar("T", bound=Timed)
Item = TypeVar("Item", bound=Timed)


def frame_count(duration_s: float | Fraction, fps: Fraction) -> int:
    """ceil(duration * fps), at least 1. A float such as 2.96 counts as 74/25, not as the binary fraction above it."""
    if duration_s < 0 or not math.isfinite(duration_s):
        raise ValueError(f"duration {duration_s} s")
    exact = duration_s if isinstance(duration_s, Fraction) else Fraction(duration_s).limit_denominator(1_000_000)
    return max(1, math.ceil(exact * fps))


def pingpong_index(index: int, length: int) -> int:
    """Position in 0..length-1 at step `index` of forward, backward, forward, ... passes over all positions.

    The frame at a turn is repeated: time is mirrored, and every frame keeps its duration.
    """
    position = index % (2 * length)
    return position if position < length else 2 * length - 1 - position


def nearest_samples(items: Iterable[T], fps: Fraction, limit: int | None = None) -> Iterator[T]:
    """Sample timed items at a constant rate: for i = 0, 1, ... yield the item shown at i / fps.

    That is the nearest one less than half an output interval away (the earlier of two equally near), which absorbs the
    rounding of time stamps; where there is none, the previous one, so that a frozen image stays until the next one is
    due. Ends after `limit` samples, or where the last item ends, rounded to the nearest sample. Reads one item ahead.

    Args:
        items: in order, the first at time 0.
        fps: samples per second.
    """
    previous: T | None = None
    index = 0
    for item in items:
        if previous is not None:
            middle = (previous.time + item.time) / 2 * fps
            while index <= middle or index <= item.time * fps - HALF:
                if index == limit:
                    return
                yield previous
                index += 1
            if index == limit:
                return
        previous = item
    if previous is None:
        return
    total = max(1, math.floor((previous.time + previous.duration) * fps + HALF))
    for _ in range(index, total if limit is None else min(total, limit)):
        yield previous


@dataclass(frozen=True)
class Part:
    """A part of a video, in seconds from its first frame. `end`: None for that of the video."""

    start: Fraction = Fraction(0)
    end: Fraction | None = None


WHOLE = Part()


def open_timeline(
    source: str | os.PathLike | VideoInfo,
    duration_s: float | Fraction,
    fps: Fraction,
    on_short: str = "bounce",
    part: Part = WHOLE,
) -> "Timeline":
    """The frames of `source` for `duration_s` seconds at `fps`: an iterator of exactly ceil(duration * fps) frames.

    Any rate, also a variable one, is resampled by `nearest_samples`. A longer video is cut. `on_short` is for a shorter
    one: "bounce" continues backward, then forward, and so on; "loop" begins again; "freeze" repeats the last frame;
    "error" raises UserError here. A still image is repeated. Of a video, only the given part is used.

    Raises UserError as `probe_video` does, and where the video has no such part.
    """
    if on_short not in ON_SHORT_CHOICES:
        raise UserError(f"length_mode {on_short!r}: choose one of {', '.join(ON_SHORT_CHOICES)}")
    info = source if isinstance(source, VideoInfo) else probe_video(source)
    fps = Fraction(fps)
    count = frame_count(duration_s, fps)
    if on_short == "error" and not info.is_still:
        available = available_frames(info, fps, part)
        if available < count:
            raise UserError(
                f"{info.path}: the video lasts {float(available / fps):.2f} s, the audio {float(duration_s):.2f} s; "
                "give a longer video, or choose length_mode bounce, loop or freeze"
            )
    return Timeline(info, count, fps, on_short, part)


def available_frames(info: VideoInfo, fps: Fraction, part: Part = WHOLE) -> int:
    """Number of frames at `fps` in one pass over the video, from its packets, without decoding.

    Raises UserError where the video has no such part.
    """
    if info.is_still:
        return 1
    if info.is_animated_webp and info.duration is not None:
        whole = Fraction(info.duration).limit_denominator(1000)
        stamps = iter([_Stamp(Fraction(0), whole)])
    else:
        stamps = (_Stamp(time, duration) for time, duration in packet_times(info.path))
    return sum(1 for _ in nearest_samples(within(stamps, part, info.path), fps))


def within(items: Iterable[Item], part: Part, name: object) -> Iterator["_Moved[Item]"]:
    """Timed items in a part of a video, with times counted from its start; negative ones are shown before it.

    Raises UserError if the video, called `name`, ends before the part begins.
    """
    last: _Moved[Item] | None = None
    for item in items:
        if part.end is not None and item.time >= part.end:
            break
        if last is not None:
            yield last
        end = item.time + item.duration
        last = _Moved(item.time - part.start, min(end, part.end or end) - item.time, item)
    if last is None or (part.start > 0 and last.time + last.duration <= 0):
        raise UserError(f"{name}: the video ends before {float(part.start):g} s; choose an earlier start")
    yield last


class Timeline(Iterator[VideoFrame]):
    """Iterator over the frames of a timeline (see `open_timeline`); `len()` is their exact number.

    Memory is bounded for any length: forward passes are streamed; backward passes decode windows that begin at a
    keyframe if possible. A repeated frame may be the same object. Close it to release the file before the end.
    """

    def __init__(self, info: VideoInfo, count: int, fps: Fraction, on_short: str, part: Part = WHOLE) -> None:
        self.info = info
        self._part = WHOLE if info.is_still else part
        self.fps = fps
        self._count = count
        self._on_short = on_short
        self._reader = VideoReader(info)
        low, high = _WINDOW_FRAMES
        self._window = min(max(_WINDOW_BYTES // (info.width * info.height * 3 // 2), low), high)
        self._picks: list[Fraction] = []  # time of the source frame at each sample of one pass
        self._keys: list[Fraction] = []  # times of keyframes
        self._key_lead = 0  # number of keyframes before the wanted one at which to start a search
        self._frames = self._run()

    def __len__(self) -> int:
        return self._count

    def __next__(self) -> VideoFrame:
        return next(self._frames)

    def __enter__(self) -> "Timeline":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        self._frames.close()
        self._reader.close()

    def _run(self) -> Generator[VideoFrame]:
        with self._reader:
            for moved in nearest_samples(within(self._first_pass(), self._part, self.info.path), self.fps, self._count):
                decoded = moved.item
                frame = decoded.frame
                self._picks.append(decoded.time)
                yield frame
            remaining = self._count - len(self._picks)
            if remaining:
                self._check_promised_length()
            if remaining and self._on_short == "error" and not self.info.is_still:
                raise UserError(f"{self.info.path}: the video is damaged and ends before the audio does")
            if self.info.is_still or self._on_short == "freeze" or len(set(self._picks)) == 1:
                yield from repeat(frame, remaining)
                return
            yield from self._further_passes(remaining)

    def _first_pass(self) -> Iterator[DecodedFrame]:
        for decoded in self._from_start():
            if decoded.is_key:
                self._keys.append(decoded.time)
            yield decoded

    def _from_start(self) -> Iterator[DecodedFrame]:
        """Frames from a keyframe before the part on, or from the beginning of a file that cannot be searched."""
        if self._part.start > SEARCHED_SECONDS and not self.info.is_animated_webp:
            next(self._reader.decode(), None)  # searching needs the time stamp of the first frame
            frames = self._reader.decode(self._part.start)
            first = next(frames, None)
            if first is not None and first.time <= self._part.start:
                return chain([first], frames)
        return self._reader.decode()

    def _check_promised_length(self) -> None:
        """Warn when the frames end well before the duration in the header."""
        shown, promised = float(len(self._picks) / self.fps), self.info.duration
        if self._part == WHOLE and promised and not self.info.is_still and shown < promised - max(0.5, 0.02 * promised):
            logger.warning("%s: only %.2f of %.2f s could be decoded; truncated?", self.info.path, shown, promised)

    def _further_passes(self, remaining: int) -> Iterator[VideoFrame]:
        bounces = self._on_short == "bounce"
        backward = bounces
        while remaining > 0:
            length = min(remaining, len(self._picks))
            if backward:
                yield from self._backward(len(self._picks) - length)
            else:
                yield from self._forward(0, length)
            remaining -= length
            backward = bounces and not backward

    def _forward(self, begin: int, end: int) -> Iterator[VideoFrame]:
        """Samples begin..end-1 of one pass, in order."""
        picks = self._picks[begin:end]
        frames = self._frames_at(sorted(set(picks)))
        for _, samples in groupby(picks):
            frame = next(frames)
            yield from (frame for _ in samples)

    def _backward(self, begin: int) -> Iterator[VideoFrame]:
        """All samples from the last one back to `begin`, window by window."""
        end = len(self._picks)
        while end > begin:
            start = self._window_start(begin, end)
            yield from reversed(list(self._forward(start, end)))
            end = start

    def _window_start(self, begin: int, end: int) -> int:
        """Start of the window that ends before sample `end`: as early as its size allows, at a keyframe if any.

        From a keyframe on, nothing is decoded twice.
        """
        start, distinct = end - 1, 1
        while start > begin:
            distinct += self._picks[start - 1] != self._picks[start]
            if distinct > self._window:
                break
            start -= 1
        if start == begin:
            return start
        key = bisect_left(self._keys, self._picks[start])
        if key < len(self._keys) and self._keys[key] <= self._picks[end - 1]:
            # The first sample with this keyframe or, if resampling dropped it, with the next frame.
            start = bisect_left(self._picks, self._keys[key], start, end - 1)
        return start

    def _frames_at(self, times: list[Fraction]) -> Iterator[VideoFrame]:
        """One frame for each of `times` (strictly increasing), which an earlier pass has decoded.

        Seeks first; if that ends after the first time, tries earlier keyframes, and finally decodes again from the
        beginning. A frame that damage makes irreproducible is replaced by the next one.
        """
        found = 0
        key = bisect_right(self._keys, times[0]) - 1
        lead = self._key_lead
        skips = bool(self._keys) and self._keys[0] > 0  # the first pass did not begin at the beginning
        while found == 0 and (key > lead or (skips and key == lead)):
            for decoded in self._reader.decode(self._keys[key - lead]):
                if decoded.time > times[found]:
                    break
                if decoded.time == times[found]:
                    self._key_lead = lead
                    yield decoded.frame
                    found += 1
                    if found == len(times):
                        return
            lead = 2 * lead + 1  # containers without an index (MPEG-TS) need an earlier keyframe
        for decoded in self._reader.decode():
            while decoded.time >= times[found]:
                yield decoded.frame
                found += 1
                if found == len(times):
                    return
        yield from repeat(decoded.frame, len(times) - found)


class _Moved(Generic[Item]):
    """An item at a time counted from the start of a part; negative before it."""

    __slots__ = ("duration", "item", "time")

    def __init__(self, time: Fraction, duration: Fraction, item: Item) -> None:
        self.time = time
        self.duration = duration
        self.item = item


class _Stamp:
    """Time and duration of a frame that is not decoded."""

    __slots__ = ("duration", "time")

    def __init__(self, time: Fraction, duration: Fraction) -> None:
        self.time = time
        self.duration = duration
