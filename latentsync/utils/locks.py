"""Advisory locks on files, which the system releases when the process ends for any reason."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from latentsync.utils.errors import UserError


@contextmanager
def exclusive_folder(folder: Path, lock: Path) -> Iterator[None]:
    """Hold the lock file `lock` of an output folder inside the `with` block.

    Raises:
        UserError: another process holds it.
        OSError: the lock file cannot be written.
    """
    with lock.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{folder}: another run is writing there{_owner(file)}; wait for it or choose another output folder"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


@contextmanager
def waiting_lock(lock: Path) -> Iterator[None]:
    """Hold the lock file `lock` inside the `with` block; waits for other processes. Raises OSError."""
    with lock.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _owner(file: TextIO) -> str:
    file.seek(0)
    number = file.read().strip()
    return f" (process {number})" if number else ""
