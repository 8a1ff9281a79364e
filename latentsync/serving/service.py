"""The job service: what the page, the HTTP API and the batch command talk to."""

import logging
import sqlite3
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from latentsync.options import GenerationOptions
from latentsync.serving.inspection import inspect_files, shown
from latentsync.serving.jobs import (
    InsufficientSpace,
    Job,
    JobKind,
    JobNotFound,
    JobState,
    QueueFull,
    ServiceStats,
    WrongState,
)
from latentsync.serving.models import find_lora, find_model
from latentsync.serving.settings import ServingSettings
from latentsync.serving.store import JobStore, Row
from latentsync.serving.supervisor import Supervisor
from latentsync.serving.thumbnails import write_thumbnail
from latentsync.serving.workspace import THUMBNAIL, Workspace
from latentsync.utils.errors import UserError
from latentsync.utils.sandbox import shut_down

logger = logging.getLogger(__name__)

SWEEP_SECONDS = 60.0
SIZE_SECONDS = 10.0  # for which a measured size of the workspace is believed
POLL_SECONDS = 0.25
RECENT = 100  # jobs whose durations are remembered

__all__ = ["InsufficientSpace", "JobNotFound", "JobService", "QueueFull", "WrongState"]


class JobService:
    """A queue in `settings.workspace` and its workers. Thread-safe; a context manager that starts and stops.

    Several services, in one process or in many, may share a workspace: all see the same jobs, and each job is run once.

    Raises:
        UserError: the workspace cannot be used.
    """

    def __init__(self, settings: ServingSettings) -> None:
        self.settings = settings
        self.workspace = Workspace(settings.workspace)
        self.store = JobStore(self.workspace.database)
        self._supervisor = Supervisor(settings, self.store)
        self._stopping = threading.Event()
        self._sweeper: threading.Thread | None = None
        self._size = (0.0, 0)

    def start(self) -> None:
        """Start the workers and the sweeper. Jobs that were running when all workers died go back to the queue."""
        self._stopping.clear()
        self._supervisor.start()
        self._sweeper = threading.Thread(target=self._sweep_forever, name="sweeper", daemon=True)
        self._sweeper.start()

    def stop(self) -> None:
        """Stop the workers; their jobs go back to the queue."""
        self._stopping.set()
        shut_down()  # of files being examined: their submission fails
        self._supervisor.stop()
        if self._sweeper is not None:
            self._sweeper.join()
            self._sweeper = None

    def __enter__(self) -> "JobService":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # Jobs

    def submit(
        self, kind: JobKind, files: Mapping[str, tuple[str, Path]], options: GenerationOptions, *, move: bool = False
    ) -> Job:
        """Look at the files, take them into the workspace and queue the job.

        Args:
            files: role (video, audio, mask) -> (name to show, where the file is).
            move: the files may be moved away, as uploads may.

        Raises:
            UserError: the files or the model are not usable.
            QueueFull, InsufficientSpace: try again later.
        """
        if options.mask_image_path is not None:
            raise UserError("mask_image_path: a job takes no paths; upload the image as the file mask")
        inspect_files(kind, files, self.settings)
        if kind is JobKind.LIPSYNC:
            find_model(options.model, self.settings.model)
            if options.lora is not None:
                find_lora(options.lora)
        if self.store.counts()[JobState.QUEUED] >= self.settings.max_queue:
            raise self._queue_full()
        self._check_space(0 if move else sum(path.stat().st_size for _, path in files.values()))
        job_id = uuid.uuid4().hex
        inputs = {role: shown(name) for role, (name, _) in files.items()}
        try:
            names = self.workspace.fill(job_id, files, move=move)
            added = self.store.add(job_id, kind, options, inputs, names, self.settings.max_queue)
        except (OSError, sqlite3.OperationalError) as error:
            self.workspace.remove(job_id)
            raise InsufficientSpace(f"the job could not be stored ({error}); free space and try again") from error
        if not added:
            self.workspace.remove(job_id)
            raise self._queue_full()
        return self.get(job_id)

    def get(self, job_id: str) -> Job:
        """Raises JobNotFound."""
        return self._job(self._row(job_id))

    def list(self, *, states: Sequence[JobState] | None = None, limit: int = 50, offset: int = 0) -> list[Job]:
        """Jobs in these states (all), newest first."""
        return [self._job(row) for row in self.store.listing(states, limit, offset)]

    def cancel(self, job_id: str) -> Job:
        """Cancel a job: at once while it waits, within seconds while it runs; an ended job stays as it is.

        Raises:
            JobNotFound: there is no such job.
        """
        self._row(job_id)
        self.store.cancel(job_id)
        return self.get(job_id)

    def retry(self, job_id: str) -> Job:
        """Queue an ended job again, with its files and options, at the end of the queue; its result is deleted.

        Raises:
            JobNotFound, QueueFull: as they say.
            WrongState: it has not ended, or its files have aged out.
        """
        self._row(job_id)
        queued = self.store.retry(job_id, self.settings.max_queue)
        if queued is None:
            raise WrongState("only a job that has ended and still has its files can be tried again; submit a new one")
        if not queued:
            raise self._queue_full()
        return self.get(job_id)

    def delete(self, job_id: str) -> None:
        """Forget a job and delete its files; a running one is cancelled first, which may take seconds.

        Raises:
            JobNotFound: there is no such job.
            WrongState: it does not stop.
        """
        self._row(job_id)
        self.store.cancel(job_id)
        deadline = time.monotonic() + self.settings.lease_seconds + 10
        while not self.store.delete(job_id):
            if self.store.get(job_id) is None:
                raise JobNotFound(f"there is no job {job_id}")
            if time.monotonic() > deadline:
                raise WrongState("the job is still being stopped; delete it later")
            time.sleep(POLL_SECONDS)
        self.workspace.remove(job_id)

    def watch(self, job_id: str, timeout: float) -> Iterator[Job]:
        """The job now, and again whenever it has changed, until it has ended or `timeout` seconds are over.

        Raises:
            JobNotFound: there is no such job, or no longer.
        """
        deadline, last = time.monotonic() + timeout, None
        while True:
            job = self.get(job_id)
            if job != last:
                last = job
                yield job
            if job.state.is_final or time.monotonic() >= deadline:
                return
            time.sleep(max(0.0, min(POLL_SECONDS, deadline - time.monotonic())))

    # Files

    def input_path(self, job_id: str, role: str) -> Path:
        """A file that the job was given.

        Raises:
            JobNotFound: there is no such job, it takes no such file, or the file has aged out.
        """
        row = self._row(job_id)
        path = self.workspace.folder(job_id) / row.files.get(role, "")
        if role not in row.files or not path.is_file():
            raise JobNotFound(f"job {job_id} has no {role}")
        return path

    def thumbnail(self, job_id: str) -> Path | None:
        """A small JPEG of the result, or of the input as long as there is none; None where neither has a picture.

        Raises:
            JobNotFound: there is no such job.
        """
        row = self._row(job_id)
        path = self.workspace.folder(job_id) / THUMBNAIL
        if path.is_file():
            return path
        if row.expired or row.result is None:
            return None
        return path if write_thumbnail(path.parent / row.result, path) else None

    def upload_folder(self) -> Path:
        """Where uploads are put before they are submitted; what stays there ages out."""
        return self.workspace.uploads

    # Figures and ageing

    def stats(self) -> ServiceStats:
        """The service now; the disk's use may be some seconds old."""
        counts = self.store.counts()
        workers = self.store.workers(time.time() - self.settings.lease_seconds)
        return ServiceStats(
            counts=counts,
            queue_length=counts[JobState.QUEUED],
            workers_alive=len(workers),
            models_loaded=tuple(sorted({name for _, names in workers for name in names})),
            disk_used=self._disk_used(),
            durations=tuple(self.store.durations(RECENT)),
        )

    def sweep(self) -> None:
        """Delete what is too old, and of ended jobs the oldest as long as the quota is exceeded."""
        self.store.recover(self.settings.max_attempts, before=time.time() - self.settings.lease_seconds)
        self.workspace.sweep_uploads(self.settings.upload_hours)
        self.workspace.sweep_orphans(self.store.ids(), self.settings.upload_hours)
        limit, used = time.time() - 3600 * self.settings.keep_results_hours, self.workspace.size()
        for row in self.store.ended():
            if (row.finished or 0) >= limit and used <= self.settings.quota_bytes:
                break
            size = self.workspace.job_size(row.id)
            if self.store.expire(row.id):
                self.workspace.remove(row.id)
                used -= size
        self._size = (time.monotonic(), used)

    def _sweep_forever(self) -> None:
        while True:
            try:
                self.sweep()
            except (OSError, sqlite3.Error) as error:  # a full or slow disk: the next round may do better
                logger.warning("sweeping the workspace failed: %s", error)
            if self._stopping.wait(SWEEP_SECONDS):
                self.store.close()
                return

    def _disk_used(self) -> int:
        measured, size = self._size
        if time.monotonic() - measured > SIZE_SECONDS or not measured:
            size = self.workspace.size()
            self._size = (time.monotonic(), size)
        return size

    def _check_space(self, arriving: int) -> None:
        if self.workspace.free() < arriving + self.settings.min_free_bytes:
            raise InsufficientSpace("the disk is full; delete old jobs, or free space and try again")
        if self._disk_used() + arriving > self.settings.quota_bytes:
            self.sweep()
            if self._disk_used() + arriving > self.settings.quota_bytes:
                raise InsufficientSpace("the service's quota is used up by jobs that have not ended; try again later")

    def _queue_full(self) -> QueueFull:
        return QueueFull(f"{self.settings.max_queue} jobs are waiting already; try again later")

    def _row(self, job_id: str) -> Row:
        row = self.store.get(job_id)
        if row is None:
            raise JobNotFound(f"there is no job {shown(job_id)}")
        return row

    def _job(self, row: Row) -> Job:
        running = row.state is JobState.RUNNING
        result = self.workspace.folder(row.id) / row.result if row.result is not None and not row.expired else None
        return Job(
            id=row.id,
            kind=row.kind,
            state=row.state,
            options=row.options,
            inputs=row.inputs,
            created=row.created,
            started=row.started,
            finished=row.finished,
            attempts=row.attempts,
            stage=row.stage,
            done=row.done,
            total=row.total,
            eta_seconds=_eta(row) if running else None,
            error=row.error,
            result=result,
            expired=row.expired,
            position=self.store.position(row) if row.state is JobState.QUEUED else None,
        )


def _eta(row: Row) -> float | None:
    """Seconds until a running job is done, if it goes on as it has since its frames began.

    Frames come in runs: between two of them the time that has passed is taken off.
    """
    if not row.done or None in (row.frames_since, row.moved, row.beat):
        return None
    left = (row.moved - row.frames_since) * max(0, row.total - row.done) / row.done
    return max(0.0, left - (row.beat - row.moved))
