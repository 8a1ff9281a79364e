"""Progress of long work: the fraction that is done, and an estimate of the time left that changes smoothly."""

import math
import time
from collections.abc import Callable
from typing import NamedTuple

SETTLING_SECONDS = 3.0  # after the first estimate, during which later ones simply replace it
SMOOTHING_SECONDS = 4.0  # time constant with which estimates are followed
LARGEST_CHANGE = 0.2  # of the time left, from one report to the next
SMALLEST_CHANGE = 1.0  # seconds; below it changes are not limited
UNFINISHED = 0.995  # largest fraction reported before the end


class Progress(NamedTuple):
    """State of a job.

    stage: current stage. done, total: frames; total is 0 while it is unknown. fraction: of the work that is done,
    0 to 1, never decreasing. seconds_left: estimate, None while it is unknown.
    """

    stage: str
    done: int = 0
    total: int = 0
    fraction: float = 0.0
    seconds_left: float | None = None


OnProgress = Callable[[Progress], None]


class Countdown:
    """The time left, from estimates that may jump: it counts down by itself and follows them gradually.

    clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._begun = clock()
        self._first = self._updated = 0.0
        self._end: float | None = None
        self._fraction = 0.0

    @property
    def left(self) -> float | None:
        """Seconds; None before the first estimate."""
        return None if self._end is None else max(0.0, self._end - self._clock())

    @property
    def fraction(self) -> float:
        """Elapsed time over total time, 0 to 1, never decreasing."""
        left = self.left
        if left is not None:
            elapsed = self._clock() - self._begun
            self._fraction = max(self._fraction, min(UNFINISHED, elapsed / max(elapsed + left, 1e-9)))
        return self._fraction

    def update(self, estimate: float) -> None:
        """Take a new estimate of the seconds left into account."""
        now, left = self._clock(), self.left
        if left is None:
            self._first = now
        if left is not None and now - self._first > SETTLING_SECONDS:
            follow = 1 - math.exp(-(now - self._updated) / SMOOTHING_SECONDS)
            change, limit = follow * (estimate - left), max(LARGEST_CHANGE * left, SMALLEST_CHANGE)
            estimate = left + min(max(change, -limit), limit)
        self._end, self._updated = now + max(0.0, estimate), now


class SteadyPace:
    """Progress of `total` equal pieces of work, such as frames."""

    def __init__(self, stage: str, total: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.stage, self.total, self._clock = stage, total, clock
        self._countdown = Countdown(clock)
        self._begun: float | None = None

    def at(self, done: int) -> Progress:
        """The progress after `done` pieces; the first call starts the clock."""
        now = self._clock()
        self._begun = now if self._begun is None else self._begun
        if done:
            self._countdown.update((now - self._begun) / done * max(0, self.total - done))
        return Progress(self.stage, done, self.total, self._countdown.fraction, self._countdown.left)


def duration(seconds: float) -> str:
    """A duration in words."""
    whole = max(1, round(seconds))
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"
