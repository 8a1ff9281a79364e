"""Files that appear whole or not at all."""

import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from latentsync.utils.errors import UserError


@contextmanager
def staged_output(target: str | Path, temp_dir: str | Path | None) -> Iterator[Path]:
    """Where to write what shall become `target`: itself, or a file in a private folder under `temp_dir`.

    With `temp_dir` the finished file is moved to `target` at the end, by a rename even across file systems, and the
    private folder is removed in any case. Nothing else in `temp_dir` is touched. An exception moves nothing.

    Raises:
        UserError: `temp_dir` cannot be used.
    """
    target = Path(target)
    if temp_dir is None:
        yield target
        return
    try:
        Path(temp_dir).mkdir(parents=True, exist_ok=True)
        private = tempfile.TemporaryDirectory(prefix="latentsync-", dir=temp_dir)
    except OSError as error:
        raise UserError(f"temp dir {temp_dir} cannot be written to ({error.strerror}); choose another") from error
    with private as folder:
        staged = Path(folder) / f"result{target.suffix.lower()}"
        yield staged
        arriving = target.with_name(f".latentsync-{uuid.uuid4().hex}{target.suffix.lower()}")
        try:
            shutil.move(staged, arriving)
            os.replace(arriving, target)
        finally:
            arriving.unlink(missing_ok=True)
