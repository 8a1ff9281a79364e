"""One source, from its first packet to its last clip: decoded once, each kept clip encoded once."""

import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from preprocess.clip import Clip, Drop, Segment
from preprocess.manifest import ClipRow, Records, SourceRecord
from preprocess.settings import ProcessSettings
from preprocess.steps.alignment import alignment
from preprocess.steps.face_size import face_size
from preprocess.steps.faces import faces
from preprocess.steps.probe import Source, SourceError, probe, reason
from preprocess.steps.quality import quality
from preprocess.steps.resample import Sample, SoundReader, resample
from preprocess.steps.segments import segments
from preprocess.steps.shots import shots
from preprocess.steps.sync import sync
from preprocess.storage import open_storage
from preprocess.storages.base import FileStamp, Storage
from preprocess.tools import Tools
from preprocess.write import FrameWriter, OutputError, write_faces

CLIPS = "clips"
ClipStep = Callable[[Clip, ProcessSettings, Tools], Clip]
CLIP_STEPS: dict[str, ClipStep] = {"face_size": face_size, "alignment": alignment, "sync": sync, "quality": quality}
_MAX_STEM = 80  # characters of a source's name in its clips' names


@dataclass(frozen=True)
class Job:
    """What a worker needs to know to work on any source; plain values, so that it can be sent to another machine."""

    input_url: str
    output_url: str
    scratch: Path
    settings: ProcessSettings
    params: str


def person_of(name: str) -> str:
    """Who is taken to be seen: the file's folder, or where it lies in none, its name up to the last underscore."""
    path = PurePosixPath(name)
    if len(path.parts) > 1:
        return path.parts[-2]
    return path.stem.rpartition("_")[0] or path.stem


def process_source(file: FileStamp, job: Job, tools: Tools) -> SourceRecord:
    """Everything that is to be made of a source, and its record, which is saved.

    Work that an interrupted run has finished is not repeated; a source of the same content and settings is not
    touched at all.

    Raises:
        OutputError: nothing more can be written.
    """
    source, output = open_storage(job.input_url), open_storage(job.output_url)
    records = Records(output)
    began = time.monotonic()
    try:
        sha256 = source.sha256(file.name)
    except OSError as error:
        record = SourceRecord(job.input_url, file.name, file.size, file.stamp, person_of(file.name), "", job.params)
        return replace(record, step="probe", reason=f"cannot be read ({error.strerror})", is_finished=False)
    known = records.load(sha256)
    if known is not None and known.params == job.params and known.is_finished and records.has_clips(known.clips):
        return known
    record = SourceRecord(job.input_url, file.name, file.size, file.stamp, person_of(file.name), sha256, job.params)
    work = _SourceWork(record, job, tools, records, output)
    with source.fetched(file.name, job.scratch) as path:
        record = work.run(path)
    record = replace(record, seconds={**work.seconds, "total": round(time.monotonic() - began, 3)})
    records.save(record)
    return record


