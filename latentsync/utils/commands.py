"""Common parts of all command lines: signals, logging, errors, exit codes.

Exit codes: 0 success, 1 an error that the user can fix (described in one line on standard error), 2 wrong usage,
130 interrupted.
"""

import logging
import math
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial, wraps
from typing import Any, NoReturn

from latentsync.utils.errors import UserError, one_line

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
        stop_on_signals()
        try:
            code = main(argv) or 0
            if sys.stdout is not None:
                sys.stdout.flush()
            return code
        except BrokenPipeError:
            if not _stdout_is_broken():
                raise
            return FAILED
        except UserError as error:
            print(f"error: {one_line(error)}", file=sys.stderr)
            return FAILED
        except KeyboardInterrupt:
            if interrupted:
                print(interrupted, file=sys.stderr)
            return interrupted_code

    return run


def _stdout_is_broken() -> bool:
    """Whether the reader of standard output has exited, as in `| head`; the rest of the output is then discarded."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    is_broken = any(event & select.POLLERR for _, event in poll.poll(0))
    if is_broken:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return is_broken


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
