"""Protection of the server: addresses, sizes of request heads, and requests from web pages of other sites."""

import ipaddress
import socket
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from latentsync.serving.api.errors import ApiError
from latentsync.utils.errors import UserError

HTTP_VERSIONS = ("1.0", "1.1")
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")
MAX_PORT = 2**16 - 1
MAX_HEAD_BYTES = 32 * 2**10
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


def check_port(port: int) -> None:
    """Raises UserError for an invalid port number, which the resolver would take modulo 2^16."""
    if not 0 <= port <= MAX_PORT:
        raise UserError(f"--port must be between 0 and {MAX_PORT}, not {port}")


def is_loopback(host: str) -> bool:
    """Whether a server bound to `host` (a name or an address) can only be reached from this machine."""
    try:
        found = {str(entry[4][0]) for entry in socket.getaddrinfo(host or "0.0.0.0", None)}
    except (OSError, UnicodeError):
        return False
    return all(ipaddress.ip_address(address.split("%")[0]).is_loopback for address in found)


class HeaderGuard:
    """ASGI middleware that rejects heads of more than MAX_HEAD_BYTES, and bodies with two lengths.

    The HTTP parser limits only heads that arrive in pieces. It prefers Transfer-Encoding to Content-Length; a proxy in
    front of it may do the opposite (request smuggling).
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._refusal(scope) if scope["type"] == "http" else None
        await (self.app if refusal is None else refusal.response())(scope, receive, send)

    def _refusal(self, scope: Scope) -> ApiError | None:
        size = len(scope.get("raw_path") or b"") + len(scope["query_string"])
        size += sum(len(name) + len(value) + 4 for name, value in scope["headers"])  # ": " and the line break
        closing = {"Connection": "close"}
        if size > MAX_HEAD_BYTES:
            message = f"the request line and headers may have {MAX_HEAD_BYTES} bytes"
            return ApiError(431, "head_too_large", message, closing)
        if scope["http_version"] not in HTTP_VERSIONS:
            return ApiError(505, "http_version", f"use HTTP {' or '.join(HTTP_VERSIONS)}", closing)
        if {b"content-length", b"transfer-encoding"} <= {name for name, _ in scope["headers"]}:
            message = "send a Content-Length or a Transfer-Encoding header, not both"
            return ApiError(400, "ambiguous_length", message, closing)
        return None


class BrowserGuard:
    """ASGI middleware against web pages of other sites: DNS rebinding (by Host) and cross-site requests (by Origin).

    `hosts`: accepted names in the Host header, without the port; None for any. Programs other than browsers send no
    Origin, so the second check does not affect them.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str] | None = None) -> None:
        self.app = app
        self.hosts = None if hosts is None else frozenset(name.lower() for name in hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._refusal(scope) if scope["type"] in ("http", "websocket") else None
        if refusal is None:
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await refusal.response()(scope, receive, send)

    def _refusal(self, scope: Scope) -> ApiError | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "").lower()
        if self.hosts is not None and _without_port(host) not in self.hosts:
            return ApiError(421, "wrong_host", "the Host header names another server; allow it with --allowed_hosts")
        if _is_foreign(headers.getlist("origin"), host):
            return ApiError(403, "cross_origin", "requests from web pages of other sites are rejected")
        # Links from other sites may lead here; requests that their pages embed or fetch are rejected.
        followed_link = headers.get("sec-fetch-mode") == "navigate" and scope.get("method") in SAFE_METHODS
        if headers.get("sec-fetch-site") == "cross-site" and not followed_link:
            return ApiError(403, "cross_origin", "requests from web pages of other sites are rejected")
        return None


def _without_port(host: str) -> str:
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdigit() else host


def _is_foreign(origins: list[str], host: str) -> bool:
    if not origins:
        return False
    try:
        return len(origins) > 1 or urlsplit(origins[0]).netloc.lower() != host
    except ValueError:  # not a valid address
        return True
