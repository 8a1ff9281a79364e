"""Stored queues: other versions, damage, repair, and jobs that this version cannot read."""

import json
import sqlite3
import threading

import pytest

from latentsync.options import GenerationOptions
from latentsync.serving import clock, store
from latentsync.serving.background import BackgroundTask
from latentsync.serving.database import SCHEMA_VERSION, find_damage, prepare, repair
from latentsync.serving.jobs import JobKind, JobState
from latentsync.serving.store import JobStore
from latentsync.utils.errors import UserError
from latentsync.utils.progress import Progress
from scripts import batch, serve
from tests.serving.fakes import FakeRunner, service_in, wait_for, working, write_files
from tests.waiting import eventually

# Options as earlier versions stored them.
STORED = {
    1: '{"model":"auto","lora":null,"guidance_scale":7.5,"seed":1247,"solver":"ddim","match_colour":true}',
    2: '{"model":"auto","preview_seconds":2.0,"crf":18,"keep_fps":false}',
    3: '{"model":"auto","match_color":true,"max_seconds":2.0,"paste_mask":"box"}',
    4: '{"model":"auto","match_color":true,"max_seconds":2.0,"on_short_video":"loop"}',
    5: '{"model":"auto","match_color":true,"max_seconds":2.0,"length_mode":"bounce","silence":"rest"}',
    SCHEMA_VERSION: GenerationOptions(match_color=True, max_seconds=2).model_dump_json(),
}


@pytest.fixture
def service(tmp_path):
    return service_in(tmp_path / "ws")


def submit(service, tmp_path):
    return service.submit(JobKind.LIPSYNC, write_files(tmp_path / "in"), GenerationOptions()).id


def change(service, job_id: str, **columns: object) -> None:
    with sqlite3.connect(service.workspace.database) as db:
        for name, value in columns.items():
            db.execute(f"UPDATE jobs SET {name} = ? WHERE id = ?", (value, job_id))
    db.close()


def make_version(path, version: int) -> None:
    """Turn an up-to-date database into one of an earlier version."""
    with sqlite3.connect(path) as db:
        db.execute("DROP INDEX jobs_by_key")
        newer = ["fraction", "ends", "tags", "idempotency_key", "webhook", "webhook_attempts", "webhook_due"]
        newer += ["boot", "submitter"] if version < 3 else []
        for name in newer:
            db.execute(f"ALTER TABLE jobs DROP COLUMN {name}")
        for name in ["frames_since"] + (["moved"] if version > 1 else []):
            db.execute(f"ALTER TABLE jobs ADD COLUMN {name} REAL")
        if version < 3:
            db.execute("ALTER TABLE workers DROP COLUMN boot")
        db.execute(f"PRAGMA user_version = {version}")
    db.close()


@pytest.mark.parametrize("version", [1, 2, 3])
def test_a_queue_of_an_earlier_version_is_migrated(service, tmp_path, version):
    queued, running = submit(service, tmp_path), submit(service, tmp_path)
    change(service, running, state="running", owner="old", beat=2e9)
    change(service, queued, options=STORED[version])
    service.store.close()
    make_version(service.workspace.database, version)
    migrated = service_in(tmp_path / "ws")
    migrated.sweep()
    assert migrated.get(running).state is JobState.QUEUED  # its lease was in system time and means nothing now
    with working(migrated, FakeRunner()):
        assert [wait_for(migrated, job_id).state for job_id in (queued, running)] == [JobState.DONE] * 2
    options = migrated.get(queued).options
    assert (options.guidance_scale, options.match_color) == (3, True) if version == 1 else options.max_seconds == 2
    assert migrated.get(queued).tags == ()


LATER = {
    "other columns": f"PRAGMA user_version = {SCHEMA_VERSION + 1}",
    "another option": "INSERT INTO options VALUES ('emotion')",
}


@pytest.mark.parametrize("case", LATER)
def test_a_queue_of_a_later_version_is_refused_in_one_line(service, capsys, case):
    with sqlite3.connect(service.workspace.database) as db:
        db.execute(LATER[case])
    db.close()
    assert serve.main(["--workspace", str(service.workspace.root), "--port", "0"]) == 1
    message = capsys.readouterr().err
    assert "another version" in message and message.count("\n") == 1


@pytest.mark.parametrize("version", STORED)
def test_stored_options_of_all_versions_are_read(service, tmp_path, version):
    job_id = submit(service, tmp_path)
    change(service, job_id, options=STORED[version])
    assert service.get(job_id).state is JobState.QUEUED


