"""Processing of one source: it is decoded once, and each kept clip is encoded once."""

import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from latentsync.data.clips import compile_pattern, digest_of, match_person, probe_clip
from preprocess.clip import Clip, Segment
from preprocess.manifest import ClipRow, Records, SourceRecord
from preprocess.settings import ProcessSettings
from preprocess.steps.alignment import alignment
from preprocess.steps.face_size import face_size
from preprocess.steps.faces import faces
from preprocess.steps.probe import Source, SourceError, probe, reason
from preprocess.steps.quality import quality
from preprocess.steps.resample import AudioReader, Sample, resample
from preprocess.steps.segments import segments
from preprocess.steps.shots import shots
from preprocess.steps.sync import sync
from preprocess.storage import open_storage
from preprocess.storages.base import FileStamp, Storage
from preprocess.tools import Tools
from preprocess.write import FrameWriter, OutputError, output_errors, write_faces

CLIPS = "clips"
Beat = Callable[[], None]
ClipStep = Callable[[Clip, ProcessSettings, Tools], Clip]
CLIP_STEPS: dict[str, ClipStep] = {"face_size": face_size, "alignment": alignment, "sync": sync, "quality": quality}
_MAX_STEM = 80  # characters of a source's name in its clips' names


@dataclass(frozen=True)
class Job:
    """Everything a worker needs to process sources. Plain values, so that it can be sent to another machine."""

    input_url: str
    output_url: str
    scratch: Path
    settings: ProcessSettings
    params: str

    def record_of(self, file: FileStamp, sha256: str = "") -> SourceRecord:
        """The record of a source before processing."""
        person = person_of(file.name, self.settings.person_pattern)
        return SourceRecord(self.input_url, file.name, file.size, file.stamp, person, sha256, self.params)


def person_of(name: str, pattern: str | None = None) -> str:
    """Person in a source: the match of the pattern; without one, the file's folder, or at the top level its name up to
    the last underscore. Raises UserError if the pattern does not match."""
    path = PurePosixPath(name)
    if pattern is not None:
        return match_person(compile_pattern(pattern), path)
    if len(path.parts) > 1:
        return path.parts[-2]
    return path.stem.rpartition("_")[0] or path.stem


def no_beat() -> None:
    """Without a time limit."""


def process_source(file: FileStamp, job: Job, tools: Tools, beat: Beat = no_beat) -> SourceRecord:
    """Process a source; saves and returns its record.

    Segments finished by an interrupted run are not repeated. A source that was only moved or touched is not processed
    again. `beat` is called whenever a segment's worth of frames has been read, or a segment finished.

    Raises:
        OutputError: the output cannot be written.
    """
    source, output = open_storage(job.input_url), open_storage(job.output_url)
    records = Records(output)
    began = time.monotonic()
    try:
        sha256 = source.sha256(file.name)
    except OSError as error:
        record = job.record_of(file)
        return replace(record, step="probe", reason=f"cannot be read ({error.strerror})", is_finished=False)
    record = job.record_of(file, sha256)
    known = records.load(sha256)
    if known is not None and record.is_settled_by(known) and records.has_clips(known.clips):
        record = replace(known, root=record.root, name=record.name, size=record.size, stamp=record.stamp)
        records.save(record)
        return record
    work = _SourceWork(record, job, tools, records, output, beat)
    with source.fetched(file.name, job.scratch) as path:
        record = work.run(path)
    record = replace(record, seconds={**work.seconds, "total": round(time.monotonic() - began, 3)})
    records.save(record)
    return record


