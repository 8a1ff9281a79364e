"""`python -m scripts.serve`: refusals, and a real server with a real worker, used by the examples."""

import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from latentsync.client import Client, ClientError
from latentsync.serving.api import ApiServer, create_app
from latentsync.serving.api.keys import KEY_VARIABLE, read_key, read_keys_file
from latentsync.utils.errors import UserError
from scripts.serve import allowed_hosts, build_parser, check_exposure, listen, main
from tests.serving.live import make_service
from tests.waiting import HANG_SECONDS

PROJECT_ROOT = Path(__file__).resolve().parents[2]
KEY = "a-key-for-the-test-of-the-server"


@pytest.fixture(autouse=True)
def no_key(monkeypatch) -> None:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", ""])
def test_other_machines_need_a_key(host, tmp_path, capsys):
    assert main(["--host", host, "--workspace", str(tmp_path / "w")]) == 1
    assert "--no_auth" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    assert check_exposure(host, True, False) is False
    assert check_exposure(host, False, True) is False


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_this_machine_needs_none(host):
    assert check_exposure(host, False, False) is True


@pytest.mark.parametrize("key", ["short", "\u00e4" * 20, "with spaces in between", "x" * 16 + "\n\ty"])
def test_keys_that_are_refused(monkeypatch, key):
    monkeypatch.setenv(KEY_VARIABLE, key)
    with pytest.raises(UserError, match=KEY_VARIABLE):
        read_key()


def test_a_key_and_no_auth_contradict(monkeypatch, capsys):
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    assert main(["--no_auth"]) == 1
    assert "drop one" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("anna KEY", "line 1: write `name: key`"),
        ("# comment\n\na/b: KEY", "line 3: write `name: key`"),
        ("anna: short", "line 1: the key must have 16 or more"),
        ("anna: KEY\nanna: KEY2", "line 2: the name anna is used twice"),
        ("anna: KEY\nben: KEY", "line 2: the key of ben is used twice"),
        ("# none", "contains no keys"),
        (None, "cannot be read"),
    ],
)
def test_keys_files_that_are_refused(tmp_path, capsys, content, problem):
    path = tmp_path / "keys"
    if content is not None:
        path.write_text(content.replace("KEY", KEY))
    assert main(["--keys_file", str(path), "--workspace", str(tmp_path / "w")]) == 1
    message = capsys.readouterr().err
    assert problem in message and message.count("\n") == 1 and KEY not in message


def test_a_keys_file(tmp_path):
    (tmp_path / "keys").write_text(f"# team\nanna: {KEY}\n\nben.b : {KEY}:2\n")
    assert read_keys_file(tmp_path / "keys") == {"anna": KEY, "ben.b": f"{KEY}:2"}
    assert main(["--keys_file", str(tmp_path / "keys"), "--no_auth"]) == 1


@pytest.mark.parametrize("option", ["--max_upload_mb", "--quota_gb"])
def test_sizes_that_are_none(option, capsys):
    with pytest.raises(SystemExit, match="2"):
        main([option, "nan"])
    assert "invalid size value" in capsys.readouterr().err


def test_host_names_are_checked_where_a_page_could_reach_the_server():
    options = build_parser().parse_args([])
    assert "localhost" in allowed_hosts(options, False, True)
    assert allowed_hosts(options, True, True) is None
    assert allowed_hosts(options, False, False) is None
    options = build_parser().parse_args(["--allowed_hosts", "sync.example"])
    assert allowed_hosts(options, True, False) == ["sync.example"]


