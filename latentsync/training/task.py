"""The interface between a trainer and the loop: a task defines model, data and losses."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

T = TypeVar("T")
# An export, its step and a folder for videos -> metrics by name. A function of a module, or a `partial` of one: it is
# sent to another process.
ValidateExport = Callable[[Path, int, Path], Mapping[str, float]]


@dataclass(frozen=True)
class Share:
    """The part of a validation that one process does: every `count`-th item, from `index` on."""

    index: int = 0
    count: int = 1

    def of(self, items: Sequence[T]) -> Sequence[T]:
        return items[self.index :: self.count]


class Task(Protocol):
    """Something to train.

    Attributes:
        name: short, begins the names of exported files: "unet", "syncnet".
        model: the network to train, built from the seed (equal in all processes), in train mode, on the CPU.
            Parameters with requires_grad are trained. The loop wraps it (precision, processes) and passes it to `step`.
        discriminators: networks trained beside it by optimizers of their own; {} for none. `step` returns
            `<name>_loss` for each. They are not wrapped: use them as they are in `self.discriminators`.
            Gradients of "loss" in them are discarded; their own are averaged over processes by the loop.
        validate_export: validates exports in a process of its own in place of `validate`; None for `validate`.
    """

    name: str

    model: nn.Module

    @property
    def discriminators(self) -> Mapping[str, nn.Module]: ...

    @property
    def validate_export(self) -> ValidateExport | None: ...

    def dataset(self) -> Dataset:
        """Items for `latentsync.data.sampler`: `dataset[SampleId]` is a pure function of the id and the seed."""
        ...

    def sample_weights(self) -> Tensor | None:
        """(len(dataset),) relative sampling weights of the clips; None for uniform sampling."""
        ...

    def place(self, device: torch.device, dtype: torch.dtype) -> None:
        """Called once before the first step: move frozen networks to `device`; they may compute in `dtype`."""
        ...

    def step(self, model: nn.Module, batch: dict[str, Any], step: int) -> dict[str, Tensor]:
        """Losses of a batch, as scalars by name; "loss" is minimized, the others are logged.

        Tensors of the batch are on the device, but `key` (B,), the seed of each sample, stays on the CPU.
        `model` computes in the run's precision by itself and returns float32; autocast is off around it. The same
        names are returned every time and in every process. Modes, requires_grad and weights are not changed.
        """
        ...

    def validate(self, model: nn.Module, step: int, folder: Path, share: Share) -> dict[str, list[float]]:
        """Values of this process's share by name; a metric is the mean of the values of all processes.

        `model` is not wrapped and in eval mode, without gradients, with the averaged weights where there are any.
        Images and videos go into `folder`, which exists. Called in all processes. When the model is split over them
        (FSDP, DeepSpeed), `model` is the wrapped one, and each process does the whole in a folder of its own.
        """
        ...

    def export(self, state_dict: dict[str, Tensor], step: int, path: Path) -> None:
        """Write the weights in the published format, atomically (`save_checkpoint`); in the main process alone.

        `path` ends in .pt; the task may write further files with the same stem. A UserError when it cannot.
        """
        ...

    def advise(self, step: int, means: Mapping[str, float]) -> str | None:
        """A warning for the user, from the means of the values logged since the last call; usually None."""
        ...
