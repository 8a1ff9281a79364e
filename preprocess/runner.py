"""A whole run: which sources are new, who works on them, the manifest of all."""

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from latentsync.utils.errors import UserError
from preprocess.executors import EXECUTORS, run_local, run_ray
from preprocess.manifest import Records, SourceRecord, write_manifest
from preprocess.settings import ProcessSettings
from preprocess.source_work import Job
from preprocess.storage import open_storage
from preprocess.storages.base import FileStamp, Storage
from preprocess.tools import Tools

logger = logging.getLogger(__name__)
LIST = "train.txt"
MANIFEST_EVERY = 20  # sources


@dataclass(frozen=True)
class RunOptions:
    """Where from and to, and with how many hands; see `--help` of the command."""

    input_dir: str | os.PathLike
    output_dir: str | os.PathLike
    workers: int = 1
    gpus_per_worker: float = 0.0
    executor: str = "local"
    temp_dir: Path | None = None
    max_clips_per_person: int | None = None

    def __post_init__(self) -> None:
        if self.executor not in EXECUTORS:
            raise UserError(f"--executor {self.executor!r} is unknown; choose one of {', '.join(EXECUTORS)}")
        if self.workers < 1:
            raise UserError(f"--total_num_workers must be 1 or more, not {self.workers}")
        if self.max_clips_per_person is not None and self.max_clips_per_person < 1:
            raise UserError(f"--max_clips_per_person must be 1 or more, not {self.max_clips_per_person}")
        if os.path.realpath(self.input_dir) == os.path.realpath(self.output_dir):
            raise UserError(f"{self.output_dir}: the sources lie there; give another --output_dir")


@dataclass(frozen=True)
class Summary:
    """What a run found: rows of the manifest, sources done now and before, and counts by fate."""

    rows: list[dict]
    processed: int
    resumed: int
    kept: int
    dropped: Counter


def find_work(options: RunOptions, source: Storage) -> list[FileStamp]:
    """The sources. Raises UserError when there are none."""
    files = source.videos(besides=os.fspath(options.output_dir))
    if not files:
        raise UserError(f"{options.input_dir}: no videos in it")
    return files


def process(
    options: RunOptions, settings: ProcessSettings, on_record: Callable[[SourceRecord, int, int], None] | None = None
) -> Summary:
    """Work on what is new, write manifest.csv and train.txt; running it again goes on where it stopped.

    Args:
        on_record: called as on_record(record, done, total) for each source that was worked on.

    Raises:
        UserError: nothing to do it on or with, another run at work there; OutputError when nothing more can be written.
    """
    source, output = open_storage(options.input_dir), open_storage(options.output_dir)
    files = find_work(options, source)
    with Tools(settings) as tools:
        params = settings.digest(tools.names())  # missing weights are told before any work
    with output.locked():
        records = Records(output)
        known = {(record.root, record.name): record for record in records.load_all()}
        done = [record for file in files if (record := _finished(known, file, source.url, params, records))]
        names = {record.name for record in done}
        new = [file for file in files if file.name not in names]
        logger.info("%d sources, %d of them done before", len(files), len(done))
        job = Job(source.url, output.url, output.scratch_root(options.temp_dir), settings, params)
        for count, record in enumerate(_execute(new, job, options), start=1):
            done.append(replace(record, name=record.name))
            if on_record is not None:
                on_record(record, count, len(new))
            if count % MANIFEST_EVERY == 0:
                write_manifest(output, done)
        rows = write_manifest(output, done)
        _write_list(output, rows, options.max_clips_per_person)
    clips = [row for row in rows if row["kind"] == "clip"]
    dropped = Counter(f"{row['step']}" for row in rows if row["status"] == "dropped")
    return Summary(rows, len(new), len(names), sum(row["status"] == "kept" for row in clips), dropped)


def _finished(
    known: dict[tuple[str, str], SourceRecord], file: FileStamp, root: str, params: str, records: Records
) -> SourceRecord | None:
    record = known.get((root, file.name))
    if record is None or not record.is_finished or record.params != params or not record.is_of(root, file):
        return None
    return record if records.has_clips(record.clips) else None


def _execute(files: list[FileStamp], job: Job, options: RunOptions) -> Iterator[SourceRecord]:
    if not files:
        return iter(())
    if options.executor == "ray":
        return run_ray(files, job, options.workers, options.gpus_per_worker)
    return run_local(files, job, options.workers)


def _write_list(output: Storage, rows: list[dict], max_clips_per_person: int | None) -> None:
    """train.txt: each kept clip and its person, at most so many of one, spread over what there is."""
    people: dict[str, list[str]] = {}
    for row in rows:
        if row["kind"] == "clip" and row["status"] == "kept":
            people.setdefault(_one_line(row["person"]), []).append(row["clip"])
    lines = []
    for person, clips in people.items():
        count = min(len(clips), max_clips_per_person or len(clips))
        lines += [f"{clips[index * len(clips) // count]}\t{person}\n" for index in range(count)]
    output.write_text(LIST, "".join(lines))


def _one_line(person: str) -> str:
    return " ".join(person.split()) or "nobody"
