"""Who works: processes of this machine, or Ray where one machine is not enough. Both call the same function."""

import multiprocessing
import multiprocessing.connection
import os
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import torch

from latentsync.utils.errors import UserError
from preprocess.manifest import SourceRecord
from preprocess.source_work import Job, crashed, process_source
from preprocess.storages.base import FileStamp
from preprocess.tools import Tools
from preprocess.write import OutputError

EXECUTORS = ("local", "ray")
ATTEMPTS = 2  # a source that takes its worker down is tried once more
CRASHED = "crashed the worker"


def run_local(files: Sequence[FileStamp], job: Job, workers: int) -> Iterator[SourceRecord]:
    """Records as they come, from `workers` processes. One that dies is replaced, its source tried once more.

    Raises:
        OutputError: nothing more can be written; the workers are ended.
    """
    pending = deque(_Task(file) for file in files)
    count = min(workers, len(files))
    crew = [_Worker(job, threads_for(count)) for _ in range(count)]
    try:
        while pending or any(worker.task for worker in crew):
            for worker in crew:
                if worker.task is None and pending:
                    worker.give(pending.popleft())
            busy = [worker for worker in crew if worker.task]
            ready = multiprocessing.connection.wait([worker.pipe for worker in busy])
            for worker in busy:
                if worker.pipe in ready:
                    yield from _take(worker, pending)
    finally:
        for worker in crew:
            worker.end()


def run_ray(files: Sequence[FileStamp], job: Job, workers: int, gpus: float = 0.0) -> Iterator[SourceRecord]:
    """The same over a Ray cluster (RAY_ADDRESS, or one started here): an actor with its own networks per worker.

    Sources and results must lie where every machine reaches them: a shared folder or an fsspec address.

    Raises:
        UserError: Ray is not installed. OutputError as `run_local`.
    """
    try:
        import ray
    except ImportError as error:
        raise UserError("--executor ray needs Ray: run `pip install '.[ray]'` in the project's folder") from error
    started = not ray.is_initialized()
    if started:
        ray.init(address=os.environ.get("RAY_ADDRESS"), log_to_driver=False, include_dashboard=False)
    actor = ray.remote(num_cpus=1, num_gpus=gpus, max_restarts=-1)(_Crew)
    try:
        crew = deque(actor.remote(job) for _ in range(min(workers, len(files))))
        pending, running = deque(_Task(file) for file in files), {}
        while pending or running:
            while pending and crew:
                worker, task = crew.popleft(), pending.popleft()
                running[worker.process.remote(task.file)] = worker, task
            (reference,), _ = ray.wait(list(running))
            worker, task = running.pop(reference)
            crew.append(worker)
            try:
                yield ray.get(reference)
            except ray.exceptions.RayActorError:
                yield from _try_again(task, job, pending)
            except ray.exceptions.RayTaskError as error:
                raise error.as_instanceof_cause() from error
    finally:
        if started:
            ray.shutdown()


def threads_for(workers: int) -> int:
    """A worker's share of the processor, so that they do not take it from each other."""
    return max(1, (os.cpu_count() or 1) // workers)


def limit_threads(threads: int) -> None:
    """In this process, unless the environment allows fewer."""
    torch.set_num_threads(min(torch.get_num_threads(), threads))
    cv2.setNumThreads(min(cv2.getNumThreads(), threads))


class _Crew:
    """One worker's networks; in Ray an actor."""

    def __init__(self, job: Job) -> None:
        self._job, self._tools = job, Tools(job.settings)

    def process(self, file: FileStamp) -> SourceRecord:
        return process_source(file, self._job, self._tools)


@dataclass
class _Task:
    file: FileStamp
    attempts: int = 0


class _Worker:
    """A process and the pipe to it."""

    def __init__(self, job: Job, threads: int) -> None:
        self._job, self._threads = job, threads
        self.task: _Task | None = None
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, far = context.Pipe()
        self.process = context.Process(target=_work, args=(far, self._job, self._threads), daemon=True)
        self.process.start()
        far.close()

    def give(self, task: _Task) -> None:
        if not self.process.is_alive():
            self._start()
        self.task = task
        self.pipe.send(task.file)

    def end(self) -> None:
        self.pipe.close()
        self.process.kill()
        self.process.join()


def _work(pipe: multiprocessing.connection.Connection, job: Job, threads: int) -> None:
    """What a worker process does until its pipe is closed. threads: its share of the processor."""
    limit_threads(threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with Tools(job.settings) as tools:
        while True:
            try:
                file = pipe.recv()
            except (EOFError, OSError):
                return
            try:
                pipe.send(process_source(file, job, tools))
            except OutputError as error:
                pipe.send(error)


def _end_with_parent() -> None:
    """A run that was killed leaves nobody behind who still writes."""
    multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


def _take(worker: _Worker, pending: deque[_Task]) -> Iterator[SourceRecord]:
    """What a worker has to say: a record, that nothing can be written, or nothing any more."""
    task, worker.task = worker.task, None
    try:
        said = worker.pipe.recv()
    except (EOFError, ConnectionError):
        worker.process.join()
        yield from _try_again(task, worker._job, pending)
        return
    if isinstance(said, Exception):
        raise said
    yield said


def _try_again(task: _Task, job: Job, pending: deque[_Task]) -> Iterator[SourceRecord]:
    task.attempts += 1
    if task.attempts < ATTEMPTS:
        pending.append(task)
    else:
        yield crashed(task.file, job, CRASHED)
