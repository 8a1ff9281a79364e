"""Lip-sync a video or a still image to speech: `python -m scripts.inference --video_path V --audio_path A`.

Without arguments it runs the demo. Exit codes: 0 done, 1 an input or an option is not valid (one line says why),
2 wrong usage.
"""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from latentsync.arguments import OptionParser, add_option_arguments, given_options
from latentsync.options import (
    AUTO,
    COMPILE_HELP,
    DTYPES,
    OPTIONS,
    QUANTIZE_HELP,
    WEIGHTS,
    WEIGHTS_HELP,
    OptionError,
    up_to_date,
)
from latentsync.options import parse_options as parse_generation
from latentsync.utils.commands import command
from latentsync.utils.errors import UserError, did_you_mean
from latentsync.utils.memory import collection_paused
from latentsync.utils.paths import PROJECT_ROOT

# The libraries take seconds to load. They are imported where they are needed, so that wrong usage is reported at once.
DEMO_VIDEO = PROJECT_ROOT / "assets" / "demo_video.mp4"
DEMO_AUDIO = PROJECT_ROOT / "assets" / "demo_voice.wav"
DEVICE_HELP = "cuda, cuda:N, mps or cpu, or several such as cuda:0,cuda:1, which share a video (default: the best)"
DEMO_OUT = Path("outputs") / "demo.mp4"


def build_parser() -> OptionParser:
    parser = OptionParser(
        prog="latentsync infer",
        usage="%(prog)s [--option value ...], all optional; --help lists them",
        description="Lip-sync a video or a still image to speech.",
    )
    add = parser.add_argument_group("input and output").add_argument
    add("--video_path", default=DEMO_VIDEO, type=Path, help="video or still image of a person (default: the demo)")
    add(
        "--audio_path", type=Path, help="audio file, or video with audio (default: the demo, unless --text or --script)"
    )
    add("--video_out_path", default=DEMO_OUT, type=Path, help="result: .mp4, .mov or .mkv (default: %(default)s)")
    add("--temp_dir", type=Path, help="folder for the unfinished file (default: that of the result)")
    add(
        "--report",
        type=Path,
        help="write a JSON report: for each frame, the face, its confidence, and why it was left unchanged",
    )
    add("--config", type=Path, help="YAML file with any of these options; the command line takes precedence")
    add("--quiet", action="store_true", help="hide the progress bar; show warnings and errors only")

    add = parser.add_argument_group("your own model files").add_argument
    add("--inference_ckpt_path", type=Path, help="UNet checkpoint (.pt or .safetensors)")
    add("--unet_config_path", type=Path, help="its config: configs/unet/stage2.yaml (256 px) or stage2_512.yaml")
    add("--vae_path", type=Path, help="autoencoder folder in diffusers layout")
    add("--whisper_path", type=Path, help="Whisper checkpoint (.pt, or the encoder as .safetensors)")
    add("--scheduler_config_path", type=Path, help="DDIM configuration (JSON)")

    add = parser.add_argument_group("device").add_argument
    add("--device", default=AUTO, help=DEVICE_HELP)
    add("--dtype", choices=DTYPES, help="precision of the model (default: by device and model)")
    add("--weights", choices=WEIGHTS, default="full", help=WEIGHTS_HELP)
    add("--quantize", action="store_true", help=QUANTIZE_HELP)
    add("--compile", action="store_true", help=COMPILE_HELP)
    add_option_arguments(parser)
    return parser


