"""The SQLite file of the queue: its schema, migration from earlier versions, detection of damage, repair."""

import logging
import sqlite3
import time
from pathlib import Path

from latentsync.options import OPTIONS, RENAMED
from latentsync.serving.workspace import Workspace
from latentsync.utils.errors import UserError

logger = logging.getLogger(__name__)

BUSY_SECONDS = 30.0
SCHEMA_VERSION = 7  # raise it when a column changes
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
    fraction REAL NOT NULL DEFAULT 0,
    ends REAL,
    error TEXT,
    result TEXT,
    expired INTEGER NOT NULL DEFAULT 0,
    owner TEXT,
    beat REAL,
    cancel INTEGER NOT NULL DEFAULT 0,
    boot TEXT,
    submitter TEXT,
    tags TEXT NOT NULL DEFAULT '[]',
    idempotency_key TEXT,
    webhook TEXT,
    webhook_attempts INTEGER NOT NULL DEFAULT 0,
    webhook_due REAL
);
CREATE INDEX IF NOT EXISTS jobs_by_state ON jobs (state, place);
CREATE UNIQUE INDEX IF NOT EXISTS jobs_by_key ON jobs (coalesce(submitter, ''), idempotency_key)
    WHERE idempotency_key IS NOT NULL;
CREATE TABLE IF NOT EXISTS workers (
    id TEXT PRIMARY KEY,
    pid INTEGER NOT NULL,
    device TEXT NOT NULL,
    models TEXT NOT NULL DEFAULT '[]',
    beat REAL NOT NULL,
    boot TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS options (name TEXT PRIMARY KEY);
"""
# Statements that turn a database of a version into one of the next.
MIGRATIONS = {
    1: ("ALTER TABLE jobs ADD COLUMN moved REAL",),
    # beat is monotonic from here on. Without `boot`, running jobs count as lost.
    2: (
        "ALTER TABLE jobs ADD COLUMN boot TEXT",
        "ALTER TABLE jobs ADD COLUMN submitter TEXT",
        "DROP TABLE IF EXISTS workers",
    ),
    3: (
        "ALTER TABLE jobs DROP COLUMN frames_since",
        "ALTER TABLE jobs DROP COLUMN moved",
        "ALTER TABLE jobs ADD COLUMN fraction REAL NOT NULL DEFAULT 0",
        "ALTER TABLE jobs ADD COLUMN ends REAL",
        "ALTER TABLE jobs ADD COLUMN tags TEXT NOT NULL DEFAULT '[]'",
        "ALTER TABLE jobs ADD COLUMN idempotency_key TEXT",
        "ALTER TABLE jobs ADD COLUMN webhook TEXT",
        "ALTER TABLE jobs ADD COLUMN webhook_attempts INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE jobs ADD COLUMN webhook_due REAL",
    ),
    4: (),  # other options
    5: (),  # other options
    6: (),  # from here on, the table `options` has their names
}
SIDE_FILES = ("", "-wal", "-shm")


def connect(path: Path) -> sqlite3.Connection:
    """A connection that waits for other writers and returns rows by column name."""
    db = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)
    try:
        db.row_factory = sqlite3.Row
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
    except BaseException:
        db.close()
        raise
    return db


def prepare(path: Path) -> None:
    """Create the database, or check and migrate an existing one.

    Raises:
        UserError: it is damaged, or a newer version of this program has written it, with other columns or options.
    """
    problem = find_damage(path)
    if problem is not None:
        raise UserError(f"{path}: the queue's database is damaged ({problem}); add --repair to start an empty queue")
    db = connect(path)
    try:
        db.execute("BEGIN IMMEDIATE")
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if not 0 <= version <= SCHEMA_VERSION:
            raise _other_version(path, f"schema {version}; this one reads up to {SCHEMA_VERSION}")
        for earlier in range(max(version, 1), SCHEMA_VERSION) if version else ():
            for statement in MIGRATIONS[earlier]:
                db.execute(statement)
        for statement in SCHEMA.split(";"):
            db.execute(statement)
        stored = {row["name"] for row in db.execute("SELECT name FROM options")}
        if unknown := stored - OPTIONS.keys() - RENAMED.keys():
            raise _other_version(path, f"its jobs may have the option {min(unknown)}")
        db.executemany("INSERT OR IGNORE INTO options VALUES (?)", ((name,) for name in OPTIONS))
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        db.execute("COMMIT")
    finally:
        db.close()


def _other_version(path: Path, why: str) -> UserError:
    return UserError(
        f"{path}: written by another version of this program ({why}); use that version or choose another workspace"
    )


def find_damage(path: Path) -> str | None:
    """Describe the damage of a database file; None if it is intact or absent."""
    if not path.exists():
        return None
    folders = path.parent / "jobs"
    if path.stat().st_size == 0 and folders.is_dir() and any(folders.iterdir()):
        return "it is empty although there are jobs"
    try:
        db = connect(path)
        try:
            found = db.execute("PRAGMA quick_check(1)").fetchone()[0]
        finally:
            db.close()
    except sqlite3.OperationalError as error:
        if "locked" in str(error) or "busy" in str(error):  # in use: whoever has it open has checked it
            return None
        raise UserError(f"{path}: cannot be opened ({error}); choose another workspace") from error
    except sqlite3.DatabaseError as error:
        return str(error)
    return None if found == "ok" else " ".join(str(found).split())


def repair(workspace: Path) -> Path | None:
    """Move a damaged database and the folders of its jobs aside, into `damaged-DATE` in the workspace.

    Nothing is deleted, so finished results can still be taken from there. Stop all programs that use the workspace
    first. Returns the new folder; None if the database is intact.

    Raises:
        UserError: the workspace cannot be used.
    """
    place = Workspace(workspace)
    if find_damage(place.database) is None:
        logger.info("%s is not damaged; nothing to repair", place.database)
        return None
    aside = place.root / time.strftime("damaged-%Y%m%d-%H%M%S")
    try:
        aside.mkdir()
        for ending in SIDE_FILES:
            file = place.database.with_name(place.database.name + ending)
            if file.exists():
                file.rename(aside / file.name)
        place.jobs.rename(aside / place.jobs.name)
        place.jobs.mkdir()
    except OSError as error:
        raise UserError(f"{aside}: the damaged queue cannot be moved there ({error.strerror})") from error
    logger.warning("the damaged queue and its jobs are now in %s; the service starts with an empty queue", aside)
    return aside
