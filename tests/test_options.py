"""The options of a generation: valid values, error messages, and every option on every surface."""

import argparse
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import pytest
from PIL import Image

import eval.inference_videos
import eval.run
from latentsync.arguments import add_option_arguments, argument_help, given_options
from latentsync.faces.factory import create_detector
from latentsync.options import (
    DETECTORS,
    ENHANCERS,
    FACE_VALUES,
    OPTIONS,
    GenerationOptions,
    OptionError,
    Solver,
    parse_options,
    read_stored,
)
from latentsync.pipelines import sampling
from latentsync.pretrained import enhancers
from latentsync.serving.api.submission import request_body_docs
from latentsync.serving.batch import read_list
from latentsync.serving.handler import run_job
from latentsync.serving.jobs import AUDIO_ROLES, JobKind
from latentsync.serving.store import JobStore
from latentsync.utils.errors import UserError
from scripts import batch, inference
from tests.serving.fakes import service_in, write_files
from tools import option_tables

# A valid value other than the default for each option, as text; what else it needs.
OTHER: dict[str, Any] = {
    "model": "embedded", "lora": "me", "lora_scale": "0.5", "inference_steps": "3", "guidance_scale": "2.5",
    "preset": "fast", "seed": "7", "solver": "dpm++", "enable_deepcache": "true", "chunk_batch_size": "2",
    "chunk_overlap": "4",
    "vram_efficient": "true",
    "match_color": "true", "enable_upscale": "true", "enhancer": "gfpgan", "sharpness_factor": "1.5", "face": "left",
    "min_face": "120", "detector": "mediapipe", "paste_mask": "box", "codec": "hevc", "pix_fmt": "yuv420p10le",
    "hdr": "keep",
    "mask_image_path": "mask.png", "video_fps": "30", "keep_fps": "true", "interpolate": "50",
    "audio_track": "deu", "length_mode": "freeze", "start": "1.5", "end": "9", "max_seconds": "2.5", "crf": "20",
    "silence": "original", "mix_original": "0.3", "text": "Hello there.", "voice": "de", "script": "cues.csv",
}  # fmt: skip
NEEDS = {
    "voice": {"text": "Hello there."},
    "lora_scale": {"lora": "me"},
    "enhancer": {"enable_upscale": "true"},
    "hdr": {"codec": "hevc"},
}
NUMBERS = [option for option in OPTIONS.values() if option.type in (int, float)]


def other(name: str) -> dict[str, str]:
    return {**NEEDS.get(name, {}), name: OTHER[name]}


def on_command_line(values: dict[str, str]) -> GenerationOptions:
    words = [f"--{name}" if OPTIONS[name].type is bool else f"--{name}={value}" for name, value in values.items()]
    return inference.parse_options(words).generation


def in_a_config(values: dict[str, str], folder: Path) -> GenerationOptions:
    (folder / "c.yaml").write_text("".join(f"{name}: {value}\n" for name, value in values.items()))
    return inference.parse_options(["--config", str(folder / "c.yaml")]).generation


def in_a_list(values: dict[str, str], folder: Path, defaults: dict[str, str] | None = None) -> GenerationOptions:
    lines = [["video", "audio", "out", *values], ["a.mp4", "a.wav", "o.mp4", *values.values()]]
    (folder / "list.csv").write_text("".join(",".join(line) + "\n" for line in lines))
    return read_list(folder / "list.csv", defaults)[0].options


def in_the_batch_command(values: dict[str, str], folder: Path) -> GenerationOptions:
    words = [f"--{name}" if OPTIONS[name].type is bool else f"--{name}={value}" for name, value in values.items()]
    arguments = batch.build_parser().parse_args(["--list=x", *words])
    return in_a_list({}, folder, given_options(arguments))


def form_properties() -> dict[str, dict]:
    return request_body_docs()["content"]["multipart/form-data"]["schema"]["properties"]


@pytest.fixture(scope="module")
def page_form(tmp_path_factory):
    gr = pytest.importorskip("gradio")
    from latentsync.serving.page.options_form import OptionsForm

    service = service_in(tmp_path_factory.mktemp("page") / "ws")
    with gr.Blocks():
        form = OptionsForm(service.settings)
        form.build_rest()
    return form


def test_the_values_of_this_test_are_complete():
    assert OTHER.keys() == OPTIONS.keys() == GenerationOptions.model_fields.keys()
    for name in OPTIONS:
        assert getattr(parse_options(other(name)), name) != getattr(GenerationOptions(), name), name


# No surface lacks an option


