"""Sync confidence and offset of videos: `python -m eval.eval_sync_conf --videos_dir FOLDER` (or `--video_path FILE`).

Uses the SyncNet of Chung & Zisserman (2016), or without its weights that of the embedded model; the table names it. An
offset of +k means that the audio is k frames early. Clips of aligned faces are not aligned again. Exit codes: 0 all
videos were scored, 1 some failed, 2 wrong usage.
"""

import argparse
import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np

from eval.videos import find_videos
from latentsync.metrics.clip_sync import SCORERS, ClipSync, ClipSyncScorer, open_sync_scorer
from latentsync.utils.commands import command
from latentsync.utils.errors import UserError, one_line
from latentsync.utils.tables import write_csv

COLUMNS = ("video", "face", "scorer", "offset", "confidence", "min_distance", "start_frame", "frames", "error")
WINDOW_COLUMNS = ("video", "face", "frame", "confidence")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="latentsync eval sync-conf", description=__doc__.split("\n")[0])
    given = parser.add_mutually_exclusive_group(required=True)
    given.add_argument("--video_path", type=Path, help="one video")
    given.add_argument("--videos_dir", type=Path, help="a folder of videos, subfolders included")
    add = parser.add_argument
    add("--initial_model", type=Path, help="syncnet_v2.model (default: checkpoints/auxiliary/syncnet_v2.model)")
    add("--scorer", choices=SCORERS, default="auto", help="auto uses the published SyncNet if its weights are present")
    add("--device", default="cpu", help="cpu, cuda or cuda:N (default: %(default)s)")
    add("--output", type=Path, help="CSV file to write: a row per face")
    add("--windows_output", type=Path, help="CSV file to write: the confidence of each window")
    add("--temp_dir", type=Path, help="ignored; accepted for compatibility")
    return parser


@dataclass(frozen=True)
class Row:
    """One face of a video, or why the video could not be scored."""

    video: Path
    face: int = 0
    sync: ClipSync | None = None
    error: str = ""

    def cells(self) -> list[object]:
        """As `COLUMNS`."""
        if self.sync is None:
            return [self.video, "", "", "", "", "", "", "", self.error]
        sync = self.sync
        numbers = (f"{sync.confidence:.4f}", f"{sync.min_distance:.4f}", sync.start, sync.frames)
        return [self.video, self.face, sync.scorer, sync.offset, *numbers, ""]


def score_all(scorer: ClipSyncScorer, videos: list[Path]) -> Iterator[Row]:
    """Yield the rows of each video; one that fails is a row with the reason."""
    for video in videos:
        try:
            found = scorer.score_video(video)
        except UserError as error:
            yield Row(video, error=str(error))
            continue
        for face, sync in enumerate(found):
            yield Row(video, face, sync)


def summary(rows: list[Row]) -> str:
    """Means over the longest face of each video."""
    first = [row.sync for row in rows if row.sync is not None and row.face == 0]
    failed = sum(row.sync is None for row in rows)
    if not first:
        return f"none of {failed} videos could be scored"
    near = np.mean([abs(sync.offset) <= 1 for sync in first])
    confidence, distance = fmean(sync.confidence for sync in first), fmean(sync.min_distance for sync in first)
    return (
        f"{first[0].scorer}: {len(first)} videos, confidence {confidence:.3f}, min distance {distance:.3f}, "
        f"offset within 1 frame {near:.1%}" + (f"; {failed} could not be scored" if failed else "")
    )


def window_rows(rows: list[Row]) -> Iterator[list[object]]:
    for row in rows:
        if row.sync is not None:
            for index in np.flatnonzero(np.isfinite(row.sync.window_confidences)):
                confidence = f"{row.sync.window_confidences[index]:.4f}"
                yield [row.video, row.face, row.sync.start + index, confidence]


def run(args: argparse.Namespace) -> bool:
    """Score and report; False if a video could not be scored."""
    videos = find_videos(args.videos_dir) if args.videos_dir else [args.video_path]
    scorer = open_sync_scorer(args.scorer, args.device, args.initial_model)
    rows = []
    for row in score_all(scorer, videos):
        rows.append(row)
        result = row.error if row.sync is None else f"offset {row.sync.offset:+d}, confidence {row.sync.confidence:.3f}"
        print(one_line(f"{row.video} face {row.face}: {result}"), flush=True)
    if args.output:
        write_csv(args.output, COLUMNS, (row.cells() for row in rows))
    if args.windows_output:
        write_csv(args.windows_output, WINDOW_COLUMNS, window_rows(rows))
    print(summary(rows))
    return all(row.sync is not None for row in rows)


@command
def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("latentsync.metrics").setLevel(logging.INFO)
    return 0 if run(args) else 1


if __name__ == "__main__":
    sys.exit(main())