def test_a_port_that_is_taken(tmp_path):
    with listen("127.0.0.1", 0) as taken, pytest.raises(UserError, match="cannot listen"):
        listen("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(UserError, match="65535"):
        listen("127.0.0.1", 99999)


def test_ignored_signals_stay_ignored(tmp_path):
    server = ApiServer(create_app(make_service(tmp_path / "workspace")))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with server.capture_signals():
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) == server.handle_exit
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_wrong_settings(tmp_path, capsys):
    assert main(["--workers", "-1", "--workspace", str(tmp_path / "w")]) == 1
    assert main(["--model", "unknown", "--workspace", str(tmp_path / "w")]) == 1
    with pytest.raises(SystemExit) as caught:
        main(["--port", "x"])
    assert caught.value.code == 2


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[tuple[subprocess.Popen, str, Path]]:
    """A server process with a worker and a key: (process, URL, workspace)."""
    folder = tmp_path_factory.mktemp("serve")
    environment = os.environ | {KEY_VARIABLE: KEY, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "scripts.serve", "--port", "0", "--workspace", str(folder / "workspace")]
    with (folder / "log").open("w+") as log:
        process = subprocess.Popen(command, cwd=PROJECT_ROOT, env=environment, stdout=log, stderr=log)
        try:
            url = wait_for(lambda: re.search(r"listening on (\S+)", (folder / "log").read_text()), process).group(1)
            wait_for(
                lambda: httpx.get(f"{url}/readyz", trust_env=False, timeout=HANG_SECONDS).status_code == 200, process
            )
            yield process, url, folder / "workspace"
        finally:
            process.kill()
            process.wait()


def wait_for(look, process: subprocess.Popen, seconds: float = HANG_SECONDS):
    """What `look` finds, as soon as it finds something."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.2)
    return found


def frames_of(path: Path) -> int:
    import av

    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


@pytest.mark.slow
def test_the_client(server, media, tmp_path):
    _, url, _ = server
    with Client(url, KEY) as client:
        queued = client.submit(media / "clip.mp4", media / "voice.wav", inference_steps=1, guidance_scale=1)
        client.download(client.wait(queued.id), tmp_path / "result.mp4")
    assert frames_of(tmp_path / "result.mp4") == 10
    with Client(url, "x" * 16) as unauthorized, pytest.raises(ClientError, match="API key"):
        unauthorized.submit(media / "clip.mp4")


@pytest.mark.slow
@pytest.mark.parametrize("example", [["bash", "examples/curl.sh"], [sys.executable, "examples/client.py"]])
def test_the_examples_as_commands(server, media, tmp_path, example):
    _, url, _ = server
    out = tmp_path / "result.mp4"
    files = [str(media / "clip.mp4"), str(media / "voice.wav"), str(out)]
    options = ["inference_steps=1", "guidance_scale=1"] if example[0] == "bash" else []
    environment = os.environ | {"LATENTSYNC_URL": url, KEY_VARIABLE: KEY}
    done = subprocess.run(
        [*example, *files, *options], cwd=PROJECT_ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert frames_of(out) == 10
    refused = subprocess.run(
        [*example, files[1], *files[1:]], cwd=PROJECT_ROOT, env=environment, capture_output=True, text=True
    )
    assert refused.returncode != 0 and "voice.wav" in refused.stderr


@pytest.mark.slow
def test_sigterm_gives_running_jobs_back(server, media):
    """Last in this file: it ends the server."""
    process, url, workspace = server
    with httpx.Client(base_url=url, headers={"X-API-Key": KEY}, trust_env=False, timeout=HANG_SECONDS) as client:
        files = {
            "video": ("a.mp4", (media / "clip.mp4").read_bytes()),
            "audio": ("b.wav", (media / "voice.wav").read_bytes()),
        }
        job = client.post("/v1/jobs", files=files, data={"inference_steps": "100"}).json()
        path = job["links"]["self"]
        wait_for(lambda: client.get(path).json()["state"] == "running", process)
        with client.stream("GET", job["links"]["events"]) as events:
            lines = events.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            assert process.wait(HANG_SECONDS) == 0
            assert "event: final" not in list(lines)
    with pytest.raises(OSError), socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), 1):
        pass
    with sqlite3.connect(workspace / "jobs.sqlite") as db:
        assert db.execute("SELECT state FROM jobs WHERE id = ?", (job["id"],)).fetchone() == ("queued",)
