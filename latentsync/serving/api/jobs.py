"""Routes of jobs: submit, list, get, follow, cancel, retry, delete, download the result."""

from collections.abc import AsyncIterator
from pathlib import Path as FilePath
from typing import Annotated, Any

import anyio.to_thread
from fastapi import APIRouter, Depends, Header, Path, Query, Request
from fastapi.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from latentsync.serving.api import examples
from latentsync.serving.api.context import ApiContext, Context, Submitter
from latentsync.serving.api.errors import ApiError, responses, try_later
from latentsync.serving.api.events import event_stream
from latentsync.serving.api.schema import JobList, JobView
from latentsync.serving.api.submission import request_body_docs, submit
from latentsync.serving.api.transfer import FileTransfer
from latentsync.serving.jobs import Job, JobNotFound, JobState

MEDIA_TYPES = {".mp4": "video/mp4", ".mov": "video/quicktime", ".mkv": "video/x-matroska", ".jpg": "image/jpeg"}

IDEMPOTENCY = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "A second submission with the same key returns the first job, so that a request can be repeated.",
    "schema": {"type": "string", "pattern": "^[A-Za-z0-9._:-]{1,128}$"},
    "example": "order-4711-take-2",
}

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])


def find_job_id(
    job_id: Annotated[str, Path(pattern="^[0-9a-f]{32}$", description="The job's id.", examples=[examples.JOB["id"]])],
    context: Context,
    submitter: Submitter,
) -> str:
    """The id of a job that the request may see. Raises JobNotFound for others."""
    if submitter is not None and context.service.get(job_id).submitter != submitter:
        raise JobNotFound(f"there is no job {job_id}")
    return job_id


JobId = Annotated[str, Depends(find_job_id)]


@router.post(
    "",
    status_code=202,
    response_model=JobView,
    summary="Submit a job",
    responses={
        200: {"model": JobView, "description": "The job that was submitted with this key before."},
        **responses(400, 403, 408, 413, 415, 422, 429, 507),
    },
    openapi_extra={"requestBody": request_body_docs(), "parameters": [IDEMPOTENCY]},
)
async def submit_job(request: Request, context: Context, submitter: Submitter) -> Response:
    """Upload a video (or an image) and audio; options of the job are further fields of the form.

    `curl -F video=@person.mp4 -F audio=@speech.wav -F inference_steps=20 http://localhost:8000/v1/jobs`

    The files are checked before the job is queued. The response and its Location header give the job's path.
    If the server was started with `--allow_urls`, a JSON object with URLs is accepted as well.
    """
    return await submit(request, context, submitter)


@router.get("", response_model=JobList, summary="List jobs", responses=responses(422))
def list_jobs(
    request: Request,
    context: Context,
    submitter: Submitter,
    state: Annotated[
        list[JobState] | None, Query(description="Only jobs in these states.", examples=[["queued", "running"]])
    ] = None,
    tag: Annotated[str | None, Query(max_length=50, description="Only jobs with this tag.", examples=["draft"])] = None,
    limit: Annotated[int, Query(ge=1, le=200, examples=[50])] = 50,
    offset: Annotated[int, Query(ge=0, le=1_000_000, examples=[0])] = 0,
) -> JobList:
    jobs = context.service.list(states=state, limit=limit, offset=offset, submitter=submitter, tag=tag)
    return JobList(jobs=[JobView.of(job, request) for job in jobs])


@router.get("/{job_id}", response_model=JobView, summary="Get a job", responses=responses(404))
def get_job(request: Request, context: Context, job_id: JobId) -> JobView:
    return JobView.of(context.service.get(job_id), request)


@router.delete("/{job_id}", status_code=204, summary="Delete a job and its files", responses=responses(404, 409))
async def delete_job(context: Context, job_id: JobId) -> None:
    """A queued or running job is cancelled first, which may take seconds."""
    await anyio.to_thread.run_sync(context.service.delete, job_id, limiter=context.deletions)


