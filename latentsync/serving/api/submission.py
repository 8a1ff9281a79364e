"""POST /v1/jobs: turns a form with files, or if allowed a JSON object with URLs, into a job."""

import re
from collections.abc import Mapping
from functools import partial
from typing import Any, TypeVar

import anyio.to_thread
from fastapi import Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from latentsync.options import OPTIONS, GenerationOptions, OptionError, describe_problems, parse_options
from latentsync.serving.api import examples
from latentsync.serving.api.context import ApiContext
from latentsync.serving.api.errors import ApiError
from latentsync.serving.api.errors import describe_problems as describe_fields
from latentsync.serving.api.multipart import ReceivedFile
from latentsync.serving.api.schema import MAX_URL, TAGS, WEBHOOK, FormJob, JobRequest, JobView, UrlJob
from latentsync.serving.api.uploads import Body, ClientGone
from latentsync.serving.api.webhooks import SECRET_VARIABLE
from latentsync.serving.jobs import AUDIO_ROLES, Job, JobKind, JobState, Metadata, QueueFull

MORE_AUDIO = "Further audio of a script, which names it by its file name or by this field."
FORM, JSON = "multipart/form-data", "application/json"
_KEY = re.compile(r"[A-Za-z0-9._:-]{1,128}")
M = TypeVar("M", bound=BaseModel)
CLIENT_CLOSED = 499  # only seen in the log


def request_body_docs() -> dict:
    """The request body of POST /v1/jobs for OpenAPI: the files, and the options of a job as form fields."""
    schema = GenerationOptions.model_json_schema(ref_template="#/components/schemas/{model}")
    options = {name: _not_null(part) for name, part in schema["properties"].items() if not OPTIONS[name].is_file}
    files = {
        "video": {"type": "string", "format": "binary", "description": "Video or image of a person."},
        "audio": {"type": "string", "format": "binary", "description": "Speech, unless text or a script is given."},
        "mask": {"type": "string", "format": "binary", "description": OPTIONS["mask_image_path"].help},
        "script": {"type": "string", "format": "binary", "description": OPTIONS["script"].help},
        **{role: {"type": "string", "format": "binary", "description": MORE_AUDIO} for role in AUDIO_ROLES[1:]},
        "kind": {"type": "string", "enum": [kind.value for kind in JobKind], "default": JobKind.LIPSYNC.value},
        "tags": {"type": "string", "description": f"{TAGS} Separated by commas.", "examples": ["campaign-7,draft"]},
        "webhook_url": {"type": "string", "maxLength": MAX_URL, "description": WEBHOOK},
    }
    form = {
        "type": "object",
        "required": ["video"],
        "properties": files | options,
        "additionalProperties": False,
    }
    by_url = {"$ref": "#/components/schemas/UrlJob"}
    return {"required": True, "content": {FORM: {"schema": form, "example": examples.FORM}, JSON: {"schema": by_url}}}


def _not_null(schema: dict[str, Any]) -> dict[str, Any]:
    """The JSON schema of an option without null, which a form cannot express."""
    types = [variant for variant in schema.get("anyOf", ()) if variant != {"type": "null"}]
    if len(types) != 1:
        return schema
    return {name: value for name, value in schema.items() if name not in ("anyOf", "default")} | types[0]


async def submit(request: Request, context: ApiContext, submitter: str | None) -> Response:
    """Receive the files, check them and queue the job: 202 with the job, which belongs to `submitter`.

    200 with the earlier job if the request has an Idempotency-Key that was used before.
    """
    key = idempotency_key(request)
    earlier = await anyio.to_thread.run_sync(context.service.submitted_before, key, submitter)
    if earlier is not None:
        return answer(earlier, request, 200)
    body = Body(request, context.limits)
    try:
        job = await _receive(body, context, submitter, key)
    except ClientGone:
        return Response(status_code=CLIENT_CLOSED)
    return answer(job, request, 202)


def answer(job: Job, request: Request, status: int) -> JSONResponse:
    view = JobView.of(job, request)
    return JSONResponse(view.model_dump(mode="json"), status, {"Location": view.links.self})


def idempotency_key(request: Request) -> str | None:
    """The key of the request. Raises ApiError if it is not valid."""
    key = request.headers.get("idempotency-key")
    if key is not None and not _KEY.fullmatch(key):
        raise ApiError(422, "invalid_request", "Idempotency-Key must have 1 to 128 letters, digits or -_.:")
    return key


