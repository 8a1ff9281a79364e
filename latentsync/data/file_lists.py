"""Lists of clips: text (a path and a person a line), or Parquet with headers and digests; opened through an index.

A Parquet list has the fields of `Clip` as columns, at least `path` and `person`. Data processing and
`tools.write_fileslist` write the header as well, so that nothing has to be opened before training starts;
`tools.make_shards` adds the place in a tar shard.
"""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from latentsync.config.sections import DataSection
from latentsync.data.clips import Clip, column, missing_clips, read_fileslist, read_headers
from latentsync.data.locations import Location, as_location, local_file, parent_of
from latentsync.data.table import Table, write_columns, write_table
from latentsync.utils.errors import UserError
from latentsync.utils.files import replaced
from latentsync.utils.locks import waiting_lock
from latentsync.utils.paths import project_path

logger = logging.getLogger(__name__)
VERSION = 1  # raise when the same list gives another index
PARQUET = ".parquet"
CHECKED = 16  # clips of a list with headers that are looked for
PYARROW = "Parquet lists need pyarrow: run `pip install '.[train]'` in the project's folder"


def open_clips(data: DataSection, fileslist: str, folder: str) -> Table[Clip]:
    """The clips of a list, memory-mapped, in the order of the list.

    The index is a file in `<train_output_dir>/index`, made when the list is new or has changed: from a Parquet list
    with headers in seconds, from other lists by reading every clip once. One process makes it, the others wait.

    Args:
        data: of the run.
        fileslist: text or Parquet, a path or an fsspec address.
        folder: where relative paths start; empty for the folder of the list.

    Raises:
        UserError: the list cannot be read or is empty, or a clip does not exist.
    """
    location = as_location(fileslist)
    location = project_path(location) if isinstance(location, Path) else location
    index = Path(data.train_output_dir) / "index" / f"clips-{_key(location, folder)}.npy"
    try:
        index.parent.mkdir(parents=True, exist_ok=True)
        with waiting_lock(index.with_suffix(".lock")):
            if not index.is_file():
                _make_index(index, location, as_location(folder) if folder else parent_of(location))
    except OSError as error:
        raise UserError(f"{index}: cannot be written ({error.strerror}); choose another train_output_dir") from error
    clips = Table(index, Clip)
    _check_some(clips)
    return clips


def read_parquet_list(path: Path) -> dict[str, Any]:
    """Columns of a Parquet list as NumPy arrays, by the names of `Clip`'s fields.

    Raises:
        UserError: pyarrow is not installed, or the file is not such a list.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(PYARROW) from error
    try:
        table: pyarrow.Table = pyarrow.parquet.read_table(path, memory_map=True)
        columns = {field.name: table[field.name] for field in fields(Clip) if field.name in table.column_names}
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"{path}: is not a Parquet list of clips ({error}); write it again") from error
    if not {"path", "person"} <= columns.keys():
        raise UserError(f"{path}: has no columns path and person; write it with `python -m tools.write_fileslist`")
    return {name: values.to_numpy() for name, values in columns.items()}


def write_parquet_list(path: Path, clips: Sequence[Clip], root: Location | None = None) -> None:
    """Write a Parquet list; paths below `root` (default: the list's folder) become relative to it.

    Raises:
        UserError: pyarrow is not installed, or the file cannot be written.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(PYARROW) from error
    prefix = f"{path.resolve().parent if root is None else root}/"
    columns = {field.name: [getattr(clip, field.name) for clip in clips] for field in fields(Clip)}
    columns["path"] = [str(location).removeprefix(prefix) for location in columns["path"]]
    try:
        with replaced(path) as temporary:
            pyarrow.parquet.write_table(pyarrow.table(columns), temporary)
    except (OSError, UnicodeEncodeError, pyarrow.ArrowException) as error:
        raise UserError(f"{path}: the list cannot be written ({error})") from error


def _make_index(index: Path, location: Location, root: Location) -> None:
    if str(location).endswith(PARQUET):
        with local_file(location, suffix=PARQUET) as path:
            columns = read_parquet_list(path)
        if not len(columns["path"]):
            raise UserError(f"{location}: the file list is empty")
        start = f"{root}/"
        columns["path"] = [name if name.startswith("/") or "://" in name else start + name for name in columns["path"]]
        listed: Sequence[Clip] = write_columns(index, Clip, columns)
        if "digest" in columns and (column(listed, "num_frames") > 0).all():
            return
    else:
        with local_file(location, suffix=".txt") as path:
            listed = read_fileslist(path, root)
    logger.info("%s: reading the headers of %d clips, once", location, len(listed))
    write_table(index, Clip, read_headers(listed, with_digest=True))


def _key(location: Location, folder: str) -> str:
    """Identifies a list and its version."""
    if isinstance(location, Path):
        if not location.is_file():
            raise UserError(f"{location}: no such file list; write one with `python -m tools.write_fileslist`")
        status = location.stat()
        version: object = (location.resolve(), status.st_size, status.st_mtime_ns)
    else:
        import fsspec

        try:
            files, path = fsspec.core.url_to_fs(location)
            version = (location, files.ukey(path))
        except (OSError, ValueError, ImportError) as error:
            raise UserError(f"{location}: the file list cannot be read ({error})") from error
    return hashlib.sha256(repr((VERSION, version, folder)).encode()).hexdigest()[:16]


def _check_some(clips: Table[Clip]) -> None:
    """Notice a data set that is not where the list says, without looking for every clip."""
    spread = np.unique(np.linspace(0, len(clips) - 1, CHECKED).astype(int))
    paths = [clips[int(index)].path for index in spread]
    missing = [str(path) for path in paths if isinstance(path, Path) and not path.is_file()]
    if missing:
        raise missing_clips(missing, f"{len(missing)} of {len(paths)} clips looked for")
