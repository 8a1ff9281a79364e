"""Overlapping stages: order, bounds, errors from either side, interrupts, and no thread left behind."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from latentsync.utils.threads import Sink, prefetch
from tests.waiting import HANG_SECONDS, eventually


@pytest.fixture(autouse=True)
def no_thread_left_and_no_hang() -> Iterator[None]:
    """A deadlock ends in an error of this test, not of the whole run."""

    def hang(number: int, frame: object) -> None:
        raise TimeoutError("deadlock")

    before = set(threading.enumerate())
    previous = signal.signal(signal.SIGALRM, hang)
    signal.alarm(int(HANG_SECONDS))
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, previous)
    assert set(threading.enumerate()) <= before


class Source:
    """An endless generator that knows how far it was asked and whether it was closed."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.made, self.closed, self.fail_at = 0, False, fail_at

    def __iter__(self) -> Iterator[int]:
        try:
            while True:
                if self.made == self.fail_at:
                    raise OSError("decoder broke")
                self.made += 1
                yield self.made - 1
        finally:
            self.closed = True


def stops_at(value: Callable[[], int], expected: int) -> bool:
    """Whether the value reaches `expected` and then stays there."""
    reached = eventually(lambda: value() >= expected)
    time.sleep(0.1)
    return reached and value() == expected


def press_ctrl_c() -> None:
    """Interrupt the main thread. Called from another thread while the main thread waits for it."""
    time.sleep(0.1)  # the main thread has begun to wait; where it has not, it is interrupted a little earlier
    os.kill(os.getpid(), signal.SIGINT)


def test_prefetch_keeps_order_and_ends():
    assert list(prefetch(iter(range(1000)), 3)) == list(range(1000))
    assert list(prefetch([], 3)) == []


def test_prefetch_runs_ahead_but_not_away():
    source = Source()
    items = prefetch(source, 4)
    assert source.made == 0  # nothing starts before it is asked for
    assert next(items) == 0
    assert stops_at(lambda: source.made, 6)  # one taken, four waiting, one in the producer's hand
    items.close()
    assert source.closed


def test_prefetch_yields_earlier_items_before_an_error():
    source, got = Source(fail_at=5), []
    with pytest.raises(OSError, match="decoder broke"):
        for item in prefetch(source, 2):
            got.append(item)
    assert got == [0, 1, 2, 3, 4] and source.closed


@pytest.mark.parametrize("broken", [None, 3])
def test_prefetch_of_a_noniterable_raises_instead_of_waiting(broken):
    with pytest.raises(TypeError):
        next(prefetch(broken, 2))


def test_an_error_of_the_consumer_ends_a_producer_that_is_blocked():
    source = Source()
    items = prefetch(source, 1)
    with pytest.raises(ValueError, match="consumer"):
        for _ in items:
            stops_at(lambda: source.made, 3)
            raise ValueError("consumer")
    items.close()
    assert source.closed


def test_an_error_on_closing_the_producer_is_not_lost():
    def items() -> Iterator[int]:
        try:
            yield 1
        finally:
            raise OSError("file did not close")

    with pytest.raises(OSError, match="did not close"):
        list(prefetch(items(), 2))


def test_ctrl_c_while_waiting_for_the_producer_closes_it_first():
    events = []

    def slow() -> Iterator[int]:
        try:
            press_ctrl_c()
            time.sleep(0.2)
            yield 1
        finally:
            events.append("closed")

    with pytest.raises(KeyboardInterrupt):
        list(prefetch(slow(), 2))
    assert events == ["closed"]


def test_sink_consumes_everything_in_order():
    seen: list[int] = []
    with Sink(seen.append, 2) as sink:
        for item in range(100):
            sink.put(item)
    assert seen == list(range(100))


def test_sink_is_bounded():
    gate, taken = threading.Event(), []

    def consume(item: int) -> None:
        taken.append(item)
        gate.wait()

    put = []
    with Sink(consume, 3) as sink:
        feeder = threading.Thread(target=lambda: [(sink.put(item), put.append(item)) for item in range(10)])
        feeder.start()
        assert stops_at(lambda: len(put), 4)  # one being consumed, three waiting
        gate.set()
        feeder.join()
    assert taken == list(range(10))


def test_an_error_of_the_sink_reaches_a_producer_that_is_blocked():
    def full(item: int) -> None:
        time.sleep(0.1)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"), Sink(full, 1) as sink:
        while True:
            sink.put(0)


def test_an_error_of_the_sink_after_the_last_item_is_raised_on_leaving():
    def full(item: int) -> None:
        time.sleep(0.1)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"), Sink(full, 5) as sink:
        sink.put(0)
        sink.put(1)


def test_leaving_a_sink_by_an_exception_drops_queued_items_and_finishes_the_current_one():
    started, finished, leaving = [], [], threading.Event()

    def consume(item: int) -> None:
        started.append(item)
        leaving.wait()
        time.sleep(0.01)
        finished.append(item)

    with pytest.raises(ValueError, match="body"), Sink(consume, 10_000) as sink:
        for item in range(10_000):
            sink.put(item)
        assert eventually(lambda: started)
        leaving.set()
        raise ValueError("body")
    assert started == finished and len(finished) < 10_000


@pytest.mark.parametrize("presses", [1, 3])
def test_ctrl_c_while_a_sink_is_being_left_waits_for_the_item_at_work(presses):
    """What `consume` uses is released next: it must not be running any more, however impatient the user is."""
    running, leaving = [], threading.Event()

    def consume(item: int) -> None:
        running.append(item)
        leaving.wait()
        if item == 0:
            for _ in range(presses):
                press_ctrl_c()
        time.sleep(0.2)
        running.remove(item)

    with pytest.raises(KeyboardInterrupt), Sink(consume, 8) as sink:
        for item in range(8):
            sink.put(item)
        leaving.set()
    assert not running


def test_a_chain_with_a_failing_sink_ends_the_producer_too():
    source = Source()

    def fail(item: int) -> None:
        if item == 50:
            raise OSError("disk full")

    items = prefetch(source, 2)
    with pytest.raises(OSError, match="disk full"), Sink(fail, 2) as sink:
        for item in items:
            sink.put(item)
    items.close()
    assert source.closed


UNFINISHED = """
from latentsync.utils.threads import prefetch

def numbers():
    try:
        yield from range(10**9)
    finally:
        print("closed")

items = prefetch(prefetch(numbers(), 2), 2)
print(next(items))
"""


def test_a_program_may_leave_a_generator_unfinished():
    ended = subprocess.run([sys.executable, "-c", UNFINISHED], capture_output=True, text=True, timeout=HANG_SECONDS)
    assert (ended.returncode, ended.stdout.split(), ended.stderr) == (0, ["0", "closed"], "")
