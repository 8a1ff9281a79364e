"""A remote folder, accessed through fsspec."""

import contextlib
import hashlib
import os
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import fsspec

from latentsync.utils.errors import UserError
from preprocess.storages.base import FileStamp, is_source, private_folder
from preprocess.write import OutputError, output_errors

# Stores in which an object appears only when its upload is complete.
_WHOLE_OBJECTS = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oss", "memory"})


class RemoteStorage:
    """A folder at an fsspec address. Several runs may share it: equal work gives equal files, written atomically.

    Sources are downloaded to scratch files; results are uploaded when finished.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        try:
            self._fs, root = fsspec.core.url_to_fs(self.url)
        except (ValueError, ImportError) as error:  # unknown protocol, or its package is not installed
            raise UserError(f"{url}: cannot be opened ({error})") from error
        self._root = root.rstrip("/")
        protocols = self._fs.protocol if isinstance(self._fs.protocol, tuple) else (self._fs.protocol,)
        self._whole_objects = bool(_WHOLE_OBJECTS & set(protocols))

    def sources(self, excluded: str | None = None, images: bool = False) -> list[FileStamp]:
        skipped = None
        if excluded is not None and excluded.startswith(f"{self.url}/"):
            skipped = excluded.removeprefix(f"{self.url}/").rstrip("/") + "/"
        with self._user_errors(self.url):
            if not self._fs.exists(self._root):
                raise UserError(f"{self.url}: no such folder")
            listing = self._fs.find(self._root, detail=True)
        found = []
        for path, info in listing.items():
            name = path.removeprefix(self._root).lstrip("/")
            hidden = any(part.startswith(".") for part in name.split("/"))
            inside = skipped is not None and name.startswith(skipped)
            if not hidden and not inside and is_source(name, images):
                found.append(FileStamp(name, int(info.get("size") or 0), _tag(info)))
        return sorted(found, key=lambda stamp: stamp.name)

    @contextlib.contextmanager
    def fetched(self, name: str, scratch: Path) -> Iterator[Path]:
        with output_errors(scratch):
            scratch.mkdir(parents=True, exist_ok=True)
        local = scratch / f"source-{uuid.uuid4().hex}{os.path.splitext(name)[1].lower()}"
        try:
            with self._user_errors(f"{self.url}/{name}"):
                self._fs.get_file(self._path(name), str(local))
            yield local
        finally:
            local.unlink(missing_ok=True)

    def sha256(self, name: str) -> str:
        with self._user_errors(f"{self.url}/{name}"), self._fs.open(self._path(name), "rb") as file:
            digest = hashlib.sha256()
            while block := file.read(2**20):
                digest.update(block)
            return digest.hexdigest()

    def put(self, local: Path, name: str) -> None:
        target = self._path(name)
        with output_errors(f"{self.url}/{name}"):
            self._fs.makedirs(target.rpartition("/")[0], exist_ok=True)
            if self._whole_objects:
                self._fs.put_file(str(local), target)
            else:
                folder, _, last = target.rpartition("/")
                staged = f"{folder}/.{uuid.uuid4().hex}-{last}"
                self._fs.put_file(str(local), staged)
                self._fs.mv(staged, target)
        local.unlink(missing_ok=True)

    def read_text(self, name: str) -> str | None:
        with self._user_errors(f"{self.url}/{name}"):
            try:
                return self._fs.cat_file(self._path(name)).decode("utf-8")
            except FileNotFoundError:
                return None

    def write_text(self, name: str, text: str) -> None:
        target = self._path(name)
        with output_errors(f"{self.url}/{name}"):
            folder, _, last = target.rpartition("/")
            self._fs.makedirs(folder, exist_ok=True)
            if self._whole_objects:
                self._fs.pipe_file(target, text.encode())
            else:
                staged = f"{folder}/.{uuid.uuid4().hex}-{last}"
                self._fs.pipe_file(staged, text.encode())
                self._fs.mv(staged, target)

    def names(self, folder: str) -> list[str]:
        with self._user_errors(f"{self.url}/{folder}"):
            try:
                entries = self._fs.ls(self._path(folder), detail=True)
            except FileNotFoundError:
                return []
        return sorted(entry["name"].rpartition("/")[2] for entry in entries if entry["type"] == "file")

    def size(self, name: str) -> int | None:
        with self._user_errors(f"{self.url}/{name}"):
            try:
                return int(self._fs.info(self._path(name))["size"] or 0)
            except FileNotFoundError:
                return None

    def remove(self, name: str) -> None:
        with output_errors(f"{self.url}/{name}"), contextlib.suppress(FileNotFoundError):
            if self._fs.isdir(self._path(name)):
                with contextlib.suppress(OSError):  # not empty, or implied by its files only
                    self._fs.rmdir(self._path(name))
            else:
                self._fs.rm_file(self._path(name))

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        yield

    def scratch_root(self, temp_dir: Path | None) -> Path:
        return private_folder(temp_dir or Path(tempfile.gettempdir()), self.url)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    @contextlib.contextmanager
    def _user_errors(self, name: str) -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
        except OSError as error:
            raise OutputError(f"{name}: cannot be reached ({error})") from error


def _tag(info: dict) -> str:
    """Version of an object, as the store reports it."""
    for key in ("ETag", "etag", "md5Hash", "generation", "LastModified", "mtime", "created", "last_modified"):
        if info.get(key):
            return str(info[key])
    return ""
