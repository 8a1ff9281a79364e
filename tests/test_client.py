"""The Python client against the OpenAPI document, and against a live server."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import httpx
import pytest
from pydantic import BaseModel

from latentsync import client as module
from latentsync.client import Client, ClientError, JobEnded
from latentsync.options import OPTIONS
from latentsync.serving.api import create_app
from latentsync.serving.api.limits import ApiLimits
from latentsync.serving.jobs import JobKind, JobState
from latentsync.utils.errors import UserError
from tests.serving.live import make_service, serving
from tests.serving.test_api import finish

JOB_ID = "0" * 32
JOB = {
    "id": JOB_ID, "kind": "lipsync", "state": "done", "position": None, "options": {}, "inputs": {}, "tags": [],
    "progress": {"stage": "", "done": 0, "total": 0, "fraction": 1.0, "eta_seconds": None},
    "created": "2026-01-01T00:00:00Z", "started": None, "finished": None, "attempts": 1, "error": None,
    "expired": False, "links": {"self": "", "events": "", "result": None, "thumbnail": ""},
}  # fmt: skip


@pytest.fixture(scope="module")
def document(tmp_path_factory) -> dict[str, Any]:
    return create_app(make_service(tmp_path_factory.mktemp("client") / "ws")).openapi()


@pytest.mark.parametrize(
    ("own", "theirs"),
    [
        (module.Job, "JobView"),
        (module.Progress, "Progress"),
        (module.Links, "Links"),
        (module.Model, "ModelView"),
        (module.Models, "ModelList"),
        (module.Person, "PersonView"),
        (module.Readiness, "Readiness"),
    ],
)
def test_models_have_the_fields_of_the_document(document, own: type[BaseModel], theirs: str):
    assert set(own.model_fields) == set(document["components"]["schemas"][theirs]["properties"])


def test_words_are_those_of_the_server():
    assert set(get_args(module.State)) == {state.value for state in JobState}
    assert set(get_args(module.Kind)) == {kind.value for kind in JobKind}


# Calls that use each operation with all of its parameters.
CALLS: list[Callable[[Client, Path], object]] = [
    lambda client, file: client.submit(
        file, file, mask=file, tags=["a"], webhook_url="http://a.example", idempotency_key="k", seed=1, keep_fps=True
    ),
    lambda client, file: client.submit(file, script=file, more_audio=[file] * 8),
    lambda client, file: client.submit_batch([{"video": file, "audio": file, "options": {"seed": 1}}]),
    lambda client, file: client.submit_batch([{"video": file, "script": file, "more_audio": [file] * 2}]),
    lambda client, file: client.people(file),
    lambda client, file: client.get(JOB_ID),
    lambda client, file: client.list(states=["done"], tag="a", limit=1, offset=2),
    lambda client, file: list(client.follow(JOB_ID)),
    lambda client, file: client.download(JOB_ID, file.with_name("out.mp4")),
    lambda client, file: client.thumbnail(JOB_ID),
    lambda client, file: client.cancel(JOB_ID),
    lambda client, file: client.retry(JOB_ID),
    lambda client, file: client.delete(JOB_ID),
    lambda client, file: client.models(),
    lambda client, file: client.health(),
    lambda client, file: client.ready(),
    lambda client, file: client.metrics(),
]


def test_every_request_is_documented_and_every_operation_is_used(document, tmp_path):
    used: set[tuple[str, str]] = set()
    sent: set[str] = set()  # fields of POST /v1/jobs

    def serve(request: httpx.Request) -> httpx.Response:
        path = re.sub(JOB_ID, "{job_id}", request.url.path)
        operation = document["paths"][path][request.method.lower()]
        used.add((request.method, path))
        known = {(entry["in"], entry["name"].lower()) for entry in operation.get("parameters", [])}
        assert {("query", name) for name in request.url.params} <= known
        own_headers = {name for name in ("last-event-id", "idempotency-key") if name in request.headers}
        assert {("header", name) for name in own_headers} <= known
        if "requestBody" in operation:
            form = operation["requestBody"]["content"]["multipart/form-data"]["schema"]
            fields = set(re.findall(r'form-data; name="([^"]+)"', request.read().decode("latin-1")))
            assert set(form["required"]) <= fields
            assert form["additionalProperties"] or fields <= set(form["properties"])
            sent.update(fields if path == "/v1/jobs" else ())
        return answer(path)

    file = tmp_path / "a.mp4"
    file.write_bytes(b"x")
    with Client("http://server", transport=httpx.MockTransport(serve)) as client:
        for call in CALLS:
            call(client, file)
    documented = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    assert used == documented
    form = document["paths"]["/v1/jobs"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert set(form["properties"]) - set(OPTIONS) <= sent


def answer(path: str) -> httpx.Response:
    if path.endswith("/events"):
        return httpx.Response(200, text=f"id: 1\nevent: final\ndata: {json.dumps(JOB)}\n\n")
    return httpx.Response(200, json={
        "/v1/jobs": JOB | {"jobs": [JOB]},
        "/v1/batches": {"jobs": [{"job": JOB, "error": None}]},
        "/v1/people": {"people": []},
        "/v1/models": {"models": [], "loras": [], "can_upscale": False, "default": "auto"},
        "/healthz": {"status": "ok", "version": "1"},
        "/readyz": {"ready": True, "problems": []},
    }.get(path, JOB))  # fmt: skip


def test_an_interrupted_stream_resumes(monkeypatch):
    monkeypatch.setattr(module, "RECONNECT_SECONDS", 0.0)
    seen: list[str | None] = []

    def serve(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers.get("last-event-id"))
        if len(seen) == 2:
            raise httpx.ReadError("cut off")
        name, state = ("progress", "running") if len(seen) == 1 else ("final", "done")
        data = json.dumps(JOB | {"state": state})
        return httpx.Response(200, text=f": hello\n\nid: {len(seen)}\nevent: {name}\ndata: {data}\n\n")

    with Client(transport=httpx.MockTransport(serve)) as client:
        assert [job.state for job in client.follow(JOB_ID)] == ["running", "done"]
    assert seen == [None, "1", "1"]


@pytest.mark.parametrize("status", [200, 302, 502])
@pytest.mark.parametrize("content", [b"<html>log in</html>", b"", b"[]", b"{}", b'{"job": 1}', b"\xff"])
def test_an_answer_of_another_service(tmp_path: Path, status: int, content: bytes) -> None:
    """Such as a proxy's: one line of error, whatever is asked for."""
    (tmp_path / "video.mp4").write_bytes(b"video")
    video = tmp_path / "video.mp4"
    transport = httpx.MockTransport(lambda request: httpx.Response(status, content=content))
    with Client("http://server", transport=transport) as client:
        for ask in (
            lambda: client.submit(video, video), lambda: client.submit_batch([{"video": video}]),
            lambda: client.people(video), lambda: client.get(JOB_ID), client.list, lambda: client.cancel(JOB_ID),
            lambda: client.retry(JOB_ID), client.models, client.health, client.ready,
        ):  # fmt: skip
            with pytest.raises(ClientError) as caught:
                ask()
            assert "\n" not in str(caught.value) and caught.value.status == status


