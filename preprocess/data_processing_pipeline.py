"""Turn a folder of videos into training clips: `python -m preprocess.data_processing_pipeline --input_dir DIR`.

Drops broken files, resamples to 25 frames/s and 16 kHz, splits into shots and segments, aligns faces, and checks sync
and quality. Each source is decoded once and never changed. manifest.csv holds the status of every source and clip. The
same command resumes an interrupted run. Exit codes: 0 done, 1 invalid input, 2 wrong usage.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from latentsync.faces.factory import DETECTORS
from latentsync.metrics.clip_sync import SCORERS
from latentsync.metrics.image_quality import QUALITY_METRICS
from latentsync.utils.commands import command
from preprocess.executors import EXECUTORS
from preprocess.lists import ListOptions
from preprocess.report import write_report
from preprocess.runner import RunOptions, find_work, process
from preprocess.settings import DEFAULT_STEPS, MANY_FACES, STEPS, ProcessSettings
from preprocess.storage import open_storage


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m preprocess.data_processing_pipeline", description=__doc__.split("\n")[0]
    )
    add = parser.add_argument_group("files").add_argument
    add("--input_dir", required=True, help="folder of videos, or an fsspec address (s3://bucket/videos)")
    add("--output_dir", help="folder of clips, manifest.csv and lists (default: <input_dir>_processed)")
    add("--temp_dir", type=Path, help="folder for unfinished files (default: in the output folder)")
    add("--report", action="store_true", help="write report.html as well: counts, histograms, examples")
    add("--dry_run", action="store_true", help="check the options and list the sources, without processing them")

    defaults = ProcessSettings()
    add = parser.add_argument_group("processing").add_argument
    add("--steps", default=",".join(DEFAULT_STEPS), help=f"steps to run, of {','.join(STEPS)} (default: %(default)s)")
    add("--resolution", type=int, default=defaults.resolution, help="side of the aligned faces (default: %(default)s)")

    def number(name: str, text: str) -> None:
        default = getattr(defaults, name)
        add(f"--{name}", type=type(default), default=default, help=f"{text} (default: %(default)s)")

    number("segment_seconds", "length of the longest clips")
    number("min_seconds", "length of the shortest clips")
    number("shot_threshold", "threshold of PySceneDetect's adaptive detector")
    number("audio_track", "index of the audio track to use")
    add("--detector", choices=DETECTORS, default=defaults.detector, help="face detector (default: %(default)s)")
    add(
        "--many_faces",
        choices=MANY_FACES,
        default=defaults.many_faces,
        help="several people in view: one clip each, the largest face only, or drop the segment (default: %(default)s)",
    )
    add("--no_smoothing", action="store_true", help="do not smooth the face's position")
    number("min_face_size", "smallest face width in pixels, for the face_size step")
    number("max_alignment_error", "largest distance of the anchors as a share of the side, for the alignment step")
    add("--sync_scorer", choices=SCORERS, default=defaults.sync_scorer, help="SyncNet to use (default: %(default)s)")
    add(
        "--sync_conf_threshold",
        type=float,
        help="lowest sync confidence (default: 3, or 0.15 for the embedded SyncNet)",
    )
    number("max_offset", "largest audio-visual offset to correct, in frames")
    add(
        "--quality_measure",
        choices=QUALITY_METRICS,
        default=defaults.quality_measure,
        help="image quality metric (default: %(default)s)",
    )
    add("--min_quality", type=float, help="lowest image quality (default: 40, or 0.45 for sharpness)")
    add("--crf", type=int, default=defaults.crf, help="H.264 quality, 0 (lossless) to 51 (default: %(default)s)")
    add("--keep_silent", action="store_true", help="keep images and videos without audio, in faces.txt only")
    add("--person_pattern", help="regular expression for the person in a path (default: folder or file name)")

    add = parser.add_argument_group("lists").add_argument
    add("--max_clips_per_person", type=int, help="limit the training clips of each person")
    add("--hold_out", nargs="+", default=[], metavar="PATTERN", help="sources to put in held_out/train.txt only")
    add("--held_out_per_person", type=int, default=40, help="excess clips to hold out (default: %(default)s)")
    add(
        "--ignore_audio",
        "--distrust_sound",  # former name
        nargs="+",
        default=[],
        metavar="PATTERN",
        help="sources to put in faces.txt only, because their audio is wrong",
    )

    add = parser.add_argument_group("execution").add_argument
    add("--total_num_workers", type=int, default=1, help="number of processes (default: %(default)s)")
    add("--per_gpu_num_workers", type=int, default=0, help="Ray workers that share a GPU; 0 for none")
    add("--executor", choices=EXECUTORS, default="local", help="local or Ray processes (default: %(default)s)")
    add("--device", default="cpu", help="device of the networks: cpu, cuda or cuda:N (default: %(default)s)")
    return parser


def settings_of(args: argparse.Namespace) -> ProcessSettings:
    """Settings of the command line. Raises UserError for invalid values."""
    return ProcessSettings(
        steps=tuple(step.strip() for step in args.steps.split(",") if step.strip()),
        resolution=args.resolution,
        segment_seconds=args.segment_seconds,
        min_seconds=args.min_seconds,
        shot_threshold=args.shot_threshold,
        audio_track=args.audio_track,
        detector=args.detector,
        many_faces=args.many_faces,
        smooth=not args.no_smoothing,
        min_face_size=args.min_face_size,
        max_alignment_error=args.max_alignment_error,
        sync_scorer=args.sync_scorer,
        sync_conf_threshold=args.sync_conf_threshold,
        max_offset=args.max_offset,
        quality_measure=args.quality_measure,
        min_quality=args.min_quality,
        keep_silent=args.keep_silent,
        person_pattern=args.person_pattern,
        crf=args.crf,
        device=args.device,
    )


def options_of(args: argparse.Namespace) -> RunOptions:
    return RunOptions(
        args.input_dir,
        args.output_dir or f"{args.input_dir.rstrip('/')}_processed",
        args.total_num_workers,
        1 / args.per_gpu_num_workers if args.per_gpu_num_workers > 0 else 0.0,
        args.executor,
        args.temp_dir,
        ListOptions(
            args.max_clips_per_person, tuple(args.hold_out), tuple(args.ignore_audio), args.held_out_per_person
        ),
    )


def run(args: argparse.Namespace) -> None:
    """Process the sources and print a summary."""
    settings, options = settings_of(args), options_of(args)
    if args.dry_run:
        files = find_work(options, settings, open_storage(options.input_dir))
        for file in files:
            print(ascii(file.name))
        print(f"{len(files)} sources; steps: {', '.join(settings.steps)}")
        return
    with tqdm(unit="source", leave=False) as bar:

        def show(record: object, done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        summary = process(options, settings, show)
    if args.report:
        write_report(options.output_dir, summary.rows, options.input_dir, settings)
    print(f"{summary.kept} clips kept; {summary.processed} sources processed, {summary.resumed} finished before")
    for step, count in summary.dropped.most_common():
        print(f"dropped by {step}: {count}")
    train, faces, held_out = (len(some) for some in (summary.lists.train, summary.lists.faces, summary.lists.held_out))
    print(f"for training: {faces} clips, {train} with audio; held out: {held_out}")
    print(f"{options.output_dir}/manifest.csv")


@command(interrupted="interrupted; run the same command again to resume")
def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    run(args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
