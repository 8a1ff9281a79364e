"""What all places for sources and results have in common."""

import contextlib
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from latentsync.constants import VIDEO_SUFFIXES

PICTURES = frozenset(".png .jpg .jpeg .webp .bmp .tif .tiff".split())
WORK_FOLDER = ".work"  # unfinished files, and the lock of the run that makes them


@dataclass(frozen=True)
class FileStamp:
    """A file as a listing shows it. stamp: changes when the content does (time of change, or the store's tag)."""

    name: str
    size: int
    stamp: str


class Storage(Protocol):
    """A folder, near or far. All methods raise OutputError when something cannot be written."""

    url: str

    def sources(self, besides: str | None = None, pictures: bool = False) -> list[FileStamp]:
        """All videos (and pictures) beneath, by suffix, sorted by name; not those of `besides`, a folder within."""

    def fetched(self, name: str, scratch: Path) -> contextlib.AbstractContextManager[Path]:
        """A local file with the content of `name`; not to be changed."""

    def sha256(self, name: str) -> str: ...

    def put(self, local: Path, name: str) -> None:
        """Move a finished local file to its place."""

    def read_text(self, name: str) -> str | None: ...

    def write_text(self, name: str, text: str) -> None: ...

    def names(self, folder: str) -> list[str]:
        """Names of the files that lie directly in a folder, sorted."""

    def size(self, name: str) -> int | None:
        """Bytes of a file, None when there is none."""

    def remove(self, name: str) -> None:
        """Remove a file, or a folder that is empty then; nothing happens when there is none."""

    def locked(self) -> contextlib.AbstractContextManager[None]:
        """Keep other runs from writing here. Raises UserError when one does."""

    def scratch_root(self, temp_dir: Path | None) -> Path:
        """The local folder for unfinished files."""


def is_source(name: str, pictures: bool) -> bool:
    """Whether a file is a video (or a picture) by its suffix; hidden files do not count."""
    suffix = os.path.splitext(name)[1].lower()
    wanted = suffix in VIDEO_SUFFIXES or (pictures and suffix in PICTURES)
    return wanted and not os.path.basename(name).startswith(".")


def private_folder(temp_dir: Path, url: str) -> Path:
    """A folder in `temp_dir` for one output alone: nothing else there is touched."""
    return temp_dir / f"latentsync-preprocess-{hashlib.sha256(url.encode('utf-8', 'surrogatepass')).hexdigest()[:12]}"
