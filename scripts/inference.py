"""Lip-sync a video or a picture to a voice: `python -m scripts.inference --video_path V --audio_path A`.

Without arguments the demo that ships with the project is run. Exit codes: 0 done, 1 something is wrong with what
was given (one line says what), 2 wrong usage.
"""

import argparse
import logging
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from latentsync.loading import ModelPaths, load_pipeline
from latentsync.media.writer import DEFAULT_CRF
from latentsync.utils.errors import UserError
from latentsync.utils.registry import PROJECT_ROOT, model_names

DEMO_VIDEO = PROJECT_ROOT / "assets" / "demo_portrait.png"
DEMO_AUDIO = PROJECT_ROOT / "assets" / "demo_voice.wav"
DEMO_OUT = Path("outputs") / "demo.mp4"
INTERRUPTED = 130


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.inference", description="Lip-sync a video or a picture to a voice.", allow_abbrev=False
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
    add("--device", default="auto", help="cuda, cuda:N, mps, cpu (default: the best there is)")
    add("--dtype", choices=["float32", "float16", "bfloat16"], help="default: float32 on a CPU, float16 elsewhere")

    add = parser.add_argument_group("quality and speed").add_argument
    add("--inference_steps", type=int, help="denoising steps (default: the model's; 20 for the released ones)")
    add("--guidance_scale", type=float, help="how strongly to follow the voice, 1 to 3 (default: the model's, 1.5)")
    add("--seed", type=int, default=1247, help="equal seeds give equal videos; -1 for a new one (default: %(default)s)")
    add("--enable_deepcache", action="store_true", help="reuse deep features between steps: faster, slightly softer")
    add("--vram_efficient", action="store_true", help="less GPU memory, a little slower")
    add("--chunk_batch_size", type=int, default=1, help="chunks of 16 frames at once; more is faster on a large GPU")
    add("--enable_upscale", action="store_true", help="sharpen the face with RealESRGAN x4 (checkpoint needed)")
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
    add("--mask_image_path", type=Path, help="another mask, white = keep (default: the one of the released models)")
    add("--quiet", action="store_true", help="no progress bar, warnings and errors only")
    return parser


def parse_options(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Options of the command line, over those of `--config`, over the defaults. Exits with 2 on wrong usage."""
    parser = build_parser()
    config = parser.parse_args(argv).config
    if config is not None:
        parser.set_defaults(**read_config(config, parser))
    return parser.parse_args(argv)


def read_config(path: Path, parser: argparse.ArgumentParser) -> dict[str, object]:
    """Values of a YAML file, checked as the same options on the command line would be."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        values = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except (OSError, OmegaConfBaseException, YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as YAML ({str(error).splitlines()[0]})") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected lines of the form `option: value`")
    actions = {action.dest: action for action in parser._actions if action.dest not in ("help", "config")}
    unknown = [str(name) for name in values if name not in actions]
    if unknown:
        raise UserError(f"{path}: unknown options {', '.join(unknown)}; see --help for those there are")
    words = []
    for name, value in values.items():
        if actions[name].nargs == 0:
            if not isinstance(value, bool):
                raise UserError(f"{path}: {name} must be true or false, not {value!r}")
            words += [f"--{name}"] if value else []
        elif value is not None:
            words.append(f"--{name}={value}")
    parsed = vars(parser.parse_args(words))
    return {name: parsed[name] for name in values if name in parsed}


def make_generator(seed: int) -> torch.Generator:
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
    if not 0 <= options.sharpness_factor <= 10:
        raise UserError(f"--sharpness_factor must lie between 0 and 10, not {options.sharpness_factor}")


def run(options: argparse.Namespace) -> Path:
    """Do what the options say; returns where the result is."""
    check_options(options)
    own = ModelPaths(
        unet=options.inference_ckpt_path,
        unet_config=options.unet_config_path,
        vae=options.vae_path,
        whisper=options.whisper_path,
        scheduler_config=options.scheduler_config_path,
        base=options.model,
    )
    uses_own = any((own.unet, own.unet_config, own.vae, own.whisper, own.scheduler_config))
    pipeline = load_pipeline(
        own if uses_own else options.model,
        options.device,
        getattr(torch, options.dtype) if options.dtype else None,
        deepcache=options.enable_deepcache,
        low_memory=options.vram_efficient,
        upscale=options.enable_upscale,
    )
    options.video_out_path.parent.mkdir(parents=True, exist_ok=True)
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
        chunk_batch_size=1 if options.vram_efficient else options.chunk_batch_size,
        progress=not options.quiet,
    )
    return result.path


def main(argv: Sequence[str] | None = None) -> int:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a stopped job cleans up like an interrupted one
    try:
        options = parse_options(argv)
        if options.quiet:
            logging.getLogger().setLevel(logging.WARNING)
        print(run(options))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; nothing was written", file=sys.stderr)
        return INTERRUPTED
    except torch.OutOfMemoryError:
        print("error: the GPU is out of memory; try --vram_efficient or a smaller model (--model)", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
