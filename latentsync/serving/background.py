"""Background threads that outlive errors."""

import logging
import threading
from collections.abc import Callable

logger = logging.getLogger(__name__)


class BackgroundTask:
    """Calls `step` in a thread, again and again, until `stopping` is set.

    An exception in `step` is logged and kept in `failure` until a call succeeds; it never ends the thread.

    Args:
        name: of the thread, for messages.
        step: function to call.
        seconds: pause between two calls.
        at_end: called last, in the same thread.
        stopping: shared with other code; the task's own by default.
    """

    def __init__(
        self,
        name: str,
        step: Callable[[], object],
        seconds: float,
        at_end: Callable[[], object] = lambda: None,
        stopping: threading.Event | None = None,
    ) -> None:
        self.name, self.step, self.seconds, self.at_end = name, step, seconds, at_end
        self.stopping = stopping or threading.Event()
        self._restartable = stopping is None
        self.failure: str | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread; no effect while it runs."""
        if self._thread is None:
            if self._restartable:
                self.stopping.clear()
            self._thread = threading.Thread(target=self._run, name=self.name, daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Stop the thread and wait for it."""
        self.stopping.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        while not self.stopping.is_set():
            self._call(self.step)
            self.stopping.wait(self.seconds)
        self._call(self.at_end)

    def _call(self, function: Callable[[], object]) -> None:
        try:
            function()
            self.failure = None
        except Exception as error:  # whatever it is, the next call may succeed
            text = f"{type(error).__name__}: {error}"
            if text != self.failure:
                logger.exception("%s failed; it will be tried again", self.name)
            self.failure = text
