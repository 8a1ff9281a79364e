"""Tags, idempotency keys, batches, webhooks, request ids, and streams that are resumed, on a live server."""

import base64
import io
import json
import threading
import time
from collections.abc import Iterator
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
from PIL import Image

from latentsync.options import MAX_TEXT
from latentsync.serving.api.fetch import Fetcher
from latentsync.serving.api.limits import ApiLimits
from latentsync.serving.api.webhooks import DELAYS, WebhookSender, sign
from latentsync.serving.jobs import JobState
from latentsync.serving.service import JobService
from latentsync.serving.supervisor import Slot
from tests.pipelines.scenes import clip, draw_scene
from tests.serving.live import error_of, make_service, serving
from tests.serving.test_api import events_of, finish, submit

SECRET = b"a secret of 24 characters"


@pytest.fixture(scope="module")
def service(tmp_path_factory) -> JobService:
    return make_service(tmp_path_factory.mktemp("extras") / "workspace")


@pytest.fixture(scope="module")
def client(service) -> Iterator[httpx.Client]:
    with serving(service, limits=ApiLimits(poll_seconds=0.05, heartbeat_seconds=0.1)) as client:
        yield client


def files_of(media) -> dict:
    return {
        "video": ("me.mp4", (media / "clip.mp4").read_bytes()),
        "audio": ("voice.wav", (media / "voice.wav").read_bytes()),
    }


def test_times_are_iso_with_a_zone(client, media):
    job = submit(client, media)
    assert datetime.fromisoformat(job["created"]).utcoffset().total_seconds() == 0
    assert job["started"] is None and job["progress"]["fraction"] == 0


def test_tags_find_jobs(client, media):
    first = submit(client, media, tags="autumn, draft ,")
    submit(client, media, tags="spring")
    assert first["tags"] == ["autumn", "draft"]
    for tag, number in (("draft", 1), ("autumn", 1), ("winter", 0)):
        assert len(client.get("/v1/jobs", params={"tag": tag}).json()["jobs"]) == number
    for tags in ("x" * 51, ",".join("abcdefghijk"), "a\nb"):
        refused = client.post("/v1/jobs", files=files_of(media), data={"tags": tags})
        assert error_of(refused) == (422, "invalid_options") and "^" not in refused.text


def test_a_repeated_submission_returns_the_first_job(client, service, media):
    headers = {"Idempotency-Key": "order-1"}
    first = client.post("/v1/jobs", files=files_of(media), headers=headers)
    again = client.post("/v1/jobs", files=files_of(media), headers=headers)
    assert (first.status_code, again.status_code) == (202, 200)
    assert first.json()["id"] == again.json()["id"] and again.headers["location"] == first.headers["location"]
    other = client.post("/v1/jobs", files=files_of(media), headers={"Idempotency-Key": "order-2"})
    assert other.json()["id"] != first.json()["id"]
    assert error_of(client.post("/v1/jobs", headers={"Idempotency-Key": "a b"})) == (422, "invalid_request")


