"""Output folders, locked against a second run."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from latentsync.utils.errors import UserError
from latentsync.utils.locks import exclusive_folder

LOCK = ".lock"


@contextmanager
def output_folder(folder: Path) -> Iterator[Path]:
    """Create a folder and lock it for the `with` block.

    Raises:
        UserError: it cannot be created or written to, or another run holds the lock.
    """
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(exclusive_folder(folder, folder / LOCK))
        except OSError as error:
            raise UserError(f"{folder}: cannot be written to ({error.strerror}); choose another folder") from error
        yield folder
