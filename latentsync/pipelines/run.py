"""The settings of one run, resolved once: options, sampler, mask, noise."""

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from latentsync.options import GenerationOptions, parse_options
from latentsync.pipelines.sampling import Sampling
from latentsync.pretrained.enhancers import FaceEnhancer
from latentsync.utils.rates import exact_rate


@dataclass(frozen=True)
class Run:
    """What every stage of one run reads.

    Args:
        options: resolved; `inference_steps` and `guidance_scale` are set.
        sampling: sampler, callbacks and source of random numbers.
        num_frames: F, frames of a chunk.
        resolution: R, side of the aligned faces in pixels.
        mask: (1, 1, R, R), 1 = keep.
        noise: (1, C, 1, h, h), the same for all chunks.
        enhancer: applied to generated faces.
    """

    options: GenerationOptions
    sampling: Sampling
    num_frames: int
    resolution: int
    mask: Tensor
    noise: Tensor
    enhancer: FaceEnhancer | None = None

    @property
    def chunks_at_once(self) -> int:
        return 1 if self.options.vram_efficient else self.options.chunk_batch_size

    @property
    def fps(self) -> Fraction:
        """`video_fps` as the exact fraction it stands for: 29.97 is 30000/1001."""
        return exact_rate(self.options.video_fps)


def resolve_options(options: GenerationOptions | None, changes: Mapping[str, Any]) -> GenerationOptions:
    """`options`, or the defaults, with those of `changes` that are not None.

    Raises:
        UserError: an unknown option, or a value out of its range.
    """
    given = {name: value for name, value in changes.items() if value is not None}
    return parse_options({**dict(options or {}), **given})


def make_generator(seed: int) -> torch.Generator:
    """Source of the noise, on the CPU; -1 picks a new seed."""
    generator = torch.Generator()
    if seed == -1:
        generator.seed()
        return generator
    return generator.manual_seed(seed)
