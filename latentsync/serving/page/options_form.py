"""The options of a lip-sync job as form fields, generated from their declarations."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import gradio as gr

from latentsync.checkpoints.registry import REGISTRY, RELEASED_MODELS, Entry, default_name
from latentsync.loading import pick_device
from latentsync.option_info import Group, Option
from latentsync.options import AUTO, OPTIONS, GenerationOptions, parse_options
from latentsync.pretrained.text_to_speech import default_voice, voice_names
from latentsync.serving.models import list_loras, list_models
from latentsync.serving.settings import ServingSettings

Choices = list[tuple[str, str]]
FILE_ROLES = {"mask_image_path": "mask", "script": "script"}  # options that are files of a job
EMPTY = ""  # value of the choice that leaves an option unset
UNITS = ("SECONDS", "PIXELS")  # metavars
MAX_SLIDER_SPAN = 64  # wider ranges are typed
ACRONYMS = {
    "crf": "CRF",
    "fps": "FPS",
    "lora": "LoRA",
    "vram": "VRAM",
    "deepcache": "DeepCache",
    "hdr": "HDR",
    "pix": "pixel",
    "fmt": "format",
}


def model_choices(settings: ServingSettings) -> Choices:
    """(label, name) of the models that are present, the best one first; labels include the face resolution."""
    best = best_model(settings)
    found = list_models()
    sides = {choice.name: choice.resolution for choice in found}
    side = f" ({sides[best]} px faces)" if best in sides else ""
    choices = [(f"best present: {best}{side}", AUTO)]
    return choices + [(f"{choice.name} ({choice.resolution} px faces)", choice.name) for choice in found]


def model_line(settings: ServingSettings) -> str:
    """The default model of jobs, its use, and the source of its weights."""
    name = best_model(settings)
    entry = REGISTRY.get(name)
    if entry is None or entry.model is None:
        return f"Model: **{name}**, a checkpoint of a training run."
    line = f"Model: **{name}**, {entry.summary.rstrip('.')}."
    if entry.files[0].repo:
        return f"{line} {_link(entry)}."
    larger = REGISTRY[RELEASED_MODELS[0]]  # where there is a GPU
    return f"{line} With a GPU, there is **{RELEASED_MODELS[0]}**, a {larger.summary}: {_link(larger)}."


def _link(entry: Entry) -> str:
    return f"[weights and license](https://huggingface.co/{entry.files[0].repo})"


def best_model(settings: ServingSettings) -> str:
    """The model that `auto` stands for."""
    device = None if settings.devices[0] == AUTO else settings.devices[0]
    return settings.model if settings.model != AUTO else default_name(pick_device(device))[0]


def lora_choices() -> Choices:
    """(label, name) of the LoRA adapters that are present, none first."""
    return [("none", EMPTY)] + [(choice.name, choice.name) for choice in list_loras()]


class OptionsForm:
    """The fields of the options, placed where `build` and `build_rest` are called.

    `fields` maps names of options to components; `read` takes their values in this order.
    """

    def __init__(self, settings: ServingSettings) -> None:
        self.settings = settings
        self.fields: dict[str, gr.components.Component] = {}

    def build(self, names: Sequence[str]) -> None:
        """Place the fields of these options, as far as there are such options."""
        self._build([OPTIONS[name] for name in names if name in OPTIONS])

    def build_rest(self) -> None:
        """Place all other fields under the headings of their groups: basic ones, then advanced ones in an accordion."""
        rest = [option for option in OPTIONS.values() if option.name not in self.fields]
        self._build_groups([option for option in rest if not option.show.advanced])
        with gr.Accordion("Advanced", open=False, elem_id="advanced"):
            self._build_groups([option for option in rest if option.show.advanced])

    def _build_groups(self, options: list[Option]) -> None:
        for group in Group:
            found = [option for option in options if option.show.group is group]
            if found:
                gr.Markdown(f"## {group.capitalize()}", elem_classes="group")
                self._build(found)

    def _build(self, options: list[Option]) -> None:
        for start in range(0, len(options), 2):
            with gr.Row():
                for option in options[start : start + 2]:
                    place: Any = gr.Column() if option.is_file else nullcontext()
                    with place:
                        self.fields[option.name] = make_field(option, self._choices().get(option.name))
                        if option.is_file:  # such a field has no place for it
                            gr.Markdown(option.help, elem_classes="help")

    def values_of(self, options: GenerationOptions, files: Mapping[str, str]) -> list[Any]:
        """Values of the fields, in their order, that stand for these options and files by role."""
        own = {name: files.get(role) for name, role in FILE_ROLES.items()}
        values = {name: shown_value(OPTIONS[name], getattr(options, name)) for name in self.fields}
        return list((values | own).values())

    def _choices(self) -> dict[str, Choices]:
        """Options whose values depend on the files that are present."""
        voices = [(f"{default_voice()} (default)", EMPTY), *((name, name) for name in voice_names())]
        return {"model": model_choices(self.settings), "lora": lora_choices(), "voice": voices}

    def read(self, values: tuple[Any, ...], **more: Any) -> tuple[GenerationOptions, dict[str, tuple[str, Path]]]:
        """The options that the fields' values stand for, changed by `more`, and the files given in the form, by role.

        Raises:
            OptionError: a value or a combination is not valid.
        """
        given = {name: value for name, value in zip(self.fields, values, strict=True) if value not in (None, EMPTY)}
        paths = {role: given.pop(name) for name, role in FILE_ROLES.items() if name in given}
        files = {role: (Path(path).name, Path(path)) for role, path in paths.items()}
        return parse_options({**given, **more}), files

    def refresh(self) -> list[dict]:
        """Updates of `refreshed`: training may have added models and adapters."""
        return [gr.update(choices=choices) for choices in self._choices().values()]

    @property
    def refreshed(self) -> list[gr.components.Component]:
        return [self.fields[name] for name in self._choices()]


def make_field(option: Option, choices: Choices | None = None) -> gr.components.Component:
    """The component that suits an option's type and range."""
    common = {"label": label(option.name), "info": option.help, "elem_id": option.name}
    if option.is_file:
        types = list(option.show.file_types) or ["image"]
        return gr.File(label=common["label"], file_types=types, height=110, elem_id=option.name)
    if option.type is bool:
        return gr.Checkbox(option.default, **common)
    if option.show.is_long:
        return gr.Textbox(EMPTY, lines=3, **common)
    if option.type is str or option.words:
        return _choice(option, choices, common)
    if option.default is None:  # a number field would show 0, which differs from None
        return gr.Textbox(EMPTY, placeholder=_placeholder(option), **common)
    span = {"minimum": option.low, "maximum": option.high}
    is_int = option.type is int
    low, high = option.low, option.high
    if low is not None and high is not None and high - low <= MAX_SLIDER_SPAN:
        return gr.Slider(value=option.default, step=1 if is_int else 0.1, **span, **common)
    return gr.Number(option.default, precision=0 if is_int else None, **span, **common)


def _placeholder(option: Option) -> str:
    """Meaning of an empty field, with the unit or the range of a number."""
    metavar = option.show.metavar
    return f"{option.show.unset} ({metavar.lower() if metavar in UNITS else option.range})"


def shown_value(option: Option, value: Any) -> Any:
    """The value of the field of an option."""
    if value is None:
        return EMPTY
    if option.words:
        return str(value)
    return f"{value:g}" if option.default is None and option.type in (int, float) else value


def _choice(option: Option, choices: Choices | None, common: dict[str, Any]) -> gr.components.Component:
    """A list of the valid texts, an empty one first where the option may be unset; free text where others are valid."""
    if choices is None:
        texts = option.choices or option.show.suggestions
        choices = [(text, text) for text in texts]
        if option.default is None:
            choices.insert(0, (option.default_text, EMPTY))
    free = bool(option.show.suggestions)
    value = shown_value(option, option.default)
    return gr.Dropdown(choices, value=value, allow_custom_value=free, **common)


def label(name: str) -> str:
    """A field's label from the name of its option."""
    words = [ACRONYMS.get(word, word) for word in name.removesuffix("_path").split("_")]
    return " ".join([words[0][0].upper() + words[0][1:], *words[1:]])
