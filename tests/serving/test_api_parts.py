"""Parts of the API that need no server: multipart, access, addresses, signatures."""

import base64
import json
import logging
from datetime import datetime
from pathlib import Path

import pytest

from latentsync.serving.api.access import BrowserGuard, is_loopback
from latentsync.serving.api.errors import ApiError
from latentsync.serving.api.fetch import Fetcher, is_public
from latentsync.serving.api.multipart import FormReceiver, display_name
from latentsync.serving.api.webhooks import SECRET_VARIABLE, read_secret, sign
from latentsync.utils.errors import UserError
from latentsync.utils.logs import JsonFormatter, request_id


@pytest.mark.parametrize(
    "name, shown",
    [
        ("../../etc/passwd", "passwd"),
        ("C:\\Users\\me\\clip.mp4", "clip.mp4"),
        ("a\0b\r\nc.mp4", "abc.mp4"),
        ("..", "video"),
        ("", "video"),
        ("/", "video"),
        ("evil\u202egpj.mp4", "evilgpj.mp4"),
        ("x" * 500 + ".mp4", "x" * 116 + ".mp4"),
        ("Zo\u00eb \u4f60.mp4", "Zo\u00eb \u4f60.mp4"),
    ],
)
def test_display_names(name, shown):
    assert display_name(name, "video") == shown


def receiver(folder: Path, content_type: str = "multipart/form-data; boundary=B", **limits) -> FormReceiver:
    limits = {"max_file_bytes": 100, "max_field_bytes": 20, "max_parts": 4, **limits}
    return FormReceiver(content_type, folder, frozenset({"video", "audio"}), **limits)


def part(name: str, value: bytes, filename: str | None = None) -> bytes:
    disposition = f'form-data; name="{name}"' + (f'; filename="{filename}"' if filename is not None else "")
    return b"--B\r\nContent-Disposition: " + disposition.encode() + b"\r\n\r\n" + value + b"\r\n"


END = b"--B--\r\n"


@pytest.mark.parametrize("step", [1, 7, 1000])
def test_a_form_arrives_in_pieces_of_any_size(tmp_path, step):
    taker = receiver(tmp_path)
    data = part("seed", b"7") + part("video", b"\r\n--B-\0data\r\n", "../../x.mp4") + part("audio", b"", "a") + END
    for start in range(0, len(data), step):
        taker.feed(data[start : start + step])
    taker.finish()
    taker.close()
    assert taker.fields == {"seed": "7"}
    assert {role: (file.name, file.size) for role, file in taker.files.items()} == {
        "video": ("x.mp4", 13),
        "audio": ("a", 0),
    }
    assert taker.files["video"].path == tmp_path / "video"
    assert (tmp_path / "video").read_bytes() == b"\r\n--B-\0data\r\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["audio", "video"]


@pytest.mark.parametrize(
    "data, status",
    [
        (part("video", b"data", "x"), 400),  # no last boundary
        (b"--C\r\n", 400),
        (b"--B\r\nContent-Disposition form-data\r\n\r\n", 400),
        (b"--B\r\nContent-Disposition: form-data\r\n\r\nx\r\n" + END, 400),  # no name
        (b"--B\r\nX: " + b"y" * 9000 + b"\r\n\r\n", 400),
        (b"--B\r\n" + b"A: b\r\n" * 100 + b"\r\n\r\n", 400),
        (b"", 400),
        (part("video", b"x" * 101, "x") + END, 413),
        (part("seed", b"x" * 21) + END, 413),
        (b"".join(part(f"f{i}", b"") for i in range(5)) + END, 413),
        (part("video", b"text") + END, 422),
        (part("extra", b"file", "x") + END, 422),
        (part("../video", b"file", "x") + END, 422),
        (part("seed", b"1") + part("seed", b"2") + END, 422),
        (part("video", b"1", "a") + part("video", b"2", "b") + END, 422),
        (part("seed", b"\xff\xfe") + END, 422),
    ],
)
def test_bad_forms_are_refused(tmp_path, data, status):
    taker = receiver(tmp_path)
    with pytest.raises(ApiError) as caught:
        taker.feed(data)
        taker.finish()
    taker.close()
    assert caught.value.status == status
    assert {path.name for path in tmp_path.iterdir()} <= {"video", "audio"}


@pytest.mark.parametrize(
    "content_type", ["multipart/form-data", "multipart/form-data; boundary=", f"x; boundary={'b' * 300}"]
)
def test_boundaries_that_cannot_be_used(tmp_path, content_type):
    with pytest.raises(ApiError, match="multipart"):
        receiver(tmp_path, content_type)


