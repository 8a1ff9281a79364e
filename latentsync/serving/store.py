"""The queue on disk: one SQLite file (WAL) that several processes may open at once.

A running job belongs to one owner (a worker) for as long as it renews its lease. Whoever has lost a job can neither
report on it nor end it: each update names owner and attempt.
"""

import json
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from latentsync.options import GenerationOptions, read_stored
from latentsync.serving.jobs import JobKind, JobState
from latentsync.utils.errors import UserError

BUSY_SECONDS = 30.0
SCHEMA_VERSION = 2
SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    kind TEXT NOT NULL,
    state TEXT NOT NULL,
    options TEXT NOT NULL,
    inputs TEXT NOT NULL,
    files TEXT NOT NULL,
    created REAL NOT NULL,
    started REAL,
    finished REAL,
    attempts INTEGER NOT NULL DEFAULT 0,
    place REAL NOT NULL,
    stage TEXT NOT NULL DEFAULT '',
    done INTEGER NOT NULL DEFAULT 0,
    total INTEGER NOT NULL DEFAULT 0,
    frames_since REAL,
    moved REAL,
    error TEXT,
    result TEXT,
    expired INTEGER NOT NULL DEFAULT 0,
    owner TEXT,
    beat REAL,
    cancel INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX IF NOT EXISTS jobs_by_state ON jobs (state, place);
