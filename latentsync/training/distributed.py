"""Decisions that several processes must make together: one that raises or skips alone leaves the others waiting."""

import logging
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import (
    DistributedType,
    InitProcessGroupKwargs,
    broadcast_object_list,
    gather_object,
)
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from latentsync.config.sections import Precision, RunSection
from latentsync.utils.errors import UserError

logger = logging.getLogger(__name__)
T = TypeVar("T")
# The others wait while one process saves, or has the longest part of a validation.
TIMEOUT = timedelta(hours=3)
THREADS_SETTLE = 0.1  # seconds until the threads of a finished collective are idle
MIN_UNIT = 1_000_000  # parameters of a block that `shard` gathers by itself


def make_accelerator(run: RunSection) -> Accelerator:
    """Accelerator for the current launch: plain Python, `accelerate launch` or `torchrun`.

    Raises:
        UserError: it does not support the precision or an option.
    """
    precision = choose_precision(run.precision)
    if precision == "fp16" and not torch.accelerator.is_available():
        raise UserError("mixed_precision fp16 needs a GPU; set it to no (or auto), or bf16")
    torch.set_float32_matmul_precision("high" if run.tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = run.tf32
    accelerator = Accelerator(
        mixed_precision=precision,
        gradient_accumulation_steps=run.gradient_accumulation_steps,
        cpu=not torch.accelerator.is_available(),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=TIMEOUT)],
    )
    logging.getLogger("accelerate").setLevel(logging.WARNING)
    if not accelerator.is_main_process:  # the others log the same
        logging.getLogger("latentsync").setLevel(logging.WARNING)
    try:
        _check_sharding(accelerator, run)
    except UserError:
        release(accelerator)
        raise
    return accelerator


def release(accelerator: Accelerator) -> None:
    """End the run: later ones in this Python process may choose another precision.

    With several processes delete the wrapped model first. Dropping the last reference to the process group joins its
    threads. DistributedDataParallel does so while holding the GIL, which such a thread needs to release its last
    collective: a deadlock.
    """
    accelerator.free_memory()
    if accelerator.num_processes > 1:
        time.sleep(THREADS_SETTLE)  # a model that an exception's traceback still holds is dropped after this
        accelerator.end_training()
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def _check_sharding(accelerator: Accelerator, run: RunSection) -> None:
    if accelerator.distributed_type == DistributedType.FSDP:
        raise UserError("set run.fsdp to true instead of choosing FSDP in the launch config; use one of configs/launch")
    if accelerator.distributed_type == DistributedType.DEEPSPEED and (run.ema_decay or run.fsdp):
        raise UserError("ema_decay and fsdp cannot be used with DeepSpeed; set them to 0 and false")
    if run.fsdp and accelerator.mixed_precision == "fp16":
        raise UserError("run.fsdp scales no loss; set mixed_precision to bf16, or mixed_precision_training to false")


def is_sharded(model: nn.Module) -> bool:
    """Whether the processes have shards of a prepared model (FSDP, DeepSpeed) instead of copies."""
    return isinstance(model, FSDPModule) or hasattr(model, "zero_optimization_stage")


def shard(model: nn.Module, accelerator: Accelerator, dtype: torch.dtype) -> None:
    """Split a model over all processes (FSDP2), in place.

    Blocks in lists, from 1 M parameters on, are gathered one by one, the rest together. Weights are gathered in
    `dtype`; they, their gradients and the optimizer's state are kept in float32.
    """
    policy = MixedPrecisionPolicy() if dtype == torch.float32 else MixedPrecisionPolicy(dtype, torch.float32)
    model.to(accelerator.device)
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    for block in (block for blocks in reversed(lists) for block in blocks):  # inner ones first
        if sum(parameter.numel() for parameter in block.parameters()) >= MIN_UNIT:
            fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)


