"""Inputs given as URLs. The fetcher is configured to treat a local web server as a public one."""

import asyncio
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from latentsync.serving.api.errors import ApiError
from latentsync.serving.api.fetch import Fetcher, is_public

CONTENT = b"image" * 100


class Pages(BaseHTTPRequestHandler):
    hosts_seen: list[str] = []

    def do_GET(self) -> None:
        self.hosts_seen.append(self.headers["Host"])
        name = self.path.partition("?")[0]
        if name == "/file%20name.mp4":
            self.answer(200, CONTENT)
        elif name == "/endless":
            self.answer(200, b"x" * 100_000, {"Connection": "close"})
        elif name == "/packed":
            self.answer(200, CONTENT, {"Content-Encoding": "gzip"})
        elif name == "/loop":
            self.answer(302, b"", {"Location": "/loop"})
        elif name == "/moved":
            self.answer(301, b"", {"Location": "/file%20name.mp4"})
        elif name == "/inwards":
            self.answer(302, b"", {"Location": "http://169.254.169.254/latest/meta-data/"})
        elif name == "/to-file":
            self.answer(302, b"", {"Location": "file:///etc/passwd"})
        else:
            self.answer(404, b"no")

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args) -> None:
        pass


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Pages) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


@pytest.fixture
def fetcher(port: int) -> Fetcher:
    """pages.example is this machine, and this machine counts as public; every other rule holds."""

    def resolver(host: str, port: int) -> list[str]:
        return ["127.0.0.1"] if host == "pages.example" else [host]

    accepts = lambda address: address == "127.0.0.1" or is_public(address)  # noqa: E731
    return Fetcher(50_000, resolver=resolver, accepts=accepts, ports={"http": port})


def fetch(fetcher: Fetcher, url: str, folder: Path):
    return asyncio.run(fetcher.fetch(url, "video", folder))


@pytest.mark.parametrize("path", ["/file%20name.mp4", "/moved"])
def test_a_file_is_fetched(fetcher, tmp_path, path):
    Pages.hosts_seen.clear()
    found = fetch(fetcher, f"http://pages.example{path}", tmp_path)
    assert (found.name, found.path, found.size) == ("file name.mp4", tmp_path / "video", len(CONTENT))
    assert found.path.read_bytes() == CONTENT
    assert set(Pages.hosts_seen) == {"pages.example"}


@pytest.mark.parametrize(
    "path, status, message",
    [
        ("/missing", 422, "404"),
        ("/packed", 422, "compressed"),
        ("/loop", 422, "redirects"),
        ("/inwards", 422, "public internet"),
        ("/to-file", 422, "http"),
        ("/endless", 413, "50000"),
    ],
)
def test_addresses_that_are_not_fetched(fetcher, tmp_path, path, status, message):
    with pytest.raises(ApiError, match=message) as caught:
        fetch(fetcher, f"http://pages.example{path}", tmp_path)
    assert caught.value.status == status


def test_a_server_that_does_not_answer(tmp_path):
    fetcher = Fetcher(100, resolver=lambda host, port: ["127.0.0.1"], accepts=lambda a: True, ports={"http": 1})
    with pytest.raises(ApiError, match="ConnectError"):
        fetch(fetcher, "http://pages.example/", tmp_path)


@pytest.mark.parametrize(
    "address",
    ["::127.0.0.1", "::ffff:127.0.0.1", "::ffff:0:127.0.0.1", "64:ff9b::7f00:1", "64:ff9b:1::7f00:1", "2002:7f00:1::",
     "::", "::8.8.8.8", "100::1", "fe80::1", "fec0::1", "fd00::1", "ff0e::1", "4000::1"],
)  # fmt: skip
def test_addresses_that_are_not_public(address):
    assert not is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "2001:4860:4860::8888", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_addresses_that_are_public(address):
    assert is_public(address)
