"""Checkpoints of a run: complete or absent; the newest good one is found on resume.

`checkpoints/step_00001000/` appears by a rename when all of it is on the disk. `complete.json` in it lists the files
with size and checksum, so that later damage is detected, too.
"""

import json
import logging
import os
import re
import shutil
import zlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch.distributed as dist
from accelerate import Accelerator
from safetensors import SafetensorError
from torch.distributed.checkpoint.api import CheckpointException

from latentsync.training.distributed import TIMEOUT, any_process, from_main, shared_folder
from latentsync.utils.errors import UserError

logger = logging.getLogger(__name__)
MANIFEST = "complete.json"
STEP_NAME = re.compile(r"step_(\d{8,})")
UNFINISHED = ".step_*.tmp"
BLOCK = 1 << 24
# torch, safetensors and Python raise these when a disk is full or fails.
WRITE_ERRORS = (OSError, RuntimeError, SafetensorError)


@dataclass
class Progress:
    """The position of a run. position: batches that each process has taken, skipped ones included."""

    step: int = 0
    position: int = 0
    skipped: int = 0

    def to_json(self) -> dict[str, int]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, int]) -> "Progress":
        return cls(**{field.name: int(values[field.name]) for field in fields(cls)})


class CheckpointStore:
    """The checkpoints in a folder that all processes, on all nodes, can see.

    With `background`, `save` returns at once and a thread writes, while training continues.
    """

    def __init__(self, folder: Path, keep_last: int, accelerator: Accelerator, *, background: bool = False) -> None:
        self.folder, self.keep_last, self.accelerator = folder, keep_last, accelerator
        # A separate group: the thread's messages must not mix with those of training. Any device's group can be slower.
        self.group = dist.new_group(backend="gloo", timeout=TIMEOUT) if accelerator.num_processes > 1 else None
        self._thread = ThreadPoolExecutor(1, "checkpoint") if background else None
        self._unfinished: Future[Path] | None = None

    def save(self, step: int, write: Callable[[Path, dist.ProcessGroup | None], None]) -> None:
        """Let all processes `write` into a new checkpoint, then make it the newest; all but the last K are removed.

        Raises:
            UserError: in all processes, when the disk is full or fails, or did so in the last save in the background;
                older checkpoints are intact.
        """
        self.wait()
        shared_folder(self.accelerator, self.folder)
        if self._thread is None:
            self._save(step, write)
        else:
            self._unfinished = self._thread.submit(self._save, step, write)

    def wait(self) -> None:
        """Wait until the last save is finished. Raises UserError as `save` does."""
        unfinished, self._unfinished = self._unfinished, None
        if unfinished is not None:
            unfinished.result()

    def _save(self, step: int, write: Callable[[Path, dist.ProcessGroup | None], None]) -> Path:
        final = self.folder / f"step_{step:08d}"
        temporary = self.folder / f".step_{step:08d}.tmp"
        self._step(final, self._clear_unfinished, main_only=True)
        self._step(final, temporary.mkdir, main_only=True)
        self._step(final, lambda: write(temporary, self.group))
        self._step(final, lambda: _commit(temporary, final), main_only=True)
        self._step(final, lambda: self._prune(step), main_only=True)
        logger.info("saved %s", final)
        return final

    def newest(self, before: Path | None = None) -> Path | None:
        """The newest complete checkpoint, older than `before`; the same in all processes. Logs damaged ones."""

        def find() -> Path | None:
            for folder in reversed(self._finished()):
                if before is not None and step_of(folder) >= step_of(before):
                    continue
                problem = find_damage(folder)
                if problem is None:
                    return folder
                logger.warning("%s: %s; resuming from an older checkpoint", folder, problem)
            return None

        return from_main(self.accelerator, find() if self.accelerator.is_main_process else None)

    def _finished(self) -> list[Path]:
        found = [path for path in self.folder.glob("step_*") if STEP_NAME.fullmatch(path.name)]
        return sorted(found, key=step_of)

    def _step(self, final: Path, work: Callable[[], object], *, main_only: bool = False) -> None:
        """One step of a save: if any process fails, all clean up and raise."""
        problem: BaseException | None = None
        if self.accelerator.is_main_process or not main_only:
            try:
                work()
            except CheckpointException as error:  # of any process
                problem = next(iter(error.failures.values()))[0]
            except WRITE_ERRORS as error:
                problem = error
        if not any_process(self.accelerator, problem is not None, group=self.group)[0]:
            return
        if self.accelerator.is_main_process:
            self._clear_unfinished(ignore_errors=True)
        if problem is None:
            raise UserError(f"{final}: could not be written by another process; its message says why")
        reason = getattr(problem, "strerror", None) or f"disk full or failing: {str(problem).strip()[:160]}"
        older = self._finished()
        good = f"{older[-1].name} is intact" if older else "there is no older checkpoint"
        raise UserError(
            f"{final}: the checkpoint could not be written ({reason}); {good}; free space, then run the same command"
        ) from problem

    def _clear_unfinished(self, ignore_errors: bool = False) -> None:
        for path in self.folder.glob(UNFINISHED):
            shutil.rmtree(path, ignore_errors=ignore_errors)

    def _prune(self, step: int) -> None:
        """Remove checkpoints beyond the last K; those of later steps are damaged and will be written again."""
        older = [path for path in self._finished() if step_of(path) <= step]
        for path in older[: -self.keep_last]:
            doomed = path.with_name(f".{path.name}.tmp")  # first renamed: a half-removed one is never found
            path.rename(doomed)
            shutil.rmtree(doomed)


def step_of(path: Path) -> int:
    """The step in a checkpoint's name."""
    return int(path.name.removeprefix("step_"))


def find_damage(folder: Path) -> str | None:
    """The damage of a checkpoint; None when it is as it was written."""
    try:
        listed = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        for name, (size, checksum) in listed.items():
            path = folder / name
            if path.stat().st_size != size:
                return f"{name} has {path.stat().st_size} bytes instead of {size}"
            if _checksum(path) != checksum:
                return f"{name} is damaged"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return f"{MANIFEST} cannot be read ({type(error).__name__})"
    return None


def _commit(temporary: Path, final: Path) -> None:
    """Flush all files to the disk, list them, and give the folder its name."""
    files = {}
    for path in sorted(path for path in temporary.rglob("*") if path.is_file()):
        _flush(path)
        files[str(path.relative_to(temporary))] = (path.stat().st_size, _checksum(path))
    manifest = temporary / MANIFEST
    manifest.write_text(json.dumps({"files": files}, indent=1), encoding="utf-8")
    _flush(manifest)
    _flush(temporary)
    if final.exists():  # a damaged one, otherwise the run would have resumed from it
        shutil.rmtree(final)
    os.rename(temporary, final)
    _flush(final.parent)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _checksum(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            value = zlib.crc32(block, value)
    return value
