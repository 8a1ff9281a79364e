"""Lip-sync many videos, unattended: `python -m scripts.batch --list jobs.csv`, or
`python -m scripts.batch --videos clips/ --audio voices/ --out results/`.

The list is a CSV with the columns video, audio and out, and any generation options (see docs/serving.md). Run the same
command again to resume; it repeats only rows that have failed, or whose inputs, options or weights have changed. A
report page is written next to the list, or into the folder of the results. Exit codes: 0 all rows are done, 1 an input
or option is not valid, 2 wrong usage, 3 some rows failed, 4 all rows failed, 130 interrupted.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from latentsync.arguments import OptionParser, add_option_arguments, given_options
from latentsync.options import OptionError, parse_options
from latentsync.serving.settings import add_service_arguments, service_settings
from latentsync.utils.batch import FAILED, Outcome, exit_code
from latentsync.utils.commands import command
from latentsync.utils.errors import one_line
from latentsync.utils.progress import duration

if TYPE_CHECKING:
    from latentsync.serving.batch import BatchRow
    from latentsync.serving.jobs import Job

REPORT = "report.html"
BAR = "{desc}{percentage:3.0f}%|{bar}| {n:.1f}/{total_fmt} rows{postfix}"


def build_parser() -> OptionParser:
    parser = OptionParser(
        prog="latentsync batch",
        usage="%(prog)s (--list CSV | --videos VIDEO ... --audio AUDIO --out FOLDER) [--option value ...]",
        description="Lip-sync many videos. The generation options given here apply to rows that leave them empty.",
    )
    add = parser.add_argument
    add("--list", type=Path, help="CSV with the columns video, audio, out; paths are relative to its folder")
    add(
        "--videos",
        nargs="+",
        metavar="VIDEO",
        help="instead of a list: files, folders or quoted patterns (clips/*.mp4)",
    )
    add("--audio", type=Path, help="audio for all --videos, or a folder with audio of the same names")
    add("--out", type=Path, help="folder for the results of --videos")
    add("--workspace", type=Path, help="folder of the jobs until they are done (default: next to the list or results)")
    add("--report", type=Path, help="report page (default: next to the list, or in the folder of the results)")
    add("--job_timeout_seconds", type=float, default=21600, help="time limit of a job (default: %(default)s)")
    add("--quiet", action="store_true", help="hide the progress bar")
    add_service_arguments(parser)
    add_option_arguments(parser)
    return parser


class Display:
    """Prints the outcome of each row above a progress bar, and keeps the report page up to date."""

    def __init__(self, total: int, report: Path, *, shown: bool) -> None:
        self.total, self.report = total, report
        self.results: list[Outcome[BatchRow]] = []
        self.bar = tqdm(total=total, bar_format=BAR, disable=not shown, leave=False)

    def show(self, result: "Outcome[BatchRow]") -> None:
        from latentsync.serving.batch_report import write_report

        self.results.append(result)
        seconds = f" ({result.seconds:.0f} s)" if result.seconds else ""
        reason = f": {result.reason}" if result.reason else ""
        tqdm.write(
            f"[{len(self.results)}/{self.total}] {result.status} {one_line(result.row.out)}{seconds}{reason}",
            file=sys.stdout,
        )
        sys.stdout.flush()
        write_report(self.report, self.results, self.total)

    def follow(self, jobs: Sequence["Job"]) -> None:
        """Show the progress of the jobs in the queue."""
        done = len(self.results) + sum(job.fraction for job in jobs)
        running = [job for job in jobs if job.state.value == "running"]
        words = [f"{job.inputs.get('video', '')} {job.stage}" for job in running[:1]]
        estimates = [job.eta_seconds for job in running if job.eta_seconds is not None]
        words += [f"about {duration(max(estimates))} left for it"] if estimates else []
        self.bar.set_postfix_str(", ".join(words), refresh=False)
        self.bar.update(max(0.0, done - self.bar.n))


def read_rows(options: argparse.Namespace, parser: OptionParser) -> tuple[list["BatchRow"], Path]:
    """The rows, and the path that the default workspace and report are named after."""
    from latentsync.serving.batch import read_list, rows_of_files

    defaults = given_options(options)
    try:
        parse_options(defaults)
    except OptionError as error:
        if error.names:  # otherwise a row may add the missing option
            raise
    if (options.list is None) == (options.videos is None):
        parser.error("give either --list or --videos")
    if options.list is not None:
        return read_list(options.list, defaults), options.list
    if options.audio is None or options.out is None:
        parser.error("--videos needs --audio and --out")
    return rows_of_files(options.videos, options.audio, options.out, defaults), options.out / "batch.csv"


def run(options: argparse.Namespace, parser: OptionParser) -> int:
    """Run the rows; returns the exit code."""
    from latentsync.serving.batch import Batch
    from latentsync.serving.database import repair
    from latentsync.serving.service import JobService

    rows, origin = read_rows(options, parser)
    options.workers = max(1, options.workers)
    workspace = options.workspace or origin.with_name(f"{origin.stem}.work")
    settings = service_settings(options, workspace, job_timeout_seconds=options.job_timeout_seconds)
    if options.repair:
        repair(settings.workspace)
    display = Display(len(rows), options.report or origin.with_name(f"{origin.stem}.{REPORT}"), shown=not options.quiet)
    with JobService(settings) as service, display.bar:
        results = Batch(service).run(rows, display.show, display.follow)
    failed = [result for result in results if result.status == FAILED]
    if failed:
        print(f"{len(failed)} of {len(rows)} rows failed:", file=sys.stderr)
        for result in failed:
            print(f"  line {result.row.line}: {one_line(result.row.video)}: {result.reason}", file=sys.stderr)
    print(f"report: {one_line(display.report)}")
    return exit_code(results)


@command(interrupted="interrupted; run the same command again to resume")
def main(argv: Sequence[str] | None = None) -> int:
    parser = build_parser()
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    return run(options, parser)


if __name__ == "__main__":
    sys.exit(main())
