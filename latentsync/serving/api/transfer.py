"""Send a file, or the requested range of it (RFC 9110, section 14).

Starlette's FileResponse opens the file only after the headers are sent, answers no If-None-Match, and waits forever for
a client that reads nothing.
"""

import asyncio
import hashlib
import os
import re
from collections.abc import Mapping
from email.utils import formatdate
from pathlib import Path
from typing import BinaryIO

import anyio.to_thread
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from latentsync.serving.api.errors import error_response

PIECE = 256 * 2**10
_RANGE = re.compile(r"bytes=\s*(?:(\d{1,18})-(\d{1,18})?|-(\d{1,18}))\s*", re.ASCII)


class Unsatisfiable(Exception):
    """The range begins after the end of the file."""


def parse_range(header: str | None, size: int) -> tuple[int, int] | None:
    """(start, end) of the requested bytes, or None for the whole file: no header, a malformed one, or several ranges.

    Raises:
        Unsatisfiable: the range is outside the file.
    """
    found = _RANGE.fullmatch(header) if header else None
    if found is None:
        return None
    first, last, suffix = (None if digits is None else int(digits) for digits in found.groups())
    if first is None:
        start, end = max(0, size - (suffix or 0)), size
    else:
        start, end = first, size if last is None else min(last + 1, size)
        if last is not None and last < first:
            return None  # malformed, according to the RFC
    if start >= end:
        raise Unsatisfiable
    return start, end


class FileTransfer(Response):
    """The content of a file, which is opened in the constructor: deleting the file later does not affect the response.

    The constructor blocks and raises FileNotFoundError. Clients that take longer than `send_seconds` for one piece are
    disconnected.
    """

    def __init__(
        self, path: Path, request_headers: Mapping[str, str], media_type: str, download_name: str, send_seconds: float
    ) -> None:
        self.file: BinaryIO = path.open("rb")
        self.send_seconds = send_seconds
        self.media_type, self.background = media_type, None
        status = os.fstat(self.file.fileno())
        self.etag = (
            f'"{hashlib.sha256(f"{status.st_ino}:{status.st_mtime_ns}:{status.st_size}".encode()).hexdigest()[:32]}"'
        )
        self.size = status.st_size
        self.span = (0, self.size)
        self.refusal: Response | None = None
        headers = {
            "accept-ranges": "bytes",
            "etag": self.etag,
            "last-modified": formatdate(status.st_mtime, usegmt=True),
            "cache-control": "private, no-cache",
            "content-disposition": f'attachment; filename="{download_name}"',
            "x-content-type-options": "nosniff",
        }
        self.status_code = self._choose(request_headers, headers)
        if self.status_code != 304:
            headers["content-length"] = str(self.span[1] - self.span[0])
        self.init_headers(headers)

    def _choose(self, asked: Mapping[str, str], headers: dict[str, str]) -> int:
        """Returns the status; sets `span` and `refusal`, adds Content-Range."""
        tags = [tag.strip().removeprefix("W/") for tag in asked.get("if-none-match", "").split(",")]
        if self.etag in tags or "*" in tags:
            self.span = (0, 0)
            return 304
        unchanged = asked.get("if-range", self.etag) in (self.etag, headers["last-modified"])
        try:
            span = parse_range(asked.get("range"), self.size) if unchanged else None
        except Unsatisfiable:
            message = f"the range is outside the file, which has {self.size} bytes"
            self.refusal = error_response(
                416, "range_not_satisfiable", message, {"content-range": f"bytes */{self.size}"}
            )
            return 416
        if span is None:
            return 200
        self.span = span
        headers["content-range"] = f"bytes {span[0]}-{span[1] - 1}/{self.size}"
        return 206

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            if self.refusal is not None:
                await self.refusal(scope, receive, send)
                return
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            if scope["method"] != "HEAD":
                await self._send_span(send)
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            self.file.close()

    async def _send_span(self, send: Send) -> None:
        position, end = self.span
        while position < end:
            piece = await anyio.to_thread.run_sync(self._read, position, min(PIECE, end - position))
            if not piece:
                raise RuntimeError("the file became shorter while it was sent")
            position += len(piece)
            async with asyncio.timeout(self.send_seconds):
                await send({"type": "http.response.body", "body": piece, "more_body": True})

    def _read(self, position: int, count: int) -> bytes:
        return os.pread(self.file.fileno(), count, position)
