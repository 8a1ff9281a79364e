"""The batch sampler of training: which clip each sample comes from, and its random numbers.

There is no random state to save: both are pure functions of the seed and the sample's position in the run, so that a
run that is resumed, or uses another number of processes, sees the same samples.
"""

import random
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

# Keep the three kinds of random numbers apart that share one seed.
ORDER_STREAM, WEIGHT_STREAM, ITEM_STREAM = 1, 2, 3
_MASK = 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15


class SampleId(NamedTuple):
    """One sample: the index of its clip, and its position in the endless stream, which seeds its random numbers."""

    index: int  # type: ignore[assignment]  # hides tuple.index
    key: int


class StepBatchSampler(torch.utils.data.Sampler[list[SampleId]]):
    """Endless batches of sample ids, for `DataLoader(batch_sampler=...)`.

    Batch m of a process holds the keys `(m * world_size + rank) * batch_size + i`, so that all processes together
    see what one process sees with a batch `world_size` times as large. Every `num_items * repeats` keys are an
    epoch: without weights a fresh order of all items; with weights each item comes up as often as its weight says,
    rounded up or down, in a fresh order.

    Args:
        num_items: length of the dataset.
        batch_size: samples of one process in one batch.
        seed: of the whole run; the same in all processes.
        weights: (num_items,) relative weights, not negative, not all zero; None weights all equally.
        rank: of this process.
        world_size: number of processes.
        start: first batch m, the position of a resumed run.
        repeats: consecutive keys that share an item.

    Raises:
        ValueError: a count is out of range, or the weights do not fit.
    """

    def __init__(
        self,
        num_items: int,
        batch_size: int,
        seed: int,
        *,
        weights: Tensor | None = None,
        rank: int = 0,
        world_size: int = 1,
        start: int = 0,
        repeats: int = 1,
    ) -> None:
        if repeats < 1:
            raise ValueError(f"need repeats >= 1, got {repeats}")
        if num_items < 1 or batch_size < 1 or start < 0 or not 0 <= rank < world_size:
            raise ValueError(
                f"need num_items >= 1, batch_size >= 1, start >= 0 and 0 <= rank < world_size, got {num_items}, "
                f"{batch_size}, {start}, {rank} and {world_size}"
            )
        self.num_items, self.batch_size, self.seed = num_items, batch_size, seed
        self.rank, self.world_size, self.start, self.repeats = rank, world_size, start, repeats
        self._bounds = None if weights is None else _cumulative(weights, num_items)
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def __iter__(self) -> Iterator[list[SampleId]]:
        batch = self.start
        while True:
            yield self.batch(batch)
            batch += 1

    def batch(self, number: int) -> list[SampleId]:
        """Batch `number` (m above), independent of earlier batches."""
        first = (number * self.world_size + self.rank) * self.batch_size
        return [SampleId(self.index_of(key), key) for key in range(first, first + self.batch_size)]

    def index_of(self, key: int) -> int:
        """The item of the sample at position `key`."""
        epoch, position = divmod(key // self.repeats, self.num_items)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._order_of(epoch)
        return int(self._order[position])

    def _order_of(self, epoch: int) -> np.ndarray:
        """(num_items,) items of an epoch, in order."""
        order = _generator(ORDER_STREAM, self.seed, epoch).permutation(self.num_items)
        if self._bounds is None:
            return order
        # Systematic sampling: one offset for equally spaced pointers into the cumulative weights.
        offset = _generator(WEIGHT_STREAM, self.seed, epoch).random()
        pointers = (order + offset) / self.num_items
        return np.searchsorted(self._bounds, pointers, side="right")


def item_rng(seed: int, key: int, attempt: int = 0) -> np.random.Generator:
    """The random numbers of the sample at position `key`; `attempt` counts the clips tried in its place."""
    return _generator(ITEM_STREAM, seed, key, attempt)


def mix(*numbers: int) -> int:
    """A well-spread number in [0, 2^63) of all `numbers`, in order (SplitMix64, Steele et al. 2014)."""
    state = 0
    for number in numbers:
        state = (state ^ (number & _MASK)) + _GOLDEN & _MASK
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & _MASK
        state = (state ^ state >> 27) * 0x94D049BB133111EB & _MASK
        state ^= state >> 31
    return state >> 1


def sample_generators(seed: int, keys: Tensor, stream: int = 0) -> list[torch.Generator]:
    """One CPU generator for each sample of a batch, from its key: `keys` (B,) as the batch carries them.

    Draw noise on the CPU and move it: the numbers then do not depend on the device, the batch size or the number of
    processes. `stream` separates different uses.
    """
    return [torch.Generator().manual_seed(mix(seed, stream, key)) for key in keys.tolist()]


def seed_step(seed: int, position: int, rank: int) -> None:
    """Seed the global generators (dropout uses them) for batch `position` of process `rank`."""
    number = mix(seed, position, rank)
    random.seed(number)
    np.random.seed(number & 0xFFFFFFFF)
    torch.manual_seed(number)


def collate(items: list[dict]) -> dict:
    """Items with the same keys -> a batch: tensors stacked, integers as a (B,) LongTensor, the rest as lists.

    A batch that cannot be made is `{"error": str}` and not an exception in a worker, so that the processes can agree
    to skip it: one of the items is an error itself, or tensors differ in shape.
    """
    errors = [item["error"] for item in items if "error" in item]
    if errors:
        return {"error": errors[0]}
    batch: dict[str, Any] = {}
    for name in items[0]:
        values = [item[name] for item in items]
        if isinstance(values[0], Tensor):
            if len({value.shape for value in values}) > 1:
                return {"error": f"{name} differs in shape: {', '.join(str(tuple(value.shape)) for value in values)}"}
            batch[name] = torch.stack(values)
        elif isinstance(values[0], int):
            batch[name] = torch.tensor(values, dtype=torch.long)
        else:
            batch[name] = values
    return batch


def _cumulative(weights: Tensor, num_items: int) -> np.ndarray:
    """(num_items,) cumulative shares, the last one 1."""
    values = weights.detach().cpu().double().numpy()
    if values.shape != (num_items,) or not np.isfinite(values).all() or values.min() < 0 or not values.sum() > 0:
        raise ValueError(f"weights must be {num_items} finite numbers, none negative and not all zero")
    bounds = np.cumsum(values)
    bounds /= bounds[-1]
    # Pointers that rounding puts beyond the end belong to the last item that has a weight.
    bounds[np.flatnonzero(values)[-1] :] = np.inf
    return bounds


def _generator(stream: int, seed: int, *position: int) -> np.random.Generator:
    return np.random.default_rng([stream, seed % 2**64, *position])
