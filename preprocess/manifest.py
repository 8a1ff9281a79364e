"""Status of every source and clip: a record for each source, from which runs resume, and manifest.csv.

A record is a JSON file named by the hash of its source. While a source is being processed, each finished segment is
stored as a part, and the record replaces all parts. All writes are atomic.
"""

import csv
import io
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field

from latentsync.constants import FPS
from preprocess.clip import Clip, Drop, Figure
from preprocess.storages.base import FileStamp, Storage

MANIFEST = "manifest.csv"
RECORDS = "records"

# First columns of the table; the remaining figures follow in alphabetical order.
COLUMNS = (
    "kind", "source", "person", "segment", "face", "status", "step", "reason", "clip", "start_seconds", "seconds",
    "frames", "clip_width", "clip_height", "clip_sha256", "fps", "width", "height", "source_seconds", "clips_kept",
    "clips_dropped", "sha256", "params",
)  # fmt: skip


@dataclass(frozen=True)
class ClipRow:
    """Status of a clip. path: its file in the output folder, empty for a dropped clip; size, sha256: of that file;
    width, height: of its frames, 0 in records of earlier versions; is_gap: see `Clip`."""

    segment: int
    face: int
    start: float
    frames: int
    figures: dict[str, Figure]
    step: str = ""
    reason: str = ""
    path: str = ""
    size: int = 0
    width: int = 0
    height: int = 0
    sha256: str = ""
    is_gap: bool = False

    @classmethod
    def of(cls, clip: Clip) -> "ClipRow":
        """The row of a clip that is not written yet, or dropped."""
        drop = clip.drop or Drop("", "")
        start, figures = float(clip.start), dict(clip.figures)
        facts = (clip.segment, clip.person, start, clip.num_frames, figures, drop.step, drop.reason)
        return cls(*facts, is_gap=clip.is_gap)

    @property
    def is_kept(self) -> bool:
        return not self.step


@dataclass(frozen=True)
class SourceRecord:
    """Status of a source, processed with given settings.

    Args:
        root, name, size, stamp: identify the file, see `FileStamp`.
        params: digest of the settings.
        step, reason: set for a source that cannot be used.
        is_finished: False for a source to retry in the next run.
        seconds: time spent in each step.
    """

    root: str
    name: str
    size: int
    stamp: str
    person: str
    sha256: str
    params: str
    figures: dict[str, Figure] = field(default_factory=dict)
    clips: list[ClipRow] = field(default_factory=list)
    step: str = ""
    reason: str = ""
    is_finished: bool = True
    seconds: dict[str, float] = field(default_factory=dict)

    def is_of(self, root: str, file: FileStamp) -> bool:
        """Whether it is the record of this file: same path, size and modification time."""
        return (self.root, self.name, self.size, self.stamp) == (root, file.name, file.size, file.stamp)

    def is_settled_by(self, known: "SourceRecord") -> bool:
        """Whether `known`, a record of the same content, holds the clips that this source would give."""
        return known.is_finished and (known.params, known.person) == (self.params, self.person)


