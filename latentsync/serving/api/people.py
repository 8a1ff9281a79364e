"""POST /v1/people: who is in a video, so that a job can name a person."""

import base64
from functools import partial

import anyio.to_thread
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from latentsync.serving.api.context import ApiContext, Context
from latentsync.serving.api.errors import ApiError, responses
from latentsync.serving.api.schema import PeopleView, PersonView
from latentsync.serving.api.submission import CLIENT_CLOSED, FORM
from latentsync.serving.api.uploads import Body, ClientGone
from latentsync.serving.inspection import inspect_file
from latentsync.serving.people import PersonInVideo, list_people

router = APIRouter(prefix="/v1/people", tags=["jobs"])
FILE = {"type": "string", "format": "binary", "description": "Video or image."}
FORM_DOCS = {"type": "object", "required": ["video"], "properties": {"video": FILE}, "additionalProperties": False}


@router.post(
    "",
    response_model=PeopleView,
    summary="List the people in a video",
    responses=responses(400, 408, 413, 415, 422, 429, 507),
    openapi_extra={
        "requestBody": {"required": True, "content": {FORM: {"schema": FORM_DOCS, "example": {"video": "(talk.mp4)"}}}}
    },
)
async def list_people_of(request: Request, context: Context) -> Response:
    """Everyone who is seen in the first two minutes, with a portrait. The names are values of the job option `face`.

    `curl -F video=@talk.mp4 http://localhost:8000/v1/people`

    The video is not kept. This takes some seconds, more for longer videos.
    """
    body = Body(request, context.limits)
    if body.content_type.partition(";")[0].strip().lower() != FORM:
        raise ApiError(415, "unsupported_media_type", f"send {FORM} with the file (curl: -F video=@FILE)")
    try:
        people = await _receive(body, context)
    except ClientGone:
        return Response(status_code=CLIENT_CLOSED)
    return JSONResponse(PeopleView(people=[_view(person) for person in people]).model_dump())


async def _receive(body: Body, context: ApiContext) -> list[PersonInVideo]:
    async with context.uploads.folder() as folder:
        form = await context.uploads.receive_form(body, folder, roles=["video"])
        if form.fields:
            raise ApiError(422, "invalid_request", f"there is no field {next(iter(form.fields))[:40]}; send only video")
        if "video" not in form.files:
            raise ApiError(422, "missing_file", "send the file as video")
        file = form.files["video"]
        check = partial(inspect_file, "video", file.name, file.path, context.service.settings)
        await anyio.to_thread.run_sync(check, limiter=context.probes)
        return await anyio.to_thread.run_sync(list_people, file.path, file.name, limiter=context.scans)


def _view(person: PersonInVideo) -> PersonView:
    portrait = "data:image/jpeg;base64," + base64.b64encode(person.portrait).decode()
    return PersonView(name=person.name, seconds=list(person.seconds), first_box=person.first_box, portrait=portrait)
