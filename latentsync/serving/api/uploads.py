"""Request bodies, streamed to disk, with limits on size, speed and number."""

import asyncio
import errno
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.to_thread
from fastapi import Request

from latentsync.serving.api.errors import ApiError, try_later
from latentsync.serving.api.limits import KIB, MIB, ApiLimits
from latentsync.serving.api.multipart import FormReceiver
from latentsync.serving.jobs import ROLES

WRITE_AT_ONCE = 512 * KIB  # collected before they are written in a thread
FORM_OVERHEAD = MIB  # bytes of a body besides its files
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class ClientGone(Exception):
    """The client closed the connection before its body was complete."""


class Body:
    """The body of a request. `length`: its Content-Length in bytes, None if it has none (chunked)."""

    def __init__(self, request: Request, limits: ApiLimits) -> None:
        self.receive, self.limits = request.receive, limits
        self.content_type = request.headers.get("content-type", "")
        length = request.headers.get("content-length", "")
        self.length = int(length) if length.isdecimal() and length.isascii() else None
        self._over = False

    async def pieces(self, most: int) -> AsyncIterator[bytes]:
        """The body in pieces as they arrive, up to `most` bytes in total.

        Raises:
            ApiError: 408 too slow, 413 too large.
            ClientGone: the connection was closed.
        """
        if self.length is not None and self.length > most:
            raise ApiError(413, "too_large", f"the body has {self.length} bytes; at most {most} are accepted")
        begun, received = time.monotonic(), 0
        while not self._over:
            allowed = self.limits.grace_seconds + received / self.limits.min_bytes_per_second
            try:
                async with asyncio.timeout(max(0.0, min(self.limits.idle_seconds, begun + allowed - time.monotonic()))):
                    piece = await self._next()
            except TimeoutError:
                raise ApiError(408, "too_slow", "the body arrives too slowly", {"Connection": "close"}) from None
            received += len(piece)
            if received > most:
                raise ApiError(413, "too_large", f"the body has more than the accepted {most} bytes")
            if piece:
                yield piece

    async def _next(self) -> bytes:
        message = await self.receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        self._over = not message.get("more_body", False)
        return message.get("body", b"")


class UploadReceiver:
    """Receives uploads into temporary folders, at most `limits.parallel_uploads` at a time.

    root: parent of the temporary folders. max_file_bytes: of each file. min_free_bytes: to keep free on the disk.
    """

    def __init__(self, root: Path, max_file_bytes: int, min_free_bytes: int, limits: ApiLimits) -> None:
        self.root, self.max_file_bytes, self.min_free_bytes, self.limits = root, max_file_bytes, min_free_bytes, limits
        self.slots = asyncio.Semaphore(limits.parallel_uploads)
        self.active = 0

    @asynccontextmanager
    async def folder(self) -> AsyncIterator[Path]:
        """Wait for a slot and create an empty folder, which is removed at the end with everything in it.

        Raises:
            ApiError: 429 no slot was free in time, 507 the disk is full.
        """
        try:
            async with asyncio.timeout(self.limits.wait_for_upload_slot):
                await self.slots.acquire()
        except TimeoutError:
            raise try_later("too_many_uploads", "too many uploads are in progress; try again later") from None
        self.active += 1
        folder = None
        try:
            await anyio.to_thread.run_sync(self._check_space, 0)
            folder = Path(await anyio.to_thread.run_sync(self._make_folder))
            yield folder
        except OSError as error:
            if error.errno in NO_SPACE:
                raise no_space() from error
            raise
        finally:
            self.active -= 1
            self.slots.release()
            if folder is not None:
                with anyio.CancelScope(shield=True):
                    await anyio.to_thread.run_sync(lambda: shutil.rmtree(folder, ignore_errors=True))

    async def receive_form(
        self, body: Body, folder: Path, *, roles: Collection[str] = ROLES, batch: bool = False
    ) -> FormReceiver:
        """Receive a multipart body; its files are written into `folder`.

        roles: names of the files.
        batch: with files of any name, and a field with the jobs as JSON, instead of the files and options of one job.

        Raises:
            ApiError: 400, 408, 413, 422 or 507.
            ClientGone: the connection was closed.
        """
        await anyio.to_thread.run_sync(self._check_space, body.length or 0)
        receiver = FormReceiver(
            body.content_type,
            folder,
            None if batch else frozenset(roles),
            max_file_bytes=self.max_file_bytes,
            max_field_bytes=self.limits.max_json_bytes if batch else self.limits.max_field_bytes,
            max_parts=self.limits.max_batch_parts if batch else self.limits.max_parts,
        )
        try:
            waiting = bytearray()
            async for piece in body.pieces(len(roles) * self.max_file_bytes + FORM_OVERHEAD):
                waiting += piece
                if len(waiting) >= WRITE_AT_ONCE:
                    await anyio.to_thread.run_sync(receiver.feed, bytes(waiting))
                    waiting.clear()
            await anyio.to_thread.run_sync(receiver.feed, bytes(waiting))
            receiver.finish()
        finally:
            await anyio.to_thread.run_sync(receiver.close)
        return receiver

    def _make_folder(self) -> str:
        self.root.mkdir(parents=True, exist_ok=True)
        return tempfile.mkdtemp(prefix="api-", dir=self.root)

    def _check_space(self, needed: int) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(self.root).free < needed + self.min_free_bytes:
            raise no_space()


def no_space() -> ApiError:
    return ApiError(507, "insufficient_storage", "the server has no space left for this upload; delete old jobs")
