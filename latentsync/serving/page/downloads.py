"""Downloads under names of their own; Gradio sends files under the names that they have on disk."""

import html
from pathlib import Path
from urllib.parse import parse_qs, quote, urlencode

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from latentsync.serving.page.compare import file_url

PARAMETER = "download"  # of the query, with the name


def download_html(path: Path, name: str) -> str:
    """A link that saves a file under a name."""
    address = f"{file_url(path)}?{urlencode({PARAMETER: name})}"
    return f'<a class="button" href="{html.escape(address, quote=True)}" download>Download</a>'


class NamedDownloads:
    """Middleware: sends a file of Gradio's as an attachment if the query has a name for it."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_file = scope["type"] == "http" and "/file=" in scope["path"]
        names = parse_qs(scope["query_string"].decode("latin-1")).get(PARAMETER) if is_file else None

        async def send_named(message: Message) -> None:
            if names and message["type"] == "http.response.start":
                disposition = f"attachment; filename*=UTF-8''{quote(names[0], safe='')}"
                MutableHeaders(scope=message)["content-disposition"] = disposition
            await send(message)

        await self.app(scope, receive, send_named)
