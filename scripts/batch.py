"""Lip-sync a list of videos, unattended: `python -m scripts.batch --list jobs.csv`.

The list is a CSV with the columns video, audio and out, and any generation options (see docs/serving.md). Run the same
command again to resume; it repeats only rows that have failed or changed. Exit codes: 0 all rows are done, 1 some rows
failed, or an input or option is not valid, 2 wrong usage, 130 interrupted.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from latentsync.arguments import OptionParser, add_option_arguments, given_options
from latentsync.options import OptionError, parse_options
from latentsync.serving.settings import ServingSettings, add_service_arguments
from latentsync.utils.commands import command
from latentsync.utils.errors import one_line


def build_parser() -> OptionParser:
    parser = OptionParser(
        prog="python -m scripts.batch",
        usage="%(prog)s --list CSV [--option value ...]",
        description="Lip-sync a list of videos. The generation options given here apply to rows that leave them empty.",
    )
    add = parser.add_argument
    add(
        "--list",
        type=Path,
        required=True,
        help="CSV with the columns video, audio, out; paths are relative to its folder",
    )
    add("--workspace", type=Path, help="folder of the jobs until they are done (default: next to the list)")
    add("--job_timeout_seconds", type=float, default=21600, help="time limit of a job (default: %(default)s)")
    add_service_arguments(parser)
    add_option_arguments(parser)
    return parser


def run(options: argparse.Namespace) -> int:
    """Run the list; returns the number of failed rows."""
    from latentsync.serving.batch import FAILED, Batch, RowResult, read_list
    from latentsync.serving.database import repair
    from latentsync.serving.service import JobService

    defaults = given_options(options)
    try:
        parse_options(defaults)
    except OptionError as error:
        if error.names:  # otherwise a row may add what is missing
            raise
    rows = read_list(options.list, defaults)
    settings = ServingSettings(
        options.workspace or options.list.with_name(f"{options.list.stem}.work"),
        workers=max(1, options.workers),
        devices=tuple(options.devices),
        dtype=options.dtype,
        unload_after_minutes=options.unload_after_minutes,
        job_timeout_seconds=options.job_timeout_seconds,
    )
    if options.repair:
        repair(settings.workspace)
    count = 0

    def show(result: RowResult) -> None:
        nonlocal count
        count += 1
        seconds = f" ({result.seconds:.0f} s)" if result.seconds else ""
        reason = f": {result.reason}" if result.reason else ""
        print(f"[{count}/{len(rows)}] {result.status} {one_line(result.row.out)}{seconds}{reason}", flush=True)

    with JobService(settings) as service:
        results = Batch(service).run(rows, show)
    failed = [result for result in results if result.status == FAILED]
    if failed:
        print(f"{len(failed)} of {len(rows)} rows failed:", file=sys.stderr)
        for result in failed:
            print(f"  line {result.row.line}: {one_line(result.row.video)}: {result.reason}", file=sys.stderr)
    return len(failed)


@command(interrupted="interrupted; run the same command again to resume")
def main(argv: Sequence[str] | None = None) -> int:
    options = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    return 1 if run(options) else 0


if __name__ == "__main__":
    sys.exit(main())
