"""Resolved settings of a run: options, sampler, mask and noise."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from latentsync.options import AUTO, GenerationOptions, parse_options
from latentsync.pipelines.progress import Watch
from latentsync.pipelines.sampling import Sampling
from latentsync.pretrained.enhancers import FaceEnhancer
from latentsync.utils.light_diffusers import SchedulerMixin
from latentsync.utils.rates import exact_rate


@dataclass(frozen=True)
class Run:
    """Settings shared by all stages of a run.

    Args:
        options: resolved; `inference_steps`, `guidance_scale` and `solver` are set.
        sampling: solver settings, callbacks and random number generator.
        scheduler: the solver.
        num_frames: F, frames per chunk.
        resolution: R, side of the aligned faces in pixels.
        mask: (1, 1, R, R), 1 = keep.
        noise: (1, C, 1, h, h), shared by all chunks.
        enhancer: applied to generated faces.
        watch: called at each denoising step.
    """

    options: GenerationOptions
    sampling: Sampling
    scheduler: SchedulerMixin
    num_frames: int
    resolution: int
    mask: Tensor
    noise: Tensor
    enhancer: FaceEnhancer | None = None
    watch: Watch = field(default_factory=Watch)

    def with_chunks(self, count: int) -> "Run":
        """The same run with `count` chunks denoised together."""
        return replace(self, options=self.options.model_copy(update={"chunk_batch_size": count}))

    @property
    def chunks_at_once(self) -> int:
        size = self.options.chunk_batch_size
        return 1 if self.options.vram_efficient or size == AUTO else size

    @property
    def overlap(self) -> int:
        """Frames shared by consecutive chunks, at most half of a chunk."""
        return min(self.options.chunk_overlap, self.num_frames // 2)

    @property
    def pace_key(self) -> tuple:
        """Settings that the speed of a run depends on, besides the size of the video."""
        options = self.options
        enhancer = (self.enhancer is not None, options.enhancer)
        modes = (
            self.overlap,
            options.enable_deepcache,
            options.vram_efficient,
            self.sampling.guidance_scale > 1,
            self.sampling.guidance_share,
        )
        output = (options.interpolate, options.codec)
        return self.resolution, self.sampling.num_inference_steps, self.chunks_at_once, *enhancer, *modes, *output

    def on_step(self, step: int, timestep: int, latents: Tensor) -> Tensor:
        """Run the callbacks after a denoising step; returns the latents to continue with."""
        self.watch.step(latents)
        return self.sampling.on_step(step, timestep, latents)

    @property
    def fps(self) -> Fraction:
        """`video_fps` as an exact fraction, e.g. 30000/1001 for 29.97."""
        return exact_rate(self.options.video_fps)


def resolve_options(options: GenerationOptions | None, changes: Mapping[str, Any]) -> GenerationOptions:
    """Override `options` (default: all defaults) with the values of `changes` that are not None.

    Raises:
        UserError: unknown option, or value out of range.
    """
    given = {name: value for name, value in changes.items() if value is not None}
    return parse_options({**dict(options or {}), **given})


def make_generator(seed: int) -> torch.Generator:
    """Create the CPU random number generator of a run; -1 draws a random seed."""
    generator = torch.Generator()
    if seed == -1:
        generator.seed()
        return generator
    return generator.manual_seed(seed)
