"""A worker: a process that owns the models and runs one job at a time.

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
from pathlib import Path

from latentsync.serving.background import BackgroundTask
from latentsync.serving.handler import LocalRunner, Runner
from latentsync.serving.inspection import printable_name
from latentsync.serving.jobs import JobState
from latentsync.serving.models import ModelCache
from latentsync.serving.rows import Row
from latentsync.serving.settings import ServingSettings
from latentsync.serving.store import JobStore
from latentsync.serving.thumbnails import write_thumbnail
from latentsync.serving.workspace import RESULT, THUMBNAIL, Workspace
from latentsync.utils.commands import exit_now
from latentsync.utils.errors import UserError
from latentsync.utils.logs import configure_server_logging
from latentsync.utils.progress import OnProgress, Progress

logger = logging.getLogger(__name__)

BEAT_SECONDS = 0.5  # also the longest delay until a cancel request is noticed
IDLE_SECONDS = 0.2  # between two checks of an empty queue
REPORT_SECONDS = 0.25  # between two progress reports
PERSIST_SECONDS = 30.0  # how long to retry storing the outcome of a job
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class JobStopped(BaseException):
    """Raised inside a job to end it. Not an Exception, so that the job's own code does not catch it."""


class Cancelled(JobStopped):
    """The user cancelled the job."""


class TimedOut(JobStopped):
    """The job exceeds its time limit."""


class Lost(JobStopped):
    """The job no longer belongs to this worker."""


class Stopping(JobStopped):
    """This worker is stopping."""


