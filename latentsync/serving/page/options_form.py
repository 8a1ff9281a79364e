"""The options of a lip-sync job as form fields, in the order of what matters to most."""

from typing import Any

import gradio as gr

from latentsync.loading import can_upscale, pick_device
from latentsync.serving.models import AUTO, list_loras, list_models
from latentsync.serving.options import JobOptions
from latentsync.serving.settings import ServingSettings
from latentsync.utils.registry import REGISTRY, default_name

OFF = 0
NO_ADAPTER = "none"
NO_UPSCALER = "its weights are not there, so the face is sharpened instead"


def model_choices(settings: ServingSettings) -> list[tuple[str, str]]:
    """(label, name) of the models that are present, the best one first; labels tell the size of their faces."""
    device = None if settings.devices[0] == AUTO else settings.devices[0]
    best = settings.model if settings.model != AUTO else default_name(pick_device(device))[0]
    found = list_models()
    sides = {choice.name: choice.resolution for choice in found}
    side = sides.get(best) or REGISTRY[best].model.resolution
    choices = [(f"best present: {best} ({side} px faces)", AUTO)]
    return choices + [(f"{choice.name} ({choice.resolution} px faces)", choice.name) for choice in found]


class OptionsForm:
    """Fields, made where it is constructed; `fields` are what `read` takes the values of."""

    def __init__(self, settings: ServingSettings) -> None:
        self.settings = settings
        with gr.Row():
            self.model = gr.Dropdown(model_choices(settings), value=AUTO, label="Model")
            self.lora = gr.Dropdown(self._adapters(), value=NO_ADAPTER, label="Adapter of one person")
        with gr.Row():
            steps = gr.Slider(
                OFF,
                50,
                OFF,
                step=1,
                label="Denoising steps",
                info="0: as many as the model likes best",
                elem_id="steps",
            )
            guidance = gr.Slider(
                OFF,
                3,
                OFF,
                step=0.1,
                label="Guidance",
                info="how strongly to follow the voice; 0: the model's own",
                elem_id="guidance",
            )
        with gr.Row():
            solver = gr.Radio(["ddim", "dpm++"], value="ddim", label="Solver", info="dpm++ needs fewer steps")
            seed = gr.Number(1247, precision=0, label="Seed", info="equal seeds give equal videos; -1 for a new one")
        with gr.Row():
            colour = gr.Checkbox(False, label="Match the skin's colour", info="the embedded model always does")
            upscale = gr.Checkbox(
                False,
                label="Enlarge the face (RealESRGAN)",
                info="slow, and worth it for large faces" if can_upscale() else NO_UPSCALER,
            )
            sharpness = gr.Slider(0, 3, 1, step=0.1, label="Sharpness of the face", info="1: untouched")
        with gr.Row():
            interpolate = gr.Dropdown(
                [("none", OFF), ("50 per second", 50), ("60 per second", 60)],
                value=OFF,
                label="Frames in between",
            )
            keep_fps = gr.Checkbox(False, label="Keep the video's frame rate", info="else 25 per second")
        with gr.Row():
            short = gr.Radio(["loop", "freeze", "error"], value="loop", label="When the voice outlasts the video")
            crf = gr.Slider(0, 40, 18, step=1, label="Compression (CRF)", info="lower is better and larger")
        named = {
            "model": self.model,
            "lora": self.lora,
            "inference_steps": steps,
            "guidance_scale": guidance,
            "solver": solver,
            "seed": seed,
            "match_colour": colour,
            "enable_upscale": upscale,
            "sharpness_factor": sharpness,
            "interpolate": interpolate,
            "keep_fps": keep_fps,
            "on_short_video": short,
            "crf": crf,
        }
        self._names, self.fields = tuple(named), list(named.values())

    def read(self, values: tuple[Any, ...], **more: Any) -> JobOptions:
        """The options that the fields' values say, with some `more`. Raises ValidationError for wrong ones."""
        given = dict(zip(self._names, values, strict=True))
        if given["lora"] == NO_ADAPTER:
            given["lora"] = None
        for name in ("inference_steps", "guidance_scale", "interpolate"):
            given[name] = given[name] or None
        if given["guidance_scale"] is not None:
            given["guidance_scale"] = max(1.0, given["guidance_scale"])
        return JobOptions(**given, **more)

    def refresh(self) -> tuple[dict, dict]:
        """Updates of `model` and `lora`: training may have left new ones."""
        return gr.update(choices=model_choices(self.settings)), gr.update(choices=self._adapters())

    @staticmethod
    def _adapters() -> list[tuple[str, str]]:
        return [("none", NO_ADAPTER)] + [(choice.name, choice.name) for choice in list_loras()]