def test_a_live_server(tmp_path, media):
    service = make_service(tmp_path / "ws")
    video, audio = media / "clip.mp4", media / "voice.wav"
    with serving(service, limits=ApiLimits(poll_seconds=0.05)) as http, Client(str(http.base_url)) as client:
        assert client.health() and not client.ready().ready and client.models().models
        job = client.submit(video, audio, tags=["a"], seed=7, keep_fps=True)
        assert (job.state, job.options["seed"], job.options["keep_fps"]) == ("queued", 7, True)
        assert [found.id for found in client.list(tag="a", states=["queued"])] == [job.id]
        with pytest.raises(ClientError, match="no_result|has a result") as refused:
            client.download(job, tmp_path / "early.mp4")
        assert refused.value.status == 409 and refused.value.request_id and not (tmp_path / "early.mp4").exists()
        finish(service, job.id, video.read_bytes())
        assert client.wait(job.id).state == "done"
        assert client.download(job, tmp_path / "out.mp4").read_bytes() == video.read_bytes()
        assert client.thumbnail(job.id)[:2] == b"\xff\xd8"
        first, second = client.submit_batch([{"video": video, "audio": audio}, {"video": audio, "audio": audio}])
        assert isinstance(first, module.Job) and isinstance(second, ClientError) and second.code == "invalid_input"
        client.cancel(first.id)
        with pytest.raises(JobEnded, match="cancelled"):
            client.wait(first.id)
        assert client.retry(first.id).state == "queued"
        client.delete(first.id)
        with pytest.raises(ClientError, match="no job"):
            client.get(first.id)
        with pytest.raises(UserError, match="cannot be read"):
            client.submit(tmp_path / "none.mp4", audio)
