"""Compiled parts of networks, which run uncompiled if the compiler fails or the caller requests it."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from latentsync.utils.errors import one_line

logger = logging.getLogger(__name__)

MAX_REASON = 200  # characters
GRAPH_MODES = ("reduce-overhead", "max-autotune")  # modes of the compiler that use CUDA graphs
_eager: ContextVar[bool] = ContextVar("eager", default=False)


class Compiled:
    """A compiled function. If the compiler fails, it says so once, and the function runs as it is from then on.

    Args:
        function: of tensors; its module keeps its name in the state dict.
        options: see `torch.compile`. Shapes are static: another shape is compiled anew. Results of modes with CUDA
            graphs are copied, since a graph writes to the same memory each time.
    """

    def __init__(self, function: Callable[..., Any], **options: Any) -> None:
        self._function, self._uses_graphs = function, options.get("mode") in GRAPH_MODES
        self._compiled: Callable[..., Any] | None = torch.compile(function, **{"dynamic": False, **options})

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        if self._compiled is None or _eager.get():
            return self._function(*arguments, **keywords)
        from torch._dynamo.exc import TorchDynamoException  # takes a second to import

        try:
            result = self._compiled(*arguments, **keywords)
            return tree_map_only(Tensor, Tensor.clone, result) if self._uses_graphs else result
        except TorchDynamoException as error:
            reason = one_line(error).strip()[:MAX_REASON]
            logger.warning("torch.compile failed, continuing without it: %s", reason)
            self._compiled = None
            return self._function(*arguments, **keywords)


def use_channels_last(module: nn.Module) -> None:
    """Store the weights of convolutions as feature maps are: else every convolution would rearrange its own."""
    untyped: Any = module  # PyTorch's annotation of `to` lacks the argument
    untyped.to(memory_format=torch.channels_last)


def compile_module(module: nn.Module, **options: Any) -> None:
    """Like `module.compile()`, with the fallback of `Compiled`."""
    module._compiled_call_impl = Compiled(module._call_impl, **options)


@contextmanager
def run_eagerly() -> Iterator[None]:
    """Run compiled functions uncompiled in this thread: for shapes that occur once, which are not worth compiling."""
    token = _eager.set(True)
    try:
        yield
    finally:
        _eager.reset(token)
