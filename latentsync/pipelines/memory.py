"""How many chunks fit into the memory of a CUDA device."""

from collections.abc import Callable

import torch

MAX_CHUNKS = 8  # more hardly fill a GPU better, and the first frames arrive later
USABLE = 0.8  # of the free memory; the rest is for fragments and other programs


def chunks_that_fit(free: float, one: float, two: float) -> int:
    """Chunks to denoise together, 1 to `MAX_CHUNKS`, with `free` bytes of memory.

    `one`, `two`: bytes that so many chunks need. The difference is that of each further one: the autoencoder, which
    works on a few images at a time, needs the same for any number.
    """
    room, further = USABLE * free - one, two - one
    if further <= 0:
        return MAX_CHUNKS if room >= 0 else 1
    return max(1, min(MAX_CHUNKS, 1 + int(room // further)))


def free_memory(device: torch.device) -> int:
    """Bytes that PyTorch can still allocate on a CUDA device."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def peak_memory(call: Callable[[], object], device: torch.device) -> int:
    """Bytes that a call allocates on a CUDA device at once."""
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before
