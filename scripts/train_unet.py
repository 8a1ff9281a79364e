"""Train the UNet: `python -m scripts.train_unet --unet_config_path configs/unet/stage1.yaml`.

Stage 1 (configs/unet/stage1*.yaml) trains in latent space; stage 2 (stage2*.yaml) continues from its result with motion
modules and with losses on decoded frames. The same command resumes an interrupted run. On several GPUs:
`accelerate launch -m scripts.train_unet --unet_config_path ...`.
"""

import argparse
import logging
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch

from eval.pairs import read_pairs
from eval.validation import Validation, validation_models
from latentsync.config.syncnet import load_syncnet_config
from latentsync.config.unet import UNetFileConfig, load_unet_config
from latentsync.loading import pick_device, pick_dtype
from latentsync.models.syncnets import SYNCNET_SCHEMAS
from latentsync.models.unet_config import UNetConfig
from latentsync.pipelines.lipsync_pipeline import LipsyncPipeline
from latentsync.training.export import means
from latentsync.training.loop import run_training, train_and_report
from latentsync.training.task import Share
from latentsync.training.unet_setup import (
    build_dataset,
    check_start,
    load_export,
    load_frozen_components,
    load_loss_networks,
)
from latentsync.training.unet_task import UNetTask
from latentsync.training.unet_validation import UNetValidation
from latentsync.utils.commands import command
from latentsync.utils.errors import UserError
from latentsync.utils.paths import project_path

logger = logging.getLogger("train_unet")
Given = Mapping[str, Path | None]  # files that replace those of ckpt.base_model, by part


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="latentsync train unet", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--unet_config_path", type=Path, required=True, help="training config, see configs/unet/")
    add("--dry_run", action="store_true", help="build everything, run one step, and save nothing")
    add("--vae_path", type=Path, help="autoencoder folder in diffusers layout (default: that of ckpt.base_model)")
    add("--whisper_path", type=Path, help="Whisper checkpoint (default: that of ckpt.base_model)")
    add("--scheduler_config_path", type=Path, help="scheduler config, JSON (default: that of ckpt.base_model)")
    return parser


def make_validations(config: UNetFileConfig, device: str) -> list[Validation]:
    """The validation videos of a config with their metrics, computed on a device.

    Raises:
        UserError: a file is missing, or the list cannot be read.
    """
    files = validation_files(config)
    if not files:
        logger.info("no validation videos: run.validate is off, or data.val_video_path or val_audio_path is empty")
        return []
    loss_weights = None
    if config.run.use_syncnet and config.data.syncnet_config_path:
        syncnet = load_syncnet_config(project_path(config.data.syncnet_config_path), *SYNCNET_SCHEMAS)
        loss_weights = project_path(syncnet.ckpt.inference_ckpt_path)
    models = validation_models(device)
    return [Validation(video, audio, config.data.num_frames, loss_weights, models) for video, audio in files]


def validation_files(config: UNetFileConfig) -> list[tuple[Path, Path]]:
    """Video and audio of each validation video. Raises UserError, see `make_validations`."""
    data = config.data
    files: list[tuple[Path, Path]] = []
    if not config.run.validate:
        return []
    if data.val_video_path and data.val_audio_path:
        files.append((project_path(data.val_video_path), project_path(data.val_audio_path)))
        _require("val_video_path", files[0][0])
        _require("val_audio_path", files[0][1])
    for pair in read_pairs(project_path(data.val_pairs)) if data.val_pairs else ():
        files.append((pair.video, pair.driving_audio))
        _require("val_pairs", pair.video)
        _require("val_pairs", pair.driving_audio)
    return files


def _require(key: str, path: Path) -> None:
    if not path.is_file():
        raise UserError(f"data.{key}: {path} does not exist; give a file, or set run.validate to false")


def validate_export(
    config: UNetFileConfig, config_path: Path, given: Given, export: Path, step: int, folder: Path
) -> dict[str, float]:
    """Metrics of an export on `run.validation_device`; the videos are written to `folder`.

    Raises:
        UserError: a file is missing or does not fit, or there is no such device.
    """
    device = pick_device(config.run.validation_device)
    components, _ = load_frozen_components(config, config_path, given)
    unet = load_export(config, export)
    pipeline = LipsyncPipeline(components.codec, components.audio, unet, components.scheduler, config.data.resolution)
    pipeline.to(device, pick_dtype(device))
    videos = make_validations(config, str(device))
    return means([UNetValidation(config, components, videos).measure(unet, step, folder, Share())])


def train(args: argparse.Namespace) -> Path:
    """Build the task and run it; returns the exported weights."""
    config = load_unet_config(args.unet_config_path, UNetConfig)
    check_start(config)
    pick_device(config.run.validation_device or None)  # raises here instead of at the first export
    given = {"vae": args.vae_path, "whisper": args.whisper_path, "scheduler_config": args.scheduler_config_path}
    components, files = load_frozen_components(config, args.unet_config_path, given)
    networks = load_loss_networks(config, components.audio.num_layers)
    make_dataset = partial(build_dataset, config, components.codec, files.vae, files.whisper, networks.needs_mel)
    validations = make_validations(config, "cuda" if torch.cuda.is_available() else "cpu")
    elsewhere = bool(validations and config.run.validation_device)
    in_background = partial(validate_export, config, args.unet_config_path, given) if elsewhere else None
    task = UNetTask(config, components, networks, make_dataset, validations, in_background)
    return run_training(task, config, dry_run=args.dry_run)


@command
def main(argv: list[str] | None = None) -> int:
    return train_and_report(train, build_parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
