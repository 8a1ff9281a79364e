"""The job service: accepted jobs, their order, how they end, and the files they leave."""

import os
import threading
import time

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from latentsync.options import GenerationOptions
from latentsync.serving import worker
from latentsync.serving.jobs import InsufficientSpace, JobKind, JobNotFound, JobState, QueueFull, WrongState
from latentsync.serving.workspace import RESULT, Workspace
from latentsync.utils.errors import UserError
from latentsync.utils.progress import Progress
from tests.media.synthetic import write_clip
from tests.serving.fakes import FakeRunner, endless, service_in, wait_for, working, write_files
from tests.waiting import HANG_SECONDS, eventually

LIPSYNC, INTERPOLATE = JobKind.LIPSYNC, JobKind.INTERPOLATE


@pytest.fixture
def files(tmp_path):
    return write_files(tmp_path / "in")


@pytest.fixture
def service(tmp_path):
    return service_in(tmp_path / "ws")


def test_a_job_is_done_and_its_files_are_where_they_belong(service, files):
    runner = FakeRunner()
    given = files | {"video": ("../../etc/a\nb.PNG", files["video"][1])}
    job = service.submit(LIPSYNC, given, GenerationOptions(seed=5))
    assert (job.state, job.position, job.inputs["video"]) == (JobState.QUEUED, 0, "a?b.PNG")
    with working(service, runner):
        job = wait_for(service, job.id)
    assert job.state is JobState.DONE and job.result.read_bytes() == b"a result" and job.attempts == 1
    kind, options, paths = runner.seen[0]
    assert kind is LIPSYNC and options.seed == 5
    assert {path.name for path in paths.values()} == {"video.png", "audio.mp4"}
    assert service.input_path(job.id, "video").read_bytes() == files["video"][1].read_bytes()
    assert service.stats().counts[JobState.DONE] == 1 and service.stats().durations[0] >= 0
    with pytest.raises(JobNotFound):
        service.input_path(job.id, "../jobs.sqlite")


def test_jobs_are_done_in_order_by_whatever_number_of_workers(service, files):
    started = []
    lock = threading.Lock()

    def work(out, on_progress):
        with lock:
            started.append(out.parent.name)
        out.write_bytes(b"x")

    ids = [service.submit(LIPSYNC, files, GenerationOptions()).id for _ in range(12)]
    assert [service.get(job_id).position for job_id in ids] == list(range(12))
    with working(service, FakeRunner(work), "a" * 32), working(service, FakeRunner(work), "b" * 32):
        assert all(wait_for(service, job_id).state is JobState.DONE for job_id in ids)
    jobs = [service.get(job_id) for job_id in ids]
    assert sorted(started) == sorted(ids)  # each once
    assert [job.started for job in jobs] == sorted(job.started for job in jobs)
    assert [job.id for job in service.list(limit=3)] == ids[:-4:-1]
    assert service.list(states=[JobState.QUEUED]) == []


def test_cancelling_a_waiting_a_running_and_an_ended_job(service, files):
    first, second = (service.submit(LIPSYNC, files, GenerationOptions()) for _ in range(2))
    assert service.cancel(second.id).state is JobState.CANCELLED
    with working(service, FakeRunner(endless)):
        assert eventually(lambda: service.get(first.id).total == 100)
        running = service.get(first.id)
        assert running.state is JobState.RUNNING and running.done == 1 and running.eta_seconds is not None
        service.cancel(first.id)
        assert wait_for(service, first.id).state is JobState.CANCELLED
    assert service.cancel(first.id).state is JobState.CANCELLED
    with pytest.raises(JobNotFound, match="no job"):
        service.cancel("x" * 32)


def test_a_burst_of_frames_is_counted_in_full(service, files, monkeypatch):
    """More frames at once than are reported: the heartbeat reports the rest."""
    monkeypatch.setattr(worker, "BEAT_SECONDS", 0.1)

    def burst(out, on_progress):
        on_progress(Progress("preparing", 0, 100))
        for done in range(1, 17):
            on_progress(Progress("lip-sync", done, 100))
        finished.wait(HANG_SECONDS)
        out.write_bytes(b"x")

    finished = threading.Event()
    job_id = service.submit(LIPSYNC, files, GenerationOptions()).id
    with working(service, FakeRunner(burst)):
        assert eventually(lambda: service.get(job_id).done == 16)
        finished.set()
        assert wait_for(service, job_id).state is JobState.DONE


