"""The memory that a process keeps for its next blocks, and the garbage collector."""

import gc
import platform
import subprocess
import sys

import pytest

from latentsync.utils.memory import collection_paused
from latentsync.utils.paths import PROJECT_ROOT

COUNT = """
import resource
{setup}
import numpy as np
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    np.ones(2**21)
before = faults()
for _ in range(10):
    a = np.ones(2**21)  # 16 MiB
    b = np.ones(2**21)
    del a, b
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left as they are")
def test_large_blocks_are_not_mapped_anew_each_time():
    pages = 10 * 2 * 2**24 // 4096
    assert page_faults("from latentsync.utils.memory import keep_freed_memory; keep_freed_memory()") < pages / 20


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left as they are")
def test_importing_the_package_is_enough():
    assert page_faults("import latentsync") < 10 * 2 * 2**24 // 4096 / 20


def test_a_system_without_mallopt_is_left_alone():
    code = (
        "from unittest import mock; import latentsync.utils.memory as memory;\n"
        "memory.ctypes = mock.Mock(CDLL=mock.Mock(side_effect=OSError)); memory.keep_freed_memory(); print('fine')"
    )
    assert run(code) == "fine"


def page_faults(setup: str) -> int:
    return int(run(COUNT.format(setup=setup)))


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PROJECT_ROOT)
    return done.stdout.strip()


@pytest.mark.parametrize("enabled", [True, False])
def test_the_collector_is_paused_and_left_as_it_was(enabled):
    try:
        (gc.enable if enabled else gc.disable)()
        with pytest.raises(ValueError), collection_paused():
            assert not gc.isenabled()
            raise ValueError
        assert gc.isenabled() == enabled
    finally:
        gc.enable()
