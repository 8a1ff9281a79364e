"""Lip-sync a video or a picture to a voice: `python -m scripts.inference --video_path V --audio_path A`.

Without arguments the demo that ships with the project is run. Exit codes: 0 done, 1 something is wrong with what
was given (one line says what), 2 wrong usage.
"""

import argparse
import logging
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from latentsync.utils.errors import UserError, one_line

# The libraries take seconds to load. They are imported in the functions that need them, so that wrong usage is told at
# once and Ctrl-C is obeyed from the first moment on.
if TYPE_CHECKING:
    import torch

PROJECT_ROOT = Path(__file__).resolve().parents[1]
DEMO_VIDEO = PROJECT_ROOT / "assets" / "demo_portrait.png"
DEMO_AUDIO = PROJECT_ROOT / "assets" / "demo_voice.wav"
DEMO_OUT = Path("outputs") / "demo.mp4"
INTERRUPTED = 130
IMPATIENCE_SECONDS = 3.0


class _ConfigParser(argparse.ArgumentParser):
    """For values from a file: what is wrong with them is the file's fault, not wrong usage."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message.removeprefix("argument "))


def build_parser(kind: type[argparse.ArgumentParser] = argparse.ArgumentParser) -> argparse.ArgumentParser:
    from latentsync.media.writer import DEFAULT_CRF
    from latentsync.models.enhancers import ENHANCERS
    from latentsync.utils.registry import model_names

    parser = kind(
        prog="python -m scripts.inference",
        usage="%(prog)s [--option value ...], all optional; --help lists them",
        description="Lip-sync a video or a picture to a voice.",
        allow_abbrev=False,
    )
    add = parser.add_argument_group("input and output").add_argument
    add("--video_path", default=DEMO_VIDEO, type=Path, help="video or still picture of a person (default: the demo's)")
    add(
        "--audio_path",
        default=DEMO_AUDIO,
        type=Path,
        help="voice: any audio file, or a video with sound (default: the demo's)",
    )
    add("--video_out_path", default=DEMO_OUT, type=Path, help="result: .mp4, .mov or .mkv (default: %(default)s)")
    add("--temp_dir", type=Path, help="where the unfinished file lies (default: beside the result)")
    add("--config", type=Path, help="YAML with any of these options; the command line wins over it")

    add = parser.add_argument_group("model").add_argument
    add("--model", choices=model_names(), help="default: the best one that is present and that the device can run")
    add("--inference_ckpt_path", type=Path, help="UNet checkpoint of your own (.pt or .safetensors)")
    add("--unet_config_path", type=Path, help="its config; configs/unet/stage2.yaml (256 px) or stage2_512.yaml")
    add("--vae_path", type=Path, help="folder of another autoencoder in diffusers layout")
    add("--whisper_path", type=Path, help="another Whisper checkpoint (.pt, or the encoder as .safetensors)")
    add("--scheduler_config_path", type=Path, help="another DDIM configuration (JSON)")
    add("--lora", type=Path, help="adapter from ./fine_tuning.sh (.safetensors), for the model it was trained on")
    add("--lora_scale", type=float, help="how much of the adapter, 0 to 2 (default: 1, as trained)")
    add("--device", default="auto", help="cuda, cuda:N, mps, cpu (default: the best there is)")
    add("--dtype", choices=["float32", "float16", "bfloat16"], help="default: float32 on a CPU, float16 elsewhere")

    add = parser.add_argument_group("quality and speed").add_argument
    add("--inference_steps", type=int, help="denoising steps (default: the model's; 20 for the released ones)")
    add("--guidance_scale", type=float, help="how strongly to follow the voice, 1 to 3 (default: the model's, 1.5)")
    add("--seed", type=int, default=1247, help="equal seeds give equal videos; -1 for a new one (default: %(default)s)")
    add("--solver", choices=["ddim", "dpm++"], default="ddim", help="dpm++ comes to the same face in fewer steps")
    add("--enable_deepcache", action="store_true", help="reuse deep features between steps: faster, slightly softer")
    add("--vram_efficient", action="store_true", help="less GPU memory, a little slower")
    add("--chunk_batch_size", type=int, default=1, help="chunks of 16 frames at once; more is faster on a large GPU")
    add(
        "--match_colour",
        action="store_true",
        help="give the new face the frame's skin colour; the embedded model always does",
    )
    add(
        "--enable_upscale",
        action="store_true",
        help="RealESRGAN x4 on the new face; without its weights sharpening",
    )
    add("--enhancer", choices=ENHANCERS, help="network of --enable_upscale; its weights must be there")
    add("--sharpness_factor", type=float, default=1.0, help="sharpness of the new face, 1 = untouched")
    add("--crf", type=int, default=DEFAULT_CRF, help="H.264 quality, 0 lossless to 51 (default: %(default)s)")

    add = parser.add_argument_group("faces and time").add_argument
    add("--face", default="largest", help="whom: largest, left, right, N-th from the left (0, 1, ...) or x,y in pixels")
    add(
        "--detector",
        choices=["auto", "mediapipe", "insightface"],
        default="auto",
        help="auto: insightface if installed",
    )
    add("--video_fps", type=float, default=25.0, help="frame rate of the result (default: %(default)s)")
    add("--keep_fps", action="store_true", help="keep the source's frame rate instead")
    add(
        "--on_short_video",
        choices=["loop", "freeze", "error"],
        default="loop",
        help="when the voice outlasts the video",
    )
    add("--interpolate", type=float, metavar="FPS", help="frame rate of the result, frames in between made from motion")
    add("--max_seconds", type=float, help="stop after so much of the voice, for a preview")
    add("--mask_image_path", type=Path, help="another mask, white = keep (default: the one of the released models)")
    add("--quiet", action="store_true", help="no progress bar, warnings and errors only")
    return parser


def parse_options(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Options of the command line, over those of `--config`, over the defaults. Exits with 2 on wrong usage."""
    parser = build_parser()
    words = join_values(sys.argv[1:] if argv is None else argv, parser)
    config = parser.parse_args(words).config
    if config is not None:
        parser.set_defaults(**read_config(config))
    return parser.parse_args(words)