def test_the_time_left_counts_down_between_two_reports(service, files, monkeypatch):
    job_id = service.submit(LIPSYNC, files, GenerationOptions()).id
    row = service.store.claim("w")
    assert service.get(job_id).eta_seconds is None
    now = time.monotonic()
    service.store.progress(row, Progress("lip-sync", 16, 100, 0.3), now + 60)
    for seconds, left in ((0, 60), (20, 40), (90, 0)):
        monkeypatch.setattr(time, "monotonic", lambda seconds=seconds: now + seconds)
        assert service.get(job_id).eta_seconds == pytest.approx(left)
    assert service.get(job_id).fraction == 0.3


def test_the_estimate_of_a_queued_job_follows_recent_jobs(service, files, monkeypatch):
    ids = [service.submit(LIPSYNC, files, GenerationOptions()).id for _ in range(4)]
    assert service.get(ids[3]).eta_seconds is None  # nothing is known yet
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now)
    row = service.store.claim("w")
    monkeypatch.setattr(time, "time", lambda: now + 40)
    service.store.finish(row, JobState.DONE, result=RESULT)
    row = service.store.claim("w")
    service.store.progress(row, Progress("lip-sync"), time.monotonic() + 10)
    service._pace_cache = (0.0, None)
    # 10 s of the running job, then 40 s for each one before it and for itself
    assert service.get(ids[2]).eta_seconds == pytest.approx(50, abs=1)
    assert service.get(ids[3]).eta_seconds == pytest.approx(90, abs=1)


def test_error_messages_help_users_and_hide_internals(service, files, caplog):
    def user_error(out, on_progress):
        raise UserError(f"{out.parent / 'video.png'}: no face in it")

    def bug(out, on_progress):
        raise RuntimeError("secret inside")

    def full(out, on_progress):
        raise OSError(28, "No space left on device")

    ended = []
    for work in (user_error, bug, full):
        job = service.submit(LIPSYNC, files, GenerationOptions())
        with working(service, FakeRunner(work)):
            ended.append(wait_for(service, job.id))
    assert {job.state for job in ended} == {JobState.FAILED}
    assert ended[0].error == "face.png: no face in it"
    assert "secret" not in ended[1].error and ended[1].id in ended[1].error and "secret" in caplog.text
    assert "disk is full" in ended[2].error


def test_a_job_that_takes_too_long_fails(tmp_path, files):
    service = service_in(tmp_path / "ws", job_timeout_seconds=0.3)
    job = service.submit(LIPSYNC, files, GenerationOptions())
    with working(service, FakeRunner(endless)):
        job = wait_for(service, job.id)
    assert job.state is JobState.FAILED and "longer than the allowed 0.3 s" in job.error


def test_a_stopped_worker_gives_its_job_back_and_the_next_one_does_it(service, files):
    job = service.submit(LIPSYNC, files, GenerationOptions())
    with working(service, FakeRunner(endless)):
        assert eventually(lambda: service.get(job.id).total == 100)
    waiting = service.get(job.id)
    assert (waiting.state, waiting.attempts, waiting.position) == (JobState.QUEUED, 0, 0)
    with working(service, FakeRunner()):
        assert wait_for(service, job.id).state is JobState.DONE


def test_a_worker_ends_with_its_service_even_if_that_was_gone_before_it_began(service):
    left = worker.Worker(service.settings, "w" * 32, "cpu", FakeRunner(), service=os.getppid() + 1)
    thread = threading.Thread(target=left.run, daemon=True)
    thread.start()
    thread.join(HANG_SECONDS)
    assert not thread.is_alive()


