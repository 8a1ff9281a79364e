"""Executors: worker processes on this machine, or actors of a Ray cluster. Both call `process_source`."""

import logging
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import torch

from latentsync.utils.cores import threads_each, worker_environment
from latentsync.utils.errors import UserError
from latentsync.utils.memory import GIB, default_limit, resident_bytes
from latentsync.utils.processes import exit_with_parent
from preprocess.manifest import SourceRecord
from preprocess.remote_tools import Networks, RemoteTools
from preprocess.source_work import Job, crashed, process_source
from preprocess.storages.base import FileStamp
from preprocess.tools import Tools
from preprocess.write import OutputError

logger = logging.getLogger(__name__)
EXECUTORS = ("local", "ray")
ATTEMPTS = 2  # for a source that crashes its worker
CRASHED = "crashed the worker"
ENDED = "crashed the worker, or needed more than its memory"  # Ray does not say which
STALLED_SECONDS = 600.0  # for a segment of a source, which is then given up
STALLED = "a segment took longer than {seconds:g} s"
CHECK_SECONDS = 0.5  # between checks of the workers' memory
TOO_LARGE = "needed more than the allowed {gib:.1f} GiB of memory"


def run_local(
    files: Sequence[FileStamp], job: Job, workers: int, memory_bytes: int | None = None
) -> Iterator[SourceRecord]:
    """Yield records as `workers` processes finish them. A process that dies is replaced and its source retried once.

    memory_bytes: of a process; one that needs more is killed and its source given up. None: see `default_limit`.

    Raises:
        OutputError: the output cannot be written; the workers are stopped.
    """
    pending = deque(_Task(file) for file in files)
    count = min(workers, len(files))
    limit = memory_bytes or default_limit(count)
    pool = [_Worker(job, count) for _ in range(count)]
    try:
        while pending or any(worker.task for worker in pool):
            for worker in pool:
                if worker.task is None and pending:
                    worker.submit(pending.popleft())
            busy = [worker for worker in pool if worker.task]
            ready = multiprocessing.connection.wait([worker.pipe for worker in busy], CHECK_SECONDS)
            for worker in busy:
                if worker.pipe in ready:
                    yield from _receive(worker, pending)
                elif resident_bytes(worker.process.pid or 0) > limit:
                    yield worker.give_up(TOO_LARGE.format(gib=limit / GIB))
    finally:
        for worker in pool:
            worker.stop()


def run_ray(
    files: Sequence[FileStamp],
    job: Job,
    workers: int,
    gpus: float = 0.0,
    gpu_actors: int = 0,
    memory_bytes: int | None = None,
) -> Iterator[SourceRecord]:
    """As `run_local`, on a Ray cluster: that at RAY_ADDRESS, or a local one. Each worker is an actor.

    Sources and results must be reachable from every machine: a shared folder or an fsspec address.

    gpus: share of a GPU that each worker gets for networks of its own.
    gpu_actors: actors with a whole GPU each, which run the networks of all workers; workers then get no GPU.
    memory_bytes: of an actor; one that needs more ends itself. None: the share of its machine, by cores, of 80%.

    Raises:
        UserError: Ray is not installed.
        OutputError: as `run_local`.
    """
    try:
        import ray
    except ImportError as error:
        raise UserError("--executor ray needs Ray: run `pip install '.[ray]'` in the project's folder") from error
    started = not ray.is_initialized()
    if started:
        ray.init(address=os.environ.get("RAY_ADDRESS"), log_to_driver=False, include_dashboard=False)
    actor = ray.remote(num_cpus=1, num_gpus=0 if gpu_actors else gpus, max_restarts=-1)(_Actor)
    gpu_actor = ray.remote(num_cpus=0, num_gpus=1, max_restarts=-1, max_task_retries=ATTEMPTS)(Networks)
    if gpu_actors > (present := ray.cluster_resources().get("GPU", 0)):
        logger.warning("waiting for GPUs: --gpu_actors asks for %d, the cluster has %g", gpu_actors, present)
    try:
        networks = [gpu_actor.remote(job.settings) for _ in range(gpu_actors)] or [None]
        count = min(workers, len(files))
        idle = deque(actor.remote(job, count, memory_bytes, networks[index % len(networks)]) for index in range(count))
        pending = deque(_Task(file) for file in files)
        running: dict[Any, tuple[Any, _Task]] = {}
        while pending or running:
            while pending and idle:
                worker, task = idle.popleft(), pending.popleft()
                running[worker.process.remote(task.file)] = worker, task
            (reference,), _ = ray.wait(list(running))
            worker, task = running.pop(reference)
            idle.append(worker)
            try:
                yield ray.get(reference)
            except ray.exceptions.RayActorError:
                yield from _retry(task, job, pending, ENDED)
            except ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, ray.exceptions.RayActorError):  # of the networks, which start again
                    yield from _retry(task, job, pending)
                    continue
                raise error.as_instanceof_cause() from error
    finally:
        if started:
            ray.shutdown()


