"""Evaluate a SyncNet on real clips: `python -m eval.eval_syncnet_clips --fileslist clips.txt --output clips.csv`.

Each line of the list holds the path of a clip of aligned faces, a tab, the person, and optionally a tab and a group.
Reports for each clip how often its windows are closer to their own audio than to audio at least 6 frames away, and the
offset found. Since recordings may be out of sync, both are also reported after shifting the audio by the offset found,
and with `--reference`, by the offset that another SyncNet finds. A summary is printed for each group. Exit codes:
0 done, 1 invalid input, 2 wrong usage.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from latentsync.checkpoints.registry import resolve
from latentsync.config.syncnet import load_syncnet_config
from latentsync.constants import FPS, SAMPLE_RATE
from latentsync.data.clips import read_fileslist, read_frames, to_pixel_values
from latentsync.media.audio import load_audio
from latentsync.metrics.clip_sync import EMBEDDED_CONFIG
from latentsync.metrics.sync import SyncScorer, offset_score, preference
from latentsync.models.syncnets import SYNCNET_SCHEMAS
from latentsync.models.vae import LatentCodec
from latentsync.utils.commands import command
from latentsync.utils.errors import UserError, one_line
from latentsync.utils.paths import project_path
from latentsync.utils.tables import write_csv
from latentsync.whisper.audio2feature import Audio2Feature

logger = logging.getLogger("eval_syncnet_clips")
MAX_CORRECTION = 6  # frames: largest offset that data processing corrects
Row = dict[str, Any]


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m eval.eval_syncnet_clips",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--fileslist", type=Path, required=True, help="list of clips that the SyncNet was not trained on")
    add("--config_path", type=Path, default=EMBEDDED_CONFIG, help="config of the SyncNet (default: the embedded one)")
    add("--inference_ckpt_path", type=Path, help="weights (default: ckpt.inference_ckpt_path of the config)")
    add("--reference", type=Path, help="config of another SyncNet, whose offsets are used to align the recordings")
    add("--output", type=Path, help="CSV file to write: a row per clip")
    add("--device", default="cpu", help="cpu, cuda or cuda:N (default: %(default)s)")
    return parser


def score_clip(scorer: SyncScorer, faces: Tensor, wave: np.ndarray, reference: SyncScorer | None = None) -> Row:
    """Metrics of one clip: faces (T, 3, R, R) in [-1, 1], audio (N,).

    `preference` is the share of windows that are closer to their own audio. Keys with the prefix `corrected_` are for
    audio shifted by the clip's own offset, those with `aligned_` for audio shifted by the offset that `reference`
    finds. Offsets above `MAX_CORRECTION` are not corrected.
    """
    vision, audio = scorer.embed(faces, wave)
    shares, score = preference(vision, audio), offset_score(vision, audio)
    row = {
        "windows": len(shares),
        "confidence": score.confidence,
        "offset": score.offset,
        "preference": float(shares.mean()),
        "corrected_preference": float(preference(*shifted(vision, audio, correction(score.offset))).mean()),
    }
    if reference is not None:
        early = reference.score(faces, wave).offset
        row |= {
            "reference_offset": early,
            "aligned_offset": score.offset - correction(early),
            "aligned_preference": float(preference(*shifted(vision, audio, correction(early))).mean()),
        }
    return row


def correction(offset: int) -> int:
    """The shift that data processing would apply: the offset, or 0 if it is too large."""
    return offset if abs(offset) <= MAX_CORRECTION else 0


def shifted(vision: Tensor, audio: Tensor, early: int) -> tuple[Tensor, Tensor]:
    """Matching embeddings (W - |early|, D) of embeddings (W, D) whose audio is `early` frames early."""
    windows = len(vision) - abs(early)
    return vision[max(early, 0) :][:windows], audio[max(-early, 0) :][:windows]


def summary(rows: Sequence[Row]) -> str:
    """Shares of windows and of clips, in one line."""
    weights = [row["windows"] for row in rows]
    names = [name for name in rows[0] if name.endswith("preference")]
    parts = [f"{name} {np.average([row[name] for row in rows], weights=weights):.1%}" for name in names]
    for name in ("offset", "aligned_offset"):
        if name in rows[0]:
            parts.append(f"{name} within 1 frame {np.mean([abs(row[name]) <= 1 for row in rows]):.1%}")
    return f"{len(rows)} clips, {sum(weights)} windows: {', '.join(parts)}"


def open_scorer(config_path: Path, weights: Path | None, device: str) -> SyncScorer:
    """A SyncNet with the autoencoder and audio encoder of the embedded model. Raises UserError for missing files."""
    path = weights or load_syncnet_config(config_path, *SYNCNET_SCHEMAS).ckpt.inference_ckpt_path
    if not path:
        raise UserError(f"{config_path}: ckpt.inference_ckpt_path is empty; give --inference_ckpt_path")
    model = resolve("embedded")
    codec, audio = LatentCodec.from_pretrained(model.vae).to(device), Audio2Feature(model.whisper, device)
    return SyncScorer.from_pretrained(config_path, project_path(path), codec, audio, device)


def run(options: argparse.Namespace) -> dict[str, list[Row]]:
    """Score all clips; returns the rows by group. Clips that fail are logged and skipped."""
    scorer = open_scorer(options.config_path, options.inference_ckpt_path, options.device)
    reference = open_scorer(options.reference, None, options.device) if options.reference else None
    groups: dict[str, list[Row]] = {}
    for clip in read_fileslist(options.fileslist):
        person, _, group = clip.person.partition("\t")
        try:
            faces = to_pixel_values(read_frames(clip.path, fps=FPS))
            row = score_clip(scorer, faces, load_audio(clip.path, SAMPLE_RATE), reference)
        except UserError as error:
            logger.warning("left out: %s", one_line(error))
            continue
        groups.setdefault(group, []).append({"clip": clip.path, "person": person, "group": group} | row)
    if not groups:
        raise UserError(f"{options.fileslist}: no clip could be scored")
    if options.output:
        table = [row for rows in groups.values() for row in rows]
        write_csv(options.output, table[0], (row.values() for row in table))
    return groups


@command
def main(argv: Sequence[str] | None = None) -> int:
    options = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    groups = run(options)
    for group, rows in groups.items():
        print(f"{group + ': ' if group else ''}{summary(rows)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
