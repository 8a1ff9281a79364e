"""Where sources come from and results go: local folders, or any address that fsspec knows (s3://, gs://, memory://).

Names are paths beneath the root, with /. Results appear whole under their name or not at all.
"""

import os
from pathlib import Path

from preprocess.storages.base import Storage
from preprocess.storages.local import LocalStorage


def open_storage(url: str | os.PathLike) -> Storage:
    """The storage at a local path or at an fsspec address. Raises UserError for an address nobody knows."""
    text = os.fspath(url)
    if "://" not in text:
        return LocalStorage(Path(text))
    from preprocess.storages.remote import RemoteStorage  # fsspec takes a moment to load, and is seldom needed

    return RemoteStorage(text)
