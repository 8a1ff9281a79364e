"""A real worker on the shipped model that is killed; and replicas on a local Ray."""

import logging
import os
import signal
from pathlib import Path

import psutil
import pytest

import gradio_app
from latentsync.options import GenerationOptions
from latentsync.serving.jobs import JobKind, JobState
from latentsync.serving.service import JobService
from latentsync.serving.settings import ServingSettings, service_settings
from latentsync.utils.errors import UserError
from latentsync.utils.memory import resident_bytes
from scripts import batch, serve
from tests.pipelines.scenes import clip
from tests.serving.fakes import Files, wait_for
from tests.waiting import HANG_SECONDS, eventually

QUICK = GenerationOptions(inference_steps=1, guidance_scale=1, max_seconds=0.2)


def scene(folder: Path) -> Files:
    """A clip of a head, five frames with audio."""
    path = clip(folder / "scene.mp4", 5, tone_seconds=0.2)
    return {"video": ("scene.mp4", path), "audio": ("scene.mp4", path)}


def settings_in(folder: Path, **more) -> ServingSettings:
    """Of one worker, which keeps its jobs however busy the machine is."""
    return ServingSettings(folder / "ws", devices=("cpu",), lease_seconds=HANG_SECONDS, **more)


def pids(service: JobService) -> list[int]:
    return [slot.process.pid for slot in service._supervisor.slots if slot.process is not None]


@pytest.mark.slow
def test_a_job_survives_its_worker(tmp_path):
    files = scene(tmp_path)
    with JobService(settings_in(tmp_path)) as service:
        job = service.submit(JobKind.LIPSYNC, files, QUICK)
        assert eventually(lambda: service.get(job.id).state is JobState.RUNNING)
        os.kill(pids(service)[0], signal.SIGKILL)
        job = wait_for(service, job.id)
        assert (job.state, job.attempts) == (JobState.DONE, 2) and job.result.stat().st_size > 1000
        assert service.thumbnail(job.id).read_bytes()[:2] == b"\xff\xd8"
        assert service.stats().models_loaded == ("embedded",) or service.stats().workers_alive == 1
        left = pids(service)
    assert not any(psutil.pid_exists(pid) for pid in left)


@pytest.mark.slow
def test_a_job_that_needs_too_much_memory_fails_with_a_message(tmp_path):
    """Any job exceeds 64 MiB, the interpreter alone nearly does."""
    files = scene(tmp_path)
    with JobService(settings_in(tmp_path, worker_memory_bytes=64 * 2**20)) as service:
        job = wait_for(service, service.submit(JobKind.LIPSYNC, files, QUICK).id)
        assert job.state is JobState.FAILED and "allowed 0.1 GiB of memory" in job.error


def test_the_memory_of_a_process_and_its_limit(tmp_path):
    assert resident_bytes(os.getpid()) > 2**20 and resident_bytes(2**30) == 0
    limits = [ServingSettings(tmp_path, workers=workers).worker_memory_limit for workers in (1, 4)]
    assert limits[0] > 2**28 and limits[1] == pytest.approx(limits[0] / 4, rel=0.01)
    assert ServingSettings(tmp_path, worker_memory_bytes=5).worker_memory_limit == 5
    with pytest.raises(UserError, match="worker_memory_bytes must be at least 1, not 0"):
        ServingSettings(tmp_path, worker_memory_bytes=0)


@pytest.mark.parametrize("parser", [gradio_app.build_parser(), batch.build_parser(), serve.build_parser()])
def test_every_command_takes_the_settings_of_its_workers(parser, tmp_path):
    words = "--workers 2 --worker_memory_gb 3 --devices cpu cuda --dtype float16 --compile --unload_after_minutes 5"
    settings = service_settings(parser.parse_args(words.split()), tmp_path, max_queue=7)
    assert (settings.workers, settings.worker_memory_bytes, settings.devices) == (2, 3 * 2**30, ("cpu", "cuda"))
    assert (settings.dtype, settings.compile, settings.unload_after_minutes) == ("float16", True, 5)
    assert settings.max_queue == 7


@pytest.mark.slow
def test_ray_replicas_do_the_jobs(tmp_path):
    ray = pytest.importorskip("ray", reason="needs the extra [ray]")
    pytest.importorskip("ray.serve", reason="needs the extra [ray]")
    from latentsync.serving import ray_serve

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        address = ray.get_runtime_context().gcs_address
        ray_serve.deploy(device="cpu", max_seconds=10)
        files = scene(tmp_path)
        settings = settings_in(tmp_path, ray_address=address)
        with JobService(settings) as service:
            job = service.submit(JobKind.LIPSYNC, files, QUICK)
            broken = service.submit(JobKind.LIPSYNC, files, QUICK.model_copy(update={"face": "99"}))
            long = service.submit(JobKind.INTERPOLATE, {"video": files["video"]}, GenerationOptions(interpolate=240))
            done = wait_for(service, job.id)
            assert done.state is JobState.DONE and done.result.stat().st_size > 1000
            failed = wait_for(service, broken.id)
            assert failed.state is JobState.FAILED and "internal" not in failed.error
            assert wait_for(service, long.id).state is JobState.DONE
    finally:
        ray.shutdown()
