"""Hostile input: no internal error, no file outside the workspace, no hang."""

import importlib.util
import os
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from latentsync.serving.api.fetch import Fetcher
from latentsync.serving.api.limits import ApiLimits
from latentsync.serving.jobs import JobState
from latentsync.serving.service import JobService
from latentsync.serving.workspace import RESULT
from tests.media.synthetic import write_audio
from tests.serving.live import MIB, error_of, make_service, send, serving
from tests.waiting import HANG_SECONDS, eventually

FORM = {"Content-Type": "multipart/form-data; boundary=B"}
UPLOAD_HEAD = (
    b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=B\r\n"
    b"Content-Length: 90000\r\n\r\n"
)


@pytest.fixture(scope="module")
def service(tmp_path_factory) -> JobService:
    return make_service(tmp_path_factory.mktemp("hostile") / "workspace", max_pixels=4096 * 4096, max_audio_seconds=300)


@pytest.fixture(scope="module")
def client(service) -> Iterator[httpx.Client]:
    with serving(service) as client:
        yield client


@pytest.fixture(autouse=True)
def nothing_is_left_behind(service, client) -> Iterator[None]:
    """Beside the workspace there is nothing, and no upload stays."""
    yield
    workspace = service.settings.workspace
    assert list(workspace.parent.iterdir()) == [workspace]
    assert {path.name for path in workspace.iterdir()} <= {
        "uploads", "jobs", ".latentsync-workspace", "jobs.sqlite", "jobs.sqlite-wal", "jobs.sqlite-shm"
    }  # fmt: skip
    assert eventually(lambda: not list(service.upload_folder().iterdir()))
    assert client.get("/healthz").status_code == 200


def post(client: httpx.Client, video: bytes, audio: bytes, name: str = "me.mp4", **options) -> httpx.Response:
    return client.post("/v1/jobs", files={"video": (name, video), "audio": ("voice.wav", audio)}, data=options)


@pytest.mark.parametrize(
    "name",
    ["../../../../tmp/evil.mp4", "/etc/passwd", "..\\..\\evil.mp4", "a\0.mp4", "a\nb\r\nX: y.mp4", "%00.mp4", "..", ".",
     "x" * 3000 + ".mp4", "concat:a.mp4", "http:%2F%2Fevil", "%s%n.mp4", "clip%03d.png", "\u202egpj.mp4",
     '";rm -rf ~;".mp4'],
)  # fmt: skip
def test_names_are_never_trusted(client, service, media, name):
    response = post(client, (media / "clip.mp4").read_bytes(), (media / "voice.wav").read_bytes(), name)
    assert response.status_code == 202, response.text
    job = response.json()
    assert job["inputs"]["video"].isprintable() and "/" not in job["inputs"]["video"]
    assert {path.stem for path in service.workspace.folder(job["id"]).iterdir()} == {"video", "audio"}
    client.delete(job["links"]["self"])


def test_raw_bytes_in_a_name(client, service, media):
    video = (media / "clip.mp4").read_bytes()
    for name in (b"\xff\xfe\x00../x", b"a\nb", b"a\rb", b"\x00", b'a"b'):
        body = (
            b'--B\r\nContent-Disposition: form-data; name="video"; filename="'
            + name
            + b'"\r\n\r\n'
            + video
            + b"\r\n--B--\r\n"
        )
        response = client.post("/v1/jobs", content=body, headers=FORM)
        assert error_of(response)[0] in (400, 422)


