"""Fifty visitors use the page at once: each loads it, uploads a video, sees its faces and submits a job."""

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from latentsync.serving.jobs import JobState
from tests.pipelines.scenes import clip
from tests.serving.fakes import FakeRunner, service_in, wait_for, working
from tests.waiting import HANG_SECONDS

gr = pytest.importorskip("gradio")
pytestmark = pytest.mark.slow

from latentsync.serving.page.app import serve_page  # noqa: E402

VISITORS = 50


@pytest.fixture
def service(tmp_path):
    return service_in(tmp_path / "ws")


@pytest.fixture
def url(service, monkeypatch, capsys) -> Iterator[str]:
    pages: list[gr.Blocks] = []
    monkeypatch.setattr("latentsync.serving.page.app.wait_for_signal", pages.append)
    serve_page(service, "127.0.0.1", 0)
    yield re.search(r"listening on (\S+)", capsys.readouterr().out)[1]
    pages[0].close()


class Visitor:
    """What a browser does: reads the page's description, uploads files, sends events and waits for their outcome."""

    def __init__(self, url: str, name: str) -> None:
        self.http, self.session = httpx.Client(base_url=url, timeout=HANG_SECONDS, trust_env=False), name
        assert self.http.get("/").status_code == 200
        self.config = self.http.get("/config").json()
        self.parts = {part["id"]: part for part in self.config["components"]}

    def upload(self, path: Path) -> dict[str, Any]:
        answer = self.http.post("/gradio_api/upload", files={"files": (path.name, path.read_bytes())})
        return {"path": answer.json()[0], "orig_name": path.name, "meta": {"_type": "gradio.FileData"}}

    def send(self, elem_id: str, event: str, given: dict[str, Any]) -> list[Any]:
        """The outputs of an event of the component `elem_id`. given: values by elem_id; others keep theirs."""
        ids = {part["id"] for part in self.parts.values() if part["props"].get("elem_id") == elem_id}
        handler = next(
            found
            for found in self.config["dependencies"]
            if any(target in ids and name == event for target, name in map(tuple, found["targets"])) and found["inputs"]
        )
        inputs = [self.parts[number]["props"] for number in handler["inputs"]]
        data = [given.get(props.get("elem_id"), props.get("value")) for props in inputs]
        body = {"data": data, "fn_index": handler["id"], "session_hash": self.session, "trigger_id": min(ids)}
        self.http.post("/gradio_api/queue/join", json=body).raise_for_status()
        with self.http.stream("GET", "/gradio_api/queue/data", params={"session_hash": self.session}) as stream:
            for line in stream.iter_lines():
                message = json.loads(line.removeprefix("data: ")) if line.startswith("data: ") else {}
                if message.get("msg") == "process_completed":
                    assert message["success"], message
                    return message["output"]["data"]
        raise AssertionError(f"no outcome of {elem_id}")


def test_fifty_visitors_at_once(service, url, tmp_path):
    scene = clip(tmp_path / "scene.mp4", 5, tone_seconds=0.2)

    def visit(number: int) -> None:
        visitor = Visitor(url, f"visitor{number}")
        given = {"video": visitor.upload(scene), "audio": visitor.upload(scene)}
        seen = visitor.send("video", "change", given)
        assert any("preview" in str(value) or "image" in str(value) for value in seen)
        visitor.send("speak", "click", given | {"seed": number})

    with working(service, FakeRunner()):
        with ThreadPoolExecutor(VISITORS) as pool:
            list(pool.map(visit, range(VISITORS)))
        jobs = [wait_for(service, job.id) for job in service.list(limit=2 * VISITORS)]
    assert sorted(job.options.seed for job in jobs) == list(range(VISITORS))
    assert {job.state for job in jobs} == {JobState.DONE}
