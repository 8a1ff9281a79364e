"""Measure a lip-sync model and a SyncNet on held-out clips: `python -m tools.evaluate_embedded --clips_dir DIR`.

Written to --output_dir: report.md and report.json (figures, targets, every clip), clips/ (the results as videos),
sheets/ (their frames beside the real ones), offsets/ (distance of picture and sound over their offset).

syncnet         real clips: is the in-sync pair preferred, is the offset right
sync            sync confidence of the model's results against that of the real clips
reconstruction  the mouth rebuilt with a reference from elsewhere in the clip against copying that reference
silence         is the mouth closed before and after the speech

The clips are aligned faces as `preprocess.data_processing_pipeline` makes them. Exit codes: 0 measured (missed targets
are said in the table), 1 something is wrong with what was given.
"""

import argparse
import logging
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from latentsync.config.syncnet import load_syncnet_config
from latentsync.loading import ModelPaths, load_pipeline
from latentsync.metrics.sync import SyncScorer
from latentsync.models.perceptual import LPIPS, VGG16
from latentsync.models.syncnets import SYNCNET_SCHEMAS
from latentsync.pipelines.lipsync_pipeline import LipsyncPipeline
from latentsync.utils.errors import UserError
from latentsync.utils.registry import CHECKPOINTS_DIR, PROJECT_ROOT, SYNCNET, entry, project_path
from tools.benchmarks.report import machine
from tools.evaluation.clips import FPS, HeldOutClip, LoadedClip, load_clip, load_voice, read_held_out
from tools.evaluation.evaluation import SECTIONS, WRONG_VOICES, Evaluation, Outcome
from tools.evaluation.report import as_json, as_markdown
from tools.evaluation.synthesis import CHUNK, Talker

logger = logging.getLogger("evaluate_embedded")

OUR_SYNCNET, PUBLISHED_SYNCNET = "our SyncNet", "the published StableSyncNet"
PUBLISHED_CONFIG = PROJECT_ROOT / "configs" / "syncnet" / "syncnet_16_pixel_attn.yaml"


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tools.evaluate_embedded",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--clips_dir", type=Path, required=True, help="folder of held-out clips, aligned faces with sound")
    add(
        "--held_out",
        type=Path,
        help="list of clip<TAB>person<TAB>seen|unseen (default: held_out.txt in the folder, else its train.txt)",
    )
    add(
        "--training_list",
        type=Path,
        default=PROJECT_ROOT / "data" / "embedded" / "train.txt",
        help="what was trained on: tells seen people where the list does not, and clips that must not be measured",
    )
    add("--output_dir", type=Path, default=PROJECT_ROOT / "output" / "embedded" / "report", help="where results go")
    add("--sections", nargs="+", choices=SECTIONS, default=SECTIONS, help="what to measure (default: all)")
    add("--model", default="embedded", help="name of a registered model (default: %(default)s)")
    add("--inference_ckpt_path", type=Path, help="UNet to measure instead of the model's own")
    add("--unet_config_path", type=Path, help="its config")
    add("--vae_path", type=Path, help="autoencoder folder to use instead of the model's own")
    add(
        "--syncnet_config",
        type=Path,
        default=PROJECT_ROOT / "configs" / "syncnet" / "embedded.yaml",
        help="config of the SyncNet that scores",
    )
    add("--syncnet_ckpt", type=Path, default=CHECKPOINTS_DIR / "embedded" / "syncnet.safetensors", help="its weights")
    add(
        "--sync_reference",
        type=Path,
        metavar="CONFIG",
        help="config of another SyncNet, whose ckpt.inference_ckpt_path is there: SyncNet's figures are then told of "
        "recordings that this one has put in sync as well",
    )
    add("--speech", type=Path, default=PROJECT_ROOT / "assets" / "demo_voice.wav", help="voice of the silence test")
    add(
        "--voices",
        type=Path,
        nargs="+",
        default=[],
        help="sound files that drive the clips; at least four, of which each clip is scored against three it was not "
        "driven by (default: the sounds of the other clips)",
    )
    add("--voice_seconds", type=float, default=6.0, help="of each of these files (default: %(default)s)")
    add("--max_clips", type=int, default=16, help="clips the model runs on, 0 for all (default: %(default)s)")
    add("--max_silence_clips", type=int, default=8, help="of these, for the silence test (default: %(default)s)")
    add("--max_frames", type=int, default=75, help="frames of a clip the model runs on (default: %(default)s)")
    add("--seed", type=int, default=1247, help="of the noise (default: %(default)s)")
    add("--device", help="cuda, cuda:N, mps or cpu (default: the best there is)")
    return parser


