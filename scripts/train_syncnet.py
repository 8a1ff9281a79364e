"""Train a SyncNet: `python -m scripts.train_syncnet --config_path configs/syncnet/syncnet_16_pixel.yaml`.

The same command again goes on where the last one stopped. On several GPUs:
`accelerate launch -m scripts.train_syncnet --config_path ...`.
"""

import argparse
import logging
import os
import sys
from pathlib import Path

from latentsync.models.syncnets import SYNCNET_SCHEMAS, SyncNetConfig
from latentsync.models.unet_config import UNetConfig
from latentsync.models.vae import LatentCodec
from latentsync.training.loop import run_training
from latentsync.training.syncnet_data import SyncNetData
from latentsync.training.syncnet_task import SyncNetTask, train_settings
from latentsync.utils.config import load_unet_config
from latentsync.utils.errors import UserError
from latentsync.utils.registry import DEFAULT_MODEL, PROJECT_ROOT, RELEASED_MODELS, ResolvedModel, entry, resolve
from latentsync.utils.syncnet_config import SyncNetFileConfig, load_syncnet_config

logger = logging.getLogger("train_syncnet")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--config_path", type=Path, required=True, help="configs/syncnet/*.yaml")
    add("--dry_run", action="store_true", help="build everything and do one step")
    add("--vae_path", type=Path, help="diffusers VAE folder, for latents (default: of the registered model that fits)")
    add("--whisper_path", type=Path, help="Whisper checkpoint, for audio_features whisper (default: as above)")
    return parser


def find_parts(config: SyncNetFileConfig[SyncNetConfig], args: argparse.Namespace) -> ResolvedModel | None:
    """Files of the autoencoder and the audio encoder: those given, else of the registered model with as many latent
    channels; None when the SyncNet looks at pixels and hears a mel.

    Raises:
        UserError: a file is missing; says how to get it.
    """
    data = config.data
    if not data.latent_space and data.audio_features == "mel":
        return None
    embedded = load_unet_config(PROJECT_ROOT / entry(DEFAULT_MODEL).model.unet_config, UNetConfig)
    channels = config.model.visual_encoder.in_channels // data.num_frames
    is_small = not data.latent_space or channels == embedded.model.out_channels
    given = {"vae": args.vae_path, "whisper": args.whisper_path, "unet": args.config_path}  # no UNet is read
    name = DEFAULT_MODEL if is_small else RELEASED_MODELS[0]
    return resolve(name, own={part: path for part, path in given.items() if path})


def train(args: argparse.Namespace) -> Path:
    """Build the task and run it; returns the exported weights."""
    config = load_syncnet_config(args.config_path, *SYNCNET_SCHEMAS)
    files = find_parts(config, args)
    codec = LatentCodec.from_pretrained(files.vae) if config.data.latent_space else None
    vae, whisper = (files.vae, files.whisper) if files is not None else (None, None)
    data = SyncNetData(config, codec, vae, whisper)
    task = SyncNetTask(config, data, codec, int(os.environ.get("WORLD_SIZE", 1)))
    return run_training(task, train_settings(config), dry_run=args.dry_run)


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    try:
        path = train(args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    logger.info("%s", "dry run: everything fits" if args.dry_run else f"saved to {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