def limit_threads(workers: int) -> None:
    """Limit the threads of this process, one of `workers` that share the budget of their parent."""
    threads = threads_each(workers)
    os.environ.update(worker_environment(workers))
    torch.set_num_threads(min(torch.get_num_threads(), threads))
    cv2.setNumThreads(min(cv2.getNumThreads(), threads))


class _Actor:
    """A Ray actor, one of `workers` in the cluster, with networks of its own, or with those of a `Networks` actor."""

    def __init__(self, job: Job, workers: int, memory_bytes: int | None, networks: Any = None) -> None:
        self._job = job
        self._tools = Tools(job.settings) if networks is None else RemoteTools(job.settings, networks)
        limit = memory_bytes or default_limit(min(workers, os.cpu_count() or 1))
        threading.Thread(target=_exit_beyond, args=(limit,), daemon=True).start()

    def process(self, file: FileStamp) -> SourceRecord:
        return _process_in_time(file, self._job, self._tools)


@dataclass
class _Task:
    file: FileStamp
    attempts: int = 0


class _Worker:
    """A process and the pipe to it."""

    def __init__(self, job: Job, workers: int) -> None:
        self.job, self._workers = job, workers
        self.task: _Task | None = None
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, far = context.Pipe()
        self.process = context.Process(target=_work, args=(far, self.job, self._workers), daemon=True)
        self.process.start()
        far.close()

    def submit(self, task: _Task) -> None:
        if not self.process.is_alive():
            self._start()
        self.task = task
        self.pipe.send(task.file)

    def give_up(self, reason: str) -> SourceRecord:
        """Kill the process; the record of its source. Another process starts with the next source."""
        assert self.task is not None
        task, self.task = self.task, None
        self.stop()
        return crashed(task.file, self.job, reason)

    def stop(self) -> None:
        self.pipe.close()
        self.process.kill()
        self.process.join()


def _work(pipe: multiprocessing.connection.Connection, job: Job, workers: int) -> None:
    """Main function of a worker process: process files from the pipe until it is closed."""
    limit_threads(workers)
    exit_with_parent()
    with Tools(job.settings) as tools:
        while True:
            try:
                file = pipe.recv()
            except (EOFError, OSError):
                return
            try:
                pipe.send(_process_in_time(file, job, tools))
            except OutputError as error:
                pipe.send(error)


def _process_in_time(file: FileStamp, job: Job, tools: Tools) -> SourceRecord:
    """As `process_source`; ends this process if a segment takes longer than `STALLED_SECONDS`."""
    try:
        return process_source(file, job, tools, _restart_timer)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _restart_timer() -> None:
    """When the timer expires, the kernel ends this process, even inside a decoder that hangs."""
    signal.setitimer(signal.ITIMER_REAL, STALLED_SECONDS)


def _exit_beyond(limit: int) -> None:
    """Exit when this process uses more than `limit` bytes of memory."""
    while resident_bytes(os.getpid()) <= limit:
        time.sleep(CHECK_SECONDS)
    os._exit(1)


def _receive(worker: _Worker, pending: deque[_Task]) -> Iterator[SourceRecord]:
    """Yield a worker's record, raise its error, or queue its task again if the process died."""
    task, worker.task = worker.task, None
    assert task is not None
    try:
        answer = worker.pipe.recv()
    except (EOFError, ConnectionError):
        worker.process.join()
        if worker.process.exitcode == -signal.SIGALRM:
            yield crashed(task.file, worker.job, STALLED.format(seconds=STALLED_SECONDS))
            return
        yield from _retry(task, worker.job, pending)
        return
    if isinstance(answer, Exception):
        raise answer
    yield answer


def _retry(task: _Task, job: Job, pending: deque[_Task], reason: str = CRASHED) -> Iterator[SourceRecord]:
    task.attempts += 1
    if task.attempts < ATTEMPTS:
        pending.append(task)
    else:
        yield crashed(task.file, job, reason)