class Worker:
    """Runs the jobs of a workspace until `stopping` is set.

    A job is ended by an exception: at its next progress report or, if `interrupt` is set, at once. `interrupt` is
    called in another thread and makes the thread that runs jobs call `end_job`, as a signal does.

    Args:
        settings: of the service.
        owner: name of this worker in the queue.
        device: for the models.
        runner: runs the jobs, see `latentsync.serving.handler`.
        service: process id of the service, with which the worker ends; by default the parent process.
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
        self._ending: tuple[Row, type[JobStopped]] | None = None  # the job to end, and why
        self._interruptible = False
        self._reporting = threading.Lock()  # so that reports are stored in order
        self._newest: tuple[Progress, float | None] = (Progress(""), None)  # with the expected end
        self._reported = 0.0

    def run(self) -> None:
        """Run jobs until `stopping` is set. A job that is running then returns to the queue."""
        heartbeat = BackgroundTask("heartbeat", self._beat, BEAT_SECONDS, self.store.close, self.stopping)
        if not self.stopping.is_set():
            heartbeat.start()
        idle_since = time.monotonic()
        while not self.stopping.is_set():
            row = self._claim()
            if row is None:
                self._unload_if_idle(idle_since)
                self.stopping.wait(IDLE_SECONDS)
                continue
            self._newest, self._job = (Progress(row.stage), None), row
            self._do(row)
            self._job = None
            idle_since = time.monotonic()
        heartbeat.stop()
        self.store.worker_gone(self.owner)

    def _unload_if_idle(self, since: float) -> None:
        """Free the memory of the models if there was no job for long enough."""
        minutes = self.settings.unload_after_minutes
        if minutes is not None and time.monotonic() - since > 60 * minutes and self.runner.models():
            logger.info("no job for %g min: unloading the models", minutes)
            self.runner.unload()

    def _claim(self) -> Row | None:
        """The next job. None while the disk is full, when one after the other would fail, or the queue is unusable."""
        try:
            if self.workspace.free() < self.settings.min_free_bytes:
                return None
            return self.store.claim(self.owner)
        except (OSError, sqlite3.Error) as error:
            logger.warning("the queue cannot be used at the moment: %s", error)
            self.stopping.wait(BEAT_SECONDS)
            return None

    def _do(self, row: Row) -> None:
        logger.info("job %s: attempt %d", row.id, row.attempts)
        try:
            outcome = Outcome(JobState.DONE, result=self._make(row))
        except Lost:
            logger.warning("job %s was taken from this worker", row.id)
            return
        except Stopping:
            outcome = Outcome(JobState.QUEUED)
        except Cancelled:
            outcome = Outcome(JobState.CANCELLED)
        except (Exception, TimedOut) as error:
            outcome = Outcome(JobState.FAILED, error=self._message(error, row))
        logger.info("job %s: %s%s", row.id, outcome.state, f", {outcome.error}" if outcome.error else "")
        self._persist(row, outcome)

    def _make(self, row: Row) -> str:
        """Run the job; returns the file name of its result."""
        folder = self.workspace.folder(row.id)
        name = Path(RESULT).with_suffix(row.options.suffix).name
        files = {role: folder / name for role, name in row.files.items()}
        self.workspace.clear_attempt(row.id)
        self._interruptible = True
        try:
            self.runner(row.kind, row.options, files, folder / name, self._report_of(row))
        finally:
            self._interruptible = False
        write_thumbnail(folder / name, folder / THUMBNAIL)
        return name

    def end_job(self) -> None:
        """Raise the exception that ends the current job, at most once; to be called in the thread that runs it."""
        job, reason = (self._job, Stopping) if self.stopping.is_set() else (self._ending or (None, JobStopped))
        if self._interruptible and job is not None and job is self._job:
            self._interruptible = False  # a second exception would interrupt the cleanup
            raise reason

    def _message(self, error: BaseException, row: Row) -> str:
        """The message for the user; details of internal errors go to the log only."""
        if isinstance(error, TimedOut):
            return f"the job took longer than the allowed {self.settings.job_timeout_seconds:g} s"
        if isinstance(error, OSError) and error.errno in NO_SPACE or "No space left" in str(error):
            return "the disk is full; delete old jobs, or free space, and try again"
        if isinstance(error, UserError):
            text = str(error)
            for role, name in row.files.items():
                text = text.replace(
                    str(self.workspace.folder(row.id) / name), printable_name(row.inputs.get(role, role))
                )
            return text.replace(str(self.workspace.folder(row.id)), "the workspace")
        logger.exception("job %s failed", row.id)
        return f"an internal error; the log of the service has the details under {row.id}"

    def _report_of(self, row: Row) -> OnProgress:
        """The progress callback of a job. Stores progress a few times a second, and ends the job if necessary."""
        deadline = time.monotonic() + self.settings.job_timeout_seconds
        last_stage = ""

        def report(progress: Progress) -> None:
            nonlocal last_stage
            if self.stopping.is_set():
                raise Stopping
            if self._ending is not None and self._ending[0] is row:  # its signal arrived where exceptions are swallowed
                raise self._ending[1]
            now = time.monotonic()
            self._newest = (progress, None if progress.seconds_left is None else now + progress.seconds_left)
            if now > deadline:
                raise TimedOut
            if now - self._reported < REPORT_SECONDS and progress.stage == last_stage:
                return
            self._reported, last_stage = now, progress.stage
            try:
                cancel = self._report(row)
            except sqlite3.Error as error:  # a full disk: the job itself will fail
                logger.warning("progress of job %s could not be stored: %s", row.id, error)
                return
            if cancel is None:
                raise Lost
            if cancel:
                raise Cancelled

        return report

    def _report(self, row: Row) -> bool | None:
        """Store the progress of a job and renew its lease; returns as `JobStore.progress` does."""
        with self._reporting:
            return self.store.progress(row, *self._newest)

    def _beat(self) -> None:
        """Record that this worker is alive, and its progress; stop it if the service has died.

        Frames finish in batches, many at the same moment: most of them are not reported when they finish.
        """
        if os.getppid() != self._service:
            logger.warning("the service has died; stopping")
            self.stopping.set()
        job = self._job
        if job is not None:
            cancel = self._report(job)
            if cancel is None or cancel:
                self._ending = (job, Lost if cancel is None else Cancelled)
                self.interrupt()
        self.store.worker_beat(self.owner, os.getpid(), self.device, self.runner.models())

    def _persist(self, row: Row, outcome: "Outcome") -> None:
        """Store the outcome of a job, retrying while the disk is full. If that fails for long the lease expires, and
        the job runs again."""
        deadline = time.monotonic() + PERSIST_SECONDS
        while True:
            try:
                if outcome.state is JobState.QUEUED:
                    self.store.give_back(self.owner)
                else:
                    self.store.finish(row, outcome.state, result=outcome.result, error=outcome.error)
                return
            except sqlite3.Error as error:
                if time.monotonic() > deadline:
                    raise
                logger.warning("the outcome of a job could not be stored, retrying: %s", error)
                time.sleep(1.0)


@dataclass(frozen=True)
class Outcome:
    """Outcome of an attempt; QUEUED returns the job to the queue."""

    state: JobState
    result: str | None = None
    error: str | None = None


def main(argv: list[str]) -> int:
    """Run a worker until SIGTERM, SIGINT or the end of the service, even if that came during startup."""
    plain, owner, device, service = argv
    configure_server_logging(text_format=f"%(asctime)s worker {owner[:8]}: %(message)s")
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
        if signal.getsignal(number) is not signal.SIG_IGN:  # ignored under nohup and in background jobs of scripts
            signal.signal(number, stop)

    def log_unraisable(ignored: "sys.UnraisableHookArgs") -> None:
        if not issubclass(ignored.exc_type, JobStopped):  # which the next report of progress raises again
            sys.__unraisablehook__(ignored)

    sys.unraisablehook = log_unraisable
    signal.signal(signal.SIGUSR1, lambda *_: worker.end_job())
    worker.interrupt = lambda: signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
    worker.run()


def make_runner(settings: ServingSettings, device: str) -> Runner:
    """Runs jobs in this process, or on a Ray cluster if the settings name one."""
    if settings.ray_address is None:
        return LocalRunner(
            ModelCache(device, settings.max_models, settings.model, settings.dtype, settings.weights, settings.compile),
            settings.max_audio_seconds,
        )
    from latentsync.serving.ray_serve import RayRunner  # an optional extra

    return RayRunner(settings)


if __name__ == "__main__":
    exit_now(main(sys.argv[1:]))