@pytest.mark.parametrize(
    "address, expected",
    [
        ("93.184.215.14", True),
        ("2606:4700::1111", True),
        ("::ffff:8.8.8.8", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("::1", False),
        ("::", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("::ffff:127.0.0.1", False),
        ("64:ff9b::7f00:1", False),
        ("2002:7f00:1::", False),
    ],
)
def test_public_addresses(address, expected):
    assert is_public(address) is expected


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://example.org/x",
        "http://",
        "http:///x",
        "//example.org/x",
        "http://me:secret@example.org/x",
        "http://example.org:22/x",
        "http://[::1/x",
        "http://example.org:99999/",
        "http://\u00e9xample.org/",
        "http://private.example/",
        "http://mixed.example/",
        "http://unknown.example/",
    ],
)
def test_addresses_that_are_not_fetched(url):
    def resolver(host: str, port: int) -> list[str]:
        if host == "unknown.example":
            raise OSError("no such host")
        return {"private.example": ["10.0.0.1"], "mixed.example": ["8.8.8.8", "127.0.0.1"]}.get(host, ["8.8.8.8"])

    with pytest.raises(ApiError) as caught:
        Fetcher(100, resolver=resolver).check(url, "video")
    assert caught.value.status == 422


def test_the_connection_goes_to_the_address_that_was_checked():
    target = Fetcher(100, resolver=lambda host, port: ["2606:4700::1111"]).check("https://example.org/a?b=c#d", "video")
    assert target.pinned_url == "https://[2606:4700::1111]:443/a?b=c"
    assert target.host == "example.org"


@pytest.mark.parametrize(
    "host, expected",
    [("127.0.0.1", True), ("localhost", True), ("::1", True), ("127.9.9.9", True), ("0.0.0.0", False), ("", False),
     ("::", False), ("192.168.0.1", False), ("no such host", False)],
)  # fmt: skip
def test_loopback(host, expected):
    assert is_loopback(host) is expected


def test_signatures_are_those_of_the_specification():
    """The example of the Standard Webhooks specification."""
    secret = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    body = b'{"test": 2432232314}'
    signature = sign(secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body)
    assert signature == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@pytest.mark.parametrize("text", ["short", "whsec_not base64!!!!", "whsec_"])
def test_secrets_that_are_none(monkeypatch, text):
    monkeypatch.setenv(SECRET_VARIABLE, text)
    with pytest.raises(UserError, match=SECRET_VARIABLE):
        read_secret()


def test_a_secret_in_base64(monkeypatch):
    monkeypatch.setenv(SECRET_VARIABLE, "whsec_" + base64.b64encode(b"k" * 24).decode())
    assert read_secret() == b"k" * 24
    monkeypatch.delenv(SECRET_VARIABLE)
    assert read_secret() is None


def test_log_lines_as_json():
    record = logging.LogRecord("uvicorn", logging.INFO, "f", 1, "a %s", ("b",), None)
    token = request_id.set("r-1")
    try:
        line = json.loads(JsonFormatter().format(record))
    finally:
        request_id.reset(token)
    assert (line["message"], line["level"], line["request_id"]) == ("a b", "info", "r-1")
    assert datetime.fromisoformat(line["time"]).tzinfo is not None
    assert "request_id" not in json.loads(JsonFormatter().format(record))


@pytest.mark.parametrize(
    "method, headers, status",
    [
        ("GET", {"host": "localhost:8000"}, None),
        ("GET", {"host": "[::1]:8000"}, None),
        ("POST", {"host": "127.0.0.1:8000", "origin": "http://127.0.0.1:8000"}, None),
        ("GET", {"host": "rebound.example:8000"}, 421),
        ("GET", {}, 421),
        ("GET", {"host": "localhost.evil.example"}, 421),
        ("POST", {"host": "localhost:8000", "origin": "http://evil.example"}, 403),
        ("POST", {"host": "localhost:8000", "origin": "http://localhost:3000"}, 403),
        ("POST", {"host": "localhost:8000", "origin": "null"}, 403),
        ("GET", {"host": "localhost:8000", "origin": "http://[broken"}, 403),
        ("GET", {"host": "localhost:8000", "sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}, 403),
        ("GET", {"host": "localhost:8000", "sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}, None),
        ("POST", {"host": "localhost:8000", "sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}, 403),
        ("POST", {"host": "localhost:8000", "sec-fetch-site": "same-origin"}, None),
    ],
)
def test_pages_of_others_are_kept_out(method, headers, status):
    guard = BrowserGuard(None, hosts=("localhost", "127.0.0.1", "[::1]"))
    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    refusal = guard._refusal({"type": "http", "method": method, "headers": pairs})
    assert (refusal.status if refusal else None) == status
