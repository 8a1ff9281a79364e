"""Run a function in forked processes, which may be killed and need no imports."""

import faulthandler
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable

import torch

from tests.waiting import HANG_SECONDS


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def run_forked(work: Callable[[int], None], processes: int = 1) -> list[int]:
    """`work(rank)` in each process, as torchrun would start them; their exit codes, negative for a signal.

    An exception in one is printed and gives exit code 1. AssertionError when they do not end in time.
    """
    port = free_port()
    children = [_fork(work, rank, processes, port) for rank in range(processes)]
    codes: dict[int, int] = {}
    deadline = time.monotonic() + HANG_SECONDS
    while len(codes) < processes and time.monotonic() < deadline:
        for child in children:
            if child not in codes:
                done, status = os.waitpid(child, os.WNOHANG)
                if done:
                    codes[child] = os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    hanging = [child for child in children if child not in codes]
    for child in hanging:
        os.kill(child, 9)
        os.waitpid(child, 0)
    assert not hanging, f"{len(hanging)} of {processes} processes hang"
    return [codes[child] for child in children]


def _fork(work: Callable[[int], None], rank: int, processes: int, port: int) -> int:
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        faulthandler.disable()
        torch.set_num_threads(1)
        if processes > 1:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
            os.environ |= {"LOCAL_WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        work(rank)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)
