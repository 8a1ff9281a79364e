"""The whole command with the full-size model on a GPU, one way of running it after another.

The networks have random weights (`full_size`), the 1080p clip and the speech are made from the demo's. Without a GPU
only tiny networks can be measured, to try the benchmark itself.
"""

import gc
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch

from latentsync.faces.mask import resize_mask_to_latents
from latentsync.media.audio import load_audio
from latentsync.pipelines.denoise import decode_frames, denoise_latents, encode_frames
from latentsync.pipelines.lipsync_pipeline import LipsyncPipeline
from latentsync.pipelines.opening import open_clip
from latentsync.pipelines.run import Run
from latentsync.utils.errors import UserError, one_line
from tools.benchmarks import COMPILED, EAGER, trace
from tools.benchmarks.full_size import (
    AUDIO_TOKENS,
    FULL_SIZE,
    Layout,
    operations_per_frame,
    random_pipeline,
    share_of_peak,
    tiny,
)
from tools.benchmarks.inputs import FPS, SAMPLE_RATE, make_clip, make_speech
from tools.benchmarks.overhead import PipelineWithoutNetworks
from tools.benchmarks.report import Figure, Journal

SECONDS = 4.0
PROFILED_SECONDS = 2.0
REPEATS = 3  # of each stage
TOP_KERNELS = 12
MAX_ERROR = 120  # characters