def no_gradient_exchange(accelerator: Accelerator, model: nn.Module) -> AbstractContextManager:
    """Inside it gradients are accumulated in each process."""
    if not isinstance(model, FSDPModule):
        return accelerator.no_sync(model)
    stack = ExitStack()
    model.set_requires_gradient_sync(False)
    stack.callback(model.set_requires_gradient_sync, True)
    return stack


def as_float(norm: Tensor | float | None) -> float:
    """A gradient norm, over all processes if each has a part of it; 0 for None, which DeepSpeed may return."""
    if norm is None:
        return 0.0
    return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)


def any_process(accelerator: Accelerator, *flags: bool, group: dist.ProcessGroup | None = None) -> list[bool]:
    """Each flag: whether it is set in any process. All processes must call this at the same point.

    group: of gloo, to exchange the flags beside the training's own communication.
    """
    if accelerator.num_processes == 1:
        return list(flags)
    device = torch.device("cpu") if group is not None else accelerator.device
    shared = torch.tensor(flags, dtype=torch.int32, device=device)
    dist.all_reduce(shared, op=dist.ReduceOp.MAX, group=group)
    return [bool(flag) for flag in shared.tolist()]


def from_main(accelerator: Accelerator, value: T) -> T:
    """The main process's value, in all of them."""
    if accelerator.num_processes == 1:
        return value
    return broadcast_object_list([value])[0]


def from_all(accelerator: Accelerator, value: T) -> list[T]:
    """The values of all processes, in all of them."""
    return [value] if accelerator.num_processes == 1 else gather_object([value])


def together(accelerator: Accelerator, work: Callable[[], T], *, main_only: bool = False) -> T | None:
    """Run `work` and wait for all: where one process raises UserError, all do.

    With `main_only` the main process works and the others wait; they return None.
    """
    result, failure = None, None
    if accelerator.is_main_process or not main_only:
        try:
            result = work()
        except UserError as error:
            failure = error
    if any_process(accelerator, failure is not None)[0]:
        raise failure or UserError("stopped because another process did; its message says why")
    return result


def choose_precision(wanted: Precision) -> Literal["no", "fp16", "bf16"]:
    """The meaning of `auto` on this machine."""
    if wanted != "auto":
        return wanted
    if not torch.cuda.is_available():
        return "no"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


class _Gather(torch.autograd.Function):
    """All processes' rows in the order of the processes; the gradient of each row goes back to its process."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.count = len(rows)
        gathered = rows.new_empty(dist.get_world_size() * len(rows), *rows.shape[1:])
        dist.all_gather(list(gathered.split(len(rows))), rows.contiguous())
        return gathered

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        first = dist.get_rank() * ctx.count
        return gradient[first : first + ctx.count]


def gather_with_gradient(rows: Tensor) -> Tensor:
    """(B, ...) of each process -> (processes * B, ...), the same everywhere, with gradient.

    A loss of the gathered rows that every process computes alike has, after the usual averaging of the parameters'
    gradients over processes, the gradient that one process with all rows would get.
    """
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return rows
    return _Gather.apply(rows)


def average_gradients(module: nn.Module) -> None:
    """Mean over the processes of the gradients of a module that is not wrapped."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return
    for parameter in module.parameters():
        if parameter.grad is not None:
            dist.all_reduce(parameter.grad)
            parameter.grad /= dist.get_world_size()


def shared_folder(accelerator: Accelerator, folder: Path) -> None:
    """Create a folder in the main process. Raises UserError in all processes when that fails."""

    def create() -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{folder}: cannot be created ({error.strerror}); choose another output folder") from error

    together(accelerator, create, main_only=True)


def load_without_prefix(accelerator: Accelerator) -> None:
    """Weights in checkpoints of earlier versions have the bare model's names, whatever the number of processes."""

    def load(models: list[nn.Module], folder: str) -> None:
        for index, model in enumerate(models):
            models[index] = accelerator.unwrap_model(model)

    accelerator.register_load_state_pre_hook(load)