def parse_options(argv: Sequence[str]) -> argparse.Namespace:
    """Options of this tool. Exits with 2 on wrong usage."""
    parser = build_parser()
    options = parser.parse_args(argv)
    if options.max_clips < 0 or options.max_silence_clips < 0:
        parser.error("--max_clips and --max_silence_clips must be 0 or more")
    if options.voices and len(options.voices) <= WRONG_VOICES:
        parser.error(f"--voices needs at least {WRONG_VOICES + 1} files")
    if options.voice_seconds * FPS < 2 * CHUNK:
        parser.error(f"--voice_seconds must be at least {2 * CHUNK / FPS}")
    if options.max_frames < 2 * CHUNK:
        parser.error(f"--max_frames must be at least {2 * CHUNK}: a run and its reference")
    return options


def load_model(options: argparse.Namespace) -> LipsyncPipeline:
    """The model asked for, with its own steps and guidance."""
    own = ModelPaths(
        unet=options.inference_ckpt_path,
        unet_config=options.unet_config_path,
        vae=options.vae_path,
        base=options.model,
    )
    has_own = any((own.unet, own.unet_config, own.vae))
    return load_pipeline(own if has_own else options.model, options.device)


def load_scorers(options: argparse.Namespace, pipeline: LipsyncPipeline) -> dict[str, SyncScorer]:
    """Our SyncNet, and the published one where its weights are present; none where no section needs them."""
    if not {"syncnet", "sync"} & set(options.sections):
        return {}
    parts = {"codec": pipeline.codec, "audio": pipeline.audio_encoder, "device": pipeline.device}
    scorers = {OUR_SYNCNET: SyncScorer.from_pretrained(options.syncnet_config, options.syncnet_ckpt, **parts)}
    if not entry("syncnet").missing():
        scorers[PUBLISHED_SYNCNET] = SyncScorer.from_pretrained(PUBLISHED_CONFIG, SYNCNET.find(), **parts)
    return scorers


def load_reference(options: argparse.Namespace, pipeline: LipsyncPipeline) -> SyncScorer | None:
    """The SyncNet of --sync_reference."""
    if options.sync_reference is None or "syncnet" not in options.sections:
        return None
    weights = load_syncnet_config(options.sync_reference, *SYNCNET_SCHEMAS).ckpt.inference_ckpt_path
    parts = {"codec": pipeline.codec, "audio": pipeline.audio_encoder, "device": pipeline.device}
    return SyncScorer.from_pretrained(options.sync_reference, project_path(weights), **parts)


def load_perceptual() -> tuple[LPIPS, str]:
    """LPIPS and its name in the report: on an untrained trunk where VGG16's weights are absent."""
    if VGG16.is_file():
        return LPIPS(), "LPIPS"
    logger.warning("%s is not there: LPIPS is measured on an untrained VGG16", VGG16)
    return LPIPS(random_trunk=True), "LPIPS (random trunk)"


def load_clips(clips: Sequence[HeldOutClip], shortest: int, resolution: int) -> list[LoadedClip]:
    """All clips of at least `shortest` frames; others are named in the log and left out."""
    loaded = []
    for clip in clips:
        item = load_clip(clip, resolution)
        if len(item.frames) < shortest:
            logger.warning("%s: %d frames, %d are needed: left out", clip.path, len(item.frames), shortest)
            continue
        loaded.append(item)
    if not loaded:
        raise UserError(f"no held-out clip has the {shortest} frames that are needed; give longer clips")
    return loaded


def evaluate(options: argparse.Namespace) -> Outcome:
    """Load everything first, so that what is missing is said before hours are spent, then measure."""
    own_list = options.clips_dir / "held_out.txt"
    listed = options.held_out or (own_list if own_list.is_file() else options.clips_dir / "train.txt")
    clips = read_held_out(listed, options.training_list)
    pipeline = load_model(options)
    scorers = load_scorers(options, pipeline)
    perceptual, lpips_name = load_perceptual()
    shortest = max([2 * CHUNK, *(scorer.shortest_clip for scorer in scorers.values())])
    evaluation = Evaluation(
        Talker(pipeline, options.seed),
        scorers,
        perceptual,
        lpips_name,
        options.speech,
        options.output_dir,
        max_clips=options.max_clips,
        max_silence_clips=options.max_silence_clips,
        max_frames=options.max_frames,
        reference=load_reference(options, pipeline),
        voices=[load_voice(path, round(options.voice_seconds * FPS)) for path in options.voices],
    )
    return evaluation.run(load_clips(clips, shortest, pipeline.resolution), options.sections)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and write the report; prints where it is and the table."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    argv = sys.argv[1:] if argv is None else argv
    options = parse_options(argv)
    command = shlex.join(["python", "-m", "tools.evaluate_embedded", *argv])
    try:
        outcome = evaluate(options)
        about = {"model": str(options.inference_ckpt_path or options.model)} | machine()
        text = as_markdown(outcome.figures, outcome.results, about, command)
        content = {"machine": about, "command": command, "syncnet": outcome.real, "clips": outcome.results}
        options.output_dir.mkdir(parents=True, exist_ok=True)
        (options.output_dir / "report.md").write_text(text, encoding="utf-8")
        (options.output_dir / "report.json").write_text(as_json(outcome.figures, content), encoding="utf-8")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(text)
    print(options.output_dir / "report.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
