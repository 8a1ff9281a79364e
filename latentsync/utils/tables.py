"""CSV tables in UTF-8."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TextIO

from latentsync.utils.errors import UserError
from latentsync.utils.files import write_text

Row = dict[str, str | None]  # surplus cells have the key None


def read_csv(path: Path, columns: Sequence[str]) -> tuple[list[str], list[tuple[int, Row]]]:
    """Column names, and the line number and cells of each row. `columns`: suggested if the file does not exist.

    Raises:
        UserError: the file does not exist, or is not CSV in UTF-8.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, skipinitialspace=True, strict=True)
            return list(reader.fieldnames or ()), [(reader.line_num, row) for row in reader]
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such list; write a CSV with the columns {', '.join(columns)}") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as a CSV file in UTF-8 ({error})") from error


def write_csv(path: Path, columns: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    """Write a table atomically. Raises UserError if it cannot be written."""

    def write(file: TextIO) -> None:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)

    write_text(path, write)
