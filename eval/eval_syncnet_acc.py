"""Accuracy of a SyncNet on a fixed set of pairs: `python -m eval.eval_syncnet_acc --config_path CONFIG`.

Samples windows from the config's `data.val_fileslist` with the seed `run.seed`, so that every run uses the same ones.
Each is paired with its own audio and with audio at least 6 frames away. Accuracy is the share of pairs that the test
(similarity > 0.5) classifies correctly.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from latentsync.config.syncnet import load_syncnet_config
from latentsync.metrics.clip_sync import EMBEDDED_CONFIG
from latentsync.models.syncnets import SYNCNET_SCHEMAS
from latentsync.training.export import means
from latentsync.training.syncnet_setup import find_model_files, open_data
from latentsync.training.syncnet_task import SyncNetTask
from latentsync.training.task import Share
from latentsync.utils.commands import command
from latentsync.utils.errors import UserError
from latentsync.utils.paths import project_path


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="latentsync eval syncnet-acc", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--config_path", type=Path, default=EMBEDDED_CONFIG, help="configs/syncnet/*.yaml (default: the embedded one)")
    add("--inference_ckpt_path", type=Path, help="weights (default: ckpt.inference_ckpt_path of the config)")
    add("--fileslist", help="validation clips (default: data.val_fileslist of the config)")
    add("--num_samples", type=int, help="number of windows (default: data.num_val_samples of the config)")
    add("--vae_path", type=Path, help="diffusers VAE folder, for latents")
    add("--whisper_path", type=Path, help="Whisper checkpoint, for audio_features whisper")
    add("--cache_dir", type=Path, help="cache of encoded clips (default: none)")
    add("--device", default="cpu", help="cpu, cuda or cuda:N (default: %(default)s)")
    return parser


def evaluate(args: argparse.Namespace) -> dict[str, float]:
    """Metrics of `SyncNetTask.validate`; equal arguments give equal values.

    Raises:
        UserError: weights or clips are missing or do not match.
    """
    if args.cache_dir is not None:
        return _evaluate(args, args.cache_dir)
    with TemporaryDirectory() as cache:
        return _evaluate(args, Path(cache))


def _evaluate(args: argparse.Namespace, cache: Path) -> dict[str, float]:
    """Raises UserError: weights or clips are missing or do not match."""
    config = load_syncnet_config(args.config_path, *SYNCNET_SCHEMAS)
    weights = args.inference_ckpt_path or config.ckpt.inference_ckpt_path
    if not weights:
        raise UserError(f"{args.config_path}: ckpt.inference_ckpt_path is empty; give --inference_ckpt_path")
    data = replace(
        config.data,
        val_fileslist=args.fileslist or config.data.val_fileslist,
        num_val_samples=args.num_samples or config.data.num_val_samples,
        latent_cache_dir=str(cache / "latents"),
        audio_embeds_cache_dir=str(cache / "audio_embeds"),
        audio_mel_cache_dir=str(cache / "mel"),
    )
    if not data.val_fileslist:
        raise UserError(f"{args.config_path}: data.val_fileslist is empty; give --fileslist")
    ckpt = replace(config.ckpt, resume_ckpt_path=str(project_path(weights)))
    config = replace(config, data=data, ckpt=ckpt)
    source, codec = open_data(config, find_model_files(config, args.config_path, args.vae_path, args.whisper_path))
    task = SyncNetTask(config, source, codec)
    device = torch.device(args.device)
    task.place(device, torch.float32)
    with torch.no_grad():
        return means([task.validate(task.model.to(device).eval(), 0, Path(), Share())])


@command
def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    values = evaluate(args)
    for name, value in values.items():
        print(f"{name}: {value:.6f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
