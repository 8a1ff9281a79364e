"""Where the runs of frames of a training sample lie in their clip. Pure functions, in frames.

All runs have the same length `run` and lie within a clip of `total` frames.
"""

import numpy as np

GOLDEN_RATIO = 0x9E3779B97F4A7C15  # (sqrt(5) - 1) / 2 in units of 2^-64


def draw_start_and_reference(total: int, run: int, rng: np.random.Generator) -> tuple[int, int]:
    """First frames of a run and of a reference run that does not overlap it.

    Raises:
        ValueError: the clip is shorter than two runs.
    """
    if total < 2 * run:
        raise ValueError(f"{total} frames hold no two runs of {run}")
    starts = np.arange(total - run + 1)
    start = int(rng.choice(starts[(starts >= run) | (starts <= total - 2 * run)]))
    return start, int(rng.choice(starts[np.abs(starts - start) >= run]))


def draw_apart(total: int, run: int, start: int, end: int, rng: np.random.Generator) -> int | None:
    """First frame of a run that does not overlap the frames [start, end); None where there is no room for one."""
    starts = np.arange(total - run + 1)
    apart = starts[(starts >= end) | (starts <= start - run)]
    return int(rng.choice(apart)) if len(apart) else None


def back_and_forth(start: int, end: int, run: int, rng: np.random.Generator) -> np.ndarray:
    """(run,) frames of [start, end), at least two, played forwards and backwards from a random moment on."""
    cycle = np.concatenate([np.arange(start, end), np.arange(end - 2, start, -1)])
    return cycle[(rng.integers(len(cycle)) + np.arange(run)) % len(cycle)]


def spread_start(total: int, run: int, seed: int, key: int) -> int:
    """First frame of a run; neighbouring keys are given starts far from each other (golden-ratio sequence).

    Where one batch draws a clip several times, its windows thus differ as far as the clip is long enough.
    """
    fraction = ((key * GOLDEN_RATIO + seed * GOLDEN_RATIO**2) % 2**64) / 2**64
    return min(int(fraction * (total - run + 1)), total - run)


def draw_shifted(total: int, run: int, start: int, min_shift: int, rng: np.random.Generator) -> int:
    """First frame of another run, at least `min_shift` frames from `start` in either direction.

    Raises:
        ValueError: there is none.
    """
    starts = np.arange(total - run + 1)
    far = starts[np.abs(starts - start) >= min_shift]
    if not len(far):
        raise ValueError(f"no run of {run} in {total} frames is {min_shift} frames from {start}")
    return int(rng.choice(far))