class Records:
    """The records and parts in an output folder."""

    def __init__(self, output: Storage) -> None:
        self._output = output

    def load_all(self) -> list[SourceRecord]:
        names = self._output.names(RECORDS)
        records = [self._load(f"{RECORDS}/{name}") for name in names if name.endswith(".json")]
        return [record for record in records if record is not None]

    def load(self, sha256: str) -> SourceRecord | None:
        return self._load(_name(sha256))

    def save(self, record: SourceRecord) -> None:
        """Write a record. Removes its parts, and the clips that only an earlier record of the source had."""
        old = self.load(record.sha256)
        stale = set() if old is None else {clip.path for clip in old.clips}
        parts = self._parts(record.sha256)
        stale |= {clip.path for _, clips in parts.values() for clip in clips}
        self._output.write_text(_name(record.sha256), json.dumps(asdict(record), indent=1))
        for path in stale - {clip.path for clip in record.clips} - {""}:
            self._output.remove(path)
        self._remove_parts(record.sha256, list(parts))

    def forget(self, record: SourceRecord) -> None:
        """Remove a record and its clips."""
        for clip in record.clips:
            if clip.path:
                self._output.remove(clip.path)
        self._output.remove(_name(record.sha256))

    def save_part(self, sha256: str, params: str, segment: int, clips: list[ClipRow]) -> None:
        """Store the clips of a finished segment."""
        content = {"params": params, "clips": [asdict(clip) for clip in clips]}
        self._output.write_text(f"{_folder(sha256)}/{segment:06d}.json", json.dumps(content))

    def finished_parts(self, sha256: str, params: str) -> dict[int, list[ClipRow]]:
        """Clips of each segment that an interrupted run finished with these settings."""
        parts = self._parts(sha256)
        return {
            int(name.removesuffix(".json")): clips
            for name, (made_with, clips) in parts.items()
            if made_with == params and self.has_clips(clips)
        }

    def has_clips(self, clips: Iterable[ClipRow]) -> bool:
        """Whether the files of all kept clips exist with the recorded sizes."""
        return all(self._output.size(clip.path) == clip.size for clip in clips if clip.path)

    def _load(self, name: str) -> SourceRecord | None:
        text = self._output.read_text(name)
        if text is None:
            return None
        try:
            values = json.loads(text)
            return SourceRecord(**values | {"clips": [ClipRow(**clip) for clip in values["clips"]]})
        except (ValueError, TypeError, KeyError):  # of another version, or edited: process the source again
            return None

    def _parts(self, sha256: str) -> dict[str, tuple[str, list[ClipRow]]]:
        parts = {}
        for name in self._output.names(_folder(sha256)):
            text = self._output.read_text(f"{_folder(sha256)}/{name}")
            if text is not None and name.endswith(".json"):
                content = json.loads(text)
                parts[name] = content["params"], [ClipRow(**clip) for clip in content["clips"]]
        return parts

    def _remove_parts(self, sha256: str, names: list[str]) -> None:
        for name in names:
            self._output.remove(f"{_folder(sha256)}/{name}")
        self._output.remove(_folder(sha256))


def manifest_rows(records: Iterable[SourceRecord]) -> list[dict[str, Figure]]:
    """A row for each source, followed by the rows of its clips."""
    rows = []
    for record in sorted(records, key=lambda record: (os.fsencode(record.name), record.root)):
        rows.append(_source_row(record))
        for clip in sorted(record.clips, key=lambda clip: (clip.segment, clip.face)):
            rows.append(_clip_row(record, clip))
    return [{name: _printable(value) for name, value in row.items()} for row in rows]


def write_manifest(output: Storage, records: Iterable[SourceRecord]) -> list[dict[str, Figure]]:
    """Write manifest.csv (UTF-8); returns its rows."""
    rows = manifest_rows(records)
    further = sorted({name for row in rows for name in row} - set(COLUMNS))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, [*COLUMNS, *further], restval="")
    writer.writeheader()
    writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)
    output.write_text(MANIFEST, text.getvalue())
    return rows


def _source_row(record: SourceRecord) -> dict[str, Figure]:
    kept = sum(clip.is_kept for clip in record.clips)
    return record.figures | {
        "kind": "source",
        "source": record.name,
        "person": record.person,
        "status": "dropped" if record.step else "processed",
        "step": record.step,
        "reason": record.reason,
        "clips_kept": kept,
        "clips_dropped": sum(not clip.is_kept and not clip.is_gap for clip in record.clips),
        "sha256": record.sha256,
        "params": record.params,
    }


def _clip_row(record: SourceRecord, clip: ClipRow) -> dict[str, Figure]:
    return (
        record.figures
        | clip.figures
        | {
            "kind": "gap" if clip.is_gap else "clip",
            "source": record.name,
            "person": record.person,
            "segment": clip.segment,
            "face": "" if clip.is_gap else clip.face,
            "status": "kept" if clip.is_kept else "dropped",
            "step": clip.step,
            "reason": clip.reason,
            "clip": clip.path,
            "start_seconds": clip.start,
            "seconds": clip.frames / FPS,
            "frames": clip.frames,
            "clip_width": clip.width,
            "clip_height": clip.height,
            "clip_sha256": clip.sha256,
            "sha256": record.sha256,
            "params": record.params,
        }
    )


def _cell(value: Figure) -> Figure:
    return f"{value:.6g}" if isinstance(value, float) else value


def _printable(value: Figure) -> Figure:
    """Escape bytes that are not UTF-8: file names may be any bytes."""
    return os.fsencode(value).decode("utf-8", "backslashreplace") if isinstance(value, str) else value


def _name(sha256: str) -> str:
    return f"{RECORDS}/{sha256[:32]}.json"


def _folder(sha256: str) -> str:
    return f"{RECORDS}/{sha256[:32]}.parts"
