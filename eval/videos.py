"""Folders of videos."""

from pathlib import Path

from latentsync.constants import VIDEO_SUFFIXES
from latentsync.utils.errors import UserError


def find_videos(folder: Path) -> list[Path]:
    """All videos in a folder and its subfolders, sorted. Hidden files are skipped, links to folders not followed.

    Raises:
        UserError: the folder does not exist, or has no videos.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give a folder of videos")
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in VIDEO_SUFFIXES and path.is_file())
    visible = [path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    if not visible:
        raise UserError(f"{folder}: no videos in it (suffixes: {', '.join(sorted(VIDEO_SUFFIXES))})")
    return visible
