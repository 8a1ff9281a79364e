"""Write lists of training clips: `python -m tools.write_fileslist --input_dir DIR --output train.txt`.

Each line holds the path of a clip, a tab and the person. A name ending in .parquet gives a Parquet list, which also
holds lengths, sizes and digests, so that training starts without opening the clips. With --val_output, all clips of
some people go to a second list, so that validation uses unseen people. The split depends on the people's names only,
so it is stable when clips are added.
"""

import argparse
import hashlib
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from latentsync.constants import VIDEO_SUFFIXES
from latentsync.data.clips import Clip, compile_pattern, match_person, read_headers
from latentsync.data.file_lists import PARQUET, write_parquet_list
from latentsync.utils.commands import command
from latentsync.utils.errors import UserError
from latentsync.utils.files import write_text


def find_clips(folders: Sequence[Path], person_pattern: str | None = None) -> list[Clip]:
    """All clips in the folders and their subfolders, sorted and without duplicates; hidden files are skipped.

    Args:
        folders: folders to search.
        person_pattern: regular expression that is searched in the path below the folder (with /). Its group `person`,
            else its first group, else the whole match is the person. None: the clip's folder is the person.

    Raises:
        UserError: a folder does not exist, no clip is found, or the pattern is invalid or does not match a path.
    """
    pattern = compile_pattern(person_pattern) if person_pattern is not None else None
    found: dict[Path, Clip] = {}
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder; give the folder of processed clips")
        for path in sorted(folder.rglob("*")):
            relative = path.relative_to(folder)
            hidden = any(part.startswith(".") for part in relative.parts)
            if hidden or path.suffix.lower() not in VIDEO_SUFFIXES or not path.is_file():
                continue
            person = path.resolve().parent.name if pattern is None else match_person(pattern, relative)
            found.setdefault(path.resolve(), Clip(path, person))
    if not found:
        names = ", ".join(str(folder) for folder in folders)
        raise UserError(
            f"{names}: no clips found ({', '.join(sorted(VIDEO_SUFFIXES))}); give the folder of processed clips"
        )
    return list(found.values())


def split_by_person(clips: Sequence[Clip], val_share: float) -> tuple[list[Clip], list[Clip]]:
    """Training and validation clips. About `val_share` of the people are for validation: at least one, but not all.

    Raises:
        UserError: there is only one person.
    """
    ranks = {person: _rank(person) for person in {clip.person for clip in clips}}
    if len(ranks) < 2:
        raise UserError(
            f"all clips show {next(iter(ranks))!r}: a split by person needs two people; "
            "give --person_pattern, or leave out --val_output"
        )
    by_rank = sorted(ranks, key=ranks.__getitem__)
    held_out = {person for person in by_rank[:-1] if ranks[person] < val_share} or {by_rank[0]}
    train = [clip for clip in clips if clip.person not in held_out]
    return train, [clip for clip in clips if clip.person in held_out]


def write_list(path: Path, clips: Sequence[Clip]) -> None:
    """Write or replace a file list; paths in its folder are relative to it, others absolute.

    Raises:
        UserError: the list cannot be written, or a name contains line breaks, tabs or bytes that are not UTF-8.
    """
    if path.suffix == PARQUET:
        absolute = [replace(clip, path=Path(os.path.abspath(clip.path))) for clip in clips]
        write_parquet_list(path, read_headers(absolute, with_digest=True))
        return
    lines = "".join(f"{_entry(clip, path.resolve().parent)}\t{clip.person}\n" for clip in clips)
    write_text(path, lambda file: file.write(lines))


def _entry(clip: Clip, folder: Path) -> str:
    absolute = Path(os.path.abspath(clip.path))
    name = str(absolute.relative_to(folder)) if absolute.is_relative_to(folder) else str(absolute)
    line = f"{name}\t{clip.person}"
    if len(line.splitlines()) != 1 or line.count("\t") != 1 or name != name.strip() or not _is_utf8(line):
        raise UserError(f"{ascii(str(clip.path))}: a file list cannot hold this name or its person's; rename the file")
    return name


def _is_utf8(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _rank(person: str) -> float:
    """A number in [0, 1) that depends on the name only."""
    return int.from_bytes(hashlib.sha256(os.fsencode(person)).digest()[:8]) / 2**64


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--input_dir", type=Path, required=True, nargs="+", help="folders of processed clips")
    parser.add_argument("--output", type=Path, required=True, help="list of training clips to write")
    parser.add_argument("--val_output", type=Path, help="list of validation clips to write, of other people")
    parser.add_argument("--val_share", type=float, default=0.05, help="share of people for validation (default: 0.05)")
    parser.add_argument("--person_pattern", help="regular expression for the person in a path (default: the folder)")
    args = parser.parse_args(argv)
    if not 0 < args.val_share < 1:
        raise UserError(f"--val_share must be between 0 and 1, got {args.val_share:g}")
    if args.val_output and args.val_output.resolve() == args.output.resolve():
        raise UserError("--output and --val_output are the same file; give two")
    lists = {args.output: find_clips(args.input_dir, args.person_pattern)}
    if args.val_output:
        lists[args.output], lists[args.val_output] = split_by_person(lists[args.output], args.val_share)
    for path, clips in lists.items():
        write_list(path, clips)
        print(f"{path}: {len(clips)} clips of {len({clip.person for clip in clips})} people")
    return 0


if __name__ == "__main__":
    sys.exit(main())
