"""Lip-sync a list of videos, unattended: `python -m scripts.batch --list jobs.csv`.

The list is a CSV with the columns video, audio and out, and any option of a job (see docs/serving.md). The same command
again goes on where it stopped, and does again only what has failed or changed. Exit codes: 0 all rows are done, 1 some
are not or something is wrong with what was given, 2 wrong usage, 130 interrupted.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from latentsync.utils.commands import command
from latentsync.utils.errors import one_line


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.batch", description="Lip-sync a list of videos.", allow_abbrev=False
    )
    add = parser.add_argument
    add("--list", type=Path, required=True, help="CSV with the columns video, audio, out; paths start at its folder")
    add("--workspace", type=Path, help="where jobs are kept until they are done (default: beside the list)")
    add(
        "--workers", type=int, default=1, help="processes that do jobs, each with its own models (default: %(default)s)"
    )
    add("--devices", nargs="+", default=["auto"], help="cuda:0 cuda:1 ...; workers take them in turn (default: auto)")
    add("--model", default="auto", help="for rows that name none (default: the best present)")
    add("--job_timeout_seconds", type=float, default=21600, help="time that a job may take (default: %(default)s)")
    return parser


def run(options: argparse.Namespace) -> int:
    """Do the list; returns how many rows are not done."""
    from latentsync.serving.batch import FAILED, Batch, Fate, read_list
    from latentsync.serving.service import JobService
    from latentsync.serving.settings import ServingSettings

    rows = read_list(options.list)
    settings = ServingSettings(
        options.workspace or options.list.with_name(f"{options.list.stem}.work"),
        workers=max(1, options.workers),
        devices=tuple(options.devices),
        model=options.model,
        job_timeout_seconds=options.job_timeout_seconds,
    )
    told = 0

    def tell(fate: Fate) -> None:
        nonlocal told
        told += 1
        seconds = f" ({fate.seconds:.0f} s)" if fate.seconds else ""
        reason = f": {fate.reason}" if fate.reason else ""
        print(f"[{told}/{len(rows)}] {fate.status} {one_line(fate.row.out)}{seconds}{reason}", flush=True)

    with JobService(settings) as service:
        fates = Batch(service).run(rows, tell)
    failed = [fate for fate in fates if fate.status == FAILED]
    if failed:
        print(f"{len(failed)} of {len(rows)} rows failed:", file=sys.stderr)
        for fate in failed:
            print(f"  line {fate.row.line}: {one_line(fate.row.video)}: {fate.reason}", file=sys.stderr)
    return len(failed)


@command(interrupted="interrupted; run the same command again to resume")
def main(argv: Sequence[str] | None = None) -> int:
    options = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    return 1 if run(options) else 0


if __name__ == "__main__":
    sys.exit(main())