def huge_png(width: int, height: int) -> bytes:
    """A black one-bit PNG of any size in few bytes; the largest are cut short."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = zlib.compress(bytes(min((width // 8 + 1) * height, 20 * MIB)), 9)
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize("width, height", [(10_000, 10_000), (100_000, 10_000), (2**31 - 1, 2**31 - 1)])
def test_images_that_are_too_large(client, media, width, height):
    response = post(client, huge_png(width, height), (media / "voice.wav").read_bytes(), "bomb.png")
    assert error_of(response) == (422, "invalid_input")


def wav_of_a_day() -> bytes:
    """The head of 24 hours of silence, and some of it."""
    size = 24 * 3600 * 32_000
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, 16_000, 32_000, 2, 16)
    return (
        struct.pack("<4sI4s", b"RIFF", size + 36, b"WAVE") + form + struct.pack("<4sI", b"data", size) + bytes(64_000)
    )


def test_audio_that_claims_to_last_a_day(client, media):
    response = post(client, (media / "clip.mp4").read_bytes(), wav_of_a_day())
    # Its header is wrong: the file is two seconds long. The cost is bounded either way.
    assert response.status_code in (202, 422)
    if response.status_code == 202:
        client.delete(response.json()["links"]["self"])


def test_silence_that_is_small_but_long(client, media, tmp_path):
    path = write_audio(tmp_path / "long.flac", np.zeros(8000 * 301, np.float32), 8000, codec="flac")
    assert path.stat().st_size < MIB
    assert error_of(post(client, (media / "clip.mp4").read_bytes(), path.read_bytes())) == (422, "invalid_input")


def other_files(media: Path) -> dict[str, bytes]:
    gif = media / "bomb.gif"
    Image.new("L", (4, 4)).save(gif)
    data = bytearray(gif.read_bytes())
    data[6:10] = struct.pack("<HH", 65535, 65535)
    return {
        "text": b"hello" * 1000,
        "empty": b"",
        "html": b"<html><script>alert(1)</script></html>",
        "playlist": b"#EXTM3U\n#EXT-X-MEDIA-SEQUENCE:0\n#EXTINF:10,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n",
        "concat": b"ffconcat version 1.0\nfile /etc/passwd\n",
        "svg": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
        "zip": b"PK\x03\x04" + bytes(5000),
        "gif": bytes(data),
        "noise": np.random.default_rng(0).bytes(200_000),
        "half": (media / "clip.mp4").read_bytes()[:500],
        "audio": (media / "voice.wav").read_bytes(),
    }


@pytest.mark.parametrize(
    "kind", ["text", "empty", "html", "playlist", "concat", "svg", "zip", "gif", "noise", "half", "audio"]
)
def test_files_that_are_no_video(client, service, media, kind):
    response = post(client, other_files(media)[kind], (media / "voice.wav").read_bytes())
    assert error_of(response) == (422, "invalid_input")
    assert str(service.settings.workspace) not in response.text and "root:" not in response.text


@pytest.mark.parametrize(
    "content_type",
    ["application/x-www-form-urlencoded", "text/plain", "video/mp4", "", "multipart/mixed; boundary=B", "\xff"],
)
def test_bodies_of_another_type(client, content_type):
    response = client.post("/v1/jobs", content=b"x" * 1000, headers={"Content-Type": content_type.encode("latin-1")})
    assert error_of(response) == (415, "unsupported_media_type")


@pytest.mark.parametrize("boundary", ["", "; boundary=", f"; boundary={'b' * 500}", '; boundary="', "; boundary=\xe9"])
def test_broken_boundaries(client, boundary):
    headers = {"Content-Type": f"multipart/form-data{boundary}".encode("latin-1")}
    assert error_of(client.post("/v1/jobs", content=b"--B\r\n\r\n", headers=headers)) == (400, "broken_multipart")


@pytest.mark.parametrize(
    "body, status",
    [
        (b"", 400),
        (b"\r\n\r\n", 400),
        (b"--B", 400),
        (b"--B--", 422),
        (b"--B\r\n\r\nx\r\n--B--\r\n", 400),
        (b"x" * 300_000, 400),
        (b'--B\r\nContent-Disposition: form-data; name="video"; filename="x"\r\n\r\nabc', 400),
        (b'--B\r\nContent-Disposition: form-data; name="f"\r\n\r\n' + b"v" * 200_000 + b"\r\n--B--\r\n", 413),
        (b'--B\r\nContent-Disposition: form-data; name="f"\r\nX: ' + b"h" * 200_000 + b"\r\n\r\nv\r\n--B--\r\n", 400),
        (
            b"".join(b'--B\r\nContent-Disposition: form-data; name="f%d"\r\n\r\nv\r\n' % i for i in range(5000))
            + b"--B--\r\n",
            413,
        ),
        (b'--B\r\nContent-Disposition: form-data; name="' + b"n" * 3000 + b'"\r\n\r\nv\r\n--B--\r\n', 422),
    ],
)
def test_broken_forms(client, body, status):
    assert error_of(client.post("/v1/jobs", content=body, headers=FORM))[0] == status


def test_files_that_are_too_large(client):
    assert error_of(post(client, bytes(5 * MIB), b"x")) == (413, "too_large")
    assert error_of(post(client, bytes(40 * MIB), b"x")) == (413, "too_large")


def test_a_body_without_length_is_cut_off(client, monkeypatch):
    monkeypatch.setattr("latentsync.serving.api.server.LINGER_SECONDS", 0.5)
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        yield b'--B\r\nContent-Disposition: form-data; name="video"; filename="x"\r\n\r\n'
        while sent < 2**34:
            sent += MIB
            yield bytes(MIB)

    try:
        status = client.post("/v1/jobs", content=endless(), headers=FORM).status_code
    except httpx.TransportError:  # the connection was closed while it was still sending
        status = 413
    assert status == 413 and sent < 2**34


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 100_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"".join(b"X%d: y\r\n" % i for i in range(20_000)) + b"\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
        b"GET /v1/jobs HTTP/9.9\r\n\r\n",
        b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        UPLOAD_HEAD.replace(b"Content-Length: 90000", b"Transfer-Encoding: chunked") + b"ZZ\r\n",
        b"GET /v1/jobs HTTP/1.1\r\n\r\n",
        b"\r\n" * 5000,
    ],
)  # fmt: skip
def test_broken_requests(client, data):
    answer = send(client, data)
    assert b" 500 " not in answer[:15] and b" 20" not in answer[:15]


@pytest.mark.parametrize("where", [b"GET /healthz?%s HTTP/1.1\r\n", b"GET /healthz HTTP/1.1\r\nX: %s\r\n"])
def test_heads_have_one_limit_in_whatever_pieces_they_arrive(client, where):
    for size, statuses in ((31_000, [b"200"]), (33_500, [b"431", b"400"]), (60_000, [b"431", b"400"])):
        answer = send(client, where % (b"y" * size) + b"Host: x\r\nConnection: close\r\n\r\n")
        assert answer.split()[1] in statuses, size


def test_the_end_of_a_body_is_stated_once(client):
    head = b"GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"
    answer = send(client, head + b"0\r\n\r\nGET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
    assert answer.split()[1] == b"400" and answer.count(b"HTTP/1.1 ") == 1


def test_a_client_that_leaves(client):
    body = b'--B\r\nContent-Disposition: form-data; name="video"; filename="x"\r\n\r\n' + bytes(1000)
    with socket.create_connection((client.base_url.host, client.base_url.port)) as sock:
        sock.sendall(UPLOAD_HEAD + body)
        time.sleep(0.2)


@pytest.mark.parametrize("limits", [ApiLimits(idle_seconds=0.5), ApiLimits(grace_seconds=0.5)])
def test_slow_clients_are_given_up(tmp_path, monkeypatch, limits):
    monkeypatch.setattr("latentsync.serving.api.server.LINGER_SECONDS", 0.5)
    with serving(make_service(tmp_path / "workspace"), limits=limits) as client:
        answer = send(client, UPLOAD_HEAD + b"--B\r\n", HANG_SECONDS)
    assert answer.startswith(b"HTTP/1.1 408 ") and b"connection: close" in answer.lower()


def test_a_head_that_never_ends(client, monkeypatch):
    monkeypatch.setattr("latentsync.serving.api.server.HEAD_SECONDS", 0.5)
    with socket.create_connection((client.base_url.host, client.base_url.port), timeout=HANG_SECONDS) as sock:
        sock.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n")
        assert sock.recv(1) == b""  # closed by the server: the client would still wait


def test_a_hundred_uploads_at_once(client, service, media):
    video, audio = (media / "clip.mp4").read_bytes() + bytes(200_000), (media / "voice.wav").read_bytes()
    statuses, finished_before = [], []

    def upload(index: int) -> None:
        statuses.append(post(client, video, audio, f"{index}.mp4").status_code)

    def look() -> None:
        while not done.is_set():
            client.get("/healthz")
            finished_before.append(len(statuses))
            time.sleep(0.05)

    done = threading.Event()
    looker = threading.Thread(target=look)
    looker.start()
    with ThreadPoolExecutor(100) as pool, httpx.Client(limits=httpx.Limits(max_connections=100)):
        list(pool.map(upload, range(100)))
    done.set()
    looker.join()
    assert set(statuses) == {202} and len(statuses) == 100
    names = [job.inputs["video"] for job in service.list(limit=200)]
    assert sorted(int(name.removesuffix(".mp4")) for name in names if name[0].isdigit()) == list(range(100))
    assert min(finished_before) < 100  # other requests are answered while uploads are under way


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("schemathesis") is None, reason="schemathesis is not installed")
@pytest.mark.parametrize("known_job", [False, True])
def test_requests_made_up_from_the_documentation(tmp_path, media, known_job):
    """Thousands of requests, good and bad by the OpenAPI document; with a finished job that is not deleted, or none."""
    made_up = make_service(tmp_path / "workspace", lease_seconds=3600)
    made_up.store.worker_beat("test", os.getpid(), "cpu", ["embedded"])
    command = [
        str(Path(sys.executable).parent / "schemathesis"), "run", "--seed", "1", "--request-timeout", "20",
        "--no-color", "--max-examples", os.environ.get("SCHEMATHESIS_EXAMPLES", "15"),
        # What is in a file decides whether a form is good, which no schema says.
        "--exclude-checks", "positive_data_acceptance",
    ]  # fmt: skip
    with serving(made_up, fetcher=Fetcher(MIB, accepts=lambda address: False)) as client:
        if known_job:
            job = post(client, (media / "clip.mp4").read_bytes(), (media / "voice.wav").read_bytes()).json()
            row = made_up.store.claim("test")
            (made_up.workspace.folder(job["id"]) / RESULT).write_bytes((media / "clip.mp4").read_bytes())
            made_up.store.finish(row, JobState.DONE, result=RESULT)
            (tmp_path / "schemathesis.toml").write_text(f'[parameters]\njob_id = "{job["id"]}"\n')
            command += ["--include-path-regex", "job_id", "--exclude-method", "DELETE", "--exclude-path-regex", "retry"]
        command.append(f"{client.base_url}/openapi.json")
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=550)
    print(done.stdout[-1500:])
    assert done.returncode == 0, done.stdout[-6000:]
    assert list(made_up.upload_folder().iterdir()) == []
    assert {path.name for path in tmp_path.iterdir()} <= {
        "workspace",
        "schemathesis.toml",
        ".schemathesis",
        ".hypothesis",
    }
