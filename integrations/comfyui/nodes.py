"""ComfyUI nodes. IMAGE is (F, H, W, 3) float in [0, 1], AUDIO is {"waveform": (1, C, T) float, "sample_rate": int}."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from latentsync import load_pipeline
from latentsync.option_info import Option
from latentsync.options import AUTO, OPTIONS
from latentsync.pipelines.run import resolve_options

PIPELINE = "LATENTSYNC_PIPELINE"
CATEGORY = "LatentSync"
UNSET = "default"  # choice that stands for None
MAX_NUMBER = 2**53  # of ComfyUI's widgets
LOADED = ("model", "lora", "lora_scale")  # options of the loader
LEFT_OUT = {"codec", "crf", "pix_fmt", "hdr", "max_seconds"}  # ComfyUI has its own nodes for encoding and trimming


def widget(option: Option) -> tuple[Any, dict[str, Any]]:
    """ComfyUI input for an option. None is represented by 0 for numbers (no empty widget), by "" for strings."""
    may_be_unset = option.default is None
    settings: dict[str, Any] = {"tooltip": option.help, "default": option.default}
    if option.choices:
        return [UNSET] * may_be_unset + list(option.choices), settings | {"default": option.default or UNSET}
    if option.type is bool:
        return "BOOLEAN", settings
    if option.low is None or option.high is None or option.words:
        return "STRING", settings | {"default": str(option.default or "")}
    if may_be_unset:
        settings |= {"tooltip": f"{option.help} 0: {option.default_text}.", "default": 0}
    settings |= {"min": 0 if may_be_unset else option.low, "max": min(option.high, MAX_NUMBER)}
    return ("INT", settings) if option.type is int else ("FLOAT", settings | {"step": 0.05})


def option_inputs(names: Iterable[str]) -> dict[str, tuple[Any, dict[str, Any]]]:
    return {name: widget(OPTIONS[name]) for name in names}


def read_options(values: dict[str, Any]) -> dict[str, Any]:
    """Options from widget values; those that represent None are left out."""
    unset = {name for name, option in OPTIONS.items() if option.default is None}
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
        return {"required": option_inputs(LOADED) | {"device": device}}

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
        names = [name for name in OPTIONS if name not in LEFT_OUT and name not in LOADED]
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
