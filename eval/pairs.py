"""Lists of clips to evaluate: a CSV with the columns video, audio, id, group.

All but `video` are optional. Without `audio`, the video's own audio drives the result. The `id` is the name of result
files. Results are also summarized by `group`. Paths are relative to the list's folder.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from scipy.io import wavfile

from latentsync.constants import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME
from latentsync.media.audio import load_audio
from latentsync.media.probe import probe_video
from latentsync.media.timeline import available_frames
from latentsync.utils.errors import UserError
from latentsync.utils.tables import Row, read_csv

COLUMNS = ("video", "audio", "id", "group")
SILENT_GROUP = "silent audio"
STILL_FRAMES = 75  # of the silence for an image
MAX_ID = 100  # characters, so that file names have room for a suffix
SAME_AUDIO = 0.95  # correlation of two encodings of one recording; other recordings correlate near 0


@dataclass(frozen=True)
class Pair:
    """A video and the audio that drives it; `audio` is None for the video's own."""

    id: str
    video: Path
    audio: Path | None = None
    group: str = ""

    @property
    def driving_audio(self) -> Path:
        """The file whose audio drives the result."""
        return self.audio or self.video


def read_pairs(path: str | Path) -> list[Pair]:
    """Read a list. Whether the files exist is checked when they are used.

    Raises:
        UserError: the list cannot be read, has unknown columns, a row without a video, or two equal ids.
    """
    path = Path(path)
    names, rows = read_csv(path, COLUMNS)
    if "video" not in names or set(names) - set(COLUMNS):
        found = ", ".join(map(str, names)) or "nothing"
        raise UserError(f"{path}: the first line must name the columns {', '.join(COLUMNS)}; it holds {found}")
    pairs = [_pair(row, number, path) for number, (_, row) in enumerate(rows, 1)]
    if not pairs:
        raise UserError(f"{path}: the list has no rows")
    _refuse_equal_ids(pairs, path)
    return pairs


def silent_pairs(pairs: Sequence[Pair], folder: Path) -> list[Pair]:
    """A pair `<id>_silent` for each video, driven by silence of the video's length, which is written to `folder`.

    Whatever the mouth then does comes from the video, not from the audio (the protocol of LipLeak). Videos that cannot
    be read are left out; evaluation reports them anyway.
    """
    found: dict[Path, Pair] = {}
    for pair in pairs:
        if pair.video in found:
            continue
        try:
            info = probe_video(pair.video)
        except UserError:
            continue
        frames = STILL_FRAMES if info.is_still else available_frames(info, Fraction(FPS))
        audio = folder / f"{pair.id}_silent.wav"
        audio.parent.mkdir(parents=True, exist_ok=True)
        wavfile.write(audio, SAMPLE_RATE, np.zeros(frames * SAMPLES_PER_FRAME, np.int16))
        found[pair.video] = Pair(f"{pair.id}_silent", pair.video, audio, SILENT_GROUP)
    return list(found.values())


def speaks_own_audio(pair: Pair) -> bool:
    """Whether the driving audio is the video's own, so that the video is the ground truth of the result.

    Compares samples, so that a separate file of the same audio counts as well.

    Raises:
        UserError: the audio, or the video, cannot be read.
    """
    if pair.audio is None or pair.audio.resolve() == pair.video.resolve():
        return True
    driving = load_audio(pair.audio, SAMPLE_RATE)
    try:
        own = load_audio(pair.video, SAMPLE_RATE)
    except UserError:  # images and videos without audio
        return False
    return _correlation(driving, own) >= SAME_AUDIO


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    length = min(len(first), len(second))
    first, second = (wave[:length].astype(np.float64) for wave in (first, second))
    scale = np.linalg.norm(first) * np.linalg.norm(second)
    return float(first @ second / scale) if scale else 0.0


def _pair(row: Row, number: int, path: Path) -> Pair:
    values = {name: (row.get(name) or "").strip() for name in COLUMNS}
    if not values["video"] or None in row:
        problem = "has more cells than columns" if None in row else "has no video"
        raise UserError(f"{path}: row {number} {problem}; quote names that contain commas")
    video = path.parent / values["video"]
    audio = path.parent / values["audio"] if values["audio"] else None
    stems = [video.stem, audio.stem] if audio else [video.stem]
    name = values["id"] or _printable("__".join(stems))
    if len(name) > MAX_ID or name.startswith(".") or "/" in name or not name.isprintable():
        raise UserError(f"{path}: row {number}: {name[:40]!r} cannot name files; give an id of up to {MAX_ID} letters")
    return Pair(name, video, audio, values["group"])


def _printable(name: str) -> str:
    return "".join(letter if letter.isprintable() else "_" for letter in name).lstrip(".")[:MAX_ID] or "clip"


def _refuse_equal_ids(pairs: Sequence[Pair], path: Path) -> None:
    seen: set[str] = set()
    for pair in pairs:
        if pair.id in seen:
            raise UserError(f"{path}: two rows have the id {pair.id!r}; give each row one of its own")
        seen.add(pair.id)
