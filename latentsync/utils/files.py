"""Files that appear whole or not at all."""

import errno
import hashlib
import os
import shutil
import stat
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TextIO

from latentsync.utils.errors import UserError


def file_sha256(path: str | Path) -> str:
    """Hex SHA-256 of a file's content; remembered while its size and modification time stay.

    Raises:
        OSError: the file cannot be read.
    """
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):  # reading a pipe or a device might never end
        raise OSError(errno.EINVAL, "not a regular file")
    return _sha256(os.path.abspath(path), status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=65536)
def _sha256(path: str, size: int, modified: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def staged_output(target: str | Path, temp_dir: str | Path | None) -> Iterator[Path]:
    """Where to write what shall become `target`: itself, or a file in a private folder under `temp_dir`.

    With `temp_dir` the finished file is moved to `target` (where it leads to, if it is a link) at the end, by a rename
    even across file systems, and the private folder is removed in any case. Nothing else in `temp_dir` is touched. An
    exception moves nothing.

    Raises:
        UserError: `temp_dir` cannot be used, or the finished file cannot be moved to its place.
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
    """Create the folders that `path` shall lie in; on an exception those created here are removed again.

    Raises:
        UserError: they cannot be created.
    """
    missing = [folder for folder in Path(path).parents if not os.path.exists(folder)]  # innermost first
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        _remove_if_empty(missing)
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{path}: the folder for it cannot be made ({reason}); choose another") from error
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


def _move_into_place(staged: Path, target: str | Path) -> None:
    """Copy beside the target under a hidden name, then rename: the target is never seen half-written."""
    real = Path(os.path.realpath(target))
    arriving = real.with_name(f".latentsync-{uuid.uuid4().hex}{real.suffix.lower()}")
    try:
        shutil.move(staged, arriving)
        os.replace(arriving, real)
    except OSError as error:
        raise UserError(f"{target}: the finished video could not be put there ({error.strerror})") from error
    finally:
        arriving.unlink(missing_ok=True)


def _remove_if_empty(folders: list[Path]) -> None:
    """Remove folders, innermost first, up to the first that somebody uses by now."""
    for folder in folders:
        try:
            folder.rmdir()
        except (FileNotFoundError, ValueError):  # could not be made in the first place
            continue
        except OSError:
            return
