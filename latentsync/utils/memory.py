"""Memory of worker processes."""

import os
from pathlib import Path

GIB = 2**30
SHARE = 0.8  # of the machine's memory, for all workers together


def resident_bytes(pid: int) -> int:
    """Memory in use by a process of this machine; 0 if it has ended."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def default_limit(workers: int) -> int:
    """Bytes that each of `workers` processes may use: its share of 80 % of the machine's memory."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return int(SHARE * machine) // max(1, workers)
