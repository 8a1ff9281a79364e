"""Device memory of inference with the full-size models, computed: `python -m tools.inference_memory`.

The networks run on the meta device, where tensors have a size and no content; their live bytes are added. Not counted:
the CUDA context, workspaces of cuDNN, and fragmentation of the allocator, a gigabyte or more together.
"""

import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from latentsync.models.storage import store_in_fp8
from latentsync.options import Weights
from tools.benchmarks.full_size import AUDIO_TOKENS, FULL_SIZE, Layout, meta_networks

FRAMES = 16
GIB = 2**30
# Chunks denoised together, samples of the UNet for each, whether the autoencoder works in slices and tiles, and how the
# weights of the UNet are stored.
SETTINGS: dict[str, tuple[int, int, bool, Weights]] = {
    "default": (1, 2, False, "full"),
    "without guidance, `realtime`": (1, 1, False, "full"),
    "`--chunk_batch_size 4`": (4, 2, False, "full"),
    "`--vram_efficient`": (1, 1, True, "full"),
    "`--vram_efficient --weights fp8`": (1, 1, True, "fp8"),
    "`--vram_efficient --weights host`": (1, 1, True, "host"),
}
LAYERS_ON_DEVICE = 2  # with weights on the host: the one that runs and the next


class LiveBytes(TorchDispatchMode):
    """Peak of the bytes of tensors made inside the block that live at the same time."""

    def __init__(self, *modules: torch.nn.Module) -> None:
        """`modules`: their weights are not counted, but their replacements are."""
        super().__init__()
        self.peak = self._live = 0
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()
        for module in modules:
            for tensor in (*module.parameters(), *module.buffers()):
                self._add(tensor.untyped_storage(), is_view=False)
        self._live = self.peak = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        inputs = {id(tensor.untyped_storage()) for tensor in tree_leaves(args) if isinstance(tensor, Tensor)}
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.device.type == "meta":
                self._add(tensor.untyped_storage(), is_view=id(tensor.untyped_storage()) in inputs)
        return result

    def _add(self, storage: Any, is_view: bool) -> None:
        if is_view or storage in self._known:
            return
        self._known.add(storage)
        self._live += storage.nbytes()
        self.peak = max(self.peak, self._live)
        weakref.finalize(storage, self._remove, storage.nbytes())

    def _remove(self, size: int) -> None:
        self._live -= size


@contextmanager
def fused_attention() -> Iterator[None]:
    """Attention makes nothing but its result, as in the kernels of a GPU."""
    functional: Any = F
    before = functional.scaled_dot_product_attention
    functional.scaled_dot_product_attention = lambda query, *_, **__: torch.empty_like(query)
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = before


@torch.no_grad()
def peak_of(call: Callable[[], Tensor], *modules: torch.nn.Module) -> float:
    """GiB that a call needs at once, besides the weights."""
    with fused_attention(), LiveBytes(*modules) as live:
        call()
    return live.peak / GIB


def peaks(
    layout: Layout, chunks: int, samples: int, vram_efficient: bool, stored: Weights = "full"
) -> dict[str, float]:
    """GiB in float16: weights, a step of the UNet, encoder, decoder, and together.

    The decoder has a stream of its own, whose memory the others cannot use; not with `vram_efficient`.
    """
    unet, codec = (network.half() for network in meta_networks(layout))
    if vram_efficient:
        codec.enable_slicing()
        codec.enable_tiling()
    if stored == "fp8":
        store_in_fp8(unet)
    cells, side = layout.resolution // codec.factor, layout.resolution
    kind: dict[str, Any] = {"device": "meta", "dtype": torch.float16}
    sample = torch.empty(chunks * samples, unet.config.in_channels, FRAMES, cells, cells, **kind)
    tokens = torch.empty(chunks * samples, FRAMES, AUDIO_TOKENS, unet.config.cross_attention_dim, **kind)
    pixels = torch.empty(chunks * FRAMES, 3, side, side, **kind)
    latents = torch.empty(chunks * FRAMES, codec.channels, cells, cells, **kind)
    timestep = torch.zeros((), device="meta")
    weights = _bytes(codec) + (_largest_layers(unet) if stored == "host" else _bytes(unet))
    found = {
        "weights": weights / GIB,
        "UNet": peak_of(lambda: unet(sample, timestep, tokens).sample, unet),
        "encoder": peak_of(lambda: codec.encode(pixels), codec),
        "decoder": peak_of(lambda: codec.decode(latents), codec),
    }
    main_stream = max(found["UNet"], found["encoder"])
    decoder = found["decoder"]
    both = max(main_stream, decoder) if vram_efficient else main_stream + decoder
    return {**found, "together": found["weights"] + both}


def _bytes(module: torch.nn.Module) -> int:
    return sum(weight.nbytes for weight in module.parameters())


def _largest_layers(unet: torch.nn.Module) -> int:
    """Bytes of the layers that are on the device at the same time, if they are the largest ones."""
    sizes = sorted(_bytes(layer) for layer in unet.modules() if not list(layer.children()))
    return sum(sizes[-LAYERS_ON_DEVICE:])


def main() -> int:
    print("| faces | options | weights | UNet | encoder | decoder | together |\n|---|---|---|---|---|---|---|")
    for side, layout in FULL_SIZE.items():
        for name, settings in SETTINGS.items():
            figures = " | ".join(f"{value:.2f}" for value in peaks(layout, *settings).values())
            print(f"| {side} px | {name} | {figures} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
