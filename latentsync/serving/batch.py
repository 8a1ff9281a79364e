"""Run a list of jobs through the job service; an interrupted run can be resumed."""

import glob
import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentsync.constants import AUDIO_SUFFIXES, IMAGE_SUFFIXES, VIDEO_SUFFIXES
from latentsync.data.cache import file_digest
from latentsync.media.paths import check_input_path, check_output_path
from latentsync.options import OPTIONS, RENAMED, GenerationOptions, OptionError, parse_options, up_to_date
from latentsync.pipelines.script import audio_names, read_script
from latentsync.serving.jobs import AUDIO_ROLES, InsufficientSpace, Job, JobKind, JobNotFound, JobState, QueueFull
from latentsync.serving.models import weights_of
from latentsync.serving.service import JobService
from latentsync.utils.batch import DONE, FAILED, KEPT, Outcome, run_rows
from latentsync.utils.errors import UserError, did_you_mean
from latentsync.utils.files import staged_output, write_text
from latentsync.utils.tables import read_csv

logger = logging.getLogger(__name__)

FILES = ("video", "audio", "out")
PATHS = ("mask_image_path", "script")  # options that become files of a job
POLL_SECONDS = 0.3
RECORD = "batch.json"


@dataclass(frozen=True)
class BatchRow:
    """A line of the list. audio is None for a text, a script, or frame interpolation."""

    line: int
    video: Path
    audio: Path | None
    out: Path
    options: GenerationOptions

    @property
    def kind(self) -> JobKind:
        speaks = self.audio is not None or self.options.text is not None or self.options.script is not None
        return JobKind.LIPSYNC if speaks else JobKind.INTERPOLATE

    def files(self) -> dict[str, tuple[str, Path]]:
        """Input files, as `JobService.submit` takes them."""
        paths: dict[str, Path | None] = {"video": self.video}
        if self.kind is JobKind.LIPSYNC:
            paths |= {"audio": self.audio, "mask": self.options.mask_image_path}
        files = {role: (path.name, path) for role, path in paths.items() if path is not None}
        return files if self.options.script is None else files | script_files(self.options.script)

    def key(self, weights: str = "") -> str:
        """Hash of the files' contents, the weights, the options and the output path.

        Raises:
            UserError: a file cannot be read.
        """
        parts = [file_digest(path) for _, path in self.files().values()]
        parts += [weights] if weights else []
        options = self.options.model_dump(exclude_defaults=True, exclude=set(PATHS))
        text = json.dumps([self.kind, *parts, str(self.out.absolute()), options])
        return hashlib.sha256(text.encode()).hexdigest()[:32]


def script_files(script: Path) -> dict[str, tuple[str, Path]]:
    """A script and its audio files, by role. Raises UserError for a script that is not valid or has too many files."""
    names = audio_names(read_script(script))
    if len(names) > len(AUDIO_ROLES):
        raise UserError(f"{script}: names {len(names)} audio files; a job takes {len(AUDIO_ROLES)}")
    audio = {role: (name, script.parent / name) for role, name in zip(AUDIO_ROLES, names, strict=False)}
    return {"script": (script.name, script)} | audio


def read_list(path: Path, defaults: Mapping[str, Any] | None = None) -> list[BatchRow]:
    """Read a CSV with the columns video, audio, out and any options; paths are relative to its folder.

    A row without audio, text and script is a frame interpolation job. An empty cell means the value in `defaults`, else
    the option's default.

    Raises:
        UserError: the list cannot be read, or a row is not valid; the message names the line.
    """
    names, rows = read_csv(path, FILES)
    known = (*FILES, *OPTIONS)
    unknown = sorted(str(name) for name in names if name not in known and name not in RENAMED)
    if unknown or not {"video", "out"} <= set(names):
        problem = f"unknown columns {', '.join(unknown)}" if unknown else "the columns video and out are needed"
        near = did_you_mean(unknown[0], known) if unknown else ""
        raise UserError(f"{path}: {problem}{near or '; the columns are ' + ', '.join(known)}")
    found = [_read_row(row, line, path, defaults or {}) for line, row in rows]
    if not found:
        raise UserError(f"{path}: the list has no rows")
    _refuse_equal_outputs(found, path)
    return found


