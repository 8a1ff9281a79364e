"""A run over a folder: find the sources that are new, process them, write the manifest and the lists."""

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from latentsync.utils.errors import UserError
from latentsync.utils.memory import GIB
from preprocess.executors import EXECUTORS, run_local, run_ray
from preprocess.lists import ListOptions, Lists, write_lists
from preprocess.manifest import Records, SourceRecord, write_manifest
from preprocess.settings import ProcessSettings
from preprocess.source_work import Job, person_of
from preprocess.storage import open_storage
from preprocess.storages.base import FileStamp, Storage
from preprocess.tools import Tools

logger = logging.getLogger(__name__)
MANIFEST_EVERY = 20  # sources


@dataclass(frozen=True)
class RunOptions:
    """Folders, number of workers and lists of a run; see `--help` of the command."""

    input_dir: str | os.PathLike
    output_dir: str | os.PathLike
    workers: int = 1
    gpus_per_worker: float = 0.0
    executor: str = "local"
    temp_dir: Path | None = None
    lists: ListOptions = field(default_factory=ListOptions)
    worker_memory_gb: float | None = None  # GiB; None: its share of 80% of the machine's
    gpu_actors: int = 0  # see `run_ray`

    def __post_init__(self) -> None:
        if self.executor not in EXECUTORS:
            raise UserError(f"--executor {self.executor!r} is unknown; choose one of {', '.join(EXECUTORS)}")
        if self.workers < 1:
            raise UserError(f"--total_num_workers must be 1 or more, not {self.workers}")
        if self.gpu_actors < 0 or (self.gpu_actors and (self.executor != "ray" or self.gpus_per_worker)):
            raise UserError("--gpu_actors needs --executor ray, and no --per_gpu_num_workers")
        if self.worker_memory_gb is not None and not self.worker_memory_gb > 0:
            raise UserError(f"--worker_memory_gb must be above 0, not {self.worker_memory_gb}")
        if os.path.realpath(self.input_dir) == os.path.realpath(self.output_dir):
            raise UserError(f"{self.output_dir}: is the input folder; choose another --output_dir")


@dataclass(frozen=True)
class Summary:
    """Result of a run.

    Args:
        rows: of the manifest.
        processed, resumed: number of sources processed by this run, and by earlier ones.
        kept: number of clips.
        dropped: number of sources and clips dropped by each step.
    """

    rows: list[dict]
    lists: Lists
    processed: int
    resumed: int
    kept: int
    dropped: Counter


def find_work(options: RunOptions, settings: ProcessSettings, source: Storage) -> list[FileStamp]:
    """All sources. Raises UserError if there are none, or `person_pattern` does not match a name."""
    files = source.sources(os.fspath(options.output_dir), settings.keep_silent)
    if not files:
        raise UserError(f"{options.input_dir}: no videos{' or images' if settings.keep_silent else ''} in it")
    for file in files:
        person_of(file.name, settings.person_pattern)
    return files


def process(
    options: RunOptions, settings: ProcessSettings, on_record: Callable[[SourceRecord, int, int], None] | None = None
) -> Summary:
    """Process new sources and write manifest.csv and the lists. Calling it again resumes an interrupted run.

    Args:
        on_record: called as on_record(record, done, total) after each processed source.

    Raises:
        UserError: there are no sources, weights are missing, or another run uses the output folder.
        OutputError: the output cannot be written.
    """
    source, output = open_storage(options.input_dir), open_storage(options.output_dir)
    files = find_work(options, settings, source)
    with Tools(settings) as tools:
        params = settings.digest(tools.names())  # fails early if weights are missing
    with output.locked():
        records = Records(output)
        job = Job(source.url, output.url, output.scratch_root(options.temp_dir), settings, params)
        done = _duplicates(files, source, job)
        files = _without(files, done)
        known = {(record.root, record.name): record for record in records.load_all()}
        finished = [record for file in files if (record := _finished(known, file, job, records))]
        new = _without(files, finished)
        logger.info("%d sources, %d of them finished before", len(files), len(finished))
        done += finished
        for count, record in enumerate(_execute(new, job, options), start=1):
            done.append(record)
            if on_record is not None:
                on_record(record, count, len(new))
            if count % MANIFEST_EVERY == 0:
                write_manifest(output, done)
        rows = write_manifest(output, done)
        lists = write_lists(output, rows, options.lists)
    clips = [row for row in rows if row["kind"] == "clip"]
    dropped = Counter(f"{row['step']}" for row in rows if row["status"] == "dropped" and row["kind"] != "gap")
    return Summary(rows, lists, len(new), len(finished), sum(row["status"] == "kept" for row in clips), dropped)


def _finished(
    known: dict[tuple[str, str], SourceRecord], file: FileStamp, job: Job, records: Records
) -> SourceRecord | None:
    record = known.get((job.input_url, file.name))
    if record is None or not record.is_finished or record.params != job.params or not record.is_of(job.input_url, file):
        return None
    return record if records.has_clips(record.clips) else None


def _without(files: list[FileStamp], records: list[SourceRecord]) -> list[FileStamp]:
    names = {record.name for record in records}
    return [file for file in files if file.name not in names]


def _duplicates(files: list[FileStamp], source: Storage, job: Job) -> list[SourceRecord]:
    """Records of sources that are copies of another one. Only files of equal size are hashed."""
    by_size: dict[int, list[FileStamp]] = {}
    for file in files:
        by_size.setdefault(file.size, []).append(file)
    found: list[SourceRecord] = []
    first: dict[str, str] = {}
    for file in (file for same in by_size.values() if len(same) > 1 for file in same):
        try:
            sha256 = source.sha256(file.name)
        except OSError:  # the worker reports the reason
            continue
        if sha256 in first:
            reason = f"same content as {first[sha256]}"
            found.append(replace(job.record_of(file, sha256), step="probe", reason=reason))
        first.setdefault(sha256, file.name)
    return found


def _execute(files: list[FileStamp], job: Job, options: RunOptions) -> Iterator[SourceRecord]:
    if not files:
        return iter(())
    memory = None if options.worker_memory_gb is None else round(options.worker_memory_gb * GIB)
    if options.executor == "ray":
        return run_ray(files, job, options.workers, options.gpus_per_worker, options.gpu_actors, memory)
    return run_local(files, job, options.workers, memory)
