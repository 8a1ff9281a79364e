"""Starts workers, watches them, and starts them again when they die."""

import json
import logging
import os
import sqlite3
import subprocess
import sys
import threading
import time
import uuid
from dataclasses import dataclass

from latentsync.serving.jobs import JobState
from latentsync.serving.settings import ServingSettings
from latentsync.serving.store import JobStore
from latentsync.utils.paths import PACKAGE_PARENT

logger = logging.getLogger(__name__)

LOOK_SECONDS = 0.5
GRACE_SECONDS = 1.5  # for a worker to obey before it is killed: it is interrupted, unless native code hangs
HEALTHY_SECONDS = 60.0  # a worker that lives so long did not die of its start
MAX_BACKOFF_SECONDS = 60.0
TIMED_OUT = "the job took longer than the allowed {seconds:g} s"


@dataclass
class Seat:
    """A place for one worker process. ordered: since when its job should have ended."""

    device: str
    owner: str = ""
    process: subprocess.Popen | None = None
    started: float = 0.0
    deaths: int = 0
    not_before: float = 0.0
    ordered: float | None = None


class Supervisor:
    """Keeps `settings.workers` worker processes alive. Workers die with this process."""

    def __init__(self, settings: ServingSettings, store: JobStore) -> None:
        self.settings, self.store = settings, store
        devices = settings.devices
        self.seats = [Seat(devices[index % len(devices)]) for index in range(settings.workers)]
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        if not self.seats or self._thread is not None:
            return
        self._stopping.clear()
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop all workers: gently, then for good. Their jobs go back to the queue."""
        if self._thread is None:
            return
        self._stopping.set()
        self._thread.join()
        self._thread = None

    def _run(self) -> None:
        while not self._stopping.is_set():
            for seat in self.seats:
                try:
                    self._look(seat)
                except (sqlite3.Error, OSError) as error:  # a full disk, too many processes: look again later
                    logger.warning("watching a worker failed: %s", error)
            try:
                lost = time.time() - self.settings.lease_seconds
                self.store.recover(self.settings.max_attempts, before=lost)
            except sqlite3.Error as error:
                logger.warning("the queue cannot be used now: %s", error)
            self._stopping.wait(LOOK_SECONDS)
        self._end_all()
        self.store.close()

    def _look(self, seat: Seat) -> None:
        if seat.process is None:
            if time.monotonic() >= seat.not_before:
                self._start(seat)
        elif seat.process.poll() is not None:
            self._bury(seat)
        else:
            self._enforce(seat)

    def _start(self, seat: Seat) -> None:
        seat.owner, seat.started, seat.ordered = uuid.uuid4().hex, time.monotonic(), None
        paths = [str(PACKAGE_PARENT), *filter(None, [os.environ.get("PYTHONPATH")])]  # the code that runs here
        words = [json.dumps(self.settings.as_plain()), seat.owner, seat.device, str(os.getpid())]
        seat.process = subprocess.Popen(
            # -P: never import modules of the working directory.
            [sys.executable, "-P", "-m", "latentsync.serving.worker", *words],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the service, which then stops its workers in order
        )

    def _bury(self, seat: Seat) -> None:
        """A worker died: its job goes back to the queue, another worker takes the seat after a pause."""
        code, owner = seat.process.returncode, seat.owner
        lost = self.store.recover(self.settings.max_attempts, owner=owner)
        self.store.worker_gone(owner)
        seat.process = None
        seat.deaths = 1 if time.monotonic() - seat.started > HEALTHY_SECONDS else seat.deaths + 1
        pause = min(MAX_BACKOFF_SECONDS, 0.5 * 2 ** (seat.deaths - 1))
        seat.not_before = time.monotonic() + pause
        logger.warning("a worker ended with %s, %d job lost; another begins in %.1f s", code, lost, pause)

    def _enforce(self, seat: Seat) -> None:
        """Kill a worker that does not end its job although it should: a network or a decoder hangs."""
        row = self.store.running_of(seat.owner)
        late = row is not None and time.time() - (row.started or 0) > self.settings.job_timeout_seconds
        if row is None or not (row.cancel or late):
            seat.ordered = None
            return
        now = time.monotonic()
        seat.ordered = now if seat.ordered is None else seat.ordered
        if now - seat.ordered < GRACE_SECONDS:
            return
        seat.process.kill()
        seat.process.wait()
        if row.cancel:
            self.store.end_running(seat.owner, JobState.CANCELLED)
        else:
            error = TIMED_OUT.format(seconds=self.settings.job_timeout_seconds)
            self.store.end_running(seat.owner, JobState.FAILED, error)

    def _end_all(self) -> None:
        alive = [seat for seat in self.seats if seat.process is not None]
        for seat in alive:
            seat.process.terminate()
        deadline = time.monotonic() + GRACE_SECONDS
        for seat in alive:
            try:
                seat.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                seat.process.kill()
                seat.process.wait()
            try:
                self.store.give_back(seat.owner)
                self.store.worker_gone(seat.owner)
            except sqlite3.Error as error:  # its lease will run out
                logger.warning("the job of a stopped worker could not be given back: %s", error)
            seat.process = None
