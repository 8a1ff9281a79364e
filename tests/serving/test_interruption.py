"""A job that reports nothing, in the main thread of a worker process: signals and cancelling interrupt it."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from latentsync.options import GenerationOptions
from latentsync.serving.jobs import JobKind, JobState
from latentsync.serving.service import JobService
from tests.serving.fakes import service_in, wait_for, write_files
from tests.waiting import HANG_SECONDS, eventually

PROJECT_ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import json, os, sys, time
from pathlib import Path
from latentsync.serving.settings import ServingSettings
from latentsync.serving.worker import Worker, run_until_signal
from latentsync.utils.progress import Progress
from latentsync.utils.threads import prefetch

class Silent:
    def __call__(self, kind, options, files, out, on_progress):
        try:
            on_progress(Progress("preparing", 0, 100))
            for _ in prefetch(iter(range(2)), 1):
                for _ in range(10 ** 9 if options.seed else 1):
                    time.sleep(600 if options.seed == 1 else 0)
        finally:
            (out.parent.parent.parent / f"left-{options.seed}").touch()
        out.write_bytes(b"x")

    def models(self):
        return ()

settings = ServingSettings(**json.loads(sys.argv[1]))
run_until_signal(Worker(settings, "w" * 32, "cpu", Silent()))
"""


@contextmanager
def worker_process(service: JobService) -> Iterator[subprocess.Popen]:
    command = [sys.executable, "-c", PROGRAM, json.dumps(service.settings.as_plain())]
    process = subprocess.Popen(command, cwd=PROJECT_ROOT)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_a_hanging_job_is_cancelled_and_the_worker_keeps_running(tmp_path):
    service, files = service_in(tmp_path / "ws"), write_files(tmp_path / "in")
    jobs = [service.submit(JobKind.LIPSYNC, files, GenerationOptions(seed=seed)) for seed in (1, 2, 0)]
    with worker_process(service) as process:
        for job in jobs[:2]:
            assert eventually(lambda job=job: service.get(job.id).stage == "preparing")
            service.cancel(job.id)
            assert wait_for(service, job.id).state is JobState.CANCELLED
        assert wait_for(service, jobs[2].id).state is JobState.DONE  # by the same process
        assert process.poll() is None
    assert (tmp_path / "ws" / "left-1").exists() and (tmp_path / "ws" / "left-2").exists()


def test_a_silent_job_is_given_back_at_a_signal(tmp_path):
    service, files = service_in(tmp_path / "ws"), write_files(tmp_path / "in")
    job = service.submit(JobKind.LIPSYNC, files, GenerationOptions(seed=1))
    with worker_process(service) as process:
        assert eventually(lambda: service.get(job.id).stage == "preparing")
        process.send_signal(signal.SIGTERM)
        assert process.wait(HANG_SECONDS) == 0
    waiting = service.get(job.id)
    assert (waiting.state, waiting.attempts) == (JobState.QUEUED, 0)
    assert (tmp_path / "ws" / "left-1").exists()