def test_retry_and_delete(service, files):
    job = service.submit(LIPSYNC, files, GenerationOptions())
    with pytest.raises(WrongState):
        service.retry(job.id)
    with working(service, FakeRunner()):
        wait_for(service, job.id)
    later = service.submit(LIPSYNC, files, GenerationOptions())
    again = service.retry(job.id)
    assert (again.state, again.result, again.position) == (JobState.QUEUED, None, 1)
    service.delete(later.id)
    with pytest.raises(JobNotFound):
        service.get(later.id)
    assert not service.workspace.folder(later.id).exists()
    with working(service, FakeRunner(endless)):
        assert eventually(lambda: service.get(job.id).state is JobState.RUNNING)
        service.delete(job.id)
    assert service.list() == [] and list(service.workspace.jobs.iterdir()) == []


@pytest.mark.parametrize(
    ("roles", "problem"),
    [(("video",), "audio is missing"), (("video", "audio", "sticker"), "not sticker"), ((), "video is missing")],
)
def test_files_of_the_wrong_roles_are_refused(service, files, roles, problem):
    given = {role: files.get(role, files["video"]) for role in roles}
    with pytest.raises(UserError, match=problem):
        service.submit(LIPSYNC, given, GenerationOptions())
    assert service.list() == []


def test_files_are_looked_at_before_they_are_queued(tmp_path, files):
    service = service_in(tmp_path / "ws", max_pixels=5000, max_audio_seconds=1, max_upload_bytes=20_000)
    for name, content in {"a.mp4": b"no video", "b.png": b""}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=f"^video: {name}"):
            service.submit(LIPSYNC, files | {"video": (name, tmp_path / name)}, GenerationOptions())
    with pytest.raises(UserError, match="no audio stream"):
        service.submit(LIPSYNC, files | {"audio": files["video"]}, GenerationOptions())
    Image.fromarray(np.zeros((100, 100, 3), np.uint8)).save(tmp_path / "wide.png")
    with pytest.raises(UserError, match="100x100 pixels; at most 5000"):
        service.submit(LIPSYNC, files | {"video": ("wide.png", tmp_path / "wide.png")}, GenerationOptions())
    write_clip(tmp_path / "long.mp4", 40, size=(64, 64), tone_seconds=1.6)
    with pytest.raises(UserError, match="lasts 2 s; at most 1 s"):
        service.submit(LIPSYNC, files | {"audio": ("long.mp4", tmp_path / "long.mp4")}, GenerationOptions())
    (tmp_path / "big.wav").write_bytes(bytes(30_000))
    with pytest.raises(UserError, match="30000 bytes; at most 20000"):
        service.submit(LIPSYNC, files | {"audio": ("big.wav", tmp_path / "big.wav")}, GenerationOptions())
    assert service.list() == [] and list(service.workspace.jobs.iterdir()) == []


def test_unknown_models_and_options_out_of_range(service, files):
    with pytest.raises(UserError, match="nonsense"):
        service.submit(LIPSYNC, files, GenerationOptions(model="nonsense"))
    with pytest.raises(UserError, match="adapter"):
        service.submit(LIPSYNC, files, GenerationOptions(lora="../../x"))
    for wrong in ({"crf": 52}, {"face": "x; rm"}, {"guidance_scale": float("nan")}, {"color": 1}, {"seed": 2**63}):
        with pytest.raises(ValidationError):
            GenerationOptions(**wrong)


def test_a_full_queue_and_a_full_disk(tmp_path, files):
    service = service_in(tmp_path / "ws", max_queue=1)
    service.submit(LIPSYNC, files, GenerationOptions())
    with pytest.raises(QueueFull):
        service.submit(LIPSYNC, files, GenerationOptions())
    full = service_in(tmp_path / "ws", min_free_bytes=2**60)
    with pytest.raises(InsufficientSpace, match="disk is full"):
        full.submit(LIPSYNC, files, GenerationOptions())
    small = service_in(tmp_path / "ws", quota_bytes=100)
    with pytest.raises(InsufficientSpace, match="quota"):
        small.submit(LIPSYNC, files, GenerationOptions())
    assert len(service.list()) == 1


