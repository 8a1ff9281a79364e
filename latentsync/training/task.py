"""What differs between the trainers: a task knows its model, data and losses; the loop does the rest."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset


class Task(Protocol):
    """Something to train.

    Attributes:
        name: short, begins the names of exported files: "unet", "syncnet".
        model: the network to train, built from the seed (equal in all processes), in train mode, on the CPU.
            What has requires_grad is trained. The loop wraps it (precision, processes) and hands it to `step`.
        companions: networks trained beside it by optimizers of their own, a discriminator for instance; {} for none.
            `step` returns `<name>_loss` for each. They are not wrapped: use them as they are in `self.companions`.
            Gradients that "loss" leaves in them are discarded, and are averaged over processes by the loop.
    """

    name: str
    model: nn.Module
    companions: Mapping[str, nn.Module]

    def dataset(self) -> Dataset:
        """Items for `latentsync.data.draws`: `dataset[Draw]` is a pure function of the draw and the seed."""
        ...

    def sample_weights(self) -> Tensor | None:
        """(len(dataset),) how often each clip is drawn, relatively; None for all alike."""
        ...

    def place(self, device: torch.device, dtype: torch.dtype) -> None:
        """Once, before the first step: bring frozen networks to `device`; `dtype` is what they may compute in."""
        ...

    def step(self, model: nn.Module, batch: dict[str, Any], step: int) -> dict[str, Tensor]:
        """Losses of a batch, as scalars by name; "loss" is minimised, the others are logged.

        Tensors of the batch are on the device, but `key` (B,), which seeds what a sample draws, stays on the CPU.
        `model` computes in the run's precision by itself and returns float32; autocast is off around it. The same
        names are returned every time and in every process. Modes, requires_grad and weights are left as they were.
        """
        ...

    def validate(self, model: nn.Module, step: int, folder: Path) -> dict[str, float]:
        """Measures by name; pictures and videos go into `folder`, which exists.

        `model` is not wrapped and in eval mode, without gradients, its weights the averaged ones where there are
        such. Called in the main process alone; in all of them when the model is split over them (FSDP, DeepSpeed):
        it is then the wrapped one, and each process has a folder of its own.
        """
        ...

    def export(self, state_dict: dict[str, Tensor], step: int, path: Path) -> None:
        """Write the weights in the published format, atomically (`save_checkpoint`); in the main process alone.

        `path` ends in .pt; the task may write further files with the same stem. A UserError when it cannot.
        """
        ...

    def advise(self, step: int, means: Mapping[str, float]) -> str | None:
        """Something to tell the user, from the means of the logged values since the last time; seldom anything."""
        ...
