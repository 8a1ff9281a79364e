"""Threads that overlap the stages of a stream, with bounded buffers; errors reach the caller."""

import atexit
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Generic, TypeVar

T = TypeVar("T")
EXIT_SECONDS = 10.0  # that an exiting program waits for its workers


def prefetch(items: Iterable[T], depth: int) -> Iterator[T]:
    """Yield `items`, produced up to `depth` ahead in a background thread.

    An error in the producer is raised at the consumer, after the items that came before it. When the consumer stops
    early (close, an exception, Ctrl-C), the producer's generator is closed and its thread has ended before this one
    returns, so that files and decoders can be released; items and errors that were not yet consumed are dropped.
    """
    buffer: _Buffer[T] = _Buffer(depth)
    errors: list[BaseException] = []

    def produce() -> None:
        try:
            iterator = iter(items)
            try:
                for item in iterator:
                    if not buffer.put(item):
                        break
            finally:
                if hasattr(iterator, "close"):
                    iterator.close()
        except BaseException as error:  # raised again in the consumer
            errors.append(error)
        finally:
            buffer.close()

    worker = _Worker(produce, "prefetch", partial(buffer.close, drop=True))
    try:
        worker.start()
        yield from buffer
        if errors:
            raise errors[0]
    finally:
        buffer.close(drop=True)
        worker.wait()


class Sink(Generic[T]):
    """Calls `consume(item)` for each item, in order, in a background thread; at most `depth` items are queued.

    A context manager: a normal exit waits until all items are consumed and raises the consumer's error, if any; an
    exit by an exception drops the queued items. In both cases `consume` is no longer running afterwards.
    """

    def __init__(self, consume: Callable[[T], None], depth: int):
        self._consume = consume
        self._waiting: _Buffer[T] = _Buffer(depth)
        self._error: BaseException | None = None
        self._worker = _Worker(self._run, "sink", partial(self._waiting.close, drop=True))

    def put(self, item: T) -> None:
        """Queue one item; blocks while `depth` items are queued. Raises the consumer's error."""
        if not self._waiting.put(item):
            raise self._error or RuntimeError("the sink is closed")

    def _run(self) -> None:
        try:
            for item in self._waiting:
                self._consume(item)
        except BaseException as error:  # raised again by put() or __exit__()
            self._error = error
        finally:
            self._waiting.close(drop=True)

    def __enter__(self) -> "Sink[T]":
        self._worker.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._waiting.close(drop=kind is not None)
        self._worker.wait(on_interrupt=lambda: self._waiting.close(drop=True))
        if kind is None and self._error is not None:
            raise self._error


class _Buffer(Generic[T]):
    """A bounded queue between two threads, which either side can close; then neither waits for the other."""

    def __init__(self, depth: int):
        self._depth = depth
        self._items: deque[T] = deque()
        self._closed = False
        self._changed = threading.Condition()

    def put(self, item: T) -> bool:
        """Add an item as soon as there is room; False, without adding it, if the buffer is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._items) < self._depth)
            if not self._closed:
                self._items.append(item)
                self._changed.notify_all()
            return not self._closed

    def __iter__(self) -> Iterator[T]:
        """Remove and yield items; ends when the buffer is closed and empty."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._items)
                if not self._items:
                    return
                item = self._items.popleft()
                self._changed.notify_all()
            yield item

    def close(self, drop: bool = False) -> None:
        """Accept no more items; with `drop` remove the queued ones. May be called repeatedly."""
        with self._changed:
            self._closed = True
            if drop:
                self._items.clear()
            self._changed.notify_all()


class _Worker:
    """A thread that can be waited for despite Ctrl-C, and that ends before the interpreter does.

    After an interrupted `Thread.join`, Python 3.11 and 3.12 consider the thread finished while it is still running, so
    that its resources would be released too early. A generator that a program leaves unfinished is closed only when the
    interpreter is finalized, where daemon threads no longer run: waiting for one there would never end.

    Args:
        work: runs in the thread.
        name: of the thread.
        stop: makes `work` end soon; may be called repeatedly.
    """

    def __init__(self, work: Callable[[], None], name: str, stop: Callable[[], None]):
        self._work, self.stop = work, stop
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def _run(self) -> None:
        try:
            self._work()
        finally:
            self._ended.set()

    def start(self) -> None:
        _workers.add(self)
        self._thread.start()

    def wait_until(self, deadline: float) -> None:
        """Wait for the end of the work, until a time of `time.monotonic`."""
        self._ended.wait(max(0.0, deadline - time.monotonic()))

    def wait(self, on_interrupt: Callable[[], None] = lambda: None) -> None:
        """Wait for the end of the work. An exception from a signal (Ctrl-C, end of a job) calls `on_interrupt` and is
        raised after the work has ended."""
        if self._thread.ident is None or (sys.is_finalizing() and not self._ended.is_set()):
            return  # never started, or never to run again
        interrupt: BaseException | None = None
        while not self._ended.is_set():
            try:
                self._ended.wait()
            except BaseException as error:
                interrupt = error
                on_interrupt()
        self._thread.join()
        if interrupt is not None:
            raise interrupt


_workers: weakref.WeakSet[_Worker] = weakref.WeakSet()


@atexit.register
def _stop_workers() -> None:
    """Stop the workers of generators that the program has left unfinished."""
    deadline = time.monotonic() + EXIT_SECONDS
    workers = [*_workers]
    for worker in workers:
        worker.stop()
    for worker in workers:
        worker.wait_until(deadline)
