"""Atomic writes and file digests."""

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, TextIO

from latentsync.utils.errors import UserError

_HIDDEN_NAME = re.compile(r"\.latentsync-[0-9a-f]{32}\.(mp4|mov|mkv)")


def file_sha256(path: str | Path) -> str:
    """Hex SHA-256 of a file's content; remembered while its size and modification time stay.

    Raises:
        OSError: the file cannot be read.
    """
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):  # reading a pipe or a device may never end
        raise OSError(errno.EINVAL, "not a regular file")
    return _sha256(os.path.abspath(path), status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=65536)
def _sha256(path: str, size: int, modified: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def staged_output(target: str | Path, temp_dir: str | Path | None) -> Iterator[Path]:
    """The path to write `target` to: `target` itself, or a file in a private folder under `temp_dir`.

    With `temp_dir` the finished file replaces `target` (or the file that it links to) at the end, atomically even
    across file systems, and the private folder is always removed. Nothing else in `temp_dir` is touched. On an
    exception `target` is unchanged.

    Raises:
        UserError: `temp_dir` cannot be written to, or the finished file cannot be moved to `target`.
    """
    if temp_dir is None:
        yield Path(target)
        return
    try:
        Path(temp_dir).mkdir(parents=True, exist_ok=True)
        private = tempfile.TemporaryDirectory(prefix="latentsync-", dir=temp_dir)
    except OSError as error:
        raise UserError(f"temp dir {temp_dir} cannot be written to ({error.strerror}); choose another") from error
    with private as folder:
        staged = Path(folder) / f"result{Path(target).suffix.lower()}"
        yield staged
        _move_into_place(staged, target)


@contextmanager
def parent_folders(path: str | Path) -> Iterator[None]:
    """Create the parent folders of `path`; on an exception the created ones are removed again.

    Raises:
        UserError: they cannot be created.
    """
    missing = [folder for folder in Path(path).parents if not os.path.exists(folder)]  # innermost first
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        _remove_if_empty(missing)
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{path}: its folder cannot be created ({reason}); choose another") from error
    try:
        yield
    except BaseException:
        _remove_if_empty(missing)
        raise


@contextmanager
def replaced(path: str | Path) -> Iterator[Path]:
    """A hidden path beside `path` to write to; at the end it replaces `path`, on an exception it is removed.

    Folders are created as needed. Raises OSError when it cannot be written; `path` is then unchanged.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, write: Callable[[TextIO], object]) -> None:
    """Write a text file (UTF-8, line ends as given) atomically: `write(file)` fills it.

    Raises:
        UserError: it cannot be written; the previous file is unchanged.
    """
    try:
        with (
            replaced(path) as temporary,
            temporary.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file,
        ):
            write(file)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); free space or choose another place") from error


def read_json(path: Path) -> Any:
    """Content of a JSON file that can be made again; None if it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None


class HiddenFile:
    """A hidden, empty file next to `target`, to be filled and put in its place: `target` is never seen half-written.

    The file is locked as long as this object is in use. Making one removes files in the same folder whose process was
    killed: those with such a name that belong to this user and that nobody has locked.

    Raises:
        OSError: the file cannot be created.
    """

    def __init__(self, target: Path) -> None:
        self.target = target
        _remove_abandoned(target.parent)
        while True:
            self.path = target.with_name(f".latentsync-{uuid.uuid4().hex}{target.suffix.lower()}")
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
            with suppress(OSError):  # a file system without locks: then nothing is removed, either
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if self.path.exists():  # else somebody removed it before it was locked
                return
            os.close(self._file)

    def put_in_place(self) -> None:
        """Rename the file to `target`. Raises OSError."""
        os.replace(self.path, self.target)
        self.discard()

    def discard(self) -> None:
        """Remove the file, unless it is in its place. May be called again."""
        self.path.unlink(missing_ok=True)
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def _remove_abandoned(folder: Path) -> None:
    try:
        found = [entry.path for entry in os.scandir(folder) if _HIDDEN_NAME.fullmatch(entry.name)]
    except OSError:
        return
    for path in found:
        with suppress(OSError):  # in use, or just removed by another process
            file = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                status = os.fstat(file)
                if stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid():
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    os.unlink(path)
            finally:
                os.close(file)


def _move_into_place(staged: Path, target: str | Path) -> None:
    """Move a finished file to `target`, across file systems if necessary."""
    try:
        arriving = HiddenFile(Path(os.path.realpath(target)))
        try:
            shutil.move(staged, arriving.path)
            arriving.put_in_place()
        finally:
            arriving.discard()
    except OSError as error:
        raise UserError(f"{target}: the finished video could not be put there ({error.strerror})") from error


def _remove_if_empty(folders: list[Path]) -> None:
    """Remove folders, innermost first, up to the first that is in use."""
    for folder in folders:
        try:
            folder.rmdir()
        except (FileNotFoundError, ValueError):  # was not created
            continue
        except OSError:
            return
