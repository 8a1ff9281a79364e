"""A workspace with a worker in a thread, whose runner is the test's own, and small files to submit."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from latentsync.options import GenerationOptions
from latentsync.serving.jobs import Job, JobKind
from latentsync.serving.service import JobService
from latentsync.serving.settings import ServingSettings
from latentsync.serving.worker import Worker
from latentsync.utils.progress import OnProgress, Progress
from tests.media.synthetic import write_clip
from tests.waiting import HANG_SECONDS

Files = dict[str, tuple[str, Path]]


def write_files(folder: Path) -> Files:
    """An image and short audio, as `submit` takes them."""
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((64, 64, 3), 90, np.uint8)).save(folder / "face.png")
    write_clip(folder / "voice.mp4", 10, size=(64, 64), tone_seconds=0.4)
    return {"video": ("face.png", folder / "face.png"), "audio": ("voice.mp4", folder / "voice.mp4")}


class FakeRunner:
    """Calls `work(out, on_progress)` for each job; remembers what it was given."""

    def __init__(self, work: Callable[[Path, OnProgress], None] | None = None) -> None:
        self.work, self.seen = work or write_result, []
        self.loaded = True

    def __call__(
        self, kind: JobKind, options: GenerationOptions, files: Mapping[str, Path], out: Path, on_progress: OnProgress
    ) -> None:
        self.seen.append((kind, options, dict(files)))
        self.loaded = True
        self.work(out, on_progress)

    def models(self) -> tuple[str, ...]:
        return ("fake",) if self.loaded else ()

    def unload(self) -> None:
        self.loaded = False


def write_result(out: Path, on_progress: OnProgress) -> None:
    on_progress(Progress("lip-sync", 1, 2))
    out.write_bytes(b"a result")


def endless(out: Path, on_progress: OnProgress) -> None:
    """A job that runs until it is stopped."""
    while True:
        on_progress(Progress("lip-sync", 1, 100, 0.25, 60.0))
        time.sleep(0.02)


@contextmanager
def working(service: JobService, runner: FakeRunner, owner: str = "w" * 32) -> Iterator[Worker]:
    """A worker of the service's workspace in a thread."""
    worker = Worker(service.settings, owner, "cpu", runner)
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        yield worker
    finally:
        worker.stopping.set()
        thread.join()


def service_in(folder: Path, **settings: object) -> JobService:
    """A service without processes of its own, whose workers keep their jobs however busy the machine is."""
    return JobService(ServingSettings(folder, workers=0, **{"lease_seconds": HANG_SECONDS} | settings))


def wait_for(service: JobService, job_id: str, seconds: float = HANG_SECONDS) -> Job:
    """The job once it has ended, or as it is after so long."""
    return list(service.watch(job_id, seconds))[-1]
