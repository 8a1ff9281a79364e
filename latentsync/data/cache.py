"""A cache of tensors in safetensors files that are named by the content they were computed from."""

from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from latentsync.checkpoints.loading import write_safetensors
from latentsync.utils.errors import UserError
from latentsync.utils.files import file_sha256, replaced

DIGEST_DIGITS = 16


class CacheWriteError(UserError):
    """A cache entry cannot be written; the clip is not to blame."""


def file_digest(path: str | Path) -> str:
    """First 16 hex digits of a file's SHA-256: caches go by content, never by name.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        return file_sha256(path)[:DIGEST_DIGITS]
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error


def store(entry: Path, tensors: dict[str, Tensor]) -> None:
    """Write a cache entry so that readers, other processes included, see all of it or nothing.

    Raises:
        CacheWriteError: it cannot be written (the disk is full, the folder is read-only).
    """
    try:
        with replaced(entry) as temporary:
            write_safetensors(temporary, tensors)
    except (OSError, SafetensorError) as error:
        raise CacheWriteError(
            f"{entry}: the cache entry cannot be written ({error}); free space, or choose another folder"
        ) from error


def fetch(entry: Path) -> dict[str, Tensor] | None:
    """Tensors of a cache entry; None when there is none or it is damaged, so that it must be computed."""
    try:
        return load_file(entry)
    except (FileNotFoundError, SafetensorError):
        return None


def entry_shapes(entry: Path) -> dict[str, tuple[int, ...]] | None:
    """Shapes of the tensors in a cache entry, without reading them; None when there is none or it is damaged."""
    try:
        with safe_open(entry, "pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
    except (FileNotFoundError, SafetensorError):
        return None


def fetch_rows(entry: Path, rows: dict[str, range]) -> dict[str, Tensor]:
    """Consecutive rows (first axis) of tensors in a cache entry, as float32; nothing else is read.

    Raises:
        UserError: the entry is missing or damaged.
    """
    try:
        with safe_open(entry, "pt") as file:
            return {name: file.get_slice(name)[part.start : part.stop].float() for name, part in rows.items()}
    except (OSError, SafetensorError) as error:
        raise UserError(f"{entry}: the cache entry is damaged or gone; delete it and start again") from error
