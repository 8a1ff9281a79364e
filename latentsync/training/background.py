"""Validation in a process of its own, while all processes of the run train on."""

import logging
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from latentsync.training.stopping import ignore_first_signal
from latentsync.training.task import ValidateExport
from latentsync.utils.processes import exit_with_parent

logger = logging.getLogger(__name__)


class BackgroundValidation:
    """Validates exports one after another; for the main process of a run."""

    def __init__(self, validate: ValidateExport) -> None:
        self._validate = validate
        self._pool = _new_pool()
        self._running: deque[tuple[int, Path, Future[Mapping[str, float]]]] = deque()

    def start(self, export: Path, step: int, folder: Path) -> None:
        """Queue an export; videos go into `folder`, which exists."""
        work = partial(self._validate, export, step, folder)
        try:
            future = self._pool.submit(work)
        except BrokenProcessPool:  # the process died, for example because memory ran out
            self._pool = _new_pool()
            future = self._pool.submit(work)
        self._running.append((step, folder, future))

    def finished(self, *, wait: bool = False) -> Iterator[tuple[int, Path, Mapping[str, float]]]:
        """Step, folder and metrics of the validations that have ended since the last call, or with `wait` of all.
        One that failed is logged and left out: training does not depend on it."""
        while self._running and (wait or self._running[0][2].done()):
            step, folder, future = self._running.popleft()
            if not future.done():
                logger.info("waiting for the validation at step %d", step)
            try:
                metrics = future.result()
            except Exception as error:
                logger.error("validation at step %d failed: %s: %s", step, type(error).__name__, error)
                continue
            yield step, folder, metrics

    def close(self) -> None:
        """Drop queued calls, and wait for the running one."""
        self._pool.shutdown(cancel_futures=True)


def _new_pool() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, get_context("spawn"), _begin)  # CUDA does not survive a fork


def _begin() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    exit_with_parent()
    ignore_first_signal(0)
