"""Real workers on the shipped model: killed, loaded, short of disk; and replicas on a local Ray."""

import logging
import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import psutil
import pytest

from latentsync.serving.jobs import InsufficientSpace, JobKind, JobState
from latentsync.serving.options import JobOptions
from latentsync.serving.service import JobService
from latentsync.serving.settings import ServingSettings
from tests.pipelines.scenes import clip
from tests.serving.fakes import Files, eventually, wait_for

logger = logging.getLogger(__name__)

QUICK = JobOptions(inference_steps=1, guidance_scale=1, preview_seconds=0.2)


def scene(folder: Path) -> Files:
    """A head of five frames and its sound."""
    path = clip(folder / "scene.mp4", 5, tone_seconds=0.2)
    return {"video": ("scene.mp4", path), "audio": ("scene.mp4", path)}


def pids(service: JobService) -> list[int]:
    return [seat.process.pid for seat in service._supervisor.seats if seat.process is not None]


def test_a_job_survives_its_worker(tmp_path):
    files = scene(tmp_path)
    with JobService(ServingSettings(tmp_path / "ws", devices=("cpu",))) as service:
        job = service.submit(JobKind.LIPSYNC, files, QUICK)
        assert eventually(lambda: service.get(job.id).state is JobState.RUNNING, 120)
        os.kill(pids(service)[0], signal.SIGKILL)
        job = wait_for(service, job.id, 180)
        assert (job.state, job.attempts) == (JobState.DONE, 2) and job.result.stat().st_size > 1000
        assert service.thumbnail(job.id).read_bytes()[:2] == b"\xff\xd8"
        assert service.stats().models_loaded == ("embedded",) or service.stats().workers_alive == 1
        left = pids(service)
    assert not any(psutil.pid_exists(pid) for pid in left)


@pytest.mark.slow
def test_fifty_clients_two_hundred_jobs_five_kills_and_a_full_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("a small disk of one's own needs the right to mount one")
    try:
        _load(tmp_path, disk)
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def _load(tmp_path: Path, disk: Path) -> None:
    files, settings = scene(tmp_path), ServingSettings(disk / "ws", devices=("cpu",), min_free_bytes=2**20)
    submitted: list[str] = []
    with JobService(settings) as service:

        def client() -> None:
            while len(submitted) < 200:
                try:
                    job = service.submit(JobKind.LIPSYNC, files, QUICK)
                except InsufficientSpace:  # while the disk is full
                    time.sleep(1)
                    continue
                submitted.append(job.id)
                time.sleep(0.2)

        clients = [threading.Thread(target=client) for _ in range(50)]
        for thread in clients:
            thread.start()
        memory = _disturb(service, submitted, disk)
        for thread in clients:
            thread.join()
        ended = [wait_for(service, job_id, 1800) for job_id in submitted]
        stats = service.stats()
        stored = service.list(limit=1000)
    states = {state: sum(job.state is state for job in ended) for state in JobState}
    logger.warning("%d jobs: %s; memory MB of service and worker: %s", len(ended), states, memory)
    assert len({job.id for job in ended}) == len(ended) == len(stored) and all(job.state.is_final for job in ended)
    assert stats.counts[JobState.DONE] == states[JobState.DONE] >= len(ended) - 10
    for job in ended:
        assert (job.state is JobState.DONE) == (job.result is not None and job.result.stat().st_size > 0)
        assert job.state is JobState.DONE or "disk is full" in job.error or "worker died" in job.error
    undisturbed = sorted((job for job in ended if job.attempts == 1), key=lambda job: job.created)
    begun = [job.started for job in undisturbed]
    assert sum(later < earlier for earlier, later in zip(begun, begun[1:], strict=False)) == 0
    settled = memory[len(memory) // 3 :]
    assert max(settled)[0] < 1.2 * settled[0][0] + 30


def _disturb(service: JobService, submitted: list[str], disk: Path) -> list[tuple[int, int]]:
    """Kill the worker five times and fill the disk once while jobs run; MB of service and worker every five seconds."""
    memory, kills, filled = [], 0, False
    filler = disk / "filler"
    own = psutil.Process()
    while (ended := _ended(service)) < 200 or len(submitted) < 200:
        alive = pids(service)
        try:
            worker = psutil.Process(alive[0]).memory_info().rss if alive else 0
        except psutil.NoSuchProcess:
            worker = 0
        memory.append((own.memory_info().rss // 2**20, worker // 2**20))
        if kills < 5 and ended >= 30 * (kills + 1) and alive and service.list(states=[JobState.RUNNING]):
            os.kill(alive[0], signal.SIGKILL)
            kills += 1
        if not filled and ended >= 20:
            filled = True
            with filler.open("wb") as file:
                try:
                    while True:
                        file.write(bytes(2**16))
                        file.flush()
                except OSError:
                    pass
            time.sleep(20)
            filler.unlink()
        time.sleep(5)
    assert kills == 5 and filled
    return memory


def _ended(service: JobService) -> int:
    counts = service.store.counts()
    return sum(count for state, count in counts.items() if state.is_final)


@pytest.mark.slow
def test_ray_replicas_do_the_jobs(tmp_path):
    ray = pytest.importorskip("ray", reason="needs requirements-ray.txt")
    pytest.importorskip("ray.serve", reason="needs requirements-ray.txt")
    from latentsync.serving import ray_serve

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        address = ray.get_runtime_context().gcs_address
        ray_serve.deploy(device="cpu", max_seconds=10)
        files = scene(tmp_path)
        settings = ServingSettings(tmp_path / "ws", devices=("cpu",), ray_address=address)
        with JobService(settings) as service:
            job = service.submit(JobKind.LIPSYNC, files, QUICK)
            broken = service.submit(JobKind.LIPSYNC, files, QUICK.model_copy(update={"face": "99"}))
            long = service.submit(JobKind.INTERPOLATE, {"video": files["video"]}, JobOptions(interpolate=240))
            done = wait_for(service, job.id, 240)
            assert done.state is JobState.DONE and done.result.stat().st_size > 1000
            failed = wait_for(service, broken.id, 120)
            assert failed.state is JobState.FAILED and "internal" not in failed.error
            assert wait_for(service, long.id, 120).state is JobState.DONE
    finally:
        ray.shutdown()
