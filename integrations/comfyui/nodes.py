"""ComfyUI nodes. IMAGE is (F, H, W, 3) float in [0, 1], AUDIO is {"waveform": (1, C, T) float, "sample_rate": int}."""

from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import numpy as np
import torch
from pydantic.fields import FieldInfo

from latentsync import load_pipeline
from latentsync.options import AUTO, GenerationOptions
from latentsync.pipelines.run import resolve_options

PIPELINE = "LATENTSYNC_PIPELINE"
CATEGORY = "LatentSync"
UNSET = "default"  # choice that stands for None
LOADED = ("model", "lora", "lora_scale")  # options of the loader
LEFT_OUT = {"codec", "crf", "pix_fmt", "hdr", "max_seconds"}  # ComfyUI has its own nodes for encoding and trimming


def widget(field: FieldInfo) -> tuple[Any, dict[str, Any]]:
    """ComfyUI input for a field of `GenerationOptions`. None is represented by 0 for numbers, by "" for strings."""
    kinds = get_args(field.annotation) if get_origin(field.annotation) in (Union, UnionType) else (field.annotation,)
    kind = next(kind for kind in kinds if kind is not NoneType)
    settings: dict[str, Any] = {"tooltip": field.description or ""}
    if get_origin(kind) is Literal:
        choices = [UNSET] * (NoneType in kinds) + list(get_args(kind))
        return choices, settings | {"default": field.default or UNSET}
    if kind is bool:
        return "BOOLEAN", settings | {"default": field.default}
    if kind not in (int, float):
        return "STRING", settings | {"default": str(field.default or "")}
    low, high = bounds(field)
    settings |= {"min": 0 if NoneType in kinds else low, "max": high, "default": field.default or 0}
    return ("INT", settings) if kind is int else ("FLOAT", settings | {"step": 0.05})


def bounds(field: FieldInfo) -> tuple[float, float]:
    """Smallest and largest value of a number; ComfyUI's widgets support values up to 2**53."""
    found = {name: getattr(item, name) for item in field.metadata for name in ("ge", "le", "lt") if hasattr(item, name)}
    return found["ge"], min(found.get("le", found.get("lt", 2**53)), 2**53)


def option_inputs(names: list[str]) -> dict[str, tuple[Any, dict[str, Any]]]:
    return {name: widget(GenerationOptions.model_fields[name]) for name in names}


def read_options(values: dict[str, Any]) -> dict[str, Any]:
    """Options from widget values; those that represent None are left out."""
    unset = {name for name, field in GenerationOptions.model_fields.items() if field.default is None}
    return {name: value for name, value in values.items() if not (name in unset and value in ("", 0, UNSET, None))}


class LoadModel:
    """Loads a pipeline."""

    CATEGORY = CATEGORY
    FUNCTION = "load"
    RETURN_TYPES = (PIPELINE,)
    RETURN_NAMES = ("pipeline",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        device = (["auto", "cuda", "mps", "cpu"], {"default": "auto", "tooltip": "Device of the networks."})
        return {"required": option_inputs(list(LOADED)) | {"device": device}}

    def load(self, model: str, device: str = "auto", lora: str = "", lora_scale: float = 1.0) -> tuple[Any]:
        name = None if model == AUTO else model
        return (load_pipeline(name, device, lora=lora or None, lora_scale=lora_scale),)


class LipSync:
    """Lip-syncs frames to audio."""

    CATEGORY = CATEGORY
    FUNCTION = "run"
    RETURN_TYPES = ("IMAGE", "AUDIO", "FLOAT")
    RETURN_NAMES = ("images", "audio", "fps")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        names = [name for name in GenerationOptions.model_fields if name not in LEFT_OUT and name not in LOADED]
        required = {
            "pipeline": (PIPELINE,),
            "images": ("IMAGE",),
            "audio": ("AUDIO",),
            "fps": ("FLOAT", {"default": 25.0, "min": 1.0, "max": 240.0, "tooltip": "Frame rate of the images."}),
        }
        return {"required": required, "optional": option_inputs(names)}

    def run(
        self, pipeline: Any, images: torch.Tensor, audio: dict[str, Any], fps: float, **options: Any
    ) -> tuple[torch.Tensor, dict[str, Any], float]:
        """Generate frames for the duration of the audio. Their size is that of the input, even if it is odd."""
        if len(audio["waveform"]) != 1:
            raise ValueError(f"audio must be one waveform, not a batch of {len(audio['waveform'])}")
        resolved = resolve_options(None, read_options(options))
        source = (audio["waveform"][0], audio["sample_rate"])
        height, width = images.shape[1:3]
        # Convert frame by frame, so that no second copy of the output is in memory.
        made = [
            torch.from_numpy(np.asarray(frame)[:height, :width].astype(np.float32) / 255)
            for frame in pipeline.frames((images, fps), source, resolved)
        ]
        rate = resolved.interpolate or (fps if resolved.keep_fps and len(images) > 1 else resolved.video_fps)
        return torch.stack(made), audio, float(rate)


NODE_CLASS_MAPPINGS = {"LatentSyncLoadModel": LoadModel, "LatentSyncLipSync": LipSync}
NODE_DISPLAY_NAME_MAPPINGS = {
    "LatentSyncLoadModel": "Load LatentSync model",
    "LatentSyncLipSync": "LatentSync lip sync",
}
