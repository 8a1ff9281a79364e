"""Fifty clients, two hundred jobs on the shipped model, and as many hostile uploads, while its worker is killed and the
disk fills up."""

import logging
import os
import signal
import subprocess
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
import pytest

from latentsync.serving.jobs import JobState
from latentsync.serving.service import JobService
from latentsync.serving.settings import ServingSettings
from tests.pipelines.scenes import clip
from tests.serving.fakes import wait_for
from tests.serving.live import serving
from tests.waiting import HANG_SECONDS

logger = logging.getLogger(__name__)
pytestmark = pytest.mark.slow

CLIENTS, EACH = 50, 4
JOBS = CLIENTS * EACH
KILLS, BETWEEN_KILLS = 5, 30  # ended jobs
FILL_AFTER, FULL_SECONDS = 20, 20.0
LOOK_SECONDS = 2.0
QUICK = {"inference_steps": "1", "guidance_scale": "1", "max_seconds": "0.2"}
PAUSE = 60.0  # of a client between its jobs, so that some arrive while the disk is full
BUSY = (429, 503, 507)  # try again later
PLAYLIST = b"ffconcat version 1.0\nfile scene.mp4\n"  # names itself


@dataclass
class Record:
    """What happened. memory: resident MiB of service (with the clients) and worker; refused: by status; hostile: how
    many uploads were refused for what they are."""

    submitted: list[str] = field(default_factory=list)
    refused: Counter = field(default_factory=Counter)
    memory: list[tuple[int, int]] = field(default_factory=list)
    hostile: int = 0
    kills: int = 0
    filled: bool = False


@pytest.fixture
def disk(tmp_path):
    """A disk of 96 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96m", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("a small disk of one's own needs the right to mount one")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_nothing_is_lost_and_nothing_is_done_twice(tmp_path, disk, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    scene = clip(tmp_path / "scene.mp4", 5, tone_seconds=0.2).read_bytes()
    settings = ServingSettings(disk / "ws", devices=("cpu",), min_free_bytes=2**20, lease_seconds=HANG_SECONDS)
    record, begun = Record(), time.monotonic()
    with JobService(settings) as service, serving(service) as client, ThreadPoolExecutor(CLIENTS) as pool:
        uploads = [pool.submit(_submit, str(client.base_url), scene, record) for _ in range(CLIENTS)]
        _disturb(service, record, disk)
        for upload in uploads:
            upload.result()
        ended = [wait_for(service, job_id, 600) for job_id in record.submitted]
        stored, left = service.list(limit=10 * JOBS), list(service.upload_folder().iterdir())
    states = Counter(job.state.value for job in ended)
    attempts = Counter(job.attempts for job in ended)
    minutes = (time.monotonic() - begun) / 60
    logger.warning(
        "%d jobs in %.1f min: %s; attempts %s; refused %s; MiB of service and worker %s",
        *(len(ended), minutes, dict(states), dict(attempts), dict(record.refused), record.memory[::10]),
    )
    assert (record.kills, record.filled) == (KILLS, True) and record.hostile > JOBS / 2
    assert len(ended) == JOBS and {job.id for job in ended} == {job.id for job in stored} and len(stored) == JOBS
    assert left == []
    for job in ended:
        assert job.state in (JobState.DONE, JobState.FAILED)
        assert (job.state is JobState.DONE) == (job.result is not None and job.error is None)
        assert job.state is JobState.DONE or "disk is full" in job.error or "worker died" in job.error
    assert states["done"] >= JOBS - 10
    assert sum(count * tries for tries, count in attempts.items()) <= JOBS + KILLS  # a death costs an attempt
    undisturbed = [job for job in reversed(stored) if job.attempts == 1]  # in the order of arrival
    assert [job.started for job in undisturbed] == sorted(job.started for job in undisturbed)
    _assert_flat([service for service, _ in record.memory])
    _assert_flat([worker for _, worker in record.memory if worker > 300])  # when its model is loaded


def _submit(url: str, scene: bytes, record: Record) -> None:
    """One client: uploads EACH jobs, one after the other, and is patient where the server asks for it."""
    files = {"video": ("scene.mp4", scene), "audio": ("voice.mp4", scene)}
    with httpx.Client(base_url=url, timeout=120, trust_env=False) as client:
        for number in range(EACH):
            bad = PLAYLIST if number % 2 else scene[: len(scene) // 3]
            attack = client.post("/v1/jobs", files=files | {"video": ("scene.mp4", bad)}, data=QUICK)
            assert attack.status_code in (422, *BUSY), attack.text
            record.hostile += attack.status_code == 422
            while (answer := client.post("/v1/jobs", files=files, data=QUICK)).status_code in BUSY:
                record.refused[answer.status_code] += 1
                time.sleep(1)
            assert answer.status_code == 202, answer.text
            record.submitted.append(answer.json()["id"])
            time.sleep(PAUSE)


def _disturb(service: JobService, record: Record, disk: Path) -> None:
    """Kill the worker KILLS times in the middle of a job, fill the disk once, and keep an eye on the memory."""
    own, end = psutil.Process(), time.monotonic() + 3000
    while (ended := _ended(service)) < JOBS:
        assert time.monotonic() < end, f"only {ended} of {JOBS} jobs have ended"
        pid = next((slot.process.pid for slot in service._supervisor.slots if slot.process is not None), None)
        record.memory.append((own.memory_info().rss // 2**20, _resident(pid)))
        running = service.list(states=[JobState.RUNNING])
        if record.kills < KILLS and ended >= BETWEEN_KILLS * (record.kills + 1) and pid and running:
            os.kill(pid, signal.SIGKILL)
            record.kills += 1
        if not record.filled and ended >= FILL_AFTER:
            record.filled = True
            _fill(disk / "filler")
        time.sleep(LOOK_SECONDS)


def _resident(pid: int | None) -> int:
    try:
        return psutil.Process(pid).memory_info().rss // 2**20 if pid else 0
    except psutil.NoSuchProcess:
        return 0


def _fill(filler: Path) -> None:
    """Leave no byte on the disk for a while."""
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(2**16))
        except OSError:
            time.sleep(FULL_SECONDS)
    filler.unlink()


def _ended(service: JobService) -> int:
    return sum(count for state, count in service.store.counts().items() if state.is_final)


def _assert_flat(series: list[int]) -> None:
    """The last third of the MiB is not above the middle third by more than a tenth and 30."""
    third = len(series) // 3
    middle, last = series[third : 2 * third], series[2 * third :]
    assert max(last) <= 1.1 * max(middle) + 30, series
