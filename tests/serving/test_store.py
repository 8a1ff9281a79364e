"""The queue on disk: claims, leases, and late workers."""

import threading
import time

import pytest

from latentsync.options import GenerationOptions
from latentsync.serving.jobs import JobKind, JobState
from latentsync.serving.store import JobStore
from latentsync.utils.errors import UserError
from latentsync.utils.progress import Progress


@pytest.fixture
def store(tmp_path) -> JobStore:
    return JobStore(tmp_path / "jobs.sqlite")


def add(store: JobStore, name: str, most: int = 100) -> bool:
    return store.add(name, JobKind.LIPSYNC, GenerationOptions(), {"video": "a"}, {"video": "video.mp4"}, most)


def test_every_job_is_claimed_once_by_many_threads(tmp_path, store):
    names = [f"job{number}" for number in range(60)]
    for name in names:
        add(store, name)
    claimed: list[str] = []

    def work(owner: str) -> None:
        own = JobStore(tmp_path / "jobs.sqlite")
        while (row := own.claim(owner)) is not None:
            claimed.append(row.id)
            assert own.finish(row, JobState.DONE, result="r")

    threads = [threading.Thread(target=work, args=(f"w{number}",)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(claimed) == sorted(names) and store.counts()[JobState.DONE] == 60


def test_the_limit_of_the_queue_holds_for_many_threads(tmp_path, store):
    taken: list[bool] = []

    def submit(number: int) -> None:
        taken.append(add(JobStore(tmp_path / "jobs.sqlite"), f"job{number}", most=5))

    threads = [threading.Thread(target=submit, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(taken) == 5 == store.counts()[JobState.QUEUED]


def test_a_worker_that_lost_its_job_can_do_nothing_to_it(store):
    add(store, "a")
    late = store.claim("first")
    time.sleep(0.01)
    assert store.recover(3, silent_for=0) == 1
    now = store.claim("second")
    assert (now.id, now.attempts) == ("a", 2)
    assert store.progress(late, Progress("x", 1, 2)) is None
    assert not store.finish(late, JobState.DONE, result="r")
    assert store.progress(now, Progress("x", 1, 2)) is False and store.finish(now, JobState.DONE, result="r")
    assert not store.finish(now, JobState.FAILED, error="twice")
    assert store.get("a").state is JobState.DONE


def test_lost_jobs_keep_their_place_and_fail_when_begun_too_often(store):
    for name in ("a", "b"):
        add(store, name)
    for attempt in (1, 2):
        row = store.claim("w")
        assert (row.id, row.attempts) == ("a", attempt)
        assert store.recover(2, owner="w") == 1
    assert store.get("a").state is JobState.FAILED and "2 times" in store.get("a").error
    assert store.claim("w").id == "b"
    store.give_back("w")
    assert store.claim("w").attempts == 1
    store.cancel("b")
    assert store.progress(store.get("b"), Progress("x")) is True
    store.recover(9, owner="w")
    assert store.get("b").state is JobState.CANCELLED
    assert store.recover(9, owner="w") == 0


def test_a_job_that_is_reported_on_is_not_lost(store):
    add(store, "a")
    row = store.claim("w")
    assert store.progress(row, Progress(row.stage)) is False
    assert store.recover(3, silent_for=3600) == 0 and store.get("a").state is JobState.RUNNING


def test_workers_are_listed_while_they_run(store):
    store.worker_beat("w", 1, "cpu", ["embedded"])
    assert store.workers(3600) == [("w", ["embedded"])]
    assert store.workers(-3600) == []


def test_a_queue_of_another_version_is_refused(tmp_path, store):
    store._connection().execute("PRAGMA user_version = 99")
    with pytest.raises(UserError, match="another version"):
        JobStore(tmp_path / "jobs.sqlite")