def _read_row(cells: dict[str, str | None], line: int, path: Path, defaults: Mapping[str, Any]) -> BatchRow:
    if None in cells:
        raise UserError(f"{path}: line {line} has more cells than columns; put names that hold commas in quotes")
    values = {name: (cell or "").strip() for name, cell in cells.items()}
    for name in ("video", "out"):
        if not values[name]:
            raise UserError(f"{path}: line {line} has no {name}")
    given: dict[str, Any] = dict(
        up_to_date(name, value) for name, value in values.items() if value and name not in FILES
    )
    given |= {name: path.parent / given[name] for name in PATHS if name in given}
    try:
        options = parse_options({**defaults, **given})
    except OptionError as error:
        raise UserError(f"{path}: line {line}: {error}") from error
    out = path.parent / values["out"]
    if out.suffix.lower() != options.suffix:
        raise UserError(f"{path}: line {line}: {values['out']} must end in {options.suffix}")
    audio = path.parent / values["audio"] if values.get("audio") else None
    return BatchRow(line, path.parent / values["video"], audio, out, options)


def _refuse_equal_outputs(rows: Sequence[BatchRow], path: Path) -> None:
    lines: dict[Path, int] = {}
    for row in rows:
        name = row.out.absolute()
        if name in lines:
            raise UserError(f"{path}: lines {lines[name]} and {row.line} both write {row.out}")
        lines[name] = row.line


def rows_of_files(
    videos: Sequence[str], audio: Path, out: Path, defaults: Mapping[str, Any] | None = None
) -> list[BatchRow]:
    """Rows for videos and images, given as files, folders or patterns such as `clips/**/*.mp4`.

    Args:
        audio: one file for all, or a folder with a file of the same name (without suffix) for each video.
        out: folder of the results, NAME.mp4.
        defaults: options by name.

    Raises:
        UserError: nothing matches, a video has no audio, or two results would have the same name.
    """
    voices = {path.stem: path for path in _media(audio, AUDIO_SUFFIXES)} if audio.is_dir() else None
    options, rows = parse_options(dict(defaults or {})), []
    for number, video in enumerate(_expand(videos), 1):
        voice = audio if voices is None else voices.get(video.stem)
        if voice is None:
            raise UserError(f"{video}: {audio} has no audio named {video.stem}")
        rows.append(BatchRow(number, video, voice, out / f"{video.stem}.mp4", options))
    _refuse_equal_outputs(rows, out)
    return rows


def _expand(patterns: Sequence[str]) -> list[Path]:
    found: dict[Path, None] = {}
    for pattern in patterns:
        path = Path(pattern)
        if path.is_dir():
            matches = _media(path, VIDEO_SUFFIXES | IMAGE_SUFFIXES)
        else:
            matches = [path] if path.exists() else [Path(name) for name in sorted(glob.glob(pattern, recursive=True))]
        if not matches:
            raise UserError(f"{pattern}: no video or image matches")
        found |= dict.fromkeys(matches)
    return list(found)


