"""Lists of what is evaluated: a CSV with the columns video, audio, id.

`audio` and `id` may be left out. Without an audio the video's own sound is spoken; relative paths start at the list's
own folder. The id names the files made from a pair.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from latentsync.media.audio import load_audio
from latentsync.utils.errors import UserError

SAMPLE_RATE = 16000
COLUMNS = ("video", "audio", "id")
MAX_ID = 100  # characters: file names have room for more after it
SAME_SOUND = 0.95  # correlation of two encodings of one recording; other voices correlate near 0


@dataclass(frozen=True)
class Pair:
    """A video and the voice it is to speak; `audio` is None where that is its own sound."""

    id: str
    video: Path
    audio: Path | None = None

    @property
    def voice(self) -> Path:
        """The file whose sound is spoken."""
        return self.audio or self.video


def read_pairs(path: str | Path) -> list[Pair]:
    """All rows of a list, in its order. Whether the files are there is found out when each is used.

    Raises:
        UserError: the list cannot be read, lacks the video column, has a row without a video, or two equal ids.
    """
    path = Path(path)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            names, rows = reader.fieldnames, list(reader)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such list; write a CSV with the columns {', '.join(COLUMNS)}") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as a CSV file in UTF-8 ({error})") from error
    if "video" not in (names or ()) or set(names) - set(COLUMNS):
        found = ", ".join(map(str, names or ())) or "nothing"
        raise UserError(f"{path}: the first line must name the columns {', '.join(COLUMNS)}; it holds {found}")
    pairs = [_pair(row, number, path) for number, row in enumerate(rows, 1)]
    if not pairs:
        raise UserError(f"{path}: the list has no rows")
    _refuse_equal_ids(pairs, path)
    return pairs


def speaks_own_voice(pair: Pair) -> bool:
    """Whether the voice is the video's own sound, so that the result can be held against the video frame by frame.

    Told by the samples, so that a separate file of the same sound counts as well.

    Raises:
        UserError: the voice, or the video, cannot be read.
    """
    if pair.audio is None or pair.audio.resolve() == pair.video.resolve():
        return True
    voice = load_audio(pair.audio, SAMPLE_RATE)
    try:
        own = load_audio(pair.video, SAMPLE_RATE)
    except UserError:  # silent videos and pictures have no voice of their own
        return False
    return _correlation(voice, own) >= SAME_SOUND


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    length = min(len(first), len(second))
    first, second = (wave[:length].astype(np.float64) for wave in (first, second))
    scale = np.linalg.norm(first) * np.linalg.norm(second)
    return float(first @ second / scale) if scale else 0.0


def _pair(row: dict[str, str | None], number: int, path: Path) -> Pair:
    values = {name: (row.get(name) or "").strip() for name in COLUMNS}
    if not values["video"] or None in row:
        problem = "has more cells than columns" if None in row else "has no video"
        raise UserError(f"{path}: row {number} {problem}; put names that hold commas in quotes")
    video = path.parent / values["video"]
    audio = path.parent / values["audio"] if values["audio"] else None
    stems = [video.stem, audio.stem] if audio else [video.stem]
    name = values["id"] or _printable("__".join(stems))
    if len(name) > MAX_ID or name.startswith(".") or "/" in name or not name.isprintable():
        raise UserError(f"{path}: row {number}: {name[:40]!r} cannot name files; give an id of up to {MAX_ID} letters")
    return Pair(name, video, audio)


def _printable(name: str) -> str:
    return "".join(letter if letter.isprintable() else "_" for letter in name).lstrip(".")[:MAX_ID] or "clip"


def _refuse_equal_ids(pairs: Sequence[Pair], path: Path) -> None:
    seen: set[str] = set()
    for pair in pairs:
        if pair.id in seen:
            raise UserError(f"{path}: two rows have the id {pair.id!r}; give each row one of its own")
        seen.add(pair.id)
