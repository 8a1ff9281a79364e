"""A live server of the API in this process, for tests: a real service, a socket, a thread."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from latentsync.serving.api import ApiServer, create_app
from latentsync.serving.service import JobService
from latentsync.serving.settings import ServingSettings
from tests.waiting import HANG_SECONDS

MIB = 2**20


def make_service(workspace: Path, **settings) -> JobService:
    """A service without workers: jobs stay queued."""
    return JobService(ServingSettings(workspace=workspace, workers=0, **({"max_upload_bytes": 4 * MIB} | settings)))


@contextmanager
def serving(service: JobService, **options) -> Iterator[httpx.Client]:
    """Serve `service` on a free port; yields a client whose base_url is the server. Options are those of create_app."""
    sock = socket.create_server(("127.0.0.1", 0))
    server = ApiServer(create_app(service, **options), log_level="warning")
    thread = threading.Thread(target=server.run, args=([sock],))
    thread.start()
    url = f"http://127.0.0.1:{sock.getsockname()[1]}"
    try:
        with httpx.Client(base_url=url, timeout=HANG_SECONDS, trust_env=False) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join(HANG_SECONDS)
        assert not thread.is_alive(), "the server hangs"


def send(client: httpx.Client, data: bytes, seconds: float = 2.0) -> bytes:
    """What the server answers to raw bytes, until it closes the connection or is silent for `seconds`."""
    url = client.base_url
    with socket.create_connection((url.host, url.port), timeout=seconds) as sock:
        received = b""
        try:
            sock.sendall(data)
            while piece := sock.recv(65536):
                received += piece
        except (TimeoutError, ConnectionError):
            pass
    return received


def error_of(response: httpx.Response) -> tuple[int, str]:
    """Status and code of a refusal, which must have the one shape."""
    body = response.json()
    assert set(body) == {"error"} and set(body["error"]) == {"code", "message"}, body
    assert "\n" not in body["error"]["message"] and "Traceback" not in body["error"]["message"]
    return response.status_code, body["error"]["code"]
