"""Make the teacher's results: `python -m recipes.distill.teacher --unet_config_path CONFIG`.

The same command makes those that are missing. On several GPUs: `accelerate launch -m recipes.distill.teacher ...`.
"""

import argparse
import logging
import os
import sys
from collections.abc import Sequence

import torch

from latentsync.training.losses import LossNetworks
from latentsync.training.unet_setup import build_dataset
from latentsync.utils.commands import command
from recipes.distill.arguments import build_parser, set_up
from recipes.distill.samples import make_samples
from recipes.distill.task import DistillTask

logger = logging.getLogger("distill")


def run(args: argparse.Namespace) -> int:
    """Make this process's share of the samples; returns their number."""
    setup = set_up(args)
    config = setup.config
    rank, world = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    device = torch.device(f"cuda:{rank}" if torch.cuda.is_available() else "cpu")
    with_mel = config.run.use_syncnet
    clips = build_dataset(config, setup.components.codec, setup.files.vae, setup.files.whisper, with_mel)
    task = DistillTask(config, setup.components, LossNetworks())
    task.model.to(device)
    task.place(device, torch.float16 if device.type == "cuda" else torch.float32)
    return make_samples(task, clips, device, int(os.environ.get("RANK", 0)), world)


@command
def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser((__doc__ or "").split("\n")[0]).parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logger.info("%d samples made", run(args))
    return 0


if __name__ == "__main__":
    sys.exit(main())
