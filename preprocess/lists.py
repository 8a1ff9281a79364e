"""Lists of kept clips for training: clips with audio, clips used for faces only, held-out clips."""

import fnmatch
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np

from latentsync.utils.errors import UserError
from preprocess.manifest import Figure
from preprocess.storages.base import Storage

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
    """Write train.txt, faces.txt and, with `hold_out`, held_out/train.txt; earlier lists are replaced."""
    lists = choose(rows, options)
    output.write_text(TRAIN, _text(lists.train, ""))
    output.write_text(FACES, _text(lists.faces, ""))
    if options.hold_out:
        output.write_text(HELD_OUT, _text(lists.held_out, "../"))
    else:
        output.remove(HELD_OUT)
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
    return "".join(f"{folder}{row['clip']}\t{' '.join(str(row['person']).split()) or 'nobody'}\n" for row in rows)