def body_kind(body: Body, context: ApiContext) -> str:
    """The media type of a body. Raises ApiError if the server does not accept it."""
    kind = body.content_type.partition(";")[0].strip().lower()
    if kind not in (FORM, JSON):
        raise ApiError(
            415, "unsupported_media_type", f"send {FORM} with the files (curl: -F video=@FILE -F audio=@FILE)"
        )
    if kind == JSON and context.fetcher is None:
        raise ApiError(403, "urls_not_allowed", f"this server accepts no URLs; upload the files as {FORM}")
    return kind


async def _receive(body: Body, context: ApiContext, submitter: str | None, key: str | None) -> Job:
    fetcher, kind_of_body = context.fetcher, body_kind(body, context)
    await refuse_when_full(context)
    async with context.uploads.folder() as folder:
        if kind_of_body == FORM or fetcher is None:
            form = await context.uploads.receive_form(body, folder)
            wanted: JobRequest = _form_job(form.fields)
            kind, options, files = wanted.kind, wanted.options, form.files
            check_roles(kind, set(files), options)
        else:
            text = b"".join([piece async for piece in body.pieces(context.limits.max_json_bytes)])
            by_url = parse_json(UrlJob, text)
            wanted, kind, options = by_url, by_url.kind, by_url.options
            check_roles(kind, set(by_url.urls()), options)
            files = {role: await fetcher.fetch(url, role, folder) for role, url in by_url.urls().items()}
        metadata = await read_metadata(wanted, context, key)
        return await queue(context, kind, files, options, submitter, metadata)


async def refuse_when_full(context: ApiContext) -> None:
    """Checked before anything is received; the service checks again when the job is queued."""
    most = context.service.settings.max_queue
    last_place = partial(context.service.list, states=[JobState.QUEUED], limit=1, offset=most - 1)
    if await anyio.to_thread.run_sync(last_place):
        raise QueueFull(f"{most} jobs are queued already; try again later")


def _form_job(fields: Mapping[str, str]) -> FormJob:
    """The job in the text fields of a form; an empty field counts as not given."""
    given = {name: value for name, value in fields.items() if value != ""}
    own = {name: given.pop(name) for name in ("kind", "tags", "webhook_url") if name in given}
    try:
        return FormJob.model_validate(own | {"options": parse_options(given)})
    except ValidationError as error:
        raise ApiError(422, "invalid_options", describe_job(error)) from error
    except OptionError as error:
        raise ApiError(422, "invalid_options", str(error)) from error


def parse_json(model: type[M], text: bytes | str, what: str = "the body") -> M:
    """A model from JSON. Raises ApiError if it is not valid."""
    try:
        values = from_json(text, allow_inf_nan=False)
    except ValueError as error:
        raise ApiError(400, "broken_json", f"{what} is not valid JSON") from error
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise ApiError(422, "invalid_options", describe_job(error)) from error


def describe_job(error: ValidationError) -> str:
    """One line about the error of a job."""
    options = [problem for problem in error.errors() if problem["loc"][:1] == ("options",)]
    if options:
        return describe_problems([{**problem, "loc": problem["loc"][1:]} for problem in options])
    return describe_fields(error.errors(), "field")


def check_roles(kind: JobKind, given: set[str], options: GenerationOptions) -> None:
    """Raises ApiError unless a job of this kind takes exactly these files."""
    missing = set(kind.needed_roles(options, given)) - given
    extra = given - set(kind.accepted_roles(options, given))
    if missing:
        instead = ", or a text, or a script" if "audio" in missing else ""
        needed = " and one as ".join(sorted(missing, reverse=True))
        raise ApiError(422, "missing_file", f"kind {kind.value} needs a file as {needed}{instead}")
    if extra:
        raise ApiError(422, "invalid_request", f"kind {kind.value} takes no file as {' or '.join(sorted(extra))}")


async def read_metadata(wanted: JobRequest, context: ApiContext, key: str | None = None) -> Metadata:
    """Tags, webhook and key of a job. Raises ApiError if the webhook cannot be called."""
    if wanted.webhook_url is not None:
        if context.webhooks is None:
            message = f"this server calls no webhooks; it needs a secret in {SECRET_VARIABLE}"
            raise ApiError(403, "webhooks_not_allowed", message)
        await anyio.to_thread.run_sync(context.webhooks.check, wanted.webhook_url)
    return Metadata(tuple(wanted.tags), wanted.webhook_url, key)


async def queue(
    context: ApiContext,
    kind: JobKind,
    files: Mapping[str, ReceivedFile],
    options: GenerationOptions,
    submitter: str | None,
    metadata: Metadata,
    *,
    move: bool = True,
) -> Job:
    """Check the files and queue the job. move: the files are needed no more."""
    given = {role: (file.name, file.path) for role, file in files.items()}
    call = partial(context.service.submit, kind, given, options, move=move, submitter=submitter, metadata=metadata)
    return await anyio.to_thread.run_sync(call, limiter=context.probes)
