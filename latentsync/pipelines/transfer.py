"""Copies between host and device that the host does not wait for, and a second stream for the decoder.

On CUDA, the host only queues work: it prepares the next chunk while the device computes. On other devices everything
here happens at once.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a host tensor to the device; to CUDA through pinned memory, without waiting for the copy."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


class Download:
    """A copy of device tensors to the host that may still be running; `wait` ends it."""

    def __init__(self, *tensors: Tensor) -> None:
        self._done: torch.cuda.Event | None = None
        if all(tensor.device.type != "cuda" for tensor in tensors):
            self._host = [tensor.cpu() for tensor in tensors]
            return
        self._host = [torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True) for tensor in tensors]
        for host, tensor in zip(self._host, tensors, strict=True):
            host.copy_(tensor, non_blocking=True)
        self._done = torch.cuda.Event()
        self._done.record(torch.cuda.current_stream(tensors[0].device))  # not that of the current device

    def wait(self) -> list[Tensor]:
        """The tensors on the host."""
        if self._done is not None:
            self._done.synchronize()
        return self._host


class SideStream:
    """A second CUDA stream: work queued on it overlaps with work queued on the main stream afterwards.

    Without `enabled`, and on other devices, there is only the main stream.
    """

    def __init__(self, device: torch.device, enabled: bool = True) -> None:
        self._device = device
        self._stream = _second_stream(device) if enabled and device.type == "cuda" else None

    @contextmanager
    def after(self, *inputs: Tensor) -> Iterator[None]:
        """Queue the block on the side stream, after all that the main stream has been given so far.

        `inputs`: tensors of the main stream that the block reads; their memory is not reused before it has run.
        """
        if self._stream is None:
            yield
            return
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        for tensor in inputs:
            tensor.record_stream(self._stream)
        with torch.cuda.stream(self._stream):
            yield


@cache
def _second_stream(device: torch.device) -> torch.cuda.Stream:
    """One for each device: memory is reused only on the stream that it was allocated on. With a stream for each chunk,
    the decoder would soon hold its memory many times."""
    return torch.cuda.Stream(device)
