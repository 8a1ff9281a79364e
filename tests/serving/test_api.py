"""The HTTP API on a live server; jobs are queued and, where necessary, finished by the test."""

import json
import os
import re
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from latentsync.loading import can_upscale
from latentsync.serving.api.limits import ApiLimits
from latentsync.serving.jobs import JobState
from latentsync.serving.service import JobService
from latentsync.serving.workspace import RESULT
from tests.serving.live import error_of, make_service, serving
from tests.waiting import eventually

QUICK = ApiLimits(poll_seconds=0.05, heartbeat_seconds=0.1)
UNKNOWN = "0" * 32


@pytest.fixture(scope="module")
def service(tmp_path_factory) -> JobService:
    return make_service(tmp_path_factory.mktemp("api") / "workspace")


@pytest.fixture(scope="module")
def client(service) -> Iterator[httpx.Client]:
    with serving(service, allowed_hosts=("127.0.0.1",), limits=QUICK) as client:
        yield client


def submit(client: httpx.Client, media: Path, **options) -> dict:
    files = {
        "video": ("me.mp4", (media / "clip.mp4").read_bytes()),
        "audio": ("voice.wav", (media / "voice.wav").read_bytes()),
    }
    response = client.post("/v1/jobs", files=files, data=options)
    assert response.status_code == 202, response.text
    return response.json()


def finish(service: JobService, job_id: str, content: bytes = bytes(range(256)) * 4) -> None:
    """Do the oldest waiting job, which must be this one, as a worker would."""
    while (row := service.store.claim("test")).id != job_id:
        service.store.finish(row, JobState.FAILED, error="not the one")
    (service.workspace.folder(job_id) / RESULT).write_bytes(content)
    service.store.finish(row, JobState.DONE, result=RESULT)


def test_submitted_jobs_are_queued(client, service, media):
    job = submit(client, media, inference_steps="2", keep_fps="true", seed="")
    assert job["state"] == "queued" and job["kind"] == "lipsync"
    assert job["inputs"] == {"video": "me.mp4", "audio": "voice.wav"}
    assert (job["options"]["inference_steps"], job["options"]["keep_fps"], job["options"]["seed"]) == (2, True, 1247)
    assert job["links"]["result"] is None
    assert client.get(job["links"]["self"]).json() == job
    assert job["id"] in [found["id"] for found in client.get("/v1/jobs", params={"state": "queued"}).json()["jobs"]]
    assert service.input_path(job["id"], "video").read_bytes() == (media / "clip.mp4").read_bytes()
    assert list(service.upload_folder().iterdir()) == []


def test_interpolation_takes_a_video_only(client, media):
    video = {"video": (media / "clip.mp4").read_bytes()}
    response = client.post("/v1/jobs", files=video, data={"kind": "interpolate", "interpolate": "50"})
    assert response.status_code == 202 and response.json()["kind"] == "interpolate"
    assert response.headers["location"] == response.json()["links"]["self"]
    assert error_of(client.post("/v1/jobs", files=video)) == (422, "missing_file")
    both = video | {"audio": (media / "voice.wav").read_bytes()}
    assert error_of(client.post("/v1/jobs", files=both, data={"kind": "interpolate"})) == (422, "invalid_request")


def test_a_mask_is_a_third_file(client, service, media, tmp_path):
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "m.png")
    files = {
        role: (name, (media / name).read_bytes()) for role, name in (("video", "clip.mp4"), ("audio", "voice.wav"))
    }
    mask = {"mask": ("m.png", (tmp_path / "m.png").read_bytes())}
    response = client.post("/v1/jobs", files=files | mask, data={"match_colour": "true", "lora_scale": "1"})
    job = response.json()
    assert response.status_code == 202 and job["inputs"]["mask"] == "m.png" and job["options"]["match_color"]
    assert service.input_path(job["id"], "mask").read_bytes() == mask["mask"][1]
    assert error_of(client.post("/v1/jobs", files=files | {"mask": files["audio"]})) == (422, "invalid_input")
    path = client.post("/v1/jobs", files=files, data={"mask_image_path": str(tmp_path / "m.png")})
    assert error_of(path) == (422, "invalid_input") and "upload the image" in path.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inference_step": "3"}, "unknown option 'inference_step'; did you mean inference_steps?"),
        ({"guidance_scale": "7"}, "guidance_scale must be a number from 1 to 3, not '7'"),
        ({"chunk_batch_size": "0"}, "chunk_batch_size must be a whole number from 1 to 64, or auto, not '0'"),
        ({"enhancer": "gfpgan"}, "enhancer has no effect without enable_upscale; turn that on as well"),
    ],
)
def test_messages_are_those_of_the_command_line(client, media, options, message):
    files = {"video": (media / "clip.mp4").read_bytes(), "audio": (media / "voice.wav").read_bytes()}
    assert client.post("/v1/jobs", files=files, data=options).json()["error"]["message"] == message


