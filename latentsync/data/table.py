"""A sequence of flat dataclass instances in a memory-mapped file: opened at once, and shared by all processes.

The file is a NumPy structured array (`.npy`), one record an item. Nothing of it is read before it is used, and neither
forking nor pickling copies it.
"""

import dataclasses
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any, Generic, TypeVar, overload

import numpy as np

from latentsync.data.locations import Location, as_location
from latentsync.utils.errors import UserError
from latentsync.utils.files import replaced

T = TypeVar("T")
NUMBERS: dict[Any, type] = {int: np.int64, float: np.float64, bool: np.bool_}
# How text becomes the value of a field; the reverse is `str`.
FROM_TEXT: dict[Any, Callable[[str], Any]] = {str: str, Path: Path, Location: as_location, Fraction: Fraction}


class Table(Sequence[T], Generic[T]):
    """Instances of the dataclass `kind`, made when they are asked for; `rows` selects and orders records.

    Fields may be int, float, bool, str, `Path`, `Location` or `Fraction`.

    Raises:
        UserError: the file is damaged, or of another kind.
    """

    def __init__(self, path: Path, kind: type[T], rows: np.ndarray | None = None) -> None:
        self.path, self.kind, self.rows = path, kind, rows
        try:
            self._records = np.load(path, mmap_mode="r")
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"{path}: the index is damaged; delete it and start again") from error
        if self._records.dtype.names != tuple(_hints(kind)):
            raise UserError(f"{path}: the index is of another version; delete it and start again")

    def __reduce__(self) -> tuple:
        return Table, (self.path, self.kind, self.rows)

    def __len__(self) -> int:
        return len(self._records) if self.rows is None else len(self.rows)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> "Table[T]": ...
    def __getitem__(self, index: int | slice) -> "T | Table[T]":
        if isinstance(index, slice):
            return self.select(np.arange(len(self))[index])
        if not -len(self) <= index < len(self):
            raise IndexError(f"no item {index} in a table of {len(self)}")
        record = self._records[index if self.rows is None else self.rows[index]]
        return self.kind(**{name: _value(record[name], hint) for name, hint in _hints(self.kind).items()})

    def __iter__(self) -> Iterator[T]:
        return (self[index] for index in range(len(self)))

    def column(self, name: str) -> np.ndarray:
        """(len,) values of a field: numbers, or UTF-8 bytes for all others."""
        column = self._records[name]
        return column if self.rows is None else column[self.rows]

    def select(self, chosen: np.ndarray) -> "Table[T]":
        """The items at `chosen`, indices or (len,) bool, in that order."""
        chosen = np.flatnonzero(chosen) if chosen.dtype == bool else chosen
        return Table(self.path, self.kind, chosen if self.rows is None else self.rows[chosen])


def write_table(path: Path, kind: type[T], items: Sequence[T]) -> Table[T]:
    """Write instances of a dataclass atomically, and open the file.

    Raises:
        UserError: it cannot be written.
    """
    return write_columns(
        path, kind, {field.name: [getattr(item, field.name) for item in items] for field in _fields(kind)}
    )


def write_columns(path: Path, kind: type[T], columns: Mapping[str, Iterable[Any]]) -> Table[T]:
    """The same from the values of each field; a field without a column has its default. Raises UserError."""
    count = len(next(iter(columns.values())))  # type: ignore[arg-type]  # sized
    hints = _hints(kind)
    arrays = {
        field.name: _array(columns.get(field.name, [field.default] * count), hints[field.name])
        for field in _fields(kind)
    }
    records = np.empty(count, [(name, array.dtype) for name, array in arrays.items()])
    for name, array in arrays.items():
        records[name] = array
    try:
        with replaced(path) as temporary, temporary.open("wb") as file:
            np.save(file, records)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); free space or choose another folder") from error
    return Table(path, kind)


def _array(values: Iterable[Any], hint: Any) -> np.ndarray:
    if hint in NUMBERS:
        return np.asarray(values, NUMBERS[hint])
    encoded = [str(value).encode("utf-8", "surrogateescape") for value in values]  # names of files may be any bytes
    return np.array(encoded, dtype=f"S{max(1, max(map(len, encoded), default=1))}")


def _value(stored: Any, hint: Any) -> Any:
    return stored.item() if hint in NUMBERS else FROM_TEXT[hint](stored.decode("utf-8", "surrogateescape"))


def _fields(kind: type) -> tuple[dataclasses.Field, ...]:
    return dataclasses.fields(kind)  # type: ignore[arg-type]  # a dataclass


@lru_cache
def _hints(kind: type) -> dict[str, Any]:
    """Types of the fields, in order."""
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in _fields(kind)}
