"""Calls in a child process: results, errors, and each limit."""

import os
import signal
import threading
import time
from fractions import Fraction

import pytest

from latentsync.utils import sandbox
from latentsync.utils.errors import UserError
from latentsync.utils.sandbox import Limits, call_limited
from tests.utils import sandboxed


def test_results_and_errors_come_back(tmp_path):
    assert call_limited(sandboxed.echo, tmp_path, 1, "é", None) == [tmp_path, 1, "é", None]
    assert call_limited(sandboxed.echo, tmp_path, Fraction(1, 3))[1] == Fraction(1, 3)
    with pytest.raises(UserError, match="^it is broken$"):
        call_limited(sandboxed.fail, tmp_path)


def test_each_call_is_another_process(tmp_path):
    first, second = (call_limited(sandboxed.pid, tmp_path) for _ in range(2))
    assert len({first, second, os.getpid()}) == 3


def test_a_defect_in_a_parser_is_one_line_for_the_user_and_a_traceback_in_the_log(tmp_path, caplog):
    with pytest.raises(UserError, match="cannot be examined") as caught:
        call_limited(sandboxed.defect, tmp_path)
    assert "\n" not in str(caught.value) and "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize("end", [sandboxed.crash, sandboxed.leave])
def test_a_crash_ends_the_child_alone(tmp_path, end):
    with pytest.raises(UserError, match="crashed"):
        call_limited(end, tmp_path)
    assert call_limited(sandboxed.echo, tmp_path) == [tmp_path]


def test_deadlines(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for work in (sandboxed.sleep, sandboxed.read):  # the second blocks in the kernel
        with pytest.raises(UserError, match="too long"):
            call_limited(work, tmp_path / "pipe", limits=Limits(seconds=0.5))


def test_cpu_time(tmp_path):
    with pytest.raises(UserError, match="too long"):
        call_limited(sandboxed.spin, tmp_path, limits=Limits(seconds=300, cpu_seconds=1))


def test_memory(tmp_path):
    with pytest.raises(UserError, match="too much memory"):
        call_limited(sandboxed.allocate, tmp_path, 2**30, limits=Limits(memory_bytes=2**28))
    assert call_limited(sandboxed.allocate, tmp_path, 2**20, limits=Limits(memory_bytes=2**28)) == 2**20


def test_open_files_and_written_files(tmp_path):
    assert call_limited(sandboxed.open_files, tmp_path, limits=Limits(open_files=20)) < 20
    with pytest.raises(UserError):
        call_limited(sandboxed.write, tmp_path)
    assert not (tmp_path / "written").exists() or (tmp_path / "written").stat().st_size == 0


def test_results_run_no_code_in_the_parent(tmp_path, caplog):
    with pytest.raises(UserError, match="cannot be examined"):
        call_limited(sandboxed.malicious, tmp_path)
    assert "posix.system is not a result" in caplog.text
    assert not (tmp_path / "owned").exists()


def test_calls_run_side_by_side_and_end_when_they_are_shut_down(tmp_path):
    call_limited(sandboxed.echo, tmp_path)
    errors = []

    def call() -> None:
        try:
            call_limited(sandboxed.sleep, tmp_path, limits=Limits(seconds=300))
        except UserError as error:
            errors.append(error)

    threads = [threading.Thread(target=call) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert call_limited(sandboxed.echo, tmp_path) == [tmp_path]
    while any(thread.is_alive() for thread in threads):
        sandbox.shut_down()
        time.sleep(0.05)
    assert len(errors) == 3
    assert call_limited(sandboxed.echo, tmp_path) == [tmp_path]


def test_a_helper_that_died_is_replaced(tmp_path):
    call_limited(sandboxed.echo, tmp_path)
    os.kill(sandbox._helper._process.pid, signal.SIGKILL)
    sandbox._helper._process.wait()
    assert call_limited(sandboxed.echo, tmp_path) == [tmp_path]


def test_a_forked_process_starts_its_own_helper(tmp_path):
    call_limited(sandboxed.echo, tmp_path)
    helper = sandbox._helper._process.pid
    child = os.fork()
    if child == 0:
        good = call_limited(sandboxed.echo, tmp_path) == [tmp_path] and sandbox._helper._process.pid != helper
        sandbox.shut_down()
        os._exit(0 if good else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert call_limited(sandboxed.echo, tmp_path) == [tmp_path] and sandbox._helper._process.pid == helper


def test_more_time_for_a_file_that_takes_long_to_read(tmp_path):
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(2 * 2**30)
    assert Limits.for_file(path).seconds > Limits.for_file(tmp_path).seconds == Limits().seconds