@pytest.mark.parametrize(
    "options",
    [{"seed": "x"}, {"seed": "-2"}, {"inference_steps": "1e9"}, {"guidance_scale": "nan"}, {"color": "red"},
     {"solver": "euler"}, {"model": "../../etc/passwd"}, {"lora": "/etc/passwd"}, {"kind": "dance"}, {"face": "a\nb"}],
)  # fmt: skip
def test_wrong_options_are_refused(client, service, media, options):
    files = {"video": (media / "clip.mp4").read_bytes(), "audio": (media / "voice.wav").read_bytes()}
    response = client.post("/v1/jobs", files=files, data=options)
    assert error_of(response)[0] == 422
    assert str(service.settings.workspace) not in response.text
    assert list(service.upload_folder().iterdir()) == []


def test_a_job_is_cancelled_tried_again_and_deleted(client, media):
    job = submit(client, media)
    path = job["links"]["self"]
    assert error_of(client.post(f"{path}/retry")) == (409, "wrong_state")
    assert client.post(f"{path}/cancel").json()["state"] == "cancelled"
    assert client.post(f"{path}/cancel").json()["state"] == "cancelled"
    assert error_of(client.get(f"{path}/result")) == (409, "no_result")
    assert client.post(f"{path}/retry").json()["state"] == "queued"
    assert client.delete(path).status_code == 204
    assert error_of(client.get(path)) == (404, "not_found")
    assert error_of(client.delete(path)) == (404, "not_found")


@pytest.mark.parametrize("route", ["", "/events", "/result", "/thumbnail"])
@pytest.mark.parametrize("job_id", [UNKNOWN, "x", "..%2f..%2fetc", "%00", UNKNOWN + "\u00e9", "A" * 32])
def test_unknown_jobs(client, job_id, route):
    assert error_of(client.get(f"/v1/jobs/{job_id}{route}")) == (404, "not_found")


def test_paths_and_methods_that_there_are_not(client):
    assert error_of(client.get("/nothing")) == (404, "not_found")
    response = client.put("/v1/jobs")
    assert error_of(response) == (405, "method_not_allowed")
    assert set(response.headers["allow"].split(", ")) == {"GET", "POST"}
    assert error_of(client.get("/v1/jobs", params={"limit": "-1"})) == (422, "invalid_request")


def test_results_are_sent_whole_or_in_part(client, service, media):
    job = submit(client, media)
    content = os.urandom(600_000)
    finish(service, job["id"], content)
    path = f"{job['links']['self']}/result"
    whole = client.get(path)
    assert whole.content == content and whole.headers["content-type"] == "video/mp4"
    assert whole.headers["content-disposition"] == f'attachment; filename="{job["id"]}.mp4"'
    part = client.get(path, headers={"Range": "bytes=10-300009"})
    assert part.status_code == 206 and part.content == content[10:300010]
    assert part.headers["content-range"] == "bytes 10-300009/600000" and part.headers["content-length"] == "300000"
    assert client.get(path, headers={"Range": "bytes=-5"}).content == content[-5:]
    several = client.get(path, headers={"Range": "bytes=0-1,4-5"})
    assert several.status_code == 206 and several.headers["content-type"].startswith("multipart/byteranges")
    assert error_of(client.get(path, headers={"Range": "bytes=x"})) == (400, "invalid_range")
    outside = client.get(path, headers={"Range": "bytes=600000-"})
    assert error_of(outside) == (416, "range_not_satisfiable") and outside.headers["content-range"] == "bytes */600000"
    head = client.head(path)
    assert head.status_code == 200 and head.content == b"" and head.headers["content-length"] == "600000"
    etag = whole.headers["etag"]
    assert client.get(path, headers={"If-None-Match": etag}).status_code == 304
    assert client.get(path, headers={"Range": "bytes=0-4", "If-Range": etag}).status_code == 206
    assert client.get(path, headers={"Range": "bytes=0-4", "If-Range": '"other"'}).status_code == 200