@pytest.mark.parametrize("name", OPTIONS)
def test_every_surface_takes_every_option(name, tmp_path):
    wanted = parse_options(other(name))
    assert on_command_line(other(name)) == wanted
    assert in_a_config(other(name), tmp_path) == wanted
    assert in_the_batch_command(other(name), tmp_path) == wanted
    listed = in_a_list(other(name), tmp_path)
    if OPTIONS[name].is_file:
        assert getattr(listed, name) == tmp_path / OTHER[name]  # relative to the list
    else:
        assert listed == wanted


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_is_used(name):
    """Some code that runs the model reads the option off the object that holds them all."""
    sources = [
        *(option_tables.PROJECT_ROOT / "latentsync" / "pipelines").glob("*.py"),
        option_tables.PROJECT_ROOT / "scripts" / "inference.py",
    ]
    assert any(re.search(rf"\b(options|resolved|given)\.{name}\b", path.read_text()) for path in sources)


def test_the_commands_of_the_evaluation_take_every_option():
    for parser, left_out in ((eval.inference_videos.build_parser(), set()), (eval.run.build_parser(), {"model"})):
        assert OPTIONS.keys() - {action.dest for action in parser._actions} == left_out


def test_the_api_documents_every_option():
    form = form_properties()
    assert OPTIONS.keys() - form.keys() == {"mask_image_path"} and "mask" in form
    assert form.keys() - OPTIONS.keys() == {"video", "mask", "kind", "tags", "webhook_url", *AUDIO_ROLES}


def test_the_page_has_a_field_for_every_option(page_form):
    assert page_form.fields.keys() == OPTIONS.keys()
    values = tuple(field.value for field in page_form.fields.values())
    assert page_form.read(values) == (GenerationOptions(), {})
    for name in OPTIONS.keys() - {"mask_image_path", "script"}:
        given = dict(zip(page_form.fields, values, strict=True)) | parse_options(other(name)).model_dump()
        given["mask_image_path"] = "/tmp/x/mask.png"
        options, files = page_form.read(tuple(given.values()))
        assert options == parse_options(other(name)) and files == {"mask": ("mask.png", Path("/tmp/x/mask.png"))}


def test_the_tables_in_the_docs_are_up_to_date():
    assert option_tables.outdated() == {}, "run `python -m tools.option_tables`"
    for name in OPTIONS:
        for style in ("command line", "jobs"):
            assert f"{name}`" in option_tables.table(style)
    readme = (option_tables.PROJECT_ROOT / "README.md").read_text(encoding="utf-8")
    own = {action.dest for action in inference.build_parser()._actions if action.help != argparse.SUPPRESS} - {"help"}
    assert [name for name in own if f"| `--{name}` |" not in readme] == []
    with pytest.raises(UserError, match="no table"):
        option_tables.fill("# Options\n")


def test_stored_jobs_keep_every_option(tmp_path):
    store = JobStore(tmp_path / "jobs.sqlite")
    options = GenerationOptions(**{name: OTHER[name] for name in OPTIONS.keys() - {"mask_image_path", "script"}})
    store.add("a", JobKind.LIPSYNC, options, {}, {}, 10)
    assert store.get("a").options == options


# One range everywhere


@pytest.mark.parametrize("option", NUMBERS, ids=lambda option: option.name)
def test_a_range_is_the_same_on_every_surface(option, tmp_path, page_form):
    name, beyond = option.name, 1 if option.type is int else 1e-3
    for value in (option.low - beyond, option.high + beyond):
        for parse in (
            on_command_line,
            lambda values: in_a_config(values, tmp_path),
            lambda values: in_a_list(values, tmp_path),
            lambda values: in_the_batch_command(values, tmp_path),
            parse_options,
        ):
            with pytest.raises(UserError, match=rf"{name} must be a .*number from .*, not |more than 64$"):
                parse({**NEEDS.get(name, {}), name: str(value)})
    for value in (option.low, option.high):
        assert getattr(on_command_line({**NEEDS.get(name, {}), name: str(value)}), name) == value
    schema = form_properties()[name]
    bounds = next((part for part in schema.get("anyOf", []) if part["type"] != "null"), schema)
    assert (bounds["minimum"], bounds["maximum"]) == (option.low, option.high)
    field = page_form.fields[name]
    if option.default is None:  # an empty field of text, which names what that means
        assert option.show.unset in field.placeholder
    elif option.words:
        assert field.allow_custom_value and {value for _, value in field.choices} >= {*option.words}
    else:
        assert (field.minimum, field.maximum) == (option.low, option.high)
    assert option.range in argument_help(option)
    assert f"| {option.range} |" in option_tables.table("jobs")


