"""Signals that are read slice by slice, so that audio of any length takes little memory. Letters: N samples."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

FADE_SECONDS = 0.02


class Samples(Protocol):
    """A mono signal (N,) float32; a slice without a step is an array."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def ndim(self) -> int: ...
    def __len__(self) -> int: ...
    def __getitem__(self, samples: slice, /) -> np.ndarray: ...


class SlicedSamples:
    """A signal of `length` samples whose slices `_read` gives."""

    ndim = 1

    def __init__(self, length: int) -> None:
        self._length = length

    def __len__(self) -> int:
        return self._length

    @property
    def shape(self) -> tuple[int]:
        return (self._length,)

    def __getitem__(self, samples: slice) -> np.ndarray:
        start, stop, step = samples.indices(self._length)
        if step != 1:
            raise ValueError("these samples are read without a step")
        return self._read(start, max(start, stop))

    def _read(self, start: int, stop: int) -> np.ndarray:
        raise NotImplementedError


class PlacedSamples(SlicedSamples):
    """Signals at their places in silence of `length` samples. Samples beyond the end are left out.

    parts: (first sample, signal), which must not overlap.
    """

    def __init__(self, parts: Sequence[tuple[int, Samples | np.ndarray]], length: int) -> None:
        super().__init__(length)
        self._parts = list(parts)

    def _read(self, start: int, stop: int) -> np.ndarray:
        samples = np.zeros(stop - start, np.float32)
        for first, part in self._parts:
            low, high = max(start, first), min(stop, first + len(part))
            if low < high:
                samples[low - start : high - start] = part[low - first : high - first]
        return samples


class GatedSamples(SlicedSamples):
    """A signal that is exactly 0 outside the intervals [start, end), which are faded in and out in 20 ms within."""

    def __init__(self, samples: Samples | np.ndarray, intervals: Sequence[tuple[int, int]], rate: int) -> None:
        super().__init__(len(samples))
        self._samples, self._intervals = samples, list(intervals)
        self._fade = round(FADE_SECONDS * rate)

    def _read(self, start: int, stop: int) -> np.ndarray:
        gate = np.zeros(stop - start, np.float32)
        for first, end in self._intervals:
            low, high = max(start, first), min(stop, end)
            if low < high:
                position = np.arange(low, high)
                into = np.ones(high - low) if first == 0 else (position - first + 1) / self._fade
                out = np.ones(high - low) if end >= len(self) else (end - position) / self._fade
                gate[low - start : high - start] = np.minimum(np.minimum(into, out), 1)
        return gate * self._samples[start:stop]