def test_a_result_that_is_gone(client, service, media):
    job = submit(client, media)
    finish(service, job["id"])
    (service.workspace.folder(job["id"]) / RESULT).unlink()
    assert error_of(client.get(f"{job['links']['self']}/result")) == (404, "not_found")
    service.store.expire(job["id"])
    assert error_of(client.get(f"{job['links']['self']}/result")) == (404, "not_found")
    assert client.get(job["links"]["self"]).json()["expired"]


def test_thumbnails(client, service, media):
    job = submit(client, media)
    finish(service, job["id"], (media / "clip.mp4").read_bytes())
    image = client.get(job["links"]["thumbnail"])
    assert image.headers["content-type"] == "image/jpeg" and image.content[:2] == b"\xff\xd8"


def events_of(response: httpx.Response) -> Iterator[tuple[str, dict | None]]:
    """(name, data) of each event, ("comment", None) for comments."""
    name = ""
    for line in response.iter_lines():
        if line.startswith(":"):
            yield "comment", None
        elif line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield name, json.loads(line.removeprefix("data: "))


def test_events_follow_a_job_to_its_end(client, service, media):
    job = submit(client, media)
    with client.stream("GET", job["links"]["events"]) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        events = events_of(response)
        assert next(events)[1]["state"] == "queued"
        assert next(events)[0] == "comment"
        finish(service, job["id"])
        last = list(events)[-1]
    assert last[0] == "final" and last[1]["state"] == "done" and last[1]["links"]["result"]
    with client.stream("GET", job["links"]["events"]) as response:
        assert [name for name, _ in events_of(response)] == ["final"]


def test_events_end_when_the_job_is_deleted(client, service, media):
    job = submit(client, media)
    with client.stream("GET", job["links"]["events"]) as response:
        events = events_of(response)
        next(events)
        service.delete(job["id"])
        assert [name for name, _ in events if name != "comment"] == ["deleted"]


def test_streams_are_bounded_and_end_with_the_server(tmp_path, media, monkeypatch):
    monkeypatch.setattr("latentsync.serving.api.server.STOP_SECONDS", None)  # it would wait for a stream forever
    service = make_service(tmp_path / "workspace")
    with serving(service, limits=ApiLimits(event_streams=2, poll_seconds=0.05)) as client:
        path = submit(client, media)["links"]["events"]
        with client.stream("GET", path) as one, client.stream("GET", path) as two:
            lines = [one.iter_lines(), two.iter_lines()]  # kept: a stream ends with its iterator
            assert [next(line) for line in lines] == ["retry: 2000"] * 2
            with client.stream("GET", path) as third:
                third.read()
                assert error_of(third) == (429, "too_many_streams")
        streams = []

        def place_is_given_back() -> bool:
            streams.append(client.stream("GET", path))
            return streams[-1].__enter__().status_code == 200

        assert eventually(place_is_given_back)  # this stream stays open while the server stops


def test_streams_that_come_at_once_are_bounded(tmp_path, media):
    service = make_service(tmp_path / "workspace")
    with serving(service, limits=ApiLimits(event_streams=5, poll_seconds=0.05)) as client:
        path = submit(client, media)["links"]["events"]
        all_answered = threading.Barrier(20)

        def follow(_: int) -> int:
            with client.stream("GET", path) as response:
                all_answered.wait(60)
                return response.status_code

        with ThreadPoolExecutor(20) as pool:
            statuses = list(pool.map(follow, range(20)))
        assert sorted(statuses) == [200] * 5 + [429] * 15


