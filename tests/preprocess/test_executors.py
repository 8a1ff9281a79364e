"""Ray workers, without Ray: restart after an exit, and the memory limit."""

import os
import sys
from types import ModuleType, SimpleNamespace

import pytest

from latentsync.utils.memory import resident_bytes
from preprocess import executors
from preprocess.executors import ENDED, run_ray
from preprocess.storages.base import FileStamp


class ActorError(Exception):
    pass


class TaskError(Exception):
    cause: Exception | None = None


def fake_ray(monkeypatch, process) -> list[tuple]:
    """A module in place of Ray: results of `process(file)` at once. Returns the arguments of each actor."""
    made: list[tuple] = []

    def actor(*args):
        made.append(args)
        return SimpleNamespace(process=SimpleNamespace(remote=lambda file: file))

    ray = ModuleType("ray")
    ray.exceptions = SimpleNamespace(RayActorError=ActorError, RayTaskError=TaskError)
    ray.is_initialized, ray.shutdown = lambda: True, lambda: None
    ray.remote = lambda **_: lambda _: SimpleNamespace(remote=actor)
    ray.cluster_resources = dict
    ray.wait, ray.get = lambda some: (some[:1], some[1:]), process
    monkeypatch.setitem(sys.modules, "ray", ray)
    return made


def test_a_ray_worker_that_ends_loses_its_source_only(monkeypatch):
    asked = []

    def process(file):
        asked.append(file.name)
        if file.name == "large":
            raise ActorError
        return file.name

    made = fake_ray(monkeypatch, process)
    monkeypatch.setattr(executors, "crashed", lambda file, job, reason: (file.name, reason))
    files = [FileStamp(name, 1, "") for name in ("a", "large", "b")]
    assert sorted(map(str, run_ray(files, None, 2, memory_bytes=7))) == [f"('large', '{ENDED}')", "a", "b"]
    assert asked.count("large") == executors.ATTEMPTS and made[-2:] == [(None, 2, 7, None)] * 2


@pytest.mark.parametrize("factor", [0.5, 100])
def test_a_worker_ends_itself_beyond_its_memory(factor):
    limit = int(factor * resident_bytes(os.getpid()))
    child = os.fork()
    if child == 0:
        executors.CHECK_SECONDS = 0.01
        executors.time.sleep = lambda seconds: os._exit(7)  # below the limit: goes on to the next look
        executors._exit_beyond(limit)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == (1 if factor < 1 else 7)
