"""Turn a folder of videos into training clips: `python -m preprocess.data_processing_pipeline --input_dir DIR`.

Drops broken files, resamples to 25 frames/s and 16 kHz, splits into shots and segments, aligns faces, and checks sync
and quality. Each source is decoded once and never changed. manifest.csv holds the status of every source and clip. The
same command resumes an interrupted run. Exit codes: 0 done, 1 invalid input, 2 wrong usage.
"""

import argparse
import dataclasses
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

from tqdm import tqdm

from latentsync.utils.commands import command, size
from latentsync.utils.errors import UserError
from preprocess.executors import EXECUTORS
from preprocess.lists import ListOptions
from preprocess.report import write_report
from preprocess.runner import RunOptions, find_work, process
from preprocess.settings import DEFAULT_STEPS, ProcessSettings
from preprocess.storage import open_storage


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="latentsync preprocess", description=__doc__.split("\n")[0])
    add = parser.add_argument_group("files").add_argument
    add("--input_dir", required=True, help="folder of videos, or an fsspec address (s3://bucket/videos)")
    add("--output_dir", help="folder of clips, manifest.csv and lists (default: <input_dir>_processed)")
    add("--temp_dir", type=Path, help="folder for unfinished files (default: in the output folder)")
    add("--report", action="store_true", help="write report.html as well: counts, histograms, examples")
    add("--dry_run", action="store_true", help="check the options and list the sources, without processing them")

    add_setting_arguments(parser.add_argument_group("processing"))

    add = parser.add_argument_group("lists").add_argument
    add("--max_clips_per_person", type=int, help="limit the training clips of each person")
    add("--hold_out", nargs="+", default=[], metavar="PATTERN", help="sources to put in held_out/train.txt only")
    add("--held_out_per_person", type=int, default=40, help="excess clips to hold out (default: %(default)s)")
    add(
        "--ignore_audio",
        nargs="+",
        default=[],
        metavar="PATTERN",
        help="sources to put in faces.txt only, because their audio is wrong",
    )

    add = parser.add_argument_group("execution").add_argument
    add("--total_num_workers", type=int, default=1, help="number of processes (default: %(default)s)")
    add(
        "--worker_memory_gb",
        type=size,
        help="memory of a worker in GiB, beyond which its source is skipped"
        " (default: its share of 80%% of the machine's)",
    )
    add("--per_gpu_num_workers", type=int, default=0, help="Ray workers that share a GPU; 0 for none")
    add(
        "--gpu_actors",
        type=int,
        default=0,
        help="Ray actors with a GPU each that run the networks of all workers (default: each worker has its own)",
    )
    add("--executor", choices=EXECUTORS, default="local", help="local or Ray processes (default: %(default)s)")
    return parser


def add_setting_arguments(group: Any) -> None:
    """Add an argument for each field of `ProcessSettings`."""
    types = get_type_hints(ProcessSettings)
    for item in dataclasses.fields(ProcessSettings):
        text = item.metadata["help"]
        if item.name == "steps":
            group.add_argument("--steps", default=",".join(DEFAULT_STEPS), help=f"{text} (default: %(default)s)")
        elif item.name == "smooth":
            group.add_argument("--no_smoothing", dest="smooth", action="store_false", help=text)
        elif types[item.name] is bool:
            group.add_argument(f"--{item.name}", action="store_true", help=text)
        else:
            kind = next(kind for kind in (*get_args(types[item.name]), types[item.name]) if kind is not NoneType)
            group.add_argument(
                f"--{item.name}",
                type=kind,
                default=item.default,
                choices=item.metadata["choices"] or None,
                help=text if item.default is None else f"{text} (default: %(default)s)",
            )


def settings_of(args: argparse.Namespace) -> ProcessSettings:
    """Settings of the command line. Raises UserError for invalid values."""
    values = {item.name: getattr(args, item.name) for item in dataclasses.fields(ProcessSettings)}
    values["steps"] = tuple(step.strip() for step in args.steps.split(",") if step.strip())
    return ProcessSettings(**values)


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
        args.worker_memory_gb,
        args.gpu_actors,
    )


def run(args: argparse.Namespace) -> None:
    """Process the sources and print a summary."""
    settings, options = settings_of(args), options_of(args)
    if args.executor == "ray" and (args.gpu_actors or args.per_gpu_num_workers) and args.device == "cpu":
        raise UserError("--gpu_actors and --per_gpu_num_workers reserve GPUs; add --device cuda to use them")
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
