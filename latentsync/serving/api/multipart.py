"""A multipart/form-data body, written to disk part by part as it arrives."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from latentsync.serving.api.errors import ApiError

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

MAX_NAME = 120  # characters of a display name
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff]")


@dataclass(frozen=True)
class ReceivedFile:
    """An upload on disk. `name` is the client's name for it, for display only; `path` never depends on it."""

    name: str
    path: Path
    size: int


def display_name(name: str, default: str) -> str:
    """The last part of a client's file name, without control characters, at most MAX_NAME long; for display only."""
    last = re.split(r"[/\\]", name)[-1]
    return _UNPRINTABLE.sub("", last).strip(" .")[-MAX_NAME:] or default


class FormReceiver:
    """Parses a body piece by piece: keeps its text fields, and writes the files named in `roles` into `folder`.

    roles: None for files of any name.

    `feed` and `finish` block on the disk. `fields` and `files` hold the parts that are complete.

    Raises (from all methods):
        ApiError: 400 for a body that is not multipart, 413 for one that is too large, 422 for wrong fields.
        OSError: the disk is not writable.
    """

    def __init__(
        self,
        content_type: str,
        folder: Path,
        roles: frozenset[str] | None,
        *,
        max_file_bytes: int,
        max_field_bytes: int,
        max_parts: int,
    ) -> None:
        self.fields: dict[str, str] = {}
        self.files: dict[str, ReceivedFile] = {}
        self.folder, self.roles = folder, roles
        self.max_file_bytes, self.max_field_bytes, self.max_parts = max_file_bytes, max_field_bytes, max_parts
        self._parts = 0
        self._complete = False
        self._headers: dict[bytes, bytes] = {}
        self._header_name, self._header_value = b"", b""
        self._name = self._file_name = ""
        self._text = bytearray()
        self._file: BinaryIO | None = None
        self._path = folder
        self._size = 0
        callbacks: MultipartCallbacks = {
            "on_part_begin": self._begin_part,
            "on_header_field": self._take_header_name,
            "on_header_value": self._take_header_value,
            "on_header_end": self._end_header,
            "on_headers_finished": self._end_headers,
            "on_part_data": self._take_data,
            "on_part_end": self._end_part,
            "on_end": self._end,
        }
        try:
            _, parameters = parse_options_header(content_type)
            self._parser = MultipartParser(parameters.get(b"boundary", b""), callbacks)
        except (FormParserError, UnicodeError) as error:
            raise _broken("its boundary is not valid") from error
        if not parameters.get(b"boundary"):
            raise _broken("the Content-Type has no boundary")

    def feed(self, data: bytes) -> None:
        """Parse the next piece of the body."""
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise _broken(str(error).lower()) from error

    def finish(self) -> None:
        """Check that the body is complete."""
        if not self._complete:
            raise _broken("it ends before its last boundary")

    def close(self) -> None:
        """Close the file that is being written, if any."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _begin_part(self) -> None:
        self._parts += 1
        if self._parts > self.max_parts:
            raise ApiError(413, "too_many_fields", f"the form has more than {self.max_parts} fields")
        self._headers = {}
        self._text = bytearray()
        self._size = 0

    def _take_header_name(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _take_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _end_header(self) -> None:
        self._headers[self._header_name.lower()] = self._header_value
        self._header_name, self._header_value = b"", b""

    def _end_headers(self) -> None:
        _, parameters = parse_options_header(self._headers.get(b"content-disposition"))
        if b"name" not in parameters:
            raise _broken("a part has no name")
        self._name = parameters[b"name"].decode("utf-8", "replace")
        if self._name in self.fields or self._name in self.files:
            raise ApiError(422, "invalid_request", f"the field {self._name[:40]!r} is given twice")
        is_file = b"filename" in parameters
        if self.roles is not None and self._name in self.roles and not is_file:
            raise ApiError(
                422, "invalid_request", f"{self._name} must be a file, not text (curl: -F {self._name}=@FILE)"
            )
        if is_file and self.roles is not None and self._name not in self.roles:
            wanted = ", ".join(sorted(self.roles))
            raise ApiError(422, "invalid_request", f"files are taken as {wanted} only, not as {self._name[:40]!r}")
        if is_file:
            self._file_name = display_name(parameters[b"filename"].decode("utf-8", "replace"), self._name)
            self._path = self.folder / (self._name if self.roles is not None else f"file-{self._parts}")
            self._file = self._path.open("xb")

    def _take_data(self, data: bytes, start: int, end: int) -> None:
        self._size += end - start
        if self._file is None:
            if self._size > self.max_field_bytes:
                raise ApiError(
                    413, "too_large", f"the field {self._name[:40]!r} is longer than {self.max_field_bytes} bytes"
                )
            self._text += data[start:end]
            return
        if self._size > self.max_file_bytes:
            raise ApiError(413, "too_large", f"{self._name}: files may have at most {self.max_file_bytes} bytes")
        self._file.write(memoryview(data)[start:end])

    def _end_part(self) -> None:
        if self._file is None:
            try:
                self.fields[self._name] = self._text.decode()
            except UnicodeDecodeError as error:
                raise ApiError(422, "invalid_request", f"the field {self._name[:40]!r} is not UTF-8 text") from error
            return
        self.close()
        self.files[self._name] = ReceivedFile(self._file_name, self._path, self._size)

    def _end(self) -> None:
        self._complete = True


def _broken(reason: str) -> ApiError:
    return ApiError(400, "broken_multipart", f"the multipart body cannot be read: {reason}")