def test_simultaneous_submissions_with_one_key_are_one_job(client, media):
    answers: list[httpx.Response] = []

    def send() -> None:
        answers.append(client.post("/v1/jobs", files=files_of(media), headers={"Idempotency-Key": "race"}))

    threads = [threading.Thread(target=send) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({answer.json()["id"] for answer in answers}) == 1


def test_a_batch_shares_files_and_tells_each_outcome(client, service, media):
    files = {
        "anna.mp4": ("anna.mp4", (media / "clip.mp4").read_bytes()),
        "line.wav": ("line.wav", (media / "voice.wav").read_bytes()),
        "bad.wav": ("bad.wav", b"no audio"),
    }
    jobs = [
        {"video": "anna.mp4", "audio": "line.wav", "options": {"seed": 1}, "tags": ["b"]},
        {"video": "anna.mp4", "audio": "bad.wav"},
        {"video": "anna.mp4", "kind": "interpolate", "options": {"interpolate": 50}},
    ]
    response = client.post("/v1/batches", files=files, data={"jobs": json.dumps(jobs)})
    assert response.status_code == 202
    first, second, third = response.json()["jobs"]
    assert first["job"]["inputs"] == {"video": "anna.mp4", "audio": "line.wav"} and first["job"]["tags"] == ["b"]
    assert second["job"] is None and second["error"]["code"] == "invalid_input"
    assert third["job"]["kind"] == "interpolate"
    assert service.input_path(third["job"]["id"], "video").read_bytes() == files["anna.mp4"][1]
    assert list(service.upload_folder().iterdir()) == []
    refused = client.post("/v1/batches", files=files, data={"jobs": json.dumps(jobs[1:2])})
    assert refused.status_code == 422 and refused.json()["jobs"] == [second]


def test_a_text_of_any_permitted_length_is_taken(client, service, media):
    """Characters are counted, not bytes, of which one may have four."""
    video = {"video": ("me.mp4", (media / "clip.mp4").read_bytes())}
    text = "\N{CJK UNIFIED IDEOGRAPH-20000}" * MAX_TEXT
    job = client.post("/v1/jobs", files=video, data={"text": text}).json()
    assert service.get(job["id"]).options.text == text
    too_long = client.post("/v1/jobs", files=video, data={"text": "a" * (MAX_TEXT + 1)})
    assert error_of(too_long) == (422, "invalid_options")
    jobs = [{"video": "video", "options": {"text": text}}] * 2  # here, a character may have twelve bytes
    outcomes = client.post("/v1/batches", files=video, data={"jobs": json.dumps(jobs)}).json()["jobs"]
    assert [outcome["job"]["options"]["text"] for outcome in outcomes] == [text] * 2


@pytest.mark.parametrize(
    ("jobs", "code"),
    [
        ("[", "broken_json"),
        ("[]", "invalid_options"),
        ('[{"video": "anna.mp4", "seed": 1}]', "invalid_options"),
        ('[{"video": "anna.mp4", "options": {"seed": "x"}}]', "invalid_options"),
        ('[{"video": "anna.mp4"}]', "missing_file"),
        ('[{"video": "anna.mp4", "audio": "none.wav"}]', "missing_file"),
    ],
)
def test_batches_that_are_refused_whole(client, service, media, jobs, code):
    before = len(service.list(limit=200))
    files = {"anna.mp4": ("anna.mp4", (media / "clip.mp4").read_bytes())}
    assert error_of(client.post("/v1/batches", files=files, data={"jobs": jobs}))[1] == code
    assert len(service.list(limit=200)) == before


def test_the_people_in_a_video(client, service, tmp_path):
    scene = clip(tmp_path / "two.mp4", 25, lambda index: draw_scene(((0, 0), (150, 0)), width=290))
    people = client.post("/v1/people", files={"video": scene.open("rb")}).json()["people"]
    assert [person["name"] for person in people] == ["person1", "person2"]
    assert all(person["seconds"][0][0] == 0 and person["seconds"][0][1] > 0.5 for person in people)
    lefts = [person["first_box"][0] for person in people]
    assert abs(lefts[0] - lefts[1]) > 100
    head, _, data = people[0]["portrait"].partition(",")
    with Image.open(io.BytesIO(base64.b64decode(data))) as portrait:
        assert (head, portrait.format, portrait.size) == ("data:image/jpeg;base64", "JPEG", (160, 160))
    assert not list(service.upload_folder().iterdir())


def test_people_of_a_file_that_is_no_video(client, tmp_path, media):
    voice = {"video": ("a.wav", (media / "voice.wav").read_bytes())}
    assert error_of(client.post("/v1/people", files=voice)) == (422, "invalid_input")
    hostile = {"video": ("a.mp4", b"ffconcat version 1.0\nfile a.mp4\n")}
    assert error_of(client.post("/v1/people", files=hostile)) == (422, "invalid_input")
    assert error_of(client.post("/v1/people", json={"video_url": "http://a.example"})) == (
        415,
        "unsupported_media_type",
    )
    assert error_of(client.post("/v1/people", files={"audio": ("a.wav", b"x")}))[0] == 422
    assert error_of(client.post("/v1/people", files=voice, data={"seed": "1"})) == (422, "invalid_request")
    empty = clip(tmp_path / "empty.mp4", 5, lambda index: draw_scene(()))
    assert client.post("/v1/people", files={"video": empty.open("rb")}).json() == {"people": []}


def test_every_response_has_a_request_id(client):
    own = client.get("/healthz", headers={"X-Request-ID": "from-a-proxy.1"})
    assert own.headers["x-request-id"] == "from-a-proxy.1"
    made = [client.get("/nothing", headers={"X-Request-ID": bad}).headers["x-request-id"] for bad in ("", "a b")]
    assert len(set(made)) == 2 and all(len(value) == 32 for value in made)


def test_readiness_tells_why_not(tmp_path, media):
    service = make_service(tmp_path / "workspace", max_queue=1, model="latentsync-1.6")
    crashed = Slot("cpu", deaths=2, code=-9, not_before=time.monotonic() + 50)
    service._supervisor.slots.append(crashed)
    with serving(service) as client:
        client.post("/v1/jobs", files=files_of(media), data={"model": "embedded"}).raise_for_status()
        problems = client.get("/readyz").json()["problems"]
    reasons = (
        "the worker for cpu ended with code -9 (2 times in a row)",
        "the queue is full: 1 jobs wait",
        "latentsync-1.6",
    )
    assert len(problems) == len(reasons)
    assert all(reason in problem for reason, problem in zip(reasons, problems, strict=True)), problems


def test_a_stream_resumes_after_the_last_received_event(client, service, media):
    job = submit(client, media)
    with client.stream("GET", job["links"]["events"]) as response:
        lines = response.iter_lines()
        last = next(line for line in lines if line.startswith("id: ")).removeprefix("id: ")
    with client.stream("GET", job["links"]["events"], headers={"Last-Event-ID": last}) as response:
        events = events_of(response)
        assert next(events)[0] == "comment"  # not the same state again
        finish(service, job["id"])
        assert [name for name, _ in events if name != "comment"][-1] == "final"


class Receiver(BaseHTTPRequestHandler):
    """Takes webhooks; answers with the next status of `statuses`, then 200."""

    received: list[tuple[dict, bytes]] = []
    statuses: list[int] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.received.append((dict(self.headers), body))
        self.send_response(self.statuses.pop(0) if self.statuses else 200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args) -> None:
        pass


@pytest.fixture
def port() -> Iterator[int]:
    Receiver.received, Receiver.statuses = [], []
    with ThreadingHTTPServer(("127.0.0.1", 0), Receiver) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


def test_a_webhook_is_signed_and_repeated_until_it_is_delivered(tmp_path, media, port, monkeypatch):
    service = make_service(tmp_path / "workspace")
    checker = Fetcher(0, resolver=lambda *_: ["127.0.0.1"], accepts=lambda _: True, ports={"http": port})
    sender = WebhookSender(service, SECRET, checker)
    with serving(service, webhooks=sender) as client:
        job = submit(client, media, webhook_url="http://studio.example/hook?x=1", tags="t")
        sender.send_due()
        assert Receiver.received == []  # it has not ended yet
        finish(service, job["id"])
    Receiver.statuses[:] = [500]
    monkeypatch.setattr("latentsync.serving.api.webhooks.DELAYS", (0.0, *DELAYS[1:]))
    sender.send_due()
    assert len(Receiver.received) == 2
    headers, body = Receiver.received[1]
    lower = {name.lower(): value for name, value in headers.items()}
    assert lower["host"] == "studio.example"
    assert lower["webhook-id"] == Receiver.received[0][0]["webhook-id"]  # so that receivers can tell repetitions
    expected = sign(SECRET, lower["webhook-id"], int(lower["webhook-timestamp"]), body)
    assert lower["webhook-signature"] == expected
    message = json.loads(body)
    assert message["type"] == "job.done" and message["data"]["id"] == job["id"] and message["data"]["tags"] == ["t"]
    sender.send_due()
    assert len(Receiver.received) == 2  # delivered


def test_a_webhook_that_always_fails_is_given_up(tmp_path, media, port, monkeypatch):
    service = make_service(tmp_path / "workspace")
    checker = Fetcher(0, resolver=lambda *_: ["127.0.0.1"], accepts=lambda _: True, ports={"http": port})
    sender = WebhookSender(service, SECRET, checker)
    with serving(service, webhooks=sender) as client:
        job = submit(client, media, webhook_url="http://studio.example/hook")
        assert client.post(f"{job['links']['self']}/cancel").json()["state"] == JobState.CANCELLED
    Receiver.statuses[:] = [503] * 10
    monkeypatch.setattr("latentsync.serving.api.webhooks.DELAYS", (0.0,) * 3)
    sender.send_due()
    assert len(Receiver.received) == 3 and service.get(job["id"]).webhook is None


def test_webhooks_go_to_public_addresses_only(tmp_path, client, media):
    refused = client.post("/v1/jobs", files=files_of(media), data={"webhook_url": "http://example.org/"})
    assert error_of(refused) == (403, "webhooks_not_allowed")
    service = make_service(tmp_path / "workspace")
    with serving(service, webhooks=WebhookSender(service, SECRET, Fetcher(0))) as client:
        for url in (
            "http://127.0.0.1/",
            "http://169.254.169.254/latest",
            "file:///etc/passwd",
            "http://me:x@a.example/",
        ):
            refused = client.post("/v1/jobs", files=files_of(media), data={"webhook_url": url})
            assert error_of(refused) == (422, "refused_url"), url