@dataclass(frozen=True)
class Lever:
    """A way of running the pipeline.

    Args:
        options: of the generation.
        kernels: list those that take longest.
        compiled: worth minutes of compilation.
        change: of the model, which cannot be undone: it is made on a pipeline of its own.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    kernels: bool = False
    compiled: bool = False
    change: Callable[[LipsyncPipeline], LipsyncPipeline] | None = None


LEVERS = (
    Lever("20 steps with guidance", kernels=True, compiled=True),
    Lever("preset realtime", {"preset": "realtime"}, compiled=True),
    Lever("chunk_batch_size 4", {"chunk_batch_size": 4}, compiled=True),
    Lever("preset fast", {"preset": "fast"}, compiled=True),
    Lever("preset balanced", {"preset": "balanced"}),
    Lever("deepcache", {"enable_deepcache": True}),
    Lever("chunk_batch_size auto", {"chunk_batch_size": "auto"}),
    Lever("vram_efficient", {"vram_efficient": True}),
    Lever(
        "vram_efficient, weights fp8",
        {"vram_efficient": True},
        change=partial(LipsyncPipeline.store_weights, weights="fp8"),
    ),
    Lever(
        "vram_efficient, weights host",
        {"vram_efficient": True},
        change=partial(LipsyncPipeline.store_weights, weights="host"),
    ),
    Lever("quantize", compiled=True, change=LipsyncPipeline.quantize),
)
TINY_LEVERS = (
    Lever("2 steps", {"inference_steps": 2}, kernels=True),
    Lever("preset fast", {"preset": "fast", "inference_steps": 4}),
    Lever("weights host", {"inference_steps": 2}, change=partial(LipsyncPipeline.store_weights, weights="host")),
)


@dataclass
class Bench:
    """A pipeline, a clip with its speech, and a folder for results."""

    layout: Layout
    pipeline: LipsyncPipeline
    video: Path
    folder: Path
    seconds: float

    @property
    def device(self) -> torch.device:
        return self.pipeline.device

    def run(self, seconds: float, options: dict[str, Any]) -> int:
        """Generate `seconds` of the video; returns the number of frames."""
        voice = make_speech(self.folder / "voice.wav", seconds)
        result = self.pipeline(self.video, voice, self.folder / "out.mp4", video_fps=FPS, silence="model", **options)
        if result.faces != result.num_frames:
            raise RuntimeError(f"{self.video}: only {result.faces} of {result.num_frames} frames show a face")
        return result.num_frames

    def timed(self, call: Callable[[], Any]) -> float:
        """Seconds of a call, including its work on the device."""
        self.synchronize()
        start = time.perf_counter()
        call()
        self.synchronize()
        return time.perf_counter() - start

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def measure(
    folder: Path,
    resolutions: Iterable[int] = tuple(FULL_SIZE),
    seconds: float = SECONDS,
    modes: Sequence[str] = (EAGER, COMPILED),
    is_tiny: bool = False,
    journal: Journal | None = None,
) -> list[Figure]:
    """Speed, memory and use of the GPU for each lever, at each resolution of the faces, eager and compiled."""
    journal = journal or Journal()
    if is_tiny:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return _measure(folder, tiny(), device, seconds, TINY_LEVERS, [EAGER], journal)
    if not torch.cuda.is_available():
        return [Figure("gpu", "full-size model", None, "", None, "no CUDA device")]
    figures = []
    for resolution in resolutions:
        figures += _measure(folder, FULL_SIZE[resolution], torch.device("cuda"), seconds, LEVERS, modes, journal)
        gc.collect()
        torch.cuda.empty_cache()
    return figures


def _measure(
    folder: Path,
    layout: Layout,
    device: torch.device,
    seconds: float,
    levers: Sequence[Lever],
    modes: Sequence[str],
    journal: Journal,
) -> list[Figure]:
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    video = make_clip(folder / f"clip{layout.resolution}.mp4", layout.frame, layout.crop_width, seconds)

    def make() -> Bench:
        return Bench(layout, random_pipeline(layout, device, dtype), video, folder, seconds)

    figures = _measure_plain(make(), [lever for lever in levers if lever.change is None], modes, journal)
    for mode, lever in product(modes, [lever for lever in levers if lever.change is not None]):
        if lever.compiled or mode == EAGER:
            name = f"{layout.resolution} px, {mode}, {lever.name}"
            figures += journal.measure(name, partial(_try_lever, partial(_changed, make, lever, mode), lever, name))
    return figures


def _measure_plain(bench: Bench, levers: Sequence[Lever], modes: Sequence[str], journal: Journal) -> list[Figure]:
    """The stages, and the levers that need no pipeline of their own."""
    side = f"{bench.layout.resolution} px"
    figures = list(journal.measure(side, lambda: _stages(bench))) if EAGER in modes else []
    for mode in modes:
        if mode == COMPILED:
            bench.pipeline.compile()
        for lever in levers:
            if lever.compiled or mode == EAGER:
                name = f"{side}, {mode}, {lever.name}"
                figures += journal.measure(name, partial(_try_lever, lambda: bench, lever, name))
    return figures


def _changed(make: Callable[[], Bench], lever: Lever, mode: str) -> Bench:
    """A bench with the change of a lever."""
    bench = make()
    assert lever.change is not None
    lever.change(bench.pipeline)
    if mode == COMPILED:
        bench.pipeline.compile()
    return bench


def _try_lever(make: Callable[[], Bench], lever: Lever, name: str) -> list[Figure]:
    """`_lever`; a failure, such as too little memory, becomes a figure: the others are still worth measuring."""
    print(f"  {name} ...", file=sys.stderr, flush=True)
    try:
        return _lever(make(), lever, name)
    except (RuntimeError, UserError) as error:
        return [Figure("gpu", name, None, "", None, one_line(error)[:MAX_ERROR])]
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _lever(bench: Bench, lever: Lever, name: str) -> list[Figure]:
    """End to end, from the command's inputs to its file, after a short run that warms everything up."""
    short = min(bench.seconds, PROFILED_SECONDS)
    warm_up = bench.timed(lambda: bench.run(short, lever.options))
    on_gpu = bench.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(bench.device)
    frames = round(bench.seconds * FPS)
    seconds = bench.timed(lambda: bench.run(bench.seconds, lever.options))
    peak = torch.cuda.max_memory_allocated(bench.device) / 2**30 if on_gpu else None
    run = bench.pipeline._prepare(None, **lever.options)
    speed = operations_per_frame(bench.layout, run) * frames / seconds / 1e12
    steps, guidance = run.sampling.num_inference_steps, run.sampling.guidance_scale
    width, height = bench.layout.frame
    note = f"{frames} frames, {width}x{height}, {steps} steps, guidance {guidance:g}; first run {warm_up:.0f} s"
    profiled = trace.record(
        lambda: bench.run(min(bench.seconds, PROFILED_SECONDS), lever.options),
        bench.folder / "trace.json",
        bench.device,
    )
    gap = f"longest gap {1000 * profiled.longest_gap:.1f} ms, between the first and the last kernel"
    figures = [
        Figure("gpu", f"{name}: end to end", frames / seconds, "frames/s", None, note),
        Figure("gpu", f"{name}: arithmetic", speed, "TFLOP/s", None, share_of_peak(bench.device, speed)),
        Figure("gpu", f"{name}: device idle", 100 * profiled.idle, "%", None, gap),
        Figure("gpu", f"{name}: peak memory", peak, "GiB", None, "allocated by torch" if on_gpu else "no GPU"),
    ]
    kernels = profiled.top(TOP_KERNELS) if lever.kernels else []
    return figures + [
        Figure("gpu", f"{name}: kernel {number}", 100 * share, "% of kernel time", None, f"{count} x {kernel}")
        for number, (kernel, share, count) in enumerate(kernels, 1)
    ]


