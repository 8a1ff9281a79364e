"""Networks trained beside the model on losses of their own (a discriminator): each with its optimizer."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from latentsync.training.distributed import average_gradients
from latentsync.training.settings import TrainSettings


class Companions:
    """Optimizers of a task's companions. Each is trained on `<name>_loss`, in float32 and whole in every process."""

    def __init__(self, modules: Mapping[str, nn.Module], settings: TrainSettings, device: torch.device) -> None:
        self.modules = dict(modules)
        self.max_grad_norm, self.share = settings.max_grad_norm, 1 / settings.gradient_accumulation_steps
        self.optimizers = {}
        for name, module in self.modules.items():
            module.to(device)
            self.optimizers[name] = torch.optim.AdamW(
                module.parameters(),
                settings.lr,
                betas=settings.betas,
                eps=settings.epsilon,
                weight_decay=settings.weight_decay,
            )
        self._gradients: dict[str, Sequence[Tensor]] = {}

    def backward(self, losses: Mapping[str, Tensor]) -> None:
        """Gradients of one batch. What the model's own loss left in the companions is dropped."""
        for name, module in self.modules.items():
            parameters = list(module.parameters())
            gradients = _gradients(losses[f"{name}_loss"] * self.share, parameters)
            earlier = self._gradients.get(name)
            self._gradients[name] = [a + b for a, b in zip(earlier, gradients, strict=True)] if earlier else gradients

    def step(self, lr: float) -> None:
        """One optimizer step each; a gradient that is not finite (the same in all processes) leaves it out."""
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
        """Forget the gradients gathered so far."""
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
    """Zeros for a batch that has nothing to say to the companion."""
    if not loss.requires_grad:
        return [torch.zeros_like(parameter) for parameter in parameters]
    return torch.autograd.grad(loss, parameters)