def test_state_of_the_server(client, service, media):
    assert client.get("/healthz").json()["status"] == "ok"
    ready = client.get("/readyz")
    assert ready.status_code == 503 and "no worker is running" in ready.json()["problems"][0]
    service.store.worker_beat("test", os.getpid(), "cpu", ["embedded"])
    assert client.get("/readyz").json() == {"ready": True, "problems": []}
    job = submit(client, media)
    finish(service, job["id"])
    client.request("BREW", "/v1/jobs/" + UNKNOWN)
    text = client.get("/metrics").text
    for line in (
        'latentsync_jobs{state="done"}', "latentsync_queue_length ", "latentsync_workers_alive 1.0",
        'latentsync_recent_job_seconds{quantile="0.5"}', "latentsync_disk_used_bytes ", "latentsync_uploads_active 0.0",
        'latentsync_http_requests_total{method="POST",route="/v1/jobs",status="202"}',
        'latentsync_http_requests_total{method="other",route="/v1/jobs/{job_id}",status="405"}',
    ):  # fmt: skip
        assert f"\n{line}" in text, line
    found = client.get("/v1/models").json()
    models = {model["name"]: model for model in found["models"]}
    assert found["can_upscale"] is can_upscale()
    assert models["embedded"]["present"] and models["embedded"]["resolution"] == 256


def test_the_documentation_names_everything(client):
    document = client.get("/openapi.json").json()
    form = document["paths"]["/v1/jobs"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"][
        "properties"
    ]
    assert {"video", "audio", "kind", "inference_steps", "interpolate"} <= set(form)
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert operation["summary"] and operation["responses"], path
    assert client.get("/docs").status_code == 200


def test_the_root_says_where_to_go(client):
    found = client.get("/").json()
    assert found["docs"] == "/docs" and all(client.get(found[name]).status_code == 200 for name in ("docs", "openapi"))
    assert client.get(found["jobs"]).status_code == 200


def test_the_documentation_works_offline(client):
    pytest.importorskip("fastapi_offline")
    page = client.get("/docs").text
    paths = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert len(paths) == 3 and "://" not in page
    for path in paths:
        assert len(client.get(path).content) > 1000, path
    assert client.get("/docs/assets/../../openapi.py").status_code == 404


def test_a_key_is_needed_where_there_is_one(tmp_path, media):
    key = "correct horse battery staple".replace(" ", "-")
    with serving(make_service(tmp_path / "workspace"), api_key=key) as client:
        for path in ("/v1/jobs", f"/v1/jobs/{UNKNOWN}", "/v1/jobs/x", "/v1/models", "/metrics"):
            refused = client.get(path)
            assert error_of(refused) == (401, "unauthorized") and refused.headers["www-authenticate"]
        for headers in ({"Authorization": f"Bearer {key}"}, {"X-API-Key": key}, {"authorization": f"bearer {key}"}):
            assert client.get("/v1/jobs", headers=headers).status_code == 200
        for headers in (
            {"Authorization": f"Basic {key}"},
            {"X-API-Key": key + "x"},
            {"X-API-Key": b"\xff\xfe"},
            {"X-API-Key": ""},
        ):
            assert error_of(client.get("/v1/jobs", headers=headers)) == (401, "unauthorized")
        assert error_of(client.post("/v1/jobs", content=b"x" * 100_000)) == (401, "unauthorized")
        assert client.get("/healthz").status_code == 200
        assert client.get("/v1/jobs", headers={"Host": "anything.example", "X-API-Key": key}).status_code == 200
        document = client.get("/openapi.json").json()
        assert {"HTTPBearer", "APIKeyHeader"} <= set(document["components"]["securitySchemes"])


def test_named_keys_see_their_own_jobs_only(tmp_path, media):
    keys = {"anna": "a" * 16, "ben": "b" * 16}
    service = make_service(tmp_path / "workspace")
    with serving(service, api_key="m" * 16, named_keys=keys) as client:
        headers = {name: {"X-API-Key": key} for name, key in (keys | {"main": "m" * 16}).items()}
        jobs = {}
        for name in headers:
            client.headers.update(headers[name])
            jobs[name] = submit(client, media)
        client.headers.pop("x-api-key")
        for name, seen in (("anna", ["anna"]), ("ben", ["ben"]), ("main", ["main", "ben", "anna"])):
            found = client.get("/v1/jobs", headers=headers[name]).json()["jobs"]
            assert [job["id"] for job in found] == [jobs[owner]["id"] for owner in seen]
            assert client.get(jobs[name]["links"]["self"], headers=headers[name]).status_code == 200
        for path, method in (
            ("", "GET"), ("", "DELETE"), ("/cancel", "POST"), ("/retry", "POST"), ("/events", "GET"),
            ("/result", "GET"), ("/result", "HEAD"), ("/thumbnail", "GET"),
        ):  # fmt: skip
            for name, other in (("anna", "ben"), ("ben", "main")):
                response = client.request(method, jobs[other]["links"]["self"] + path, headers=headers[name])
                assert response.status_code == 404, (method, path)
                unknown = client.request(method, f"/v1/jobs/{UNKNOWN}{path}", headers=headers[name])
                assert response.text == unknown.text.replace(UNKNOWN, jobs[other]["id"])
        assert client.delete(jobs["anna"]["links"]["self"], headers=headers["main"]).status_code == 204
        assert service.get(jobs["ben"]["id"]).state is JobState.QUEUED
        assert error_of(client.get("/v1/jobs", headers={"X-API-Key": "c" * 16})) == (401, "unauthorized")
        assert error_of(client.get("/v1/jobs")) == (401, "unauthorized")


