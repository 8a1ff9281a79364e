"""UNet and autoencoder of the full-size model alone, one way of running them after another.

Nothing else of the project is run, so that it needs neither a video decoder nor a face detector. The first figures tell
which attention kernel, memory format and mode of the compiler to choose; `gpu` measures the whole command.
"""

import gc
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from latentsync.models.compiled import use_channels_last
from latentsync.models.unet import UNet3DConditionModel
from latentsync.models.vae import LatentCodec
from latentsync.utils.errors import one_line
from tools.benchmarks import COMPILED, EAGER
from tools.benchmarks.full_size import AUDIO_TOKENS, FULL_SIZE, Layout, random_networks, share_of_peak, tiny
from tools.benchmarks.report import Figure, Journal

FRAMES = 16
REPEATS = 5
MAX_ERROR = 120  # characters
GUIDED, PLAIN = 2, 1  # samples of a step on one chunk


@dataclass(frozen=True)
class Way:
    """A way of running the networks.

    Args:
        samples: chunks, or halves of guided ones, in a step of the UNet.
        attention: the only attention kernel allowed; None lets PyTorch choose.
        compiled: options of `torch.compile`; None for eager.
        channels_last: memory format of the weights.
    """

    name: str
    samples: int = GUIDED
    attention: SDPBackend | None = None
    compiled: dict[str, Any] | None = None
    channels_last: bool = True
    networks: tuple[str, ...] = ("unet",)

    @property
    def mode(self) -> str:
        return EAGER if self.compiled is None else COMPILED


BOTH = ("unet", "autoencoder")
WAYS = (
    Way("eager", networks=BOTH),
    Way("eager, no guidance", PLAIN),
    Way("eager, four chunks", 4 * GUIDED),
    Way("eager, contiguous weights", channels_last=False, networks=BOTH),
    Way("eager, flash attention", attention=SDPBackend.FLASH_ATTENTION),
    Way("eager, cuDNN attention", attention=SDPBackend.CUDNN_ATTENTION),
    Way("eager, memory-efficient attention", attention=SDPBackend.EFFICIENT_ATTENTION),
    Way("compiled", compiled={}, networks=BOTH),
    Way("compiled again, from the cache", compiled={}, networks=BOTH),
    Way("compiled, CUDA graphs", compiled={"mode": "reduce-overhead"}),
    Way("compiled, no guidance, CUDA graphs", PLAIN, compiled={"mode": "reduce-overhead"}),
    Way("compiled, max-autotune", compiled={"mode": "max-autotune-no-cudagraphs"}),
)
TINY_WAYS = (
    Way("eager", networks=BOTH),
    Way("eager, one kernel", attention=SDPBackend.MATH, channels_last=False),
    Way("compiled", compiled={"backend": "eager"}, networks=("autoencoder",)),
)


def measure(
    resolutions: Iterable[int] = tuple(FULL_SIZE),
    modes: Sequence[str] = (EAGER, COMPILED),
    is_tiny: bool = False,
    journal: Journal | None = None,
) -> list[Figure]:
    """Milliseconds a frame of each network in each way, at each resolution of the faces."""
    journal = journal or Journal()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if is_tiny:
        return _measure(tiny(), device, TINY_WAYS, journal)
    if device.type != "cuda":
        return [Figure("networks", "full-size model", None, "", None, "no CUDA device")]
    ways = [way for way in WAYS if way.mode in modes]
    return [figure for side in resolutions for figure in _measure(FULL_SIZE[side], device, ways, journal)]


def _measure(layout: Layout, device: torch.device, ways: Iterable[Way], journal: Journal) -> list[Figure]:
    figures = []
    for way in ways:
        for network in way.networks:
            name = f"{layout.resolution} px, {network}, {way.name}"
            figures += journal.measure(name, partial(_try, layout, device, way, network, name))
    return figures


def _try(layout: Layout, device: torch.device, way: Way, network: str, name: str) -> list[Figure]:
    """`_time`; a failure becomes a figure, such as an attention kernel that does not take this width."""
    print(f"  {name} ...", file=sys.stderr, flush=True)
    try:
        return _time(layout, device, way, network, name)
    except RuntimeError as error:
        return [Figure("networks", name, None, "", None, one_line(error)[:MAX_ERROR])]
    finally:
        if way.mode == COMPILED:
            torch._dynamo.reset()
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


@torch.no_grad()
def _time(layout: Layout, device: torch.device, way: Way, network: str, name: str) -> list[Figure]:
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    unet, codec = random_networks(layout, device, dtype)
    chosen: nn.Module = unet if network == "unet" else codec
    if way.channels_last:
        use_channels_last(chosen)
    make = _unet_call if network == "unet" else _autoencoder_call
    call = make(unet, codec, layout, way.samples)
    with FlopCounterMode(display=False) as counter:
        call()
    if way.compiled is not None:
        (unet if network == "unet" else codec).compile(**way.compiled)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with _attention(way.attention):
        first = _seconds(call, device)
        seconds = min(_seconds(call, device) for _ in range(REPEATS))
    frames = FRAMES * way.samples if network == "unet" else FRAMES
    speed = counter.get_total_flops() / seconds / 1e12
    figures = [
        Figure("networks", name, 1000 * seconds / frames, "ms/frame", None, f"first call {first:.1f} s"),
        Figure("networks", f"{name}: arithmetic", speed, "TFLOP/s", None, share_of_peak(device, speed)),
    ]
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device) / 2**30
        figures.append(Figure("networks", f"{name}: peak memory", peak, "GiB", None, "allocated by torch"))
    return figures


def _unet_call(unet: UNet3DConditionModel, codec: LatentCodec, layout: Layout, samples: int) -> Callable[[], Tensor]:
    """One evaluation on so many chunks of `FRAMES` frames."""
    kind: dict[str, Any] = {"device": unet.device, "dtype": unet.dtype}
    cells = layout.resolution // codec.factor
    latents = torch.randn(samples, unet.config.in_channels, FRAMES, cells, cells, **kind)
    tokens = torch.randn(samples, FRAMES, AUDIO_TOKENS, unet.config.cross_attention_dim, **kind)
    timestep = torch.tensor(500, device=unet.device)
    return lambda: unet(latents, timestep, tokens).sample


def _autoencoder_call(
    unet: UNet3DConditionModel, codec: LatentCodec, layout: Layout, samples: int
) -> Callable[[], Tensor]:
    """Two encodes and one decode of `FRAMES` frames, as inference needs them."""
    side = layout.resolution
    pixels = torch.rand(FRAMES, 3, side, side, device=codec.device, dtype=codec.dtype) * 2 - 1

    def call() -> Tensor:
        codec.encode(pixels)
        return codec.decode(codec.encode(pixels))

    return call


def _attention(kernel: SDPBackend | None) -> AbstractContextManager[Any]:
    return nullcontext() if kernel is None else sdpa_kernel([kernel])


def _seconds(call: Callable[[], Any], device: torch.device) -> float:
    """Time of a call, including its work on the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
