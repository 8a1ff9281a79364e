"""Seams between chunks: change of the mouth where one chunk follows another, relative to the change inside chunks.

Models that generate a video in chunks of fixed length may jump between them. In a real clip the ratios are about 1: its
motion does not know where chunks begin.

Legend: T frames, F frames of a part of a clip, P landmarks.
"""

import math

import numpy as np


def seam_ratio(changes: np.ndarray, starts: np.ndarray, chunk: int, overlap: int = 0) -> float:
    """Mean change at seams over mean change inside; NaN without either, or without any change.

    Args:
        changes: (T,) change from the previous frame to this one; NaN where there is none to compare with.
        starts: (T,) True at the start and after a cut or a gap, where chunks are counted anew.
        chunk: frames of a chunk.
        overlap: frames that a chunk shares with the next one; these and the step after them count as the seam.
    """
    index = np.arange(len(changes))
    first = np.maximum.accumulate(np.where(starts, index, 0))
    known = np.isfinite(changes)
    place, step = index - first, chunk - overlap
    at_seam = (place >= step) & (place % step <= overlap)
    seams, inside = changes[known & at_seam], changes[known & ~at_seam & (index > first)]
    if not len(seams) or not len(inside) or inside.mean() == 0:
        return math.nan
    return float(seams.mean() / inside.mean())


class Speed:
    """Mean motion of landmarks from frame to frame, in pixels. `indices`: landmarks to use."""

    def __init__(self, indices: list[int]) -> None:
        self._indices = indices
        self._last: np.ndarray | None = None

    def update(self, points: np.ndarray) -> np.ndarray:
        """Add the next landmarks (F, 468, 2); returns their motion since the previous frame, (F,), NaN without it."""
        chosen = points[:, self._indices]
        before = np.full_like(chosen[:1], np.nan) if self._last is None else self._last
        self._last = chosen[-1:]
        steps = np.diff(np.concatenate([before, chosen]), axis=0)
        return np.linalg.norm(steps, axis=-1).mean(axis=1)
