"""Standard output and error that never stop a program: closed, full, or without a reader."""

import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO, cast


class RobustStream:
    """A text stream that discards all output after the first failed write; `error` holds the exception."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.error: OSError | None = None

    def write(self, text: str) -> int:
        self._try(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _try(self, act: Callable[[], object]) -> None:
        if self.error is not None:
            return
        try:
            act()
        except OSError as error:
            self.error = error
            # The interpreter flushes the remaining output at exit, which would fail again.
            with open(os.devnull, "w") as null:
                os.dup2(null.fileno(), self._stream.fileno())


@contextmanager
def robust_streams() -> Iterator[RobustStream]:
    """Make sys.stdout and sys.stderr robust; yields standard output."""
    _open_closed_ones()
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (cast(TextIO, _robust(stream)) for stream in before)
    try:
        yield cast(RobustStream, sys.stdout)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before


def take_loss(stream: RobustStream) -> str | None:
    """Reason of lost output; the call clears it. None if nothing was lost, empty if the reader exited (`| head`)."""
    error, stream.error = stream.error, None
    if error is None:
        return None
    return "" if error.errno == errno.EPIPE else str(error.strerror)


def _robust(stream: TextIO) -> TextIO | RobustStream:
    return stream if isinstance(stream, RobustStream) else RobustStream(stream)


def _open_closed_ones() -> None:
    """Connect closed standard streams to the null device.

    Otherwise the next file that is opened, such as a result, would get the number of standard error, and libraries
    would write their messages into it.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))
