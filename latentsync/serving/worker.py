"""A worker: a process that owns the models and runs one job after the other.

Started by `Supervisor` as `python -m latentsync.serving.worker SETTINGS OWNER DEVICE`, SETTINGS being JSON.
"""

import errno
import json
import logging
import os
import signal
import sqlite3
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from latentsync.serving.handler import LocalRunner, Runner
from latentsync.serving.inspection import shown
from latentsync.serving.jobs import JobState
from latentsync.serving.models import ModelCache
from latentsync.serving.settings import ServingSettings
from latentsync.serving.store import JobStore, Row
from latentsync.serving.thumbnails import write_thumbnail
from latentsync.serving.workspace import RESULT, THUMBNAIL, Workspace
from latentsync.utils.errors import UserError

logger = logging.getLogger(__name__)

BEAT_SECONDS = 0.5  # also how long a request to cancel may go unnoticed
IDLE_SECONDS = 0.2  # between two looks at an empty queue
REPORT_SECONDS = 0.25  # between two reports of progress
PERSISTENT_SECONDS = 30.0  # for which the end of a job is told again to a database that cannot be written
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class JobStopped(BaseException):
    """Raised inside a job to end it: no error of it, and not to be caught by what it runs."""


class Cancelled(JobStopped):
    """The user wants the job no more."""


class TimedOut(JobStopped):
    """The job takes longer than it may."""


class Lost(JobStopped):
    """The job is no longer this worker's."""


class Stopping(JobStopped):
    """This worker is being stopped."""


