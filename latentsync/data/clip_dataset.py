"""Base of the datasets: retries for unreadable clips, weights of people, and the choice of windows within a clip.

A window is a sequence of frames. All windows of a dataset have the same `length`, in clips of `total` frames.
"""

import logging
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from latentsync.data.cache import CacheWriteError
from latentsync.data.clips import Clip, column
from latentsync.data.sampler import SampleId, item_rng
from latentsync.utils.errors import UserError

logger = logging.getLogger(__name__)

MAX_TRIES = 8
GOLDEN_RATIO = 0x9E3779B97F4A7C15  # (sqrt(5) - 1) / 2 in units of 2^-64


class ClipDataset(torch.utils.data.Dataset):
    """Map-style dataset over clips. Subclasses make a sample from a clip (`make_item`).

    Items are indexed by a `SampleId`, or by an integer i, short for `SampleId(i, i)`. An item is a pure function of
    (seed, key). If its clip cannot be read, another one is tried, at most 8 clips in all; those that failed are named
    in warnings and in the item's `failed_paths`.

    Use `latentsync.data.sampler.collate` as the `collate_fn` of a DataLoader: it returns `{"error": str}` for a batch
    with an unreadable sample.
    """

    def __init__(self, clips: Sequence[Clip], seed: int) -> None:
        if not clips:
            raise UserError("there are no clips to train on; give a file list that is not empty")
        self.clips, self.seed = clips, seed

    def make_item(self, clip: Clip, key: int, rng: np.random.Generator) -> dict:
        """A sample of `clip`, a pure function of (seed, key) and `rng`. Raises UserError when it cannot be read."""
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self.clips)

    def person_weights(self) -> Tensor:
        """(number of clips,) sampling weights: a person weighs the square root of their number of clips."""
        people = column(self.clips, "person")
        _, person, counts = np.unique(people, return_inverse=True, return_counts=True)
        return torch.from_numpy(counts[person] ** -0.5)

    def __getitem__(self, item: int | SampleId) -> dict:
        """The sample; `key`, `video_path` and `failed_paths` beside the keys of `make_item`.

        Raises:
            UserError: 8 clips, or all there are, cannot be read; or a cache cannot be written.
            IndexError: the index is beyond the clips.
        """
        sample = item if isinstance(item, SampleId) else SampleId(item, item)
        tried, failed = [sample.index], list[str]()
        while True:
            clip, rng = self.clips[tried[-1]], item_rng(self.seed, sample.key, len(failed))
            try:
                made = self.make_item(clip, sample.key, rng)
            except CacheWriteError:
                raise
            except UserError as error:
                logger.warning("clip %s cannot be used: %s", clip.name, error)
                failed.append(clip.name)
                others = np.setdiff1d(np.arange(len(self.clips)), tried)
                if len(failed) == MAX_TRIES or not len(others):
                    names = ", ".join(failed)
                    raise UserError(f"{len(failed)} clips tried, none can be used: {names}; last: {error}") from error
                tried.append(int(rng.choice(others)))
            else:
                return {**made, "key": sample.key, "video_path": clip.name, "failed_paths": failed}

    def __getitems__(self, items: Sequence[int | SampleId]) -> list[dict]:
        """Samples of a batch for a DataLoader, or one `{"error": str}` where one of them cannot be made."""
        try:
            return [self[item] for item in items]
        except UserError as error:
            return [{"error": str(error)}]


def draw_start_and_reference(total: int, length: int, rng: np.random.Generator) -> tuple[int, int]:
    """First frames of a window and of a reference window that does not overlap it.

    Raises:
        ValueError: the clip is shorter than two windows.
    """
    if total < 2 * length:
        raise ValueError(f"{total} frames hold no two windows of {length}")
    starts = np.arange(total - length + 1)
    start = int(rng.choice(starts[(starts >= length) | (starts <= total - 2 * length)]))
    return start, int(rng.choice(starts[np.abs(starts - start) >= length]))


def spread_start(total: int, length: int, seed: int, key: int) -> int:
    """First frame of a window; consecutive keys get starts far from each other (golden-ratio sequence).

    Several windows of a clip in one batch are thus as different as its length allows.
    """
    fraction = ((key * GOLDEN_RATIO + seed * GOLDEN_RATIO**2) % 2**64) / 2**64
    return min(int(fraction * (total - length + 1)), total - length)


def draw_shifted(total: int, length: int, start: int, min_shift: int, rng: np.random.Generator) -> int:
    """First frame of another window, at least `min_shift` frames from `start` in either direction.

    Raises:
        ValueError: there is none.
    """
    starts = np.arange(total - length + 1)
    far = starts[np.abs(starts - start) >= min_shift]
    if not len(far):
        raise ValueError(f"no window of {length} in {total} frames is {min_shift} frames from {start}")
    return int(rng.choice(far))
