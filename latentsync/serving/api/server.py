"""Uvicorn for the API: event streams end when it stops, and clients that stall are disconnected."""

import asyncio
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import HANDLED_SIGNALS

from latentsync.serving.api.access import MAX_HEAD_BYTES
from latentsync.serving.service import JobService
from latentsync.utils.sandbox import shut_down

STOP_SECONDS = 1  # for open requests when the server stops
HEAD_SECONDS = 20.0  # for a client to send the request line and headers
LINGER_SECONDS = 5.0  # a rejected client may continue to send for this long, so that it reads the response
MAX_CONNECTIONS = 1000


class TimeLimitedProtocol(H11Protocol):
    """HTTP/1.1 that closes a connection if the head of a request takes longer than HEAD_SECONDS, or the rest of a
    rejected body longer than LINGER_SECONDS."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()
        super().connection_lost(exc)

    def _watch(self) -> None:
        """Set a deadline while a request is awaited, and only then."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._forget()
        elif self._deadline is None and not self.transport.is_closing():
            refused = self.cycle is not None and self.conn.their_state is h11.SEND_BODY
            self._deadline = self.loop.call_later(LINGER_SECONDS if refused else HEAD_SECONDS, self.transport.close)

    def _forget(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


class ApiServer(uvicorn.Server):
    """Serves an application of `create_app` on the sockets passed to `run`; `on_ready` is called with the URL.

    To stop, it accepts no more connections, sets the application's `closing`, so that event streams end, gives other
    requests STOP_SECONDS, and meanwhile stops the workers.
    """

    def __init__(
        self, app: FastAPI, *, log_level: str = "info", on_ready: Callable[[str], None] = lambda url: None
    ) -> None:
        self.on_ready = on_ready
        self.closing: threading.Event = app.state.context.closing
        self.service: JobService = app.state.context.service
        config = uvicorn.Config(
            app,
            http=TimeLimitedProtocol,
            ws="none",
            loop="asyncio",
            log_level=log_level,
            log_config=None,  # log as the rest of the program does
            limit_concurrency=MAX_CONNECTIONS,
            h11_max_incomplete_event_size=MAX_HEAD_BYTES,
            timeout_graceful_shutdown=STOP_SECONDS,
            server_header=False,
            proxy_headers=False,
        )
        super().__init__(config)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.closing.set()
        super().handle_exit(sig, frame)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals that the process ignores (nohup, background jobs of scripts) stay ignored."""
        ignored = [number for number in HANDLED_SIGNALS if signal.getsignal(number) is signal.SIG_IGN]
        with super().capture_signals():
            for number in ignored:
                if signal.getsignal(number) is not signal.SIG_IGN:  # uvicorn catches signals in the main thread only
                    signal.signal(number, signal.SIG_IGN)
            yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            host, port = self.servers[0].sockets[0].getsockname()[:2]
            self.on_ready(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.closing.set()
        self.service.begin_stop()  # workers stop while requests finish
        shut_down()  # otherwise the server would wait for files that are being examined
        await super().shutdown(sockets)
