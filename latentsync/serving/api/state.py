"""Routes about the server itself: health, readiness, metrics, models."""

import shutil

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from latentsync import __version__
from latentsync.checkpoints.registry import REGISTRY
from latentsync.loading import can_upscale
from latentsync.serving.api.context import ApiContext, Context
from latentsync.serving.api.examples import METRICS
from latentsync.serving.api.schema import Health, ModelList, ModelView, Readiness
from latentsync.serving.models import find_model, list_loras, list_models
from latentsync.utils.errors import UserError

open_router = APIRouter(tags=["server"])  # without a key, for the container's health check
keyed_router = APIRouter(tags=["server"])


@open_router.get("/healthz", response_model=Health, summary="Liveness")
def health() -> Health:
    return Health(status="ok", version=__version__)


@open_router.get(
    "/readyz",
    response_model=Readiness,
    summary="Readiness to accept and run jobs",
    responses={503: {"model": Readiness, "description": "not ready"}},
)
def readiness(context: Context) -> Response:
    problems = find_problems(context)
    view = Readiness(ready=not problems, problems=problems)
    return JSONResponse(view.model_dump(), 503 if problems else 200)


def find_problems(context: ApiContext) -> list[str]:
    """Why jobs cannot be accepted or run at the moment."""
    problems = context.service.problems()
    if context.closing.is_set():
        problems.append("the server is stopping")
    stats = context.service.stats()
    if not stats.workers_alive and not problems:
        problems.append("no worker is running; workers need some seconds to start")
    if stats.queue_length >= context.service.settings.max_queue:
        problems.append(f"the queue is full: {stats.queue_length} jobs wait")
    if shutil.disk_usage(context.service.settings.workspace).free < context.service.settings.min_free_bytes:
        problems.append("the disk is full; delete old jobs, or free space")
    try:
        find_model(context.service.settings.model)
    except UserError as error:
        problems.append(str(error))
    return problems


@keyed_router.get(
    "/metrics",
    response_class=Response,
    summary="Prometheus metrics",
    responses={200: {"content": {"text/plain": {"example": METRICS}}}},
)
def metrics(request: Request) -> Response:
    return Response(request.app.state.metrics.text(), media_type=CONTENT_TYPE_LATEST)


@keyed_router.get("/v1/models", response_model=ModelList, summary="Models and whether they are present")
def models(context: Context) -> ModelList:
    present = [
        ModelView(name=model.name, summary=model.summary, resolution=model.resolution, present=True, missing=[])
        for model in list_models()
    ]
    names = {view.name for view in present}
    absent = [
        ModelView(
            name=name,
            summary=entry.summary,
            resolution=entry.model.resolution,
            present=False,
            missing=[file.path for file in entry.missing()],
        )
        for name, entry in REGISTRY.items()
        if entry.model is not None and name not in names
    ]
    loras = [lora.name for lora in list_loras()]
    return ModelList(
        models=present + absent, loras=loras, can_upscale=can_upscale(), default=context.service.settings.model
    )
