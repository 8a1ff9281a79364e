"""Common parts of all command lines: signals, logging, errors, exit codes.

Exit codes: 0 success, 1 an error that the user can fix (described in one line on standard error), 2 wrong usage,
130 interrupted.
"""

import logging
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial, wraps
from typing import Any, NoReturn

from latentsync.utils.errors import UserError, one_line
from latentsync.utils.streams import robust_streams, take_loss

Main = Callable[[Sequence[str] | None], int | None]
FAILED = 1
INTERRUPTED = 130
GRACE_SECONDS = 3.0


def command(
    main: Main | None = None, *, interrupted: str | None = "interrupted", interrupted_code: int = INTERRUPTED
) -> Callable[..., Any]:
    """Decorator of the `main(argv)` of a command line: it returns an exit code, and prints UserErrors as one line.

    Args:
        main: takes the arguments (None for those of the process) and returns an exit code; None means 0.
        interrupted: message on Ctrl-C and SIGTERM; None for no message.
        interrupted_code: exit code on Ctrl-C and SIGTERM; 0 for servers, which are always stopped this way.
    """
    if main is None:
        return partial(command, interrupted=interrupted, interrupted_code=interrupted_code)

    @wraps(main)
    def run(argv: Sequence[str] | None = None) -> int:
        with robust_streams() as output:
            code = _run(main, argv, interrupted, interrupted_code)
            output.flush()
            if (reason := take_loss(output)) is None:
                return code
            if reason:
                print(f"error: standard output cannot be written ({reason})", file=sys.stderr)
            return code or FAILED

    return run


def _run(main: Main, argv: Sequence[str] | None, interrupted: str | None, interrupted_code: int) -> int:
    stop = stop_on_signals()
    try:
        _check_folder()
        return main(argv) or 0
    except (Exception, KeyboardInterrupt) as error:
        if isinstance(error, KeyboardInterrupt) or (stop.is_set() and _is_of_an_interruption(error)):
            if interrupted:
                print(interrupted, file=sys.stderr)
            return interrupted_code
        if not isinstance(error, UserError):
            raise
        print(f"error: {one_line(error)}", file=sys.stderr)
        return FAILED


def _is_of_an_interruption(error: Exception) -> bool:
    """An interrupted import of a native library ends in any error, which may have been reported as a UserError."""
    return not isinstance(error, UserError) or isinstance(error.__cause__, ImportError)


def _check_folder() -> None:
    """Native libraries end the process when the current folder is gone."""
    try:
        os.getcwd()
    except OSError as error:
        raise UserError(f"the current folder cannot be reached ({error.strerror}); change to another") from error


def exit_now(code: int) -> NoReturn:
    """End the process without the interpreter's cleanup, which takes seconds when PyTorch is loaded.

    For servers, after their own cleanup.
    """
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # closed, or a broken pipe
            stream.flush()
    os._exit(code)


def size(text: str) -> float:
    """An argparse type: a finite number. argparse's error message contains the name of this function."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def stop_on_signals() -> threading.Event:
    """Let SIGTERM and SIGHUP stop the program as Ctrl-C does, by KeyboardInterrupt. Returns whether one has arrived.

    Signals that arrive within `GRACE_SECONDS` of one are ignored, so that a second Ctrl-C does not cut the cleanup
    short. Signals that the parent process had ignored (nohup) stay ignored. Does nothing outside the main thread.
    """
    last, arrived = -GRACE_SECONDS, threading.Event()

    def stop(signal_number: int, frame: object) -> None:
        nonlocal last
        if time.monotonic() - last >= GRACE_SECONDS:
            last = time.monotonic()
            arrived.set()
            raise KeyboardInterrupt

    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            try:
                signal.signal(number, stop)
            except ValueError:  # not the main thread
                break
    return arrived
