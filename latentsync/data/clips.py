"""Processed clips on disk: aligned square faces at 25 frames/s with their sound, one file each."""

from dataclasses import dataclass
from pathlib import Path

import decord
import numpy as np

from latentsync.utils.errors import UserError


@dataclass(frozen=True)
class Clip:
    """One line of a file list: where the clip is and who is seen (for balancing)."""

    path: Path
    person: str


def read_fileslist(path: str | Path, data_dir: str | Path | None = None) -> list[Clip]:
    """Read a file list: one clip a line, optionally a tab and the person's name.

    Relative paths are taken from `data_dir`, or else from the list's own folder. Without a name the clip's
    folder stands for the person.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file list; write one with `python -m tools.write_fileslist`")
    root = Path(data_dir) if data_dir else path.parent
    clips = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.strip():
            continue
        name, _, person = line.partition("\t")
        clip = root / name.strip()
        clips.append(Clip(clip, person.strip() or clip.parent.name))
    if not clips:
        raise UserError(f"{path}: the file list is empty")
    return clips


def read_frames(path: str | Path, indices: np.ndarray | None = None) -> np.ndarray:
    """Frames of a clip as uint8 RGB (F, H, W, 3); all of them, or those at `indices`."""
    try:
        reader = decord.VideoReader(str(path), num_threads=1)
        wanted = np.arange(len(reader)) if indices is None else indices
        return reader.get_batch(wanted).asnumpy()
    except (decord.DECORDError, OSError, IndexError) as error:
        raise UserError(f"{path}: cannot be read as a clip; process it again or take it off the list") from error
