"""What every command line does alike: signals, logging, errors, exit codes.

Exit codes: 0 done, 1 an error that the user can fix (one line on standard error says what), 2 wrong usage,
130 interrupted.
"""

import logging
import signal
import sys
import time
from collections.abc import Callable

from latentsync.utils.errors import UserError, one_line

FAILED = 1
INTERRUPTED = 130
GRACE_SECONDS = 3.0


def run_command(
    work: Callable[[], int | None], interrupted: str | None = "interrupted", interrupted_code: int = INTERRUPTED
) -> int:
    """Run `work`, the body of a `main`, and return the exit code of the process.

    Args:
        work: returns an exit code; None is 0.
        interrupted: message on Ctrl-C and SIGTERM; None for no message.
        interrupted_code: exit code then; 0 for servers, which end no other way.
    """
    stop_on_signals()
    try:
        return work() or 0
    except UserError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        if interrupted:
            print(interrupted, file=sys.stderr)
        return interrupted_code


def configure_logging(level: int = logging.INFO, *, times: bool = True) -> None:
    """Log to standard error, with the time of day unless `times` is False."""
    form = "%(asctime)s %(message)s" if times else "%(message)s"
    logging.basicConfig(level=level, format=form, datefmt="%H:%M:%S")


def stop_on_signals() -> None:
    """Let SIGTERM and SIGHUP stop the program as Ctrl-C does, by KeyboardInterrupt.

    Signals that arrive within `GRACE_SECONDS` of one are ignored, so that a second Ctrl-C does not cut the cleanup
    short. Signals that the parent process had ignored (nohup) stay ignored. Does nothing outside the main thread.
    """
    last = -GRACE_SECONDS

    def stop(signal_number: int, frame: object) -> None:
        nonlocal last
        if time.monotonic() - last >= GRACE_SECONDS:
            last = time.monotonic()
            raise KeyboardInterrupt

    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            try:
                signal.signal(number, stop)
            except ValueError:  # not the main thread
                return
