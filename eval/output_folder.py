"""Output folders: created, checked, and locked against a second run."""

import fcntl
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from latentsync.utils.errors import UserError

LOCK = ".lock"


@contextmanager
def output_folder(folder: Path) -> Iterator[Path]:
    """Create a folder and lock it; the lock ends with the process, however it ends.

    Raises:
        UserError: it cannot be created or written to, or another run is writing there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"0")
        lock = (folder / LOCK).open("a")
    except OSError as error:
        raise UserError(f"{folder}: cannot be written to ({error.strerror}); choose another folder") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{folder}: another run is writing there; wait for it or choose another folder") from None
        yield folder
