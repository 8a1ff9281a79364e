"""Time for leases and retention. The system time alone will not do: it jumps when it is corrected."""

import time
from functools import cache
from pathlib import Path


@cache
def boot_id() -> str:
    """Identifies the current boot of the machine: `time.monotonic` is comparable between processes only within it."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:  # not Linux
        return "unknown"


class SteadyTime:
    """The system time, without the jumps forward since this object was made.

    Files are deleted by age. With a jump forward they would all seem old at once; with this time they are kept longer.
    """

    def __init__(self) -> None:
        self._offset = time.time() - time.monotonic()

    def now(self) -> float:
        """Seconds since 1970, never later than the system time."""
        return min(time.time(), time.monotonic() + self._offset)
