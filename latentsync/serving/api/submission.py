"""POST /v1/jobs: turns a form with files, or if allowed a JSON object with URLs, into a job."""

from functools import partial
from typing import Any

import anyio.to_thread
from fastapi import Request
from fastapi.responses import JSONResponse, Response
from pydantic import ValidationError
from pydantic_core import from_json

from latentsync.options import OPTIONS, GenerationOptions, OptionError, describe_problems, parse_options
from latentsync.serving.api.context import ApiContext
from latentsync.serving.api.errors import ApiError
from latentsync.serving.api.errors import describe_problems as describe_fields
from latentsync.serving.api.multipart import ReceivedFile
from latentsync.serving.api.schema import JobView, UrlJob
from latentsync.serving.api.uploads import Body, ClientGone
from latentsync.serving.jobs import Job, JobKind, JobState, QueueFull

FORM, JSON = "multipart/form-data", "application/json"
CLIENT_CLOSED = 499  # only seen in the log


def request_body_docs() -> dict:
    """The request body of POST /v1/jobs for OpenAPI: the files, and the options of a job as form fields."""
    schema = GenerationOptions.model_json_schema(ref_template="#/components/schemas/{model}")
    options = {name: _not_null(part) for name, part in schema["properties"].items() if not OPTIONS[name].is_file}
    files = {
        "video": {"type": "string", "format": "binary", "description": "Video or image of a person."},
        "audio": {"type": "string", "format": "binary", "description": "Speech; not for kind=interpolate."},
        "mask": {"type": "string", "format": "binary", "description": OPTIONS["mask_image_path"].help},
        "kind": {"type": "string", "enum": [kind.value for kind in JobKind], "default": JobKind.LIPSYNC.value},
    }
    form = {
        "type": "object",
        "required": ["video"],
        "properties": files | options,
        "additionalProperties": False,
    }
    by_url = {"$ref": "#/components/schemas/UrlJob"}
    return {"required": True, "content": {FORM: {"schema": form}, JSON: {"schema": by_url}}}


def _not_null(schema: dict[str, Any]) -> dict[str, Any]:
    """The JSON schema of an option without null, which a form cannot express."""
    types = [variant for variant in schema.get("anyOf", ()) if variant != {"type": "null"}]
    if len(types) != 1:
        return schema
    return {name: value for name, value in schema.items() if name not in ("anyOf", "default")} | types[0]


async def submit(request: Request, context: ApiContext, submitter: str | None) -> Response:
    """Receive the files, check them and queue the job: 202 with the job, which belongs to `submitter`."""
    body = Body(request, context.limits)
    try:
        job = await _receive(body, context, submitter)
    except ClientGone:
        return Response(status_code=CLIENT_CLOSED)
    view = JobView.of(job, request)
    return JSONResponse(view.model_dump(mode="json"), 202, {"Location": view.links.self})


async def _receive(body: Body, context: ApiContext, submitter: str | None) -> Job:
    kind_of_body = body.content_type.partition(";")[0].strip().lower()
    if kind_of_body not in (FORM, JSON):
        raise ApiError(
            415, "unsupported_media_type", f"send {FORM} with the files (curl: -F video=@FILE -F audio=@FILE)"
        )
    fetcher = context.fetcher
    if kind_of_body == JSON and fetcher is None:
        raise ApiError(403, "urls_not_allowed", f"this server accepts no URLs; upload the files as {FORM}")
    await _refuse_when_full(context)
    async with context.desk.folder() as folder:
        if kind_of_body == FORM or fetcher is None:
            form = await context.desk.receive_form(body, folder)
            kind, options = _form_options(form.fields)
            _check_roles(kind, set(form.files))
            files = form.files
        else:
            wanted = _url_job(b"".join([piece async for piece in body.pieces(context.limits.max_json_bytes)]))
            kind, options = wanted.kind, wanted.options
            files = {role: await fetcher.fetch(url, role, folder) for role, url in wanted.urls().items()}
        return await _submit(context, kind, files, options, submitter)


async def _refuse_when_full(context: ApiContext) -> None:
    """Checked before anything is received; the service checks again when the job is queued."""
    most = context.service.settings.max_queue
    last_place = partial(context.service.list, states=[JobState.QUEUED], limit=1, offset=most - 1)
    if await anyio.to_thread.run_sync(last_place):
        raise QueueFull(f"{most} jobs are queued already; try again later")


def _form_options(fields: dict[str, str]) -> tuple[JobKind, GenerationOptions]:
    """Options from text fields; an empty one counts as not given."""
    given = {name: value for name, value in fields.items() if value != ""}
    try:
        kind = JobKind(given.pop("kind", JobKind.LIPSYNC))
    except ValueError as error:
        raise ApiError(422, "invalid_options", f"kind must be one of {', '.join(JobKind)}") from error
    try:
        return kind, parse_options(given)
    except OptionError as error:
        raise ApiError(422, "invalid_options", str(error)) from error


def _url_job(text: bytes) -> UrlJob:
    try:
        values = from_json(text, allow_inf_nan=False)
    except ValueError as error:
        raise ApiError(400, "broken_json", "the body is not valid JSON") from error
    try:
        wanted = UrlJob.model_validate(values)
    except ValidationError as error:
        raise ApiError(422, "invalid_options", _describe_url_job(error)) from error
    _check_roles(wanted.kind, set(wanted.urls()))
    return wanted


def _describe_url_job(error: ValidationError) -> str:
    options = [problem for problem in error.errors() if problem["loc"][:1] == ("options",)]
    if options:
        return describe_problems([{**problem, "loc": problem["loc"][1:]} for problem in options])
    return describe_fields(error.errors(), "field")


def _check_roles(kind: JobKind, given: set[str]) -> None:
    missing, extra = set(kind.roles) - given, given - {*kind.roles, *kind.optional_roles}
    if missing:
        raise ApiError(422, "missing_file", f"kind {kind.value} needs a file as {' and one as '.join(sorted(missing))}")
    if extra:
        raise ApiError(422, "invalid_request", f"kind {kind.value} takes no file as {' or '.join(sorted(extra))}")


async def _submit(
    context: ApiContext,
    kind: JobKind,
    files: dict[str, ReceivedFile],
    options: GenerationOptions,
    submitter: str | None,
) -> Job:
    given = {role: (file.name, file.path) for role, file in files.items()}
    call = partial(context.service.submit, kind, given, options, move=True, submitter=submitter)
    return await anyio.to_thread.run_sync(call, limiter=context.probes)
