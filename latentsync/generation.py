"""Where options become arguments: of `load_pipeline`, and of the pipeline itself."""

from typing import Any

import torch

from latentsync.options import AUTO, GenerationOptions


def load_arguments(options: GenerationOptions) -> dict[str, Any]:
    """Keyword arguments of `latentsync.loading.load_pipeline`. Pipelines are interchangeable where these are equal."""
    return {
        "name_or_paths": None if options.model == AUTO else options.model,
        "deepcache": options.enable_deepcache,
        "low_memory": options.vram_efficient,
        "match_colour": options.match_color,
        "upscale": options.enable_upscale,
        "enhancer": options.enhancer,
        "lora": options.lora,
        "lora_scale": options.lora_scale,
    }


def call_arguments(options: GenerationOptions) -> dict[str, Any]:
    """Keyword arguments of `LipsyncPipeline.__call__`."""
    return {
        "num_inference_steps": options.inference_steps,
        "guidance_scale": options.guidance_scale,
        "generator": make_generator(options.seed),
        "solver": options.solver,
        "chunk_batch_size": 1 if options.vram_efficient else options.chunk_batch_size,
        "sharpness_factor": options.sharpness_factor,
        "face": options.face,
        "detector": options.detector,
        "mask_image_path": options.mask_image_path,
        "video_fps": options.video_fps,
        "keep_fps": options.keep_fps,
        "interpolate": options.interpolate,
        "on_short_video": options.on_short_video,
        "max_seconds": options.max_seconds,
        "crf": options.crf,
    }


def make_generator(seed: int) -> torch.Generator:
    """Source of the noise on the CPU; -1 for a new seed each time."""
    generator = torch.Generator()
    if seed == -1:
        generator.seed()
        return generator
    return generator.manual_seed(seed)
