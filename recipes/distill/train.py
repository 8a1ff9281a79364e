"""Train the student: `python -m recipes.distill.train --unet_config_path CONFIG`.

The same command resumes an interrupted run. On several GPUs: `accelerate launch -m recipes.distill.train ...`.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from latentsync.training.loop import run_training, train_and_report
from latentsync.training.unet_setup import load_loss_networks
from latentsync.utils.commands import command
from latentsync.utils.files import write_text
from recipes.distill.arguments import build_parser, set_up
from recipes.distill.samples import TeacherSamples, require_samples
from recipes.distill.task import DistillTask

RUN_CONFIG = "config.yaml"  # beside the checkpoints: the page and the API find the model by it


def train(args: argparse.Namespace) -> Path:
    """Build the task and run it; returns the exported weights."""
    setup = set_up(args)
    config = setup.config
    paths, held_out = require_samples(config), config.recipe.held_out
    task = DistillTask(
        config,
        setup.components,
        load_loss_networks(config, setup.components.audio.num_layers),
        TeacherSamples(paths[held_out:]),
        TeacherSamples(paths[:held_out]) if held_out else None,
    )
    if not args.dry_run and int(os.environ.get("RANK", 0)) == 0:
        text = f"base: {args.unet_config_path.resolve()}\n"
        write_text(Path(config.data.train_output_dir) / RUN_CONFIG, lambda file: file.write(text))
    return run_training(task, config, dry_run=args.dry_run)


def parse_options(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = build_parser((__doc__ or "").split("\n")[0])
    parser.add_argument("--dry_run", action="store_true", help="build everything, run one step, and save nothing")
    return parser.parse_args(argv)


@command
def main(argv: Sequence[str] | None = None) -> int:
    return train_and_report(train, parse_options(argv))


if __name__ == "__main__":
    sys.exit(main())
