"""Compare methods on a list of clips: `python -m eval.run --pairs list.csv --methods DIR NAME=pipeline:MODEL ...`.

A row of the list is a video, the audio that drives it (default: its own), an id and a group. A method is a folder of
results named by id, NAME=FOLDER, or NAME=pipeline:MODEL, which runs a model for missing results. The videos themselves
are always evaluated as "ground truth".

Writes to --output_dir: index.html (table, plots, videos side by side), summary.csv, summary.md, summary.json (with
settings and versions), clips.csv (every value), results/ (videos made by models), values/ (metric cache). The same
command resumes an interrupted run. A metric without its weights reads "n/a (needs FILE)". A clip that fails is reported
with its reason. Exit codes: 0 written, 1 invalid input or no clip could be evaluated, 2 wrong usage.
"""

import argparse
import logging
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from eval import inference_videos
from eval.clip_metrics import compute_metrics
from eval.inference_videos import (
    BatchInference,
    add_generation_options,
    generation_options,
    open_pipeline,
    precision_of,
)
from eval.methods import Method, parse_methods
from eval.metric_cache import MetricCache
from eval.metrics import ClipMetrics, MetricModels, add_metric_options, check_metric_options, metric_settings
from eval.output_folder import output_folder
from eval.pairs import COLUMNS, Pair, read_pairs, silent_pairs
from eval.report import PAGE, Report, describe
from eval.summary import Failure
from latentsync.arguments import OptionParser
from latentsync.loading import pick_device
from latentsync.utils.batch import FAILED
from latentsync.utils.commands import command
from latentsync.utils.errors import UserError, one_line
from latentsync.utils.tables import write_csv

logger = logging.getLogger("eval")


def build_parser() -> OptionParser:
    parser = OptionParser(
        prog="latentsync eval run",
        usage="%(prog)s --pairs CSV --output_dir DIR [--option value ...]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--pairs", type=Path, required=True, help="CSV with the columns video, audio, id, group")
    add(
        "--methods",
        nargs="*",
        default=[],
        help="DIR, NAME=DIR or NAME=pipeline:MODEL (default: only the videos)",
    )
    add("--output_dir", type=Path, required=True, help="output folder")
    add("--silent", action="store_true", help="also drive each video by silence, as <id>_silent")
    add_metric_options(parser)
    add_generation_options(parser, leave_out=("model",))  # given by the methods
    return parser


def parse_options(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line. Exits with 2 on wrong usage."""
    parser = build_parser()
    options = parser.parse_args(argv)
    check_metric_options(parser, options)
    return options


def options_of_model(
    model: str, folder: Path, rows: Iterable[Iterable[object]], words: Sequence[str]
) -> argparse.Namespace:
    """Options of a run that evaluates a model on the rows of a list, which is written to `folder`, the output folder.

    Args:
        rows: values of the columns video, audio, id and group.
        words: further arguments of the command line.
    """
    pairs = folder / "pairs.csv"
    folder.mkdir(parents=True, exist_ok=True)
    write_csv(pairs, COLUMNS, rows)
    methods = ["--methods", f"{model}=pipeline:{model}"]
    return parse_options(["--pairs", str(pairs), "--output_dir", str(folder), *methods, *words])


def log_progress() -> None:
    """Log the progress of the run, and only warnings of everything else."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logger.setLevel(logging.INFO)


def generate(options: argparse.Namespace, methods: Sequence[Method], pairs: Sequence[Pair]) -> Iterator[Failure]:
    """Run each model for missing results; yields the pairs that failed."""
    for method in methods:
        if method.model is None or method.folder is None:
            continue
        chosen = generation_options(options, method.model)
        batch = BatchInference(chosen, method.folder, partial(open_pipeline, chosen, options), precision_of(options))
        for row in batch(pairs):
            logger.info("%s, %s: %s %s", method.name, row.row.id, row.status, one_line(row.reason))
            if row.status == FAILED:
                yield Failure(row.row.id, method.name, row.reason)


def compute_all(
    methods: Sequence[Method], pairs: Sequence[Pair], models: MetricModels, cache: MetricCache, failed: list[Failure]
) -> tuple[dict[tuple[str, str], ClipMetrics], list[Failure]]:
    """Metrics of each method on each pair, except those in `failed`; and all failures."""
    cells: dict[tuple[str, str], ClipMetrics] = {}
    failures = list(failed)
    done = {(item.method, item.id) for item in failed}
    for pair in pairs:
        for method in methods:
            if (method.name, pair.id) in done:
                continue
            try:
                found = cache.get(pair, method, partial(compute_metrics, pair, method, models))
                cells[method.name, pair.id] = found
                logger.info("%s, %s: %d metrics of %d frames", method.name, pair.id, len(found.values), found.frames)
            except UserError as error:
                failures.append(Failure(pair.id, method.name, str(error)))
                logger.info("%s, %s: FAILED: %s", method.name, pair.id, one_line(error))
    return cells, failures


def run(options: argparse.Namespace, command: str) -> Report:
    """Compare the methods and write the report to the output folder."""
    pairs = read_pairs(options.pairs)
    methods = parse_methods(options.methods, options.output_dir / "results")
    with output_folder(options.output_dir):
        if options.silent:
            pairs = [*pairs, *silent_pairs(pairs, options.output_dir / "silence")]
        report = compare(options, methods, pairs, command)
        page = report.write(options.output_dir)
    if not report.cells:
        raise UserError(f"{options.pairs}: no clip could be evaluated; see {page}")
    return report


def compare(options: argparse.Namespace, methods: Sequence[Method], pairs: Sequence[Pair], command: str) -> Report:
    """Generate missing results and compute all metrics, with a cache in `values/`."""
    with closing(MetricModels(metric_settings(options), str(pick_device(options.device)))) as models:
        about = describe(command, models)
        cache = MetricCache(options.output_dir / "values", about)
        failed = list(generate(options, methods, pairs))
        cells, failures = compute_all(methods, pairs, models, cache, failed)
    about["inference"] = {method.name: inference_of(options, method.model) for method in methods if method.model}
    return Report(methods, pairs, cells, failures, about)


def inference_of(options: argparse.Namespace, model: str) -> dict[str, Any]:
    """Options and weights that the results of a model were generated with."""
    chosen = generation_options(options, model).model_dump(mode="json")
    return {**chosen, "weights": inference_videos.weights_fingerprint(model), **precision_of(options)}


@command
def main(argv: Sequence[str] | None = None) -> int:
    options = parse_options(argv)
    log_progress()
    words = sys.argv[1:] if argv is None else argv
    run(options, f"python -m eval.run {shlex.join(words)}")
    print(options.output_dir / PAGE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