def test_waiting_jobs_wait_while_the_disk_is_full(tmp_path, files):
    job = service_in(tmp_path / "ws").submit(LIPSYNC, files, GenerationOptions())
    full = service_in(tmp_path / "ws", min_free_bytes=2**60)
    runner = FakeRunner()
    with working(full, runner):
        assert eventually(lambda: full.stats().workers_alive == 1)
        time.sleep(0.5)
    assert full.get(job.id).state is JobState.QUEUED and not runner.seen
    roomy = service_in(tmp_path / "ws")
    with working(roomy, runner):
        assert wait_for(roomy, job.id).state is JobState.DONE


def test_old_results_go_and_the_oldest_where_the_quota_is_exceeded(tmp_path, files):
    service = service_in(tmp_path / "ws")
    ids = [service.submit(LIPSYNC, files, GenerationOptions()).id for _ in range(3)]
    with working(service, FakeRunner()):
        for job_id in ids[:2]:
            wait_for(service, job_id)
        service.cancel(ids[2])
    left = service.workspace.job_size(ids[1]) + service.workspace.job_size(ids[2])
    service_in(tmp_path / "ws", quota_bytes=left).sweep()
    jobs = [service.get(job_id) for job_id in ids]
    assert [job.expired for job in jobs] == [True, False, False]
    assert jobs[0].result is None and jobs[0].state is JobState.DONE and jobs[1].result.is_file()
    with pytest.raises(WrongState):
        service.retry(ids[0])
    aged = service_in(tmp_path / "ws", keep_results_hours=1e-9)
    time.sleep(0.01)
    aged.sweep()
    assert all(service.get(job_id).expired for job_id in ids) and list(service.workspace.jobs.iterdir()) == []


def test_unused_uploads_and_unknown_folders_expire(tmp_path, files):
    service = service_in(tmp_path / "ws", upload_hours=1)
    outside = tmp_path / "outside.txt"
    outside.write_text("stays")
    job = service.submit(LIPSYNC, files, GenerationOptions())
    old, new = service.upload_folder() / "old", service.upload_folder() / "new"
    orphan = service.workspace.jobs / ("f" * 32)
    for folder in (old, new, orphan):
        folder.mkdir()
        (folder / "x").write_bytes(b"x")
    (old / "link").symlink_to(outside)
    for path in (old / "x", old, orphan / "x", orphan):
        os.utime(path, (1, 1))
    os.utime(old / "link", (1, 1), follow_symlinks=False)
    os.utime(old, (1, 1))
    service.sweep()
    assert not old.exists() and new.exists() and not orphan.exists() and outside.read_text() == "stays"
    assert service.input_path(job.id, "audio").is_file()


def test_uploads_may_be_moved_in(service, files, tmp_path):
    job = service.submit(LIPSYNC, files, GenerationOptions(), move=True)
    assert not files["video"][1].exists() and service.input_path(job.id, "video").is_file()


def test_a_folder_with_other_things_is_no_workspace(tmp_path):
    (tmp_path / "photo.jpg").write_bytes(b"x")
    with pytest.raises(UserError, match="not empty"):
        Workspace(tmp_path)
    with pytest.raises(UserError, match="cannot be used"):
        Workspace(tmp_path / "photo.jpg" / "ws")


def test_broken_leftovers_of_an_attempt_are_removed(service, files):
    job = service.submit(LIPSYNC, files, GenerationOptions())
    folder = service.workspace.folder(job.id)
    (folder / f".{RESULT}.arriving").write_bytes(b"half")
    with working(service, FakeRunner()):
        wait_for(service, job.id)
    assert {path.name for path in folder.iterdir()} == {"video.png", "audio.mp4", RESULT}


def test_idle_workers_unload_their_models(service, files):
    service = service_in(service.workspace.root, unload_after_minutes=1e-4)
    runner = FakeRunner()
    with working(service, runner):
        job = service.submit(LIPSYNC, files, GenerationOptions())
        assert wait_for(service, job.id).state is JobState.DONE
        assert eventually(lambda: not runner.loaded)
        job = service.submit(LIPSYNC, files, GenerationOptions())
        assert wait_for(service, job.id).state is JobState.DONE
