"""Averaged weights: smoother than the newest ones, for validation and export."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class AveragedWeights:
    """Exponential moving average, in float32, of the parameters that are trained.

    The decay grows to its final value as 1 - (1 + step)^(-3/4), so that the random start is soon forgotten.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.average = {name: p.detach().float().clone() for name, p in self.parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After optimizer step number `step` (from 1)."""
        decay = min(self.decay, 1 - (1 + step) ** -0.75)
        for name, parameter in self.parameters.items():
            self.average[name].lerp_(parameter.float(), 1 - decay)

    @contextmanager
    @torch.no_grad()
    def in_place(self) -> Iterator[None]:
        """The model has the averaged weights within."""
        kept = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}
        try:
            for name, parameter in self.parameters.items():
                parameter.copy_(self.average[name])
            yield
        finally:
            for name, parameter in self.parameters.items():
                parameter.copy_(kept[name])

    def state_dict(self) -> dict[str, Tensor]:
        return {name: tensor.cpu() for name, tensor in self.average.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Raises KeyError when the model trains other parameters than the one that was saved."""
        for name, average in self.average.items():
            average.copy_(state[name])
