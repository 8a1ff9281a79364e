"""The report on each frame: the optional file, and the ranges that were passed through."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TextIO

from latentsync.faces.tracking import NO_FACE
from latentsync.faces.video import NOT_SPEAKING, TrackedFrame
from latentsync.utils.errors import UserError
from latentsync.utils.files import replaced

MAX_RANGES_SHOWN = 5


@dataclass(frozen=True)
class PassedRange:
    """Consecutive frames `start` to `end` (exclusive) that were passed through for the same reason."""

    start: int
    end: int
    reason: str

    def describe(self, fps: Fraction) -> str:
        return f"{float(self.start / fps):.2f}-{float(self.end / fps):.2f} s ({self.reason})"


class FrameLog:
    """Collects the frames that were passed through, and writes a line per frame to a file if one is given.

    Args:
        fps: rate of the generated frames.
        file: receives the report as JSON; see `docs/inference.md`.
    """

    def __init__(self, fps: Fraction, file: TextIO | None = None) -> None:
        self.fps, self.passed = fps, list[PassedRange]()
        self._file = file
        if file is not None:
            file.write(f'{{"fps": {float(fps)}, "frames": [')

    def add(self, people: Sequence[TrackedFrame]) -> None:
        """Add the next frame, as seen by each person's tracker; one who is edited counts, else one who speaks."""
        item = min(people, key=lambda each: (each.face is None, each.seen.passed == NOT_SPEAKING))
        reason = None if item.face is not None else item.seen.passed or NO_FACE
        if reason is not None:
            last = self.passed[-1] if self.passed else None
            if last is not None and last.end == item.index and last.reason == reason:
                self.passed[-1] = PassedRange(last.start, item.index + 1, reason)
            else:
                self.passed.append(PassedRange(item.index, item.index + 1, reason))
        if self._file is not None:
            self._file.write(("," if item.index else "") + "\n" + json.dumps(self._entry(item, reason)))

    def finish(self) -> None:
        """Complete the file."""
        if self._file is not None:
            ranges = [{"from": each.start, "to": each.end, "reason": each.reason} for each in self.passed]
            self._file.write(f'\n], "passed": {json.dumps(ranges)}}}\n')

    def describe(self, total: int) -> str:
        """Frames of `total` that were passed through during speech, in one line; empty if there are none."""
        ranges = [each for each in self.passed if each.reason != NOT_SPEAKING]
        missing = sum(each.end - each.start for each in ranges)
        if not missing:
            return ""
        shown = ", ".join(each.describe(self.fps) for each in ranges[:MAX_RANGES_SHOWN])
        more = len(ranges) - MAX_RANGES_SHOWN
        rest = f" and {more} more (--report lists them)" if more > 0 else ""
        return f"{missing} of {total} frames were copied unchanged: {shown}{rest}"

    def _entry(self, item: TrackedFrame, reason: str | None) -> dict[str, object]:
        box = item.seen.box
        return {
            "frame": item.index,
            "time": round(float(item.index / self.fps), 3),
            "box": None if box is None else [round(float(value), 1) for value in box],
            "confidence": round(item.seen.score, 3),
            "opacity": 0.0 if item.face is None else round(item.face.opacity, 3),
            "passed": reason,
        }


@contextmanager
def open_log(fps: Fraction, path: str | Path | None) -> Iterator[FrameLog]:
    """A `FrameLog`; its file replaces `path` on normal exit.

    Raises:
        UserError: the file cannot be written.
    """
    if path is None:
        yield FrameLog(fps)
        return
    try:
        with replaced(path) as temporary, temporary.open("w", encoding="utf-8") as file:
            log = FrameLog(fps, file)
            yield log
            log.finish()
    except OSError as error:
        raise UserError(f"{path}: the report cannot be written ({error.strerror}); choose another place") from error
