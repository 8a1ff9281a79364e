"""Arguments of both commands, and the objects they build from a config."""

import argparse
from dataclasses import dataclass
from pathlib import Path

from latentsync.checkpoints.registry import ResolvedModel
from latentsync.config.unet import UNetFileConfig, load_unet_config
from latentsync.models.unet_config import UNetConfig
from latentsync.training.unet_setup import FrozenComponents, check_start, load_frozen_components
from latentsync.utils.errors import UserError
from recipes.distill.recipe import Recipe


@dataclass(frozen=True)
class Setup:
    """A config, the components of its model that are not trained, and their files."""

    config: UNetFileConfig[UNetConfig]
    components: FrozenComponents
    files: ResolvedModel


def build_parser(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, allow_abbrev=False)
    add = parser.add_argument
    add(
        "--unet_config_path",
        type=Path,
        required=True,
        help="config with a recipe section, see recipes/distill/configs/",
    )
    add("--vae_path", type=Path, help="autoencoder folder in diffusers layout (default: that of ckpt.base_model)")
    add("--whisper_path", type=Path, help="Whisper checkpoint (default: that of ckpt.base_model)")
    add("--scheduler_config_path", type=Path, help="the teacher's scheduler config (default: that of ckpt.base_model)")
    return parser


def set_up(args: argparse.Namespace) -> Setup:
    """Raises UserError if the config distills nothing, or a file is missing."""
    config = load_unet_config(args.unet_config_path, UNetConfig)
    if not isinstance(config.recipe, Recipe):
        raise UserError(f"{args.unet_config_path}: has no section recipe with the name recipes.distill")
    if not config.ckpt.resume_ckpt_path:
        raise UserError(f"{args.unet_config_path}: ckpt.resume_ckpt_path is empty; name the UNet to distill")
    check_start(config)
    own = {"vae": args.vae_path, "whisper": args.whisper_path, "scheduler_config": args.scheduler_config_path}
    return Setup(config, *load_frozen_components(config, args.unet_config_path, own))
