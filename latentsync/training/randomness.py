"""Random numbers as functions of the seed and the position in the run: there is no state to save."""

import random

import numpy as np
import torch
from torch import Tensor

_MASK = 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15


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
