"""The job service behind the web UI, the REST API and the batch command."""

import logging
import sqlite3
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median

from latentsync.options import GenerationOptions
from latentsync.pipelines.script import write_script
from latentsync.serving.background import BackgroundTask
from latentsync.serving.clock import SteadyTime
from latentsync.serving.inspection import check_job_voice, inspect_files, job_cues, printable_name
from latentsync.serving.jobs import (
    NO_METADATA,
    InsufficientSpace,
    Job,
    JobKind,
    JobNotFound,
    JobState,
    Metadata,
    QueueFull,
    ServiceStats,
    WrongState,
)
from latentsync.serving.models import find_lora, find_model
from latentsync.serving.rows import Row
from latentsync.serving.settings import ServingSettings
from latentsync.serving.store import JobStore
from latentsync.serving.supervisor import Supervisor
from latentsync.serving.thumbnails import write_thumbnail
from latentsync.serving.workspace import THUMBNAIL, Workspace
from latentsync.utils.errors import UserError
from latentsync.utils.sandbox import shut_down

logger = logging.getLogger(__name__)

SWEEP_SECONDS = 60.0
SIZE_SECONDS = 10.0  # a measured size of the workspace is reused for this long
POLL_SECONDS = 0.25
RECENT = 100  # number of jobs whose durations are reported
TYPICAL = 20  # number of jobs that the expected duration of a queued one is derived from
PACE_SECONDS = 0.5  # the expected duration is reused for this long

__all__ = ["InsufficientSpace", "JobNotFound", "JobService", "QueueFull", "WrongState"]


