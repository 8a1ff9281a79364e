"""Progress as server-sent events: one `progress` event per change, then one named `final` or `deleted`.

FastAPI's EventSourceResponse fixes the interval of its heartbeat and cannot end a stream when the server stops; its
formatting of events is used.
"""

import hashlib
import time
from collections.abc import AsyncIterator, Callable

import anyio
import anyio.to_thread
from fastapi.sse import format_sse_event

from latentsync.serving.api.limits import ApiLimits
from latentsync.serving.jobs import Job, JobNotFound

RETRY_MILLISECONDS = 2000
ReadJob = Callable[[], Job]


def event_id(line: str) -> str:
    """The id of an event with this content."""
    return hashlib.sha256(line.encode()).hexdigest()[:16]


async def event_stream(
    read_job: ReadJob,
    show: Callable[[Job], str],
    is_closing: Callable[[], bool],
    limits: ApiLimits,
    last_id: str | None = None,
) -> AsyncIterator[bytes]:
    """Events of one job until it is finished or deleted, or the server stops.

    read_job: gets the job; may block. show: the job as one line of JSON. last_id: the last event received by a client
    that reconnects; it gets the current state if that differs.
    """
    yield format_sse_event(retry=RETRY_MILLISECONDS)
    shown, last = last_id, time.monotonic()
    while not is_closing():
        try:
            job = await anyio.to_thread.run_sync(read_job)
        except JobNotFound:
            yield format_sse_event(event="deleted", data_str="{}")
            return
        line = show(job)
        if job.state.is_final:
            yield format_sse_event(event="final", data_str=line, id=event_id(line))
            return
        if event_id(line) != shown:
            shown, last = event_id(line), time.monotonic()
            yield format_sse_event(event="progress", data_str=line, id=shown)
        elif time.monotonic() - last > limits.heartbeat_seconds:
            last = time.monotonic()
            yield format_sse_event(comment="still here")
        await anyio.sleep(limits.poll_seconds)
