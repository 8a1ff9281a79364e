"""The thread budget: how many threads this process may keep busy.

There is one number, OMP_NUM_THREADS. Where nobody has set it, it is the number of CPU cores that the process may use,
by its affinity and by the CPU quotas of its control groups (containers). PyTorch, OpenBLAS and OpenMP read the variable
themselves, OpenCV gets it as OPENCV_FOR_THREADS_NUM, and decoders, encoders and MediaPipe's graphs ask `thread_budget`.

`latentsync/__init__.py` calls `set_thread_budget` before any of these libraries is imported, and the programs import
`latentsync` before anything else.
"""

import math
import os
from pathlib import Path

THREADS, OPENCV_THREADS, WAIT_POLICY = "OMP_NUM_THREADS", "OPENCV_FOR_THREADS_NUM", "OMP_WAIT_POLICY"
CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")
QUOTA_FILES = (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us"))  # versions 2 and 1
MAX_CODEC_THREADS = 16  # more cost memory and gain nothing


def set_thread_budget() -> None:
    """Set the environment variables that the libraries read when they are imported; those that are set are kept.

    Idle OpenMP threads sleep. By default they spin, which slows down everything else on the same cores. The number is
    set only where it is less than the libraries would take: with all cores, PyTorch takes one thread per physical core.
    """
    os.environ.setdefault(WAIT_POLICY, "passive")
    if available_cores() < _affinity():
        os.environ.setdefault(THREADS, str(available_cores()))
    if thread_budget() < _affinity():
        os.environ.setdefault(OPENCV_THREADS, str(thread_budget()))


def thread_budget() -> int:
    """Number of threads of this process."""
    first = os.environ.get(THREADS, "").split(",")[0].strip()  # a list is the numbers of nested levels
    return int(first) if first.isdigit() and int(first) else available_cores()


def codec_threads() -> int:
    """Number of threads of a video decoder or encoder."""
    return min(thread_budget(), MAX_CODEC_THREADS)


def threads_each(workers: int) -> int:
    """Number of threads of each of `workers` processes that share the budget of this one."""
    return max(1, thread_budget() // max(1, workers))


def worker_environment(workers: int) -> dict[str, str]:
    """Environment variables of a child process, one of `workers`."""
    threads = str(threads_each(workers))
    return {THREADS: threads, OPENCV_THREADS: threads}


def available_cores(own: Path = OWN_CGROUPS, root: Path = CGROUPS) -> int:
    """CPU cores that this process may use, at least 1. A quota of half a core counts as one core."""
    quotas = [quota for folder in _cgroup_folders(own, root) if (quota := _quota(folder)) is not None]
    return max(1, min([_affinity(), *(math.ceil(quota) for quota in quotas)]))


def _affinity() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cgroup_folders(own: Path, root: Path) -> list[Path]:
    """Folders of the control groups of this process and of the groups around them, versions 1 and 2."""
    try:
        lines = own.read_text().splitlines()
    except OSError:  # not Linux
        return []
    folders = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = root / controllers if controllers else root
        group = top / path.lstrip("/")
        folders += [folder for folder in (group, *group.parents) if folder == top or top in folder.parents]
    return folders


def _quota(folder: Path) -> float | None:
    """Cores that a control group may use; None without a limit."""
    for names in QUOTA_FILES:
        try:
            words = [word for name in names for word in (folder / name).read_text().split()]
            quota, period = (float(word) for word in words)
        except (OSError, ValueError):  # no such file, or "max"
            continue
        if quota > 0 and period > 0:
            return quota / period
    return None