class Worker:
    """Runs jobs of a workspace until it is told to stop.

    A job is stopped by an exception, at its next report of progress or, where `interrupt` is set, at once: `interrupt`
    is called in another thread and makes the thread that runs jobs call `end_job`, as a signal does.

    Args:
        settings: of the service.
        owner: name of this worker in the queue.
        device: for the models.
        runner: does the jobs, see `latentsync.serving.handler`.
        service: number of the process that started this one, with which it ends; as it is now unless given.
    """

    def __init__(
        self, settings: ServingSettings, owner: str, device: str, runner: Runner, service: int | None = None
    ) -> None:
        self.settings, self.owner, self.device, self.runner = settings, owner, device, runner
        self.workspace = Workspace(settings.workspace)
        self.store = JobStore(self.workspace.database)
        self.stopping = threading.Event()
        self.interrupt: Callable[[], object] = lambda: None
        self._service = os.getppid() if service is None else service
        self._job: Row | None = None
        self._ending: tuple[Row, type[JobStopped]] | None = None  # which job is to be stopped, and why
        self._interruptible = False
        self._telling = threading.Lock()  # what is told is always the newest
        self._newest = ("", 0, 0)  # stage, done, total of the job
        self._reported = 0.0

    def run(self) -> None:
        """Until `stopping` is set. A job that runs then goes back to the queue."""
        beats = threading.Thread(target=self._beat_forever, name="heartbeat", daemon=True)
        beats.start()
        while not self.stopping.is_set():
            row = self._attempt(self._claim)
            if row is None:
                self.stopping.wait(IDLE_SECONDS)
                continue
            self._newest, self._job = (row.stage, row.done, row.total), row
            self._do(row)
            self._job = None
        beats.join()
        self.store.worker_gone(self.owner)

    def _claim(self) -> Row | None:
        """The next job; none while the disk is full, where one after the other would fail."""
        if self.workspace.free() < self.settings.min_free_bytes:
            return None
        return self.store.claim(self.owner)

    def _do(self, row: Row) -> None:
        logger.info("job %s: attempt %d", row.id, row.attempts)
        try:
            self._make(row)
            outcome = Outcome(JobState.DONE, result=RESULT)
        except Lost:
            logger.warning("job %s is no longer this worker's", row.id)
            return
        except Stopping:
            outcome = Outcome(JobState.QUEUED)
        except Cancelled:
            outcome = Outcome(JobState.CANCELLED)
        except (Exception, TimedOut) as error:
            outcome = Outcome(JobState.FAILED, error=self._message(error, row))
        logger.info("job %s: %s%s", row.id, outcome.state, f", {outcome.error}" if outcome.error else "")
        self._persist(row, outcome)

    def _make(self, row: Row) -> None:
        folder = self.workspace.folder(row.id)
        files = {role: folder / name for role, name in row.files.items()}
        self.workspace.clear_attempt(row.id)
        self._interruptible = True
        try:
            self.runner(row.kind, row.options, files, folder / RESULT, self._report_of(row))
        finally:
            self._interruptible = False
        write_thumbnail(folder / RESULT, folder / THUMBNAIL)

    def end_job(self) -> None:
        """Raise what ends the job that runs, in its own thread and at most once; nothing where it need not end."""
        job, reason = (self._job, Stopping) if self.stopping.is_set() else (self._ending or (None, JobStopped))
        if self._interruptible and job is not None and job is self._job:
            self._interruptible = False  # a second exception would cut the cleaning up short
            raise reason

    def _message(self, error: BaseException, row: Row) -> str:
        """What the user is told; everything that is not for users goes to the log."""
        if isinstance(error, TimedOut):
            return f"the job took longer than the allowed {self.settings.job_timeout_seconds:g} s"
        if isinstance(error, OSError) and error.errno in NO_SPACE or "No space left" in str(error):
            return "the disk is full; delete old jobs, or free space, and try again"
        if isinstance(error, UserError):
            text = str(error)
            for role, name in row.files.items():
                text = text.replace(str(self.workspace.folder(row.id) / name), shown(row.inputs[role]))
            return text.replace(str(self.workspace.folder(row.id)), "the workspace")
        logger.exception("job %s failed", row.id)
        return f"an internal error; the log of the service has the details under {row.id}"

    def _report_of(self, row: Row) -> Callable[[str, int, int], None]:
        """The callback of a job: reports a few times a second, and ends the job where it must end."""
        deadline = time.monotonic() + self.settings.job_timeout_seconds
        last_stage = ""

        def report(stage: str, done: int, total: int) -> None:
            nonlocal last_stage
            if self.stopping.is_set():
                raise Stopping
            self._newest = (stage, done, total)
            now = time.monotonic()
            if now > deadline:
                raise TimedOut
            if now - self._reported < REPORT_SECONDS and stage == last_stage:
                return
            self._reported, last_stage = now, stage
            try:
                cancel = self._tell(row)
            except sqlite3.OperationalError as error:  # a full disk: the job itself will say so
                logger.warning("progress of job %s could not be stored: %s", row.id, error)
                return
            if cancel is None:
                raise Lost
            if cancel:
                raise Cancelled

        return report

    def _tell(self, row: Row) -> bool | None:
        """Store how far a job is, and renew its lease; returns as `JobStore.progress` does."""
        with self._telling:
            return self.store.progress(row, *self._newest)

    def _beat_forever(self) -> None:
        """Tell that this worker lives and how far it is, and stop it when the process that started it is gone.

        Frames come in runs, many within a moment: most of them are not reported when they come.
        """
        while not self.stopping.is_set():
            if os.getppid() != self._service:
                logger.warning("the service is gone; stopping")
                self.stopping.set()
            job = self._job
            self._attempt(lambda: self.store.worker_beat(self.owner, os.getpid(), self.device, self.runner.models()))
            if job is not None:
                self._attempt(lambda job=job: self._look_after(job))
            self.stopping.wait(BEAT_SECONDS)
        self.store.close()

    def _look_after(self, job: Row) -> None:
        """Report a job's progress, and interrupt it where it is to end."""
        cancel = self._tell(job)
        if cancel or cancel is None:
            self._ending = (job, Lost if cancel is None else Cancelled)
            self.interrupt()

    def _attempt(self, action: Callable[[], object]) -> object:
        """Do something in the database, or nothing while it cannot be written."""
        try:
            return action()
        except sqlite3.OperationalError as error:
            logger.warning("the queue cannot be used now: %s", error)
            self.stopping.wait(BEAT_SECONDS)
            return None

    def _persist(self, row: Row, outcome: "Outcome") -> None:
        """Tell the queue how a job ended, again and again where its disk is full. If it never succeeds the lease runs
        out, and the job is begun anew."""
        deadline = time.monotonic() + PERSISTENT_SECONDS
        while True:
            try:
                if outcome.state is JobState.QUEUED:
                    self.store.give_back(self.owner)
                else:
                    self.store.finish(row, outcome.state, result=outcome.result, error=outcome.error)
                return
            except sqlite3.OperationalError as error:
                if time.monotonic() > deadline:
                    raise
                logger.warning("the end of a job could not be stored, trying again: %s", error)
                time.sleep(1.0)


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended; QUEUED gives the job back."""

    state: JobState
    result: str | None = None
    error: str | None = None


def main(argv: list[str]) -> int:
    """Run a worker until SIGTERM or SIGINT, or until the service is gone, be it while this process begins."""
    plain, owner, device, service = argv
    logging.basicConfig(level=logging.INFO, format=f"%(asctime)s worker {owner[:8]}: %(message)s")
    settings = ServingSettings(**json.loads(plain))
    worker = Worker(settings, owner, device, make_runner(settings, device), int(service))
    run_until_signal(worker)
    return 0


def run_until_signal(worker: Worker) -> None:
    """Run a worker in the main thread until SIGTERM or SIGINT; signals also interrupt its job."""

    def stop(*_: object) -> None:
        worker.stopping.set()
        worker.end_job()

    for number in (signal.SIGTERM, signal.SIGINT):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup, a script's background job
            signal.signal(number, stop)
    signal.signal(signal.SIGUSR1, lambda *_: worker.end_job())
    worker.interrupt = lambda: signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)
    worker.run()


def make_runner(settings: ServingSettings, device: str) -> Runner:
    """Models in this process, or on the machines of a Ray cluster where the settings name one."""
    if settings.ray_address is None:
        return LocalRunner(
            ModelCache(device, settings.max_models, settings.model, settings.dtype), settings.max_audio_seconds
        )
    from latentsync.serving.ray_serve import RayRunner  # an optional extra

    return RayRunner(settings)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