def join_values(words: Sequence[str], parser: argparse.ArgumentParser) -> list[str]:
    """Write `--option -value` as `--option=-value`: argparse takes a name with a leading dash for an option."""
    takes_value = {word for action in parser._actions if action.nargs != 0 for word in action.option_strings}
    joined: list[str] = []
    for word in words:
        is_value = word.startswith("-") and word.split("=")[0] not in parser._option_string_actions
        if joined and joined[-1] in takes_value and is_value:
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


def read_config(path: Path) -> dict[str, object]:
    """Values of a YAML file, checked as the same options on the command line would be. Raises UserError."""
    from latentsync.config.yaml_files import read_yaml

    values = read_yaml(path).values
    parser = build_parser(_ConfigParser)
    actions = {action.dest: action for action in parser._actions if action.dest not in ("help", "config")}
    unknown = [str(name) for name in values if name not in actions]
    if unknown:
        raise UserError(f"{path}: unknown options {', '.join(unknown)}; see --help for those there are")
    words = []
    for name, value in values.items():
        is_switch = actions[name].nargs == 0
        if is_switch and not isinstance(value, bool):
            raise UserError(f"{path}: {name} must be true or false, not {value!r}")
        if isinstance(value, dict | list) or (isinstance(value, bool) and not is_switch):
            raise UserError(f"{path}: {name} must be a single value, not {value!r}")
        if is_switch:
            words += [f"--{name}"] if value else []
        elif value is not None:
            words.append(f"--{name}={value}")
    try:
        parsed = vars(parser.parse_args(words))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return {name: parsed[name] for name in values}


def make_generator(seed: int) -> "torch.Generator":
    import torch

    generator = torch.Generator()
    if seed == -1:
        generator.seed()
        return generator
    return generator.manual_seed(seed)