CREATE TABLE IF NOT EXISTS workers (
    id TEXT PRIMARY KEY,
    pid INTEGER NOT NULL,
    device TEXT NOT NULL,
    models TEXT NOT NULL DEFAULT '[]',
    beat REAL NOT NULL
);
"""
FROM_VERSION_1 = "ALTER TABLE jobs ADD COLUMN moved REAL"
ENDED = "state IN ('done', 'failed', 'cancelled')"
TOO_OFTEN = "the job was begun {attempts} times and its worker died each time; it may need more memory than there is"


@dataclass(frozen=True)
class Row:
    """A job as it is stored.

    files: role -> name of the file in the job's folder; result: the same, or None. place: order in the queue.
    frames_since: when the running attempt first knew how many frames there are; moved: when `done` last changed.
    owner, beat: worker and its last sign of life. cancel: the owner is to stop.
    """

    number: int
    id: str
    kind: JobKind
    state: JobState
    options: GenerationOptions
    inputs: dict[str, str]
    files: dict[str, str]
    created: float
    started: float | None
    finished: float | None
    attempts: int
    place: float
    stage: str
    done: int
    total: int
    frames_since: float | None
    moved: float | None
    error: str | None
    result: str | None
    expired: bool
    owner: str | None
    beat: float | None
    cancel: bool

    @classmethod
    def of(cls, row: sqlite3.Row) -> "Row":
        values = dict(row)
        for name in ("inputs", "files"):
            values[name] = json.loads(values[name])
        values["options"] = read_stored(values["options"])
        values |= {"kind": JobKind(values["kind"]), "state": JobState(values["state"])}
        return cls(**values | {"expired": bool(values["expired"]), "cancel": bool(values["cancel"])})


class JobStore:
    """Reads and writes the queue; thread-safe, a connection a thread. Times are seconds since 1970."""

    def __init__(self, path: Path) -> None:
        self.path, self._local = path, threading.local()
        with self._write() as db:
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if not 0 <= version <= SCHEMA_VERSION:
                raise UserError(f"{path}: written by another version of this program; choose another workspace")
            if version == 1:
                db.execute(FROM_VERSION_1)
            for statement in SCHEMA.split(";"):
                db.execute(statement)
            db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def _connection(self) -> sqlite3.Connection:
        if getattr(self._local, "db", None) is None:
            db = sqlite3.connect(self.path, timeout=BUSY_SECONDS, isolation_level=None)
            db.row_factory = sqlite3.Row
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = NORMAL")
            self._local.db = db
        return self._local.db

    @contextmanager
    def _write(self) -> Iterator[sqlite3.Connection]:
        """A transaction that begins as a writer, so that it never has to give up half way."""
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

    # What users do

    def add(
        self,
        job_id: str,
        kind: JobKind,
        options: GenerationOptions,
        inputs: dict[str, str],
        files: dict[str, str],
        most: int,
    ) -> bool:
        """Queue a job; False, and nothing done, where `most` jobs wait already."""
        with self._write() as db:
            if self._count(db, JobState.QUEUED) >= most:
                return False
            now = time.time()
            db.execute(
                "INSERT INTO jobs (id, kind, state, options, inputs, files, created, place)"
                " VALUES (?, ?, 'queued', ?, ?, ?, ?, (SELECT coalesce(max(place), 0) + 1 FROM jobs))",
                (job_id, kind, options.model_dump_json(), json.dumps(inputs), json.dumps(files), now),
            )
            return True

    def get(self, job_id: str) -> Row | None:
        row = self._connection().execute("SELECT * FROM jobs WHERE id = ?", (job_id,)).fetchone()
        return None if row is None else Row.of(row)

    def listing(self, states: Sequence[JobState] | None, limit: int, offset: int) -> list[Row]:
        """Newest first."""
        chosen = list(JobState) if states is None else list(states)
        marks = ", ".join("?" * len(chosen))
        rows = self._connection().execute(
            f"SELECT * FROM jobs WHERE state IN ({marks}) ORDER BY number DESC LIMIT ? OFFSET ?",
            (*chosen, limit, offset),
        )
        return [Row.of(row) for row in rows]

    def position(self, row: Row) -> int:
        """Waiting jobs that come before this one."""
        query = "SELECT count(*) FROM jobs WHERE state = 'queued' AND place < ?"
        return self._connection().execute(query, (row.place,)).fetchone()[0]

    def cancel(self, job_id: str) -> None:
        """A waiting job is cancelled at once, a running one is asked to stop; others stay as they are."""
        with self._write() as db:
            db.execute(
                "UPDATE jobs SET state = 'cancelled', finished = ? WHERE id = ? AND state = 'queued'",
                (time.time(), job_id),
            )
            db.execute("UPDATE jobs SET cancel = 1 WHERE id = ? AND state = 'running'", (job_id,))

    def retry(self, job_id: str, most: int) -> bool | None:
        """Put an ended job at the end of the queue. None: it has not ended or has lost its files; False: queue full."""
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
                " result = NULL, stage = '', done = 0, total = 0, cancel = 0, owner = NULL,"
                " place = (SELECT max(place) + 1 FROM jobs) WHERE id = ?",
                (job_id,),
            )
            return True

    def delete(self, job_id: str) -> bool:
        """Forget a job that is not running; False where it is."""
        with self._write() as db:
            return db.execute("DELETE FROM jobs WHERE id = ? AND state != 'running'", (job_id,)).rowcount > 0

    # What workers do

    def claim(self, owner: str) -> Row | None:
        """Take the job that has waited longest."""
        with self._write() as db:
            now = time.time()
            row = db.execute(
                "UPDATE jobs SET state = 'running', owner = ?, beat = ?, started = ?, attempts = attempts + 1,"
                " stage = 'starting', done = 0, total = 0, frames_since = NULL, moved = NULL, cancel = 0"
                " WHERE number ="
                " (SELECT number FROM jobs WHERE state = 'queued' ORDER BY place LIMIT 1) RETURNING *",
                (owner, now, now),
            ).fetchone()
            return None if row is None else Row.of(row)

    def progress(self, row: Row, stage: str, done: int, total: int) -> bool | None:
        """Report on a job and renew its lease. Whether it is to be cancelled; None: it is no longer the caller's."""
        now = time.time()
        with self._write() as db:
            found = db.execute(
                "UPDATE jobs SET stage = ?, done = ?, total = ?, beat = ?,"
                " frames_since = CASE WHEN ? > 0 THEN coalesce(frames_since, ?) END,"
                " moved = CASE WHEN done = ? THEN moved ELSE ? END"
                " WHERE id = ? AND owner = ? AND attempts = ? AND state = 'running' RETURNING cancel",
                (stage, done, total, now, total, now, done, now, row.id, row.owner, row.attempts),
            ).fetchone()
            return None if found is None else bool(found["cancel"])

    def finish(self, row: Row, state: JobState, *, result: str | None = None, error: str | None = None) -> bool:
        """End a job; False, and nothing done, where it is no longer the caller's."""
        with self._write() as db:
            changed = db.execute(
                "UPDATE jobs SET state = ?, result = ?, error = ?, finished = ?, owner = NULL"
                " WHERE id = ? AND owner = ? AND attempts = ? AND state = 'running'",
                (state, result, error, time.time(), row.id, row.owner, row.attempts),
            )
            return changed.rowcount > 0

    def give_back(self, owner: str) -> None:
        """A worker stops in good order: its job goes back to its place in the queue, the attempt not counted."""
        with self._write() as db:
            db.execute(
                "UPDATE jobs SET state = CASE WHEN cancel THEN 'cancelled' ELSE 'queued' END,"
                " finished = CASE WHEN cancel THEN ? END, attempts = attempts - 1, owner = NULL, stage = ''"
                " WHERE owner = ? AND state = 'running'",
                (time.time(), owner),
            )

    def recover(self, most_attempts: int, *, owner: str | None = None, before: float | None = None) -> int:
        """Jobs of a worker that died (`owner`), or without a sign of life since `before`, go back to their place in the
        queue; those to be cancelled are, and those begun too often fail. Returns how many there were."""
        where, value = ("owner = ?", owner) if owner is not None else ("beat < ?", before)
        with self._write() as db:
            lost = db.execute(f"SELECT * FROM jobs WHERE state = 'running' AND {where}", (value,)).fetchall()
            for row in lost:
                state, error = JobState.QUEUED, None
                if row["cancel"]:
                    state = JobState.CANCELLED
                elif row["attempts"] >= most_attempts:
                    state, error = JobState.FAILED, TOO_OFTEN.format(attempts=row["attempts"])
                finished = None if state is JobState.QUEUED else time.time()
                db.execute(
                    "UPDATE jobs SET state = ?, error = ?, finished = ?, owner = NULL, stage = '' WHERE id = ?",
                    (state, error, finished, row["id"]),
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
        """The job that a worker is busy with."""
        query = "SELECT * FROM jobs WHERE owner = ? AND state = 'running'"
        row = self._connection().execute(query, (owner,)).fetchone()
        return None if row is None else Row.of(row)

    # Ageing and figures

    def ended(self) -> list[Row]:
        """Ended jobs that still have files, oldest end first."""
        query = f"SELECT * FROM jobs WHERE {ENDED} AND NOT expired ORDER BY finished, number"
        return [Row.of(row) for row in self._connection().execute(query)]

    def expire(self, job_id: str) -> bool:
        """Note that an ended job's files are about to go; False where it has not ended (any more)."""
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
        """Seconds that the last finished jobs took, newest first."""
        query = (
            "SELECT finished - started AS seconds FROM jobs WHERE state = 'done' AND started IS NOT NULL"
            " ORDER BY finished DESC LIMIT ?"
        )
        return [row["seconds"] for row in self._connection().execute(query, (last,))]

    def changes(self) -> int:
        """A number that changes when another connection has written: cheap to ask for."""
        return self._connection().execute("PRAGMA data_version").fetchone()[0]

    # Workers

    def worker_beat(self, worker: str, pid: int, device: str, models: Sequence[str]) -> None:
        with self._write() as db:
            db.execute(
                "INSERT INTO workers (id, pid, device, models, beat) VALUES (?, ?, ?, ?, ?)"
                " ON CONFLICT (id) DO UPDATE SET models = excluded.models, beat = excluded.beat",
                (worker, pid, device, json.dumps(list(models)), time.time()),
            )

    def worker_gone(self, worker: str) -> None:
        with self._write() as db:
            db.execute("DELETE FROM workers WHERE id = ?", (worker,))

    def workers(self, since: float) -> list[tuple[str, list[str]]]:
        """(id, loaded models) of the workers with a sign of life since then; older ones are forgotten."""
        with self._write() as db:
            db.execute("DELETE FROM workers WHERE beat < ?", (since,))
            rows = db.execute("SELECT id, models FROM workers ORDER BY id").fetchall()
        return [(row["id"], json.loads(row["models"])) for row in rows]

    @staticmethod
    def _count(db: sqlite3.Connection, state: JobState) -> int:
        return db.execute("SELECT count(*) FROM jobs WHERE state = ?", (state,)).fetchone()[0]