class JobService:
    """A queue in `settings.workspace` and its workers. Thread-safe; a context manager that starts and stops it.

    Services in one or several processes may share a workspace: they see the same jobs, and each job runs once.

    Raises:
        UserError: the workspace cannot be used.
    """

    def __init__(self, settings: ServingSettings) -> None:
        self.settings = settings
        self.workspace = Workspace(settings.workspace)
        self.store = JobStore(self.workspace.database)
        self._supervisor = Supervisor(settings, self.store)
        self._time = SteadyTime()
        self._sweeper = BackgroundTask("sweeper", self.sweep, SWEEP_SECONDS, self.store.close)
        self._size = (0.0, 0)
        self._pace_cache: tuple[float, tuple[float | None, float, int] | None] = (0.0, None)

    def start(self) -> None:
        """Start the workers and the sweeper. Jobs that were running when all workers died return to the queue."""
        self._supervisor.start()
        self._sweeper.start()

    def begin_stop(self) -> None:
        """Start to stop the workers, without waiting for it."""
        self._supervisor.begin_stop()

    def stop(self) -> None:
        """Stop the workers; their jobs return to the queue."""
        self.begin_stop()
        shut_down()  # submissions whose files are being examined fail
        self._supervisor.stop()
        self._sweeper.stop()

    def problems(self) -> list[str]:
        """Why jobs do not run: errors of the background threads that persist, workers that end; one line each."""
        tasks = (("monitoring the workers", self._supervisor.failure), ("cleaning up", self._sweeper.failure))
        failing = [f"{what} fails: {failure}" for what, failure in tasks if failure is not None]
        return failing + self._supervisor.dead_workers()

    def __enter__(self) -> "JobService":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # Jobs

    def submit(
        self,
        kind: JobKind,
        files: Mapping[str, tuple[str, Path]],
        options: GenerationOptions,
        *,
        move: bool = False,
        submitter: str | None = None,
        metadata: Metadata = NO_METADATA,
    ) -> Job:
        """Examine the files, copy them into the workspace and queue the job.

        Args:
            files: role (see `jobs.ROLES`) -> (name to display, path).
            move: move the files instead of copying them.
            submitter: name of the API key that the job belongs to.
            metadata: tags, webhook, idempotency key; with a key that was used before, the earlier job is returned.

        Raises:
            UserError: the files or the model are not usable.
            QueueFull, InsufficientSpace: try again later.
        """
        if options.mask_image_path is not None:
            raise UserError("mask_image_path: a job takes no paths; upload the image as the file mask")
        if options.script is not None:
            raise UserError("script: a job takes no paths; upload it as the file script")
        check_job_voice(options.voice)
        if (earlier := self.submitted_before(metadata.idempotency_key, submitter)) is not None:
            return earlier
        inspect_files(kind, files, options, self.settings)
        if kind is JobKind.LIPSYNC:
            find_model(options.model, self.settings.model)
            if options.lora is not None:
                find_lora(options.lora)
        if self.store.counts()[JobState.QUEUED] >= self.settings.max_queue:
            raise self._queue_full()
        self._check_space(0 if move else sum(path.stat().st_size for _, path in files.values()))
        job_id = uuid.uuid4().hex
        inputs = {role: printable_name(name) for role, (name, _) in files.items()}
        try:
            cues = job_cues(files) if "script" in files else None
            names = self.workspace.fill(job_id, files, move=move)
            if cues is not None:
                write_script(self.workspace.folder(job_id) / names["script"], cues)
            most = self.settings.max_queue
            added = self.store.add(job_id, kind, options, inputs, names, most, submitter, metadata)
        except sqlite3.IntegrityError:  # another request with the same key was faster
            self.workspace.remove(job_id)
            earlier = self.submitted_before(metadata.idempotency_key, submitter)
            if earlier is None:
                raise
            return earlier
        except (OSError, sqlite3.OperationalError) as error:
            self.workspace.remove(job_id)
            raise InsufficientSpace(f"the job could not be stored ({error}); free space and try again") from error
        if not added:
            self.workspace.remove(job_id)
            raise self._queue_full()
        logger.info("job %s: submitted", job_id)
        return self.get(job_id)

    def submitted_before(self, key: str | None, submitter: str | None) -> Job | None:
        """The job that was submitted with this idempotency key."""
        row = None if key is None else self.store.with_key(key, submitter)
        return None if row is None else self._job(row)

    def get(self, job_id: str) -> Job:
        """Raises JobNotFound."""
        return self._job(self._row(job_id))

    def list(
        self,
        *,
        states: Sequence[JobState] | None = None,
        limit: int = 50,
        offset: int = 0,
        submitter: str | None = None,
        tag: str | None = None,
    ) -> list[Job]:
        """Jobs in these states (default: all), of one submitter (default: of all), with a tag, newest first."""
        return [self._job(row) for row in self.store.listing(states, limit, offset, submitter, tag)]

    def cancel(self, job_id: str) -> Job:
        """Cancel a job: at once if it is queued, within seconds if it is running. A finished job is left unchanged.

        Raises:
            JobNotFound: there is no such job.
        """
        self._row(job_id)
        self.store.cancel(job_id)
        return self.get(job_id)

    def retry(self, job_id: str) -> Job:
        """Queue a finished job again with the same files and options, at the end of the queue. Deletes its result.

        Raises:
            JobNotFound, QueueFull
            WrongState: it is not finished, or its files have expired.
        """
        self._row(job_id)
        queued = self.store.retry(job_id, self.settings.max_queue)
        if queued is None:
            raise WrongState("only a finished job whose files have not expired can be retried; submit a new one")
        if not queued:
            raise self._queue_full()
        return self.get(job_id)

    def delete(self, job_id: str) -> None:
        """Delete a job and its files. A running one is cancelled first, which may take seconds.

        Raises:
            JobNotFound: there is no such job.
            WrongState: it does not stop in time.
        """
        self._row(job_id)
        self.store.cancel(job_id)
        deadline = time.monotonic() + self.settings.lease_seconds + 10
        while not self.store.delete(job_id):
            if self.store.get(job_id) is None:
                raise JobNotFound(f"there is no job {job_id}")
            if time.monotonic() > deadline:
                raise WrongState("the job is still stopping; delete it later")
            time.sleep(POLL_SECONDS)
        self.workspace.remove(job_id)

    def watch(self, job_id: str, timeout: float) -> Iterator[Job]:
        """Yield the job now and after each change, until it is finished or `timeout` seconds have passed.

        Raises:
            JobNotFound: there is no such job, or it was deleted.
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
        """Path of an input file.

        Raises:
            JobNotFound: there is no such job, it has no such file, or the file has expired.
        """
        row = self._row(job_id)
        path = self.workspace.folder(job_id) / row.files.get(role, "")
        if role not in row.files or not path.is_file():
            raise JobNotFound(f"job {job_id} has no {role}")
        return path

    def thumbnail(self, job_id: str) -> Path | None:
        """Path of a small JPEG of the result's first frame; None if there is no result or it has no frames.

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
        """Folder for uploads before they are submitted; unused ones expire."""
        return self.workspace.uploads

    # Statistics and retention

    def stats(self) -> ServiceStats:
        """Statistics; the disk usage may be some seconds old."""
        counts = self.store.counts()
        workers = self.store.workers(self.settings.lease_seconds)
        return ServiceStats(
            counts=counts,
            queue_length=counts[JobState.QUEUED],
            workers_alive=len(workers),
            models_loaded=tuple(sorted({name for _, names in workers for name in names})),
            disk_used=self._disk_used(),
            durations=tuple(self.store.durations(RECENT)),
        )

    def sweep(self) -> None:
        """Delete expired files, and the oldest results while the quota is exceeded."""
        self.store.recover(self.settings.max_attempts, silent_for=self.settings.lease_seconds)
        now = self._time.now()
        unused_since = now - 3600 * self.settings.upload_hours
        self.workspace.sweep_uploads(unused_since)
        self.workspace.sweep_orphans(self.store.ids(), unused_since)
        limit, used = now - 3600 * self.settings.keep_results_hours, self.workspace.size()
        for row in self.store.ended():
            if (row.finished or 0) >= limit and used <= self.settings.quota_bytes:
                break
            size = self.workspace.job_size(row.id)
            if self.store.expire(row.id):
                self.workspace.remove(row.id)
                used -= size
        self._size = (time.monotonic(), used)

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
                raise InsufficientSpace("unfinished jobs use up the service's disk quota; try again later")

    def _queue_full(self) -> QueueFull:
        return QueueFull(f"{self.settings.max_queue} jobs are queued already; try again later")

    def _row(self, job_id: str) -> Row:
        row = self.store.get(job_id)
        if row is None:
            raise JobNotFound(f"there is no job {printable_name(job_id)}")
        return row

    def _job(self, row: Row) -> Job:
        running = row.state is JobState.RUNNING
        position = self.store.position(row) if row.state is JobState.QUEUED else None
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
            fraction=row.fraction if running else float(row.state is JobState.DONE),
            canceling=running and row.cancel,
            eta_seconds=self._eta(row, position),
            error=row.error,
            result=result,
            expired=row.expired,
            position=position,
            submitter=row.submitter,
            tags=row.tags,
            webhook=row.webhook,
        )

    def _eta(self, row: Row, position: int | None) -> float | None:
        """Estimated seconds until a job is done: a running one by its worker's estimate, a queued one from the duration
        of recent jobs. None if unknown."""
        if row.state is JobState.RUNNING:
            return None if row.ends is None else max(0.0, row.ends - time.monotonic())
        if position is None:
            return None
        typical, busy, workers = self._pace()
        return None if typical is None else (busy + position * typical) / workers + typical

    def _pace(self) -> tuple[float | None, float, int]:
        """(median duration of recent jobs or None, seconds left of all running jobs, number of workers)."""
        measured, pace = self._pace_cache
        if pace is not None and time.monotonic() - measured < PACE_SECONDS:
            return pace
        recent = self.store.durations(TYPICAL)
        typical = median(recent) if recent else None
        left: list[float] = []
        if typical is not None:
            now = time.time()
            for row in self.store.listing([JobState.RUNNING], RECENT, 0):
                own = self._eta(row, None)
                left.append(typical - (now - (row.started or now)) if own is None else own)
        workers = max(1, len(self.store.workers(self.settings.lease_seconds)))
        pace = (typical, sum(max(0.0, seconds) for seconds in left), workers)
        self._pace_cache = (time.monotonic(), pace)
        return pace
