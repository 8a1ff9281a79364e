"""The download tool against a local hub."""

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import _http

from latentsync.checkpoints import files as checkpoint_files
from latentsync.checkpoints import registry
from latentsync.checkpoints.registry import CheckpointFile, Entry
from tools import download_checkpoints

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
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with Hub() as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        digest = hashlib.sha256(CONTENT).hexdigest()
        file = CheckpointFile("models/final.pt", REPO, "weights/model.pt", len(CONTENT), digest)
        monkeypatch.setitem(checkpoint_files.REVISIONS, REPO, REVISION)
        monkeypatch.setitem(registry.REGISTRY, "small", Entry("a small model", "MIT", (file,)))
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        # Read from HF_HOME when huggingface_hub is imported.
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path_factory.mktemp("hub_cache")))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1_000_000)
        monkeypatch.setattr(_http.time, "sleep", lambda _seconds: None)  # between attempts
        yield server
        server.shutdown()


def run(checkpoints: Path, *arguments: str) -> int:
    return download_checkpoints.main([*arguments, "--checkpoints-dir", str(checkpoints)])


def files_under(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())


def test_download_appears_under_its_path(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert run(tmp_path, "--model", "small") == 0
    assert (tmp_path / "models/final.pt").read_bytes() == CONTENT
    assert files_under(tmp_path) == ["models/final.pt"]
    assert "MIT" in capsys.readouterr().out
    requests = len(hub.ranges)
    assert run(tmp_path, "--model", "small") == 0
    assert "present" in capsys.readouterr().out
    assert len(hub.ranges) == requests  # nothing is requested again


def test_cached_file_is_linked_into_another_folder(hub: Hub, tmp_path: Path) -> None:
    for folder in ("first", "second"):
        assert run(tmp_path / folder, "--model", "small") == 0
    assert (tmp_path / "second/models/final.pt").read_bytes() == CONTENT
    assert len(hub.ranges) == 1


def test_link_into_the_cache_is_known_by_its_hash(hub: Hub, tmp_path: Path) -> None:
    assert run(tmp_path, "--model", "small") == 0
    path, (file,) = tmp_path / "models/final.pt", registry.REGISTRY["small"].files
    assert path.resolve().name == file.sha256 and file.may_be(path)
    assert not CheckpointFile("models/final.pt", sha256="0" * 64, size=len(CONTENT)).may_be(path)


def test_resume_after_a_cut(hub: Hub, tmp_path: Path) -> None:
    hub.cut_at = 4_000_000
    for _ in range(2):  # a hub client that does not retry by itself resumes in the next run
        code = run(tmp_path, "--model", "small")
    assert code == 0
    assert (tmp_path / "models/final.pt").read_bytes() == CONTENT
    first, *later = hub.ranges
    assert first is None
    assert 0 < int(later[0].removeprefix("bytes=").rstrip("-")) <= 4_000_000


@pytest.mark.parametrize("content", [CONTENT[:-1] + b"!", CONTENT[:-1]])
def test_damaged_content_is_refused(hub: Hub, tmp_path: Path, content: bytes, capsys: pytest.CaptureFixture) -> None:
    hub.content = content
    assert run(tmp_path, "--model", "small") == 1
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("error: ") and "models/final.pt" in message
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
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("error: ") and f"{REPO}/other.pt" in message


def test_offline(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert run(tmp_path, "--model", "small") == 1
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("error: ") and "not reachable" in message and "HF_ENDPOINT" in message
    assert files_under(tmp_path) == []


def test_release_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    source = tmp_path / "source.pth"
    source.write_bytes(CONTENT)
    digest = hashlib.sha256(CONTENT).hexdigest()
    for name, sha256 in (("good", digest[:8]), ("bad", "0" * 8)):
        file = CheckpointFile(f"{name}.pth", url=source.as_uri(), sha256=sha256)
        monkeypatch.setitem(registry.REGISTRY, name, Entry("", "MIT", (file,)))
    assert run(tmp_path / "checkpoints", "--model", "good") == 0
    assert (tmp_path / "checkpoints/good.pth").read_bytes() == CONTENT
    assert run(tmp_path / "checkpoints", "--model", "bad") == 1
    assert "SHA-256" in capsys.readouterr().err
    assert files_under(tmp_path / "checkpoints") == ["good.pth"]


def test_list_and_unknown_names(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert run(tmp_path, "--list") == 0
    listing = capsys.readouterr().out
    assert all(name in listing for name in registry.REGISTRY)
    assert run(tmp_path, "--model", "nothing") == 1
    assert "choose one of" in capsys.readouterr().err
    assert run(tmp_path, "--model", "embedded") == 1
    assert "check it out again" in capsys.readouterr().err


def test_all_excludes_models_that_need_a_decision() -> None:
    names = download_checkpoints.downloadable_names()
    assert {"latentsync-1.6", "auxiliary", "realesrgan"} <= set(names)
    assert not {"buffalo_l", "embedded"} & set(names)


def test_insightface_pack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    file = CheckpointFile("auxiliary/models/buffalo_l/det.onnx", size=3, sha256=hashlib.sha256(b"abc").hexdigest())
    monkeypatch.setitem(
        registry.REGISTRY, "buffalo_l", Entry("", "non-commercial", (file,), insightface_pack="buffalo_l")
    )
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
