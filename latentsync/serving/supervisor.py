"""Starts worker processes, monitors them, and restarts those that die."""

import json
import logging
import os
import sqlite3
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass

from latentsync.serving.background import BackgroundTask
from latentsync.serving.jobs import JobState
from latentsync.serving.settings import ServingSettings
from latentsync.serving.store import JobStore
from latentsync.utils.cores import worker_environment
from latentsync.utils.memory import GIB, resident_bytes
from latentsync.utils.paths import PACKAGE_PARENT

logger = logging.getLogger(__name__)

CHECK_SECONDS = 0.5
GRACE_SECONDS = 1.0  # for a worker to stop before it is killed; it is interrupted, unless native code hangs
END_SECONDS = 10.0  # for a worker to end one job; if it is killed, its models have to be loaded again
HEALTHY_SECONDS = 60.0  # a worker that lived this long did not fail at startup
MAX_BACKOFF_SECONDS = 60.0
TOO_LARGE = "the job needed more than the allowed {gib:.1f} GiB of memory; use a smaller video or a smaller model"
TIMED_OUT = "the job took longer than the allowed {seconds:g} s"


@dataclass
class Slot:
    """A place for one worker process. code: exit code of the last one that ended by itself.

    attempt, running_since: which attempt of which job it is running, and when that was first seen (monotonic).
    overdue_since: when its job should have ended.
    """

    device: str
    owner: str = ""
    process: subprocess.Popen | None = None
    started: float = 0.0
    deaths: int = 0
    code: int | None = None
    not_before: float = 0.0
    attempt: tuple[str, int] | None = None
    running_since: float = 0.0
    overdue_since: float | None = None


class Supervisor:
    """Keeps `settings.workers` worker processes running. They end with this process."""

    def __init__(self, settings: ServingSettings, store: JobStore) -> None:
        self.settings, self.store = settings, store
        devices = settings.devices
        self.slots = [Slot(devices[index % len(devices)]) for index in range(settings.workers)]
        self._task = BackgroundTask("supervisor", self._check_all, CHECK_SECONDS, self._end_all)

    @property
    def failure(self) -> str | None:
        """Why workers cannot be monitored at the moment; None if they can."""
        return self._task.failure

    def dead_workers(self) -> list[str]:
        """Workers that have ended and are not running again, one line each."""
        now = time.monotonic()
        return [
            f"the worker for {slot.device} ended with code {slot.code} ({slot.deaths} times in a row), see the log; "
            f"it starts again in {max(0.0, slot.not_before - now):.0f} s"
            for slot in self.slots
            if slot.process is None and slot.deaths
        ]

    def start(self) -> None:
        if self.slots:
            self._task.start()

    def begin_stop(self) -> None:
        """Start to stop the workers, without waiting for it."""
        self._task.stopping.set()

    def stop(self) -> None:
        """Stop all workers: first by a signal, then by killing them. Their jobs return to the queue."""
        self._task.stop()

    def _check_all(self) -> None:
        failures = []
        for slot in self.slots:
            try:
                self._check(slot)
            except (sqlite3.Error, OSError) as error:  # a full disk, too many processes: the others go on
                failures.append(error)
        self.store.recover(self.settings.max_attempts, silent_for=self.settings.lease_seconds)
        if failures:
            raise failures[0]

    def _check(self, slot: Slot) -> None:
        if slot.process is None:
            if time.monotonic() >= slot.not_before:
                self._start(slot)
        elif slot.process.poll() is not None:
            self._replace(slot, slot.process.returncode)
        else:
            self._enforce(slot, slot.process)

    def _start(self, slot: Slot) -> None:
        slot.owner, slot.started, slot.overdue_since = uuid.uuid4().hex, time.monotonic(), None
        paths = [str(PACKAGE_PARENT), *filter(None, [os.environ.get("PYTHONPATH")])]  # the code that runs here
        arguments = [json.dumps(self.settings.as_plain()), slot.owner, slot.device, str(os.getpid())]
        slot.process = subprocess.Popen(
            # -P: never import modules of the working directory.
            [sys.executable, "-P", "-m", "latentsync.serving.worker", *arguments],
            env=os.environ | worker_environment(len(self.slots)) | {"PYTHONPATH": os.pathsep.join(paths)},
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C goes to the service, which then stops its workers
        )

    def _replace(self, slot: Slot, code: int) -> None:
        """Return the job of a dead worker to the queue; another worker starts after a pause."""
        lost = self.store.recover(self.settings.max_attempts, owner=slot.owner)
        self.store.worker_gone(slot.owner)
        slot.process, slot.code = None, code
        slot.deaths = 1 if time.monotonic() - slot.started > HEALTHY_SECONDS else slot.deaths + 1
        pause = min(MAX_BACKOFF_SECONDS, 0.5 * 2 ** (slot.deaths - 1))
        slot.not_before = time.monotonic() + pause
        logger.warning("a worker ended with code %s (%d job lost); restarting it in %.1f s", code, lost, pause)

    def _enforce(self, slot: Slot, process: subprocess.Popen) -> None:
        """Kill a worker whose job should have ended but has not: a network or a decoder hangs."""
        row, now = self.store.running_of(slot.owner), time.monotonic()
        attempt = None if row is None else (row.id, row.attempts)
        if attempt != slot.attempt:
            slot.attempt, slot.running_since = attempt, now
        limit = self.settings.worker_memory_limit
        if row is not None and resident_bytes(process.pid) > limit:
            process.kill()
            process.wait()
            self.store.end_running(slot.owner, JobState.FAILED, TOO_LARGE.format(gib=limit / GIB))
            return
        late = now - slot.running_since > self.settings.job_timeout_seconds
        if row is None or not (row.cancel or late):
            slot.overdue_since = None
            return
        if slot.overdue_since is None:
            slot.overdue_since = now
        if now - slot.overdue_since < END_SECONDS:
            return
        process.kill()
        process.wait()
        if row.cancel:
            self.store.end_running(slot.owner, JobState.CANCELLED)
        else:
            error = TIMED_OUT.format(seconds=self.settings.job_timeout_seconds)
            self.store.end_running(slot.owner, JobState.FAILED, error)

    def _end_all(self) -> None:
        running = [(slot, slot.process) for slot in self.slots if slot.process is not None]
        for _, process in running:
            process.terminate()
        deadline = time.monotonic() + GRACE_SECONDS
        for slot, process in running:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            try:
                self.store.give_back(slot.owner)
                self.store.worker_gone(slot.owner)
            except sqlite3.Error as error:  # its lease will expire
                logger.warning("the job of a stopped worker could not be returned to the queue: %s", error)
            slot.process = None
        self.store.close()
