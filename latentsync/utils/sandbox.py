"""Run a function that parses an untrusted file in a child process with limits on time, memory and open files.

A helper process, started on the first call, imports the function's module and forks a child for each call, so that a
call costs milliseconds and whatever happens in it (a crash, an endless loop) ends with that child. Results come back
through an unpickler that knows plain values and a few dataclasses only.
"""

import io
import logging
import os
import pickle
import resource
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from latentsync.utils.errors import UserError

logger = logging.getLogger(__name__)
T = TypeVar("T")

_LENGTH = struct.Struct("<Q")
_MAX_RESULT_BYTES = 2**30
_RESULT_TYPES = frozenset(
    {
        ("fractions", "Fraction"),
        ("pathlib", "PosixPath"),
        ("latentsync.media.color", "ColorTags"),
        ("latentsync.media.probe", "VideoInfo"),
        ("preprocess.steps.probe", "Source"),
    }
)
_OK, _USER_ERROR, _FAILURE = "ok", "user error", "failure"


@dataclass(frozen=True)
class Limits:
    """Limits of a call: seconds of wall-clock and of CPU time, bytes of memory beyond the helper's, open files.

    file_bytes: size of a file that it may write, such as a temporary one of a library.
    """

    seconds: float = 20.0
    cpu_seconds: float = 10.0
    memory_bytes: int = 2 * 2**30
    open_files: int = 64
    file_bytes: int = 0

    @classmethod
    def for_file(cls, path: Path) -> "Limits":
        """The defaults, with more time for a large file that has to be read to its end."""
        size = path.stat().st_size if path.is_file() else 0
        return cls(seconds=cls.seconds + size / 20e6, cpu_seconds=cls.cpu_seconds + size / 50e6)


def call_limited(function: Callable[..., T], path: str | os.PathLike, *args: Any, limits: Limits | None = None) -> T:
    """`function(path, *args)`, computed in a child process.

    Args:
        function: of a module of this project; returns plain values or one of the types of `_RESULT_TYPES`.
        path: the file that it parses; names it in messages.
        args: anything that can be pickled.
        limits: by default `Limits.for_file(path)`.

    Raises:
        UserError: raised by the function, or a limit was exceeded, or the parser crashed on the file.
    """
    limits = limits or Limits.for_file(Path(path))
    request = pickle.dumps((function, (path, *args), limits))
    started = time.monotonic()
    answer = _helper.ask(request, limits.seconds)
    if answer is None:
        spent = time.monotonic() - started
        if spent >= min(limits.seconds, limits.cpu_seconds):
            raise UserError(f"{path}: takes too long to examine (more than {spent:.0f} s); convert the file first")
        raise UserError(f"{path}: cannot be examined: the decoder crashed on it; the file is damaged or malicious")
    try:
        outcome, value = _ResultUnpickler(io.BytesIO(answer)).load()
    except Exception as error:  # the child's bytes are not a result, so unpickling may raise anything
        logger.warning("%s: the process that examined it sent no result: %s", path, error)
        outcome, value = _FAILURE, str(error)
    if outcome == _OK:
        return value
    if outcome == _FAILURE:
        logger.warning("%s: cannot be examined:\n%s", path, value)
        raise UserError(f"{path}: cannot be examined; the file is damaged, or of a type that is not supported")
    raise UserError(value)


def shut_down() -> None:
    """End the helper process and all calls under way, which then raise UserError. A later call starts another."""
    _helper.stop()


