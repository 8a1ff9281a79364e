"""Start of training on a large data set: a Parquet list is opened, checked and drawn from; no clips are behind it.

Each start is a process of its own (`python -m tools.benchmarks.startup LIST OUTPUT`), whose memory is measured.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from latentsync.utils.errors import UserError
from latentsync.utils.paths import PROJECT_ROOT
from tools.benchmarks.report import Figure

CLIPS, PEOPLE = 720_000, 6000  # 1000 hours in clips of five seconds
BATCHES, BATCH_SIZE, NUM_FRAMES, SIDE = 50, 8, 16, 256
NOTE = "wall-clock time; the clips are rows of a list only"
T = TypeVar("T")


def measure(folder: Path, clips: int = CLIPS) -> list[Figure]:
    """Seconds and memory of the first start, which makes the index, and of a later one."""
    listing = write_list(folder / "train.parquet", clips)
    figures = []
    for name in ("first start", "later start"):
        found = _start(listing, folder / "output")
        about = f"{name} with {clips} clips"
        figures += [
            Figure("startup", f"{about}, opening the list", found["open"], "s", None, NOTE),
            Figure("startup", f"{about}, checks, weights, {BATCHES} batches", found["draw"], "s", None, NOTE),
            Figure("startup", f"{about}, memory of its own", found["memory"] / 2**10, "MiB", None, "above the imports"),
        ]
    return figures


def write_list(path: Path, clips: int) -> Path:
    """A Parquet list as data processing writes it, of clips in an object store that does not exist.

    Raises:
        UserError: pyarrow is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UserError("the startup benchmark needs pyarrow: run `pip install '.[train]'`") from error
    people = [f"person_{index % PEOPLE:04d}" for index in range(clips)]
    columns: dict[str, list[Any]] = {
        "path": [f"s3://bucket/clips/{person}/video_{i:06d}_0000.mp4" for i, person in enumerate(people)],
        "person": people,
        "digest": [f"{index:064x}" for index in range(clips)],
    }
    same = {"num_frames": 125, "width": SIDE, "height": SIDE, "fps": 25.0, "has_audio": True, "size": 0}
    columns |= {name: [value] * clips for name, value in same.items()}
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


def _start(listing: Path, output: Path) -> dict[str, float]:
    words = [sys.executable, "-m", "tools.benchmarks.startup", str(listing), str(output)]
    done = subprocess.run(words, capture_output=True, text=True, cwd=PROJECT_ROOT)
    if done.returncode:
        raise UserError(f"the start of training failed: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout)


def start(listing: str, output: str) -> dict[str, float]:
    """A trainer's reading of a list before its first step: seconds, and KiB of memory that is not shared."""
    from latentsync.config.sections import DataSection
    from latentsync.data.clip_dataset import ClipDataset
    from latentsync.data.clips import examine_clips
    from latentsync.data.file_lists import open_clips
    from latentsync.data.sampler import StepBatchSampler

    def draw(clips: Any) -> list:
        usable = examine_clips(clips, min_frames=2 * NUM_FRAMES, resolution=SIDE)
        dataset = ClipDataset(usable, seed=0)
        sampler = StepBatchSampler(len(dataset), BATCH_SIZE, 0, weights=dataset.person_weights())
        return [dataset.clips[sample.index].name for batch in islice(sampler, BATCHES) for sample in batch]

    before = _private_memory()
    clips, opening = _timed(lambda: open_clips(DataSection(train_output_dir=output), listing, ""))
    _, drawing = _timed(lambda: draw(clips))
    return {"open": opening, "draw": drawing, "memory": _private_memory() - before}


def _timed(work: Callable[[], T]) -> tuple[T, float]:
    began = time.perf_counter()
    return work(), time.perf_counter() - began


def _private_memory() -> int:
    """Anonymous memory of this process in KiB; mapped files, which all processes share, do not count."""
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Anonymous:"))


if __name__ == "__main__":
    print(json.dumps(start(*sys.argv[1:])))
