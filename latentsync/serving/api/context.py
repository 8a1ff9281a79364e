"""What the routes share; one instance lies in `app.state.context`."""

import threading
from dataclasses import dataclass
from typing import Annotated

import anyio
from fastapi import Depends, Request

from latentsync.serving.api.fetch import Fetcher
from latentsync.serving.api.limits import ApiLimits
from latentsync.serving.api.uploads import UploadDesk
from latentsync.serving.service import JobService


@dataclass
class ApiContext:
    """closing: set when the server begins to stop; streams end then. fetcher: None where URLs are not accepted."""

    service: JobService
    limits: ApiLimits
    desk: UploadDesk
    fetcher: Fetcher | None
    closing: threading.Event
    streams: int = 0

    def __post_init__(self) -> None:
        # Threads of their own for what may take seconds, so that looking at jobs never waits for it.
        self.probes = anyio.CapacityLimiter(self.limits.parallel_probes)
        self.deletions = anyio.CapacityLimiter(self.limits.parallel_deletions)


def context_of(request: Request) -> ApiContext:
    return request.app.state.context


Context = Annotated[ApiContext, Depends(context_of)]