class _ResultUnpickler(pickle.Unpickler):
    """The child may have been taken over by the file it parsed: its bytes must not run anything here."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _RESULT_TYPES:
            raise pickle.UnpicklingError(f"{module}.{name} is not a result")
        return super().find_class(module, name)


class _Helper:
    """The helper process of this process; started again when it has died, or after a fork."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen | None = None
        self._control: socket.socket | None = None
        self._owner = 0

    def ask(self, request: bytes, seconds: float) -> bytes | None:
        """The answer of a child to a request; None when it died, or had none within `seconds` of its start."""
        ours = self._connect()
        with ours:
            try:
                _send(ours, request)
                # The child ends itself in time; the helper may be slow to start, or its machine busy.
                return _receive(ours, time.monotonic() + seconds + 30)
            except (OSError, EOFError):
                return None

    def _connect(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        with theirs, self._lock:
            for last in (False, True):
                self._ensure_running()
                assert self._control is not None
                try:
                    socket.send_fds(self._control, [b"c"], [theirs.fileno()])
                    return ours
                except OSError:
                    self._end()
                    if last:
                        ours.close()
                        raise
        raise AssertionError

    def _ensure_running(self) -> None:
        if self._owner != os.getpid():  # a fork has only copies
            self._process = self._control = None
        if self._process is not None and self._process.poll() is None:
            return
        self._end()
        self._control, theirs = socket.socketpair()
        root = str(Path(__file__).resolve().parents[2])
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])]),
            # A process that forks must have one thread; an arena per thread would use up the address space.
            "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2",
        }  # fmt: skip
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "latentsync.utils.sandbox"],
                stdin=theirs.fileno(), stdout=subprocess.DEVNULL, env=environment, start_new_session=True,
            )  # fmt: skip
        self._owner = os.getpid()

    def stop(self) -> None:
        with self._lock:
            if self._owner == os.getpid():
                self._end()

    def _end(self) -> None:
        if self._control is not None:
            self._control.close()
        if self._process is not None:
            try:
                os.killpg(self._process.pid, signal.SIGKILL)  # its children, too
            except ProcessLookupError:
                pass
            self._process.wait()
        self._process = self._control = None


_helper = _Helper()


def _send(connection: socket.socket, message: bytes) -> None:
    connection.sendall(_LENGTH.pack(len(message)) + message)


def _receive(connection: socket.socket, deadline: float) -> bytes:
    """A whole message. Raises EOFError or OSError (TimeoutError included) when it does not come."""
    length = _LENGTH.unpack(_receive_exactly(connection, _LENGTH.size, deadline))[0]
    if length > _MAX_RESULT_BYTES:
        raise EOFError
    return _receive_exactly(connection, length, deadline)


def _receive_exactly(connection: socket.socket, count: int, deadline: float) -> bytes:
    data = bytearray()
    while len(data) < count:
        connection.settimeout(max(0.01, deadline - time.monotonic()))
        piece = connection.recv(min(count - len(data), 2**20))
        if not piece:
            raise EOFError
        data += piece
    return bytes(data)


def _serve(control: socket.socket) -> None:
    """The helper: a child for each connection that arrives, until the process that started this one is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children need not be waited for
    while True:
        _, descriptors, _, _ = socket.recv_fds(control, 1, 1)
        if not descriptors:
            return
        with socket.socket(fileno=descriptors[0]) as connection:
            try:
                function, args, limits = pickle.loads(_receive(connection, time.monotonic() + 10))  # imports here
            except (OSError, EOFError):
                continue
            if os.fork() == 0:
                control.close()
                _answer(connection, function, args, limits)


def _answer(connection: socket.socket, function: Callable[..., Any], args: tuple[Any, ...], limits: Limits) -> None:
    """The child: compute within limits, send the outcome, end."""
    try:
        _limit_self(limits)
        try:
            outcome = (_OK, function(*args))
        except UserError as error:
            outcome = (_USER_ERROR, str(error))
        except MemoryError:
            outcome = (_USER_ERROR, f"{args[0]}: needs too much memory to be examined; make it smaller")
        except Exception:
            outcome = (_FAILURE, traceback.format_exc())
        connection.settimeout(None)
        _send(connection, pickle.dumps(outcome))
    finally:
        os._exit(0)


def _limit_self(limits: Limits) -> None:
    signal.setitimer(signal.ITIMER_REAL, limits.seconds)  # SIGALRM ends the process, blocked in a system call or not
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    cpu = max(1, round(limits.cpu_seconds))
    for kind, most in (
        (resource.RLIMIT_AS, pages * resource.getpagesize() + limits.memory_bytes),
        (resource.RLIMIT_CPU, cpu),
        (resource.RLIMIT_NOFILE, limits.open_files),
        (resource.RLIMIT_FSIZE, limits.file_bytes),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(kind)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (most, most))


if __name__ == "__main__":
    with socket.socket(fileno=os.dup(0)) as inherited:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        _serve(inherited)