def check_options(options: argparse.Namespace) -> None:
    """Refuse values that argparse cannot judge."""
    if not -1 <= options.seed < 2**63:
        raise UserError(f"--seed must be -1 or a whole number from 0 to 2^63 - 1, not {options.seed}")
    if not 0 <= options.crf <= 51:
        raise UserError(f"--crf must lie between 0 and 51, not {options.crf}")
    if options.chunk_batch_size < 1:
        raise UserError(f"--chunk_batch_size must be 1 or more, not {options.chunk_batch_size}")
    if not 1 <= options.video_fps <= 120:
        raise UserError(f"--video_fps must lie between 1 and 120, not {options.video_fps}")
    if options.lora_scale is not None:
        if options.lora is None:
            raise UserError("--lora_scale has no effect without --lora; give the adapter")
        if not 0 <= options.lora_scale <= 2:
            raise UserError(f"--lora_scale must lie between 0 and 2, not {options.lora_scale}")
    if options.enhancer is not None and not options.enable_upscale:
        raise UserError("--enhancer has no effect without --enable_upscale; give that as well")
    if not 0 <= options.sharpness_factor <= 10:
        raise UserError(f"--sharpness_factor must lie between 0 and 10, not {options.sharpness_factor}")


def run(options: argparse.Namespace) -> Path:
    """Do what the options say; returns where the result is."""
    from latentsync.media.paths import check_input_path, check_output_path
    from latentsync.utils.files import parent_folders

    # What is cheap to check comes before the seconds that loading a model takes.
    check_options(options)
    inputs = [check_input_path(options.video_path), check_input_path(options.audio_path, "audio")]
    with parent_folders(options.video_out_path):
        check_output_path(options.video_out_path, inputs)
        return synthesise(options)


def synthesise(options: argparse.Namespace) -> Path:
    """Load the model and run it on checked options."""
    import torch
    from tqdm.contrib.logging import logging_redirect_tqdm

    from latentsync.loading import ModelPaths, load_pipeline

    own = ModelPaths(
        unet=options.inference_ckpt_path,
        unet_config=options.unet_config_path,
        vae=options.vae_path,
        whisper=options.whisper_path,
        scheduler_config=options.scheduler_config_path,
        base=options.model,
    )
    uses_own = any((own.unet, own.unet_config, own.vae, own.whisper, own.scheduler_config))
    try:
        pipeline = load_pipeline(
            own if uses_own else options.model,
            options.device,
            getattr(torch, options.dtype) if options.dtype else None,
            deepcache=options.enable_deepcache,
            low_memory=options.vram_efficient,
            match_colour=options.match_colour,
            upscale=options.enable_upscale,
            enhancer=options.enhancer,
            lora=options.lora,
            lora_scale=1.0 if options.lora_scale is None else options.lora_scale,
        )
        with logging_redirect_tqdm():  # warnings on lines of their own, not in the progress bar
            result = pipeline(
                options.video_path,
                options.audio_path,
                options.video_out_path,
                video_fps=options.video_fps,
                num_inference_steps=options.inference_steps,
                guidance_scale=options.guidance_scale,
                mask_image_path=options.mask_image_path,
                temp_dir=options.temp_dir,
                generator=make_generator(options.seed),
                face=options.face,
                detector=options.detector,
                keep_fps=options.keep_fps,
                on_short_video=options.on_short_video,
                crf=options.crf,
                sharpness_factor=options.sharpness_factor,
                solver=options.solver,
                interpolate=options.interpolate,
                max_seconds=options.max_seconds,
                chunk_batch_size=1 if options.vram_efficient else options.chunk_batch_size,
                progress=not options.quiet,
            )
    except torch.OutOfMemoryError as error:
        raise UserError("the GPU is out of memory; try --vram_efficient or a smaller model (--model)") from error
    return result.path


def stop_on_signals() -> None:
    """Let SIGTERM, and the end of the terminal session, stop the program as Ctrl-C does.

    Signals that follow within moments of one are ignored: it is being obeyed already, and a second interrupt must not
    cut the cleaning up short.
    """
    last = -IMPATIENCE_SECONDS

    def stop(signal_number: int, frame: object) -> None:
        nonlocal last
        if time.monotonic() - last >= IMPATIENCE_SECONDS:
            last = time.monotonic()
            raise KeyboardInterrupt

    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:  # nohup and the like
            signal.signal(number, stop)


def main(argv: Sequence[str] | None = None) -> int:
    stop_on_signals()
    try:
        options = parse_options(argv)
        logging.basicConfig(level=logging.WARNING, format="%(message)s")
        if not options.quiet:  # the libraries' own notes are not for the user
            logging.getLogger("latentsync").setLevel(logging.INFO)
        path = run(options)
        print(os.fsencode(path).decode("utf-8", "backslashreplace"))  # file names may be any bytes
    except UserError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; nothing was written", file=sys.stderr)
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
