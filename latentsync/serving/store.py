"""The job queue: reads and writes the SQLite database, which several processes may open at once.

A running job belongs to one owner (a worker) for as long as it renews its lease. A worker that has lost a job can
neither report on it nor finish it: each update names owner and attempt. Leases count in monotonic time, so that changes
of the system time and suspended machines do not end them.
"""

import json
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from latentsync.options import GenerationOptions
from latentsync.serving import database
from latentsync.serving.clock import boot_id
from latentsync.serving.jobs import NO_METADATA, JobKind, JobState, Metadata
from latentsync.serving.rows import MAX_NUMBER, Row
from latentsync.utils.progress import Progress

ENDED = "state IN ('done', 'failed', 'cancelled')"
# At the end of the queue, whatever damaged rows contain.
NEXT_PLACE = f"SELECT coalesce(max(place), 0) + 1 FROM jobs WHERE place < {MAX_NUMBER}"
TOO_MANY_ATTEMPTS = "the worker died {attempts} times while it ran this job, which may need more memory than there is"


class JobStore:
    """Reads and writes the queue. Thread-safe, with one connection per thread."""

    def __init__(self, path: Path) -> None:
        """Raises UserError for a database that is damaged or was written by another version."""
        self.path, self._local = path, threading.local()
        database.prepare(path)

    def _connection(self) -> sqlite3.Connection:
        if getattr(self._local, "db", None) is None:
            self._local.db = database.connect(self.path)
        return self._local.db

    @contextmanager
    def _write(self) -> Iterator[sqlite3.Connection]:
        """A transaction that takes the write lock at its start, so that it cannot fail halfway for want of it."""
        db = self._connection()
        db.execute("BEGIN IMMEDIATE")
        try:
            yield db
        except BaseException:
            db.execute("ROLLBACK")
            raise
        db.execute("COMMIT")

    def close(self) -> None:
        """Close this thread's connection."""
        db = getattr(self._local, "db", None)
        if db is not None:
            db.close()
            self._local.db = None

    # For users

    def add(
        self,
        job_id: str,
        kind: JobKind,
        options: GenerationOptions,
        inputs: dict[str, str],
        files: dict[str, str],
        most: int,
        submitter: str | None = None,
        metadata: Metadata = NO_METADATA,
    ) -> bool:
        """Queue a job; returns False, and does nothing, if `most` jobs are queued already.

        Raises:
            sqlite3.IntegrityError: the submitter has used the idempotency key before.
        """
        with self._write() as db:
            if self._count(db, JobState.QUEUED) >= most:
                return False
            values = (job_id, kind, options.model_dump_json(), json.dumps(inputs), json.dumps(files), time.time())
            more = (submitter, json.dumps(metadata.tags), metadata.webhook, metadata.idempotency_key)
            db.execute(
                "INSERT INTO jobs (id, kind, state, options, inputs, files, created, submitter, tags, webhook,"
                " idempotency_key, place) VALUES (?, ?, 'queued', ?, ?, ?, ?, ?, ?, ?, ?,"
                f" ({NEXT_PLACE}))",
                (*values, *more),
            )
            return True

    def with_key(self, key: str, submitter: str | None) -> Row | None:
        """The job that a submitter has submitted with an idempotency key."""
        query = "SELECT * FROM jobs WHERE idempotency_key = ? AND coalesce(submitter, '') = ?"
        row = self._connection().execute(query, (key, submitter or "")).fetchone()
        return None if row is None else Row.of(row)

    def get(self, job_id: str) -> Row | None:
        row = self._connection().execute("SELECT * FROM jobs WHERE id = ?", (job_id,)).fetchone()
        return None if row is None else Row.of(row)

    def listing(
        self,
        states: Sequence[JobState] | None,
        limit: int,
        offset: int,
        submitter: str | None = None,
        tag: str | None = None,
    ) -> list[Row]:
        """Jobs in these states (None: all), of one submitter (None: of all), with a tag (None: any), newest first."""
        chosen = list(JobState) if states is None else list(states)
        marks = ", ".join("?" * len(chosen))
        any_state = " OR TRUE" if states is None else ""  # also one that this version does not know
        rows = self._connection().execute(
            f"SELECT * FROM jobs WHERE (state IN ({marks}){any_state}) AND (? IS NULL OR submitter = ?)"
            " AND (? IS NULL OR EXISTS (SELECT 1 FROM json_each(tags) WHERE value = ?))"
            " ORDER BY number DESC LIMIT ? OFFSET ?",
            (*chosen, submitter, submitter, tag, tag, limit, offset),
        )
        return [Row.of(row) for row in rows]

    def position(self, row: Row) -> int:
        """Number of queued jobs before this one."""
        query = "SELECT count(*) FROM jobs WHERE state = 'queued' AND place < ?"
        return self._connection().execute(query, (row.place,)).fetchone()[0]

    def cancel(self, job_id: str) -> None:
        """Cancel a queued job at once, ask a running one to stop, and leave others unchanged."""
        with self._write() as db:
            db.execute(
                "UPDATE jobs SET state = 'cancelled', finished = ? WHERE id = ? AND state = 'queued'",
                (time.time(), job_id),
            )
            db.execute("UPDATE jobs SET cancel = 1 WHERE id = ? AND state = 'running'", (job_id,))

    def retry(self, job_id: str, most: int) -> bool | None:
        """Queue a finished job again. None: it is not finished or its files are deleted; False: the queue is full."""
        with self._write() as db:
            row = db.execute(
                f"SELECT 1 FROM jobs WHERE id = ? AND {ENDED} AND NOT expired",
                (job_id,),
            ).fetchone()
            if row is None:
                return None
            if self._count(db, JobState.QUEUED) >= most:
                return False
            db.execute(
                "UPDATE jobs SET state = 'queued', attempts = 0, started = NULL, finished = NULL, error = NULL,"
                " result = NULL, stage = '', done = 0, total = 0, fraction = 0, ends = NULL, cancel = 0, owner = NULL,"
                " webhook_attempts = 0, webhook_due = NULL,"
                f" place = ({NEXT_PLACE}) WHERE id = ?",
                (job_id,),
            )
            return True

    def delete(self, job_id: str) -> bool:
        """Remove a job that is not running; False if it is."""
        with self._write() as db:
            return db.execute("DELETE FROM jobs WHERE id = ? AND state != 'running'", (job_id,)).rowcount > 0

    # For workers

    def claim(self, owner: str) -> Row | None:
        """Take the job that has been queued longest. Unreadable ones before it fail, so that they block nobody."""
        with self._write() as db:
            while True:
                found = db.execute(
                    "UPDATE jobs SET state = 'running', owner = ?, beat = ?, boot = ?, started = ?,"
                    " attempts = attempts + 1, stage = 'starting', done = 0, total = 0, fraction = 0, ends = NULL,"
                    " cancel = 0 WHERE number ="
                    " (SELECT number FROM jobs WHERE state = 'queued' ORDER BY place LIMIT 1) RETURNING *",
                    (owner, time.monotonic(), boot_id(), time.time()),
                ).fetchone()
                row = None if found is None else Row.of(found)
                if row is None or row.state is JobState.RUNNING:
                    return row
                db.execute(
                    "UPDATE jobs SET state = 'failed', error = ?, finished = ?, owner = NULL WHERE number = ?",
                    (row.error, time.time(), row.number),
                )

    def progress(self, row: Row, progress: Progress, ends: float | None = None) -> bool | None:
        """Report progress and renew the lease. Returns whether to cancel the job; None if the caller has lost it.

        ends: when the job is expected to be done, in monotonic seconds.
        """
        values = (progress.stage, progress.done, progress.total, progress.fraction, ends, time.monotonic())
        with self._write() as db:
            found = db.execute(
                "UPDATE jobs SET stage = ?, done = ?, total = ?, fraction = ?, ends = ?, beat = ?"
                " WHERE id = ? AND owner = ? AND attempts = ? AND state = 'running' RETURNING cancel",
                (*values, row.id, row.owner, row.attempts),
            ).fetchone()
            return None if found is None else bool(found["cancel"])

    def finish(self, row: Row, state: JobState, *, result: str | None = None, error: str | None = None) -> bool:
        """End a job; returns False, and does nothing, if the caller has lost it."""
        with self._write() as db:
            changed = db.execute(
                "UPDATE jobs SET state = ?, result = ?, error = ?, finished = ?, owner = NULL"
                " WHERE id = ? AND owner = ? AND attempts = ? AND state = 'running'",
                (state, result, error, time.time(), row.id, row.owner, row.attempts),
            )
            return changed.rowcount > 0

    def give_back(self, owner: str) -> None:
        """Return the job of a worker that stops to its place in the queue; the attempt does not count."""
        with self._write() as db:
            db.execute(
                "UPDATE jobs SET state = CASE WHEN cancel THEN 'cancelled' ELSE 'queued' END,"
                " finished = CASE WHEN cancel THEN ? END, attempts = attempts - 1, owner = NULL, stage = ''"
                " WHERE owner = ? AND state = 'running'",
                (time.time(), owner),
            )

    def recover(self, most_attempts: int, *, owner: str | None = None, silent_for: float | None = None) -> int:
        """Return lost jobs to their place in the queue: those of a worker that died (`owner`), or those whose worker
        gave no sign of life for `silent_for` seconds or since the machine started. Jobs to be cancelled are cancelled,
        those with too many attempts fail. Returns the number of lost jobs."""
        lost_ones, values = "(boot IS NOT ? OR beat < ?)", [boot_id(), time.monotonic() - (silent_for or 0.0)]
        if owner is not None:
            lost_ones, values = "owner = ?", [owner]
        with self._write() as db:
            lost = db.execute(f"SELECT * FROM jobs WHERE state = 'running' AND {lost_ones}", values).fetchall()
            for row in map(Row.of, lost):
                state, error = JobState.QUEUED, None
                if row.cancel:
                    state = JobState.CANCELLED
                elif row.state is JobState.FAILED:  # it cannot be read
                    state, error = row.state, row.error
                elif row.attempts >= most_attempts:
                    state, error = JobState.FAILED, TOO_MANY_ATTEMPTS.format(attempts=row.attempts)
                finished = None if state is JobState.QUEUED else time.time()
                db.execute(
                    "UPDATE jobs SET state = ?, error = ?, finished = ?, owner = NULL, stage = '' WHERE id = ?",
                    (state, error, finished, row.id),
                )
            return len(lost)

    def end_running(self, owner: str, state: JobState, error: str | None = None) -> None:
        """End the job of a worker that had to be killed."""
        with self._write() as db:
            db.execute(
                "UPDATE jobs SET state = ?, error = ?, finished = ?, owner = NULL"
                " WHERE owner = ? AND state = 'running'",
                (state, error, time.time(), owner),
            )

    def running_of(self, owner: str) -> Row | None:
        """The job that a worker is running."""
        query = "SELECT * FROM jobs WHERE owner = ? AND state = 'running'"
        row = self._connection().execute(query, (owner,)).fetchone()
        return None if row is None else Row.of(row)

    # Retention and statistics

    def ended(self) -> list[Row]:
        """Finished jobs that still have files, oldest first."""
        query = f"SELECT * FROM jobs WHERE {ENDED} AND NOT expired ORDER BY finished, number"
        return [Row.of(row) for row in self._connection().execute(query)]

    def expire(self, job_id: str) -> bool:
        """Mark the files of a finished job as deleted; False if it is not finished, or no longer."""
        with self._write() as db:
            changed = db.execute(
                f"UPDATE jobs SET expired = 1, result = NULL WHERE id = ? AND {ENDED}",
                (job_id,),
            )
            return changed.rowcount > 0

    def ids(self) -> set[str]:
        return {row["id"] for row in self._connection().execute("SELECT id FROM jobs WHERE NOT expired")}

    def counts(self) -> dict[JobState, int]:
        found = dict(self._connection().execute("SELECT state, count(*) FROM jobs GROUP BY state").fetchall())
        return {state: found.get(state.value, 0) for state in JobState}

    def durations(self, last: int) -> list[float]:
        """Duration in seconds of the most recent finished jobs, newest first."""
        query = (
            "SELECT max(finished - started, 0) AS seconds FROM jobs WHERE state = 'done' AND started IS NOT NULL"
            " ORDER BY finished DESC LIMIT ?"
        )
        return [row["seconds"] for row in self._connection().execute(query, (last,))]

    # Webhooks

    def claim_webhook(self, delays: Sequence[float]) -> Row | None:
        """A finished job whose webhook is to be called now; it is due again `delays[attempts so far]` seconds later."""
        now = time.time()
        with self._write() as db:
            found = db.execute(
                f"SELECT * FROM jobs WHERE webhook IS NOT NULL AND {ENDED} AND webhook_attempts < ?"
                " AND coalesce(webhook_due, 0) <= ? ORDER BY finished LIMIT 1",
                (len(delays), now),
            ).fetchone()
            if found is None:
                return None
            db.execute(
                "UPDATE jobs SET webhook_attempts = webhook_attempts + 1, webhook_due = ? WHERE number = ?",
                (now + delays[found["webhook_attempts"]], found["number"]),
            )
            return Row.of(found)

    def webhook_done(self, job_id: str) -> None:
        """The webhook was delivered, or can never be."""
        with self._write() as db:
            db.execute("UPDATE jobs SET webhook = NULL WHERE id = ?", (job_id,))

    # Workers

    def worker_beat(self, worker: str, pid: int, device: str, models: Sequence[str]) -> None:
        """Record a sign of life of a worker, and the models it has loaded."""
        with self._write() as db:
            db.execute(
                "INSERT INTO workers (id, pid, device, models, beat, boot) VALUES (?, ?, ?, ?, ?, ?)"
                " ON CONFLICT (id) DO UPDATE SET models = excluded.models, beat = excluded.beat, boot = excluded.boot",
                (worker, pid, device, json.dumps(list(models)), time.monotonic(), boot_id()),
            )

    def worker_gone(self, worker: str) -> None:
        with self._write() as db:
            db.execute("DELETE FROM workers WHERE id = ?", (worker,))

    def workers(self, silent_for: float) -> list[tuple[str, list[str]]]:
        """(id, loaded models) of the workers that were alive in the last `silent_for` seconds; removes others."""
        with self._write() as db:
            db.execute("DELETE FROM workers WHERE boot != ? OR beat < ?", (boot_id(), time.monotonic() - silent_for))
            rows = db.execute("SELECT id, models FROM workers ORDER BY id").fetchall()
        return [(row["id"], json.loads(row["models"])) for row in rows]

    @staticmethod
    def _count(db: sqlite3.Connection, state: JobState) -> int:
        return db.execute("SELECT count(*) FROM jobs WHERE state = ?", (state,)).fetchone()[0]
