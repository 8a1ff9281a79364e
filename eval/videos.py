"""Folders of videos."""

from pathlib import Path

from latentsync.utils.errors import UserError

SUFFIXES = frozenset(".mp4 .mov .mkv .webm .avi .mpg .mpeg .m4v .ts".split())


def find_videos(folder: Path) -> list[Path]:
    """Videos in a folder and its subfolders by suffix, sorted, without hidden ones; links to folders are not followed.

    Raises:
        UserError: the folder does not exist, or has no videos.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give a folder of videos")
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    visible = [path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    if not visible:
        raise UserError(f"{folder}: no videos in it (looked for {', '.join(sorted(SUFFIXES))})")
    return visible