def parse_options(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line, which overrides `--config`, which overrides the defaults. Exits with 2 on wrong usage.

    Returns:
        The arguments; `generation` holds the generation options.

    Raises:
        UserError: a value or the config file is not valid.
    """
    parser = build_parser()
    words = join_values(sys.argv[1:] if argv is None else argv, parser)
    given = parser.parse_args(words)
    if given.config is not None:
        parser.set_defaults(**read_config(given.config, parser))
    arguments = parser.parse_args(words)
    try:
        arguments.generation = parse_generation(given_options(arguments))
    except OptionError as error:
        if given.config is not None and error.names and not set(error.names) & vars(given).keys():
            raise UserError(f"{given.config}: {error}") from error
        raise
    return arguments


def join_values(words: Sequence[str], parser: argparse.ArgumentParser) -> list[str]:
    """Join `--option -value` to `--option=-value`, since argparse mistakes values with a leading dash for options."""
    takes_value = {word for action in parser._actions if action.nargs != 0 for word in action.option_strings}
    joined: list[str] = []
    for word in words:
        is_value = word.startswith("-") and word.split("=")[0] not in parser._option_string_actions
        if joined and joined[-1] in takes_value and is_value:
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


def read_config(path: Path, parser: OptionParser) -> dict[str, object]:
    """Values of a YAML file by argument name; generation options are not checked yet. Raises UserError."""
    from latentsync.config.yaml_files import read_yaml

    values = dict(up_to_date(name, value) for name, value in read_yaml(path).values.items())
    actions = {action.dest: action for action in parser._actions if action.dest not in ("help", "config")}
    unknown = [str(name) for name in values if name not in actions]
    if unknown:
        raise UserError(f"{path}: unknown options {', '.join(unknown)}{did_you_mean(unknown[0], actions)}")
    values = {name: value for name, value in values.items() if value is not None}
    return values | {name: _argument(actions[name], values[name], path) for name in values.keys() - OPTIONS.keys()}


def _argument(action: argparse.Action, value: object, path: Path) -> object:
    """Convert a value of the file for an argument that is not a generation option."""
    is_switch, choices = action.nargs == 0, action.choices or ()
    if isinstance(value, bool) != is_switch or isinstance(value, dict | list) or (choices and value not in choices):
        expected = "true or false" if is_switch else ", ".join(choices) or "a single value"
        raise UserError(f"{path}: {action.dest} must be {expected}, not {value!r}")
    convert: Any = action.type or str
    return value if is_switch else convert(str(value))


def run(options: argparse.Namespace) -> Path:
    """Generate the video; returns the path of the result."""
    from latentsync.checkpoints.registry import entry
    from latentsync.faces.presence import require_face
    from latentsync.media.paths import check_input_path, check_output_path
    from latentsync.utils.files import parent_folders

    # Cheap checks before loading the model.
    if options.generation.model != AUTO:
        entry(options.generation.model)
    given = options.generation
    if options.audio_path is None and given.text is None and given.script is None:
        options.audio_path = DEMO_AUDIO
    inputs = [check_input_path(options.video_path)]
    inputs += [check_input_path(path, "audio") for path in (options.audio_path,) if path is not None]
    inputs += [check_input_path(given.script, "script")] if given.script is not None else []
    with parent_folders(options.video_out_path):
        check_output_path(options.video_out_path, inputs)
        require_face(options.video_path, options.generation.detector)
        check_report_path(options.report, [*inputs, options.video_out_path])
        return generate(options)


def check_report_path(report: Path | None, others: Sequence[Path]) -> None:
    """Raises UserError if the report would replace an input, the result or a folder."""
    if report is None:
        return
    if report.is_dir() or any(report.absolute() == other.absolute() for other in others):
        raise UserError(f"{report}: the report needs a file of its own; choose another --report")


def generate(options: argparse.Namespace) -> Path:
    """Load the model and run it; the options have been checked."""
    with collection_paused():
        import torch
        from tqdm.contrib.logging import logging_redirect_tqdm

        from latentsync.loading import ModelPaths, load_pipeline

    given = options.generation
    model = None if given.model == AUTO else given.model
    own = ModelPaths(
        unet=options.inference_ckpt_path,
        unet_config=options.unet_config_path,
        vae=options.vae_path,
        whisper=options.whisper_path,
        scheduler_config=options.scheduler_config_path,
    )
    try:
        pipeline = load_pipeline(
            model if own == ModelPaths() else replace(own, base=model),
            options.device,
            getattr(torch, options.dtype) if options.dtype else None,
            lora=given.lora,
            lora_scale=given.lora_scale,
            preset=given.preset,
            weights=options.weights,
            quantize=options.quantize,
            compile=options.compile,
        )
        with logging_redirect_tqdm():  # keeps warnings out of the progress bar
            result = pipeline(
                options.video_path,
                options.audio_path,
                options.video_out_path,
                temp_dir=options.temp_dir,
                progress=not options.quiet,
                report_path=options.report,
                options=given,
            )
    except torch.OutOfMemoryError as error:
        raise UserError(
            "the GPU is out of memory; try --vram_efficient, --weights host or a smaller model (--model)"
        ) from error
    return result.path


@command(interrupted="interrupted; nothing was written")
def main(argv: Sequence[str] | None = None) -> int:
    options = parse_options(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    if not options.quiet:  # but not the messages of other libraries
        logging.getLogger("latentsync").setLevel(logging.INFO)
    path = run(options)
    print(os.fsencode(path).decode("utf-8", "backslashreplace"))  # file names may be any bytes
    return 0


if __name__ == "__main__":
    sys.exit(main())
