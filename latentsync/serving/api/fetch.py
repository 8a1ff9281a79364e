"""Download a file from a public URL, and from nowhere else.

The host name is resolved here, all its addresses must be public, and the connection goes to the address that was
checked; each redirect is checked in the same way. No proxy is used, since it would resolve names itself.
"""

import asyncio
import ipaddress
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import anyio.to_thread
import httpx

from latentsync.serving.api.errors import ApiError
from latentsync.serving.api.multipart import ReceivedFile, display_name

MAX_REDIRECTS = 5
CONNECT_SECONDS = 10.0
TOTAL_SECONDS = 600.0
PIECE = 256 * 2**10
PORTS = {"http": 80, "https": 443}
NAT64 = ipaddress.ip_network("64:ff9b::/96")
GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")  # all IPv6 addresses assigned to hosts of the public internet

Resolver = Callable[[str, int], list[str]]


@dataclass(frozen=True)
class Target:
    """The checked address to connect to for a URL."""

    url: str
    scheme: str
    host: str
    port: int
    address: str

    @property
    def pinned_url(self) -> str:
        """The URL with the address in place of the host name."""
        parts = urlsplit(self.url)
        address = f"[{self.address}]" if ":" in self.address else self.address
        return parts._replace(netloc=f"{address}:{self.port}", fragment="").geturl()


def resolve(host: str, port: int) -> list[str]:
    """All addresses of a host name, as text."""
    return sorted({str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)})


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the public internet, including IPv4 addresses embedded in IPv6 ones."""
    ip = ipaddress.ip_address(address.split("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = [ip.ipv4_mapped, ip.sixtofour, *(ip.teredo or ())]
        if ip in NAT64:
            inner.append(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF))
        if any(part is not None and not is_public(str(part)) for part in inner):
            return False
        if ip.ipv4_mapped is not None:
            return True
        if ip not in NAT64 and ip not in GLOBAL_UNICAST:  # includes obsolete embeddings of IPv4 (::a.b.c.d)
            return False
    return ip.is_global and not ip.is_multicast


class Fetcher:
    """Downloads URLs given by users; blocking parts run in threads.

    resolver, accepts, ports: how to resolve names, which addresses and which port per scheme to accept.
    """

    def __init__(
        self,
        max_bytes: int,
        *,
        resolver: Resolver = resolve,
        accepts: Callable[[str], bool] = is_public,
        ports: dict[str, int] = PORTS,
    ) -> None:
        self.max_bytes, self.resolver, self.accepts, self.ports = max_bytes, resolver, accepts, ports

    async def fetch(self, url: str, role: str, folder: Path) -> ReceivedFile:
        """Download `url` to `folder / role`.

        Raises:
            ApiError: 422 the URL is rejected or the request fails, 413 too large, 408 too slow.
            OSError: the disk is not writable.
        """
        try:
            async with asyncio.timeout(TOTAL_SECONDS):
                return await self._follow(url, role, folder)
        except TimeoutError:
            raise ApiError(408, "too_slow", f"{role}_url: the file arrives too slowly") from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ApiError(422, "unreachable_url", f"{role}_url: {type(error).__name__} while fetching it") from error

    def check(self, url: str, role: str) -> Target:
        """Where to connect for `url`; blocks on the resolver. Raises ApiError if the URL is rejected."""
        try:
            if not url.isascii():
                raise _refused(role, "write it in ASCII (xn--, %XX)")
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise _refused(role, "it is not a valid URL") from error
        if parts.scheme not in self.ports or not host:
            raise _refused(role, "give an http:// or https:// URL")
        if parts.username is not None or parts.password is not None:
            raise _refused(role, "URLs with user names are not accepted")
        if port not in (None, self.ports[parts.scheme]):
            raise _refused(role, "only the standard ports are accepted")
        try:
            addresses = self.resolver(host, self.ports[parts.scheme])
        except (OSError, UnicodeError) as error:
            raise _refused(role, "its host name cannot be resolved") from error
        if not addresses or not all(self.accepts(address) for address in addresses):
            raise _refused(role, "its host is not on the public internet")
        return Target(url, parts.scheme, host, self.ports[parts.scheme], addresses[0])

    async def _follow(self, url: str, role: str, folder: Path) -> ReceivedFile:
        timeout = httpx.Timeout(30.0, connect=CONNECT_SECONDS)
        async with httpx.AsyncClient(trust_env=False, timeout=timeout, follow_redirects=False) as client:
            for _ in range(MAX_REDIRECTS + 1):
                target = await anyio.to_thread.run_sync(self.check, url, role)
                headers = {"Host": urlsplit(url).netloc, "Accept-Encoding": "identity", "User-Agent": "latentsync"}
                request = client.build_request(
                    "GET", target.pinned_url, headers=headers, extensions={"sni_hostname": target.host}
                )
                response = await client.send(request, stream=True)
                try:
                    if response.has_redirect_location:
                        url = urljoin(url, response.headers["location"])
                        continue
                    return await self._save(response, url, role, folder)
                finally:
                    await response.aclose()
        raise _refused(role, f"it redirects more than {MAX_REDIRECTS} times")

    async def _save(self, response: httpx.Response, url: str, role: str, folder: Path) -> ReceivedFile:
        if response.status_code != 200:
            raise _refused(role, f"its server returned status {response.status_code}")
        if "content-encoding" in response.headers:
            raise _refused(role, "its server sent it compressed although asked not to")
        path, size = folder / role, 0
        file = await anyio.to_thread.run_sync(path.open, "xb")
        try:
            async for piece in response.aiter_raw(PIECE):
                size += len(piece)
                if size > self.max_bytes:
                    raise ApiError(413, "too_large", f"{role}_url: files may have at most {self.max_bytes} bytes")
                await anyio.to_thread.run_sync(file.write, piece)
        finally:
            await anyio.to_thread.run_sync(file.close)
        return ReceivedFile(display_name(unquote(urlsplit(url).path), role), path, size)


def _refused(role: str, reason: str) -> ApiError:
    return ApiError(422, "refused_url", f"{role}_url: {reason}")
