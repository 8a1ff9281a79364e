"""The folders of a service: uploads under way, a folder a job, and what may be deleted when."""

import logging
import os
import shutil
import time
import uuid
from collections.abc import Mapping
from pathlib import Path

from latentsync.serving.jobs import ROLES
from latentsync.utils.errors import UserError

logger = logging.getLogger(__name__)

RESULT = "result.mp4"
THUMBNAIL = "thumbnail.jpg"
DATABASE = "jobs.sqlite"
MARKER = ".latentsync-workspace"
SAFE_SUFFIXES = frozenset(
    ".mp4 .mov .mkv .webm .avi .ts .m4v .gif .webp .png .jpg .jpeg .bmp .tif .tiff .heic .avif "
    ".wav .mp3 .flac .ogg .opus .m4a .aac .wma".split()
)


class Workspace:
    """Folder layout: jobs.sqlite, uploads/ and jobs/ID/. Only what lies in these two folders is ever deleted.

    Raises:
        UserError: the folder cannot be made, or holds something else.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.uploads, self.jobs, self.database = root / "uploads", root / "jobs", root / DATABASE
        try:
            root.mkdir(parents=True, exist_ok=True)
            if not (root / MARKER).exists():
                if any(root.iterdir()):
                    raise UserError(f"{root}: the folder is not empty and no workspace; give an empty one")
                (root / MARKER).touch()
            for folder in (self.uploads, self.jobs):
                folder.mkdir(exist_ok=True)
        except OSError as error:
            raise UserError(f"{root}: cannot be used as a workspace ({error.strerror}); choose another") from error

    def folder(self, job_id: str) -> Path:
        """Where the files of a job are; `job_id` is one that this program made."""
        return self.jobs / job_id

    def fill(self, job_id: str, files: Mapping[str, tuple[str, Path]], *, move: bool) -> dict[str, str]:
        """Put files under fixed names into the folder of a new job. Returns role -> name.

        files: role -> (name the user gave, where it is). The user's name lends its suffix, where that is a usual
        one, for some formats are told by it, and nothing else.
        """
        folder, names = self.folder(job_id), {}
        try:
            folder.mkdir()
            for role, (given, source) in files.items():
                names[role] = f"{role}{safe_suffix(given)}"
                if move:
                    shutil.move(source, folder / names[role])
                else:
                    shutil.copyfile(source, folder / names[role])
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return names

    def remove(self, job_id: str) -> None:
        """Delete a job's files, which disappear at once even where deleting takes long or is interrupted."""
        folder, doomed = self.folder(job_id), self.uploads / f"deleted-{uuid.uuid4().hex}"
        try:
            os.replace(folder, doomed)
        except FileNotFoundError:
            return
        shutil.rmtree(doomed, ignore_errors=True)

    def clear_attempt(self, job_id: str) -> None:
        """Delete files that a failed attempt left beside the inputs."""
        folder = self.folder(job_id)
        for path in folder.iterdir() if folder.is_dir() else ():
            if path.stem not in ROLES:
                path.unlink(missing_ok=True)

    def sweep_uploads(self, hours: float) -> None:
        """Delete uploads that nobody has touched for so long."""
        limit = time.time() - 3600 * hours
        for path in list(self.uploads.iterdir()):
            if path.name.startswith("deleted-") or last_change(path) < limit:
                _delete(path)

    def sweep_orphans(self, known: set[str], hours: float) -> None:
        """Delete folders of jobs that the queue does not know, left by a crash between the two."""
        limit = time.time() - 3600 * hours
        for path in list(self.jobs.iterdir()):
            if path.name not in known and last_change(path) < limit:
                _delete(path)

    def size(self) -> int:
        """Bytes of uploads and of jobs' files; links count as links."""
        return tree_size(self.uploads) + tree_size(self.jobs)

    def job_size(self, job_id: str) -> int:
        """Bytes of a job's files."""
        return tree_size(self.folder(job_id))

    def free(self) -> int:
        """Free bytes of the disk."""
        return shutil.disk_usage(self.root).free


def safe_suffix(name: str) -> str:
    """The suffix of a name that a user gave, lower case, where it is one of a media file; else empty."""
    suffix = os.path.splitext(os.path.basename(name))[1].lower()
    return suffix if suffix in SAFE_SUFFIXES else ""


def tree_size(root: Path) -> int:
    """Bytes of all files below a folder. What disappears meanwhile does not count."""
    total = 0
    for folder, _, names in os.walk(root, followlinks=False):
        for name in names:
            try:
                total += os.lstat(os.path.join(folder, name)).st_size
            except FileNotFoundError:
                continue
    return total


def last_change(path: Path) -> float:
    """When anything at or below a path was last changed, seconds since 1970; the newest counts. 0 where it is gone."""
    newest = 0.0
    paths = [path, *(path.rglob("*") if path.is_dir() and not path.is_symlink() else ())]
    for item in paths:
        try:
            newest = max(newest, item.lstat().st_mtime)
        except FileNotFoundError:
            continue
    return newest


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
