"""A training stage that runs for a budget of wall time, saves often and resumes exactly."""

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from latentsync.utils.files import replaced

logger = logging.getLogger("train")

SAVE_SECONDS = 60.0
LOG_STEPS = 20
WARMUP, FLOOR = 0.02, 0.02  # of the schedule, as shares of the budget and of the learning rate
GRADIENT_NORM = 1.0

T = TypeVar("T")


@dataclass(frozen=True)
class Machine:
    """What a stage runs on.

    Args:
        device: of the networks. On a GPU they run in bfloat16.
        workers: threads that draw samples.
        batch_scale: factor on the batch size of every stage.
    """

    device: torch.device = torch.device("cpu")
    workers: int = 1
    batch_scale: int = 1

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda")

    def draw_ahead(self, draw: Callable[[int], T], numbers: Iterable[int]) -> Iterator[T]:
        """Yield `draw(number)` in order; `workers` threads compute ahead of the consumer."""
        waiting: deque[Future[T]] = deque()
        with ThreadPoolExecutor(self.workers) as pool:
            try:
                for number in numbers:
                    waiting.append(pool.submit(draw, number))
                    if len(waiting) > 2 * self.workers:
                        yield waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()


def cosine_with_warmup(progress: float) -> float:
    """Factor on the learning rate at `progress` in [0, 1]."""
    if progress < WARMUP:
        return max(progress / WARMUP, 1e-2)
    return FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * min((progress - WARMUP) / (1 - WARMUP), 1)))


def random_states(seed: int, step: int) -> tuple[np.random.Generator, torch.Generator]:
    """All random numbers of a step follow from the seed and its number, so a resumed run draws the same ones."""
    return np.random.default_rng([seed, step]), torch.Generator().manual_seed(seed * 1_000_003 + step)


@dataclass
class Stage:
    """The trained modules and their progress.

    Args:
        path: checkpoint file.
        seconds: budget of wall time, over all runs together.
        modules: trained networks, by name. `averaged` names those of which an exponential average is kept.
        optimizers: by name; each has its own learning rate as `initial_lr`.
        decay: of the average.
    """

    path: Path
    seconds: float
    modules: Mapping[str, nn.Module]
    optimizers: Mapping[str, torch.optim.Optimizer]
    averaged: tuple[str, ...] = ()
    decay: float = 0.995
    step: int = 0
    elapsed: float = 0.0
    averages: dict[str, dict[str, Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group.setdefault("initial_lr", group["lr"])
        for name in self.averaged:
            self.averages[name] = {key: value.clone() for key, value in self.modules[name].state_dict().items()}
        if self.path.is_file():
            self._load()

    @property
    def progress(self) -> float:
        return min(self.elapsed / self.seconds, 1.0)

    def steps(self, max_steps: int | None = None) -> Iterator[int]:
        """Numbers of the steps to take, until the budget is spent; saves on the way and at the end."""
        began, before, saved = time.monotonic(), self.elapsed, time.monotonic()
        first = self.step
        while self.elapsed < self.seconds and (max_steps is None or self.step - first < max_steps):
            for optimizer in self.optimizers.values():
                for group in optimizer.param_groups:
                    group["lr"] = group["initial_lr"] * cosine_with_warmup(self.progress)
            yield self.step
            self.step += 1
            self.elapsed = before + time.monotonic() - began
            if time.monotonic() - saved > SAVE_SECONDS:
                self.save()
                saved = time.monotonic()
        self.save()

    def update(self, name: str, loss: Tensor) -> None:
        """One step of an optimizer, and of the averages of the networks it trains."""
        optimizer = self.optimizers[name]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        norm = nn.utils.clip_grad_norm_(parameters, GRADIENT_NORM)
        if torch.isfinite(norm):
            optimizer.step()

    @torch.no_grad()
    def average(self) -> None:
        decay = min(self.decay, (1 + self.step) / (10 + self.step))
        for name, average in self.averages.items():
            for key, value in self.modules[name].state_dict().items():
                if value.is_floating_point():
                    average[key].lerp_(value, 1 - decay)
                else:
                    average[key].copy_(value)

    def averaged_state(self, name: str) -> dict[str, Tensor]:
        return self.averages[name]

    def save(self) -> None:
        state = {
            "modules": {name: module.state_dict() for name, module in self.modules.items()},
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "averages": self.averages,
            "step": self.step,
            "elapsed": self.elapsed,
        }
        with replaced(self.path) as partial:
            torch.save(state, partial)

    def _load(self) -> None:
        state = torch.load(self.path, map_location="cpu", weights_only=True)
        device = next(next(iter(self.modules.values())).parameters()).device
        for name, module in self.modules.items():
            module.load_state_dict(state["modules"][name])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        self.averages = {
            name: {key: value.to(device) for key, value in average.items()}
            for name, average in state["averages"].items()
        }
        self.step, self.elapsed = state["step"], state["elapsed"]
        logger.info("%s: resumed at step %d, %.0f s", self.path, self.step, self.elapsed)


class Meter:
    """Running means of losses, logged every `LOG_STEPS` steps."""

    def __init__(self, stage: Stage) -> None:
        self._stage, self._sums, self._count, self._since = stage, {}, 0, time.monotonic()

    def add(self, **values: float | Tensor) -> None:
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + float(value)
        self._count += 1
        if self._count == LOG_STEPS:
            pace = (time.monotonic() - self._since) / self._count
            text = "  ".join(f"{name} {total / self._count:.4f}" for name, total in self._sums.items())
            logger.info("step %d %3.0f%% %.2f s/step  %s", self._stage.step, 100 * self._stage.progress, pace, text)
            self._sums, self._count, self._since = {}, 0, time.monotonic()
