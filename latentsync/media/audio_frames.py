"""Operations on decoded audio frames: gaps and drift against the time stamps, filters, trimming, silence."""

from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.filter import Graph

from latentsync.media.stamps import MAX_GAP_SECONDS, duration_of, starts_anew, time_of
from latentsync.utils.errors import UserError

# A larger jump between two time stamps is a gap in the recording; smaller steps are rounding or drift.
GAP_SECONDS = Fraction(1, 25)
MAX_DRIFT_SECONDS = Fraction(1, 50)  # between samples and time stamps; beyond, samples are resampled to the stamps
MAX_FOLLOWED = 16  # resampling changes the speed by at most one part in so many
# aresample: always resample; never insert or drop.
FOLLOW_STAMPS = "flags=res:async={most}:min_comp=0.005:min_hard_comp=1000000"


class Clock:
    """Compares time stamps with the samples so far. `position`: seconds of samples; `drift`: stamp minus position."""

    def __init__(self, path: Path) -> None:
        self.position = Fraction(0)
        self.drift = Fraction(0)
        self._path = path
        self._origin: Fraction | None = None
        self._gaps = Fraction(0)

    def gap_before(self, frame: av.AudioFrame) -> Fraction:
        """Seconds missing before a frame. Raises UserError for gaps of more than an hour in total."""
        stamp = time_of(frame)
        if stamp is None:
            return Fraction(0)
        if self._origin is None:
            self._origin = stamp
        error = stamp - self._origin - self.position
        step = error - self.drift
        if abs(step) <= GAP_SECONDS:
            self.drift = error
            return Fraction(0)
        if starts_anew(step, GAP_SECONDS):
            self._origin += step
            return Fraction(0)
        self._gaps += step
        if self._gaps > MAX_GAP_SECONDS:
            raise UserError(f"{self._path}: the audio has gaps of more than {MAX_GAP_SECONDS} s in total; re-encode it")
        return step


class StampFollower:
    """Passes frames on unchanged until they drift from their time stamps, and resamples them to these from then on."""

    def __init__(self) -> None:
        self._graph: Graph | None = None
        self._format: tuple[str, str, int] | None = None

    def push(self, frame: av.AudioFrame, clock: Clock) -> Iterator[av.AudioFrame]:
        """Advance the clock by a frame; yield its converted parts."""
        found = (frame.format.name, frame.layout.name, frame.sample_rate)
        if found != self._format:
            yield from self.flush()
            self._format = found
        due = clock.position + clock.drift
        if self._graph is None and abs(clock.drift) > MAX_DRIFT_SECONDS:
            self._graph = _graph(frame, "aresample", FOLLOW_STAMPS.format(most=frame.sample_rate // MAX_FOLLOWED))
            due = clock.position  # of the samples that came before
        clock.position += Fraction(frame.samples, frame.sample_rate)
        if self._graph is None:
            yield frame
            return
        frame.pts, frame.time_base = round(due * frame.sample_rate), Fraction(1, frame.sample_rate)
        yield from filtered(self._graph, [frame])

    def flush(self) -> Iterator[av.AudioFrame]:
        graph, self._graph = self._graph, None
        if graph is not None:
            yield from filtered(graph, [None])


def _graph(like: av.AudioFrame, name: str, arguments: str) -> Graph:
    """A graph of one audio filter for frames like this one."""
    graph = Graph()
    source = graph.add_abuffer(
        sample_rate=like.sample_rate,
        format=like.format.name,
        layout=like.layout.name,
        time_base=Fraction(1, like.sample_rate),
    )
    nodes = [source, graph.add(name, arguments), graph.add("abuffersink")]
    graph.link_nodes(*nodes).configure()
    return graph


def filtered(graph: Graph, frames: Iterable[av.AudioFrame | None]) -> Iterator[av.AudioFrame]:
    """Pass frames through a filter graph; None ends the stream."""
    for frame in frames:
        graph.push(frame)
        while True:
            try:
                result = graph.pull()
            except (av.error.BlockingIOError, av.error.EOFError):
                break
            if isinstance(result, av.AudioFrame):
                yield result


def trimmed(frame: av.AudioFrame, start: int, end: int) -> av.AudioFrame:
    """Samples `start` to `end - 1` of a frame."""
    if (start, end) == (0, frame.samples):
        return frame
    graph = _graph(frame, "atrim", f"start_sample={start}:end_sample={end}")
    frame.pts, frame.time_base = 0, Fraction(1, frame.sample_rate)
    return next(filtered(graph, [frame, None]))


def without_padding(frames: Iterator[av.AudioFrame | None]) -> Iterator[av.AudioFrame | None]:
    """Cut the last frame to the duration that the container states: encoders pad it to a whole block."""
    last: av.AudioFrame | None = None
    for frame in frames:
        if frame is None:
            yield None
            continue
        if last is not None:
            yield last
        last = frame
    if last is not None:
        length, tick = duration_of(last), last.time_base or Fraction(0)
        cut = Fraction(last.samples, last.sample_rate) - length
        short = length > 0 and cut > tick  # a tick is the container's rounding
        yield trimmed(last, 0, max(1, round(length * last.sample_rate))) if short else last


def shifted(frames: Iterator[av.AudioFrame], delay: Fraction) -> Iterator[av.AudioFrame]:
    """Put silence before the first frame, or leave the start out."""
    is_first = True
    for frame in frames:
        if is_first and delay > 0:
            yield from silence(frame, delay)
        is_first = False
        if delay >= 0:
            yield frame
            continue
        cut = round(-delay * frame.sample_rate)
        delay = min(Fraction(0), delay + Fraction(frame.samples, frame.sample_rate))
        if cut < frame.samples:
            delay = Fraction(0)
            yield trimmed(frame, cut, frame.samples)


def finite(frame: av.AudioFrame) -> tuple[av.AudioFrame, int]:
    """The frame with NaN and infinite samples set to 0, and how many there were.

    Only uncompressed float audio can hold them, and that is packed. (PyAV 18 must not be asked for the planes of
    planar frames with 8 channels or more: it reads past their end.)
    """
    if frame.format.name not in ("flt", "dbl"):
        return frame, 0
    samples = frame.to_ndarray()
    bad = ~np.isfinite(samples)
    count = int(np.count_nonzero(bad))
    if not count:
        return frame, 0
    clean = av.AudioFrame.from_ndarray(np.where(bad, 0, samples), frame.format.name, frame.layout.name)
    clean.sample_rate = frame.sample_rate
    return clean, count


def silence(like: av.AudioFrame, seconds: Fraction) -> Iterator[av.AudioFrame]:
    """Silent frames with the rate and layout of `like`, at most a second each, for `seconds`."""
    remaining = round(seconds * like.sample_rate)
    while remaining > 0:
        length = min(remaining, like.sample_rate)
        frame = av.AudioFrame("s16", like.layout.name, length)
        frame.planes[0].update(bytes(frame.planes[0].buffer_size))
        frame.sample_rate = like.sample_rate
        remaining -= length
        yield frame
