"""Mouth openings of training clips, measured once. Legend: T frames of a clip."""

from pathlib import Path

import numpy as np
import torch

from latentsync.data.cache import fetch, file_digest, store
from latentsync.data.clips import Clip, read_frames
from latentsync.faces.mouth import MouthMeter


class MouthOpenings:
    """Measures clips of aligned faces, and keeps what it found in `cache_dir`. Called with a clip it returns (T,)
    float64, see `MouthMeter.openings`.

    Args:
        cache_dir: where the entries go; made if need be.
        fps: frames a second that clips must have.

    Raises:
        UserError: a clip cannot be read, or its entry cannot be written (at the call).
    """

    def __init__(self, cache_dir: str | Path, fps: float = 25.0) -> None:
        self.cache_dir, self.fps = Path(cache_dir), fps
        self._meter: MouthMeter | None = None  # made when first needed: where all is known, no network is loaded

    def __call__(self, clip: Clip) -> np.ndarray:
        entry = self.cache_dir / f"{file_digest(clip.path)}_openings.safetensors"
        known = fetch(entry)
        if known is None:
            self._meter = self._meter or MouthMeter()
            known = {"openings": torch.from_numpy(self._meter.openings(read_frames(clip.path, fps=self.fps)))}
            store(entry, known)
        return known["openings"].numpy()

    def close(self) -> None:
        """Release the network."""
        if self._meter is not None:
            self._meter.close()
