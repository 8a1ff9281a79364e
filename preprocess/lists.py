"""Lists of kept clips for training: clips with audio, clips used for faces only, held-out clips.

Each is written as text and, where pyarrow is installed, as Parquet with headers and digests, from which a trainer
starts without opening the clips.
"""

import fnmatch
import importlib.util
import logging
import tempfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from latentsync.constants import FPS
from latentsync.data.clips import Clip
from latentsync.data.file_lists import PARQUET, write_parquet_list
from latentsync.utils.errors import UserError
from preprocess.manifest import Figure
from preprocess.storages.base import Storage

logger = logging.getLogger(__name__)
TRAIN = "train.txt"
FACES = "faces.txt"
HELD_OUT = "held_out/train.txt"

Row = dict[str, Figure]


@dataclass(frozen=True)
class ListOptions:
    """How kept clips are sorted into lists.

    Args:
        max_clips_per_person: limit of each person's training clips, which are spread evenly over all their clips.
        hold_out: shell patterns of sources to exclude from training, matched against the path in the input folder and
            the file name without suffix.
        ignore_audio: patterns of sources whose audio is used neither for training nor for evaluation.
        held_out_per_person: with `hold_out`, hold out up to this many of the clips above each person's limit as well.
    """

    max_clips_per_person: int | None = None
    hold_out: tuple[str, ...] = ()
    ignore_audio: tuple[str, ...] = ()
    held_out_per_person: int = 40

    def __post_init__(self) -> None:
        if self.max_clips_per_person is not None and self.max_clips_per_person < 1:
            raise UserError(f"--max_clips_per_person must be 1 or more, not {self.max_clips_per_person}")
        if self.held_out_per_person < 0:
            raise UserError(f"--held_out_per_person must be 0 or more, not {self.held_out_per_person}")


@dataclass(frozen=True)
class Lists:
    """Rows of the manifest: `faces` to train on, those of them with audio (`train`), and held-out ones with audio."""

    train: list[Row]
    faces: list[Row]
    held_out: list[Row]


def choose(rows: list[Row], options: ListOptions) -> Lists:
    """Sort the kept clips into lists, see `ListOptions`."""
    kept = [row for row in rows if row["kind"] == "clip" and row["status"] == "kept"]
    held_out = [row for row in kept if _matches(row, options.hold_out)]
    groups: dict[tuple, list[Row]] = {}
    for row in kept:
        if not _matches(row, options.hold_out):
            groups.setdefault((row["person"], _has_audio(row, options)), []).append(row)
    chosen = []
    for group in groups.values():
        taken = spread(len(group), options.max_clips_per_person or len(group))
        chosen += [group[index] for index in taken]
        if options.hold_out:
            left = [row for index, row in enumerate(group) if index not in taken]
            held_out += [left[index] for index in spread(len(left), options.held_out_per_person)]
    train, held_out = ([row for row in some if _has_audio(row, options)] for some in (chosen, held_out))
    return Lists(train, chosen, held_out)


def write_lists(output: Storage, rows: list[Row], options: ListOptions) -> Lists:
    """Write train, faces and, with `hold_out`, held_out/train, as .txt and .parquet; earlier lists are replaced."""
    lists = choose(rows, options)
    wanted = {TRAIN: (lists.train, ""), FACES: (lists.faces, ""), HELD_OUT: (lists.held_out, "../")}
    if not options.hold_out:
        del wanted[HELD_OUT]
        for name in (HELD_OUT, _parquet(HELD_OUT)):
            output.remove(name)
    for name, (some, folder) in wanted.items():
        output.write_text(name, _text(some, folder))
    if importlib.util.find_spec("pyarrow") is None:
        logger.warning("no Parquet lists: pyarrow is not installed")
        return lists
    for name, (some, folder) in wanted.items():
        _write_parquet(output, _parquet(name), some, folder)
    return lists


def spread(length: int, count: int) -> list[int]:
    """At most `count` distinct indices of 0..length-1, evenly spaced and including both ends."""
    return np.linspace(0, length - 1, min(count, length)).round().astype(int).tolist()


def _matches(row: Row, patterns: tuple[str, ...]) -> bool:
    name = str(row["source"])
    return any(fnmatch.fnmatchcase(text, pattern) for text in (name, PurePosixPath(name).stem) for pattern in patterns)


def _has_audio(row: Row, options: ListOptions) -> bool:
    return bool(row["has_sound"]) and not _matches(row, options.ignore_audio)


def _text(rows: list[Row], folder: str) -> str:
    """One clip per line, a tab, the person. folder: path from the list to the output folder."""
    return "".join(f"{folder}{row['clip']}\t{_person(row)}\n" for row in rows)


def _person(row: Row) -> str:
    return " ".join(str(row["person"]).split()) or "nobody"


def _parquet(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(PARQUET))


def _write_parquet(output: Storage, name: str, rows: list[Row], folder: str) -> None:
    clips = [
        Clip(
            f"{folder}{row['clip']}",
            _person(row),
            int(row["frames"]) if row["clip_width"] else 0,  # a record of an earlier version has no header
            width=int(row["clip_width"]),
            height=int(row["clip_height"]),
            fps=float(FPS),
            has_audio=bool(row["has_sound"]),
            digest=str(row["clip_sha256"]),
        )
        for row in rows
    ]
    with tempfile.TemporaryDirectory(prefix="latentsync-") as scratch:
        local = Path(scratch) / PurePosixPath(name).name
        write_parquet_list(local, clips, "")
        output.put(local, name)
