"""Who may ask: an API key, and without one nothing that a foreign web page could make a browser send."""

import hmac
import ipaddress
import socket
from collections.abc import Callable, Collection
from urllib.parse import urlsplit

from fastapi import Request
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from latentsync.serving.api.errors import ApiError
from latentsync.utils.errors import UserError

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")
MAX_PORT = 2**16 - 1
MAX_HEAD_BYTES = 32 * 2**10
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


def check_port(port: int) -> None:
    """Raises UserError for a number that is no port; the name service would take it modulo 2^16."""
    if not 0 <= port <= MAX_PORT:
        raise UserError(f"--port must lie between 0 and {MAX_PORT}, not {port}")


def is_loopback(host: str) -> bool:
    """Whether a server bound to `host` (a name or an address) can be reached from this machine only."""
    try:
        found = {entry[4][0] for entry in socket.getaddrinfo(host or "0.0.0.0", None)}
    except (OSError, UnicodeError):
        return False
    return all(ipaddress.ip_address(address.split("%")[0]).is_loopback for address in found)


def key_check(api_key: str | None) -> Callable[[Request], None]:
    """A dependency that lets through requests with the key as `Authorization: Bearer` or `X-API-Key`."""
    expected = None if api_key is None else api_key.encode()

    def check(request: Request) -> None:
        if expected is None:
            return
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        given = token.strip() if scheme.lower() == "bearer" else request.headers.get("x-api-key", "")
        if not hmac.compare_digest(given.encode("latin-1", "replace"), expected):
            headers = {"WWW-Authenticate": 'Bearer realm="latentsync"'}
            message = "an API key is needed: send it as `Authorization: Bearer KEY` or `X-API-Key: KEY`"
            raise ApiError(401, "unauthorized", message, headers)

    return check


class HeadGuard:
    """ASGI middleware that refuses heads of more than MAX_HEAD_BYTES, and bodies whose end is stated twice.

    The HTTP parser bounds only heads that arrive in pieces, and prefers Transfer-Encoding to Content-Length where a
    proxy in front may do the opposite (request smuggling).
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._refusal(scope) if scope["type"] == "http" else None
        await (self.app if refusal is None else refusal.response())(scope, receive, send)

    def _refusal(self, scope: Scope) -> ApiError | None:
        size = len(scope.get("raw_path") or b"") + len(scope["query_string"])
        size += sum(len(name) + len(value) + 4 for name, value in scope["headers"])  # ": " and the line's end
        closing = {"Connection": "close"}
        if size > MAX_HEAD_BYTES:
            message = f"the head of a request may have {MAX_HEAD_BYTES} bytes"
            return ApiError(431, "head_too_large", message, closing)
        if {b"content-length", b"transfer-encoding"} <= {name for name, _ in scope["headers"]}:
            message = "a request has a Content-Length or a Transfer-Encoding, not both"
            return ApiError(400, "ambiguous_length", message, closing)
        return None


class BrowserGuard:
    """ASGI middleware against web pages of others: DNS rebinding (by Host) and cross-site requests (by Origin).

    `hosts`: names that the Host header may have, the port does not count; None for any. Programs other than browsers
    send no Origin and are not affected by the second check.
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
            return ApiError(421, "wrong_host", "this server does not answer under that host name; see --allowed_hosts")
        if _is_foreign(headers.getlist("origin"), host):
            return ApiError(403, "cross_origin", "requests from web pages of other sites are refused")
        # Links from other sites may lead here; what they embed or fetch is refused.
        followed_link = headers.get("sec-fetch-mode") == "navigate" and scope.get("method") in SAFE_METHODS
        if headers.get("sec-fetch-site") == "cross-site" and not followed_link:
            return ApiError(403, "cross_origin", "requests from web pages of other sites are refused")
        return None


def _without_port(host: str) -> str:
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdigit() else host


def _is_foreign(origins: list[str], host: str) -> bool:
    if not origins:
        return False
    try:
        return len(origins) > 1 or urlsplit(origins[0]).netloc.lower() != host
    except ValueError:  # an Origin that is no address
        return True
