"""Train a SyncNet: `python -m scripts.train_syncnet --config_path configs/syncnet/syncnet_16_pixel.yaml`.

The same command resumes an interrupted run. On several GPUs:
`accelerate launch -m scripts.train_syncnet --config_path ...`.
"""

import argparse
import os
import sys
from pathlib import Path

from latentsync.config.syncnet import load_syncnet_config
from latentsync.models.syncnets import SYNCNET_SCHEMAS
from latentsync.training.loop import run_training, train_and_report
from latentsync.training.syncnet_setup import find_model_files, open_data
from latentsync.training.syncnet_task import SyncNetTask
from latentsync.utils.commands import command


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="latentsync train syncnet", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--config_path", type=Path, required=True, help="training config, see configs/syncnet/")
    add("--dry_run", action="store_true", help="build everything, run one step, and save nothing")
    add("--vae_path", type=Path, help="autoencoder folder in diffusers layout (default: that of ckpt.base_model)")
    add("--whisper_path", type=Path, help="Whisper checkpoint (default: that of ckpt.base_model)")
    return parser


def train(args: argparse.Namespace) -> Path:
    """Build the task and run it; returns the exported weights."""
    config = load_syncnet_config(args.config_path, *SYNCNET_SCHEMAS)
    data, codec = open_data(config, find_model_files(config, args.config_path, args.vae_path, args.whisper_path))
    task = SyncNetTask(config, data, codec, int(os.environ.get("WORLD_SIZE", 1)))
    return run_training(task, config, dry_run=args.dry_run)


@command
def main(argv: list[str] | None = None) -> int:
    return train_and_report(train, build_parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
