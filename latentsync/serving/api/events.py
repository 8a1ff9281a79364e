"""Progress as server-sent events: one `progress` event per change, then one named `final` or `deleted`.

FastAPI's EventSourceResponse fixes the interval of its heartbeat and cannot end a stream when the server stops.
"""

import time
from collections.abc import AsyncIterator, Callable
from functools import partial

import anyio
import anyio.to_thread

from latentsync.serving.api.limits import ApiLimits
from latentsync.serving.jobs import Job, JobNotFound

Look = Callable[[], Job]


async def event_stream(
    look: Look, show: Callable[[Job], str], is_closing: Callable[[], bool], limits: ApiLimits
) -> AsyncIterator[str]:
    """Events of one job until it is finished or deleted, or the server stops.

    look: gets the job; may block. show: the job as one line of JSON. Clients that reconnect get the current state.
    """
    yield "retry: 2000\n\n"
    shown, last = None, time.monotonic()
    while not is_closing():
        try:
            job = await anyio.to_thread.run_sync(partial(look))
        except JobNotFound:
            yield "event: deleted\ndata: {}\n\n"
            return
        line = show(job)
        if job.state.is_final:
            yield f"event: final\ndata: {line}\n\n"
            return
        if line != shown:
            shown, last = line, time.monotonic()
            yield f"event: progress\ndata: {line}\n\n"
        elif time.monotonic() - last > limits.heartbeat_seconds:
            last = time.monotonic()
            yield ": still here\n\n"
        await anyio.sleep(limits.poll_seconds)