class _SourceWork:
    """A source in progress."""

    def __init__(
        self, record: SourceRecord, job: Job, tools: Tools, records: Records, output: Storage, beat: Beat
    ) -> None:
        self.record, self.job, self.tools, self.output = record, job, tools, output
        self.records, self.settings, self._beat = records, job.settings, beat
        self.seconds: dict[str, float] = defaultdict(float)

    def run(self, path: Path) -> SourceRecord:
        """Process the source at `path`; returns its record."""
        self._beat()
        clips: list[ClipRow] = []
        figures: dict = {}
        try:
            with self._timed("probe"):
                source = probe(path, self.settings.audio_track, self.settings.keep_silent)
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
        with AudioReader(source) as audio:
            samples = self._timed_samples("resample", resample(source))
            if self.settings.runs("shots"):
                samples = self._timed_samples("shots", shots(samples, self.settings.shot_threshold))
            length, is_still = self.settings.segment_frames, source.info.is_still
            for segment in segments(samples, self.record.name, audio, length, is_still):
                rows = done.get(segment.index)
                if rows is None:
                    rows = self._segment(segment, source)
                    self.records.save_part(self.record.sha256, self.job.params, segment.index, rows)
                self._beat()
                yield from rows

    def _segment(self, segment: Segment, source: Source) -> list[ClipRow]:
        if not self.settings.runs("faces"):
            return [self._whole_frames(segment, source)]
        with self._timed("faces"):
            clips = faces(segment, self.settings, self.tools)
        return [self._finish(clip if source.has_audio else replace(clip, wave=None)) for clip in clips]

    def _finish(self, clip: Clip) -> ClipRow:
        """Run the remaining steps until one drops the clip; write a kept clip."""
        for step in self.settings.steps:
            if step in CLIP_STEPS and clip.drop is None:
                with self._timed(step):
                    clip = CLIP_STEPS[step](clip, self.settings, self.tools)
        if clip.drop is not None:
            return ClipRow.of(clip)
        with self._timed("write"), self._scratch_file() as path:
            write_faces(path, clip.kept_faces, clip.wave, self.settings.crf)
            return self._put(path, clip)

    def _whole_frames(self, segment: Segment, source: Source) -> ClipRow:
        """Without the face step: write the frames of the segment unchanged."""
        with self._timed("write"), self._scratch_file() as path:
            with FrameWriter(path, source.info.sample_aspect_ratio, self.settings.crf, source.has_audio) as writer:
                for frame in segment:
                    writer.write(frame)
                writer.finish(segment.audio())
            clip = Clip(segment.source, segment.index, 0, segment.start, None, None, length=segment.num_frames)
            if segment.num_frames < self.settings.min_frames and not segment.is_still:
                too_short = f"{segment.num_frames} frames, {self.settings.min_frames} are needed"
                return ClipRow.of(clip.dropped("segments", too_short))
            return self._put(path, clip)

    def _put(self, path: Path, clip: Clip) -> ClipRow:
        name, info = self._clip_name(clip), probe_clip(path)
        about = {"size": path.stat().st_size, "sha256": digest_of(path), "width": info.width, "height": info.height}
        self.output.put(path, name)
        return replace(ClipRow.of(clip), path=name, **about)

    def _clip_name(self, clip: Clip) -> str:
        """Path in the output folder. The source's hash keeps sources of equal names apart."""
        stem = _plain(PurePosixPath(self.record.name).stem)[:_MAX_STEM]
        number = f"{clip.segment:04d}" + (f"_{clip.person}" if clip.person else "")
        return f"{CLIPS}/{_plain(self.record.person)}/{stem}_{self.record.sha256[:8]}_{number}.mp4"

    @contextmanager
    def _scratch_file(self) -> Iterator[Path]:
        with output_errors(self.job.scratch):
            self.job.scratch.mkdir(parents=True, exist_ok=True)
        path = self.job.scratch / f"{uuid.uuid4().hex}.mp4"
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)

    @contextmanager
    def _timed(self, step: str) -> Iterator[None]:
        """Add the CPU seconds of a step, less those of earlier steps which it pulls its input from."""
        began, before = time.process_time(), sum(self.seconds.values())
        try:
            yield
        finally:
            inner = sum(self.seconds.values()) - before
            self.seconds[step] += time.process_time() - began - inner

    def _timed_samples(self, step: str, samples: Iterator[Sample]) -> Iterator[Sample]:
        """Yield the samples, and add the time that computing them takes."""
        while True:
            with self._timed(step):
                sample = next(samples, None)
            if sample is None:
                return
            if sample.index % self.settings.segment_frames == 0:
                self._beat()
            yield sample


def _plain(text: str) -> str:
    """A portable file name: letters, digits, dots and dashes; underscores for everything else."""
    kept = "".join(letter if letter.isalnum() or letter in ".-_" else "_" for letter in text)
    return kept.encode("utf-8", "replace").decode("utf-8").replace("?", "_").strip(".") or "clip"


def crashed(file: FileStamp, job: Job, reason: str) -> SourceRecord:
    """The record of a source that crashed its worker; the next run retries it."""
    return replace(job.record_of(file), step="worker", reason=reason, is_finished=False)
