"""State shared by the routes; `app.state.context` holds the only instance."""

import threading
from dataclasses import dataclass
from typing import Annotated

import anyio
from fastapi import Depends, Request

from latentsync.serving.api.fetch import Fetcher
from latentsync.serving.api.limits import ApiLimits
from latentsync.serving.api.uploads import UploadReceiver
from latentsync.serving.api.webhooks import WebhookSender
from latentsync.serving.service import JobService


@dataclass
class ApiContext:
    """closing: set when the server begins to stop, so that streams end. fetcher: None if URLs are not
    accepted. webhooks: None if no webhooks are called."""

    service: JobService
    limits: ApiLimits
    uploads: UploadReceiver
    fetcher: Fetcher | None
    closing: threading.Event
    webhooks: WebhookSender | None = None
    streams: int = 0

    def __post_init__(self) -> None:
        # Separate thread limits for slow requests, so that reading jobs never waits for them.
        self.probes = anyio.CapacityLimiter(self.limits.parallel_probes)
        self.scans = anyio.CapacityLimiter(self.limits.parallel_scans)
        self.deletions = anyio.CapacityLimiter(self.limits.parallel_deletions)


def context_of(request: Request) -> ApiContext:
    return request.app.state.context


def submitter_of(request: Request) -> str | None:
    """Name of the key the request came with, which sees only its own jobs; None if it may see all jobs."""
    return request.state.submitter


Context = Annotated[ApiContext, Depends(context_of)]
Submitter = Annotated[str | None, Depends(submitter_of)]