@pytest.mark.parametrize(
    "option", [option for option in OPTIONS.values() if option.words], ids=lambda option: option.name
)
def test_a_word_in_place_of_a_number_is_the_same_on_every_surface(option, tmp_path, page_form):
    start = {name: field.value for name, field in page_form.fields.items()}
    for word in option.words:
        given = {option.name: word}
        wanted = GenerationOptions(**given)
        assert on_command_line(given) == in_a_config(given, tmp_path) == in_the_batch_command(given, tmp_path) == wanted
        assert in_a_list(given, tmp_path) == wanted == page_form.read(tuple((start | given).values()))[0]
        assert dict(zip(page_form.fields, page_form.values_of(wanted, {}), strict=True))[option.name] == word
        for schema in (form_properties(), GenerationOptions.model_json_schema()["properties"]):
            assert {"const": word, "type": "string"} in schema[option.name]["anyOf"]


def test_choices_are_the_same_everywhere(page_form):
    for option in (option for option in OPTIONS.values() if option.choices):
        offered = [value for _, value in page_form.fields[option.name].choices if value]
        assert tuple(offered) == option.choices
        schema = form_properties()[option.name]
        bounds = next((part for part in schema.get("anyOf", []) if part["type"] != "null"), schema)
        assert tuple(bounds["enum"]) == option.choices


def test_names_declared_here_are_those_that_are_implemented():
    assert set(ENHANCERS) == set(enhancers._OPENERS)
    assert set(get_args(Solver)) == {sampling.DDIM, sampling.DPM_PLUS_PLUS}
    with pytest.raises(UserError):
        create_detector("none")
    create_detector(DETECTORS[1]).close()


# What is said about wrong options


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"crf": "high"}, "crf must be a whole number from 0 to 51, not 'high'"),
        ({"chunk_batch_size": 0}, "chunk_batch_size must be a whole number from 1 to 64, or auto, not 0"),
        (
            {"chunk_batch_size": "aut"},
            "chunk_batch_size must be a whole number from 1 to 64, or auto, not 'aut'; did you mean auto?",
        ),
        ({"interpolate": "fast"}, "interpolate must be a number from 1 to 240, not 'fast'"),
        ({"crf": True}, "crf must be a whole number from 0 to 51, not 'True'"),
        ({"crf": None}, "crf must be a whole number from 0 to 51, not None"),
        ({"guidance_scale": float("nan")}, "guidance_scale must be a number from 1 to 3, not nan"),
        ({"seed": 2**63}, "seed must be a whole number from -1 up, not 9223372036854775808"),
        ({"solver": "dpm"}, "solver must be one of ddim, dpm++, not 'dpm'; did you mean dpm++?"),
        ({"face": "larges"}, f"face must be {FACE_VALUES}, not 'larges'; did you mean largest?"),
        ({"keep_fps": "maybe"}, "keep_fps must be true or false, not 'maybe'"),
        ({"lora": ""}, "lora must be a name of 1 to 300 characters, not ''"),
        ({"model": "a" * 999}, f"model must be a name of 1 to 300 characters, not '{'a' * 39}..."),
        ({"face": "a\nb"}, f"face must be {FACE_VALUES}, not 'a\\nb'"),
        ({"steps": 3}, "unknown option 'steps'; did you mean inference_steps?"),
        ({"x": 1}, "unknown option 'x'"),
        (
            {"crf": 52, "solver": "x"},
            "solver must be one of ddim, dpm++, not 'x'; crf must be a whole number from 0 to 51, not 52",
        ),
        ({"lora_scale": 0.5}, "lora_scale has no effect without lora; give the adapter as well"),
        ({"enhancer": "gfpgan"}, "enhancer has no effect without enable_upscale; turn that on as well"),
    ],
)  # fmt: skip
def test_messages(values, message):
    with pytest.raises(OptionError) as error:
        parse_options(values)
    assert str(error.value) == message


def test_of_many_problems_the_first_are_named():
    with pytest.raises(OptionError, match="unknown option 'x0'; .*; unknown option 'x4'$"):
        parse_options({f"x{number}": number for number in range(8)})


@pytest.mark.parametrize("name", NEEDS)
def test_options_without_effect_are_refused_on_every_surface(name, tmp_path, page_form, capsys):
    alone = {name: OTHER[name]}
    message = f"{name} has no effect without {next(iter(NEEDS[name]))}"
    for parse in (lambda: in_a_list(alone, tmp_path), lambda: in_the_batch_command(alone, tmp_path)):
        with pytest.raises(UserError, match=f"line 2: {message}"):
            parse()
    values = {key: field.value for key, field in page_form.fields.items()} | alone
    with pytest.raises(UserError, match=message):
        page_form.read(tuple(values.values()))
    assert inference.main([f"--{name}={OTHER[name]}"]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}") and error.count("\n") == 1


