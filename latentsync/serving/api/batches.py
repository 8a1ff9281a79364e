"""POST /v1/batches: several jobs in one request, which may share files."""

from pathlib import Path
from typing import Any

import anyio
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from latentsync.serving.api.context import ApiContext, Context, Submitter
from latentsync.serving.api.errors import ApiError, ErrorBody, ErrorView, refusal_of, responses
from latentsync.serving.api.examples import BATCH_JOBS
from latentsync.serving.api.multipart import ReceivedFile
from latentsync.serving.api.schema import (
    Batch,
    BatchJob,
    BatchOutcome,
    BatchView,
    JobRequest,
    JobView,
    UrlBatch,
    UrlJob,
)
from latentsync.serving.api.submission import (
    CLIENT_CLOSED,
    FORM,
    JSON,
    body_kind,
    check_roles,
    parse_json,
    queue,
    read_metadata,
    refuse_when_full,
)
from latentsync.serving.api.uploads import Body, ClientGone
from latentsync.utils.errors import UserError

router = APIRouter(prefix="/v1/batches", tags=["jobs"])
FIELD = "jobs"  # of the form, with the jobs as JSON
Files = dict[str, ReceivedFile]


def body_docs() -> dict[str, Any]:
    """The request body for OpenAPI."""
    form = {
        "type": "object",
        "required": [FIELD],
        "properties": {FIELD: {"type": "string", "description": "The jobs as JSON."}},
        "additionalProperties": {"type": "string", "format": "binary"},
    }
    by_url = {"$ref": "#/components/schemas/UrlBatch"}
    return {
        "required": True,
        "content": {FORM: {"schema": form, "example": {FIELD: BATCH_JOBS}}, JSON: {"schema": by_url}},
    }


@router.post(
    "",
    status_code=202,
    response_model=BatchView,
    summary="Submit several jobs",
    responses={
        **responses(400, 403, 408, 413, 415, 429, 507),
        422: {
            "model": BatchView | ErrorView,
            "description": "The request is not valid, or each of its jobs is refused.",
        },
    },
    openapi_extra={"requestBody": body_docs()},
)
async def submit_batch(request: Request, context: Context, submitter: Submitter) -> Response:
    """Upload files under any names, and the jobs as JSON that refers to these names.

    `curl -F anna.mp4=@anna.mp4 -F a.wav=@a.wav -F 'jobs=[{"video": "anna.mp4", "audio": "a.wav"}]' .../v1/batches`

    The jobs are independent: each is queued or refused by itself, and the response says which, with status 202 if at
    least one is queued, otherwise 422. Nothing is queued if the JSON is not valid. If the server was started with
    `--allow_urls`, a JSON object `{"jobs": [...]}` with URLs is accepted as well.
    """
    body = Body(request, context.limits)
    try:
        kind = body_kind(body, context)
        await refuse_when_full(context)
        async with context.uploads.folder() as folder:
            jobs: list[tuple[JobRequest, Any]]
            if kind == FORM:
                form = await context.uploads.receive_form(body, folder, batch=True)
                text = '{"jobs": ' + form.fields.get(FIELD, "[]") + "}"
                jobs = [
                    (job, chosen_files(job, form.files)) for job in parse_json(Batch, text, f"the field {FIELD}").jobs
                ]
            else:
                whole = b"".join([piece async for piece in body.pieces(context.limits.max_json_bytes)])
                jobs = [(job, None) for job in parse_json(UrlBatch, whole).jobs]
            if len(jobs) > context.limits.max_batch_jobs:
                raise ApiError(413, "too_many_jobs", f"a batch may have {context.limits.max_batch_jobs} jobs")
            outcomes = []
            for number, (job, files) in enumerate(jobs):
                place = folder / f"job-{number}"
                await anyio.Path(place).mkdir()
                outcomes.append(await _queue_one(context, job, files, place, request, submitter))
    except ClientGone:
        return Response(status_code=CLIENT_CLOSED)
    accepted = any(outcome.job is not None for outcome in outcomes)
    return JSONResponse(BatchView(jobs=outcomes).model_dump(mode="json"), 202 if accepted else 422)


def chosen_files(job: BatchJob, files: Files) -> Files:
    """The uploaded files of a job by role. Raises ApiError if one is missing."""
    names = job.names()
    check_roles(job.kind, set(names), job.options)
    for role, name in names.items():
        if name not in files:
            raise ApiError(422, "missing_file", f"the {role} {name[:40]!r} is not among the uploaded files")
    return {role: files[name] for role, name in names.items()}


async def _queue_one(
    context: ApiContext,
    job: JobRequest,
    files: Files | None,
    place: Path,
    request: Request,
    submitter: str | None,
) -> BatchOutcome:
    try:
        if isinstance(job, UrlJob) and context.fetcher is not None:
            check_roles(job.kind, set(job.urls()), job.options)
            files = {role: await context.fetcher.fetch(url, role, place) for role, url in job.urls().items()}
        metadata = await read_metadata(job, context)
        queued = await queue(context, job.kind, files or {}, job.options, submitter, metadata, move=False)
        return BatchOutcome(job=JobView.of(queued, request))
    except (ApiError, UserError) as error:
        refusal = refusal_of(error)
        return BatchOutcome(error=ErrorBody(code=refusal.code, message=refusal.message))
