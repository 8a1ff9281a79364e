"""How many chunks fit into the memory of a CUDA device."""

from collections.abc import Callable

import torch

MAX_CHUNKS = 8  # more hardly fill a GPU better, and the first frames arrive later
USABLE = 0.8  # of the free memory; the rest is for fragments and other programs


def chunks_that_fit(free: float, per_chunk: float) -> int:
    """Chunks to denoise together, with so many bytes of free memory and so many for a chunk: 1 to `MAX_CHUNKS`."""
    return MAX_CHUNKS if per_chunk <= 0 else max(1, min(MAX_CHUNKS, int(USABLE * free / per_chunk)))


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