def test_unknown_arguments_name_the_nearest_option(capsys):
    for parser in (inference.build_parser(), batch.build_parser(), eval.run.build_parser()):
        required = [f"{action.option_strings[0]}=x" for action in parser._actions if action.required]
        with pytest.raises(SystemExit, match="2"):
            parser.parse_args([*required, "--guidence_scale=2"])
        assert "did you mean --guidance_scale?" in capsys.readouterr().err


def test_options_may_be_left_out_of_a_parser():
    parser = argparse.ArgumentParser()
    add_option_arguments(parser, leave_out=("model",))
    assert given_options(parser.parse_args(["--crf=3"])) == {"crf": "3"}


# Names and jobs of earlier versions


def test_former_names():
    options = GenerationOptions(match_color=True, max_seconds=2)
    assert parse_options({"match_colour": "true", "preview_seconds": "2"}) == options
    assert inference.parse_options(["--match_colour", "--max_seconds=2"]).generation == options
    for former, mode in (("loop", "bounce"), ("freeze", "freeze"), ("error", "error")):
        wanted = GenerationOptions(length_mode=mode)
        assert inference.parse_options([f"--on_short_video={former}"]).generation == wanted
        assert read_stored(json.dumps({"on_short_video": former})) == wanted
        assert parse_options({"on_short_video": former}) == wanted


def test_jobs_that_earlier_versions_stored(tmp_path):
    stored = {
        "model": "auto", "lora": None, "inference_steps": None, "guidance_scale": 7.5, "seed": 5, "solver": "dpm++",
        "face": "12,30.5", "detector": "auto", "keep_fps": True, "on_short_video": "freeze", "match_colour": True,
        "enable_upscale": False, "sharpness_factor": 2.0, "interpolate": 60.0, "crf": 20, "preview_seconds": 2.0,
        "chunk_batch_size": 0,
    }  # fmt: skip
    store = JobStore(tmp_path / "jobs.sqlite")
    store.add("a", JobKind.LIPSYNC, GenerationOptions(), {"video": "a"}, {"video": "video.mp4"}, 10)
    store._connection().execute("UPDATE jobs SET options = ?", (json.dumps(stored),))
    wanted = GenerationOptions(
        guidance_scale=3, seed=5, solver="dpm++", face="12,30.5", keep_fps=True, length_mode="freeze",
        match_color=True, sharpness_factor=2, interpolate=60, crf=20, max_seconds=2, chunk_batch_size="auto",
    )  # fmt: skip
    assert store.get("a").options == wanted == read_stored(json.dumps(stored))
    assert [row.options for row in store.listing(None, 10, 0)] == [wanted]


# A job's mask


def test_a_job_takes_its_mask_as_a_file(tmp_path):
    service = service_in(tmp_path / "ws")
    files = write_files(tmp_path / "in")
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "mask.png")
    mask = {"mask": ("mask.png", tmp_path / "mask.png")}
    job = service.submit(JobKind.LIPSYNC, files | mask, GenerationOptions())
    stored = service.input_path(job.id, "mask")
    assert stored.name == "mask.png"
    service.workspace.clear_attempt(job.id)
    assert stored.is_file()
    with pytest.raises(UserError, match="not an image"):
        service.submit(JobKind.LIPSYNC, files | {"mask": files["audio"]}, GenerationOptions())
    with pytest.raises(UserError, match="takes video, not mask"):
        service.submit(JobKind.INTERPOLATE, {"video": files["audio"]} | mask, GenerationOptions())
    with pytest.raises(UserError, match="upload the image"):
        service.submit(JobKind.LIPSYNC, files, GenerationOptions(mask_image_path=tmp_path / "mask.png"))


def test_a_job_runs_with_its_mask_and_within_the_services_limit(tmp_path, monkeypatch):
    seen, looked = {}, []
    monkeypatch.setattr("latentsync.serving.handler.require_face", lambda *given: looked.append(given))
    models = SimpleNamespace(device="cpu", get=lambda options: lambda *files, **given: seen.update(given, files=files))
    files = {role: tmp_path / role for role in ("video", "audio", "mask")}
    for seconds, longest in ((None, 9.0), (5.0, 5.0), (20.0, 9.0)):
        options = GenerationOptions(max_seconds=seconds, chunk_batch_size=4)
        run_job(JobKind.LIPSYNC, options, files, tmp_path / "o", models, lambda *_: None, max_seconds=9.0)
        assert (seen["options"].mask_image_path, seen["options"].max_seconds) == (files["mask"], longest)
    assert looked == [(files["video"], "auto", "cpu")] * 3
    assert seen["files"] == (files["video"], files["audio"], tmp_path / "o") and seen["options"].chunk_batch_size == 4
