"""Waiting for another thread or process; never used to measure speed."""

import time
from collections.abc import Callable

HANG_SECONDS = 300.0  # after so long a test fails instead of hanging; far above what the busiest machine takes


def eventually(condition: Callable[[], object], seconds: float = HANG_SECONDS) -> bool:
    """Whether `condition` comes true; polled until it does or `seconds` are over."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
