"""Run a list of rows: a row that fails does not stop the others, and the outcomes give the exit code.

For jobs of the service and results of an evaluation, which decide by their own records what an earlier run has done.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Generic, TypeVar

from latentsync.utils.errors import UserError

DONE, KEPT, FAILED = "done", "kept", "failed"
SOME_FAILED, ALL_FAILED = 3, 4  # exit codes
R = TypeVar("R")


@dataclass(frozen=True)
class Outcome(Generic[R]):
    """How a row ended: done, kept (done by an earlier run) or failed. seconds, frames: 0 if unknown."""

    row: R
    status: str
    reason: str = ""
    seconds: float = 0.0
    frames: int = 0


def run_rows(
    rows: Iterable[R],
    work: Callable[[R], Iterator[Outcome[R] | None]],
    at_once: int = 1,
    on_wait: Callable[[], object] = lambda: None,
    fatal: tuple[type[UserError], ...] = (),
) -> Iterator[Outcome[R]]:
    """Yield the outcome of each row when it has ended.

    Args:
        work: a generator for a row: it yields None as long as the row is running, then the outcome. A UserError means
            that the row has failed.
        at_once: number of rows that run at the same time.
        on_wait: called when all of them are running.
        fatal: errors that end the whole run.
    """
    waiting = iter(rows)
    running: dict[Iterator[Outcome[R] | None], R] = {}
    while True:
        running |= {work(row): row for row in islice(waiting, at_once - len(running))}
        if not running:
            return
        before = len(running)
        for steps, row in list(running.items()):
            try:
                outcome = next(steps)
            except fatal:
                raise
            except UserError as error:
                outcome = Outcome(row, FAILED, str(error))
            if outcome is not None:
                del running[steps]
                yield outcome
        if len(running) == before:
            on_wait()


def exit_code(outcomes: Sequence[Outcome]) -> int:
    """0 if no row has failed, 3 if some have, 4 if all have."""
    failed = sum(outcome.status == FAILED for outcome in outcomes)
    return 0 if not failed else ALL_FAILED if failed == len(outcomes) else SOME_FAILED
