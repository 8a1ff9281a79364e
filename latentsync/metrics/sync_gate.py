"""Whether a voice belongs to a face: evidence beyond the confidence, for choosing training clips.

Offset and confidence take the best of 31 offsets, so that speech of someone else often finds one that fits by chance.
In a clip that is in sync, each window prefers its own audio to the rest of the clip's audio, and both halves of the
clip have the same offset. The first is a share, which needs no unit and no scale.

Legend: W windows, D width of the embeddings. Sign of offsets: `latentsync.metrics.sync`.
"""

from dataclasses import dataclass

import numpy as np
import torch

from latentsync.metrics.sync import NEGATIVE_GAP, OFFSET_REACH

MIN_PAIRS = 6  # windows of a half that an offset is judged by
AGREEMENT = 1  # frames between the offsets of the halves


@dataclass(frozen=True)
class Evidence:
    """Args:
    preference: share of the pairs of a window and audio elsewhere in the clip, at least 6 frames off, in which the
        audio at the clip's offset is nearer to the window.
    halves: offsets of the first and the second half; None if one has too few windows with audio at the clip's offset.
    """

    preference: float
    halves: tuple[int, int] | None

    @property
    def agrees(self) -> bool:
        """Whether the halves have the same offset; True if they are too short to measure."""
        return self.halves is None or abs(self.halves[0] - self.halves[1]) <= AGREEMENT


def gather(vision: np.ndarray, audio: np.ndarray, offset: int) -> Evidence:
    """Evidence from the embeddings (W, D) of all windows of a clip and the offset found in it."""
    one, other = (torch.as_tensor(side, dtype=torch.float64) for side in (vision, audio))
    distances = torch.cdist(one, other).numpy()
    count = len(distances)
    middle = (count + 1) // 2
    parts = (slice(0, middle), slice(middle, count))
    can_tell = all(len(_rows(count, part, offset)) >= MIN_PAIRS for part in parts)
    first, second = (half_offset(distances, part) for part in parts)
    return Evidence(preference_at(distances, offset), (first, second) if can_tell else None)


def preference_at(distances: np.ndarray, offset: int) -> float:
    """See `Evidence`. distances: (W, W) of windows (rows) and audio; NaN if no pair is far enough apart."""
    count = len(distances)
    rows = _rows(count, slice(0, count), offset)
    own = distances[rows, rows - offset]
    far = np.abs(np.arange(count)[None] - (rows - offset)[:, None]) >= NEGATIVE_GAP
    return float((distances[rows] > own[:, None])[far].mean()) if far.any() else float("nan")


def half_offset(distances: np.ndarray, rows: slice) -> int:
    """The offset with the smallest mean distance over some of the windows, among those with enough pairs."""
    best, found = np.inf, 0
    for offset in range(-OFFSET_REACH, OFFSET_REACH + 1):
        index = _rows(len(distances), rows, offset)
        mean = distances[index, index - offset].mean() if len(index) >= MIN_PAIRS else np.inf
        if mean < best:
            best, found = mean, offset
    return found


def _rows(count: int, part: slice, offset: int) -> np.ndarray:
    """The windows of a part that have audio at an offset, of a clip with `count` windows."""
    return np.arange(max(part.start, offset), min(part.stop, count + offset))
