"""The lists of kept clips that training reads: to learn from, to judge by, and for faces alone."""

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
    """Which clips go on which list; what is kept does not depend on it.

    max_clips_per_person: in the lists to train on, spread over what there is, so that nobody outnumbers the others.
    hold_out: patterns (as the shell's) of sources never to be trained on: names without suffix, or beneath the folder.
    distrust_sound: patterns of sources whose sound is neither trained on nor judged by.
    held_out_per_person: where anything is held out, so many of the clips that are too many of a person are as well.
    """

    max_clips_per_person: int | None = None
    hold_out: tuple[str, ...] = ()
    distrust_sound: tuple[str, ...] = ()
    held_out_per_person: int = 40

    def __post_init__(self) -> None:
        if self.max_clips_per_person is not None and self.max_clips_per_person < 1:
            raise UserError(f"--max_clips_per_person must be 1 or more, not {self.max_clips_per_person}")
        if self.held_out_per_person < 0:
            raise UserError(f"--held_out_per_person must be 0 or more, not {self.held_out_per_person}")


@dataclass(frozen=True)
class Lists:
    """Rows of the manifest. faces: all to train on; train: those of them with sound; held_out: others, with sound."""

    train: list[Row]
    faces: list[Row]
    held_out: list[Row]


def choose(rows: list[Row], options: ListOptions) -> Lists:
    """Sort the kept clips into lists.

    Of a person with more than `max_clips_per_person` clips that many are trained on. Where anything is held out at all,
    the others are as well, up to `held_out_per_person`: a known face to judge by.
    """
    kept = [row for row in rows if row["kind"] == "clip" and row["status"] == "kept"]
    held_out = [row for row in kept if _fits(row, options.hold_out)]
    groups: dict[tuple, list[Row]] = {}
    for row in kept:
        if not _fits(row, options.hold_out):
            groups.setdefault((row["person"], _is_heard(row, options)), []).append(row)
    chosen = []
    for group in groups.values():
        taken = spread(len(group), options.max_clips_per_person or len(group))
        chosen += [group[index] for index in taken]
        if options.hold_out:
            left = [row for index, row in enumerate(group) if index not in taken]
            held_out += [left[index] for index in spread(len(left), options.held_out_per_person)]
    train, held_out = ([row for row in some if _is_heard(row, options)] for some in (chosen, held_out))
    return Lists(train, chosen, held_out)


def write_lists(output: Storage, rows: list[Row], options: ListOptions) -> Lists:
    """Write train.txt and faces.txt, and held_out/train.txt where something is held out; replaces earlier ones."""
    lists = choose(rows, options)
    output.write_text(TRAIN, _text(lists.train, ""))
    output.write_text(FACES, _text(lists.faces, ""))
    if options.hold_out:
        output.write_text(HELD_OUT, _text(lists.held_out, "../"))
    else:
        output.remove(HELD_OUT)
    return lists


def spread(length: int, count: int) -> list[int]:
    """At most `count` different indices of 0..length-1, evenly spaced, both ends among them."""
    return np.linspace(0, length - 1, min(count, length)).round().astype(int).tolist()


def _fits(row: Row, patterns: tuple[str, ...]) -> bool:
    name = str(row["source"])
    return any(fnmatch.fnmatchcase(text, pattern) for text in (name, PurePosixPath(name).stem) for pattern in patterns)


def _is_heard(row: Row, options: ListOptions) -> bool:
    return bool(row["has_sound"]) and not _fits(row, options.distrust_sound)


def _text(rows: list[Row], folder: str) -> str:
    """A clip a line, a tab, the person. folder: from the list to the output."""
    return "".join(f"{folder}{row['clip']}\t{' '.join(str(row['person']).split()) or 'nobody'}\n" for row in rows)