def test_pages_of_other_sites_are_refused(client):
    assert error_of(client.get("/v1/jobs", headers={"Host": "rebound.example"})) == (421, "wrong_host")
    assert error_of(client.post("/v1/jobs", headers={"Origin": "http://evil.example"})) == (403, "cross_origin")


def test_a_full_queue_is_reported_before_the_upload(tmp_path, media):
    service = make_service(tmp_path / "workspace", max_queue=1)
    with serving(service) as client:
        first = submit(client, media)
        response = client.post("/v1/jobs", files={"video": b"x" * 3_000_000})
        assert error_of(response) == (429, "queue_full") and int(response.headers["retry-after"]) > 0
        client.post(f"{first['links']['self']}/cancel")
        submit(client, media)
        assert error_of(client.post(f"{first['links']['self']}/retry")) == (429, "queue_full")


def test_a_full_disk(tmp_path, media):
    service = make_service(tmp_path / "workspace", min_free_bytes=2**60)
    with serving(service) as client:
        response = client.post("/v1/jobs", files={"video": (media / "clip.mp4").read_bytes()})
        assert error_of(response) == (507, "insufficient_storage")
        assert "the disk is full" in "".join(client.get("/readyz").json()["problems"])


def test_urls_are_refused_unless_they_are_allowed(client):
    response = client.post("/v1/jobs", json={"video_url": "http://example.org/a", "audio_url": "http://example.org/b"})
    assert error_of(response) == (403, "urls_not_allowed")


def test_urls_where_they_are_allowed(tmp_path):
    from latentsync.serving.api.fetch import Fetcher

    with serving(make_service(tmp_path / "workspace"), fetcher=Fetcher(100)) as client:
        inside = {"video_url": "http://127.0.0.1/a", "audio_url": "http://169.254.169.254/"}
        assert error_of(client.post("/v1/jobs", json=inside)) == (422, "refused_url")
        for body in (b"{", b"[]", b'{"video_url": "\\ud800"}', b'{"options": {"seed": NaN}}', b"[" * 50_000):
            response = client.post("/v1/jobs", content=body, headers={"Content-Type": "application/json"})
            assert error_of(response)[0] in (400, 422)
        wrong = client.post("/v1/jobs", json={"video_url": "http://example.org/a", "options": {"crf": 52}})
        assert wrong.json()["error"]["message"] == "crf must be a whole number from 0 to 51, not 52"
        large = client.post("/v1/jobs", content=b" " * (2**20 + 1), headers={"Content-Type": "application/json"})
        assert error_of(large) == (413, "too_large")


def test_uploads_wait_for_a_slot(tmp_path, media):
    service = make_service(tmp_path / "workspace")
    with serving(service, limits=ApiLimits(parallel_uploads=1, wait_for_upload_slot=0.3)) as client:
        head = b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n"
        head += b"Content-Type: multipart/form-data; boundary=B\r\n\r\n"
        with socket.create_connection((client.base_url.host, client.base_url.port)) as slow:
            slow.sendall(head + b"--B\r\n")
            assert eventually(lambda: list(service.upload_folder().iterdir()))
            refused = client.post("/v1/jobs", files={"video": b"x"})
            assert error_of(refused) == (429, "too_many_uploads")
        assert eventually(lambda: not list(service.upload_folder().iterdir()))
        submit(client, media)
    assert list(service.upload_folder().iterdir()) == []
