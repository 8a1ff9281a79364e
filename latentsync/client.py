"""A client of the REST API: `Client().submit("person.mp4", "speech.wav")`.

Needs httpx and pydantic only. A test holds it to the server's OpenAPI document.
"""

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

import httpx
from pydantic import BaseModel

from latentsync.utils.errors import UserError
from latentsync.utils.files import replaced

File = str | os.PathLike[str]
State = Literal["queued", "running", "done", "failed", "cancelled"]
Kind = Literal["lipsync", "interpolate"]
T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)
RECONNECT_SECONDS = 2.0
MAX_RECONNECTS = 30  # in a row
SCAN_SECONDS = 600.0  # for a video to be searched for people
UPLOAD_SECONDS = 600.0  # for one piece of an upload or download


class ClientError(UserError):
    """A request that the server refused. `code` is a fixed word, `status` the HTTP status, `request_id` is in the
    server's log."""

    def __init__(self, status: int, code: str, message: str, request_id: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.request_id = status, code, request_id


class JobEnded(UserError):
    """A job that ended without a result; `job` is its last state."""

    def __init__(self, job: "Job") -> None:
        super().__init__(f"job {job.id} {job.state}" + (f": {job.error}" if job.error else ""))
        self.job = job


class Progress(BaseModel):
    """stage: current stage of the job. done, total: frames. fraction: of the work, 0 to 1."""

    stage: str
    done: int
    total: int
    fraction: float
    eta_seconds: float | None


class Links(BaseModel):
    self: str
    events: str
    result: str | None
    thumbnail: str


class Job(BaseModel):
    id: str
    kind: Kind
    state: State
    position: int | None
    progress: Progress
    options: dict[str, Any]
    inputs: dict[str, str]
    tags: list[str]
    created: datetime
    started: datetime | None
    finished: datetime | None
    attempts: int
    error: str | None
    expired: bool
    links: Links


class Model(BaseModel):
    name: str
    summary: str
    resolution: int
    present: bool
    missing: list[str]


class Models(BaseModel):
    models: list[Model]
    loras: list[str]
    can_upscale: bool
    default: str


class Person(BaseModel):
    """name: the value of the option `face`. seconds: (start, end) of each time in view. first_box: left, top, right,
    bottom in pixels. portrait: a JPEG as a data URL."""

    name: str
    seconds: list[tuple[float, float]]
    first_box: tuple[int, int, int, int]
    portrait: str


class Readiness(BaseModel):
    ready: bool
    problems: list[str]


class Client:
    """Client of one server; a context manager that closes its connections.

    All methods raise ClientError if the server refuses a request, and httpx.HTTPError if it cannot be reached.

    Args:
        url: of the server, including a path prefix.
        api_key: if the server requires one; by default that of the environment variable LATENTSYNC_API_KEY.
        seconds: to wait for a response.
        transport: of httpx, for tests.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        api_key: str | None = None,
        seconds: float = 60.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        key = api_key or os.environ.get("LATENTSYNC_API_KEY")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        timeout = httpx.Timeout(seconds, write=UPLOAD_SECONDS)
        self.http = httpx.Client(base_url=url, headers=headers, timeout=timeout, transport=transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self.http.close()

    # Submit

    def submit(
        self,
        video: File,
        audio: File | None = None,
        *,
        mask: File | None = None,
        script: File | None = None,
        more_audio: Sequence[File] = (),
        kind: Kind | None = None,
        tags: Sequence[str] = (),
        webhook_url: str | None = None,
        idempotency_key: str | None = None,
        **options: object,
    ) -> Job:
        """Upload the files, streamed from disk, and queue a job.

        Args:
            video: video or image of a person; or a video to interpolate, if there is no audio.
            audio: speech. mask: custom mask image.
            script: CSV or JSON file with the cues of several voices; more_audio: further audio files that it names.
            kind: by default lipsync with audio, a text to speak or a script, otherwise interpolate.
            tags: words to find the job by. webhook_url: called when it has ended.
            idempotency_key: a repeated submission with the same key returns the first job.
            options: of the job, such as inference_steps=20; see the server's documentation.
        """
        speaks = audio is not None or script is not None or options.get("text") is not None
        given = {"kind": kind or ("lipsync" if speaks else "interpolate"), **options}
        if tags:
            given["tags"] = ",".join(tags)
        if webhook_url is not None:
            given["webhook_url"] = webhook_url
        headers = {} if idempotency_key is None else {"Idempotency-Key": idempotency_key}
        voices = [path for path in (audio, *more_audio) if path is not None]
        paths = {"video": video, "mask": mask, "script": script}
        paths |= {f"audio{number}" if number > 1 else "audio": path for number, path in enumerate(voices, 1)}
        with _opened({role: path for role, path in paths.items() if path is not None}) as files:
            data = {name: _text(value) for name, value in given.items() if value is not None}
            return self._json("POST", "/v1/jobs", Job.model_validate, files=files, data=data, headers=headers)

    def submit_batch(self, jobs: Sequence[Mapping[str, Any]]) -> list[Job | ClientError]:
        """Queue several jobs in one request; a file that several of them use is uploaded once.

        Args:
            jobs: each with the paths video, audio, mask and script, the list of paths more_audio, and optionally kind,
                tags, webhook_url and options.

        Returns:
            For each job, the queued job or why it was refused.
        """
        names: dict[Path, str] = {}

        def name_of(file: File) -> str:
            return names.setdefault(Path(file), f"{len(names)}-{Path(file).name}")

        described = []
        for job in jobs:
            roles = {role: name_of(job[role]) for role in ("video", "audio", "mask", "script") if job.get(role)}
            described.append({**job, **roles, "more_audio": [name_of(file) for file in job.get("more_audio", ())]})
        with _opened({name: path for path, name in names.items()}) as files:
            response = self.http.request("POST", "/v1/batches", files=files, data={"jobs": json.dumps(described)})
        if response.is_error and '"jobs"' not in response.text:
            raise _refusal(response)
        return _understood(response, lambda found: [_outcome(outcome) for outcome in found["jobs"]])

    def people(self, video: File) -> list[Person]:
        """Who is seen in the first two minutes of a video, to choose the option `face` of a job."""
        with _opened({"video": video}) as files:
            return self._json("POST", "/v1/people", _list_of(Person, "people"), files=files, timeout=SCAN_SECONDS)

    # Follow

    def get(self, job_id: str) -> Job:
        return self._json("GET", f"/v1/jobs/{job_id}", Job.model_validate)

    def list(
        self, *, states: Sequence[State] = (), tag: str | None = None, limit: int = 50, offset: int = 0
    ) -> list[Job]:
        """Jobs, newest first. states: only jobs in these; tag: only jobs with it."""
        query: dict[str, Any] = {"limit": limit, "offset": offset}
        if states:
            query["state"] = [*states]
        if tag is not None:
            query["tag"] = tag
        return self._json("GET", "/v1/jobs", _list_of(Job, "jobs"), params=query)

    def follow(self, job_id: str) -> Iterator[Job]:
        """Yield the job after each change, the finished one last. Connects again if the stream is cut off.

        Raises:
            ClientError: there is no such job, or it was deleted.
        """
        last_id, failures = "", 0
        while True:
            try:
                for event, data, seen in self._events(job_id, last_id):
                    last_id, failures = seen, 0
                    if event == "deleted":
                        raise ClientError(404, "not_found", f"job {job_id} was deleted")
                    yield Job.model_validate_json(data)
                    if event == "final":
                        return
            except httpx.TransportError:
                pass
            failures += 1
            if failures > MAX_RECONNECTS:
                raise ClientError(503, "unreachable", f"the events of job {job_id} are cut off again and again")
            time.sleep(RECONNECT_SECONDS)

    def wait(self, job_id: str) -> Job:
        """Wait until a job is done. Raises JobEnded if it ends without a result."""
        *_, job = self.follow(job_id)
        if job.state != "done":
            raise JobEnded(job)
        return job

    def _events(self, job_id: str, last_id: str) -> Iterator[tuple[str, str, str]]:
        """(name, data, id) of the events of one connection."""
        headers = {"Last-Event-ID": last_id} if last_id else {}
        with self.http.stream("GET", f"/v1/jobs/{job_id}/events", headers=headers) as response:
            if response.is_error:
                response.read()
                raise _refusal(response)
            fields: dict[str, str] = {}
            for line in response.iter_lines():
                name, _, value = line.partition(": ")
                if line:
                    fields[name] = value
                    continue
                if "data" in fields:
                    yield fields.get("event", ""), fields["data"], fields.get("id", last_id)
                fields = {}

    # Results

    def download(self, job: Job | str, path: File) -> Path:
        """Save the result of a job that is done; the file appears when it is complete. Returns its path."""
        job_id = job if isinstance(job, str) else job.id
        with replaced(Path(path)) as arriving, self.http.stream("GET", f"/v1/jobs/{job_id}/result") as response:
            if response.is_error:
                response.read()
                raise _refusal(response)
            with arriving.open("wb") as file:
                for piece in response.iter_bytes():
                    file.write(piece)
        return Path(path)

    def thumbnail(self, job_id: str) -> bytes:
        """A JPEG of the first frame of the result."""
        return self._request("GET", f"/v1/jobs/{job_id}/thumbnail").content

    # Change

    def cancel(self, job_id: str) -> Job:
        """Cancel a job; a finished one is left unchanged."""
        return self._json("POST", f"/v1/jobs/{job_id}/cancel", Job.model_validate)

    def retry(self, job_id: str) -> Job:
        """Queue a finished job again. Its result is deleted."""
        return self._json("POST", f"/v1/jobs/{job_id}/retry", Job.model_validate)

    def delete(self, job_id: str) -> None:
        """Delete a job and its files; a running one is cancelled first."""
        self._request("DELETE", f"/v1/jobs/{job_id}")

    # The server

    def models(self) -> Models:
        return self._json("GET", "/v1/models", Models.model_validate)

    def health(self) -> str:
        """The version of the server."""
        return self._json("GET", "/healthz", lambda found: str(found["version"]))

    def ready(self) -> Readiness:
        """Whether the server can accept and run jobs, and why not."""
        return _understood(self.http.get("/readyz"), Readiness.model_validate)

    def metrics(self) -> str:
        """Metrics in the text format of Prometheus."""
        return self._request("GET", "/metrics").text

    def _json(self, method: str, path: str, read: Callable[[Any], T], **parts: Any) -> T:
        return _understood(self._request(method, path, **parts), read)

    def _request(self, method: str, path: str, **parts: Any) -> httpx.Response:
        response = self.http.request(method, path, **parts)
        if response.is_error:
            raise _refusal(response)
        return response


def _understood(response: httpx.Response, read: Callable[[Any], T]) -> T:
    """Content of a response. Raises ClientError for one of another service, such as the login page of a proxy."""
    try:
        return read(response.json())
    except (ValueError, LookupError, TypeError) as error:
        message = f"{response.url}: the response is not one of this API; check the address of the server"
        raise ClientError(response.status_code, "unexpected_response", message) from error


def _outcome(found: Mapping[str, Any]) -> Job | ClientError:
    """A job of a batch that was queued, or why it was refused."""
    return ClientError(422, **found["error"]) if found["job"] is None else Job.model_validate(found["job"])


def _list_of(model: type[M], name: str) -> Callable[[Any], list[M]]:
    return lambda found: [model.model_validate(item) for item in found[name]]


def _refusal(response: httpx.Response) -> ClientError:
    request_id = response.headers.get("x-request-id")
    try:
        error = response.json()["error"]
        return ClientError(response.status_code, error["code"], error["message"], request_id)
    except (ValueError, KeyError, TypeError):  # a proxy in front of the server
        return ClientError(response.status_code, "http_error", f"status {response.status_code}", request_id)


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


@contextmanager
def _opened(paths: Mapping[str, File]) -> Iterator[dict[str, Any]]:
    """Open files for upload. Raises UserError for one that cannot be opened."""
    with ExitStack() as stack:
        files = {}
        for name, path in paths.items():
            try:
                files[name] = (Path(path).name, stack.enter_context(open(path, "rb")))
            except OSError as error:
                raise UserError(f"{path}: cannot be read ({error.strerror})") from error
        yield files
