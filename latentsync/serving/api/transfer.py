"""Send a file or ranges of it: Starlette's FileResponse with additions.

It waits forever for a client that reads nothing, answers no If-None-Match, and describes errors in plain text.
"""

import asyncio
from collections.abc import Mapping
from pathlib import Path

from starlette.datastructures import Headers
from starlette.responses import FileResponse, Response
from starlette.types import Message, Receive, Scope, Send

from latentsync.serving.api.errors import error_response

PIECE = 256 * 2**10
HEADERS = {"cache-control": "private, no-cache", "x-content-type-options": "nosniff"}
RANGE_ERRORS = {
    400: ("invalid_range", "the Range header is not valid; write bytes=FIRST-LAST"),
    416: ("range_not_satisfiable", "the range is outside the file"),
}


class FileTransfer(FileResponse):
    """A file as an attachment. Clients that take longer than `send_seconds` for one piece are disconnected.

    The constructor blocks and raises FileNotFoundError.
    """

    chunk_size = PIECE

    def __init__(
        self, path: Path, request_headers: Mapping[str, str], media_type: str, download_name: str, send_seconds: float
    ) -> None:
        super().__init__(path, headers=HEADERS, media_type=media_type, filename=download_name, stat_result=path.stat())
        tags = [tag.strip().removeprefix("W/") for tag in request_headers.get("if-none-match", "").split(",")]
        self.is_unchanged = self.headers["etag"] in tags or "*" in tags
        self.send_seconds = send_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.is_unchanged:
            kept = {name: value for name, value in self.headers.items() if name != "content-length"}
            await Response(status_code=304, headers=kept)(scope, receive, send)
            return
        refusal: Response | None = None

        async def guarded_send(message: Message) -> None:
            nonlocal refusal
            if message["type"] == "http.response.start" and message["status"] in RANGE_ERRORS:
                code, text = RANGE_ERRORS[message["status"]]
                span = Headers(raw=message["headers"]).get("content-range")
                headers = {} if span is None else {"content-range": span}
                refusal = error_response(message["status"], code, text, headers)
            if refusal is None:
                async with asyncio.timeout(self.send_seconds):
                    await send(message)

        await super().__call__(scope, receive, guarded_send)
        if refusal is not None:
            await refusal(scope, receive, send)
