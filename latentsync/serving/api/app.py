"""The REST API of a job service, as an application for any ASGI server."""

import threading
from collections.abc import Collection, Mapping
from typing import Any

from fastapi import Depends, FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.security import APIKeyHeader, HTTPBearer

from latentsync import __version__
from latentsync.serving.api import batches, jobs, people, state
from latentsync.serving.api.access import BrowserGuard, HeaderGuard
from latentsync.serving.api.context import ApiContext
from latentsync.serving.api.docs import add_docs
from latentsync.serving.api.errors import install_handlers, responses
from latentsync.serving.api.examples import OF_MODELS
from latentsync.serving.api.fetch import Fetcher
from latentsync.serving.api.keys import ApiKeys, key_check
from latentsync.serving.api.limits import ApiLimits
from latentsync.serving.api.metrics import CountRequests, Metrics
from latentsync.serving.api.request_ids import RequestIds
from latentsync.serving.api.schema import Batch, UrlBatch, UrlJob
from latentsync.serving.api.uploads import UploadReceiver
from latentsync.serving.api.webhooks import WebhookSender
from latentsync.serving.service import JobService

DESCRIPTION = """\
Lip sync as a queue of jobs: upload a video and audio, follow the job, download the result.

Every error is `{"error": {"code", "message"}}`. Every response has an `X-Request-ID`, which the server's log
repeats. If the server has API keys, send yours as
`Authorization: Bearer KEY` or `X-API-Key: KEY`.
"""
TAGS = [
    {"name": "jobs", "description": "Submit, follow, download."},
    {"name": "server", "description": "The server itself."},
]


def create_app(
    service: JobService,
    *,
    api_key: str | None = None,
    named_keys: Mapping[str, str] | None = None,
    allowed_hosts: Collection[str] | None = None,
    fetcher: Fetcher | None = None,
    limits: ApiLimits | None = None,
    webhooks: WebhookSender | None = None,
    closing: threading.Event | None = None,
) -> FastAPI:
    """Build the application.

    Args:
        service: runs the jobs; the caller starts and stops it.
        api_key: needed for everything but the documentation and health routes, and sees all jobs; None for no key.
        named_keys: name -> key; each sees only the jobs submitted with it.
        allowed_hosts: accepted names in the Host header; None for any. Without a key on a loopback address, pass
            `access.LOOPBACK_NAMES`, or a page of another site could reach the server through a name that leads here.
        fetcher: downloads inputs given as URLs; None rejects them.
        limits: limits on the requests of a client.
        webhooks: calls the webhooks of jobs, started and stopped by the caller; None accepts none.
        closing: set by the server when it begins to stop, so that event streams end.
    """
    limits = limits or ApiLimits()
    uploads = UploadReceiver(
        service.upload_folder(), service.settings.max_upload_bytes, service.settings.min_free_bytes, limits
    )
    app = Api(title="LatentSync", version=__version__, description=DESCRIPTION, docs_url=None, redoc_url=None)
    app.state.context = ApiContext(service, limits, uploads, fetcher, closing or threading.Event(), webhooks)
    app.state.metrics = Metrics(service, uploads)
    keys = ApiKeys(api_key, named_keys or {})
    needs_key = [Depends(key_check(keys))]
    if keys:
        # These only document how the key is sent; `key_check` checks it.
        needs_key += [Depends(HTTPBearer(auto_error=False)), Depends(APIKeyHeader(name="X-API-Key", auto_error=False))]
    app.include_router(jobs.router, dependencies=needs_key, responses=responses(401) if keys else None)
    app.include_router(batches.router, dependencies=needs_key, responses=responses(401) if keys else None)
    app.include_router(people.router, dependencies=needs_key, responses=responses(401) if keys else None)
    app.include_router(state.keyed_router, dependencies=needs_key, responses=responses(401) if keys else None)
    app.include_router(state.open_router)
    add_docs(app)
    install_handlers(app)
    app.add_middleware(CountRequests, metrics=app.state.metrics)
    app.add_middleware(BrowserGuard, hosts=allowed_hosts)
    app.add_middleware(HeaderGuard)
    app.add_middleware(RequestIds)
    return app


class Api(FastAPI):
    """FastAPI whose OpenAPI document has examples, and the models of the body of POST /v1/jobs, parsed by hand."""

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is not None:
            return self.openapi_schema
        document = get_openapi(
            title=self.title, version=self.version, description=self.description, routes=self.routes, tags=TAGS
        )
        schemas = document["components"]["schemas"]
        for model in (UrlJob, UrlBatch, Batch):
            own = model.model_json_schema(ref_template="#/components/schemas/{model}")
            for name, schema in {**own.pop("$defs", {}), model.__name__: own}.items():
                schemas.setdefault(name, schema)
        for name, value in OF_MODELS.items():
            schemas[name]["examples"] = [value]
        self.openapi_schema = document
        return document
