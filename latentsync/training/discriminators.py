"""Discriminators: networks trained beside the model on losses of their own, each with its own optimizer."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from latentsync.config.sections import TrainingConfig
from latentsync.training.distributed import average_gradients


class Discriminators:
    """Optimizers of a task's discriminators. Each is trained on `<name>_loss` in float32, a copy in every process."""

    def __init__(self, modules: Mapping[str, nn.Module], config: TrainingConfig, device: torch.device) -> None:
        self.modules = dict(modules)
        self.max_grad_norm = config.optimizer.max_grad_norm
        self.share = 1 / config.run.gradient_accumulation_steps
        self.optimizers = {}
        for name, module in self.modules.items():
            module.to(device)
            parameters, optimizer = module.parameters(), config.optimizer
            self.optimizers[name] = torch.optim.AdamW(parameters, optimizer.lr, **optimizer.adamw)
        self._gradients: dict[str, Sequence[Tensor]] = {}

    def backward(self, losses: Mapping[str, Tensor]) -> None:
        """Add the gradients of one batch. Gradients that the model's own loss left in the modules are discarded."""
        for name, module in self.modules.items():
            parameters = list(module.parameters())
            gradients = _gradients(losses[f"{name}_loss"] * self.share, parameters)
            earlier = self._gradients.get(name)
            self._gradients[name] = [a + b for a, b in zip(earlier, gradients, strict=True)] if earlier else gradients

    def step(self, lr: float) -> None:
        """One optimizer step each; skipped where a gradient is not finite (the same in all processes)."""
        for name, module in self.modules.items():
            for parameter, gradient in zip(module.parameters(), self._gradients[name], strict=True):
                parameter.grad = gradient.clone()
            average_gradients(module)
            norm = nn.utils.clip_grad_norm_(module.parameters(), self.max_grad_norm)
            if torch.isfinite(norm):
                for group in self.optimizers[name].param_groups:
                    group["lr"] = lr
                self.optimizers[name].step()
        self.drop()

    def drop(self) -> None:
        """Discard the gradients accumulated so far."""
        self._gradients = {}
        for module in self.modules.values():
            module.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, dict]:
        return {
            name: {"module": module.state_dict(), "optimizer": self.optimizers[name].state_dict()}
            for name, module in self.modules.items()
        }

    def load_state_dict(self, state: dict[str, dict]) -> None:
        for name, module in self.modules.items():
            module.load_state_dict(state[name]["module"])
            self.optimizers[name].load_state_dict(state[name]["optimizer"])


def _gradients(loss: Tensor, parameters: list[nn.Parameter]) -> Sequence[Tensor]:
    """Gradients of a loss; zeros for a batch in which no sample counts."""
    if not loss.requires_grad:
        return [torch.zeros_like(parameter) for parameter in parameters]
    return torch.autograd.grad(loss, parameters)
