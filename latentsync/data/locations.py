"""Where bytes of training data are: a local file, an fsspec address (s3://, gs://, ...), or a part of either.

A part is a range of bytes, such as a member of a tar shard.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from latentsync.utils.errors import UserError

Location = Path | str


def as_location(text: str | os.PathLike) -> Location:
    """A `Path`, or the text itself if it is an address."""
    return text if isinstance(text, str) and "://" in text else Path(text)


def joined(root: Location, name: str) -> Location:
    """`name` below a folder; absolute names and addresses stay as they are."""
    if "://" in name or isinstance(root, Path):
        return as_location(name) if "://" in name else root / name
    return as_location(name) if os.path.isabs(name) else f"{root.rstrip('/')}/{name}"


def parent_of(location: Location) -> Location:
    """The folder of a file."""
    return location.parent if isinstance(location, Path) else location.rpartition("/")[0]


def read_bytes(location: Location, offset: int = 0, size: int = 0) -> bytes:
    """The content, or `size` bytes of it from `offset` on.

    Raises:
        UserError: it cannot be read, or is shorter.
    """
    try:
        if isinstance(location, Path):
            with location.open("rb") as file:
                file.seek(offset)
                data = file.read(size or -1)
        else:
            import fsspec  # imports slowly, and local files do not need it

            files, path = fsspec.core.url_to_fs(location)
            data = files.cat_file(path, offset or None, offset + size if size else None)
    except (OSError, ValueError, ImportError) as error:  # the latter two: an unknown protocol or a missing package
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{location}: cannot be read ({reason})") from error
    if len(data) < size:
        raise UserError(f"{location}: ends before byte {offset + size}; copy or write it again")
    return data


@contextmanager
def local_file(location: Location, offset: int = 0, size: int = 0, suffix: str = ".mp4") -> Iterator[Path]:
    """A local file with the content: the file itself, or a temporary copy. Do not change it.

    Raises:
        UserError: see `read_bytes`.
    """
    if isinstance(location, Path) and not size:
        yield location
        return
    with tempfile.NamedTemporaryFile(prefix="latentsync-", suffix=suffix) as copy:
        copy.write(read_bytes(location, offset, size))
        copy.flush()
        yield Path(copy.name)