@router.post("/{job_id}/cancel", response_model=JobView, summary="Cancel a job", responses=responses(404))
def cancel_job(request: Request, context: Context, job_id: JobId) -> JobView:
    """A running job stops within seconds. A finished job is left unchanged."""
    return JobView.of(context.service.cancel(job_id), request)


@router.post("/{job_id}/retry", response_model=JobView, summary="Queue a job again", responses=responses(404, 409, 429))
def retry_job(request: Request, context: Context, job_id: JobId) -> JobView:
    """Run a finished job again with the same files and options. Its result is deleted."""
    return JobView.of(context.service.retry(job_id), request)


@router.get(
    "/{job_id}/events",
    summary="Follow a job (server-sent events)",
    response_class=StreamingResponse,
    responses={200: {"content": {"text/event-stream": {"example": examples.EVENT}}}, **responses(404, 429)},
)
async def job_events(
    request: Request,
    context: Context,
    job_id: JobId,
    last_event_id: Annotated[
        str | None, Header(description="Id of the last event received before.", examples=["1"])
    ] = None,
) -> StreamingResponse:
    """Events named `progress`, then one named `final` (or `deleted`), each with the job as JSON; comments in between
    keep the connection alive. The stream ends after the last event, or when the server stops: then reconnect. With
    `Last-Event-ID`, an event that was already received is not repeated, except the last one.
    """
    await anyio.to_thread.run_sync(context.service.get, job_id)
    if context.streams >= context.limits.event_streams:
        raise try_later("too_many_streams", "too many event streams are open; poll the job instead")
    context.streams += 1  # before any await: other requests are handled until the first event

    def show(job: Job) -> str:
        return JobView.of(job, request).model_dump_json()

    events = event_stream(
        lambda: context.service.get(job_id), show, context.closing.is_set, context.limits, last_event_id
    )
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return CountedStream(events, context, headers)


class CountedStream(StreamingResponse):
    """A stream of events that frees its slot however it ends, even before its first event."""

    def __init__(self, events: AsyncIterator[bytes], context: ApiContext, headers: dict[str, str]) -> None:
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._context = context

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._context.streams -= 1


FILE_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"content": {"video/mp4": {"schema": {"type": "string", "format": "binary"}}}},
    206: {"description": "The requested range."},
    304: {"description": "Not changed (If-None-Match)."},
    **responses(400, 404, 409, 416),
}


@router.get("/{job_id}/result", summary="Download the result", response_class=Response, responses=FILE_RESPONSES)
@router.head("/{job_id}/result", include_in_schema=False)
def job_result(request: Request, context: Context, job_id: JobId) -> Response:
    """The finished video. Supports `Range` , `If-Range` and `If-None-Match`."""
    job = context.service.get(job_id)
    if job.state is not JobState.DONE:
        raise ApiError(409, "no_result", f"the job is {job.state.value}; only a job that is done has a result")
    if job.result is None:
        raise _gone("the result was deleted because of its age or to free space; submit the job again")
    return _transfer(request, context, job.result, f"{job.id}{job.result.suffix}")


@router.get(
    "/{job_id}/thumbnail",
    summary="Get a thumbnail",
    response_class=Response,
    responses={200: {"content": {"image/jpeg": {"schema": {"type": "string", "format": "binary"}}}}, **responses(404)},
)
def job_thumbnail(request: Request, context: Context, job_id: JobId) -> Response:
    thumbnail = context.service.thumbnail(job_id)
    if thumbnail is None:
        raise _gone("the job has no thumbnail")
    return _transfer(request, context, thumbnail, f"{job_id}{thumbnail.suffix}")


def _transfer(request: Request, context: ApiContext, path: FilePath, name: str) -> Response:
    media_type = MEDIA_TYPES.get(path.suffix.lower(), "application/octet-stream")
    try:
        return FileTransfer(path, request.headers, media_type, name, context.limits.send_seconds)
    except FileNotFoundError as error:
        raise _gone("the file was deleted") from error


def _gone(message: str) -> ApiError:
    return ApiError(404, "not_found", message)