def _media(folder: Path, suffixes: frozenset[str]) -> list[Path]:
    """Media files directly in a folder, sorted."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in suffixes and path.is_file())


class Batch:
    """Runs a list with a started service. A record in its workspace maps rows to jobs and marks finished rows.

    ahead: number of jobs queued beyond the number of workers; more only copies more files.
    """

    def __init__(self, service: JobService, ahead: int = 2) -> None:
        self.service, self.ahead = service, ahead
        self._record_path = service.settings.workspace / RECORD
        self._record = self._read_record()
        self._weights: dict[tuple[str, str | None], str] = {}
        self._running: dict[str, Job] = {}

    def run(
        self,
        rows: Sequence[BatchRow],
        on_result: Callable[[Outcome[BatchRow]], None] = lambda result: None,
        on_progress: Callable[[Sequence[Job]], None] = lambda jobs: None,
    ) -> list[Outcome[BatchRow]]:
        """Run all rows that are not done yet; failed rows do not stop the others.

        Args:
            on_result: called with the outcome of each row.
            on_progress: called several times a second with the jobs that are queued or running.

        Raises:
            InsufficientSpace: the disk has no room for the next job.
        """
        at_once, fatal, results = self.service.settings.workers + self.ahead, (QueueFull, InsufficientSpace), []

        def wait() -> None:
            on_progress(list(self._running.values()))
            time.sleep(POLL_SECONDS)

        for result in run_rows(rows, self._work, at_once, wait, fatal):
            results.append(result)
            on_result(result)
            on_progress(list(self._running.values()))
        return sorted(results, key=lambda result: result.row.line)

    def _work(self, row: BatchRow) -> Iterator[Outcome[BatchRow] | None]:
        """Run a row: None while its job is queued or running, then the outcome."""
        job_id = self._begin(row)
        if job_id is None:
            yield Outcome(row, KEPT)
            return
        while (result := self._result_of(job := self.service.get(job_id), row)) is None:
            self._running[job_id] = job
            yield None
        self._running.pop(job_id, None)
        yield result

    def _begin(self, row: BatchRow) -> str | None:
        """The id of a row's job, a new one or that of an earlier run; None if the row is done."""
        for role, (_, path) in row.files().items():
            check_input_path(path, role)
        key = self._key(row)
        note = self._record.get(key)
        if note is not None and "job" in note:
            try:
                job = self.service.get(note["job"])
            except JobNotFound:
                job = None
            if job is not None and not job.expired and job.state not in (JobState.FAILED, JobState.CANCELLED):
                return job.id
        elif note is not None and row.out.is_file() and row.out.stat().st_size == note["bytes"]:
            return None
        row.out.parent.mkdir(parents=True, exist_ok=True)
        check_output_path(row.out, [path for _, path in row.files().values()])
        job = self.service.submit(row.kind, row.files(), row.options.model_copy(update=dict.fromkeys(PATHS)))
        self._note(key, {"job": job.id})
        return job.id

    def _result_of(self, job: Job, row: BatchRow) -> Outcome[BatchRow] | None:
        """The outcome of a row if its job is finished: copies the result to the output and deletes the job."""
        if not job.state.is_final:
            return None
        seconds = (job.finished or 0) - (job.started or job.finished or 0)
        if job.state is not JobState.DONE or job.result is None:
            reason = job.error or ("its result has expired" if job.expired else f"the job was {job.state.value}")
            return Outcome(row, FAILED, reason, seconds)
        try:
            with staged_output(row.out, None) as staged:
                shutil.copyfile(job.result, staged)
            self._note(self._key(row), {"bytes": row.out.stat().st_size})
        except (OSError, UserError) as error:
            return Outcome(row, FAILED, f"{row.out} could not be written ({error})", seconds)
        self.service.delete(job.id)
        return Outcome(row, DONE, seconds=seconds)

    def _key(self, row: BatchRow) -> str:
        """Identity of a row; equal rows with other weights differ."""
        if row.kind is not JobKind.LIPSYNC:
            return row.key()
        chosen, settings = (row.options.model, row.options.lora), self.service.settings
        if chosen not in self._weights:
            self._weights[chosen] = weights_of(row.options, settings.devices[0], settings.model)
        return row.key(self._weights[chosen])

    def _note(self, key: str, value: dict) -> None:
        self._record[key] = value
        write_text(self._record_path, lambda file: json.dump(self._record, file))

    def _read_record(self) -> dict[str, dict]:
        try:
            return json.loads(self._record_path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise UserError(f"{self._record_path}: cannot be read ({error}); delete it to start again") from error