UNREADABLE = {
    "an option of a later version": {"options": '{"seed": 1, "emotion": "joy"}'},
    "a value of a later version": {"options": '{"solver": "euler"}'},
    "broken JSON": {"options": '{"seed": '},
    "JSON of another type": {"options": "[1]"},
    "deeply nested JSON": {"options": "[" * 100_000},
    "an unknown kind": {"kind": "dance"},
    "broken inputs": {"inputs": "null"},
    "broken files": {"files": "\x00"},
    "a time that is none": {"created": "yesterday"},
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_an_unreadable_job_fails_and_disturbs_no_other(service, tmp_path, case):
    first, bad, last = (submit(service, tmp_path) for _ in range(3))
    change(service, bad, **UNREADABLE[case])
    assert [job.id for job in service.list()] == [last, bad, first]
    service.sweep()
    assert service.stats().queue_length == 3
    with working(service, FakeRunner()):
        assert wait_for(service, last).state is JobState.DONE
    failed = service.get(bad)
    assert failed.state is JobState.FAILED and "cannot be read" in failed.error and "\n" not in failed.error
    assert service.stats().counts == {state: 0 for state in JobState} | {JobState.DONE: 2, JobState.FAILED: 1}
    service.sweep()
    service.delete(bad)
    assert [job.id for job in service.list()] == [last, first]


@pytest.mark.parametrize("state", ["queued", "running", "done"])
@pytest.mark.parametrize(
    "columns",
    [{"ends": float("inf")}, {"done": float("inf")}, {"created": 1e18}, {"place": float("inf")}, {"attempts": "abc"},
     {"stage": b"\xff"}, {"result": b"\xff"}, {"error": b"\xff", "owner": b"\xff"}],
    ids=str,
)  # fmt: skip
def test_no_value_of_a_row_disturbs_other_jobs(service, tmp_path, state, columns):
    job_id = submit(service, tmp_path)
    change(service, job_id, **{"state": state, **columns})
    other = submit(service, tmp_path)
    assert {job.id: job.state for job in service.list()}[job_id] is JobState.FAILED
    service.store.recover(3, silent_for=0)
    service.sweep()
    claimed = [service.store.claim("w") for _ in range(2)]  # a claim replaces some values, so that a job is readable
    assert other in [row.id for row in claimed if row is not None]


def test_an_unknown_state_is_listed_and_can_be_deleted(service, tmp_path):
    job_id = submit(service, tmp_path)
    change(service, job_id, state="paused")
    assert service.list()[0].state is JobState.FAILED and service.store.claim("w") is None
    service.delete(job_id)
    assert service.list() == []


def test_background_threads_survive_anything_and_report_it(caplog):
    calls, stop = [], threading.Event()

    def step() -> None:
        calls.append(1)
        if len(calls) < 4:
            raise MemoryError("no room")

    task = BackgroundTask("sweeper", step, 0.05, stopping=stop)
    failures = []
    task.start()
    assert eventually(lambda: failures.append(task.failure) or len(calls) > 4)
    task.stop()
    assert task.failure is None and "MemoryError: no room" in failures
    assert caplog.text.count("sweeper failed") == 1  # reported once, not at each attempt


def test_the_service_tells_which_thread_fails(service, monkeypatch):
    monkeypatch.setattr(service.store, "recover", lambda *_, **__: 1 / 0)
    service.start()
    try:
        assert eventually(lambda: service.problems())
        assert service.problems() == ["cleaning up fails: ZeroDivisionError: division by zero"]
    finally:
        service.stop()


def test_leases_do_not_depend_on_the_system_time(service, tmp_path, monkeypatch):
    job_id = submit(service, tmp_path)
    row = service.store.claim("w")
    service.store.worker_beat("w", 1, "cpu", [])
    for jump in (-1e8, 1e8):
        monkeypatch.setattr(store.time, "time", lambda jump=jump: 1.7e9 + jump)
        assert service.store.recover(3, silent_for=60) == 0 and service.store.workers(60)
        assert service.store.progress(row, Progress("x", 1, 2)) is False
    monkeypatch.setattr(store, "boot_id", lambda: "after a restart of the machine")
    assert service.store.workers(1e9) == []
    assert service.store.recover(3, silent_for=1e9) == 1 and service.get(job_id).state is JobState.QUEUED


def test_a_jump_of_the_system_time_deletes_nothing(service, tmp_path, monkeypatch):
    job_id = submit(service, tmp_path)
    service.cancel(job_id)
    upload = service.upload_folder() / "upload"
    upload.write_bytes(b"x")
    year = clock.time.time() + 365 * 86400
    monkeypatch.setattr(clock.time, "time", lambda: year)
    service.sweep()
    assert upload.exists() and not service.get(job_id).expired


def damage(path, how: str) -> None:
    content = path.read_bytes()
    if how == "garbage":
        path.write_bytes(b"not a database" * 1000)
    elif how == "truncated":
        path.write_bytes(content[: len(content) // 2 // 4096 * 4096 + 100])
    elif how == "empty":
        path.write_bytes(b"")
    else:
        path.write_bytes(content[:4096] + bytes(len(content) - 4096))


@pytest.mark.parametrize("how", ["garbage", "truncated", "empty", "zeros"])
def test_a_damaged_database_is_reported_in_one_line_and_moved_aside_on_request(service, tmp_path, capsys, how):
    job_id = submit(service, tmp_path)
    with sqlite3.connect(service.workspace.database) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    db.close()
    service.store.close()
    path = service.workspace.database
    damage(path, how)
    for main, arguments in ((serve.main, ["--port", "0"]), (batch.main, ["--list", str(tmp_path / "a.csv")])):
        (tmp_path / "a.csv").write_text("video,out\na.mp4,b.mp4\n")
        assert main([*arguments, "--workspace", str(service.workspace.root)]) == 1
        message = capsys.readouterr().err
        assert "--repair" in message and message.count("\n") == 1
    assert main([*arguments, "--workspace", str(service.workspace.root), "--repair", "--workers", "0"]) == 4
    assert "a.mp4" in capsys.readouterr().err  # the list runs; its file is missing
    (aside,) = service.workspace.root.glob("damaged-*")
    assert (aside / "jobs" / job_id / "audio.mp4").is_file() and (aside / "jobs.sqlite").exists()
    assert service_in(service.workspace.root).list() == []
    assert find_damage(path) is None and repair(service.workspace.root) is None


def test_an_interrupted_creation_is_completed(tmp_path):
    path = tmp_path / "jobs.sqlite"
    path.touch()
    prepare(path)
    assert JobStore(path).counts()[JobState.QUEUED] == 0
    assert json.loads(STORED[3])["match_color"]


def test_a_database_that_cannot_be_opened(tmp_path):
    (tmp_path / "jobs.sqlite").mkdir()
    with pytest.raises(UserError, match="cannot be opened"):
        prepare(tmp_path / "jobs.sqlite")
