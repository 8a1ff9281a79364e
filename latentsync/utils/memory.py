"""Memory of this process and of worker processes."""

import ctypes
import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

GIB = 2**30
# Of mallopt in glibc's malloc.h: how much free memory at its end the heap keeps, by how much more than asked it grows,
# the size from which a block gets a mapping of its own, and the number of heaps.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -2, -3, -8
KEPT, GROWTH, LARGEST = 128 * 2**20, 64 * 2**20, 32 * 2**20  # 32 MiB is the most that glibc accepts
HEAPS = 1  # each thread with a heap of its own would keep memory that no other can use
SHARE = 0.8  # of the machine's memory, for all workers together


def resident_bytes(pid: int) -> int:
    """Memory in use by a process of this machine; 0 if it has ended."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def default_limit(workers: int) -> int:
    """Bytes that each of `workers` processes may use: its share of 80% of the machine's memory."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return int(SHARE * machine) // max(1, workers)


@contextmanager
def collection_paused() -> Iterator[None]:
    """Pause Python's garbage collector, for imports.

    They make hundreds of thousands of objects and no garbage; the collector would look through all of them several
    times, which is a sixth of the time that the imports take.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def keep_freed_memory() -> None:
    """Let the C library keep freed blocks of up to 32 MiB for the next ones, instead of returning them to the system.

    Every operation on images allocates megabytes and frees them again. With glibc's defaults, each of those is mapped
    anew and cleared page by page, which takes as long as the arithmetic. Does nothing with other C libraries.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, TypeError, AttributeError):  # not Linux, or not glibc
        return
    mallopt(M_ARENA_MAX, HEAPS)
    mallopt(M_TRIM_THRESHOLD, KEPT)
    mallopt(M_TOP_PAD, GROWTH)
    mallopt(M_MMAP_THRESHOLD, LARGEST)
