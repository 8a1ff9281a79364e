"""A folder of this machine, or one that all machines of a cluster share."""

import contextlib
import errno
import logging
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from latentsync.utils.errors import UserError
from latentsync.utils.files import file_sha256
from latentsync.utils.locks import exclusive_folder
from preprocess.storages.base import WORK_FOLDER, FileStamp, is_source, private_folder
from preprocess.write import output_errors

logger = logging.getLogger(__name__)


class LocalStorage:
    """A folder of this machine, or one that all machines of a cluster share."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.url = os.path.abspath(root)

    def sources(self, excluded: str | None = None, images: bool = False) -> list[FileStamp]:
        if not self.root.is_dir():
            problem = "is a file; give the folder it is in" if self.root.exists() else "no such folder"
            raise UserError(f"{self.root}: {problem}")
        skipped = None if excluded is None or "://" in excluded else os.path.realpath(excluded)
        found = []
        for folder, names in _walk(self.root, skipped):
            for name in names:
                if is_source(name, images):
                    found.append(self._stamp(os.path.join(folder, name)))
        return sorted(found, key=lambda stamp: os.fsencode(stamp.name))

    @contextlib.contextmanager
    def fetched(self, name: str, scratch: Path) -> Iterator[Path]:
        yield self.root / name

    def sha256(self, name: str) -> str:
        return file_sha256(self.root / name)

    def put(self, local: Path, name: str) -> None:
        target = self.root / name
        with output_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.replace(local, target)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                self._copy_into_place(local, target)

    def read_text(self, name: str) -> str | None:
        try:
            return (self.root / name).read_text(encoding="utf-8")
        except (FileNotFoundError, NotADirectoryError):
            return None

    def write_text(self, name: str, text: str) -> None:
        staged = self._staged()
        try:
            with output_errors(self.root / name):
                staged.parent.mkdir(parents=True, exist_ok=True)
                staged.write_text(text, encoding="utf-8")
            self.put(staged, name)
        finally:
            staged.unlink(missing_ok=True)

    def names(self, folder: str) -> list[str]:
        try:
            with os.scandir(self.root / folder) as entries:
                return sorted(entry.name for entry in entries if entry.is_file())
        except FileNotFoundError:
            return []

    def size(self, name: str) -> int | None:
        try:
            return (self.root / name).stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            return None

    def remove(self, name: str) -> None:
        path = self.root / name
        with output_errors(path):
            if path.is_dir():
                with contextlib.suppress(OSError):  # not empty
                    path.rmdir()
            else:
                path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        work = self.root / WORK_FOLDER
        with output_errors(self.root):
            work.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            with output_errors(self.root):
                stack.enter_context(exclusive_folder(self.root, work / "lock"))
            self._clear_work()
            yield
            self._clear_work()

    def scratch_root(self, temp_dir: Path | None) -> Path:
        return self.root / WORK_FOLDER if temp_dir is None else private_folder(temp_dir, self.url)

    def _stamp(self, path: str) -> FileStamp:
        name = os.path.relpath(path, self.root)
        try:
            status = os.stat(path)
        except OSError:  # a broken link: the probe step reports it
            return FileStamp(name, 0, "unreadable")
        return FileStamp(name, status.st_size, str(status.st_mtime_ns))

    def _staged(self) -> Path:
        return self.root / WORK_FOLDER / f"{uuid.uuid4().hex}.part"

    def _copy_into_place(self, local: Path, target: Path) -> None:
        staged = self._staged()
        try:
            staged.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(local, staged)
            os.replace(staged, target)
            local.unlink()
        finally:
            staged.unlink(missing_ok=True)

    def _clear_work(self) -> None:
        """Remove leftovers of killed workers. The lock is held, so no other run uses the folder."""
        with os.scandir(self.root / WORK_FOLDER) as entries:
            leftovers = [entry for entry in entries if entry.name != "lock"]
        for entry in leftovers:
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                Path(entry.path).unlink(missing_ok=True)


def _walk(root: Path, skipped: str | None) -> Iterator[tuple[str, list[str]]]:
    """(folder, file names) of each visible folder. Links are followed, but each folder is visited once."""
    seen: set[tuple[int, int]] = set()

    def warn(error: OSError) -> None:
        logger.warning("%s: the folder cannot be read (%s) and is left out", error.filename, error.strerror)

    for folder, folders, names in os.walk(root, followlinks=True, onerror=warn):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen or os.path.realpath(folder) == skipped:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield folder, names