class _SourceWork:
    """A source being worked on."""

    def __init__(self, record: SourceRecord, job: Job, tools: Tools, records: Records, output: Storage) -> None:
        self.record, self.job, self.tools, self.output = record, job, tools, output
        self.records, self.settings = records, job.settings
        self.seconds: dict[str, float] = defaultdict(float)

    def run(self, path: Path) -> SourceRecord:
        """The record of the source at `path`: of no use, or with its clips."""
        clips: list[ClipRow] = []
        figures: dict = {}
        try:
            with self._timed("probe"):
                source = probe(path, self.settings.audio_track)
            figures = source.figures
            clips = list(self._clips(source))
        except OutputError:
            raise
        except SourceError as error:
            step = "resample" if figures else "probe"
            return replace(self.record, figures=figures, clips=clips, step=step, reason=reason(error, path))
        if not clips:
            return replace(self.record, figures=figures, step="segments", reason="no segment in it")
        return replace(self.record, figures=figures, clips=clips)

    def _clips(self, source: Source) -> Iterator[ClipRow]:
        done = self.records.finished_parts(self.record.sha256, self.job.params)
        with SoundReader(source) as sound:
            samples = self._watched("resample", resample(source))
            if self.settings.runs("shots"):
                samples = self._watched("shots", shots(samples, self.settings.shot_threshold))
            for segment in segments(samples, self.record.name, sound, self.settings.segment_frames):
                rows = done.get(segment.index)
                if rows is None:
                    rows = self._segment(segment, source)
                    self.records.save_part(self.record.sha256, self.job.params, segment.index, rows)
                yield from rows

    def _segment(self, segment: Segment, source: Source) -> list[ClipRow]:
        if not self.settings.runs("faces"):
            return [self._whole_frames(segment, source)]
        with self._timed("faces"):
            clips = faces(segment, self.settings, self.tools)
        return [self._finish(clip) for clip in clips]

    def _finish(self, clip: Clip) -> ClipRow:
        """The remaining steps, until one drops the clip; what is kept is written."""
        frames = clip.num_frames
        for step in self.settings.steps:
            if step in CLIP_STEPS and clip.drop is None:
                with self._timed(step):
                    clip = CLIP_STEPS[step](clip, self.settings, self.tools)
        if clip.drop is not None:
            return ClipRow.of(clip, frames)
        with self._timed("write"), self._scratch_file() as path:
            write_faces(path, clip.faces, clip.wave, self.settings.crf)
            return self._put(path, clip, clip.num_frames)

    def _whole_frames(self, segment: Segment, source: Source) -> ClipRow:
        """Without the face step: the segment as it is, streamed."""
        with self._timed("write"), self._scratch_file() as path:
            with FrameWriter(path, source.info.sample_aspect_ratio, self.settings.crf) as writer:
                for frame in segment:
                    writer.write(frame)
                writer.finish(segment.sound())
            clip = Clip(segment.source, segment.index, 0, segment.start, None, None)
            if segment.num_frames < self.settings.min_frames:
                too_short = f"{segment.num_frames} frames, {self.settings.min_frames} are needed"
                return ClipRow.of(replace(clip, drop=Drop("segments", too_short)), segment.num_frames)
            return self._put(path, clip, segment.num_frames)

    def _put(self, path: Path, clip: Clip, frames: int) -> ClipRow:
        name = self._clip_name(clip)
        size = path.stat().st_size
        self.output.put(path, name)
        return ClipRow.of(clip, frames, name, size)

    def _clip_name(self, clip: Clip) -> str:
        """Beneath the output: person, source and the source's content, so that equal names do not meet."""
        stem = _plain(PurePosixPath(self.record.name).stem)[:_MAX_STEM]
        number = f"{clip.segment:04d}" + (f"_{clip.person}" if clip.person else "")
        return f"{CLIPS}/{_plain(self.record.person)}/{stem}_{self.record.sha256[:8]}_{number}.mp4"

    @contextmanager
    def _scratch_file(self) -> Iterator[Path]:
        self.job.scratch.mkdir(parents=True, exist_ok=True)
        path = self.job.scratch / f"{uuid.uuid4().hex}.mp4"
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)

    @contextmanager
    def _timed(self, step: str) -> Iterator[None]:
        """Own time: what the steps before take while this one reads from them is theirs."""
        began, before = time.monotonic(), sum(self.seconds.values())
        try:
            yield
        finally:
            inner = sum(self.seconds.values()) - before
            self.seconds[step] += time.monotonic() - began - inner

    def _watched(self, step: str, samples: Iterator[Sample]) -> Iterator[Sample]:
        """The same samples; the time that making them takes is counted."""
        while True:
            with self._timed(step):
                sample = next(samples, None)
            if sample is None:
                return
            yield sample


def _plain(text: str) -> str:
    """A name that lists, shells and all file systems take: letters, digits, . and -, the rest as underscores."""
    kept = "".join(letter if letter.isalnum() or letter in ".-_" else "_" for letter in text)
    return kept.encode("utf-8", "replace").decode("utf-8").replace("?", "_").strip(".") or "clip"


def crashed(file: FileStamp, job: Job, why: str) -> SourceRecord:
    """The record of a source that took its worker down; it is tried again in the next run."""
    record = SourceRecord(job.input_url, file.name, file.size, file.stamp, person_of(file.name), "", job.params)
    return replace(record, step="worker", reason=why, is_finished=False)