def _stages(bench: Bench) -> list[Figure]:
    """Milliseconds a frame of every stage alone, the device awaited after each."""
    run = bench.pipeline._prepare(None)
    calls = _network_stages(bench.pipeline, run)
    for call in calls.values():
        call()
    frames = run.num_frames
    times = {name: min(bench.timed(call) for _ in range(REPEATS)) / frames for name, call in calls.items()}
    frames = round(bench.seconds * FPS)
    voice = make_speech(bench.folder / "voice.wav", bench.seconds)
    wave = load_audio(voice, SAMPLE_RATE)
    times["audio encoder"] = bench.timed(lambda: bench.pipeline.audio_encoder.wave2feat(wave)) / frames
    times["decode the video, detect, align"] = bench.timed(lambda: _track(bench.pipeline, bench.video, voice)) / frames
    bare = Bench(bench.layout, PipelineWithoutNetworks(bench.layout.resolution), bench.video, bench.folder, 0)
    times["everything but the networks"] = bare.timed(lambda: bare.run(bench.seconds, {})) / frames
    side = f"{bench.layout.resolution} px"
    return [Figure("gpu", f"{side}, {name}", 1000 * value, "ms/frame") for name, value in times.items()]


def _network_stages(pipeline: LipsyncPipeline, run: Run) -> dict[str, Callable[[], Any]]:
    """Calls on one chunk, by the name of the stage."""
    frames, side = run.num_frames, run.resolution
    on_device: dict[str, Any] = {"device": pipeline.device, "dtype": pipeline.dtype}
    pixels = torch.rand(1, frames, 3, side, side, **on_device) * 2 - 1
    latents = encode_frames(pipeline.codec, pixels)
    mask = resize_mask_to_latents(run.mask.to(pixels), (latents.shape[-2], latents.shape[-1])).unsqueeze(2)
    audio = torch.randn(1, frames, AUDIO_TOKENS, pipeline.unet.config.cross_attention_dim, **on_device)
    inputs = (run.scheduler, run.noise, mask, latents, latents, audio)
    steps, guidance = run.sampling.num_inference_steps, run.sampling.guidance_scale
    return {
        "one encode": lambda: encode_frames(pipeline.codec, pixels),
        f"denoising, {steps} steps with guidance": lambda: denoise_latents(pipeline.unet, *inputs, steps, guidance),
        "one decode": lambda: _no_grad_decode(pipeline, latents),
    }


@torch.no_grad()
def _no_grad_decode(pipeline: LipsyncPipeline, latents: torch.Tensor) -> torch.Tensor:
    return decode_frames(pipeline.codec, latents)


def _track(pipeline: LipsyncPipeline, video: Path, voice: Path) -> None:
    run = pipeline._prepare(None, video_fps=FPS, silence="model")
    with open_clip(video, voice, run.options, pipeline.audio_encoder) as clip:
        with closing(pipeline._track(clip, run)) as tracked:
            for _ in tracked:
                pass
