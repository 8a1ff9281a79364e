"""Two ways to let stages of a stream overlap, both with bounded queues and honest errors."""

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")
_END = object()
_POLL_SECONDS = 0.1


def prefetch(items: Iterable[T], depth: int) -> Iterator[T]:
    """Yield `items`, produced up to `depth` ahead in a thread of their own.

    An error in the producer is raised at the consumer. When the consumer stops early (an exception, Ctrl-C), the
    producer's generator is closed before this one returns, so files and decoders are released.
    """
    ready: queue.Queue = queue.Queue(maxsize=depth)
    stopped = threading.Event()

    def put(item: Any) -> bool:
        while not stopped.is_set():
            try:
                ready.put(item, timeout=_POLL_SECONDS)
                return True
            except queue.Full:
                continue
        return False

    def produce() -> None:
        iterator = iter(items)
        try:
            for item in iterator:
                if not put((item, None)):
                    break
            put((_END, None))
        except BaseException as error:  # handed over, not swallowed: raised again by the consumer
            put((_END, error))
        finally:
            if hasattr(iterator, "close"):
                iterator.close()

    thread = threading.Thread(target=produce, name="prefetch", daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if error is not None:
                raise error
            if item is _END:
                return
            yield item
    finally:
        stopped.set()
        thread.join()


class Sink:
    """Calls `consume(item)` for each item in order in a thread of its own; at most `depth` items wait.

    A context manager: leaving it normally waits until all is consumed and raises the consumer's error, if any;
    leaving it by an exception drops what waits.
    """

    def __init__(self, consume: Callable[[T], None], depth: int):
        self._consume = consume
        self._waiting: queue.Queue = queue.Queue(maxsize=depth)
        self._error: BaseException | None = None
        self._dropped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sink", daemon=True)

    def put(self, item: T) -> None:
        """Hand over one item; blocks while `depth` items wait. Raises what the consumer raised."""
        self._raise_error()
        self._waiting.put(item)

    def _run(self) -> None:
        while (item := self._waiting.get()) is not _END:
            if self._error is None and not self._dropped.is_set():
                try:
                    self._consume(item)
                except BaseException as error:  # raised again by put() or on leaving
                    self._error = error

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    def __enter__(self) -> "Sink":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._dropped.set()
        self._waiting.put(_END)
        self._thread.join()
        if kind is None:
            self._raise_error()
