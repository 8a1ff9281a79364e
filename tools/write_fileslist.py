"""Write lists of training clips: `python -m tools.write_fileslist --input_dir DIR --output train.txt`.

One clip a line, a tab, the person seen. With --val_output some people go to a second list with all their clips, so that
validation shows people the networks never saw. Who goes there depends on the name alone: adding clips or running again
moves nobody.
"""

import argparse
import hashlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from latentsync.constants import VIDEO_SUFFIXES
from latentsync.data.clips import Clip, compile_pattern, match_person
from latentsync.utils.commands import command
from latentsync.utils.errors import UserError


def find_clips(folders: Sequence[Path], person_pattern: str | None = None) -> list[Clip]:
    """All clips beneath the folders, sorted, each file once; hidden files and folders are passed over.

    Args:
        folders: where to look.
        person_pattern: regular expression found in the path beneath the folder (with /): its group `person`, else its
            first group, else the whole match names the person. None: the folder a clip lies in.

    Raises:
        UserError: a folder does not exist, nothing is found, a name cannot be written to a list, or the pattern is
            wrong or fits a path nowhere.
    """
    pattern = compile_pattern(person_pattern) if person_pattern is not None else None
    found: dict[Path, Clip] = {}
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder; give the one that the processed clips lie in")
        for path in sorted(folder.rglob("*")):
            beneath = path.relative_to(folder)
            hidden = any(part.startswith(".") for part in beneath.parts)
            if hidden or path.suffix.lower() not in VIDEO_SUFFIXES or not path.is_file():
                continue
            person = path.resolve().parent.name if pattern is None else match_person(pattern, beneath)
            found.setdefault(path.resolve(), Clip(path, person))
    if not found:
        names = ", ".join(str(folder) for folder in folders)
        raise UserError(
            f"{names}: no clips here ({', '.join(sorted(VIDEO_SUFFIXES))}); give the folder of processed clips"
        )
    return list(found.values())


def split_by_person(clips: Sequence[Clip], val_share: float) -> tuple[list[Clip], list[Clip]]:
    """Training and validation clips; about `val_share` of the people are for validation, at least one, never all.

    Raises:
        UserError: there is one person alone.
    """
    ranks = {person: _rank(person) for person in {clip.person for clip in clips}}
    if len(ranks) < 2:
        raise UserError(
            f"all clips are of {next(iter(ranks))!r}: a split by person needs two; "
            "give --person_pattern, or leave out --val_output"
        )
    by_rank = sorted(ranks, key=ranks.__getitem__)
    held_out = {person for person in by_rank[:-1] if ranks[person] < val_share} or {by_rank[0]}
    train = [clip for clip in clips if clip.person not in held_out]
    return train, [clip for clip in clips if clip.person in held_out]


def write_list(path: Path, clips: Sequence[Clip]) -> None:
    """Write or replace a file list; paths beneath its folder are relative to it, others absolute.

    Raises:
        UserError: the list cannot be written, or holds a name that a list cannot hold.
    """
    lines = "".join(f"{_entry(clip, path.resolve().parent)}\t{clip.person}\n" for clip in clips)
    temporary = path.with_name(f".{path.name}-{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(lines, encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"{path}: the file list cannot be written ({error.strerror}); choose another place") from error


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
    """A number in [0, 1) that hangs on the name alone."""
    return int.from_bytes(hashlib.sha256(os.fsencode(person)).digest()[:8]) / 2**64


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--input_dir", type=Path, required=True, nargs="+", help="folders of processed clips")
    parser.add_argument("--output", type=Path, required=True, help="list of the clips to train on; replaced if there")
    parser.add_argument("--val_output", type=Path, help="list of the clips to validate on, of people of their own")
    parser.add_argument("--val_share", type=float, default=0.05, help="share of the people to validate on, in (0, 1)")
    parser.add_argument("--person_pattern", help="regular expression that finds the person in a path; else the folder")
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
