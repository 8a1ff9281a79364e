"""Interface of storages, and their common code."""

import contextlib
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from latentsync.constants import IMAGE_SUFFIXES, VIDEO_SUFFIXES

WORK_FOLDER = ".work"  # unfinished files, and the lock of the run that writes them


@dataclass(frozen=True)
class FileStamp:
    """A file of a listing. stamp: changes with the content (modification time, or the ETag of an object)."""

    name: str
    size: int
    stamp: str


class Storage(Protocol):
    """A local or remote folder. All methods raise OutputError if something cannot be written."""

    url: str

    def sources(self, excluded: str | None = None, images: bool = False) -> list[FileStamp]:
        """All videos (and images) by suffix, sorted by name, without those in the subfolder `excluded`."""

    def fetched(self, name: str, scratch: Path) -> contextlib.AbstractContextManager[Path]:
        """A local file with the content of `name`; do not change it."""

    def sha256(self, name: str) -> str: ...

    def put(self, local: Path, name: str) -> None:
        """Move a finished local file to `name`."""

    def read_text(self, name: str) -> str | None: ...

    def write_text(self, name: str, text: str) -> None: ...

    def names(self, folder: str) -> list[str]:
        """Names of the files directly in a folder, sorted."""

    def size(self, name: str) -> int | None:
        """Size of a file in bytes; None if it does not exist."""

    def remove(self, name: str) -> None:
        """Remove a file or an empty folder, if it exists."""

    def locked(self) -> contextlib.AbstractContextManager[None]:
        """Lock the folder against other runs. Raises UserError if one holds the lock."""

    def scratch_root(self, temp_dir: Path | None) -> Path:
        """The local folder for unfinished files."""


def is_source(name: str, images: bool) -> bool:
    """Whether a file is a video (or an image) by its suffix, and not hidden."""
    suffix = os.path.splitext(name)[1].lower()
    wanted = suffix in VIDEO_SUFFIXES or (images and suffix in IMAGE_SUFFIXES)
    return wanted and not os.path.basename(name).startswith(".")


def private_folder(temp_dir: Path, url: str) -> Path:
    """A subfolder of `temp_dir` for one output folder, so that nothing else in `temp_dir` is touched."""
    return temp_dir / f"latentsync-preprocess-{hashlib.sha256(url.encode('utf-8', 'surrogatepass')).hexdigest()[:12]}"
