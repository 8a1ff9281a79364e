"""Times of packets and frames, exact, in seconds."""

from fractions import Fraction
from typing import Protocol

MAX_GAP_SECONDS = 3600  # between two time stamps, and of all gaps in the audio together
MAX_DISORDER_SECONDS = Fraction(1, 2)


class Stamped(Protocol):
    """A packet or a frame of libav."""

    @property
    def pts(self) -> int | None: ...

    @property
    def duration(self) -> int | None: ...

    @property
    def time_base(self) -> Fraction | None: ...


def time_of(item: Stamped) -> Fraction | None:
    """When it is due, by its time stamp; None without one."""
    return None if item.pts is None or item.time_base is None else item.pts * item.time_base


def starts_anew(step: Fraction, disorder: Fraction = MAX_DISORDER_SECONDS) -> bool:
    """Whether a time step of `step` seconds is the start of another recording, as in concatenated files.

    `disorder`: seconds that time stamps of one recording may go back.
    """
    return not -disorder <= step < MAX_GAP_SECONDS


def duration_of(item: Stamped) -> Fraction:
    """How long it lasts; 0 where that is not known."""
    return (item.duration or 0) * (item.time_base or Fraction(0))
