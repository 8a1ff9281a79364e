"""Storage of sources and results: local folders, or any fsspec address (s3://, gs://, memory://).

Names are paths relative to the root, with /. Writes are atomic.
"""

import os
from pathlib import Path

from preprocess.storages.base import Storage
from preprocess.storages.local import LocalStorage


def open_storage(url: str | os.PathLike) -> Storage:
    """Open a local folder or an fsspec address. Raises UserError for an unknown protocol."""
    text = os.fspath(url)
    if "://" not in text:
        return LocalStorage(Path(text))
    from preprocess.storages.remote import RemoteStorage  # fsspec is slow to import

    return RemoteStorage(text)
