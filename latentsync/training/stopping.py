"""Graceful stop: on SIGTERM, Ctrl-C or at the time limit the current step is finished and saved first."""

import logging
import signal
import time
from types import FrameType
from typing import Any

logger = logging.getLogger(__name__)
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """`with StopRequest(minutes) as stop:` catches the signals; `stop.requested` says whether to stop.

    A second signal acts as if there were no handler. Signals that the process ignores (nohup, a script's background
    job) stay ignored.
    """

    def __init__(self, after_minutes: float = 0.0) -> None:
        self._deadline = time.monotonic() + after_minutes * 60 if after_minutes else float("inf")
        self._signalled = False
        self._previous: dict[int, Any] = {}

    @property
    def requested(self) -> bool:
        return self._signalled or time.monotonic() >= self._deadline

    def __enter__(self) -> "StopRequest":
        try:
            self._previous = {number: signal.signal(number, self._catch) for number in _not_ignored()}
        except ValueError:  # not the main thread of Python: signals go elsewhere
            logger.info("signals are not caught outside the main thread; set run.stop_after_minutes to stop this run")
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _catch(self, number: int, frame: FrameType | None) -> None:
        self._signalled = True
        logger.warning("%s: saving after this step, then stopping", signal.Signals(number).name)
        signal.signal(number, self._previous[number])


def ignore_first_signal(worker: int) -> None:
    """For DataLoader workers: a signal to the whole process group must not end them before the state is saved."""
    for number in _not_ignored():
        signal.signal(number, lambda caught, frame: signal.signal(caught, signal.SIG_DFL))


def _not_ignored() -> list[signal.Signals]:
    return [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
