"""`load_pipeline`: a ready pipeline from the name of a model or from files."""

from pathlib import Path
from typing import Any

import torch

from latentsync.pipelines.components import (
    ModelPaths,
    can_upscale,
    load_scheduler,
    pick_device,
    pick_dtype,
    pick_enhancer,
)
from latentsync.pipelines.lipsync_pipeline import LipsyncPipeline

__all__ = [
    "LipsyncPipeline",
    "ModelPaths",
    "can_upscale",
    "load_pipeline",
    "load_scheduler",
    "pick_device",
    "pick_dtype",
    "pick_enhancer",
]


def load_pipeline(
    name_or_paths: str | Path | ModelPaths | None = None,
    device: str | None = None,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> LipsyncPipeline:
    """`LipsyncPipeline.from_pretrained`, where None picks the best model that is present and fits the device."""
    return LipsyncPipeline.from_pretrained(name_or_paths, device, dtype, **options)
