"""The download tool against a hub of its own on this machine."""

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from filelock import FileLock

from latentsync.utils import registry
from latentsync.utils.registry import CheckpointFile, Entry
from tests.waiting import HANG_SECONDS
from tools import download_checkpoints, resumable

REPO, REVISION = "someone/model", "0" * 40
CONTENT = bytes(range(256)) * 40_000


class Hub(ThreadingHTTPServer):
    """Answers like the public hub for one file; `cut_at` ends the next answer after so many bytes."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.content = CONTENT
        self.cut_at: int | None = None
        self.ranges: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class HubHandler(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.server.ranges.append(self.headers.get("Range"))
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        content = self.server.content
        wanted = self.headers.get("Range") if body else None
        start = int(wanted.removeprefix("bytes=").split("-")[0]) if wanted else 0
        if self.path not in ("/", f"/{REPO}/resolve/{REVISION}/weights/model.pt"):
            self.send_error(404)
            return
        self.send_response(206 if wanted else 200)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", REVISION)
        self.send_header("Content-Length", str(len(content) - start))
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if body:
            cut_at, self.server.cut_at = self.server.cut_at, None
            self.wfile.write(content[start:cut_at])
            self.close_connection = True

    def log_message(self, *_arguments: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub() as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        digest = hashlib.sha256(CONTENT).hexdigest()
        file = CheckpointFile("models/final.pt", REPO, "weights/model.pt", len(CONTENT), digest)
        monkeypatch.setitem(registry.REVISIONS, REPO, REVISION)
        monkeypatch.setitem(registry.REGISTRY, "small", Entry("a small model", "MIT", (file,)))
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setattr(resumable, "PAUSE_SECONDS", 0)
        yield server
        server.shutdown()


def run(checkpoints: Path, *arguments: str) -> int:
    return download_checkpoints.main([*arguments, "--checkpoints-dir", str(checkpoints)])


def files_under(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())


def test_download_under_its_final_name(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert run(tmp_path, "--model", "small") == 0
    assert (tmp_path / "models/final.pt").read_bytes() == CONTENT
    assert files_under(tmp_path) == ["models/final.pt"]
    assert "MIT" in capsys.readouterr().out
    requests = len(hub.ranges)
    assert run(tmp_path, "--model", "small") == 0
    assert "present" in capsys.readouterr().out
    assert len(hub.ranges) == requests  # nothing is asked for again


def test_resume_after_a_cut(hub: Hub, tmp_path: Path) -> None:
    hub.cut_at = 4_000_000
    assert run(tmp_path, "--model", "small") == 0
    assert (tmp_path / "models/final.pt").read_bytes() == CONTENT
    first, second = hub.ranges
    assert first is None
    assert 0 < int(second.removeprefix("bytes=").rstrip("-")) <= 4_000_000


def test_interrupted_run_is_continued_by_the_next(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    hub.cut_at = 4_000_000
    with monkeypatch.context() as patch:  # Ctrl-C while it waits to try again
        patch.setattr(resumable.time, "sleep", interrupt)
        assert run(tmp_path, "--model", "small") == 130
    assert capsys.readouterr().err.strip().endswith("the same command resumes")
    assert not (tmp_path / "models").exists()
    assert run(tmp_path, "--model", "small") == 0
    assert hub.ranges[-1] is not None
    assert (tmp_path / "models/final.pt").read_bytes() == CONTENT


def interrupt(_seconds: float) -> None:
    raise KeyboardInterrupt


def test_second_run_at_the_same_time_is_refused(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    staging = tmp_path / download_checkpoints.STAGING
    staging.mkdir()
    with FileLock(staging / f"{hashlib.sha256(CONTENT).hexdigest()}.lock"):
        assert run(tmp_path, "--model", "small") == 1
    assert "another download" in capsys.readouterr().err


@pytest.mark.parametrize("content", [CONTENT[:-1] + b"!", CONTENT[:-1]])
def test_damaged_content_is_refused(hub: Hub, tmp_path: Path, content: bytes, capsys: pytest.CaptureFixture) -> None:
    hub.content = content
    assert run(tmp_path, "--model", "small") == 1
    message = capsys.readouterr().err
    assert "models/final.pt" in message and message.count("\n") == 1
    assert not (tmp_path / "models").exists()
    hub.content = CONTENT
    assert run(tmp_path, "--model", "small") == 0
    assert (tmp_path / "models/final.pt").read_bytes() == CONTENT


def test_absent_on_the_hub(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    file = CheckpointFile("other.pt", REPO, "other.pt")
    monkeypatch.setitem(registry.REGISTRY, "other", Entry("", "MIT", (file,)))
    assert run(tmp_path, "--model", "other") == 1
    message = capsys.readouterr().err
    assert f"{REPO}/other.pt" in message and message.count("\n") == 1


def test_offline_is_one_line(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert run(tmp_path, "--model", "small") == 1
    message = capsys.readouterr().err
    assert "not reachable" in message and message.count("\n") == 1
    assert files_under(tmp_path) == []


def test_silent_server_is_given_up(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(download_checkpoints, "GIVE_UP_SECONDS", 0.2)
    given_up = threading.Event()
    monkeypatch.setattr(HubHandler, "do_HEAD", lambda _handler: given_up.wait(HANG_SECONDS))
    assert run(tmp_path, "--model", "small") == 1
    assert "no answer" in capsys.readouterr().err
    given_up.set()


def test_list_and_unknown_names(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert run(tmp_path, "--list") == 0
    listing = capsys.readouterr().out
    assert all(name in listing for name in registry.REGISTRY)
    assert run(tmp_path, "--model", "nothing") == 1
    assert "choose one of" in capsys.readouterr().err
    assert run(tmp_path, "--model", "embedded") == 1
    assert "check it out again" in capsys.readouterr().err


def test_all_leaves_out_what_needs_a_decision() -> None:
    names = download_checkpoints.hub_names()
    assert {"latentsync-1.6", "auxiliary"} <= set(names)
    assert not {"buffalo_l", "embedded"} & set(names)


def test_insightface_pack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    file = CheckpointFile("auxiliary/models/buffalo_l/det.onnx", size=3, sha256=hashlib.sha256(b"abc").hexdigest())
    monkeypatch.setitem(registry.REGISTRY, "buffalo_l", Entry("", "non-commercial", (file,)))
    monkeypatch.setattr(download_checkpoints, "check_reachable", lambda _url: None)
    content = b"xyz"

    def download(kind: str, name: str, root: str) -> str:
        folder = Path(root) / kind / name
        folder.mkdir(parents=True)
        (folder / "det.onnx").write_bytes(content)
        return str(folder)

    monkeypatch.setattr("insightface.utils.storage.download", download)
    assert run(tmp_path, "--model", "buffalo_l") == 1
    assert "SHA-256" in capsys.readouterr().err
    content = b"abc"
    assert run(tmp_path, "--model", "buffalo_l") == 0
    assert files_under(tmp_path) == [file.path]
